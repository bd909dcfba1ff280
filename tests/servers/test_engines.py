"""Engines of an ipyparallel cluster, through their owner's client.

Rule: a real local cluster of four engines, in folders of its own, started by this file and ended by
its own handle. Promises that every kernel keeps are tested elsewhere. This file tests the use of
ipyparallel and the lives of engines.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import ipykernel
import ipyparallel
import nbformat
import numpy as np
import psutil
import pytest

from bridgehead import (
    Bridge,
    BridgeClosed,
    EncodeError,
    Fleet,
    FleetError,
    InsecureConnection,
    IntegrityError,
    KernelDied,
    KernelNotFound,
    Message,
    Messages,
    MissingInKernel,
    NameNotFound,
    NotSupported,
    RemoteError,
    RunTimeout,
    SyncBridge,
    SyncFleet,
    TransportError,
    UntrustedPayload,
    as_completed,
    run_notebook,
)
from bridgehead._connection.outputs import CellObserver
from support import docstrings
from support.fleets import a_late_cell_has_its_output, the_first_error_ends_the_others
from support.kit import KEPT, reported_within, until
from support.resources import cancelled_at_any_instant, gone_with_its_owner, nothing_is_kept
from support.work import GIVES_LEN, WORK, use_sync_but_watches
from unit.bridge.test_fleet_work import sequences_are_gathered

pytestmark = pytest.mark.servers

ENGINES = 4
LARGE = np.arange(1_000_000.0)
HUGE = 200_000_000  # bytes, more than a dozen chunks


@asynccontextmanager
async def cluster(folder: Path, engines: int, *controller: str) -> AsyncIterator[Any]:
    """Start a cluster and connect a client; both end, with every process of theirs."""
    started = ipyparallel.Cluster(
        n=engines,
        engines="local",
        profile_dir=str(folder / "profile"),
        controller_args=list(controller),
        log_level=logging.ERROR,
        shutdown_atexit=False,
    )
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    await started.start_cluster()
    client, children = None, psutil.Process().children(recursive=True)
    try:
        client = await started.connect_client()
        await asyncio.to_thread(client.wait_for_engines, engines, timeout=120, interactive=False)
        children = psutil.Process().children(recursive=True)
        yield client
    finally:
        # Not those that were started later: the process that forks kernels lives on.
        processes = [child for child in children if child.pid not in before]
        if client is not None:
            client.close(linger=0)
        await started.stop_cluster()
        await until(lambda: not any(process.is_running() for process in processes))


@pytest.fixture(scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Any]:
    """Open a client of four engines, for all tests that leave the engines unchanged."""
    async with cluster(tmp_path_factory.mktemp("cluster"), ENGINES) as opened:
        yield opened


@pytest.fixture
async def clean(client: Any) -> Any:
    """Give the same client, with empty namespaces in its engines."""
    client[:].execute("%reset -f", block=True, silent=True)
    return client


@pytest.fixture
async def engine(clean: Any) -> AsyncIterator[Bridge]:
    async with Bridge.over(clean[0]) as opened:
        yield opened


@pytest.fixture
async def fleet(clean: Any) -> AsyncIterator[Fleet]:
    async with Fleet.over(clean) as opened:
        yield opened


def kept(client: Any) -> dict[str, int]:
    """Return how many entries the client keeps of requests; it would keep them for ever."""
    tables = ("results", "metadata", "history", "outstanding", "_futures", "_output_futures")
    found = {table: len(getattr(client, table)) for table in tables}
    found["metadata"] -= (
        "submitted" in client.metadata
    )  # one entry of ipyparallel itself, for all requests
    return found


class Counted:
    """Counts how often it was pickled in this process."""

    times = 0

    def __init__(self, data: Any) -> None:
        self.data = data

    def __reduce__(self) -> Any:
        type(self).times += 1
        return dict, ((("data", self.data),),)


# ---------------------------------------------------------------- one engine


async def test_objects_cross_both_ways(engine: Bridge) -> None:
    transfer = await engine.push(x=1, frame={"a": LARGE})
    assert (transfer.names, transfer.lane) == (("x", "frame"), "buffers")
    assert await engine.pull("x + 1") == 2
    x, back = await engine.pull("x", "frame")
    assert x == 1
    assert np.array_equal(back["a"], LARGE)
    assert back["a"].flags.writeable
    assert [variable.name for variable in await engine.names()] == ["frame", "x"]
    assert await engine.exists("x")
    await engine.delete("x", "frame")
    assert await engine.names() == []
    with pytest.raises(NameNotFound):
        await engine.pull("x")


async def test_info_describes_the_engine(engine: Bridge, clean: Any) -> None:
    info = engine.info
    assert info.pid == clean[0].apply_sync(os.getpid)
    assert (info.transport, info.lane, info.trust) == ("ipyparallel", "buffers", "pickle")
    assert info.kernel.startswith("ipython")
    assert engine.state == "idle"


async def test_code_runs_in_the_users_namespace(engine: Bridge, clean: Any) -> None:
    clean[0].push({"owner": 3}, block=True)
    assert await engine.call(lambda a, b: a * b, engine.ref("owner"), 2) == 6
    ordered = await engine.call(sorted, [3, 1], keep="ordered")
    assert await ordered.pull() == [1, 3]
    assert clean[0].pull("ordered", block=True) == [1, 3]


async def test_a_result_is_kept_under_no_name(engine: Bridge, clean: Any) -> None:
    async with await engine.call(sorted, [3, 1], keep=True) as ordered:
        assert await engine.pull(ordered, ordered[0]) == ([1, 3], 1)
        assert await engine.call(sum, ordered) == 4
        assert [item async for item in ordered] == [1, 3]
        assert await engine.names() == []
    second = await engine.submit(sorted, [4, 2], keep=True)
    assert await second.pull() == [2, 4]
    del second
    left = "sum(len(m._remotes[id(globals())].operations.values.kept) for m in [module])"
    await engine.run(
        "import sys\nmodule = next(m for n, m in sys.modules.items() "
        "if n.startswith('_bridgehead_'))"
    )
    async with asyncio.timeout(30):
        while await engine.pull(left):
            await asyncio.sleep(0.02)


async def test_items_are_iterated_over_and_closing_is_waited_for(engine: Bridge) -> None:
    def rows(names: dict[str, Any], raises: bool) -> Any:
        try:
            yield from range(10**9)
        finally:
            names["state"] = "closed"
            if raises:
                raise LookupError("in the finally")

    async def rows_async() -> Any:
        yield 1

    async with engine.iterate(rows, engine.ref("globals()"), False) as items:
        assert [await anext(items) for _ in range(12_000)] == [*range(12_000)]
    assert await engine.pull("state") == "closed"
    with pytest.raises(RemoteError, match="LookupError: in the finally"):
        async with engine.iterate(rows, engine.ref("globals()"), True) as items:
            assert await anext(items) == 0
    async with engine.iterate(rows_async) as later:
        assert [item async for item in later] == [1]
    assert await engine.pull("1") == 1


async def test_many_small_frames_cross(engine: Bridge) -> None:
    """The frames are more buffers than ipyparallel handles one by one."""
    arrays = {f"a{n}": np.full(3000, float(n)) for n in range(200)}
    await engine.push(arrays=arrays)
    back = await engine.pull("arrays")
    assert all(np.array_equal(back[name], array) for name, array in arrays.items())


@pytest.mark.parametrize("lane", ["buffers", "inline"])
async def test_large_objects_cross_in_chunks(clean: Any, lane: Any) -> None:
    size = HUGE if lane == "buffers" else HUGE // 10
    value = np.random.default_rng(1).integers(0, 256, size, "u1")
    async with Bridge.over(clean[1], lane=lane) as engine:
        assert (await engine.push(value=value)).lane == lane
        assert await engine.pull("int(value.sum(dtype='u8'))") == int(value.sum(dtype="u8"))
        assert np.array_equal(await engine.pull("value"), value)
        await engine.run(KEPT)
        assert await engine.pull("_kept()") == [0, 0]


async def test_the_engine_checks_the_digest(engine: Bridge) -> None:
    """The client does not sign buffers either."""
    await engine.push(x=1)
    send = engine._transport.send

    async def altered(channel: str, message: Any, buffers: Any) -> None:
        parts = [bytes(buffer) for buffer in buffers]
        await send(channel, message, [part[:-1] + b"?" for part in parts])

    engine._transport.send = altered  # type: ignore[method-assign]
    with pytest.raises(IntegrityError):
        await engine.push(x=2, a=LARGE)
    engine._transport.send = send  # type: ignore[method-assign]
    assert await engine.pull("x") == 1


async def test_a_push_binds_all_names_or_none(engine: Bridge) -> None:
    await engine.push(x=1)

    class Refuses:
        def __reduce__(self) -> Any:
            return exec, ("raise ValueError('no')",)

    with pytest.raises(RemoteError, match="ValueError: no"):
        await engine.push(x=2, y=Refuses())
    with pytest.raises(EncodeError, match="lock"):
        await engine.push(x=3, lock=threading.Lock())
    assert await engine.pull("x") == 1
    assert not await engine.exists("y")


async def test_a_cell_returns_its_output_and_value(engine: Bridge) -> None:
    seen = []
    result = await engine.run(
        "import sys\nprint('out')\nprint('err', file=sys.stderr)\n"
        "from IPython.display import display\ndisplay(1.5)\n6 * 7",
        on_output=lambda message: seen.append(message.type),
    )
    assert (result.stdout, result.stderr) == ("out\n", "err\n")
    assert result.data["text/plain"] == "42"
    kinds = [output["output_type"] for output in result.outputs]
    assert sorted(kinds) == ["display_data", "execute_result", "stream", "stream"]
    assert sorted(seen) == sorted(kinds)
    after = await engine.run("pass")
    assert after.execution_count == result.execution_count + 1
    assert await engine.pull("In[-1]") == "pass"


async def test_a_notebook_runs_in_an_engine(engine: Bridge, clean: Any, tmp_path: Path) -> None:
    code = [
        "rows = None",
        "import sys\nprint(rows)\nprint('err', file=sys.stderr)\nlen(rows)",
        "from IPython.display import display, HTML\nshown = display(HTML('a'), display_id='d')",
        "shown.update(HTML('b'))",
        "1 / 0",
        "skipped = True",
        "rows[2]",
        "never = True",
    ]
    tags = {0: "parameters", 4: "raises-exception", 5: "skip-execution"}
    cells = [
        nbformat.v4.new_code_cell(
            source, metadata={"tags": [tags[number]]} if number in tags else {}
        )
        for number, source in enumerate(code)
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "notebook.ipynb")
    with pytest.raises(RemoteError, match="IndexError") as caught:
        await run_notebook(engine, tmp_path / "notebook.ipynb", parameters={"rows": [1, 2]})
    notebook = caught.value.notebook
    nbformat.validate(notebook)
    printed, err, value = notebook.cells[1].outputs
    assert (printed.text, err.text) == ("[1, 2]\n", "err\n")
    assert (value.data, value.execution_count) == (
        {"text/plain": "2"},
        notebook.cells[1].execution_count,
    )
    assert notebook.cells[2].outputs[0].data["text/html"] == "b"
    assert [cell.outputs[0].ename for cell in notebook.cells[4::2][:2]] == [
        "ZeroDivisionError",
        "IndexError",
    ]
    assert notebook.metadata.language_info.name == "python"
    assert [name.name for name in await engine.names("[ns]*")] == ["shown"]


async def test_the_outputs_of_a_function_arrive_at_its_caller(engine: Bridge) -> None:
    def prints(value: bytes) -> int:
        print("out", len(value))
        return total + len(value)  # type: ignore[name-defined, no-any-return] # noqa: F821

    await engine.push(total=1)
    for nbytes in (3, 20_000_000):
        seen: list[str] = []
        value = await engine.call(
            *(prints, bytes(nbytes)),
            namespace=True,
            on_output=lambda message, to=seen: to.append(message.text),
        )
        assert (value, "".join(seen)) == (nbytes + 1, f"out {nbytes}\n")
    assert await engine.ref("sum")(np.arange(5), engine.ref("total")).pull() == 11


# Outputs whose end was lost would be waited for so long.
@pytest.mark.timings(last_outputs=60)
async def test_the_end_of_the_outputs_is_known_behind_the_reply(fleet: Fleet) -> None:
    """The client passes on no message of a request behind its reply and its "idle"."""
    async with asyncio.timeout(50):
        for n in range(20):
            for result in await fleet.run(f"print({n})\n{n}"):
                assert (result.stdout, result.data["text/plain"]) == (f"{n}\n", str(n))
            seen: list[str] = []
            await fleet[0].call(print, n, on_output=lambda one, to=seen: to.append(one.text))
            assert "".join(seen) == f"{n}\n"


async def test_a_failing_cell_is_reported_with_its_traceback(engine: Bridge) -> None:
    with pytest.raises(RemoteError, match="ZeroDivisionError") as caught:
        await engine.run("print('before')\n1 / 0")
    assert "----> 2 1 / 0" in str(caught.value)
    assert caught.value.result.stdout == "before\n"
    assert type(caught.value.result.execution_count) is int
    with pytest.raises(RemoteError, match="ZeroDivisionError") as caught:
        await engine.call(lambda: 1 / 0)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


async def test_a_failing_cell_does_not_abort_requests_of_other_clients(
    engine: Bridge, clean: Any
) -> None:
    failing = asyncio.ensure_future(engine.run("import time; time.sleep(0.5); 1 / 0"))
    await until(lambda: engine.state == "busy")
    others = [clean[0].execute(f"after_{n} = {n}", block=False) for n in range(3)]
    with pytest.raises(RemoteError):
        await failing
    for other in others:
        await asyncio.to_thread(other.get, 10)
    assert await engine.pull("after_2") == 2


async def test_a_cell_aborted_by_another_client_is_retried(engine: Bridge, clean: Any) -> None:
    """ipyparallel's own execute aborts the requests queued behind it; the bridge retries cells."""
    failing = clean[0].execute("import time; time.sleep(0.3); 1 / 0", silent=False, block=False)
    result = await engine.run("2 + 2")
    assert result.data["text/plain"] == "4"
    with pytest.raises(ipyparallel.RemoteError):
        await asyncio.to_thread(failing.get, 10)


