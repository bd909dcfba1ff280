"""The same bridge, blocking: for scripts, threads and notebook cells.

Rule: no logic of its own. Every call runs on an event loop in a thread that belongs to the
bridge, through an anyio portal, so it works with no event loop running and inside one.
"""

from __future__ import annotations

import asyncio
import functools
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
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from bridgehead._bridge import Bridge
from bridgehead._errors import BridgeClosed
from bridgehead._handshake import LaneName
from bridgehead._kernels import Insecurity
from bridgehead._opening import Opening
from bridgehead._progress import Report, reporting
from bridgehead._ref import Ref
from bridgehead._results import Info, Name, Result, Transfer
from bridgehead._transports.messages import Message, Messages
from bridgehead._trust import TrustName
from bridgehead._watch import Watch

if TYPE_CHECKING:
    from anyio.from_thread import BlockingPortal

T = TypeVar("T")


class SyncBridge(MutableMapping[str, Any]):
    """A ``Bridge`` whose operations block, and a mapping of the kernel's names.

    ``with SyncBridge.launch() as kernel: kernel["x"] = 1``. The mapping's names are those that
    ``names()`` lists; getting evaluates any expression, and a name that isn't there is a
    ``KeyError``. May be used from any thread, also while an event loop runs in it. What each
    operation takes, returns and raises is told at ``Bridge``; ``KeyboardInterrupt`` abandons the
    operation here, not what runs over there (see ``interrupt``).
    """

    # Without a dict: k.x = 1 must not look as if something had crossed.
    __slots__ = ("__weakref__", "_bridge", "_finalizer", "_portal")

    def __init__(self, make: Callable[[], Opening[Bridge]]) -> None:
        from anyio.from_thread import BlockingPortal  # 8 ms, which only this face needs

        self._finalizer: weakref.finalize[..., SyncBridge] | None = None
        started: Future[BlockingPortal] = Future()
        serve = functools.partial(_serve, BlockingPortal, started)
        thread = threading.Thread(target=serve, name="bridgehead", daemon=True)
        thread.start()
        self._portal = started.result()
        try:
            self._bridge: Bridge = self._wait(lambda: _await(make()))
        except BaseException:
            _stop(self._portal, thread)
            raise
        self._finalizer = weakref.finalize(
            self, _leave, self._portal, thread, self._bridge, os.getpid()
        )

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
        """See ``Bridge.launch``."""
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
        """See ``Bridge.attach``."""
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
        """See ``Bridge.connect``."""
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
        """See ``Bridge.over``."""
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
        """See ``Bridge.loopback``."""
        return cls(lambda: Bridge.loopback(lane=lane, trust=trust, allow=allow))

    def close(self) -> None:
        """See ``Bridge.aclose``; also done when the bridge is forgotten or Python exits."""
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
        """See ``Bridge.push``; ``progress`` is called in the bridge's thread."""
        return self._wait(
            lambda: self._bridge.push(
                mapping,
                by_value=by_value,
                timeout=timeout,
                progress=progress,
                now=now,
                max_bytes=max_bytes,
                trust=trust,
                **values,
            )
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
        """See ``Bridge.pull``; ``progress`` is called in the bridge's thread."""
        return self._wait(
            lambda: self._bridge.pull(
                *expressions,
                timeout=timeout,
                progress=progress,
                now=now,
                max_bytes=max_bytes,
                trust=trust,
            )
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

        ``progress`` is called in either bridge's thread, and the other one gets its place in the
        queue when this kernel has answered.
        """
        if not isinstance(to, SyncBridge):
            raise TypeError(f"to= takes a SyncBridge, not {type(to).__name__}")
        with reporting(progress, "handoff") as report:
            asked = self._bridge._to_hand_off(names, to._bridge, timeout, max_bytes, trust, report)
            to._wait(asked.reach)
            self._wait(asked.give)
            return to._wait(asked.take)

    def watch(self, expression: str | Ref, *, max_bytes: int | None = None) -> Iterator[Any]:
        """See ``Bridge.watch``; the iterator blocks until the next value."""

        async def follow() -> Watch:
            return self._bridge.watch(expression, max_bytes=max_bytes)

        return _Blocking(self, self._wait(follow))

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
        """See ``Bridge.call``."""
        value = self._wait(
            lambda: self._bridge.call(
                function, *args, keep=keep, by_value=by_value, timeout=timeout, **kwargs
            )
        )
        return Ref(self, value._expression) if type(value) is Ref else value

    def ref(self, expression: str) -> Ref:
        """See ``Bridge.ref``; its ``pull()`` returns the value."""
        return Ref(self, self._bridge.ref(expression)._expression)

    def names(self, pattern: str = "*", *, timeout: float | None = None) -> list[Name]:
        """See ``Bridge.names``."""
        return self._wait(lambda: self._bridge.names(pattern, timeout=timeout))

    def delete(self, *names: str, timeout: float | None = None) -> None:
        """See ``Bridge.delete``."""
        return self._wait(lambda: self._bridge.delete(*names, timeout=timeout))

    def exists(self, name: str, *, timeout: float | None = None) -> bool:
        """See ``Bridge.exists``."""
        return self._wait(lambda: self._bridge.exists(name, timeout=timeout))

    def run(
        self,
        code: str,
        *,
        on_output: Callable[[Message], object] | None = None,
        timeout: float | None = None,
    ) -> Result:
        """See ``Bridge.run``; ``on_output`` is called in the bridge's thread."""
        return self._wait(lambda: self._bridge.run(code, on_output=on_output, timeout=timeout))

    def messages(self) -> Iterator[Message]:
        """See ``Bridge.messages``; the iterator blocks until the next one."""

        async def listen() -> Messages:
            return self._bridge.messages()

        return _Blocking(self, self._wait(listen))

    def interrupt(self, *, timeout: float | None = 10.0) -> None:
        """See ``Bridge.interrupt``."""
        return self._wait(lambda: self._bridge.interrupt(timeout=timeout))

    def restart(self, *, timeout: float = 60.0) -> None:
        """See ``Bridge.restart``."""
        return self._wait(lambda: self._bridge.restart(timeout=timeout))

    @property
    def state(self) -> str:
        """See ``Bridge.state``."""
        return self._bridge.state

    @property
    def info(self) -> Info:
        """See ``Bridge.info``."""
        return self._bridge.info

    def __reduce__(self) -> Any:
        raise TypeError("a bridge stays in its process; attach another one over there")

    def __repr__(self) -> str:
        return f"<Sync{repr(self._bridge)[1:]}"

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
    __eq__ = object.__eq__  # a bridge is itself, not the dict that it shows

    # ------------------------------------------------------------ inside

    def _start(self, call: Callable[[], Awaitable[T]]) -> Future[T]:
        """Begin a call on the bridge's loop."""
        if self._finalizer is not None and not self._finalizer.alive:
            raise BridgeClosed("this bridge was closed")
        return self._portal.start_task_soon(call)

    def _wait(self, call: Callable[[], Awaitable[T]]) -> T:
        """Run a call on the bridge's loop; whatever ends the wait here cancels it there."""
        future = self._start(call)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise


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


def _serve(make: type[BlockingPortal], started: Future[BlockingPortal]) -> None:
    """The bridge's thread. anyio's own starter is a generator, which hangs a forked child."""

    async def serve() -> None:
        async with make() as portal:
            started.set_result(portal)
            await portal.sleep_until_stopped()

    asyncio.run(serve())


def _stop(portal: BlockingPortal, thread: threading.Thread) -> None:
    portal.call(portal.stop)
    thread.join()


def _leave(portal: BlockingPortal, thread: threading.Thread, bridge: Bridge, process: int) -> None:
    if os.getpid() != process:  # a forked child has neither the thread nor the kernel
        return
    if threading.current_thread() is thread:
        # The garbage collector struck in the bridge's own thread, which can't wait for itself.
        threading.Thread(target=_leave, args=(portal, thread, bridge, process)).start()
        return
    try:
        portal.call(bridge.aclose)
    finally:
        _stop(portal, thread)
