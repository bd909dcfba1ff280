"""The inquiry: what the kernel is asked when a reply is missing.

Rule: whether a reply can still arrive, and for how long it is waited for. The dispatcher says which
requests were sent, and gives their callers what the inquiry finds out.

Replies arrive in the order of their requests, on each route. So the answer to a
``kernel_info_request`` proves that the replies to the requests before it are lost. It also wakes a
kernel that missed an earlier message. While the kernel is busy, the question waits with the
requests, as long as it takes. There is a deadline only while nothing arrives from the kernel and it
says that it is idle, or does not answer on its control channel either. No cell delays an answer on
control, so a question about a request there has this deadline from the beginning.

"Idle" may date from before the request, and iopub may have lost the "busy" since. So it counts only
if iopub brings the status of a question that was asked on control after the request.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
from asyncio import FIRST_COMPLETED as FIRST
from collections import deque
from collections.abc import AsyncIterator
from functools import partial

from bridgehead._errors import BridgeError, KernelUnresponsive, ReplyLost
from bridgehead._transports.request_table import CONTROL, INPUT, Pending, RequestTable
from bridgehead._transports.tasks import waited

# In place of a route, for what a side channel owes: see ``KernelState.side_channel``.
BESIDE = "beside"
SIGN = "sign"  # in place of a route, for a sign of life of an unresponsive kernel
REMEMBERED = 64  # ids of questions, whose messages may arrive late
REPLY_LOST = ReplyLost(
    "the kernel has answered a later request, so the request or its reply was lost; check what it "
    "changed before you send it again"
)


class Inquiry:
    """Asks the kernel about the requests whose replies are missing, on each route in one task.

    Attributes:
        may_be_slow: whether a long reply may take its time on the way, and keep back the replies
            behind it.
        questions: the ids of the latest questions; no stream shows their messages.
        published: the ids of those that the kernel served last, as it published on iopub.
    """

    def __init__(self, table: RequestTable, *, control: bool) -> None:
        self._table, self._life, self._way = table, table.life, table.way
        self._has_control = control
        self._nudge_after = 0.0  # the loop's time, for a kernel that does not say that it is idle
        self.may_be_slow: bool = False
        self.questions: deque[str] = deque(maxlen=REMEMBERED)
        self.published: deque[str] = deque(maxlen=REMEMBERED)
        self._open: set[str | None] = set()  # the routes that are being asked about
        self._next_look: asyncio.TimerHandle | None = None

    # ------------------------------------------------------------ when to ask

    def expect_reply(self, pending: Pending) -> None:
        """Have the kernel asked about a request that was sent, if its reply is missing.

        Not before it was sent: a message may wait, as for the confirmation of a subscription, and
        the answer to a question says nothing about what is sent behind the question.
        """
        pending.due = asyncio.get_running_loop().time() + self._life.timings.inquiry_after
        self._look_at(pending.due)

    def _look_at(self, time: float) -> None:
        """Look for missing replies at this time of the loop, unless it will be done anyway."""
        if self._next_look is None:
            self._next_look = asyncio.get_running_loop().call_at(time, self._look)

    def _look(self) -> None:
        """Start asking on each route where a reply is missing; look again later.

        A kernel that takes one request at a time is nudged. It may have missed a request of ours
        while it served another client, or that of another client while it served ours: so it is
        nudged after our requests, too.
        """
        self._next_look = None
        unanswered = [one for one in self._table.pending.values() if one.due]
        now, timings = asyncio.get_running_loop().time(), self._life.timings
        one_at_a_time = self._table.window.size == 1
        if one_at_a_time and (self._life.said_idle or (unanswered and now >= self._nudge_after)):
            # What it says may be lost. While a cell runs, each nudge takes memory in the kernel.
            self._nudge_after = now + timings.lost_after
            self._way.spawn(self._way.nudge())
        if not unanswered:
            return
        for pending in unanswered:
            # It is not asked while a request is on its way.
            may_ask = not one_at_a_time or pending.route == CONTROL
            idle = pending.status == "idle" or (
                self._life.said_idle and now - pending.due > timings.lost_after
            )
            if pending.due <= now and (may_ask or idle):
                self.start(pending.route)
        oldest = min(pending.due for pending in unanswered)
        self._look_at(oldest if oldest > now else now + timings.inquiry_after)

    def start(self, route: str | None) -> None:
        """Ask about the requests on a route now, or what stands in place of a route."""
        # An unresponsive kernel is asked on control only.
        if route not in self._open and (route in (CONTROL, SIGN) or not self._life.is_unresponsive):
            self._open.add(route)
            self._way.spawn(self._inquire(route))

    # ------------------------------------------------------------ questions

    @contextlib.asynccontextmanager
    async def question(self, route: str | None) -> AsyncIterator[Pending]:
        """Ask a question on a route; after the block, its answer is not waited for any more."""
        table = self._table
        content = {"allow_stdin": True} if route == INPUT else {}
        message = self._way.message("kernel_info_request", content)
        if route not in (None, INPUT, CONTROL):
            message["header"]["subshell_id"] = route
        self.questions.append(message["header"]["msg_id"])
        pending = await table.put("control" if route == CONTROL else "shell", message)
        try:
            yield pending
        finally:
            table.forget(pending.id)
            pending.future.cancel()

    # ------------------------------------------------------------ asking

    async def _inquire(self, route: str | None) -> None:
        try:
            if route == BESIDE:
                await self._about_side_channel()
            elif route == SIGN:
                await self._seek_sign()
            else:
                await self._about(route)
        except BridgeError:
            pass  # the kernel or the connection is lost or unresponsive, and all waiters know
        finally:
            self._open.discard(route)

    async def _about(self, route: str | None) -> None:
        """Ask until it is known whether the replies that are missing can still arrive."""
        table, timings = self._table, self._life.timings
        questions: list[tuple[Pending, list[Pending]]] = []  # with the requests before each
        signs: list[Pending] = []  # unanswered ones on control, whether it answers at all
        sign: Pending | None = None  # the latest of them, answered or not
        every = pause = timings.inquiry_after
        idle = silent = 0.0
        async with contextlib.AsyncExitStack() as asked:
            while before := self._unanswered(route):
                question = await asked.enter_async_context(self.question(route))
                questions.append((question, before))
                if self._has_control and route != CONTROL:
                    sign = await asked.enter_async_context(self.question(CONTROL))
                    signs.append(sign)
                for _ in range(round(pause / every)):
                    # Seconds are counted by waits: if this program or the machine was stopped, the
                    # kernel still has its time to answer.
                    arrived = table.arrived[before[0].channel]
                    answers = [question.future for question, _ in questions]
                    await asyncio.wait(answers, timeout=every, return_when=FIRST)
                    if self._is_settled(before, questions):
                        return
                    if arrived != table.arrived[before[0].channel]:
                        idle = silent = 0.0
                    if any(question.status == "idle" for question, _ in questions):
                        idle += every
                        # It is idle after the question, so its answer is lost, or waits behind a
                        # long reply.
                        if idle >= (
                            timings.lost_after if self.may_be_slow else timings.idle_silence
                        ):
                            self._fail(before, _no_answer(idle))
                            return
                    if any(sign.future.done() for sign in signs):
                        signs.clear()
                    answers_control = not signs and route != CONTROL
                    if answers_control and not self._is_idle(before, sign):
                        silent = 0.0
                        continue
                    silent += every
                    # A kernel that is known to be unresponsive has less time.
                    known = self._life.is_unresponsive
                    if silent >= (timings.silence if known else timings.lost_after):
                        if answers_control:
                            self._fail(before, _no_answer(silent))
                            return
                        # For whatever waits behind these requests, too.
                        self._life.note_unresponsive(partial(_silent, silent), only_beats=True)
                        if route == CONTROL:
                            self._fail(before, _silent(silent))
                        return
                pause *= 2

    def _is_settled(
        self, requests: list[Pending], questions: list[tuple[Pending, list[Pending]]]
    ) -> bool:
        """Return whether the replies to these requests are not waited for any more.

        An answer to a question fails the requests before it.
        """
        for question, before in questions:
            if question.future.done():
                question.future.result()
                self._fail(before, REPLY_LOST)
                return True
        return not self._table.pending.keys() & {one.id for one in requests}

    async def _about_side_channel(self) -> None:
        """Ask on control as long as a side channel owes a reply, which no broken socket can lose.

        What it does may take as long as it likes; but a kernel that does not answer on control
        either may never do anything again.
        """
        pause, life = self._life.timings.inquiry_after, self._life
        while life.side_channel is not None and life.side_channel.at_work:
            async with self.question(CONTROL) as question:
                self.expect_reply(question)
                with contextlib.suppress(ReplyLost):  # it has answered a later question
                    await question.future
            await asyncio.sleep(pause)
            pause *= 2

    async def _seek_sign(self) -> None:
        """Ask once on control, if there is such a channel, and wait a while for the answer."""
        if self._has_control:
            async with waited(self._life.timings.silence), self.question(CONTROL) as question:
                await question.future

    def _unanswered(self, route: str | None) -> list[Pending]:
        """Return the requests on a route, if the reply to one of them is missing."""
        now = asyncio.get_running_loop().time()
        pending = self._table.pending.values()
        requests = [one for one in pending if one.due and one.route == route]
        return requests if any(one.due <= now for one in requests) else []

    def _is_idle(self, requests: list[Pending], sign: Pending | None) -> bool:
        """Return whether the kernel has said that it does nothing that the requests wait for.

        ``sign`` is a question on control that was asked after them. Without its status, iopub may
        have lost what the kernel says of the requests. A kernel without a control channel of ours
        reports the cells of this bridge only.
        """
        if all(one.status == "idle" for one in requests):
            return True
        if sign is None or sign.id not in self.published:
            return False
        subshell = requests[0].subshell
        if subshell is None:
            return self._life.said_idle
        # Nothing but requests of this bridge runs there, and those that ran are in the table.
        pending = self._table.pending.values()
        return not any(one.subshell == subshell and one.status == "busy" for one in pending)

    def _fail(self, requests: list[Pending], why: BridgeError) -> None:
        for pending in requests:
            if why is REPLY_LOST:
                self._life.note_done(pending.id)  # the message that says so was lost, too
            self._table.settle(pending.id, copy.copy(why))


def _no_answer(seconds: float) -> ReplyLost:
    return ReplyLost(
        f"the kernel does not say that it is busy, and for {seconds:g} s it has replied neither to "
        "the request nor to a question about it; the request may have run"
    )


def _silent(seconds: float) -> KernelUnresponsive:
    return KernelUnresponsive(
        f"the kernel's process lives, but for {seconds:g} s it has answered nothing, not even on "
        "its control channel; the request may still run"
    )
