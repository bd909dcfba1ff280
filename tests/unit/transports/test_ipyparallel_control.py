"""Events that an engine sends as answers, also an engine that sends anything.

Rule: no cluster. A client is stood in for by a table of its requests, which the test answers.
"""

from __future__ import annotations

import concurrent.futures
import time
from types import SimpleNamespace
from typing import Any

import pytest

from bridgehead._transports import ipyparallel_control
from bridgehead._transports.base import Transport
from bridgehead._transports.ipyparallel_control import EngineControl


class Client:
    """Notes what is asked on the control channel, and passes on what the test answers."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any], Any]] = []
        self.forgotten: list[Any] = []
        self.seen: list[dict[str, Any]] = []
        self.loop = self
        self.later: list[tuple[Any, ...]] = []

    def ask_on_control(self, identity: str, kind: str, content: dict[str, Any]) -> Any:
        future: Any = concurrent.futures.Future()
        self.asked.append((identity, content, future))
        return future

    def forget(self, future: Any) -> None:
        self.forgotten.append(future)

    def forget_outputs(self, request: str) -> None:
        self.forgotten.append(request)

    def call(self, function: Any, *args: Any) -> None:
        function(*args)

    def call_later(self, delay: float, function: Any, *args: Any) -> None:
        assert delay > 0
        self.later.append((function, *args))

    def wait(self) -> None:
        """Let the time pass until what was to be called later is called."""
        later, self.later = self.later, []
        for function, *args in later:
            function(*args)

    def received(self, channel: str, message: dict[str, Any]) -> None:
        if not isinstance(message["content"], dict):
            raise TypeError(channel)
        message["header"]["msg_type"].endswith("x")
        self.seen.append(message)

    def answer(self, content: Any, buffers: Any = (), question: int = -1) -> None:
        self.asked[question][2].set_result({"content": content, "buffers": list(buffers)})


@pytest.fixture
def client() -> Client:
    return Client()


@pytest.fixture
def control(client: Client) -> EngineControl:
    made: Any = EngineControl
    return made(client, client)  # type: ignore[no-any-return]


def test_each_answer_is_followed_by_another_question(
    control: EngineControl, client: Client
) -> None:
    control.expect_events("engine", "me", "epoch")
    control.expect_events("engine", "me", "epoch")
    assert [(engine, content) for engine, content, _ in client.asked] == [
        ("engine", {"owner": "me"})
    ]
    client.answer({"events": [[{"resource": "a"}, 2], [{"resource": "b"}, 1]]}, [1, 2, 3])
    assert [(one["content"], one["buffers"]) for one in client.seen] == [
        ({"resource": "a"}, [1, 2]),
        ({"resource": "b"}, [3]),
    ]
    assert len(client.asked) == 2


INFINITE = float("inf")  # JSON has Infinity, as Python reads it


@pytest.mark.parametrize(
    "content",
    [{}, None, {"events": 3}, {"events": [3]}, {"events": [[1, "x"]]}, {"events": [[1, INFINITE]]}],
)
def test_what_cannot_be_read_is_counted_and_asked_again(
    control: EngineControl, client: Client, content: Any
) -> None:
    control.expect_events("engine", "me", "epoch")
    client.answer(content)
    assert (control.unreadable, client.seen) == (1, [])
    client.wait()
    client.answer({"events": [[None, 0], [{}, 0]]})
    assert (control.unreadable, len(client.seen)) == (2, 1)
    assert len(client.asked) == 3


@pytest.mark.parametrize("content", [{}, {"events": []}])
def test_an_engine_that_answers_without_events_is_asked_after_a_pause(
    control: EngineControl, client: Client, content: Any
) -> None:
    control.expect_events("engine", "me", "epoch")
    client.answer(content)
    assert len(client.asked) == 1
    client.wait()
    assert len(client.asked) == 2
    client.answer(content)
    control.forget_all()
    asked = len(client.asked)
    client.wait()
    assert len(client.asked) == asked


@pytest.mark.parametrize("kind", [None, 3])
def test_a_reply_that_cannot_be_read_is_counted(
    control: EngineControl, client: Client, kind: Any
) -> None:
    control.send("engine", {"header": {"msg_id": "1", "msg_type": "x"}, "content": {}})
    client.asked[-1][2].set_result({"header": {"msg_type": kind}, "content": {}})
    assert (control.unreadable, client.seen) == (1, [])


class Clock:
    """The time that the control goes by."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = time.monotonic()
        clock = SimpleNamespace(monotonic=lambda: self.now)
        monkeypatch.setattr(ipyparallel_control, "time", clock)

    def go_on(self) -> None:
        self.now += Transport.timings.report_every + 1


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_a_question_without_an_answer_is_asked_again(
    control: EngineControl, client: Client, clock: Clock
) -> None:
    for _ in range(4):
        control.expect_events("engine", "me", "epoch")
        control.expect_events("engine", "me", "epoch")
        clock.go_on()
    questions = [future for _, _, future in client.asked]
    assert len(questions) == 4
    assert client.forgotten == questions[:2]  # at most two wait for an answer
    client.answer({"events": [[{"resource": "a"}, 0]]})
    assert [one["content"] for one in client.seen] == [{"resource": "a"}]
    assert client.forgotten == questions[:3]
    assert len(client.asked) == 5
    control.expect_events("engine", "me", "epoch")
    assert len(client.asked) == 5


def test_a_late_answer_to_the_question_before_is_taken_and_asks_nothing(
    control: EngineControl, client: Client, clock: Clock
) -> None:
    control.expect_events("engine", "me", "epoch")
    clock.go_on()
    control.expect_events("engine", "me", "epoch")
    client.answer({"events": [[{"resource": "a"}, 0]]}, question=0)
    assert [one["content"] for one in client.seen] == [{"resource": "a"}]
    assert len(client.asked) == 2
    client.answer({"events": [[{"resource": "b"}, 0]]})
    assert len(client.asked) == 3


def test_a_question_is_not_asked_twice_after_a_pause(
    control: EngineControl, client: Client, clock: Clock
) -> None:
    control.expect_events("engine", "me", "epoch")
    clock.go_on()
    client.answer({})
    control.expect_events("engine", "me", "epoch")
    client.wait()
    assert len(client.asked) == 2


def test_another_remote_part_is_asked_anew(control: EngineControl, client: Client) -> None:
    control.expect_events("engine", "me", "epoch")
    control.expect_events("engine", "me", "another")
    contents = [content for _, content, _ in client.asked]
    assert contents == [{"owner": "me"}, {"owner": "me", "end": True}, {"owner": "me"}]
    client.asked[0][2].set_result({"content": {"events": [[{}, 0]]}, "buffers": []})
    assert client.seen == []
    assert len(client.asked) == 3


def test_a_lost_engine_leaves_no_question(control: EngineControl, client: Client) -> None:
    control.finished("printed")
    control.expect_events("engine", "me", "epoch")
    control.send("engine", {"header": {"msg_id": "1", "msg_type": "x"}, "content": {}})
    control.forget_all()
    futures = [future for _, _, future in client.asked]
    assert set(client.forgotten) == {"printed", *futures}
