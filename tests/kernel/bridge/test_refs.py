"""Objects as arguments inside a ref's expression, and refs of other bridges to one kernel.

Rule: each test runs on a loopback and on a real kernel, over each lane, unless it says why not.
"""

from __future__ import annotations

import sys
import threading
from typing import Any

import cloudpickle
import numpy as np
import pytest

from bridgehead import Bridge, EncodeError, NameNotFound, RemoteError, SyncBridge
from support.kit import file_of

# A kernel cannot import test modules; their functions and classes are pickled by value.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

MIB = 1 << 20


class Point:
    def __init__(self, x: Any) -> None:
        self.x = x


async def names(bridge: Bridge) -> list[str]:
    return [name.name for name in [*await bridge.names(), *await bridge.names("_bridgehead*")]]


async def test_objects_and_refs_are_arguments_inside_a_ref(bridge: Bridge) -> None:
    await bridge.push(d={"a": lambda *values: [*values]}, rows=[1, 2])
    array, rows = np.arange(5), bridge.ref("rows")
    ref = bridge.ref("d")["a"](array, rows, Point(7), {"deep": [rows, array]})
    back, same, point, nested = await ref.pull()
    assert np.array_equal(back, array)
    assert (same, point.x, nested["deep"][0]) == ([1, 2], 7, [1, 2])
    assert nested["deep"][0] is same
    assert nested["deep"][1] is back
    assert await ref[2].x.pull() == 7
    assert await bridge.pull(ref[1], "rows", bridge.ref("len")(ref)) == ([1, 2], [1, 2], 4)
    assert await names(bridge) == ["d", "rows"]


async def test_a_function_is_an_argument_inside_a_ref(bridge: Bridge) -> None:
    await bridge.push(rows=[3, 1, 2])
    largest_first = bridge.ref("sorted")(bridge.ref("rows"), key=lambda row: -row)
    assert await largest_first.pull() == [3, 2, 1]


async def test_a_ref_that_carries_objects_is_a_value_of_call_and_push(bridge: Bridge) -> None:
    await bridge.push(d={"a": lambda *values: [*values]})
    ref = bridge.ref("d")["a"](np.arange(3), Point(1))
    assert await bridge.call(lambda values, n: len(values) + n, ref, n=1) == 3
    await bridge.push(made=ref, nested={"x": [ref[1].x]})
    assert await bridge.pull("made[1].x", "nested") == (1, {"x": [1]})
    assert await names(bridge) == ["d", "made", "nested"]


async def test_an_object_in_a_ref_crosses_as_it_is_when_the_ref_is_pulled(bridge: Bridge) -> None:
    array = np.zeros(3)
    ref = bridge.ref("sum")(array)
    array[:] = 1
    assert await ref.pull() == 3
    array[:] = 2
    assert await ref.pull() == 6


@pytest.mark.parametrize("mib", [2, 20])
async def test_large_objects_are_arguments_inside_a_ref(bridge: Bridge, mib: int) -> None:
    array = np.random.default_rng(1).integers(0, 255, mib * MIB, dtype=np.uint8)
    await bridge.push(twice=lambda value: [value, value])
    back, again = await bridge.ref("twice")(array).pull()
    assert np.array_equal(back, array)
    assert again is back


async def test_what_a_ref_binds_stays_and_what_it_carries_does_not(bridge: Bridge) -> None:
    assert await bridge.ref("(y := [].append)")(np.arange(2)).pull() is None
    assert await names(bridge) == ["y"]


async def test_nothing_is_evaluated_if_an_object_in_a_ref_cannot_cross(bridge: Bridge) -> None:
    await bridge.push(ran=[])
    append = bridge.ref("ran").append
    with pytest.raises(EncodeError, match=r"^expressions\[1\] \(argument 0 of ran\.append\)\.x "):
        await bridge.pull(append(1), append(Point(threading.Lock())))
    with pytest.raises(NameNotFound, match="nowhere"):
        await bridge.pull(append(Point(1)), "nowhere")
    with pytest.raises(RemoteError, match="ValueError: no"):
        await bridge.pull(append(1), append(Refuses()))
    assert await bridge.pull("ran") == []
    with pytest.raises(RemoteError, match="ZeroDivisionError"):
        await bridge.pull(append(Point(1)), "1 / 0")
    assert await bridge.pull("len(ran)") == 1
    assert await names(bridge) == ["ran"]


class Refuses:
    def __reduce__(self) -> Any:
        return exec, ("raise ValueError('no')",)


async def test_a_ref_that_carries_objects_is_pulled_while_a_cell_runs(kernel: Bridge) -> None:
    """A loopback serves nothing beside a cell."""
    ref = kernel.ref("len")([np.arange(3), Point(1)])
    assert await kernel.pull(ref, now=True) == 2


async def test_what_a_ref_carries_need_not_be_data(bridge: Bridge) -> None:
    assert await bridge.pull(bridge.ref("len")([Point(1)]), trust="data") == 1


async def test_a_ref_of_another_bridge_to_the_same_kernel_is_its_object(kernel: Bridge) -> None:
    await kernel.push(x=[1, 2], key=1)
    for lane in ("direct", "buffers", "inline"):
        async with Bridge.attach(file_of(kernel), lane=lane) as other:  # type: ignore[arg-type]
            ref = other.ref("x")
            assert await kernel.pull(ref, kernel.ref("x")[other.ref("key")]) == ([1, 2], 2)
            assert await kernel.call(len, ref) == 2
            await kernel.push(y={"a": ref})
            assert await kernel.pull("y['a'] is x")
            assert await anext(kernel.watch(ref)) == [1, 2]
    assert await kernel.pull(ref) == [1, 2]  # its bridge is closed, and the kernel is the same


async def test_a_ref_of_another_real_kernel_is_a_value_error(kernel: Bridge) -> None:
    async with Bridge.launch() as other, Bridge.attach(file_of(other)) as beside:
        with pytest.raises(ValueError, match="<Ref x> belongs to another kernel"):
            await kernel.pull(other.ref("x"))
        before = beside.ref("x")
        await other.restart()
        with pytest.raises(ValueError, match="<Ref x> belongs to another kernel"):
            await other.pull(before)  # as far as the other bridge knows


def test_a_ref_of_a_sync_bridge_changes_the_object_in_a_real_kernel() -> None:
    with SyncBridge.launch() as kernel:
        kernel["table"] = {"a": np.zeros(3)}
        ref = kernel.ref("table")
        ref["a"][1:] = np.array([5.0, 6.0])
        ref["b"] = ref["a"]
        assert (len(ref), "b" in ref) == (2, True)
        assert kernel["table['b'].tolist()"] == [0, 5, 6]
