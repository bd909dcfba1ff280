"""Files on the command line: what is read is written back the same, or refused."""

from __future__ import annotations

import collections
import csv
import dataclasses
import datetime
import io
import json
import pickle
import warnings
import zipfile
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bridgehead._shipped.data import decode_data, encode_data
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


SCHEMAS: dict[str, Any] = {
    "metadata of the schema": pa.schema([("c", pa.int64())], {"who": "me", b"\xff": b"\x00\xfe"}),
    "metadata of a field": pa.schema([pa.field("c", pa.int64(), metadata={"unit": "m"})]),
    "not null": pa.schema([pa.field("c", pa.int64(), nullable=False)]),
    "all of them": pa.schema(
        [pa.field("c", pa.int64(), nullable=False, metadata={"PARQUET:field_id": "7"})],
        {"geo": '{"version": "1.0"}'},
    ),
    "a field in a structure": pa.schema(
        [("c", pa.struct([pa.field("x", pa.int64(), nullable=False, metadata={"unit": "m"})]))]
    ),
    "items of lists": pa.schema([("c", pa.list_(pa.field("x", pa.int64(), nullable=False)))]),
    "an unknown type": pa.schema(
        [pa.field("c", pa.int64(), metadata={"ARROW:extension:name": "its.own"})]
    ),
}


@pytest.mark.parametrize("kind", ["parquet", "arrow", "stream"])
@pytest.mark.parametrize("name", SCHEMAS)
@pytest.mark.parametrize("by_pandas", [False, True])
def test_the_schema_of_a_parquet_or_arrow_file_stays(name: str, kind: str, by_pandas: bool) -> None:
    """Row L11: what is no cell, too, also beside what pandas writes, and through a kernel."""
    schema = SCHEMAS[name]
    items = {"c": [{"x": 1}, {"x": 2}] if "structure" in name else [1, 2]}
    items["c"] = [[1], [2]] if "lists" in name else items["c"]
    table = pa.table(items, schema=schema)
    if by_pandas:
        frame = pd.DataFrame({"c": items["c"]}, index=["r", "s"])
        frame.attrs["of"] = [1, float("nan")]
        facts = pa.Table.from_pandas(frame)
        table = table.append_column(facts.schema.field(1), facts.column(1))
        both = {**(schema.metadata or {}), **facts.schema.metadata}
        table = table.replace_schema_metadata(both)
    data, kind = arrow_file(table, kind), kind.replace("stream", "arrow")
    before = pq.read_table(io.BytesIO(data)).schema if kind == "parquet" else table.schema
    value = pickle.loads(pickle.dumps(loaded(data, kind, "it")))
    value = decode_data(encode_data(value))
    assert "of" in value.attrs or not by_pandas
    back = arrow_content(dumped(value, kind), kind)
    assert back.schema.field("c").equals(before.field("c"), check_metadata=True)
    assert back.column("c").to_pylist() == items["c"]
    others = [{**(one.metadata or {})} for one in (before, back.schema)]
    for one in others:
        one.pop(b"pandas", None)
        one.pop(b"PANDAS_ATTRS", None)
    assert others[0] == others[1]
    again = loaded(dumped(value, kind), kind, "it")
    assert repr(again.attrs) == repr(value.attrs)


def test_a_column_that_got_nulls_or_left_is_written() -> None:
    schema = pa.schema([pa.field(name, pa.float64(), nullable=False) for name in "ab"], {"k": "v"})
    table = loaded(
        arrow_file(pa.table({"a": [1.0], "b": [2.0]}, schema=schema), "arrow"), "arrow", "it"
    )
    table["a"] = None
    back = arrow_content(dumped(table.drop(columns=["b"]), "arrow"), "arrow")
    assert (back.schema.field("a").nullable, back.schema.metadata[b"k"]) == (True, b"v")


def test_metadata_that_a_table_has_no_place_for_is_refused() -> None:
    table = pa.table({"a": [1]})
    for new in (ipc.new_file, ipc.new_stream):
        file = io.BytesIO()
        with new(file, table.schema) as writer:
            writer.write_batch(table.to_batches()[0], custom_metadata={"who": "me"})
        with pytest.raises(Unusable, match="a record batch has metadata, which would be lost"):
            loaded(file.getvalue(), "arrow", "it")
    file = io.BytesIO()
    with ipc.new_file(file, table.schema, metadata={"who": "me"}) as writer:
        writer.write_table(table)
    with pytest.raises(Unusable, match="the file has metadata beside its schema"):
        loaded(file.getvalue(), "arrow", "it")


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
@pytest.mark.parametrize(
    ("attrs", "why"),
    [({"x": (1, 2)}, r"its attrs would become {'x': \[1, 2\]}"), ({1: 2}, "."), ({"x": {1}}, ".")],
)
def test_attributes_that_json_would_change_are_refused(attrs: Any, why: str, kind: str) -> None:
    table = pd.DataFrame({"a": [1]})
    table.attrs.update(attrs)
    with pytest.raises(Unusable, match=f"{kind} can't hold this table .*{why}"):
        dumped(table, kind)


