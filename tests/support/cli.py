"""The installed ``bridgehead`` in processes of its own, in a pipe and in a terminal.

Rule: what a person or a script would run; what counts is what it prints, how it exits, and what
it leaves behind.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pexpect
import pyte

SCRIPT = Path(sysconfig.get_path("scripts")) / "bridgehead"
PATIENCE = 120.0  # s; nothing here measures speed


@dataclass(frozen=True)
class Ran:
    """What a command did."""

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
        """The one sentence of a command that failed."""
        assert self.code == code, (self.code, self.out, self.err)
        assert "Traceback" not in self.err
        return " ".join(self.err.split())


def environment(**more: str) -> dict[str, str]:
    """Colour and width are a terminal's own, whoever runs the tests."""
    unwanted = ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "TTY_COMPATIBLE")
    kept = {name: value for name, value in os.environ.items() if name not in unwanted}
    return {**kept, "PYTHONUTF8": "1", "TERM": "xterm-256color", **more}


def bridgehead(*arguments: object, stdin: bytes = b"", cwd: Path | None = None, **env: str) -> Ran:
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


def begun(*arguments: object, **how: Any) -> subprocess.Popen[bytes]:
    """A command that goes on; whoever starts it ends it."""
    # What is run in the background of a script is deaf to Ctrl-C, and so are its children.
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
        """The screen, once it shows that."""
        until = time.monotonic() + PATIENCE
        while text not in self.text:
            assert time.monotonic() < until, self.text
            if not self._read():
                assert text in self.text, self.text
        return self.text

    def end(self) -> int:
        """The exit code, once it has ended by itself; then the screen is whole."""
        until = time.monotonic() + PATIENCE
        while self._read():
            if time.monotonic() > until:
                self._process.close(force=True)
                raise AssertionError(f"it did not end:\n{self.text}")
        self._process.close()
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
