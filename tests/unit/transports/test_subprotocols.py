"""Packed websocket messages: the server's own code reads ours, and our code reads its messages.

Rule: the counterpart is jupyter_server's code, never a copy of ours.
"""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from bridgehead import ProtocolError
from bridgehead._transports.subprotocols import BINARY, LEGACY, PARTS, Subprotocol

MESSAGE: dict[str, Any] = {
    "header": {"msg_id": "1", "msg_type": "execute_request", "session": "s"},
    "parent_header": {},
    "metadata": {"a": [1, None]},
    "content": {"code": "print('ä 🙂')"},
}
BUFFERS = [[], [b""], [b"one", memoryview(bytearray(1 << 20))[::1], memoryview(b"x" * 9)]]


def plain(message: dict[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
    return {part: message[part] for part in PARTS}, [bytes(one) for one in message["buffers"]]


@pytest.mark.parametrize("buffers", BUFFERS)
def test_the_server_reads_what_we_write(buffers: list[Any]) -> None:
    from jupyter_server.services.kernels.connection import base

    copies = [bytes(buffer) for buffer in buffers]
    channel, parts = base.deserialize_msg_from_ws_v1(BINARY.pack("shell", MESSAGE, buffers))
    assert channel == "shell"
    assert [json.loads(part) for part in parts[:4]] == [MESSAGE[part] for part in PARTS]
    assert parts[4:] == copies

    data = LEGACY.pack("control", MESSAGE, buffers)
    assert isinstance(data, bytes) == bool(buffers)
    read = base.deserialize_binary_message(data) if buffers else json.loads(data)
    assert read["channel"] == "control"
    assert plain(read) == (MESSAGE, copies)


@pytest.mark.parametrize("buffers", BUFFERS)
def test_we_read_what_the_server_writes(buffers: list[Any]) -> None:
    from jupyter_server.services.kernels.connection import base

    copies = [bytes(buffer) for buffer in buffers]
    parts = [json.dumps(MESSAGE[part]).encode() for part in PARTS]
    data = base.serialize_msg_to_ws_v1([*parts, *copies], "iopub")
    channel, message = BINARY.unpack(data)
    assert (channel, plain(message)) == ("iopub", (MESSAGE, copies))

    fields = {**MESSAGE, "channel": "iopub", "buffers": copies}
    data = base.serialize_binary_message(fields) if copies else json.dumps(fields)
    channel, message = LEGACY.unpack(data)
    assert (channel, plain(message)) == ("iopub", (MESSAGE, copies))


@pytest.mark.parametrize("subprotocol", [BINARY, LEGACY], ids=["v1", "legacy"])
def test_invalid_data_raises_a_protocol_error(subprotocol: Subprotocol) -> None:
    source = random.Random(7)
    good = subprotocol.pack("shell", MESSAGE, [b"abc", b"defg"])
    assert isinstance(good, bytes)
    odd: list[bytes | str] = [b"", b"\0", b"\xff" * 64, "", "[]", "{}", "nul", good[:7], good[:40]]
    for _ in range(3000):
        data = bytearray(good[: source.randrange(1, len(good) + 1)])
        for _ in range(source.randrange(1, 4)):
            data[source.randrange(len(data))] = source.randrange(256)
        odd.append(bytes(data))
    for data in odd:
        try:
            _, message = subprotocol.unpack(data)
        except ProtocolError:
            continue
        assert all(isinstance(message[part], dict) for part in PARTS)
    with pytest.raises(ProtocolError):
        subprotocol.unpack(b"\x06" + bytes(63))
