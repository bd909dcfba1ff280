"""The payloads: objects of known kinds and sizes, by name.

Rule: the same objects on every machine: the random numbers have fixed seeds. A library is
imported only when a payload that needs it is made.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

ROWS = 1_000_000  # of the DataFrame: 11 columns, about 90 MB


@dataclass(frozen=True, slots=True)
class Sample:
    """One object to send.

    Attributes:
        name: its name on the command line.
        title: its name in tables.
        make: makes the object.
        rounds: the useful number of repetitions, however much time there is.
        needs: modules that this process and the kernel must have.
        about: the approximate size in bytes; ``nbytes`` of the object gives the exact one.
    """

    name: str
    title: str
    make: Callable[[], Any]
    rounds: int
    about: int
    needs: tuple[str, ...] = ()

    @property
    def is_array(self) -> bool:
        return self.needs == ("numpy",)

    def missing(self) -> list[str]:
        """Return the modules that this Python lacks."""
        return [module for module in self.needs if find_spec(module) is None]

    def same(self, sent: Any, arrived: Any) -> bool:
        """Return whether what arrived is equal to what was sent, to the last element."""
        if type(sent) is not type(arrived):
            return False
        if self.is_array:
            import numpy

            return sent.dtype == arrived.dtype and numpy.array_equal(sent, arrived)
        return bool(sent.equals(arrived) if "pandas" in self.needs else sent == arrived)


def nbytes(value: Any) -> int:
    """Return the number of bytes of an object's pickle and its out-of-band buffers."""
    head, *buffers = frames(value)
    return len(head) + sum(map(len, buffers))


def frames(value: Any) -> list[bytes | memoryview]:
    """Return an object's pickle and its out-of-band buffers, which are not copied."""
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    return [head, *(buffer.raw() for buffer in buffers)]


def _array(megabytes: int) -> Callable[[], Any]:
    def make() -> Any:
        import numpy

        return numpy.random.default_rng(1).standard_normal(megabytes * 125_000)

    return make


def _table() -> Any:
    """Make a table of floats, integers, text, categories and dates with pandas' defaults."""
    import numpy
    import pandas

    random = numpy.random.default_rng(0)
    columns: dict[str, Any] = {f"f{i}": random.standard_normal(ROWS) for i in range(7)}
    columns["i"] = random.integers(0, 1 << 40, ROWS)
    columns["s"] = [f"id_{number}" for number in random.integers(0, 10**7, ROWS).tolist()]
    columns["c"] = pandas.Categorical.from_codes(
        random.integers(0, 20, ROWS).astype("int8"), [f"cat{i}" for i in range(20)]
    )
    columns["t"] = pandas.date_range("2020-01-01", periods=ROWS, freq="s")
    return pandas.DataFrame(columns)


def _words() -> Any:
    return {f"key{i:02d}": f"{i:020d}" for i in range(32)}  # all different: pickle memoizes equals


def _records() -> Any:
    return {f"key_{i}": [i, i + 0.5, str(i)] for i in range(10_000)}


_NUMPY = ("numpy",)
PAYLOADS: Mapping[str, Sample] = {
    payload.name: payload
    for payload in (
        Sample("int", "int", lambda: 1, 200, 5),
        Sample("dict1k", "dict, 1 kB", _words, 200, 1_000),
        Sample("dict10k", "dict of 10,000", _records, 25, 360_000),
        Sample("list1m", "list of 1,000,000", lambda: list(range(10**6)), 10, 5_000_000),
        Sample("np1m", "numpy 1 MB", _array(1), 100, 10**6, _NUMPY),
        Sample("df", "DataFrame 90 MB", _table, 7, 91 * 10**6, ("numpy", "pandas")),
        Sample("np100m", "numpy 100 MB", _array(100), 15, 10**8, _NUMPY),
        Sample("np1g", "numpy 1 GB", _array(1000), 4, 10**9, _NUMPY),
    )
}
