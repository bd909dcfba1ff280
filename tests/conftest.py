"""Fixtures of all tests: loopback bridges, real kernels and Jupyter servers.

Rule: the test that uses a kernel starts it and ends it through its own handle. A fixture that
shares a kernel within a module gives every test an empty namespace.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import sys
import tempfile
import tracemalloc
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from jupyter_client.connect import LocalPortCache
from jupyter_client.manager import KernelManager
from jupyter_client.provisioning import local_provisioner

from bridgehead import Bridge
from bridgehead._kernels.reserved_ports import CAN_RESERVE, reserved_port
from bridgehead._shipped.wire.segments import Pool
from bridgehead._transports.base import Transport
from bridgehead._transports.timings import Timings
from support import objects
from support.elsewhere import Elsewhere
from support.forked_kernels import KernelForker
from support.kit import MESSAGES, is_public
from support.servers import Wire, serving

HERE = Path(__file__).parent
WITH_KERNELS = ("kernel", "servers", "docs", "elsewhere")  # the folders whose tests start kernels
OWN_FOLDERS = ("servers", "docs")  # marks that only tests in the folder of this name have

# A quarter of the examples, except with --hypothesis-profile thorough, which .ci/run passes. A test
# with its own number of examples scales it by the profile's. No test relies on being fast.
UNHURRIED = settings(settings.default, suppress_health_check=[HealthCheck.too_slow], deadline=None)
settings.register_profile("thorough", UNHURRIED, max_examples=100)
settings.register_profile("quick", UNHURRIED, max_examples=25)
settings.load_profile("quick")

FAILED = pytest.StashKey[bool]()  # whether the last test failed, in any of its phases
FORKER = pytest.StashKey[KernelForker]()
SHARED = pytest.StashKey[tempfile.TemporaryDirectory[str]]()  # a folder of all workers of a run
ELSEWHERE = "BRIDGEHEAD_ELSEWHERE"  # the variable by which the workers know it


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--write",
        action="store_true",
        help="write the documentation's table of kernels, or its picture, as seen",
    )


def pytest_cmdline_main(config: pytest.Config) -> int | None:
    """Run ``pytest -m objects`` in the environment that has the libraries; see its file."""
    if config.option.markexpr != "objects" or objects.is_inside():
        return None
    return objects.run_inside(config.invocation_params.args)


def pytest_configure(config: pytest.Config) -> None:
    # A shell lets its background jobs ignore SIGINT, and each kernel and terminal inherits that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if sys.platform == "linux":
        config.stash[FORKER] = forker = KernelForker(local_provisioner.launch_kernel)
        local_provisioner.launch_kernel = forker
    if not hasattr(config, "workerinput"):
        config.stash[SHARED] = shared = tempfile.TemporaryDirectory(prefix="bh-elsewhere-")
        os.environ[ELSEWHERE] = shared.name


def pytest_unconfigure(config: pytest.Config) -> None:
    if SHARED in config.stash:
        config.stash[SHARED].cleanup()
    forker = config.stash.get(FORKER, None)
    if forker is not None:
        local_provisioner.launch_kernel = forker.launch_kernel
        forker.close()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    forker = item.config.stash.get(FORKER, None)
    if forker is not None:
        forker.enabled = item.get_closest_marker("real_start") is None
    if item.config.stash.get(FAILED, False):
        item.config.stash[FAILED] = False
        # This test must not find what the failed test left in the runtime folder.
        root = Path(os.environ["JUPYTER_RUNTIME_DIR"]).parent
        os.environ["JUPYTER_RUNTIME_DIR"] = tempfile.mkdtemp(prefix="r", dir=root)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    item.config.stash[FAILED] = item.config.stash.get(FAILED, False) or report.failed
    return report


@pytest.fixture(scope="session", autouse=True)
def jupyter_folders() -> Iterator[Path]:
    """Set Jupyter and IPython folders for the tests, with paths short enough for Unix sockets."""
    with tempfile.TemporaryDirectory(prefix="bh-") as folder:
        root = Path(folder)
        patch = pytest.MonkeyPatch()
        patch.setenv("JUPYTER_RUNTIME_DIR", str(root / "run"))
        patch.setenv("JUPYTER_DATA_DIR", str(root / "data"))
        patch.setenv("JUPYTER_CONFIG_DIR", str(root / "config"))
        patch.setenv("IPYTHONDIR", str(root / "ipython"))
        patch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")
        # A manager checks every 0.1 s whether its kernel has exited. Most kernels of the tests exit
        # within 0.02 s.
        patch.setattr(KernelManager._async_wait, "__defaults__", (0.01,))
        patch.setattr(KernelManager._async_finish_shutdown, "__defaults__", (None, 0.01, False))
        for name in ("run", "data", "config", "ipython"):
            (root / name).mkdir(mode=0o700)
        yield root
        patch.undo()


@pytest.fixture(scope="session", autouse=True)
def reserved_ports() -> Iterator[None]:
    """Have jupyter_client, too, choose ports for kernels that nothing takes before they listen."""
    held: dict[int, socket.socket] = {}

    def find(_: LocalPortCache, ip: str) -> int:
        holder = reserved_port(ip)
        port: int = holder.getsockname()[1]
        held[port] = holder
        return port

    def give_back(_: LocalPortCache, port: int) -> None:
        if port in held:
            held.pop(port).close()

    with pytest.MonkeyPatch.context() as patch:
        if CAN_RESERVE:
            patch.setattr(LocalPortCache, "find_available_port", find)
            patch.setattr(LocalPortCache, "return_port", give_back)
        yield
    for holder in held.values():
        holder.close()


@pytest.fixture(autouse=True)
def traced_memory() -> Iterator[None]:
    """End the tracing that ``support.memory.trace_anew`` began."""
    yield
    if tracemalloc.is_tracing():
        tracemalloc.stop()


@pytest.fixture(autouse=True)
def public_errors(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check that a user can import the class of each error that a test with a kernel expects."""
    if request.path.relative_to(HERE).parts[0] not in WITH_KERNELS:
        return
    leave = pytest.RaisesExc.__exit__

    def check(raises: Any, kind: Any, error: Any, trace: Any) -> bool:
        assert error is None or is_public(error), f"users cannot import {kind}"
        return leave(raises, kind, error, trace)

    monkeypatch.setattr(pytest.RaisesExc, "__exit__", check)


