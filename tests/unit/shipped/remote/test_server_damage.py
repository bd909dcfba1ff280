"""A push that was damaged on the way is refused and changes nothing.

Rule: another interpreter evaluates the client's expressions; see ``support/bare.py``.
"""

from __future__ import annotations

import base64
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from bridgehead import BridgeError, IntegrityError, KernelRestarted, ProtocolError, RemoteError
from bridgehead._protocol import bootstrap as _bootstrap
from bridgehead._protocol import payload as _payload
from bridgehead._protocol import response as _response
from bridgehead._protocol.raising import raise_error
from bridgehead._shipped.wire.frames import digest
from support.bare import Header, Space, flipped, megabytes, stream


@dataclass
class Request:
    """A push of two names as it would be sent, for a test to damage."""

    header: Header
    data: bytes
    text: str = ""  # the expression; made from the two above if empty

    def expression(self) -> str:
        text = base64.b64encode(self.data).decode("ascii")
        return self.text or _bootstrap.expression("inline", self.header, text)


def damaged_base64(request: Request) -> None:
    text = request.expression()
    request.text = text[:-10] + "!!!!" + text[-10:]  # which a lenient decoder would skip


def truncated_base64(request: Request) -> None:
    text = request.expression()
    request.text = text[:-7] + text[-2:]
    assert request.text.endswith("')")


def damaged_json(request: Request) -> None:
    text = request.expression()
    request.text = text.replace('{"protocol"', '{"protocol', 1)
    assert request.text != text


def with_header(**fields: Any) -> Callable[[Request], None]:
    return lambda request: request.header.update(fields)


def without_header(*fields: str) -> Callable[[Request], None]:
    def damage(request: Request) -> None:
        for field in fields:
            del request.header[field]

    return damage


def header_instead(value: Any) -> Callable[[Request], None]:
    def damage(request: Request) -> None:
        request.header = value

    return damage


def with_data(change: Callable[[bytes], bytes]) -> Callable[[Request], None]:
    def damage(request: Request) -> None:
        changed = change(request.data)
        assert changed != request.data
        request.data = changed

    return damage


DAMAGE: dict[str, tuple[type[BridgeError], Callable[[Request], None]]] = {
    "the first bit is flipped": (IntegrityError, with_data(lambda d: flipped(d, 0))),
    "a bit in the middle is flipped": (IntegrityError, with_data(lambda d: flipped(d, 3000))),
    "the last bit is flipped": (IntegrityError, with_data(lambda d: flipped(d, len(d) - 1))),
    "two bytes are swapped": (IntegrityError, with_data(lambda d: d[1:2] + d[:1] + d[2:])),
    "a byte is missing": (IntegrityError, with_data(lambda d: d[:-1])),
    "everything is missing": (IntegrityError, with_data(lambda d: b"")),
    "a byte too many": (IntegrityError, with_data(lambda d: d + b"\0")),
    "the digest is another's": (IntegrityError, with_header(digest="sha256:" + "0" * 64)),
    "the digest is of another kind": (IntegrityError, with_header(digest="crc32:00000000")),
    "the digest is of no kind": (ProtocolError, with_header(digest="rot13:00")),
    "the digest is none": (ProtocolError, with_header(digest=None)),
    "a frame is one byte longer": (IntegrityError, lambda r: bump(r, 1)),
    "a frame is one byte shorter": (IntegrityError, lambda r: bump(r, -1)),
    "the offset is behind the end": (IntegrityError, with_header(at=10**9)),
    "the offset is negative": (IntegrityError, with_header(at=-1)),
    "the base64 is damaged": (IntegrityError, damaged_base64),
    "the base64 is cut off": (IntegrityError, truncated_base64),
    "the JSON is damaged": (IntegrityError, damaged_json),
    "the header is a list": (ProtocolError, header_instead([])),
    "the header is a number": (ProtocolError, header_instead(7)),
    "the header is null": (ProtocolError, header_instead(None)),
    "the header is empty": (ProtocolError, header_instead({})),
    "the epoch is another kernel's": (KernelRestarted, with_header(epoch="0" * 16)),
    "the epoch is missing": (KernelRestarted, without_header("epoch")),
    "the protocol is newer": (ProtocolError, with_header(protocol=3)),
    "the protocol is missing": (ProtocolError, without_header("protocol")),
    "the operation is unknown": (ProtocolError, with_header(op="explode")),
    "the operation is missing": (ProtocolError, without_header("op")),
    "the id is missing": (ProtocolError, without_header("id")),
    "the sizes are missing": (ProtocolError, without_header("sizes")),
    "the chunk size is missing": (ProtocolError, without_header("chunk")),
    "the chunk size is text": (ProtocolError, with_header(chunk="many")),
    "a size is negative": (ProtocolError, with_header(sizes=[-1, 1])),
    "a size is text": (ProtocolError, with_header(sizes=["1"])),
    "a size is a fraction": (ProtocolError, with_header(sizes=[1.5])),
    "the names are others": (ProtocolError, with_header(names=["a", "c"])),
    "the names are in another order": (ProtocolError, with_header(names=["b", "a"])),
    "the names are fewer": (ProtocolError, with_header(names=["a"])),
    "the names are missing": (ProtocolError, without_header("names")),
}


def bump(request: Request, by: int) -> None:
    request.header["sizes"][-1] += by


@pytest.mark.parametrize(("error", "damage"), DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_push_is_refused_and_changes_nothing(
    space: Space, error: type[BridgeError], damage: Callable[[Request], None]
) -> None:
    space.bind(a="before", other=[1])
    before = space.snapshot()
    values = {"a": pickle.PickleBuffer(megabytes(0.05)), "b": "after"}
    payload = _payload.encode(values, values)
    request = Request(
        space.header("bind", payload.frames, names=["a", "b"]), stream(payload.frames)
    )
    damage(request)
    response = space.evaluate(request.expression())
    parts = [base64.b64decode(response.pop("data", ""))]
    with pytest.raises(BridgeError) as caught:
        inbox = _response.open_response(response)
        _response.add_chunk(response, inbox, 0, parts)
        frames = _response.close_response(inbox)
        raise_error(response, frames)
    assert type(caught.value) is error
    assert space.snapshot() == before
    assert space.kept() == (0, 0)


def test_a_message_of_an_unknown_lane_is_refused_by_name(space: Space) -> None:
    response = space.evaluate(_bootstrap.expression("outline", space.header("bind", names=["a"])))
    with pytest.raises(ProtocolError, match="this remote part knows no lane 'outline'"):
        raise_error(response, ())
    assert "a" not in space.names()


def test_a_request_for_which_there_is_no_memory_is_a_memory_error(space: Space) -> None:
    """K4. It did not run, and the kernel goes on."""
    space.cell(
        "import resource\n"
        "old = resource.getrlimit(resource.RLIMIT_AS)\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 29), old[1]))\n"
    )
    wanted = space.header("bind", names=["a"])
    for operation in ("chunk", "bind"):
        header = {**wanted, "op": operation, "sizes": [1 << 31], "digest": digest("crc32", [b"x"])}
        response, _ = space.cross(header, b"x")
        with pytest.raises(RemoteError, match="no memory.*did not run") as caught:
            raise_error(response, ())
        assert caught.value.ename == "MemoryError"
    space.cell("resource.setrlimit(resource.RLIMIT_AS, old)")
    space.bind(a=1)
    assert space.fetch("a") == 1
