"""The public names, their module, and the package as a program."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest

import bridgehead


def test_every_public_name_is_defined() -> None:
    assert [name for name in bridgehead.__all__ if not hasattr(bridgehead, name)] == []


def test_importing_bridgehead_imports_no_optional_library() -> None:
    found = (
        "print([name for name in ('IPython', 'anyio', 'anywidget', 'numpy', 'pandas', 'psutil') "
        "if name in sys.modules])"
    )
    code = f"import sys, jupyter_client; {found}; import bridgehead; {found}"
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    before, after = ran.stdout.splitlines()
    assert after == before


@pytest.mark.parametrize("name", bridgehead.__all__)
def test_a_public_name_says_bridgehead_as_its_module(name: str) -> None:
    public = getattr(bridgehead, name)
    assert (public.__module__, public.__qualname__) == ("bridgehead", name)
    assert pickle.loads(pickle.dumps(public)) is public


def test_the_package_runs_as_the_command_line() -> None:
    command = [sys.executable, "-m", "bridgehead", "--version"]
    ran = subprocess.run(command, check=True, capture_output=True, text=True)
    assert ran.stdout == f"bridgehead {bridgehead.__version__}\n"
    assert ran.stderr == ""
