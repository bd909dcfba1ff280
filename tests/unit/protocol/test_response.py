"""What any answer becomes.

Rule: an answer is untrusted until it was checked. Whatever a kernel says, the caller gets a
value or a ``BridgeError``, never an accident.
"""

from __future__ import annotations

import base64
import copy
import pickle
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from bridgehead import BridgeError, ProtocolError, ReplyLost, UnsupportedKernel
from bridgehead._lanes.base import Request
from bridgehead._lanes.inline import InlineLane
from bridgehead._protocol import payload as _payload
from bridgehead._protocol import response as _protocol
from bridgehead._shipped.wire import frames as _wire
from bridgehead._shipped.wire import pickling as _codec
from bridgehead._shipped.wire.header import MIME
from bridgehead._transports.base import MAX_SEND
from support.answers import KINDS, ODD, consume, content_of, entry, header, is_reported, named, odd

EMPTY_DIGEST = "crc32:00000000"


# ---------------------------------------------------------------- what comes back


def answer_of(value: Any, **fields: Any) -> tuple[dict[str, Any], list[bytes]]:
    """A good answer's header and frames."""
    frames = _codec.encode(value)[0]
    sizes = [frame.nbytes for frame in frames]
    told = {"sizes": sizes, "digest": _wire.digest("sha256", frames), **fields}
    return told, [bytes(frame) for frame in frames]


def test_a_good_answer_is_its_frames() -> None:
    told, parts = answer_of({"x": [1, 2], "b": b"\xff" * 5000})
    frames = consume(content_of(told), parts)
    assert _payload.decode(frames) == {"x": [1, 2], "b": b"\xff" * 5000}


def test_an_answer_of_no_frames_is_good_too() -> None:
    assert consume(content_of({"sizes": [], "digest": EMPTY_DIGEST}), []) == []


def test_an_answer_may_come_in_pieces() -> None:
    told, parts = answer_of(b"\xff" * 5000)
    data = b"".join(parts)
    inbox = _protocol.open_response(told)
    for start, stop in ((0, 1000), (3000, len(data)), (1000, 3000)):
        parts = [data[start : stop - 500], data[stop - 500 : stop]]
        more = {"digest": _wire.digest("sha256", parts)}
        _protocol.add_chunk(more, inbox, start, parts)
    assert _payload.decode(_protocol.close_response(inbox)) == b"\xff" * 5000


SILENT: dict[str, Any] = {
    "no user_expressions": {"status": "ok"},
    "user_expressions that are null": {"status": "ok", "user_expressions": None},
    "no entry": {"status": "ok", "user_expressions": {}},
    "an entry that is null": entry(None),
    "no data": entry({"status": "ok"}),
    "data that is null": entry({"status": "ok", "data": None}),
    "only a repr": entry({"status": "ok", "data": {"text/plain": "<Answer>"}}),
    "an aborted request": {"status": "aborted"},
}


@pytest.mark.parametrize("content", SILENT.values(), ids=SILENT.keys())
def test_support_is_judged_by_a_value_that_came_back(content: Any) -> None:
    with pytest.raises(UnsupportedKernel):
        consume(content, [])


# ---------------------------------------------------------------- hostile answers


def holds(content: Any, parts: list[bytes]) -> None:
    """The content leads to frames or to a BridgeError, as above, and to nothing else."""
    try:
        frames = consume(content, parts)
    except BridgeError:
        is_reported(content, parts)
    else:
        assert all(isinstance(frame, memoryview) for frame in frames)


@odd
def test_any_content_is_told(value: Any) -> None:
    is_reported(value, [])


@odd
@pytest.mark.parametrize("status", ["ok", "error"])
def test_any_user_expressions_are_told(value: Any, status: str) -> None:
    is_reported({"status": status, "user_expressions": value}, [])


@odd
def test_any_entry_is_told(value: Any) -> None:
    is_reported(entry(value), [])


@odd
@pytest.mark.parametrize("field", ["status", "ename", "evalue", "traceback"])
def test_any_field_of_a_failed_entry_is_told(value: Any, field: str) -> None:
    fields = {"status": "error", "ename": "E", "evalue": "v", "traceback": ["t"], field: value}
    is_reported(entry(fields), [])


@odd
@pytest.mark.parametrize("field", ["ename", "evalue", "traceback"])
def test_any_field_of_a_failed_reply_is_told(value: Any, field: str) -> None:
    is_reported(
        {"status": "error", "ename": "E", "evalue": "v", "traceback": ["t"], field: value}, []
    )


@odd
def test_any_data_is_told(value: Any) -> None:
    is_reported(entry({"status": "ok", "data": value}), [])


@odd
def test_any_value_of_our_mime_type_is_told(value: Any) -> None:
    is_reported(entry({"status": "ok", "data": {MIME: value}}), [])


