"""Files on the command line: what is read is written back the same, or refused."""

from __future__ import annotations

import csv
import datetime
import io
import pickle
import warnings
import zipfile
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bridgehead._tools.cli.formats import Unusable, dumped, loaded

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
ipc = pytest.importorskip("pyarrow.ipc")


def cells(data: bytes, **options: Any) -> list[list[str]]:
    return [row for row in csv.reader(io.StringIO(data.decode(), newline=""), **options) if row]


CSV = {
    "leading zeros": b"zip,phone\n01234,+4915\n00501,0049\n",
    "words for missing": b"country,x\nNA,1\nnull,2\nNone,3\nN/A,4\nnan,5\n",
    "large integers": b"id\n9007199254740993\n18446744073709551615\n",
    "larger integers": b"id\n123456789012345678901234567890\n1\n",
    "negative and large": b"id\n-1\n18446744073709551615\n",
    "missing integers": b"id,x\n9007199254740993,1\n,2\n",
    "digits": b"a\n3.3333333333333333333\n0.1\n",
    "booleans": b"a,b,c\nTrue,TRUE,True\nFalse,x,\n",
    "signs": b"a,b\n-0,+1\n1,2\n",
    "lines in a cell": b'a,b\n1,"x\ny"\n2,"p\r\nq"\n',
    "nul": b"a,b\n1,x\x00y\n",
    "spaces": b"a, b\n1, x\n",
    "an index": b",a\n0,x\n1,y\n",
    "header only": b"a,b\n",
    "quotes": b'a,b\n"he said ""hi""",x\n',
    "late text": b"a\n" + b"1\n" * 1000 + b"x\n",
    "infinity": b"a,b\ninf,1e400\n1,2\n",
    "underscores": b"a\n1_000\n2\n",
}


@pytest.mark.parametrize("name", CSV)
def test_the_cells_of_a_csv_file_stay(name: str) -> None:
    data = CSV[name]
    assert cells(dumped(loaded(data, "csv", "it"), "csv")) == cells(data)


def test_numbers_of_a_csv_file_are_numbers() -> None:
    table = loaded(b"i,f,m,g\n1,1.50,2,1e5\n-2,0.1,,-0.0\n", "csv", "it")
    assert list(map(str, table.dtypes)) == ["int64", "float64", "Int64", "float64"]
    assert list(table["f"]) == [1.5, 0.1]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"a,b\n1,2,3\n", "line 2 has 3 cells, and the header has 2"),
        (b"a,b\n1\n", "line 2 has 1 cells"),
        (b"a,a\n1,2\n", "two columns have the name 'a'"),
        (b"a;b\n1,5;2\n", "give --sep ';'"),
        (b"a\tb\n1\t2\n", "give --sep"),
        ("n\u00e4me\n1\n".encode("latin-1"), "is not utf-8; give the file's own --encoding"),
        ("a,b\n1,\u00e9\n".encode("utf-16"), "--encoding"),
        (b"", "it is empty"),
    ],
)
def test_a_csv_file_that_would_lose_something_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(Unusable, match=why):
        loaded(data, "csv", "it")


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16", "utf-8-sig"])
def test_encoding_and_separator_may_be_given(encoding: str) -> None:
    data = "n\u00e4me;b\n1,5;\u00e9\n".encode(encoding)
    table = loaded(data, "csv", "it", encoding, ";")
    assert table.to_dict("list") == {"n\u00e4me": ["1,5"], "b": ["\u00e9"]}
    assert loaded(dumped(table, "csv", encoding, ";"), "csv", "it", encoding, ";").equals(table)
    assert loaded('{"a": "\u00e9"}'.encode(encoding), "json", "it", encoding) == {"a": "\u00e9"}
    with pytest.raises(Unusable, match="no encoding 'x'"):
        loaded(data, "csv", "it", "x")


def test_a_byte_order_mark_is_no_part_of_a_name() -> None:
    assert list(loaded(b"\xef\xbb\xbfa,b\n1,2\n", "csv", "it").columns) == ["a", "b"]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b'{"a": 1, "a": 2}', "the key 'a' appears twice"),
        (b'{"a": 0.1234567890123456789012345}', "more digits than a float keeps"),
        (b"[1e400]", "more digits"),
    ],
)
def test_a_json_file_that_would_lose_something_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(Unusable, match=why):
        loaded(data, "json", "it")
    assert loaded(b"[1.0, 1, 1E5, 0.1, 1.10]", "json", "it") == [1.0, 1, 1e5, 0.1, 1.1]


