"""What a person sees of an error, in a notebook, in a console and in a plain script.

Rule: one real kernel runs the person's cells, which use bridgehead; another one is their target.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from bridgehead import Bridge, RemoteError
from support.console import Console

NAMES = (
    "from bridgehead import Bridge, Fleet, RemoteError, SyncBridge, SyncFleet\n"
    "import asyncio, threading"
)


@dataclass
class Notebook:
    """A kernel whose cells use ``bridge``, ``kernel`` and, without trust, ``doubtful``."""

    own: Bridge
    target: Bridge

    async def fails(self, cell: str) -> str:
        """Run a cell that fails; return the traceback that the notebook shows, uncoloured."""
        with pytest.raises(RemoteError) as caught:
            await self.own.run(cell)
        return plain("\n".join(caught.value.traceback))

    async def prints(self, cell: str) -> str:
        return (await self.own.run(cell)).stdout


@pytest.fixture(scope="module")
async def notebook() -> AsyncIterator[Notebook]:
    async with Bridge.launch() as own, Bridge.launch() as target:
        file = target.info.connection_file
        await own.run(
            f"{NAMES}\nbridge = await Bridge.attach({file!r})\n"
            f"kernel = SyncBridge.attach({file!r})\n"
            f"doubtful = SyncBridge.attach({file!r}, trust='data')\n"
            "kernels = SyncFleet([SyncBridge.loopback() for _ in range(3)])\n"
            "fleet = Fleet([await Bridge.loopback() for _ in range(3)])\n"
            "many = SyncFleet([SyncBridge.loopback() for _ in range(12)])"
        )
        yield Notebook(own, target)
        await own.run("await bridge.aclose(); kernel.close(); doubtful.close()")
        await own.run("for one in (*kernels, *many): one.close()")
        await own.run("for one in fleet: await one.aclose()")


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


CALLS = {
    "run": "{}kernel.run('a = 1\\n1 / 0')",
    "pull": "{}kernel.pull('1 / 0')",
    "call": "{}kernel.call(divmod, 1, 0)",
    "stream": "for _ in {}kernel.stream('1 / 0'): pass",
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
async def test_the_callers_line_comes_before_the_kernels_traceback(
    notebook: Notebook, call: str, is_async: bool
) -> None:
    line = CALLS[call].format("")
    if is_async:
        line = CALLS[call].format("await ").replace("kernel.", "bridge.")
        line = line.replace("for _ in await ", "async for _ in ")
    shown = await notebook.fails(f"value = 1\n{line}")
    head, _, rest = shown.partition("in the kernel:")
    assert f"----> 2 {line}" in head
    assert "RemoteError: ZeroDivisionError: " in head
    assert head.count(", line ") == 1  # one frame: the cell
    assert rest.count("ZeroDivisionError: ") == 1
    if call == "run":
        assert "----> 2 1 / 0" in rest
    assert shown.splitlines()[-1] == "`error.__cause__` is the ZeroDivisionError."


@pytest.mark.parametrize(
    "cell",
    [
        "with SyncBridge.loopback() as own:\n    own.pull('1 / 0')",
        "async with Bridge.loopback() as own:\n    await own.pull('1 / 0')",
        "try:\n    kernel.pull('1 / 0')\nexcept ZeroDivisionError:\n    pass",
        "try:\n    await bridge.pull('1 / 0')\nfinally:\n    done = True",
    ],
)
async def test_the_line_in_a_statement_is_the_one_that_called(
    notebook: Notebook, cell: str
) -> None:
    shown = await notebook.fails(cell)
    assert f"----> 2 {cell.splitlines()[1]}" in shown
    assert "line 2\n" in shown


async def test_the_users_own_functions_are_shown(notebook: Notebook) -> None:
    cell = (
        "async def work():\n    return await asyncio.gather(bridge.pull('nothing'))\nawait work()"
    )
    shown = await notebook.fails(cell)
    assert shown.count(", line ") == 2
    assert "----> 3 await work()" in shown
    assert "----> 2     return await asyncio.gather" in shown
    assert shown.endswith("NameNotFound: 'nothing' is not defined in the kernel")


UNPICKLABLE = {  # a line, and the path that its error names
    "kernel.push(config=config)": "config",
    "kernel['config'] = config": "config",
    "kernel.push(first=kernel.ref('len'), config=config)": "config",
    "kernel.push(first=kernel.callback(print), config=config)": "config",
    "kernel.run('1', push={'config': config})": "config",
    "kernel.call(len, config)": "args[0]",
    "kernel.call(dict, first=kernel.ref('len'), second=config)": "kwargs['second']",
    "kernel.call(lambda: config)": "the function (global: config)",
    "await bridge.submit(len, bridge.callback(print), config)": "args[1]",
    "kernel.submit(len, config).result()": "args[0]",
    "list(kernel.iterate(len, config))": "args[0]",
    "list(kernel.iterate(kernel.ref('len')(config)))": "the expression (argument 0 of len)",
    "kernel.ref('len')(config).pull()": "the expression (argument 0 of len)",
    "kernel.pull('1', kernel.ref('d').get(1, [config]).get(2))": (
        "expressions[1] (argument 1 of d.get)[0]"
    ),
    "kernel.pull(kernel.ref('f')(lambda: 1), kernel.ref('f')({'a': config}, key=1))": (
        "expressions[1] (argument 0 of f)['a']"
    ),
    "kernel.ref('sorted')([], key=config).pull()": "the expression (argument key of sorted)",
    "kernel.ref('d')[config].pull()": "the expression (key of d)",
    "kernel.call(len, [kernel.ref('len')(config)])": "args[0][0] (argument 0 of len)",
    "kernel.push(first=kernel.ref('len')(kernel.ref('f')(config)))": (
        "first (argument 0 of len) (argument 0 of f)"
    ),
    "list(kernels.map(repr, [1, 2, config, 3], chunksize=4))": "the item 2[0]",
    "list(kernels.map(lambda item: config, [1, 2]))": "the function (global: config)",
    "kernels.scatter('rows', [1, 2, config, 3])": "rows[2]",
    "kernels.push(config=config)": "config",
    "kernels.call(len, config)": "args[0]",
}


ASYNC = {
    line.replace("kernel.", "await bridge.", 1).replace("kernel.", "bridge."): path
    for line, path in UNPICKLABLE.items()
    if line.startswith("kernel.") and not line.startswith("kernel.submit")
}


@pytest.mark.parametrize(("line", "path"), [*UNPICKLABLE.items(), *ASYNC.items()])
async def test_what_cannot_be_pickled_is_named(notebook: Notebook, line: str, path: str) -> None:
    shown = await notebook.fails(f"config = {{'lock': [threading.Lock()]}}\n{line}")
    assert f"----> 2 {line}" in shown
    assert shown.count(", line ") == 1
    assert f"EncodeError: {path}['lock'][0] cannot be pickled: TypeError: " in shown
    assert "The above exception" not in shown
    assert "_bridgehead_" not in shown


async def test_a_callbacks_argument_and_a_handoff_that_cannot_be_pickled_are_named(
    notebook: Notebook,
) -> None:
    """These objects are the kernel's: it pickles them, and its error names them."""
    await notebook.own.run("kernel.run('import threading; config = {1: threading.Lock()}')")
    shown = await notebook.fails("kernel.handoff('config', to=kernels[0])")
    assert "----> 1 kernel.handoff('config', to=kernels[0])" in shown
    assert "config[1] cannot be pickled: TypeError: " in shown
    work = "lambda report: report(config)"
    shown = await notebook.fails(f"kernel.call({work}, kernel.callback(print), namespace=True)")
    assert "----> 1 kernel.call(" in shown
    assert "arguments[0][1] cannot be pickled: TypeError: " in shown
    assert "_bridgehead_" not in shown


