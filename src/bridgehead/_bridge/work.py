"""The call of a function: its checks, and what does it in a turn.

Rule: what ``call`` and ``submit`` share. Which options a user has, and what they mean, is said in
``work_methods``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, TypeVar

from bridgehead._bridge.arguments import (
    check_callbacks,
    check_flags,
    checked_name,
    is_coroutine_function,
    plain_function,
)
from bridgehead._connection.call import Call
from bridgehead._connection.connection import Connection
from bridgehead._connection.kept_result import keeping
from bridgehead._connection.outputs import OutputListener, TaskOutputs
from bridgehead._connection.queue import Turn
from bridgehead._connection.resources import Frames
from bridgehead._connection.tasks import coroutine_response
from bridgehead._protocol import payload as _payload
from bridgehead._protocol.ref import Kept, Ref
from bridgehead._shipped.wire.header import KEPT

S = TypeVar("S", bound=_payload.PayloadSource)


def call_source(
    kind: type[S],
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    stand_ins: Mapping[type, Callable[[Any], Any]],
    by_value: Sequence[ModuleType] = (),
    namespace: bool = False,
) -> S:
    """Return the object that the call of a function sends.

    Raises:
        TypeError: with ``namespace``, the function is not a plain Python function.
    """
    if namespace:
        function = plain_function(function)
    parts = {"the function": function, "args": args, "kwargs": kwargs}
    return kind((function, args, kwargs), parts, by_value, stand_ins)


class FunctionWork:
    """The call of one function in one kernel."""

    def __init__(
        self,
        connection: Connection,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        make_ref: Callable[[str, dict[str, Any]], Ref],
        stand_ins: Mapping[type, Callable[[Any], Any]],
        keep: str | bool | None,
        by_value: Sequence[ModuleType],
        namespace: bool,
        interrupts: bool = False,
        on_output: Callable[[Any], object] | None = None,
        timeout: float | None = None,
        source: _payload.PayloadSource | None = None,
    ) -> None:
        """Check the call; raise what ``Bridge.call`` raises before it sends something.

        ``make_ref`` makes a ref of a name and of objects, and ``stand_ins`` says how to pickle
        others. ``source`` is what ``call_source`` made of the same arguments, if several kernels
        get it.
        """
        self._connection, self._make_ref = connection, make_ref
        connection.check()
        if not callable(function):
            raise TypeError(f"call() takes a function, not {type(function).__name__}")
        check_flags(namespace=namespace)
        check_callbacks(on_output=on_output)
        self._keeps = keep is not None and keep is not False
        self.name = getattr(function, "__qualname__", type(function).__qualname__)
        self._is_async = is_coroutine_function(function)
        self._name = checked_name(keep) if self._keeps and keep is not True else None
        if source is None:
            source = call_source(
                _payload.PayloadSource, function, args, kwargs, stand_ins, by_value, namespace
            )
        self._outputs: OutputListener | None = None
        if on_output is not None:
            self._outputs = (TaskOutputs if self._is_async else OutputListener)(on_output)
        fields = {
            "keep": self._name,
            "namespace": namespace or None,
            "outputs": True if self._is_async and self._outputs else None,
            **connection.trust.fields(),
        }
        self.call = Call("start" if self._is_async else "call", source, fields=fields)
        self.call.interrupts = interrupts
        self.call.outputs = self._outputs
        if self._is_async:
            connection.require_events("an async function")
            if on_output is not None:
                connection.require_pushes(
                    "on_output= of an async function", "return what it is to say"
                )
        elif interrupts:
            connection.require_guard()

    async def do(self) -> Any:
        """Take a turn, do the call in it, and return its value."""
        with Turn(self._connection.queue) as turn:
            return await self.do_in(turn)

    async def do_in(self, turn: Turn) -> Any:
        """Do the call in a turn; return its value, or a ref to it, after the last output."""
        if self._name is not None:
            await self._frames(turn)
            return self._make_ref(self._name, {})
        if self._keeps:
            with keeping(self._connection.resources, self.call) as result:
                await self._frames(turn)
            kept = Kept(KEPT + result.id, result.free)
            return self._make_ref(kept.name, {kept.name: kept})
        frames = await self._frames(turn)
        (value,) = await self._connection.trust.open_values(frames, ["the result"])
        return value

    async def _frames(self, turn: Turn) -> Frames:
        """Do the call in a turn; return the frames of its value after the last output."""
        if self._outputs is None:
            return await self._answer(turn)
        return await self._connection.listening(self._answer(turn), self._outputs)

    async def _answer(self, turn: Turn) -> Frames:
        """Do the call in a turn, which ends with it; return the frames of its value."""
        connection, call = self._connection, self.call
        try:
            if self._is_async:
                return (await coroutine_response(connection, call, turn)).frames
            return (await connection.do(call, turn)).frames
        finally:
            turn.leave()
