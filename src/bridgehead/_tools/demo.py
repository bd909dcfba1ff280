"""The demonstration: a table, a closure and an object cross to a kernel and come back.

Rule: the transfers, and what was observed, as plain values. This file prints nothing; the command
line formats the report.
"""

from __future__ import annotations

import io
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from bridgehead._bridge.bridge import Bridge
from bridgehead._protocol.payload import encode
from bridgehead._protocol.results import Info

SHIPPED = Path(__file__).with_name("data") / "penguins.csv"
SHIPPED_SOURCE = (
    "Shipped with bridgehead; source: Gorman, Williams & Fraser 2014, PLoS ONE 9(3):e90081, in "
    "the form of Horst, Hill & Gorman 2020 (palmerpenguins); licence: CC0 1.0."
)
CELL = "summary = summarise(table); passport.stamp('the first cell')"
SECOND_STAMP = "the second cell"
SECOND_CELL = f"passport.stamp({SECOND_STAMP!r})"
IDS = "[id(table), id(summarise), id(passport), id(summary)]"
MOST_GROUPS = 12  # a column with more different values makes no useful groups

Summarise = Callable[[Any], Any]


class UnusableTable(ValueError):
    """The file can't be read as a table of at least one row; the message says why."""


@dataclass(frozen=True, slots=True)
class Crossing:
    """One object that was pushed or pulled.

    Attributes:
        direction: ``"push"`` or ``"pull"``.
        bridge: ``"first"``, which launched the kernel, or ``"second"``, which attached to it.
        name: the object's name in the kernel.
        type: the object's type, without its module.
        bytes: the size of the pickle and its buffers. For a pull, the pulled value is pickled
            again in this process to find it.
        lane: how the bytes travelled.
        seconds: for a push, until the kernel confirmed it; for a pull, until the value arrived.
    """

    direction: Literal["push", "pull"]
    bridge: Literal["first", "second"]
    name: str
    type: str
    bytes: int
    lane: str
    seconds: float


@dataclass(frozen=True, slots=True)
class DemoReport:
    """What the demonstration did and observed.

    Attributes:
        crossings: the transfers, in order.
        first: the bridge that launched the kernel.
        second: the bridge that attached by connection file.
        launch_seconds: until the launched kernel answered.
        import_seconds: the import of pandas in the kernel, which would otherwise slow the first
            push.
        attach_seconds: until the second bridge was open.
        about: what ``summary`` holds, e.g. ``"mean by species"``.
        summary: the DataFrame computed in the kernel.
        stamps: the stamps of the passport: who stamped it, and in which process.
        intact: the second bridge pulled a table equal to the one that was pushed, and the first
            bridge pulled a passport of the class that this process defined.
        same_kernel: both bridges report the same pid and epoch.
        same_objects: both bridges report the same ``id`` for each object.
        change_seen: the first bridge pulled an object with the second bridge's change.
        tidy: the connection file was removed with the kernel.
    """

    crossings: tuple[Crossing, ...]
    first: Info
    second: Info
    launch_seconds: float
    import_seconds: float
    attach_seconds: float
    about: str
    summary: Any
    stamps: tuple[tuple[str, int], ...]
    intact: bool
    same_kernel: bool
    same_objects: bool
    change_seen: bool
    tidy: bool

    @property
    def kept(self) -> bool:
        """Return whether everything was as promised."""
        found = (self.intact, self.same_kernel, self.same_objects, self.change_seen, self.tidy)
        return all(found)


