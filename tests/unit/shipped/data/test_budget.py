"""What a stream costs its receiver is bounded by its length, whatever its sender chose.

Rule: each hostile stream is refused, by its nesting, its visits, its claims or its time; and values
of the same kind that a program may well have still arrive.
"""

from __future__ import annotations

import collections
import copy
import datetime
import decimal
import enum
import fractions
import pickle
import struct
from array import array as array_array
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest

from bridgehead._shipped.data import budget, decode_data, encode_data
from bridgehead._shipped.data.budget import NESTING
from bridgehead._shipped.wire.errors import WireError
from support.data import codec_call, data, lap, named, objects, pickled, refusal_of, same, sent

MEBIBYTE = 1 << 20
DEEP = {
    "tuples": b")" + b"\x85" * 5000,
    "lists": b"]" * 5000 + b"a" * 4999,
    "frozen sets": b"(" * 900 + b"K\1" + b"\x91" * 900,
    "dicts": b"}" + b"N}" * 1000 + b"s" * 1000,
    "few tuples": b")" + b"\x85" * (NESTING + 50),
}


def column(items: bytes, count: int = 1) -> bytes:
    return codec_call("make_objects", (count,), "C", b"](" + items + b"e")


def index_of(values: bytes) -> bytes:
    return codec_call("make_index", values, None, None)


def array(dtype: str, *numbers: int) -> bytes:
    raw = np.array(numbers, dtype).tobytes()
    return codec_call("make_array", dtype, (len(numbers),), "C", b"C" + bytes([len(raw)]) + raw)


def series(values: bytes, index: bytes, duplicates: bool = False) -> bytes:
    return codec_call("make_series", values, index, None, {}, duplicates)


def tower(height: int) -> bytes:
    """Return opcodes for nested pairs of one tuple: a hash or a repr visits 2**height parts."""
    return b")\x94" + b"".join(b"h%ch%c\x86\x94" % (n, n) for n in range(height))


def list_tower(height: int) -> bytes:
    return b"]\x94" + b"".join(b"](h%ch%ce\x94" % (n, n) for n in range(height))


def dict_tower(height: int) -> bytes:
    return b"}\x94" + b"".join(b"}(Nh%cK\1h%cu\x94" % (n, n) for n in range(height))


def extension(values: bytes) -> bytes:
    return codec_call("make_numpy_column", values)


# Where a value may be hashed, compared or printed: by pandas while it is read, or later.
PLACES = {
    "the value itself": lambda part: part,
    "a list": lambda part: b"](" + part + b"e",
    "a value of a dict": lambda part: b"}K\1" + part + b"s",
    "a deque": lambda part: codec_call("make_deque", None) + part + b"a",
    "an array": column,
    "a column": lambda part: series(column(part), codec_call("make_range_index", 0, 1, 1, None)),
    "an index": lambda part: index_of(column(part)),
    "an index of an extension array": lambda part: series(
        array("|i1", 1), index_of(extension(column(part)))
    ),
    "categories": lambda part: codec_call(
        "make_categorical", "|i1", data(b"\0"), index_of(extension(column(part))), False
    ),
    "a level": lambda part: codec_call(
        "make_multi_index",
        b"](" + index_of(extension(column(part))) + b"e",
        ["|i1"],
        [None],
        None,
        data(b"\0"),
    ),
    "a sparse column": lambda part: codec_call(
        "make_sparse", column(part), data(bytes(4)), 1, 0, False
    ),
    "the name of an index": lambda part: codec_call("make_range_index", 0, 1, 1, part),
    "the name of a column": lambda part: codec_call(
        "make_series",
        array("|i1", 1),
        codec_call("make_range_index", 0, 1, 1, None),
        part,
        {},
        True,
    ),
    "attrs": lambda part: codec_call(
        "make_series",
        array("|i1", 1),
        codec_call("make_range_index", 0, 1, 1, None),
        None,
        b"}K\1" + part + b"s",
        True,
    ),
    "a fill value": lambda part: codec_call(
        "make_masked",
        column(b"N"),
        None,
        b"(" + codec_call("make_objects", (), "C", b"](" + part + b"e") + b"t",
        False,
    ),
    "the mark of what is missing": lambda part: codec_call(
        "make_texts", (1,), ["a"], b"(" + part + b"t", True
    ),
}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("part", DEEP.values(), ids=DEEP)
def test_deep_nesting_is_refused_wherever_it_is(part: bytes, place: Any) -> None:
    refusal_of(pickled(place(part)), MEBIBYTE)


