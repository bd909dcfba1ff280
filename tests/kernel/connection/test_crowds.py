"""Thousands of requests at once: order, batches and separate errors.

Rule: tests use real kernels and the public API. They read private state only to check that nothing
is left behind. A random test reports its seed when it fails. No test measures speed: it counts the
work that must continue, and waits for the results that must come.
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
from bridgehead._transports.request_table import WINDOW
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

# A kernel can't import test modules, so what they define is pickled by value, as in a script.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture(scope="module")
async def harmless() -> AsyncIterator[Bridge]:
    """One kernel for all tests that restore its state; ``_kept()`` counts its open transfers."""
    async with Bridge.launch() as bridge:
        await bridge.run(KEPT)
        yield bridge


async def test_thousands_at_once_on_three_bridges_beside_a_console(
    kernel: Bridge, sent: Sent
) -> None:
    """2,000 calls through each of three bridges, and raw cells: each gets its own reply."""
    await kernel.push({f"p{i}": [i] for i in range(1000)})
    async with (
        Bridge.attach(file_of(kernel)) as second,
        Bridge.attach(file_of(kernel), lane="inline") as third,
        other(kernel) as console,
    ):
        bridges = {"a": kernel, "b": second, "c": third}

        async def pull(bridge: Bridge, i: int) -> None:
            assert await bridge.pull(f"p{i}") == [i]

        async def push(bridge: Bridge, prefix: str, i: int) -> None:
            assert (await bridge.push({f"{prefix}{i}": i})).names == (f"{prefix}{i}",)

        with seeded() as chance:
            work = [pull(bridge, i) for bridge in bridges.values() for i in range(1000)]
            work += [
                push(bridge, prefix, i) for prefix, bridge in bridges.items() for i in range(1000)
            ]
            chance.shuffle(work)
            cells = [console.submit(f"d{i} = {i}\nd{i} / {i % 2}") for i in range(20)]
            await asyncio.gather(*work)
            for i, cell in enumerate(cells):
                # The cell before it fails and may abort it; then it did not run.
                status = (await console.answer(cell))["status"]
                assert status in (("ok", "aborted") if i % 2 else ("error", "aborted"))
        assert 0 < sent.most <= WINDOW
        namespace = await look(file_of(kernel))
        assert {
            prefix + str(i): str(i) for prefix in "abc" for i in range(1000)
        }.items() <= namespace.items()
        assert len([name for name in namespace if name[0] == "p"]) == 1000
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
    """The last of many pushes of one name wins; a call between them sees the value before it."""
    async with Bridge.attach(file_of(kernel), lane=lane) as bridge:
        for _ in range(10):
            await asyncio.gather(*(bridge.push(x=i) for i in range(100)))
            assert await bridge.pull("x") == 99
        with seeded() as chance:
            await bridge.push(x=-1, ran=[])
            weight = 1_200_000 if lane == "inline" else 3_000_000  # bytes, copied in a thread
            ways: list[Callable[[int], Awaitable[Any]]] = [
                lambda i: bridge.push(x=i),
                lambda i: bridge.push(x=i, weight=bytearray(weight)),
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


async def test_a_request_that_fails_in_a_batch_fails_alone(kernel: Bridge, sent: Sent) -> None:
    await kernel.push(present=[5])
    await kernel.run("import threading; unpicklable = threading.Lock()")
    async with occupied(kernel):
        sent.requests = 0
        work: list[Awaitable[Any]] = [kernel.push(first=1)]
        for i in range(20):
            work += [
                kernel.push({f"x{i}": i}),
                kernel.push(bad=RaisesInKernel(), **{f"y{i}": i}),
                kernel.pull("missing"),
                kernel.pull("present"),
                kernel.pull("present", max_bytes=1),
                kernel.pull("unpicklable", max_bytes=1),
                kernel.delete("present", "missing"),
                kernel.exists("missing"),
            ]
        tasks = [asyncio.ensure_future(one) for one in work]
        await asyncio.sleep(0.3)
    _, *outcomes = await all_of(*tasks)
    assert sent.requests <= 20  # otherwise the test proves nothing
    for i in range(20):
        push, bad, missing, present, large, dumb, delete, exists = outcomes[8 * i : 8 * i + 8]
        assert push.names == (f"x{i}",)
        assert isinstance(bad, RemoteError)
        assert "not in this kernel" in str(bad)
        assert isinstance(missing, NameNotFound)
        assert missing.names == ("missing",)
        assert present == [5]
        assert isinstance(large, PayloadTooLarge)
        assert isinstance(dumb, RemoteError)
        assert isinstance(delete, NameNotFound)
        assert exists is False
    found = await look(file_of(kernel))
    assert set(found) == {"present", "unpicklable", "first", *(f"x{i}" for i in range(20))}
    await goes_on(kernel)


class SlowInKernel:
    def __init__(self, value: int) -> None:
        self.value = value

    def __reduce__(self) -> Any:
        return slowly, (self.value,)


def slowly(value: int) -> int:
    time.sleep(0.02)
    return value


@pytest.mark.slow
async def test_an_interrupt_ends_one_request_of_a_batch(kernel: Bridge, sent: Sent) -> None:
    """SIGINT while a batch runs: each push that reports no interrupt has bound all its names."""
    interrupted = 0
    for _ in range(3):
        async with occupied(kernel):
            sent.requests = 0
            tasks = [
                asyncio.ensure_future(kernel.push({f"l{i}": SlowInKernel(i), f"r{i}": i}))
                for i in range(40)
            ]
            await asyncio.sleep(0.3)
        await asyncio.sleep(0.3)
        sigint(kernel)
        async with reported_within(2):
            outcomes = await all_of(*tasks)
        assert sent.requests <= 10  # otherwise the test proves nothing
        namespace = await look(file_of(kernel))
        for i, outcome in enumerate(outcomes):
            pair = namespace.get(f"l{i}"), namespace.get(f"r{i}")
            if isinstance(outcome, BaseException):
                assert isinstance(outcome, RemoteError)
                assert outcome.ename == "KeyboardInterrupt"
                assert pair in ((None, None), (str(i), str(i)))
                interrupted += 1
            else:
                assert pair == (str(i), str(i))
        await kernel.delete(*(name for name in namespace if name[0] in "lr"))
        await goes_on(kernel)
    assert interrupted
