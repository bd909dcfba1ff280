"""Events that wait for their owner's question, and questions that wait for an event."""

from __future__ import annotations

from typing import Any

import pytest

from bridgehead._shipped.remote import event_queue
from bridgehead._shipped.remote.event_queue import EventQueue


class Answers:
    """A queue, and what it has answered: the question, the events and the frames."""

    def __init__(self) -> None:
        self.given: list[tuple[Any, list[Any], list[bytes]]] = []
        self.queue = EventQueue(self.note)

    def note(self, question: Any, content: Any, frames: Any) -> None:
        self.given.append((question, content["events"], [bytes(frame) for frame in frames]))


@pytest.fixture
def answers() -> Answers:
    return Answers()


def frames(*parts: bytes) -> list[memoryview]:
    return [memoryview(part) for part in parts]


def test_a_question_waits_for_an_event(answers: Answers) -> None:
    answers.queue.ask("a", 1)
    assert not answers.given
    answers.queue.put("a", "x", frames(b"1", b"2"))
    answers.queue.put("a", "y", [])
    assert answers.given == [(1, [["x", 2]], [b"1", b"2"])]
    answers.queue.ask("a", 2)
    assert answers.given[1:] == [(2, [["y", 0]], [])]


def test_events_wait_for_a_question_of_their_owner(answers: Answers) -> None:
    answers.queue.put("a", "x", frames(b"1"))
    answers.queue.put("a", "y", frames(b"2"))
    answers.queue.ask("b", 1)
    assert not answers.given
    answers.queue.ask("a", 2)
    assert answers.given == [(2, [["x", 1], ["y", 1]], [b"1", b"2"])]


def test_an_answer_has_an_end(answers: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_queue, "ANSWER_BYTES", 2)
    for n in range(5):
        answers.queue.put("a", n, frames(b"1"))
    for question in range(3):
        answers.queue.ask("a", question)
    assert [len(events) for _, events, _ in answers.given] == [2, 2, 1]


def test_a_question_replaces_an_earlier_one_or_withdraws_it(answers: Answers) -> None:
    answers.queue.ask("a", 1)
    answers.queue.ask("a", 2)
    answers.queue.put("a", "x", [])
    assert [question for question, _, _ in answers.given] == [2]
    answers.queue.ask("a", 3)
    answers.queue.ask("a", None)
    answers.queue.put("a", "y", [])
    assert len(answers.given) == 1


def test_the_events_of_an_owner_that_ended_are_dropped(answers: Answers) -> None:
    answers.queue.put("a", "x", [])
    answers.queue.forget("a")
    answers.queue.ask("a", 1)
    assert not answers.given


def test_questions_of_owners_that_vanished_are_bounded(
    answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_queue, "MOST_QUESTIONS", 2)
    for owner in "abc":
        answers.queue.ask(owner, owner)
    for owner in "abc":
        answers.queue.put(owner, "x", [])
    assert [question for question, _, _ in answers.given] == ["b", "c"]
