"""Sparse matrices as data: what arrives, and what is refused before scipy sees it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse

from bridgehead import Bridge
from bridgehead._shipped.data import encode_data
from bridgehead._shipped.data import scipy as _scipy
from bridgehead._shipped.wire.errors import WireError
from support.data import codec_call, data, pickled, refused, sent

pytestmark = pytest.mark.objects
KINDS = (*_scipy._BY_LINES, *_scipy._BY_PLACES)


def dense(dtype: str = "f8", shape: tuple[int, int] = (200, 300)) -> Any:
    values = np.random.default_rng(1).random(shape)
    values[values < 0.9] = 0
    return (values * 10).astype(dtype)


@pytest.mark.parametrize("dtype", ["f8", "f4", "i8", "u1", "bool", "c16"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_matrix_arrives(kind: str, dtype: str) -> None:
    for shape in ((200, 300), (0, 5), (3, 0), (1, 1)):
        matrix = getattr(scipy.sparse, kind)(dense(dtype, shape))
        back = sent([matrix])[0]
        assert (type(back), back.dtype, back.shape) == (type(matrix), matrix.dtype, shape)
        np.testing.assert_array_equal(back.toarray(), matrix.toarray())
        assert back.tocsc().nnz == matrix.nnz


@pytest.mark.filterwarnings("ignore:Constructing a DIA matrix")
@pytest.mark.parametrize("kind", ["lil_array", "dok_array", "bsr_array", "dia_array"])
def test_another_kind_is_refused_by_the_sender(kind: str) -> None:
    with pytest.raises(WireError) as caught:
        encode_data(getattr(scipy.sparse, kind)(dense()))
    assert caught.value.kind == "untrusted"


def flat(values: Any, dtype: str) -> bytes:
    array = np.array(values, dtype)
    return codec_call(
        "make_array", array.dtype.str, array.shape, "C", data(bytearray(array.tobytes()))
    )


def integers(values: Any, dtype: str) -> bytes:
    return data(bytearray(np.array(values, dtype).tobytes()))


def lines(
    name: Any = "csr_array",
    shape: Any = (2, 3),
    values: Any = (1, 2),
    places: Any = (0, 2),
    starts: Any = (0, 1, 2),
    kinds: Any = ("f8", "<i4"),
) -> bytes:
    parts = [integers(part, kinds[1]) for part in (places, starts)]
    return codec_call("make_sparse_by_lines", name, shape, flat(values, kinds[0]), kinds[1], *parts)


def places(shape: Any = (2, 3), rows: Any = (0, 1), columns: Any = (0, 2), count: int = 2) -> bytes:
    parts = [integers(part, "i8") for part in (rows, columns)]
    values = flat(range(count), "f8")
    return codec_call("make_sparse_by_places", "coo_array", shape, values, "<i8", *parts)


HOSTILE = {
    "another class": lines("lil_array"),
    "a name of scipy": lines("load_npz"),
    "a place beyond": lines(places=(0, 3)),
    "a negative place": lines(places=(0, -1)),
    "a start beyond": lines(starts=(0, 1, 3)),
    "starts that fall": lines(starts=(0, 3, 2)),
    "a negative start": lines(starts=(-1, 1, 2)),
    "starts that begin late": lines(starts=(1, 1, 2)),
    "starts that end early": lines(starts=(0, 1, 1)),
    "too few starts": lines(starts=(0, 2)),
    "no starts": lines(shape=(0, 3), starts=(), values=(), places=()),
    "more places than values": lines(places=(0, 1, 2)),
    "wide beyond memory": lines(shape=(2, 1 << 61)),
    "a negative shape": lines(shape=(2, -3)),
    "a shape beyond integers": lines(shape=(2, 1 << 70)),
    "three dimensions": lines(shape=(2, 3, 1)),
    "places of eight bits": lines(kinds=("f8", "|i1")),
    "unsigned places": lines(kinds=("f8", "<u4")),
    "texts": lines(values=("a", "b"), kinds=("U1", "<i4")),
    "times": lines(kinds=("M8[s]", "<i4")),
    "other byte order": lines(kinds=(">f8", "<i4")),
    "a row beyond": places(rows=(0, 2)),
    "a negative column": places(columns=(0, -1)),
    "fewer rows": places(rows=(0,)),
    "coordinates in a huge shape": places(shape=(1 << 61, 1 << 61)),
    "a value instead of an array": codec_call(
        "make_sparse_by_places", "coo_array", (2, 3), 1, "<i8", data(b""), data(b"")
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_matrix_is_refused(name: str) -> None:
    assert refused(pickled(HOSTILE[name]))[0] in ("protocol", "untrusted")


def test_the_honest_calls_of_these_tests_are_not_refused() -> None:
    from bridgehead._shipped.data import decode_data

    for call in (lines(), places(), lines("csc_matrix", (3, 2))):
        assert decode_data([pickled(call)]).nnz == 2


@pytest.mark.parametrize("kind", ["csr_array", "csc_matrix", "coo_array"])
def test_no_other_value_writes_the_places(kind: str) -> None:
    """scipy read and wrote other memory, and the process ended."""
    from bridgehead._shipped.data import decode_data

    ones = np.ones(3, "<i4").tobytes()
    raw = data(bytearray(ones)) + b"\x94"
    values = codec_call("make_array", "<i4", (3,), "C", b"h\0")
    if kind == "coo_array":
        rest = (b"h\0", b"h\0")
    else:
        rest = (b"h\0", integers((0, 1, 2, 3), "<i4"))
    name = "make_sparse_by_" + ("places" if kind == "coo_array" else "lines")
    made = codec_call(name, kind, (3, 3), values, "<i4", *rest)
    shared, matrix = decode_data([pickled(b"](", raw, made, b"e")])
    shared[:] = b"\x64" * 12
    matrix *= 100_000_000
    assert matrix.toarray().sum() == matrix.data.sum() == 300_000_000


async def test_matrices_cross_as_data(kernel: Bridge) -> None:
    matrix = scipy.sparse.csr_array(dense())
    await kernel.push(matrix=matrix, trust="data")
    back = await kernel.pull("matrix * 2", trust="data")
    np.testing.assert_array_equal(back.toarray(), 2 * dense())
