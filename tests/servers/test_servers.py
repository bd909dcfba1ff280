"""Kernels behind Jupyter Server and Kernel Gateway, with the default limits of both.

Rule: real servers on loopback. ``Wire`` breaks connections; ``Other`` is another client.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import os
import random
import shutil
import ssl
import tempfile
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd
import pytest
import trustme

import bridgehead
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
    RunTimeout,
    SyncBridge,
    TransportError,
    UntrustedPayload,
)
from bridgehead._connection.outputs import CellObserver
from support.kit import KEPT, goes_on, reported_within, under_uvloop, until
from support.servers import GATEWAY, SERVER, TOKEN, Other, Wire, behind, free_port, on, serving
from support.work import GIVES_LEN, WORK, use_sync

pytestmark = pytest.mark.servers

UNUSED_ID = "01234567-89ab-cdef-0123-456789abcdef"
MIB = 1 << 20


# ---------------------------------------------------------------- transfers, calls and cells


@pytest.mark.parametrize("lane", ["buffers", "inline"])
async def test_objects_cross_both_ways(anyone: str, lane: Any) -> None:
    table = pd.DataFrame({"a": np.arange(50_000), "b": np.linspace(0, 1, 50_000), "c": "text"})
    when = datetime.datetime.now(datetime.UTC)
    large = np.random.default_rng(1).integers(0, 255, 20 * MIB, dtype=np.uint8)
    async with on(anyone, lane=lane) as bridge:
        assert bridge.info.lane == lane
        assert (bridge.info.transport, bridge.info.url) == ("websocket", anyone)
        transfer = await bridge.push(table=table, when=when, large=large)
        assert transfer.lane == lane
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
        begun = asyncio.Event()  # an interrupt before the code of the cell would lose its reply
        code = "print('begun')\nimport time\nwhile True: time.sleep(0.01)"
        running = asyncio.create_task(bridge.run(code, on_output=lambda message: begun.set()))
        await begun.wait()
        await bridge.interrupt()
        with pytest.raises(RemoteError, match="KeyboardInterrupt"):
            await running
        await goes_on(bridge)


@pytest.mark.parametrize("lane", ["buffers", "inline"])
async def test_each_name_of_work_in_the_kernel_works(anyone: str, lane: Any) -> None:
    async with on(anyone, lane=lane) as bridge:
        for work in WORK.values():
            await work(bridge)
        for trust in "pickle", "data":
            async with on(
                anyone, lane=lane, kernel_id=bridge.info.kernel_id, trust=trust
            ) as second:
                for give in GIVES_LEN.values():
                    if trust == "pickle":
                        assert await give(second) is len
                        continue
                    with pytest.raises(UntrustedPayload):
                        await give(second)


@pytest.mark.parametrize("lane", ["buffers", "inline"])
def test_each_name_works_with_a_sync_bridge(anyone: str, lane: Any) -> None:
    with SyncBridge.connect(anyone, TOKEN, lane=lane) as sync:
        use_sync(sync)


@pytest.mark.parametrize("lane", ["buffers", "inline"])
async def test_the_outputs_of_a_function_arrive_at_its_caller(anyone: str, lane: Any) -> None:
    def prints(value: bytes) -> int:
        print("out", len(value))
        return total + len(value)  # type: ignore[name-defined, no-any-return] # noqa: F821

    async def speaks(count: int) -> int:
        import asyncio

        for _ in range(count):
            print("a task")
            await asyncio.sleep(0.01)
        return count

    async with on(anyone, lane=lane) as bridge:
        await bridge.push(total=1)
        for nbytes in (3, 20 * MIB):
            seen: list[str] = []
            value = await bridge.call(
                *(prints, bytes(nbytes)),
                namespace=True,
                on_output=lambda message, to=seen: to.append(message.text),
            )
            assert (value, "".join(seen)) == (nbytes + 1, f"out {nbytes}\n")
        seen = []
        code = "import asyncio\nfor n in range(9): print(n); await asyncio.sleep(0.01)"
        task = bridge.submit(speaks, 9, on_output=lambda message: seen.append(message.text))
        assert (await bridge.run(code)).stdout.split() == [str(n) for n in range(9)]
        assert await task == 9
        assert "".join(seen) == "a task\n" * 9
        array = np.arange(5)
        assert await bridge.ref("sum")(array, bridge.ref("total")).pull() == 11


@pytest.mark.parametrize("lane", ["buffers", "inline"])
async def test_async_functions_run_and_are_cancelled(anyone: str, lane: Any) -> None:
    async def marks(names: dict[str, Any], value: Any, seconds: float) -> Any:
        import asyncio

        names["state"] = "begun"
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            names["state"] = "cancelled"
            raise
        return value

    async def until_state_is(state: str) -> None:
        async with reported_within(5):
            while await bridge.pull("state") != state:
                await asyncio.sleep(0.02)

    async with on(anyone, lane=lane) as bridge:
        names, large = bridge.ref("globals()"), np.arange(3_000_000)
        assert np.array_equal(await bridge.call(marks, names, large, 0), large)
        assert await bridge.pull("await __import__('asyncio').sleep(0, state)") == "begun"
        with pytest.raises(RemoteError, match="TypeError"):
            await bridge.call(marks, names, large, "no number")
        task = bridge.submit(marks, names, 1, 1000)
        await bridge.run("state = 'beside it'")  # the cell goes on beside the task
        assert bridge.stats.tasks == 1
        task.cancel()
        await until_state_is("cancelled")
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(TimeoutError):
            await bridge.call(marks, names, 1, 1000, timeout=0.5)
        await until_state_is("cancelled")
        assert bridge.stats.tasks == 0


@pytest.mark.parametrize("what", ["call", "run"])
async def test_on_timeout_interrupts_what_runs_and_nothing_else(anyone: str, what: str) -> None:
    code = "import time; time.sleep(60)"
    async with on(anyone) as bridge, on(anyone, kernel_id=bridge.info.kernel_id) as second:
        given: Any = {"timeout": 1.0, "on_timeout": "interrupt"}
        work = bridge.run(code, **given) if what == "run" else bridge.call(exec, code, **given)
        running = asyncio.ensure_future(work)
        await until(lambda: bridge.state == "busy")
        behind = asyncio.ensure_future(second.run("import time; time.sleep(0.2); behind = True"))
        async with reported_within(5):
            with pytest.raises(TimeoutError):
                await running
            await behind
        assert await bridge.pull("behind") is True


@pytest.mark.parametrize("lane", ["buffers", "inline"])
async def test_code_in_the_kernel_calls_back(anyone: str, lane: Any) -> None:
    seen: list[Any] = []

    def work(report: Any) -> None:
        for step in range(2000):
            report(step)

    async with on(anyone, lane=lane) as bridge:
        with bridge.callback(seen.append) as report:
            await bridge.call(work, report)
            await until(lambda: len(seen) == 2000)
            assert seen == [*range(2000)]
            await bridge.push(report=report)
            running = asyncio.ensure_future(
                bridge.run(
                    "import time\nreport('here')\nwhile 'go' not in globals(): time.sleep(0.01)"
                )
            )
            await until(lambda: seen[-1] == "here")
            assert not running.done()
            await bridge.push(go=1, now=True)
            await running


@pytest.mark.parametrize("lane", ["buffers", "inline"])
async def test_items_come_as_they_are_made_and_closing_is_waited_for(
    anyone: str, lane: Any
) -> None:
    def rows(names: dict[str, Any], raises: bool) -> Any:
        import time

        import numpy

        names["state"] = "open"
        reused = numpy.zeros(300_000)
        try:
            for n in range(10**9):
                reused[:] = n
                yield n if n % 100 else reused
        finally:
            time.sleep(0.1)
            names["state"] = "closed"
            if raises:
                raise LookupError("in the finally")

    async def rows_async(names: dict[str, Any], raises: bool) -> Any:
        for row in rows(names, raises):
            await asyncio.sleep(0)
            yield row

    async with on(anyone, lane=lane) as bridge:
        names = bridge.ref("globals()")
        for function in rows, rows_async:
            async with bridge.iterate(function, names, False) as items:
                for n in range(250):
                    assert np.all(await anext(items) == n)
                    if n == 200:
                        await bridge.run("beside = 1")
                assert bridge.stats.iterations == 1
            assert bridge.stats.iterations == 0
            if function is rows:  # the inner one of the other is closed when it is dropped
                assert await bridge.pull("state") == "closed"
        with pytest.raises(RemoteError, match="LookupError: in the finally"):
            async with bridge.iterate(rows, names, True) as items:
                await anext(items)
        assert [item async for item in bridge.iterate("(n * n for n in range(3))")] == [0, 1, 4]


@pytest.mark.parametrize("lane", ["buffers", "inline"])
async def test_a_cell_has_limits_names_values_and_input(anyone: str, lane: Any) -> None:
    async with on(anyone, lane=lane) as bridge:
        large = os.urandom(12 * MIB)
        result = await bridge.run(
            "print('x' * 100_000)\nb = a[::-1]\nc = input('c? ')",
            push={"a": large},
            pull=["b", "c"],
            max_output=1000,
            on_input=lambda prompt, password: prompt.upper(),
        )
        assert result.values == {"b": large[::-1], "c": "C? "}
        assert result.dropped == 100_001 - 1000
        async with bridge.stream("for n in range(3): print(n)") as outputs:
            assert "".join([message.text async for message in outputs]) == "0\n1\n2\n"
        found = await bridge.names(types=["bytes"], preview=True)
        assert [name.name for name in found] == ["a", "b"]
        with pytest.raises(RunTimeout, match="was interrupted$") as caught:
            await bridge.run(
                "import time\nprint('begun')\ntime.sleep(60)", timeout=1, on_timeout="interrupt"
            )
        assert caught.value.result.stdout == "begun\n"


async def test_a_notebook_runs_over_a_server(anyone: str, tmp_path: Path) -> None:
    cells = [nbformat.v4.new_code_cell("print(rows)"), nbformat.v4.new_code_cell("6 * 7")]
    file = tmp_path / "notebook.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), file)
    async with on(anyone) as bridge:
        notebook = await bridgehead.run_notebook(bridge, file, parameters={"rows": [1, 2]})
    assert notebook.cells[0].outputs[0].text == "[1, 2]\n"
    assert notebook.cells[1].outputs[0].data == {"text/plain": "42"}
    assert notebook.metadata.language_info.name == "python"


@pytest.mark.parametrize("how", ["file", "address"])
@pytest.mark.timings(listed_answer=60.0)  # s; a server may be slow on a loaded machine
async def test_kernels_of_a_server_are_found_and_attached(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is found is the file of its kernel, or only the record of the server."""
    with tempfile.TemporaryDirectory(prefix="bh-") as runtime:
        monkeypatch.setenv("JUPYTER_RUNTIME_DIR", runtime if how == "file" else str(tmp_path))
        async with serving(runtime=runtime) as url, on(url) as bridge:
            (record,) = Path(runtime).glob("jpserver-*.json")
            shutil.copy(record, tmp_path)
            await bridge.push(x=1)
            (found,) = await bridgehead.kernels()
            kernel = bridge.info.kernel_id
            server = found.server or ""
            assert server == json.loads(record.read_text())["url"]
            file, address = f"{runtime}/kernel-{kernel}.json", f"{server}api/kernels/{kernel}"
            assert found.where == (file if how == "file" else address)
            assert (found.state, found.purpose) == ("idle", "")
            async with Bridge.attach(found) as second:
                assert second.info.transport == ("tcp" if how == "file" else "websocket")
                assert await second.pull("x") == 1
            (same,) = await asyncio.to_thread(SyncBridge.kernels)
            assert (same.where, same.server) == (found.where, found.server)
            assert await bridge.pull("x") == 1  # it is still there