@pytest.fixture(scope="module", autouse=True)
def few_objects_to_trace() -> None:
    """Exempt what exists before a file's tests from garbage collection.

    Many tests call ``gc.collect()``, which took up to 0.2 s: the modules and the caches of jedi
    and Hypothesis contain 500,000 objects.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def shorten(request: pytest.FixtureRequest) -> Iterator[Callable[..., None]]:
    """Replace the client's waits that the mark ``timings`` names; give a function that does so.

    Bridges that are open use the new waits, too. Shorten only a wait whose end the test waits for:
    one that must not end would end on a loaded machine.
    """
    timings = Transport.timings
    true = {name: getattr(timings, name) for name in Timings.__annotations__}

    def replace(**waits: object) -> None:
        for name, seconds in waits.items():
            assert name in true, name
            vars(timings)[name] = seconds  # they are frozen

    for mark in reversed(list(request.node.iter_markers("timings"))):  # the test's own come last
        replace(**mark.kwargs)
    yield replace
    replace(**true)


@pytest.fixture(scope="session")
def kernelspec(jupyter_folders: Path) -> Callable[..., str]:
    """Give a function that installs a kernelspec in the tests' folders and returns its name."""

    def install(
        name: str,
        argv: list[str],
        language: str = "python",
        env: Mapping[str, str] | None = None,
        metadata: Mapping[str, object] | None = None,
    ) -> str:
        folder = jupyter_folders / "data" / "kernels" / name
        folder.mkdir(parents=True, exist_ok=True)
        spec = {"argv": argv, "display_name": name, "language": language, "env": dict(env or {})}
        spec["metadata"] = dict(metadata or {})
        (folder / "kernel.json").write_text(json.dumps(spec))
        return name

    return install


@pytest.fixture(scope="session")
def elsewhere(kernelspec: Callable[..., str]) -> Elsewhere:
    """Give a builder of environments by name; ``launch`` takes the name that it returns."""
    return Elsewhere(Path(os.environ[ELSEWHERE]), kernelspec)


@pytest.fixture
def forker(pytestconfig: pytest.Config) -> KernelForker:
    """Give the object that forks the kernels (Linux only)."""
    return pytestconfig.stash[FORKER]


