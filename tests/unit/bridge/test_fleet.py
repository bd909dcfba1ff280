"""Fleets of loopbacks: results, errors by kernel, options, slices.

Rule: no kernel. ``kernel/bridge/test_fleet.py`` has what needs real ones.
"""

from __future__ import annotations

import asyncio
import gc
import pickle
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from bridgehead import (
    Bridge,
    BridgeClosed,
    EncodeError,
    Fleet,
    FleetError,
    Message,
    NameNotFound,
    NotSupported,
    PayloadTooLarge,
    UntrustedPayload,
)
from support.kit import until


@pytest.fixture
async def fleet() -> AsyncIterator[Fleet]:
    async with Bridge.loopback() as one, Bridge.loopback() as two, Bridge.loopback() as three:
        async with Fleet([one, two, three]) as fleet:
            yield fleet


async def test_an_error_keeps_what_the_others_returned(fleet: Fleet) -> None:
    await fleet[0].push(x=1)
    await fleet[2].push(x=3)
    with pytest.raises(FleetError, match="1 of 3 kernels failed") as caught:
        await fleet.pull("x")
    error = caught.value
    assert error.results == {0: 1, 2: 3}
    assert list(error.errors) == [1]
    assert type(error.errors[1]) is NameNotFound
    assert error.exceptions == (error.errors[1],)
    assert error.errors[1].__notes__[0].startswith("kernel 1 of 3, pid ")


class Slow:
    """Takes a while to be pickled, and arrives as 1."""

    def __reduce__(self) -> Any:
        time.sleep(0.1)
        return int, (1,)


async def test_operations_take_effect_in_the_order_of_their_calls(fleet: Fleet) -> None:
    outcomes = await asyncio.gather(
        fleet.push(x=Slow()),
        fleet.run("y = x + 1"),
        fleet.scatter("part", [Slow(), 2, 3]),
        fleet.run("z = part[0] * w", push={"w": [Slow(), 10][1]}),
        fleet.call(lambda: globals().update(z=z + 1), namespace=True),  # noqa: F821
        fleet.pull("x", "y", "z"),
        fleet.delete("x"),
        fleet.exists("x"),
    )
    assert outcomes[-3] == [(1, 2, 11), (1, 2, 21), (1, 2, 31)]
    assert outcomes[-1] == [False] * 3
    with pytest.raises(EncodeError):
        await fleet.push(x=threading.Lock())
    with pytest.raises(ValueError, match="belongs to one kernel"):
        await fleet.scatter("x", [fleet[0].ref("y")])
    assert await fleet.pull("y") == [2] * 3  # what failed has left the queues


async def test_except_star_gives_the_part_with_its_results(fleet: Fleet) -> None:
    await fleet[0].push(x=1)
    await fleet[2].aclose()
    seen: list[Any] = []
    try:
        await fleet.pull("x")
    except* NameNotFound as group:
        seen.append(group)
    except* BridgeClosed as group:
        seen.append(group)
    assert [type(group) for group in seen] == [FleetError, FleetError]
    assert [group.results for group in seen] == [{0: 1}, {0: 1}]
    assert [group.errors.keys() for group in seen] == [{1}, {2}]


def test_a_fleet_error_pickles() -> None:
    error = FleetError("1 of 2 kernels failed", [KeyError("x")], {0: 1}, {1: KeyError("x")})
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is FleetError
    assert (copy.message, copy.results, repr(copy.errors)) == (
        error.message,
        {0: 1},
        repr(error.errors),
    )
    assert repr(copy.exceptions) == repr(error.exceptions)


async def test_every_operation_can_return_exceptions(fleet: Fleet) -> None:
    await fleet[1].push(x=1)
    options: Any = {"return_exceptions": True}
    for outcomes in (
        await fleet.pull("x", **options),
        await fleet.run("x", **options),
        await fleet.call(lambda: x, namespace=True, **options),  # noqa: F821
    ):
        assert [isinstance(one, Exception) for one in outcomes] == [True, False, True]
    await fleet[2].aclose()
    for outcomes in (
        await fleet.push(x=1, **options),
        await fleet.names(**options),
        await fleet.exists("x", **options),
        await fleet.scatter("part", [1, 2, 3], **options),
    ):
        assert type(outcomes[2]) is BridgeClosed
        assert not any(isinstance(one, Exception) for one in outcomes[:2])
    for nothing in (await fleet.delete("x", **options), await fleet.restart(**options)):
        assert [type(one) for one in nothing] == [type(None), type(None), BridgeClosed]
    errors: Any = await fleet.interrupt(**options)
    assert [type(one) for one in errors] == [NotSupported, NotSupported, BridgeClosed]
    assert await fleet[:2].exists("x") == [False, False]


