"""Faults of the direct lane: each fault is the real one, and the bridge goes on.

Rule: as in ``connection/test_death.py``; rows H1 to H8 are the faults of shared memory. Where
memory cannot be shared, objects arrive in messages, and one log record says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bridgehead import (
    Bridge,
    BridgeError,
    KernelRestarted,
    NotSupported,
    RemoteError,
    ReplyLost,
    RequestAborted,
)
from bridgehead._connection.connection import LOSSES
from bridgehead._lanes import handshake as _handshake
from bridgehead._lanes.direct import DirectLane
from bridgehead._lanes.socket import SocketListener
from bridgehead._protocol.request import Request
from bridgehead._protocol.response import Response
from support import memory
from support.kit import all_of, file_of, goes_on, other
from support.other_user import OTHER_USER, needs_other_user
from support.promises import occupied

MIB = 1 << 20
LARGE = 100_000  # doubles: they go through shared memory
OWN = [sys.modules[__name__]]  # the kernel does not have it


@pytest.fixture
def direct(kernel: Bridge) -> Bridge:
    assert kernel.info.lane == "direct"
    return kernel


async def everything_arrives(bridge: Bridge, count: int = LARGE) -> None:
    """Check that large objects arrive by every operation, whichever lane carries them."""
    mine = np.arange(count)
    for n in range(2):
        await bridge.push(x=mine + n)
        assert np.array_equal(await bridge.pull("x"), mine + n)
        assert np.array_equal(await bridge.pull("x * 2"), (mine + n) * 2)
        assert np.array_equal(await bridge.call(lambda array: array + 1, mine), mine + 1)
    await bridge.delete("x")


def logged(caplog: pytest.LogCaptureFixture, text: str) -> int:
    """Return how many log records of bridgehead have the text."""
    return sum(text in r.getMessage() for r in caplog.records if r.name == "bridgehead")


def start(program: str, *args: str, **variables: str) -> subprocess.Popen[str]:
    """Start a program in a process of its own, with this interpreter and path."""
    path = os.pathsep.join(path for path in sys.path if path)
    return subprocess.Popen(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program, *args],
        env={**os.environ, "PYTHONPATH": path, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


async def wait_for_socket_threads(bridge: Bridge, count: int) -> None:
    """Wait until the kernel has at most ``count`` socket threads."""
    end = time.monotonic() + 30
    while await memory.socket_threads(bridge) > count:
        assert time.monotonic() < end
        await asyncio.sleep(0.05)


# ---------------------------------------------------------------- the socket is lost


@pytest.mark.parametrize("losses", [1, 3, LOSSES])
async def test_a_call_outlives_several_lost_sockets(
    live: Bridge, losses: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel lives, so none of them is a restart; at last nothing was done."""
    lost = 0
    carry = DirectLane.carry_now

    async def lose(lane: DirectLane, request: Request) -> Response:
        nonlocal lost
        if lost < losses:
            lost += 1
            lane.client.close()
            await lane._raise_lost("nothing was sent")
        return await carry(lane, request)

    monkeypatch.setattr(DirectLane, "carry_now", lose)
    if losses < LOSSES:
        await live.push(x=0)
        assert await live.pull("x") == 0
    else:
        with pytest.raises(RequestAborted, match="5 times, each time before it served"):
            await live.push(x=0)
        assert not await live.exists("x")
    assert lost == losses
    await goes_on(live)


# ---------------------------------------------------------------- H1: no memory


async def test_a_kernel_without_memory_to_share_uses_messages(
    live: Bridge, caplog: pytest.LogCaptureFixture
) -> None:
    """H1: what the kernel cannot copy to a segment or map crosses in messages."""
    caplog.set_level(logging.INFO, "bridgehead")
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 19, resource.RLIM_INFINITY))"
    await live.run(f"import resource\n{limit}")
    for _ in range(2):
        await everything_arrives(live)
    assert live.info.lane == "direct"
    assert logged(caplog, "large objects cross as messages") <= 1
    await live.run("resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))")
    await everything_arrives(live)
    await memory.nothing_is_leased(live)


