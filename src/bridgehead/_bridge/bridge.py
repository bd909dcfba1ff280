"""The ``Bridge``, which turns each operation into one request.

Rule: what an operation takes, returns and raises, and which request it becomes. Cells are in
``cell_methods``, functions and streams in ``work_methods``. How a bridge is opened and closed is
decided in ``constructors``; order, deadlines and restarts in ``_connection``.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, TypeVar, overload

from bridgehead._bridge.arguments import (
    awaits,
    check_flags,
    check_now,
    checked_name,
    checked_objects,
    checked_pattern,
    checked_size,
    checked_types,
    deleted_name,
    expression_text,
)
from bridgehead._bridge.progress import Report, reporting
from bridgehead._bridge.work_methods import WorkMethods
from bridgehead._connection.call import Call, Deadline
from bridgehead._connection.handoff import Handoff
from bridgehead._connection.queue import Turn
from bridgehead._connection.records import recorded
from bridgehead._connection.tasks import coroutine_response
from bridgehead._connection.trust import Trust, TrustName, check_trust
from bridgehead._connection.watch import Watch
from bridgehead._lanes.broadcast import Delivery
from bridgehead._protocol import payload as _payload
from bridgehead._protocol import response as _response
from bridgehead._protocol.ref import Ref, free, primary
from bridgehead._protocol.results import Detail, Info, Names, Stats, Transfer, bridge_html
from bridgehead._shipped.wire.header import ResponseHeader
from bridgehead._transports.messages import Messages

T = TypeVar("T")


class HandoffTargets(ABC):
    """Several kernels that a handoff goes to: a ``Fleet``."""

    @abstractmethod
    async def _take_handoff(
        self, source: Bridge, names: Sequence[str], options: Mapping[str, Any]
    ) -> list[Transfer]:
        """Hand names over from one kernel to each; ``options`` are those of ``handoff``."""


class Bridge(WorkMethods):
    """A connection that moves live objects to one Jupyter kernel and back.

    Create one with ``launch``, ``attach``, ``connect``, ``over`` or ``loopback``: await it, or
    enter it with ``async with``. A bridge belongs to the event loop in which it was opened; any
    number of tasks in that loop may use it at once. Operations take effect in the order of their
    calls.

    Every operation takes ``timeout`` in seconds; None waits as long as the kernel lives. It raises
    ``TimeoutError`` when the time is over, ``BridgeClosed`` after ``aclose``, ``RuntimeError`` in
    another event loop or after a fork, and an ``OutcomeUnknown`` error when the kernel is lost
    meanwhile. Cancelling an operation drops its response and nothing else: a request that was
    already sent takes effect as a whole or not at all.

    In the examples, ``bridge`` and ``other`` are open bridges, at the prompt of ``python -m
    asyncio``::

        >>> await bridge.push(x=1)
        <Transfer x: ... bytes by buffers in ... s>
        >>> await bridge.run("y = x + 1")
        <Result [1] no value>
        >>> await bridge.pull("y")
        2
    """

    # ------------------------------------------------------------ state

    @property
    def state(self) -> str:
        """The kernel's last known state.

        One of idle, busy, starting, restarting, unresponsive, dead and closed.

        >>> bridge.state
        'idle'
        """
        return self._transport.life.state

    @property
    def info(self) -> Info:
        """What the handshake found out when the kernel was opened or last restarted.

        >>> bridge.info.lane
        'buffers'
        """
        return self._connection.remote.info

    @property
    def stats(self) -> Stats:
        """What is counted of this bridge now; the kernel is not asked.

        >>> async with bridge.watch("1 + 1") as watch:
        ...     await anext(watch)
        ...     bridge.stats
        2
        <Stats watches=1, tasks=0, iterations=0, refs=0, callbacks=0, operations=..., sent=..., ...>
        """
        count = self._connection.resources.count()
        counters, dispatcher = self._connection.counters, self._transport.dispatcher
        return Stats(
            watches=count["watches"],
            tasks=count["tasks"],
            iterations=count["iterations"],
            refs=count["refs"],
            callbacks=count["callbacks"],
            operations=counters.operations,
            sent=counters.sent,
            received=counters.received,
            retries=counters.retries + dispatcher.retries,
            late=dispatcher.late,
        )

    def __reduce__(self) -> Any:
        raise TypeError("a bridge cannot be pickled; open another one in the other process")

    def __repr__(self) -> str:
        return f"<Bridge {self.state}, {self.info}>"

    def _repr_html_(self) -> str:
        return bridge_html("Bridge", self.state, self.info)

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

        The objects are pickled together, so what they share stays shared. All but a few plain
        values are pickled in a thread. The kernel gets the objects as they were when ``push`` was
        called, so do not change them before ``push`` returns: the kernel refuses an array that
        changed meanwhile if it crossed in messages, and through shared memory such an array may
        arrive half changed. An object whose class exists in the kernel does not change the class;
        the class itself, pushed under a name, does. An open text file arrives as a ``StringIO``, a
        memoryview as bytes: this is a limitation of cloudpickle.

        Args:
            mapping: names to objects; needed for a name that is also a keyword argument here.
            by_value: your own modules to send along, because the kernel cannot import them.
            timeout: seconds.
            progress: True for a tqdm bar, or a callable of bytes done and bytes in all. An
                exception that it raises ends the transfer: nothing is bound, unless all bytes had
                already arrived.
            now: bind while a cell runs, in another thread of the kernel, instead of after the
                cell. On the direct lane every kernel can do this; on the other lanes the kernel
                needs subshells (ipykernel 7 or later).
            max_bytes: refuse to send more than this.
            trust: ``"data"`` has the kernel open nothing but data, for objects from a source that
                you are not sure of; see ``launch``.
            values: more names.

        Raises:
            ValueError: there is no object, or a name is not an identifier or is a keyword.
            EncodeError: an object cannot be pickled; says which part. Nothing was sent.
            PayloadTooLarge: the objects have more than ``max_bytes``. Nothing was sent.
            IncompatiblePython: functions or classes, and a kernel of another Python version.
            MissingInKernel: the kernel lacks a module. Its namespace is unchanged.
            RemoteError: unpickling raised in the kernel. Its namespace is unchanged.
            IntegrityError: the payload was altered on the way, or changed during the push.
            UntrustedPayload: an object is more than data, and ``trust="data"``. Nothing was sent.
            NotSupported: ``now=True``, and the kernel has neither subshells nor the direct lane.

        Example::

            >>> transfer = await bridge.push({"now": 3}, rows=[1, 2])
            >>> transfer.names
            ('now', 'rows')
        """
        self._connection.check()
        objects = checked_objects(mapping, values)
        content = self._content(
            objects, by_value=by_value, now=now, max_bytes=max_bytes, trust=trust
        )
        started = time.perf_counter()
        with reporting(progress, "push") as report:
            bound = self._bound(list(objects), content, timeout, report, now=now, data=content.data)
            return _transfer(list(objects), await bound, started, report)

    def _content(
        self,
        objects: dict[str, Any],
        *,
        by_value: Sequence[ModuleType] = (),
        now: bool = False,
        max_bytes: int | None = None,
        trust: TrustName = "pickle",
    ) -> _payload.PayloadSource:
        """Return what a push is to send, and check its arguments."""
        check_trust(trust)
        check_now(now)
        limit, data = checked_size(max_bytes), trust == "data"
        return _payload.PayloadSource(objects, objects, by_value, self._stand_ins, limit, data)

    def _bound(
        self,
        names: list[str],
        content: _payload.PayloadSource | _payload.Payload,
        timeout: float | None,
        report: Report | None,
        *,
        now: bool,
        data: bool,
        delivery: Delivery | None = None,
        turn: Turn | None = None,
    ) -> Awaitable[_response.Response]:
        """Return the work that binds objects to these names; ``content`` may be pickled already."""
        fields = {"names": names, "opens": "data" if data else None}
        call = Call("bind", delivery=delivery, fields=fields, now=now, report=report)
        if isinstance(content, _payload.PayloadSource):
            call.source = content
        else:
            call.payload = content
        return self._connection.within(timeout, call, turn)

    async def _bind(
        self,
        names: list[str],
        content: _payload.PayloadSource | _payload.Payload,
        timeout: float | None,
        report: Report | None,
        **options: Any,
    ) -> Transfer:
        """Do the work of a push for a fleet; see ``_bound``."""
        self._connection.check()
        started = time.perf_counter()
        response = await self._bound(names, content, timeout, report, **options)
        return _transfer(names, response, started, report)

    async def pull(
        self,
        *expressions: str | Ref,
        timeout: float | None = None,
        progress: bool | Report = False,
        now: bool = False,
        max_bytes: int | None = None,
        trust: TrustName | None = None,
    ) -> Any:
        """Evaluate expressions in the kernel and return their values.

        One expression returns its value, several return a tuple. The kernel evaluates all of them
        before it pickles any, and pickles the values together.

        Args:
            expressions: names or any Python expressions in the kernel, or refs. The objects that a
                ref carries as arguments cross with the request. An expression with ``await``,
                alone, runs as an async function of ``call`` does.
            timeout: seconds.
            progress: as in ``push``, but of bytes that arrived; through shared memory all of them
                arrive at once. Before them it counts the bytes of what a ref carries. The value of
                an expression with ``await`` arrives in messages.
            now: as in ``push`` for names; any other expression needs a subshell.
            max_bytes: limit of the pickled values. The kernel refuses more before it sends them,
                and this process refuses more before it allocates memory for them.
            trust: for this call, instead of the trust of the bridge; see ``launch``.

        Raises:
            NameNotFound: an expression is a single name that the kernel does not know. Nothing
                was evaluated.
            RemoteError: evaluating or pickling raised in the kernel.
            ValueError: a ref belongs to another kernel.
            EncodeError, IncompatiblePython, MissingInKernel: as in ``push``, for the objects that
                a ref carries; nothing was evaluated.
            PayloadTooLarge: the values have more than ``max_bytes``; says how many.
            ReplyLost: the response arrived damaged.
            DecodeError: a value cannot be unpickled in this process.
            UntrustedPayload: a value is more than data, and only data is trusted.
            IncompatiblePython: a value carries code of another Python version.
            NotSupported: ``now=True``, and the kernel has no subshells.

        Cancelling does not undo what was evaluated in the kernel; the response is dropped.

        Example::

            >>> await bridge.push(rows=[1, 2])
            <Transfer rows: ...>
            >>> await bridge.pull("sum(rows)", "rows")
            (3, [1, 2])
        """
        with reporting(progress, "pull") as report:
            call, trusted = self._pull_call(
                expressions, now=now, max_bytes=max_bytes, trust=trust, report=report
            )
            response = await self._pulled(call, timeout)
            total = sum(frame.nbytes for frame in response.frames)
            report(total, total)
        values = await trusted.open_values(response.frames, call.fields["expressions"])
        return values[0] if len(expressions) == 1 else values

    def _pull_call(
        self,
        expressions: Sequence[str | Ref],
        *,
        now: bool = False,
        max_bytes: int | None = None,
        trust: TrustName | None = None,
        report: Report | None = None,
    ) -> tuple[Call, Trust]:
        """Return the call of a pull, and how far what it brings is trusted; check both."""
        self._connection.check()
        check_flags(now=now)
        if not expressions:
            raise ValueError("pull() needs at least one expression, e.g. pull('x')")
        objects: dict[str, Any] = {}
        texts = [expression_text(expression, self, objects) for expression in expressions]
        source = self._objects_source(objects, expressions)
        limit, trusted = checked_size(max_bytes), self._connection.trust.overridden(trust)
        is_async = any(map(awaits, texts))
        if is_async:
            if len(texts) > 1 or now or source is not None:
                raise ValueError(
                    "an expression with await is pulled alone, without now=True and without "
                    "objects of this program in it; gather several in one, as in "
                    "'await asyncio.gather(a(), b())'"
                )
            self._connection.require_events("an expression with await")
        fields = {"expressions": texts, **trusted.fields()}
        operation = "start" if is_async else "fetch"
        call = Call(operation, source, fields=fields, now=now, limit=limit, report=report)
        call.method = "pull"
        return call, trusted

    async def _pulled(self, call: Call, timeout: float | None = None) -> _response.Response:
        """Return the response to the call of a pull."""
        if call.operation == "fetch":
            return await self._connection.within(timeout, call)
        async with Deadline(timeout, "pull", self._transport, call):
            with Turn(self._connection.queue) as turn:
                return await coroutine_response(self._connection, call, turn)

    async def _pull_interruptibly(self, expression: str, interrupts: Callable[[], bool]) -> Any:
        """Pull for the tools: a cancel interrupts what is evaluated, if ``interrupts()`` then."""
        call, trusted = self._pull_call([expression])
        try:
            response = await self._pulled(call)
        except asyncio.CancelledError:
            if interrupts() and call.operation == "fetch":
                self._connection.cancel(call)
            raise
        (value,) = await trusted.open_values(response.frames, call.fields["expressions"])
        return value

    def ref(self, expression: str) -> Ref:
        """Return a handle on an object in the kernel; nothing is transferred until its ``pull``.

        The expression is evaluated whenever the ref is used. To evaluate it once, and to hold what
        it gave under no name, use ``call(lambda: …, namespace=True, keep=True)``. See ``Ref`` for
        what may be done with a ref.

        Raises:
            SyntaxError: the text is not an expression.

        Example::

            >>> bridge.ref("rows")[0].real
            <Ref rows[0].real>
        """
        objects: dict[str, Any] = {}
        return Ref(self, primary(expression_text(expression, self, objects)), objects)

    async def names(
        self,
        pattern: str = "*",
        *,
        preview: bool = False,
        types: Sequence[str] | None = None,
        modules: bool = False,
        now: bool = False,
        timeout: float | None = None,
    ) -> Names:
        """List the user's names in the kernel. No code of the user's runs for it.

        Args:
            pattern: a shell-style pattern; it lists names that begin with an underscore only if
                it begins with one itself.
            preview: also return a short text of each value, as ``Name.preview``, for a prompt or a
                table.
            types: list only values of these types, e.g. ``["DataFrame", "numpy.ndarray"]``.
            modules: list modules, too.
            now: as in ``push``.
            timeout: seconds.

        Raises:
            NotSupported: ``now=True``, and the kernel has neither subshells nor the direct lane; or
                more than 100,000 names match.

        Example::

            >>> await bridge.push(rows=[1, 2], x=1)
            <Transfer rows, x: ...>
            >>> [name.name for name in await bridge.names()]
            ['rows', 'x']
            >>> (await bridge.names("r*"))[0]
            <rows: list of 2, ... bytes>
            >>> (await bridge.names(types=["list"], preview=True))[0].preview
            '[1, 2]'
        """
        self._connection.check()
        check_flags(preview=preview, modules=modules, now=now)
        fields = {
            "pattern": checked_pattern(pattern),
            "types": checked_types(types),
            "modules": modules or None,
            "preview": preview or None,
        }
        response = await self._connection.within(timeout, Call("names", fields=fields, now=now))
        return _response.names_in(response.header, "names")

    async def _look(self, name: str, *, now: bool = False, timeout: float | None = None) -> Detail:
        """Take a closer look at the value of a name, for the tools; see ``remote.detail``."""
        self._connection.check()
        fields = {"name": checked_name(name)}
        call = Call("detail", fields=fields, now=now, limit=_response.MAX_PICTURE)
        response = await self._connection.within(timeout, call)
        return _response.detail_in(response.header, response.frames)

    async def delete(self, *names: str | Ref, timeout: float | None = None) -> None:
        """Remove names from the kernel: all of them, or none.

        Args:
            names: names, refs of names, and refs of ``call(…, keep=True)``, whose objects the
                kernel then frees.
            timeout: seconds.

        Raises:
            ValueError: there is no name, one is not an identifier, or a ref is of a part of an
                object or of another kernel.
            NameNotFound: the kernel does not have one of the names, or an object was freed before;
                none was removed.

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
            raise ValueError("delete() needs at least one name, e.g. delete('x')")
        unique = list(dict.fromkeys(deleted_name(name, self) for name in names))
        await self._connection.within(timeout, Call("drop", fields={"names": unique}))
        for name in names:
            if type(name) is Ref:
                free(name)

    async def exists(self, name: str, *, timeout: float | None = None) -> bool:
        """Return whether the kernel's namespace has a name; builtins are not in the namespace.

        Raises:
            ValueError: the name is not an identifier.

        Example::

            >>> await bridge.exists("print")
            False
        """
        self._connection.check()
        call = Call("has", fields={"name": checked_name(name)})
        header = (await self._connection.within(timeout, call)).header
        _response.check_fields(header, "exists", "has")
        return header["has"]

    @overload
    async def handoff(
        self,
        *names: str,
        to: Bridge,
        return_exceptions: bool = False,
        fail_fast: bool = False,
        timeout: float | None = None,
        progress: bool | Report = False,
        max_bytes: int | None = None,
        trust: TrustName | None = None,
    ) -> Transfer: ...

    @overload
    async def handoff(
        self,
        *names: str,
        to: HandoffTargets,
        return_exceptions: bool = False,
        fail_fast: bool = False,
        timeout: float | None = None,
        progress: bool | Report = False,
        max_bytes: int | None = None,
        trust: TrustName | None = None,
    ) -> list[Transfer]: ...

    async def handoff(
        self,
        *names: str,
        to: Bridge | HandoffTargets,
        return_exceptions: bool = False,
        fail_fast: bool = False,
        timeout: float | None = None,
        progress: bool | Report = False,
        max_bytes: int | None = None,
        trust: TrustName | None = None,
    ) -> Transfer | list[Transfer]:
        """Bind this kernel's objects to the same names in another kernel: all of them, or none.

        The kernels may be connected in any two ways. This kernel pickles the objects once, so what
        they share stays shared, and this program does not unpickle them: it needs none of their
        classes and runs none of their code. If both kernels are on the direct lane, the other
        kernel maps the same shared memory, and this process copies nothing. Otherwise this process
        holds the payload in memory once.

        A handoff takes its turn in both kernels. What arrives is what the names meant at this
        kernel's turn. Operations of ``to`` that are called later take effect after the handoff, so
        they wait for this kernel too. Cancelling leaves nothing behind in either kernel; if the
        other kernel was already asked, it binds all of the names or none.

        Args:
            names: names in this kernel's namespace.
            to: the bridge of the other kernel, opened in the same event loop; or a ``Fleet``
                without this bridge, as ``fleet[1:]``. This kernel then pickles the objects for
                each of the others.
            return_exceptions, fail_fast: of a handoff to a ``Fleet``; see there.
            timeout: seconds for the whole handoff.
            progress: as in ``push``; half of the bytes count when they arrive from this kernel,
                and half when they go to the other one.
            max_bytes: limit of the pickled objects; this kernel refuses more before it sends them.
            trust: ``"data"`` has this kernel send, and the other one open, nothing but data.
                ``"pickle"`` lets anything cross, which can run this kernel's code in the other
                one. By default as this bridge trusts its kernel; see ``launch``. Classes of
                ``allow=`` do not count as data here.

        Returns:
            The ``Transfer``, or for a fleet a list of them; its ``lane`` names both lanes if they
            differ, as in ``"buffers, direct"``.

        An error has a note that says which of the kernels it is about.

        Raises:
            ValueError: there is no name, one is not an identifier, or ``to`` is this bridge.
            TypeError: ``to`` is neither a ``Bridge`` nor a ``Fleet``.
            FleetError: kernels of a fleet failed, for one of the reasons below.
            NameNotFound: this kernel has no such name.
            RemoteError: pickling raised in this kernel, or unpickling in the other one.
            PayloadTooLarge: the objects have more than ``max_bytes``.
            IncompatiblePython: functions or classes, and a kernel of another Python version.
            MissingInKernel: the other kernel lacks a module, or this one lacks cloudpickle.
            UntrustedPayload: an object is more than data, and only data is trusted.
            OutcomeUnknown: one of the kernels was lost meanwhile. If the error is about this
                kernel, nothing was bound in the other one.

        Example::

            >>> await bridge.push(x=1)
            <Transfer x: ...>
            >>> await bridge.handoff("x", to=other)
            <Transfer x: ...>
            >>> await other.pull("x")
            1
        """
        self._connection.check()
        options = {"timeout": timeout, "max_bytes": max_bytes, "trust": trust}
        if isinstance(to, HandoffTargets):
            policy = {"return_exceptions": return_exceptions, "fail_fast": fail_fast}
            return await to._take_handoff(self, names, {**options, **policy, "progress": progress})
        with reporting(progress, "handoff") as report:
            if not isinstance(to, Bridge):
                raise TypeError(f"to= must be an open Bridge or a Fleet, not {type(to).__name__}")
            if to is self:
                raise ValueError(
                    "to= must be another bridge; to copy within one kernel, run a cell 'y = x'"
                )
            if not names:
                raise ValueError("handoff() needs at least one name, e.g. handoff('x', to=…)")
            handoff = Handoff(
                self._connection,
                to._connection,
                list(dict.fromkeys(map(checked_name, names))),
                timeout=timeout,
                limit=checked_size(max_bytes),
                data=self._connection.trust.overridden(trust).data,
                report=report,
            )
            return await handoff.run()

    def watch(self, *expressions: str | Ref, max_bytes: int | None = None) -> Watch[Any]:
        """Follow values: ``async with bridge.watch("history[-1]") as values``.

        The kernel sends the value now, and again after each cell that changed it, no matter which
        client ran the cell. Of several expressions it sends a tuple, after each cell that changed
        any of them. After a cell that changed nothing it sends nothing. A change by a ``push`` or a
        ``call`` comes with the next cell. A slow reader gets the latest value only. The iterator
        ends when the kernel does. After each cell, for as long as the watch is open, the kernel
        evaluates and pickles the expressions, and compares the pickle with the one before.

        Args:
            expressions: names or any Python expressions in the kernel, or refs whose arguments are
                literals and refs.
            max_bytes: as in ``pull``.

        Raises, while it is iterated:
            NameNotFound, RemoteError: evaluating raised; the next wait goes on.
            NotSupported: the kernel does not report when a cell is done.

        Raises:
            ValueError: there is no expression.
            NotSupported: the kernel is an ipyparallel engine, which only replies to requests.

        Example::

            >>> await bridge.push(x=1)
            <Transfer x: ...>
            >>> async with bridge.watch("x") as watch:
            ...     await anext(watch)
            ...     await bridge.run("x = 5")
            ...     await anext(watch)
            1
            <Result [1] no value>
            5
            >>> async with bridge.watch("x", "x * x") as watch:
            ...     await anext(watch)
            (5, 25)
        """
        self._connection.check()
        if not expressions:
            raise ValueError("watch() needs at least one expression, e.g. watch('x')")
        self._connection.require_pushes("watch()", "pull the value when you need it")
        texts = [expression_text(expression, self) for expression in expressions]
        limit, trust = checked_size(max_bytes), self._connection.trust

        async def open_values(header: ResponseHeader, frames: list[memoryview]) -> Any:
            values = await trust.open_values(frames, texts)
            return values[0] if len(texts) == 1 else values

        watch = Watch(
            self._connection,
            "watch",
            ", ".join(texts),
            open_values,
            limit=limit,
            expressions=texts,
            **trust.fields(),
        )
        watch.source = expressions
        return watch

    def watch_names(self, pattern: str = "*", *, preview: bool = False) -> Watch[Names]:
        """Follow the names: ``async with bridge.watch_names() as changes``.

        The kernel describes the names now, and again after each cell that changed them, no matter
        which client ran the cell: one appeared or vanished, or its type, shape, length or bytes are
        others. A value that is replaced by one of the same description is no change. All else is as
        for ``watch``. The descriptions are data, and computing them runs no code of the user's.

        Args:
            pattern: as in ``names``.
            preview: as in ``names``. A value whose preview is another is then a change, too.

        Raises, while it is iterated:
            NotSupported: the kernel does not report when a cell is done.

        Raises:
            NotSupported: the kernel is an ipyparallel engine, which only replies to requests.

        Example::

            >>> await bridge.push(x=1)
            <Transfer x: ...>
            >>> async with bridge.watch_names() as watch:
            ...     await anext(watch)
            ...     await bridge.run("y = 5")
            ...     await anext(watch)
            <Names x>
            <Result [1] no value>
            <Names x, y>
        """
        self._connection.check()
        self._connection.require_pushes("watch_names()", "call names() when you need them")

        async def open_names(header: ResponseHeader, frames: list[memoryview]) -> Names:
            return _response.names_in(header, "watch_names")

        return Watch(
            self._connection,
            "watch_names",
            f"names {pattern}",
            open_names,
            pattern=checked_pattern(pattern),
            preview=preview or None,
        )

    # ------------------------------------------------------------ life

    def messages(self) -> Messages:
        """Return an async iterator over the kernel's iopub messages from now on, parsed.

        It has the messages of all clients. It ends when the bridge is closed or the kernel ends.

        Raises:
            NotSupported: the kernel is an ipyparallel engine, whose client receives only messages
                of its own requests.

        Example::

            >>> messages = bridge.messages()
            >>> await bridge.run("print('at work')")
            <Result [1] no value, 8 characters printed>
            >>> [await anext(messages) for _ in range(3)]
            [<status busy>, <execute_input print('at work')>, <stream at work>]
        """
        self._connection.check()
        stream = self._transport.messages()
        stream.owner = self
        return stream

    async def interrupt(self, *, timeout: float | None = 10.0) -> None:
        r"""Raise ``KeyboardInterrupt`` in what the kernel runs; an idle kernel ignores it.

        Args:
            timeout: seconds until the interrupt must be delivered. After a cancel the kernel may
                or may not be interrupted.

        Raises:
            NotSupported: the kernel is a loopback, or xeus-python, which a signal would end, or
                runs in a thread of an application, whose main thread a signal would hit.

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

    async def _interrupt_cell(self, request: str, timeout: float | None = 10.0) -> bool:
        """Interrupt one cell of this bridge, for the tools; see ``Connection.interrupt_cell``."""
        self._connection.check()
        async with Deadline(timeout, "interrupt", self._transport):
            return await self._connection.interrupt_cell(request)

    async def restart(self, *, timeout: float = 60.0) -> None:
        """Replace the kernel's process; the namespace is empty afterwards.

        Pending operations raise ``KernelRestarted``. A kernel that died is started again.

        Args:
            timeout: seconds until the new process must answer. After a timeout or a cancel call
                ``restart`` again.

        Raises:
            NotSupported: another program started the kernel (``attach``, ``over`` a client or an
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
        call = Call("restart", request="no id")
        async with Deadline(timeout, "restart", self._transport, call):
            work = self._restart(timeout)
            await recorded(self._transport, call, work, lambda _: "done", lambda: "not done")

    async def _restart(self, timeout: float) -> None:
        await self._transport.restart(timeout)
        with self._connection.reporting_restart():
            await self._connection.remote.install()
        self._connection.remote.restart_reported()


def _transfer(
    names: list[str], response: _response.Response, started: float, report: Report | None
) -> Transfer:
    """Return what a push returns, when it is done."""
    sent = response.request.nbytes
    if report is not None:
        report(sent, sent)
    return Transfer(tuple(names), sent, time.perf_counter() - started, response.lane)
