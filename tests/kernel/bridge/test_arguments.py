"""Bad input gets a clear error, loses nothing, and the next call works.

Each case runs without a kernel and on a real one, over both lanes.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import AsyncIterator
from typing import Any

import cloudpickle
import numpy as np
import pandas as pd
import pytest

from bridgehead import Bridge, BridgeClosed, EncodeError, NameNotFound, RemoteError, SyncBridge

# Test modules aren't importable in a kernel; what they define is shipped like a script's own.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture(autouse=True)
async def nothing_is_lost(bridge: Bridge) -> AsyncIterator[None]:
    """Whatever a test does wrong, the namespace is as before and the bridge goes on."""
    await bridge.push(precious=[1, 2, 3])
    yield
    assert [name.name for name in await bridge.names()] == ["precious"]
    assert await bridge.pull("precious") == [1, 2, 3]
    assert bridge._transport.dispatcher.in_flight == 0


@pytest.mark.parametrize("name", ["not a name", "1st", "", "a.b", "a-b", "x;y", 5])
async def test_a_name_that_is_no_identifier(bridge: Bridge, name: Any) -> None:
    with pytest.raises(ValueError, match="no Python identifier"):
        await bridge.push({"fine": 1, name: 2})
    with pytest.raises(ValueError, match="no Python identifier"):
        await bridge.delete(name)
    with pytest.raises(ValueError, match="no Python identifier"):
        await bridge.exists(name)


@pytest.mark.parametrize("name", ["class", "None", "await"])
async def test_a_name_that_is_a_keyword(bridge: Bridge, name: str) -> None:
    with pytest.raises(ValueError, match=f"'{name}' is a Python keyword"):
        await bridge.push({"fine": 1, name: 2})
    with pytest.raises(ValueError, match="keyword"):
        await bridge.call(int, keep=name)


async def test_a_name_is_bound_as_the_parser_would_spell_it(bridge: Bridge) -> None:
    await bridge.push({"ﬁle": 1})  # the ligature, which Python reads as two letters
    assert await bridge.pull("file") == await bridge.pull("ﬁle") == 1
    await bridge.delete("ﬁle")


async def test_a_push_of_nothing(bridge: Bridge) -> None:
    with pytest.raises(ValueError, match=r"nothing to push; say push\(x=1\)"):
        await bridge.push()
    with pytest.raises(ValueError, match="nothing to push"):
        await bridge.push({})


async def test_a_pull_or_delete_of_nothing(bridge: Bridge) -> None:
    with pytest.raises(ValueError, match="nothing to pull"):
        await bridge.pull()
    with pytest.raises(ValueError, match="nothing to delete"):
        await bridge.delete()
    with pytest.raises(ValueError, match="no expression"):
        await bridge.pull("  ")
    with pytest.raises(TypeError, match="a string or a ref, not int"):
        await bridge.pull(5)  # type: ignore[arg-type]


async def test_an_expression_that_raises(bridge: Bridge) -> None:
    with pytest.raises(RemoteError, match="ZeroDivisionError: division by zero") as caught:
        await bridge.pull("1/0")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert not any("_bridgehead" in line for line in caught.value.traceback)
    with pytest.raises(RemoteError, match="ZeroDivisionError"):
        await bridge.pull("precious", "1/0")


async def test_a_name_that_is_not_there(bridge: Bridge) -> None:
    with pytest.raises(NameNotFound, match="no 'precios' in the kernel.*mean 'precious'") as caught:
        await bridge.pull("precios")
    assert caught.value.names == ("precios",)
    assert isinstance(caught.value, KeyError)
    with pytest.raises(NameNotFound, match="'no_such'"):
        await bridge.delete("precious", "no_such")
    with pytest.raises(RemoteError, match="NameError"):
        await bridge.pull("no_such + 1")


@pytest.mark.parametrize("expression", ["x y", "x =", "x = 1", "import os", "(", "\x00"])
async def test_a_syntax_error(bridge: Bridge, expression: str) -> None:
    with pytest.raises(RemoteError) as caught:
        await bridge.pull(expression)
    assert caught.value.ename in ("SyntaxError", "ValueError")


async def test_a_cell_with_a_syntax_error(bridge: Bridge) -> None:
    with pytest.raises(RemoteError, match="SyntaxError"):
        await bridge.run("x y z")
    with pytest.raises(TypeError, match="text of a cell, not int"):
        await bridge.run(5)  # type: ignore[arg-type]


class Holder:
    def __init__(self, lock: Any) -> None:
        self.name, self.lock = "holder", lock


def culprits() -> dict[str, tuple[Any, str]]:
    lock = threading.Lock()
    frame = pd.DataFrame({"a": [1]})
    frame.attrs["lock"] = lock

    def closure() -> Any:
        return lock

    return {
        "dict": ({"fine": 1, "lock": lock}, "config['lock']"),
        "nested": ({"a": [0, {"b": (1, lock)}]}, "config['a'][1]['b'][1]"),
        "attribute": (Holder(lock), "config.lock"),
        "list-of-objects": ([Holder(1), Holder(lock)], "config[1].lock"),
        "dataframe": (frame, "config.attrs['lock']"),
        "closure": (closure, "config (closure: lock)"),
        "object-array": (np.array([1, lock], dtype=object), "config"),
        "generator": ({"g": (i for i in [1])}, "config['g']"),
        "itself": (lock, "config"),
    }


@pytest.mark.parametrize("kind", culprits())
async def test_an_unpicklable_object_is_told_with_the_path_to_it(bridge: Bridge, kind: str) -> None:
    config, path = culprits()[kind]
    with pytest.raises(EncodeError) as caught:
        await bridge.push(fine=1, config=config)
    assert caught.value.path == path
    assert path in str(caught.value)
    with pytest.raises(EncodeError, match="args"):
        await bridge.call(lambda x: x, threading.Lock())


async def test_a_value_there_that_cannot_be_pickled(bridge: Bridge) -> None:
    with pytest.raises(
        RemoteError, match=r"\{'a': __import__\('_thread'\)\.allocate_lock\(\)\}"
    ) as e:
        await bridge.pull("{'a': __import__('_thread').allocate_lock()}")
    assert "['a'] cannot be pickled" in str(e.value)


async def test_arguments_of_the_wrong_kind(bridge: Bridge) -> None:
    async def coroutine() -> None: ...

    wrong: list[tuple[Any, str]] = [
        (lambda: bridge.call(5), "takes a plain function, not a int"),  # type: ignore[arg-type]
        (lambda: bridge.call(coroutine), "not a coroutine function; for await there is run"),
        (lambda: bridge.push([1, 2]), r"not list; say push\(x=…\)"),  # type: ignore[arg-type]
        (lambda: bridge.push(x=1, by_value=sys), r"takes a list of modules, as in by_value=\["),
        (lambda: bridge.push(x=1, by_value=["sys"]), "takes a list of modules"),
        (lambda: bridge.push(x=1, timeout="3"), "a number of seconds or None, not '3'"),
        (lambda: bridge.push(x=1, now=[2]), r"not list; .* push\(\{'now': …\}\)"),  # type: ignore[arg-type]
        (lambda: bridge.push(x=1, progress=2), "in all, not int"),
        (lambda: bridge.names(None), "a pattern is a string, not NoneType"),
    ]
    for call, message in wrong:
        with pytest.raises(TypeError, match=message):
            await call()
    with pytest.raises(ValueError, match=r"the latter also for a name that is push's own keyword"):
        await bridge.push(timeout=3)
    with pytest.raises(ValueError, match="'pickle' or 'data', not None"):
        await bridge.push(x=1, trust=None)  # type: ignore[arg-type]
    with pytest.raises(SyntaxError):
        bridge.ref("x =")
    with pytest.raises(TypeError, match="literals and refs, not object"):
        bridge.ref("precious")[object()]
    with pytest.raises(TypeError, match="belongs to another bridge"):
        async with Bridge.loopback() as other:
            try:
                await other.call(len, bridge.ref("precious"))
            except EncodeError as error:
                raise error.__cause__ or error


async def test_a_bridge_inside_what_is_pushed(bridge: Bridge) -> None:
    with pytest.raises(EncodeError, match="a bridge stays in its process") as caught:
        await bridge.push(config={"bridge": bridge})
    assert caught.value.path == "config['bridge']"


async def test_a_missing_name_means_that_nothing_was_evaluated(bridge: Bridge) -> None:
    with pytest.raises(NameNotFound, match="'nope'"):
        await bridge.pull("precious.append(4)", "nope")


async def test_a_bridge_that_was_not_awaited(bridge: Bridge) -> None:
    opening: Any = Bridge.loopback()
    assert repr(opening) == "<Bridge, not open yet: await it, or enter it with async with>"
    with pytest.raises(AttributeError, match="not open yet: await it"):
        opening.push(x=1)
    with pytest.raises(TypeError, match="not open yet.*SyncBridge"):
        with opening:
            pass
    with pytest.raises(TypeError, match="seconds or None, not '5'"):
        Bridge.launch(timeout="5")  # type: ignore[arg-type]


async def test_a_deadline_that_passes(bridge: Bridge) -> None:
    await bridge.run("import time")
    with pytest.raises(TimeoutError, match=r"pull timed out after 0\.05 s: the kernel is"):
        await bridge.pull("time.sleep(0.5)", timeout=0.05)
    await bridge.run("del time")


async def test_a_bridge_used_from_another_event_loop(bridge: Bridge) -> None:
    def elsewhere() -> None:
        with pytest.raises(RuntimeError, match="another event loop.*SyncBridge"):
            asyncio.run(bridge.push(x=1))  # type: ignore[arg-type]

    await asyncio.to_thread(elsewhere)


async def test_a_closed_bridge(bridge: Bridge) -> None:
    async with Bridge.loopback() as other:
        pending = asyncio.ensure_future(other.pull("__import__('time').sleep(0.3)"))
        await asyncio.sleep(0.05)
    with pytest.raises(BridgeClosed, match="was closed"):
        await pending
    assert other.state == "closed"
    for call in (
        lambda: other.push(x=1),
        lambda: other.pull("x"),
        lambda: other.run("1"),
        lambda: other.call(int),
        lambda: other.names(),
        lambda: other.exists("x"),
        lambda: other.delete("x"),
        lambda: other.interrupt(),
        lambda: other.restart(),
    ):
        with pytest.raises(BridgeClosed):
            await call()
    with pytest.raises(BridgeClosed):
        other.messages()
    await other.aclose()


async def test_a_closed_blocking_bridge(bridge: Bridge) -> None:
    blocking = SyncBridge.loopback()
    blocking.close()
    blocking.close()
    with pytest.raises(BridgeClosed):
        blocking["x"] = 1
    with pytest.raises(BridgeClosed):
        blocking.pull("x")


async def test_a_lane_that_is_none(bridge: Bridge) -> None:
    with pytest.raises(ValueError, match="'auto', 'direct', 'buffers', 'inline', not 'pigeon'"):
        Bridge.loopback(lane="pigeon")  # type: ignore[arg-type]