LIMITED = """
import asyncio, json, logging, os, resource, sys
import anyio._backends._asyncio  # or the import would come when no file can be opened
import numpy as np
from bridgehead import Bridge

class Recorder(logging.Handler):
    def emit(self, record):
        records.append(record.getMessage())

records = []
logging.getLogger("bridgehead").addHandler(Recorder())

async def main():
    lanes, right = [], True
    async with Bridge.attach(sys.argv[1], lane="direct") as bridge:
        await bridge.run("import numpy; y = numpy.arange(1_000_000)")
        await bridge.push(warm=1)
        await asyncio.to_thread(int)  # starts the thread pool
        exec(sys.argv[2])
        mine = np.arange(1_000_000)
        for n in range(2):
            lanes.append((await bridge.push(x=mine)).lane)
            right &= bool(await bridge.pull("bool((x == y).all())"))
            right &= bool(((await bridge.pull("y")) == mine).all())
            right &= bool(((await bridge.pull("y + 1")) == mine + 1).all())
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    print(json.dumps([lanes, right, records]))

asyncio.run(main())
"""


@pytest.mark.parametrize(
    "limit",
    [
        "resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, MIB))",
        "many = []\nhard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))\n"
        "try:\n while True: many.append(os.open('/dev/null', os.O_RDONLY))\nexcept OSError: pass",
    ],
    ids=["a limit on sizes", "no descriptors"],
)
async def test_a_client_without_memory_to_share_uses_messages(direct: Bridge, limit: str) -> None:
    """H1, for the client."""
    process = start(LIMITED, file_of(direct), limit.replace("MIB", str(MIB)))
    out, errors = await asyncio.to_thread(process.communicate, timeout=60)
    assert process.returncode == 0, errors
    lanes, right, records = json.loads(out.splitlines()[-1])
    assert right
    assert lanes == ["buffers", "buffers"]
    assert len([one for one in records if "large objects cross as messages" in one]) == 1
    await direct.delete("x", "y", "warm")
    await memory.nothing_is_leased(direct)


# ---------------------------------------------------------------- H3: a process is killed


VICTIM = """
import asyncio, os, sys
import numpy as np
from bridgehead import Bridge

async def main():
    async with Bridge.attach(sys.argv[1], lane="direct") as bridge:
        await bridge.push(mine=np.ones(100_000))
        held = await bridge.pull("theirs")
        assert bridge.info.lane == "direct"
        print("ready", flush=True)
        large = np.ones(4_000_000)
        while True:
            pulls = bridge.pull("theirs"), bridge.pull("theirs + 1")
            await asyncio.gather(bridge.push(x=large), *pulls)

asyncio.run(main())
"""


