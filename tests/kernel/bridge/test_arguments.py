"""Bad input gives a clear error, changes nothing, and the next call works.

Each case runs on a loopback and on a real kernel, over two lanes.
"""

from __future__ import annotations

import asyncio
import math
import sys
import threading
from collections.abc import AsyncIterator
from typing import Any

import cloudpickle
import numpy as np
import pandas as pd
import pytest

from bridgehead import Bridge, BridgeClosed, EncodeError, NameNotFound, RemoteError, SyncBridge

# A kernel cannot import test modules; their functions and classes are pickled by value.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture(autouse=True)
async def check_unchanged(bridge: Bridge) -> AsyncIterator[None]:
    """Check after each test that the namespace is unchanged and the bridge still works."""
    await bridge.push(precious=[1, 2, 3])
    yield
    assert [name.name for name in await bridge.names()] == ["precious"]
    assert await bridge.pull("precious") == [1, 2, 3]
    assert bridge._transport.dispatcher.in_flight == 0


@pytest.mark.parametrize("name", ["not a name", "1st", "", "a.b", "a-b", "x;y", 5])
async def test_a_name_that_is_not_an_identifier_raises_value_error(
    bridge: Bridge, name: Any
) -> None:
    with pytest.raises(ValueError, match="is not a Python identifier"):
        await bridge.push({"fine": 1, name: 2})
    with pytest.raises(ValueError, match="is not a Python identifier"):
        await bridge.delete(name)
    with pytest.raises(ValueError, match="is not a Python identifier"):
        await bridge.exists(name)


@pytest.mark.parametrize("name", ["class", "None", "await"])
async def test_a_name_that_is_a_keyword_raises_value_error(bridge: Bridge, name: str) -> None:
    with pytest.raises(ValueError, match=f"'{name}' is a Python keyword"):
        await bridge.push({"fine": 1, name: 2})
    with pytest.raises(ValueError, match="keyword"):
        await bridge.call(int, keep=name)


async def test_a_name_is_bound_as_the_parser_spells_it(bridge: Bridge) -> None:
    await bridge.push({"ﬁle": 1})  # the ligature, which Python reads as two letters
    assert await bridge.pull("file") == await bridge.pull("ﬁle") == 1
    await bridge.delete("ﬁle")


async def test_a_push_without_objects_raises_value_error(bridge: Bridge) -> None:
    with pytest.raises(ValueError, match=r"push\(\) needs at least one object, e\.g\. push\(x=1\)"):
        await bridge.push()
    with pytest.raises(ValueError, match="needs at least one object"):
        await bridge.push({})


async def test_a_pull_or_delete_without_names_raises_value_error(bridge: Bridge) -> None:
    with pytest.raises(ValueError, match="needs at least one expression"):
        await bridge.pull()
    with pytest.raises(ValueError, match="needs at least one name"):
        await bridge.delete()
    with pytest.raises(ValueError, match="the expression is empty"):
        await bridge.pull("  ")
    with pytest.raises(TypeError, match="a string or a ref, not int"):
        await bridge.pull(5)  # type: ignore[arg-type]


async def test_an_expression_that_raises_gives_a_remote_error(bridge: Bridge) -> None:
    with pytest.raises(RemoteError, match="ZeroDivisionError: division by zero") as caught:
        await bridge.pull("1/0")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert not any("_bridgehead" in line for line in caught.value.traceback)
    with pytest.raises(RemoteError, match="ZeroDivisionError"):
        await bridge.pull("precious", "1/0")


async def test_an_unknown_name_raises_name_not_found_with_a_suggestion(bridge: Bridge) -> None:
    text = "'precios' is not defined in the kernel.*mean 'precious'"
    with pytest.raises(NameNotFound, match=text) as caught:
        await bridge.pull("precios")
    assert caught.value.names == ("precios",)
    assert isinstance(caught.value, KeyError)
    with pytest.raises(NameNotFound, match="'no_such'"):
        await bridge.delete("precious", "no_such")
    with pytest.raises(RemoteError, match="NameError"):
        await bridge.pull("no_such + 1")


@pytest.mark.parametrize("expression", ["x y", "x =", "x = 1", "import os", "(", "\x00"])
async def test_an_expression_with_a_syntax_error_gives_a_remote_error(
    bridge: Bridge, expression: str
) -> None:
    with pytest.raises(RemoteError) as caught:
        await bridge.pull(expression)
    assert caught.value.ename in ("SyntaxError", "ValueError")


async def test_a_cell_with_a_syntax_error_gives_a_remote_error(bridge: Bridge) -> None:
    with pytest.raises(RemoteError, match="SyntaxError"):
        await bridge.run("x y z")
    with pytest.raises(TypeError, match="code of a cell as a string, not int"):
        await bridge.run(5)  # type: ignore[arg-type]


class Holder:
    def __init__(self, lock: Any) -> None:
        self.name, self.lock = "holder", lock


def unpicklables() -> dict[str, tuple[Any, str]]:
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


@pytest.mark.parametrize("kind", unpicklables())
async def test_an_encode_error_has_the_path_to_the_unpicklable_part(
    bridge: Bridge, kind: str
) -> None:
    config, path = unpicklables()[kind]
    with pytest.raises(EncodeError) as caught:
        await bridge.push(fine=1, config=config)
    assert caught.value.path == path
    assert path in str(caught.value)
    with pytest.raises(EncodeError, match="args"):
        await bridge.call(lambda x: x, threading.Lock())


