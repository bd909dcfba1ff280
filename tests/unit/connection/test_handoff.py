"""Handoffs between loopbacks: what crosses, in which order, and what is refused.

Rule: loopbacks, with every pair of the lanes that they have. Real kernels, their deaths and the
memory that they share are in ``kernel/connection/test_handoff.py``.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

from bridgehead import (
    Bridge,
    BridgeClosed,
    BridgeError,
    IntegrityError,
    KernelRestarted,
    NameNotFound,
    PayloadTooLarge,
    RemoteError,
    ReplyLost,
    SyncBridge,
    UntrustedPayload,
)
from support.kit import set_capabilities

LANES: list[Any] = ["buffers", "inline"]
MIB = 1 << 20
MODEL = """
class Model:
    def __init__(self, n):
        self.n = n
    def twice(self):
        return 2 * self.n

model = Model(21)
models = [model, model]
"""


async def running(bridge: Bridge, seconds: float) -> asyncio.Future[Any]:
    """Start a cell that takes ``seconds``, and return its task when it has begun."""
    cell = asyncio.ensure_future(bridge.run(f"import time; time.sleep({seconds})"))
    await asyncio.sleep(0.05)
    return cell


@pytest.fixture(params=LANES)
async def source(request: pytest.FixtureRequest) -> AsyncIterator[Bridge]:
    async with Bridge.loopback(lane=request.param) as bridge:
        yield bridge


@pytest.fixture(params=LANES)
async def target(request: pytest.FixtureRequest) -> AsyncIterator[Bridge]:
    async with Bridge.loopback(lane=request.param) as bridge:
        yield bridge


@pytest.fixture
async def one() -> AsyncIterator[Bridge]:
    async with Bridge.loopback() as bridge:
        yield bridge


@pytest.fixture
async def other() -> AsyncIterator[Bridge]:
    async with Bridge.loopback() as bridge:
        yield bridge


async def test_objects_arrive_under_their_names(source: Bridge, target: Bridge) -> None:
    await source.push(x=[1, 2], text="ä", keep="mine")
    await target.push(keep="yours", x=None)
    transfer = await source.handoff("x", "text", "x", to=target)
    assert await target.pull("x", "text", "keep") == ([1, 2], "ä", "yours")
    assert await source.pull("x", "text", "keep") == ([1, 2], "ä", "mine")
    assert transfer.names == ("x", "text")
    assert transfer.bytes > 0
    assert transfer.seconds > 0
    lanes = source.info.lane, target.info.lane
    assert transfer.lane == (lanes[0] if lanes[0] == lanes[1] else ", ".join(lanes))


@pytest.mark.slow
async def test_large_objects_cross_in_chunks(source: Bridge, target: Bridge) -> None:
    """The digests of the two requests have different leaves, or different algorithms."""
    inline = source.info.lane == target.info.lane == "inline"
    array = np.frombuffer(random.Random(1).randbytes((16 if inline else 40) * MIB), "u1")
    await source.push(array=array, lines=["line"] * 1000)
    reports: list[tuple[int, int]] = []
    transfer = await source.handoff(
        "array", "lines", to=target, progress=lambda done, total: reports.append((done, total))
    )
    assert np.array_equal(await target.pull("array"), array)
    assert {total for _, total in reports} == {transfer.bytes}
    assert [done for done, _ in reports] == sorted(done for done, _ in reports)
    assert reports[-1] == (transfer.bytes, transfer.bytes)
    assert any(done <= transfer.bytes // 2 for done, _ in reports)


@pytest.mark.parametrize("algorithms", [("sha256", "crc32"), ("crc32", "sha256")])
async def test_each_request_is_signed_with_its_own_wire_digest(
    source: Bridge, target: Bridge, algorithms: tuple[str, str]
) -> None:
    """SHA-256 where a wire leaves the machine; a CRC-32 of the other wire is not enough."""
    for bridge, algorithm in zip((source, target), algorithms, strict=True):
        set_capabilities(bridge, digest=algorithm)
    signed = [signatures(source), signatures(target)]
    array = np.frombuffer(random.Random(1).randbytes(6 * MIB), "u1")
    await source.push(array=array)
    await source.handoff("array", to=target)
    assert np.array_equal(await target.pull("array"), array)
    for algorithm, found in zip(algorithms, signed, strict=True):
        # Between two ends with numpy, sums take the place of CRC-32.
        assert {one.partition(":")[0].replace("sums", "crc32") for one in found} == {algorithm}


def signatures(bridge: Bridge) -> list[str]:
    """Return a list that gets the digests of a bridge's requests from now on."""
    found: list[str] = []
    send = bridge._transport.send

    async def listening(channel: str, message: Any, buffers: Any) -> None:
        text = next(iter(message["content"].get("user_expressions", {}).values()), "")
        found.extend(re.findall(r'"digest": "([^"]*)"', text))
        await send(channel, message, buffers)

    bridge._transport.send = listening  # type: ignore[method-assign]
    return found


