"""The public names as a type checker sees them.

Rule: this file never runs. ``tests/unit/test_public_typing.py`` has mypy and pyright check it
strictly. A line that they must accept asserts its type. A line that they must refuse carries an
ignore, and an ignore that is not needed is an error.
"""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any, assert_type

import bridgehead
from bridgehead import (
    Bridge,
    Callback,
    CellStream,
    DiscoveredKernel,
    Fleet,
    FleetError,
    Info,
    Iteration,
    Message,
    Messages,
    Names,
    Ref,
    RemoteError,
    RemoteTask,
    Result,
    RunTimeout,
    Stats,
    SyncBridge,
    SyncFleet,
    SyncStream,
    SyncTask,
    Transfer,
    Watch,
    as_completed,
)


class Model:
    def fit(self, rows: list[float]) -> Model:
        return self


def mean(values: Sequence[float], scale: float = 1.0) -> float:
    return scale * sum(values) / len(values)


async def later(value: float) -> float:
    return value


def report(done: int, total: int) -> None: ...


async def constructors(client: object) -> None:
    async with Bridge.launch() as bridge:
        assert_type(bridge, Bridge)
    assert_type(await Bridge.launch("python3", env={"A": "b"}, cwd=Path(), timeout=5), Bridge)
    assert_type(await Bridge.attach(Path("kernel.json"), insecure="empty-key"), Bridge)
    found = await bridgehead.kernels()
    assert_type(found, list[DiscoveredKernel])
    assert_type(await Bridge.attach(found[0]), Bridge)
    assert_type(await Bridge.launch(inherit_env=["A"], limits={"cpu": 5}), Bridge)
    assert_type(await Bridge.attach(lane="direct", pool=0.2, trust="data"), Bridge)
    assert_type(await Bridge.connect("http://host:8888", "token", kernel_id="1"), Bridge)
    hub = Bridge.connect("https://hub/user/me/", headers={"A": "b"}, cookies={"c": "d"})
    assert_type(await hub, Bridge)
    assert_type(await Bridge.connect("https://hub/user/me/", start_server=True), Bridge)
    assert_type(await Bridge.over(client, insecure=["empty-key", "plain-tcp"]), Bridge)
    assert_type(await Bridge.loopback(allow=[Model, "app.Model"]), Bridge)
    await bridge.aclose()

    Bridge.launch(lane="fast")  # type: ignore[arg-type]
    Bridge.attach(trust="all")  # type: ignore[arg-type]
    Bridge.attach(insecure="tcp")  # type: ignore[arg-type]
    Bridge.loopback().push(x=1)  # type: ignore[attr-defined]
    with Bridge.loopback():  # type: ignore[attr-defined]
        pass


async def objects(bridge: Bridge, other: Bridge) -> None:
    assert_type(await bridge.push(x=1, model=Model()), Transfer)
    assert_type(await bridge.push({"now": 3}, now=True, progress=report, max_bytes=10), Transfer)
    assert_type(await bridge.pull("x"), Any)
    assert_type(await bridge.pull("x", bridge.ref("y"), progress=True, trust="data"), Any)
    assert_type(await bridge.handoff("x", to=other), Transfer)
    assert_type(await bridge.names("m*"), Names)
    for name in await bridge.names():
        assert_type(name.name, str)
        assert_type(name.shape, tuple[int, ...] | None)
    names = await bridge.names(preview=True, types=["int"], modules=True, now=True)
    assert_type(names[0].preview, str | None)
    assert_type(await bridge.exists("x"), bool)
    await bridge.delete("x", "y")

    await bridge.push({1: 2})  # type: ignore[dict-item]
    await bridge.pull(1)  # type: ignore[arg-type]
    await bridge.handoff("x")  # type: ignore[call-overload]


