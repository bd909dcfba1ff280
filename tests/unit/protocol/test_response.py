"""Responses: well-formed, malformed and hostile.

Rule: a response is untrusted until it is checked. Whatever a kernel sends, the caller gets a
value or a ``BridgeError``, and never another exception.
"""

from __future__ import annotations

import base64
import copy
import json
import pickle
import random
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from bridgehead import BridgeError, NameNotFound, ProtocolError, ReplyLost, UnsupportedKernel
from bridgehead._lanes.inline import InlineLane
from bridgehead._protocol.payload import decode
from bridgehead._protocol.raising import raise_error
from bridgehead._protocol.request import Request
from bridgehead._protocol.response import (
    add_chunk,
    check_fields,
    close_response,
    detail_in,
    names_in,
    open_response,
    parse_header,
)
from bridgehead._shipped.remote.detail import png
from bridgehead._shipped.wire.frames import digest
from bridgehead._shipped.wire.header import MIME
from bridgehead._shipped.wire.pickling import encode
from bridgehead._transports.capabilities import Capabilities
from support.answers import KINDS, ODD, consume, content_of, entry, header, is_reported, named, odd

EMPTY_DIGEST = "crc32:00000000"


# ---------------------------------------------------------------- well-formed responses


def response_of(value: Any, **fields: Any) -> tuple[dict[str, Any], list[bytes]]:
    """Make the header and the frames of a valid response."""
    frames = encode(value)[0]
    sizes = [frame.nbytes for frame in frames]
    response = {"sizes": sizes, "digest": digest("sha256", frames), **fields}
    return response, [bytes(frame) for frame in frames]


def test_a_valid_response_becomes_its_frames() -> None:
    response, parts = response_of({"x": [1, 2], "b": b"\xff" * 5000})
    frames = consume(content_of(response), parts)
    assert decode(frames) == {"x": [1, 2], "b": b"\xff" * 5000}


def test_a_response_without_frames_is_valid() -> None:
    assert consume(content_of({"sizes": [], "digest": EMPTY_DIGEST}), []) == []


def test_a_response_may_arrive_in_chunks() -> None:
    response, parts = response_of(b"\xff" * 5000)
    data = b"".join(parts)
    inbox = open_response(response)
    for start, stop in ((0, 1000), (3000, len(data)), (1000, 3000)):
        parts = [data[start : stop - 500], data[stop - 500 : stop]]
        add_chunk({"digest": digest("sha256", parts)}, inbox, start, parts)
    assert decode(close_response(inbox)) == b"\xff" * 5000


WITHOUT_VALUE: dict[str, Any] = {
    "no user_expressions": {"status": "ok"},
    "user_expressions that are null": {"status": "ok", "user_expressions": None},
    "no entry": {"status": "ok", "user_expressions": {}},
    "an entry that is null": entry(None),
    "no data": entry({"status": "ok"}),
    "data that is null": entry({"status": "ok", "data": None}),
    "only a repr": entry({"status": "ok", "data": {"text/plain": "<Answer>"}}),
    "an aborted request": {"status": "aborted"},
}


@pytest.mark.parametrize("content", WITHOUT_VALUE.values(), ids=WITHOUT_VALUE.keys())
def test_a_kernel_that_returns_no_value_is_unsupported(content: Any) -> None:
    with pytest.raises(UnsupportedKernel):
        consume(content, [])


# ---------------------------------------------------------------- hostile responses


def holds(content: Any, parts: list[bytes]) -> None:
    """Check that the content leads to frames or to a BridgeError, and to nothing else."""
    try:
        frames = consume(content, parts)
    except BridgeError:
        is_reported(content, parts)
    else:
        assert all(isinstance(frame, memoryview) for frame in frames)


@odd
def test_any_content_is_reported(value: Any) -> None:
    is_reported(value, [])


@odd
@pytest.mark.parametrize("status", ["ok", "error"])
def test_any_user_expressions_are_reported(value: Any, status: str) -> None:
    is_reported({"status": status, "user_expressions": value}, [])


@odd
def test_any_entry_is_reported(value: Any) -> None:
    is_reported(entry(value), [])


@odd
@pytest.mark.parametrize("field", ["status", "ename", "evalue", "traceback"])
def test_any_value_in_a_field_of_a_failed_entry_is_reported(value: Any, field: str) -> None:
    fields = {"status": "error", "ename": "E", "evalue": "v", "traceback": ["t"], field: value}
    is_reported(entry(fields), [])


@odd
@pytest.mark.parametrize("field", ["ename", "evalue", "traceback"])
def test_any_value_in_a_field_of_a_failed_reply_is_reported(value: Any, field: str) -> None:
    is_reported(
        {"status": "error", "ename": "E", "evalue": "v", "traceback": ["t"], field: value}, []
    )