async def test_the_class_of_the_exception_does_not_catch_it(notebook: Notebook) -> None:
    cell = "try:\n    kernel.run('1 / 0')\nexcept ZeroDivisionError:\n    print('caught')"
    shown = await notebook.fails(cell)
    assert "RemoteError: ZeroDivisionError: " in shown
    assert (
        "`except ZeroDivisionError` does not catch this. Use `except RemoteError as error`:"
        in shown
    )
    for call in ("kernel.run({})", "await bridge.run({})", "kernel.pull({})"):
        code = f"try:\n    {call.format(repr('1 / 0'))}\nexcept RemoteError as error:\n"
        printed = await notebook.prints(f"{code}    print(repr(error.__cause__))")
        assert printed.startswith("ZeroDivisionError(")


CAUSES = {
    "1 +": "SyntaxError('invalid syntax'",
    "class Mine(Exception): pass\nraise Mine(3)": "Mine(3)",
    "import asyncio; await asyncio.sleep(0); [][1]": "IndexError('list index out of range')",
    "raise KeyboardInterrupt": "KeyboardInterrupt()",
    "raise ValueError(b'x' * 2_000_000)": "None",  # more than an error may have
    "import threading\nraise ValueError(threading.Lock())": "None",  # does not pickle
    "get_ipython().run_cell('1 / 0'); [][1]": "IndexError('list index out of range')",
}


