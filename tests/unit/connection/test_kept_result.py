"""Results that stay in the kernel under no name, on a loopback."""

from __future__ import annotations

import asyncio
import functools
import gc
import operator
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from bridgehead import (
    Bridge,
    EncodeError,
    KernelRestarted,
    NameNotFound,
    Ref,
    RemoteError,
    SyncBridge,
)
from bridgehead._connection import resources as _resources
from support.kit import kept_and_late
from unit.connection.test_tasks import later, nothing_is_left, remote_of


@pytest.fixture
async def loopback() -> AsyncIterator[Bridge]:
    async with Bridge.loopback() as bridge:
        yield bridge
        gc.collect()
        await nothing_is_left(bridge)


def kept_by(bridge: Bridge) -> list[Any]:
    return [*remote_of(bridge).operations.values.kept.values()]


async def make(bridge: Bridge) -> Ref:
    return await bridge.call(sorted, [3, 1, 2], keep=True)


async def test_a_result_is_kept_under_no_name(loopback: Bridge) -> None:
    ref = await make(loopback)
    assert type(ref) is Ref
    assert kept_by(loopback) == [[1, 2, 3]]
    assert loopback.stats.refs == 1
    assert await ref.pull() == [1, 2, 3]
    assert await loopback.names() == await loopback.names("_*") == []
    del ref
    await nothing_is_left(loopback)
    assert loopback.stats.refs == 0


async def test_a_kept_result_is_given_wherever_a_ref_is(loopback: Bridge) -> None:
    ref = await make(loopback)
    await loopback.push(x=10, rows=ref, deep={"a": [ref[0]]})
    assert await loopback.pull("rows", "deep") == ([1, 2, 3], {"a": [1]})
    assert await loopback.call(operator.is_, ref, loopback.ref("rows"))
    assert await loopback.call(len, ref) == await loopback.submit(len, ref) == 3
    assert await loopback.call(later, ref) == [1, 2, 3]
    assert await loopback.pull(ref[1], "x", loopback.ref("len")([ref, len])) == (2, 10, 2)
    again = loopback.ref(ref)  # type: ignore[arg-type]
    assert await again[1:].pull() == [2, 3]
    assert await loopback.pull(f"[row for row in {ref}]") == [1, 2, 3]
    assert [item async for item in ref] == [1, 2, 3]
    assert await anext(loopback.watch(ref, "x")) == ([1, 2, 3], 10)
    second = await loopback.call(operator.getitem, ref, slice(1, None), keep=True)
    assert await loopback.call(operator.add, ref, second) == [1, 2, 3, 2, 3]
    assert len(kept_by(loopback)) == 2


async def test_a_kept_result_has_a_short_repr(loopback: Bridge) -> None:
    ref = await make(loopback)
    short = f"kept_{str(ref).removeprefix('_bridgehead_kept_')[:4]}"
    assert repr(ref) == f"<Ref {short}>"
    assert repr(loopback.ref("len")(ref[0])) == f"<Ref len({short}[0])>"
    assert f"{short}.x" in ref.x._repr_html_()


DERIVED: list[Callable[[Bridge, Ref], Any]] = [
    lambda bridge, ref: ref[0],
    lambda bridge, ref: ref.index(2),
    lambda bridge, ref: bridge.ref("max")(1, key=ref),
    lambda bridge, ref: bridge.ref("x")[ref:],
    lambda bridge, ref: bridge.ref(ref),  # type: ignore[arg-type]
    lambda bridge, ref: bridge.watch(ref),
    lambda bridge, ref: bridge.iterate(ref),
    lambda bridge, ref: aiter(ref),
]


@pytest.mark.parametrize("derive", DERIVED)
async def test_what_is_made_from_a_ref_keeps_its_object(loopback: Bridge, derive: Any) -> None:
    ref = await make(loopback)
    derived = derive(loopback, ref)
    del ref
    await loopback.push(x=1)
    await loopback.push(x=2)
    assert kept_by(loopback) == [[1, 2, 3]]
    assert repr(derived)
    del derived
    gc.collect()
    await nothing_is_left(loopback)


