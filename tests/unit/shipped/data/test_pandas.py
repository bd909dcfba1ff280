"""Frames, series and indexes of pandas arrive as they were sent."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from support.data import COLUMNS, PANDAS, arrives_as_it_was_sent, sent


@pytest.mark.parametrize("value", PANDAS.values(), ids=[f"pandas: {name}" for name in PANDAS])
@pytest.mark.parametrize("in_band", [0, 1 << 30], ids=["out of band", "in band"])
def test_pandas_data_arrives_as_it_was_sent(
    value: Any, in_band: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrives_as_it_was_sent(value, in_band, monkeypatch)


def test_a_frame_that_arrives_can_be_changed() -> None:
    frame = sent(pd.DataFrame(COLUMNS))
    for name in [name for name in frame.columns if "sparse" not in name and "list" not in name]:
        frame.loc[0, name] = frame.loc[2, name]
    frame["new"] = 1
    assert len(frame.columns) == len(COLUMNS) + 1
