"""Row J9 of the catalogue of faults: a cell that stands in a debugger.

Rule: a real debugpy session over the kernel's ``debug_request``, as JupyterLab and VS Code have it.
debugpy suspends every thread of the kernel that does not carry its marks.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import queue
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

from bridgehead import Bridge
from support.elsewhere import MAJORS, NEWEST
from support.kit import file_of, goes_on, other, reported_within
from support.look import look

pytestmark = pytest.mark.real_start  # debugpy starts a process of its own beside the kernel
LARGE = 100_000  # doubles: they go through shared memory

# Cells that stop in the debugger, by how, each with the line of its breakpoint, if it has one.
STOPS = {
    "breakpoint": ("a = 1\nb = 2\nseen = a + b", 3),
    "function": ("def f():\n    a = 1\n    return a + 2\n\nseen = f()", 3),
    "thread": (
        "import threading\ndef f():\n    global seen\n    seen = 3\n"
        "thread = threading.Thread(target=f); thread.start(); thread.join()",
        4,
    ),
    "exception": ("try:\n    1 / 0\nexcept ZeroDivisionError:\n    seen = 3", None),
    "statement": ("import debugpy\ndebugpy.breakpoint()\nseen = 3", None),
}


class Debugger:
    """A client of the kernel's debugger, with the requests that JupyterLab sends."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._numbers = itertools.count(1)

    async def request(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Send a request; return the body of its reply."""
        content = {"type": "request", "seq": next(self._numbers), "command": command}
        message = self._client.session.msg("debug_request", {**content, "arguments": arguments})
        self._client.control_channel.send(message)
        while True:
            with contextlib.suppress(queue.Empty):
                reply = await self._client.get_control_msg(timeout=0.5)
                if reply["parent_header"].get("msg_id") == message["header"]["msg_id"]:
                    assert reply["content"]["success"], reply["content"]
                    body: dict[str, Any] = reply["content"].get("body") or {}
                    return body

    async def attach(self) -> None:
        await self.request("initialize", clientID="test", adapterID="", pathFormat="path")
        await self.request("attach")

    async def stop_at(self, code: str, line: int | None) -> None:
        """Set the breakpoint of a cell, or let it stop at each exception that it raises."""
        path = (await self.request("dumpCell", code=code))["sourcePath"]
        lines = [] if line is None else [{"line": line}]
        await self.request("setBreakpoints", source={"path": path}, breakpoints=lines)
        await self.request("setExceptionBreakpoints", filters=["raised"])
        await self.request("configurationDone")

    async def stopped(self) -> int:
        """Wait until the debugger has stopped the kernel; return the thread that it names."""
        while True:
            with contextlib.suppress(queue.Empty):
                message = await self._client.get_iopub_msg(timeout=0.5)
                content = message["content"]
                if message["msg_type"] == "debug_event" and content["event"] == "stopped":
                    return int(content["body"]["threadId"])


@contextlib.asynccontextmanager
async def debugging(bridge: Bridge) -> AsyncIterator[Debugger]:
    async with other(bridge) as client:
        debugger = Debugger(client.client)
        async with reported_within(3):
            await debugger.attach()
        yield debugger
        await debugger.request("disconnect", restart=False, terminateDebuggee=False)


async def answers_while_stopped(bridge: Bridge, debugger: Debugger, stop: str) -> None:
    """Run a cell that stops; check that ``now=True`` works meanwhile, and the bridge afterwards."""
    code, line = STOPS[stop]
    array = np.arange(float(LARGE))
    await debugger.stop_at(code, line)
    cell = asyncio.ensure_future(bridge.run(code))
    async with reported_within(2):
        thread = await debugger.stopped()
    async with reported_within(0.1):
        await bridge.push(x=1, array=array, now=True)
        assert await bridge.pull("x", now=True) == 1
        assert np.array_equal(await bridge.pull("array", now=True), array)
        if "kernel subshells" in bridge.info.features:
            assert await bridge.pull("x + 1", now=True) == 2
    assert not cell.done()
    behind = asyncio.ensure_future(bridge.push(y=2))
    await debugger.request("continue", threadId=thread)
    async with reported_within(1):
        await cell
        await behind
    namespace = await look(file_of(bridge))
    assert (namespace["seen"], namespace["x"], namespace["y"]) == ("3", "1", "2")
    await goes_on(bridge)


@pytest.mark.slow
@pytest.mark.parametrize(
    "stop",
    [pytest.param(stop, marks=() if stop == "breakpoint" else pytest.mark.slow) for stop in STOPS],
)
async def test_a_cell_at_a_breakpoint_delays_no_call_with_now(live: Bridge, stop: str) -> None:
    """J9. The debugger comes after the bridge, and suspends the threads that it finds."""
    async with debugging(live) as debugger:
        await answers_while_stopped(live, debugger, stop)


@pytest.mark.parametrize(
    "kernel_name", [*MAJORS, pytest.param(NEWEST, marks=pytest.mark.elsewhere)], indirect=True
)
@pytest.mark.slow
async def test_a_bridge_opened_in_a_debugged_kernel_answers_at_a_breakpoint(live: Bridge) -> None:
    """J9. The debugger is there first, and traces each thread from its start."""
    async with debugging(live) as debugger, Bridge.attach(file_of(live)) as bridge:
        await answers_while_stopped(bridge, debugger, "breakpoint")
        await live.delete("x", "y", "array", "seen")
        await answers_while_stopped(live, debugger, "function")
