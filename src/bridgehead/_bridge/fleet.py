"""The ``Fleet``: many kernels as one object.

Rule: operations on several bridges at once, and nothing that concerns a single one. An object is
pickled once and is in memory once for all kernels. Each kernel has its own outcome; the failure of
one does not stop the others. ``fleet_work`` has the operations that divide work, ``fleet_base``
the sequence of bridges, and how the outcomes of all become one.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from types import ModuleType
from typing import Any, Literal, TypeVar, overload

from bridgehead._bridge.arguments import check_now, checked_objects, checked_size, takes_options
from bridgehead._bridge.bridge import Bridge
from bridgehead._bridge.fleet_base import REFUSED
from bridgehead._bridge.fleet_watch import FleetWatch
from bridgehead._bridge.fleet_work import FleetWork
from bridgehead._bridge.progress import Report, reporting
from bridgehead._connection.running_cell import InputHandler
from bridgehead._connection.trust import TrustName, check_trust
from bridgehead._protocol import payload as _payload
from bridgehead._protocol.ref import Ref
from bridgehead._protocol.results import Names, Result, Transfer
from bridgehead._transports.messages import Message
from bridgehead._transports.tasks import in_thread

T = TypeVar("T")


class Fleet(FleetWork):
    """A sequence of bridges that operate together.

    Every operation runs in all kernels at once and returns a list with one result for each, in
    order. It takes the options of the same operation of ``Bridge``, and these two:

    - ``return_exceptions=True`` puts what a kernel raised into the list, in place of its result.
      Without it the operation waits for all kernels and raises a ``FleetError``, an
      ``ExceptionGroup`` that has the ``results`` of the others, too.
    - ``fail_fast=True`` raises that at the first error, and cancels the operation in the kernels
      that are not done; ``results`` has what was there by then.

    A wrong argument is a ``ValueError`` or a ``TypeError``, as for a ``Bridge``. A callable for
    ``progress=`` gets the bytes of all kernels together; one for ``on_output=`` gets the message
    and the index of the kernel. A ``Ref`` belongs to one kernel, and is a ``ValueError`` here.
    Cancelling an operation cancels it in all kernels.

    An index gives a ``Bridge``, and a slice a ``Fleet``. Leaving ``async with`` closes the bridges
    that ``launch`` or ``over`` opened; bridges that the caller passed in stay open, and so do those
    of a slice.

        >>> fleet = Fleet([bridge, other])
        >>> len(await fleet.push(x=1))
        2
        >>> await fleet.pull("x + 1")
        [2, 2]
        >>> await fleet[1].pull("x")
        1
    """

    # ------------------------------------------------------------ objects

    @overload
    async def push(
        self,
        mapping: Mapping[str, Any] | None = None,
        /,
        *,
        return_exceptions: Literal[False] = False,
        fail_fast: bool = False,
        by_value: Sequence[ModuleType] = (),
        timeout: float | None = None,
        progress: bool | Report = False,
        now: bool = False,
        max_bytes: int | None = None,
        trust: TrustName = "pickle",
        **values: Any,
    ) -> list[Transfer]: ...

    @overload
    async def push(
        self,
        mapping: Mapping[str, Any] | None = None,
        /,
        *,
        return_exceptions: bool,
        fail_fast: bool = False,
        by_value: Sequence[ModuleType] = (),
        timeout: float | None = None,
        progress: bool | Report = False,
        now: bool = False,
        max_bytes: int | None = None,
        trust: TrustName = "pickle",
        **values: Any,
    ) -> list[Transfer | Exception]: ...

    async def push(
        self,
        mapping: Mapping[str, Any] | None = None,
        /,
        *,
        return_exceptions: bool = False,
        fail_fast: bool = False,
        by_value: Sequence[ModuleType] = (),
        timeout: float | None = None,
        progress: bool | Report = False,
        now: bool = False,
        max_bytes: int | None = None,
        trust: TrustName = "pickle",
        **values: Any,
    ) -> Any:
        """Bind the same objects to names in every kernel; in each all of them, or none.

        The objects are pickled once. Kernels on the direct lane map the same memory, and each
        kernel sees only its own changes. Engines of one ipyparallel client get large objects by
        the client's broadcast: one copy leaves this process. ``Bridge.push`` has the details.

        Example::

            >>> [transfer.lane for transfer in await fleet.push(x=1)]
            ['buffers', 'buffers']
        """
        self._check_policy(return_exceptions, fail_fast)
        check_trust(trust)
        check_now(now)
        objects, data = checked_objects(mapping, values), trust == "data"
        content = _payload.PayloadSource(
            objects, objects, by_value, REFUSED, checked_size(max_bytes), data
        )
        with reporting(progress, "push") as report, self._turns(now=now) as turns:
            payload = await in_thread(content.pack, "none")
            together = self._together(report)
            async with self._fan_out.sharing(payload, self) as share:

                async def push(bridge: Bridge, index: int) -> Transfer:
                    one, delivery = share(bridge)
                    return await bridge._bind(
                        list(objects),
                        one,
                        timeout,
                        together(index) if progress else None,
                        now=now,
                        data=data,
                        delivery=delivery,
                        turn=turns[index],
                    )

                return await self._all(push, return_exceptions, fail_fast)

    async def pull(
        self,
        /,
        *expressions: str | Ref,
        return_exceptions: bool = False,
        fail_fast: bool = False,
        progress: bool | Report = False,
        **options: Any,
    ) -> list[Any]:
        """Return what ``Bridge.pull`` returns, for every kernel in order.

        ``options`` are those of ``Bridge.pull``.

        Example::

            >>> await fleet.pull("6 * 7")
            [42, 42]
            >>> await fleet[1].push(x=1)
            <Transfer x: ...>
            >>> await fleet.pull("x", return_exceptions=True)
            [NameNotFound("'x' is not defined in the kernel"), 1]
        """
        options |= {"return_exceptions": return_exceptions, "fail_fast": fail_fast}
        return await self._pulled(expressions, progress, options)

    async def names(self, /, pattern: str = "*", **options: Any) -> list[Names]:
        """List the user's names in every kernel; see ``Bridge.names``, also for the ``options``.

        Example::

            >>> await fleet.push(x=1)
            [<Transfer x: ...>, <Transfer x: ...>]
            >>> await fleet.names()
            [<Names x>, <Names x>]
        """
        return await self._each("names", (pattern,), options)

    @overload
    async def delete(
        self, /, *names: str, return_exceptions: Literal[False] = False, **options: Any
    ) -> None: ...

    @overload
    async def delete(
        self, /, *names: str, return_exceptions: bool, **options: Any
    ) -> list[Exception | None]: ...

    async def delete(
        self, /, *names: str, return_exceptions: bool = False, **options: Any
    ) -> list[Exception | None] | None:
        """Remove names from every kernel: in each all of them, or none; see ``Bridge.delete``.

        With ``return_exceptions=True`` it returns for each kernel what it raised, or None.

        Example::

            >>> await fleet[1].push(x=1)
            <Transfer x: ...>
            >>> await fleet.delete("x", return_exceptions=True)
            [NameNotFound(...), None]
            >>> await fleet[1].exists("x")
            False
        """
        return await self._errors_of("delete", names, return_exceptions, options)

    async def exists(self, /, name: str, **options: Any) -> list[bool]:
        """Return for every kernel whether its namespace has a name; see ``Bridge.exists``.

        Example::

            >>> await fleet[1].push(x=1)
            <Transfer x: ...>
            >>> await fleet.exists("x")
            [False, True]
        """
        return await self._each("exists", (name,), options)

    def watch(self, /, *expressions: str | Ref, **options: Any) -> FleetWatch[Any]:
        """Follow values in every kernel: ``async with fleet.watch("loss") as losses``.

        It gives each value with the index of its kernel, as the kernels send them.
        ``options`` are those of ``Bridge.watch``, and so are the errors. A kernel of the fleet that
        is lost already is a ``KernelDied``, or another ``OutcomeUnknown``.

        Example::

            >>> await fleet.push(x=1)
            [<Transfer x: ...>, <Transfer x: ...>]
            >>> async with fleet.watch("x") as watch:
            ...     sorted([await anext(watch), await anext(watch)])
            ...     await fleet[1].run("x = 5")
            ...     await anext(watch)
            [(0, 1), (1, 1)]
            <Result [1] no value>
            (1, 5)
        """
        self._refuse_refs(*expressions)
        return FleetWatch([bridge.watch(*expressions, **options) for bridge in self], self._note)

    # ------------------------------------------------------------ work

    @overload
    async def run(
        self,
        /,
        code: str,
        *,
        return_exceptions: Literal[False] = False,
        fail_fast: bool = False,
        on_output: Callable[[Message, int], object] | None = None,
        on_input: InputHandler | None = None,
        **options: Any,
    ) -> list[Result]: ...

    @overload
    async def run(
        self,
        /,
        code: str,
        *,
        return_exceptions: bool,
        fail_fast: bool = False,
        on_output: Callable[[Message, int], object] | None = None,
        on_input: InputHandler | None = None,
        **options: Any,
    ) -> list[Result | Exception]: ...

    async def run(
        self,
        /,
        code: str,
        *,
        return_exceptions: bool = False,
        fail_fast: bool = False,
        on_output: Callable[[Message, int], object] | None = None,
        on_input: InputHandler | None = None,
        **options: Any,
    ) -> Any:
        """Run a cell in every kernel; see ``Bridge.run``, also for the ``options``.

        ``on_output`` is called with the message and the index of the kernel, ``on_input`` as by
        ``Bridge.run``.

        Example::

            >>> await fleet.run("6 * 7")
            [<Result [1] 42>, <Result [1] 42>]
            >>> outputs = []
            >>> def note(message, index): outputs.append((index, message.text))
            >>> results = await fleet.run("print('at work', end='')", on_output=note)
            >>> sorted(outputs)
            [(0, 'at work'), (1, 'at work')]
        """
        self._check_policy(return_exceptions, fail_fast)
        options |= {"on_output": on_output, "on_input": on_input}
        options = self._checked_options(Bridge.run, options)
        self._refuse_refs(*options["pull"])
        options["stand_ins"] = self._stand_ins
        raised: list[Exception] = []
        with self._turns() as turns:

            async def run(bridge: Bridge, index: int) -> Result:
                cell = bridge._cell(code, **self._given(options, index, raised))
                with turns[index] as turn:
                    return await cell.do_in(turn)

            return await self._all(run, return_exceptions, fail_fast, raised=raised)

    @overload
    async def call(
        self,
        function: Callable[..., Coroutine[Any, Any, T]],
        /,
        *args: Any,
        return_exceptions: Literal[False] = False,
        fail_fast: bool = False,
        keep: Literal[False] | None = None,
        on_output: Callable[[Message, int], object] | None = None,
        **kwargs: Any,
    ) -> list[T]: ...

    @overload
    async def call(
        self,
        function: Callable[..., T],
        /,
        *args: Any,
        return_exceptions: Literal[False] = False,
        fail_fast: bool = False,
        keep: Literal[False] | None = None,
        on_output: Callable[[Message, int], object] | None = None,
        **kwargs: Any,
    ) -> list[T]: ...

    @overload
    async def call(
        self,
        function: Callable[..., object],
        /,
        *args: Any,
        keep: str | Literal[True],
        return_exceptions: Literal[False] = False,
        **kwargs: Any,
    ) -> list[Ref]: ...

    @overload
    async def call(
        self, function: Callable[..., object], /, *args: Any, **kwargs: Any
    ) -> list[Any]: ...

    @takes_options(Bridge.call)
    async def call(
        self,
        function: Callable[..., Any],
        /,
        *args: Any,
        return_exceptions: bool = False,
        fail_fast: bool = False,
        on_output: Callable[[Message, int], object] | None = None,
        **kwargs: Any,
    ) -> list[Any]:
        """Have every kernel call a function with the same arguments; see ``Bridge.call``.

        ``kwargs`` are the options of ``Bridge.call`` and keyword arguments of the function. The
        function and its arguments are pickled once. ``keep=`` gives a ``Ref`` for each kernel.
        ``on_output`` is called with the message and the index of the kernel.

        Example::

            >>> await fleet.call(len, "abc")
            [3, 3]
            >>> rows = await fleet.call(range, 3, keep=True)
            >>> await fleet[0].call(sum, rows[0])
            3
        """
        self._check_policy(return_exceptions, fail_fast)
        options = self._options(Bridge.call, kwargs) | {"on_output": on_output}
        source = self._call_source(function, args, kwargs, options)

        raised: list[Exception] = []

        async def call(bridge: Bridge, index: int) -> Any:
            given = self._given(options, index, raised)
            return await bridge._call(function, args, kwargs, source=source, **given)

        return await self._all(call, return_exceptions, fail_fast, source, raised)

    # ------------------------------------------------------------ life

    @overload
    async def interrupt(
        self, /, *, return_exceptions: Literal[False] = False, **options: Any
    ) -> None: ...

    @overload
    async def interrupt(
        self, /, *, return_exceptions: bool, **options: Any
    ) -> list[Exception | None]: ...

    async def interrupt(
        self, /, *, return_exceptions: bool = False, **options: Any
    ) -> list[Exception | None] | None:
        """Raise ``KeyboardInterrupt`` in what every kernel runs; see ``Bridge.interrupt``.

        With ``return_exceptions=True`` it returns for each kernel what it raised, or None.

        Example::

            >>> await fleet.interrupt()
        """
        return await self._errors_of("interrupt", (), return_exceptions, options)

    @overload
    async def restart(
        self, /, *, return_exceptions: Literal[False] = False, **options: Any
    ) -> None: ...

    @overload
    async def restart(
        self, /, *, return_exceptions: bool, **options: Any
    ) -> list[Exception | None]: ...

    async def restart(
        self, /, *, return_exceptions: bool = False, **options: Any
    ) -> list[Exception | None] | None:
        """Replace the process of every kernel; see ``Bridge.restart``.

        With ``return_exceptions=True`` it returns for each kernel what it raised, or None.

        Example::

            >>> await fleet.restart()
            >>> await fleet.exists("x")
            [False, False]
        """
        return await self._errors_of("restart", (), return_exceptions, options)