@pytest.mark.parametrize("code", CAUSES)
async def test_the_cause_is_the_cells_exception(notebook: Notebook, code: str) -> None:
    with pytest.raises(RemoteError) as caught:
        await notebook.target.run(code)
    assert repr(caught.value.__cause__).startswith(CAUSES[code])
    value = await notebook.target.pull("type(get_ipython().payload_manager.read_payload())")
    assert value is list
    assert await notebook.target.pull("get_ipython().payload_manager.read_payload()") == []


GROUP = "def f(): raise ValueError('one')\ntry: f()\nexcept ValueError as e:\n"
GROUP += "    raise ExceptionGroup('both', [e, KeyError(2)])"


@pytest.mark.parametrize("call", ["kernel.run", "await bridge.run", "doubtful.run"])
async def test_a_group_has_the_kernels_traceback(notebook: Notebook, call: str) -> None:
    """IPython prints it, and its reply has none."""
    shown = await notebook.fails(f"value = 1\n{call}({GROUP!r})")
    head, _, rest = shown.partition("in the kernel:")
    assert f"----> 2 {call}(" in head
    assert head.rstrip().endswith("RemoteError: ExceptionGroup: both (2 sub-exceptions)")
    assert "interactiveshell.py" not in rest
    for line in ("Exception Group Traceback", "line 4, in <module>", "in f\n", "KeyError: 2"):
        assert line in rest
    if call != "doubtful.run":
        assert "and `except*` takes none of its exceptions. Use `except RemoteError as" in rest
        assert shown.splitlines()[-1] == "`error.__cause__` is the ExceptionGroup."


async def test_a_group_that_is_the_context_of_an_error_has_it_too(notebook: Notebook) -> None:
    code = "try:\n    raise ExceptionGroup('g', [ValueError(1)])\nexcept* ValueError:\n    1 / 0"
    shown = await notebook.fails(f"kernel.run({code!r})")
    assert "in the kernel:" in shown
    assert "line 4, in <module>" in shown


@pytest.mark.parametrize("options", ["", " --on main,again"])
async def test_a_magic_shows_the_traceback_of_a_group_once(
    notebook: Notebook, options: str
) -> None:
    file = notebook.target.info.connection_file
    await notebook.own.run(f"%load_ext bridgehead\n%bridge attach {file}")
    await notebook.own.run(f"%bridge attach {file} --on again")
    cell = f"%%bridge{options or ' --on main'}\n{GROUP}"
    with pytest.raises(RemoteError) as caught:
        await notebook.own.run(cell)
    assert caught.value.result is not None
    shown = plain("\n".join([caught.value.result.stderr, *caught.value.traceback]))
    assert shown.count("KeyError: 2") == (2 if options else 1)  # one a kernel
    assert "ExceptionGroup: both (2 sub-exceptions)" in shown.splitlines()[-1]
    assert "run_cell_magic" not in shown
    await notebook.own.run("%bridge close --all")


async def test_an_exception_whose_pickling_hangs_is_interrupted(notebook: Notebook) -> None:
    code = """
class Slow(Exception):
    def __reduce__(self):
        while True: pass
raise Slow
"""
    with pytest.raises(TimeoutError):
        await notebook.target.run(code, timeout=1, on_timeout="interrupt")
    assert await notebook.target.pull("1 + 1") == 2


async def test_no_exception_of_an_untrusted_kernel_is_rebuilt(notebook: Notebook) -> None:
    """M12. Its traceback is text, without anything that controls a terminal but colours."""
    evil = "\\x1b]0;own\\x07\\x1b[2J\\x9b1m\\u202e<b>"
    code = f'raise ValueError("{evil}")'
    with pytest.raises(RemoteError) as caught:
        await notebook.own.run(f"doubtful.run({code!r})")
    shown = "\n".join(caught.value.traceback)
    assert "<b>" in shown
    assert not set(plain(shown)) & set("\x1b\x07\x9b\u202e")
    assert "use `except RemoteError as error` and look at `error.ename`" in plain(shown)
    cell = (
        "try:\n    doubtful.run('1 / 0')\nexcept RemoteError as error:\n    print(error.__cause__)"
    )
    assert await notebook.prints(cell) == "None\n"


@pytest.mark.parametrize("call", ["kernels.{}", "await fleet.{}"])
async def test_the_errors_of_a_fleet_come_by_kernel(notebook: Notebook, call: str) -> None:
    await notebook.own.run(
        "for n in range(3):\n    await fleet[n].push(side=n)\n    kernels[n]['side'] = n"
    )
    work = "def work(n):\n    if side == 1: raise LookupError('the second')\n"
    work += "    return n // (side - 2)"
    shown = await notebook.fails(f"{work}\n{call.format('call(work, 3, namespace=True)')}")
    head, first, second = re.split(r"\n\nkernel \d of 3, pid \d+: ", shown)
    assert "----> 4 " in head
    assert head.count(", line ") == 1
    assert head.rstrip().endswith("FleetError: 2 of 3 kernels failed")
    assert first.startswith("RemoteError: LookupError: the second\nin the kernel:\n")
    assert second.startswith("RemoteError: ZeroDivisionError: ")
    assert "sync_fleet.py" not in shown
    assert shown.endswith("`error.results` of the FleetError has what 1 other kernel returned.")


