"""Frames, series and indexes of pandas arrive as they were sent."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from bridgehead._shipped.data import budget, decode_data, encode_data
from bridgehead._shipped.wire.errors import WireError
from support.data import COLUMNS, PANDAS, arrives_as_it_was_sent, codec_call, pickled, same, sent


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


MORE_FREQUENCIES = ["-1D", "5B", "C", "bh", "2cbh", "WOM-2TUE", "LWOM-FRI", "SME", "CBME", "BQE"]
MORE_FREQUENCIES += ["W-TUE", "-1QE", "YS-JUL", "RE-N-DEC-MON", "REQ-N-DEC-MON-1", "90min", "7ns"]


@pytest.mark.parametrize("zone", [None, "Europe/Berlin"])
@pytest.mark.parametrize("freq", MORE_FREQUENCIES)
def test_an_index_of_any_frequency_arrives_with_it(freq: str, zone: str | None) -> None:
    for rows in (0, 1, 2, 3, 100):
        index = pd.date_range("2020-02-28 10:00", periods=rows, freq=freq, tz=zone)
        found = sent(index)
        pd.testing.assert_index_equal(found, index)
        assert found.freq == index.freq


def index_of(days: Any, freq: str, times: int = 1) -> list[Any]:
    """Return the frames of one index or of several over the same rows."""
    raw = days.astype("M8[s]").tobytes()
    array = codec_call("make_array", "<M8[s]", days.shape, "C", bytearray(raw))
    rows = codec_call("make_datetimes", array, None) + b"\x940"
    calls = codec_call("make_index", b"h\0", None, freq) * times
    return [pickled(rows, b"(", calls, b"t")]


def days(*numbers: int) -> Any:
    return np.array(numbers, "M8[D]")


@pytest.mark.parametrize(
    ("rows", "freq"),
    [
        (days(0, 1, 2, 9), "D"),
        (days(0, 1, 2, 3, 5), "2D"),
        (days(5, 6, 7, 6), "D"),
        (days(5, 6, 6, 7), "D"),
        (days(1, 1, 1), "D"),
        (np.array(["1970-01-02", "1970-01-03", "NaT"], "M8[D]"), "D"),
        (np.array(["NaT", "1970-01-03", "1970-01-04"], "M8[D]"), "D"),
        (days(1, 2, 3, 4), "B"),
        (days(4, 5, 40_000), "B"),
        (days(0, 1, 2), "0D"),
        (days(0, 1, 2), "ns"),
    ],
)
def test_rows_of_another_frequency_are_refused(rows: Any, freq: str) -> None:
    with pytest.raises(WireError, match="frequency"):
        decode_data(index_of(rows, freq))


def test_the_time_of_checks_of_frequencies_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "FREE_SECONDS", 0.02)
    rows = pd.date_range("1970", periods=10, freq="REQ-N-DEC-MON-1").to_numpy()
    sent(pd.DatetimeIndex(rows, freq="REQ-N-DEC-MON-1"))  # its first use in a process takes longer
    with pytest.raises(WireError, match="checks of frequencies take too long"):
        decode_data(index_of(rows, "REQ-N-DEC-MON-1", 100))


def texts_of_bytes() -> Any:
    return pd.Series(np.array([b"a"]))


@pytest.mark.skipif(texts_of_bytes().dtype == object, reason="this pandas has no such column")
def test_the_writer_names_a_column_that_the_reader_refuses() -> None:
    with pytest.raises(WireError, match=r"a pandas column of \|S1 is not data") as caught:
        encode_data({"x": texts_of_bytes()})
    assert caught.value.kind == "untrusted"


def test_labels_of_arrow_are_claimed_for_each_row() -> None:
    """M4. A code of one byte stands for a text of any length, which a conversion copies."""
    short = pd.Index(["a", "b" * 20], dtype="string[pyarrow]")
    long = pd.Index(["a", "b" * 60_000], dtype="string[pyarrow]")
    codes = np.ones(60_000, "i1")
    for labels, fine in (short, True), (long, False):
        category = pd.Categorical.from_codes(codes, labels)
        several = pd.MultiIndex([labels], [codes])
        for value in category, several, pd.Series(category):
            if fine:
                assert same(value, sent(value))
                continue
            with pytest.raises(WireError, match="more than its length allows"):
                sent(value)
    many = pd.Categorical.from_codes(np.zeros(1_000_000, "i1"), long)
    assert same(many, sent(many))