@odd
def test_any_data_is_reported(value: Any) -> None:
    is_reported(entry({"status": "ok", "data": value}), [])


@odd
def test_any_value_of_our_mime_type_is_reported(value: Any) -> None:
    is_reported(entry({"status": "ok", "data": {MIME: value}}), [])


@odd
def test_any_json_instead_of_a_header_is_reported(value: Any) -> None:
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
def test_any_text_instead_of_json_is_reported(text: str) -> None:
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
def test_invalid_sizes_are_a_protocol_error(sizes: Any) -> None:
    with pytest.raises(ProtocolError):
        consume(content_of({"sizes": sizes, "digest": EMPTY_DIGEST}), [])


def test_missing_sizes_are_a_protocol_error() -> None:
    with pytest.raises(ProtocolError):
        consume(content_of({"digest": EMPTY_DIGEST}), [])


@pytest.mark.parametrize("size", [2**60, 2**62, 2**63, 2**64, 10**30], ids=lambda n: f"{n:.0e}")
def test_sizes_beyond_any_memory_are_reported(size: int) -> None:
    is_reported(content_of({"sizes": [3, size], "digest": EMPTY_DIGEST}), [b"abc"])


@odd
def test_a_response_with_any_wrong_digest_is_lost(value: Any) -> None:
    response, parts = response_of([1, 2, 3], digest=value)
    with pytest.raises(ReplyLost):
        consume(content_of(response), parts)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        pytest.param(lambda parts: [], "digest", id="none"),
        pytest.param(lambda parts: [parts[0][:-1]], "of", id="too few"),
        pytest.param(lambda parts: [*parts, b"x"], "do not fit", id="too many"),
        pytest.param(lambda parts: [parts[0][::-1]], "digest", id="other bytes"),
    ],
)
def test_a_response_whose_frames_do_not_match_its_header_is_lost(
    change: Callable[[list[bytes]], list[bytes]], text: str
) -> None:
    response, parts = response_of(["a", "b"])
    with pytest.raises(ReplyLost, match=text):
        consume(content_of(response), change(parts))


def mutated(value: Any, source: random.Random) -> Any:
    """``value`` with one node in it, at any depth, replaced, removed or wrapped."""
    value = copy.deepcopy(value)
    nodes: list[tuple[Any, Any]] = []

    def visit(node: Any) -> None:
        pairs = node.items() if isinstance(node, dict) else enumerate(node)
        for key, child in pairs:
            nodes.append((node, key))
            if isinstance(child, (dict, list)):
                visit(child)

    visit(value)
    node, key = source.choice(nodes)
    if source.random() < 0.3:
        del node[key]
    else:
        node[key] = source.choice([*ODD, [node[key]], {"x": node[key]}, str(node[key])])
    return value


@pytest.mark.parametrize("seed", range(40))
def test_responses_damaged_anywhere_are_reported_or_harmless(seed: int) -> None:
    source = random.Random(seed)
    frames = [pickle.dumps(LookupError("bad"))]
    valid = {"sizes": [len(frames[0])], "digest": digest("crc32", frames)}
    headers: list[Any] = [
        {**valid, "error": dict(kind[0], code_of=None)} for kind in KINDS.values()
    ]
    headers += [valid, {**valid, "names": [{"name": "x"}], "epoch": "0"}]
    for _ in range(50):
        inner = source.choice(headers)
        for _ in range(source.randrange(3)):
            inner = mutated(inner, source)
        content = content_of(inner)
        for _ in range(source.randrange(2)):
            content = mutated(content, source)
        holds(content, source.choice([frames, [], [b"x"], [frames[0] + b"x"]]))


def transport(request: Any) -> Any:
    """Make the part of a transport that a lane needs."""
    spawn = lambda work: work.close()  # noqa: E731
    return SimpleNamespace(
        dispatcher=SimpleNamespace(request=request),
        spawn=spawn,
        capabilities=Capabilities(),
    )


@odd
async def test_any_inline_data_is_reported(value: Any) -> None:
    response, _ = response_of([1, 2, 3])

    async def request(content: Any, buffers: Any, **order: Any) -> Any:
        return SimpleNamespace(content=content_of({**response, "data": value}), buffers=[])

    lane = InlineLane(transport(request))
    with pytest.raises((ProtocolError, ReplyLost)):
        await lane.complete(await lane.carry(Request(header())))