@pytest.mark.parametrize("which", ["source", "target"])
async def test_frames_altered_on_either_wire_are_bound_in_no_kernel(which: str) -> None:
    async with (
        Bridge.loopback(lane="buffers") as source,
        Bridge.loopback(lane="buffers") as target,
    ):
        await source.push(x=np.zeros(MIB))
        await target.push(x="as it was")

        def altered(buffers: Any) -> list[Any]:
            parts = [bytearray(part) for part in buffers]
            for part in parts:
                if len(part) > MIB:
                    part[MIB // 2] ^= 1
            return parts

        if which == "target":
            send = target._transport.send

            async def sent(channel: str, message: Any, buffers: Any) -> None:
                await send(channel, message, altered(buffers))

            target._transport.send = sent  # type: ignore[method-assign]
        else:
            received = source._transport.dispatcher.received

            def came(channel: str, message: Any) -> None:
                received(channel, {**message, "buffers": altered(message["buffers"])})

            source._transport.dispatcher.received = came  # type: ignore[method-assign]
        with pytest.raises(IntegrityError if which == "target" else ReplyLost) as caught:
            await source.handoff("x", to=target)
        assert f"the {which} of a handoff" in caught.value.__notes__[0]
        assert await target.pull("x") == "as it was"


async def test_shared_objects_stay_shared_and_a_class_travels_by_value(
    source: Bridge, target: Bridge
) -> None:
    """The class is in the ``__main__`` of the source alone."""
    await source.run(MODEL)
    await source.handoff("models", "model", to=target)
    assert await target.pull("models[0] is models[1] is model", "model.twice()") == (True, 42)
    assert await target.exists("Model") is False


async def test_small_handoffs_share_messages(source: Bridge, target: Bridge) -> None:
    """The batch has data, code, and one handoff that fails."""
    await source.run(MODEL + "numbers = list(range(40))")
    await source.run("\n".join(f"n{n} = {n}" for n in range(40)))
    work = [source.handoff(f"n{n}", "model", to=target) for n in range(40)]
    *outcomes, failed = await asyncio.gather(
        *work, source.handoff("nope", to=target), return_exceptions=True
    )
    assert not [one for one in outcomes if isinstance(one, BaseException)]
    assert isinstance(failed, NameNotFound)
    assert await target.pull("[n0, n39, model.twice()]") == [0, 39, 42]


async def test_nothing_is_bound_if_a_name_is_missing(one: Bridge, other: Bridge) -> None:
    await one.push(precious=1)
    with pytest.raises(NameNotFound, match="mean 'precious'") as caught:
        await one.handoff("precious", "precios", to=other)
    assert caught.value.names == ("precios",)
    (note,) = caught.value.__notes__
    assert "the source of a handoff" in note
    assert await other.names() == []


async def test_an_object_that_cannot_be_pickled_is_reported_with_its_path(
    one: Bridge, other: Bridge
) -> None:
    await one.run("import threading; good = 1; config = {'lock': threading.Lock()}")
    with pytest.raises(RemoteError, match=r"config\['lock'\] cannot be pickled") as caught:
        await one.handoff("good", "config", to=other)
    assert "the source of a handoff" in caught.value.__notes__[0]
    assert await other.names() == []


async def test_an_object_that_cannot_be_unpickled_binds_nothing(one: Bridge, other: Bridge) -> None:
    await one.run("""
class Evil:
    def __reduce__(self):
        return int, ("no number",)

good, evil = 1, Evil()
""")
    await other.push(good=0)
    with pytest.raises(RemoteError, match="invalid literal") as caught:
        await one.handoff("good", "evil", to=other)
    assert "the target of a handoff" in caught.value.__notes__[0]
    assert [info.name for info in await other.names()] == ["good"]
    assert await other.pull("good") == 0


async def test_more_than_max_bytes_does_not_cross(one: Bridge, other: Bridge) -> None:
    await one.push(x=b"x" * MIB)
    with pytest.raises(PayloadTooLarge) as caught:
        await one.handoff("x", to=other, max_bytes=MIB - 1)
    assert caught.value.bytes is not None
    assert caught.value.bytes > MIB
    assert not await other.exists("x")
    assert (await one.handoff("x", to=other, max_bytes=2 * MIB)).bytes > MIB


async def test_an_exception_from_progress_ends_a_handoff(one: Bridge, other: Bridge) -> None:
    await one.push(x=b"x" * 66 * MIB)

    for half in (0, 1):

        def stop(done: int, total: int, half: int = half) -> None:
            if 2 * done > half * total:
                raise ZeroDivisionError("enough")

        with pytest.raises(ZeroDivisionError, match="enough"):
            await one.handoff("x", to=other, progress=stop)
        assert not await other.exists("x")
    await one.handoff("x", to=other)
    assert await other.pull("len(x)") == 66 * MIB


# ---------------------------------------------------------------- trust


async def test_a_source_that_is_not_trusted_hands_over_only_data(other: Bridge) -> None:
    async with Bridge.loopback(trust="data") as stranger:
        await stranger.push(x=[1], table=np.arange(5))
        await stranger.run(MODEL)
        await stranger.handoff("x", "table", to=other)
        assert await other.pull("x", "int(table.sum())") == ([1], 10)
        with pytest.raises(UntrustedPayload, match=r"models\[0\] is .*Model"):
            await stranger.handoff("x", "models", to=other)
        assert not await other.exists("models")
        await stranger.handoff("models", to=other, trust="pickle")
        assert await other.pull("models[0].twice()") == 42


async def test_the_target_refuses_a_pickle_sent_as_data(
    other: Bridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The source sends a gadget where data was asked for; the target's own check refuses it."""
    async with Bridge.loopback(trust="data") as stranger:
        await stranger.run(MODEL + "ran = []")
        await stranger.push(x=1)
        await stranger.handoff("x", to=other)  # the data-only codec is loaded now
        await stranger.run("""
import pickle, sys
class Gadget:
    def __reduce__(self):
        return exec, ("import builtins; builtins.gadget_ran = True",)
remote_module = next(m for n, m in sys.modules.items() if n.startswith("_bridgehead"))
def lie(value, allow=()):
    return [memoryview(pickle.dumps({"x": Gadget()}))]
kept, remote_module.encode_data = remote_module.encode_data, lie
""")
        try:
            with pytest.raises(UntrustedPayload) as caught:
                await stranger.handoff("x", to=other)
        finally:
            await stranger.run("remote_module.encode_data = kept")
        assert "the target of a handoff" in caught.value.__notes__[0]
        assert await other.pull("x") == 1
        assert not await other.pull("hasattr(__import__('builtins'), 'gadget_ran')")


async def test_trust_data_hands_over_only_data(one: Bridge, other: Bridge) -> None:
    await one.run(MODEL)
    with pytest.raises(UntrustedPayload, match="model is .*Model"):
        await one.handoff("model", to=other, trust="data")
    await one.handoff("model", to=other)


# ---------------------------------------------------------------- arguments


async def test_targets_that_are_refused(one: Bridge, other: Bridge) -> None:
    await one.push(x=1)
    with pytest.raises(ValueError, match="to= must be another bridge"):
        await one.handoff("x", to=one)
    with pytest.raises(TypeError, match="an open Bridge or a Fleet, not Opening"):
        await one.handoff("x", to=Bridge.loopback())  # type: ignore[call-overload]
    closed = await Bridge.loopback()
    await closed.aclose()
    with pytest.raises(BridgeClosed) as caught:
        await one.handoff("x", to=closed)
    assert "target" in caught.value.__notes__[0]
    with pytest.raises(BridgeClosed):
        await closed.handoff("x", to=one)


async def test_a_target_of_another_event_loop_is_refused(one: Bridge) -> None:
    await one.push(x=1)
    with SyncBridge.loopback() as blocking:
        with pytest.raises(TypeError, match="an open Bridge or a Fleet, not SyncBridge"):
            await one.handoff("x", to=blocking)  # type: ignore[arg-type]
        with pytest.raises(RuntimeError, match="another event loop"):
            await one.handoff("x", to=blocking._bridge)


async def test_wrong_arguments_are_refused(one: Bridge, other: Bridge) -> None:
    with pytest.raises(ValueError, match=r"needs at least one name, e.g. handoff\('x', to=…\)"):
        await one.handoff(to=other)
    with pytest.raises(ValueError, match="'x.y' is not a Python identifier"):
        await one.handoff("x.y", to=other)
    with pytest.raises(ValueError, match="'None' is a Python keyword"):
        await one.handoff("None", to=other)
    with pytest.raises(ValueError, match="max_bytes"):
        await one.handoff("x", to=other, max_bytes=-1)
    with pytest.raises(ValueError, match="trust= is"):
        await one.handoff("x", to=other, trust="none")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="timeout= takes a number"):
        await one.handoff("x", to=other, timeout="1")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="progress must be"):
        await one.handoff("x", to=other, progress=1)  # type: ignore[arg-type]