async def test_a_watch_and_an_iteration_use_what_only_they_keep(loopback: Bridge) -> None:
    watch = loopback.watch(await make(loopback))
    assert await anext(watch) == [1, 2, 3]
    await loopback.run("y = 1")
    assert [item async for item in await make(loopback)] == [1, 2, 3]
    pulling = asyncio.ensure_future((await make(loopback)).pull())
    assert await pulling == [1, 2, 3]
    assert await loopback.call(len, await make(loopback)) == 3
    assert await loopback.submit(later, (await make(loopback))[0]) == 1


def iterates(bridge: Bridge, ref: Ref) -> Any:
    return anext(aiter(ref))


USES: list[Callable[[Bridge, Ref], Any]] = [
    lambda bridge, ref: bridge.pull("1", ref),
    lambda bridge, ref: bridge.pull(bridge.ref("[].append")(ref)),
    lambda bridge, ref: bridge.call(len, ref),
    lambda bridge, ref: bridge.submit(len, [ref]),
    lambda bridge, ref: bridge.push(x={"a": ref}),
    lambda bridge, ref: anext(bridge.watch(ref)),
    lambda bridge, ref: anext(bridge.iterate(ref)),
    iterates,
    lambda bridge, ref: bridge.delete("seen", ref),
]


async def test_leaving_the_context_of_a_ref_frees_its_object(loopback: Bridge) -> None:
    await loopback.push(seen=1)
    async with await make(loopback) as ref:
        again = loopback.ref(ref)  # type: ignore[arg-type]
        assert await loopback.pull(ref[0], again[1]) == (1, 2)
    assert loopback.stats.refs == 0
    await nothing_is_left(loopback)
    for gone in ref, again:
        for use in USES:
            with pytest.raises(NameNotFound, match="was freed; nothing was sent"):
                await use(loopback, gone)
    with pytest.raises(ZeroDivisionError):
        async with await make(loopback):
            _ = 1 / 0
    assert [name.name for name in await loopback.names()] == ["seen"]


async def test_only_a_ref_of_a_kept_result_has_a_context(loopback: Bridge) -> None:
    await loopback.push(x=[1])
    kept = await make(loopback)
    named = await loopback.call(list, (1,), keep="y")
    for ref in (loopback.ref("x"), named, kept[0]):
        with pytest.raises(TypeError, match="holds no object"):
            async with ref:
                raise AssertionError
    with pytest.raises(TypeError, match="use async with"), kept:
        raise AssertionError
    assert await kept.pull() == [1, 2, 3]


async def test_delete_frees_kept_results_and_names_or_none(loopback: Bridge) -> None:
    await loopback.push(x=1, y=2)
    ref, other = await make(loopback), await make(loopback)
    with pytest.raises(NameNotFound, match="'nowhere'"):
        await loopback.delete("x", ref, "nowhere")
    with pytest.raises(ValueError, match="is a part of an object"):
        await loopback.delete("x", ref[0])
    assert await loopback.pull("x", ref, other) == (1, [1, 2, 3], [1, 2, 3])
    await loopback.delete("x", ref, loopback.ref("y"), ref)
    assert await loopback.names() == []
    assert kept_by(loopback) == [[1, 2, 3]]
    assert loopback.stats.refs == 1
    with pytest.raises(NameNotFound, match="was freed"):
        await loopback.delete(ref)
    assert await other.pull() == [1, 2, 3]


@pytest.mark.parametrize("use", USES)
async def test_an_object_that_the_kernel_does_not_have_is_reported(
    loopback: Bridge, use: Any
) -> None:
    """As after another bridge has deleted it, or when the lease has ended."""
    ref = await make(loopback)
    await loopback.push(seen=[])
    await loopback.delete(str(ref))
    with pytest.raises(NameNotFound, match="not in the kernel any more"):
        await use(loopback, ref)
    assert await loopback.pull("seen") == []


