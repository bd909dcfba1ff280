"""A real ``jupyter console``, its keyboard and its screen.

Rule: a test waits for a text on the screen and never sleeps instead.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable

import pexpect
import pyte
import pytest

PATIENCE = 120.0  # s; two slow cores start a console in 4 s, and no test here measures speed
ROWS, COLUMNS = (
    50,
    100,
)  # more rows than any test fills, because a screen that scrolls cannot be compared


class Terminal(pyte.Screen):
    """A screen that answers a program's queries, as a real terminal does."""

    def __init__(self, answer: Callable[[bytes], object]) -> None:
        super().__init__(COLUMNS, ROWS)
        self._answer = answer

    def write_process_input(self, data: str) -> None:
        self._answer(data.encode())


class Console:
    """A ``jupyter console`` process, its keyboard and its screen."""

    def __init__(self, connection_file: str, *options: str) -> None:
        command = ["-m", "jupyter_console", "--existing", connection_file, "--no-confirm-exit"]
        # The console asks the kernel whether a line is complete. Without a reply within 1 s, the
        # default, Enter only begins another line.
        command.append(f"--ZMQTerminalInteractiveShell.kernel_is_complete_timeout={PATIENCE}")
        self._start([*command, *options])

    def _start(self, command: list[str]) -> None:
        self._process = pexpect.spawn(
            sys.executable,
            command,
            dimensions=(ROWS, COLUMNS),
            env={**os.environ, "TERM": "xterm-256color"},
        )
        self._process.ptyproc.delayafterclose = 0.01  # s
        self._keyboard = self._process.child_fd
        self._terminal = Terminal(lambda answer: os.write(self._keyboard, answer))
        self._stream = pyte.ByteStream(self._terminal)
        self._changed = asyncio.Event()
        self.ended = False
        asyncio.get_running_loop().add_reader(self._keyboard, self._read)

    def _read(self) -> None:
        try:
            data = os.read(self._keyboard, 1 << 16)
        except OSError:
            data = b""  # Linux raises EIO when no process has the other end open
        if data:
            self._stream.feed(data)
        else:
            self.ended = True
            asyncio.get_running_loop().remove_reader(self._keyboard)
        self._changed.set()

    @property
    def screen(self) -> str:
        """The text on the screen, without the blanks at the ends of lines."""
        return "\n".join(line.rstrip() for line in self._terminal.display).rstrip()

    @property
    def cursor(self) -> tuple[int, int]:
        return self._terminal.cursor.y, self._terminal.cursor.x

    def type(self, keys: str) -> None:
        os.write(self._keyboard, keys.encode())

    async def wait(self, condition: Callable[[], object]) -> None:
        """Wait until the condition holds; if it never does, fail with the text on the screen."""
        try:
            async with asyncio.timeout(PATIENCE):
                while not condition():
                    assert not self.ended, f"the console ended with this screen:\n{self.screen}"
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            pytest.fail(f"the console shows only this:\n{self.screen}")

    async def shows(self, text: str) -> None:
        await self.wait(lambda: text in self.screen)

    async def prompts(self, number: int) -> None:
        """Wait for the prompt of cell ``number`` on the last line, with the cursor behind it."""
        prompt = f"In [{number}]:"
        await self.wait(
            lambda: (
                self.screen.splitlines()[-1:] == [prompt]
                and self.cursor == (self.screen.count("\n"), len(prompt) + 1)
            )
        )

    async def close(self) -> None:
        """Close the terminal; kill the console if it does not end."""
        asyncio.get_running_loop().remove_reader(self._keyboard)
        await asyncio.to_thread(self._end)

    def _end(self) -> None:
        # pexpect looks for the end of a killed process only a moment after it sent the signal.
        try:
            self._process.close(force=True)
        except pexpect.ExceptionPexpect:
            self._process.wait()
