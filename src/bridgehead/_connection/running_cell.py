"""One cell on its way: from its turn to its reply and its last outputs.

Rule: how a cell is sent, and what its deadline means. What it prints belongs to ``outputs``, the
order to ``queue``, the way of an interrupt to ``interrupts``.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

from bridgehead._connection.call import Call, Deadline, check_seconds
from bridgehead._connection.connection import Connection
from bridgehead._connection.outputs import CellOutputs
from bridgehead._connection.queue import Turn
from bridgehead._connection.records import crossed, recorded
from bridgehead._connection.resources import HeldResources, RemoteResource
from bridgehead._errors import (
    BridgeError,
    KernelRestarted,
    KernelUnresponsive,
    NotSupported,
    ReplyLost,
    RunTimeout,
    TransportError,
    harmless,
)
from bridgehead._lanes.base import ChunkHandler
from bridgehead._lanes.direct import DirectLane
from bridgehead._lanes.socket import SocketLost
from bridgehead._protocol.bootstrap import remote_source
from bridgehead._protocol.raising import as_text
from bridgehead._protocol.request import Request
from bridgehead._protocol.response import ERROR_LIMIT, Response
from bridgehead._protocol.results import Result
from bridgehead._shipped.wire.header import CELL_ERROR
from bridgehead._transports.dispatch import END_OF_INPUT
from bridgehead._transports.request_table import Handlers, Reply
from bridgehead._transports.tasks import UserCall

InputHandler = Callable[[str, bool], str | Awaitable[str]]  # of the prompt, and for a password


class SentStage(RemoteResource):
    """What the kernel keeps for a cell until the cell begins."""

    kind = "stages"

    def __init__(self, resources: HeldResources, is_to_stay: Callable[[], bool]) -> None:
        """Ask ``is_to_stay``, when no caller waits any more, whether a cell may take it later."""
        super().__init__(resources)
        self._is_to_stay = is_to_stay

    def take(self, event: Response | BridgeError) -> None:
        """Ignore events: there are none."""

    def interrupt(self) -> None:
        """Leave it to its cell, or else to the end of its lease: no caller waits any more."""
        if self._is_to_stay():
            self.is_asked = False


class RunningCell:
    """A cell, from its turn to its end.

    Attributes:
        call: its place in the queue, and the id of its message, which ``interrupt_cell`` takes.
        values: of the expressions, or why there are none; empty if the cell failed.
    """

    def __init__(
        self,
        connection: Connection,
        content: dict[str, Any],
        outputs: CellOutputs,
        *,
        on_input: InputHandler | None,
        stage: Call | None,
        pull: Sequence[str],
        timeout: float | None,
        interrupts: bool,
    ) -> None:
        """``content`` is that of its message. ``interrupts`` says what a deadline or a cancel does.

        ``on_input`` answers what the cell asks. ``stage`` sends what the cell takes when it begins.
        ``pull`` are expressions, which are evaluated when it has ended.

        Raises:
            NotSupported: ``interrupts``, and a kernel that cannot be interrupted; or ``on_input``,
                and a kernel whose questions do not arrive.
            ValueError: the code has half of a surrogate pair.
        """
        check_seconds(timeout)
        _check_text(content["code"], "the cell has")
        if interrupts:
            connection.check_interruptible("on_timeout='interrupt'")
            if not connection.transport.capabilities.signals:
                raise NotSupported("a loopback has no process to interrupt; leave on_timeout= out")
        self._connection, self._content, self._outputs = connection, content, outputs
        self._timeout, self._interrupts = timeout, interrupts
        if on_input is not None:
            connection.require_input()
        self._stage, self._pull = stage, pull
        self._on_input = on_input
        self._questions = 0  # that the cell has asked
        self._answering: asyncio.Task[None] | None = None  # the last one
        self._input_error: BaseException | None = None
        self._is_left = False  # the caller waits no more
        self._response: Response | BridgeError | None = None  # to ``pull``, or the first of it
        self.values: tuple[Any, ...] | BridgeError = ()
        self._received = 0  # bytes of the values
        self.call: Call = Call("run")
        self._scope: asyncio.Timeout = asyncio.timeout(None)
        self._is_staging = False  # what the cell takes is being sent
        self._is_late = False  # the deadline has passed
        self._has_ended = False  # its reply has come

    def run(self, turn: Turn) -> Coroutine[Any, Any, Reply]:
        """Run it in its turn, and return its reply when its last outputs have come.

        Raises:
            RunTimeout: the deadline passed before.
        """

        def measures() -> str:
            # Both cross as messages: objects that the cell gets, and values that are pulled.
            lane = self._connection.remote.lane.in_messages.name
            sent = self._stage.nbytes if self._stage and self._stage.request else 0
            return crossed(sent, self._received, lane)

        return recorded(
            self._connection.transport,
            self.call,
            self._run_to_end(turn),
            lambda reply: f"status {reply.content.get('status')!r:.20}, {measures()}",
            measures,
        )

    async def _run_to_end(self, turn: Turn) -> Reply:
        self._connection.counters.operations += 1
        loop = asyncio.get_running_loop()
        timer = None
        if self._timeout is not None:
            timer = loop.call_later(self._timeout, self._time_is_over)
        transport = self._connection.transport
        try:
            async with Deadline(None, "run", transport, self.call):  # its note on a MemoryError
                with transport.outputs():
                    async with self._scope:
                        with self._connection.reporting_restart(self.call):
                            reply = await self._run(turn)
                        await self._outputs.complete(reply.id)
                        if self._input_error is not None:
                            raise self._input_error
                        response, self._response = self._response, None
                        if response is not None:
                            await self._open_values(response)
        except TimeoutError:
            if not self._scope.expired():
                raise  # from ``on_output``
        finally:
            if timer is not None:
                timer.cancel()
            self._is_left = True
            self._drop_values()
            if self._answering is not None:
                self._answering.cancel()
        if self._is_late:
            raise self._timed_out()
        return reply

    async def _run(self, turn: Turn) -> Reply:
        self.call.turn, remote = turn, self._connection.remote
        process = remote.process if remote.is_current else None
        staged = None
        try:
            await remote.ready()
            if self._on_input is not None:
                await turn.prepare(self._connection.transport.open_input())
            if self._stage is not None:
                staged = SentStage(self._connection.resources, self._stage_stays)
                self._is_staging = True
                await self._send_stage(self._stage, staged, turn)
                process, turn.sent, self._is_staging = remote.process, False, False
            if self._pull and self._connection.trust.data and not remote.has_codec:
                await turn.prepare(remote.load_codec())
            # The exception of a cell, which only a trusted kernel sends; see ``cell_errors``.
            wanted = 0 if self._connection.trust.data else ERROR_LIMIT
            self._content[remote_source()[0] + CELL_ERROR] = wanted
            epoch = remote.info.epoch if staged else None
            reply = await turn.run(lambda: self._send(turn, process, epoch))
            self._has_ended = True
            if staged is not None and self._note_report(reply):
                staged.is_asked = False  # the kernel does not have it any more
            return reply
        except asyncio.CancelledError:
            if self._interrupts and not self._is_late:
                self._connection.cancel(self.call)
            if staged is not None:
                staged.interrupt()
            raise
        finally:
            turn.leave()
            if staged is not None:
                self._connection.resources.leave(staged)

    def _stage_stays(self) -> bool:
        """Whether the cell may take its stage later: it was sent, and nothing withdraws it."""
        is_sent = self.call.turn is not None and self.call.turn.sent and not self._is_staging
        return is_sent and not (self._has_ended or self._interrupts)

    async def _send_stage(self, call: Call, staged: SentStage, turn: Turn) -> None:
        """Send what the cell takes when it begins."""
        resources = self._connection.resources
        resources.enter(staged)
        call.fields.update(resources.fields(staged))
        call.is_unattended = True  # the cell reports a restart
        await self._connection.do(call, turn)
        resources.made(staged)
        self._content[remote_source()[0]] = staged.id

    def _note_report(self, reply: Reply) -> bool:
        """Note what was dropped of the outputs; return whether the cell has taken its stage."""
        payload = reply.content.get("payload")
        for report in payload if isinstance(payload, list) else ():
            if isinstance(report, dict) and report.get("source") == remote_source()[0]:
                dropped = report.get("dropped")
                self._outputs.dropped_in_kernel = max(0, dropped) if type(dropped) is int else 0
                return True
        return False

    async def _send(self, turn: Turn, process: str | None, epoch: str | None) -> Reply:
        """Send the cell and wait for its reply.

        It is for this ``process`` and the remote part of this ``epoch``, or any if that is None.
        """
        connection, lane = self._connection, self._connection.remote.lane
        # It is meant for the kernel that was connected when its turn was taken, known or not.
        connection.remote.check_same(process, turn.generation)
        if epoch not in (None, connection.remote.info.epoch):
            raise KernelRestarted(
                "bridgehead's module was removed from the kernel, and installed again; what was "
                "sent for this cell is lost, and the cell was not sent: call again"
            )
        if isinstance(lane, DirectLane):  # what was cancelled takes effect before it
            with contextlib.suppress(SocketLost):
                await lane.client.drained()

        def note_sent(cell: str) -> None:
            self.call.request = cell
            self._outputs.sent(cell)
            if turn.is_left and self._interrupts:  # while it was being sent
                connection.cancel(self.call)

        async def send(content: dict[str, Any], on_chunk: ChunkHandler | None = None) -> Reply:
            try:
                handlers = Handlers(
                    self._outputs.feed,
                    on_sent=note_sent,
                    on_chunk=on_chunk,
                    on_input=None if self._on_input is None else self._asked,
                )
                return await connection.transport.dispatcher.request(content, handlers=handlers)
            except (TransportError, KernelUnresponsive, ReplyLost) as error:
                if self.call.request:  # what is behind it in the queue waits for this, too
                    answers = not isinstance(error, KernelUnresponsive)
                    await connection.remote.withdraw(self.call.request, now=answers)
                raise

        if not self._pull:
            return await send(self._content)
        lane, trust = lane.in_messages, connection.trust
        fields = {"expressions": list(self._pull), **trust.fields()}
        header = connection.remote.header("fetch", lane, **fields)
        request = Request(header, trusted=not trust.data)
        reply, self._response = await lane.carry_with_cell(request, self._content, send)
        if turn.is_left:
            self._drop_values()
        return reply

    def _drop_values(self) -> None:
        """Have the remote part drop the values that no caller waits for."""
        response, self._response = self._response, None
        if isinstance(response, Response) and response.is_partial:
            self._connection.remote.lane.in_messages.forget(response.request.header)

    async def _open_values(self, response: Response | BridgeError) -> None:
        """Fetch and open the values of the expressions, or note why there are none."""
        connection = self._connection
        try:
            if isinstance(response, BridgeError):
                raise response
            response = await connection.remote.lane.in_messages.complete(response)
            self._received = response.arrived
            self.values = await connection.trust.open_values(response.frames, self._pull)
        except BridgeError as error:
            self.values = error

    # ------------------------------------------------------------ input

    def _asked(self, content: dict[str, Any]) -> None:
        """Answer a question of the cell, for which the cell waits; an earlier one has ended."""
        prompt, password = as_text(content.get("prompt", "")), content.get("password") is True
        if self._connection.trust.data:
            prompt = harmless(prompt)
        if self._answering is not None:
            self._answering.cancel()
        self._questions += 1
        work = self._answer(self._questions, prompt, password)
        self._answering = self._connection.transport.spawn(work)

    async def _answer(self, question: int, prompt: str, password: bool) -> None:
        """Have the caller answer; what that raises ends the cell, and ``run`` raises it.

        When no caller waits any more, the input of the cell has ended.
        """
        answer: Any = END_OF_INPUT
        try:
            if self._on_input is not None and not self._is_left and self._input_error is None:
                # What it asks of this bridge, too, would wait for the cell.
                with UserCall(self._connection.transport.tasks, self._connection.queue):
                    answer = self._on_input(prompt, password)
                    if inspect.isawaitable(answer):
                        answer = await answer
                if not isinstance(answer, str):
                    raise TypeError(f"on_input= must return a string, not {type(answer).__name__}")
                _check_text(answer, "on_input= returned")
        except BaseException as error:  # noqa: BLE001 - ``run`` raises it
            answer = END_OF_INPUT
            if not self._is_left and question == self._questions:
                self._input_error = error
                # A cell may handle the end of its input, so it is interrupted.
                if self._connection.remote.greeting.guards_cells:
                    self._connection.cancel(self.call)
        if question != self._questions:  # the kernel would take it for the answer to a later one
            return
        self._answering = None
        with contextlib.suppress(BridgeError):
            await self._connection.transport.dispatcher.answer(answer)

    # ------------------------------------------------------------ the deadline

    def _time_is_over(self) -> None:
        """Interrupt the cell, and give it a moment to end; or stop waiting."""
        transport = self._connection.transport
        self._is_late, moment = True, 0.0
        if self._interrupts and self.call.request:
            self._connection.cancel(self.call)
            if self._has_begun:
                moment = transport.timings.interrupted_cell
        self._scope.reschedule(asyncio.get_running_loop().time() + moment)

    @property
    def _has_begun(self) -> bool:
        return self._connection.transport.dispatcher.runs(self.call.request)

    def _timed_out(self) -> RunTimeout:
        """Return the error for a deadline that passed."""
        turn, state = self.call.turn, self._connection.transport.life.state
        if self._is_staging or (turn is not None and not turn.sent):
            cell = "was not sent"
        elif self._has_ended:
            cell = "was interrupted" if self._interrupts else "has ended"
        elif not self._interrupts:
            cell = "may still run"
        elif self._has_begun:
            cell = "was interrupted, but has not ended"
            if self._pull:  # the reply comes after them
                cell += ", or pull= is still being evaluated"
        elif self._connection.remote.greeting.guards_cells:
            cell = "was interrupted, or withdrawn before it began"
        else:
            cell = "may still run: it had not begun"
        return RunTimeout(
            f"run timed out after {self._timeout:g} s: the kernel is {state}, and the cell {cell}",
            result=self.result(None),
        )

    def result(self, execution_count: Any) -> Result:
        """Return what the cell has given so far."""
        return self._outputs.result(execution_count, self._connection.trust.name)


def _check_text(text: str, what: str) -> None:
    """Check that a message can carry a text.

    jupyter_client sends half of a surrogate pair as bytes that the kernel replaces, or not at all.

    Raises:
        ValueError: it has half of a surrogate pair; ``what`` begins the message.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{what} {text[error.start]!r}, half of a surrogate pair, at index {error.start}, and "
            "no message can carry it; text.encode('utf-16', 'surrogatepass').decode('utf-16', "
            "'replace') replaces it"
        ) from None
