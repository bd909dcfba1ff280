"""Batches of requests that cross together, under every Python found here.

Rule: another interpreter evaluates the client's expressions; see ``support/bare.py``.
"""

from __future__ import annotations

import sys
from typing import Any

import pytest

from bridgehead import NameNotFound, ProtocolError, RemoteError
from bridgehead._protocol import payload as _payload
from bridgehead._protocol import response as _response
from bridgehead._protocol.request import Request, batch
from support.bare import (
    CHUNK,
    INTERRUPT,
    Bomb,
    Header,
    Outcome,
    Space,
    left,
    megabytes,
    stream,
    to_bind,
)

WHERE = ("serve_each", "bind", "drop", "take_effect")


def to_ask(space: Space, operation: str, **fields: Any) -> tuple[Header, _payload.Payload]:
    return space.header(operation, **fields), _payload.EMPTY


def value(outcome: Outcome) -> Any:
    assert isinstance(outcome, tuple)
    return _payload.decode(outcome[1])


def test_the_requests_of_a_batch_run_in_order(space: Space) -> None:
    outcomes = space.batch(
        to_bind(space, x=1),
        to_ask(space, "fetch", expressions=["x"]),
        to_bind(space, x=2, y=bytearray(5000)),
        to_ask(space, "fetch", expressions=["x", "y"]),
        to_ask(space, "drop", names=["x"]),
        to_ask(space, "has", name="x"),
        to_ask(space, "names", pattern="*"),
    )
    assert value(outcomes[1]) == (1,)
    assert value(outcomes[3]) == (2, bytearray(5000))
    assert outcomes[5][0]["has"] is False
    assert [entry["name"] for entry in outcomes[6][0]["names"]] == ["y"]


def test_a_failing_request_of_a_batch_fails_alone(space: Space) -> None:
    outcomes = space.batch(
        to_bind(space, a=1, b=2),
        to_bind(space, a="no", c=Bomb(int, "no number")),
        to_ask(space, "fetch", expressions=["nowhere"]),
        to_ask(space, "drop", names=["b", "nowhere"]),
        to_bind(space, d=Bomb(sys.exit, "leaving")),
        to_ask(space, "fetch", expressions=["a"]),
    )
    kinds = [type(outcome) for outcome in outcomes]
    assert kinds == [tuple, RemoteError, NameNotFound, NameNotFound, RemoteError, tuple]
    assert type(outcomes[1].__cause__) is ValueError
    assert value(outcomes[5]) == (1,)
    assert space.names() >= {"a", "b"}
    assert not space.names() & {"c", "d"}


OF_WATCH = {"resource": "w", "owner": "o"}


@pytest.mark.parametrize(
    "operation", ["call", "hello", "load_codec", "batch", "watch", "next_chunk", "chunk"]
)
def test_a_batch_with_an_operation_that_crosses_alone_is_refused_and_changes_nothing(
    space: Space, operation: str
) -> None:
    before = space.snapshot()
    alone = to_ask(space, operation, expressions=["1"], requests=[], **OF_WATCH)
    with pytest.raises(ProtocolError, match="cannot be in a batch"):
        space.batch(to_bind(space, a=1), alone, to_bind(space, b=1))
    assert space.snapshot() == before


@pytest.mark.parametrize("damaged", [{}, None, [], {"op": "bind"}, 7], ids=repr)
def test_a_batch_with_a_malformed_request_is_refused_and_changes_nothing(
    space: Space, damaged: Any
) -> None:
    before = space.snapshot()
    header, payload = to_bind(space, a=1)
    whole = batch([Request(header, payload)], "sha256", chunk=CHUNK)
    with pytest.raises(ProtocolError):
        space.finish({**whole.header, "requests": [header, damaged]}, stream(payload.frames))
    assert space.snapshot() == before


def test_a_batch_with_fewer_frames_than_its_requests_need_is_reported(space: Space) -> None:
    first, second = to_bind(space, a=1), to_bind(space, b=1)
    requests = [Request(*first), Request(second[0])]
    whole = batch(requests, "sha256", chunk=CHUNK)
    response, parts = space.finish(whole.header, stream(first[1].frames))
    answers = [opened.header for opened in _response.split_batch(response, parts, requests)]
    assert "error" not in answers[0]
    assert answers[1]["error"]["kind"] == "protocol"
    assert "b" not in space.names()


def test_requests_behind_a_full_message_do_not_run_and_must_be_sent_again(
    space: Space,
) -> None:
    space.bind(long=megabytes(0.2), other=1)
    asked = [
        to_ask(space, "fetch", expressions=["other"]),
        to_ask(space, "fetch", expressions=["long"]),
        to_bind(space, other=2),
        to_ask(space, "drop", names=["long"]),
    ]
    outcomes = space.batch(*asked)
    assert value(outcomes[0]) == (1,)
    assert value(outcomes[1]) == (megabytes(0.2),)  # the rest of it was fetched later
    assert outcomes[2:] == [None, None]
    assert space.fetch("other") == 1
    assert space.kept() == (0, 1)
    space.forget(asked[1][0])
    assert all(isinstance(outcome, tuple) for outcome in space.batch(*asked[2:]))
    assert space.fetch("other") == 2
    assert "long" not in space.names()


@pytest.mark.slow
def test_an_interrupt_at_any_instruction_leaves_each_request_of_a_batch_whole(space: Space) -> None:
    tracer = Space(space.bare)
    tracer.cell(INTERRUPT)
    interrupted = late = 0
    pairs = [("a", "b"), ("c", "d"), ("e", "f")]
    done = [{"'after'"}, {None}, {"'after'"}]
    while True:
        space.bind(**dict.fromkeys("abcdef", "before"))
        tracer.cell(f"interrupt = Interrupt({interrupted + 1}, {WHERE})\nsys.settrace(interrupt)")
        asked = [
            to_bind(space, a="after", b="after"),
            to_ask(space, "drop", names=["c", "d"]),
            to_bind(space, e="after", f="after"),
        ]
        try:
            outcomes = space.batch(*asked)
        finally:
            tracer.cell("sys.settrace(None)")
        values = {name: text for name, _, text in space.snapshot()}
        states = [{values.get(repr(name)) for name in pair} for pair in pairs]
        for outcome, state, after in zip(outcomes, states, done, strict=True):
            assert state == (after if isinstance(outcome, tuple) else {"'before'"})
        failed = [outcome for outcome in outcomes if isinstance(outcome, RemoteError)]
        assert [error.ename for error in failed] in ([], ["KeyboardInterrupt"])
        if left(tracer):
            break
        late += not failed
        interrupted += 1
    assert interrupted > 10
    assert late > 0
