"""The bridge: what a user asks for, turned into requests.

Rule: the public face. What an operation takes, gives and raises, and how it is one request. How a
bridge is opened and closed is ``opening``'s; order, deadlines and restarts are ``_connection``'s.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, TypeVar, overload

from bridgehead._bridge.arguments import name_of, size_of, text_of, to_push
from bridgehead._bridge.opening import BridgeBase
from bridgehead._bridge.progress import Report, reporting
from bridgehead._connection.calls import Deadline, SignedPayload
from bridgehead._connection.cell import CellOutputs
from bridgehead._connection.handoff import Handoff
from bridgehead._connection.trust import TrustName, check_trust
from bridgehead._connection.watch import Watch
from bridgehead._errors import NotSupported
from bridgehead._protocol import payload as _payload
from bridgehead._protocol import response as _protocol
from bridgehead._protocol.raising import remote_error
from bridgehead._protocol.ref import Ref, primary
from bridgehead._protocol.results import Info, Name, Names, Result, Transfer, of_bridge
from bridgehead._transports.messages import Message, Messages

T = TypeVar("T")


class Bridge(BridgeBase):
    """A way for live objects into one Jupyter kernel and back.

    Made by ``launch``, ``attach``, ``over`` or ``loopback``, each of which can be awaited or
    entered with ``async with``. Belongs to the event loop it was opened in; any number of tasks
    there may use it at once. Operations take effect in the order in which they were called.

    Every operation takes ``timeout`` in seconds (None waits as long as the kernel lives) and
    raises ``TimeoutError`` when it passed, ``BridgeClosed`` after ``aclose``, ``RuntimeError``
    from another event loop or after a fork, and the ``OutcomeUnknown`` errors when the kernel
    goes away meanwhile. Cancelling an operation abandons its answer and nothing else; a request
    that was already sent takes effect as a whole or not at all.

    In the examples, ``bridge`` and ``other`` are open bridges, at the prompt of ``python -m
    asyncio``::

        >>> await bridge.push(x=1)
        <Transfer x: ... bytes by buffers in ... s>
        >>> await bridge.run("y = x + 1")
        <Result [1] no value>
        >>> await bridge.pull("y")
        2
    """

    # ------------------------------------------------------------ what is known

    @property
    def state(self) -> str:
        """One of idle, busy, starting, restarting, unresponsive, dead and closed, as last heard.

        >>> bridge.state
        'idle'
        """
        return self._transport.life.state

    @property
    def info(self) -> Info:
        """What the handshake learnt, as of the last (re)start.

        >>> bridge.info.lane
        'buffers'
        """
        return self._connection.remote.info

    def __reduce__(self) -> Any:
        raise TypeError("a bridge stays in its process; attach another one over there")

    def __repr__(self) -> str:
        return f"<Bridge {self.state}, {self.info}>"

    def _repr_html_(self) -> str:
        return of_bridge("Bridge", self.state, self.info)

    # ------------------------------------------------------------ objects

    async def push(
        self,
        mapping: Mapping[str, Any] | None = None,
        /,
        *,
        by_value: Sequence[ModuleType] = (),
        timeout: float | None = None,
        progress: bool | Report = False,
        now: bool = False,
        max_bytes: int | None = None,
        trust: TrustName = "pickle",
        **values: Any,
    ) -> Transfer:
        """Bind objects to names in the kernel: all of them, or none.

        They are pickled together, so what they share stays shared; anything but few plain
        values is pickled in a thread. What arrives is what was there when ``push`` was called;
        change nothing of it before ``push`` returned: an array that changed meanwhile is refused
        by the kernel where it crossed in messages, and may arrive half changed through shared
        memory. An open text file arrives as a ``StringIO``, a memoryview as bytes: that is
        cloudpickle's way.

        Args:
            mapping: names to objects, for names that are no keyword argument.
            by_value: modules of yours to ship along, because the kernel can't import them.
            timeout: seconds.
            progress: True for a tqdm bar, or a callable of bytes done and bytes in all; what it
                raises ends the transfer: nothing is bound, unless all of it had arrived.
            now: be served in the middle of a running cell, in a thread of the kernel's beside
                it, instead of behind it: any kernel's on the direct lane, else that of a subshell
                (ipykernel 7 or later).
            max_bytes: refuse to send more than this.
            trust: ``"data"`` has the kernel open nothing but data, for objects of whose origin
                you are not sure; see ``launch``.
            values: more names.

        Raises:
            ValueError: nothing to push, or a name that is no identifier or is a keyword.
            EncodeError: an object can't be pickled; says which part. Nothing was sent.
            PayloadTooLarge: it has more than ``max_bytes``. Nothing was sent.
            IncompatiblePython: functions or classes for a kernel of another Python version.
            MissingInKernel: the kernel lacks a module. Its namespace is as it was.
            RemoteError: unpickling raised over there. Its namespace is as it was.
            IntegrityError: it was altered on the way, or changed while it was pushed.
            UntrustedPayload: it is more than data, and ``trust="data"``. Nothing was sent.
            NotSupported: ``now=True`` of a kernel without subshells, and without direct lane.

        Example::

            >>> transfer = await bridge.push({"now": 3}, rows=[1, 2])
            >>> transfer.names
            ('now', 'rows')
        """
        self._connection.check()
        check_trust(trust)
        started = time.perf_counter()
        if not isinstance(now, bool):  # a value for that name, it would be lost without a word
            raise TypeError(
                f"now is True or False, not {type(now).__name__}; "
                "the name goes into the mapping: push({'now': …})"
            )
        objects = to_push(mapping, values)
        data = trust == "data"
        content = _payload.PayloadSource(
            objects, objects, by_value, self._reduce, size_of(max_bytes), data
        )
        with reporting(progress, "push") as report:
            answered = await self._connection.ask(
                "bind",
                timeout,
                content,
                now=now,
                report=report,
                names=list(objects),
                opens="data" if data else None,
            )
            sent = answered.request.nbytes
            report(sent, sent)
        seconds = time.perf_counter() - started
        return Transfer(tuple(objects), sent, seconds, answered.request.lane)

    async def _push_packed(
        self, names: list[str], packed: SignedPayload, timeout: float | None
    ) -> Transfer:
        """Bind what a fleet has pickled, under these names."""
        self._connection.check()
        started = time.perf_counter()
        answered = await self._connection.ask("bind", timeout, packed=packed, names=names)
        seconds, request = time.perf_counter() - started, answered.request
        return Transfer(tuple(names), request.nbytes, seconds, request.lane)

    async def pull(
        self,
        *expressions: str | Ref,
        timeout: float | None = None,
        progress: bool | Report = False,
        now: bool = False,
        max_bytes: int | None = None,
        trust: TrustName | None = None,
    ) -> Any:
        """Bring values here: one expression gives its value, several give a tuple.

        All are evaluated before any is pickled, and pickled together.

        Args:
            expressions: names or any Python expressions over there, or refs.
            timeout: seconds.
            progress: as in ``push``; bytes that arrived, which through shared memory is all of
                them at once.
            now: as in ``push`` for names; any other expression needs a subshell.
            max_bytes: of the pickled values; more is refused over there, before it is sent,
                and here, before memory is taken for it.
            trust: for this call otherwise than the bridge; see ``launch``.

        Raises:
            NameNotFound: an expression that is one name, unknown there. Nothing was evaluated.
            RemoteError: evaluating or pickling raised over there.
            PayloadTooLarge: they have more than ``max_bytes``; says how many.
            ReplyLost: the answer arrived damaged.
            DecodeError: it can't be unpickled here.
            UntrustedPayload: it is more than data, where only data is trusted.
            IncompatiblePython: it carries code of another Python version.
            NotSupported: ``now=True`` of a kernel without subshells.

        Cancelling leaves what was evaluated over there as it is; the answer is dropped.

        Example::

            >>> await bridge.push(rows=[1, 2])
            <Transfer rows: ...>
            >>> await bridge.pull("sum(rows)", "rows")
            (3, [1, 2])
        """
        self._connection.check()
        if not expressions:
            raise ValueError("there is nothing to pull; say pull('x')")
        texts = [text_of(expression) for expression in expressions]
        limit, trusted = size_of(max_bytes), self._connection.trust.but(trust)
        with reporting(progress, "pull") as report:
            answered = await self._connection.ask(
                "fetch",
                timeout,
                now=now,
                limit=limit,
                report=report,
                expressions=texts,
                **trusted.fields(),
            )
            total = sum(frame.nbytes for frame in answered.frames)
            report(total, total)
        values = _payload.values(await trusted.open(answered.frames), len(texts))
        return values[0] if len(texts) == 1 else values

    def ref(self, expression: str) -> Ref:
        """A handle of an object over there; nothing moves until its ``pull``.

        Raises:
            SyntaxError: it is no expression.

        Example::

            >>> bridge.ref("rows")[0].real
            <Ref rows[0].real>
        """
        return Ref(self, primary(text_of(expression)))

    async def names(self, pattern: str = "*", *, timeout: float | None = None) -> Names:
        """The user's names over there, as ``%who`` shows them, without computing a repr.

        Args:
            pattern: a shell-style pattern; names with an underscore first need one that has it.
            timeout: seconds.

        Example::

            >>> await bridge.push(rows=[1, 2], x=1)
            <Transfer rows, x: ...>
            >>> [name.name for name in await bridge.names()]
            ['rows', 'x']
            >>> (await bridge.names("r*"))[0]
            <rows: list of 2, ... bytes>
        """
        self._connection.check()
        if not isinstance(pattern, str):
            raise TypeError(f"a pattern is a string, not {type(pattern).__name__}")
        told = (await self._connection.ask("names", timeout, pattern=pattern)).header
        return Names(
            Name(
                item["name"],
                item["type"],
                None if item["shape"] is None else tuple(item["shape"]),
                item["len"],
                item["bytes"],
            )
            for item in _protocol.understood(told.get("names"), [_protocol.NAME], "names")
        )

    async def delete(self, *names: str, timeout: float | None = None) -> None:
        """Remove names from the kernel: all of them, or none.

        Raises:
            ValueError: no names, or one that is no identifier.
            NameNotFound: one of them isn't there.

        Example::

            >>> await bridge.push(x=1)
            <Transfer x: ...>
            >>> await bridge.delete("x")
            >>> await bridge.delete("x")
            Traceback (most recent call last):
            NameNotFound: 'x' is not defined in the kernel
        """
        self._connection.check()
        if not names:
            raise ValueError("there is nothing to delete; say delete('x')")
        unique = list(dict.fromkeys(map(name_of, names)))
        await self._connection.ask("drop", timeout, names=unique)

    async def exists(self, name: str, *, timeout: float | None = None) -> bool:
        """Whether the kernel's namespace has the name; a builtin is not in it.

        Raises:
            ValueError: it is no identifier.

        Example::

            >>> await bridge.exists("print")
            False
        """
        self._connection.check()
        answered = await self._connection.ask("has", timeout, name=name_of(name))
        has: bool = _protocol.understood(answered.header.get("has"), bool, "exists")
        return has

    async def handoff(
        self,
        *names: str,
        to: Bridge,
        timeout: float | None = None,
        progress: bool | Report = False,
        max_bytes: int | None = None,
        trust: TrustName | None = None,
    ) -> Transfer:
        """Bind what this kernel has under some names to the same names in another: all, or none.

        Kernel to kernel, by whatever way leads to either: it is pickled here once, so that what
        the names share stays shared, and nothing is opened on the way. This program needs none
        of the classes, and runs nobody's code. Where both kernels are on the direct lane the
        shared memory itself is handed on, and this process copies nothing; else it holds what
        crosses once.

        It takes its turn in both kernels: what arrives is what the names were when this kernel's
        turn came, and what ``to`` is asked for later comes after it, so it waits for this kernel
        too. Cancelling leaves nothing on either side; if the other kernel was asked already, it
        binds all of the names or none.

        Args:
            names: in this kernel's namespace.
            to: the bridge of the other kernel, opened in the same event loop.
            timeout: seconds for the whole.
            progress: as in ``push``; bytes count half when they come, and half when they go.
            max_bytes: of the pickled values; more is refused by this kernel, before it crosses.
            trust: ``"data"`` has this kernel send and the other one open nothing but data,
                ``"pickle"`` anything, which can run code of this kernel's in the other. By
                default as this bridge trusts its kernel; see ``launch``. Classes of ``allow=``
                are no data here.

        Returns:
            The ``Transfer``; its ``lane`` names both, as ``"buffers, direct"``, where they differ.

        Raises, with a note that says which of the kernels it is about:
            ValueError: no names, one that is no identifier, or ``to`` is this bridge.
            TypeError: ``to`` is no ``Bridge``.
            NameNotFound: this kernel has no such name.
            RemoteError: pickling raised in this kernel, or unpickling in the other.
            PayloadTooLarge: it has more than ``max_bytes``.
            IncompatiblePython: functions or classes for a kernel of another Python version.
            MissingInKernel: the other kernel lacks a module, or this one cloudpickle.
            UntrustedPayload: it is more than data, where only data is trusted.
            OutcomeUnknown: either kernel went meanwhile. Of an error that is about this kernel
                it is known: in the other one, nothing was bound.

        Example::

            >>> await bridge.push(x=1)
            <Transfer x: ...>
            >>> await bridge.handoff("x", to=other)
            <Transfer x: ...>
            >>> await other.pull("x")
            1
        """
        self._connection.check()
        with reporting(progress, "handoff") as report:
            asked = self._to_hand_off(names, to, timeout, max_bytes, trust, report)
            return await asked.both()

    def _to_hand_off(
        self,
        names: Sequence[str],
        to: Bridge,
        timeout: float | None,
        max_bytes: int | None,
        trust: TrustName | None,
        report: Report,
    ) -> Handoff:
        if not isinstance(to, Bridge):
            raise TypeError(
                f"to= takes an open Bridge, not {type(to).__name__}; of a fleet, each bridge"
            )
        if to is self:
            raise ValueError("to= is this bridge itself; y = x in a cell of its kernel would do")
        if not names:
            raise ValueError("there is nothing to hand over; say handoff('x', to=…)")
        return Handoff(
            self._connection,
            to._connection,
            list(dict.fromkeys(map(name_of, names))),
            timeout=timeout,
            limit=size_of(max_bytes),
            data=self._connection.trust.but(trust).data,
            report=report,
        )

    def watch(self, expression: str | Ref, *, max_bytes: int | None = None) -> Watch:
        """Follow a value: ``async for value in bridge.watch("history[-1]")``.

        Its value now, and then one for each cell that changed it, whoever ran the cell, sent by
        the kernel as soon as the cell is done; none for cells that did not. What a ``push`` or a
        ``call`` changed comes with the next cell. It ends with the kernel. Whoever is slow gets
        the latest. The expression is evaluated and pickled after
        each cell for as long as somebody watches; whether it changed is told by its pickle.

        Args:
            expression: a name or any Python expression over there, or a ref.
            max_bytes: as in ``pull``.

        Raises, while it is iterated:
            NameNotFound, RemoteError: evaluating raised; the next wait goes on.
            NotSupported: the kernel tells nobody when a cell is done.

        Raises:
            NotSupported: an engine of ipyparallel's, which answers and never speaks first.

        Example::

            >>> await bridge.push(x=1)
            <Transfer x: ...>
            >>> watch = bridge.watch("x")
            >>> await anext(watch)
            1
            >>> await bridge.run("x = 5")
            <Result [1] no value>
            >>> await anext(watch)
            5
        """
        self._connection.check()
        if not self._transport.pushes:
            raise NotSupported(
                f"over {self._transport.name} nothing comes that was not asked for; "
                "pull the value when you want it"
            )
        text, limit = text_of(expression), size_of(max_bytes)

        async def one(frames: list[memoryview]) -> Any:
            return _payload.values(await self._connection.trust.open(frames), 1)[0]

        return Watch(self._connection, text, one, limit=limit, **self._connection.trust.fields())

    @overload
    async def call(
        self,
        function: Callable[..., T],
        /,
        *args: Any,
        keep: None = None,
        by_value: Sequence[ModuleType] = (),
        timeout: float | None = None,
        **kwargs: Any,
    ) -> T: ...

    @overload
    async def call(
        self,
        function: Callable[..., object],
        /,
        *args: Any,
        keep: str,
        by_value: Sequence[ModuleType] = (),
        timeout: float | None = None,
        **kwargs: Any,
    ) -> Ref: ...

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
            timeout: seconds; the call goes on over there when it passes (see ``interrupt``), and
                as well when this is cancelled.

        Raises:
            RemoteError: the function raised; ``__cause__`` is what it raised.
            EncodeError, IncompatiblePython, MissingInKernel: as in ``push``; it did not run.

        Example::

            >>> rows = await bridge.call(range, 3, keep="rows")
            >>> await bridge.call(sum, rows)
            3
        """
        self._connection.check()
        if not callable(function) or inspect.iscoroutinefunction(function):
            kind = "coroutine function" if callable(function) else type(function).__name__
            raise TypeError(
                f"call() takes a plain function, not a {kind}; for await there is run()"
            )
        if keep is not None:
            keep = name_of(keep)
        parts = {"the function": function, "args": args, "kwargs": kwargs}
        content = _payload.PayloadSource((function, args, kwargs), parts, by_value, self._reduce)
        trust = self._connection.trust
        answered = await self._connection.ask("call", timeout, content, keep=keep, **trust.fields())
        if keep is not None:
            return Ref(self, keep)
        return _payload.values(await trust.open(answered.frames), 1)[0]

    def _reduce(self, value: Any) -> Any:
        """How a ref is pickled: as a call that is answered with the object over there."""
        if type(value) is not Ref:
            return None
        if getattr(value._bridge, "_bridge", value._bridge) is not self:
            raise TypeError(f"{value!r} belongs to another bridge")
        return Ref, (value._expression,)

    # ------------------------------------------------------------ cells

    async def run(
        self,
        code: str,
        *,
        on_output: Callable[[Message], object] | None = None,
        timeout: float | None = None,
    ) -> Result:
        r"""Run a cell as a user would: it counts, is kept in history, and all clients see it.

        Magics and top-level ``await`` work as in a notebook; ``input()`` raises. A failing cell
        aborts nobody else's requests.

        Args:
            code: the cell.
            on_output: called with each output's message as it arrives, and with those that
                clear or update what came before; what it raises is raised from ``run`` when
                the cell is done.
            timeout: seconds; the cell goes on over there when it passes (see ``interrupt``), and
                as well when this is cancelled.

        Raises:
            RemoteError: the cell raised; ``result`` holds what it gave before.

        Example::

            >>> result = await bridge.run("print('at work')\n6 * 7")
            >>> result.stdout
            'at work\n'
            >>> result.data["text/plain"]
            '42'
        """
        self._connection.check()
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
            reply = await self._connection.run(content, timeout, outputs.feed, outputs.complete)
        finally:
            outputs.leave()
        told = reply.content
        result = outputs.result(told.get("execution_count"))
        if told.get("status") == "error":
            error = remote_error(told)
            error.result = result
            raise error
        return result

    def messages(self) -> Messages:
        """The kernel's iopub messages from now on, whoever caused them, parsed.

        An async iterator; it ends when the bridge is closed or the kernel is gone.

        Raises:
            NotSupported: an engine of ipyparallel's, whose client hears of its own requests alone.

        Example::

            >>> messages = bridge.messages()
            >>> await bridge.run("print('at work')")
            <Result [1] no value, 8 characters printed>
            >>> [await anext(messages) for _ in range(3)]
            [<status busy>, <execute_input print('at work')>, <stream at work>]
        """
        self._connection.check()
        return self._transport.messages()

    async def interrupt(self, *, timeout: float | None = 10.0) -> None:
        r"""Raise ``KeyboardInterrupt`` in whatever the kernel is running; an idle one ignores it.

        Args:
            timeout: seconds until it must be told; cancelled, it may have been told or not.

        Raises:
            NotSupported: a loopback, or xeus-python, which a signal would end.

        Example::

            >>> cell = asyncio.create_task(bridge.run("print('at work')\nwhile True: pass"))
            >>> messages = bridge.messages()
            >>> while (await anext(messages)).type != "stream": pass
            >>> await bridge.interrupt()
            >>> await cell
            Traceback (most recent call last):
            RemoteError: KeyboardInterrupt
        """
        self._connection.check()
        async with Deadline(timeout, "interrupt", self._transport):
            await self._connection.interrupt()

    async def restart(self, *, timeout: float = 60.0) -> None:
        """Replace the kernel's process; the namespace is empty afterwards.

        Whatever is pending raises ``KernelRestarted``. Also brings back a kernel that died.

        Args:
            timeout: seconds until the new one must answer; then, or cancelled, call it again.

        Raises:
            NotSupported: somebody else holds the process (``attach``, ``over`` a client or an
                engine).

        Example::

            >>> await bridge.push(x=1)
            <Transfer x: ...>
            >>> await bridge.restart()
            >>> await bridge.exists("x")
            False
        """
        self._connection.check_caller()
        if self.state == "closed":
            self._transport.life.check()
        async with Deadline(timeout, "restart", self._transport):
            await self._transport.restart(timeout)
            await self._connection.remote.install()
