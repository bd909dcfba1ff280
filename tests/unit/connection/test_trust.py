"""Which thread opens a value that is only data."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from bridgehead._connection.trust import SLOW, Trust
from bridgehead._protocol import payload
from bridgehead._shipped.data import encode_data

DECODE = payload.decode_data


@pytest.mark.parametrize(
    ("value", "on_loop"),
    [
        ([1] * 100, True),
        (b"x" * 2 * SLOW, False),
        (np.zeros(SLOW // 4), True),
        (np.zeros(SLOW), False),
        ([np.zeros(SLOW // 8)] * 2 + [np.ones(SLOW // 8) for _ in range(4)], False),
    ],
    ids=["small", "a long pickle", "a short array", "a long array", "several arrays"],
)
async def test_a_value_with_long_frames_is_decoded_in_a_thread(
    value: Any, on_loop: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []

    def noting(*args: Any) -> Any:
        threads.append(threading.get_ident())
        return DECODE(*args)

    monkeypatch.setattr(payload, "decode_data", noting)
    await Trust("data").open_values(encode_data((value,)), ["the value"])
    assert [thread == threading.get_ident() for thread in threads] == [on_loop]
