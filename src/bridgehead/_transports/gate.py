"""The gate before a kernel: open while it is known which process of the kernel answers.

Rule: which process answered last, and the messages that wait until that is known. How a
connection breaks and is made again is the transport's. Each process of a kernel writes a session id
of its own into its messages, and answers ``kernel_info`` on the control channel while a cell runs.

A message that is sent over a new connection without asking may run in another process than the one
it was meant for: of 40 cells that waited during a restart behind a server, 40 did.
"""

from __future__ import annotations

import asyncio

from bridgehead._errors import KernelUnresponsive
from bridgehead._transports.state import KernelState


class Gate:
    """Which process of a kernel answers, as far as it is known.

    Attributes:
        process: the session id of the process that answered last; None before the first one.
        is_open: whether that process answered over the connection as it is now.
        former: the processes that another one replaced; a message of theirs may come late.
        waiting: ids of messages that were not sent, because the gate is shut.
    """

    def __init__(self, life: KernelState) -> None:
        self._life = life
        self._deadline: asyncio.TimerHandle | None = None  # of a process that was asked
        self.process: str | None = None
        self.is_open = False
        self.former: set[str] = set()
        self.waiting: set[str] = set()
        self._questions: set[str] = set()
        self._changed = asyncio.Event()

    def shut(self, *, forget: bool = False) -> None:
        """Let no message pass until a process answers a question that is asked after this.

        ``forget`` the process that answered before: whichever answers next is expected.
        """
        self.is_open = False
        self._questions.clear()
        self._cancel_deadline()
        if forget and self.process is not None:
            self.former.add(self.process)
            self.process = None

    def asked(self, question: str) -> None:
        """Note that a question was sent, by its message id."""
        self._questions.add(question)
        self.expect_answer()

    def expect_answer(self) -> None:
        """Have what waits fail with ``KernelUnresponsive`` if nothing answers for ``lost_after``.

        A question may still have to be sent.
        """
        # The caller's own timeout holds for a process that is starting.
        has_none = self._life.state in ("starting", "closed")
        if not (self.is_open or self._deadline or has_none):
            loop = asyncio.get_running_loop()
            self._deadline = loop.call_later(self._life.timings.lost_after, self._silent)

    def counts(self, question: object) -> bool:
        """Return whether an answer to this question shows which process answers now.

        An answer to a question from before a break may come late: a server keeps it.
        """
        if question not in self._questions:
            return False
        self._questions.discard(str(question))
        return True

    def open(self, process: str | None) -> None:
        """Let messages pass: this process answers; None for whichever answers first."""
        self.process, self.is_open = process, True
        self._cancel_deadline()
        self._life.note_responsive()
        self.wake()

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _silent(self) -> None:
        self._deadline = None  # the next question sets another one
        self._life.note_unresponsive(
            lambda: KernelUnresponsive(
                f"for {self._life.timings.lost_after:g} s the kernel has answered nothing on its "
                "control channel, not even which of its processes answers now; the bridge sends "
                "nothing to it before it does"
            ),
            only_beats=True,
        )
        self.wake()

    def lost(self) -> None:
        """Note that the kernel is lost, or the transport closed: what waits looks at that."""
        self._cancel_deadline()
        self.wake()

    def wake(self) -> None:
        """Let what waits look again at the state of the kernel."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait(self, message: str) -> None:
        """Wait until ``wake`` is called, on behalf of a message with this id."""
        self.waiting.add(message)
        try:
            await self._changed.wait()
        finally:
            self.waiting.discard(message)
