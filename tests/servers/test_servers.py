"""Kernels behind Jupyter Server and Kernel Gateway: both as they are, with their default limits.

Rule: real servers on loopback. ``Wire`` breaks connections; who else is at a server is ``Other``.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import os
import random
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import trustme

from bridgehead import (
    Bridge,
    BridgeClosed,
    Fleet,
    InsecureConnection,
    KernelDied,
    KernelNotFound,
    KernelRestarted,
    NameNotFound,
    PayloadTooLarge,
    RemoteError,
    ReplyLost,
    SyncBridge,
    TransportError,
    UntrustedPayload,
)
from bridgehead._transports import websocket
from support.kit import KEPT, goes_on, reported_within, until
from support.servers import GATEWAY, SERVER, TOKEN, Other, Wire, free_port, on, serving

pytestmark = pytest.mark.servers

NOBODY = "01234567-89ab-cdef-0123-456789abcdef"
MIB = 1 << 20


@pytest.fixture(scope="module", params=[SERVER, GATEWAY])
async def anyone(request: pytest.FixtureRequest) -> AsyncIterator[str]:
    """The address of either kind of server."""
    async with serving(request.param) as url:
        yield url


# ---------------------------------------------------------------- what crosses


@pytest.mark.parametrize("lane", ["buffers", "inline"])
async def test_objects_cross_both_ways(anyone: str, lane: Any) -> None:
    table = pd.DataFrame({"a": np.arange(50_000), "b": np.linspace(0, 1, 50_000), "c": "text"})
    when = datetime.datetime.now(datetime.UTC)
    large = np.random.default_rng(1).integers(0, 255, 20 * MIB, dtype=np.uint8)
    async with on(anyone, lane=lane) as bridge:
        assert bridge.info.lane == lane
        assert (bridge.info.transport, bridge.info.url) == ("websocket", anyone)
        told = await bridge.push(table=table, when=when, large=large)
        assert told.lane == lane
        back, moment, array = await bridge.pull("table", "when", "large")
        pd.testing.assert_frame_equal(back, table)
        assert moment == when
        assert np.array_equal(array, large)
        assert array.flags.writeable
        assert await bridge.call(lambda x, y: x + y, 1, y=2) == 3
        assert await bridge.exists("table")
        await bridge.delete("large")
        assert [name.name for name in await bridge.names()] == ["table", "when"]
        with pytest.raises(NameNotFound):
            await bridge.pull("tabel")


async def test_a_cell_runs_as_in_a_notebook(anyone: str) -> None:
    async with on(anyone) as bridge:
        result = await bridge.run("print('out')\nimport sys; print('err', file=sys.stderr)\n1 + 1")
        assert (result.stdout, result.stderr, result.data["text/plain"]) == ("out\n", "err\n", "2")
        with pytest.raises(RemoteError, match="ZeroDivisionError"):
            await bridge.run("1 / 0")
        running = asyncio.create_task(bridge.run("import time\nwhile True: time.sleep(0.01)"))
        await until(lambda: bridge.state == "busy")
        await bridge.interrupt()
        with pytest.raises(RemoteError, match="KeyboardInterrupt"):
            await running
        await goes_on(bridge)


async def test_in_the_middle_of_a_cell(anyone: str) -> None:
    async with on(anyone) as bridge:
        running = asyncio.create_task(
            bridge.run("import time\nx = 1\nwhile x: time.sleep(0.01)", timeout=120)
        )
        await until(lambda: bridge.state == "busy")
        assert await bridge.pull("x", now=True) == 1
        await bridge.push(x=0, now=True)
        await running


async def test_a_gigabyte_crosses_a_default_server_both_ways(server: str) -> None:
    array = np.arange(1 << 27, dtype=np.int64)
    async with on(server) as bridge:
        told = await bridge.push(array=array)
        assert told.bytes > 1 << 30
        assert await bridge.pull("int(array.sum())") == int(array.sum())
        back = await bridge.pull("array")
        assert np.array_equal(back, array)


async def test_nothing_depends_on_iopub() -> None:
    """The server drops what comes too fast (a limit that any machine exceeds); replies and data
    come all the same.
    """
    limit = "--ZMQChannelsWebsocketConnection.iopub_msg_rate_limit=5"
    async with serving(SERVER, limit) as server, on(server) as bridge:
        stream = bridge.messages()
        await bridge.run("import sys\nfor n in range(1000): print(n); sys.stdout.flush()")
        assert len(stream) < 1000  # it did drop some
        await bridge.push(x=np.arange(3 * MIB))
        assert int((await bridge.pull("x")).sum()) == sum(range(3 * MIB))
        assert (await bridge.run("2 + 2")).execution_count == 2


async def test_only_data_is_trusted_there(server: str) -> None:
    async with on(server) as bridge:
        assert bridge.info.trust == "data"
        await bridge.run("class Mine: pass\nmine = Mine()")
        with pytest.raises(UntrustedPayload):
            await bridge.pull("mine")
        assert type(await bridge.pull("mine", trust="pickle")).__name__ == "Mine"


async def test_watching_and_messages(server: str) -> None:
    async with on(server) as bridge:
        stream = bridge.messages()
        await bridge.run("x = 1")
        async with bridge.watch("x") as watch:
            assert await anext(watch) == 1
            await bridge.run("x = 2")
            assert await anext(watch) == 2
        seen = [(await anext(stream)).type for _ in range(3)]
        assert seen == ["status", "execute_input", "status"]


async def test_a_handoff_goes_through_servers(anyone: str, server: str) -> None:
    """From a kernel here to one behind a server, on to one behind another, and back."""
    async with Bridge.launch() as here, on(anyone) as there, on(server) as beyond:
        await here.run("import numpy; x = numpy.arange(3_000_000); y = {'x': x}")
        assert (await here.handoff("x", "y", to=there)).lane == "direct, buffers"
        assert (await there.handoff("x", "y", to=beyond)).lane == "buffers"
        assert await beyond.pull("y['x'] is x") is True
        await beyond.run("x += 1")
        await beyond.handoff("x", to=here)
        assert await here.pull("int(x[0]), int(x[-1])") == (1, 3_000_000)
        await beyond.run("class Mine: pass\nmine = Mine()")
        with pytest.raises(UntrustedPayload):  # what is not trusted here is not to be there
            await beyond.handoff("mine", to=here)
        assert not await here.exists("mine")


async def test_a_fleet_of_kernels_here_and_there(server: str) -> None:
    async with Bridge.launch() as here, on(server) as there, Fleet([here, there]) as fleet:
        array = np.arange(1_000_000)
        assert [told.lane for told in await fleet.push(array=array)] == ["direct", "buffers"]
        assert await fleet.pull("int(array.sum())") == [int(array.sum())] * 2


def test_a_blocking_bridge(tmp_path: Path) -> None:
    async def told(url: str) -> list[Any]:
        def work() -> list[Any]:
            with SyncBridge.connect(url, TOKEN) as bridge:
                bridge["x"] = [1, 2]
                return [bridge["x"], len(bridge)]

        return await asyncio.to_thread(work)

    async def main() -> list[Any]:
        async with serving() as url:
            return await told(url)

    assert asyncio.run(main()) == [[1, 2], 1]


async def test_the_loader_keeps_nothing(server: str) -> None:
    """Answers are kept until the near end has them: the next request says so."""
    async with on(server) as bridge:
        await bridge.run(KEPT)
        await bridge.push(x=np.arange(5 * MIB))
        for _ in range(20):
            await bridge.pull("x[:100]")
            await bridge.pull("x")
        # The answer of the call itself is kept, and nothing else.
        assert await bridge.pull("_kept()") == [0, 0]


# ---------------------------------------------------------------- which server, which kernel


async def test_a_kernel_that_it_started_ends_with_the_bridge_and_no_other(server: str) -> None:
    async with Other(server) as other:
        before = await other.kernels()
        bridge = await on(server)
        assert await other.kernels() == before | {bridge.info.kernel_id}
        async with on(server, kernel_id=bridge.info.kernel_id) as second:
            assert second.info.pid == bridge.info.pid
            await bridge.push(x=1)
            assert await second.pull("x") == 1
        address = f"{server}api/kernels/{bridge.info.kernel_id}?token={TOKEN}"
        async with Bridge.attach(address) as third:
            assert await third.pull("x") == 1
        async with Bridge.attach(f"{server}lab?token={TOKEN}") as latest:
            assert latest.info.kernel_id in await other.kernels()
        assert bridge.info.kernel_id in await other.kernels()
        await bridge.aclose()
        assert await other.kernels() == before


async def test_an_opening_that_is_cancelled_leaves_no_kernel(server: str) -> None:
    async with Other(server) as other:
        before = await other.kernels()
        for pause in (0, 0.01, 0.05, 0.2, 0.5):
            opening = asyncio.ensure_future(_open(server))
            await asyncio.sleep(pause)
            opening.cancel()
            with pytest.raises(asyncio.CancelledError):
                await (await opening).aclose()
                raise asyncio.CancelledError  # it was quicker
        assert await other.kernels() == before


async def _open(server: str) -> Bridge:
    return await on(server)


async def test_a_kernelspec_by_name(server: str) -> None:
    async with on(server, kernel_name="python3") as bridge:
        assert await bridge.pull("1 + 1") == 2
    with pytest.raises(KernelNotFound, match=r"named 'nobody'.*it has: .*python3"):
        await on(server, kernel_name="nobody")
    with pytest.raises(ValueError, match="say one"):
        Bridge.connect(server, TOKEN, kernel_name="python3", kernel_id=NOBODY)


async def test_the_server_that_runs_here(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, server: str
) -> None:
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path))
    with pytest.raises(KernelNotFound, match="tells of: none"):
        await Bridge.connect()
    (tmp_path / "jpserver-1.json").write_text("no JSON")
    gone = {"url": "http://127.0.0.1:1/", "token": "x", "pid": 2**22 + 1}
    (tmp_path / "jpserver-2.json").write_text(json.dumps(gone))
    async with serving(runtime=str(tmp_path)) as url:
        async with Bridge.connect() as bridge:
            assert bridge.info.url == url.replace("127.0.0.1", "localhost")
        async with Bridge.connect(url) as bridge:  # its token is found there as well
            assert bridge.info.url == url
        here = {"url": server, "token": TOKEN, "pid": os.getpid()}
        (tmp_path / "jpserver-3.json").write_text(json.dumps(here))
        with pytest.raises(KernelNotFound, match="tells of: http.*, http"):
            await Bridge.connect()


async def test_a_token_of_the_environment(
    server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("JUPYTER_TOKEN", TOKEN)
    async with Bridge.connect(server) as bridge:
        await goes_on(bridge)
    monkeypatch.delenv("JUPYTER_TOKEN")
    (tmp_path / "token").write_text(TOKEN + "\n")
    monkeypatch.setenv("JUPYTER_TOKEN_FILE", str(tmp_path / "token"))
    async with Bridge.connect(server) as bridge:
        await goes_on(bridge)


async def test_the_token_is_in_no_address(wire: Wire) -> None:
    async with Bridge.connect(f"{wire.url}lab/tree/x?token={TOKEN}") as bridge:
        await goes_on(bridge)
    lines = [line for line in wire.asked.split(b"\r\n") if b" HTTP/1.1" in line]
    assert any(b"/channels" in line for line in lines)
    assert not any(TOKEN.encode() in line for line in lines)
    assert b"authorization: token " + TOKEN.encode() in wire.asked.lower()


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("how", "match"),
    [
        ({"token": "wrong"}, "refuses the token"),
        ({"token": "wrong", "kernel_id": NOBODY}, "refuses the token"),
        ({"token": ""}, "wants a token"),
        ({"kernel_id": NOBODY}, f"has no kernel {NOBODY}"),
        ({"path": "nowhere/"}, "is no Jupyter server's: .*below a path"),
    ],
)
async def test_what_is_wrong_is_told(anyone: str, how: dict[str, str], match: str) -> None:
    how = {"token": TOKEN, **how}
    with pytest.raises(KernelNotFound, match=match):
        await Bridge.connect(anyone + how.pop("path", ""), **how)  # type: ignore[arg-type]


async def test_no_server_at_all() -> None:
    with pytest.raises(TransportError, match="nothing answers at"):
        await Bridge.connect(f"http://127.0.0.1:{free_port()}")
    for address in ("ftp://host", "http://", "http://me:secret@host"):
        with pytest.raises(ValueError, match=r"address"):
            await Bridge.connect(address)
    with pytest.raises(InsecureConnection, match="plain http.*plain-tcp"):
        await Bridge.connect("http://192.0.2.1:8888")


async def test_a_server_that_is_none(server: str) -> None:
    """Something that speaks HTTP, and knows nothing of kernels."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1 << 16)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listener:
        port = listener.sockets[0].getsockname()[1]
        with pytest.raises(KernelNotFound, match="is no Jupyter server's"):
            await Bridge.connect(f"http://127.0.0.1:{port}")