async def test_a_task_that_is_cancelled_interrupts_its_function(anyone: str) -> None:
    async with on(anyone) as bridge:
        task = bridge.submit(exec, "import time; time.sleep(60)")
        await until(lambda: bridge.state == "busy")
        never = bridge.submit(exec, "names['never'] = 1", {"names": bridge.ref("globals()")})
        async with reported_within(5):
            assert never.cancel()
            assert task.cancel()
            await goes_on(bridge)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not await bridge.exists("never")


async def test_one_cell_is_interrupted(anyone: str) -> None:
    async with on(anyone) as bridge:
        begun = asyncio.Event()
        observer = CellObserver(lambda message: begun.set())
        code = "print('begun')\nimport asyncio\nawait asyncio.sleep(60)"
        running = asyncio.create_task(bridge.run(code, on_output=observer))
        await begun.wait()
        assert not await bridge._connection.interrupt_cell("another cell")
        async with reported_within(1.5):
            assert await bridge._connection.interrupt_cell(observer.request)
            with pytest.raises(RemoteError, match="CancelledError"):
                await running
        assert not await bridge._connection.interrupt_cell(observer.request)
        await goes_on(bridge)


async def test_now_works_while_a_cell_runs(anyone: str) -> None:
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
        transfer = await bridge.push(array=array)
        assert transfer.bytes > 1 << 30
        assert await bridge.pull("int(array.sum())") == int(array.sum())
        back = await bridge.pull("array")
        assert np.array_equal(back, array)