async def test_a_killed_client_leaves_nothing_in_the_kernel(direct: Bridge, tmp_path: Path) -> None:
    """H3: no thread, no memory and no file of it is left, and what it bound stays."""
    shared = sorted(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else []
    await direct.push(theirs=np.zeros(4_000_000))
    before = await memory.socket_threads(direct)
    process = start(VICTIM, file_of(direct), TMPDIR=str(tmp_path))
    try:
        assert process.stdout is not None
        line = await asyncio.to_thread(process.stdout.readline)
        assert line == "ready\n", line
        await asyncio.sleep(random.random() * 0.3)
    finally:
        process.kill()
        await asyncio.to_thread(process.communicate)
    await wait_for_socket_threads(direct, before)
    assert list(tmp_path.glob("bridgehead*")) == []
    assert (await direct.pull("mine")).sum() == LARGE
    await goes_on(direct)
    await direct.run("x = None")
    end = time.monotonic() + 30
    # A response that the main thread made after the lane was lost is kept until its age ends it.
    while (await memory.kernel_counts(direct))["leases"]:
        assert time.monotonic() < end
        await asyncio.sleep(0.05)
    if os.path.isdir("/dev/shm"):
        ours = [name for name in os.listdir("/dev/shm") if "bridgehead" in name]
        assert ours == [name for name in shared if "bridgehead" in name]
    await direct.restart()  # for the tests that count what the kernel keeps


GROUP = """
import asyncio, json, os, sys
import numpy as np
from bridgehead import Bridge

async def main():
    async with Bridge.launch(lane="direct") as bridge:
        await bridge.push(x=np.ones(1_000_000))
        held = await bridge.pull("x")
        print(bridge.info.pid, flush=True)
        while True:
            await bridge.pull("x")

asyncio.run(main())
"""


def memfds() -> set[tuple[str, str]]:
    """Return the segments that any process of this user has mapped or open."""
    found = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            for name in os.listdir(f"/proc/{pid}/fd"):
                target = os.readlink(f"/proc/{pid}/fd/{name}")
                if "memfd:bridgehead" in target:
                    found.add((pid, name))
        except OSError:
            continue
    return found


@pytest.mark.seals
async def test_killing_both_processes_frees_the_memory(tmp_path: Path) -> None:
    """H3: SIGKILL of both: the system frees memory without a name with the last process."""
    # Its connection file stays, as for any kernel that is killed together with its launcher.
    process = start(GROUP, TMPDIR=str(tmp_path), JUPYTER_RUNTIME_DIR=str(tmp_path))
    assert process.stdout is not None
    pids = [process.pid, int(await asyncio.to_thread(process.stdout.readline))]
    try:
        assert {int(pid) for pid, _ in memfds()} >= set(pids)
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
    await asyncio.to_thread(process.communicate)
    end = time.monotonic() + 30
    while any(int(pid) in pids for pid, _ in memfds()):
        assert time.monotonic() < end
        await asyncio.sleep(0.05)
    assert list(tmp_path.glob("bridgehead*")) == []
    if os.path.isdir("/dev/shm"):
        assert not [name for name in os.listdir("/dev/shm") if "bridgehead" in name]


async def test_a_batch_without_shared_memory_may_be_as_long_as_a_message(
    direct: Bridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The messages of the other lane are longer than what crosses together on this one."""
    await direct.push(large=np.arange(2_500_000.0), small=1)

    send = DirectLane._send

    async def send_no_batch(lane: DirectLane, request: Any, header: Any) -> Any:
        """Do as if there were no memory to share for a batch."""
        return None if header["op"] == "batch" else await send(lane, request, header)

    monkeypatch.setattr(DirectLane, "_send", send_no_batch)
    async with occupied(direct):
        waiting = [asyncio.ensure_future(direct.pull("large")) for _ in range(2)]
        waiting += [asyncio.ensure_future(direct.exists("small"))]
        await asyncio.sleep(0.1)
    large, again, exists = await asyncio.gather(*waiting)
    assert (float(large[-1]), float(again[-1]), exists) == (2_499_999, 2_499_999, True)


async def test_no_file_is_left_in_the_temporary_folder(
    direct: Bridge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # others use the system's
    async with Bridge.attach(direct.info.connection_file, lane="direct"):
        assert list(tmp_path.iterdir()) == []
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- H5, H6: unreachable kernels


def reason_against(*argv: str) -> str:
    """Return why this machine cannot run a program with ``argv``; empty if it can."""
    try:
        ran = subprocess.run([*argv, "true"], capture_output=True, text=True, timeout=30)
    except OSError as error:
        return str(error)
    return ran.stderr.strip() if ran.returncode else ""


KERNEL = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
APART = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]


@pytest.mark.seals
async def test_a_kernel_in_other_namespaces_uses_messages(
    kernelspec: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    """H5: a container with this host's name: the path leads nowhere, or to another socket."""
    why = reason_against(*APART)
    if why:
        pytest.skip(f"this user cannot make namespaces here: {why}")
    caplog.set_level(logging.INFO, "bridgehead")
    name = kernelspec("apart", [*APART, *KERNEL])
    async with Bridge.launch(name) as bridge:
        assert bridge.info.lane == "buffers"
        await everything_arrives(bridge)
        assert logged(caplog, "no direct lane, objects cross as messages") == 1
        with pytest.raises(NotSupported, match="lane=.direct. does not work with this kernel"):
            await Bridge.attach(file_of(bridge), lane="direct")
        await goes_on(bridge)


@needs_other_user
async def test_a_kernel_of_another_user_uses_messages(
    kernelspec: Callable[..., str], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """H6: the kernel is another user's process, and may not open this user's socket."""
    caplog.set_level(logging.INFO, "bridgehead")
    program = tmp_path / "other_user.py"
    program.write_text(OTHER_USER)
    name = kernelspec(
        "other-user",
        [sys.executable, str(program), "-f", "{connection_file}", "--HistoryManager.enabled=False"],
    )
    async with Bridge.launch(name) as bridge:
        assert await bridge.pull("__import__('os').geteuid()") == 65534
        assert (bridge.info.lane, bridge.info.trust) == ("buffers", "data")  # though it is a child
        await everything_arrives(bridge)
        assert logged(caplog, "no direct lane, objects cross as messages") == 1
        with pytest.raises(NotSupported, match="lane=.direct. does not work with this kernel"):
            await Bridge.attach(file_of(bridge), lane="direct")


# ---------------------------------------------------------------- H8: other processes


class Crowded(SocketListener):
    """A listener that other processes of the same user connect to first."""

    strangers: list[socket.socket]

    def __init__(self, share: float) -> None:
        super().__init__(share)
        type(self).strangers = []
        for sent in (b"", b"\0" * 32, b"GET / HTTP/1.1\r\n\r\n", b"", os.urandom(200)):
            stranger = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            stranger.connect(self.offer()["path"])
            if sent:
                stranger.sendall(sent)
            type(self).strangers.append(stranger)


async def test_processes_that_connect_first_do_not_keep_the_kernel_out(
    direct: Bridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They get no bytes, and the kernel connects all the same."""
    monkeypatch.setattr(_handshake, "SocketListener", Crowded)
    async with Bridge.attach(direct.info.connection_file, lane="direct") as bridge:
        assert bridge.info.lane == "direct"
        await everything_arrives(bridge)
        for stranger in Crowded.strangers:
            stranger.settimeout(5)
            try:
                assert stranger.recv(100) == b""
            except ConnectionResetError:
                pass
            stranger.close()


class Impostor(SocketListener):
    """A listener whose secret is not the one of the handshake."""

    def offer(self, *, lane: bool = True) -> Any:
        return {**super().offer(lane=lane), "secret": "00" * 64}


async def test_a_wrong_secret_is_refused(
    direct: Bridge, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "bridgehead")
    before = await memory.socket_threads(direct)
    monkeypatch.setattr(_handshake, "SocketListener", Impostor)
    with pytest.raises(NotSupported, match="connection did not arrive"):
        await Bridge.attach(direct.info.connection_file, lane="direct")
    async with Bridge.attach(direct.info.connection_file) as bridge:
        assert bridge.info.lane == "buffers"
        await everything_arrives(bridge)
    assert logged(caplog, "no direct lane") == 1
    await wait_for_socket_threads(direct, before)


# ---------------------------------------------------------------- users' code


async def test_the_lane_works_after_a_reset_and_a_removed_remote_part(live: Bridge) -> None:
    for what in (
        "%reset -f",
        "import sys\nfor name in [n for n in sys.modules if n.startswith('_bridgehead')]:"
        " del sys.modules[name]",
        "get_ipython().events.callbacks['pre_execute'].clear()\n"
        "get_ipython().events.callbacks['post_execute'].clear()",
        "import threading\nthreading.Thread.start = threading.Thread.run = None",
        "import socket, os, mmap\nsocket.socket = os.pwrite = mmap.mmap = None",
        "len = memoryview = dict = sorted = zip = None",
    ):
        await live.push(before=np.ones(LARGE))
        await live.run(what)
        await everything_arrives(live)
        await live.push(x=np.zeros(10))
        assert (await live.pull("x", now=True)).size == 10
        await live.delete("x")
    assert live.info.lane == "direct"


async def test_callbacks_cleared_during_a_cell_do_not_block_the_lane(live: Bridge) -> None:
    """The remote part does not see the cell end; the main thread corrects that."""
    await live.run("for kind in get_ipython().events.callbacks.values(): kind.clear()")
    for n in range(5):
        await live.push(x=np.full(LARGE, n), y=n)
        x, y = await live.pull("x", "y")
        assert (x == n).all()
        assert y == n


async def test_a_push_waits_for_a_cell_after_callbacks_were_cleared(live: Bridge) -> None:
    """The remote part sees no cell begin any more, and still binds nothing while one runs."""
    await live.run("for kind in get_ipython().events.callbacks.values(): kind.clear()")
    await live.push(y=0)
    async with other(live) as other_client:
        code = (
            "begun = 1\nimport time\nseen = []\n"
            "for _ in range(50): time.sleep(0.02); seen.append('late' in globals())"
        )
        submitted = other_client.submit(code)
        while not await live.pull("globals().get('begun')", now=True):
            await asyncio.sleep(0.02)
        await live.push(late=1)
        await other_client.answer(submitted)
    assert await live.pull("any(seen)") is False


async def test_a_remote_part_with_the_data_codec_maps_new_segments(live: Bridge) -> None:
    """The data-only codec runs in the remote module; its names replace no other names."""
    for size in (LARGE, 2 * LARGE, 20 * LARGE):
        await live.push(x=np.full(size, size), trust="data")
        assert (await live.push(y=np.full(size, size))).lane == "direct"
        back = await live.pull("x", trust="data")
        assert (back == size).all()
        assert np.array_equal(await live.pull("y"), back)


# ---------------------------------------------------------------- interrupts


class Hangs:
    """An object whose unpickling never ends, in Python or in C; a file shows that it began."""

    def __init__(self, how: str, path: str) -> None:
        self.how, self.path = how, path

    def __getstate__(self) -> Any:
        return self.how, self.path

    def __setstate__(self, state: Any) -> None:
        import time

        how, path = state
        with open(path, "w") as file:
            file.write("x")
        if how == "Python":
            while True:
                pass
        time.sleep(30)


async def begun(path: Path, task: asyncio.Task[Any]) -> None:
    """Wait until the unpickling has begun."""
    end = time.monotonic() + 30
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < end
        assert not task.done(), task
        await asyncio.sleep(0.01)


NOT_NOTICED = pytest.mark.timings(interrupt_wait=0.5)  # during a call into C


@pytest.mark.parametrize(
    ("how", "size"),
    [
        *(("Python", size) for size in (10, LARGE)),
        pytest.param("C", 10, marks=NOT_NOTICED),
        ("C", LARGE),
    ],
)
async def test_an_interrupt_ends_an_unpickling_that_hangs(
    live: Bridge, tmp_path: Path, how: str, size: int
) -> None:
    """The push fails within seconds, and the bridge goes on."""
    await live.push(before=1)
    file = tmp_path / "begun"
    pushed = {"x": Hangs(how, str(file)), "y": np.ones(size)}
    task = asyncio.ensure_future(live.push(pushed, by_value=OWN))
    await begun(file, task)
    async with asyncio.timeout(20):
        await live.interrupt()
        (outcome,) = await all_of(task)
        assert isinstance(outcome, BridgeError), outcome
        await live.push(after=np.ones(LARGE))
        assert (await live.pull("after")).sum() == LARGE
        assert await live.pull("before") == 1
    assert not await live.exists("x")
    assert not await live.exists("y")
    assert live.info.lane == "direct"


async def test_a_timeout_during_an_unpickling_that_hangs(live: Bridge, tmp_path: Path) -> None:
    file = tmp_path / "begun"
    async with asyncio.timeout(60):
        with pytest.raises(TimeoutError):
            await live.push({"x": Hangs("Python", str(file))}, by_value=OWN, timeout=1.5)
        assert file.exists()
        # A later request waits behind it, until it is interrupted.
        with pytest.raises(TimeoutError):
            await live.push(y=1, timeout=0.3)
        await live.interrupt()
        await goes_on(live)
    assert not await live.exists("x")


async def test_an_interrupt_at_any_instant_ends_or_spares_an_operation(live: Bridge) -> None:
    """Each operation succeeds or raises a BridgeError, and the bridge goes on."""
    mine = np.ones(20 * MIB // 8)
    await live.push(x=mine, deep=[[n] * 20 for n in range(20_000)])
    for n in range(30):
        deep = [[n] * 20 for _ in range(10_000)]
        work = (
            lambda: live.push(x=mine),
            lambda: live.pull("x"),
            lambda deep=deep: live.push(deep=deep),
            lambda: live.pull("deep"),
        )[n % 4]
        task = asyncio.ensure_future(work())
        await asyncio.sleep(random.random() * 0.03)
        await live.interrupt()
        (outcome,) = await all_of(task)
        assert not isinstance(outcome, Exception) or isinstance(outcome, BridgeError), outcome
        del outcome, task
        await goes_on(live)
    assert (await live.pull("x")).size == mine.size
    await memory.nothing_is_leased(live)


async def test_an_idle_kernel_ignores_interrupts(direct: Bridge) -> None:
    for _ in range(20):
        await direct.interrupt()
        await direct.push(x=1)
        assert await direct.pull("x") == 1
    assert await memory.socket_threads(direct) >= 1


async def test_an_unpickling_that_raises_or_exits_keeps_the_lane(direct: Bridge) -> None:
    class Raises:
        def __init__(self, what: type[BaseException]) -> None:
            self.what = what

        def __reduce__(self) -> Any:
            return raised, (self.what,)

    def raised(what: Any) -> None:
        raise what("in the kernel")

    before = await memory.socket_threads(direct)
    for what in (ValueError, SystemExit, KeyboardInterrupt, MemoryError, GeneratorExit):
        for extra in (0, LARGE):
            with pytest.raises(RemoteError, match="in the kernel"):
                await direct.push({"x": Raises(what), "y": np.ones(extra)}, by_value=OWN)
            await goes_on(direct)
    assert not await direct.exists("x")
    assert await memory.socket_threads(direct) == before
    await memory.nothing_is_leased(direct)


async def test_a_lost_socket_thread_is_reported_and_replaced(
    direct: Bridge, shorten: Callable[..., None]
) -> None:
    """The socket is closed in the kernel: one operation may fail, and the next one works."""

    def shut() -> None:
        import socket
        import sys

        remote_module: Any = next(m for n, m in sys.modules.items() if n.startswith("_bridgehead"))
        for remote in remote_module._remotes.values():
            for server in list(remote.socket_threads.values()):
                server.channel.socket.shutdown(socket.SHUT_RDWR)

    await direct.push(x=np.ones(LARGE))
    for _ in range(3):
        for work in (direct.call(shut, by_value=OWN), direct.push(y=1)):
            with contextlib.suppress(BridgeError):
                await work
        shorten(cause_known=0.3)  # the kernel lives, so no other cause becomes known
        await goes_on(direct)
        assert (await direct.pull("x")).sum() == LARGE
        assert direct.info.lane == "direct"
    await memory.nothing_is_leased(direct)


async def test_a_stopped_kernel_does_cancelled_operations_before_later_ones(live: Bridge) -> None:
    """When it continues, what was sent first takes effect first."""
    for n in range(5):
        os.kill(live.info.pid, signal.SIGSTOP)
        try:
            pushed = asyncio.ensure_future(live.push(x=-1))
            await asyncio.sleep(0.05)
            pushed.cancel()
            await asyncio.gather(pushed, return_exceptions=True)
            cell = asyncio.ensure_future(live.run(f"x = {n}"))
            await asyncio.sleep(0.05)
        finally:
            os.kill(live.info.pid, signal.SIGCONT)
        await cell
        assert await live.pull("x") == n
        await asyncio.sleep(0.05)
        assert await live.pull("x") == n


async def test_a_restart_while_the_rest_of_a_value_is_fetched_is_reported_once(
    live: Bridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The value has been evaluated, so the call is not one that may be sent again."""
    transport = live._transport
    assert await live.pull("6 * 7") == 42

    async def restarted(lane: DirectLane, header: Any) -> Any:
        monkeypatch.undo()
        waiter = transport.life.waiter()  # as of a reply that the thread has not sent
        await transport.restart(60)
        return await waiter

    monkeypatch.setattr(DirectLane, "_ask", restarted)
    with pytest.raises(ReplyLost, match="no longer has the rest of its response"):
        await live.pull("bytes(5_000_000)")
    with pytest.raises(KernelRestarted, match="its namespace is new"):
        await live.pull("6 * 7")
    assert await live.pull("6 * 7") == 42
