"""Events for clients that ask for them.

Rule: use the standard library only, and run on Python 3.8 and later. Over ipyparallel, a client
gets nothing but replies. So it asks on the control channel, and its question waits here until there
is an event; the answer brings all events that there are by then. Only the control thread uses this.
What an event says belongs to the resource that sends it.
"""

from __future__ import annotations

from typing import Any, Callable, Sequence

ANSWER_BYTES = 16 << 20  # bytes of frames, after which an answer takes no further event
MOST_QUESTIONS = 1000  # the question of a client that has vanished stays


class EventQueue:
    """The events that were not asked for yet, and the questions that have no answer yet."""

    def __init__(self, answer: Callable[[Any, Any, Sequence[memoryview]], object]) -> None:
        """``answer`` is called with a question, and the content and the frames of the answer."""
        self._answer = answer
        self._events: dict[str, list[tuple[Any, list[memoryview]]]] = {}  # by owner
        self._questions: dict[str, Any] = {}  # by owner

    def ask(self, owner: str, question: Any) -> None:
        """Take a question, in place of the owner's earlier one; None if the owner asks no more."""
        self._questions.pop(owner, None)
        if question is None:  # its events stay: they may be those of a resource that is just made
            return
        if len(self._questions) >= MOST_QUESTIONS:
            del self._questions[next(iter(self._questions))]
        self._questions[owner] = question
        self._send(owner)

    def put(self, owner: str, content: Any, parts: list[memoryview]) -> None:
        """Take an event for its owner."""
        self._events.setdefault(owner, []).append((content, parts))
        self._send(owner)

    def forget(self, owner: str) -> None:
        """Drop the events of an owner that has no resource any more."""
        self._events.pop(owner, None)

    def _send(self, owner: str) -> None:
        waiting = self._events.get(owner)
        if not waiting or owner not in self._questions:
            return
        events: list[Any] = []
        frames: list[memoryview] = []
        nbytes = 0
        while waiting and nbytes < ANSWER_BYTES:
            content, parts = waiting.pop(0)
            events.append([content, len(parts)])
            frames += parts
            nbytes += sum(part.nbytes for part in parts)
        if not waiting:
            del self._events[owner]
        self._answer(self._questions.pop(owner), {"events": events}, frames)