async def test_nothing_depends_on_iopub() -> None:
    """The server drops iopub messages above a rate that any machine exceeds.

    Replies and data arrive all the same.
    """
    limit = "--ZMQChannelsWebsocketConnection.iopub_msg_rate_limit=5"
    async with serving(SERVER, limit) as server, on(server) as bridge:
        stream = bridge.messages()
        await bridge.run("import sys\nfor n in range(1000): print(n); sys.stdout.flush()")
        assert len(stream) < 1000  # it did drop some
        await bridge.push(x=np.arange(3 * MIB))
        assert int((await bridge.pull("x")).sum()) == sum(range(3 * MIB))
        assert (await bridge.run("2 + 2")).execution_count == 2


async def test_only_data_of_a_server_is_trusted(server: str) -> None:
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
        async with bridge.watch("x", "-x") as watch:
            assert await anext(watch) == (1, -1)
            await bridge.run("x = 2")
            assert await anext(watch) == (2, -2)
        async with bridge.watch_names() as watch_names:
            assert [name.name for name in await anext(watch_names)] == ["x"]
            await bridge.run("y = 'of another cell'")
            assert [name.name for name in await anext(watch_names)] == ["x", "y"]
        seen = [(await anext(stream)).type for _ in range(3)]
        assert seen == ["status", "execute_input", "status"]


