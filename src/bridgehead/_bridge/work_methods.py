"""The operations of ``Bridge`` that run functions, and those that iterate and call back.

Rule: what a user may say of work in the kernel, and what it gives back. ``work`` does a call;
``_connection`` has tasks, iterations and callbacks.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from types import ModuleType
from typing import Any, Literal, TypeVar, overload

from bridgehead._bridge.arguments import (
    OnTimeout,
    WhenFull,
    expression_text,
    is_coroutine_function,
    takes_options,
    wants_interrupt,
)
from bridgehead._bridge.cell_methods import CellMethods
from bridgehead._bridge.work import FunctionWork
from bridgehead._connection.call import Call, Deadline
from bridgehead._connection.callbacks import Callback
from bridgehead._connection.iteration import Iteration
from bridgehead._connection.tasks import RemoteTask
from bridgehead._protocol import payload as _payload
from bridgehead._protocol.ref import Ref, shown
from bridgehead._transports.messages import Message

T = TypeVar("T")


class WorkMethods(CellMethods):
    """The operations that run functions, iterate and call back."""

    def iterate(self, source: str | Ref | Callable[..., Any], /, *args: Any) -> Iteration:
        """Iterate over what the kernel makes: ``async with bridge.iterate("rows") as rows``.

        Items come in batches, as they are made, and are as they were then. The kernel is at most
        10,000 items and 64 MB ahead of the consumer, beside one item of any size. It is free
        between two batches: cells, calls and other iterations go on. Each step of a plain iterator
        runs in the kernel's main thread, in the bridge's order; an async one runs on the kernel's
        event loop.

        Args:
            source: an expression, a ref, or a function that the kernel calls; it gives anything
                iterable, or is an async generator. ``async for item in ref`` is the same. A file,
                or another iterator that is no generator, stays open in the end if an expression
                or a ref names it.
            args: the arguments of the function; see ``call``. They are pickled when the first item
                is asked for.

        Raises, while it is iterated, after the items before it:
            NameNotFound: the expression is a name that is not defined, or its ref was freed.
            RemoteError: evaluating, a step or pickling an item raised.
            UntrustedPayload: an item is more than data, and only data is trusted.
            ReplyLost, KernelDied, KernelRestarted: the kernel or the items are lost.
            NotSupported: an async iterator, and a kernel that sends no events.

        Example::

            >>> async with bridge.iterate("(n * n for n in range(4))") as squares:
            ...     [square async for square in squares]
            [0, 1, 4, 9]
        """
        connection, trust = self._connection, self._connection.trust
        connection.check()
        call = Call("iterate", fields=trust.fields())
        if callable(source) and type(source) is not Ref:
            if is_coroutine_function(source):
                raise TypeError(
                    "iterate() takes a function that returns an iterable, or an async generator "
                    "function, not a coroutine function; await it in the kernel with call()"
                )
            parts = {"the function": source, "args": args}
            call.source = _payload.PayloadSource((source, args, {}), parts, refs=self._stand_ins)
            name = getattr(source, "__qualname__", type(source).__qualname__)
        else:
            if args:
                raise TypeError("iterate() takes arguments only for a function")
            objects: dict[str, Any] = {}
            name = expression_text(source, self, objects)
            call.fields["expressions"] = [name]
            call.source = self._objects_source(objects, [source])

        item = f"an item of {name}"

        async def decode(frames: list[memoryview], count: int) -> tuple[Any, ...]:
            return await trust.open_values(frames, [item] * count)

        items = Iteration(connection, call, decode, shown(name))
        items.owner, items.source = self, source
        return items

    @overload
    async def call(
        self,
        function: Callable[..., Coroutine[Any, Any, T]],
        /,
        *args: Any,
        keep: Literal[False] | None = None,
        by_value: Sequence[ModuleType] = (),
        namespace: bool = False,
        on_output: Callable[[Message], object] | None = None,
        timeout: float | None = None,
        on_timeout: OnTimeout = "leave",
        **kwargs: Any,
    ) -> T: ...

    @overload
    async def call(
        self,
        function: Callable[..., T],
        /,
        *args: Any,
        keep: Literal[False] | None = None,
        by_value: Sequence[ModuleType] = (),
        namespace: bool = False,
        on_output: Callable[[Message], object] | None = None,
        timeout: float | None = None,
        on_timeout: OnTimeout = "leave",
        **kwargs: Any,
    ) -> T: ...

    @overload
    async def call(
        self,
        function: Callable[..., object],
        /,
        *args: Any,
        keep: str | Literal[True],
        by_value: Sequence[ModuleType] = (),
        namespace: bool = False,
        on_output: Callable[[Message], object] | None = None,
        timeout: float | None = None,
        on_timeout: OnTimeout = "leave",
        **kwargs: Any,
    ) -> Ref: ...

    @takes_options()
    async def call(
        self,
        function: Callable[..., Any],
        /,
        *args: Any,
        keep: str | bool | None = None,
        by_value: Sequence[ModuleType] = (),
        namespace: bool = False,
        on_output: Callable[[Message], object] | None = None,
        timeout: float | None = None,
        on_timeout: OnTimeout = "leave",
        **kwargs: Any,
    ) -> Any:
        r"""Send a function to the kernel, run it there, and return its value.

        An async function runs as a task on the kernel's event loop, beside cells that await and
        between all others; its turn ends when it has started. Cancelling the call, its deadline
        and closing the bridge cancel that task. ``interrupt`` reaches it only while its own code
        runs, and ends it alone.

        Args:
            function: any callable that can be pickled.
            args, kwargs: its arguments. A ``Ref``, at any depth, stands for the kernel's object.
                If the function has a parameter with the name of an option below, bind its value
                with ``functools.partial``. The names of options never go into a ``**kwargs`` of
                the function.
            keep: leave the value in the kernel, and return a ``Ref`` to it: under this name; or,
                if it is True, under none. Such an object lives until the ``Ref`` and those made
                from it are dropped; see ``Ref``.
            by_value: your own modules to send along, as in ``push``.
            namespace: look the function's global names up in the kernel's namespace, and have its
                ``global`` statements bind there. Its closure and its default arguments keep their
                values from here. A global name that only this program has is a ``NameError`` in
                the kernel.
            on_output: called with the message of each output of the function as it arrives, and
                with messages that clear or update earlier outputs; with no other output of the
                kernel. What it raises is raised from ``call`` when the function is done. In a
                loopback, the function's own thread alone has outputs. ipykernel takes what another
                thread, a process or ``os.write`` prints beside an async function for the newest
                cell's or function's; ``asyncio.to_thread`` prints for its own function.
            timeout: seconds. After a timeout or a cancel ``on_output`` is not called any more.
            on_timeout: what happens to a plain function after a timeout or a cancel: ``"leave"``
                lets it go on in the kernel, ``"interrupt"`` interrupts it, or keeps it from
                beginning, and interrupts nothing else.

        Raises:
            RemoteError: the function raised; ``__cause__`` is what it raised.
            EncodeError, IncompatiblePython, MissingInKernel: as in ``push``; it did not run.
            ValueError: a ref belongs to another kernel; it did not run.
            TypeError: an option that is given is a parameter of the function, too; or
                ``namespace=True``, and the function is not a plain Python function.
            NotSupported: ``on_timeout="interrupt"``, an async function, or ``on_output`` for one,
                and a kernel that cannot do this.

        Example::

            >>> rows = await bridge.call(range, 3, keep="rows")
            >>> await bridge.call(sum, rows)
            3
            >>> ordered = await bridge.call(sorted, rows, reverse=True, keep=True)
            >>> await ordered[0].pull()
            2
            >>> await bridge.call(lambda: len(rows), namespace=True)
            3
            >>> await bridge.call(print, "at work", end="", on_output=print)
            <stream at work>
            >>> await bridge.call(asyncio.sleep, 0.01, "slept")
            'slept'
        """
        return await self._call(
            function,
            args,
            kwargs,
            keep=keep,
            by_value=by_value,
            namespace=namespace,
            on_output=on_output,
            timeout=timeout,
            on_timeout=on_timeout,
        )

    async def _call(
        self, *work: Any, timeout: float | None, on_timeout: OnTimeout, **options: Any
    ) -> Any:
        """Do what ``call`` does; for a fleet, with a ``source`` that its kernels share."""
        interrupts = wants_interrupt(on_timeout)
        made = self._work(*work, interrupts=interrupts, timeout=timeout, **options)
        async with Deadline(timeout, "call", self._transport, made.call):
            return await made.do()

    @takes_options()
    def submit(
        self,
        function: Callable[..., Any],
        /,
        *args: Any,
        keep: str | bool | None = None,
        by_value: Sequence[ModuleType] = (),
        namespace: bool = False,
        on_output: Callable[[Message], object] | None = None,
        **kwargs: Any,
    ) -> RemoteTask[Any]:
        """Send a function to the kernel, and return at once with a handle on its work.

        The turn is taken now, as by ``call``: operations that are called later take effect after a
        plain function has run, and after an async one has started. The function and its arguments
        are pickled in that turn, which may be later. What is changed meanwhile crosses as it is
        then; give a copy of what you go on to change.

        Args:
            function, args, kwargs, keep, by_value, namespace: as in ``call``.
            on_output: as in ``call``; the task is done when the last output has arrived. A
                ``SyncBridge`` calls it in the thread that serves the bridge, so it must not wait
                for the bridge.

        Returns:
            A ``RemoteTask``. Awaiting it returns or raises what ``call`` does.

        Example::

            >>> task = bridge.submit(sum, [1, 2])
            >>> await task
            3
        """
        work = self._work(
            function,
            args,
            kwargs,
            keep=keep,
            by_value=by_value,
            namespace=namespace,
            on_output=on_output,
        )
        return self._task(work)

    def _task(self, work: FunctionWork) -> RemoteTask[Any]:
        work.call.method = "submit"
        return RemoteTask(self._connection, work.call, work.do_in, work.name)

    def _work(self, *work: Any, **options: Any) -> FunctionWork:
        return FunctionWork(
            self._connection,
            *work,
            make_ref=lambda name, objects: Ref(self, name, objects),
            stand_ins=self._stand_ins,
            **options,
        )

    def callback(
        self,
        function: Callable[..., object],
        maxsize: int | None = None,
        when_full: WhenFull = "drop_oldest",
    ) -> Callback:
        """Return a callable that code in the kernel calls, and that runs a function here.

        Push it, pass it to ``call``, at any depth, or keep it in the kernel. Calling it there
        returns None at once, in the middle of a cell and in any thread. The arguments cross as any
        objects do, as they are at the call. ``function`` runs here, in the event loop of the
        bridge, in the order of the calls, one call at a time. One that raises is logged and counted
        in ``failed``, and the others go on. ``KeyboardInterrupt`` and ``SystemExit`` also end the
        loop of an asyncio program, as they do anywhere in it. When the bridge has closed, a call in
        the kernel does nothing.

        A method of an object of this program, pushed as it is, works on a copy of the object:
        ``bridge.callback(bar.update)`` updates the bar that is here.

        Args:
            function: plain or async. It may use the bridge, and close it.
            maxsize: how many calls may wait for ``function``; None for any number. Here, at most
                1,000 wait; the memory of those that wait in the kernel is the kernel's. With
                ``"drop_oldest"``, as many may wait here and as many in the kernel.
            when_full: ``"drop_oldest"``: the calls that waited longest are dropped, here and in the
                kernel, and counted in ``dropped``. ``"wait"``: the call in the kernel returns when
                there is room. What ``function`` then asks of this bridge needs ``now=True``: the
                cell may wait for ``function``. Without it, and in a wait for a task, an item or a
                watch of this bridge, it is ``NotSupported``. If the client vanishes, the call
                raises ``TimeoutError`` after ten minutes; if the kernel ends, ``RuntimeError``.

        Raises:
            TypeError: ``function`` cannot be called.
            ValueError: ``maxsize`` is no positive number; ``when_full`` is another word, or is
                ``"wait"`` without ``maxsize``.
            NotSupported: the kernel has no thread that sends while a cell runs: it is not
                ipykernel 6 or later.

        Example::

            >>> done = []
            >>> report = bridge.callback(done.append)
            >>> def work(report):
            ...     for step in range(3):
            ...         report(step)
            >>> await bridge.call(work, report)
            >>> while len(done) < 3:  # calls arrive soon
            ...     await asyncio.sleep(0.01)
            >>> done
            [0, 1, 2]
        """
        self._connection.check()
        if not callable(function):
            raise TypeError(f"callback() takes a function, not {type(function).__name__}")
        if maxsize is not None and (type(maxsize) is not int or maxsize < 1):
            raise ValueError(f"maxsize must be a positive number or None, not {maxsize!r}")
        if when_full not in ("drop_oldest", "wait"):
            raise ValueError(f"when_full must be 'drop_oldest' or 'wait', not {when_full!r}")
        if when_full == "wait" and maxsize is None:
            raise ValueError("when_full='wait' needs a maxsize, as in maxsize=100")
        self._connection.require_control("callback()")
        return Callback(self._connection, function, maxsize, when_full == "wait")
