"""The pytest fixtures of bridgehead, in the tests of a user's project.

Rule: each test starts pytest in another process and folder, as a user does.
"""

from __future__ import annotations

import re
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
PAGE = Path(__file__).parents[2] / "notebooks" / "guides" / "testing.md"
PLAIN = """
def test_what_was_imported():
    import sys
    assert "bridgehead" not in sys.modules
"""


def pytest_ran(folder: Path, text: str, *options: str) -> str:
    """Run pytest on a test file with this text and return its output."""
    (folder / "test_it.py").write_text(text)
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    return ran.stdout + ran.stderr


@pytest.mark.parametrize("mode", ["strict", pytest.param("auto", marks=pytest.mark.slow)])
def test_the_fixtures_work_with_pytest_asyncio(tmp_path: Path, mode: str) -> None:
    output = pytest_ran(tmp_path, ASYNCIO, f"--asyncio-mode={mode}")
    assert "3 passed" in output, output


def test_the_example_of_the_page_passes(tmp_path: Path) -> None:
    output = pytest_ran(tmp_path, PAGE.read_text().split("```python\n")[1].split("```")[0])
    assert "2 passed" in output, output


def test_the_settings_of_the_page_replace_the_marks_of_its_example(tmp_path: Path) -> None:
    page = PAGE.read_text()
    (settings,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "pyproject.toml").write_text(settings)
    (example,) = re.findall(r"```python\n([^`]*loop_scope=\"module\"[^`]*)```", page)
    text = re.sub(
        r"^pytestmark = .*\n|\(?loop_scope=\"module\"\)|, loop_scope=\"module\"",
        "",
        example,
        flags=re.M,
    )
    assert "loop_scope" not in text
    output = pytest_ran(tmp_path, text)
    assert "2 passed" in output, output
    (tmp_path / "pyproject.toml").unlink()
    assert "2 passed" not in pytest_ran(tmp_path, text)


@pytest.mark.slow
def test_the_fixtures_work_with_anyio(tmp_path: Path) -> None:
    output = pytest_ran(tmp_path, ANYIO, "-p", "no:asyncio")
    assert "3 passed" in output, output


def test_the_fixtures_are_listed_with_descriptions(tmp_path: Path) -> None:
    output = pytest_ran(tmp_path, PLAIN, "--fixtures")
    assert "a ``Bridge`` to a kernel of the test's own" in output
    assert "a ``Bridge`` without a kernel" in output


@pytest.mark.slow
def test_bridgehead_is_not_imported_for_tests_without_its_fixtures(tmp_path: Path) -> None:
    output = pytest_ran(tmp_path, PLAIN)
    assert "1 passed" in output, output
