"""The fixtures that pytest gets from bridgehead, in the tests of a user's project.

Rule: pytest itself, in a process and a folder of its own, as a user would start it.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ASYNCIO = """
import pytest

@pytest.mark.asyncio
async def test_of_a_kernel(bridge):
    await bridge.push(x=[1, 2])
    assert (await bridge.run("print(sum(x))")).stdout == "3\\n"

@pytest.mark.asyncio
async def test_of_another_kernel(bridge):
    assert not await bridge.exists("x")

@pytest.mark.asyncio
async def test_without_a_kernel(loopback_bridge):
    await loopback_bridge.push(x=1)
    assert await loopback_bridge.pull("x + 1") == 2
    assert loopback_bridge.info.transport == "loopback"
"""
BACKEND = """
@pytest.fixture
def anyio_backend():
    return "asyncio"
"""
ANYIO = ASYNCIO.replace("asyncio", "anyio") + BACKEND
README = (Path(__file__).parents[2] / "README.md").read_text()
PLAIN = """
def test_what_was_imported():
    import sys
    assert "bridgehead" not in sys.modules
"""


def pytest_ran(folder: Path, text: str, *options: str) -> str:
    """What pytest told of a test file with this text."""
    (folder / "test_it.py").write_text(text)
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    return ran.stdout + ran.stderr


@pytest.mark.parametrize("mode", ["strict", "auto"])
def test_pytest_asyncio_serves_them(tmp_path: Path, mode: str) -> None:
    told = pytest_ran(tmp_path, ASYNCIO, f"--asyncio-mode={mode}")
    assert "3 passed" in told, told


def test_the_readmes_example_passes(tmp_path: Path) -> None:
    section = README.split("\n## In your tests\n")[1]
    told = pytest_ran(tmp_path, section.split("```python\n")[1].split("```")[0])
    assert "1 passed" in told, told


def test_anyio_serves_them(tmp_path: Path) -> None:
    told = pytest_ran(tmp_path, ANYIO, "-p", "no:asyncio")
    assert "3 passed" in told, told


def test_they_are_listed_with_what_they_are(tmp_path: Path) -> None:
    told = pytest_ran(tmp_path, PLAIN, "--fixtures")
    assert "A ``Bridge`` to a kernel of the test's own" in told
    assert "A ``Bridge`` without a kernel" in told


def test_nothing_is_imported_for_tests_that_use_none(tmp_path: Path) -> None:
    told = pytest_ran(tmp_path, PLAIN)
    assert "1 passed" in told, told
