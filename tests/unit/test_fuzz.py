"""Anything at all instead of a message: both sides answer, and go on.

Rule: what is fuzzed is what becomes a value out of bytes: headers, frames and answers. Frames
with an honest digest are only ever harmless pickles: a pickle is opened by design, and an
arbitrary one could do anything. The data-only codec has its own fuzz in ``shipped/data``.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import math
import operator
import os
import pickle
import random
import sys
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bridgehead import Bridge, BridgeError, KernelRestarted, Name, ProtocolError, Result
from bridgehead._connection.cell import CellOutputs
from bridgehead._connection.watch import UpdateBuffer
from bridgehead._protocol import bootstrap as _shipping
from bridgehead._protocol import payload as _payload
from bridgehead._protocol import request as _request
from bridgehead._protocol import response as _protocol
from bridgehead._protocol.raising import raise_error
from bridgehead._protocol.request import KEY
from bridgehead._shipped.wire import frames as _wire
from bridgehead._shipped.wire import pickling as _codec
from bridgehead._shipped.wire.header import DATA_MESSAGE, MIME, UPDATE_MESSAGE
from bridgehead._shipped.wire.transfer import Inbox
from bridgehead._transports.loopback import LoopbackKernel
from bridgehead._transports.messages import Message

Header = dict[str, Any]
MEBIBYTE = 1 << 20
PATIENCE = 60  # s; what takes so long hangs
FUZZ = settings(
    max_examples=12 * settings.default.max_examples // 10,
    deadline=None,
    derandomize="CI" in os.environ,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)

# ---------------------------------------------------------------- what there may be instead


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


# Evaluated as an expression, which a text may be, no such text takes long or does anything.
TEXTS = st.text("ab01([{.,:'\"\\ \n\0é\ud800?!~-+", max_size=8)
NUMBERS = st.one_of(
    st.integers(-3, 70),
    st.sampled_from([2**19, 2**31, 2**47, 2**63, 2**64, 2**70, -(2**63), -(2**70), 10**400]),
    st.floats(),
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
ODD = st.one_of(
    SCALARS,
    st.recursive(
        SCALARS,
        lambda part: st.one_of(
            st.lists(part, max_size=4), st.dictionaries(TEXTS, part, max_size=4)
        ),
        max_leaves=8,
    ),
    st.sampled_from([[2**19], [0], [-1, 1]]).map(lambda sizes: sizes * 500),
    st.integers(20, 40).map(nested),
)


def places(value: Any) -> list[tuple[Any, Any]]:
    """The nodes below ``value``, not too deep, each as the object that holds it and its key."""
    found: list[tuple[Any, Any]] = []
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(6):
        pairs = [
            (node, key)
            for node in level
            for key in (node if isinstance(node, dict) else range(len(node)))
        ]
        found += pairs
        level = [node[key] for node, key in pairs if isinstance(node[key], (dict, list))]
    return found


@st.composite
def mutated(draw: Any, value: Any) -> Any:
    """``value`` with some of its nodes replaced, removed, repeated or wrapped."""
    value = json.loads(json.dumps(value))
    for _ in range(draw(st.integers(1, 3))):
        found = places(value)
        if not found:
            return draw(ODD)
        node, key = draw(st.sampled_from(found))
        kind = draw(st.sampled_from(["replace", "replace", "remove", "wrap", "add"]))
        if kind == "replace":
            node[key] = draw(ODD)
        elif kind == "remove":
            del node[key]
        elif kind == "wrap":
            node[key] = draw(st.sampled_from([[node[key]], {"a": node[key]}]))
        elif isinstance(node, list):
            node.append(draw(ODD))
        else:
            node[draw(st.sampled_from([*FIELDS]))] = draw(ODD)
    return value


FIELDS = (
    "protocol", "op", "id", "epoch", "python", "sizes", "digest", "at", "chunk", "names", "name",
    "expressions", "pattern", "keep", "refs", "max_bytes", "trust", "allow", "opens", "subshell",
    "watch", "lane", "requests", "error", "answers", "retry", "parts", "data", "buffers", "orphans",
)  # fmt: skip


def frames_of(value: Any) -> list[memoryview]:
    return _codec.encode(value)[0]


SOMETHING: list[Any] = [
    None, 5, (), (1,), (1, 2, 3), [1], {}, {"a": 1}, {1: 2}, {"a": 1, "b": 2}, (abs, 5, 6),
    LookupError("a"),
]  # fmt: skip
# What may come with an honest digest: no pickle, or one of something else.
OTHERS = st.sampled_from(
    [
        [],
        [b""],
        [b"this is no pickle"],
        [b"\x80\x05"],
        [b"\x80\x05."],
        [pickle.dumps("cut off", 5)[:-1]],
        *([pickle.dumps(value, 5)] for value in SOMETHING),
    ]
).map(lambda frames: [memoryview(frame) for frame in frames])

# ---------------------------------------------------------------- the far side

KINDS = {
    "remote", "name", "missing", "incompatible", "large", "unsupported", "untrusted", "not_loaded",
    "integrity", "epoch", "protocol",
}  # fmt: skip


class Ground:
    """The real loader, installed by the real expression, and a namespace for it to serve."""

    def __init__(self) -> None:
        self.cell = LoopbackKernel(self.sent)
        self.parts: list[bytes] = []
        self.scope = self.cell.user_ns
        header = _request.header("hello", [], epoch="", algorithm="crc32")
        text = _shipping.expression("inline", header, install=True)
        told = json.loads(eval(text, self.scope)._repr_mimebundle_()[MIME])
        self.epoch: str = told["epoch"]
        self.loader = sys.modules[_shipping.loader_source()[0]]
        self.scope.update(a="before", b=[1], long=bytes(range(256)) * 16)

    def sent(
        self, channel: str, kind: str, content: Any, parent: Any, buffers: Sequence[Any] = ()
    ) -> None:
        assert kind in (DATA_MESSAGE, UPDATE_MESSAGE)
        self.parts += map(bytes, buffers)

    def enter(self, lane: str, text: str, data: bytes) -> Header:
        """One message with any text as its header; what comes back is an answer."""
        inline = base64.b64encode(data).decode() if lane == "inline" else ""
        self.cell.request = {"header": {}, "buffers": [memoryview(data)] if data else []}
        tracemalloc.start()
        try:
            answer = self.loader.enter(self.scope, lane, text, inline)
            used = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert used < len(text) + len(data) + MEBIBYTE
        told = json.loads(answer._repr_mimebundle_()[MIME])
        check_answer(told)
        return told

    def header(self, operation: str, frames: Sequence[memoryview] = (), **fields: Any) -> Header:
        wanted = {"epoch": self.epoch, "algorithm": "crc32", "chunk": 1 << 16, **fields}
        return _request.header(operation, frames, **wanted)

    def names(self) -> dict[str, int]:
        return {name: id(value) for name, value in self.scope.items()}

    def ask(self, header: Header, frames: Sequence[memoryview] = ()) -> Header:
        told = self.enter("inline", json.dumps(header), b"".join(frames))
        assert "error" not in told
        return told

    def is_at_work(self) -> None:
        """An honest request does what it must."""
        frames = frames_of({"honest": [1, "é"]})
        self.ask(self.header("bind", frames, names=["honest"]), frames)
        told = self.ask(self.header("fetch", expressions=["honest"]))
        back = [memoryview(base64.b64decode(told["data"]))]
        assert [frame.nbytes for frame in back] == told["sizes"]
        assert _payload.decode(back) == ([1, "é"],)


def check_answer(told: Any) -> None:
    assert type(told) is dict
    error = told.get("error")
    if error is not None:
        assert error["kind"] in KINDS
        assert type(error.get("message", "")) is str
    for one in told.get("answers", ()):
        check_answer(one)


@contextlib.contextmanager
def ground() -> Iterator[Ground]:
    opened = Ground()
    try:
        yield opened
        opened.is_at_work()
    finally:
        opened.loader.leave(opened.scope)


@pytest.fixture(scope="module", autouse=True)
def warm() -> None:
    """What the loader imports and makes when it is first needed is not counted as an answer's."""
    with ground() as remote:
        remote.is_at_work()
        remote.enter("inline", json.dumps(remote.header("fetch", expressions=["honst"])), b"")
        remote.enter("inline", json.dumps(remote.header("names", pattern="[*")), b"")