def test_a_second_object_in_a_file_is_not_lost() -> None:
    file = io.BytesIO()
    np.save(file, np.arange(3))
    np.save(file, np.arange(4))
    with pytest.raises(Unusable, match="more follows the first array"):
        loaded(file.getvalue(), "npy", "it")
    with pytest.raises(Unusable, match="more follows the first object"):
        loaded(pickle.dumps([1]) + pickle.dumps([2]), "pickle", "it")
    loaded(pickle.dumps([1]), "pickle", "it")


NOW = datetime.datetime(2024, 1, 2, 3, 4, 5, 678901)
ARROW: dict[str, Any] = {
    "integers": pa.array([2**53 + 1, None, 3]),
    "small integers": pa.array([1, None, 2], pa.int8()),
    "booleans": pa.array([True, None, False]),
    "unsigned": pa.array([2**64 - 1, 0], pa.uint64()),
    "decimals": pa.array([Decimal("1.10"), None], pa.decimal128(20, 2)),
    "nan and null": pa.array([float("nan"), None, 1.5]),
    "old times": pa.array([datetime.datetime(1, 1, 1)], pa.timestamp("us")),
    "zone": pa.array([NOW, None], pa.timestamp("us", "Europe/Berlin")),
    "dates": pa.array([datetime.date(2024, 1, 1), None]),
    "lists": pa.array([[1, 2], None, [], [None, 3]]),
    "structs": pa.array([{"a": 1, "b": {"c": "x"}}, None]),
    "bytes": pa.array([b"\x00\xff", None]),
    "dictionary": pa.array(["a", "b", None]).dictionary_encode(),
    "nulls": pa.nulls(2),
    "plain": pa.array([1, 2, 3]),
}


def arrow_file(table: Any, kind: str) -> bytes:
    file = io.BytesIO()
    if kind == "parquet":
        pq.write_table(table, file)
    else:
        with (ipc.new_file if kind == "arrow" else ipc.new_stream)(file, table.schema) as writer:
            writer.write_table(table)
    return file.getvalue()


def arrow_content(data: bytes, kind: str) -> Any:
    return pq.read_table(io.BytesIO(data)) if kind == "parquet" else ipc.open_file(data).read_all()


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
@pytest.mark.parametrize("name", ARROW)
def test_a_column_of_a_parquet_or_arrow_file_stays_or_is_refused(name: str, kind: str) -> None:
    data = arrow_file(pa.table({"c": ARROW[name]}), kind)
    stored = arrow_content(data, kind)
    try:
        value = loaded(data, kind, "it")
    except Unusable as error:
        assert "'c'" in str(error)  # noqa: PT017 - others are read
        assert name not in ("integers", "decimals", "nan and null", "plain")
        return
    back = arrow_content(dumped(value, kind), kind)
    assert back.column("c").type == stored.column("c").type
    assert repr(back.column("c").to_pylist()) == repr(stored.column("c").to_pylist())


def test_an_ordinary_parquet_file_has_the_types_of_pandas() -> None:
    table = pd.DataFrame({"a": [1, 2], "b": ["x", None], "f": [0.5, 1.0]}, index=["r", "s"])
    pd.testing.assert_frame_equal(loaded(table.to_parquet(), "parquet", "it"), table)


NESTED = pd.Series([[1, None], [2]])  # pandas has no type for it
LABELS = {
    "a range": pd.DataFrame({"a": [1, 2]}, index=pd.RangeIndex(5, 7)),
    "a range with a name": pd.DataFrame({"a": [1, 2]}, index=pd.RangeIndex(5, 9, 2, name="t")),
    "dates": pd.DataFrame({"a": [1, 2]}, index=pd.date_range("2024-01-01", periods=2)),
    "labels twice": pd.DataFrame({"a": [1, 2]}, index=["x", "x"]),
    "two levels": pd.DataFrame({"a": [1, 2]}, index=pd.MultiIndex.from_product([["x"], [3, 4]])),
    "numbers as columns": pd.DataFrame({0: [1, 2], 1: [3, 4]}),
    "columns of two levels": pd.DataFrame({("a", "b"): [1, 2], ("a", "c"): [3, 4]}),
    "a name of the columns": pd.DataFrame({"a": [1, 2]}, columns=pd.Index(["a"], name="of")),
}


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
@pytest.mark.parametrize("name", LABELS)
def test_index_labels_and_attributes_stay_beside_a_column_of_arrow(name: str, kind: str) -> None:
    table = LABELS[name].copy()
    nested = table.columns[0]
    table[nested] = NESTED.to_numpy()
    table.attrs["unit"] = "m"
    back = loaded(arrow_file(pa.Table.from_pandas(table), kind), kind, "it")
    assert isinstance(back.dtypes.iloc[0], pd.ArrowDtype)
    assert [list(cell) for cell in back[nested]] == [[1, None], [2]]
    assert back.attrs == table.attrs
    others = [table.drop(columns=[nested]), back.drop(columns=[nested])]
    pd.testing.assert_frame_equal(*others, check_freq=False)
    assert type(back.index) is type(table.index)
    pd.testing.assert_index_equal(back.columns, table.columns, exact="equiv")


