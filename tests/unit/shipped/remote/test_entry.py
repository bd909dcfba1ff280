"""The handshake, under every Python found here, from 3.8 on.

Rule: another interpreter evaluates the client's expressions; see ``support/bare.py``.
"""

from __future__ import annotations

import ast
import os
import shutil
import sys
from pathlib import Path

import cloudpickle
import pytest

from bridgehead._protocol import bootstrap as _bootstrap
from support.bare import PYTHONS, Space
from support.elsewhere import Python, find_pythons


def test_the_running_python_is_always_among_those_found() -> None:
    assert find_pythons("", []) == [Python(sys.executable, sys.version_info[:3])]
    assert Python(sys.executable, sys.version_info[:3]) in PYTHONS


def test_a_shim_that_does_not_run_is_not_a_python(tmp_path: Path) -> None:
    shim = tmp_path / "python3.9"
    shim.write_text("#!/bin/sh\necho 'pyenv: python3.9: command not found' >&2\nexit 127\n")
    shim.chmod(0o755)
    assert shutil.which("python3.9", path=str(tmp_path)) == str(shim)
    assert find_pythons(str(tmp_path), []) == find_pythons("", [])


def test_no_version_is_tested_twice_and_none_is_too_old() -> None:
    versions = [python.version for python in PYTHONS]
    assert len(set(versions)) == len(versions)
    assert min(versions) >= (3, 8)


@pytest.mark.parametrize("source", _bootstrap.remote_source()[1], ids=_bootstrap.SHIPPED)
def test_the_source_is_syntax_of_python_3_8(source: str) -> None:
    tree = ast.parse(source, feature_version=(3, 8))
    assert any(isinstance(node, (ast.ClassDef, ast.FunctionDef)) for node in tree.body)
    compile(source, "<source>", "exec")


# ---------------------------------------------------------------- the handshake


def test_hello_describes_the_kernel(space: Space) -> None:
    greeting = space.hello()
    assert tuple(greeting["python"]) == space.python.version
    assert greeting["pid"] == space.bare.process.pid
    assert greeting["cwd"] == os.getcwd()
    assert greeting["pickle"] >= 5
    assert greeting["versions"] == {}
    assert Path(greeting["executable"]).exists()


def test_hello_reports_the_installed_packages(equipped: Space) -> None:
    equipped.cell("import cloudpickle")
    assert equipped.hello()["versions"] == {"cloudpickle": cloudpickle.__version__}


def test_hello_again_finds_the_same_remote_part(space: Space) -> None:
    assert space.hello()["epoch"] == space.hello()["epoch"]


def test_two_namespaces_of_one_process_are_served_separately(space: Space) -> None:
    other = Space(space.bare)
    other.hello()
    space.bind(x=1)
    other.bind(x=2)
    assert other.epoch != space.epoch
    assert (space.fetch("x"), other.fetch("x")) == (1, 2)


def test_hello_works_in_a_deleted_folder(space: Space, tmp_path: Path) -> None:
    deleted = tmp_path / "deleted"
    deleted.mkdir()
    space.cell(f"import os; home = os.getcwd(); os.chdir({str(deleted)!r})")
    deleted.rmdir()
    try:
        assert tuple(space.hello()["python"]) == space.python.version
    finally:
        space.cell("os.chdir(home)")
