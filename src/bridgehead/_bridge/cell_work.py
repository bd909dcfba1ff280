"""A cell that a user runs: its checks, and its result.

Rule: what ``run`` and ``stream`` share. Which options a user has, and what they mean, is said in
``cell_methods``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from bridgehead._bridge.arguments import (
    OnTimeout,
    check_callbacks,
    check_flags,
    checked_objects,
    wants_interrupt,
)
from bridgehead._connection.call import Call
from bridgehead._connection.connection import Connection
from bridgehead._connection.outputs import CellOutputs
from bridgehead._connection.queue import Turn
from bridgehead._connection.running_cell import InputHandler, RunningCell
from bridgehead._connection.tasks import RemoteTask
from bridgehead._errors import BridgeError, NotExecuted, NotSent, RemoteError
from bridgehead._protocol import payload as _payload
from bridgehead._protocol.raising import cell_error
from bridgehead._protocol.results import Result
from bridgehead._transports.messages import Message


class CellWork:
    """One cell in one kernel."""

    def __init__(
        self,
        connection: Connection,
        code: str,
        *,
        pull: Sequence[str],
        stand_ins: Mapping[type, Callable[[Any], Any]],
        on_output: Callable[[Message], object] | None,
        max_output: int | None,
        store_history: bool,
        timeout: float | None,
        on_timeout: OnTimeout,
        on_input: InputHandler | None = None,
        push: Mapping[str, Any] | None = None,
    ) -> None:
        """Check the cell; raise what ``Bridge.run`` raises before it sends something.

        ``pull`` has expressions, and ``stand_ins`` says how to pickle refs and others in
        ``push``.
        """
        connection.check()
        if not isinstance(code, str):
            raise TypeError(
                f"run() takes the code of a cell as a string, not {type(code).__name__}"
            )
        check_flags(store_history=store_history)
        check_callbacks(on_output=on_output, on_input=on_input)
        content: dict[str, Any] = {
            "code": code,
            "silent": False,
            "store_history": store_history,
            "user_expressions": {},
            "allow_stdin": on_input is not None,
            "stop_on_error": False,
        }
        self._connection, self._interrupts = connection, wants_interrupt(on_timeout)
        stage = None
        if isinstance(push, Mapping) and not push:  # as pull=[]
            push = None
        if push is not None or max_output is not None:
            connection.require_stages()
            if not code.strip():
                raise ValueError("the cell is empty, and would take neither push= nor max_output=")
            stage = _stage(push, max_output, stand_ins)
        if pull:
            connection.require_pushes("run() with pull=", "pull the values after the cell")
        self._pull = pull
        self._outputs = CellOutputs(on_output, max_output)
        self._cell = RunningCell(
            connection,
            content,
            self._outputs,
            on_input=on_input,
            stage=stage,
            pull=pull,
            timeout=timeout,
            interrupts=self._interrupts,
        )

    async def do(self) -> Result:
        """Take a turn, run the cell in it, and return its result."""
        with Turn(self._connection.queue) as turn:
            return await self.do_in(turn)

    async def do_in(self, turn: Turn) -> Result:
        """Run the cell in a turn, and return its result."""
        try:
            reply = await self._cell.run(turn)
            result = self._cell.result(reply.content.get("execution_count"))
        finally:
            self._outputs.leave()
        if reply.content.get("status") == "error":
            trusted = not self._connection.trust.data
            error = cell_error(reply.content, self._outputs.error, trusted=trusted)
            error.result = result
            raise error
        if not self._pull:
            return result
        try:
            if isinstance(self._cell.values, BridgeError):
                raise self._cell.values
        except (NotSent, NotExecuted) as error:  # its class would say that the cell did not run
            remote = RemoteError(type(error).__name__, str(error))
            remote.result = result
            raise remote from error
        except BridgeError as error:
            error.result = result
            raise
        return replace(result, values=dict(zip(self._pull, self._cell.values, strict=True)))

    def submit(self, name: str) -> RemoteTask[Result]:
        """Take the turn now, and return a handle on the cell; see ``RemoteTask``."""
        return RemoteTask(self._connection, self._cell.call, self.do_in, name)

    def leave(self, task: RemoteTask[Result]) -> None:
        """Drop the outputs of a cell that was submitted: no caller waits for them any more."""
        self._outputs.leave()
        if self._interrupts:
            task.cancel()
        task.add_done_callback(_retrieve)


def _stage(
    push: Mapping[str, Any] | None,
    max_output: int | None,
    stand_ins: Mapping[type, Callable[[Any], Any]],
) -> Call:
    """Return the call that sends what a cell takes when it begins."""
    call = Call("stage", fields={"max_output": checked_characters(max_output)})
    if push is not None:
        objects = checked_objects(push, {})
        call.fields["names"] = list(objects)
        call.source = _payload.PayloadSource(objects, objects, refs=stand_ins)
    return call


def checked_characters(most: object) -> int | None:
    """Return ``max_output``.

    Raises:
        ValueError: it is neither a number of characters nor None.
    """
    if most is None or (type(most) is int and most >= 0):
        return most
    raise ValueError(f"max_output must be a number of characters or None, not {most!r}")


def _retrieve(task: RemoteTask[Result]) -> None:
    """Keep asyncio from logging a failure that no caller waits for."""
    if not task.cancelled():
        task.exception()