async def test_a_kernel_value_that_cannot_be_pickled_gives_a_remote_error(bridge: Bridge) -> None:
    with pytest.raises(
        RemoteError, match=r"\{'a': __import__\('_thread'\)\.allocate_lock\(\)\}"
    ) as e:
        await bridge.pull("{'a': __import__('_thread').allocate_lock()}")
    assert "['a'] cannot be pickled" in str(e.value)


async def test_arguments_of_the_wrong_type_raise_type_error(bridge: Bridge) -> None:
    wrong: list[tuple[Any, str]] = [
        (lambda: bridge.call(5), "takes a function, not int"),  # type: ignore[arg-type]
        (lambda: bridge.push([1, 2]), r"not list; use push\(x=…\)"),  # type: ignore[arg-type]
        (lambda: bridge.push(x=1, by_value=sys), r"takes a list of modules, as in by_value=\["),
        (lambda: bridge.push(x=1, by_value=["sys"]), "takes a list of modules"),
        (lambda: bridge.push(x=1, timeout="3"), "a number of seconds or None, not '3'"),
        (lambda: bridge.push(x=1, now=[2]), r"not list; .* push\(\{'now': …\}\)"),  # type: ignore[arg-type]
        (lambda: bridge.push(x=1, progress=2), "bytes in all, not int"),
        (lambda: bridge.names(None), "pattern must be a string, not NoneType"),
        (lambda: bridge.names(preview=1), "preview must be True or False, not int"),
        (lambda: bridge.names(modules="no"), "modules must be True or False, not str"),
        (lambda: bridge.names(now=1), "now must be True or False, not int"),
        (lambda: bridge.pull("1", now=1), "now must be True or False, not int"),
        (lambda: bridge.run("precious.append(4)", on_output=5), "on_output must be callable"),
        (lambda: bridge.run("precious.append(4)", on_input="x"), "on_input must be callable"),
        (lambda: bridge.call(abs, 1, on_output=5), "on_output must be callable, not int"),
    ]
    for call, message in wrong:
        with pytest.raises(TypeError, match=message):
            await call()
    with pytest.raises(
        ValueError, match=r"for a name that is also an option .* use push\(\{'now': 1\}\)"
    ):
        await bridge.push(timeout=3)
    with pytest.raises(ValueError, match="'pickle' or 'data', not None"):
        await bridge.push(x=1, trust=None)  # type: ignore[arg-type]
    with pytest.raises(SyntaxError):
        bridge.ref("x =")
    with pytest.raises(EncodeError, match=r"^the expression \(key of precious\) cannot be pickled"):
        await bridge.ref("precious")[threading.Lock()].pull()
    async with Bridge.loopback() as other:
        with pytest.raises(ValueError, match="belongs to another kernel"):
            await other.call(len, bridge.ref("precious"))


async def test_a_bridge_inside_a_pushed_object_raises_encode_error(bridge: Bridge) -> None:
    with pytest.raises(EncodeError, match="a bridge cannot be pickled") as caught:
        await bridge.push(config={"bridge": bridge})
    assert caught.value.path == "config['bridge']"


async def test_with_an_unknown_name_nothing_is_evaluated(bridge: Bridge) -> None:
    with pytest.raises(NameNotFound, match="'nope'"):
        await bridge.pull("precious.append(4)", "nope")


async def test_a_bridge_that_is_not_open_yet_says_how_to_open_it(bridge: Bridge) -> None:
    opening: Any = Bridge.loopback()
    assert repr(opening) == "<Bridge, not open yet: await it, or enter it with async with>"
    with pytest.raises(AttributeError, match="not open yet: await it"):
        opening.push(x=1)
    with pytest.raises(TypeError, match="not open yet.*SyncBridge"):
        with opening:
            pass
    with pytest.raises(TypeError, match="seconds or None, not '5'"):
        Bridge.launch(timeout="5")  # type: ignore[arg-type]


async def test_a_timeout_raises_timeout_error(bridge: Bridge) -> None:
    await bridge.run("import time")
    with pytest.raises(TimeoutError, match=r"pull timed out after 0\.05 s: the kernel is"):
        await bridge.pull("time.sleep(0.5)", timeout=0.05)
    await bridge.run("del time")


async def test_a_timeout_of_nan_is_a_value_error(bridge: Bridge) -> None:
    for call in (bridge.pull("1", timeout=math.nan), bridge.run("1", timeout=-math.nan)):
        with pytest.raises(ValueError, match="seconds or None, not nan"):
            await call
    with pytest.raises(ValueError, match="seconds or None, not nan"):
        Bridge.launch(timeout=math.nan)
    assert await bridge.pull("1", timeout=math.inf) == 1


async def test_a_bridge_used_in_another_event_loop_raises_runtime_error(bridge: Bridge) -> None:
    def elsewhere() -> None:
        with pytest.raises(RuntimeError, match="another event loop.*SyncBridge"):
            asyncio.run(bridge.push(x=1))  # type: ignore[arg-type]

    await asyncio.to_thread(elsewhere)


async def test_a_closed_bridge_raises_bridge_closed(bridge: Bridge) -> None:
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


async def test_a_closed_sync_bridge_raises_bridge_closed(bridge: Bridge) -> None:
    blocking = SyncBridge.loopback()
    blocking.close()
    blocking.close()
    with pytest.raises(BridgeClosed):
        blocking["x"] = 1
    with pytest.raises(BridgeClosed):
        blocking.pull("x")


async def test_an_unknown_lane_raises_value_error(bridge: Bridge) -> None:
    with pytest.raises(ValueError, match="'auto', 'direct', 'buffers', 'inline', not 'pigeon'"):
        Bridge.loopback(lane="pigeon")  # type: ignore[arg-type]
