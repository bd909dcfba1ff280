"""What the bridges over one ipyparallel client share: its news, its hub, and its broadcast.

Rule: it knows the client as a whole and no request of one engine's. The client works in a thread
of its own; everything here that is called by it goes into the event loop first.

- Engines are told of by the client's list of callbacks, which its ``wait_for_engines`` uses too.
- A hub that is killed is told by nobody: what is pending would wait for ever. So it is asked for
  a sign of life, while somebody waits.
- Requests are sent below the views, by what these send with: every request of a view stays in
  ``history``. A broadcast of ipyparallel 9.2 is never forgotten at all, and ``client.wait()`` waits
  for its first future, which nobody fulfils; ours are taken out of the tables.
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
from bridgehead._protocol.response import parse
from bridgehead._shipped.wire.frames import coalesce
from bridgehead._shipped.wire.header import Header
from bridgehead._transports.state import SILENCE, KernelState
from bridgehead._transports.tasks import retrieve_exception

BEAT_EVERY = 1.0  # s between two questions to the hub, while somebody waits
KERNEL = f"{SYS}.modules['IPython'].get_ipython().kernel"


class EngineSubscriber(Protocol):
    """What is told of one engine."""

    @property
    def engine(self) -> int: ...

    @property
    def identity(self) -> str: ...

    @property
    def life(self) -> KernelState: ...

    @property
    def waited_for(self) -> bool: ...

    def came(self, identity: str) -> None: ...

    def left(self) -> None: ...

    def closed_by_owner(self) -> None: ...


def applied(expression: str) -> str:
    """What has an engine evaluate a request's expression, as text of a function.

    The parts that it is given stand where the buffers of an ``execute_request`` would be; the
    result is the answer's text, and its frames behind it.
    """
    return (
        "lambda *parts: (lambda parent: [parent.__setitem__('buffers', parts), "
        f"parent.__setitem__('beside', []), ({expression}).text, *parent['beside']][2:])"
        f"({KERNEL}.get_parent('shell'))"
    )


class IpyparallelClient:
    """What the bridges over one client share: the news of engines, and a look at the hub.

    Lives for as long as one of them is open, in their event loop.
    """

    _live: ClassVar[list[IpyparallelClient]] = []

    def __init__(self, client: Any) -> None:
        self.client = client
        self.loop = asyncio.get_running_loop()
        self._engines: dict[int, list[EngineSubscriber]] = {}
        self._pulse: asyncio.Task[None] | None = None
        self._heard_at = time.monotonic()  # when anything came, from whichever scheduler

    @classmethod
    def of(cls, client: Any) -> IpyparallelClient:
        """The one that is there for this client and this loop, or a new one."""
        loop = asyncio.get_running_loop()
        cls._live[:] = [known for known in cls._live if not known.loop.is_closed()]
        for known in cls._live:
            if known.client is client and known.loop is loop:
                return known
        return cls(client)

    def join(self, engine: EngineSubscriber) -> None:
        if not self._engines:
            self._live.append(self)
            # In the client's own thread, which goes through that list.
            callbacks = self.client._registration_callbacks
            self.client._io_loop.add_callback(callbacks.append, self._told)
            self._pulse = self.loop.create_task(self._look())
        self._engines.setdefault(engine.engine, []).append(engine)

    def leave(self, engine: EngineSubscriber) -> None:
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
            client._io_loop.add_callback(client._registration_callbacks.remove, self._told)

    @property
    def engines(self) -> list[EngineSubscriber]:
        """What is to be told, of every bridge."""
        return [engine for bridges in self._engines.values() for engine in bridges]

    def call(self, function: Callable[..., object], *args: Any) -> None:
        """From the client's thread into the event loop."""
        self._heard_at = time.monotonic()
        with contextlib.suppress(RuntimeError):  # the loop was closed: nobody listens any more
            self.loop.call_soon_threadsafe(function, *args)

    def _told(self, event: dict[str, Any]) -> None:
        """An engine came or went; in the client's thread."""
        self.call(self._registered, event["event"], int(event["id"]), str(event["uuid"]))

    def _registered(self, event: str, number: int, identity: str) -> None:
        for engine in list(self._engines.get(number, ())):
            if event == "register":
                engine.came(identity)
            elif identity == engine.identity:
                engine.left()

    async def _look(self) -> None:
        """Ask the hub for a sign of life, while somebody waits: nothing else tells of its end."""
        client = self.client
        while True:
            await asyncio.sleep(BEAT_EVERY)
            if not any(engine.waited_for for engine in self.engines):
                continue
            heard = asyncio.Event()
            try:
                question = client._send(
                    client._query_stream, "queue_request", content={"targets": []}
                )
            except Exception:  # noqa: BLE001 - whatever a closed client raises
                for engine in self.engines:
                    engine.closed_by_owner()
                continue
            question.add_done_callback(lambda _, heard=heard: self.call(heard.set))
            try:
                async with asyncio.timeout(SILENCE):
                    await heard.wait()
            except TimeoutError:
                _forgotten(client, question.msg_id)
                # A hub under load answers late: it sees all that crosses.
                if time.monotonic() - self._heard_at >= SILENCE:
                    for engine in self.engines:
                        engine.life.unresponsive(_no_hub)
                continue
            for engine in self.engines:
                engine.life.responsive()

    # ------------------------------------------------------------ requests

    def ask(
        self,
        identity: str,
        message_type: str,
        hook: Callable[[Any], object] | None = None,
        **message: Any,
    ) -> Any:
        """Send a request to one engine; the client's future of it, which ``hook`` has before.

        Raises:
            OSError: the client was closed.
        """
        client = self.client

        def hooked(future: Any) -> None:
            self._outstanding(identity, future.msg_id)
            if hook is not None:
                hook(future)

        return client._send(
            client._mux_stream,
            message_type,
            ident=identity.encode(),
            message_future_hook=hooked,
            **message,
        )

    def apply(
        self,
        identity: str,
        text: str,
        args: Sequence[Any] = (),
        hook: Callable[[Any], object] | None = None,
    ) -> Any:
        """``ask`` one engine to call the function that this text is."""
        return self.ask(identity, "apply_request", hook, buffers=self._packed(text, args))

    def broadcast(
        self, engines: Sequence[EngineSubscriber], expression: str, parts: Sequence[Any]
    ) -> list[asyncio.Future[Header]]:
        """Have several engines evaluate the same; the header of each one's answer, in order.

        One copy leaves this process: ipyparallel's broadcast schedulers make the others. Each
        engine's answer is to a request of its own, whose id they make up.

        Raises:
            TransportError: the client was closed.
        """
        client = self.client
        found: list[asyncio.Future[Header]] = []

        def each(whole: Any) -> None:
            for engine in engines:
                request = f"{whole.msg_id}_{engine.identity}"
                child, _ = client.create_message_futures(request, whole.header, async_result=True)
                self._outstanding(engine.identity, request)
                future: asyncio.Future[Header] = self.loop.create_future()
                future.add_done_callback(retrieve_exception)
                found.append(future)
                child.add_done_callback(
                    lambda done, future=future: self.call(self._arrived, done, future)
                )

        targets = [(engine.identity, engine.engine) for engine in engines]
        try:
            whole = client._send(
                client._broadcast_stream,
                "apply_request",
                buffers=self._packed(applied(expression), coalesce(parts)),
                metadata={"targets": targets, "is_broadcast": True, "is_coalescing": False},
                message_future_hook=each,
            )
        except OSError as error:
            raise TransportError(f"the client was closed: {error}") from None
        _forgotten(client, whole.msg_id)  # nobody answers this one
        return found

    def _packed(self, text: str, args: Sequence[Any]) -> list[Any]:
        """A function that is text, and its arguments, as ipyparallel's ``apply`` has them."""
        ipyparallel, session = sys.modules["ipyparallel"], self.client.session
        buffers: list[Any] = ipyparallel.serialize.pack_apply_message(
            ipyparallel.Reference(text),
            list(args),
            {},
            buffer_threshold=session.buffer_threshold,
            item_threshold=session.item_threshold,
        )
        return buffers

    def _outstanding(self, identity: str, request: str) -> None:
        """The client waits for it: for its reply, or to hear that the engine is gone."""
        self.client.outstanding.add(request)
        self.client._outstanding_dict[identity].add(request)

    def _arrived(self, done: Any, future: asyncio.Future[Header]) -> None:
        _forgotten(self.client, done.msg_id)
        if future.done():
            return
        value = done.result()
        try:
            if not isinstance(value, list) or not value or not isinstance(value[0], str):
                raise TransportError(f"an engine did not take its part of a broadcast: {value!r}")
            future.set_result(parse(value[0]))
        except BridgeError as error:
            future.set_exception(error)


def _forgotten(client: Any, request: str) -> None:
    for table in (client._futures, client._output_futures, client.metadata, client.results):
        table.pop(request, None)
    client.outstanding.discard(request)


def _no_hub() -> TransportError:
    return TransportError(
        f"the cluster's hub shows no sign of life for {SILENCE:g} s: it ended, or the way to it "
        "is down; the bridge goes on when it answers again"
    )