async def test_of_many_kernels_the_first_errors_are_shown(notebook: Notebook) -> None:
    shown = await notebook.fails("many.pull('nothing')")
    assert shown.count("NameNotFound: 'nothing' is not defined in the kernel") == 8
    assert "kernel 7 of 12, pid " in shown
    assert "kernel 8 of 12, pid " not in shown
    assert shown.endswith("... and the errors of 4 more kernels: `error.errors` has all.")
    shown = await notebook.fails("many.call(lambda: 1 / 0)")
    assert shown.count("Traceback (most recent call last)") == 2  # the cell's, and one kernel's
    assert shown.count("in the kernel: as in kernel 0\n") == 7
    deep = "many.run('def deep(n):\\n    if n:\\n        deep(n - 1)\\n    1 / 0\\ndeep(50)')"
    shown = await notebook.fails(deep)
    assert len(shown.splitlines()) < 100


async def test_a_users_own_handler_of_errors_stays(notebook: Notebook) -> None:
    mine = "get_ipython().set_custom_exc((OSError,), lambda *args, **options: print('mine'))"
    await notebook.own.run(mine)
    try:
        with pytest.raises(RemoteError, match="kernels failed"):
            await notebook.own.run("many.pull('nothing')")
        with pytest.raises(RemoteError) as caught:
            await notebook.own.run("raise OSError")
        assert caught.value.result.stdout == "mine\n"
    finally:
        await notebook.own.run("get_ipython().set_custom_exc((), None)")


async def test_no_debugger_hides_the_error() -> None:
    """With ``%pdb on`` in the target, its debugger cannot ask this client for commands."""
    async with Bridge.launch() as target:
        await target.run("%pdb on")
        for code in ("1 / 0", "import asyncio; await asyncio.sleep(0)\n1 / 0"):
            with pytest.raises(RemoteError, match=r"^ZeroDivisionError: ") as caught:
                await target.run(code)
            assert repr(caught.value.__cause__) == "ZeroDivisionError('division by zero')"
            assert caught.value.result is not None
            assert "the debugger was not started" in caught.value.result.stderr
            kinds = [one["output_type"] for one in caught.value.result.outputs]
            assert sorted(kinds) == ["error", "stream"]
        asked: list[str] = []

        def answer(prompt: str, hidden: bool) -> str:
            asked.append(prompt)
            return "q"

        with pytest.raises(RemoteError, match=r"^ZeroDivisionError: "):
            await target.run("1 / 0", on_input=answer)
        assert asked == ["ipdb> "]


@pytest.mark.slow
async def test_a_console_shows_the_same() -> None:
    async with Bridge.launch() as own:
        await own.run(f"{NAMES}\nkernel = SyncBridge.launch()")
        terminal = Console(str(own.info.connection_file))
        try:
            await terminal.prompts(1)
            terminal.type("kernel.run('1 / 0')\r")
            await terminal.shows("is the ZeroDivisionError.")
            screen = terminal.screen
            assert screen.index("----> 1 kernel.run('1 / 0')") < screen.index("in the kernel:")
            assert screen.index("in the kernel:") < screen.index("----> 1 1 / 0")
            assert "/_bridge/" not in screen
        finally:
            await terminal.close()
        await own.run("kernel.close()")


@pytest.mark.slow
async def test_a_script_shows_the_whole_traceback(notebook: Notebook) -> None:
    """Python prints it: the cause, this program's frames, and the kernel's traceback."""
    file = notebook.target.info.connection_file
    script = (
        "from bridgehead import SyncBridge\n"
        f"with SyncBridge.attach({file!r}) as kernel:\n    kernel.run('def f(): 1 / 0\\nf()')"
    )
    options = {"stdout": asyncio.subprocess.PIPE, "stderr": asyncio.subprocess.PIPE}
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", script, **options)  # type: ignore[arg-type]
    _, output = await process.communicate()
    text = output.decode()
    assert process.returncode == 1
    assert text.startswith("ZeroDivisionError: division by zero\n\nThe above exception was")
    assert 'File "<string>", line 3' in text
    assert "/_bridge/" in text
    assert "bridgehead.RemoteError: ZeroDivisionError: division by zero\n\nin the kernel:" in text
    assert "----> 1 def f(): 1 / 0" in text
    assert text.rstrip().endswith("`error.__cause__` is the ZeroDivisionError.")
