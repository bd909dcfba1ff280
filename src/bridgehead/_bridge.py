"""The bridge: what a user asks for, turned into requests.

Rule: the public face. What an operation takes, gives and raises, and how it is one request;
lane, deadline, restarts and messages are the foothold's.
"""

from __future__ import annotations

import asyncio
import inspect
import keyword
import os
import time
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, TypeVar

from bridgehead import _kernels, _protocol
from bridgehead._cell import CellOutputs
from bridgehead._errors import RemoteError
from bridgehead._foothold import Foothold, LaneName, deadline
from bridgehead._opening import Opening
from bridgehead._ref import Ref, primary
from bridgehead._results import Info, Name, Result, Transfer
from bridgehead._transports import Transport, to_the_end
from bridgehead._transports.loopback import LoopbackTransport
from bridgehead._transports.messages import Message, Messages

B = TypeVar("B", bound="Bridge")


class Bridge:
    """A way for live objects into one Jupyter kernel and back.

    Made by ``launch``, ``attach``, ``over`` or ``loopback``, each of which can be awaited or
    entered with ``async with``. Belongs to the event loop it was opened in; any number of tasks
    there may use it at once. Operations take effect in the order in which they were called.

    Every operation takes ``timeout`` in seconds (None waits as long as the kernel lives) and
    raises ``TimeoutError`` when it passed, ``BridgeClosed`` after ``aclose``, ``RuntimeError``
    from another event loop or after a fork, and the ``OutcomeUnknown`` errors when the kernel
    goes away meanwhile. Cancelling an operation abandons its answer and nothing else; a request
    that was already sent takes effect as a whole or not at all.
    """

    def __init__(self, foothold: Foothold) -> None:
        self._transport = foothold.transport
        self._foothold = foothold

    # ------------------------------------------------------------ opening

    @classmethod
    def launch(
        cls: type[B],
        kernel_name: str = "python3",
        *,
        connection_file: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        lane: LaneName = "auto",
        timeout: float = 60.0,
    ) -> Opening[B]:
        """Start a kernel of one's own; closing the bridge ends it.

        On POSIX its sockets are Unix sockets beside its connection file (TCP on loopback where
        that path is too long for a socket).

        Args:
            kernel_name: an installed kernelspec, as ``jupyter kernelspec list`` shows them.
            connection_file: where to write the connection file, relative to the current
                folder; by default in Jupyter's runtime folder, where ``attach`` and ``jupyter
                console --existing`` find it.
            env: variables to add to this process's environment.
            cwd: the kernel's working directory; ``FileNotFoundError`` if there is none.
            lane: ``"auto"`` takes ``"buffers"`` if they arrive on both sides, else ``"inline"``.
            timeout: seconds until the kernel must answer.

        Raises:
            KernelNotFound: no such kernelspec, or it does not answer.
            KernelDied: it ended at once; says what it last wrote.
            UnsupportedKernel: it isn't Python, or evaluates no ``user_expressions``.
        """

        async def make() -> B:
            started = time.monotonic()
            transport = await _kernels.launch(
                kernel_name, connection_file=connection_file, env=env, cwd=cwd, timeout=timeout
            )
            return await cls._opened(transport, lane, timeout, started)

        return Opening(make, lane, timeout)

    @classmethod
    def attach(
        cls: type[B],
        existing: str | os.PathLike[str] | None = None,
        *,
        lane: LaneName = "auto",
        timeout: float = 60.0,
    ) -> Opening[B]:
        """Connect to a running kernel; closing leaves it running.

        Args:
            existing: what ``jupyter console --existing`` takes: a connection file's path or
                name, a fragment of it, a glob, or None for the one used last.
            lane: as in ``launch``.
            timeout: seconds; a kernel in the middle of a cell answers after it.

        Raises:
            KernelNotFound: none or several match, or nothing answers there.
            InsecureConnection: an empty key, or plain TCP to another machine.
            UnsupportedKernel: as in ``launch``.
        """

        async def make() -> B:
            started = time.monotonic()
            transport = await _kernels.attach(existing, timeout=timeout)
            return await cls._opened(transport, lane, timeout, started)

        return Opening(make, lane, timeout)

    @classmethod
    def over(
        cls: type[B], lender: Any, *, lane: LaneName = "auto", timeout: float = 60.0
    ) -> Opening[B]:
        """Connect to the kernel of an AsyncKernelClient or AsyncKernelManager you own.

        The bridge opens sockets and a session of its own: the client stays usable beside it, and
        closing the bridge ends neither client nor kernel. With a manager, ``restart`` works.

        Raises:
            KernelNotFound: the manager's kernel is not running.
            TypeError: it is neither a client nor a manager.
        """

        async def make() -> B:
            started = time.monotonic()
            transport = await _kernels.over(lender, timeout=timeout)
            return await cls._opened(transport, lane, timeout, started)

        return Opening(make, lane, timeout)

    @classmethod
    def loopback(cls: type[B], *, lane: LaneName = "auto") -> Opening[B]:
        """No kernel: the real loader serving a namespace in this process, for tests.

        Everything but the process is real: frames, digests, lanes, errors. Cells are plain
        Python, without magics and top-level ``await``, and can't be interrupted.
        """

        async def make() -> B:
            return await cls._opened(LoopbackTransport(), lane, 60.0, time.monotonic())

        return Opening(make, lane, 60.0)

    @classmethod
    async def _opened(
        cls: type[B], transport: Transport, lane: LaneName, timeout: float, started: float
    ) -> B:
        try:
            foothold = Foothold(transport, lane)
            left = max(0.0, timeout - (time.monotonic() - started))
            async with deadline(left, "opening", transport, asked=timeout):
                await foothold.plant()
        except BaseException:
            await transport.aclose()
            raise
        return cls(foothold)

    async def __aenter__(self: B) -> B:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Leave: ends the kernel if ``launch`` started it, else only the connection.

        Whatever is pending raises ``BridgeClosed``. May be called again, and from any task of
        the loop; cancelling it waits until nothing is left behind.
        """
        self._foothold.check_caller()
        await to_the_end(asyncio.ensure_future(self._foothold.aclose()))

    # ------------------------------------------------------------ what is known

    @property
    def state(self) -> str:
        """``"idle"``, ``"busy"``, ``"starting"``, ``"restarting"``, ``"dead"`` or ``"closed"``."""
        return self._transport.state

    @property
    def info(self) -> Info:
        """What the handshake learnt, as of the last (re)start."""
        return self._foothold.info

    def __reduce__(self) -> Any:
        raise TypeError("a bridge stays in its process; attach another one over there")

    def __repr__(self) -> str:
        return f"<Bridge {self.state}, {repr(self.info)[6:-1]}>"

    # ------------------------------------------------------------ objects

    async def push(
        self,
        mapping: Mapping[str, Any] | None = None,
        /,
        *,
        by_value: Sequence[ModuleType] = (),
        timeout: float | None = None,
        **values: Any,
    ) -> Transfer:
        """Bind objects to names in the kernel: all of them, or none.

        They are pickled together, so what they share stays shared. What arrives is what was
        there when ``push`` was called; should something change it before ``push`` returned, the
        kernel refuses it. An open text file arrives as a ``StringIO``, a memoryview as bytes:
        that is cloudpickle's way.

        Args:
            mapping: names to objects, for names that are no keyword argument.
            by_value: modules of yours to ship along, because the kernel can't import them.
            timeout: seconds.
            values: more names.

        Raises:
            ValueError: nothing to push, or a name that is no identifier or is a keyword.
            EncodeError: an object can't be pickled; says which part. Nothing was sent.
            IncompatiblePython: functions or classes for a kernel of another Python version.
            MissingInKernel: the kernel lacks a module. Its namespace is as it was.
            RemoteError: unpickling raised over there. Its namespace is as it was.
            IntegrityError: it was altered on the way, or changed while it was pushed.
        """
        self._foothold.check()
        started = time.perf_counter()
        if mapping is not None and not isinstance(mapping, Mapping):
            raise TypeError(
                f"push() takes names with their objects, not {type(mapping).__name__}; "
                "say push(x=…) or push({'x': …})"
            )
        objects = {_name(key): item for key, item in {**(mapping or {}), **values}.items()}
        if not objects:
            raise ValueError(
                "there is nothing to push; say push(x=1) or push({'x': 1}), the latter also for a "
                "name that is push's own keyword, as timeout and by_value"
            )
        parcel = _protocol.encode(objects, objects, by_value=by_value, refs=self._reduce)
        await self._foothold.ask("bind", parcel, timeout, names=list(objects))
        return Transfer(
            tuple(objects), parcel.nbytes, time.perf_counter() - started, self.info.lane
        )

    async def pull(self, *expressions: str | Ref, timeout: float | None = None) -> Any:
        """Bring values here: one expression gives its value, several give a tuple.

        All are evaluated before any is pickled, and pickled together.

        Args:
            expressions: names or any Python expressions over there, or refs.
            timeout: seconds.

        Raises:
            NameNotFound: an expression that is one name, unknown there. Nothing was evaluated.
            RemoteError: evaluating or pickling raised over there.
            ReplyLost: the answer arrived damaged.
            DecodeError: it can't be unpickled here.
            IncompatiblePython: it carries code of another Python version.
        """
        self._foothold.check()
        if not expressions:
            raise ValueError("there is nothing to pull; say pull('x')")
        texts = [_expression(expression) for expression in expressions]
        _, frames = await self._foothold.ask("fetch", _protocol.EMPTY, timeout, expressions=texts)
        values = _protocol.decode(frames)
        return values[0] if len(texts) == 1 else values

    async def call(
        self,
        function: Callable[..., Any],
        /,
        *args: Any,
        keep: str | None = None,
        by_value: Sequence[ModuleType] = (),
        timeout: float | None = None,
        **kwargs: Any,
    ) -> Any:
        """Ship a function, run it in the kernel, bring its value back.

        Args:
            function: any callable that can be pickled.
            args, kwargs: its arguments; a ``Ref``, at any depth, means the object over there.
            keep: leave the value there under this name, and return a ``Ref`` of it.
            by_value: modules of yours to ship along, as in ``push``.
            timeout: seconds; the call goes on over there when it passes (see ``interrupt``).

        Raises:
            RemoteError: the function raised; ``__cause__`` is what it raised.
            EncodeError, IncompatiblePython, MissingInKernel: as in ``push``; it did not run.
        """
        self._foothold.check()
        if not callable(function) or inspect.iscoroutinefunction(function):
            kind = "coroutine function" if callable(function) else type(function).__name__
            raise TypeError(
                f"call() takes a plain function, not a {kind}; for await there is run()"
            )
        if keep is not None:
            keep = _name(keep)
        parts = {"the function": function, "args": args, "kwargs": kwargs}
        parcel = _protocol.encode(
            (function, args, kwargs), parts, by_value=by_value, refs=self._reduce
        )
        _, frames = await self._foothold.ask("call", parcel, timeout, keep=keep)
        return Ref(self, keep) if keep is not None else _protocol.decode(frames)[0]

    def ref(self, expression: str) -> Ref:
        """A handle of an object over there; nothing moves until its ``pull``.

        Raises:
            SyntaxError: it is no expression.
        """
        return Ref(self, primary(_expression(expression)))

    async def names(self, pattern: str = "*", *, timeout: float | None = None) -> list[Name]:
        """The user's names over there, as ``%who`` shows them, without computing a repr.

        Args:
            pattern: a shell-style pattern; names with an underscore first need one that has it.
            timeout: seconds.
        """
        self._foothold.check()
        if not isinstance(pattern, str):
            raise TypeError(f"a pattern is a string, not {type(pattern).__name__}")
        told, _ = await self._foothold.ask("names", _protocol.EMPTY, timeout, pattern=pattern)
        return [
            Name(
                item["name"],
                item["type"],
                None if item["shape"] is None else tuple(item["shape"]),
                item["len"],
                item["bytes"],
            )
            for item in told["names"]
        ]

    async def delete(self, *names: str, timeout: float | None = None) -> None:
        """Remove names from the kernel: all of them, or none.

        Raises:
            NameNotFound: one of them isn't there.
        """
        self._foothold.check()
        if not names:
            raise ValueError("there is nothing to delete; say delete('x')")
        unique = list(dict.fromkeys(map(_name, names)))
        await self._foothold.ask("drop", _protocol.EMPTY, timeout, names=unique)

    async def exists(self, name: str, *, timeout: float | None = None) -> bool:
        """Whether the kernel's namespace has the name; a builtin is not in it."""
        self._foothold.check()
        told, _ = await self._foothold.ask("has", _protocol.EMPTY, timeout, name=_name(name))
        return bool(told["has"])

    # ------------------------------------------------------------ cells

    async def run(
        self,
        code: str,
        *,
        on_output: Callable[[Message], object] | None = None,
        timeout: float | None = None,
    ) -> Result:
        """Run a cell as a user would: it counts, is kept in history, and all clients see it.

        Magics and top-level ``await`` work as in a notebook; ``input()`` raises. A failing cell
        aborts nobody else's requests.

        Args:
            code: the cell.
            on_output: called with each output's message as it arrives; what it raises is raised
                from ``run`` when the cell is done.
            timeout: seconds; the cell goes on over there when it passes (see ``interrupt``).

        Raises:
            RemoteError: the cell raised; ``result`` holds what it gave before.
        """
        self._foothold.check()
        if not isinstance(code, str):
            raise TypeError(f"run() takes the text of a cell, not {type(code).__name__}")
        outputs = CellOutputs(on_output)
        content = {
            "code": code,
            "silent": False,
            "store_history": True,
            "user_expressions": {},
            "allow_stdin": False,
            "stop_on_error": False,
        }
        try:
            async with deadline(timeout, "run", self._transport):
                await self._foothold.ready()
                reply = await self._transport.request(content, on_message=outputs.feed)
                await outputs.complete(reply.id)
        finally:
            outputs.leave()
        told = reply.content
        result = outputs.result(told.get("execution_count"))
        if told.get("status") == "error":
            error = RemoteError(
                str(told.get("ename")), str(told.get("evalue")), told.get("traceback") or ()
            )
            error.result = result
            raise error
        return result

    def messages(self) -> Messages:
        """The kernel's iopub messages from now on, whoever caused them, parsed.

        An async iterator; it ends when the bridge is closed or the kernel is gone.
        """
        self._foothold.check()
        return self._transport.messages()

    async def interrupt(self, *, timeout: float | None = 10.0) -> None:
        """Raise ``KeyboardInterrupt`` in whatever the kernel is running; an idle one ignores it.

        Raises:
            NotSupported: a loopback.
        """
        self._foothold.check()
        async with deadline(timeout, "interrupt", self._transport):
            await self._transport.interrupt()

    async def restart(self, *, timeout: float = 60.0) -> None:
        """Replace the kernel's process; the namespace is empty afterwards.

        Whatever is pending raises ``KernelRestarted``. Also brings back a kernel that died.

        Raises:
            NotSupported: somebody else holds the process (``attach``, ``over`` a client).
        """
        self._foothold.check_caller()
        if self.state == "closed":
            self._transport.check()
        async with deadline(timeout, "restart", self._transport):
            await self._transport.restart(timeout)
            await self._foothold.plant()

    def _reduce(self, value: Any) -> Any:
        """How a ref is pickled: as a call that is answered with the object over there."""
        if type(value) is not Ref:
            return None
        if getattr(value._bridge, "_bridge", value._bridge) is not self:
            raise TypeError(f"{value!r} belongs to another bridge")
        return Ref, (value._expression,)


def _name(name: Any) -> str:
    """A name as Python's parser would know it.

    Raises:
        ValueError: it is no identifier, or a keyword.
    """
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(f"{name!r} is no Python identifier, so no cell could use it as a name")
    if keyword.iskeyword(name):
        raise ValueError(f"{name!r} is a Python keyword, so no cell could use it as a name")
    return unicodedata.normalize("NFKC", str(name))


def _expression(expression: str | Ref) -> str:
    if type(expression) is Ref:
        return expression._expression
    if not isinstance(expression, str):
        raise TypeError(f"an expression is a string or a ref, not {type(expression).__name__}")
    if not expression.strip():
        raise ValueError("an empty string is no expression")
    return unicodedata.normalize("NFKC", expression) if expression.isidentifier() else expression