async def test_https_with_an_authority_of_ones_own_below_a_path(tmp_path: Path) -> None:
    authority, file = trustme.CA(), tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(str(file))
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(
        str(tmp_path / "server.pem")
    )
    trusting = ssl.create_default_context(cafile=str(file))
    options = (f"--ServerApp.certfile={tmp_path}/server.pem", "--ServerApp.base_url=/user/me/")
    async with serving(SERVER, *options, path="/user/me/", ssl=trusting) as url:
        with pytest.raises(InsecureConnection, match="ssl= takes the file of the authority"):
            await Bridge.connect(url, TOKEN)
        with pytest.raises(TransportError, match="is it https"):
            await Bridge.connect(url.replace("https", "http"), TOKEN)
        with pytest.raises(ValueError, match="names no file of certificates"):
            await Bridge.connect(url, TOKEN, ssl=tmp_path / "nowhere.pem")
        for trusted in (file, str(file), trusting):
            async with Bridge.connect(f"{url}lab", TOKEN, ssl=trusted) as bridge:
                await goes_on(bridge)
    with pytest.raises(ValueError, match="ssl= is for https"):
        await Bridge.connect("http://127.0.0.1", ssl=trusting)


async def test_a_message_beyond_the_limit(anyone: str) -> None:
    async with on(anyone) as bridge:
        await bridge.push(x=1)
        with pytest.raises(PayloadTooLarge, match="takes no message of 11,.*push data") as caught:
            await bridge.run(f"x = {'a' * 11 * MIB!r}")
        assert caught.value.bytes > 11 * MIB
        assert await bridge.pull("x") == 1


