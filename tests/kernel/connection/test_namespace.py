"""Rows F of the catalogue of faults: the user's namespace and interpreter.

Rule: each test covers a row of the catalogue; its docstring starts with the row's number. A test
asserts how soon the call ends, what the namespace contains afterwards (as seen by a client without
bridgehead), and that the next operation on the same bridge works. Each test injects the real fault.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from jupyter_client.manager import AsyncKernelManager

import bridgehead
from bridgehead import Bridge, MissingInKernel, RemoteError
from support.elsewhere import MAJORS
from support.faults import operations
from support.kit import LANES, all_of, file_of, goes_on, other, reported_within
from support.look import look

# A kernel can't import test modules, so what they define is pickled by value, as in a script.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

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


@pytest.mark.parametrize("kernel_name", MAJORS, indirect=True)
async def test_only_pushed_names_are_new_in_the_kernel(kernel_name: str) -> None:
    """F1. Globals, In, Out, _, the counter, hooks, history: only the pushed names are new."""
    async with Bridge.launch(kernel_name) as bridge:
        await bridge.run(STATE)
        await bridge.run("'something for the underscore'")
        await bridge.run("6 * 7")
        before = await bridge.pull("_snapshot()")
        await operations(bridge)
        after = await bridge.pull("_snapshot()")
        for place in ("who", "globals", "locals", "main"):
            assert sorted(set(after[place]) - set(before[place])) == ["x", "y"], place
            assert set(before[place]) <= set(after[place])
            before[place] = after[place]
        assert after == before
        assert before["_"][0] == 42
        result = await bridge.run("_ + 1")
        assert result.execution_count == before["count"]
        assert result.data["text/plain"] == "43"
        assert await look(file_of(bridge)) == {"x": "49", "y": "2"}
        await goes_on(bridge)


async def test_a_push_works_after_every_kind_of_reset() -> None:
    """F2. Every kind of reset, all names deleted, the remote part itself removed."""
    resets = [
        "%reset -f",
        "%reset -f in out",
        "%xdel x",
        "for _name in list(globals()):\n    if _name != '_name': del globals()[_name]",
        "import sys\n"
        "for _n in [n for n in sys.modules if n.startswith('_bridgehead')]: del sys.modules[_n]",
    ]
    async with Bridge.launch() as bridge:
        for number, cell in enumerate(resets):
            await bridge.push(x=number)
            await bridge.run(cell)
            async with reported_within(0.5):
                await bridge.push(y=[number])
                assert await bridge.pull("y") == [number]
            assert (await look(file_of(bridge)))["y"] == f"[{number}]"
            await goes_on(bridge)


@pytest.mark.parametrize("count", [1, 3])
async def test_requests_that_are_repeated_keep_their_order(count: int) -> None:
    """F2. The remote part was removed and perhaps installed again: calls keep their order."""
    removal = (
        "import sys\nfor n in [*sys.modules]:\n    if n[:11] == '_bridgehead': del sys.modules[n]"
    )
    async with Bridge.launch() as bridge, Bridge.attach(file_of(bridge)) as second:
        for installed in (False, True):
            await bridge.push(x=[-1] * count)
            await bridge.run(removal)
            if installed:
                await second.pull("x")
            pushes = (bridge.push({f"x{i}": i}) for i in range(count))
            cell = bridge.run(f"x = [{', '.join(f'x{i}' for i in range(count))}]")
            await asyncio.gather(*pushes, cell, bridge.delete(*(f"x{i}" for i in range(count))))
            assert await bridge.pull("x") == list(range(count))
        await goes_on(bridge)


async def test_a_push_after_a_full_reset_binds_its_names_only() -> None:
    """F2. The reset deletes all names; afterwards only the names of the new push exist."""
    async with Bridge.launch() as bridge:
        await bridge.push(x=1)
        await bridge.run("%reset -f")
        async with reported_within(0.5):
            assert not await bridge.exists("x")
            await bridge.push(y=2)
        assert await look(file_of(bridge)) == {"y": "2"}
        await goes_on(bridge)


async def test_display_settings_do_not_affect_a_pull() -> None:
    """F3. Formatters for str, int and object, ``%precision``, and no active type but text/plain."""
    async with Bridge.launch() as bridge:
        await bridge.run(
            "%precision 2\n"
            "ip = get_ipython()\n"
            "formatter = ip.display_formatter.formatters['text/plain']\n"
            "for kind in (str, object, int):\n"
            "    formatter.for_type(kind, lambda o, p, c: p.text('HACKED'))\n"
            "ip.display_formatter.active_types = ['text/plain']\n"
            "del ip, formatter, kind\n"
        )
        assert (await bridge.run("'a cell is shown'")).data["text/plain"] == "HACKED"
        async with reported_within(0.5):
            await bridge.push(text="plain", number=1 / 3)
            assert await bridge.pull("text", "number", "len(text)") == ("plain", 1 / 3, 5)
            with pytest.raises(RemoteError, match="ZeroDivisionError: division by zero"):
                await bridge.pull("1/0")
        await goes_on(bridge)
        # look() needs the display formatter, so restore its settings.
        await bridge.run(
            "get_ipython().display_formatter.active_types = "
            "get_ipython().display_formatter.format_types"
        )
        assert await look(file_of(bridge)) == {"text": "'plain'", "number": repr(1 / 3)}


SHADOWS = {
    "builtins": "len = eval = __import__ = getattr = exec = get_ipython = object = None",
    "types": "class str: pass\nint = dict = list = tuple = str",
    "scopes": "globals = locals = vars = None",
}


@pytest.mark.parametrize("shadows", SHADOWS)
async def test_shadowed_builtins_do_not_affect_the_remote_part(shadows: str) -> None:
    """F4. The user's names hide the builtins: the remote part does not use them."""
    async with Bridge.launch() as bridge:
        await bridge.push(x=1)
        await bridge.run(SHADOWS[shadows])
        async with reported_within(0.5):
            await bridge.push(y=[2])
            assert await bridge.pull("x", "y") == (1, [2])
            assert await bridge.call(lambda v: v + 1, bridge.ref("x")) == 2
        # This bridge installs nothing; it finds the remote part.
        async with Bridge.attach(file_of(bridge)) as late:
            assert await late.pull("y") == [2]
        namespace = await look(file_of(bridge))
        assert (namespace["x"], namespace["y"]) == ("1", "[2]")
        await goes_on(bridge)


