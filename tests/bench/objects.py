"""Heavy objects of many libraries, over a numpy array of the same size, or over cloudpickle.

Rule: one bridge, one run. The object and its reference take turns. A ratio is of the medians of
push + pull. An object of many small parts cannot cross like one array: its reference is two
``dumps`` and two ``loads`` of cloudpickle in this process, with out-of-band buffers. A row whose
library is missing is left out. ``pytest -m objects`` makes an environment that has them all.
"""

from __future__ import annotations

import argparse
import array
import dataclasses
import gc
import pickle
import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import cloudpickle

from bridgehead import Bridge
from tests.bench.targets import Reached

SIZE = 100_000_000  # bytes of a large object
ROUNDS, LEAST, PATIENCE = 9, 3, 12.0  # at most; at least; s for one row


@dataclasses.dataclass(frozen=True)
class Row:
    """One kind of object.

    Attributes:
        make: makes one of about ``SIZE`` bytes.
        needs: the libraries, imported in both processes.
        parts: whether it has many small parts; its reference is then cloudpickle.
    """

    make: Callable[[], Any]
    needs: tuple[str, ...] = ("numpy",)
    parts: bool = False


@dataclasses.dataclass
class Leaf:
    """A part of a tree; both processes import this class."""

    name: str
    values: list[float]
    below: dict[str, Any]


def numbers(count: int) -> Any:
    import numpy

    return numpy.random.default_rng(1).standard_normal(count)