# ---------------------------------------------------------------- connections that break


@pytest.mark.parametrize("lane", ["buffers", "inline"])
async def test_a_transfer_goes_on_after_a_cut(wire: Wire, lane: Any) -> None:
    """At random points of it, both ways; what arrived is not sent again as a whole."""
    source = random.Random(3)
    array = np.random.default_rng(2).integers(0, 255, 24 * MIB, dtype=np.uint8)
    async with on(wire.url, lane=lane) as bridge:
        await bridge.run("import itertools; done = itertools.count(1)")
        await bridge.run("class Counted(dict):\n    def __reduce__(self): return dict, ()")
        for n in range(1, 5):
            cuts = wire.cuts
            wire.cut_after(source.randrange(24 * MIB))
            await bridge.push(array=array, n=n)
            assert wire.cuts > cuts
            assert await bridge.pull("n") == n
            cuts = wire.cuts
            wire.cut_after(source.randrange(24 * MIB))
            back, count = await bridge.pull("array", "next(done)")
            assert wire.cuts > cuts
            assert np.array_equal(back, array)
            assert count == n  # evaluated once
        await bridge.run(KEPT)
        assert await bridge.pull("_kept()") == [0, 0]


async def test_nothing_is_done_twice(wire: Wire) -> None:
    """Cut somewhere on the way there, over there, or on the way back."""
    source = random.Random(4)
    async with on(wire.url) as bridge:
        await bridge.run("import itertools; done = itertools.count(1)")
        for n in range(1, 40):
            wire.cut_after(source.randrange(6000))
            assert await bridge.pull("next(done)") == n
        assert wire.cuts > 20


