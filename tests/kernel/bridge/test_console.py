"""One kernel, shared with a real ``jupyter console --existing`` in a pseudo-terminal.

Rule: the console is the released program, used as a person would: keys in, a screen out. The tests
wait for what the screen shows, and never sleep for it.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from bridgehead import Bridge, NameNotFound, RemoteError
from support.console import PATIENCE, Console

pytestmark = pytest.mark.real_start

# With this option the console prints what cells of other clients do.
SHOWING_OTHERS = "--ZMQTerminalInteractiveShell.include_other_output=True"


@asynccontextmanager
async def attached(bridge: Bridge, *options: str) -> AsyncIterator[Console]:
    """Start a console and wait for its first prompt.

    A console that takes a missed heartbeat for a dead kernel exits: then another one is started.
    """
    assert bridge.info.connection_file is not None
    for attempt in range(3):
        console = Console(bridge.info.connection_file, *options)
        try:
            await console.wait(lambda c=console: c.ended or c.screen.endswith("In [1]:"))
            if console.ended and attempt < 2:
                continue
            await console.prompts(1)
            yield console
            return
        finally:
            await console.close()


@dataclass
class Point:
    x: int
    y: int


THIS_MODULE = [sys.modules[__name__]]  # the kernel cannot import it


async def test_a_console_sees_what_was_pushed(live: Bridge) -> None:
    await live.push(before=40)
    async with attached(live) as console:
        await live.push({"a": 5, "b": 3})
        console.type("before + a + b\r")
        await console.shows("Out[1]: 48")
        await console.prompts(2)

        await live.push(point=Point(1, 2), by_value=THIS_MODULE)
        console.type("type(point).__name__, point.x, point.y\r")
        await console.shows("Out[2]: ('Point', 1, 2)")
        await console.prompts(3)

        await live.delete("a")
        console.type("'a' in globals(), 'b' in globals()\r")
        await console.shows("Out[3]: (False, True)")


@pytest.mark.slow
async def test_a_name_that_a_console_defines_is_pulled(live: Bridge) -> None:
    async with attached(live) as console:
        console.type("typed = {'words': ['one', 'two'], 'more': (1, 2.5)}\r")
        await console.prompts(2)
        assert await live.pull("typed") == {"words": ["one", "two"], "more": (1, 2.5)}

        console.type("double = lambda number: number * 2\r")
        await console.prompts(3)
        double = await live.pull("double")
        assert double(21) == 42

        # The console changes what the bridge pushed, and the bridge sees the change.
        await live.push(typed=1)
        console.type("typed += 1\r")
        await console.prompts(4)
        assert await live.pull("typed") == 2


@pytest.mark.slow
async def test_a_pull_waits_for_the_cell_that_a_console_runs(live: Bridge) -> None:
    async with attached(live) as console:
        stream = live.messages()
        console.type("import time; time.sleep(1); slow = 'done'\r")
        async with asyncio.timeout(PATIENCE):
            async for message in stream:
                if message.type == "execute_input":
                    break
        assert await live.pull("slow") == "done"
        await console.prompts(2)


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), (SHOWING_OTHERS,)], ids=["plain", "showing-others"])
async def test_a_console_prints_nothing_while_objects_cross(
    live: Bridge, options: tuple[str, ...]
) -> None:
    async with attached(live, *options) as console:
        console.type("'half a")  # a half-typed line, which must stay unchanged
        await console.shows("In [1]: 'half a")
        before, cursor = console.screen, console.cursor

        await live.push(a=5, b=3, point=Point(1, 2), data=bytes(1 << 20), by_value=THIS_MODULE)
        assert await live.pull("a") == 5
        assert await live.pull("a + b", "point.x", "len(data)") == (8, 1, 1 << 20)
        assert await live.ref("point").y.pull() == 2
        assert await live.call(max, 1, 2, live.ref("a")) == 5
        kept = await live.call(max, 1, 2, keep="kept")
        assert await kept.pull() == 2
        assert {name.name for name in await live.names()} >= {"a", "b", "point", "data", "kept"}
        assert await live.exists("a")
        await live.delete("a", "data")
        with pytest.raises(NameNotFound):
            await live.pull("a")
        with pytest.raises(RemoteError):
            await live.pull("1 / 0")
        with pytest.raises(RemoteError):
            await live.call(max, 1, "not a number")
        assert (console.screen, console.cursor) == (before, cursor)

        # This cell's output reaches the console after everything above. If the screen shows it and
        # nothing else, nothing else was sent. It is still cell number 1.
        console.type(" line'\r")
        await console.prompts(2)
        assert console.screen == f"{before} line'\nOut[1]: 'half a line'\n\nIn [2]:"
        assert (await live.run("'a cell'")).execution_count == 2


@pytest.mark.slow
async def test_a_console_that_shows_other_clients_shows_the_cells_of_run(live: Bridge) -> None:
    """The control of the test above: this console would have shown other output."""
    async with attached(live, SHOWING_OTHERS) as console:
        await live.push(a=5)
        await live.run("print('printed', a)")
        await console.shows("print('printed', a)")
        await console.shows("printed 5")


@pytest.mark.slow
async def test_the_execution_count_counts_only_cells_of_both_clients(live: Bridge) -> None:
    async with attached(live) as console:
        assert (await live.run("1")).execution_count == 1
        await live.push(a=5)
        console.type("a\r")
        await console.shows("Out[2]: 5")
        await console.prompts(3)
        await live.pull("a")
        assert (await live.run("3")).execution_count == 3


@pytest.mark.slow
async def test_the_kernel_goes_on_when_a_console_exits(live: Bridge) -> None:
    async with attached(live) as console:
        console.type("left = 'behind'\r")
        await console.prompts(2)
        console.type("\x04")
        await console.wait(lambda: console.ended)
        assert "keeping kernel alive" in console.screen
    assert await live.pull("left") == "behind"


@pytest.mark.slow
async def test_a_console_finds_a_kernel_by_its_connection_file(tmp_path: Path) -> None:
    async with Bridge.launch(connection_file=tmp_path / "mine.json") as bridge:
        await bridge.push(a=5)
        async with attached(bridge) as console:
            console.type("a\r")
            await console.shows("Out[1]: 5")
