"""Results that stay in a real kernel under no name.

Rule: each test runs on a real kernel, over each lane, unless it says why not. Nothing is left in
the kernel after any of them.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest

from bridgehead import Bridge, KernelDied, KernelRestarted, NameNotFound, SyncBridge
from support.elsewhere import MAJORS
from support.kit import (
    LANES,
    all_of,
    file_of,
    goes_on,
    kind,
    on_its_way,
    reported_within,
    sigint,
    until,
    whole,
    wired,
)
from support.promises import occupied
from support.resources import later, nothing_is_kept

# A kernel cannot import test modules; their functions and classes are pickled by value.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture(params=LANES)
async def bridge(kernel: Bridge, request: pytest.FixtureRequest) -> AsyncIterator[Bridge]:
    async with Bridge.attach(file_of(kernel), lane=request.param) as attached:
        yield attached
    gc.collect()
    await nothing_is_kept(kernel)


class Noted:
    """An object that binds ``freed`` in the kernel when it is freed."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __del__(self) -> None:
        from IPython import get_ipython

        get_ipython().user_ns["freed"] = True  # type: ignore[no-untyped-call]


def spin(seconds: float) -> list[int]:
    import time

    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass
    return [1]


async def until_freed(bridge: Bridge) -> None:
    async with asyncio.timeout(30):
        while not await bridge.exists("freed"):
            await asyncio.sleep(0.02)


async def test_a_kept_object_lives_as_long_as_its_refs(bridge: Bridge) -> None:
    ref = await bridge.call(Noted, [1, 2], keep=True)
    part = ref.value[1]
    assert await bridge.pull(ref.value, part) == ([1, 2], 2)
    assert await bridge.call(sum, ref.value) == 3
    assert [item async for item in ref.value] == [1, 2]
    assert bridge.stats.refs == 1
    del ref
    await goes_on(bridge)
    assert not await bridge.exists("freed")
    assert await part.pull() == 2
    del part
    await until_freed(bridge)
    assert bridge.stats.refs == 0


@pytest.mark.parametrize("how", ["context", "delete", "close"])
async def test_a_kept_object_is_freed_at_once(kernel: Bridge, bridge: Bridge, how: str) -> None:
    ref = await bridge.call(Noted, 5, keep=True)
    assert await ref.value.pull() == 5
    if how == "context":
        async with ref:
            pass
    elif how == "delete":
        await bridge.delete(ref)
    else:
        await bridge.aclose()
    await until_freed(kernel)
    if how != "close":
        with pytest.raises(NameNotFound, match="was freed"):
            await ref.value.pull()


async def test_large_kept_objects_cross_when_they_are_pulled(bridge: Bridge) -> None:
    ref = await bridge.call(np.arange, 3_000_000.0, keep=True)
    double = await bridge.call(np.multiply, ref, 2, keep=True)
    assert float((await double.pull())[-1]) == 2 * 2_999_999
    assert float(await double[-1].pull()) == 2 * 2_999_999


