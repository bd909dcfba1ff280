"""The same bridge, blocking: for scripts, threads and notebook cells.

Rule: no logic of its own. Every call runs on an event loop in a thread that belongs to the
bridge, so it works with no event loop running and inside one.
"""

from __future__ import annotations

import os
import ssl as tls
import threading
import weakref
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterator,
    Mapping,
    MutableMapping,
    Sequence,
)
from concurrent.futures import Future
from contextlib import contextmanager
from types import ModuleType
from typing import Any, TypeVar, overload

from bridgehead._bridge.bridge import Bridge
from bridgehead._bridge.loop_thread import LoopThread, Meanwhile
from bridgehead._bridge.opening import Opening
from bridgehead._bridge.progress import EVERY, Report, drawing
from bridgehead._connection.trust import TrustName
from bridgehead._connection.watch import Watch
from bridgehead._errors import BridgeClosed
from bridgehead._kernels.security import Insecurity
from bridgehead._lanes.handshake import LaneName
from bridgehead._protocol.ref import Ref
from bridgehead._protocol.results import Info, Names, Result, Transfer, of_bridge
from bridgehead._transports.messages import Message, Messages

T = TypeVar("T")


class SyncBridge(MutableMapping[str, Any]):
    """A ``Bridge`` whose operations block, and a mapping of the kernel's names.

    ``with SyncBridge.launch() as kernel: kernel["x"] = 1``. The mapping's names are those that
    ``names()`` lists; getting evaluates any expression, and a name that isn't there is a
    ``KeyError``. May be used from any thread, also while an event loop runs in it. What each
    operation takes, returns and raises is told at ``Bridge``; ``KeyboardInterrupt`` abandons the
    operation here, not what runs over there (see ``interrupt``).

    >>> kernel["rows"] = [1, 2]
    >>> kernel["sum(rows)"], "rows" in kernel, list(kernel)
    (3, True, ['rows'])
    """

    # Without a dict: k.x = 1 must not look as if something had crossed.
    __slots__ = ("__weakref__", "_bridge", "_finalizer", "_thread")

    def __init__(self, make: Callable[[], Opening[Bridge]]) -> None:
        self._finalizer: weakref.finalize[..., SyncBridge] | None = None
        self._thread = LoopThread()
        try:
            self._bridge: Bridge = self._wait(lambda: _await(make()))
        except BaseException:
            self._thread.stop()
            raise
        self._finalizer = weakref.finalize(self, _leave, self._thread, self._bridge, os.getpid())

    # ------------------------------------------------------------ opening

    @classmethod
    def launch(
        cls,
        kernel_name: str = "python3",
        *,
        connection_file: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        encryption: bool = False,
        insecure: Insecurity | Collection[Insecurity] = (),
        lane: LaneName = "auto",
        pool: float = 0.5,
        trust: TrustName | None = None,
        allow: Collection[type | str] = (),
        timeout: float = 60.0,
    ) -> SyncBridge:
        """See ``Bridge.launch``.

        >>> with SyncBridge.launch() as kernel:
        ...     print(kernel.pull("6 * 7"))
        42
        """
        return cls(
            lambda: Bridge.launch(
                kernel_name,
                connection_file=connection_file,
                env=env,
                cwd=cwd,
                encryption=encryption,
                insecure=insecure,
                lane=lane,
                pool=pool,
                trust=trust,
                allow=allow,
                timeout=timeout,
            )
        )

    @classmethod
    def attach(
        cls,
        existing: str | os.PathLike[str] | None = None,
        *,
        insecure: Insecurity | Collection[Insecurity] = (),
        lane: LaneName = "auto",
        pool: float = 0.5,
        trust: TrustName | None = None,
        allow: Collection[type | str] = (),
        timeout: float = 60.0,
    ) -> SyncBridge:
        """See ``Bridge.attach``.

        >>> with SyncBridge.attach(connection_file) as kernel:
        ...     kernel["x"] = 1
        """
        return cls(
            lambda: Bridge.attach(
                existing,
                insecure=insecure,
                lane=lane,
                pool=pool,
                trust=trust,
                allow=allow,
                timeout=timeout,
            )
        )

    @classmethod
    def connect(
        cls,
        url: str | None = None,
        token: str | None = None,
        *,
        kernel_id: str | None = None,
        kernel_name: str | None = None,
        ssl: tls.SSLContext | str | os.PathLike[str] | None = None,
        insecure: Insecurity | Collection[Insecurity] = (),
        lane: LaneName = "auto",
        trust: TrustName | None = None,
        allow: Collection[type | str] = (),
        timeout: float = 60.0,
    ) -> SyncBridge:
        """See ``Bridge.connect``.

        >>> with SyncBridge.connect(url, token) as kernel:
        ...     print(kernel.info.transport, kernel.info.trust)
        websocket data
        """
        return cls(
            lambda: Bridge.connect(
                url,
                token,
                kernel_id=kernel_id,
                kernel_name=kernel_name,
                ssl=ssl,
                insecure=insecure,
                lane=lane,
                trust=trust,
                allow=allow,
                timeout=timeout,
            )
        )

    @classmethod
    def over(
        cls,
        lender: Any,
        *,
        insecure: Insecurity | Collection[Insecurity] = (),
        lane: LaneName = "auto",
        pool: float = 0.5,
        trust: TrustName | None = None,
        allow: Collection[type | str] = (),
        timeout: float = 60.0,
    ) -> SyncBridge:
        """See ``Bridge.over``.

        >>> with SyncBridge.over(manager) as kernel:
        ...     kernel["x"] = 1
        """
        return cls(
            lambda: Bridge.over(
                lender,
                insecure=insecure,
                lane=lane,
                pool=pool,
                trust=trust,
                allow=allow,
                timeout=timeout,
            )
        )

    @classmethod
    def loopback(
        cls,
        *,
        lane: LaneName = "auto",
        trust: TrustName | None = None,
        allow: Collection[type | str] = (),
    ) -> SyncBridge:
        """See ``Bridge.loopback``.

        >>> with SyncBridge.loopback() as kernel:
        ...     kernel["x"] = 1
        ...     print(kernel["x"])
        1
        """
        return cls(lambda: Bridge.loopback(lane=lane, trust=trust, allow=allow))

    def close(self) -> None:
        """See ``Bridge.aclose``; also done when the bridge is forgotten or Python exits.

        >>> kernel.close()
        >>> kernel.state
        'closed'
        """
        if self._finalizer is not None:
            self._finalizer()

    def __enter__(self) -> SyncBridge:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # ------------------------------------------------------------ operations

    def push(
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
        """See ``Bridge.push``; ``progress`` is called in the thread that called this.

        What it raises ends the wait; all may have been bound by then.

        >>> kernel.push(x=1).names
        ('x',)
        """
        with _reporting(progress, "push") as (report, here):
            return self._wait(
                lambda: self._bridge.push(
                    mapping,
                    by_value=by_value,
                    timeout=timeout,
                    progress=report,
                    now=now,
                    max_bytes=max_bytes,
                    trust=trust,
                    **values,
                ),
                here,
            )

    def pull(
        self,
        *expressions: str | Ref,
        timeout: float | None = None,
        progress: bool | Report = False,
        now: bool = False,
        max_bytes: int | None = None,
        trust: TrustName | None = None,
    ) -> Any:
        """See ``Bridge.pull``; ``progress`` is called in the thread that called this.

        >>> kernel.pull("6 * 7")
        42
        """
        with _reporting(progress, "pull") as (report, here):
            return self._wait(
                lambda: self._bridge.pull(
                    *expressions,
                    timeout=timeout,
                    progress=report,
                    now=now,
                    max_bytes=max_bytes,
                    trust=trust,
                ),
                here,
            )

    def handoff(
        self,
        *names: str,
        to: SyncBridge,
        timeout: float | None = None,
        progress: bool | Report = False,
        max_bytes: int | None = None,
        trust: TrustName | None = None,
    ) -> Transfer:
        """See ``Bridge.handoff``; ``to`` is a ``SyncBridge`` too.

        ``progress`` is called in the thread that called this; what it raises ends the wait, and all
        may have been bound by then. The other kernel's place in its queue is taken when this one
        has answered.

        >>> kernel["x"] = 1
        >>> kernel.handoff("x", to=far).names
        ('x',)
        >>> far["x"]
        1
        """
        if not isinstance(to, SyncBridge):
            raise TypeError(f"to= takes a SyncBridge, not {type(to).__name__}")
        with _reporting(progress, "handoff") as (report, here):
            asked = self._bridge._to_hand_off(names, to._bridge, timeout, max_bytes, trust, report)
            to._wait(asked.reach, here)
            self._wait(asked.give, here)
            return to._wait(asked.take, here)

    def watch(self, expression: str | Ref, *, max_bytes: int | None = None) -> Iterator[Any]:
        """See ``Bridge.watch``; the iterator blocks until the next value.

        >>> next(kernel.watch("6 * 7"))
        42
        """

        async def follow() -> Watch:
            return self._bridge.watch(expression, max_bytes=max_bytes)

        return _Blocking(self, self._wait(follow))

    @overload
    def call(
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
    def call(
        self,
        function: Callable[..., object],
        /,
        *args: Any,
        keep: str,
        by_value: Sequence[ModuleType] = (),
        timeout: float | None = None,
        **kwargs: Any,
    ) -> Ref: ...

    def call(
        self,
        function: Callable[..., Any],
        /,
        *args: Any,
        keep: str | None = None,
        by_value: Sequence[ModuleType] = (),
        timeout: float | None = None,
        **kwargs: Any,
    ) -> Any:
        """See ``Bridge.call``.

        >>> kernel.call(len, "abc")
        3
        """
        value = self._wait(
            lambda: self._bridge.call(
                function, *args, keep=keep, by_value=by_value, timeout=timeout, **kwargs
            )
        )
        return Ref(self, value._expression) if type(value) is Ref else value

    def ref(self, expression: str) -> Ref:
        """See ``Bridge.ref``; its ``pull()`` returns the value.

        >>> kernel.ref("'far away'").upper().pull()
        'FAR AWAY'
        """
        return Ref(self, self._bridge.ref(expression)._expression)

    def names(self, pattern: str = "*", *, timeout: float | None = None) -> Names:
        """See ``Bridge.names``.

        >>> kernel.push(rows=[1, 2], x=1).names
        ('rows', 'x')
        >>> [name.name for name in kernel.names("r*")]
        ['rows']
        """
        return self._wait(lambda: self._bridge.names(pattern, timeout=timeout))

    def delete(self, *names: str, timeout: float | None = None) -> None:
        """See ``Bridge.delete``.

        >>> kernel["x"] = 1
        >>> kernel.delete("x")
        """
        return self._wait(lambda: self._bridge.delete(*names, timeout=timeout))

    def exists(self, name: str, *, timeout: float | None = None) -> bool:
        """See ``Bridge.exists``.

        >>> kernel.exists("x")
        False
        """
        return self._wait(lambda: self._bridge.exists(name, timeout=timeout))

    def run(
        self,
        code: str,
        *,
        on_output: Callable[[Message], object] | None = None,
        timeout: float | None = None,
    ) -> Result:
        """See ``Bridge.run``; ``on_output`` is called in the thread that called this.

        So what it prints or displays stands in the notebook's cell that is running; what it
        raises ends the wait at once, and the cell goes on.

        >>> kernel.run("print(6 * 7)").stdout.split()
        ['42']
        """
        if on_output is None:
            return self._wait(lambda: self._bridge.run(code, timeout=timeout))
        here = Meanwhile()
        told = here.calling(on_output)
        return self._wait(lambda: self._bridge.run(code, on_output=told, timeout=timeout), here)

    def messages(self) -> Iterator[Message]:
        """See ``Bridge.messages``; the iterator blocks until the next one.

        >>> messages = kernel.messages()
        >>> kernel.run("x = 1")
        <Result [1] no value>
        >>> next(messages)
        <status busy>
        """

        async def listen() -> Messages:
            return self._bridge.messages()

        return _Blocking(self, self._wait(listen))

    def interrupt(self, *, timeout: float | None = 10.0) -> None:
        """See ``Bridge.interrupt``.

        >>> kernel.interrupt()  # nothing is running
        """
        return self._wait(lambda: self._bridge.interrupt(timeout=timeout))

    def restart(self, *, timeout: float = 60.0) -> None:
        """See ``Bridge.restart``.

        >>> kernel["x"] = 1
        >>> kernel.restart()
        >>> "x" in kernel
        False
        """
        return self._wait(lambda: self._bridge.restart(timeout=timeout))

    @property
    def state(self) -> str:
        """See ``Bridge.state``.

        >>> kernel.state
        'idle'
        """
        return self._bridge.state

    @property
    def info(self) -> Info:
        """See ``Bridge.info``.

        >>> kernel.info.transport
        'loopback'
        """
        return self._bridge.info

    def __reduce__(self) -> Any:
        raise TypeError("a bridge stays in its process; attach another one over there")

    def __repr__(self) -> str:
        return f"<Sync{repr(self._bridge)[1:]}"

    def _repr_html_(self) -> str:
        return of_bridge("SyncBridge", self.state, self.info)

    # ------------------------------------------------------------ a mapping of names

    def __getitem__(self, name: str) -> Any:
        return self.pull(name)

    def __setitem__(self, name: str, value: Any) -> None:
        self.push({name: value})

    def __delitem__(self, name: str) -> None:
        self.delete(name)

    def __iter__(self) -> Iterator[str]:
        return iter([told.name for told in self.names()])

    def __len__(self) -> int:
        return len(self.names())

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.isidentifier() and self.exists(name)

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        # A bridge is itself, not the dict that it shows.
        return True if self is other else NotImplemented

    # ------------------------------------------------------------ inside

    def _start(self, call: Callable[[], Awaitable[T]]) -> Future[T]:
        """Begin a call; for one that waits in a way of its own."""
        self._check()
        return self._thread.start(call)

    def _wait(self, call: Callable[[], Awaitable[T]], here: Meanwhile | None = None) -> T:
        self._check()
        return self._thread.wait(call, here)

    def _check(self) -> None:
        if self._finalizer is not None and not self._finalizer.alive:
            raise BridgeClosed("this bridge was closed")


@contextmanager
def _reporting(
    progress: bool | Report, operation: str
) -> Iterator[tuple[Report, Meanwhile | None]]:
    """What a transfer reports to in the bridge's thread, and what this one does meanwhile."""
    with drawing(progress, operation) as (report, draw):
        if draw is not None:
            yield report, Meanwhile(draw, EVERY)
        elif progress is False:
            yield report, None
        else:
            here = Meanwhile()
            yield here.calling(report), here


class _Blocking(Iterator[T]):
    """An async iterator, blocking. No generator: one is at its end once anything was raised."""

    def __init__(self, bridge: SyncBridge, stream: AsyncIterator[T]) -> None:
        self._bridge, self._stream = bridge, stream

    def __next__(self) -> T:
        try:
            return self._bridge._wait(self._stream.__anext__)
        except (StopAsyncIteration, BridgeClosed):
            raise StopIteration from None

    def __repr__(self) -> str:
        return repr(self._stream)


async def _await(opening: Opening[Bridge]) -> Bridge:
    return await opening


def _leave(thread: LoopThread, bridge: Bridge, process: int) -> None:
    if os.getpid() != process:  # a forked child has neither the thread nor the kernel
        return
    if thread.is_current:
        # The garbage collector struck in the bridge's own thread, which can't wait for itself.
        threading.Thread(target=_leave, args=(thread, bridge, process)).start()
        return
    try:
        thread.wait(bridge.aclose)
    finally:
        thread.stop()