async def test_a_cell_is_never_run_twice(wire: Wire) -> None:
    source = random.Random(5)
    async with on(wire.url) as bridge:
        await bridge.run("import time; n = 0")
        told = []
        for _ in range(12):
            cutting = asyncio.get_running_loop().call_later(source.random() / 5, wire.cut)
            before = await bridge.pull("n")
            try:
                result = await bridge.run("time.sleep(0.1); n += 1; print(n)")
                told.append(result)
                assert await bridge.pull("n") == before + 1
            except ReplyLost as error:
                told.append(error)
                assert await bridge.pull("n") in (before, before + 1)
            cutting.cancel()
        assert any(not isinstance(one, ReplyLost) for one in told)


async def test_what_is_watched_is_told_after_a_cut(wire: Wire) -> None:
    async with on(wire.url) as bridge:
        await bridge.run("x = 1")
        async with bridge.watch("x") as watch:
            assert await anext(watch) == 1
            wire.cut()
            await goes_on(bridge)
            await bridge.run("x = 2")
            async with reported_within(1):
                assert await anext(watch) == 2


async def test_what_a_cell_changed_while_nobody_was_connected(wire: Wire, server: str) -> None:
    async with on(wire.url) as bridge:
        await bridge.run("x = 1")
        async with bridge.watch("x") as watch:
            assert await anext(watch) == 1
            wire.is_down = True
            wire.cut()
            async with on(server, kernel_id=bridge.info.kernel_id) as second:
                await second.run("x = 2")
            wire.is_down = False
            async with reported_within(5):
                assert await anext(watch) == 2