@pytest.mark.parametrize("kind", ["tuples", "lists"])
def test_a_megabyte_of_nesting_is_refused_and_freed(kind: str) -> None:
    part = {"tuples": b")" + b"\x85" * 10**6, "lists": b"]" * 10**6 + b"a" * (10**6 - 1)}[kind]
    with pytest.raises(WireError, match="levels deep"):
        decode_data([pickled(part)])


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("make", [tower, list_tower, dict_tower])
def test_a_tower_of_shared_values_is_refused_wherever_it_is(make: Any, place: Any) -> None:
    refusal_of(pickled(place(make(60))), 4 * MEBIBYTE)


# What a constructor copied out of a container is taken out of it, and then gets a deep tuple.
HOLDER, ITS_LIST = b"}\x94" + data("x") + b"h\0s0", b"h\0" + DEEP["tuples"] + b"a0"
EMPTIED = b"h\1" + data("x") + b"Ns0"
HIDDEN = {
    "attrs": [
        b"]\x940" + HOLDER,
        codec_call(
            "make_series",
            array("|i1", 1),
            codec_call("make_range_index", 0, 1, 1, None),
            *(None, b"h\1", True),
        ),
        EMPTIED + ITS_LIST,
    ],
    "the state of an instance": [
        b"]\x940" + HOLDER,
        codec_call("make_instance", "Plain", "new", (), {}) + data("state") + b"h\1s",
        EMPTIED + ITS_LIST,
    ],
    "the arguments of an instance": [
        b"]\x940" + HOLDER,
        codec_call("make_instance", "Labels", "call", b"h\1\x85", {}),
        EMPTIED + ITS_LIST,
    ],
    "the items of an instance": [
        b"]\x940" + codec_call("make_deque", 1) + b"\x94h\0a0",
        codec_call("make_instance", "Many", "new", (), {}) + data("items") + b"h\1s",
        b"h\1Na0" + ITS_LIST,
    ],
    "what a deque drops": [
        b"]\x940" + codec_call("make_deque", 1) + b"\x94h\0a0",
        codec_call("make_instance", "Many", "call", b"h\1\x85", {}),
        b"h\1Na0" + ITS_LIST,
    ],
}


@pytest.mark.parametrize("parts", HIDDEN.values(), ids=HIDDEN)
def test_what_a_constructor_has_copied_cannot_be_hidden(parts: list[bytes]) -> None:
    """M1. A container of a stream only grows, so that it has what was copied out of it."""
    allow = {kind.__name__: kind for kind in (Plain, Labels, Many)}
    with pytest.raises(WireError, match="a key is set twice|more items|not a list|such arguments"):
        decode_data([pickled(*parts)], allow)


@pytest.mark.parametrize("make", [b"}", *(codec_call(f"make_{name}") for name in ("ordered",))])
def test_a_key_is_set_once(make: bytes) -> None:
    for items in (b"NNsNNs", b"(NNNNu", b"K\1NsG\x3f\xf0\0\0\0\0\0\0Ns"):
        with pytest.raises(WireError, match="a key is set twice"):
            decode_data([pickled(make, items)])


def test_an_instance_gets_no_items_of_a_range() -> None:
    raw = codec_call("make_instance", "Many", "new", (), {}) + data("items")
    with pytest.raises(WireError, match="not a list"):
        decode_data([pickled(raw, codec_call("make_range", 0, 10**9, 1), b"s")], {"Many": Many})


class Plain:
    pass


class Many(list[Any]):
    pass


class Color(enum.Enum):
    RED = 1


class Tags(frozenset[Any]):
    pass


class Labels(dict[Any, Any]):
    pass


class One(NamedTuple):
    part: Any


INSTANCES = {
    "a call of an Enum": lambda part: codec_call(
        "make_instance", "Color", "call", b"(" + part + b"t", {}
    ),
    "a set": lambda part: codec_call("make_instance", "Tags", "new", b"(](" + part + b"et", {}),
    "the keys of a dict": lambda part: (
        codec_call("make_instance", "Labels", "new", (), {})
        + data("pairs")
        + b"]("
        + part
        + b"N\x86es"
    ),
    "a named tuple as a key": lambda part: (
        b"}" + codec_call("make_instance", "One", "new", b"(" + part + b"t", {}) + b"Ns"
    ),
}


