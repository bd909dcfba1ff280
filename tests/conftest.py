"""What the tests share: loopback bridges, real kernels, and Jupyter servers.

Rule: kernels are started by the test that uses them and ended by their own handle; a fixture
that shares one over a module gives every test an empty namespace.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path

import pytest

from bridgehead import Bridge
from bridgehead._shipped.wire.segments import Pool
from support.elsewhere import Elsewhere
from support.servers import Wire, serving

HERE = Path(__file__).parent
WITH_KERNELS = ("kernel", "servers", "elsewhere")  # the folders whose tests start some


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--write",
        action="store_true",
        help="write the README's table of kernels, or its picture, as seen",
    )


@pytest.fixture(scope="session", autouse=True)
def jupyter_folders() -> Iterator[Path]:
    """Runtime, data and IPython folders of the suite's own, short enough for Unix sockets."""
    with tempfile.TemporaryDirectory(prefix="bh-") as folder:
        root = Path(folder)
        patch = pytest.MonkeyPatch()
        patch.setenv("JUPYTER_RUNTIME_DIR", str(root / "run"))
        patch.setenv("JUPYTER_DATA_DIR", str(root / "data"))
        patch.setenv("JUPYTER_CONFIG_DIR", str(root / "config"))
        patch.setenv("IPYTHONDIR", str(root / "ipython"))
        patch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")
        for name in ("run", "data", "config", "ipython"):
            (root / name).mkdir(mode=0o700)
        yield root
        patch.undo()


@pytest.fixture(scope="session")
def kernelspec(jupyter_folders: Path) -> Callable[..., str]:
    """Installs a kernelspec for the suite's own Jupyter folders; gives its name."""

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
def elsewhere(kernelspec: Callable[..., str]) -> Iterator[Elsewhere]:
    """Builds the environment of a name, once a session; ``launch`` takes what it gives."""
    with tempfile.TemporaryDirectory(prefix="bh-elsewhere-") as folder:
        yield Elsewhere(Path(folder), kernelspec)


@pytest.fixture
def kernel_name(request: pytest.FixtureRequest) -> str:
    """The kernel that ``live`` launches: this Python's, or that of an indirect parameter."""
    name: str = getattr(request, "param", "python3")
    return name if name == "python3" else request.getfixturevalue("elsewhere")(name)


@pytest.fixture
def pool() -> Iterator[Pool]:
    """What one sender fills, closed afterwards."""
    pool = Pool(0.5)
    yield pool
    pool.close()


@pytest.fixture
async def loopback() -> AsyncIterator[Bridge]:
    """A bridge to nowhere: milliseconds."""
    async with Bridge.loopback() as bridge:
        yield bridge


@pytest.fixture
async def live(kernel_name: str) -> AsyncIterator[Bridge]:
    """A bridge to a kernel of the test's own."""
    async with Bridge.launch(kernel_name) as bridge:
        yield bridge


@pytest.fixture(scope="module")
async def harmless() -> AsyncIterator[Bridge]:
    """One kernel for all tests of a file that leave it as it was."""
    async with Bridge.launch() as bridge:
        yield bridge


@pytest.fixture
async def kernel(harmless: Bridge) -> Bridge:
    """The kernel that is shared, with nothing in its namespace."""
    if harmless.state == "busy":  # a test that failed may have left its cell
        await harmless.interrupt()
    names = [told.name for told in await harmless.names()]
    if names:
        await harmless.delete(*names)
    return harmless


@pytest.fixture(scope="module")
async def server() -> AsyncIterator[str]:
    """The address of one Jupyter Server for all tests of a file."""
    async with serving() as url:
        yield url


@pytest.fixture
async def wire(server: str) -> AsyncIterator[Wire]:
    """A way to that server which the test can break."""
    async with Wire(server) as wire:
        yield wire


EVERYWHERE = [
    *("loopback-buffers", "loopback-inline"),
    *("live-direct", "live-buffers", "live-inline"),
]


@pytest.fixture(scope="module", params=EVERYWHERE)
async def everywhere(request: pytest.FixtureRequest) -> AsyncIterator[Bridge]:
    """One bridge a module for each place and lane; tests take it through ``bridge``."""
    where, _, lane = request.param.partition("-")
    opening = Bridge.loopback(lane=lane) if where == "loopback" else Bridge.launch(lane=lane)
    async with opening as opened:
        yield opened


@pytest.fixture
async def bridge(everywhere: Bridge) -> Bridge:
    """The same case everywhere: no kernel and a real one, every lane; an empty namespace."""
    names = [told.name for told in await everywhere.names()]
    if names:
        await everywhere.delete(*names)
    return everywhere


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever starts a kernel is ``live``: by its folder, its mark or the fixture's parameter."""
    for item in items:
        fixtures = getattr(item, "fixturenames", ())
        parameter = str(
            getattr(getattr(item, "callspec", None), "params", {}).get("everywhere", "")
        )
        folder = item.path.relative_to(HERE).parts[0]
        if (
            (folder in WITH_KERNELS and not parameter.startswith("loopback"))
            or item.get_closest_marker("elsewhere")
            or "live" in fixtures
            or parameter.startswith("live")
        ):
            item.add_marker("live")