async def test_a_handoff_works_between_servers(anyone: str, server: str) -> None:
    """From a local kernel to one behind a server, to one behind another server, and back."""
    async with Bridge.launch() as local, on(anyone) as first, on(server) as second:
        await local.run("import numpy; x = numpy.arange(3_000_000); y = {'x': x}")
        assert (await local.handoff("x", "y", to=first)).lane == "direct, buffers"
        assert (await first.handoff("x", "y", to=second)).lane == "buffers"
        assert await second.pull("y['x'] is x") is True
        await second.run("x += 1")
        await second.handoff("x", to=local)
        assert await local.pull("int(x[0]), int(x[-1])") == (1, 3_000_000)
        await second.run("class Mine: pass\nmine = Mine()")
        with pytest.raises(UntrustedPayload):  # the target must not get what the client distrusts
            await second.handoff("mine", to=local)
        assert not await local.exists("mine")


async def test_a_fleet_of_local_and_remote_kernels(server: str) -> None:
    async with Bridge.launch() as local, on(server) as remote, Fleet([local, remote]) as fleet:
        array = np.arange(1_000_000)
        transfers = await fleet.push(array=array)
        assert [transfer.lane for transfer in transfers] == ["direct", "buffers"]
        assert await fleet.pull("int(array.sum())") == [int(array.sum())] * 2


def test_a_blocking_bridge_connects_to_a_server(tmp_path: Path) -> None:
    async def in_a_thread(url: str) -> list[Any]:
        def work() -> list[Any]:
            with SyncBridge.connect(url, TOKEN) as bridge:
                bridge["x"] = [1, 2]
                return [bridge["x"], len(bridge)]

        return await asyncio.to_thread(work)

    async def main() -> list[Any]:
        async with serving() as url:
            return await in_a_thread(url)

    assert asyncio.run(main()) == [[1, 2], 1]


