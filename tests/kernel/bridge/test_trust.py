"""Trust in data only: whatever an untrusted kernel sends, none of it runs in this process."""

from __future__ import annotations

import asyncio
import datetime
import json
import logging
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bridgehead import Bridge, BridgeError, RemoteError, SyncBridge, UntrustedPayload
from support.kit import awaited, first, until

# A hostile kernel: every response to a request is a pickle that runs code.
HOSTILE = """
import os, pickle, sys

class Evil:
    def __reduce__(self):
        return os.system, ({command!r},)

_remote = next(m for n, m in list(sys.modules.items()) if n.startswith("_bridgehead"))
_remote.encode = lambda value, refs=None, limit=None: (
    [memoryview(pickle.dumps((Evil(),)))], False
)
_remote.encode_small = lambda value: [memoryview(pickle.dumps((Evil(),)))]
_remote.encode_data = lambda value, allow=(): [memoryview(pickle.dumps((Evil(),)))]
"""


@pytest.fixture(scope="module", params=["loopback", "live"])
async def data_bridge(request: pytest.FixtureRequest) -> AsyncIterator[Bridge]:
    """Open a bridge that trusts only data."""
    make = Bridge.loopback if request.param == "loopback" else Bridge.launch
    async with make(trust="data") as bridge:
        yield bridge


@pytest.mark.parametrize("how", ["pull", "call", "watch", "an exception"])
async def test_a_malicious_response_is_not_opened(how: str, tmp_path: Path) -> None:
    proof = tmp_path / "it ran"
    async with Bridge.launch(trust="data") as bridge:
        await bridge.push(x=1, history=[])
        watch = bridge.watch("history")
        assert await anext(watch) == []
        assert await bridge.pull("x") == 1
        await bridge.run(HOSTILE.format(command=f"touch '{proof}'"))
        if how == "an exception":  # its pickle comes along, and is not opened
            with pytest.raises(RemoteError, match="ZeroDivisionError") as caught:
                await bridge.pull("1/0")
            assert caught.value.__cause__ is None
        else:
            ask: dict[str, Callable[[], Awaitable[Any]]] = {
                "pull": lambda: bridge.pull("x"),
                "call": lambda: bridge.call(abs, 1),
                "watch": lambda: anext(watch),
            }
            await bridge.run("history.append(1)")
            with pytest.raises(UntrustedPayload, match="posix.system") as caught:
                await ask[how]()
            assert caught.value.type == "posix.system"
        assert not proof.exists()
        # The bridge still works, and a bridge that trusts this kernel does run the code.
        assert await bridge.exists("x")
        async with Bridge.attach(bridge.info.connection_file) as trusting:
            await trusting.pull("x")
        assert proof.exists()


async def test_data_crosses_with_trust_data(data_bridge: Bridge) -> None:
    frame = pd.DataFrame(
        {
            "n": [1, 2, 3],
            "s": ["a", None, "c"],
            "c": pd.Categorical(["x", "y", "x"]),
            "t": pd.date_range("2026-01-01", periods=3, tz="Europe/Berlin"),
        }
    )
    values = {
        "nested": {"a": [1, 2.5, (None, True)], "b": {"c", b"d"}},
        "when": datetime.datetime(2026, 11, 23, tzinfo=datetime.UTC),
        "price": Decimal("1.10"),
        "array": np.arange(1_000_000.0).reshape(1000, 1000),
        "frame": frame,
    }
    for trust in ("pickle", "data"):
        await data_bridge.push(values, trust=trust)
        nested, when, price, array, back = await data_bridge.pull(*values)
        assert (nested, when, price) == (values["nested"], values["when"], values["price"])
        np.testing.assert_array_equal(array, values["array"])
        assert array.flags.writeable
        pd.testing.assert_frame_equal(back, frame)
    assert data_bridge.info.trust == "data"


@dataclass
class Point:
    x: int
    y: int


async def test_untrusted_payload_names_the_part_that_is_not_data(data_bridge: Bridge) -> None:
    this_module = [sys.modules[__name__]]
    await data_bridge.push(p=Point(1, 2), deep={"model": [Point(1, 2)]}, x=1, by_value=this_module)
    with pytest.raises(UntrustedPayload, match=r"^p is .*Point, which is not data") as caught:
        await data_bridge.pull("p")
    assert caught.value.type.endswith("Point")
    with pytest.raises(UntrustedPayload, match=r"deep\['model'\]\[0\] is .*Point"):
        await data_bridge.pull("x", "deep")
    with pytest.raises(UntrustedPayload, match="function"):
        await data_bridge.pull("lambda: 1")
    assert await data_bridge.pull("p", trust="pickle") == Point(1, 2)
    assert await data_bridge.pull("p.x") == 1


async def test_a_kernel_opens_only_data_if_the_push_asks_for_it(data_bridge: Bridge) -> None:
    await data_bridge.push(x=1)
    refused = {"bad_p": Point(1, 2), "bad_q": [print], "bad_r": data_bridge.ref("x")}
    for name, value in refused.items():
        with pytest.raises(UntrustedPayload, match=f"^{name}.* is .*, which is not data"):
            await data_bridge.push({name: value, "x": 2}, trust="data")
    assert await data_bridge.pull("x") == 1
    # The remote part refuses it too, from a client that does not check by itself.
    frames = [b"cposix\nsystem\n(S'true'\ntR."]
    with pytest.raises(BridgeError, match=r"posix\.system"):
        await _bind(data_bridge, frames)
    assert await data_bridge.names("[bz]*") == []


