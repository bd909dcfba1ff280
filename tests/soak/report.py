"""What is printed: figures at the end of each phase, and what led to a failure."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from tests.soak.actor import Actor
from tests.soak.fleets import Pair
from tests.soak.model import Faults


def failed(error: BaseException, faults: Faults, actors: Iterable[Actor | Pair]) -> None:
    """Print an error, and the last calls and faults in the order of their ends."""
    actors = list(actors)
    lines = [line for actor in actors for line in actor.last]
    lines += faults.last()
    lines.sort(key=_when)
    print("\n".join(["the last calls:", *lines]))
    print("".join(traceback.format_exception(error)))
    for one in _leaves(error):
        print(f"{type(one).__name__}: {' '.join(str(one).split())}")
    print(f"steps: { {one.name: one.steps for one in actors} }", flush=True)


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for one in error.exceptions:
            yield from _leaves(one)
    else:
        yield error


def _when(line: str) -> float:
    return float(line.split()[0])


def table(phases: Sequence[Mapping[str, Any]]) -> None:
    """Print a line for each phase."""
    columns = list(dict.fromkeys(name for phase in phases for name in phase))
    rows = [columns, *([str(phase.get(name, "")) for name in columns] for phase in phases)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(columns))]
    for row in rows:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
    sys.stdout.flush()