async def test_the_remote_part_keeps_no_acknowledged_response(server: str) -> None:
    """The kernel keeps a response until the client's next request acknowledges it."""
    async with on(server) as bridge:
        await bridge.run(KEPT)
        await bridge.push(x=np.arange(5 * MIB))
        for _ in range(20):
            await bridge.pull("x[:100]")
            await bridge.pull("x")
        # Only the response of this call itself is kept.
        assert await bridge.pull("_kept()") == [0, 0]


# ---------------------------------------------------------------- which server, which kernel


async def test_closing_ends_only_a_kernel_that_the_bridge_started(server: str) -> None:
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


async def test_a_kernel_of_a_server_does_not_attach_to_itself() -> None:
    async with serving(SERVER) as server, on(server) as kernel, on(server) as other:
        await other.run("n = 2")
        await kernel.run("n = 1\nfrom bridgehead import *")  # so it was used last
        latest = f"SyncBridge.attach('{server}?token={TOKEN}')"
        await kernel.run(f"with {latest} as used_last: n = used_last['n']")
        assert await kernel.pull("n") == 2
        address = f"{server}api/kernels/{kernel.info.kernel_id}?token={TOKEN}"
        with pytest.raises(RemoteError, match=f"{kernel.info.kernel_id} is this kernel itself"):
            await kernel.run(f"SyncBridge.attach({address!r})")


async def test_a_cancelled_opening_leaves_no_kernel(server: str) -> None:
    async with Other(server) as other:
        before = await other.kernels()
        for pause in (0, 0.01, 0.05, 0.2, 0.5):
            opening = asyncio.ensure_future(_open(server))
            await asyncio.sleep(pause)
            opening.cancel()
            with pytest.raises(asyncio.CancelledError):
                await (await opening).aclose()
                raise asyncio.CancelledError  # the opening was quicker than the cancel
        assert await other.kernels() == before


async def _open(server: str) -> Bridge:
    return await on(server)


async def test_a_kernelspec_by_name(server: str) -> None:
    async with on(server, kernel_name="python3") as bridge:
        assert await bridge.pull("1 + 1") == 2
    with pytest.raises(KernelNotFound, match=r"named 'kobol'.*it has: .*python3"):
        await on(server, kernel_name="kobol")
    with pytest.raises(ValueError, match="pass only one of them"):
        Bridge.connect(server, TOKEN, kernel_name="python3", kernel_id=UNUSED_ID)


async def test_connect_without_an_address_finds_the_server_on_this_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, server: str
) -> None:
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path))
    with pytest.raises(KernelNotFound, match="lists: none"):
        await Bridge.connect()
    (tmp_path / "jpserver-1.json").write_text("no JSON")
    ended = {"url": "http://127.0.0.1:1/", "token": "x", "pid": 2**22 + 1}
    (tmp_path / "jpserver-2.json").write_text(json.dumps(ended))
    async with serving(runtime=str(tmp_path)) as url:
        async with Bridge.connect() as bridge:
            assert bridge.info.url == url.replace("127.0.0.1", "localhost")
        async with Bridge.connect(url) as bridge:  # the token is found in the server's file, too
            assert bridge.info.url == url
        second = {"url": server, "token": TOKEN, "pid": os.getpid()}
        (tmp_path / "jpserver-3.json").write_text(json.dumps(second))
        with pytest.raises(KernelNotFound, match="lists: http.*, http"):
            await Bridge.connect()