@pytest.mark.parametrize(
    "own", [1, {}, {"metadata": {}, "fields": 1}, {"metadata": {}, "fields": {"a": 1}}]
)
def test_an_attribute_of_the_users_is_left_alone(own: Any) -> None:
    table = pd.DataFrame({"a": [1]})
    table.attrs["arrow_schema"] = own
    for kind in ("parquet", "arrow"):
        assert loaded(dumped(table, kind), kind, "it").attrs == {"arrow_schema": own}


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


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_texts_of_other_programs_have_the_type_of_pandas(kind: str) -> None:
    table = pd.DataFrame({"a": ["x", None]}, index=["r", "s"])
    stored = pa.Table.from_pandas(table).cast(
        pa.schema([("a", pa.string()), ("__index_level_0__", pa.string())])
    )
    for facts in (pa.Table.from_pandas(table).schema.metadata, None):
        back = loaded(arrow_file(stored.replace_schema_metadata(facts), kind), kind, "it")
        assert back["a"].dtype == table["a"].dtype
        assert list(back.index) == (["r", "s"] if facts else [0, 1])


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
@pytest.mark.parametrize("name", ["lists", "structs", "decimals", "dictionary", "bytes"])
def test_a_column_of_arrow_that_was_pulled_into_a_file_is_read_again(name: str, kind: str) -> None:
    """pandas writes names of types that it can't read."""
    column = pd.Series(ARROW[name].to_pandas(types_mapper=pd.ArrowDtype))
    table = pd.DataFrame({"a": column, "b": range(len(column))}, index=range(5, 5 + len(column)))
    back = loaded(dumped(table, kind), kind, "it")
    assert isinstance(back["a"].dtype, pd.ArrowDtype)
    assert repr(back["a"].tolist()) == repr(table["a"].tolist())
    assert (list(back.index), back["b"].dtype) == (list(table.index), "int64")


@pytest.mark.parametrize("damage", [{"columns": 1}, {"columns": [{}]}, {"index_columns": ["x"]}])
def test_what_pandas_wrote_into_a_file_may_be_damaged(damage: dict[str, Any]) -> None:
    table = pa.Table.from_pandas(pd.DataFrame({"a": [1]}))
    facts = {**table.schema.pandas_metadata, **damage}
    table = table.replace_schema_metadata({"pandas": json.dumps(facts)})
    with pytest.raises(Unusable, match="it can't be read as arrow"):
        loaded(arrow_file(table, "arrow"), "arrow", "it")


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


# ---------------------------------------------------------------- what a format can't hold


def objects(*cells: Any, name: str = "a") -> pd.DataFrame:
    return pd.DataFrame({name: pd.Series([*cells], dtype=object)})


def in_index(cell: Any) -> pd.DataFrame:
    return pd.DataFrame({"a": [1]}, index=pd.Index([cell], dtype=object, tupleize_cols=False))


EAST = datetime.timezone(datetime.timedelta(hours=2))
ALTERED: dict[str, tuple[Any, str]] = {
    "sets": (objects({1, 2}, {3}), r"'a' has {1, 2}, which would become \[1, 2\]"),
    "tuples": (objects([1], (1,)), r"'a' has \(1,\), which would become \[1\]"),
    "numbers": (objects(2.5, 1), "'a' has 1, which would become 1.0"),
    "booleans": (objects(2, True), "."),
    "texts and bytes": (objects(b"a", "b"), "'a' has 'b', which would become b'b'"),
    "dicts": (
        objects({"x": 1}, {"x": 1, "y": 2}),
        r"has {'x': 1}, which would become {'x': 1, 'y'",
    ),
    "nested": (objects([{"x": [(1, 2)]}]), r"which would become \[{'x': \[\[1, 2\]\]}\]"),
    "arrays": (objects(np.array([1]), np.array([2.5])), r"has array\(\[1\]\), which would"),
    "zones": (objects(NOW.replace(tzinfo=EAST), NOW.replace(tzinfo=datetime.UTC)), "datetime"),
    "nanoseconds": (objects(datetime.timedelta(1), pd.Timedelta(2, "ns")), "Timedelta"),
    "a large integer": (objects(2**70), "too large"),
    "categories": (pd.DataFrame({"a": pd.Categorical([(1, 2), (3, 4)])}), r"'a' has \(1, 2\)"),
    "the index": (in_index((1, 2)), r"the index has \(1, 2\)"),
    "labels": (pd.DataFrame([[1, 2]], columns=[0, "b"]), "the name 0 of a column would become '0'"),
}


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
@pytest.mark.parametrize("name", ALTERED)
def test_a_table_that_arrow_would_convert_is_refused(name: str, kind: str) -> None:
    table, why = ALTERED[name]
    with pytest.raises(Unusable, match=f"{kind} can't hold this table .*{why}.*use pickle"):
        dumped(table, kind)