@pytest.mark.parametrize("make", INSTANCES.values(), ids=INSTANCES)
@pytest.mark.parametrize("part", [DEEP["tuples"], tower(60)], ids=["deep", "tower"])
def test_an_allowed_class_gets_no_value_that_is_dear_to_hash(part: bytes, make: Any) -> None:
    allow = {kind.__name__: kind for kind in (Color, Tags, Labels, One)}
    with pytest.raises(WireError, match="levels deep|visits"):
        decode_data([pickled(make(part))], allow)


def nested(depth: int, wrap: Any) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = wrap(value)
    return value


WRAPS = {
    "lists": lambda value: [value],
    "tuples": lambda value: (value,),
    "dicts": lambda value: {"a": value},
    "frozen sets": lambda value: frozenset([value]),
    "deques": lambda value: collections.deque([value]),
}


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
def test_values_nested_to_the_bound_arrive_and_are_safe(wrap: Any) -> None:
    depth = NESTING // 2 if type(wrap(1)) is frozenset else NESTING
    value = sent(nested(depth, wrap))
    assert repr(value) == repr(nested(depth, wrap))
    assert value == nested(depth, wrap)
    assert copy.deepcopy(value) == value
    assert pickle.dumps(value)


@pytest.mark.parametrize(
    "wrap",
    [
        objects,
        lambda value: objects(value).reshape((1,) * 32),
        lambda value: pd.Series(objects(value)),
        lambda value: pd.DataFrame({"a": objects(value)}),
    ],
    ids=["arrays", "axes", "series", "frames"],
)
def test_what_nests_arrays_to_the_bound_can_be_printed(wrap: Any) -> None:
    depth = 1
    while True:
        try:
            value = sent(nested(depth, wrap))
        except WireError:
            break
        assert repr(value)
        depth += 1
    assert depth > 10


COUNTER = collections.Counter


@pytest.mark.parametrize("depth", [20, 200])
def test_counters_in_counters_are_refused(depth: int) -> None:
    """M2. A comparison visits each of their values twice, and a repr sorts them."""
    with pytest.raises(WireError, match="visits|levels deep"):
        sent(nested(depth, lambda value: COUNTER(a=value)))


def test_few_counters_in_counters_arrive() -> None:
    for value in (
        nested(8, lambda value: COUNTER(a=value)),
        {"x": COUNTER({n: COUNTER("mississippi") for n in range(1000)})},
    ):
        assert same(value, sent(value))


def test_shared_values_and_values_inside_themselves_arrive() -> None:
    row = list(range(50))
    rows = [row] * 2000
    people: list[dict[str, Any]] = [{"name": str(n)} for n in range(20)]
    for person in people:
        person["friends"] = people[:3]
    for value in (rows, people, lap([rows]), {"long": ["x" * 10_000] * 3000}):
        assert same(value, sent(value))


@pytest.mark.slow
def test_a_graph_whose_repr_has_too_many_paths_is_refused() -> None:
    """A repr visits each path of a graph, and 30 lists that hold each other have 30! of them."""
    lists: list[Any] = [[] for _ in range(30)]
    for each in lists:
        each.extend(lists)
    with pytest.raises(WireError, match="visits"):
        sent(lists)


# ---------------------------------------------------------------- prints and copies

FRAME = pd.DataFrame({name: range(60) for name in "abcd"})


@pytest.mark.parametrize(
    "value",
    [*(np.arange(1000).astype(kind) for kind in ("u1", "f4", "c8", "U3")), FRAME, FRAME["a"]],
    ids=["bytes", "floats", "complex", "texts", "frame", "series"],
)
def test_what_takes_long_to_print_is_not_shared_without_end(value: Any) -> None:
    """M2. Each reference to an array is two bytes, and its repr some milliseconds."""
    with pytest.raises(WireError, match="visits"):
        sent([value] * 1000)
    assert len(sent([value] * 20)) == 20
    several = [value.copy() for _ in range(300)]
    assert len(sent(several)) == 300


@pytest.mark.parametrize("code", "bdf")
def test_a_long_array_of_numbers_is_not_printed_without_end(code: str) -> None:
    """M2, M4. 1.9 kB and a frame of 400 kB took a minute and gigabytes."""
    for count in (1000, 100_000):
        value = array_array(code, np.full(count, 1.1).astype(code))
        with pytest.raises(WireError, match="visits"):
            sent([value] * 1000)
        assert sent([value] * 5) == [value] * 5