async def test_inline_data_is_decoded() -> None:
    response, parts = response_of([1, 2, 3])
    data = base64.b64encode(b"".join(parts)).decode()

    async def request(content: Any, buffers: Any, **order: Any) -> Any:
        return SimpleNamespace(content=content_of({**response, "data": data}), buffers=[])

    lane = InlineLane(transport(request))
    response = await lane.complete(await lane.carry(Request(header())))
    assert decode(response.frames) == [1, 2, 3]


# ---------------------------------------------------------------- M7: counts


def test_a_header_of_any_length_is_refused_before_it_is_read() -> None:
    with pytest.raises(ProtocolError, match="characters"):
        parse_header(json.dumps({"names": ["x" * 100] * 400_000}))


def test_names_without_end_are_refused() -> None:
    one = {"name": "x", "type": "int", "shape": None, "len": None, "bytes": None}
    fine = parse_header(json.dumps({"names": [one] * 1000}))
    check_fields(fine, "names", "names")
    with pytest.raises(ProtocolError, match="names"):
        check_fields(parse_header(json.dumps({"names": [one] * 100_001})), "names", "names")


DETAIL = {"facts": [["Mean", "1"]], "columns": ["a"], "rows": [["x"]], "text": "b"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"facts": [["Mean"]]},
        {"facts": [["a", "b"]] * 2000},
        {"rows": [["x"] * 600] * 2},
        {"rows": [[]] * 2000},
        {"rows": "text"},
        {"text": None},
    ],
    ids=str,
)
def test_a_malformed_closer_look_is_a_protocol_error(wrong: dict[str, Any]) -> None:
    header: Any = {"detail": {**DETAIL, **wrong}}
    with pytest.raises(ProtocolError):
        detail_in(header, [])


@pytest.mark.parametrize(
    "wrong", [{"shape": [10**4000] * 2}, {"shape": [1] * 2000}, {"bytes": 10**4000}, {"len": -1}]
)
def test_a_size_that_no_object_has_is_refused(wrong: dict[str, Any]) -> None:
    one = {"name": "x", "type": "int", "shape": [2], "len": None, "bytes": 1}
    assert names_in(parse_header(json.dumps({"names": [one]})), "names")[0].shape == (2,)
    with pytest.raises(ProtocolError, match="no object has"):
        names_in(parse_header(json.dumps({"names": [{**one, **wrong}]})), "names")


@pytest.mark.parametrize(
    "picture",
    [
        b"<svg onload=alert(1)>",
        png((1, 1), b"0") + bytes(1 << 20),
        png((20_000, 20_000), b""),
        png((1, 1), b"0")[:18],
    ],
    ids=len,
)
def test_a_picture_is_a_small_png(picture: bytes) -> None:
    header: Any = {"detail": DETAIL}
    small = png((1, 1), b"0")
    assert detail_in(header, [memoryview(small)]).picture == small
    with pytest.raises(ProtocolError):
        detail_in(header, [memoryview(picture)])


def test_the_texts_of_a_closer_look_control_nothing() -> None:
    bad = "\x1b[31m\u202e" + "x" * 5000
    found = {"facts": [[bad, bad]], "columns": [bad], "rows": [[bad]], "text": f"{bad}\n{bad}"}
    header: Any = {"detail": found}
    look = detail_in(header, [])
    for text in (*look.facts[0], *look.columns, *look.rows[0]):
        assert text.isprintable()
        assert len(text) <= 100
    assert all(line.isprintable() for line in look.text.splitlines())


def test_an_error_names_no_more_than_a_thousand_names() -> None:
    error = {"kind": "name", "names": ["n"] * 100_000, "close": ["m"] * 100_000}
    with pytest.raises(NameNotFound) as caught:
        raise_error({"error": error}, ())
    assert len(caught.value.names) == 1000
    assert len(str(caught.value)) < 20_000


# ---------------------------------------------------------------- K4: no memory

NO_MEMORY = """
import resource
from bridgehead import DecodeError
from bridgehead._protocol.response import add_chunk, open_response
from bridgehead._shipped.wire.frames import digest
inbox = open_response({"sizes": [1 << 31]})
limit = int(open("/proc/self/statm").read().split()[0]) * 4096 + (1 << 30)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    add_chunk({"digest": digest("crc32", [b"x"])}, inbox, 0, [b"x"])
except DecodeError as error:
    print(type(error.__cause__).__name__, "|", error)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_response_for_which_there_is_no_memory_is_a_decode_error() -> None:
    """K4. It was not damaged, and the request ran."""
    ran = subprocess.run([sys.executable, "-c", NO_MEMORY], capture_output=True, text=True)
    assert ran.stdout.startswith("MemoryError | the request ran, but no memory for a frame of 2147")
    assert ran.stderr == ""