@pytest.mark.parametrize("shadows", SHADOWS)
async def test_the_remote_part_is_installed_despite_shadowed_builtins(shadows: str) -> None:
    """F4. The names were shadowed before the first bridge."""
    manager = AsyncKernelManager(kernel_name="python3")
    await manager.start_kernel()
    try:
        async with other(manager.connection_file) as other_client:
            assert (await other_client.execute(SHADOWS[shadows]))["status"] == "ok"
        async with Bridge.over(manager) as bridge:
            async with reported_within(0.5):
                await bridge.push(y=[2])
                assert await bridge.pull("y") == [2]
            assert (await look(manager.connection_file))["y"] == "[2]"
            await goes_on(bridge)
    finally:
        await manager.shutdown_kernel(now=True)


REPLACED = {
    "pickle.loads": "import pickle; pickle.loads = pickle.dumps = lambda *a, **k: 'evil'",
    "pickle.Pickler": "import pickle; pickle.Pickler = pickle.Unpickler = lambda *a, **k: 'evil'",
    "base64": "import base64; base64.b64decode = base64.b64encode = lambda *a, **k: b'evil'",
    "digests": "import zlib, hashlib; zlib.crc32 = hashlib.sha256 = None",
}


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("what", REPLACED)
async def test_replaced_functions_do_not_affect_the_remote_part(what: str, lane: Any) -> None:
    """F5. The user replaces functions of pickle, base64 and digests after the installation."""
    async with Bridge.launch(lane=lane) as bridge:
        await bridge.run(REPLACED[what])
        async with reported_within(0.5):
            await bridge.push(x=1, y=[2])
            assert await bridge.pull("x", "y") == (1, [2])
            assert await bridge.call(lambda v: v + 1, bridge.ref("x")) == 2
        assert await look(file_of(bridge)) == {"x": "1", "y": "[2]"}
        await goes_on(bridge)


