"""The command line: in this process, in a process of its own, and in a terminal.

Rule: what a person or a script would run. Tests look at what a command prints, how it exits, and
what it leaves behind. ``bridgehead`` saves the start of a Python; each command also has a test
with ``bridgehead_process``, which runs the installed script.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import os
import signal
import subprocess
import sys
import sysconfig
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pexpect
import pyte

from bridgehead._tools.cli import main

SCRIPT = Path(sysconfig.get_path("scripts")) / "bridgehead"
PATIENCE = 120.0  # s; nothing here measures speed


@dataclass(frozen=True)
class Ran:
    """The exit code and the output of a command."""

    code: int
    raw: bytes
    err: str

    @property
    def out(self) -> str:
        return self.raw.decode()

    @property
    def json(self) -> Any:
        assert self.code == 0, self.err
        return json.loads(self.raw)

    def refused(self, code: int) -> str:
        """Return the one sentence of a command that failed with this code."""
        assert self.code == code, (self.code, self.out, self.err)
        assert "Traceback" not in self.err
        return " ".join(self.err.split())


def environment(**more: str) -> dict[str, str]:
    """Return an environment without settings for colour and width: the terminal decides."""
    unwanted = ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "TTY_COMPATIBLE")
    kept = {name: value for name, value in os.environ.items() if name not in unwanted}
    return {**kept, "PYTHONUTF8": "1", "TERM": "xterm-256color", **more}


def bridgehead(*arguments: object, stdin: bytes = b"", cwd: Path | None = None, **env: str) -> Ran:
    """Run a command in this process, with streams, environment and folder of its own."""
    out, err = io.BytesIO(), io.BytesIO()
    streams = {"stdin": io.BytesIO(stdin), "stdout": out, "stderr": err}
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.dict(os.environ, environment(**env), clear=True))
        stack.enter_context(mock.patch.object(sys, "argv", ["bridgehead", *map(str, arguments)]))
        for name, stream in streams.items():
            text = io.TextIOWrapper(stream, "utf-8")
            stack.enter_context(mock.patch.object(sys, name, text))
        if cwd is not None:
            stack.enter_context(contextlib.chdir(cwd))
        stack.callback(logging.disable, logging.root.manager.disable)
        stack.enter_context(warnings.catch_warnings())
        _use_the_filters_of_a_program()
        code = _run_main()
        sys.stdout.flush()
        sys.stderr.flush()
        return Ran(code, out.getvalue(), err.getvalue().decode())


def _run_main() -> int:
    """Run ``main`` in this thread, or in another one if an event loop is running in this one."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return _exit_code()
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(_exit_code).result()


def _exit_code() -> int:
    try:
        main()
    except SystemExit as ended:
        code = ended.code
    else:
        raise AssertionError("main() returned, but should raise SystemExit")
    assert isinstance(code, int)
    return code


def _use_the_filters_of_a_program() -> None:
    """Show warnings as Python does by default; pytest turns them into errors."""
    warnings.resetwarnings()
    for hidden in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
        warnings.simplefilter("ignore", hidden)


def bridgehead_process(
    *arguments: object, stdin: bytes = b"", cwd: Path | None = None, **env: str
) -> Ran:
    """Run the installed script in a process of its own."""
    done = subprocess.run(
        [SCRIPT, *map(str, arguments)],
        env=environment(**env),
        cwd=cwd,
        input=stdin,
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    return Ran(done.returncode, done.stdout, done.stderr.decode())


def start_command(*arguments: object, **how: Any) -> subprocess.Popen[bytes]:
    """Start a command that goes on; the caller ends it."""
    # A script's background jobs ignore Ctrl-C, and so do their children: restore the default.
    hearing = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    if sys.platform == "win32":
        hearing = {}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **how}
    return subprocess.Popen([SCRIPT, *map(str, arguments)], env=environment(), **pipes, **hearing)


class Terminal:
    """A command in a terminal of its own, and its screen."""

    def __init__(self, *arguments: object, rows: int = 24, columns: int = 80, **env: str) -> None:
        self.screen = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self.screen)
        self.raw = b""
        self._process = pexpect.spawn(
            str(SCRIPT),
            [*map(str, arguments)],
            dimensions=(rows, columns),
            env=environment(**env),
        )
        self._process.ptyproc.delayafterclose = 0.01  # s; ``end`` waits for the exit itself

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.close(force=True)

    @property
    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self.screen.display).rstrip()

    def press(self, keys: str) -> None:
        self._process.send(keys)

    def until(self, text: str) -> str:
        """Wait until the screen shows a text, and return the screen."""
        until = time.monotonic() + PATIENCE
        while text not in self.text:
            assert time.monotonic() < until, self.text
            if not self._read():
                assert text in self.text, self.text
        return self.text

    def end(self) -> int:
        """Wait until the command exits by itself, and return its exit code."""
        until = time.monotonic() + PATIENCE
        while self._read():
            if time.monotonic() > until:
                self._process.close(force=True)
                raise AssertionError(f"the command did not exit:\n{self.text}")
        self._process.wait()
        code = self._process.exitstatus
        assert code is not None, self._process.signalstatus
        return code

    def _read(self) -> bool:
        try:
            data = self._process.read_nonblocking(1 << 16, timeout=1)
        except pexpect.TIMEOUT:
            return True
        except pexpect.EOF:
            return False
        self.raw += data
        self._stream.feed(data)
        return True
