"""The environment of the tests marked ``objects``, with libraries that no other test needs.

Rule: it is built with ``venv`` and ``pip`` when ``pytest -m objects`` first needs it, and kept for
the next run, in the user's cache folder. It has these libraries alone: its Python finds all others,
and this checkout, in the environment that started it. The tests run there, in another process.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import site
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

# A torch of the ordinary index brings gigabytes of libraries for GPUs.
TORCH = ["torch==2.13.0+cpu" if sys.platform == "linux" else "torch==2.13.0"]
REQUIREMENTS = [*TORCH, "jax>=0.5", "pillow>=11", "polars>=1.30", "scipy>=1.14", "xarray>=2024.7"]
ORDINARY = "BRIDGEHEAD_ORDINARY"  # the variable with the folders of the environment that started it
LINK = (  # no comprehension: a .pth line runs where a nested scope does not see its imports
    f"import os, site; list(map(site.addsitedir, filter(None, os.environ.get('{ORDINARY}', '')"
    ".split(os.pathsep))))\n"
)
HINT = (
    "The CPU build of torch is on PyTorch's own index: set PIP_EXTRA_INDEX_URL to the address of "
    "its folder 'cpu'"
)


def folder() -> Path:
    """Return where the environment is, or will be."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    key = hashlib.sha256("\n".join([*REQUIREMENTS, LINK]).encode()).hexdigest()[:8]
    return cache / "bridgehead" / f"objects-{sys.version_info[0]}.{sys.version_info[1]}-{key}"


def is_inside() -> bool:
    """Return whether this process runs in the environment."""
    return Path(sys.prefix) == folder()


def run_inside(arguments: Sequence[str]) -> int:
    """Run pytest in the environment, which is built first if need be; return its exit code."""
    home, ordinary = folder(), os.pathsep.join(site.getsitepackages())
    home.parent.mkdir(parents=True, exist_ok=True)
    with home.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one process builds it
        if not (home / "complete").exists():
            print(f"building {home}", flush=True)
            _build(home, {**os.environ, ORDINARY: ordinary})
    command = [str(home / "bin" / "python"), "-m", "pytest", *arguments]
    return subprocess.run(command, env={**os.environ, ORDINARY: ordinary}).returncode


def _build(home: Path, environment: dict[str, str]) -> None:
    make = [sys.executable, "-m", "venv", "--clear", "--without-pip", str(home)]
    subprocess.run(make, check=True, env=environment)
    own = str(home / "bin" / "python")
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = subprocess.run([own, "-c", ask], capture_output=True, text=True, check=True)
    Path(packages.stdout.strip(), "_ordinary.pth").write_text(LINK)
    install = [sys.executable, "-m", "pip", "--python", own, "install", "-q", "--no-compile"]
    if subprocess.run([*install, *REQUIREMENTS], env=environment).returncode:
        raise SystemExit(f"cannot build {home}; see what pip says above. {HINT}")
    (home / "complete").touch()
