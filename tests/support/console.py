"""A real ``jupyter console``, its keyboard and its screen.

Rule: what the screen shows is waited for, never slept for.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable

import pexpect
import pyte
import pytest

PATIENCE = 120.0  # s; two slow cores start a console in 4, and nothing here measures speed
ROWS, COLUMNS = 50, 100  # more rows than any test fills: a screen that scrolls can't be compared


class Terminal(pyte.Screen):
    """A screen that answers the questions a program asks of it, as a real terminal does."""

    def __init__(self, answer: Callable[[bytes], object]) -> None:
        super().__init__(COLUMNS, ROWS)
        self._answer = answer

    def write_process_input(self, data: str) -> None:
        self._answer(data.encode())


class Console:
    """A ``jupyter console`` process, its keyboard and its screen."""

    def __init__(self, connection_file: str, *options: str) -> None:
        command = ["-m", "jupyter_console", "--existing", connection_file, "--no-confirm-exit"]
        # Whether a line is complete is asked of the kernel; without an answer in time, which is
        # 1 s by default, Enter would only begin another line.
        command.append(f"--ZMQTerminalInteractiveShell.kernel_is_complete_timeout={PATIENCE}")
        self._start([*command, *options])

    def _start(self, command: list[str]) -> None:
        self._process = pexpect.spawn(
            sys.executable,
            command,
            dimensions=(ROWS, COLUMNS),
            env={**os.environ, "TERM": "xterm-256color"},
        )
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
            data = b""  # Linux says EIO when nobody has the other end any more
        if data:
            self._stream.feed(data)
        else:
            self.ended = True
            asyncio.get_running_loop().remove_reader(self._keyboard)
        self._changed.set()

    @property
    def screen(self) -> str:
        """What a person sees, without the blanks at the ends of lines."""
        return "\n".join(line.rstrip() for line in self._terminal.display).rstrip()

    @property
    def cursor(self) -> tuple[int, int]:
        return self._terminal.cursor.y, self._terminal.cursor.x

    def type(self, keys: str) -> None:
        os.write(self._keyboard, keys.encode())

    async def wait(self, condition: Callable[[], object]) -> None:
        """Until the screen makes it true; fails with what the screen shows instead."""
        try:
            async with asyncio.timeout(PATIENCE):
                while not condition():
                    assert not self.ended, f"the console ended, and left:\n{self.screen}"
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            pytest.fail(f"this is all the console shows:\n{self.screen}")

    async def shows(self, text: str) -> None:
        await self.wait(lambda: text in self.screen)

    async def prompts(self, number: int) -> None:
        """Until it waits for cell ``number``: the prompt is the last line, the cursor behind it."""
        prompt = f"In [{number}]:"
        await self.wait(
            lambda: (
                self.screen.splitlines()[-1:] == [prompt]
                and self.cursor == (self.screen.count("\n"), len(prompt) + 1)
            )
        )

    async def close(self) -> None:
        """Close the terminal window, as it were; whoever doesn't hang up is killed."""
        asyncio.get_running_loop().remove_reader(self._keyboard)
        await asyncio.to_thread(self._process.close, force=True)
        assert not self._process.isalive()
