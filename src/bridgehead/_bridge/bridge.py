"""The ``Bridge``, which turns each operation into one request.

Rule: what an operation takes, returns and raises, and which request it becomes. How a bridge is
opened and closed is decided in ``opening``; order, deadlines and restarts in ``_connection``.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, TypeVar, overload

from bridgehead._bridge.arguments import (
    checked_name,
    checked_objects,
    checked_size,
    expression_text,
)
from bridgehead._bridge.opening import BridgeBase
from bridgehead._bridge.progress import Report, reporting
from bridgehead._connection.calls import Deadline
from bridgehead._connection.cell import CellOutputs
from bridgehead._connection.handoff import Handoff
from bridgehead._connection.trust import TrustName, check_trust
from bridgehead._connection.watch import Watch
from bridgehead._errors import NotSupported
from bridgehead._lanes.broadcast import Delivery
from bridgehead._protocol import payload as _payload
from bridgehead._protocol import response as _response
from bridgehead._protocol.raising import remote_error
from bridgehead._protocol.ref import Ref, expression_of, primary
from bridgehead._protocol.results import Info, Name, Names, Result, Transfer, bridge_html
from bridgehead._transports.messages import Message, Messages

T = TypeVar("T")


class Bridge(BridgeBase):
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
        check_trust(trust)
        started = time.perf_counter()
        if not isinstance(now, bool):  # an object meant for the name 'now' would be lost silently
            raise TypeError(
                f"now must be True or False, not {type(now).__name__}; "
                "to push an object under that name use push({'now': …})"
            )
        objects = checked_objects(mapping, values)
        data = trust == "data"
        content = _payload.PayloadSource(
            objects, objects, by_value, self._reduce, checked_size(max_bytes), data
        )
        with reporting(progress, "push") as report:
            response = await self._connection.ask(
                "bind",
                timeout,
                content,
                now=now,
                report=report,
                names=list(objects),
                opens="data" if data else None,
            )
            sent = response.request.nbytes
            report(sent, sent)
        seconds = time.perf_counter() - started
        return Transfer(tuple(objects), sent, seconds, response.lane)

    async def _push_payload(
        self,
        names: list[str],
        payload: _payload.Payload,
        delivery: Delivery | None,
        timeout: float | None,
    ) -> Transfer:
        """Bind objects that a fleet has already pickled to these names."""
        self._connection.check()
        started = time.perf_counter()
        response = await self._connection.ask(
            "bind", timeout, payload=payload, delivery=delivery, names=names
        )
        seconds = time.perf_counter() - started
        return Transfer(tuple(names), response.request.nbytes, seconds, response.lane)

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
            expressions: names or any Python expressions in the kernel, or refs.
            timeout: seconds.
            progress: as in ``push``, but of bytes that arrived; through shared memory all of them
                arrive at once.
            now: as in ``push`` for names; any other expression needs a subshell.
            max_bytes: limit of the pickled values. The kernel refuses more before it sends them,
                and this process refuses more before it allocates memory for them.
            trust: for this call, instead of the trust of the bridge; see ``launch``.

        Raises:
            NameNotFound: an expression is a single name that the kernel does not know. Nothing
                was evaluated.
            RemoteError: evaluating or pickling raised in the kernel.
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
        self._connection.check()
        if not expressions:
            raise ValueError("pull() needs at least one expression, e.g. pull('x')")
        texts = [expression_text(expression, self) for expression in expressions]
        limit, trusted = checked_size(max_bytes), self._connection.trust.overridden(trust)
        with reporting(progress, "pull") as report:
            response = await self._connection.ask(
                "fetch",
                timeout,
                now=now,
                limit=limit,
                report=report,
                expressions=texts,
                **trusted.fields(),
            )
            total = sum(frame.nbytes for frame in response.frames)
            report(total, total)
        values = _payload.check_values(await trusted.open(response.frames), len(texts))
        return values[0] if len(texts) == 1 else values

    def ref(self, expression: str) -> Ref:
        """Return a handle on an object in the kernel; nothing is transferred until its ``pull``.

        Raises:
            SyntaxError: the text is not an expression.

        Example::

            >>> bridge.ref("rows")[0].real
            <Ref rows[0].real>
        """
        return Ref(self, primary(expression_text(expression, self)))

    async def names(self, pattern: str = "*", *, timeout: float | None = None) -> Names:
        """List the user's names in the kernel, as ``%who`` does, without computing a repr.

        Args:
            pattern: a shell-style pattern; it lists names that begin with an underscore only if
                it begins with one itself.
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
            raise TypeError(f"pattern must be a string, not {type(pattern).__name__}")
        header = (await self._connection.ask("names", timeout, pattern=pattern)).header
        _response.check_fields(header, "names", "names")
        return Names(
            Name(
                item["name"],
                item["type"],
                None if item["shape"] is None else tuple(item["shape"]),
                item["len"],
                item["bytes"],
            )
            for item in header["names"]
        )

    async def delete(self, *names: str, timeout: float | None = None) -> None:
        """Remove names from the kernel: all of them, or none.

        Raises:
            ValueError: there is no name, or one is not an identifier.
            NameNotFound: the kernel does not have one of the names; none was removed.

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
        unique = list(dict.fromkeys(map(checked_name, names)))
        await self._connection.ask("drop", timeout, names=unique)

    async def exists(self, name: str, *, timeout: float | None = None) -> bool:
        """Return whether the kernel's namespace has a name; builtins are not in the namespace.

        Raises:
            ValueError: the name is not an identifier.

        Example::

            >>> await bridge.exists("print")
            False
        """
        self._connection.check()
        header = (await self._connection.ask("has", timeout, name=checked_name(name))).header
        _response.check_fields(header, "exists", "has")
        return header["has"]

    async def handoff(
        self,
        *names: str,
        to: Bridge,
        timeout: float | None = None,
        progress: bool | Report = False,
        max_bytes: int | None = None,
        trust: TrustName | None = None,
    ) -> Transfer:
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
            to: the bridge of the other kernel, opened in the same event loop.
            timeout: seconds for the whole handoff.
            progress: as in ``push``; half of the bytes count when they arrive from this kernel,
                and half when they go to the other one.
            max_bytes: limit of the pickled objects; this kernel refuses more before it sends them.
            trust: ``"data"`` has this kernel send, and the other one open, nothing but data.
                ``"pickle"`` lets anything cross, which can run this kernel's code in the other
                one. By default as this bridge trusts its kernel; see ``launch``. Classes of
                ``allow=`` do not count as data here.

        Returns:
            The ``Transfer``; its ``lane`` names both lanes if they differ, as in
            ``"buffers, direct"``.

        Raises, with a note that says which of the kernels the error is about:
            ValueError: there is no name, one is not an identifier, or ``to`` is this bridge.
            TypeError: ``to`` is not a ``Bridge``.
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
        with reporting(progress, "handoff") as report:
            if not isinstance(to, Bridge):
                raise TypeError(
                    f"to= must be an open Bridge, not {type(to).__name__}; for a fleet call "
                    "handoff() once for each of its bridges"
                )
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

    def watch(self, expression: str | Ref, *, max_bytes: int | None = None) -> Watch:
        """Follow a value: ``async for value in bridge.watch("history[-1]")``.

        The kernel sends the value now, and again after each cell that changed it, no matter which
        client ran the cell. After a cell that did not change the value it sends nothing. A change
        by a ``push`` or a ``call`` comes with the next cell. A slow reader gets the latest value
        only. The iterator ends when the kernel does. After each cell, for as long as the watch is
        open, the kernel evaluates and pickles the expression, and compares the pickle with the
        one before.

        Args:
            expression: a name or any Python expression in the kernel, or a ref.
            max_bytes: as in ``pull``.

        Raises, while it is iterated:
            NameNotFound, RemoteError: evaluating raised; the next wait goes on.
            NotSupported: the kernel does not report when a cell is done.

        Raises:
            NotSupported: the kernel is an ipyparallel engine, which only replies to requests.

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
                f"watch() does not work over {self._transport.name}, which only replies to "
                "requests; pull the value when you need it"
            )
        text, limit = expression_text(expression, self), checked_size(max_bytes)

        async def open_value(frames: list[memoryview]) -> Any:
            return _payload.check_values(await self._connection.trust.open(frames), 1)[0]

        return Watch(
            self._connection, text, open_value, limit=limit, **self._connection.trust.fields()
        )

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
        """Send a function to the kernel, run it there, and return its value.

        Args:
            function: any callable that can be pickled.
            args, kwargs: its arguments. A ``Ref``, at any depth, stands for the kernel's object.
            keep: leave the value in the kernel under this name, and return a ``Ref`` to it.
            by_value: your own modules to send along, as in ``push``.
            timeout: seconds. After a timeout or a cancel the function goes on in the kernel; see
                ``interrupt``.

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
            kind = "a coroutine function" if callable(function) else type(function).__name__
            raise TypeError(
                f"call() takes a plain function, not {kind}; for code with await use run()"
            )
        if keep is not None:
            keep = checked_name(keep)
        parts = {"the function": function, "args": args, "kwargs": kwargs}
        content = _payload.PayloadSource((function, args, kwargs), parts, by_value, self._reduce)
        trust = self._connection.trust
        response = await self._connection.ask("call", timeout, content, keep=keep, **trust.fields())
        if keep is not None:
            return Ref(self, keep)
        return _payload.check_values(await trust.open(response.frames), 1)[0]

    def _reduce(self, value: Any) -> Any:
        """Return how to pickle a ref: as a call that gives the kernel's object."""
        if type(value) is not Ref:
            return None
        return Ref, (expression_of(value, self),)

    # ------------------------------------------------------------ cells

    async def run(
        self,
        code: str,
        *,
        on_output: Callable[[Message], object] | None = None,
        timeout: float | None = None,
    ) -> Result:
        r"""Run a cell as a user would: it is counted, kept in history, and seen by all clients.

        Magics and top-level ``await`` work as in a notebook; ``input()`` raises. If the cell fails,
        requests of other clients are not aborted.

        Args:
            code: the cell.
            on_output: called with the message of each output as it arrives, and with messages
                that clear or update earlier outputs. What it raises is raised from ``run`` when
                the cell is done.
            timeout: seconds. After a timeout or a cancel the cell goes on in the kernel; see
                ``interrupt``.

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
            raise TypeError(
                f"run() takes the code of a cell as a string, not {type(code).__name__}"
            )
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
            reply = await self._connection.run(
                content, timeout, outputs.feed, outputs.sent, outputs.complete
            )
            trust = self._connection.trust.name
            result = outputs.result(reply.content.get("execution_count"), trust)
        finally:
            outputs.leave()
        if reply.content.get("status") == "error":
            error = remote_error(reply.content)
            error.result = result
            raise error
        return result

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
        async with Deadline(timeout, "restart", self._transport):
            await self._transport.restart(timeout)
            await self._connection.remote.install()
            self._connection.remote.restart_reported()
