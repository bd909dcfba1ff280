"""What may be true now: of the names of one actor in a kernel, and of the faults that were made.

Rule: no bridge, no kernel. An operation whose outcome is not known leaves both namespaces
possible, the old one and the new one; what is seen later excludes one of them.

Laws:
- Only one actor changes these names, and it does so through one bridge, whose operations take
  effect in the order of their calls. So a later reply settles what an earlier, cancelled operation
  did.
- All or none: a namespace is changed by a whole operation, never by a part of it.
- A bridge reports each restart: until then, the old namespace is the only one possible.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

from tests.soak.values import Value

Changes = Mapping[str, Value | None]  # None: the name is deleted, or not there
Namespace = frozenset[tuple[str, Value]]
EMPTY: Namespace = frozenset()


class Wrong(Exception):
    """A promise was broken."""


class Names:
    """The namespaces that are possible now, and what others may read meanwhile."""

    def __init__(self) -> None:
        self._possible: set[Namespace] = {EMPTY}
        self._pending: list[Changes] = []  # sent and not settled
        self._readers: list[tuple[str, set[Value | None]]] = []

    @property
    def is_certain(self) -> bool:
        return len(self._possible) == 1

    @property
    def certain(self) -> dict[str, Value]:
        """One of the possible namespaces; the only one, if it is certain."""
        return dict(min(self._possible, key=sorted_names))

    def __repr__(self) -> str:
        return " or ".join(str(dict(sorted(one, key=str))) for one in list(self._possible)[:6])

    def write(self, changes: Changes, ran: bool | None) -> None:
        """Apply an operation that ran, may have run (None), or did not run."""
        if ran is False or not changes:
            return
        changed = {changed_by(namespace, changes) for namespace in self._possible}
        self._set(changed if ran else changed | self._possible)

    @property
    def count(self) -> int:
        """How many namespaces are possible."""
        return len(self._possible)

    def see(self, seen: Changes) -> None:
        """Keep the namespaces in which these names have these values."""
        self._keep(lambda has: all(has.get(name) == seen[name] for name in seen), f"found {seen}")

    def are(self, names: Collection[str]) -> None:
        """Keep the namespaces that have these names and no others."""
        self._keep(lambda has: has.keys() == set(names), f"the names are {sorted(names)}")

    def have(self, names: Collection[str]) -> None:
        """Keep the namespaces that have these names."""
        self._keep(lambda has: has.keys() >= set(names), f"there are {sorted(names)}")

    def lack(self, names: Collection[str]) -> None:
        """Keep the namespaces that have none of these names."""
        self._keep(lambda has: has.keys().isdisjoint(names), f"there are no {sorted(names)}")

    def _keep(self, agrees: Callable[[dict[str, Value]], bool], what: str) -> None:
        kept = {one for one in self._possible if agrees(dict(one))}
        if not kept:
            raise Wrong(f"{what}, and possible are: {self!r}")
        self._set(kept)

    def clear(self) -> None:
        """Forget everything: the kernel is a new one."""
        self._set({EMPTY})

    # ------------------------------------------------------------ for readers in other bridges

    @contextlib.contextmanager
    def pending(self, changes: Changes) -> Iterator[None]:
        """Until the block ends, this operation may take effect at any moment."""
        self._pending.append(changes)
        self._note()
        try:
            yield
        finally:
            self._pending.remove(changes)

    @contextlib.contextmanager
    def reading(self, name: str) -> Iterator[set[Value | None]]:
        """Collect all values that the name may have until the block ends."""
        reader = name, set[Value | None]()
        self._readers.append(reader)
        self._note()
        try:
            yield reader[1]
        finally:
            self._readers = [one for one in self._readers if one is not reader]

    def _set(self, possible: set[Namespace]) -> None:
        self._possible = possible
        self._note()

    def _note(self) -> None:
        for name, values in self._readers:
            values |= {dict(one).get(name) for one in self._possible}
            values |= {changes[name] for changes in self._pending if name in changes}


def sorted_names(namespace: Namespace) -> list[str]:
    return sorted(map(str, namespace))


def changed_by(namespace: Namespace, changes: Changes) -> Namespace:
    merged: dict[str, Value | None] = {**dict(namespace), **changes}
    return frozenset((name, value) for name, value in merged.items() if value is not None)


class Faults:
    """The faults that were made, by kernel, with their times; a file, for all processes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0
        self._times: dict[tuple[str, str], list[list[float]]] = {}  # [begin, end]
        path.touch()

    @contextlib.contextmanager
    def making(self, kernel: str, kind: str) -> Iterator[None]:
        """Note that the fault begins before the block, and ends after it."""
        self._write(kernel, kind, True)
        try:
            yield
        finally:
            self._write(kernel, kind, False)

    def note(self, kernel: str, kind: str) -> None:
        with self.making(kernel, kind):
            pass

    def happened(self, kernel: str, kinds: Mapping[str, float], since: float) -> bool:
        """Return whether a fault of these kinds can have an effect after ``since``.

        Each kind has the seconds for which its effects may last.
        """
        self._update()
        return any(
            end + lasts >= since
            for kind, lasts in kinds.items()
            for _, end in self._times.get((kernel, kind), ())
        )

    def last(self, count: int = 100) -> list[str]:
        """Return the last faults, as lines that begin with their time."""
        lines = map(json.loads, self._path.read_text().splitlines()[-count:])
        return [
            f"{when:.3f} {kernel}: {kind} {'begins' if begins else 'ends'}"
            for kernel, kind, begins, when in lines
        ]

    def counts(self) -> dict[str, int]:
        self._update()
        found: dict[str, int] = {}
        for (_, kind), times in self._times.items():
            found[kind] = found.get(kind, 0) + len(times)
        return dict(sorted(found.items()))

    def _write(self, kernel: str, kind: str, begins: bool) -> None:
        line = json.dumps([kernel, kind, begins, time.monotonic()]) + "\n"
        file = os.open(self._path, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(file, line.encode())
        finally:
            os.close(file)

    def _update(self) -> None:
        with self._path.open("rb") as file:
            file.seek(self._read)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._read += len(line)
                kernel, kind, begins, when = json.loads(line)
                times = self._times.setdefault((kernel, kind), [])
                if begins:
                    times.append([when, float("inf")])
                else:
                    next(one for one in times if one[1] == float("inf"))[1] = when