# ---------------------------------------------------------------- order


async def test_a_handoff_takes_its_turn_in_both_queues(source: Bridge, target: Bridge) -> None:
    """In both kernels, earlier calls take effect before it, and later calls after it."""
    await source.push(x="old")
    slow = asyncio.ensure_future(source.run("import time; time.sleep(0.3)"))
    await asyncio.sleep(0)
    work = [
        source.push(x="now"),
        target.push(x="before"),
        source.handoff("x", to=target),
        source.push(x="later"),
        target.push(seen=1),
        target.run("seen = x"),
        target.push(x="after"),
    ]
    await asyncio.gather(slow, *work)
    assert await target.pull("seen", "x") == ("now", "after")
    assert await source.pull("x") == "later"


async def test_two_opposite_handoffs_take_effect_in_order(one: Bridge, other: Bridge) -> None:
    await one.push(x="one's")
    await other.push(x="other's", y="other's")
    for _ in range(20):
        await asyncio.gather(one.handoff("x", to=other), other.handoff("x", "y", to=one))
    # The first handoff was called first, so the second one returns what it brought.
    assert await one.pull("x", "y") == ("one's", "other's")
    assert await other.pull("x") == "one's"


async def test_rings_of_handoffs_cancelled_at_random_never_hang(one: Bridge, other: Bridge) -> None:
    """Every bridge hands over to every other; some handoffs are cancelled, some time out."""
    dice = random.Random(5)
    async with Bridge.loopback(lane="inline") as third:
        ring = [one, other, third]
        for number, bridge in enumerate(ring):
            await bridge.push(x=number, big=b"x" * MIB)
        for _ in range(12):
            tasks = []
            for _ in range(12):
                source, target = dice.sample(ring, 2)
                name = dice.choice(["x", "big"])
                timeout = dice.choice([None, None, 0.001, 5])
                work = source.handoff(name, to=target, timeout=timeout)
                tasks.append(asyncio.ensure_future(work))
            await asyncio.sleep(dice.random() * 0.01)
            for task in dice.sample(tasks, 5):
                task.cancel()
            async with asyncio.timeout(60):
                for outcome in await asyncio.gather(*tasks, return_exceptions=True):
                    if isinstance(outcome, Exception):
                        assert isinstance(outcome, TimeoutError), outcome
        for bridge in ring:
            assert await bridge.pull("x") in (0, 1, 2)
            assert await bridge.pull("len(big)") == MIB
            assert not bridge._connection.queue.turns
            await nothing_is_kept(bridge)