async def functions(bridge: Bridge) -> None:
    assert_type(await bridge.call(mean, [1.0, 2.0], scale=2), float)
    assert_type(await bridge.call(mean, bridge.ref("x"), timeout=1), float)
    assert_type(await bridge.call(Model, keep="model", on_output=print), Ref)
    assert_type(await bridge.call(Model, keep=True), Ref)
    assert_type(await bridge.call(Model, keep=False), Model)
    assert_type(await bridge.call(mean, [1.0], namespace=True, on_output=print), float)
    assert_type(await bridge.call(later, 1.0, on_output=print), float)
    assert_type(await bridge.submit(later, 1.0, on_output=print), Any)
    task = bridge.submit(mean, [1.0], scale=2, namespace=True, keep=True)
    assert_type(task, RemoteTask[Any])
    assert_type(task.result(), Any)
    assert_type(task.exception(), BaseException | None)
    assert_type((task.done(), task.cancelled(), task.cancel()), tuple[bool, bool, bool])
    ref = bridge.ref("model")
    assert_type(ref, Ref)
    async with ref as kept:
        assert_type(kept, Ref)
    bridge.submit(mean, [1.0], namespace="x")  # type: ignore[arg-type]
    bridge.submit(mean, [1.0], keep=1.5)  # type: ignore[arg-type]
    assert_type(ref.fit([1.0])["a", 1:2], Ref)
    assert_type(ref.fit(Model(), ref), Ref)
    assert_type(await ref.pull(), Any)


async def cells(bridge: Bridge) -> None:
    result = await bridge.run("x = 1", on_output=print, timeout=1, max_output=100)
    result = await bridge.run("x = y", push={"y": 1}, pull=["x", bridge.ref("y")])
    result = await bridge.run("input()", on_input=lambda prompt, password: prompt)
    assert_type(result.values, Mapping[str, Any])
    assert_type(result.dropped, int)
    assert_type(result, Result)
    assert_type(result.stdout, str)
    assert_type(result.execution_count, int | None)
    try:
        await bridge.run("1 / 0")
    except RemoteError as error:
        assert_type(error.ename, str)
        assert_type(error.traceback, list[str])
    try:
        await bridge.run("1", timeout=1, on_timeout="interrupt", store_history=False)
    except RunTimeout as late:
        assert_type(late, RunTimeout)
    async with bridge.stream("x", max_output=10) as outputs:
        assert_type(outputs, CellStream)
        async for message in outputs:
            assert_type(message, Message)
    assert_type(outputs.result, Result)
    await bridge.interrupt()

    await bridge.run("1", pull="x", on_timeout="kill")  # type: ignore[arg-type]
    await bridge.run("1", push=["x"])  # type: ignore[arg-type]
    await bridge.restart(timeout=10)
    assert_type(bridge.state, str)
    assert_type(bridge.info, Info)
    assert_type(bridge.stats, Stats)
    assert_type(bridge.info.python, tuple[int, ...])


async def streams(bridge: Bridge) -> None:
    items = bridge.iterate(range, 3)
    assert_type(items, Iteration)
    assert_type(bridge.iterate("range(3)"), Iteration)
    async with bridge.iterate(bridge.ref("x")) as entered:
        assert_type(entered, Iteration)
        async for item in entered:
            assert_type(item, Any)
    assert_type(await items.take(), list[Any])
    await items.aclose()
    bridge.iterate(3)  # type: ignore[arg-type]
    watch = bridge.watch("history[-1]", max_bytes=1000)
    assert_type(watch, Watch[Any])
    values: AsyncIterator[Any] = watch
    async for value in values:
        assert_type(value, Any)
    await watch.aclose()
    async with bridge.watch_names("x*") as followed:
        assert_type(await anext(followed), Names)
    messages = bridge.messages()
    assert_type(messages, Messages)
    async for message in messages:
        assert_type(message, Message)


async def calls_back(bridge: Bridge) -> None:
    callback = bridge.callback(report, maxsize=10, when_full="wait")
    assert_type(callback, Callback)
    assert_type(bridge.callback(later), Callback)
    assert_type((callback.failed, callback.dropped), tuple[int, int])
    with bridge.callback(print) as entered:
        assert_type(entered, Callback)
    callback.close()
    bridge.callback(print, when_full="block")  # type: ignore[arg-type]