def test_text_whose_repr_takes_gigabytes_is_refused() -> None:
    """M4. Each reference to the text is two bytes."""
    long = "x" * 200_000
    with pytest.raises(WireError, match="visits"):
        sent([long] * 2000)
    assert same([long] * 200, sent([long] * 200))


@pytest.mark.parametrize(
    "value",
    [
        np.str_("x" * 1900),
        slice("x" * 1900),
        slice(7**2800),
        fractions.Fraction(7**2800, 2),
        datetime.timezone(datetime.timedelta(hours=1), "x" * 1900),
    ],
    ids=["numpy", "slice", "slice of an integer", "fraction", "time zone"],
)
def test_a_value_that_is_long_to_print_is_counted_as_text(value: Any) -> None:
    """M2, M4. Each reference is two bytes, and its repr takes kilobytes."""
    with pytest.raises(WireError, match="visits"):
        sent([value] * 100_000)
    assert sent([value] * 1000) == [value] * 1000


def test_a_long_integer_in_the_memo_is_counted_as_text() -> None:
    """M2, M4. Printed 300,000 times, 601 kB took 28 s and 722 MB."""
    with pytest.raises(WireError, match="visits"):
        decode_data([pickled(b"](" + data(7**2800) + b"\x94" + b"h\0" * 100_000 + b"e")])
    assert sent([7**2800] * 1000) == [7**2800] * 1000


def test_a_frame_has_no_blocks_without_columns() -> None:
    """M2. By the memo, each was two bytes, and each operation visits all."""
    empty = codec_call("make_array", "<f8", (0, 1), "C", data(b""))
    index = codec_call("make_range_index", 0, 1, 1, None)
    none = codec_call("make_range_index", 0, 0, 1, None)
    made = codec_call("make_frame", index, none, b"](](e" + empty + b"\x86e", {}, True)
    with pytest.raises(WireError, match="block without columns"):
        decode_data([pickled(made)])
    assert sent(pd.DataFrame({"a": [1]})[[]]).shape == (1, 0)


def test_series_whose_attrs_share_series_are_refused() -> None:
    """M2. An operation copies what is in the attrs, once for each way to it."""
    raw = codec_call("make_range_index", 0, 1, 1, None) + b"\x940" + array("|i1", 1) + b"\x940"
    raw += b"}\x940"
    for n in range(12):
        made = codec_call("make_series", b"h\1", b"h\0", None, b"h%c" % (n * 3 + 2), True)
        attrs = b"}" + data("a") + b"h%ch%c\x86s" % (n * 3 + 3, n * 3 + 4)
        raw += (made + b"\x940") * 2 + attrs + b"\x940"
    with pytest.raises(WireError, match="visits"):
        decode_data([pickled(raw, b"h%c" % 38)])


# ---------------------------------------------------------------- comparisons

PRIME = (1 << 61) - 1  # the modulus of the hash of numbers
FIVE = codec_call("make_decimal", "5")
LONG = data(5 + PRIME * (1 << 1_000_000))
BESIDE = {
    "in a set": b"\x8f(" + FIVE + LONG + b"\x90",
    "in a set, before": b"\x8f(" + LONG + FIVE + b"\x90",
    "in a frozen set": b"(" + LONG + FIVE + b"\x91",
    "in two keys": b"}" + LONG + b"Ns" + FIVE + b"Ns",
    "in a list": b"](" + LONG + FIVE + b"e",
    "in categories": codec_call(
        "make_categorical",
        *("|i1", data(b"\0")),
        index_of(codec_call("make_objects", (2,), "C", b"](" + LONG + FIVE + b"e")),
        False,
    ),
}


@pytest.mark.parametrize("raw", BESIDE.values(), ids=BESIDE)
def test_a_long_integer_beside_a_decimal_is_refused(raw: bytes) -> None:
    """M2. A comparison converts the integer, in one call that nothing can end."""
    refusal_of(pickled(raw), MEBIBYTE)


def fraction_like(count: int) -> list[fractions.Fraction]:
    """Return fractions of which each has the hash 5."""
    below = (1 << 16_300) + 1
    first = 5 * below % PRIME
    ends = range(1, 100)
    found = (fractions.Fraction(first + (PRIME * n << 16_000), below) for n in ends)
    return [each for each in found if hash(each) == 5][:count]


