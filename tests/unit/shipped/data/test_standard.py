"""Data of the standard library arrives as it was sent."""

from __future__ import annotations

from typing import Any

import pytest

from support.data import PLAIN, arrives_as_it_was_sent


@pytest.mark.parametrize("value", PLAIN.values(), ids=[f"plain: {name}" for name in PLAIN])
@pytest.mark.parametrize("in_band", [0, 1 << 30], ids=["out of band", "in band"])
def test_standard_library_data_arrives_as_it_was_sent(
    value: Any, in_band: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrives_as_it_was_sent(value, in_band, monkeypatch)