def times() -> Any:
    import numpy

    return numpy.arange(SIZE // 8).astype("M8[ns]")


def masked() -> Any:
    import numpy

    values = numbers(SIZE // 9)
    return numpy.ma.masked_array(values, mask=values > 0)


def dates_and_bools() -> Any:
    import numpy
    import pandas

    rows = SIZE // 34
    columns: dict[str, Any] = {f"f{n}": numbers(rows) for n in range(2)}
    columns.update({f"b{n}": columns["f0"] > n for n in range(2)})
    columns.update({f"t{n}": numpy.arange(rows).astype("M8[s]") for n in range(2)})
    return pandas.DataFrame(columns)


def nullable() -> Any:
    import pandas

    rows = SIZE // 27
    frame = pandas.DataFrame({f"n{n}": range(n, rows + n) for n in range(3)})
    return frame.astype("Int64")


def arrow_backed() -> Any:
    import pandas

    rows = SIZE // 34
    frame = pandas.DataFrame({"f": numbers(rows), "n": range(rows)})
    frame["s"] = [f"text {n}" for n in range(rows)]
    return frame.convert_dtypes(dtype_backend="pyarrow")


def object_strings() -> Any:
    import pandas

    return pandas.Series([f"id_{n:07d}" for n in range(1_000_000)], dtype=object)


def strided() -> Any:
    return numbers(SIZE // 4)[::2]


def transposed() -> Any:
    return numbers(SIZE // 8).reshape(250, 500, -1).transpose(1, 0, 2)


def module() -> Any:
    import torch

    layers = [torch.nn.Linear(1250, 1250) for _ in range(16)]
    return torch.nn.Sequential(*layers)


def tensor() -> Any:
    import torch

    return torch.randn(SIZE // 4, generator=torch.Generator().manual_seed(1))


def transposed_tensor() -> Any:
    return tensor().reshape(5000, -1).T


def jax_array() -> Any:
    import jax.numpy

    return jax.numpy.arange(SIZE // 4, dtype="float32") + 1


def image(mode: str, channels: int) -> Callable[[], Any]:
    def make() -> Any:
        from PIL import Image

        side = int((SIZE / channels) ** 0.5)
        return Image.effect_noise((side, side), 50).convert(mode)

    return make


def polars_numbers() -> Any:
    import polars

    return polars.DataFrame({f"f{n}": numbers(SIZE // 80) for n in range(10)})


def polars_strings() -> Any:
    import polars

    return polars.Series(
        [f"a text that is longer than twelve bytes {n:08d}" for n in range(1_560_000)]
    )


def table() -> Any:
    import pyarrow

    return pyarrow.table({f"f{n}": numbers(SIZE // 80) for n in range(10)})


def sparse() -> Any:
    import numpy
    import scipy.sparse

    count = SIZE // 12
    places = numpy.arange(count + 1, dtype="int32")
    return scipy.sparse.csr_array((numbers(count), places[:-1], places), shape=(count, count))


def dataset() -> Any:
    import xarray

    return xarray.Dataset({"a": (("x", "y"), numbers(SIZE // 8).reshape(1000, -1))})


def tree() -> Any:
    def leaf(name: int) -> Leaf:
        return Leaf(f"leaf {name}", [name + 0.5], {"a": name})

    return {f"branch {n}": [leaf(400 * n + m) for m in range(400)] for n in range(125)}


def text() -> str:
    return "a text, " * (SIZE // 8)


ROWS: dict[str, Row] = {
    "datetime64": Row(times),
    "torch tensor": Row(tensor, ("torch", "numpy")),
    "torch tensor transposed": Row(transposed_tensor, ("torch", "numpy")),
    "masked array": Row(masked),
    "DataFrame bools and dates": Row(dates_and_bools, ("pandas",)),
    "DataFrame nullable": Row(nullable, ("pandas",)),
    "DataFrame Arrow": Row(arrow_backed, ("pandas", "pyarrow")),
    "bytearray": Row(lambda: bytearray(b"12345678" * (SIZE // 8)), ()),
    "torch module": Row(module, ("torch",)),
    "torch state_dict": Row(lambda: module().state_dict(), ("torch",)),
    "jax array": Row(jax_array, ("jax", "numpy")),
    "array.array": Row(lambda: array.array("d", bytes(SIZE)), ("array",)),
    "PIL image RGB": Row(image("RGB", 3), ("PIL.Image",)),
    "PIL image L": Row(image("L", 1), ("PIL.Image",)),
    "polars numbers": Row(polars_numbers, ("polars",)),
    "polars strings": Row(polars_strings, ("polars",)),
    "strided array": Row(strided),
    "transposed array": Row(transposed),
    "bytes": Row(lambda: b"12345678" * (SIZE // 8), ()),
    "memoryview": Row(lambda: memoryview(numbers(SIZE // 8)), ()),
    "str": Row(text, ()),
    "str not ASCII": Row(lambda: "ein Täxt" * (SIZE // 9), ()),
    "1000 arrays of 100 kB": Row(lambda: [numbers(12_500) for _ in range(1000)]),
    "Arrow table": Row(table, ("pyarrow",)),
    "scipy csr": Row(sparse, ("scipy.sparse",)),
    "xarray": Row(dataset, ("xarray",)),
    "30000 arrays of 800 B": Row(lambda: [numbers(100) for _ in range(30_000)], parts=True),
    "pandas object strings": Row(object_strings, ("pandas",), parts=True),
    "dict of 10000": Row(
        lambda: {f"key_{n}": [n, n + 0.5, str(n)] for n in range(10_000)}, (), parts=True
    ),
    "tree of dataclasses": Row(tree, ("tests.bench.objects",), parts=True),
}


async def measure(wanted: argparse.Namespace) -> list[Reached]:
    figures = []
    async with Bridge.launch(lane=wanted.lane) as bridge:
        for name in ROWS if wanted.rows is None else wanted.rows.split(","):
            row = ROWS[name]
            missing = [one for one in row.needs if not _exists(one)]
            if missing:
                print(f"left out: {name}: {', '.join(missing)} is not installed", flush=True)
                continue
            for library in row.needs:
                await bridge.run(f"import {library}")
            figures.append(await _ratio(bridge, name, row))
            print(f"{name:30} {figures[-1].value:8.3g}   {figures[-1].detail}", flush=True)
    return figures


def _exists(library: str) -> bool:
    return find_spec(library.partition(".")[0]) is not None


async def _ratio(bridge: Bridge, name: str, row: Row) -> Reached:
    value = row.make()
    size = (await bridge.push(x=value)).bytes  # warms up, too
    await bridge.pull("x")
    reference = None if row.parts else _array(size)
    if reference is not None:
        await _crossed(bridge, "y", reference)
    ours: list[float] = []
    theirs: list[float] = []
    began = time.perf_counter()
    while len(ours) < LEAST or (len(ours) < ROUNDS and time.perf_counter() - began < PATIENCE):
        ours.append(await _crossed(bridge, "x", value))
        theirs.append(
            _pickled(value) if reference is None else await _crossed(bridge, "y", reference)
        )
    await bridge.push(x=0, y=0)
    mine, other = statistics.median(ours), statistics.median(theirs)
    what = f"{name}, push and pull / {'cloudpickle' if row.parts else 'numpy'}"
    detail = f"{mine * 1000:.3g} / {other * 1000:.3g} ms, {size / 1e6:.3g} MB, {len(ours)} rounds"
    return Reached(what, mine / other, detail=detail)


def _array(size: int) -> Any:
    import numpy

    return numpy.ones(size, "u1")


async def _crossed(bridge: Bridge, name: str, value: Any) -> float:
    gc.collect()
    gc.disable()
    try:
        started = time.perf_counter()
        await bridge.push({name: value})
        back = await bridge.pull(name)
        taken = time.perf_counter() - started
    finally:
        gc.enable()
    assert type(back) is type(value) or type(value) is memoryview
    return taken


def _pickled(value: Any) -> float:
    """Return the time of what a push and a pull pickle and unpickle."""
    gc.collect()
    gc.disable()
    try:
        started = time.perf_counter()
        for _ in range(2):
            buffers: list[pickle.PickleBuffer] = []
            data = cloudpickle.dumps(value, protocol=5, buffer_callback=buffers.append)
            back = pickle.loads(data, buffers=buffers)
        taken = time.perf_counter() - started
    finally:
        gc.enable()
    del back
    return taken