def test_an_index_that_pandas_has_no_type_for_is_refused() -> None:
    table = pd.DataFrame({"a": [1, 2]}, index=pd.Index([1, None], dtype="Int64", name="q"))
    with pytest.raises(Unusable, match="can't hold index 'q' of type int64 as it is"):
        loaded(table.to_parquet(), "parquet", "it")


@pytest.mark.parametrize("kind", ["parquet", "arrow", "stream"])
def test_two_columns_of_one_name_in_a_parquet_or_arrow_file_are_refused(kind: str) -> None:
    table = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])
    with pytest.raises(Unusable, match="two columns"):
        loaded(arrow_file(table, kind), kind.replace("stream", "arrow"), "it")


def test_an_arrow_stream_is_read_and_a_second_one_is_not_lost() -> None:
    data = arrow_file(pa.table({"a": [1, 2]}), "stream")
    assert loaded(data, "arrow", "it").to_dict("list") == {"a": [1, 2]}
    with pytest.raises(Unusable, match="more follows the first table"):
        loaded(data + data, "arrow", "it")
    for damaged in (b"", b"ARROW1", data[:50]):
        with pytest.raises(Unusable, match="can't be read as arrow"):
            loaded(damaged, "arrow", "it")


def test_the_arrays_of_an_archive_stay() -> None:
    arrays = {"file": np.arange(3), "a/b.npy": np.array(2.5), "": np.zeros((0, 2), "M8[ns]")}
    back = loaded(dumped(arrays, "npz"), "npz", "it")
    assert list(back) == list(arrays)
    for name, array in arrays.items():
        assert (back[name].dtype, back[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(back[name], array)
    file = io.BytesIO()
    np.savez_compressed(file, a=np.arange(3))
    assert list(loaded(file.getvalue(), "npz", "it")["a"]) == [0, 1, 2]
    with np.load(io.BytesIO(dumped({"x": np.arange(3)}, "npz"))) as archive:
        assert list(archive["x"]) == [0, 1, 2]


def test_an_archive_that_would_lose_something_is_refused() -> None:
    array = io.BytesIO()
    np.save(array, np.arange(3))
    objects = io.BytesIO()
    np.savez(objects, a=np.array([{}]), allow_pickle=True)
    with_others: list[tuple[list[tuple[str, bytes]], str]] = [
        ([("a.npy", array.getvalue()), ("notes.txt", b"x")], "'notes.txt' in it is no array"),
        ([("a.npy", array.getvalue() * 2)], "more follows the first array"),
        ([("a.npy", array.getvalue())] * 2, "two arrays have the name 'a.npy'"),
    ]
    for members, why in with_others:
        file = io.BytesIO()
        with warnings.catch_warnings(), zipfile.ZipFile(file, "w") as archive:
            warnings.simplefilter("ignore")  # zipfile warns of two members of one name
            for member in members:
                archive.writestr(*member)
        with pytest.raises(Unusable, match=why):
            loaded(file.getvalue(), "npz", "it")
    for data in (b"", b"PK\x03\x04", objects.getvalue()):
        with pytest.raises(Unusable, match="can't be read as npz"):
            loaded(data, "npz", "it")
    for value, why in (
        ([1], "a dict of arrays"),
        ({1: np.arange(3)}, "only names as keys"),
        ({"a": [1]}, "at 'a', holds arrays, not a list"),
        ({"a": np.array([{}])}, "at 'a', holds an array of objects"),
        ({"\ud800": np.arange(3)}, "surrogate"),
    ):
        with pytest.raises(Unusable, match=why):
            dumped(value, "npz")
