"""Zero footprint: after any operations the kernel is as it was but for the names pushed."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import numpy as np
import pytest

from bridgehead import Bridge, BridgeError

STATE = """
import builtins as _b, sys as _s
def _snapshot():
    ip = get_ipython()
    return {
        "In": list(In), "Out": dict(Out), "_": (_ , __, ___), "_i": (_i, _ii),
        "count": ip.execution_count,
        "who": sorted(ip.run_line_magic("who_ls", "")),
        "globals": sorted(globals()),
        "locals": sorted(ip.user_ns),
        "hidden": sorted(ip.user_ns_hidden),
        "builtins": sorted(vars(_b)),
        "excepthook": repr(_s.excepthook), "displayhook": repr(_s.displayhook),
        "stdout": repr(_s.stdout), "path": list(_s.path),
        "main": sorted(vars(_s.modules["__main__"])),
        "history": list(ip.history_manager.input_hist_raw),
    }
"""


async def operations(bridge: Bridge) -> None:
    """Every operation but run, the good and the bad."""

    class Raises:
        def __setstate__(self, state: Any) -> None:
            raise RuntimeError

        def __getstate__(self) -> Any:
            return {"x": 1}

    await bridge.push(x=1, f=lambda v: v + 1, a=np.arange(1000.0))
    await bridge.push(large=np.zeros(40 << 20, dtype=np.uint8))
    await bridge.pull("x", "a", "f(x)", "large")
    await bridge.pull("[y for y in range(3)]")
    await bridge.call(lambda v: v * 2, bridge.ref("x"))
    await bridge.call(lambda: 5, keep="kept")
    await bridge.names()
    await bridge.exists("x")
    for bad in (
        bridge.pull("1/0"),
        bridge.pull("no_such"),
        bridge.pull("x y"),
        bridge.push(z=Raises()),
        bridge.call(lambda: 1 / 0),
        bridge.delete("no_such"),
    ):
        with pytest.raises(BridgeError):
            await bad
    await asyncio.gather(*(bridge.push(x=i) for i in range(50)))
    await bridge.interrupt()
    await bridge.delete("f", "a", "kept", "large")
    async with Bridge.attach(bridge.info.connection_file, lane="inline") as other:
        await other.push(y=2)
        await other.pull("x", "y")


async def test_nothing_but_the_names_pushed_is_left(live: Bridge) -> None:
    await live.run(STATE)
    await live.run("'something for the underscore'")
    await live.run("6 * 7")
    before = await live.pull("_snapshot()")
    await operations(live)
    after = await live.pull("_snapshot()")
    for place in ("who", "globals", "locals", "main"):
        assert sorted(set(after[place]) - set(before[place])) == ["x", "y"], place
        assert set(before[place]) <= set(after[place])
        before[place] = after[place]
    assert after == before
    assert before["_"][0] == 42
    result = await live.run("_ + 1")
    assert result.execution_count == before["count"]
    assert result.data["text/plain"] == "43"


async def test_other_clients_see_no_more_than_busy_and_idle(live: Bridge) -> None:
    async with Bridge.attach(live.info.connection_file) as other:
        stream = other.messages()
        await operations(live)
        await live.run("done = True")
        seen = []
        async with asyncio.timeout(20):
            async for message in stream:
                seen.append(message)
                if message.type == "execute_input":
                    break
        assert {message.type for message in seen[:-1]} == {"status"}
        assert seen[-1].content["code"] == "done = True"


async def test_what_users_do_to_their_namespace_does_not_reach_the_loader(live: Bridge) -> None:
    await live.push(x=1)
    for cell in (
        "len = eval = __import__ = getattr = exec = get_ipython = object = None",
        "import pickle; pickle.loads = pickle.dumps = pickle.Pickler = lambda *a, **k: 'evil'",
        "import base64, zlib, hashlib; base64.b64decode = zlib.crc32 = hashlib.sha256 = None",
        "class str: pass\nint = dict = list = tuple = str",
        "globals = locals = vars = None",
    ):
        await live.run(cell)
        await live.push(y=[2])
        assert await live.pull("x", "y") == (1, [2])
    await live.run("del get_ipython, globals, locals, vars")  # %reset itself needs them
    await live.run("%reset -f")
    assert not await live.exists("x")
    await live.push(x=3)
    await live.run("%reset -f in out")
    assert await live.pull("x") == 3


async def test_what_users_do_to_their_displays_does_not_reach_values(live: Bridge) -> None:
    await live.run(
        "ip = get_ipython()\n"
        "for kind in (str, object, int):\n"
        "    formatter = ip.display_formatter.formatters['text/plain']\n"
        "    formatter.for_type(kind, lambda o, p, c: p.text('HACKED'))\n"
        "ip.display_formatter.active_types = ['text/plain']\n"
    )
    await live.push(text="plain")
    assert await live.pull("text") == "plain"


async def test_a_cell_whose_display_raised_does_not_stop_the_next_operation(live: Bridge) -> None:
    await live.run("class Bad:\n    def __repr__(self): raise RuntimeError('no repr')")
    with contextlib.suppress(BridgeError):  # ipykernel 6 only prints it
        await live.run("Bad()")
    await live.push(x=1)
    assert await live.pull("x") == 1


async def test_a_broken_input_transformer_or_hook_does_not_stop_operations(live: Bridge) -> None:
    await live.run(
        "def broken(*args):\n    raise RuntimeError('broken')\n"
        "ip = get_ipython()\n"
        "ip.input_transformers_post.append(broken)\n"
        "for event in ('pre_execute', 'post_execute', 'pre_run_cell', 'post_run_cell'):\n"
        "    ip.events.register(event, broken)\n"
    )
    await live.push(x=[1])
    assert await live.pull("x") == [1]
