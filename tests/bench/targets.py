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


def _both(what: str, most: float, goal: float | None = None) -> dict[str, Target]:
    """Return the same target for push and pull; ``what`` is ``payload, lane / reference``."""
    payload, _, rest = what.partition(", ")
    return {f"{payload} {way}, {rest}": Target(most, goal) for way in ("push", "pull")}


TARGETS: dict[str, Target] = {
    **_both("int, auto / ipyparallel", 0.1),
    **_both("int, auto / execute", 0.1),
    **_both("int, auto / zmq tcp", 1.0, 0.6),
    **_both("dict1k, auto / ipyparallel", 0.1),
    **_both("dict1k, auto / execute", 0.1),
    **_both("dict1k, auto / zmq tcp", 1.0, 0.6),
    **_both("dict10k, auto / pickle", 1.15),
    **_both("list1m, auto / pickle", 1.15),
    **_both("np1m, auto / zmq tcp", 0.7),
    **_both("np100m, auto / memcpy", 1.5, 1.3),
    **_both("np100m, auto / ray", 1.0),
    **_both("np100m, buffers / zmq tcp", 1.15),
    **_both("np1g, auto / memcpy", 1.6),
    **_both("df, auto / zmq tcp", 0.5),
    **_both("df, auto / ray", 1.2),
    **_both("np100m first, auto / zmq tcp", 0.6),
    "np100m to 4 kernels / to one": Target(2.0),
    "np100m in 4 kernels, memory / payload": Target(1.5),  # one copy, and what a pool keeps
    "int push, SyncBridge / Bridge": Target(1.5),
    "int pull, SyncBridge / Bridge": Target(1.5),
    "now=True while busy, one operation": Target(25),
    "push 1 GB, client peak": Target(1100),  # the payload and 100 MB, besides the object itself
    "push 1 GB, kernel peak": Target(1100),
    "import bridgehead / jupyter_client": Target(1.3),
    "first opening / empty cell": Target(3),
    "later opening / empty cell": Target(3),
    "256 MB push, server / bare websocket": Target(1 / 0.7),
    "256 MB pull, server / bare websocket": Target(1 / 0.5),
    "int push, server / empty cell over its websocket": Target(1.3),
}


@dataclass(frozen=True)
class Reached:
    """One figure.

    Attributes:
        what: the figure's name, as in ``TARGETS``.
        value: the figure in ``unit``.
        unit: ``"ms"`` or ``"MB"``; empty for a ratio.
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