async def test_fail_fast_raises_at_the_first_error_and_cancels_the_others(fleet: Fleet) -> None:
    await fleet.run("import asyncio; forever = asyncio.Event()")
    await fleet[0].delete("forever")
    with pytest.raises(FleetError) as caught:
        await fleet.pull("await forever.wait()", fail_fast=True)
    assert (caught.value.errors.keys(), caught.value.results) == ({0}, {})
    assert [bridge.stats.tasks for bridge in fleet] == [0, 0, 0]
    await fleet[2].push(x=2)
    with pytest.raises(FleetError) as caught:
        await fleet.call(lambda: x, namespace=True, fail_fast=True)  # noqa: F821
    assert caught.value.errors


async def test_fail_fast_and_return_exceptions_contradict_each_other(fleet: Fleet) -> None:
    with pytest.raises(ValueError, match="fail_fast=True raises the first error"):
        await fleet.pull("1", fail_fast=True, return_exceptions=True)
    with pytest.raises(TypeError, match="return_exceptions must be True or False, not int"):
        await fleet.pull("1", return_exceptions=1)  # type: ignore[arg-type]


async def test_a_cancel_cancels_the_operation_in_all_kernels(fleet: Fleet) -> None:
    await fleet.run("import asyncio; forever = asyncio.Event()")
    calls = asyncio.ensure_future(fleet.pull("await forever.wait()"))
    while [bridge.stats.tasks for bridge in fleet] != [1, 1, 1]:
        await asyncio.sleep(0.01)
    calls.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calls
    assert [bridge.stats.tasks for bridge in fleet] == [0, 0, 0]
    assert await fleet.pull("1") == [1, 1, 1]


@pytest.mark.parametrize(
    ("ask", "error", "words"),
    [
        (lambda fleet: fleet.pull(""), ValueError, "the expression is empty"),
        (lambda fleet: fleet.pull("x", max_bytes=-1), ValueError, "max_bytes"),
        (lambda fleet: fleet.pull("x", no_such_option=1), TypeError, "no_such_option"),
        (lambda fleet: fleet.run(1), TypeError, "as a string"),
        (lambda fleet: fleet.call(1), TypeError, "takes a function"),
        (lambda fleet: fleet.call(lambda fail_fast: 1, fail_fast=True), TypeError, "partial"),
        (lambda fleet: fleet.delete(), ValueError, "at least one name"),
        (lambda fleet: fleet.push(x=1, trust="all"), ValueError, "trust="),
        (lambda fleet: fleet.push(x=1, now=3), TypeError, "now must be"),
        (lambda fleet: fleet.run("1", on_output=3), TypeError, "on_output"),
        (lambda fleet: fleet.call(len, [fleet[0].ref("x")]), ValueError, "belongs to one kernel"),
        (lambda fleet: fleet.call(len, obj=fleet[0].ref("x")), ValueError, "one kernel"),
        (lambda fleet: fleet.push(y=[fleet[0].ref("x")]), ValueError, "belongs to one kernel"),
        (lambda fleet: fleet.call(threading.Lock().acquire), EncodeError, "cannot be pickled"),
        (lambda fleet: fleet.push(x=threading.Lock()), EncodeError, "x cannot be pickled"),
        (lambda fleet: fleet.push(x=print, trust="data"), UntrustedPayload, "not data"),
        (lambda fleet: fleet.push(x=bytes(5000), max_bytes=10), PayloadTooLarge, "more than"),
    ],
)
async def test_a_wrong_argument_is_an_error_of_the_call(
    fleet: Fleet, ask: Any, error: Any, words: str
) -> None:
    await fleet.push(x=1)
    with pytest.raises(error, match=words):
        await ask(fleet)


async def test_a_wrong_argument_is_reported_though_a_kernel_is_lost(fleet: Fleet) -> None:
    await fleet[0].aclose()
    with pytest.raises(TypeError, match="as a string"):
        await fleet.run(1)  # type: ignore[call-overload]


async def test_options_of_bridge_reach_every_kernel(fleet: Fleet) -> None:
    outputs: list[tuple[str, int]] = []

    def note(message: Message, index: int) -> None:
        outputs.append((message.text, index))

    await fleet.run("print('cell', end='')", on_output=note)
    await fleet.call(print, "call", end="", on_output=note)
    assert sorted(outputs) == [
        *(("call", index) for index in range(3)),
        *(("cell", index) for index in range(3)),
    ]
    refs = await fleet.call(range, 3, keep="rows")
    assert [await ref.pull() for ref in refs] == [range(3)] * 3
    assert await fleet.call(lambda: len(rows), namespace=True) == [3] * 3  # noqa: F821
    assert await fleet.call(dict, a=1) == [{"a": 1}] * 3
    assert await fleet.pull("rows", trust="pickle", timeout=20) == [range(3)] * 3
    with pytest.raises(FleetError) as caught:
        await fleet.pull("bytes(1000)", max_bytes=100)
    assert {type(one) for one in caught.value.exceptions} == {PayloadTooLarge}
    assert [names[0].name for names in await fleet.names("r*")] == ["rows"] * 3