def memoized(keys: list[Any]) -> bytes:
    made = [
        codec_call("make_decimal", str(key))
        if type(key) is decimal.Decimal
        else codec_call("make_fraction", key.numerator, key.denominator)
        if type(key) is fractions.Fraction
        else data(key)
        for key in keys
    ]
    return b"(" + b"".join(each + b"\x94" for each in made) + b"1"


def test_few_keys_of_one_hash_in_many_containers_are_refused() -> None:
    """M8. A container of few keys was never timed."""
    numbers = [decimal.Decimal(5 + PRIME * n) for n in range(16)] + fraction_like(16)
    long = tuple(n + 0.5 for n in range(2000))
    tuples = [(*long, *(-1 - (n >> bit & 1) for bit in range(6))) for n in range(64)]
    for keys in (numbers, tuples):
        assert len(set(map(hash, keys))) == 1
        put = b"(" + b"".join(b"h%c" % n for n in range(len(keys)))
        for make in (b"\x8f" + put + b"\x90", put + b"\x91"):
            with pytest.raises(WireError, match="visits"):
                decode_data([pickled(memoized(keys), b"(", make * 10, b"t")])


def test_long_integers_and_keys_of_one_hash_arrive() -> None:
    grid = {(x, y): x * y for x in range(-20, 20) for y in range(-20, 20)}
    long = [7**100_000, {7**4000: 1}]
    mixed = {decimal.Decimal("1.5"), 7**90, fractions.Fraction(1, 3), 2.5, (1, 2)}
    for value in (grid, long, mixed, [mixed] * 1000):
        assert same(value, sent(value))


# ---------------------------------------------------------------- claims


SPARSE = (array("|i1", 1), data(b"\1\0\0\0"), 2**31 - 1, 0, False)
NOTHING = b"C\0"
CLAIMS = {
    "a sparse index": series(
        codec_call("make_sparse", *SPARSE), index_of(codec_call("make_sparse", *SPARSE))
    ),
    "a sparse array": codec_call("make_sparse", *SPARSE),
    "sparse columns of some size each": b"("
    + codec_call("make_sparse", *SPARSE[:2], 30_000_000, 0, False) * 3
    + b"t",
    "a range of rows": codec_call("make_range_index", 0, 1 << 40, 1, None),
    "a range of rows without end": codec_call("make_range_index", 0, 1 << 100, 1, None),
    "a range downwards": codec_call("make_range_index", 1 << 40, 0, -1, None),
    "texts of no size": codec_call("make_array", "<U0", (10**9,), "C", NOTHING),
    "parts of no size": codec_call("make_array", ("array", "<U0", (10**9,)), (10,), "C", NOTHING),
    "parts of parts of no size": codec_call(
        "make_array", ("array", ("array", "<f8", (0,)), (10**9,)), (10,), "C", NOTHING
    ),
    "a field of no size": codec_call(
        "make_array",
        ("struct", [("a", ("array", "|V0", (10**8,)), 0)], 0, False, False),
        (4,),
        "C",
        NOTHING,
    ),
    "rows of nothing": codec_call("make_array", "<f8", (10**9, 0), "C", NOTHING),
    "rows of no object": codec_call("make_objects", (10**9, 0), "C", []),
    "rows of nothing that become lists": codec_call(
        "make_array", "<f8", (8_000_000, 0), "C", NOTHING
    ),
    "axes of one item each": codec_call(
        "make_array", "|u1", (300_000, *[1] * 31), "C", data(bytearray(300_000))
    ),
    "parts of many axes": codec_call(
        "make_array",
        ("struct", [("a", ("array", "|u1", (1,) * 30), 0)], 1, False, False),
        *((300_000,), "C", data(bytearray(300_000))),
    ),
    "rows as numbers": codec_call("make_range_index", 0, 60_000_000, 1, None),
    "empty sets": b"(" + b"\x8f" * 5000 + b"t",
}


@pytest.mark.parametrize("raw", CLAIMS.values(), ids=CLAIMS)
def test_the_size_that_a_lazy_object_claims_counts(raw: bytes) -> None:
    refusal_of(pickled(raw), MEBIBYTE)


