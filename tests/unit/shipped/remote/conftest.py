"""Fixtures of the remote part's tests: a process for each Python, and namespaces in it.

Rule: one process serves one Python for the whole session; see ``support/bare.py``.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support import objects
from support.bare import CLOUDPICKLE, PYTHONS, Bare, Space
from support.elsewhere import Python

# Their libraries are only in the environment of ``pytest -m objects``.
collect_ignore = [] if objects.is_inside() else ["test_detail_libraries.py"]


@pytest.fixture(scope="session")
def kernels() -> Iterator[Callable[..., Bare]]:
    """Start one process for each Python, with and without packages, on first use."""
    started: list[Bare] = []

    @functools.cache
    def start(python: Python, folder: str | None) -> Bare:
        started.append(Bare(python, [folder] if folder else []))
        return started[-1]

    yield start
    for bare in started:
        bare.end()
    for bare in started:
        bare.close()


# The Pythons in between run only the tests of the handshake, of data and of code.
MAIN_PYTHONS = {PYTHONS[0], Python(sys.executable, sys.version_info[:3]), PYTHONS[-1]}
IN_ALL = ("test_hello_", "test_data_crosses_", "test_code_")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "python" in metafunc.fixturenames:
        in_all = metafunc.function.__name__.startswith(IN_ALL)
        pythons = [
            python
            if in_all or python in MAIN_PYTHONS
            else pytest.param(python, marks=pytest.mark.elsewhere)
            for python in PYTHONS
        ]
        metafunc.parametrize("python", pythons, ids=str)


@pytest.fixture
def space(python: Python, kernels: Callable[..., Bare]) -> Iterator[Space]:
    """Open a namespace in a Python without packages; its remote part must outlive the test."""
    opened = Space(kernels(python, None)).prepare()
    yield opened
    opened.bind(still_here=[1, "é"])
    assert opened.fetch("still_here") == [1, "é"]


@pytest.fixture
def equipped(
    python: Python, kernels: Callable[..., Bare], tmp_path_factory: pytest.TempPathFactory
) -> Space:
    """Open a namespace in a Python that has only cloudpickle, which is pure Python."""
    folder = tmp_path_factory.getbasetemp() / "packages"
    if not folder.exists():
        folder.mkdir()
        (folder / "cloudpickle").symlink_to(Path(CLOUDPICKLE) / "cloudpickle")
    return Space(kernels(python, str(folder))).prepare()