async def test_an_async_function_keeps_its_result(bridge: Bridge) -> None:
    refs = [await bridge.call(later, [1, 2], keep=True)]
    refs.append(await bridge.submit(later, refs[0], 0.05, keep=True))
    assert await bridge.pull(refs[0], refs[1][0]) == ([1, 2], 1)
    assert bridge.stats.refs == 2
    task = bridge.submit(later, 5, 1000, keep=True)
    await bridge.push(x=1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_call_that_is_given_up_keeps_nothing(kernel: Bridge, bridge: Bridge) -> None:
    """Whether it runs, or has not begun, or its turn has not come."""
    with pytest.raises(TimeoutError):
        await bridge.call(spin, 0.3, keep=True, timeout=0.1)
    with pytest.raises(TimeoutError):
        await bridge.call(spin, 30, keep=True, timeout=0.1, on_timeout="interrupt")
    async with occupied(kernel):
        calls = [asyncio.ensure_future(bridge.call(spin, 0.01, keep=True)) for _ in range(3)]
        task = bridge.submit(spin, 0.01, keep=True)
        await asyncio.sleep(0.1)
        for call in calls:
            call.cancel()
        task.cancel()
    await goes_on(bridge)
    await nothing_is_kept(kernel)


@pytest.mark.parametrize("function", [sorted, later])
async def test_a_cancel_at_any_instant_leaves_nothing(bridge: Bridge, function: Any) -> None:
    """Of a call, and of a task; some results arrive, and are dropped at once."""
    kept = await bridge.call(function, [2, 1], keep=True)
    chance = random.Random(1)
    for n in range(40):
        work: list[Any] = [
            asyncio.ensure_future(bridge.call(function, [n], keep=True)),
            bridge.submit(function, kept, keep=True),
            asyncio.ensure_future(bridge.call(len, kept)),
        ]
        await asyncio.sleep(chance.choice((0, 0.001, 0.005, 0.01)) * chance.random())
        for one in work:
            one.cancel()
        await all_of(*work)
    assert sorted(await kept.pull()) == [1, 2]
    assert bridge.stats.refs == 1


async def test_what_was_sent_before_a_ref_was_dropped_still_uses_it(
    kernel: Bridge, bridge: Bridge
) -> None:
    """Also if no caller waits for that any more."""
    await bridge.push(ran=[])
    ref = await bridge.call(sorted, [2, 1], keep=True)
    async with occupied(kernel):
        call = asyncio.ensure_future(bridge.call(list.append, bridge.ref("ran"), ref))
        await until(lambda: on_its_way(bridge))
        call.cancel()
        await all_of(call)
        del ref, call
        gc.collect()
        await asyncio.sleep(0.1)
    assert await bridge.pull("ran") == [[1, 2]]


async def test_an_interrupt_while_a_result_is_kept_leaves_nothing(live: Bridge) -> None:
    """Of one lane: the function runs in the main thread, whatever lane asks for it."""
    await live.call(abs, 1)
    for n in range(30):
        call = asyncio.ensure_future(live.call(spin, 0.02, keep=True))
        await asyncio.sleep(0.02 + n * 0.0005)
        sigint(live)
        (outcome,) = await all_of(call)
        if isinstance(outcome, BaseException):
            assert "KeyboardInterrupt" in repr(outcome)
        else:
            assert await outcome.pull() == [1]
        del call, outcome
        await goes_on(live)
    gc.collect()
    await nothing_is_kept(live)


async def test_another_bridge_to_the_kernel_uses_and_frees_it(kernel: Bridge) -> None:
    for lane in LANES:
        async with Bridge.attach(file_of(kernel), lane=lane) as other:
            ref = await other.call(sorted, [2, 1], keep=True)
            assert await kernel.pull(ref, ref[0]) == ([1, 2], 1)
            assert await kernel.call(len, ref) == 2
            await kernel.delete(ref)
            with pytest.raises(NameNotFound, match="was freed"):
                await ref.pull()
            second = await other.call(sorted, [2, 1], keep=True)
        await nothing_is_kept(kernel)  # it is freed with its bridge, which does not wait for that
        with pytest.raises(NameNotFound, match="not in the kernel any more"):
            await kernel.pull(second)


@pytest.mark.parametrize("kernel_name", MAJORS, indirect=True)
async def test_a_ref_from_before_a_restart_is_never_another_object(live: Bridge) -> None:
    ref = await live.call(sorted, [2, 1], keep=True)
    part = (await live.call(later, {"a": 1}, keep=True))["a"]
    await live.restart()
    await live.push(x=1)
    new = await live.call(sorted, [4, 3], keep=True)
    for old in ref, part:
        with pytest.raises(NameNotFound, match="not in the kernel any more"):
            await old.pull()
        with pytest.raises(NameNotFound, match="not in the kernel any more"):
            await live.call(len, old)
        with pytest.raises(NameNotFound, match="not in the kernel any more"):
            await live.push(y=[old])
    assert await new.pull() == [3, 4]
    del ref, part, old
    await goes_on(live)
    assert live.stats.refs == 1
    del new
    gc.collect()
    await nothing_is_kept(live)


# The bridge waits until another owner must have restarted the kernel, and here none does.
@pytest.mark.timings(reconnect_grace=0.3)
async def test_a_ref_may_be_dropped_when_its_kernel_has_died(live: Bridge) -> None:
    ref, other = [await live.call(sorted, [2, 1], keep=True) for _ in range(2)]
    os.kill(live.info.pid, signal.SIGKILL)
    with pytest.raises(KernelDied):
        while True:
            await ref.pull()
    del ref
    async with other:
        pass
    gc.collect()
    await live.restart()
    assert live.stats.refs == 0
    await goes_on(live)
    await nothing_is_kept(live)


async def test_an_unnoticed_restart_is_reported_before_the_ref(live: Bridge) -> None:
    async with Bridge.attach(file_of(live)) as bridge:
        ref = await bridge.call(sorted, [2, 1], keep=True)
        await live.restart()
        with pytest.raises(KernelRestarted):
            await ref.pull()
        with pytest.raises(NameNotFound, match="not in the kernel any more"):
            await ref.pull()
    await nothing_is_kept(live)


async def test_the_results_of_a_bridge_that_vanished_are_freed(live: Bridge) -> None:
    """Its lease ends. The clock of the leases is set ahead, which takes ten minutes else."""
    async with Bridge.attach(file_of(live)) as bridge:
        ref = await bridge.call(Noted, 5, keep=True)
        await live.run(
            "import sys\n"
            "module = next(m for n, m in sys.modules.items() if n.startswith('_bridgehead'))\n"
            "(remote,) = module._remotes.values()\nremote.resources.clock += 601"
        )
        await live.call(abs, 1)  # a request that the thread of the cells serves looks at the leases
        await until_freed(live)
        with pytest.raises(NameNotFound, match="not in the kernel any more"):
            await ref.pull()
        await nothing_is_kept(live)


async def test_a_client_that_is_killed_leaves_nothing(live: Bridge, tmp_path: Path) -> None:
    program = (
        "import sys, time\nfrom bridgehead import SyncBridge\n"
        f"kernel = SyncBridge.attach({str(file_of(live))!r})\n"
        "ref = kernel.call(sorted, [2, 1], keep=True)\n"
        "print('kept', flush=True)\ntime.sleep(1000)\n"
    )
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE
    )
    assert child.stdout is not None
    assert await child.stdout.readline() == b"kept\n"
    child.kill()
    await child.wait()
    objects = "list(remote.operations.values.kept.values())"
    await live.run(
        "import sys\n"
        "module = next(m for n, m in sys.modules.items() if n.startswith('_bridgehead'))\n"
        "(remote,) = module._remotes.values()"
    )
    assert await live.pull(objects) == [[1, 2]]
    await live.run("remote.resources.clock += 601")
    await live.call(abs, 1)
    assert await live.pull(objects) == []
    await nothing_is_kept(live)