@pytest.mark.parametrize("use", USES)
async def test_a_ref_from_before_a_restart_is_never_another_object(
    loopback: Bridge, use: Any
) -> None:
    ref = await make(loopback)
    await loopback.restart()
    assert loopback.stats.refs == 0
    await loopback.push(seen=[])
    other = await make(loopback)
    with pytest.raises(NameNotFound, match="not in the kernel any more"):
        await use(loopback, ref)
    assert await loopback.pull("seen", other) == ([], [1, 2, 3])


async def test_a_call_that_the_restart_interrupts_keeps_nothing(loopback: Bridge) -> None:
    ref, task = await make(loopback), loopback.submit(later, 5, 1000, keep=True)
    await loopback.push(x=1)
    await loopback.restart()
    with pytest.raises(KernelRestarted):
        await task
    del ref, task
    assert await loopback.call(abs, -1) == 1


async def test_an_async_function_can_keep_its_value_under_no_name(loopback: Bridge) -> None:
    ref = await loopback.call(later, [1, 2], keep=True)
    task = loopback.submit(later, ref, 0.01, keep=True)
    same = await task
    assert await loopback.call(operator.is_, ref, same)
    assert (await task) is same
    assert kept_and_late(loopback) == (0, 0, 0, 2, 0, 0)
    assert (len(remote_of(loopback).resources.owners), await loopback.names()) == (1, [])


async def test_the_result_of_a_task_that_is_not_kept_is_freed(loopback: Bridge) -> None:
    loopback.submit(later, [1], keep=True)
    loopback.submit(sorted, [1], keep=True)
    await loopback.push(x=1)
    await nothing_is_left(loopback)


async def rest(seconds: float) -> None:
    await asyncio.sleep(seconds)


@pytest.mark.parametrize("function", [time.sleep, rest])
@pytest.mark.parametrize("how", ["cancel", "timeout"])
async def test_a_call_that_is_given_up_keeps_nothing(
    loopback: Bridge, function: Any, how: str
) -> None:
    if how == "timeout":
        with pytest.raises(TimeoutError):
            await loopback.call(function, 0.2, keep=True, timeout=0.05)
    else:
        call = asyncio.ensure_future(loopback.call(function, 0.2, keep=True))
        await asyncio.sleep(0.05)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    assert loopback.stats.refs == 0
    await loopback.call(abs, 1)
    await nothing_is_left(loopback)


async def test_a_call_that_fails_keeps_nothing(loopback: Bridge) -> None:
    with pytest.raises(RemoteError, match="ZeroDivisionError"):
        await loopback.call(divmod, 1, 0, keep=True)
    with pytest.raises(EncodeError):
        await loopback.call(len, threading.Lock(), keep=True)
    with pytest.raises(RemoteError, match="TypeError"):
        await loopback.call(later, keep=True)
    task = loopback.submit(sorted, [1], keep=True)
    assert task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert loopback.stats.refs == 0


async def test_keep_is_checked(loopback: Bridge) -> None:
    def fetch(name: str, keep: bool = False) -> tuple[str, bool]:
        return name, keep

    with pytest.raises(TypeError, match=r"functools\.partial\(fetch, keep=…\)"):
        await loopback.call(fetch, "a", keep=True)
    with pytest.raises(TypeError, match=r"functools\.partial\(fetch, keep=…\)"):
        loopback.submit(fetch, "a", keep=True)
    bound = functools.partial(fetch, keep=True)
    assert await (await loopback.call(bound, "a", keep=True)).pull() == ("a", True)
    assert await loopback.call(abs, -1, keep=False) == 1
    assert await loopback.submit(abs, -1, keep=None) == 1
    wrong: Any = 1
    for name in (wrong, "not a name", ""):
        with pytest.raises(ValueError, match="not a Python identifier"):
            await loopback.call(abs, 1, keep=name)


async def test_a_kept_result_need_not_be_picklable(loopback: Bridge) -> None:
    lock = await loopback.call(threading.Lock, keep=True)
    assert await lock.acquire().pull() is True
    assert await lock.locked().pull() is True
    with pytest.raises(RemoteError, match="cannot be pickled"):
        await lock.pull()


