"""Other Pythons of this machine, other environments, and kernels in them.

Rule: nothing has to be installed beforehand. This file searches for interpreters. It builds an
environment with ``venv`` and ``pip`` in a temporary folder, once for all workers of a run, when the
first test needs it. A missing interpreter skips the test with a reason; a failed pip fails the test
with pip's whole output.
"""

from __future__ import annotations

import ast
import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

# ---------------------------------------------------------------- the Pythons of this machine


@dataclass(frozen=True)
class Python:
    """An interpreter that has been run."""

    path: str
    version: tuple[int, ...]

    def __str__(self) -> str:
        return ".".join(map(str, self.version))


def probe(path: str) -> Python | None:
    """Return the interpreter at ``path``, or None if it does not run (a pyenv shim may not)."""
    show = "import sys; print(sys.version_info[:3])"
    try:
        ran = subprocess.run(
            [path, "-I", "-S", "-c", show], capture_output=True, text=True, timeout=60, check=True
        )
        return Python(path, tuple(ast.literal_eval(ran.stdout)))
    except (OSError, subprocess.SubprocessError, ValueError, SyntaxError):
        return None


def candidates(search: str | None, roots: Sequence[Path]) -> Iterator[str]:
    """Yield the paths where a Python may be: on a search path and in pyenv's folders."""
    for minor in range(8, 16):
        found = shutil.which(f"python3.{minor}", path=search)
        if found:
            yield found
    for root in roots:
        yield from map(str, sorted(root.glob("versions/*/bin/python")))


def find_pythons(search: str | None, roots: Sequence[Path]) -> list[Python]:
    """Return this Python and all other versions from 3.8 on, each once, oldest first."""
    found: dict[tuple[int, ...], Python] = {}
    found[sys.version_info[:3]] = Python(sys.executable, sys.version_info[:3])
    for path in candidates(search, roots):
        python = probe(path)
        if python is not None and python.version >= (3, 8):
            found.setdefault(python.version, python)
    return sorted(found.values(), key=lambda python: python.version)


def pyenv_roots() -> list[Path]:
    roots = [os.environ["PYENV_ROOT"]] if "PYENV_ROOT" in os.environ else []
    try:
        ran = subprocess.run(["pyenv", "root"], capture_output=True, text=True, check=True)
        roots.append(ran.stdout.strip())
    except (OSError, subprocess.SubprocessError):
        pass
    return list(dict.fromkeys(map(Path, roots)))


@functools.cache
def pythons() -> list[Python]:
    return find_pythons(os.environ.get("PATH"), pyenv_roots())


# ---------------------------------------------------------------- environments


@dataclass(frozen=True)
class Environment:
    """A minor version of Python, its packages, and the command that starts its kernel.

    ``start`` follows the interpreter on the command line. ``within`` names the environment of
    another kernel, if this kernel is installed in it.
    """

    minor: tuple[int, int]
    requirements: tuple[str, ...]
    start: tuple[str, ...] = ("-m", "ipykernel_launcher", "-f", "{connection_file}")
    language: str = "python"
    within: str = ""


HERE = sys.version_info[:2]
OTHER = (3, 13) if HERE != (3, 13) else (3, 12)
THIRD = (3, 12) if HERE != (3, 12) else (3, 13)
NEWEST = f"python{OTHER[0]}.{OTHER[1]}"
TENTH = "python3.10"
OLDEST = "python3.9"
OBJECTS = ("cloudpickle>=3.1", "numpy>=2")