async def test_operations_take_effect_in_order(engine: Bridge) -> None:
    slow = asyncio.ensure_future(engine.run("import time; time.sleep(0.3); x = 'cell'"))
    pushes = [asyncio.ensure_future(engine.push(x=n)) for n in range(20)]
    await asyncio.gather(slow, *pushes)
    assert await engine.pull("x") == 19
    calls = [engine.call(lambda n: globals().setdefault("seen", []).append(n), n) for n in range(9)]
    await asyncio.gather(*calls, engine.push(done=True))
    assert await engine.pull("done")


async def test_cancelling_does_not_disturb_other_requests(engine: Bridge) -> None:
    cell = asyncio.ensure_future(engine.run("import time; time.sleep(0.5); x = 'cell'"))
    await until(lambda: engine.state == "busy")
    dropped = [asyncio.ensure_future(engine.push(never=n, large=LARGE)) for n in range(3)]
    wanted = asyncio.ensure_future(engine.push(y=1))
    await asyncio.sleep(0.05)
    for task in dropped:
        task.cancel()
    with pytest.raises(TimeoutError, match="not sent"):
        await engine.push(never=1, timeout=0.05)
    await asyncio.gather(cell, wanted)
    assert await engine.pull("x", "y") == ("cell", 1)
    assert not await engine.exists("never")
    # A push that is cancelled in transfer takes effect as a whole or not at all.
    value = np.zeros(HUGE // 4, "u1")
    for pause in (0.01, 0.05, 0.1):
        task = asyncio.ensure_future(engine.push(value=value, whole=pause))
        await asyncio.sleep(pause)
        task.cancel()
        await asyncio.wait([task])  # cancelled, or complete before the cancel
        complete = await engine.exists("whole")
        assert complete == await engine.exists("value")
    await engine.run(KEPT)
    assert await engine.pull("_kept()") == [0, 0]


async def test_an_interrupt_reaches_the_engine(engine: Bridge) -> None:
    for work in (
        engine.run("import time; time.sleep(60)"),
        engine.call(time.sleep, 60),
    ):
        task = asyncio.ensure_future(work)
        await until(lambda: engine.state == "busy")
        await asyncio.sleep(0.2)
        await engine.interrupt()
        async with reported_within(1):
            with pytest.raises(RemoteError, match="KeyboardInterrupt"):
                await task
        assert await engine.pull("1") == 1
    await engine.interrupt()  # an idle engine ignores it
    assert await engine.pull("1") == 1


async def test_an_interrupt_of_one_cell_waits_until_it_has_begun(engine: Bridge) -> None:
    """The engine's control thread interrupts the cell that runs, and no other."""
    begun = asyncio.Event()
    observer = CellObserver(lambda message: begun.set())
    task = asyncio.ensure_future(
        engine.run("print('begun')\nimport time; time.sleep(60)", on_output=observer)
    )
    await begun.wait()
    assert not await engine._connection.interrupt_cell("another cell")
    assert await engine._connection.interrupt_cell(observer.request)
    async with reported_within(1):
        with pytest.raises(RemoteError, match="KeyboardInterrupt"):
            await task
    assert not await engine._connection.interrupt_cell(observer.request)
    assert await engine.pull("1") == 1


async def test_a_deadline_interrupts_the_cell(engine: Bridge) -> None:
    code = "import time\nprint('begun')\ntime.sleep(60)"
    async with reported_within(3):
        with pytest.raises(RunTimeout, match="was interrupted") as caught:
            await engine.run(code, timeout=1, on_timeout="interrupt")
        assert await engine.pull("1") == 1
    assert caught.value.result.stdout == "begun\n"
    async with engine.stream("print('streamed')") as outputs:
        assert "".join([message.text async for message in outputs]) == "streamed\n"
    assert await engine.pull("1") == 1


async def test_unsupported_operations_say_what_to_do(engine: Bridge) -> None:
    with pytest.raises(NotSupported, match="restart_engines"):
        await engine.restart()
    with pytest.raises(NotSupported, match="bind_kernel"):
        engine.messages()
    with pytest.raises(NotSupported, match="pull the value"):
        engine.watch("x")
    with pytest.raises(NotSupported, match=r"call names\(\)"):
        engine.watch_names()
    with pytest.raises(NotSupported, match="push= or max_output="):
        await engine.run("1", max_output=10)
    with pytest.raises(NotSupported, match="push= or max_output="):
        await engine.run("1", push={"x": 1})
    with pytest.raises(NotSupported, match="pull the values after"):
        await engine.run("1", pull=["x"])
    with pytest.raises(NotSupported, match="on_input="):
        await engine.run("1", on_input=lambda prompt, password: "")
    with pytest.raises(NotSupported, match="return what it is to say"):
        await engine.call(asyncio.sleep, 0, on_output=print)
    with pytest.raises(NotSupported, match="now=True"):
        await engine.push(x=1, now=True)
    with pytest.raises(
        NotSupported, match="the ipyparallel transport cannot reach the kernel's process"
    ):
        await Bridge.over(engine._transport.client[0], lane="direct")
    assert await engine.pull("1") == 1


async def test_attach_works_with_a_bound_engine(clean: Any) -> None:
    """The error of ``messages`` says to do so; requests then also wait for the owner's tasks."""
    clean[3].apply_sync(ipyparallel.bind_kernel)
    file = clean[3].apply_sync(ipykernel.get_connection_file)
    async with Bridge.attach(file) as attached, Bridge.over(clean[3]) as engine:
        assert attached.info.lane == "buffers"
        assert attached.info.epoch == engine.info.epoch
        await attached.push(x=1)
        assert await engine.pull("x") == 1
        seen = attached.messages()
        await attached.run("print('seen')")
        assert "seen\n" in [message.text async for message in first(seen, 4)]


async def first(messages: Messages, count: int) -> AsyncIterator[Message]:
    async for message in messages:
        yield message
        count -= 1
        if not count:
            return


async def test_a_request_aborted_by_the_owner_is_sent_again(engine: Bridge, clean: Any) -> None:
    busy = clean[0].apply_async(time.sleep, 0.5)
    pushing = [asyncio.ensure_future(engine.push(x=n)) for n in range(3)]
    await until(lambda: len(clean.outstanding) > 1)
    (ours,) = clean.outstanding - set(busy.msg_ids)
    clean.abort(jobs=[ours], targets=0, block=True)
    await asyncio.gather(*pushing)
    assert await engine.pull("x") == 2
    await asyncio.to_thread(busy.get, 10)


async def test_only_data_is_loaded_with_trust_data(clean: Any) -> None:
    async with Bridge.over(clean[0], trust="data") as engine:
        await engine.push(x=[1, LARGE])
        assert (await engine.pull("x"))[0] == 1
        with pytest.raises(UntrustedPayload):
            await engine.pull("__import__('pathlib').Path('x')")


async def test_no_request_stays_in_the_client(clean: Any) -> None:
    """ipyparallel's ``history`` grows with every request, and its own broadcasts stay for ever."""
    async with Fleet.over(clean) as fleet:
        await fleet.push(a=LARGE)
        await until(lambda: not clean._futures)  # the last idle of each engine has arrived
        before = kept(clean)
        for n in range(1000):
            await fleet[n % ENGINES].push(x=n)
        await fleet.push(a=LARGE)
        await fleet.run("x")
        await until(lambda: kept(clean) == before)
    assert clean.wait(timeout=10)
    await until(lambda: not clean._registration_callbacks)


async def test_the_owner_can_use_the_client_meanwhile(engine: Bridge, clean: Any) -> None:
    view = clean[:]

    def owner() -> list[Any]:
        found = []
        for n in range(30):
            view.push({"theirs": n}, block=True)
            found.append(view.pull("theirs", block=True))
        return found

    working = asyncio.ensure_future(asyncio.to_thread(owner))
    for n in range(30):
        await engine.push(ours=n)
        assert await engine.pull("ours") == n
    assert await working == [[n] * ENGINES for n in range(30)]
    assert len(view.history) == 60 * ENGINES
    await engine.aclose()
    assert view.pull("theirs", block=True) == [29] * ENGINES
    with pytest.raises(BridgeClosed):
        await engine.pull("1")


async def test_two_bridges_and_a_blocking_bridge_share_an_engine(
    engine: Bridge, clean: Any
) -> None:
    async with Bridge.over(clean[[0]]) as second:
        await engine.push(x=1)
        assert await second.pull("x") == 1
        assert second.info.epoch == engine.info.epoch

    def blocking() -> Any:
        with SyncBridge.over(clean[0]) as third:
            third["y"] = 2
            return third["x"], third.run("print(y)").stdout

    assert await asyncio.to_thread(blocking) == (1, "2\n")


async def test_a_bridge_works_after_the_namespace_is_reset(engine: Bridge, clean: Any) -> None:
    await engine.push(x=1)
    clean.clear(targets=0, block=True)
    with pytest.raises(NameNotFound):
        await engine.pull("x")
    await engine.push(x=2)
    assert await engine.pull("x") == 2


async def test_over_rejects_what_is_not_one_engine(clean: Any) -> None:
    with pytest.raises(TypeError, match=r"Bridge\.over\(client\[0\]\)"):
        await Bridge.over(clean[:])
    with pytest.raises(TypeError, match=r"Bridge\.over\(client\[0\]\)"):
        await Bridge.over(clean.load_balanced_view())
    with pytest.raises(TypeError, match=r"client\[0\], not Client"):
        await Bridge.over(clean)
    view = clean[0]
    view.targets = 99
    with pytest.raises(KernelNotFound, match="no engine 99; it has: 0, 1, 2, 3"):
        await Bridge.over(view)
    for nothing in (1, clean.load_balanced_view()):
        with pytest.raises(TypeError, match="ipyparallel client"):
            Fleet.over(nothing)


async def test_plain_tcp_beyond_this_machine_is_refused(clean: Any) -> None:
    """The client's own description of its connection decides; the real one is loopback here."""
    interface = clean._config["interface"]
    clean._config["interface"] = "tcp://192.0.2.1"
    try:
        with pytest.raises(InsecureConnection, match="enable_curve"):
            await Bridge.over(clean[0])
        async with Bridge.over(clean[0], insecure="plain-tcp") as engine:
            assert engine.info.trust == "data"
            assert engine._transport.capabilities.digest == "sha256"
            await engine.push(x=LARGE)
            assert np.array_equal(await engine.pull("x"), LARGE)
    finally:
        clean._config["interface"] = interface


# ---------------------------------------------------------------- fleets of engines


async def test_a_fleet_reaches_all_engines_and_returns_results_in_order(
    fleet: Fleet, clean: Any
) -> None:
    transfers = await fleet.push(x=[1, 2], name="all")
    assert [transfer.names for transfer in transfers] == [("x", "name")] * ENGINES
    assert await fleet.pull("x", "name") == [([1, 2], "all")] * ENGINES
    pids = clean[:].apply_sync(os.getpid)
    assert await fleet.call(os.getpid) == pids
    results = await fleet.run("import os; os.getpid()")
    assert [result.data["text/plain"] for result in results] == [str(pid) for pid in pids]
    for view, engines in (
        (clean[1:3], [1, 2]),
        (clean[3], [3]),
        (clean.direct_view("all"), range(4)),
    ):
        async with Fleet.over(view) as some:
            assert await some.call(os.getpid) == [pids[number] for number in engines]


@pytest.mark.parametrize("size", [10, 1_000_000, HUGE])
async def test_a_push_is_pickled_once(fleet: Fleet, clean: Any, size: int) -> None:
    value = Counted(np.random.default_rng(2).integers(0, 256, size, "u1"))
    Counted.times = 0
    await fleet.push(value=value, x=size)
    assert Counted.times == 1
    whole = int(value.data.sum(dtype="u8"))
    assert await fleet.pull("int(value['data'].sum(dtype='u8'))", "x") == [(whole, size)] * ENGINES
    await fleet.run(KEPT)
    assert await fleet.pull("_kept()") == [[0, 0]] * ENGINES
    # Each engine has its own copy, in its own memory.
    await fleet[0].run("value['data'][:] = 0")
    assert await fleet.pull("int(value['data'].sum(dtype='u8'))") == [0, *[whole] * (ENGINES - 1)]


async def test_one_copy_is_sent_for_all_engines(fleet: Fleet, clean: Any) -> None:
    """Counted at the client's own sockets."""
    sent: dict[str, int] = {"mux": 0, "broadcast": 0}
    send = clean.session.send

    def counted(stream: Any, *args: Any, buffers: Any = None, **options: Any) -> Any:
        name = "broadcast" if stream is clean._broadcast_stream else "mux"
        sent[name] += sum(memoryview(buffer).nbytes for buffer in buffers or ())
        return send(stream, *args, buffers=buffers, **options)

    clean.session.send = counted
    try:
        await fleet.push(a=LARGE)
    finally:
        clean.session.send = send
    assert LARGE.nbytes <= sent["broadcast"] < 1.1 * LARGE.nbytes
    assert sent["mux"] < 0.1 * LARGE.nbytes
    assert await fleet.pull("float(a.sum())") == [LARGE.sum()] * ENGINES


async def test_a_busy_engine_does_not_delay_the_others(fleet: Fleet) -> None:
    value = np.ones(HUGE // 2, "u1")
    cell = asyncio.ensure_future(
        fleet[2].run("import time\nwhile 'go' not in vars(time): time.sleep(0.01)")
    )
    await until(lambda: fleet[2].state == "busy")
    pushing = asyncio.ensure_future(fleet.push(value=value, done=1))
    for other in (0, 1, 3):
        async with asyncio.timeout(60):
            while not await fleet[other].exists("done"):
                await asyncio.sleep(0.02)
    assert not pushing.done()
    await fleet[2].interrupt()
    with pytest.raises(RemoteError, match="KeyboardInterrupt"):
        await cell
    assert len(await pushing) == ENGINES
    assert await fleet.pull("int(value.sum())") == [value.size] * ENGINES


async def test_a_failing_engine_is_reported_by_name_and_the_others_are_served(fleet: Fleet) -> None:
    await fleet.push(n=0)
    await fleet[1].run("n = None")
    with pytest.raises(ExceptionGroup, match="1 of 4 kernels failed") as caught:
        await fleet.pull("1 / (n is not None)")
    (error,) = caught.value.exceptions
    assert isinstance(error, RemoteError)
    assert error.__notes__ == [f"kernel 1 of 4, pid {fleet[1].info.pid}, engine 1"]

    # An object that one engine cannot unpickle is bound in the others.
    class Picky:
        def __reduce__(self) -> Any:
            return eval, ("1 / (__import__('os').getpid() != " + str(fleet[3].info.pid) + ")",)

    with pytest.raises(ExceptionGroup, match="1 of 4 kernels failed"):
        await fleet.push(picky=Picky(), a=LARGE)
    assert await fleet.pull("'picky' in globals()") == [True, True, True, False]
    assert await fleet.pull("'a' in globals()") == [True, True, True, False]


async def test_a_cancelled_push_leaves_nothing(fleet: Fleet) -> None:
    value = np.ones(HUGE // 2, "u1")
    for pause in (0.02, 0.1, 0.3):
        pushing = asyncio.ensure_future(fleet.push(value=value))
        await asyncio.sleep(pause)
        pushing.cancel()
        await asyncio.wait([pushing])
    await fleet.run(KEPT)

    async def nothing() -> bool:
        return await fleet.pull("_kept()") == [[0, 0]] * ENGINES

    async with asyncio.timeout(30):
        while not await nothing():
            await asyncio.sleep(0.05)
    with pytest.raises(ExceptionGroup, match="4 of 4") as caught:
        await fleet.push(value=value, timeout=0.01)
    assert all(isinstance(error, TimeoutError) for error in caught.value.exceptions)
    await fleet.push(value=1)
    assert await fleet.pull("value") == [1] * ENGINES


async def test_engines_and_kernels_in_one_fleet(fleet: Fleet) -> None:
    async with Bridge.launch() as local:
        mixed = Fleet([fleet[3], local, fleet[0]])
        transfers = await mixed.push(a=LARGE)
        assert [transfer.lane for transfer in transfers] == ["buffers", local.info.lane, "buffers"]
        assert await mixed.pull("float(a.sum())") == [LARGE.sum()] * 3
        await mixed.aclose()
        assert (
            await fleet[3].pull("1") == 1
        )  # the fleet did not open this bridge, so it does not close it


async def test_two_bridges_to_one_engine_in_one_fleet(fleet: Fleet, clean: Any) -> None:
    async with Bridge.over(clean[0]) as again:
        mixed = Fleet([*fleet, again])
        assert len(await mixed.push(a=LARGE)) == ENGINES + 1
        assert await mixed.pull("float(a.sum())") == [LARGE.sum()] * (ENGINES + 1)


# ---------------------------------------------------------------- engines, hub and client that end


class Fatal:
    """Ends one process when it is unpickled in it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def __reduce__(self) -> Any:
        return eval, (f"(lambda os: os.getpid() == {self.pid} and os._exit(1))(__import__('os'))",)


async def test_dead_engines_are_reported_by_name(tmp_path: Path) -> None:
    """The cluster uses CURVE, which only the cluster and its client need to know."""
    encrypted = cluster(tmp_path, 3, "--IPController.enable_curve=True")
    async with encrypted as client, Fleet.over(client) as fleet:
        assert client.curve_serverkey
        # In the middle of a call.
        calling = asyncio.ensure_future(fleet.call(time.sleep, 1.5))
        await until(lambda: all(bridge.state == "busy" for bridge in fleet))
        uuid = client._engines[1]
        os.kill(fleet[1].info.pid, signal.SIGKILL)
        async with reported_within(3):
            with pytest.raises(ExceptionGroup, match="1 of 3") as caught:
                await calling
        (error,) = caught.value.exceptions
        assert isinstance(error, KernelDied)
        assert f"engine 1 ({uuid}) is lost" in str(error)
        assert error.__notes__ == [f"kernel 1 of 3, pid {fleet[1].info.pid}, engine 1"]
        assert fleet[1].state == "dead"

        # From then on it is reported at once, and the other engines are served.
        with pytest.raises(ExceptionGroup) as caught:
            await fleet.push(a=LARGE)
        assert [type(error) for error in caught.value.exceptions] == [KernelDied]
        assert await fleet[0].pull("float(a.sum())") == LARGE.sum()
        assert await fleet[2].pull("float(a.sum())") == LARGE.sum()

        # In the middle of a transfer.
        fatal = Fatal(fleet[2].info.pid)
        with pytest.raises(ExceptionGroup, match="2 of 3") as caught:
            await fleet.push(value=np.ones(HUGE, "u1"), fatal=fatal, whole=1)
        assert {type(error) for error in caught.value.exceptions} == {KernelDied}
        assert await fleet[0].pull("int(value.sum())", "whole") == (HUGE, 1)

        # New engines have other ids.
        with pytest.raises(NotSupported, match="restart_engines"):
            await fleet[0].restart()
        await client.cluster.restart_engines()
        await until(lambda: len(client.ids) == 3 and not {0, 1, 2} & set(client.ids), 120)
        with pytest.raises(ExceptionGroup, match="3 of 3"):
            await fleet.push(x=1)
        async with Fleet.over(client) as new:
            assert await new.pull("'whole' in globals()") == [False] * 3


async def test_a_call_fails_when_the_hub_ends(tmp_path: Path) -> None:
    async with cluster(tmp_path, 1) as client, Bridge.over(client[0]) as engine:
        calling = asyncio.ensure_future(engine.call(time.sleep, 300))
        await until(lambda: engine.state == "busy")
        controller = psutil.Process(client.cluster.controller.pid)
        family = [controller, *controller.children(recursive=True)]
        for process in family:
            process.kill()
        async with reported_within(8):
            with pytest.raises(TransportError, match="hub shows no sign of life"):
                await calling
        assert engine.state == "unresponsive"
        with pytest.raises(TransportError):
            await engine.pull("1")
        os.kill(engine.info.pid, signal.SIGKILL)  # otherwise it looks for its hub for a while


async def test_a_call_fails_when_the_owner_closes_the_client(clean: Any) -> None:
    client = await clean.cluster.connect_client()
    engine = await Bridge.over(client[0])
    calling = asyncio.ensure_future(engine.call(time.sleep, 2))
    await until(lambda: engine.state == "busy")
    client.close(linger=0)
    async with reported_within(2):
        with pytest.raises(TransportError, match="closed by its owner"):
            await calling
    with pytest.raises(TransportError, match="closed by its owner"):
        await engine.pull("1")
    await engine.aclose()
    assert engine.state == "closed"


async def test_the_example_of_a_fleet_gives_what_it_shows(clean: Any) -> None:
    await docstrings.run(Fleet.over, {"client": clean[:2]})


async def test_the_example_of_a_blocking_fleet_gives_what_it_shows(clean: Any) -> None:
    await docstrings.run(SyncFleet.over, {"client": clean[:2]})


# ---------------------------------------------------------------- work for all engines


async def test_a_map_is_divided_among_the_engines(fleet: Fleet) -> None:
    def nap(n: int) -> tuple[int, int]:
        time.sleep(0.005)
        return n, os.getpid()

    found = [one async for one in fleet.map(nap, range(60), chunksize="auto")]
    assert [n for n, _ in found] == list(range(60))
    assert {pid for _, pid in found} == {bridge.info.pid for bridge in fleet}

    def even(n: int) -> int:
        return n // (1 - n % 2)

    outcomes = [one async for one in fleet.map(even, range(4), chunksize=2, return_exceptions=True)]
    assert (outcomes[0], outcomes[2]) == (0, 2)
    assert [error.ename for error in outcomes[1::2]] == ["ZeroDivisionError"] * 2
    assert [name for names in await fleet.names() for name in names] == []


async def test_submit_scatter_gather_and_an_executor_work_over_engines(fleet: Fleet) -> None:
    tasks = [fleet.submit(os.getpid) for _ in range(2 * ENGINES)]
    pids = [task.result() async for task in as_completed(tasks)]
    assert set(pids) == {bridge.info.pid for bridge in fleet}
    await fleet.scatter("part", LARGE)
    await fleet.run("part = part * 2")
    assert np.array_equal(await fleet.gather("part"), LARGE * 2)
    loop = asyncio.get_running_loop()
    calls = [loop.run_in_executor(fleet.executor(), pow, n, 2) for n in range(20)]
    assert await asyncio.gather(*calls) == [n * n for n in range(20)]
    future = fleet.executor().submit(time.sleep, 300)
    await until(lambda: any(bridge.state == "busy" for bridge in fleet))
    async with asyncio.timeout(60):
        future.cancel()  # which interrupts it
        assert await fleet.call(abs, -1) == [1] * ENGINES


async def test_operations_of_a_fleet_keep_the_results_of_other_engines(fleet: Fleet) -> None:
    await fleet[:3].push(x=1)
    with pytest.raises(FleetError) as caught:
        await fleet.pull("x")
    assert caught.value.results == {0: 1, 1: 1, 2: 1}
    assert caught.value.errors.keys() == {3}
    assert await fleet.exists("x") == [True, True, True, False]
    *values, error = await fleet.pull("x", return_exceptions=True)
    assert (values, type(error)) == ([1] * 3, NameNotFound)
    *results, error = await fleet.run("x + 1", return_exceptions=True)
    assert [result.data["text/plain"] for result in results] == ["2"] * 3
    assert error.ename == "NameError"
    with pytest.raises(NotSupported):
        fleet.watch("x")


async def test_sequences_are_gathered(fleet: Fleet) -> None:
    await sequences_are_gathered(fleet)


async def test_the_first_error_ends_the_others(fleet: Fleet, tmp_path: Path) -> None:
    await the_first_error_ends_the_others(fleet, tmp_path)


async def test_a_late_cell_has_its_output(fleet: Fleet) -> None:
    await a_late_cell_has_its_output(fleet)


def squared(n: int) -> int:
    return n * n


async def test_a_module_that_the_engines_lack_crosses_by_value(fleet: Fleet) -> None:
    own = [sys.modules[__name__]]
    with pytest.raises(FleetError) as caught:
        await fleet.call(squared, 3)
    assert {type(error) for error in caught.value.exceptions} == {MissingInKernel}
    assert await fleet.call(squared, 3, by_value=own) == [9] * ENGINES
    assert await fleet.submit(squared, 3, by_value=own) == 9
    assert [n async for n in fleet.map(squared, range(9), by_value=own)] == [
        n * n for n in range(9)
    ]


async def test_names_are_handed_to_all_engines_and_deleted_there(fleet: Fleet) -> None:
    seen: list[tuple[int, int]] = []
    async with Bridge.launch() as source:
        await source.push(table=LARGE, rows=[1])
        await source.handoff("table", "rows", to=fleet, progress=lambda *sums: seen.append(sums))
    assert await fleet.pull("float(table.sum())", "rows") == [(LARGE.sum(), [1])] * ENGINES
    sums, seen = seen, []
    await fleet.push(table=LARGE, progress=lambda *sums: seen.append(sums))
    for done, total in sums[-1], seen[-1]:
        assert done == total >= ENGINES * LARGE.nbytes
    await fleet.delete("table")
    assert await fleet.exists("table") == [False] * ENGINES
    assert await fleet.exists("rows") == [True] * ENGINES


async def test_an_interrupt_of_all_engines(fleet: Fleet, tmp_path: Path) -> None:
    def nap(folder: str) -> None:
        Path(folder, str(os.getpid())).touch()
        time.sleep(300)

    calls = asyncio.ensure_future(fleet.call(nap, str(tmp_path), return_exceptions=True))
    await until(lambda: len(list(tmp_path.iterdir())) == ENGINES)
    async with asyncio.timeout(60):
        await fleet.interrupt()
        assert [repr(error) for error in await calls] == [
            "<RemoteError KeyboardInterrupt: >"
        ] * ENGINES


async def test_leaving_a_map_interrupts_what_the_engines_run(fleet: Fleet, tmp_path: Path) -> None:
    """The interrupt takes the control channel, which a thread of the engine serves."""

    def nap(n: int, folder: str) -> int:
        Path(folder, str(n)).touch()
        time.sleep(60 if n else 0)
        return n

    async with reported_within(3):
        async with fleet.map(
            nap, itertools.count(), itertools.repeat(str(tmp_path)), window=3
        ) as results:
            assert await anext(results) == 0
            await until(lambda: len(list(tmp_path.iterdir())) == 1 + ENGINES)
        assert await fleet.call(abs, -1) == [1] * ENGINES
    assert len(list(tmp_path.iterdir())) == 1 + ENGINES  # what was ahead never began
    assert [bridge.stats.refs for bridge in fleet] == [0] * ENGINES


async def test_an_interrupt_of_a_call_spares_the_owners_tasks(engine: Bridge, clean: Any) -> None:
    """The call waits behind a task of the owner, which goes on; the call never begins."""

    def note() -> None:
        global began
        began = True  # type: ignore[name-defined]

    busy = clean[0].apply_async(time.sleep, 1)
    await until(lambda: len(clean.outstanding) == 1)
    with pytest.raises(TimeoutError):
        await engine.call(note, namespace=True, timeout=0.3, on_timeout="interrupt")
    await asyncio.to_thread(busy.get, 10)
    assert not await engine.exists("began")
    async with reported_within(2):
        with pytest.raises(TimeoutError):
            await engine.call(time.sleep, 60, timeout=0.5, on_timeout="interrupt")
        assert await engine.pull("1") == 1


async def test_async_functions_run_on_the_engines_loops(fleet: Fleet, clean: Any) -> None:
    await fleet.call(asyncio.sleep, 0)
    # What is left of a bridge is the question for its next events.
    await until(lambda: len(clean._futures) == ENGINES and not clean._output_futures)
    before = kept(clean)

    async def twice(n: int) -> tuple[int, int]:
        print("at", n)
        await asyncio.sleep(0.002)
        return 2 * n, os.getpid()

    found = [one async for one in fleet.map(twice, range(80), chunksize=2)]
    assert [n for n, _ in found] == [2 * n for n in range(80)]
    assert {pid for _, pid in found} == {bridge.info.pid for bridge in fleet}

    # They are at work together, while the engine serves other requests.
    gate = "(gate := __import__('asyncio').Event()) and None"
    await fleet[0].run(f"{gate}\nasync def passed(n):\n    await gate.wait()\n    return n")
    waiting = [asyncio.ensure_future(fleet[0].pull(f"await passed({n})")) for n in range(3)]
    assert await fleet[0].pull("6 * 7") == 42
    await fleet[0].run("gate.set()")
    assert await asyncio.gather(*waiting) == [0, 1, 2]

    async def large(n: int) -> Any:
        return np.full(5_000_000, float(n))

    assert [float(one[-1]) async for one in fleet.map(large, range(6))] == [*map(float, range(6))]

    async def ticks() -> AsyncIterator[int]:
        for n in range(3):
            await asyncio.sleep(0.01)
            yield n

    async with fleet[1].iterate(ticks) as items:
        assert [n async for n in items] == [0, 1, 2]
    # The client makes an entry for what is printed after the reply that starts a task. The next
    # outcome of a task has it removed.
    async with asyncio.timeout(30):
        while kept(clean) != before:
            assert await fleet.call(asyncio.sleep, 0, 1) == [1] * ENGINES
            await asyncio.sleep(0.2)


@pytest.mark.parametrize("name", WORK)
async def test_each_name_works_or_is_not_supported(engine: Bridge, name: str) -> None:
    lacks = name in ("watch", "watch_names")
    with pytest.raises(NotSupported, match=name) if lacks else contextlib.nullcontext():
        await WORK[name](engine)
    assert await engine.pull("1") == 1


@pytest.mark.parametrize("name", [name for name in GIVES_LEN if name != "watch"])
async def test_each_name_obeys_trust(clean: Any, name: str) -> None:
    give = GIVES_LEN[name]
    async with Bridge.over(clean[0]) as bridge:
        assert await give(bridge) is len
    async with Bridge.over(clean[0], trust="data") as bridge:
        with pytest.raises(UntrustedPayload):
            await give(bridge)
        assert await bridge.pull("1") == 1


async def test_each_name_works_with_a_sync_bridge(clean: Any) -> None:
    def use() -> None:
        with SyncBridge.over(clean[0]) as bridge:
            use_sync_but_watches(bridge)

    await asyncio.to_thread(use)


@pytest.mark.parametrize("how", ["dropped", "the bridge is closed", "the bridge vanished"])
async def test_what_has_begun_is_gone_with_its_owner(engine: Bridge, clean: Any, how: str) -> None:
    async with Bridge.over(clean[0]) as bridge:
        await gone_with_its_owner(bridge, engine, how, but=("watch", "names"))
    await nothing_is_kept(engine)


async def test_a_cancel_at_any_instant_leaves_nothing(engine: Bridge, clean: Any) -> None:
    async with Bridge.over(clean[0]) as bridge:
        but = ("watch", "names", "async outputs")  # what an engine does not support
        await cancelled_at_any_instant(bridge, engine, 2, but)


async def test_an_async_function_that_is_cancelled_ends_in_the_engine(engine: Bridge) -> None:
    async def wait(seconds: float) -> None:
        import asyncio

        global state
        state = "begun"  # type: ignore[name-defined]
        try:
            await asyncio.sleep(seconds)
        finally:
            state = "ended"  # type: ignore[name-defined]

    await engine.push(state="")
    task = engine.submit(wait, 60, namespace=True)
    async with asyncio.timeout(10):
        while await engine.pull("state") != "begun":
            await asyncio.sleep(0.01)
        task.cancel()
        while await engine.pull("state") != "ended":
            await asyncio.sleep(0.01)
    with pytest.raises(RemoteError, match="ZeroDivisionError"):
        await engine.pull("await __import__('asyncio').sleep(0, 1 / 0)")
    assert engine.stats.tasks == 0


async def test_code_in_an_engine_calls_back_in_the_middle_of_its_work(engine: Bridge) -> None:
    seen: list[int] = []

    def work(report: Any, seconds: float) -> None:
        for n in range(2000):
            report(n)
        time.sleep(seconds)

    with engine.callback(seen.append) as report:
        task = engine.submit(work, report, 60)
        await until(lambda: len(seen) == 2000)
        assert not task.done()
        task.cancel()
    assert seen == list(range(2000))
    assert await engine.pull("1") == 1


@pytest.mark.timings(report_every=0.3)
async def test_calls_arrive_after_the_question_for_them_was_lost(engine: Bridge) -> None:
    seen: list[int] = []
    lose = (
        "import gc\n[q._questions.clear() for q in gc.get_objects() "
        "if type(q).__name__ == 'EventQueue']"
    )
    with engine.callback(seen.append) as report:
        await engine.push(report=report)
        await engine.run("report(1)")
        await until(lambda: seen == [1])
        await engine.run(lose)
        await engine.run("report(2)")
        await until(lambda: seen == [1, 2])


async def test_async_functions_run_after_the_remote_part_was_removed(engine: Bridge) -> None:
    remove = (
        "import sys\nfor n in [*sys.modules]:\n    n[:12] == '_bridgehead_' and sys.modules.pop(n)"
    )
    for n in range(3):
        async with reported_within(3):
            assert await engine.call(asyncio.sleep, 0.01, n) == n
        await engine.run(remove)


async def test_an_engine_that_dies_loses_the_chunk_that_it_had(tmp_path: Path) -> None:
    def die_at(n: int) -> int:
        if n == 9:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.01)
        return n

    async def wait_and_die_at(n: int) -> int:
        import asyncio

        await asyncio.sleep(0.01)
        if n == 19:
            os.kill(os.getpid(), signal.SIGKILL)
        return n

    def die_once(n: int, file: str) -> int:
        if n == 9 and not Path(file).exists():
            Path(file).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return n

    async with cluster(tmp_path, ENGINES + 1) as client:
        async with Fleet.over(client) as fleet:
            items = range(40), itertools.repeat(str(tmp_path / "died"))
            results = fleet.map(die_once, *items, chunksize=4, retries=1)
            assert [one async for one in results] == list(range(40))
            assert sorted(bridge.state for bridge in fleet).count("dead") == 1
            executor = fleet.executor()
            calls = map(asyncio.wrap_future, [executor.submit(die_at, n) for n in range(40)])
            found: list[Any] = await asyncio.gather(*calls, return_exceptions=True)
            assert type(found.pop(9)) is KernelDied
            assert found == [n for n in range(40) if n != 9]
            found = [one async for one in fleet.map(die_at, range(40), return_exceptions=True)]
            assert type(found[9]) is KernelDied
            assert found[:9] + found[10:] == [n for n in range(40) if n != 9]
            results = fleet.map(wait_and_die_at, range(40), return_exceptions=True)
            found = [one async for one in results]
            lost = [n for n, one in enumerate(found) if type(one) is KernelDied]
            assert 19 in lost
            assert len(lost) <= 2  # those that were at work there together
            assert [n for n in found if type(n) is int] == [n for n in range(40) if n not in lost]
            assert [n async for n in fleet.map(abs, range(5))] == list(range(5))
        # The dead engines answer nothing, and the hub takes its time to say that they are gone.
        await until(lambda: not client._futures, 120)