KEPT: dict[str, Any] = {
    "lists": objects([1, None], [2], [], None),
    "dicts": objects({"x": 1, "y": ["z"]}, {"y": [], "x": 2}),
    "arrays": objects(np.array([1.5, np.nan]), np.array([])),
    "times in arrays": objects(np.array(["2024-01-01", "NaT"], "M8[ns]")),
    "missing": objects("x", None, np.nan, pd.NA),
    "numbers": objects(1, np.int64(2), None),
    "times": objects(NOW, pd.Timestamp(NOW), pd.NaT),
    "zone": objects(NOW.replace(tzinfo=EAST)),
    "lengths": objects(datetime.timedelta(1), pd.Timedelta(2, "us")),
    "dates": objects(NOW.date(), None),
    "decimals": objects(Decimal("1.10"), Decimal("2.345")),
    "booleans": objects(True, np.bool_(False)),
    "categories": pd.DataFrame({"a": pd.Categorical(["x", None])}),
    "labels": pd.DataFrame([[1, 2]], columns=[0, 7]),
    "labels of two levels": pd.DataFrame(
        [[1, 2]], columns=pd.MultiIndex.from_product([[1], ["a", "b"]])
    ),
    "labels of dates": pd.DataFrame([[1, 2]], columns=pd.date_range("2024-01-01", periods=2)),
    "objects in the index": in_index("x"),
}


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
@pytest.mark.parametrize("name", KEPT)
def test_a_table_that_arrow_holds_is_written(name: str, kind: str) -> None:
    assert len(loaded(dumped(KEPT[name], kind), kind, "it")) == len(KEPT[name])


def test_rows_without_columns_are_not_lost() -> None:
    table = pd.DataFrame(index=range(3))
    assert len(loaded(dumped(table, "arrow"), "arrow", "it")) == 3
    with pytest.raises(Unusable, match="3 rows without columns"):
        dumped(table, "parquet")
    table.attrs["x"] = 1
    for kind in ("parquet", "arrow"):
        with pytest.raises(Unusable, match="3 rows without columns"):
            dumped(table, kind)


@pytest.mark.parametrize("kind", ["npy", "npz"])
@pytest.mark.parametrize(
    "array",
    [
        np.ma.array([1, 2], mask=[0, 1]),
        np.array([[1, 2]]).view(np.matrix),
        np.rec.array([(1, 2.0)], dtype=[("a", int), ("b", float)]),
    ],
    ids=lambda array: type(array).__name__,
)
def test_an_array_with_more_than_its_items_is_refused(array: Any, kind: str) -> None:
    with pytest.raises(Unusable, match=f"holds arrays, not a numpy.{type(array).__name__}; use p"):
        dumped(array if kind == "npy" else {"a": array}, kind)


@dataclasses.dataclass
class Point:
    x: int


UNWRITTEN: dict[str, Any] = {
    "dataclasses": objects(Point(1)),
    "objects": objects(object()),
    "deques": objects(collections.deque([1])),
    "categories": pd.DataFrame({"a": pd.Categorical([(1, 2)])}),
    "lists of arrow": pd.DataFrame(
        {"a": pd.Series([[1]], dtype=pd.ArrowDtype(pa.list_(pa.int8())))}
    ),
    "bytes of arrow": pd.DataFrame({"a": pd.Series([b"x"], dtype=pd.ArrowDtype(pa.binary()))}),
    "levels": pd.DataFrame({"a": [1]}, index=pd.MultiIndex.from_tuples([("x", (1, 2))])),
}


@pytest.mark.parametrize("name", UNWRITTEN)
def test_csv_holds_no_reprs(name: str) -> None:
    with pytest.raises(Unusable, match=r"numbers and texts, but ('a'|the index) has an? .*pickle"):
        dumped(UNWRITTEN[name], "csv")


def test_csv_holds_the_texts_of_scalars() -> None:
    cells: list[Any] = [1, 2.5, True, "x", None, Decimal("1.10"), NOW, NOW.date(), pd.NaT, pd.NA]
    cells += [np.float32(0.5), np.bool_(False), pd.Period("2024-01"), pd.Interval(0, 1)]
    texts = [("" if pd.isna(cell) else str(cell)) for cell in cells]
    assert [
        row["a"] for row in csv.DictReader(dumped(objects(*cells), "csv").decode().split("\n"))
    ] == texts
    cut = pd.DataFrame({"a": pd.cut([1, 2], [0, 1, 2])})
    assert dumped(cut, "csv") == b'a\n"(0, 1]"\n"(1, 2]"\n'


def test_a_carriage_return_in_a_cell_of_csv_ends_no_row() -> None:
    table = pd.DataFrame({"a\r": ["x\ry", "\r", "z\r\n"], "b": [1, 2, 3]}, index=["p\r", "q", "r"])
    back = loaded(dumped(table, "csv"), "csv", "it")
    assert list(back.columns) == ["", "a\r", "b"]
    assert back.to_numpy().tolist() == [["p\r", "x\ry", 1], ["q", "\r", 2], ["r", "z\r\n", 3]]
    assert dumped(table[["b"]].reset_index(drop=True), "csv") == b"b\n1\n2\n3\n"
