"""Users get no error whose class they cannot import, whatever a kernel replies.

Rule: what the library raises for itself, and catches again, is listed here. The hostile transports
and the tests with kernels check the same of all their errors: see ``support.kit.is_public``.
"""

from __future__ import annotations

import ast
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import bridgehead
from bridgehead import Bridge, BridgeError
from bridgehead._protocol.request import KEY
from bridgehead._transports.dispatch import Dispatcher
from bridgehead._transports.loopback import LoopbackTransport
from support.kit import is_public

SOURCE = Path(bridgehead.__file__).parent

INSIDE = {
    "_bridge": {"LoopEnded"},
    "_connection": {"_CallerLeft"},
    "_lanes": {"SocketLost"},
    "_protocol": {"NotServed", "SubshellDeleted"},
    "_transports": {"Reconnected"},
    # In the kernel, and where both ends read and write frames.
    "_shipped": {
        *("CellRunning", "CloudpickleMissing", "CodeRefused", "NotTaken", "TooLarge", "Unknown"),
        "WireError",
    },
    # A command or a benchmark prints their message.
    "_tools": {"NoReader", "PeerDied", "Unusable", "UnusableTable"},
}


def test_the_errors_that_stay_inside_are_known() -> None:
    found: dict[str, set[str]] = {}
    for file in SOURCE.glob("*/**/*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef):
                bases = {ast.unparse(base) for base in node.bases}
                if any(base.endswith(("Error", "Exception")) for base in bases):
                    found.setdefault(file.relative_to(SOURCE).parts[0], set()).add(node.name)
    assert found == INSIDE


def replies(ename: str) -> dict[str, dict[str, Any]]:
    """Return contents of replies that report an error of the message, or of its expression."""
    error = {"status": "error", "ename": ename, "evalue": "made up", "traceback": []}
    return {"message": error, "expression": {"status": "ok", "user_expressions": {KEY: error}}}


OPERATIONS: dict[str, Callable[[Bridge], Awaitable[object]]] = {
    "push": lambda bridge: bridge.push(x=1),
    "pull": lambda bridge: bridge.pull("1"),
    "now": lambda bridge: bridge.pull("1", now=True),
    "names": lambda bridge: bridge.names(),
    "delete": lambda bridge: bridge.delete("x"),
    "run": lambda bridge: bridge.run("1", push={"x": 1}, pull=["1"]),
    "call": lambda bridge: bridge.call(int, on_output=print),
    "keep": lambda bridge: bridge.call(list, keep=True),
    "submit": lambda bridge: bridge.submit(int),
    "iterate": lambda bridge: anext(bridge.iterate("range(3)")),
    "watch": lambda bridge: anext(bridge.watch("1")),
}


@pytest.mark.parametrize("lane", ["buffers", "inline"])
@pytest.mark.parametrize("place", replies(""))
@pytest.mark.parametrize("ename", ["UnknownSubshellError", "KeyError", "KeyboardInterrupt"])
@pytest.mark.parametrize("operation", ["open", *OPERATIONS])
async def test_a_reply_brings_no_error_of_another_class(
    operation: str, ename: str, place: str, lane: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, received = replies(ename)[place], Dispatcher.received

    def altered(dispatcher: Dispatcher, channel: str, message: dict[str, Any]) -> None:
        if message["header"]["msg_type"] == "execute_reply":
            message = {**message, "content": content, "buffers": []}
        received(dispatcher, channel, message)

    with pytest.raises(BridgeError) as raised, monkeypatch.context() as patch:
        if operation == "open":
            binary = replace(LoopbackTransport.capabilities, binary=lane == "buffers")
            patch.setattr(LoopbackTransport, "capabilities", binary)
            patch.setattr(Dispatcher, "received", altered)
            await Bridge.loopback(lane=lane)
        async with Bridge.loopback(lane=lane) as bridge:
            patch.setattr(Dispatcher, "received", altered)
            try:
                await OPERATIONS[operation](bridge)
            finally:
                patch.undo()
    assert is_public(raised.value), type(raised.value)