@odd
def test_any_json_instead_of_an_answer_is_told(value: Any) -> None:
    is_reported(content_of(value), [])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "nothing",
        '{"sizes": [1',
        "\x00",
        "[" * 100_000,
        '{"a":' * 100_000,
        "[" * 100_000 + "]" * 100_000,
        "9" * 100_000,
    ],
    ids=lambda text: repr(text[:12]) + f" {len(text)} long",
)
def test_any_text_instead_of_json_is_told(text: str) -> None:
    with pytest.raises(ProtocolError):
        consume(entry({"status": "ok", "data": {MIME: text}}), [])


@pytest.mark.parametrize(
    "sizes",
    [
        *[value for value in ODD if value not in ("", [], {})],
        *[[value] for value in ODD if type(value) is not int or value < 0],
        [1, -1],
    ],
    ids=named,
)
def test_sizes_that_are_none_are_a_protocol_error(sizes: Any) -> None:
    with pytest.raises(ProtocolError):
        consume(content_of({"sizes": sizes, "digest": EMPTY_DIGEST}), [])


def test_missing_sizes_are_a_protocol_error() -> None:
    with pytest.raises(ProtocolError):
        consume(content_of({"digest": EMPTY_DIGEST}), [])


@pytest.mark.parametrize("size", [2**60, 2**62, 2**63, 2**64, 10**30], ids=lambda n: f"{n:.0e}")
def test_sizes_beyond_any_memory_are_told(size: int) -> None:
    is_reported(content_of({"sizes": [3, size], "digest": EMPTY_DIGEST}), [b"abc"])


@odd
def test_an_answer_with_any_digest_but_the_right_one_is_lost(value: Any) -> None:
    told, parts = answer_of([1, 2, 3], digest=value)
    with pytest.raises(ReplyLost):
        consume(content_of(told), parts)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        pytest.param(lambda parts: [], "digest", id="none"),
        pytest.param(lambda parts: [parts[0][:-1]], "of", id="too few"),
        pytest.param(lambda parts: [*parts, b"x"], "do not fit", id="too many"),
        pytest.param(lambda parts: [parts[0][::-1]], "digest", id="others"),
    ],
)
def test_an_answer_whose_frames_are_not_those_signed_is_lost(
    change: Callable[[list[bytes]], list[bytes]], text: str
) -> None:
    told, parts = answer_of(["a", "b"])
    with pytest.raises(ReplyLost, match=text):
        consume(content_of(told), change(parts))


def mutated(value: Any, source: random.Random) -> Any:
    """``value`` with one node of it, anywhere, replaced, removed or put elsewhere."""
    value = copy.deepcopy(value)
    places: list[tuple[Any, Any]] = []

    def visit(node: Any) -> None:
        pairs = node.items() if isinstance(node, dict) else enumerate(node)
        for key, child in pairs:
            places.append((node, key))
            if isinstance(child, (dict, list)):
                visit(child)

    visit(value)
    node, key = source.choice(places)
    if source.random() < 0.3:
        del node[key]
    else:
        node[key] = source.choice([*ODD, [node[key]], {"x": node[key]}, str(node[key])])
    return value


@pytest.mark.parametrize("seed", range(40))
def test_answers_damaged_anywhere_are_told_or_harmless(seed: int) -> None:
    source = random.Random(seed)
    frames = [pickle.dumps(LookupError("bad"))]
    signed = {"sizes": [len(frames[0])], "digest": _wire.digest("crc32", frames)}
    told: list[Any] = [{**signed, "error": dict(kind[0], code_of=None)} for kind in KINDS.values()]
    told += [signed, {**signed, "names": [{"name": "x"}], "epoch": "0"}]
    for _ in range(50):
        inner = source.choice(told)
        for _ in range(source.randrange(3)):
            inner = mutated(inner, source)
        content = content_of(inner)
        for _ in range(source.randrange(2)):
            content = mutated(content, source)
        holds(content, source.choice([frames, [], [b"x"], [frames[0] + b"x"]]))


def wire(request: Any) -> Any:
    """As much of a transport as a lane needs."""
    spawn = lambda work: work.close()  # noqa: E731
    return SimpleNamespace(
        dispatcher=SimpleNamespace(request=request),
        spawn=spawn,
        resumable=False,
        max_send=MAX_SEND,
        max_receive=MAX_SEND,
    )


@odd
async def test_any_inline_data_is_told(value: Any) -> None:
    told, _ = answer_of([1, 2, 3])

    async def request(content: Any, **order: Any) -> Any:
        return SimpleNamespace(content=content_of({**told, "data": value}), buffers=[])

    lane = InlineLane(wire(request))
    with pytest.raises((ProtocolError, ReplyLost)):
        request = Request(header(), [])
        await lane.rest(request, await lane.carry(request))


async def test_inline_data_is_decoded() -> None:
    told, parts = answer_of([1, 2, 3])
    data = base64.b64encode(b"".join(parts)).decode()

    async def request(content: Any, **order: Any) -> Any:
        return SimpleNamespace(content=content_of({**told, "data": data}), buffers=[])

    lane = InlineLane(wire(request))
    asked = Request(header(), [])
    _, frames = await lane.rest(asked, await lane.carry(asked))
    assert _payload.decode(frames) == [1, 2, 3]
