"""Requests to the control thread of one ipyparallel engine, and the events that it answers with.

Rule: what an engine serves while its main thread works. An ipyparallel client takes nothing but
replies. So a request asks for events, and the remote part answers it when there are some; the
engine's end is ``_shipped/remote/event_queue.py``. How a message reaches the engine belongs to
``ipyparallel_client``.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from typing import Any

from bridgehead._protocol.bootstrap import remote_source
from bridgehead._shipped.wire.header import EVENT_MESSAGE, EVENTS_REQUEST
from bridgehead._transports.base import Transport
from bridgehead._transports.dispatch import Dispatcher
from bridgehead._transports.ipyparallel_client import IpyparallelClient

FINISHED = 1000  # requests whose late outputs are looked for


class Expected:
    """Whose events are expected, and the requests that wait for them."""

    def __init__(self, identity: str, owner: str, epoch: str) -> None:
        self.identity, self.owner, self.epoch = identity, owner, epoch
        self.request: Any = None  # the client's future
        self.earlier: Any = None  # the request before, if it has no answer
        self.asked_at = 0.0


class EngineControl:
    """The requests of one bridge on the control channel of its engine."""

    def __init__(self, shared: IpyparallelClient, dispatcher: Dispatcher) -> None:
        self._shared, self._dispatcher = shared, dispatcher
        self.unreadable = 0  # messages that could not be read
        self._requests: dict[str, Any] = {}  # the client's futures, by the dispatcher's ids
        self._expected: Expected | None = None
        self._finished: deque[str] = deque(maxlen=FINISHED)  # the client's ids

    def finished(self, request: str) -> None:
        """Note that a request on shell has its reply; a task that it started may still print.

        The client makes a new entry for what a request prints after its reply, and keeps it.
        """
        self._finished.append(request)

    def _forget_outputs(self) -> None:
        for request in self._finished:
            self._shared.forget_outputs(request)

    def send(self, identity: str, message: dict[str, Any]) -> None:
        """Send a request; its reply goes to the dispatcher.

        Raises:
            OSError: the client was closed.
        """
        header = message["header"]
        request = header["msg_id"]
        future = self._shared.ask_on_control(identity, header["msg_type"], message["content"])
        self._requests[request] = future
        future.add_done_callback(
            lambda done: self._shared.call(self._answered, request, done.result())
        )

    def _answered(self, request: str, reply: dict[str, Any]) -> None:
        if self._requests.pop(request, None) is not None:
            header = {"msg_type": reply["header"]["msg_type"], "msg_id": ""}
            parent = {"msg_id": request}
            self._receive({"header": header, "parent_header": parent, "content": reply["content"]})

    def _receive(self, message: dict[str, Any]) -> None:
        try:
            self._dispatcher.received("control", message)
        except Exception:  # noqa: BLE001 - an engine may send anything
            self.unreadable += 1

    def forget_all(self) -> None:
        """Forget what will not be answered: the engine is lost, or the bridge closes."""
        self._expect_none()
        self._forget_outputs()
        for future in self._requests.values():
            self._shared.forget(future)
        self._requests.clear()

    # ------------------------------------------------------------ events

    def expect_events(self, identity: str, owner: str, epoch: str) -> None:
        """Ask for the events of an owner, and ask again after each answer, until the bridge closes.

        A question that is withdrawn earlier could be answered before the engine knows that. One
        that has no answer for long may be lost. It is asked again, in place of the one before; the
        answer to that one may still arrive.
        """
        expected = self._expected
        if expected is None or (expected.owner, expected.epoch) != (owner, epoch):
            self._expect_none()
            self._expected = Expected(identity, owner, epoch)
            self._ask(self._expected)
        elif time.monotonic() - expected.asked_at > Transport.timings.report_every:
            self._ask(expected)

    def _forget_earlier(self, expected: Expected) -> None:
        earlier, expected.earlier = expected.earlier, None
        if earlier is not None:
            self._shared.forget(earlier)

    def _expect_none(self) -> None:
        """Ask no more, and have the engine drop the question."""
        expected, self._expected = self._expected, None
        if expected is not None and expected.request is not None:
            self._forget_earlier(expected)
            self._shared.forget(expected.request)
            with contextlib.suppress(OSError):  # the client is closed
                self._shared.forget(self._send(expected, end=True))

    def _send(self, expected: Expected, **content: Any) -> Any:
        kind = remote_source()[0] + EVENTS_REQUEST
        content["owner"] = expected.owner
        return self._shared.ask_on_control(expected.identity, kind, content)

    def _ask(self, expected: Expected) -> None:
        expected.asked_at = time.monotonic()
        with contextlib.suppress(OSError):  # the owner has closed the client
            request = self._send(expected)
            if expected.request is not None and not expected.request.done():
                self._forget_earlier(expected)
                expected.earlier = expected.request
            expected.request = request
            request.add_done_callback(
                lambda done: self._shared.call(self._arrived, expected, done, done.result())
            )

    def _ask_after(self, expected: Expected, request: Any) -> None:
        """Ask again after the answer to a request, unless that was done meanwhile."""
        if expected is self._expected and request is expected.request:
            self._ask(expected)

    def _arrived(self, expected: Expected, request: Any, answer: dict[str, Any]) -> None:
        if expected is not self._expected:
            return
        self._forget_outputs()
        self._forget_earlier(expected)  # answered as well, or it never will be
        try:
            events = [(content, int(count)) for content, count in answer["content"]["events"]]
        except Exception:  # noqa: BLE001 - an engine may send anything
            self.unreadable += 1
            events = []
        if not events:  # without a pause, an engine that answers at once would keep both busy
            pause = Transport.timings.reader_pause
            self._shared.loop.call_later(pause, self._ask_after, expected, request)
            return
        self._ask_after(expected, request)  # first, so that it is on its way meanwhile
        at, buffers = 0, answer["buffers"]
        for content, count in events:
            event = {"header": {"msg_type": EVENT_MESSAGE}, "parent_header": {}}
            self._receive(event | {"content": content, "buffers": buffers[at : at + count]})
            at += count