async def _bind(bridge: Bridge, frames: list[bytes]) -> None:
    from bridgehead._protocol import request as _request
    from bridgehead._protocol.payload import Payload

    lane = await bridge._connection.remote.ready()
    views = [memoryview(frame) for frame in frames]
    payload = Payload(views).signed("crc32")
    fields = {**lane.fields(), "names": ["z"], "opens": "data"}
    header = _request.header("bind", payload, epoch=bridge.info.epoch, **fields)
    await lane.complete(await lane.carry(_request.Request(header, payload)))


async def test_classes_may_be_allowed_by_name() -> None:
    async with Bridge.loopback(
        trust="data", allow=[json.JSONDecodeError, "pathlib.PurePosixPath"]
    ) as b:
        await b.push(path=PurePosixPath("/a/b"), point=Point(1, 2))
        assert await b.pull("[path]") == [PurePosixPath("/a/b")]
        with pytest.raises(UntrustedPayload, match="Point"):
            await b.pull("point")


async def _kept(bridge: Bridge) -> Any:
    async with await bridge.call(PurePosixPath, "/a", keep=True) as kept:
        return await kept.pull()


async def _called(bridge: Bridge) -> Any:
    """Return what a callback got; the kernel sends it nothing that it could not open."""
    seen: list[Any] = []
    with bridge.callback(seen.append) as report:
        await bridge.push(report=report)
        try:
            await bridge.run("report(path)")
        except RemoteError as error:
            raise UntrustedPayload(str(error)) from error
        await until(lambda: seen or report.failed)
    return seen[0]


# What gives ``path``, an object of a class that is not data.
GIVES_A_PATH: dict[str, Callable[[Bridge], Awaitable[Any]]] = {
    "pull": lambda bridge: bridge.pull("path"),
    "pull with await": lambda bridge: bridge.pull("await __import__('asyncio').sleep(0, path)"),
    "ref": lambda bridge: bridge.ref("path").pull(),
    "call": lambda bridge: bridge.call(PurePosixPath, "/a"),
    "call of an async function": lambda bridge: bridge.call(asyncio.sleep, 0, PurePosixPath("/a")),
    "submit": lambda bridge: awaited(bridge.submit(PurePosixPath, "/a")),
    "keep": _kept,
    "iterate": lambda bridge: first(bridge.iterate("[path]")),
    "callback": _called,
    "watch": lambda bridge: first(bridge.watch("path")),
}


@pytest.mark.parametrize("name", GIVES_A_PATH)
async def test_an_allowed_class_arrives_by_each_operation(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    give, allow = GIVES_A_PATH[name], ["pathlib.PurePosixPath"]
    async with Bridge.loopback(trust="data", allow=allow) as bridge:
        await bridge.push(path=PurePosixPath("/a"))
        assert await give(bridge) == PurePosixPath("/a")
    async with Bridge.loopback(trust="data") as bridge:
        await bridge.push(path=PurePosixPath("/a"))
        with pytest.raises(UntrustedPayload), caplog.at_level(logging.CRITICAL):
            await give(bridge)


async def test_a_single_pull_with_await_opens_only_data() -> None:
    async with Bridge.loopback(trust="pickle") as bridge:
        code = "await __import__('asyncio').sleep(0, [{}])"
        assert await bridge.pull(code.format(5), trust="data") == [5]
        with pytest.raises(UntrustedPayload, match="builtin_function"):
            await bridge.pull(code.format("len"), trust="data")
        assert await bridge.pull(code.format("len")) == [len]


@pytest.mark.parametrize(
    ("trust", "allow", "error", "message"),
    [
        ("everything", (), ValueError, "trust= is 'pickle' or 'data'"),
        ("data", "Point", TypeError, "allow= takes a list"),
        ("data", Point, TypeError, "allow= takes a list"),
        ("data", [5], TypeError, "allow= takes classes or their names, not 5"),
        ("data", ["no.such.Thing"], ValueError, "there is no such class"),
        ("data", ["os.path.join"], TypeError, "allow= takes classes"),
    ],
)
async def test_bad_arguments_raise_before_anything_is_opened(
    trust: Any, allow: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Bridge.launch("no such kernel", trust=trust, allow=allow)


async def test_the_data_codec_is_loaded_once_and_again_after_a_restart() -> None:
    async with Bridge.launch(trust="data") as bridge:
        await asyncio.gather(*(bridge.push({f"x{i}": i}, trust="data") for i in range(20)))
        assert await asyncio.gather(*(bridge.pull(f"x{i}") for i in range(20))) == list(range(20))
        await bridge.restart()
        await bridge.push(x=5)
        assert await bridge.pull("x") == 5


def test_a_sync_bridge_with_trust_data_refuses_more_than_data() -> None:
    with SyncBridge.loopback(trust="data") as bridge:
        bridge["x"] = [1, 2]
        assert bridge["x"] == [1, 2]
        bridge.push(f=len)
        with pytest.raises(UntrustedPayload):
            bridge.pull("f")
        assert bridge.pull("f", trust="pickle") is len