@pytest.mark.parametrize(
    "text", ["1E+999999999", "1E-999999999", "9" * 100_000, "1E+100000"], ids=lambda text: text[:12]
)
def test_a_decimal_that_takes_long_to_convert_is_refused(text: str) -> None:
    refusal_of(pickled(codec_call("make_decimal", text)), 2 * MEBIBYTE)


def test_lazy_objects_of_a_usual_size_arrive() -> None:
    sparse = pd.arrays.SparseArray(np.arange(10) == 5)
    frame = pd.DataFrame({"x": np.zeros(3_000_000, "i1")})
    rows = [pd.RangeIndex(8_000_000), range(10**30), np.zeros((1000, 0)), sparse, frame]
    for value in rows:
        assert same(value, sent(value))


# ---------------------------------------------------------------- keys that collide


def colliding(bits: int) -> list[int]:
    """Return two thirds of 2**bits integers, of which the last take long to find a free slot.

    A dict of that many has 2**bits slots, and looks for a key in the slots i = 5*i + 1 + (what is
    left of the hash, 5 bits less each time). The first keys fill half of the cycle i = 5*i + 1. Of
    the others, the first slots are all taken, so that each follows the cycle to its free half.
    """
    mask = (1 << bits) - 1
    cycle = [0]
    while len(cycle) <= mask // 2:
        cycle.append((5 * cycle[-1] + 1) & mask)
    taken = np.zeros(mask + 1, bool)
    taken[cycle] = True
    keys = np.arange(mask + 1, 1 << bits + 5)
    slots, left, fine = keys & mask, keys, np.ones(len(keys), bool)
    for _ in range(bits // 5 + 2):
        fine &= taken[slots]
        left = left >> 5
        slots = (5 * slots + left + 1) & mask
    return cycle + keys[fine][: mask // 6].tolist()


@pytest.fixture
def short_of_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "FREE_SECONDS", 0.02)
    monkeypatch.setattr(budget, "SECONDS_FOR_EACH", 2e-7)


def integer(key: int) -> bytes:
    return b"J" + struct.pack("<i", key)


CONTAINERS = {
    "a dict": (b"}", integer),
    "a dict of floats": (b"}", lambda key: b"G" + struct.pack(">d", key)),
    "a counter": (codec_call("make_counter"), integer),
    "an ordered dict": (codec_call("make_ordered"), integer),
    "a defaultdict": (codec_call("make_default", "int"), integer),
}


@pytest.mark.parametrize(("make", "push"), CONTAINERS.values(), ids=CONTAINERS)
def test_keys_that_collide_are_refused(make: bytes, push: Any, short_of_time: None) -> None:
    """M8. All at once, or one by one."""
    keys = colliding(16)
    with pytest.raises(WireError, match="collide"):
        decode_data([pickled(make, b"(", *[push(key) + b"N" for key in keys], b"u")])
    with pytest.raises(WireError, match="collide"):
        decode_data([pickled(make, *[push(key) + b"Ns" for key in keys])])


def test_keys_that_do_not_collide_arrive() -> None:
    ordinary = np.random.default_rng(0).integers(0, 1 << 60, 50_000).tolist()
    for keys in (range(50_000), range(0, 50_000 << 20, 1 << 20), ordinary):
        assert sent(dict.fromkeys(keys)) == dict.fromkeys(keys)
        assert sent(frozenset(keys)) == frozenset(keys)


def colliding_labels(count: int) -> Any:
    """Return integers that have one hash in the tables of pandas: (k >> 33) ^ k ^ (k << 11)."""
    low = np.arange(count, dtype="u8")
    high = (low ^ (low << 11) ^ 0x1234567) & 0x7FFFFFFF
    return np.random.default_rng(0).permutation((low | (high << 33)).view("i8"))


def labelled(place: str, labels: Any) -> Any:
    index = pd.Index(labels)
    if place == "categories":
        return pd.Categorical.from_codes([0], index)
    if place == "a level":
        return pd.MultiIndex([index, index], [[0], [0]])
    return pd.Series(np.zeros(len(index), "i1"), index).set_flags(allows_duplicate_labels=False)


@pytest.mark.parametrize("place", ["categories", "a level", "labels without duplicates"])
def test_labels_that_collide_are_refused(place: str, short_of_time: None) -> None:
    """M8. pandas would hash them in one call, which takes 4 s for 40,000 of them."""
    half = len(colliding_labels(10_000)) // 2
    for labels in (
        colliding_labels(10_000),
        np.concatenate([np.arange(half), colliding_labels(20_000)[:half]]),
    ):
        frames = encode_data(labelled(place, labels))
        with pytest.raises(WireError, match="collide"):
            decode_data(frames)


@pytest.mark.parametrize("place", ["categories", "a level", "labels without duplicates"])
def test_labels_that_do_not_collide_arrive(place: str) -> None:
    ordinary = labelled(place, np.random.default_rng(0).integers(-(1 << 62), 1 << 62, 50_000))
    assert same(ordinary, sent(ordinary))


# ---------------------------------------------------------------- what escapes


def test_a_constructor_or_a_buffer_never_escapes_as_a_value() -> None:
    """M12. Arguments of the memo that are used twice hide nothing from the count of buffers."""
    make = named("bridgehead._shipped.data", "make_array")
    args = b"(" + data("<f8") + data((1,)) + data("C") + b"\x97t\x94"
    deque = named("bridgehead._shipped.data", "make_deque")
    streams = [
        pickled(make, args, b"R0", make, b"h\0R0", deque),
        pickled(b"(", make, args, b"R", make, b"h\0R", b"\x97t"),
        pickled(b"(", make, args, b"Rh\0t"),
        pickled(b"](", make, args, b"Rh\0]h\0ae"),
        pickled(codec_call("make_slice", deque, None, None)),
        pickled(column(deque)),
    ]
    for raw in streams:
        refusal_of([raw, bytearray(8), bytearray(b"leak")], MEBIBYTE)
        refusal_of([raw, bytearray(8)], MEBIBYTE)


def test_two_values_never_share_one_buffer() -> None:
    """M12. Through the one the values of the other would become invalid."""
    make = named("bridgehead._shipped.data", "make_array")
    for one, other in (("|b1", "|u1"), ("<U1", "<u4")):
        count = (4 // np.dtype(one).itemsize,)
        calls = [make + b"(" + data(d) + data(count) + data("C") + b"h\0tR" for d in (one, other)]
        raw, *arrays = decode_data([pickled(data(bytearray(4)) + b"\x940", b"(h\0", *calls, b"t")])
        raw[:] = b"\xff" * 8  # which is impossible while an array is over it
        arrays[1][:] = 0xFFFFFFFF >> 8 * (4 - arrays[1].itemsize)
        assert not arrays[0].view("u1").any()


def category(codes: bytes) -> bytes:
    labels = index_of(codec_call("make_objects", (1,), "C", ["a"]))
    return codec_call("make_categorical", "|i1", codes, labels, False)


CODES = {
    "codes": category,
    "levels": lambda codes: codec_call(
        "make_multi_index",
        b"](" + index_of(codec_call("make_objects", (1,), "C", ["a"])) + b"e",
        *(["|i1"], [None], None, codes),
    ),
    "places": lambda places: codec_call(
        "make_sparse", array("<f8", *range(9)), places, 1000, 0.0, False
    ),
}


@pytest.mark.parametrize("kind", CODES)
def test_no_other_value_writes_what_a_library_trusts(kind: str) -> None:
    """M12. A code of 100 made pandas read other memory, and the process ended."""
    dtype = "<i4" if kind == "places" else "|i1"
    honest = np.arange(9, dtype=dtype) if kind == "places" else np.zeros(900, dtype)
    fresh = data(bytearray(honest.tobytes()))
    plain = codec_call("make_array", dtype, honest.shape, "C", b"h\0")
    stream = pickled(b"](", fresh + b"\x94", plain, CODES[kind](b"h\0"), b"e")
    raw, values, other = decode_data([stream])
    raw[:] = b"\x64" * len(raw)
    values[:] = 100
    assert repr(other) == repr(decode_data([pickled(CODES[kind](fresh))]))
    with pytest.raises(WireError, match="does not take"):
        decode_data([pickled(CODES[kind](plain.replace(b"h\0", fresh)))])


@pytest.mark.parametrize("unit", ["0s", "0D", "000s", "00000000Y"])
def test_a_unit_of_no_time_is_refused(unit: str) -> None:
    """M12."""
    for kind in "mM":
        raw = codec_call("make_array", f"<{kind}8[{unit}]", (1,), "C", b"C\x08" + bytes(8))
        refusal_of(pickled(raw), MEBIBYTE)
