"""A survey of a kernel: one row of the table in the documentation.

Rule: every cell of the row is tried on the kernel. An exception of ``FINDINGS`` is a result; any
other exception fails the test. Versions are cut to major and minor, so that a patch release does
not change the page.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bridgehead import (
    Bridge,
    IncompatiblePython,
    KernelRestarted,
    MissingInKernel,
    NotSupported,
    RemoteError,
    UnsupportedKernel,
)
from support import work

FINDINGS = (IncompatiblePython, MissingInKernel, NotSupported)
YES, NO = "yes", "–"
# One statement: Spyder's kernel ignores an interrupt between two statements of a cell.
ENDLESS = "if print('going', flush=True) is None:\n    while not go: time.sleep(0.01)"
PAGE = Path(__file__).parents[2] / "notebooks" / "guides" / "kernels_and_servers.md"
BEGIN = (
    "<!-- what tests/elsewhere/test_table.py saw; "
    "written by pytest -m elsewhere -k table --write -->"
)
END = "<!-- until here -->"


def version(python: str, distribution: str) -> tuple[int, ...]:
    """Return the version of a distribution that an interpreter has installed."""
    show = f"from importlib.metadata import version; print(version({distribution!r}))"
    ran = subprocess.run([python, "-c", show], capture_output=True, text=True, check=True)
    return tuple(int(number) for number in ran.stdout.split(".")[:2])


async def survey(kernel_name: str, label: str) -> tuple[str, ...]:
    """Return the row of one kernelspec; ``label`` is the kernel's name in the table."""
    try:
        async with Bridge.launch(kernel_name) as bridge:
            python = ".".join(map(str, bridge.info.python[:2]))
            cells = [await _lanes(bridge)]
            cells += [await _found(looks, bridge) for looks in LOOKS.values()]
    except UnsupportedKernel:
        return (label, NO, "`UnsupportedKernel`", *(NO for _ in COLUMNS[3:]))
    return (label, python, *cells)


async def _found(looks: Sequence[Callable[[Bridge], Awaitable[str | None]]], bridge: Bridge) -> str:
    """Return what is found with all of them, which is one thing."""
    found = set()
    for look in looks:
        try:
            found.add(await look(bridge) or YES)
        except FINDINGS as error:
            found.add(f"`{type(error).__name__}`")
    (one,) = found
    return one


async def _lanes(bridge: Bridge) -> str:
    """Return the lanes that carry several chunks in both directions, in order of preference."""
    working = []
    for lane in ("direct", "buffers", "inline"):
        with contextlib.suppress(NotSupported):
            raw = bytes(range(256)) * 40_000
            async with Bridge.attach(bridge.info.connection_file, lane=lane) as other:
                await other.push(raw=raw)
                assert await other.pull("raw") == raw
                working.append(lane)
    assert working[0] == bridge.info.lane
    return ", ".join(working)


async def _data(bridge: Bridge) -> str:
    data = {"n": [1, 2.5, None, True], "text": "naïve ✓", ("a", 1): {b"raw"}}
    await bridge.push(data=data)
    assert await bridge.pull("data") == data
    assert await bridge.pull("len(data)") == 3
    return YES


async def _numpy(bridge: Bridge) -> str:
    array = np.arange(200_000.0)
    await bridge.push(array=array)
    assert await bridge.pull("float(array.sum())") == array.sum()
    assert (await bridge.pull("array")).tobytes() == array.tobytes()
    return YES


async def _functions(bridge: Bridge) -> str:
    class Point:
        def __init__(self, x: int) -> None:
            self.x = x

    await bridge.push(double=lambda x: 2 * x, point=Point(3))
    assert await bridge.pull("double(point.x)") == 6
    assert (await bridge.pull("double"))((await bridge.pull("point")).x) == 6
    return YES


async def _beside_a_cell(bridge: Bridge) -> None:
    """Call back in the middle of a cell that ends only when the call has arrived."""
    await bridge.push(go=False)
    called = asyncio.Event()
    with bridge.callback(lambda *args: called.set()) as report:
        await bridge.push(report=report)
        cell = asyncio.ensure_future(
            bridge.run("import time\nreport([1, 'two'])\nwhile not go: time.sleep(0.01)")
        )
        await called.wait()
        assert not cell.done()
        await bridge.push(go=True, now=True)
        await cell


async def _now(bridge: Bridge) -> str:
    """Use now=True during a cell that ends only when the operation has worked."""
    await bridge.push(go=False)
    cell = asyncio.ensure_future(bridge.run("import time\nwhile not go: time.sleep(0.01)"))
    while bridge.state != "busy":
        await asyncio.sleep(0.01)
    code = True
    try:
        assert await bridge.pull("not go", now=True) is True
    except NotSupported:
        code = False
    await bridge.push(go=True, now=True)
    await cell
    return "names, code" if code else "names"


async def _interrupt(bridge: Bridge) -> str:
    await bridge.push(go=False)
    going = asyncio.Event()
    cell = asyncio.ensure_future(bridge.run(ENDLESS, on_output=lambda message: going.set()))
    await going.wait()
    try:
        await bridge.interrupt()
    except NotSupported:
        await bridge.push(go=True, now=True)
        await cell
        raise
    with pytest.raises(RemoteError, match="KeyboardInterrupt"):
        await cell
    return YES


async def _restart(bridge: Bridge) -> str:
    await bridge.push(x=1)
    async with Bridge.attach(bridge.info.connection_file) as other:
        await bridge.restart()
        assert not await bridge.exists("x")
        with pytest.raises(KernelRestarted):
            await other.push(x=2)
        await other.push(x=3)
    assert await bridge.pull("x") == 3
    return YES


# What is tried for each column. What a column has several of gives one result with all of them.
LOOKS: dict[str, Sequence[Callable[[Bridge], Awaitable[str | None]]]] = {
    "data": [_data],
    "numpy": [_numpy],
    "functions, classes": [_functions],
    "`submit`, `keep=True`": [work.submit, work.keep, work.refs],
    "`namespace=True`": [work.namespace],
    "`on_output` of `call`": [work.on_output],
    '`on_timeout="interrupt"`': [work.on_timeout],
    "async functions": [
        *(work.call_of_an_async_function, work.pull_with_await),
        *(work.submit_of_an_async_function, work.iterate_over_an_async_iterator),
    ],
    "`iterate`": [work.iterate],
    "`callback`": [work.callback, _beside_a_cell],
    "`watch`, `watch_names`": [work.watch, work.watch_names],
    "`now=True`": [_now],
    "`interrupt`": [_interrupt],
    "`restart`": [_restart],
}
COLUMNS = "kernel", "Python", "lanes", *LOOKS


# ---------------------------------------------------------------- the page's table


def written() -> list[tuple[str, ...]]:
    """Return the rows of the table in the page."""
    table = PAGE.read_text().partition(BEGIN)[2].partition(END)[0]
    lines = [line.strip().strip("|") for line in table.splitlines() if line.startswith("|")]
    rows = [tuple(cell.strip() for cell in line.split("|")) for line in lines]
    assert rows, f"{PAGE.name} does not contain {BEGIN}"
    assert rows[0] == COLUMNS
    return rows[2:]


def write(rows: list[tuple[str, ...]]) -> None:
    """Replace the rows of the table in the page."""
    before, begin, rest = PAGE.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    table: list[Any] = [COLUMNS, ["---"] * len(COLUMNS), *rows]
    text = "\n".join(f"| {' | '.join(row)} |" for row in table)
    assert begin, f"{PAGE.name} does not contain {BEGIN}"
    assert end, f"{PAGE.name} does not contain {END}"
    PAGE.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}")
