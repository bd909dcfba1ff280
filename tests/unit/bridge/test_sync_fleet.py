"""Blocking fleets of loopbacks: operations, results as callers use them, closing.

Rule: no kernel. ``kernel/bridge/test_fleet_map.py`` has a blocking fleet of real ones.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from bridgehead import Bridge, Fleet, FleetError, Ref, SyncBridge, SyncFleet


@pytest.fixture
def kernels() -> Iterator[SyncFleet]:
    with SyncBridge.loopback() as kernel, SyncBridge.loopback() as target:
        with SyncFleet([kernel, target]) as kernels:
            yield kernels


def test_every_operation_of_fleet_exists() -> None:
    public = {name for name in dir(Fleet) if not name.startswith("_")}
    assert public - {"aclose"} <= set(dir(SyncFleet))
    for name in public - {"aclose", "count", "index", "launch", "over"}:
        method = getattr(SyncFleet, name)
        theirs = inspect.signature(getattr(Fleet, name))
        assert inspect.signature(method).parameters.keys() == theirs.parameters.keys(), name
        assert not inspect.iscoroutinefunction(method)
        text = inspect.getdoc(method) or ""
        shown = [line for line in text.splitlines() if line.lstrip().startswith((">>>", "..."))]
        assert shown
        assert not any(word in line for line in shown for word in ("await", "async ", "fleet."))


def test_operations_block_and_give_lists(kernels: SyncFleet) -> None:
    assert len(kernels.push(x=1)) == 2
    assert kernels.pull("x + 1") == [2, 2]
    assert kernels.call(len, "abc") == [3, 3]
    assert [result.data["text/plain"] for result in kernels.run("x")] == ["1", "1"]
    kernels.scatter("rows", [1, 2, 3])
    assert kernels.gather("rows") == [1, 2, 3]
    kernels.delete("rows")
    assert kernels.exists("rows") == [False, False]
    assert [names[0].name for names in kernels.names()] == ["x", "x"]
    assert kernels.submit(abs, -1).result(timeout=60) == 1


def test_refs_belong_to_the_blocking_bridges(kernels: SyncFleet) -> None:
    refs = kernels.call(range, 3, keep="rows")
    assert [ref.pull() for ref in refs] == [range(3)] * 2
    ref = kernels.submit(range, 2, keep="two").result(timeout=60)
    assert type(ref) is Ref
    assert ref.pull() == range(2)


def test_an_error_has_the_results(kernels: SyncFleet) -> None:
    kernels[1]["x"] = 1
    with pytest.raises(FleetError) as caught:
        kernels.pull("x")
    assert caught.value.results == {1: 1}
    assert kernels.pull("x", return_exceptions=True)[1] == 1


def test_map_and_watch_are_iterators(kernels: SyncFleet) -> None:
    assert list(kernels.map(abs, range(-3, 0))) == [3, 2, 1]
    kernels.push(x=1)
    watch = kernels.watch("x")
    assert sorted([next(watch), next(watch)]) == [(0, 1), (1, 1)]


def test_an_iterable_of_a_map_may_not_use_a_blocking_bridge(kernels: SyncFleet) -> None:
    def items() -> Iterator[int]:
        yield kernels[0].pull("1")

    with pytest.raises(RuntimeError, match=r"not in an iterable of map\(\)"):
        list(kernels.map(abs, items()))
    assert list(kernels.map(abs, list(kernels[0].iterate("range(3)")))) == [0, 1, 2]


def test_callbacks_run_in_the_calling_thread(kernels: SyncFleet) -> None:
    threads: set[int] = set()
    seen: list[Any] = []

    def note(message: Any, index: int) -> None:
        threads.add(threading.get_ident())
        seen.append(index)

    kernels.run("print('cell')", on_output=note)
    kernels.call(print, "call", on_output=note)
    kernels.push(x=bytes(1000), progress=lambda done, total: note(None, -1))
    kernels.scatter("y", [1, 2], progress=lambda done, total: note(None, -1))
    assert threads == {threading.get_ident()}
    assert set(seen) == {0, 1, -1}


def test_an_index_is_a_sync_bridge_and_a_slice_a_sync_fleet(kernels: SyncFleet) -> None:
    assert type(kernels[0]) is SyncBridge
    assert kernels[0] is next(iter(kernels))
    part = kernels[1:]
    assert (type(part), len(part)) == (SyncFleet, 1)
    part.push(x=1)
    assert kernels.exists("x") == [False, True]
    kernels[1].handoff("x", to=kernels[:1])
    assert kernels.pull("x") == [1, 1]


def test_bridges_that_were_passed_in_stay_open(kernels: SyncFleet) -> None:
    part = SyncFleet(list(kernels))
    part.close()
    part.close()
    assert [kernel.state for kernel in kernels] == ["idle", "idle"]
    assert repr(kernels).startswith("<SyncFleet of 2: ")
    assert "SyncFleet" in kernels._repr_html_()


async def test_wrong_bridges_are_refused(kernels: SyncFleet) -> None:
    with pytest.raises(ValueError, match="at least one bridge"):
        SyncFleet([])
    with pytest.raises(ValueError, match="each bridge once"):
        SyncFleet([kernels[0], kernels[0]])
    async with Bridge.loopback() as bridge:
        with pytest.raises(TypeError, match="takes SyncBridges, not Bridge"):
            SyncFleet([bridge])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="a SyncBridge or a SyncFleet, not int"):
        kernels[0].handoff("x", to=1)  # type: ignore[call-overload]