ENVIRONMENTS = {
    "ipykernel6": Environment(HERE, ("ipykernel==6.31.*", *OBJECTS)),
    NEWEST: Environment(OTHER, ("ipykernel==7.*", *OBJECTS)),
    TENTH: Environment((3, 10), ("ipykernel==6.29.*", *OBJECTS)),
    OLDEST: Environment((3, 9), ("ipykernel==6.31.*", *OBJECTS)),
    # Neither cloudpickle nor numpy, on another Python and on this one.
    "bare": Environment(THIRD, ("ipykernel==7.*",)),
    "bare-here": Environment(HERE, ("ipykernel==7.*",)),
    # The last pandas with older names of its classes.
    "pandas2.0": Environment(
        (3, 10), ("ipykernel==6.29.*", "pandas==2.0.*", "numpy<2", "cloudpickle>=3.1")
    ),
    "spyder": Environment(
        THIRD,
        ("spyder-kernels==3.*", "bash_kernel==0.10.*", *OBJECTS),
        ("-m", "spyder_kernels.console", "-f", "{connection_file}"),
    ),
    "xpython": Environment(
        HERE,
        ("xeus-python==0.19.*", *OBJECTS),
        ("-m", "xpython_launcher", "-f", "{connection_file}"),
    ),
}
# Kernels that bridgehead does not support, in the environments of other kernels.
UNSUPPORTED = {
    "bash": Environment(
        THIRD, (), ("-m", "bash_kernel", "-f", "{connection_file}"), "bash", within="spyder"
    ),
    "xpython-raw": Environment(
        HERE, (), ("-m", "xpython_launcher", "-f", "{connection_file}", "--raw"), within="xpython"
    ),
}

# For ``parametrize("kernel_name", MAJORS, indirect=True)``: both major versions of ipykernel.
MAJORS = ["python3", pytest.param("ipykernel6", marks=pytest.mark.elsewhere)]


class Elsewhere:
    """A builder of environments: a call with a name returns the name of its kernelspec.

    It builds each environment once. The workers of one run share the folder.
    """

    def __init__(self, folder: Path, kernelspec: Callable[..., str]) -> None:
        self.folder, self.kernelspec = folder, kernelspec

    def __call__(self, name: str) -> str:
        wanted = ENVIRONMENTS.get(name) or UNSUPPORTED[name]
        home = wanted.within or name
        python = _interpreter(wanted.minor)
        failure = self._failure(home, python)
        if failure:
            pytest.fail(failure, pytrace=False)
        argv = [self.python(name), *wanted.start]
        return self.kernelspec(name, argv, wanted.language, env={"PYTHONPATH": ""})

    def python(self, name: str) -> str:
        """Return the interpreter of an environment that was built."""
        wanted = ENVIRONMENTS.get(name) or UNSUPPORTED[name]
        return str(self.folder / (wanted.within or name) / "bin" / "python")

    def _failure(self, name: str, python: Python) -> str:
        """Build an environment if no worker has; return why that failed, or an empty text."""
        import fcntl  # not on Windows

        built = self.folder / f"{name}.built"  # has this text
        with built.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not built.exists():
                built.write_text(self._build(name, python, ENVIRONMENTS[name].requirements))
            return built.read_text()

    def _build(self, name: str, python: Python, requirements: Sequence[str]) -> str:
        folder = self.folder / name
        own = str(folder / "bin" / "python")
        # Measured: a pip in each environment takes 5 s, and compiling all its modules 7 s.
        has_pip = runs(python, PIP)
        make = [python.path, "-m", "venv", *["--without-pip"] * has_pip, str(folder)]
        pip = [python.path, "-m", "pip", "--python", own] if has_pip else [own, "-m", "pip"]
        options = ("--no-compile", "--disable-pip-version-check")
        for command in (make, [*pip, "install", *options, *requirements]):
            ran = subprocess.run(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=_clean()
            )
            if ran.returncode:
                reason = f"{' '.join(command)} ended with exit code {ran.returncode}"
                return f"cannot build environment {name!r}: {reason}:\n{ran.stdout}"
        return ""


def _interpreter(minor: tuple[int, int]) -> Python:
    """Return the newest Python of this version that can build an environment, or skip."""
    found = [python for python in pythons() if python.version[:2] == minor]
    for python in reversed(found):
        # Some distributions ship a Python without these modules.
        if runs(python, PIP) or runs(python, "import ensurepip, venv"):
            return python
    lacks = "without pip and ensurepip" if found else "on PATH or among pyenv's versions"
    pytest.skip(f"{'only' if found else 'no'} Python {minor[0]}.{minor[1]} {lacks}")


PIP = "import venv, pip; assert tuple(map(int, pip.__version__.split('.')[:2])) >= (22, 3)"


def runs(python: Python, code: str) -> bool:
    ran = subprocess.run([python.path, "-I", "-c", code], stderr=subprocess.DEVNULL)
    return ran.returncode == 0


def _clean() -> dict[str, str]:
    """Return the environment variables without those that add modules to a Python's path."""
    return {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
