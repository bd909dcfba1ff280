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
        events = [[event["event"], count] for event, count in content["events"]]
        self.given.append((question, events, [bytes(frame) for frame in frames]))

    def put(self, owner: str, event: str, *parts: bytes, text: str = "") -> None:
        self.queue.put(owner, {"event": event, "answer": text}, [memoryview(one) for one in parts])


@pytest.fixture
def answers() -> Answers:
    return Answers()


def test_a_question_waits_for_an_event(answers: Answers) -> None:
    answers.queue.ask("a", 1)
    assert not answers.given
    answers.put("a", "x", b"1", b"2")
    answers.put("a", "y")
    assert answers.given == [(1, [["x", 2]], [b"1", b"2"])]
    answers.queue.ask("a", 2)
    assert answers.given[1:] == [(2, [["y", 0]], [])]


def test_events_wait_for_a_question_of_their_owner(answers: Answers) -> None:
    answers.put("a", "x", b"1")
    answers.put("a", "y", b"2")
    answers.queue.ask("b", 1)
    assert not answers.given
    answers.queue.ask("a", 2)
    assert answers.given == [(2, [["x", 1], ["y", 1]], [b"1", b"2"])]


def test_an_answer_has_an_end(answers: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_queue, "ANSWER_BYTES", 4)
    for n in range(5):
        answers.put("a", str(n), b"1")
    for question in range(3):
        answers.queue.ask("a", question)
    assert [len(events) for _, events, _ in answers.given] == [2, 2, 1]


def test_the_text_of_an_event_counts_towards_the_end_of_an_answer(
    answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_queue, "ANSWER_BYTES", 100)
    for n in range(3):
        answers.put("a", str(n), text="x" * 100)
    for question in range(3):
        answers.queue.ask("a", question)
    assert [events for _, events, _ in answers.given] == [[["0", 0]], [["1", 0]], [["2", 0]]]


def test_an_event_that_is_sent_again_is_in_the_queue_once(answers: Answers) -> None:
    for part in (b"1", b"2", b"3"):
        answers.put("a", "r:1", part)
        answers.put("a", "r:2")
    answers.queue.ask("a", 1)
    assert answers.given == [(1, [["r:1", 1], ["r:2", 0]], [b"3"])]


def test_a_question_replaces_an_earlier_one_or_withdraws_it(answers: Answers) -> None:
    answers.queue.ask("a", 1)
    answers.queue.ask("a", 2)
    answers.put("a", "x")
    assert [question for question, _, _ in answers.given] == [2]
    answers.queue.ask("a", 3)
    answers.queue.ask("a", None)
    answers.put("a", "y")
    assert len(answers.given) == 1


def test_the_events_of_an_owner_that_ended_are_dropped(answers: Answers) -> None:
    answers.put("a", "x")
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
        answers.put(owner, "x")
    assert [question for question, _, _ in answers.given] == ["b", "c"]