@pytest.fixture
def kernel_name(request: pytest.FixtureRequest) -> str:
    """Give the kernel that ``live`` launches: this Python's, or an indirect parameter's."""
    name: str = getattr(request, "param", "python3")
    return name if name == "python3" else request.getfixturevalue("elsewhere")(name)


@pytest.fixture
def pool() -> Iterator[Pool]:
    """Give a pool of segments that is closed afterwards."""
    pool = Pool(0.5)
    yield pool
    pool.close()


@pytest.fixture
async def loopback() -> AsyncIterator[Bridge]:
    """Give a bridge without a kernel, which opens in milliseconds."""
    async with Bridge.loopback() as bridge:
        yield bridge


@pytest.fixture
async def live(kernel_name: str) -> AsyncIterator[Bridge]:
    """Give a bridge to the test's own kernel."""
    async with Bridge.launch(kernel_name) as bridge:
        yield bridge


@pytest.fixture(scope="module")
async def harmless() -> AsyncIterator[Bridge]:
    """Give one kernel for all tests of a file that do not damage it."""
    async with Bridge.launch() as bridge:
        yield bridge


@pytest.fixture
async def kernel(harmless: Bridge) -> Bridge:
    """Give the shared kernel with an empty namespace."""
    if harmless.state == "busy":  # a failed test may have left its cell
        await harmless.interrupt()
        await harmless.run("")  # its requests behind that cell have ended
    names = [name.name for name in await harmless.names(modules=True)]
    if names:
        await harmless.delete(*names)
    return harmless


@pytest.fixture(scope="module")
async def server() -> AsyncIterator[str]:
    """Give the address of one Jupyter Server for all tests of a file."""
    async with serving() as url:
        yield url


@pytest.fixture
async def wire(server: str) -> AsyncIterator[Wire]:
    """Give a proxy to that server whose connections the test can break."""
    async with Wire(server) as wire:
        yield wire


EVERYWHERE = [
    *("loopback-buffers", "loopback-inline"),
    *("live-direct", "live-buffers", "live-inline"),
]


IN_MESSAGES = {*MESSAGES, *(f"live-{lane}" for lane in MESSAGES)}


@pytest.fixture(scope="module", params=EVERYWHERE)
async def everywhere(request: pytest.FixtureRequest) -> AsyncIterator[Bridge]:
    """Give one bridge a module for each place and lane; tests use it through ``bridge``."""
    where, _, lane = request.param.partition("-")
    opening = Bridge.loopback(lane=lane) if where == "loopback" else Bridge.launch(lane=lane)
    async with opening as opened:
        yield opened


@pytest.fixture
async def bridge(everywhere: Bridge) -> Bridge:
    """Give a bridge with an empty namespace: without a kernel and with one, on every lane."""
    names = [name.name for name in await everywhere.names(modules=True)]
    if names:
        await everywhere.delete(*names)
    return everywhere


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Import no folder that the markers leave out.

    To collect all tests takes 20 s of each worker, those of ``docs`` 2 s.
    """
    if collection_path.parent != HERE or not collection_path.is_dir():
        return None
    folder, marks = collection_path.name, config.getoption("markexpr")
    left_out = f"not {folder}" in marks or (marks in OWN_FOLDERS and folder != marks)
    return True if left_out else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by folder, mark and parameters.

    What starts a kernel is ``live``. With a real kernel, the parameters for lanes of messages are
    ``slow``: the README's command runs these tests on the direct lane, and those lanes on the
    loopback, which has the same remote part.
    """
    for item in items:
        fixtures = getattr(item, "fixturenames", ())
        parameters = getattr(getattr(item, "callspec", None), "params", {})
        place = str(parameters.get("everywhere", ""))
        folder = item.path.relative_to(HERE).parts[0]
        for mark in OWN_FOLDERS:
            if folder != mark and item.get_closest_marker(mark):
                raise pytest.UsageError(f"{item.nodeid} is marked {mark}: move it to tests/{mark}")
        if (
            (folder in WITH_KERNELS and not place.startswith("loopback"))
            or item.get_closest_marker("elsewhere")
            or "live" in fixtures
            or place.startswith("live")
        ):
            item.add_marker("live")
            if IN_MESSAGES & {*filter(is_text, parameters.values())}:
                item.add_marker("slow")


def is_text(value: object) -> bool:
    return isinstance(value, str)