async def test_a_server_that_is_away_is_told_and_comes_back(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(websocket, "RECONNECT_WITHIN", 1.0)
    async with on(wire.url) as bridge:
        await bridge.push(x=1)
        wire.is_down = True
        wire.cut()
        async with reported_within(5):
            with pytest.raises(TransportError, match="none again for 1 s.*goes on when there is"):
                await bridge.pull("x")
        with pytest.raises(TransportError):
            await bridge.pull("x")
        wire.is_down = False
        await until(lambda: bridge.state == "idle")
        assert await bridge.pull("x") == 1


async def test_a_bridge_closes_while_it_is_not_connected(wire: Wire, server: str) -> None:
    bridge = await on(wire.url)
    await bridge.push(x=1)
    wire.is_down = True
    wire.cut()
    pulling = asyncio.create_task(bridge.pull("x"))
    await asyncio.sleep(0.1)
    async with reported_within(5):
        await bridge.aclose()
    with pytest.raises(BridgeClosed):
        await pulling
    async with Other(server) as other:  # nobody could tell the server
        await other.delete(str(bridge.info.kernel_id))


async def test_a_cancelled_transfer_is_dropped_after_a_cut(wire: Wire) -> None:
    async with on(wire.url) as bridge:
        await bridge.run(KEPT)
        wire.cut_after(12 * MIB)
        pushing = asyncio.create_task(bridge.push(array=np.zeros(40 * MIB, np.uint8)))
        await until(lambda: wire.cuts)
        pushing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pushing
        assert not await bridge.exists("array")
        await goes_on(bridge)
        assert await bridge.pull("_kept()") == [0, 0]


# ---------------------------------------------------------------- kernels that end


async def comes_back(bridge: Bridge) -> None:
    """Who waits is told of the restart, and the next call; then all is well."""
    for _ in range(2):
        with contextlib.suppress(KernelRestarted):
            await goes_on(bridge)
    await goes_on(bridge)


async def test_a_kernel_that_dies_is_told(anyone: str) -> None:
    """The server starts another, which is new: told once, and the next call goes there."""
    async with on(anyone) as bridge:
        await bridge.push(x=1)
        async with reported_within(5):
            with pytest.raises(KernelRestarted):
                await bridge.run("import os; os._exit(1)")
        await comes_back(bridge)
        assert not await bridge.exists("x")


async def test_a_restart_by_somebody_else_is_told(server: str) -> None:
    async with on(server) as bridge, Other(server) as other:
        await bridge.push(x=1)
        running = asyncio.create_task(bridge.run("import time; time.sleep(600)"))
        await until(lambda: bridge.state == "busy")
        await other.restart(str(bridge.info.kernel_id))
        async with reported_within(5):
            with pytest.raises(KernelRestarted):
                await running
        await comes_back(bridge)
        # Of this one nobody hears: the next call finds another process.
        await other.restart(str(bridge.info.kernel_id))
        await comes_back(bridge)
        running = asyncio.create_task(bridge.run("import time; time.sleep(3)"))
        await running  # nobody takes it for another restart


async def test_a_kernel_that_somebody_ends_is_told(server: str) -> None:
    async with on(server) as bridge, Other(server) as other:
        running = asyncio.create_task(bridge.run("import time; time.sleep(600)"))
        await until(lambda: bridge.state == "busy")
        await other.delete(str(bridge.info.kernel_id))
        async with reported_within(5):
            with pytest.raises(KernelDied):
                await running
        with pytest.raises(KernelDied):
            await bridge.pull("1")
        assert bridge.state == "dead"


async def test_a_restart_of_ones_own(anyone: str) -> None:
    async with on(anyone) as bridge:
        await bridge.push(x=1)
        pid = bridge.info.pid
        await bridge.restart()
        assert bridge.info.pid != pid
        assert not await bridge.exists("x")
        await goes_on(bridge)


async def test_a_restart_in_the_middle_of_a_transfer(server: str) -> None:
    async with on(server) as bridge, Other(server) as other:
        begun = asyncio.Event()
        array = np.zeros(200 * MIB, np.uint8)
        pushing = asyncio.create_task(
            bridge.push(array=array, progress=lambda done, total: begun.set())
        )
        await begun.wait()
        await other.restart(str(bridge.info.kernel_id))
        async with reported_within(5):
            with pytest.raises((KernelRestarted, RemoteError)) as caught:
                await pushing
            # The server interrupts what it is to end.
            assert getattr(caught.value, "ename", "") in ("", "KeyboardInterrupt")
        await comes_back(bridge)
        assert not await bridge.exists("array")


# ---------------------------------------------------------------- servers behind servers


async def test_a_server_that_passes_on_to_a_gateway() -> None:
    """Its upstream connection dies of binary messages; text carries everything."""
    async with serving(GATEWAY) as behind:
        options = (
            f"--gateway-url={behind.rstrip('/')}",
            f"--GatewayClient.auth_token={TOKEN}",
        )
        async with serving(SERVER, *options) as url, on(url) as bridge:
            assert bridge.info.lane == "inline"
            array = np.random.default_rng(3).integers(0, 255, 20 * MIB, dtype=np.uint8)
            await bridge.push(array=array)
            assert np.array_equal(await bridge.pull("array"), array)
            assert (await bridge.run("print('there')")).stdout == "there\n"
            await bridge.restart()
            await goes_on(bridge)
