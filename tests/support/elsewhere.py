"""Other Pythons and other environments: what this machine has, and kernels that live there.

Rule: nothing of ours need be installed. Interpreters are looked for, environments are built
with ``venv`` and ``pip`` when the first test asks for them, once a session, in a temporary
folder. What cannot be built because an interpreter is missing is a skip that says so; a pip
that fails is a failure, with all that it printed.
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
    """An interpreter that was seen to run."""

    path: str
    version: tuple[int, ...]

    def __str__(self) -> str:
        return ".".join(map(str, self.version))


def probe(path: str) -> Python | None:
    """The interpreter at ``path``, if it is one and runs (a pyenv shim may not)."""
    tell = "import sys; print(sys.version_info[:3])"
    try:
        ran = subprocess.run(
            [path, "-I", "-S", "-c", tell], capture_output=True, text=True, timeout=60, check=True
        )
        return Python(path, tuple(ast.literal_eval(ran.stdout)))
    except (OSError, subprocess.SubprocessError, ValueError, SyntaxError):
        return None


def candidates(search: str | None, roots: Sequence[Path]) -> Iterator[str]:
    """Where a Python may be: on a search path, and in pyenv's folders."""
    for minor in range(8, 16):
        found = shutil.which(f"python3.{minor}", path=search)
        if found:
            yield found
    for root in roots:
        yield from map(str, sorted(root.glob("versions/*/bin/python")))


def find_pythons(search: str | None, roots: Sequence[Path]) -> list[Python]:
    """The running Python and every other version from 3.8 on, each once, oldest first."""
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
    """A minor version of Python, what pip installs there, and the kernel that is started.

    ``start`` is what follows the interpreter; ``within`` names the environment of another kernel
    where this one is too.
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
    # Neither cloudpickle nor numpy: on another Python, and on this one.
    "bare": Environment(THIRD, ("ipykernel==7.*",)),
    "bare-here": Environment(HERE, ("ipykernel==7.*",)),
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
# Kernels that are no kernels for us, where others are installed.
UNSUPPORTED = {
    "bash": Environment(
        THIRD, (), ("-m", "bash_kernel", "-f", "{connection_file}"), "bash", within="spyder"
    ),
    "xpython-raw": Environment(
        HERE, (), ("-m", "xpython_launcher", "-f", "{connection_file}", "--raw"), within="xpython"
    ),
}

# For ``parametrize("kernel_name", MAJORS, indirect=True)``: a test on both majors of ipykernel.
MAJORS = ["python3", pytest.param("ipykernel6", marks=pytest.mark.elsewhere)]


class Elsewhere:
    """Called with an environment's name: builds it, once, and gives its kernelspec's name."""

    def __init__(self, folder: Path, kernelspec: Callable[..., str]) -> None:
        self.folder, self.kernelspec = folder, kernelspec
        self.failures: dict[str, str] = {}  # of the environments that were tried; "" if none

    def __call__(self, name: str) -> str:
        wanted = ENVIRONMENTS.get(name) or UNSUPPORTED[name]
        home = wanted.within or name
        python = _interpreter(wanted.minor)
        if home not in self.failures:
            self.failures[home] = self._build(home, python, ENVIRONMENTS[home].requirements)
        if self.failures[home]:
            pytest.fail(self.failures[home], pytrace=False)
        argv = [self.python(name), *wanted.start]
        return self.kernelspec(name, argv, wanted.language, env={"PYTHONPATH": ""})

    def python(self, name: str) -> str:
        """The interpreter of an environment that was built."""
        wanted = ENVIRONMENTS.get(name) or UNSUPPORTED[name]
        return str(self.folder / (wanted.within or name) / "bin" / "python")

    def _build(self, name: str, python: Python, requirements: Sequence[str]) -> str:
        folder = self.folder / name
        own = str(folder / "bin" / "python")
        # A pip in each environment takes 5 s, and compiling what is not imported 7 (measured).
        guest = runs(python, PIP)
        make = [python.path, "-m", "venv", *["--without-pip"] * guest, str(folder)]
        pip = [python.path, "-m", "pip", "--python", own] if guest else [own, "-m", "pip"]
        options = ("--no-compile", "--disable-pip-version-check")
        for command in (make, [*pip, "install", *options, *requirements]):
            ran = subprocess.run(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=_clean()
            )
            if ran.returncode:
                told = f"{' '.join(command)} ended with exit code {ran.returncode}"
                return f"no environment {name!r}: {told}:\n{ran.stdout}"
        return ""


def _interpreter(minor: tuple[int, int]) -> Python:
    """The newest of this minor version that can make a virtual environment, else a skip."""
    found = [python for python in pythons() if python.version[:2] == minor]
    for python in reversed(found):
        # Some distributions ship a Python without them.
        if runs(python, PIP) or runs(python, "import ensurepip, venv"):
            return python
    lacks = "without pip and ensurepip" if found else "on PATH or among pyenv's versions"
    pytest.skip(f"{'only' if found else 'no'} Python {minor[0]}.{minor[1]} {lacks}")


PIP = "import venv, pip; assert tuple(map(int, pip.__version__.split('.')[:2])) >= (22, 3)"


def runs(python: Python, code: str) -> bool:
    ran = subprocess.run([python.path, "-I", "-c", code], stderr=subprocess.DEVNULL)
    return ran.returncode == 0


def _clean() -> dict[str, str]:
    """The environment variables without those that would let modules of ours in."""
    return {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
