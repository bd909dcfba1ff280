"""SyncBridge in a script, inside a running event loop, in a notebook cell, and as a mapping."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator, MutableMapping
from pathlib import Path

import psutil
import pytest

from bridgehead import Bridge, BridgeClosed, NameNotFound, RemoteError, SyncBridge
from bridgehead._kernels.launch_folder import sweep


@pytest.fixture(params=["loopback", "live"])
def kernel(request: pytest.FixtureRequest) -> Iterator[SyncBridge]:
    opening = SyncBridge.loopback if request.param == "loopback" else SyncBridge.launch
    with opening() as opened:
        yield opened


def test_every_operation_blocks_until_it_is_done(kernel: SyncBridge) -> None:
    transfer = kernel.push({"x": 1}, f=lambda v: v + 1)
    assert transfer.names == ("x", "f")
    assert kernel.pull("x", "f(x)") == (1, 2)
    assert kernel.call(lambda a, b: a + b, kernel.ref("x"), b=5) == 6
    kept = kernel.call(lambda: {"deep": [7]}, keep="kept")
    assert kept["deep"][0].pull() == 7
    seen: list[str] = []
    result = kernel.run("print('hi'); x + 1", on_output=lambda m: seen.append(m.type))
    assert (result.stdout, result.data["text/plain"]) == ("hi\n", "2")
    assert "execute_result" in seen
    assert {name.name for name in kernel.names()} == {"x", "f", "kept"}
    kernel.delete("f", "kept")
    assert kernel.exists("x")
    assert not kernel.exists("f")
    assert kernel.state in ("idle", "busy")
    assert kernel.info.pid
    assert repr(kernel).startswith("<SyncBridge ")
    with pytest.raises(RemoteError, match="ZeroDivisionError"):
        kernel.run("1/0")
    with pytest.raises(TimeoutError):
        kernel.pull("__import__('time').sleep(0.5)", timeout=0.05)
    kernel.restart()
    assert not kernel.exists("x")


def test_a_watch_goes_on_after_an_error_and_ends_with_the_bridge() -> None:
    with SyncBridge.launch() as kernel:
        kernel["x"] = [1]
        watch = kernel.watch("x[0]")
        assert next(watch) == 1
        kernel.run("x = []")
        with pytest.raises(RemoteError, match="IndexError"):
            next(watch)
        kernel.run("x = [2]")
        assert next(watch) == 2
        assert repr(watch) == "<Watch x[0]>"
    assert next(watch, None) is None


def test_names_are_watched_until_the_bridge_ends(kernel: SyncBridge) -> None:
    watch = kernel.watch_names()
    assert next(watch) == []
    kernel.run("x = [1]")
    assert [(name.name, name.len) for name in next(watch)] == [("x", 1)]
    kernel.close()
    assert next(watch, None) is None


def test_a_sync_bridge_is_a_mutable_mapping_of_the_kernels_names(kernel: SyncBridge) -> None:
    assert isinstance(kernel, MutableMapping)
    kernel["x"] = [1]
    kernel.update(y=2, z={"a": 3})
    assert kernel["x"] == [1]
    assert sorted(kernel) == ["x", "y", "z"]
    assert len(kernel) == 3
    assert "x" in kernel
    assert "nope" not in kernel
    assert 5 not in kernel
    assert kernel.get("nope", "default") == "default"
    with pytest.raises(KeyError) as caught:
        kernel["nope"]
    assert isinstance(caught.value, NameNotFound)
    assert kernel.setdefault("y", 9) == 2
    assert kernel.pop("y") == 2
    del kernel["z"]
    with pytest.raises(KeyError):
        del kernel["z"]
    assert dict(kernel) == {"x": [1]}
    kernel.clear()
    assert not list(kernel)
    assert kernel == kernel
    assert hash(kernel)


def test_messages_returns_a_plain_iterator(kernel: SyncBridge) -> None:
    stream = kernel.messages()
    kernel.run("3+2")
    types = []
    for message in stream:
        types.append(message.type)
        if message.type == "execute_result":
            break
    assert types[-2:] == ["execute_input", "execute_result"]
    kernel.close()
    for _ in stream:
        pass
    with pytest.raises(BridgeClosed):
        kernel.pull("x")


async def test_a_sync_bridge_works_inside_a_running_event_loop() -> None:
    with SyncBridge.launch() as kernel:
        kernel["x"] = 4
        assert kernel["x"] == 4
        async with Bridge.attach(kernel.info.connection_file) as bridge:
            assert await bridge.pull("x") == 4


async def test_a_sync_bridge_works_in_a_notebook_cell() -> None:
    # A cell runs inside ipykernel's own event loop.
    async with Bridge.launch() as notebook:
        await notebook.run("from bridgehead import SyncBridge\nkernel = SyncBridge.launch()")
        await notebook.run("kernel['x'] = 20\nkernel.run('y = x + 1')\ny = kernel['y']")
        assert await notebook.pull("y") == 21
        pid = await notebook.pull("kernel.info.pid")
        assert pid != notebook.info.pid
        await notebook.run("kernel.close()")
        assert not psutil.pid_exists(pid)


def test_many_threads_share_one_sync_bridge() -> None:
    with SyncBridge.loopback() as kernel:
        results: dict[int, int] = {}

        def work(i: int) -> None:
            kernel[f"x{i}"] = i
            results[i] = kernel.pull(f"x{i} * 2")

        threads = [threading.Thread(target=work, args=(i,)) for i in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert results == {i: 2 * i for i in range(20)}


def ran(folder: Path, script: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a folder, and return how it ended."""
    file = folder / "script.py"
    file.write_text(textwrap.dedent(script))
    return subprocess.run(
        [sys.executable, str(file)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=folder,
    )


SCRIPT = """
from bridgehead import SyncBridge
kernel = SyncBridge.launch()
kernel["data"] = {"a": 5, "b": 3}
class Local:
    def __init__(self, x): self.x = x
kernel["local"] = Local(4)
assert type(kernel["local"]) is Local
print(kernel.pull("data['a'] + local.x"), kernel.info.pid, flush=True)
"""


@pytest.mark.parametrize(
    "ending", ["", "raise SystemExit(3)", "kernel.close()", "import os; os._exit(0)"]
)
@pytest.mark.slow
def test_the_kernel_of_a_script_ends_however_the_script_ends(tmp_path: Path, ending: str) -> None:
    done = ran(tmp_path, SCRIPT + ending)
    assert done.stderr == ""
    value, pid = done.stdout.split()
    assert value == "9"
    assert done.returncode == (3 if "SystemExit" in ending else 0)
    assert _ends(int(pid))
    runtime = Path(os.environ["JUPYTER_RUNTIME_DIR"])
    if "os._exit" in ending:  # no cleanup can run after it
        sweep(runtime)
    assert list(runtime.iterdir()) == []


def _ends(pid: int) -> bool:
    """Return whether a kernel ends; it notices the end of its parent within about a second."""
    try:
        psutil.Process(pid).wait(60)
    except psutil.NoSuchProcess:
        return True
    except psutil.TimeoutExpired:
        return False
    return True


def test_a_garbage_collected_bridge_ends_its_kernel() -> None:
    import gc

    kernel = SyncBridge.launch()
    pid = kernel.info.pid
    with pytest.warns(ResourceWarning, match=f"pid {pid}"):
        del kernel
    gc.collect()
    assert _ends(pid)


def test_callbacks_run_in_the_calling_thread() -> None:
    with SyncBridge.loopback(lane="inline") as kernel:
        threads: list[int] = []

        def note(*args: object) -> None:
            threads.append(threading.get_ident())

        kernel.run("print(1)", on_output=note)
        kernel.push(x=bytes(10**6), progress=note)
        kernel.pull("x", progress=note)
        with SyncBridge.loopback() as other:
            kernel.handoff("x", to=other, progress=note)
        assert len(threads) > 3
        assert set(threads) == {threading.get_ident()}


def test_an_exception_of_a_callback_ends_the_wait() -> None:
    def enough(*args: object) -> None:
        raise LookupError("enough")

    with SyncBridge.loopback(lane="inline") as kernel:
        with pytest.raises(LookupError, match="enough"):
            kernel.push(x=bytes(10**7), progress=enough)
        with pytest.raises(LookupError, match="enough"):
            kernel.run("print(1)", on_output=enough)
        with pytest.raises(TypeError, match="progress must be True, False or a callable"):
            kernel.push(x=1, progress="yes")  # type: ignore[arg-type]
        assert kernel.pull("1 + 1") == 2


def test_a_bridge_collected_in_the_loop_thread_ends_its_kernel() -> None:
    import gc

    kernel = SyncBridge.launch()
    pid, thread = kernel.info.pid, kernel._thread
    cycle: list[object] = [kernel]
    cycle.append(cycle)

    async def collect() -> None:
        gc.collect()

    gc.disable()
    try:
        del kernel, cycle
        with pytest.warns(ResourceWarning, match=f"pid {pid}"):
            thread.wait(collect)
    finally:
        gc.enable()
    assert _ends(pid)


def test_a_forked_child_exits_without_closing_the_bridge(tmp_path: Path) -> None:
    done = ran(
        tmp_path,
        """
        import os, sys, warnings
        warnings.simplefilter("ignore")
        from bridgehead import SyncBridge
        kernel = SyncBridge.launch()
        kernel["x"] = 1
        if os.fork() == 0:
            sys.exit(0)
        os.wait()
        print(kernel["x"])
        """,
    )
    assert (done.stdout, done.stderr) == ("1\n", "")


def test_a_keyboard_interrupt_ends_the_wait_and_the_cell_goes_on(tmp_path: Path) -> None:
    done = ran(
        tmp_path,
        """
        import os, pathlib, signal, threading
        from bridgehead import SyncBridge
        # A program that a script starts in the background may have SIGINT ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        CELL = "import os, time; print('begun')\\n" + (
            "while not os.path.exists('interrupted'): time.sleep(0.01)\\nx = 2")
        begun = []
        def interrupt_soon(message):
            if not begun:
                threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
            begun.append(message)
        with SyncBridge.launch() as kernel:
            try:
                kernel.run(CELL, on_output=interrupt_soon)
            except KeyboardInterrupt:
                print("interrupted")
                pathlib.Path("interrupted").touch()
            print(kernel.pull("x"))
        """,
    )
    assert (done.stdout, done.stderr) == ("interrupted\n2\n", "")


async def test_an_interrupt_of_the_program_ends_the_work_that_it_waits_for(tmp_path: Path) -> None:
    """Ctrl-C cancels async work in the kernel, and interrupts a function if it is asked to."""
    done = ran(
        tmp_path,
        """
        import asyncio, os, signal, threading, time
        from bridgehead import SyncBridge
        # A program that a script starts in the background may have SIGINT ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)

        async def waits():
            names = __import__("IPython").get_ipython().user_ns
            names["state"] = "runs"
            try:
                await asyncio.sleep(1000)
            except asyncio.CancelledError:
                names["state"] = "cancelled"
                raise

        def spins():
            names = __import__("IPython").get_ipython().user_ns
            names["state"] = "runs"
            try:
                while True:
                    pass
            except KeyboardInterrupt:
                names["state"] = "interrupted"
                raise

        def state_is(state):
            end = time.monotonic() + 60
            while beside.pull("state", now=True) != state:
                assert time.monotonic() < end
                time.sleep(0.01)

        def interrupt():
            state_is("runs")
            os.kill(os.getpid(), signal.SIGINT)

        with SyncBridge.launch() as kernel:
            with SyncBridge.attach(kernel.info.connection_file) as beside:
                kernel.push(waits=waits)
                for work, ends in (
                    (lambda: kernel.call(waits), "cancelled"),
                    (lambda: kernel.pull("await waits()"), "cancelled"),
                    (lambda: kernel.call(spins, on_timeout="interrupt"), "interrupted"),
                ):
                    kernel["state"] = "none"
                    threading.Thread(target=interrupt).start()
                    try:
                        work()
                    except KeyboardInterrupt:
                        state_is(ends)
                        print(ends, kernel.stats.tasks, kernel.pull("1"))
        """,
    )
    expected = "cancelled 0 1\ncancelled 0 1\ninterrupted 0 1\n"
    assert (done.stdout, done.stderr) == (expected, "")


async def test_closing_inside_an_event_loop_leaves_no_thread() -> None:
    before = set(threading.enumerate())
    for _ in range(3):
        kernel = await asyncio.to_thread(SyncBridge.launch)
        kernel["x"] = 1
        kernel.close()
    left = {
        one.name
        for one in set(threading.enumerate()) - before
        if not one.name.startswith("asyncio_") and type(one).__module__ != "zmq.utils.garbage"
    }
    assert left == set()