async def test_the_token_is_read_from_the_environment(
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


# ---------------------------------------------------------------- errors of servers and addresses


@pytest.mark.parametrize(
    ("how", "match"),
    [
        ({"token": "wrong"}, "refuses the token"),
        ({"token": "wrong", "kernel_id": UNUSED_ID}, "refuses the token"),
        ({"token": ""}, "wants a token"),
        ({"kernel_id": UNUSED_ID}, f"has no kernel {UNUSED_ID}"),
        ({"path": "nowhere/"}, "belongs to no Jupyter server: .*below a path"),
    ],
)
async def test_a_wrong_token_kernel_or_path_is_reported(
    anyone: str, how: dict[str, str], match: str
) -> None:
    how = {"token": TOKEN, **how}
    with pytest.raises(KernelNotFound, match=match):
        await Bridge.connect(anyone + how.pop("path", ""), **how)  # type: ignore[arg-type]


async def test_an_unreachable_or_invalid_address_is_reported() -> None:
    with pytest.raises(TransportError, match="no server answers at"):
        await Bridge.connect(f"http://127.0.0.1:{free_port()}")
    for address in ("ftp://host", "http://", "http://me:secret@host"):
        with pytest.raises(ValueError, match=r"address"):
            await Bridge.connect(address)
    with pytest.raises(InsecureConnection, match="plain http.*plain-tcp"):
        await Bridge.connect("http://192.0.2.1:8888")


async def test_an_http_server_that_is_not_jupyter_is_reported(server: str) -> None:
    """A program that speaks HTTP and knows nothing of kernels."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1 << 16)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listener:
        port = listener.sockets[0].getsockname()[1]
        with pytest.raises(KernelNotFound, match="belongs to no Jupyter server"):
            await Bridge.connect(f"http://127.0.0.1:{port}")


async def test_https_with_a_private_authority_and_a_base_path(tmp_path: Path) -> None:
    authority, file = trustme.CA(), tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(str(file))
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(
        str(tmp_path / "server.pem")
    )
    trusting = ssl.create_default_context(cafile=str(file))
    options = (f"--ServerApp.certfile={tmp_path}/server.pem", "--ServerApp.base_url=/user/me/")
    async with serving(SERVER, *options, path="/user/me/", ssl=trusting) as url:
        with pytest.raises(InsecureConnection, match="pass ssl= with the file of the authority"):
            await Bridge.connect(url, TOKEN)
        with pytest.raises(TransportError, match="try https"):
            await Bridge.connect(url.replace("https", "http"), TOKEN)
        with pytest.raises(ValueError, match="is not a file of certificates"):
            await Bridge.connect(url, TOKEN, ssl=tmp_path / "nowhere.pem")
        for trusted in (file, str(file), trusting):
            async with Bridge.connect(f"{url}lab", TOKEN, ssl=trusted) as bridge:
                await goes_on(bridge)
    with pytest.raises(ValueError, match="ssl= needs an https"):
        await Bridge.connect("http://127.0.0.1", ssl=trusting)


async def test_a_message_beyond_the_servers_limit_is_reported(anyone: str) -> None:
    async with on(anyone) as bridge:
        await bridge.push(x=1)
        with pytest.raises(PayloadTooLarge, match="refused a message of 11,.*push data") as caught:
            await bridge.run(f"x = {'a' * 11 * MIB!r}")
        assert caught.value.bytes > 11 * MIB
        assert await bridge.pull("x") == 1


# ---------------------------------------------------------------- connections that break


@pytest.mark.parametrize("lane", ["buffers", "inline"])
async def test_a_transfer_continues_after_a_broken_connection(wire: Wire, lane: Any) -> None:
    """The cuts are at random points, both ways. A response is not sent again as a whole."""
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


async def test_no_request_runs_twice_after_a_broken_connection(wire: Wire) -> None:
    """The connection is cut before a request runs, while it runs, or before its reply arrives."""
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
        outcomes: list[Any] = []
        for _ in range(12):
            cutting = asyncio.get_running_loop().call_later(source.random() / 5, wire.cut)
            before = await bridge.pull("n")
            try:
                result = await bridge.run("time.sleep(0.1); n += 1; print(n)")
                outcomes.append(result)
                assert await bridge.pull("n") == before + 1
            except ReplyLost as error:
                outcomes.append(error)
                assert await bridge.pull("n") in (before, before + 1)
            cutting.cancel()
        assert any(not isinstance(one, ReplyLost) for one in outcomes)


async def test_a_watch_continues_after_a_broken_connection(wire: Wire) -> None:
    async with on(wire.url) as bridge:
        await bridge.run("x = 1")
        async with bridge.watch("x") as watch:
            assert await anext(watch) == 1
            wire.cut()
            await goes_on(bridge)
            await bridge.run("x = 2")
            async with reported_within(1):
                assert await anext(watch) == 2


async def test_a_watch_reports_a_change_made_while_it_was_disconnected(
    wire: Wire, server: str
) -> None:
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


@pytest.mark.timings(reconnect_within=1.0)
async def test_an_unreachable_server_is_reported_and_used_again_later(wire: Wire) -> None:
    async with on(wire.url) as bridge:
        await bridge.push(x=1)
        wire.is_down = True
        wire.cut()
        async with reported_within(5):
            with pytest.raises(
                TransportError, match="failed for 1 s.*goes on when the server answers"
            ):
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
    async with Other(server) as other:  # the bridge could not reach the server
        await other.delete(str(bridge.info.kernel_id))


async def test_a_cancelled_transfer_is_dropped_after_a_broken_connection(wire: Wire) -> None:
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
    """At most two calls report the restart; then every call works."""
    for _ in range(2):
        with contextlib.suppress(KernelRestarted):
            await goes_on(bridge)
    await goes_on(bridge)


async def test_a_kernel_that_dies_is_reported_as_restarted(anyone: str) -> None:
    """The server starts another kernel: the restart is reported once, the next call goes there."""
    async with on(anyone) as bridge:
        await bridge.push(x=1)
        async with reported_within(5):
            with pytest.raises(KernelRestarted):
                await bridge.run("import os; os._exit(1)")
        await comes_back(bridge)
        assert not await bridge.exists("x")


async def test_a_restart_by_another_client_is_reported(server: str) -> None:
    async with on(server) as bridge, Other(server) as other:
        await bridge.push(x=1)
        running = asyncio.create_task(bridge.run("import time; time.sleep(600)"))
        await until(lambda: bridge.state == "busy")
        await other.restart(str(bridge.info.kernel_id))
        async with reported_within(5):
            with pytest.raises(KernelRestarted):
                await running
        await comes_back(bridge)
        # No request waits during this restart: the next call finds another process.
        await other.restart(str(bridge.info.kernel_id))
        await comes_back(bridge)
        running = asyncio.create_task(bridge.run("import time; time.sleep(3)"))
        await running  # the same restart is not reported again


async def test_a_kernel_ended_by_another_client_is_reported(server: str) -> None:
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


async def test_restart_starts_a_new_process(anyone: str) -> None:
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
            # The server interrupts a kernel before it ends it.
            assert getattr(caught.value, "ename", "") in ("", "KeyboardInterrupt")
        await comes_back(bridge)
        assert not await bridge.exists("array")


# ---------------------------------------------------------------- under uvloop


@pytest.mark.parametrize("kind", [SERVER, GATEWAY])
def test_objects_and_cells_cross_a_websocket_under_uvloop(kind: str) -> None:
    array = np.arange(3_000_000)

    async def main() -> None:
        async with serving(kind) as url:
            async with Wire(url) as wire, on(wire.url) as bridge:
                await bridge.push(array=array)
                wire.cut()
                assert np.array_equal(await bridge.pull("array"), array)
                pulled = await asyncio.gather(*(bridge.pull(f"{at} + 1") for at in range(20)))
                assert pulled == list(range(1, 21))
                assert (await bridge.run("print('out')")).stdout == "out\n"
                with pytest.raises(TimeoutError):
                    await bridge.run("while True: pass", timeout=1, on_timeout="interrupt")
                await bridge.restart()
                assert not await bridge.exists("array")
                await goes_on(bridge)

    under_uvloop(main)


# ---------------------------------------------------------------- servers behind servers


async def test_a_server_in_front_of_a_gateway_uses_the_inline_lane() -> None:
    """Binary messages end the server's connection to the gateway; text carries everything."""
    async with serving(GATEWAY) as gateway:
        async with serving(SERVER, *behind(gateway)) as url, on(url) as bridge:
            assert bridge.info.lane == "inline"
            array = np.random.default_rng(3).integers(0, 255, 20 * MIB, dtype=np.uint8)
            await bridge.push(array=array)
            assert np.array_equal(await bridge.pull("array"), array)
            assert (await bridge.run("print('out')")).stdout == "out\n"
            await bridge.restart()
            await goes_on(bridge)
