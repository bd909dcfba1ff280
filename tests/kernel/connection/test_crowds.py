"""Thousands of requests at once, and what they have in common.

Rule: on real kernels, through the public surface; what is looked inside for is only what must
not be left there. What is random says its seed when it fails. Nothing is timed: what must go
on meanwhile is counted, and what must come is waited for.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import cloudpickle
import pytest

from bridgehead import (
    Bridge,
    NameNotFound,
    PayloadTooLarge,
    RemoteError,
)
from bridgehead._transports.dispatch import WINDOW
from support.kit import (
    KEPT,
    LANES,
    all_of,
    file_of,
    goes_on,
    other,
    reported_within,
    sigint,
)
from support.look import look
from support.promises import Sent, occupied, seeded

# Test modules aren't importable in a kernel; what they define is shipped like a script's own.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture(scope="module")
async def harmless() -> AsyncIterator[Bridge]:
    """One kernel for all that leaves it as it was; it can tell what its loader keeps."""
    async with Bridge.launch() as bridge:
        await bridge.run(KEPT)
        yield bridge


async def test_thousands_at_once_on_three_bridges_beside_a_console(
    kernel: Bridge, sent: Sent
) -> None:
    """2,000 calls through each of three bridges and cells of a raw client: each its own answer."""
    await kernel.push({f"p{i}": [i] for i in range(1000)})
    async with (
        Bridge.attach(file_of(kernel)) as second,
        Bridge.attach(file_of(kernel), lane="inline") as third,
        other(kernel) as console,
    ):
        bridges = {"a": kernel, "b": second, "c": third}

        async def pull(bridge: Bridge, i: int) -> None:
            assert await bridge.pull(f"p{i}") == [i]

        async def push(bridge: Bridge, mine: str, i: int) -> None:
            assert (await bridge.push({f"{mine}{i}": i})).names == (f"{mine}{i}",)

        with seeded() as chance:
            work = [pull(bridge, i) for bridge in bridges.values() for i in range(1000)]
            work += [push(bridge, mine, i) for mine, bridge in bridges.items() for i in range(1000)]
            chance.shuffle(work)
            cells = [console.submit(f"d{i} = {i}\nd{i} / {i % 2}") for i in range(20)]
            await asyncio.gather(*work)
            for i, cell in enumerate(cells):
                # Aborted by the one before it, which fails, it did not run.
                status = (await console.answer(cell))["status"]
                assert status in (("ok", "aborted") if i % 2 else ("error", "aborted"))
        assert 0 < sent.most <= WINDOW
        there = await look(file_of(kernel))
        assert {
            mine + str(i): str(i) for mine in "abc" for i in range(1000)
        }.items() <= there.items()
        assert len([name for name in there if name[0] == "p"]) == 1000
    await goes_on(kernel)


@pytest.mark.parametrize("lane", LANES)
async def test_a_thousand_small_pushes_need_few_messages(
    kernel: Bridge, sent: Sent, lane: Any
) -> None:
    async with Bridge.attach(file_of(kernel), lane=lane) as bridge:
        sent.requests = 0
        await asyncio.gather(*(bridge.push({f"x{i}": i}) for i in range(1000)))
        assert sent.requests <= 40
        assert sent.most <= WINDOW
    assert await look(file_of(kernel)) == {f"x{i}": str(i) for i in range(1000)}


@pytest.mark.parametrize("lane", LANES)
async def test_operations_take_effect_in_the_order_of_their_calls(
    kernel: Bridge, lane: Any
) -> None:
    """Of many pushes of one name the last one wins; what is called between them sees its own."""
    async with Bridge.attach(file_of(kernel), lane=lane) as bridge:
        for _ in range(10):
            await asyncio.gather(*(bridge.push(x=i) for i in range(100)))
            assert await bridge.pull("x") == 99
        with seeded() as chance:
            await bridge.push(x=-1, ran=[])
            ways: list[Callable[[int], Awaitable[Any]]] = [
                lambda i: bridge.push(x=i),
                lambda i: bridge.push(x=i, weight=bytearray(3_000_000)),
                lambda i: bridge.push(x=i, heavy=list(range(5000))),  # pickled in a thread
                lambda i: bridge.run(f"x = {i}"),
                lambda i: bridge.call(lambda: i, keep="x"),
                lambda i: bridge.pull("x"),
                lambda i: bridge.pull("x + 0"),
                lambda i: bridge.call(lambda x: x, bridge.ref("x")),
            ]
            chosen = [chance.randrange(len(ways)) for _ in range(200)]
            expected, last = [], -1
            for i, way in enumerate(chosen):
                last = i if way < 5 else last
                expected.append(last)
            outcomes = await asyncio.gather(*(ways[way](i) for i, way in enumerate(chosen)))
            for i, way in enumerate(chosen):
                if way >= 5:
                    assert outcomes[i] == expected[i], (i, way)
            assert (await look(file_of(kernel)))["x"] == str(last)
    await goes_on(kernel)


class RaisesInKernel:
    def __getstate__(self) -> dict[str, int]:
        return {"x": 1}

    def __setstate__(self, state: Any) -> None:
        raise RuntimeError("not in this kernel")


async def test_what_fails_in_a_message_of_many_fails_alone(kernel: Bridge, sent: Sent) -> None:
    await kernel.push(there=[5])
    await kernel.run("import threading; unpicklable = threading.Lock()")
    async with occupied(kernel):
        sent.requests = 0
        work: list[Awaitable[Any]] = [kernel.push(first=1)]
        for i in range(20):
            work += [
                kernel.push({f"x{i}": i}),
                kernel.push(bad=RaisesInKernel(), **{f"y{i}": i}),
                kernel.pull("missing"),
                kernel.pull("there"),
                kernel.pull("there", max_bytes=1),
                kernel.pull("unpicklable", max_bytes=1),
                kernel.delete("there", "missing"),
                kernel.exists("missing"),
            ]
        tasks = [asyncio.ensure_future(one) for one in work]
        await asyncio.sleep(0.3)
    _, *outcomes = await all_of(*tasks)
    assert sent.requests <= 20  # or it would prove nothing
    for i in range(20):
        push, bad, missing, there, large, dumb, delete, exists = outcomes[8 * i : 8 * i + 8]
        assert push.names == (f"x{i}",)
        assert isinstance(bad, RemoteError)
        assert "not in this kernel" in str(bad)
        assert isinstance(missing, NameNotFound)
        assert missing.names == ("missing",)
        assert there == [5]
        assert isinstance(large, PayloadTooLarge)
        assert isinstance(dumb, RemoteError)
        assert isinstance(delete, NameNotFound)
        assert exists is False
    found = await look(file_of(kernel))
    assert set(found) == {"there", "unpicklable", "first", *(f"x{i}" for i in range(20))}
    await goes_on(kernel)


class SlowThere:
    def __init__(self, value: int) -> None:
        self.value = value

    def __reduce__(self) -> Any:
        return slowly, (self.value,)


def slowly(value: int) -> int:
    time.sleep(0.02)
    return value


async def test_an_interrupt_strikes_one_of_those_that_cross_together(
    kernel: Bridge, sent: Sent
) -> None:
    """SIGINT while a message of many is served: who is not told of it has all it asked for."""
    struck = 0
    for _ in range(3):
        async with occupied(kernel):
            sent.requests = 0
            tasks = [
                asyncio.ensure_future(kernel.push({f"l{i}": SlowThere(i), f"r{i}": i}))
                for i in range(40)
            ]
            await asyncio.sleep(0.3)
        await asyncio.sleep(0.3)
        sigint(kernel)
        async with reported_within(2):
            outcomes = await all_of(*tasks)
        assert sent.requests <= 10  # or it would prove nothing
        there = await look(file_of(kernel))
        for i, outcome in enumerate(outcomes):
            pair = there.get(f"l{i}"), there.get(f"r{i}")
            if isinstance(outcome, BaseException):
                assert isinstance(outcome, RemoteError)
                assert outcome.ename == "KeyboardInterrupt"
                assert pair in ((None, None), (str(i), str(i)))
                struck += 1
            else:
                assert pair == (str(i), str(i))
        await kernel.delete(*(name for name in there if name[0] in "lr"))
        await goes_on(kernel)
    assert struck
