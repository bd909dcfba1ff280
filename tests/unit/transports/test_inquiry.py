"""What the kernel is asked when a reply is missing, and what callers get, without a transport."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any

import pytest

from bridgehead import KernelRestarted, KernelUnresponsive, ReplyLost
from bridgehead._transports.dispatch import Dispatcher, Reconnected
from bridgehead._transports.inquiry import BESIDE, SIGN
from bridgehead._transports.state import KernelState
from bridgehead._transports.timings import Timings

TIMINGS = Timings(inquiry_after=0.01)


class Kernel:
    """Replies to each message at once, and publishes that it served those on control.

    The first message waits before it is sent.

    Attributes:
        lost: how many messages have no reply, from the first one on.
        silent: the channel on which no message has a reply.
        deaf: whether what it publishes is lost.
        nudges: how often the dispatcher nudged it.
    """

    def __init__(self, timings: Timings = TIMINGS, *, control: bool = False) -> None:
        self.sent: list[str] = []
        self.lost = 0
        self.silent = ""
        self.deaf = False
        self.may_send = asyncio.Event()
        self.nudges = 0
        self.tasks: set[asyncio.Task[None]] = set()
        self.life = KernelState(timings)
        self.dispatcher = Dispatcher(self.life, self, control=control)
        self._count = 0

    async def nudge(self) -> None:
        self.nudges += 1

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self.tasks.add(asyncio.ensure_future(work))

    def message(self, message_type: str, content: dict[str, Any]) -> dict[str, Any]:
        self._count += 1
        return {"header": {"msg_id": str(self._count), "msg_type": message_type}}

    async def send(self, channel: str, message: dict[str, Any], buffers: Sequence[Any]) -> None:
        header = message["header"]
        if header["msg_id"] == "1":
            await self.may_send.wait()
        self.sent.append(header["msg_type"])
        if len(self.sent) <= self.lost or channel == self.silent:
            return
        reply = {
            "header": {"msg_type": header["msg_type"].replace("_request", "_reply")},
            "parent_header": header,
            "content": {"status": "ok"},
        }
        call_soon = asyncio.get_running_loop().call_soon
        call_soon(self.dispatcher.received, channel, reply)
        if channel == "control" and not self.deaf:
            idle = status(header["msg_id"], "idle", None, header["msg_type"])
            call_soon(self.dispatcher.received, "iopub", idle)


async def test_the_kernel_is_not_asked_about_a_request_that_was_not_sent() -> None:
    """A cell waits for the confirmation of its subscription; the answer would overtake it."""
    kernel = Kernel()
    request = asyncio.ensure_future(kernel.dispatcher.request({}))
    await asyncio.sleep(20 * TIMINGS.inquiry_after)
    kernel.may_send.set()
    reply = await request
    assert (reply.id, kernel.sent) == ("1", ["execute_request"])
    assert not kernel.tasks


@pytest.mark.parametrize("lost", [0, 1, 2])
async def test_a_reply_on_control_that_is_lost_is_not_waited_for(lost: int) -> None:
    """J15. With two, the question about it is lost, too, and asked again."""
    kernel = Kernel()
    kernel.may_send.set()
    kernel.lost = lost
    async with asyncio.timeout(30):
        if lost:
            with pytest.raises(ReplyLost, match="has answered a later request"):
                await kernel.dispatcher.control("own_request", {})
        else:
            await kernel.dispatcher.control("own_request", {})
    assert kernel.sent == ["own_request", *["kernel_info_request"] * lost]
    assert not kernel.dispatcher.pending


async def test_a_kernel_that_answers_nothing_on_control_is_reported() -> None:
    """J15."""
    kernel = Kernel(Timings(inquiry_after=0.01, lost_after=0.1))
    kernel.may_send.set()
    kernel.lost = 1000
    async with asyncio.timeout(30):
        with pytest.raises(KernelUnresponsive, match="not even on its control channel"):
            await kernel.dispatcher.control("own_request", {})
    assert not kernel.dispatcher.pending
    assert not kernel.dispatcher._listening


async def test_a_kernel_that_is_known_to_answer_nothing_has_less_time() -> None:
    """J3. Each call to such a kernel would wait a minute of its own."""
    kernel = Kernel(Timings(inquiry_after=0.01, lost_after=1000.0, silence=0.1))
    kernel.may_send.set()
    kernel.lost = 1000
    kernel.life.note_unresponsive(lambda: KernelUnresponsive("known"), only_beats=True)
    async with asyncio.timeout(30):
        with pytest.raises(KernelUnresponsive, match="not even on its control channel"):
            await kernel.dispatcher.control("interrupt_request", {})
    assert not kernel.dispatcher.pending


def answer(kernel: Kernel, request: str) -> None:
    reply = {"header": {"msg_type": "execute_reply"}, "parent_header": {"msg_id": request}}
    kernel.dispatcher.received("shell", {**reply, "content": {"status": "ok"}})


def status(
    of: str, state: str, subshell: str | None = "own", kind: str = "execute_request"
) -> dict[str, Any]:
    """Return a message on iopub, about a request to a subshell, or to none."""
    header = {"msg_id": of, "msg_type": kind, "subshell_id": subshell}
    return {
        "header": {"msg_id": "status", "msg_type": "status"},
        "parent_header": header,
        "content": {"execution_state": state},
    }


@pytest.mark.parametrize("states", [(), ("busy",), ("busy", "idle")])
async def test_a_subshell_that_answers_nothing_is_reported_unless_it_is_busy(
    states: tuple[str, ...],
) -> None:
    """J3. All that is sent to the subshell is lost, and control answers."""
    timings = Timings(inquiry_after=0.01, lost_after=0.1, idle_silence=1000.0)
    kernel = Kernel(timings, control=True)
    kernel.may_send.set()
    kernel.silent = "shell"
    request = asyncio.ensure_future(kernel.dispatcher.request({}, subshell="own"))
    while not kernel.sent:
        await asyncio.sleep(0)
    for state in states:
        kernel.dispatcher.received("iopub", status("1", state))
    if states == ("busy",):  # it is waited for, as long as it takes
        await asyncio.sleep(5 * timings.lost_after)
        assert not request.done()
        kernel.dispatcher.received("iopub", status("1", "idle"))
    async with asyncio.timeout(30):
        with pytest.raises(ReplyLost, match="neither to the request nor to a question about it"):
            await request
    assert not kernel.life.is_unresponsive
    assert not kernel.dispatcher.pending


@pytest.mark.parametrize("subshell", [None, "own"])
async def test_an_earlier_idle_does_not_count_without_a_later_sign_on_iopub(
    subshell: str | None,
) -> None:
    """J3. The kernel may be busy with the request: what it published of that was lost."""
    kernel = Kernel(Timings(inquiry_after=0.01, lost_after=0.1), control=True)
    kernel.may_send.set()
    kernel.silent, kernel.deaf = "shell", True
    kernel.dispatcher.received("iopub", status("earlier", "idle", None))
    request = asyncio.ensure_future(kernel.dispatcher.request({}, subshell=subshell))
    async with asyncio.timeout(30):
        while len(kernel.sent) < 1 + 2 * 6:  # the last questions are asked after 0.3 s
            await asyncio.sleep(0.01)
        assert not request.done()
        kernel.deaf = False  # the next answer shows that the kernel published nothing else
        with pytest.raises(ReplyLost, match="neither to the request nor to a question about it"):
            await request
    assert not kernel.dispatcher.pending


async def test_a_kernel_that_may_have_missed_a_message_is_nudged() -> None:
    """J17. It has said that it is idle, and takes one request at a time."""
    timings = Timings(inquiry_after=0.01, lost_after=1000.0)
    kernel = Kernel(timings)
    kernel.may_send.set()
    kernel.silent = "shell"
    kernel.dispatcher.window.size = 1
    request = asyncio.ensure_future(kernel.dispatcher.request({}))
    async with asyncio.timeout(30):
        while kernel.nudges < 1:  # it says nothing, which may be lost
            await asyncio.sleep(timings.inquiry_after)
        kernel.dispatcher.received("iopub", status("other", "busy", None))
        await asyncio.sleep(20 * timings.inquiry_after)
        assert kernel.nudges == 1
        kernel.dispatcher.received("iopub", status("other", "idle", None))
        while kernel.nudges < 3:
            await asyncio.sleep(timings.inquiry_after)
        answer(kernel, "1")
        await request
        nudges = kernel.nudges
        while kernel.nudges == nudges:  # another client's message may have been missed
            await asyncio.sleep(timings.inquiry_after)
        await asyncio.sleep(20 * timings.inquiry_after)
    assert kernel.nudges == nudges + 1
    assert kernel.sent == ["execute_request"]


class SideChannel:
    """A connection beside the messages that owes a reply."""

    at_work = True

    def __init__(self) -> None:
        self.errors: list[BaseException] = []

    def fail_waiters(self, why: Any) -> None:
        self.errors.append(why())


@pytest.mark.parametrize("silent", ["control", ""])
async def test_a_reply_beside_the_messages_is_waited_for_while_control_answers(silent: str) -> None:
    """J3. The interpreter lock is held for ever: the socket thread answers no more than control."""
    timings = Timings(inquiry_after=0.01, lost_after=0.1)
    kernel, side = Kernel(timings, control=True), SideChannel()
    kernel.life.side_channel = side
    kernel.may_send.set()
    kernel.silent = silent
    kernel.dispatcher.inquiry.start(BESIDE)
    async with asyncio.timeout(30):
        if silent:
            await asyncio.wait(kernel.tasks)
            assert [type(error) for error in side.errors] == [KernelUnresponsive]
        else:
            while len(kernel.sent) < 5:  # it is asked less and less often
                await asyncio.sleep(timings.inquiry_after)
            assert not side.errors
            side.at_work = False
            await asyncio.wait(kernel.tasks)
    assert not kernel.dispatcher.pending
    assert kernel.life.is_unresponsive == bool(silent)


async def test_a_reply_on_control_that_comes_late_is_taken() -> None:
    kernel = Kernel()
    kernel.may_send.set()
    kernel.lost = 1000
    asked = asyncio.ensure_future(kernel.dispatcher.control("own_request", {}))
    while len(kernel.sent) < 3:
        await asyncio.sleep(TIMINGS.inquiry_after)
    reply = {"header": {"msg_type": "own_reply"}, "parent_header": {"msg_id": "1"}}
    kernel.dispatcher.received("control", {**reply, "content": {"answer": "late"}})
    assert await asked == {"answer": "late"}
    assert not kernel.dispatcher.pending
    assert not kernel.dispatcher._listening


async def test_one_question_is_enough_for_all_requests_on_control() -> None:
    """The answer proves that the replies to all requests before it are lost."""
    kernel = Kernel()
    kernel.may_send.set()
    kernel.lost = 3
    asked = [asyncio.ensure_future(kernel.dispatcher.control("own_request", {})) for _ in range(3)]
    async with asyncio.timeout(30):
        await asyncio.wait(asked)
    assert [type(one.exception()) for one in asked] == [ReplyLost] * 3
    assert kernel.sent == [*["own_request"] * 3, "kernel_info_request"]
    assert not kernel.dispatcher.pending


async def test_an_unresponsive_kernel_is_asked_once_for_a_sign_of_life() -> None:
    kernel = Kernel(Timings(silence=0.1), control=True)
    kernel.may_send.set()
    kernel.life.note_unresponsive(lambda: KernelUnresponsive("known"))
    for _ in range(3):  # as callers that come while the question waits for its answer
        kernel.dispatcher.inquiry.start(SIGN)
    async with asyncio.timeout(30):
        await kernel.life.wait_until_responsive()
        await asyncio.wait(kernel.tasks)
    assert kernel.sent == ["kernel_info_request"]
    assert not kernel.dispatcher.pending


async def test_a_restart_after_a_break_says_that_the_request_may_have_run() -> None:
    kernel = Kernel()
    kernel.may_send.set()
    kernel.lost = 1
    dispatcher = kernel.dispatcher
    request = asyncio.ensure_future(dispatcher.request({"code": ""}, repeatable=True))
    while not kernel.sent:
        await asyncio.sleep(0)
    dispatcher.life.generation += 1
    (pending,) = dispatcher.pending.values()
    pending.future.set_exception(Reconnected("the connection broke and was made again"))
    with pytest.raises(KernelRestarted, match="may have run in the old process"):
        await request
