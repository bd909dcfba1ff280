"""The direct lane's memory in a real kernel: leases, their end, and forks.

Rule: a test checks the values, and ``memory`` counts what both processes keep. A test that would
fork the test run itself runs in a process of its own.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import random
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest

from bridgehead import Bridge, BridgeError, ProtocolError
from bridgehead._shipped.wire import segments as _segments
from support import memory
from support.kit import all_of, file_of, goes_on

MIB = 1 << 20
LARGE = 100_000  # doubles: they go through shared memory
OWN = [sys.modules[__name__]]  # the kernel does not have it


@pytest.fixture
def direct(kernel: Bridge) -> Bridge:
    assert kernel.info.lane == "direct"
    return kernel


async def test_three_thousand_arrays_share_one_segment(live: Bridge) -> None:
    await live.push(many=[np.full(400, n) for n in range(3000)])
    assert len(memory.client(live).pool.slabs) == 1
    back = await live.pull("many")
    assert all(int(array[7]) == n for n, array in enumerate(back))
    assert memory.client_counts(live)["mapped"] == 1
    await live.run("del many[1:]")
    assert memory.client_counts(live)["leases"] == 1
    del back[:-1]
    assert (await memory.kernel_counts(live))["leases"] == 1
    back.clear()
    await memory.nothing_is_leased(live)


def _descriptors() -> int:
    import os

    return len(os.listdir("/proc/self/fd"))


def _descriptors_of_segments() -> int:
    import contextlib
    import os

    count = 0
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # that of the listing itself
            count += "/memfd:" in os.readlink(f"/proc/self/fd/{number}")
    return count


@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.slow)])
async def test_live_arrays_cost_memory_and_no_descriptors(live: Bridge, count: int) -> None:
    """Pushed, pulled and handed off, each alive in the kernel and in this process."""
    here, there = _descriptors(), await live.call(_descriptors, by_value=OWN)
    for n in range(count):
        await live.push({f"a{n}": np.full(12_500, n)})
    values = [await live.pull(f"a{n}") for n in range(count)]
    async with Bridge.launch() as other:
        of_other = await other.call(_descriptors, by_value=OWN)
        for n in range(0, count, 100):
            await live.handoff(*[f"a{m}" for m in range(n, n + 100)], to=other)
        assert await other.call(_descriptors, by_value=OWN) <= of_other + 64
        assert _descriptors() <= here + 64 + 40  # 40 for the other kernel itself
        assert await other.pull(
            f"sum(int(globals()['a%d' % n][5]) for n in range({count}))"
        ) == sum(range(count))
    assert _descriptors() <= here + 64
    assert await live.call(_descriptors, by_value=OWN) <= there + 64
    assert all(int(value[7]) == n for n, value in enumerate(values))
    values.clear()
    await live.delete(*[f"a{n}" for n in range(count)])
    assert memory.client_counts(live)["leases"] == 0  # when ``delete`` returns
    # What this process has dropped is reported with the next message.
    assert (await memory.kernel_counts(live))["leases"] == 0
    assert memory.client_counts(live)["bytes"] <= 2 * _segments.WARM
    assert (await memory.kernel_counts(live))["bytes"] <= 2 * _segments.WARM


def found_by(script: str, *arguments: str) -> Any:
    """Run a client in a process of its own; return what it prints last."""
    process = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


FEW_DESCRIPTORS = """
import asyncio, json, os, resource, sys
import numpy as np
from bridgehead import Bridge

async def main():
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, hard))
    length = int(sys.argv[2])
    async with Bridge.attach(sys.argv[1], lane="direct") as bridge:
        await bridge.run(f"import numpy; of_kernel = [numpy.full({length}, n) for n in range(24)]")
        kept = [await bridge.pull(f"of_kernel[{n}]") for n in range(24)]
        found = [_descriptors_of_segments(), [float(array[-1]) for array in kept]]
        for n in range(24):
            await bridge.push({f"a{n}": np.full(length, float(n))})
        values = await bridge.pull("[float(globals()[f'a{n}'][-1]) for n in range(24)]")
        found += [_descriptors_of_segments(), values, len(os.listdir("/proc/self/fd"))]
    print(json.dumps(found))