async def nothing_is_kept(bridge: Bridge) -> None:
    """Wait until no unfinished transfer is kept; all loopbacks share one remote module."""
    code = """
import sys
remote_module = next(m for n, m in sys.modules.items() if n.startswith("_bridgehead"))
transfers = [remote.transfers for remote in remote_module._remotes.values()]
kept = [len(boxes) for each in transfers for boxes in (each.inboxes, each.outboxes)]
"""
    async with asyncio.timeout(20):
        while True:
            await bridge.run(code)
            if not any(await bridge.pull("kept")):
                return
            await asyncio.sleep(0.05)


async def test_a_timeout_says_which_kernel_was_busy(one: Bridge, other: Bridge) -> None:
    await one.push(x=1)
    busy = await running(one, 0.5)
    with pytest.raises(TimeoutError, match="handoff timed out after 0.1 s") as caught:
        await one.handoff("x", to=other, timeout=0.1)
    assert "the source of a handoff" in caught.value.__notes__[0]
    await busy
    assert not await other.exists("x")
    busy = await running(other, 0.5)
    with pytest.raises(TimeoutError, match="after 0.1 s") as caught:
        await one.handoff("x", to=other, timeout=0.1)
    assert "the target of a handoff" in caught.value.__notes__[0]
    await busy
    await one.handoff("x", to=other, timeout=60)
    assert await other.pull("x") == 1


