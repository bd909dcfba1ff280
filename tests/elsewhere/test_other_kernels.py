"""Kernels other than plain ipykernel: xeus-python, Spyder's, and unsupported ones.

Rule: each test runs the kernel itself, not a substitute, and names what the kernel can't do.
``test_environments.py`` tests data and code between Python versions.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jupyter_client.manager import AsyncKernelManager

from bridgehead import (
    Bridge,
    KernelDied,
    NotSupported,
    RemoteError,
    UnsupportedKernel,
)
from bridgehead._transports.dispatch import Dispatcher
from support.elsewhere import Elsewhere
from support.kit import endless_cell, file_of, other, restart_beside_a_cell, until
from support.look import look
from support.servers import TOKEN, serving
from support.work import WORK

pytestmark = pytest.mark.elsewhere

XEUS = pytest.mark.parametrize("kernel_name", ["xpython"], indirect=True)
SPYDER = pytest.mark.parametrize("kernel_name", ["spyder"], indirect=True)


# ------------------------------------------------------------ xeus-python


@XEUS
async def test_the_direct_lane_works_with_xeus(live: Bridge) -> None:
    assert live.info.kernel.startswith("xeus-python 0.19")
    assert (live.info.transport, live.info.lane) == ("tcp", "direct")
    await live.push(x=1, f=lambda v: v + offset, large=np.arange(1_000_000.0))
    assert await live.pull("f(x)", "large.sum()") == (101, 499_999_500_000.0)
    assert (await live.pull("large")).nbytes == 8_000_000
    assert await live.call(lambda a: a.nbytes, live.ref("large")) == 8_000_000
    assert {name.name for name in await live.names()} == {"x", "f", "large"}
    await live.delete("f")
    assert set(await look(live.info.connection_file)) == {"x", "large"}


offset = 100  # a global of the function that crosses


@XEUS
async def test_xeus_runs_cells(live: Bridge) -> None:
    result = await live.run("print('out')\nx = 6\nx * 7")
    assert (result.stdout, result.data["text/plain"]) == ("out\n", "42")
    await live.run("class Boom(Exception): pass")
    for code, name in (("1 / 0", "ZeroDivisionError"), ("raise Boom('it is')", "Boom")):
        with pytest.raises(RemoteError, match=name) as caught:
            await live.run(code)
        assert caught.value.ename == name
    result = await live.run("import asyncio; await asyncio.sleep(0.1); x = 8\nx")
    assert result.data["text/plain"] == "8"


@XEUS
async def test_names_wait_behind_a_running_cell_of_xeus(live: Bridge) -> None:
    await live.push(x="before")
    cell = asyncio.ensure_future(
        live.run("import time\nwhile 'go' not in globals(): time.sleep(0.01)\nx = 'after'")
    )
    while live.state != "busy":
        await asyncio.sleep(0.02)
    turn = asyncio.ensure_future(live.pull("x"))
    assert await live.pull("x", now=True) == "before"
    assert not turn.done()
    await live.push(go=True, now=True)
    await cell
    assert await turn == "after"


@XEUS
async def test_a_large_push_waits_behind_the_cell_of_another_bridge_on_xeus(live: Bridge) -> None:
    """J18. Its frames cross ahead of its message, in which the inline lane has an empty text."""
    await live.push(go=False)
    async with Bridge.attach(file_of(live)) as bridge:
        cell = asyncio.ensure_future(live.run("import time\nwhile not go: time.sleep(0.01)"))
        await until(lambda: bridge.state == "busy")
        push = asyncio.ensure_future(bridge.push(large=bytes(1 << 20)))
        await until(lambda: bridge._transport.dispatcher.queued)
        await live.push(go=True, now=True)
        await asyncio.gather(cell, push)
        assert await bridge.pull("len(large)") == 1 << 20


@pytest.mark.parametrize("lane", ["inline", "direct"])
async def test_only_one_request_at_a_time_is_in_flight_to_xeus(
    elsewhere: Elsewhere, lane: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two requests of some MiB at the same time make xeus-python hang for ever.
    most, put = 0, Dispatcher.put

    async def counted(self: Dispatcher, *args: Any, **options: Any) -> Any:
        nonlocal most
        pending = await put(self, *args, **options)
        most = max(most, self.in_flight)
        return pending

    monkeypatch.setattr(Dispatcher, "put", counted)
    async with Bridge.launch(elsewhere("xpython"), lane=lane) as bridge:
        large = np.arange(5_000_000.0)
        await asyncio.gather(
            bridge.push(large=large),
            bridge.push(other=large[::-1]),
            *(bridge.push({f"x{i}": i}) for i in range(100)),
            bridge.run("print('beside')"),
            *(bridge.call(abs, -i, keep=f"y{i}") for i in range(20)),
        )
        assert (await bridge.pull("large")).tobytes() == large.tobytes()
        assert await bridge.pull("float(other[0])", "x99 + y19") == (4_999_999.0, 118)
        await bridge.restart()
        await asyncio.gather(bridge.push(large=large), bridge.push(other=large))
        assert await bridge.pull("(large == other).all()")
    assert most == 1


@pytest.mark.timings(idle_silence=1000.0, lost_after=1000.0)
@pytest.mark.parametrize("way", ["ours", "another program's", "behind a server"])
async def test_a_message_that_xeus_misses_is_read_soon(
    elsewhere: Elsewhere, tmp_path: Path, way: str
) -> None:
    """J17. It arrives while the kernel serves another bridge, which then sends nothing more."""
    name, begun, go = elsewhere("xpython"), tmp_path / "begun", tmp_path / "go"
    wait = (
        f"[open({str(begun)!r}, 'x').close(), *iter(lambda: __import__('os').path.exists("
        f"{str(go)!r}) or __import__('time').sleep(0.001), True)]"
    )
    async with contextlib.AsyncExitStack() as stack:
        enter = stack.enter_async_context
        if way == "behind a server":
            url = await enter(serving())
            bridge = await enter(Bridge.connect(url, TOKEN, kernel_name=name))
            second = await enter(Bridge.connect(url, TOKEN, kernel_id=bridge.info.kernel_id))
        else:
            bridge = await enter(Bridge.launch(name))
            second = await enter(Bridge.attach(file_of(bridge)))
        program = await enter(other(bridge)) if way == "another program's" else None
        served = asyncio.ensure_future(bridge.pull(wait))
        await until(begun.exists)
        answer = asyncio.ensure_future(
            second.pull("6 * 7") if program is None else program.execute("6 * 7")
        )
        await asyncio.sleep(0.2)  # it has arrived by now; if it has not, the kernel misses nothing
        go.touch()
        await served
        async with asyncio.timeout(60):
            await answer


@XEUS
async def test_operations_that_xeus_lacks_raise_not_supported(live: Bridge) -> None:
    await live.push(x=1)
    with pytest.raises(NotSupported, match=r"xeus-python 0\.19.* can't be interrupted: a signal"):
        await live.interrupt()
    async with Bridge.attach(live.info.connection_file) as other:
        assert other.info.lane == "direct"
        with pytest.raises(NotSupported, match="can't be interrupted"):
            await other.interrupt()
        assert await other.pull("x") == 1
    for options in ({"push": {"x": 1}}, {"max_output": 10}):
        with pytest.raises(NotSupported, match=r"xeus-python 0\.19.* does not support push="):
            await live.run("ran = True", **options)
    with pytest.raises(
        NotSupported, match=r"xeus-python 0\.19.* does not forward input\(\); leave on_input="
    ):
        await live.run("ran = True", on_input=lambda prompt, password: "")
    assert not await live.exists("ran")
    assert (await live.run("y = 2", pull=["y", "y + 1"])).values == {"y": 2, "y + 1": 3}
    with pytest.raises(NotSupported, match=r"^watch\(\) needs a kernel that sends events"):
        async for _ in live.watch("x"):
            pass
    with pytest.raises(NotSupported, match="does not pass message buffers; use lane='inline'"):
        await Bridge.attach(live.info.connection_file, lane="buffers")
    with pytest.raises(NotSupported, match="now=True needs a kernel with subshells"):
        await live.pull("x + 1", now=True)
    assert await live.pull("x + 1") == 2


@pytest.mark.parametrize("lane", ["direct", "inline"])
async def test_each_name_of_work_works_with_xeus_or_is_not_supported(
    elsewhere: Elsewhere, lane: Any
) -> None:
    lacks = {  # and the beginning of the report, which names it
        "call_of_an_async_function": "async functions, await and",
        "pull_with_await": "async functions, await and",
        "submit_of_an_async_function": "async functions, await and",
        "on_timeout": "on_timeout='interrupt' is not supported",
        "iterate_over_an_async_iterator": r"iterate\(\) needs",
        "callback": r"callback\(\) needs",
        "callback_that_is_waited_for": r"callback\(\) needs",
        "watch": r"watch\(\) needs",
        "watch_names": r"watch_names\(\) needs",
    }
    async with Bridge.launch(elsewhere("xpython"), lane=lane) as bridge:
        for name, work in WORK.items():
            if name in lacks:
                with pytest.raises(NotSupported, match=f"^{lacks[name]}"):
                    await work(bridge)
            else:
                await work(bridge)
            assert await bridge.pull("1") == 1


@XEUS
async def test_a_dead_xeus_is_reported_and_can_be_restarted(live: Bridge) -> None:
    await live.push(x=1)
    with pytest.raises(KernelDied, match="killed by SIGKILL") as caught:
        await live.run("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert caught.value.exit_code == -signal.SIGKILL
    await live.restart()
    assert not await live.exists("x")
    await restart_beside_a_cell(live)
    await live.push(x=2)
    assert await live.pull("x") == 2


# ------------------------------------------------------------ Spyder's


@SPYDER
async def test_all_operations_work_on_the_kernel_of_spyder(live: Bridge) -> None:
    assert live.info.lane == "direct"
    assert (
        await live.pull("type(get_ipython().kernel).__module__") == "spyder_kernels.console.kernel"
    )
    large = np.arange(1_000_000.0)
    await live.push(x={"a": 1}, large=large)
    assert await live.pull("x['a'] + 1", "float(large.sum())") == (2, float(large.sum()))
    for lane in ("buffers", "inline"):
        async with Bridge.attach(live.info.connection_file, lane=lane) as other:
            assert (await other.pull("large")).tobytes() == large.tobytes()
    await live.call(len, live.ref("x"), keep="length")
    assert {name.name for name in await live.names()} == {"x", "large", "length"}
    assert set(await look(live.info.connection_file)) == {"x", "large", "length"}
    result = await live.run("print('out'); x['a']")
    assert (result.stdout, result.data["text/plain"]) == ("out\n", "1")
    seen = live.watch("length")
    assert await anext(seen) == 1
    await live.run("length = 5")
    assert await anext(seen) == 5
    await seen.aclose()


@SPYDER
async def test_the_kernel_of_spyder_is_interrupted_and_restarted(live: Bridge) -> None:
    async with endless_cell(live):
        await live.interrupt()
    await live.push(x=1)
    await live.restart()
    assert not await live.exists("x")


# ------------------------------------------------------------ unsupported kernels


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bash", "bash_kernel 0.10.* is a kernel for bash; bridgehead needs a Python kernel"),
        ("xpython-raw", "xeus-python 0.19.*: the kernel fails at a request without code"),
    ],
)
async def test_an_unsupported_kernel_is_reported_and_still_works(
    elsewhere: Elsewhere, name: str, message: str
) -> None:
    before = os.listdir(os.environ["JUPYTER_RUNTIME_DIR"])
    with pytest.raises(UnsupportedKernel, match=message):
        await Bridge.launch(elsewhere(name))
    assert os.listdir(os.environ["JUPYTER_RUNTIME_DIR"]) == before
    manager = AsyncKernelManager(kernel_name=name)
    await manager.start_kernel()
    try:
        for opening in (Bridge.over(manager), Bridge.attach(Path(manager.connection_file))):
            with pytest.raises(UnsupportedKernel, match=message):
                await opening
        client = manager.client()
        # The client shares the session of the manager, so give it another one.
        client.session = type(client.session)(key=manager.session.key)
        client.start_channels()
        try:
            reply = await client.execute("echo=1", reply=True, timeout=60)
        finally:
            client.stop_channels()
        assert reply["content"]["status"] == "ok"
        assert await manager.is_alive()
    finally:
        await manager.shutdown_kernel(now=True)
