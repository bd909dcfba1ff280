"""Fuzz of messages: both ends reply to anything and keep working.

Rule: this file fuzzes everything that turns bytes into values: headers, frames and responses.
Frames with a valid digest are always harmless pickles, because a receiver opens them by design and
an arbitrary pickle may run any code. The data-only codec has its own fuzz in ``shipped/data``.
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
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bridgehead import Bridge, BridgeError, KernelRestarted, Name, ProtocolError, Result
from bridgehead._connection.outputs import CellOutputs
from bridgehead._connection.resources import SENDINGS
from bridgehead._connection.watch import LatestValues
from bridgehead._protocol import bootstrap as _bootstrap
from bridgehead._protocol import payload as _payload
from bridgehead._protocol import request as _request
from bridgehead._protocol import response as _response
from bridgehead._protocol.payload import Payload, empty
from bridgehead._protocol.raising import raise_error
from bridgehead._protocol.request import KEY, Request
from bridgehead._shipped.wire import frames as _frames
from bridgehead._shipped.wire import pickling as _pickling
from bridgehead._shipped.wire.header import DATA_MESSAGE, EVENT_MESSAGE, MIME
from bridgehead._shipped.wire.transfer import Inbox
from bridgehead._transports.loopback import LoopbackKernel
from bridgehead._transports.messages import Message

Header = dict[str, Any]
MEBIBYTE = 1 << 20
PATIENCE = 60  # s; a call that takes longer hangs
FUZZ = settings(
    max_examples=12 * settings.default.max_examples // 10,
    deadline=None,
    derandomize="CI" in os.environ,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)

# ---------------------------------------------------------------- arbitrary values


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


# A text may be evaluated as an expression, so none of these takes long or has an effect.
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
    """Return the nodes at most six levels below ``value``, each as its container and its key."""
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
    """Draw a copy of ``value`` with some nodes replaced, removed, added or wrapped."""
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
    "expressions", "pattern", "keep", "kept", "refs", "max_bytes", "trust", "allow", "opens",
    "subshell", "owner", "resource", "resources", "seen", "lane", "requests", "error", "responses",
    "retry", "parts", "data", "buffers", "orphans",
)  # fmt: skip


def frames_of(value: Any) -> list[memoryview]:
    return _pickling.encode(value)[0]


SOMETHING: list[Any] = [
    None, 5, (), (1,), (1, 2, 3), [1], {}, {"a": 1}, {1: 2}, {"a": 1, "b": 2}, (abs, 5, 6),
    LookupError("a"),
]  # fmt: skip
# Frames that may have a valid digest: no pickle, or a pickle of an unexpected value.
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

# ---------------------------------------------------------------- the remote part

KINDS = {
    "lost",
    "remote", "name", "missing", "incompatible", "large", "unsupported", "untrusted",
    "integrity", "epoch", "protocol",
}  # fmt: skip


class RemotePart:
    """The real remote part, installed by the real expression, and its namespace."""

    def __init__(self) -> None:
        no_loop: Any = None
        self.cell = LoopbackKernel(self.sent, no_loop, lambda function: function())
        self.parts: list[bytes] = []
        self.scope = self.cell.user_ns
        header = _request.header("hello", empty("crc32"), epoch="")
        text = _bootstrap.expression("inline", header, install=True)
        response = json.loads(eval(text, self.scope)._repr_mimebundle_()[MIME])
        self.epoch: str = response["epoch"]
        self.module = sys.modules[_bootstrap.remote_source()[0]]
        self.scope.update(a="before", b=[1], long=bytes(range(256)) * 16)

    def sent(
        self, channel: str, kind: str, content: Any, parent: Any, buffers: Sequence[Any] = ()
    ) -> None:
        assert kind in (DATA_MESSAGE, EVENT_MESSAGE)
        self.parts += map(bytes, buffers)

    def enter(self, lane: str, text: str, data: bytes) -> Header:
        """Send a message with any text as its header; check that a response comes back."""
        inline = base64.b64encode(data).decode() if lane == "inline" else ""
        self.cell.request = {"header": {}, "buffers": [memoryview(data)] if data else []}
        tracemalloc.start()
        try:
            bundle = self.module.enter(self.scope, lane, text, inline)
            used = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert used < len(text) + len(data) + MEBIBYTE
        response = json.loads(bundle._repr_mimebundle_()[MIME])
        check_response(response)
        return response

    def header(self, operation: str, frames: Sequence[memoryview] = (), **fields: Any) -> Header:
        payload = Payload(frames).signed(fields.pop("algorithm", "crc32"))
        wanted = {"epoch": self.epoch, "chunk": 1 << 16, **fields}
        return _request.header(operation, payload, **wanted)

    def names(self) -> dict[str, int]:
        return {name: id(value) for name, value in self.scope.items()}

    def ask(self, header: Header, frames: Sequence[memoryview] = ()) -> Header:
        response = self.enter("inline", json.dumps(header), b"".join(frames))
        assert "error" not in response
        return response

    def check_valid_requests(self) -> None:
        """Check that valid requests work."""
        frames = frames_of({"valid": [1, "é"]})
        self.ask(self.header("bind", frames, names=["valid"]), frames)
        response = self.ask(self.header("fetch", expressions=["valid"]))
        fetched = [memoryview(base64.b64decode(response["data"]))]
        assert [frame.nbytes for frame in fetched] == response["sizes"]
        assert _payload.decode(fetched) == ([1, "é"],)


def check_response(response: Any) -> None:
    assert type(response) is dict
    error = response.get("error")
    if error is not None:
        assert error["kind"] in KINDS
        assert type(error.get("message", "")) is str
    for part in response.get("responses", ()):
        check_response(part)


@contextlib.contextmanager
def remote_part() -> Iterator[RemotePart]:
    remote = RemotePart()
    try:
        yield remote
        remote.check_valid_requests()
    finally:
        remote.module.leave(remote.scope)


@pytest.fixture(scope="module", autouse=True)
def warm() -> None:
    """Let the remote part make what it makes once, before a test looks at memory or globals."""
    with remote_part() as remote:
        remote.check_valid_requests()
        for expression in ("vald", "1 / 0"):  # an unknown name and an exception
            header = remote.header("fetch", expressions=[expression])
            remote.enter("inline", json.dumps(header), b"")
        remote.enter("inline", json.dumps(remote.header("names", pattern="[*")), b"")


LANES = st.sampled_from(["inline", "buffers", "probe", ""])


@FUZZ
@given(LANES, st.one_of(st.text(), ODD.map(json.dumps)), st.binary(), st.text())
@example("inline", "[" * 100_000, b"", "")
@example("inline", "9" * 10_000, b"", "é")
def test_any_header_with_any_data_gets_a_response(
    lane: str, text: str, data: bytes, inline: str
) -> None:
    with remote_part() as remote:
        before = remote.names()
        assert "error" in remote.enter(lane, text, data)
        bundle = remote.module.enter(remote.scope, "inline", text, inline)
        assert "error" in json.loads(bundle.text)
        assert remote.names() == before


def valid_request(remote: RemotePart, operation: str) -> tuple[Header, list[memoryview]]:
    """Return a request as a bridge makes it, and its frames."""
    if operation == "bind":
        frames = frames_of({"a": "after", "b": 2})
        return remote.header("bind", frames, names=["a", "b"], max_bytes=5000), frames
    if operation == "call":
        frames = frames_of((operator.add, (2, 3), {}))
        return remote.header("call", frames, keep="kept"), frames
    if operation == "call_kept":
        frames = frames_of((operator.add, (2, 3), {}))
        return remote.header("call", frames, kept="k", owner="o"), frames
    if operation == "map":
        frames = frames_of(([(1,), (2,)],))
        return remote.header("map", frames, expressions=["abs"], goes_on=True), frames
    if operation in ("fetch", "watch"):
        return remote.header(operation, expressions=["a", "b"], **RESOURCE, lane="inline"), []
    if operation == "batch":
        inner = [valid_request(remote, name) for name in ("bind", "fetch", "has", "names", "drop")]
        requests = [Request(header, Payload(frames)) for header, frames in inner]
        whole = _request.batch(requests, "crc32", chunk=1 << 16)
        return whole.header, list(whole.frames)
    if operation in ("chunk", "next_chunk", "forget"):
        header, frames = valid_request(remote, "bind" if operation == "chunk" else "fetch")
        return {**header, "op": operation}, frames
    if operation == "load_codec":
        frames = [memoryview(b"\xff not source")]
        return remote.header("load_codec", frames), frames
    if operation == "stage":
        frames = frames_of({"a": "after", "b": 2})
        return remote.header(operation, frames, names=["a", "b"], max_output=9, **RESOURCE), frames
    fields = {"names": ["a"], "name": "a", "pattern": "a*", "resources": ["w"], "seen": {"w": 0}}
    fields = {**fields, "request": "r", "expressions": ["a"]}
    fields = {**fields, "iteration": "w", "batch": 1, "most": 10, "number": 1, "begun": 1}
    shell = {"id": "s", "host": "h", "pid": 1}
    return remote.header(operation, **fields, **RESOURCE, subshell=shell), []


RESOURCE = {"resource": "w", "owner": "o"}
OPERATIONS = (
    "hello", "load_codec", "batch", "bind", "fetch", "call", "call_kept", "drop", "names", "has",
    "watch", "watch_names", "renew", "close", "start", "cancel", "withdraw", "wake", "iterate",
    "advance", "take", "finish", "map", "report", "chunk", "next_chunk", "forget", "stage",
)  # fmt: skip
BINDING = ("bind", "call", "call_kept", "drop", "batch")


@pytest.mark.parametrize("operation", OPERATIONS)
@settings(FUZZ, max_examples=10 * settings.default.max_examples // 10)
@given(st.data())
def test_a_mutated_request_gets_a_response_and_binds_all_or_nothing(
    operation: str, data: st.DataObject
) -> None:
    with remote_part() as remote:
        for _ in range(data.draw(st.integers(1, 2))):
            header, frames = valid_request(remote, operation)
            if data.draw(st.booleans()):
                frames = data.draw(OTHERS)
                header["sizes"] = [frame.nbytes for frame in frames]
                header["digest"] = _frames.digest("crc32", frames)
            mutant = data.draw(mutated(header))
            sent = b"".join(frames)
            if data.draw(st.integers(0, 3)) == 0:
                sent = data.draw(st.binary())
            before = remote.names()
            response = remote.enter(data.draw(LANES), json.dumps(mutant), sent)
            after = remote.names()
            changed = {name for name in {*before, *after} if before.get(name) != after.get(name)}
            if "error" in response or operation not in BINDING:
                assert not changed
            assert all(type(name) is str for name in changed)


@pytest.mark.parametrize("operation", ["bind", "chunk"])
@pytest.mark.parametrize("sizes", [[2**19] * 5000, [2**46], [2**70], [1, 2**20, 2**40]], ids=len)
def test_announced_sizes_alone_allocate_no_memory(operation: str, sizes: list[int]) -> None:
    with remote_part() as remote:
        header = {**remote.header("bind", names=["a"]), "op": operation, "sizes": sizes, "at": 0}
        remote.enter("inline", json.dumps(header), b"x")
        remote.enter("inline", json.dumps({**header, "at": max(0, sum(sizes) - 1)}), b"x")


@pytest.mark.parametrize("depth", [100, 500, 800, 900, 950, 1_000, 100_000])
def test_a_deeply_nested_header_gets_an_error(depth: int) -> None:
    deep = "[" * depth + "]" * depth
    with remote_part() as remote:
        for field in ("op", "id", "sizes", "at", "names", "keep", "subshell", "protocol"):
            text = json.dumps({**remote.header("bind", names=["a"]), field: "DEEP"})
            response = remote.enter("inline", text.replace('"DEEP"', deep), b"")
            assert "error" in response
        assert remote.scope["a"] == "before"


def test_a_huge_announced_chunk_does_not_displace_another_transfer() -> None:
    with remote_part() as remote:
        frames = frames_of({"a": "after"})
        header, data = remote.header("bind", frames, names=["a"]), b"".join(frames)
        first, rest = memoryview(data[:5]), memoryview(data[5:])
        header["digest"] = _frames.digest("crc32", [first])
        remote.ask({**header, "op": "chunk"}, [first])
        remote.ask({**remote.header("bind", names=[]), "op": "chunk", "sizes": [2**40]})
        remote.ask({**header, "at": 5, "digest": _frames.digest("crc32", [rest])}, [rest])
        assert remote.scope["a"] == "after"


# ``load_codec`` runs the source that it gets. These bytes are not source, whatever follows them.
NOT_SOURCE = st.builds(
    operator.add, st.sampled_from([b"\xff", b"(\n)(", b"1 +\n", b"a b", b"\0"]), st.binary()
)


@FUZZ
@given(st.lists(NOT_SOURCE, min_size=1, max_size=3))
def test_loading_a_codec_that_is_not_source_gets_an_error(codec_sources: list[bytes]) -> None:
    with remote_part() as remote, pytest.MonkeyPatch.context() as patch:
        patch.delitem(vars(remote.module), "decode_data", raising=False)
        known, before = {**vars(remote.module)}, remote.names()
        header = remote.header("load_codec", [memoryview(frame) for frame in codec_sources])
        response = remote.enter("inline", json.dumps(header), b"".join(codec_sources))
        assert response["error"]["kind"] == "remote"
        assert vars(remote.module) == known
        assert remote.names() == before


# ---------------------------------------------------------------- the client's protocol

SIGNED = {"sizes": [], "digest": "crc32:00000000"}
GREETING = {
    **SIGNED, "epoch": "0", "python": [3, 11, 7], "executable": "/python", "pickle": 5, "pid": 7,
    "versions": {"cloudpickle": "3"}, "uid": 0, "cwd": "/", "orphans": [], "buffers": True,
}  # fmt: skip
RESPONSES: list[Header] = [
    SIGNED,
    GREETING,
    {**SIGNED, "has": True},
    {**SIGNED, "names": [{"name": "a", "type": "x", "shape": [1], "len": 2, "bytes": None}]},
    {**SIGNED, "responses": [{**SIGNED, "parts": 0, "has": True}, {"retry": True}]},
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


def signed(header: Header, frames: Sequence[memoryview]) -> Header:
    sizes = [frame.nbytes for frame in frames]
    return {**header, "sizes": sizes, "digest": _frames.digest("crc32", frames)}


def content_of(response: Any) -> Header:
    data = {"status": "ok", "data": {"text/plain": "", MIME: json.dumps(response)}}
    return {"status": "ok", "user_expressions": {KEY: data}}


def value_or_error(work: Callable[[], Any]) -> Any:
    """Return the value of ``work()`` or its ``BridgeError``, which must print and pickle."""
    try:
        return work()
    except BridgeError as bridge_error:
        error = bridge_error
    copied = pickle.loads(pickle.dumps(error))
    copied.__cause__ = error.__cause__  # no pickle of an exception has it
    assert str(copied) == str(error)
    return error


@FUZZ
@given(st.data())
def test_any_content_of_a_reply_is_a_response_or_an_error(data: st.DataObject) -> None:
    content = content_of(data.draw(st.sampled_from(RESPONSES)))
    content = data.draw(st.one_of(ODD, mutated(content), ODD.map(content_of)))
    outcome = value_or_error(lambda: _response.response_header(content))
    assert isinstance(outcome, (dict, BridgeError))


@FUZZ
@given(st.text())
@example("[" * 100_000)
@example('{"sizes": ' + "[" * 900 + "]" * 900 + "}")
def test_any_text_of_a_response_is_parsed_or_reported(text: str) -> None:
    assert isinstance(value_or_error(lambda: _response.parse_header(text)), (dict, ProtocolError))


@FUZZ
@given(st.data())
def test_any_response_is_opened_and_closed_or_reported(data: st.DataObject) -> None:
    frames = data.draw(OTHERS)
    response = signed(data.draw(st.sampled_from(RESPONSES)), frames)
    if data.draw(st.booleans()):
        response = data.draw(mutated(response).filter(lambda value: isinstance(value, dict)))
    parts = data.draw(st.one_of(st.just(frames), st.lists(st.binary())))
    limits = [data.draw(st.sampled_from([None, 0, 5, 2**70])) for _ in range(2)]

    def consume() -> Any:
        inbox = _response.open_response(response, limits[0])
        _response.add_chunk(response, inbox, 0, parts)
        whole = _response.close_response(inbox)
        raise_error(response, whole, limits[0], trusted=data.draw(st.booleans()))
        return _response.split_batch(response, whole, limited(*limits))

    tracemalloc.start()
    try:
        value_or_error(consume)
        used = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert used < len(json.dumps(response)) + sum(map(len, parts)) + MEBIBYTE


@FUZZ
@given(st.data())
def test_any_error_header_raises_a_bridge_error(data: st.DataObject) -> None:
    header = {"error": data.draw(st.sampled_from(RESPONSES)).get("error", {})}
    response = data.draw(mutated(header))
    if isinstance(response, dict):
        value_or_error(lambda: raise_error(response, data.draw(OTHERS), 5))


@pytest.mark.parametrize("depth", [1_000, 100_000])
def test_an_error_nested_too_deeply_to_print_is_reported(depth: int) -> None:
    deep = nested(depth)
    fields = ("ename", "evalue", "traceback", "message", "names", "module", "where", "type", "kind")
    value_or_error(
        lambda: _response.response_header({"status": "error", "ename": deep, "traceback": deep})
    )
    for kind in KINDS:
        error = {**dict.fromkeys(fields, deep), "kind": kind}
        assert isinstance(value_or_error(lambda: raise_error({"error": error}, ())), BridgeError)
    value_or_error(lambda: _response.add_chunk({"digest": deep}, Inbox([]), 0, []))
    while deep:  # free it level by level, because its deallocation is recursive
        deep = deep[0]


@FUZZ
@given(st.data())
def test_any_batch_response_is_split_or_reported_and_makes_progress(data: st.DataObject) -> None:
    frames = [memoryview(b"12"), memoryview(b"345")]
    answers = [
        {**signed({}, frames[:1]), "parts": 1},
        {**signed({}, frames[1:]), "parts": 1},
        {"retry": True},
    ]
    response = data.draw(mutated({"responses": answers}))
    if not isinstance(response, dict):
        return
    found = value_or_error(lambda: _response.split_batch(response, frames, limited(None, 5, 0)))
    if isinstance(found, list):
        assert len(found) == 3
        assert not isinstance(found[0], _response.NotServed)


def limited(*limits: int | None) -> list[Request]:
    """Return a request for each limit."""
    return [Request({}, limit=limit) for limit in limits]


def test_a_batch_response_without_any_outcome_is_an_error() -> None:
    with pytest.raises(BridgeError):
        _response.split_batch({"responses": [{"retry": True}]}, [], limited(None))
    with pytest.raises(ProtocolError):
        _response.split_batch({"responses": [{**SIGNED, "parts": 0}, 5]}, [], limited(None, None))


@FUZZ
@given(st.one_of(ODD, mutated(GREETING)))
def test_any_greeting_is_complete_or_reported(greeting: Any) -> None:
    outcome = value_or_error(lambda: _response.greeting(greeting))
    if isinstance(outcome, dict):
        python = outcome["python"]
        assert len(python) == 3
        assert all(type(number) is int for number in python)
        assert all(type(item) is str for item in [*outcome["versions"].values(), outcome["epoch"]])
    else:
        assert type(outcome) is ProtocolError


MESSAGE = {
    "header": {"msg_id": "m", "msg_type": "stream"},
    "parent_header": {"msg_id": "p", "msg_type": "execute_request"},
    "metadata": {},
    "content": {"name": "stdout", "text": "x"},
    "buffers": [],
}


@FUZZ
@given(st.one_of(ODD, mutated(MESSAGE)))
def test_any_message_is_parsed_or_reported(message: Any) -> None:
    parsed = value_or_error(lambda: Message.parse(message))
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
async def test_any_outputs_become_a_result(outputs: list[tuple[str, Any]], count: Any) -> None:
    seen: list[Message] = []
    cell = CellOutputs(seen.append)
    for kind, content in outputs:
        if isinstance(content, dict):
            cell.feed(Message(kind, content))
    result = cell.result(count, "pickle")
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
async def test_any_update_is_opened_or_reported(data: st.DataObject) -> None:
    frames = frames_of((1,))
    header = {**signed({}, frames), "data": base64.b64encode(b"".join(frames)).decode()}
    response = data.draw(st.one_of(st.just(header), mutated(header), ODD))
    content: Any = {"resource": "w", "event": "w:1", "answer": json.dumps(response)}
    if data.draw(st.booleans()):
        content = data.draw(st.one_of(mutated(content), ODD))
    resources: Any = SimpleNamespace(renew_soon=lambda: None)
    queue: Any = SimpleNamespace(check_wait=lambda: None)
    updates = LatestValues(resources, queue, data.draw(st.sampled_from([None, 0, 100])))
    parts = data.draw(st.sampled_from([[], [b"x"], frames]))
    for _ in range(SENDINGS):  # one that is damaged is sent again
        updates.feed(content, parts)
    opened: Any = None
    with contextlib.suppress(BridgeError):
        opened = await asyncio.wait_for(updates.next(), PATIENCE)
    assert opened is None or isinstance(opened, _response.Response)


# ---------------------------------------------------------------- a bridge


class Liar:
    """A bridge to a loopback kernel whose messages are changed on their way to the client."""

    def __init__(self, bridge: Bridge) -> None:
        self.bridge = bridge
        self.transport: Any = bridge._transport
        self.change: Callable[[str, Header], None] | None = None
        self._received = self.transport.dispatcher.received
        self.transport.dispatcher.received = self.received

    def received(self, channel: str, message: Header) -> None:
        if self.change is not None:
            self.change(channel, message)
        try:  # as in the reader of a real kernel's channel
            self._received(channel, message)
        except Exception:
            self.transport.unreadable += 1

    async def recovers(self) -> None:
        """Stop the changes; check that the bridge works and keeps nothing of earlier calls."""
        self.change = None
        async with asyncio.timeout(PATIENCE):
            for last in (False, True):
                with contextlib.suppress(*([] if last else [KernelRestarted])):
                    await self.bridge.push(valid=[1, "é"])
            assert await self.bridge.pull("valid") == [1, "é"]
            while self.transport.dispatcher.pending or self.transport.life._waiters:
                await asyncio.sleep(0.001)
        assert not self.bridge._connection.queue.turns
        assert self.transport.dispatcher.in_flight == 0


async def pull(bridge: Bridge) -> None:
    await bridge.pull("a")


async def pull_much(bridge: Bridge) -> None:
    assert type(await bridge.pull("a", "b + b", max_bytes=10_000)) is tuple


async def push(bridge: Bridge) -> None:
    assert (await bridge.push(c=1, d=[2])).names == ("c", "d")


async def call(bridge: Bridge) -> None:
    await bridge.call(operator.add, 2, 3)


async def names(bridge: Bridge) -> None:
    for name in await bridge.names():
        assert type(name) is Name
        assert isinstance(repr(name), str)


async def exists(bridge: Bridge) -> None:
    assert type(await bridge.exists("a")) is bool


async def delete(bridge: Bridge) -> None:
    assert await bridge.delete("a") is None


async def run(bridge: Bridge) -> None:
    result = await bridge.run("print('x')\n7")
    assert type(result) is Result
    assert isinstance(repr(result), str)


async def run_with_values(bridge: Bridge) -> None:
    result = await bridge.run("print('x')\nc = a", push={"a": 1}, pull=["c", "a"], max_output=5)
    assert isinstance(result.values["c"], object)
    assert type(result.dropped) is int


async def watch(bridge: Bridge) -> None:
    async with bridge.watch("a") as values:
        await anext(values)


async def watch_names(bridge: Bridge) -> None:
    async with bridge.watch_names() as found:
        assert isinstance(repr(await anext(found)), str)


async def at_once(bridge: Bridge) -> None:
    """Start several operations at once; some of them share a message."""
    operations = [pull(bridge), exists(bridge), push(bridge), names(bridge), pull_much(bridge)]
    for outcome in await asyncio.gather(*operations, return_exceptions=True):
        if isinstance(outcome, BaseException) and not isinstance(outcome, BridgeError):
            raise outcome


CALLS = [
    pull,
    pull_much,
    push,
    call,
    names,
    exists,
    delete,
    run,
    run_with_values,
    watch,
    watch_names,
]
CALLS.append(at_once)


@st.composite
def lies(draw: Any) -> Callable[[str, Header], None]:
    """Draw a change of replies: of the content, the response in it, or response and frames."""
    kinds = ["content", "mutated", "response", "forged", "replaced", "buffers"]
    kind = draw(st.sampled_from(kinds))
    source = random.Random(draw(st.integers(0, 2**32)))
    other, frames, replacement = draw(ODD), draw(OTHERS), draw(st.sampled_from(RESPONSES))
    odd = [draw(ODD) for _ in range(3)]

    def lie(channel: str, message: Header) -> None:
        if channel == "iopub":
            return
        if message["header"]["msg_type"] == DATA_MESSAGE:
            if kind == "forged":
                message["buffers"] = frames
            elif kind == "buffers":
                message["buffers"] = message["buffers"][:-1] + [b"x"] * source.randrange(3)
            return
        content = message["content"]
        if kind == "content":
            message["content"] = other if isinstance(other, dict) else {"status": "ok", "a": other}
        elif kind == "mutated":
            node, key = source.choice(places(content))
            node[key] = source.choice(odd)
        elif kind == "replaced":
            message["content"] = content_of(replacement)
        elif content.get("user_expressions"):
            entry = content["user_expressions"][KEY]
            if "data" not in entry:
                return
            response = json.loads(entry["data"][MIME])
            if kind == "response" and places(response):
                node, key = source.choice(places(response))
                node[key] = source.choice(odd)
            elif kind == "forged":
                response = signed(response, frames)
                if "data" in response:
                    response["data"] = base64.b64encode(b"".join(frames)).decode()
            entry["data"][MIME] = json.dumps(response)

    return lie


@pytest.fixture(params=["buffers", "inline"])
async def liar(request: pytest.FixtureRequest) -> AsyncIterator[Liar]:
    async with Bridge.loopback(lane=request.param) as bridge:
        yield Liar(bridge)


@pytest.fixture
async def data_liar(request: pytest.FixtureRequest) -> AsyncIterator[Liar]:
    async with Bridge.loopback(trust="data") as bridge:
        yield Liar(bridge)


async def ask_liar(liar: Liar, ask: Callable[[Bridge], Any], lie: Any) -> None:
    await liar.bridge.push(a="text", b=[1])
    liar.change = lie
    async with asyncio.timeout(PATIENCE):
        with contextlib.suppress(BridgeError):
            await ask(liar.bridge)
    await liar.recovers()


@pytest.mark.parametrize("ask", CALLS)
@settings(FUZZ, max_examples=4 * settings.default.max_examples // 10)
@given(lie=lies())
async def test_a_bridge_reports_changed_replies_and_keeps_working(
    liar: Liar, ask: Callable[[Bridge], Any], lie: Any
) -> None:
    await ask_liar(liar, ask, lie)


@pytest.mark.parametrize("ask", [pull_much, call, watch, at_once])
@settings(FUZZ, max_examples=4 * settings.default.max_examples // 10)
@given(lie=lies())
async def test_a_bridge_with_trust_data_reports_changed_replies_and_keeps_working(
    data_liar: Liar, ask: Callable[[Bridge], Any], lie: Any
) -> None:
    await ask_liar(data_liar, ask, lie)


@FUZZ
@given(lie=lies())
async def test_a_changed_greeting_is_reported_and_the_next_one_works(liar: Liar, lie: Any) -> None:
    connection = liar.bridge._connection
    for change in (lie, None):
        liar.change, connection.remote.generation = change, -1
        async with asyncio.timeout(PATIENCE):
            try:
                await connection.remote.install()
            except BridgeError:
                assert change is lie
            assert isinstance(repr(liar.bridge.info) + liar.bridge.info._repr_html_(), str)
    await liar.recovers()


KERNEL = {
    "implementation": "ipython", "implementation_version": "9", "status": "ok",
    "language_info": {"name": "python"}, "supported_features": ["kernel subshells"],
}  # fmt: skip


@FUZZ
@given(info=st.one_of(mutated(KERNEL), st.dictionaries(TEXTS, ODD)))
async def test_any_kernel_info_leads_to_an_installation_or_an_error(liar: Liar, info: Any) -> None:
    if not isinstance(info, dict):
        return
    true_info, connection = liar.transport.kernel_info, liar.bridge._connection
    liar.transport.kernel_info, connection.remote.generation = info, -1
    async with asyncio.timeout(PATIENCE):
        with contextlib.suppress(BridgeError):
            await connection.remote.install()
        with contextlib.suppress(BridgeError):
            await liar.bridge.pull("a", now=True)
    liar.transport.kernel_info, connection.remote.generation = true_info, -1
    await liar.recovers()


@FUZZ
@given(content=st.one_of(mutated(OUTPUT), st.dictionaries(TEXTS, ODD)), kinds=st.data())
async def test_changed_outputs_still_become_a_result(
    liar: Liar, content: Any, kinds: st.DataObject
) -> None:
    kind = kinds.draw(st.sampled_from(TYPES))

    def lie(channel: str, message: Header) -> None:
        if channel == "iopub" and message["header"]["msg_type"] != "status":
            message["content"] = content
            message["header"]["msg_type"] = kind if kind != "status" else "stream"

    await ask_liar(liar, run, lie)


@pytest.mark.timings(inquiry_after=0.1)
@pytest.mark.parametrize("content", [None, [], "ok", 5, [["status", "ok"]]], ids=repr)
async def test_a_reply_whose_content_is_not_an_object_is_reported(liar: Liar, content: Any) -> None:
    def lie(channel: str, message: Header) -> None:
        if message["header"]["msg_type"] == "execute_reply":
            message["content"] = content

    await ask_liar(liar, pull, lie)


@pytest.mark.parametrize("state", ["closed", "dead", "unresponsive", "", None, 5, ["idle"], {}])
async def test_a_kernel_cannot_report_a_state_that_only_the_client_can_know(
    liar: Liar, state: Any
) -> None:
    status = {**MESSAGE, "header": {"msg_id": "m", "msg_type": "status"}}
    liar.received("iopub", {**status, "content": {"execution_state": state}})
    assert liar.bridge.state in ("starting", "busy", "idle")
    await liar.recovers()
    pending = asyncio.ensure_future(liar.bridge.run("import time; time.sleep(0.2)"))
    await asyncio.sleep(0)
    await liar.bridge.aclose()
    with pytest.raises(BridgeError):
        await asyncio.wait_for(pending, PATIENCE)


@settings(FUZZ, max_examples=10 * settings.default.max_examples // 10)
@given(data=st.data())
async def test_changed_updates_are_reported_and_the_next_ones_arrive(
    liar: Liar, data: st.DataObject
) -> None:
    other, frames = data.draw(ODD), data.draw(OTHERS)
    kind = data.draw(st.sampled_from(["content", "answer", "frames"]))
    index = data.draw(st.integers(0, 20))

    def lie(channel: str, message: Header) -> None:
        if message["header"]["msg_type"] != EVENT_MESSAGE:
            return
        content = message["content"]
        if kind == "frames":
            message["buffers"] = frames
        elif kind == "content":
            content[("resource", "event", "answer")[index % 3]] = other
        else:
            response = json.loads(content["answer"])
            node, key = places(response)[index % len(places(response))]
            node[key] = other
            content["answer"] = json.dumps(response)

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
    await liar.recovers()