@pytest.mark.parametrize("which", ["source", "target"])
@pytest.mark.parametrize("end", ["restart", "close"])
async def test_losing_either_kernel_ends_a_handoff_that_waits_for_the_source(
    one: Bridge, other: Bridge, which: str, end: str
) -> None:
    """No request waits for the target at that time, and its loss is reported all the same."""
    await one.push(x=1)
    busy = await running(one, 0.5)
    task = asyncio.ensure_future(one.handoff("x", to=other))
    await asyncio.sleep(0.05)
    bridge = one if which == "source" else other
    ending = asyncio.ensure_future(bridge.restart() if end == "restart" else bridge.aclose())
    with pytest.raises(BridgeError) as caught:
        async with asyncio.timeout(20):
            await task
    assert isinstance(caught.value, KernelRestarted if end == "restart" else BridgeClosed)
    assert f"the {which} of a handoff" in caught.value.__notes__[0]
    await asyncio.gather(busy, ending, return_exceptions=True)
    if end == "restart":
        await one.push(x=2)
        await one.handoff("x", to=other)
        assert await other.pull("x") == 2


async def test_a_handoff_cancelled_before_its_turn_binds_nothing(
    one: Bridge, other: Bridge
) -> None:
    await one.push(x=1)
    busy = await running(one, 0.3)
    task = asyncio.ensure_future(one.handoff("x", to=other))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await other.push(y=1)  # the queue is empty again
    await busy
    assert not await other.exists("x")


# ---------------------------------------------------------------- blocking


def test_handoff_of_a_sync_bridge() -> None:
    with SyncBridge.loopback() as one, SyncBridge.loopback() as other:
        one["x"] = [1]
        reports: list[int] = []
        transfer = one.handoff("x", to=other, progress=lambda done, total: reports.append(done))
        assert transfer.names == ("x",)
        assert reports[-1] == transfer.bytes
        assert other["x"] == [1]
        with pytest.raises(NameNotFound):
            one.handoff("y", to=other)
        with pytest.raises(ValueError, match="to= must be another bridge"):
            one.handoff("x", to=one)
        with pytest.raises(TypeError, match="a SyncBridge or a SyncFleet, not dict"):
            one.handoff("x", to={})  # type: ignore[arg-type]
        with pytest.raises(TimeoutError):
            one.run("import threading, time")
            one.push(slow=b"x" * 80 * MIB)
            one.handoff("slow", to=other, timeout=0.01)
        assert "slow" not in other
        other.close()
        with pytest.raises(BridgeClosed):
            one.handoff("x", to=other)


async def test_a_restart_of_both_kernels_is_reported_by_each() -> None:
    """The handoff reports the target's restart only; the source's next call reports its own."""
    async with Bridge.loopback() as source, Bridge.loopback() as target:
        await source.push(x=1)
        await target.push(y=1)
        for bridge in (source, target):
            await bridge._transport.restart(60)  # as another client would
        with pytest.raises(KernelRestarted) as caught:
            await source.handoff("x", to=target)
        assert "the target of a handoff" in caught.value.__notes__[0]
        with pytest.raises(KernelRestarted):
            await source.exists("x")
        assert not await target.exists("y")