LANES = st.sampled_from(["inline", "buffers", "probe", ""])


@FUZZ
@given(LANES, st.one_of(st.text(), ODD.map(json.dumps)), st.binary(), st.text())
@example("inline", "[" * 100_000, b"", "")
@example("inline", "9" * 10_000, b"", "é")
def test_any_header_and_any_data_are_answered(
    lane: str, text: str, data: bytes, no_base64: str
) -> None:
    with ground() as remote:
        before = remote.names()
        assert "error" in remote.enter(lane, text, data)
        answer = remote.loader.enter(remote.scope, "inline", text, no_base64)
        assert "error" in json.loads(answer.text)
        assert remote.names() == before


def honest(remote: Ground, operation: str) -> tuple[Header, list[memoryview]]:
    """A request as a bridge makes it, and its frames."""
    if operation == "bind":
        frames = frames_of({"a": "after", "b": 2})
        return remote.header("bind", frames, names=["a", "b"], max_bytes=5000), frames
    if operation == "call":
        frames = frames_of((operator.add, (2, 3), {}))
        return remote.header("call", frames, keep="kept"), frames
    if operation in ("fetch", "watch"):
        return remote.header(operation, expressions=["a", "b"], watch="w", lane="inline"), []
    if operation == "batch":
        inner = [honest(remote, name) for name in ("bind", "fetch", "has", "names", "drop")]
        frames = [frame for _, some in inner for frame in some]
        return {**_request.batch_header([h for h, _ in inner], frames), "chunk": 1 << 16}, frames
    if operation in ("chunk", "next_chunk", "forget"):
        header, frames = honest(remote, "bind" if operation == "chunk" else "fetch")
        return {**header, "op": operation}, frames
    if operation == "load_codec":
        frames = [memoryview(b"\xff no source")]
        return remote.header("load_codec", frames), frames
    fields = {"names": ["a"], "name": "a", "pattern": "a*", "watch": "w"}
    shell = {"id": "s", "host": "h", "pid": 1}
    return remote.header(operation, **fields, subshell=shell), []


