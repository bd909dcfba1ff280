"""A kernel whose remote part answers with hostile data: the client refuses it soon, and goes on.

Rule: a real kernel, whose remote part is replaced in place. How each kind of hostile stream is
refused is tested in ``unit/shipped/data``; here one of each kind crosses.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from bridgehead import Bridge, BridgeError, UntrustedPayload
from support.data import codec_call, data, pickled

TOWER = b")\x940" + b"".join(b"h%ch%c\x86\x940" % (n, n) for n in range(60)) + b"h\x3c"
ROWS = codec_call("make_range_index", 0, 1, 1, None)


def array(dtype: str, raw: bytes) -> bytes:
    count = (len(raw) // int(dtype[2:]),)
    return codec_call("make_array", dtype, count, "C", data(bytearray(raw)))


def categories(item: bytes) -> bytes:
    objects = codec_call("make_objects", (1,), "C", b"](" + item + b"e")
    column = codec_call("make_numpy_column", objects)
    index = codec_call("make_index", column, None, None)
    return codec_call("make_categorical", "|i1", data(bytes(1)), index, False)


SPARSE = codec_call("make_sparse", array("|i1", b"\1"), data(bytes(4)), 2**31 - 1, 0, False)
HOSTILE = {
    "a deep value": b")" + b"\x85" * 1_000_000,
    "a deep category": categories(b")" + b"\x85" * 1_000_000),
    "a tower": TOWER,
    "a category that is a tower": categories(TOWER),
    "a sparse index": codec_call("make_index", SPARSE, None, None),
    "nulls of Arrow": codec_call("make_arrow", "array", ("null",), [1 << 40], b"N"),
    "a decimal": codec_call("make_decimal", "1E+999999999"),
}
# Each replaces how the remote part answers a fetch.
ANSWER = """
import sys
_remote = next(m for n, m in list(sys.modules.items()) if n.startswith("_bridgehead"))
_remote.encode_data = lambda value, allow=(): [memoryview(hostile)]
"""
LIE = """
import sys
_remote = next(m for n, m in list(sys.modules.items()) if n.startswith("_bridgehead"))
_served = _remote._remotes[id(globals())]
def _lie(header, parts, thread=None, real=_served.receive):
    asked = [one["op"] for one in header.get("requests", [header]) if "op" in one]
    if {operation!r} not in asked:
        return real(header, parts, thread)
    return {{"digest": "none:" if thread else "crc32:00000000", **{answer}}}, []
_served.receive = _lie
"""
LIES = {
    "frames": ("fetch", "{'sizes': [0] * 5_000_000}"),
    "frames and bytes": ("fetch", "{'sizes': [0] * 500_000 + [1 << 40]}"),
    "names": ("names", "{'sizes': [], 'names': [{'name': 'x', 'type': 'int', 'shape': None, "
    "'len': None, 'bytes': None}] * 200_000}"),
    "missing names": ("fetch", "{'sizes': [], 'error': {'kind': 'name', 'message': '', "
    "'names': ['n' * 20] * 500_000, 'close': []}}"),
}  # fmt: skip


@pytest.fixture(params=["direct", "buffers"])
async def hostile(request: pytest.FixtureRequest) -> AsyncIterator[Bridge]:
    async with Bridge.launch(trust="data", lane=request.param) as bridge:
        await bridge.push(x=1)
        assert await bridge.pull("x") == 1
        yield bridge


async def test_a_hostile_value_is_refused_soon(hostile: Bridge) -> None:
    """M1 to M4. Within the deadline, which needs the interpreter's lock to be free."""
    for raw in HOSTILE.values():
        await hostile.push(hostile=pickled(raw, b"\x85"))
        await hostile.run(ANSWER)
        with pytest.raises(BridgeError, match="levels deep|visits|length allows"):
            await hostile.pull("x", timeout=20)
    assert await hostile.exists("x")


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
@pytest.mark.slow
async def test_millions_of_frames_or_names_are_refused_at_once(
    lie: tuple[str, str], hostile: Bridge
) -> None:
    """M7. Whatever ``max_bytes`` is."""
    operation, answer = lie
    await hostile.run(LIE.format(operation=operation, answer=answer))
    with pytest.raises(BridgeError) as caught:
        if operation == "names":
            await hostile.names(timeout=20)
        else:
            await hostile.pull("x", timeout=20, max_bytes=1000)
    assert len(str(caught.value)) < 50_000


@pytest.mark.parametrize("make", [Bridge.loopback, Bridge.launch])
async def test_a_push_beyond_data_is_not_sent(make: Any) -> None:
    """L10."""
    async with make() as bridge:
        for value in (slice([1], None), [slice((1, 2), None)], {"a": {"b": slice({}, None)}}):
            with pytest.raises(UntrustedPayload, match=r"^bad .*nothing was sent"):
                await bridge.push(fine=1, bad=value, trust="data")
        assert await bridge.names("[bf]*") == []
