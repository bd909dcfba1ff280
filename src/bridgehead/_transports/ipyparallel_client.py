"""What all bridges over one ipyparallel client share.

Rule: engine registrations, the hub's sign of life, and broadcasts. This module knows the client as
a whole, and no request of a single engine. The client works in its own thread; every callback that
it calls here enters the event loop first.

- The client's list of registration callbacks reports engines that register and leave. The client's
  ``wait_for_engines`` uses the same list.
- Nothing reports that the hub was killed: pending requests would wait for ever. So the hub is
  asked for a sign of life while a caller waits.
- Requests are sent with the methods that the views use, not with the views: every request of a
  view stays in ``history``. ipyparallel 9.2 never forgets a broadcast at all, and
  ``client.wait()`` waits for the broadcast's first future, which is never set. So broadcasts are
  removed from the client's tables here.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol

from bridgehead._errors import BridgeError, TransportError
from bridgehead._protocol.bootstrap import SYS
from bridgehead._protocol.response import parse_header
from bridgehead._shipped.wire.frames import coalesce
from bridgehead._shipped.wire.header import ResponseHeader
from bridgehead._transports.base import Transport
from bridgehead._transports.state import KernelState
from bridgehead._transports.tasks import retrieve_exception

KERNEL = f"{SYS}.modules['IPython'].get_ipython().kernel"


class EngineListener(Protocol):
    """Gets the events of one engine."""

    @property
    def engine(self) -> int: ...

    @property
    def identity(self) -> str: ...

    @property
    def life(self) -> KernelState: ...

    @property
    def has_waiters(self) -> bool: ...

    def engine_registered(self, identity: str) -> None: ...

    def engine_lost(self) -> None: ...

    def closed_by_owner(self) -> None: ...


def function_text(expression: str) -> str:
    """Return the source of a function that evaluates a request's expression in an engine.

    The function's arguments take the place of the buffers of an ``execute_request``. It returns
    the text of the response, followed by the frames of the response.
    """
    return (
        "lambda *parts: (lambda parent: [parent.__setitem__('buffers', parts), "
        f"parent.__setitem__('beside', []), ({expression}).text, *parent['beside']][2:])"
        f"({KERNEL}.get_parent('shell'))"
    )


class IpyparallelClient:
    """What the bridges over one client share. It watches the engines and the hub.

    It lives in the event loop of these bridges, for as long as one of them is open.
    """

    _live: ClassVar[list[IpyparallelClient]] = []

    def __init__(self, client: Any) -> None:
        self.client = client
        self.loop = asyncio.get_running_loop()
        self._engines: dict[int, list[EngineListener]] = {}
        self._pulse: asyncio.Task[None] | None = None
        self._heard_at = time.monotonic()  # when the last message of any scheduler arrived

    @classmethod
    def of(cls, client: Any) -> IpyparallelClient:
        """Return the existing object for this client and this loop, or a new one."""
        loop = asyncio.get_running_loop()
        cls._live[:] = [known for known in cls._live if not known.loop.is_closed()]
        for known in cls._live:
            if known.client is client and known.loop is loop:
                return known
        return cls(client)

    def join(self, engine: EngineListener) -> None:
        if not self._engines:
            self._live.append(self)
            # Append in the client's own thread, because that thread iterates over the list.
            callbacks = self.client._registration_callbacks
            self.client._io_loop.add_callback(callbacks.append, self._registration_event)
            self._pulse = self.loop.create_task(self._watch_hub())
        self._engines.setdefault(engine.engine, []).append(engine)

    def leave(self, engine: EngineListener) -> None:
        bridges = self._engines.get(engine.engine, [])
        if engine not in bridges:
            return
        bridges.remove(engine)
        if not bridges:
            del self._engines[engine.engine]
        if self._engines:
            return
        self._live.remove(self)
        if self._pulse is not None:
            self._pulse.cancel()
        client = self.client
        with contextlib.suppress(Exception):  # the client was closed, and its loop with it
            callbacks = client._registration_callbacks
            client._io_loop.add_callback(callbacks.remove, self._registration_event)

    @property
    def engines(self) -> list[EngineListener]:
        """The listeners of all bridges."""
        return [engine for bridges in self._engines.values() for engine in bridges]

    def call(self, function: Callable[..., object], *args: Any) -> None:
        """Call a function in the event loop; the client's thread calls this."""
        self._heard_at = time.monotonic()
        with contextlib.suppress(RuntimeError):  # the loop was closed, and its bridges with it
            self.loop.call_soon_threadsafe(function, *args)

    def _registration_event(self, event: dict[str, Any]) -> None:
        """Pass on that an engine registered or left; the client's thread calls this."""
        self.call(self._registered, event["event"], int(event["id"]), str(event["uuid"]))

    def _registered(self, event: str, number: int, identity: str) -> None:
        for engine in list(self._engines.get(number, ())):
            if event == "register":
                engine.engine_registered(identity)
            elif identity == engine.identity:
                engine.engine_lost()

    async def _watch_hub(self) -> None:
        """Ask the hub for a sign of life while a caller waits: nothing else reports its end."""
        client = self.client
        while True:
            await asyncio.sleep(Transport.timings.beat_every)
            if not any(engine.has_waiters for engine in self.engines):
                continue
            answered = asyncio.Event()
            try:
                question = client._send(
                    client._query_stream, "queue_request", content={"targets": []}
                )
            except Exception:  # noqa: BLE001 - a closed client raises errors of many kinds
                for engine in self.engines:
                    engine.closed_by_owner()
                continue
            question.add_done_callback(lambda _, answered=answered: self.call(answered.set))
            try:
                async with asyncio.timeout(Transport.timings.silence):
                    await answered.wait()
            except TimeoutError:
                _forget(client, question.msg_id)
                # All traffic passes the hub, and under load it answers late. Any other message of
                # a scheduler is a sign of life as well.
                if time.monotonic() - self._heard_at >= Transport.timings.silence:
                    for engine in self.engines:
                        engine.life.note_unresponsive(_no_hub)
                continue
            for engine in self.engines:
                engine.life.note_responsive(beat=True)  # the hub answers, which is no message

    # ------------------------------------------------------------ requests

    def ask(
        self,
        identity: str,
        message_type: str,
        hook: Callable[[Any], object] | None = None,
        request: str | None = None,
        **message: Any,
    ) -> Any:
        """Send a request to one engine and return the client's future for it.

        ``hook`` gets the future before the request is sent. ``request`` is the id of the message;
        the remote part knows a cell by it.

        Raises:
            OSError: the client was closed.
        """
        client = self.client

        def hooked(future: Any) -> None:
            self._add_outstanding(identity, future.msg_id)
            if hook is not None:
                hook(future)

        if request is not None:
            message["header"] = {**client.session.msg_header(message_type), "msg_id": request}
        return client._send(
            client._mux_stream,
            message_type,
            ident=identity.encode(),
            message_future_hook=hooked,
            **message,
        )

    def ask_on_control(self, identity: str, message_type: str, content: dict[str, Any]) -> Any:
        """Send a request to the control thread of one engine; return the client's future for it.

        The caller forgets the future if no answer comes: the client keeps it when the engine ends.

        Raises:
            OSError: the client was closed.
        """
        client = self.client
        return client._send(
            client._control_stream, message_type, content=content, ident=identity.encode()
        )

    def forget(self, future: Any) -> None:
        """Have the client drop a future, whose answer no caller waits for."""
        _forget(self.client, future.msg_id)

    def forget_outputs(self, request: str) -> None:
        """Have the client drop what a request printed after its reply."""
        if request not in self.client._futures:  # else the client waits for its last output
            self.client.metadata.pop(request, None)

    def apply(
        self,
        identity: str,
        text: str,
        args: Sequence[Any] = (),
        hook: Callable[[Any], object] | None = None,
    ) -> Any:
        """Call a function in one engine, as ``ask`` does; ``text`` is the function's source."""
        return self.ask(identity, "apply_request", hook, buffers=self._pack(text, args))

    def broadcast(
        self, engines: Sequence[EngineListener], expression: str, parts: Sequence[Any]
    ) -> list[asyncio.Future[ResponseHeader]]:
        """Have several engines evaluate one expression; return the header of each response.

        The returned futures are in the order of the engines. One copy leaves this process;
        ipyparallel's broadcast schedulers make the others. Each engine replies to a request of its
        own, whose id the schedulers make from the id of the broadcast.

        Raises:
            TransportError: the client was closed.
        """
        client = self.client
        headers: list[asyncio.Future[ResponseHeader]] = []

        def add_requests(whole: Any) -> None:
            for engine in engines:
                request = f"{whole.msg_id}_{engine.identity}"
                child, _ = client.create_message_futures(request, whole.header, async_result=True)
                self._add_outstanding(engine.identity, request)
                future: asyncio.Future[ResponseHeader] = self.loop.create_future()
                future.add_done_callback(retrieve_exception)
                headers.append(future)
                child.add_done_callback(
                    lambda done, future=future: self.call(self._arrived, done, future)
                )

        targets = [(engine.identity, engine.engine) for engine in engines]
        try:
            whole = client._send(
                client._broadcast_stream,
                "apply_request",
                buffers=self._pack(function_text(expression), coalesce(parts)),
                metadata={"targets": targets, "is_broadcast": True, "is_coalescing": False},
                message_future_hook=add_requests,
            )
        except OSError as error:
            raise TransportError(f"the client was closed: {error}") from None
        _forget(client, whole.msg_id)  # the broadcast itself gets no reply, only its children do
        return headers

    def _pack(self, text: str, args: Sequence[Any]) -> list[Any]:
        """Return the buffers of an ``apply_request`` for a function's source and its arguments."""
        ipyparallel, session = sys.modules["ipyparallel"], self.client.session
        buffers: list[Any] = ipyparallel.serialize.pack_apply_message(
            ipyparallel.Reference(text),
            list(args),
            {},
            buffer_threshold=session.buffer_threshold,
            item_threshold=session.item_threshold,
        )
        return buffers

    def _add_outstanding(self, identity: str, request: str) -> None:
        """Enter a request into the client's tables, so that it ends if the engine is lost."""
        self.client.outstanding.add(request)
        self.client._outstanding_dict[identity].add(request)

    def _arrived(self, done: Any, future: asyncio.Future[ResponseHeader]) -> None:
        _forget(self.client, done.msg_id)
        if future.done():
            return
        value = done.result()
        try:
            if not isinstance(value, list) or not value or not isinstance(value[0], str):
                raise TransportError(
                    f"an engine did not store a broadcast, and is unchanged: {value!r}"
                )
            future.set_result(parse_header(value[0]))
        except BridgeError as error:
            future.set_exception(error)


def _forget(client: Any, request: str) -> None:
    for table in (client._futures, client._output_futures, client.metadata, client.results):
        table.pop(request, None)
    client.outstanding.discard(request)


def _no_hub() -> TransportError:
    return TransportError(
        f"the cluster's hub shows no sign of life for {Transport.timings.silence:g} s: it ended, "
        "or the connection to it is down; the bridge goes on when the hub answers again"
    )