OPERATIONS = (
    "hello", "load_codec", "batch", "bind", "fetch", "call", "drop", "names", "has", "watch",
    "unwatch", "chunk", "next_chunk", "forget",
)  # fmt: skip


@pytest.mark.parametrize("operation", OPERATIONS)
@settings(FUZZ, max_examples=10 * settings.default.max_examples // 10)
@given(st.data())
def test_a_mutated_request_is_answered_and_does_what_it_says_or_nothing(
    operation: str, data: st.DataObject
) -> None:
    with ground() as remote:
        for _ in range(data.draw(st.integers(1, 2))):
            header, frames = honest(remote, operation)
            if data.draw(st.booleans()):
                frames = data.draw(OTHERS)
                header["sizes"] = [frame.nbytes for frame in frames]
                header["digest"] = _wire.digest("crc32", frames)
            wild = data.draw(mutated(header))
            sent = b"".join(frames)
            if data.draw(st.integers(0, 3)) == 0:
                sent = data.draw(st.binary())
            before = remote.names()
            told = remote.enter(data.draw(LANES), json.dumps(wild), sent)
            after = remote.names()
            changed = {name for name in {*before, *after} if before.get(name) != after.get(name)}
            if "error" in told or operation not in ("bind", "call", "drop", "batch"):
                assert not changed
            assert all(type(name) is str for name in changed)


@pytest.mark.parametrize("operation", ["bind", "chunk"])
@pytest.mark.parametrize("sizes", [[2**19] * 5000, [2**46], [2**70], [1, 2**20, 2**40]], ids=len)
def test_memory_that_is_only_announced_is_not_taken(operation: str, sizes: list[int]) -> None:
    with ground() as remote:
        header = {**remote.header("bind", names=["a"]), "op": operation, "sizes": sizes, "at": 0}
        remote.enter("inline", json.dumps(header), b"x")
        remote.enter("inline", json.dumps({**header, "at": max(0, sum(sizes) - 1)}), b"x")


@pytest.mark.parametrize("depth", [100, 500, 800, 900, 950, 1_000, 100_000])
def test_a_header_nested_deeply_is_answered(depth: int) -> None:
    deep = "[" * depth + "]" * depth
    with ground() as remote:
        for field in ("op", "id", "sizes", "at", "names", "keep", "subshell", "protocol"):
            text = json.dumps({**remote.header("bind", names=["a"]), field: "DEEP"})
            told = remote.enter("inline", text.replace('"DEEP"', deep), b"")
            assert "error" in told
        assert remote.scope["a"] == "before"


def test_a_piece_that_announces_much_takes_nobody_elses_place() -> None:
    with ground() as remote:
        frames = frames_of({"a": "after"})
        header, data = remote.header("bind", frames, names=["a"]), b"".join(frames)
        first, rest = memoryview(data[:5]), memoryview(data[5:])
        header["digest"] = _wire.digest("crc32", [first])
        remote.ask({**header, "op": "chunk"}, [first])
        remote.ask({**remote.header("bind", names=[]), "op": "chunk", "sizes": [2**40]})
        remote.ask({**header, "at": 5, "digest": _wire.digest("crc32", [rest])}, [rest])
        assert remote.scope["a"] == "after"


# ``learn`` runs what it is brought: these are no source, whatever follows.
NO_SOURCE = st.builds(
    operator.add, st.sampled_from([b"\xff", b"(\n)(", b"1 +\n", b"a b", b"\0"]), st.binary()
)


@FUZZ
@given(st.lists(NO_SOURCE, min_size=1, max_size=3))
def test_a_lesson_that_is_no_source_is_answered_with_an_error(codec_sources: list[bytes]) -> None:
    with ground() as remote, pytest.MonkeyPatch.context() as patch:
        patch.delitem(vars(remote.loader), "decode_data", raising=False)
        known, before = {**vars(remote.loader)}, remote.names()
        header = remote.header("load_codec", [memoryview(frame) for frame in codec_sources])
        told = remote.enter("inline", json.dumps(header), b"".join(codec_sources))
        assert told["error"]["kind"] == "remote"
        assert vars(remote.loader) == known
        assert remote.names() == before


# ---------------------------------------------------------------- the near side, as thought

SIGNED = {"sizes": [], "digest": "crc32:00000000"}
GREETING = {
    **SIGNED, "epoch": "0", "python": [3, 11, 7], "executable": "/python", "pickle": 5, "pid": 7,
    "versions": {"cloudpickle": "3"}, "uid": 0, "cwd": "/", "orphans": [], "buffers": True,
}  # fmt: skip
TOLD: list[Header] = [
    SIGNED,
    GREETING,
    {**SIGNED, "has": True},
    {**SIGNED, "names": [{"name": "a", "type": "x", "shape": [1], "len": 2, "bytes": None}]},
    {**SIGNED, "answers": [{**SIGNED, "parts": 0, "has": True}, {"retry": True}]},
    *({**SIGNED, "error": {"kind": kind, "message": "m"}} for kind in sorted(KINDS)),
    {**SIGNED, "error": {"kind": "name", "names": ["a"], "close": ["b"]}},
    {**SIGNED, "error": {"kind": "missing", "message": "m", "module": "x", "where": "/"}},
    {**SIGNED, "error": {"kind": "large", "message": "m", "bytes": 5}},
    {**SIGNED, "error": {"kind": "untrusted", "message": "m", "type": "x"}},
    {
        **SIGNED,
        "error": {
            "kind": "remote", "ename": "E", "evalue": "v", "traceback": ["t"], "code_of": None
        },
    },
]  # fmt: skip


def signed(told: Header, frames: Sequence[memoryview]) -> Header:
    sizes = [frame.nbytes for frame in frames]
    return {**told, "sizes": sizes, "digest": _wire.digest("crc32", frames)}


def content_of(told: Any) -> Header:
    data = {"status": "ok", "data": {"text/plain": "", MIME: json.dumps(told)}}
    return {"status": "ok", "user_expressions": {KEY: data}}


def told_or_value(work: Callable[[], Any]) -> Any:
    """What ``work`` gives; of exceptions only those of the tree, which can be shown and pickled."""
    try:
        return work()
    except BridgeError as error:
        told = error
    assert str(pickle.loads(pickle.dumps(told))) == str(told)
    return told


@FUZZ
@given(st.data())
def test_any_content_of_a_reply_is_an_answer_or_told(data: st.DataObject) -> None:
    content = content_of(data.draw(st.sampled_from(TOLD)))
    content = data.draw(st.one_of(ODD, mutated(content), ODD.map(content_of)))
    told = told_or_value(lambda: _protocol.answer(content))
    assert isinstance(told, (dict, BridgeError))


@FUZZ
@given(st.text())
@example("[" * 100_000)
@example('{"sizes": ' + "[" * 900 + "]" * 900 + "}")
def test_any_text_of_an_answer_is_parsed_or_told(text: str) -> None:
    assert isinstance(told_or_value(lambda: _protocol.parse(text)), (dict, ProtocolError))


@FUZZ
@given(st.data())
def test_any_answer_is_opened_and_closed_or_told(data: st.DataObject) -> None:
    frames = data.draw(OTHERS)
    told = signed(data.draw(st.sampled_from(TOLD)), frames)
    if data.draw(st.booleans()):
        told = data.draw(mutated(told).filter(lambda value: isinstance(value, dict)))
    parts = data.draw(st.one_of(st.just(frames), st.lists(st.binary())))
    limits = [data.draw(st.sampled_from([None, 0, 5, 2**70])) for _ in range(2)]

    def consume() -> Any:
        inbox = _protocol.open_response(told, limits[0])
        _protocol.add_chunk(told, inbox, 0, parts)
        whole = _protocol.close_response(inbox)
        raise_error(told, whole, limits[0], trusted=data.draw(st.booleans()))
        return _protocol.part_batch(told, whole, limits)

    tracemalloc.start()
    try:
        told_or_value(consume)
        used = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert used < len(json.dumps(told)) + sum(map(len, parts)) + MEBIBYTE


@FUZZ
@given(st.data())
def test_any_error_is_raised_as_one_of_the_tree(data: st.DataObject) -> None:
    told = data.draw(mutated({"error": data.draw(st.sampled_from(TOLD)).get("error", {})}))
    if isinstance(told, dict):
        told_or_value(lambda: raise_error(told, data.draw(OTHERS), 5))


@pytest.mark.parametrize("depth", [1_000, 100_000])
def test_what_is_nested_too_deeply_to_be_shown_is_told(depth: int) -> None:
    deep = nested(depth)
    fields = ("ename", "evalue", "traceback", "message", "names", "module", "where", "type", "kind")
    told_or_value(lambda: _protocol.answer({"status": "error", "ename": deep, "traceback": deep}))
    for kind in KINDS:
        error = {**dict.fromkeys(fields, deep), "kind": kind}
        assert isinstance(told_or_value(lambda: raise_error({"error": error}, ())), BridgeError)
    told_or_value(lambda: _protocol.add_chunk({"digest": deep}, Inbox([]), 0, []))
    while deep:  # freed step by step
        deep = deep[0]


@FUZZ
@given(st.data())
def test_any_batch_is_parted_or_told_and_gets_somewhere(data: st.DataObject) -> None:
    frames = [memoryview(b"12"), memoryview(b"345")]
    answers = [
        {**signed({}, frames[:1]), "parts": 1},
        {**signed({}, frames[1:]), "parts": 1},
        {"retry": True},
    ]
    told = data.draw(mutated({"answers": answers}))
    if not isinstance(told, dict):
        return
    found = told_or_value(lambda: _protocol.part_batch(told, frames, [None, 5, 0]))
    if isinstance(found, list):
        assert len(found) == 3
        assert found[0] is not None


def test_a_batch_of_which_nothing_was_done_is_told() -> None:
    with pytest.raises(BridgeError):
        _protocol.part_batch({"answers": [{"retry": True}]}, [], [None])
    with pytest.raises(ProtocolError):
        _protocol.part_batch({"answers": [{**SIGNED, "parts": 0}, 5]}, [], [None, None])


@FUZZ
@given(st.one_of(ODD, mutated(GREETING)))
def test_any_greeting_is_complete_or_told(greeting: Any) -> None:
    told = told_or_value(lambda: _protocol.greeting(greeting))
    if isinstance(told, dict):
        python = told["python"]
        assert len(python) == 3
        assert all(type(number) is int for number in python)
        assert all(type(item) is str for item in [*told["versions"].values(), told["epoch"]])
    else:
        assert type(told) is ProtocolError


MESSAGE = {
    "header": {"msg_id": "m", "msg_type": "stream"},
    "parent_header": {"msg_id": "p", "msg_type": "execute_request"},
    "metadata": {},
    "content": {"name": "stdout", "text": "x"},
    "buffers": [],
}


@FUZZ
@given(st.one_of(ODD, mutated(MESSAGE)))
def test_any_message_is_parsed_or_told(message: Any) -> None:
    parsed = told_or_value(lambda: Message.parse(message))
    if isinstance(parsed, Message):
        assert isinstance(parsed.type + parsed.parent + parsed.parent_type + parsed.id, str)
    else:
        assert type(parsed) is ProtocolError


OUTPUT = {
    "name": "stdout", "text": "x", "data": {"text/plain": "x"}, "metadata": {}, "wait": True,
    "transient": {"display_id": "d"}, "execution_state": "idle", "execution_count": 1,
    "ename": "E", "evalue": "v", "traceback": ["t"], "output_type": "stream",
}  # fmt: skip
TYPES = (
    "stream", "display_data", "execute_result", "error", "update_display_data", "clear_output",
    "status", "execute_input",
)  # fmt: skip


@FUZZ
@given(
    st.lists(
        st.tuples(
            st.sampled_from(TYPES),
            st.one_of(st.just(OUTPUT), mutated(OUTPUT), st.dictionaries(TEXTS, ODD)),
        ),
        max_size=6,
    ),
    ODD,
)
async def test_any_outputs_make_a_result(outputs: list[tuple[str, Any]], count: Any) -> None:
    seen: list[Message] = []
    cell = CellOutputs(seen.append)
    for kind, content in outputs:
        if isinstance(content, dict):
            cell.feed(Message(kind, content))
    result = cell.result(count)
    assert all(output["output_type"] in TYPES for output in result.outputs)
    assert result.stdout == "".join(
        output["text"]
        for output in result.outputs
        if output["output_type"] == "stream" and output["name"] == "stdout"
    )
    assert result.execution_count is None or type(result.execution_count) is int
    assert isinstance(repr(result), str)


@FUZZ
@given(st.data())
async def test_any_news_are_told_or_taken(data: st.DataObject) -> None:
    frames = frames_of((1,))
    told = {**signed({}, frames), "data": base64.b64encode(b"".join(frames)).decode()}
    told = data.draw(st.one_of(st.just(told), mutated(told), ODD))
    content: Any = {"watch": "w", "news": "w:1", "answer": json.dumps(told)}
    if data.draw(st.booleans()):
        content = data.draw(st.one_of(mutated(content), ODD))
    news = UpdateBuffer(data.draw(st.sampled_from([None, 0, 100])))
    news.feed(content, data.draw(st.sampled_from([[], [b"x"], frames])))
    opened: Any = None
    with contextlib.suppress(BridgeError):
        opened = await asyncio.wait_for(news.next(), PATIENCE)
    assert opened is None or isinstance(opened, _protocol.PartialResponse)


# ---------------------------------------------------------------- the near side, as a bridge


class Liar:
    """A bridge to a loopback whose messages are changed before they are taken."""

    def __init__(self, bridge: Bridge) -> None:
        self.bridge = bridge
        self.transport: Any = bridge._transport
        self.change: Callable[[str, Header], None] | None = None
        self._received = self.transport.dispatcher.received
        self.transport.dispatcher.received = self.received

    def received(self, channel: str, message: Header) -> None:
        if self.change is not None:
            self.change(channel, message)
        try:  # as the reader of a real kernel's channel does
            self._received(channel, message)
        except Exception:
            self.transport.bad += 1

    async def is_honest(self) -> None:
        """From here on; the bridge works, and nothing of what was before is left."""
        self.change = None
        async with asyncio.timeout(PATIENCE):
            for last in (False, True):
                with contextlib.suppress(*([] if last else [KernelRestarted])):
                    await self.bridge.push(honest=[1, "é"])
            assert await self.bridge.pull("honest") == [1, "é"]
            while self.transport.dispatcher.pending or self.transport.life._waiters:
                await asyncio.sleep(0.001)
        assert not self.bridge._connection.queue._turns
        assert self.transport.dispatcher._slots._value == 32


async def pull(bridge: Bridge) -> None:
    await bridge.pull("a")


async def pull_much(bridge: Bridge) -> None:
    assert type(await bridge.pull("a", "b + b", max_bytes=10_000)) is tuple


async def push(bridge: Bridge) -> None:
    assert (await bridge.push(c=1, d=[2])).names == ("c", "d")


async def call(bridge: Bridge) -> None:
    await bridge.call(operator.add, 2, 3)


async def names(bridge: Bridge) -> None:
    for told in await bridge.names():
        assert type(told) is Name
        assert isinstance(repr(told), str)


async def exists(bridge: Bridge) -> None:
    assert type(await bridge.exists("a")) is bool


async def delete(bridge: Bridge) -> None:
    assert await bridge.delete("a") is None


async def run(bridge: Bridge) -> None:
    result = await bridge.run("print('x')\n7")
    assert type(result) is Result
    assert isinstance(repr(result), str)


async def watch(bridge: Bridge) -> None:
    async with bridge.watch("a") as values:
        await anext(values)


async def together(bridge: Bridge) -> None:
    """Some of these cross in one message."""
    asked = [pull(bridge), exists(bridge), push(bridge), names(bridge), pull_much(bridge)]
    for outcome in await asyncio.gather(*asked, return_exceptions=True):
        if isinstance(outcome, BaseException) and not isinstance(outcome, BridgeError):
            raise outcome


ASKED = [pull, pull_much, push, call, names, exists, delete, run, watch, together]


@st.composite
def lies(draw: Any) -> Callable[[str, Header], None]:
    """How replies are changed: their content, the answer in it, or the answer and its frames."""
    kind = draw(st.sampled_from(["content", "mutated", "answer", "forged", "told", "buffers"]))
    seed = random.Random(draw(st.integers(0, 2**32)))
    other, frames, told = draw(ODD), draw(OTHERS), draw(st.sampled_from(TOLD))
    odd = [draw(ODD) for _ in range(3)]

    def lie(channel: str, message: Header) -> None:
        if channel == "iopub":
            return
        if message["header"]["msg_type"] == DATA_MESSAGE:
            if kind == "forged":
                message["buffers"] = frames
            elif kind == "buffers":
                message["buffers"] = message["buffers"][:-1] + [b"x"] * seed.randrange(3)
            return
        content = message["content"]
        if kind == "content":
            message["content"] = other if isinstance(other, dict) else {"status": "ok", "a": other}
        elif kind == "mutated":
            node, key = seed.choice(places(content))
            node[key] = seed.choice(odd)
        elif kind == "told":
            message["content"] = content_of(told)
        elif content.get("user_expressions"):
            entry = content["user_expressions"][KEY]
            if "data" not in entry:
                return
            said = json.loads(entry["data"][MIME])
            if kind == "answer" and places(said):
                node, key = seed.choice(places(said))
                node[key] = seed.choice(odd)
            elif kind == "forged":
                said = signed(said, frames)
                if "data" in said:
                    said["data"] = base64.b64encode(b"".join(frames)).decode()
            entry["data"][MIME] = json.dumps(said)

    return lie


@pytest.fixture(params=["buffers", "inline"])
async def liar(request: pytest.FixtureRequest) -> AsyncIterator[Liar]:
    async with Bridge.loopback(lane=request.param) as bridge:
        yield Liar(bridge)


@pytest.fixture
async def careful(request: pytest.FixtureRequest) -> AsyncIterator[Liar]:
    async with Bridge.loopback(trust="data") as bridge:
        yield Liar(bridge)


async def lied_to(liar: Liar, ask: Callable[[Bridge], Any], lie: Any) -> None:
    await liar.bridge.push(a="text", b=[1])
    liar.change = lie
    async with asyncio.timeout(PATIENCE):
        with contextlib.suppress(BridgeError):
            await ask(liar.bridge)
    await liar.is_honest()


@pytest.mark.parametrize("ask", ASKED)
@settings(FUZZ, max_examples=4 * settings.default.max_examples // 10)
@given(lie=lies())
async def test_a_bridge_that_is_lied_to_tells_it_and_goes_on(
    liar: Liar, ask: Callable[[Bridge], Any], lie: Any
) -> None:
    await lied_to(liar, ask, lie)


@pytest.mark.parametrize("ask", [pull_much, call, watch, together])
@settings(FUZZ, max_examples=4 * settings.default.max_examples // 10)
@given(lie=lies())
async def test_a_careful_bridge_that_is_lied_to_tells_it_and_goes_on(
    careful: Liar, ask: Callable[[Bridge], Any], lie: Any
) -> None:
    await lied_to(careful, ask, lie)


@FUZZ
@given(lie=lies())
async def test_a_greeting_that_lies_is_told_and_the_next_one_is_heard(liar: Liar, lie: Any) -> None:
    connection = liar.bridge._connection
    for change in (lie, None):
        liar.change, connection.remote.generation = change, -1
        async with asyncio.timeout(PATIENCE):
            try:
                await connection.remote.install()
            except BridgeError:
                assert change is lie
            assert isinstance(repr(liar.bridge.info) + liar.bridge.info._repr_html_(), str)
    await liar.is_honest()


KERNEL = {
    "implementation": "ipython", "implementation_version": "9", "status": "ok",
    "language_info": {"name": "python"}, "supported_features": ["kernel subshells"],
}  # fmt: skip


@FUZZ
@given(told=st.one_of(mutated(KERNEL), st.dictionaries(TEXTS, ODD)))
async def test_whatever_a_kernel_says_of_itself_is_planted_or_told(liar: Liar, told: Any) -> None:
    if not isinstance(told, dict):
        return
    honest, connection = liar.transport.kernel_info, liar.bridge._connection
    liar.transport.kernel_info, connection.remote.generation = told, -1
    async with asyncio.timeout(PATIENCE):
        with contextlib.suppress(BridgeError):
            await connection.remote.install()
        with contextlib.suppress(BridgeError):
            await liar.bridge.pull("a", now=True)
    liar.transport.kernel_info, connection.remote.generation = honest, -1
    await liar.is_honest()


@FUZZ
@given(content=st.one_of(mutated(OUTPUT), st.dictionaries(TEXTS, ODD)), kinds=st.data())
async def test_outputs_that_lie_are_a_result_all_the_same(
    liar: Liar, content: Any, kinds: st.DataObject
) -> None:
    kind = kinds.draw(st.sampled_from(TYPES))

    def lie(channel: str, message: Header) -> None:
        if channel == "iopub" and message["header"]["msg_type"] != "status":
            message["content"] = content
            message["header"]["msg_type"] = kind if kind != "status" else "stream"

    await lied_to(liar, run, lie)


@pytest.mark.parametrize("content", [None, [], "ok", 5, [["status", "ok"]]], ids=repr)
async def test_a_reply_whose_content_is_no_object_is_told(liar: Liar, content: Any) -> None:
    def lie(channel: str, message: Header) -> None:
        if message["header"]["msg_type"] == "execute_reply":
            message["content"] = content

    await lied_to(liar, pull, lie)


@pytest.mark.parametrize("state", ["closed", "dead", "unresponsive", "", None, 5, ["idle"], {}])
async def test_a_kernel_says_of_its_state_only_what_it_can_know(liar: Liar, state: Any) -> None:
    status = {**MESSAGE, "header": {"msg_id": "m", "msg_type": "status"}}
    liar.received("iopub", {**status, "content": {"execution_state": state}})
    assert liar.bridge.state in ("starting", "busy", "idle")
    await liar.is_honest()
    pending = asyncio.ensure_future(liar.bridge.run("import time; time.sleep(0.2)"))
    await asyncio.sleep(0)
    await liar.bridge.aclose()
    with pytest.raises(BridgeError):
        await asyncio.wait_for(pending, PATIENCE)


@settings(FUZZ, max_examples=10 * settings.default.max_examples // 10)
@given(data=st.data())
async def test_news_that_lie_are_told_and_the_next_are_heard(
    liar: Liar, data: st.DataObject
) -> None:
    other, frames = data.draw(ODD), data.draw(OTHERS)
    kind = data.draw(st.sampled_from(["content", "answer", "frames"]))
    place = data.draw(st.integers(0, 20))

    def lie(channel: str, message: Header) -> None:
        if message["header"]["msg_type"] != UPDATE_MESSAGE:
            return
        content = message["content"]
        if kind == "frames":
            message["buffers"] = frames
        elif kind == "content":
            content[("watch", "news", "answer")[place % 3]] = other
        else:
            said = json.loads(content["answer"])
            node, key = places(said)[place % len(places(said))]
            node[key] = other
            content["answer"] = json.dumps(said)

    async with asyncio.timeout(PATIENCE):
        await liar.bridge.run("counted = 0")
        async with liar.bridge.watch("counted") as values:
            assert await anext(values) == 0
            liar.change = lie
            await liar.bridge.run("counted = 1")
            liar.change = None
            await liar.bridge.run("counted = 2")
            latest: Any = math.nan
            while latest != 2:
                with contextlib.suppress(BridgeError):
                    latest = await anext(values)
    await liar.is_honest()