def read_table(path: Path) -> Any:
    """Read a CSV file, separated by comma, semicolon, tab or bar, as a DataFrame.

    Raises:
        UnusableTable: there is no such file; or it is empty, is not text, does not form a table,
            or has a header and no row.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UnusableTable(f"there is no file {path}") from None
    except OSError as error:
        raise UnusableTable(f"{path} can't be read: {error.strerror or error}") from None
    if not data.strip():
        raise UnusableTable(f"{path} is empty; a CSV file needs a header and at least one row")
    try:
        text = data.decode("utf-8-sig")
        if "\0" in text:
            raise UnusableTable(f"{path} is not a CSV file: it holds binary data")
        table = pd.read_csv(io.BytesIO(data), **_dialect(text), low_memory=False)
    except UnicodeDecodeError:
        raise UnusableTable(f"{path} is not a CSV file: it is not UTF-8 text") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        why = " ".join(str(error).split())
        raise UnusableTable(f"{path} is not a CSV file: {why}") from None
    if table.empty:
        raise UnusableTable(f"{path} has a header but no row below it; it needs at least one")
    return table


def _dialect(text: str) -> dict[str, str]:
    """Return the separator, the header's most frequent one, and the decimal sign.

    Where semicolons separate, commas are decimal signs.
    """
    header = re.sub('"[^"]*"', "", text.lstrip("\r\n").partition("\n")[0])
    separator = max(",;\t|", key=header.count)
    decimal = "," if separator == ";" and re.search(r"\d,\d", text) else "."
    return {"sep": separator, "decimal": decimal}


async def cross(table: Any) -> DemoReport:
    """Launch a kernel, push a table, a closure and an object, use them in cells, pull them.

    A second bridge, attached by connection file, reads the same objects and changes one. The
    kernel has exited when this returns.

    Args:
        table: a DataFrame of at least one row.

    Raises:
        BridgeError: the kernel can't be launched, lacks pandas, or dies.
    """
    ledger = _Ledger()
    summarise, about = summary_of(table)
    passport = _passport()
    passport.stamp("this program")
    started = time.perf_counter()
    async with Bridge.launch() as first:
        launched = time.perf_counter()
        if "pandas" in first.info.versions:  # without pandas, the push reports it best
            await first.run("import pandas")
        imported = time.perf_counter()
        await ledger.push(first, "table", table)
        await ledger.push(first, "summarise", summarise)
        await ledger.push(first, "passport", passport)
        await first.run(CELL)
        summary = await ledger.pull(first, "first", "summary")

        attaching = time.perf_counter()
        async with Bridge.attach(first.info.connection_file) as second:
            attached = time.perf_counter()
            returned_table = await ledger.pull(second, "second", "table")
            same_objects = await first.pull(IDS) == await second.pull(IDS)
            await second.run(SECOND_CELL)
            returned_passport = await ledger.pull(first, "first", "passport")
    return DemoReport(
        crossings=tuple(ledger.crossings),
        first=first.info,
        second=second.info,
        launch_seconds=launched - started,
        import_seconds=imported - launched,
        attach_seconds=attached - attaching,
        about=about,
        summary=summary,
        stamps=tuple(returned_passport.stamps),
        intact=table.equals(returned_table) and type(returned_passport) is type(passport),
        same_kernel=_identity(first.info) == _identity(second.info),
        same_objects=same_objects,
        change_seen=returned_passport.stamps[-1] == (SECOND_STAMP, second.info.pid),
        tidy=_removed(first.info),
    )


class _Ledger:
    """Pushes and pulls one object at a time, and records each transfer."""

    def __init__(self) -> None:
        self.crossings: list[Crossing] = []

    async def push(self, bridge: Bridge, name: str, value: Any) -> None:
        sent = await bridge.push({name: value})
        kind = type(value).__name__
        row = Crossing("push", "first", name, kind, sent.bytes, sent.lane, sent.seconds)
        self.crossings.append(row)

    async def pull(self, bridge: Bridge, which: Literal["first", "second"], name: str) -> Any:
        started = time.perf_counter()
        value = await bridge.pull(name)
        seconds = time.perf_counter() - started
        # A pull doesn't report its bytes; pickling the value again gives the same number.
        nbytes = encode((value,), {name: value}).nbytes
        kind, lane = type(value).__name__, bridge.info.lane
        self.crossings.append(Crossing("pull", which, name, kind, nbytes, lane, seconds))
        return value


def _identity(info: Info) -> tuple[int, str]:
    return info.pid, info.epoch


def _removed(info: Info) -> bool:
    return info.connection_file is not None and not Path(info.connection_file).exists()


def summary_of(table: Any) -> tuple[Summarise, str]:
    """Return a closure that summarises such a table, and what it computes, in words.

    This process chooses the column to group by, and what to compute of the others. The closure
    carries the choice to the kernel.
    """
    by = _grouping(table)
    others = [column for column in table.columns if column != by]
    numbers = list(table[others].select_dtypes("number"))
    columns, how = (numbers, "mean") if numbers else (others, "nunique")
    everything = "all rows"

    def summarise(frame: Any) -> Any:
        key = [everything] * len(frame) if by is None else by
        groups = frame.groupby(key, dropna=False)
        sizes = groups.size()
        summary = groups[columns].agg(how) if columns else sizes.to_frame().iloc[:, :0]
        summary.insert(0, "rows", sizes, allow_duplicates=True)
        return summary

    words = "mean" if numbers else "number of different values"
    return summarise, f"{words} by {by}" if by is not None else f"{words} of each column"


def _grouping(table: Any) -> Any:
    """Return the first column of few different values, text before numbers, or None."""
    texts = list(table.select_dtypes(exclude="number"))
    numbers = list(table.select_dtypes("number"))
    for column in texts + numbers:
        different = table[column].nunique()
        if 2 <= different <= min(MOST_GROUPS, len(table) // 2):
            return column
    return None


def _passport() -> Any:
    """Return an object of a class that exists only in this call: no kernel could import it."""

    class Passport:
        def __init__(self) -> None:
            self.stamps: list[tuple[str, int]] = []

        def stamp(self, who: str) -> None:
            self.stamps.append((who, os.getpid()))

    return Passport()