async def fleet(client: object, bridge: Bridge) -> None:
    async with Fleet.launch(4) as many, Fleet.over(client) as engines:
        assert_type(many, Fleet)
        assert_type(await many.push(x=1), list[Transfer])
        assert_type(await many.pull("x"), list[Any])
        assert_type(await many.call(mean, [1.0]), list[float])
        assert_type(await engines.run("x"), list[Result])
        assert_type(many[0], Bridge)
        assert_type(many[1:], Fleet)
        assert_type(await many[1:].push(x=1), list[Transfer])
        assert_type(await many.push(x=1, return_exceptions=True), list[Transfer | Exception])
        assert_type(await many.run("x", return_exceptions=True), list[Result | Exception])
        assert_type(await many.call(mean, [1.0], keep="x"), list[Ref])
        assert_type(await many.call(mean, [1.0], keep=True), list[Ref])
        assert_type(await many.exists("x"), list[bool])
        assert_type(await many.names(), list[Names])
        assert_type(await bridge.handoff("x", to=many), list[Transfer])
        assert_type(await bridge.handoff("x", to=many[0]), Transfer)
        async with many.map(mean, [[1.0], [2.0]]) as means:
            assert_type(await anext(means), float)
        async with many.watch("x") as watch:
            assert_type(await anext(watch), tuple[int, Any])
        tasks = [many.submit(mean, [1.0]), many.submit(mean, [2.0])]
        async for task in as_completed(tasks):
            assert_type(task.result(), float)
        with many.executor() as executor:
            assert_type(executor.submit(mean, [1.0]).result(), float)
    try:
        await many.pull("x")
    except FleetError as error:
        assert_type(error.results, dict[int, Any])
        assert_type(error.errors, dict[int, Exception])
    bridges: Sequence[Bridge] = Fleet([bridge])
    assert_type(len(bridges), int)


def blocking_fleet(client: object) -> None:
    with SyncFleet.launch(4) as kernels, SyncFleet.over(client):
        assert_type(kernels, SyncFleet)
        assert_type(kernels[0], SyncBridge)
        assert_type(kernels[1:], SyncFleet)
        assert_type(kernels.push(x=1), list[Transfer])
        assert_type(kernels.exists("x"), list[bool])
        with kernels.map(mean, [[1.0]]) as means:
            for value in means:
                assert_type(value, float)
        assert_type(kernels[0].handoff("x", to=kernels), list[Transfer])


def blocking() -> None:
    with SyncBridge.attach() as kernel:
        assert_type(kernel, SyncBridge)
        kernel["x"] = 1
        assert_type(kernel["x"], Any)
        assert_type(kernel.push(y=2), Transfer)
        assert_type(kernel.call(mean, [1.0]), float)
        assert_type(kernel.call(Model, keep="model"), Ref)
        assert_type(kernel.call(Model, keep=True), Ref)
        task = kernel.submit(mean, [1.0], namespace=True, keep="mean")
        assert_type(task, SyncTask[Any])
        assert_type(task.result(timeout=1), Any)
        assert_type(task.exception(1), BaseException | None)
        with kernel.iterate(range, 3) as items:
            for item in items:
                assert_type(item, Any)
        assert_type(kernel.callback(report, maxsize=10), Callback)
        ref = kernel.ref("x")
        with ref as kept:
            assert_type(kept, Ref)
        ref["a"], ref.b = 1, Model()
        assert_type(len(ref), int)
        assert_type(3 in ref, bool)
        assert_type(kernel.run("x").stdout, str)
        values: Iterator[Any] = kernel.watch("x")
        assert_type(next(values), Any)
        with kernel.watch_names() as names_now, kernel.messages() as messages:
            assert_type(next(names_now), Names)
            assert_type(next(messages), Message)
        names_now.close()
        assert_type(kernel.stream("x"), SyncStream)
        assert_type(SyncBridge.kernels(), list[DiscoveredKernel])
        names: MutableMapping[str, Any] = kernel
        assert_type(list(names), list[str])


def version() -> None:
    assert_type(bridgehead.__version__, str)