async def test_a_reply_that_is_lost_leaves_nothing(kernel: Bridge, tmp_path: Path) -> None:
    """The function ran, and its caller does not get the ref."""
    async with wired(kernel, tmp_path) as (bridge, wire):
        ref = await bridge.call(sorted, [2, 1], keep=True)
        wire.incoming = lambda parts: [] if kind(parts) == "execute_reply" else [parts]
        call = asyncio.ensure_future(bridge.call(sorted, [4, 3], keep=True))
        await asyncio.sleep(0.2)
        wire.incoming = whole
        async with reported_within(15):
            outcomes = await asyncio.gather(call, return_exceptions=True)
        assert await ref.pull() == [1, 2]
        del outcomes, call, ref
        gc.collect()
        await nothing_is_kept(kernel)


def test_a_sync_bridge_keeps_objects_in_a_real_kernel() -> None:
    with SyncBridge.launch() as kernel:
        with kernel.call(np.zeros, 3, keep=True) as ref:
            ref[1:] = np.array([5.0, 6.0])
            assert (len(ref), float(ref[2].pull()), 5.0 in ref) == (3, 6.0, True)
        refs = [kernel.submit(later, n, keep=True).result(timeout=60) for n in range(3)]
        assert kernel.pull(*refs) == (0, 1, 2)
        assert kernel.stats.refs == 3
        kernel.delete(*refs)
        assert kernel.stats.refs == 0
        with pytest.raises(NameNotFound):
            refs[0].pull()
        assert list(kernel) == []
