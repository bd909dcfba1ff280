"""Events for clients that ask for them.

Rule: use the standard library only, and run on Python 3.8 and later. Over ipyparallel, a client
gets nothing but replies. So it asks on the control channel, and its question waits here until there
is an event; the answer brings all events that there are by then. Only the control thread uses this.
What an event says belongs to the resource that sends it.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Callable, Sequence

ANSWER_BYTES = 16 << 20  # bytes after which an answer takes no further event
MOST_QUESTIONS = 1000  # the question of a client that has vanished stays


class EventQueue:
    """The events that were not asked for yet, and the questions that have no answer yet."""

    def __init__(self, answer: Callable[[Any, Any, Sequence[memoryview]], object]) -> None:
        """``answer`` is called with a question, and the content and the frames of the answer."""
        self._answer = answer
        # By owner, and by the events' ids.
        self._events: dict[str, OrderedDict[str, tuple[dict[str, str], list[memoryview]]]] = {}
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

    def put(self, owner: str, content: dict[str, str], parts: list[memoryview]) -> None:
        """Take an event for its owner, in place of the same event that was not asked for yet.

        An event is sent again as long as the client does not have it.
        """
        self._events.setdefault(owner, OrderedDict())[content["event"]] = content, parts
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
            _, (content, parts) = waiting.popitem(last=False)
            events.append([content, len(parts)])
            frames += parts
            # Frames of a client without a lane of its own are in the text.
            nbytes += sum(map(len, content.values())) + sum(part.nbytes for part in parts)
        if not waiting:
            del self._events[owner]
        self._answer(self._questions.pop(owner), {"events": events}, frames)
