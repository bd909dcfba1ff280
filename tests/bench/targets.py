"""The targets of all figures.

Rule: a figure has the same name here and where it is measured. A figure without a target is shown
without one. Ratios are of medians that were measured side by side in one run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Target:
    """The greatest value that a figure may have; the goal is stricter than required."""

    most: float
    goal: float | None = None


def _each(what: str, push: Target, pull: Target) -> dict[str, Target]:
    """Return the targets of push and pull; ``what`` is ``payload, lane / reference``."""
    payload, _, rest = what.partition(", ")
    return {f"{payload} push, {rest}": push, f"{payload} pull, {rest}": pull}


def _both(what: str, most: float, goal: float | None = None) -> dict[str, Target]:
    """Return the same target for push and pull; see ``_each``."""
    return _each(what, Target(most, goal), Target(most, goal))


_VIEWS = (("to", "BroadcastView"), ("to", "DirectView"), ("from", "DirectView"))


# Push and pull of heavy objects, over a numpy array of the same size.
_OBJECTS = {
    **dict.fromkeys(("datetime64", "torch tensor", "torch tensor transposed"), 1.5),
    **dict.fromkeys(("masked array", "DataFrame bools and dates", "DataFrame nullable"), 2.0),
    **dict.fromkeys(("DataFrame Arrow", "bytearray", "torch module"), 2.0),
    **dict.fromkeys(("torch state_dict", "jax array", "array.array", "PIL image RGB"), 3.0),
    **dict.fromkeys(("PIL image L", "polars numbers", "polars strings"), 3.0),
    **dict.fromkeys(("strided array", "transposed array"), 3.0),
    "bytes": 4.0,
    "memoryview": 4.0,
    "str": 8.0,
    "1000 arrays of 100 kB": 1.5,
}
# The same over cloudpickle with out-of-band buffers, in one process.
_PARTS = ("30000 arrays of 800 B", "pandas object strings", "dict of 10000", "tree of dataclasses")

_SLEEPS = "map, 10,000 items that sleep 1 ms, 4 kernels"
_COMPUTES = "map, 100 items that compute 50 ms, 2 kernels"
_IN_CHUNKS = "map, 100 items that compute 50 ms, in chunks of 5, 2 kernels"

TARGETS: dict[str, Target] = {
    f"{_SLEEPS}, time / (item seconds / kernels)": Target(1 / 0.8),
    f"{_SLEEPS}, bridgehead / ipyparallel": Target(1.0),
    f"{_COMPUTES}, time / (item seconds / kernels)": Target(1 / 0.9),
    f"{_IN_CHUNKS}, time / (item seconds / kernels)": Target(1 / 0.9),
    **{f"{name}, push and pull / numpy": Target(most) for name, most in _OBJECTS.items()},
    **{f"{name}, push and pull / cloudpickle": Target(1.4) for name in _PARTS},
    **_each("int, auto / ipyparallel", Target(0.08), Target(0.05)),
    **_both("int, auto / execute", 0.1),
    **_each("int, auto / zmq tcp", Target(0.75, 0.6), Target(0.6, 0.4)),
    **_each("dict1k, auto / ipyparallel", Target(0.08), Target(0.05)),
    **_both("dict1k, auto / execute", 0.1),
    **_each("dict1k, auto / zmq tcp", Target(0.75, 0.6), Target(0.6, 0.4)),
    **_each("dict10k, auto / pickle", Target(1.35, 1.15), Target(1.3, 1.15)),
    **_both("list1m, auto / pickle", 1.15),
    **_each("np1m, auto / zmq tcp", Target(0.75, 0.65), Target(0.72, 0.65)),
    **_each("np100m, auto / memcpy", Target(1.25), Target(1.12)),
    **_both("np100m, auto / ray", 1.0),
    **_both("np100m, buffers / zmq tcp", 1.15),
    **_both("np1g, auto / memcpy", 1.6),
    **_both("np1g, buffers / zmq tcp", 1.5),
    **_both("df, auto / zmq tcp", 0.5),
    **_both("df, auto / ray", 1.2),
    **_each("np100m first, auto / zmq tcp", Target(0.6), Target(0.7)),
    **{f"np100m {way} 4 engines / {view}": Target(1.0) for way, view in _VIEWS},
    **{f"int {way} 4 engines / {view}": Target(1.1) for way, view in _VIEWS},
    "np100m to 4 kernels / to one": Target(2.0),
    "np100m in 4 kernels, memory / payload": Target(1.5),  # one copy, and what a pool keeps
    "int push, SyncBridge / Bridge": Target(1.5),
    "int pull, SyncBridge / Bridge": Target(1.5),
    **{
        f"1000 at once / in a row, {way}, {lane}": Target(0.03)
        for way in ("push", "pull")
        for lane in ("auto", "buffers")
    },
    **{f"a small push beside a {way} of 1 GB / alone, p99": Target(3) for way in ("push", "pull")},
    "one of 10000 ints iterated over / pull of an int": Target(0.1),
    "100 arrays of 10 MB, iterated over / pulled": Target(1 / 0.7),
    "now=True while busy, one operation": Target(2),
    **{
        f"loop lag p99 in a {way}, {lane}, beyond idle": Target(15)
        for way in ("push", "pull")
        for lane in ("direct", "buffers", "inline")
    },
    "push 1 GB, client peak": Target(1100),  # the payload and 100 MB, besides the object itself
    "push 1 GB, kernel peak": Target(1100),
    "import bridgehead / jupyter_client": Target(1.25),
    "first opening / empty cell": Target(6),
    "later opening / empty cell": Target(3.8),
    "256 MB push, server / bare websocket": Target(1.3),
    "256 MB pull, server / bare websocket": Target(1.8),
    "int push, server / empty cell over its websocket": Target(1.3),
}


@dataclass(frozen=True)
class Reached:
    """One figure.

    Attributes:
        what: the figure's name, as in ``TARGETS``.
        value: the figure in ``unit``.
        unit: ``"ms"``, ``"µs"`` or ``"MB"``; empty for a ratio.
        detail: what the figure was computed from, for readers.
    """

    what: str
    value: float
    unit: str = ""
    detail: str = ""

    @property
    def target(self) -> Target | None:
        return TARGETS.get(self.what)

    @property
    def met(self) -> bool | None:
        return None if self.target is None else self.value <= self.target.most

    def as_dict(self) -> dict[str, Any]:
        """Return the figure as values for JSON."""
        target = self.target
        return {
            "what": self.what,
            "value": self.value,
            "unit": self.unit,
            "detail": self.detail,
            "target": target.most if target else None,
            "goal": target.goal if target else None,
            "met": self.met,
        }