async def test_kept_results_are_a_ref_for_each_kernel(fleet: Fleet) -> None:
    refs = await fleet.call(sorted, [3, 1], keep=True)
    assert [bridge.stats.refs for bridge in fleet] == [1, 1, 1]
    assert [await bridge.call(len, ref) for bridge, ref in zip(fleet, refs, strict=True)] == [2] * 3
    with pytest.raises(ValueError, match="belongs to one kernel"):
        await fleet.call(len, refs[0])
    del refs
    await until(lambda: gc.collect() >= 0 and not any(bridge.stats.refs for bridge in fleet))


async def test_progress_counts_the_bytes_of_all_kernels_together(fleet: Fleet) -> None:
    seen: list[tuple[int, int]] = []

    def note(done: int, total: int) -> None:
        seen.append((done, total))

    transfers = await fleet.push(x=bytes(100_000), progress=note)
    assert seen[-1] == (sum(one.bytes for one in transfers),) * 2
    seen.clear()
    await fleet.pull("x", progress=note)
    done, total = seen[-1]
    assert done == total > 300_000


async def test_a_function_and_its_arguments_are_pickled_once(fleet: Fleet) -> None:
    Counted.times = 0
    assert await fleet.call(len, [Counted(), Counted()]) == [2, 2, 2]
    assert Counted.times == 2


class Counted:
    times = 0

    def __reduce__(self) -> Any:
        type(self).times += 1
        return int, ()


async def test_a_slice_is_a_fleet_and_an_index_a_bridge(fleet: Fleet) -> None:
    part = fleet[1:]
    assert (type(part), len(part), list(part)) == (Fleet, 2, [fleet[1], fleet[2]])
    assert fleet[-1] is fleet[2]
    await part.push(x=1)
    assert await fleet.exists("x") == [False, True, True]
    with pytest.raises(FleetError) as caught:
        await fleet[::-1].pull("x")
    assert list(caught.value.errors) == [2]
    async with part:
        pass
    assert [bridge.state for bridge in fleet] == ["idle"] * 3
    with pytest.raises(ValueError, match="at least one bridge"):
        fleet[3:]


async def test_what_on_output_raises_is_the_error_of_its_kernel(fleet: Fleet) -> None:
    def fail(message: Message, index: int) -> None:
        raise ValueError(f"output of kernel {index}")

    options: Any = {"on_output": fail, "return_exceptions": True}
    for errors in (await fleet.run("print(1)", **options), await fleet.call(print, 1, **options)):
        assert [str(error) for error in errors] == [f"output of kernel {n}" for n in range(3)]
    with pytest.raises(FleetError, match="3 of 3 kernels failed"):
        await fleet.run("print(1)", on_output=fail)


async def test_a_fleet_of_one_takes_the_refs_of_its_kernel(fleet: Fleet) -> None:
    await fleet[0].push(x=[1, 2])
    assert await fleet[:1].call(len, fleet[0].ref("x")) == [2]
    assert await fleet[:1].pull(fleet[0].ref("x")) == [[1, 2]]
    with pytest.raises(ValueError, match="another kernel"):
        await fleet[:1].call(len, fleet[1].ref("x"))


async def test_a_handoff_to_a_fleet_binds_in_each(fleet: Fleet) -> None:
    await fleet[0].push(x=[1, 2], y=3)
    seen: list[tuple[int, int]] = []
    rest = fleet[1:]
    transfers = await fleet[0].handoff("x", "y", to=rest, progress=lambda *done: seen.append(done))
    assert [one.names for one in transfers] == [("x", "y")] * 2
    assert await fleet.pull("x", "y") == [([1, 2], 3)] * 3
    assert seen[-1] == (sum(one.bytes for one in transfers),) * 2
    with pytest.raises(ValueError, match="to= must be another bridge"):
        await fleet[0].handoff("x", to=fleet[:1])
    with pytest.raises(FleetError) as caught:
        await fleet[0].handoff("x", to=fleet)
    assert caught.value.errors.keys() == {0}
    assert caught.value.results.keys() == {1, 2}
    with pytest.raises(FleetError) as caught:
        await fleet[0].handoff("nothing", to=rest)
    assert {type(one) for one in caught.value.exceptions} == {NameNotFound}