async def test_a_call_ends_at_its_deadline_if_imports_raise() -> None:
    """F5. ``builtins.__import__`` raises, so the kernel may not reply: the deadline holds."""
    async with Bridge.launch() as bridge, other(bridge) as other_client:
        await bridge.push(x=1)
        other_client.submit(
            "import builtins\n"
            "def refuse(*args, **kwargs): raise ImportError('refused')\n"
            "builtins.__import__ = refuse"
        )
        async with reported_within(1):
            # It depends on the version of the kernel whether it still replies.
            (outcome,) = await all_of(bridge.push(y=2, timeout=1))
            assert isinstance(outcome, (TimeoutError, bridgehead.Transfer)), outcome
        await bridge.restart()
        assert await look(file_of(bridge)) == {}
        await goes_on(bridge)


BROKEN_INPUT = """
import ast
from IPython.core.error import InputRejected
def refuse(*args):
    raise InputRejected("broken")
class Refuse(ast.NodeTransformer):
    visit = refuse
ip = get_ipython()
ip.{}.append({})
"""
TRANSFORMERS = {
    "input-cleanup": ("input_transformers_cleanup", "refuse"),
    "input-post": ("input_transformers_post", "refuse"),
    "ast": ("ast_transformers", "Refuse()"),
}


@pytest.mark.parametrize("where", TRANSFORMERS)
async def test_a_broken_transformer_does_not_stop_operations(where: str) -> None:
    """F6. A transformer of the user raises for every cell; our operations are not cells."""
    async with Bridge.launch() as bridge:
        await bridge.run(BROKEN_INPUT.format(*TRANSFORMERS[where]))
        with pytest.raises(RemoteError, match="broken"):
            await bridge.run("refused = 1")
        async with reported_within(0.5):
            await bridge.push(x=[1])
            assert await bridge.pull("x") == [1]
        assert (await look(file_of(bridge)))["x"] == "[1]"
        await goes_on(bridge)


async def test_hooks_that_raise_do_not_fail_a_push() -> None:
    """F7. All four events have a hook that raises; its output does not matter."""
    async with Bridge.launch() as bridge:
        await bridge.run(
            "fired = 0\n"
            "def broken(*args):\n"
            "    global fired\n"
            "    fired += 1\n"
            "    raise RuntimeError('broken')\n"
            "for _event in ('pre_execute', 'post_execute', 'pre_run_cell', 'post_run_cell'):\n"
            "    get_ipython().events.register(_event, broken)\n"
        )
        async with reported_within(0.5):
            await bridge.push(x=[1])
            assert await bridge.pull("x") == [1]
        namespace = await look(file_of(bridge))
        assert namespace.pop("broken").startswith("<function broken")
        assert int(namespace.pop("fired")) > 0
        assert namespace == {"x": "[1]"}
        await goes_on(bridge)


async def test_a_module_that_the_kernel_lacks_is_named(
    kernel: Bridge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F11. The class is in a local file: the error names the module and what to do."""
    (tmp_path / "only_in_client.py").write_text("class Box:\n    x = 6")
    monkeypatch.syspath_prepend(tmp_path)
    import only_in_client  # type: ignore[import-not-found]

    async with reported_within(0.5):
        with pytest.raises(
            MissingInKernel, match=r"'only_in_client'.*by_value=\[only_in_client\]"
        ) as caught:
            await kernel.push(box=only_in_client.Box(), fine=1)
    assert caught.value.module == "only_in_client"
    assert await look(file_of(kernel)) == {}
    await kernel.push(box=only_in_client.Box(), by_value=[only_in_client])
    assert await kernel.pull("box.x") == 6
    await goes_on(kernel)


async def test_autoreload_does_not_affect_the_remote_part(kernel: Bridge) -> None:
    """F12. ``%autoreload 2`` checks every module before each cell; our module has no file."""
    await kernel.run("%load_ext autoreload\n%autoreload 2")
    async with reported_within(0.5):
        await kernel.push(x=[1])
    assert (await kernel.run("x")).data["text/plain"] == "[1]"
    assert (await look(file_of(kernel)))["x"] == "[1]"
    await kernel.run("%autoreload 0")
    await goes_on(kernel)
