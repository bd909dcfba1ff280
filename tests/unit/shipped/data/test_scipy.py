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


def lines(
    name: Any = "csr_array",
    shape: Any = (2, 3),
    values: Any = (1, 2),
    places: Any = (0, 2),
    starts: Any = (0, 1, 2),
    kinds: Any = ("f8", "i4", "i4"),
) -> bytes:
    parts = [flat(part, kind) for part, kind in zip((values, places, starts), kinds, strict=True)]
    return codec_call("make_sparse_by_lines", name, shape, *parts)


def places(shape: Any = (2, 3), rows: Any = (0, 1), columns: Any = (0, 2), count: int = 2) -> bytes:
    parts = [flat(range(count), "f8"), flat(rows, "i8"), flat(columns, "i8")]
    return codec_call("make_sparse_by_places", "coo_array", shape, *parts)


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
    "places of eight bits": lines(kinds=("f8", "i1", "i4")),
    "places of two sizes": lines(kinds=("f8", "i4", "i8")),
    "unsigned places": lines(kinds=("f8", "u4", "u4")),
    "texts": lines(values=("a", "b"), kinds=("U1", "i4", "i4")),
    "times": lines(kinds=("M8[s]", "i4", "i4")),
    "other byte order": lines(kinds=(">f8", "i4", "i4")),
    "a row beyond": places(rows=(0, 2)),
    "a negative column": places(columns=(0, -1)),
    "fewer rows": places(rows=(0,)),
    "coordinates in a huge shape": places(shape=(1 << 61, 1 << 61)),
    "a value instead of an array": codec_call(
        "make_sparse_by_places", "coo_array", (2, 3), 1, 2, 3
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_matrix_is_refused(name: str) -> None:
    assert refused(pickled(HOSTILE[name]))[0] in ("protocol", "untrusted")


def test_the_honest_calls_of_these_tests_are_not_refused() -> None:
    from bridgehead._shipped.data import decode_data

    for call in (lines(), places(), lines("csc_matrix", (3, 2))):
        assert decode_data([pickled(call)]).nnz == 2


async def test_matrices_cross_as_data(kernel: Bridge) -> None:
    matrix = scipy.sparse.csr_array(dense())
    await kernel.push(matrix=matrix, trust="data")
    back = await kernel.pull("matrix * 2", trust="data")
    np.testing.assert_array_equal(back.toarray(), 2 * dense())