async def test_a_result_is_kept_where_only_data_is_trusted() -> None:
    async with Bridge.loopback(trust="data") as bridge:
        await bridge.run("class Own: x = 1")
        for ref in (
            await bridge.call(bridge.ref("Own"), keep=True),
            await bridge.call(later, bridge.ref("Own()"), keep=True),
        ):
            assert await ref.x.pull() == 1
            await bridge.push(y=ref)
        del ref
        await bridge.delete("y")
        await nothing_is_left(bridge)


async def test_a_kept_result_of_another_kernel_is_a_value_error(loopback: Bridge) -> None:
    ref = await make(loopback)
    async with Bridge.loopback() as other:
        for use in USES:
            if use is iterates:  # it is its own bridge that iterates
                continue
            with pytest.raises(ValueError, match="belongs to another kernel"):
                await use(other, ref)


async def test_refs_that_are_dropped_together_are_freed_together(
    loopback: Bridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_resources, "MOST_ENDED", 20)
    refs = await asyncio.gather(*(make(loopback) for _ in range(50)))
    assert loopback.stats.refs == 50
    requests, put = [], loopback._transport.dispatcher.put

    async def counted(*args: Any, **options: Any) -> Any:
        requests.append(args)
        return await put(*args, **options)

    loopback._transport.dispatcher.put = counted  # type: ignore[method-assign]
    refs.clear()
    await nothing_is_left(loopback)
    assert len(requests) <= 4
    assert loopback.stats.refs == 0


async def test_a_ref_may_be_dropped_in_any_thread(loopback: Bridge) -> None:
    refs = [await make(loopback) for _ in range(5)]
    await asyncio.to_thread(refs.clear)
    await nothing_is_left(loopback)
    refs.append(await make(loopback))
    refs.append(refs[0]["cycle":])
    refs[0]._objects["cycle"] = refs  # only the collector finds it
    refs = []
    await asyncio.to_thread(gc.collect)
    await nothing_is_left(loopback)


def test_a_ref_may_be_dropped_when_its_loop_is_closed() -> None:
    async def made() -> tuple[Ref, weakref.ref[Any], Any]:
        async with Bridge.loopback() as bridge:
            ref = await make(bridge)
            (kept,) = ref._objects.values()
            return ref, weakref.ref(kept), remote_of(bridge)

    ref, kept, remote = asyncio.run(made())
    assert not remote.resources.known
    assert not remote.operations.values.kept
    del ref
    gc.collect()
    assert kept() is None


async def test_closing_the_bridge_frees_what_it_keeps() -> None:
    async with Bridge.loopback() as bridge:
        refs = [await make(bridge), await bridge.call(later, 1, keep=True)]
        dropped = [await make(bridge) for _ in range(3)]
        remote = remote_of(bridge)
        dropped.clear()  # and closed before the event loop has a turn
    assert not remote.resources.known
    assert not remote.operations.values.kept
    with pytest.raises(Exception, match="closed"):
        await refs[0].pull()
    async with refs[0]:  # frees nothing any more
        pass


def test_a_sync_bridge_keeps_results_under_no_name() -> None:
    with SyncBridge.loopback() as kernel:
        with kernel.call(sorted, [3, 1, 2], keep=True) as ref:
            assert (ref.pull(), len(ref), 2 in ref, list(ref)) == ([1, 2, 3], 3, True, [1, 2, 3])
            ref[0] = 7
            assert kernel.pull(ref[0]) == 7
            assert kernel.stats.refs == 1
        assert kernel.stats.refs == 0
        with pytest.raises(NameNotFound, match="was freed"):
            ref.pull()
        task = kernel.submit(later, {"a": 1}, keep=True)
        second = task.result(timeout=60)
        assert second["a"].pull() == 1
        kernel.delete(second)
        with pytest.raises(NameNotFound, match="was freed"):
            second.pull()
        third = kernel.call(list, "ab", keep=True)
        with pytest.raises(TypeError, match="use a plain with"):
            asyncio.run(third.__aenter__())
        assert list(kernel) == []
        del task, second, third
        gc.collect()
        assert kernel.call(abs, -1) == 1
        assert kernel.stats.refs == 0