asyncio.run(main())
"""


@pytest.mark.seals
async def test_a_client_with_few_descriptors_gets_messages_in_time(direct: Bridge) -> None:
    """Row K1: the kernel learns the client's limit in the handshake."""
    script = inspect.getsource(_descriptors_of_segments) + FEW_DESCRIPTORS
    large = _segments.SHARED_BELOW // 8 + 1
    found = await asyncio.to_thread(found_by, script, file_of(direct), str(large))
    pulled, of_kernel, both, of_client, all_files = found
    assert 0 < pulled <= 128 // 16
    assert pulled < both <= 128 // 16 + 2 * 128 // 16
    assert all_files < 128 * 3 // 4
    assert of_kernel == of_client == list(range(24))
    await goes_on(direct)


@pytest.mark.seals
async def test_a_kernel_with_few_descriptors_gets_messages_in_time(live: Bridge) -> None:
    await live.run(
        "import resource\n"
        "hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (128, hard))"
    )
    large = np.ones(_segments.SHARED_BELOW // 8 + 1)
    async with Bridge.attach(file_of(live), lane="direct") as bridge:
        before = await bridge.call(_descriptors_of_segments, by_value=OWN)
        for n in range(24):
            await bridge.push({f"a{n}": large * n})
        after = await bridge.call(_descriptors_of_segments, by_value=OWN)
        assert before < after <= before + 128 // 16
        assert memory.client_counts(bridge)["leases"] == 128 // 16  # the others came in messages
        assert [float((await bridge.pull(f"a{n}"))[-1]) for n in range(24)] == list(range(24))
    async with Bridge.attach(file_of(live)) as another:
        await goes_on(another)
    await goes_on(live)


async def test_a_slice_in_the_kernel_keeps_its_segment(direct: Bridge) -> None:
    """Twenty more values of the same size arrive, and none is written into it."""
    await direct.push(x=np.full(LARGE, -1.0))
    await direct.run("held = x[50:60]; del x")
    for n in range(20):
        await direct.push(x=np.full(LARGE, n))
        assert (await direct.pull("x") == n).all()
        assert (await direct.pull("held") == -1).all()
    await direct.run("held[:] = 5")
    assert (await direct.pull("x") == 19).all()
    assert len(memory.client(direct).pool.slabs) < 8
    await memory.nothing_is_leased(direct)


async def test_a_slice_in_the_client_keeps_its_segment(direct: Bridge) -> None:
    await direct.run(f"import numpy; x = numpy.full({LARGE}, -1.0)")
    held = (await direct.pull("x"))[50:60]
    for n in range(20):
        await direct.run(f"x[:] = {n}")
        array = await direct.pull("x")
        assert (array == n).all()
        array[:] = 100
        del array
        assert (held == -1).all()
    held[:] = 5
    assert (await direct.pull("x") == 19).all()
    del held
    await memory.nothing_is_leased(direct)


async def test_segments_are_reused(live: Bridge) -> None:
    for n in range(30):
        await live.push(x=np.full(LARGE, n))
        await live.pull("x")
    assert memory.client_counts(live)["bytes"] < 6 * LARGE * 8
    assert (await memory.kernel_counts(live))["bytes"] < 6 * LARGE * 8


async def test_values_kept_and_dropped_at_random_in_both_processes_stay_right(
    direct: Bridge,
) -> None:
    dice = random.Random(7)
    in_client: dict[int, Any] = {}
    in_kernel: dict[int, int] = {}
    await direct.push(kept={})
    for n in range(100):
        size = dice.choice([9_000, 20_000, LARGE])
        await direct.push(x=np.full(size, n))
        if dice.random() < 0.5:
            await direct.run(f"kept[{n}] = x[{dice.randrange(100)}:][:50]")
            in_kernel[n] = n
        if in_kernel and dice.random() < 0.4:
            dropped = in_kernel.pop(dice.choice(list(in_kernel)))
            await direct.run(f"del kept[{dropped}]")
        in_client[n] = await direct.pull("x")
        if dice.random() < 0.7:
            in_client.pop(dice.choice(list(in_client)))
        for value, array in in_client.items():
            assert (array == value).all()
    kept = await direct.pull("kept")
    assert {key: set(map(int, array)) for key, array in kept.items()} == {n: {n} for n in in_kernel}
    in_client.clear()
    del kept, array
    await memory.nothing_is_leased(direct)


@pytest.mark.timings(memory_every=0.05)
async def test_idle_memory_is_given_back(live: Bridge, monkeypatch: pytest.MonkeyPatch) -> None:
    def shorten_idle() -> None:
        import sys

        remote_module: Any = next(m for n, m in sys.modules.items() if n.startswith("_bridgehead"))
        remote_module.IDLE, remote_module.TICK = 0.2, 0.05

    await live.push(x=np.ones(LARGE))
    array = await live.pull("x")
    monkeypatch.setattr(_segments, "IDLE", 0.2)
    await live.call(shorten_idle, by_value=OWN)
    # Leased segments are kept ...
    await asyncio.sleep(0.6)
    assert (await memory.kernel_counts(live))["leases"] == memory.client_counts(live)["leases"] == 1
    array += 1
    assert array.sum() == 2 * LARGE
    assert (await live.pull("float(x.sum())")) == LARGE
    del array
    await live.delete("x")
    nothing = {"leases": 0, "bytes": 0, "mapped": 0}
    end = time.monotonic() + 30  # ... and idle ones are freed without any request
    while memory.client_counts(live) != nothing:
        assert time.monotonic() < end, memory.client_counts(live)
        await asyncio.sleep(0.05)
    while await memory.kernel_counts(live) != {**nothing, "kept": 0}:
        assert time.monotonic() < end, await memory.kernel_counts(live)
        await asyncio.sleep(0.05)
    await live.push(x=np.ones(LARGE))
    assert (await live.pull("x")).sum() == LARGE


@pytest.mark.parametrize("way", ["push", "pull", "call", "expression"])
@pytest.mark.slow
async def test_a_cancel_at_any_instant_gives_the_memory_back(live: Bridge, way: str) -> None:
    mine = np.ones(100 * MIB // 8)
    await live.push(x=mine, y=0)
    started = time.perf_counter()
    await live.push(x=mine)
    takes = time.perf_counter() - started

    async def one() -> Any:
        if way == "push":
            return await live.push(x=mine)
        if way == "call":
            return await live.call(lambda array: array, mine)
        return await live.pull("x" if way == "pull" else "x + 0")

    for n in range(12):
        task = asyncio.ensure_future(one())
        await asyncio.sleep(takes * random.random() * (1 if way == "push" else 2))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await live.push(y=n)
        assert await live.pull("y") == n
    del task
    assert (await live.pull("float(x.sum())")) == mine.size
    await memory.nothing_is_leased(live)
    assert memory.client_counts(live)["bytes"] < 8 * mine.nbytes
    assert (await memory.kernel_counts(live))["bytes"] < 8 * mine.nbytes


async def test_values_in_the_client_outlive_the_bridge() -> None:
    async with Bridge.launch(lane="direct") as bridge:
        await bridge.run(f"import numpy; x = numpy.arange({LARGE}.0)")
        one, two = await bridge.pull("x"), await bridge.pull("x + 1")
    for array, total in ((one, LARGE * (LARGE - 1) / 2), (two, LARGE * (LARGE + 1) / 2)):
        assert array.sum() == total
        array += 1
        assert array.sum() == total + LARGE


async def test_values_in_the_kernel_outlive_the_bridge(direct: Bridge) -> None:
    second = await Bridge.attach(direct.info.connection_file, lane="direct")
    await second.push(x=np.arange(LARGE))
    await second.aclose()
    await direct.run("x += 1")
    for _ in range(5):
        await direct.push(y=np.zeros(LARGE))
    assert np.array_equal(await direct.pull("x"), np.arange(LARGE) + 1)


async def test_values_in_the_client_outlive_a_killed_kernel(live: Bridge) -> None:
    """H7, for values that arrived before."""
    await live.run(f"import numpy; x = numpy.arange({LARGE})")
    array = await live.pull("x")
    os.kill(live.info.pid, 9)
    with pytest.raises(BridgeError):
        await live.pull("x")
    array += 1
    assert array.sum() == LARGE * (LARGE + 1) // 2
    await live.restart()
    await live.push(x=array)
    array[:] = 0
    assert (await live.pull("x")).sum() == LARGE * (LARGE + 1) // 2


async def test_a_restart_during_a_transfer(live: Bridge) -> None:
    mine = np.ones(160 * MIB // 8)
    for work in (lambda: live.push(x=mine), lambda: live.pull("x"), lambda: live.pull("x * 1")):
        await live.push(x=mine)
        tasks = [asyncio.ensure_future(work()) for _ in range(2)]
        await asyncio.sleep(random.random() * 0.1)
        await live.restart()
        for outcome in await all_of(*tasks):
            assert not isinstance(outcome, Exception) or isinstance(outcome, BridgeError), outcome
        del outcome, tasks
        await goes_on(live)
        assert live.info.lane == "direct"
        await memory.nothing_is_leased(live)


@pytest.mark.parametrize("when", [0.0, 0.02, 0.06, 0.1])
async def test_closing_a_bridge_during_a_push_gives_the_memory_back(
    direct: Bridge, when: float
) -> None:
    """The push copies into new memory, and into memory that is reused."""
    mine = np.ones(160 * MIB // 8)
    second = await Bridge.attach(direct.info.connection_file, lane="direct")
    await second.push(x=mine)
    await second.push(x=mine)
    task = asyncio.ensure_future(second.push(x=mine))
    await asyncio.sleep(when)
    await second.aclose()
    (outcome,) = await all_of(task)
    assert not isinstance(outcome, Exception) or isinstance(outcome, BridgeError), outcome
    await goes_on(direct)
    await memory.nothing_is_leased(direct)


@pytest.mark.parametrize("way", ["push", "pull"])
async def test_a_kernel_killed_during_a_transfer(live: Bridge, way: str) -> None:
    """H7: killed between attach and reply."""
    mine = np.ones(160 * MIB // 8)
    await live.push(x=mine)
    await live.push(x=mine)
    task = asyncio.ensure_future(live.push(x=mine) if way == "push" else live.pull("x"))
    await asyncio.sleep(0.03)
    os.kill(live.info.pid, 9)
    (outcome,) = await all_of(task)
    assert not isinstance(outcome, Exception) or isinstance(outcome, BridgeError), outcome
    del outcome, task
    await live.restart()
    await live.push(x=mine)
    assert (await live.pull("x")).sum() == mine.size
    await memory.nothing_is_leased(live)


# ---------------------------------------------------------------- forks


POOL = """
import multiprocessing, os

def work(n):
    before = int(x[0])
    x[:] = n + 1000
    return before, int(x[-1])

with multiprocessing.get_context("fork").Pool(3) as workers:
    results = workers.map(work, range(9), chunksize=3)
after = int(x[0]), int(x[-1])
"""


async def test_a_pool_of_forks_in_the_kernel_writes_into_private_memory(direct: Bridge) -> None:
    """Neither the kernel nor the client sees what a forked worker writes."""
    mine = np.zeros(LARGE)
    await direct.push(x=mine)
    await direct.run(POOL)
    results, after = await direct.pull("results", "after")
    assert after == (0, 0)
    assert [now for _, now in results] == [n + 1000 for n in range(9)]
    assert not mine.any()
    assert not (await direct.pull("x")).any()
    # The lane works as before.
    for n in range(5):
        await direct.push(x=np.full(LARGE, n))
        await direct.run("x += 1")
        assert (await direct.pull("x") == n + 1).all()
    await memory.nothing_is_leased(direct)


async def test_a_fork_does_not_see_what_the_kernel_writes_later(direct: Bridge) -> None:
    await direct.push(x=np.zeros(LARGE))
    await direct.run("""
import os
a, b = os.pipe()
c, d = os.pipe()
child = os.fork()
if not child:
    os.read(a, 1)
    os.write(d, b"%d" % x.sum())
    os._exit(0)
x[:] = 1
os.write(b, b"x")
seen = os.read(c, 20)
os.waitpid(child, 0)
for file in (a, b, c, d):
    os.close(file)
""")
    assert await direct.pull("seen", "int(x[0])") == (b"0", 1)


async def test_a_fork_that_lives_on_keeps_no_socket_open(live: Bridge) -> None:
    """A child has no descriptor of the lane, so closing the bridge ends the socket thread."""
    second = await Bridge.attach(live.info.connection_file, lane="direct")
    await second.push(x=np.zeros(LARGE))
    await second.run("""
import os, time
child = os.fork()
if not child:
    time.sleep(60)
    os._exit(0)
""")
    child = await second.pull("child")
    try:
        assert await second.pull("x[0]") == 0
        await second.push(x=np.ones(LARGE))
        assert (await second.pull("x")).sum() == LARGE
        await second.aclose()
        end = time.monotonic() + 30
        while await memory.socket_threads(live) > 1:
            assert time.monotonic() < end
            await asyncio.sleep(0.05)
        await live.push(x=np.ones(LARGE))
        assert (await live.pull("x")).sum() == LARGE
    finally:
        os.kill(child, 9)
    await live.run("os.waitpid(child, 0)")


FORKING_CLIENT = """
import asyncio, json, os, sys
import numpy as np
from bridgehead import Bridge

def in_child(work):
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(writer, json.dumps(work()).encode())
            os._exit(0)
        finally:
            os._exit(1)
    os.close(writer)
    output = b""
    while part := os.read(reader, 65536):
        output += part
    assert os.waitpid(child, 0)[1] == 0, output
    return json.loads(output)

async def main():
    found = []
    async with Bridge.attach(sys.argv[1], lane="direct") as bridge:
        await bridge.push(x=np.zeros(100_000))
        mine = await bridge.pull("x")

        def child():
            seen = float(mine.sum())
            mine[:] = 5
            return seen, float(mine.sum())

        for n in range(3):
            found.append([*in_child(child), float(mine.sum())])
            mine[:] = 0
            await bridge.push(x=np.full(100_000, n))
            again = await bridge.pull("x")
            assert (again == n).all()
            again[:] = 7
            found.append([float(mine.sum()), float((await bridge.pull("x")).sum())])
        assert (await bridge.pull("x") == 2).all()
    print(json.dumps(found))

asyncio.run(main())
"""


async def test_a_fork_of_the_client_writes_into_private_memory(direct: Bridge) -> None:
    found = await asyncio.to_thread(found_by, FORKING_CLIENT, file_of(direct))
    expected: list[list[float]] = []
    for n in range(3):
        expected += [[0, 5 * LARGE, 0], [0, n * LARGE]]
    assert found == expected
    await goes_on(direct)


@pytest.mark.seals
async def test_trust_data_copies_values_out_of_shared_memory(direct: Bridge) -> None:
    """``trust="data"``: what the kernel writes into a segment later does not change a value."""

    def overwrite() -> int:
        import sys

        remote_module: Any = next(m for n, m in sys.modules.items() if n.startswith("_bridgehead"))
        count = 0
        for remote in remote_module._remotes.values():
            for server in remote.socket_threads.values():
                for slab in server.channel.pool.slabs.values():
                    import os

                    os.pwrite(slab.file, b"\xff" * slab.capacity, 0)
                    count += 1
        return count

    async with Bridge.attach(direct.info.connection_file, lane="direct", trust="data") as careful:
        await careful.push(x=np.arange(LARGE), text="ä" * MIB)
        array, text = await careful.pull("x", "text")
        assert await direct.call(overwrite, by_value=OWN)
        assert np.array_equal(array, np.arange(LARGE))
        assert text == "ä" * MIB
        array += 1
        assert (await careful.pull("x")).sum() == np.arange(LARGE).sum()


@pytest.mark.seals
async def test_memory_that_a_kernel_never_wrote_is_refused_by_trust_data(direct: Bridge) -> None:
    """A file of shared memory is as long as the kernel likes; reading it would take memory here."""

    def write_nothing() -> None:
        import sys

        remote_module: Any = next(m for n, m in sys.modules.items() if n.startswith("_bridgehead"))
        kept, remote_module.write = remote_module.write, lambda *_: None
        remote_module.restore_write = lambda: setattr(remote_module, "write", kept)

    def write_again() -> None:
        import sys

        next(m for n, m in sys.modules.items() if n.startswith("_bridgehead")).restore_write()

    async with Bridge.attach(direct.info.connection_file, lane="direct", trust="data") as careful:
        await direct.push(x=np.arange(LARGE))
        await direct.call(write_nothing, by_value=OWN)
        try:
            with pytest.raises(ProtocolError, match="of which 0 were written"):
                await careful.pull("x")
        finally:
            await direct.call(write_again, by_value=OWN)
        assert np.array_equal(await direct.pull("x"), np.arange(LARGE))
    await memory.nothing_is_leased(direct)


async def test_a_kernel_that_overwrites_leased_memory_damages_one_value(direct: Bridge) -> None:
    """H2: the kernel writes into memory that it leased; nothing crashes, and the bridge goes on."""
    await direct.push(x=np.zeros(LARGE))
    array = await direct.pull("x")
    await direct.call(
        lambda: (
            [
                __import__("os").pwrite(slab.file, b"\x01" * 4096, 0)
                for name, module in __import__("sys").modules.items()
                if name.startswith("_bridgehead")
                for remote in module._remotes.values()
                for server in remote.socket_threads.values()
                for slab in server.channel.pool.slabs.values()
            ]
            and None
        )
    )
    assert array.size == LARGE
    del array
    await direct.push(x=np.ones(LARGE))
    assert (await direct.pull("x") == 1).all()


async def test_pool_zero_uses_messages_for_large_objects(
    direct: Bridge, caplog: pytest.LogCaptureFixture
) -> None:
    """H1: neither process may share memory: all arrives, and one log record says so."""
    caplog.set_level("INFO", "bridgehead")
    async with Bridge.attach(direct.info.connection_file, lane="direct", pool=0) as bridge:
        assert bridge.info.lane == "direct"
        mine = np.arange(LARGE)
        for n in range(3):
            transfer = await bridge.push(x=mine + n)
            assert transfer.lane == "buffers"
            assert np.array_equal(await bridge.pull("x"), mine + n)
            assert np.array_equal(await bridge.pull("x * 2"), (mine + n) * 2)
            assert np.array_equal(await bridge.call(lambda a: a + 1, mine), mine + 1)
        assert (await bridge.push(x=1)).lane == "direct"
        many = await asyncio.gather(*(bridge.pull("x") for _ in range(50)))
        assert many == [1] * 50
        assert memory.client_counts(bridge) == {"leases": 0, "bytes": 0, "mapped": 0}
    records = [record for record in caplog.records if record.name == "bridgehead"]
    assert len([record for record in records if "no memory to share" in record.message]) == 1
    await memory.nothing_is_leased(direct)


async def test_an_idle_kernel_gets_its_memory_back(direct: Bridge) -> None:
    """The client sends no request any more, and still tells the kernel what is free."""
    await direct.run("import numpy; big = numpy.ones(1_000_000)")
    held = await direct.pull("big")
    async with Bridge.attach(direct.info.connection_file, lane="buffers") as other:
        assert (await memory.kernel_counts(other))["leases"] == 1
        del held
        await memory.kernel_leases_nothing(other)
    await direct.delete("big")


async def test_one_pull_with_trust_data_returns_private_memory(direct: Bridge) -> None:
    """The bridge trusts the kernel; the values are large, small, bound, and computed."""
    await direct.run("import numpy; big, little = numpy.ones(1_000_000), numpy.ones(3)")
    for name in ("big", "little", "big + 0"):
        before = memory.client_counts(direct)
        value = await direct.pull(name, trust="data")
        assert value.sum() == value.size
        await memory.kernel_leases_nothing(direct)  # while the value is still used
        assert memory.client_counts(direct)["leases"] == before["leases"]
    await direct.delete("big", "little")
