"""The kernel's process, as the manager that started it knows it.

Rule: the manager and its provisioner are asked, and nothing else. Where the kernel runs and how
it is started and ended is the provisioner's: a child of this process's, or whatever another one
that is installed makes of it. Only a child is looked at ten times a second, and only its exit
code is believed to be more than a sign that it has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from typing import Any

from jupyter_core.utils import ensure_async

from bridgehead._transports.tasks import waited

LOOK_EVERY = 0.1  # s between two looks at a child
ASK_EVERY = 1.0  # s between two questions to a provisioner, each of which may be a call elsewhere
LOG = 1 << 20  # bytes; only the end of it is ever wanted
LAST_WORDS = 2000  # bytes of it that are told


class KernelProcess:
    """A kernel's manager. ``log`` is a file with what the kernel wrote to its standard error."""

    def __init__(self, manager: Any, log: Any = None) -> None:
        self.manager, self._log = manager, log
        self.exit_code: int | None = None

    @property
    def _process(self) -> Any:
        return getattr(self.manager.provisioner, "process", None)

    async def pause(self, sooner: asyncio.Event) -> None:
        """Until it is time for the next look; ``sooner`` says that the kernel may be gone."""
        await asyncio.sleep(LOOK_EVERY)
        self._trim()
        if self._process is None:
            async with waited(ASK_EVERY):
                await sooner.wait()

    async def has_ended(self) -> bool:
        """Whether the kernel has ended; sets ``exit_code`` where it is known."""
        try:
            if await ensure_async(self.manager.is_alive()):
                return False
        except Exception:  # noqa: BLE001 - what a provisioner can't tell now, it may tell later
            return False
        code = None
        if self._process is not None:
            code = self._process.returncode
        elif self.manager.provisioner is not None:
            with contextlib.suppress(Exception):
                # To many provisioners 0 means that there is no kernel, however it ended.
                code = await self.manager.provisioner.poll() or None
        self.exit_code = code if type(code) is int else None
        return True

    def how(self) -> str:
        """How it ended, in words."""
        if self.exit_code is None:
            return "ended"
        with contextlib.suppress(ValueError):
            if self.exit_code < 0:
                return f"was killed by {signal.Signals(-self.exit_code).name}"
        return f"ended with exit code {self.exit_code}"

    def last_words(self) -> str:
        if self._log is None or self._log.closed:
            return ""
        self._log.seek(0, 2)
        self._log.seek(max(0, self._log.tell() - LAST_WORDS))
        text = self._log.read().decode(errors="replace").strip()
        return f"; it last wrote:\n{text}" if text else ""

    def _trim(self) -> None:
        """Append-only: keep it from filling the disk."""
        if self._log is not None and self._log.seek(0, 2) > LOG:
            self._log.truncate(0)

    async def end(self, *, polite: bool) -> None:
        """End the kernel, if it is there, and have everything cleaned up.

        Politely only where it can hear: to a kernel that speaks otherwise (CURVE with one that
        knows none) the manager's send blocks the whole event loop, for ever.
        """
        manager = self.manager
        try:
            if manager.has_kernel:
                polite = polite and await ensure_async(manager.is_alive())
                await ensure_async(manager.shutdown_kernel(now=not polite))
            elif manager.provisioner is not None:  # it has ended, or is between two processes
                await ensure_async(manager.cleanup_resources())
        except BaseException:
            # Cancelled while it was asked politely, or it would not listen.
            if self._process is not None:
                self._process.kill()
            elif manager.has_kernel:
                await manager.provisioner.kill()
            await ensure_async(manager.cleanup_resources())
            raise
        finally:
            if self._log is not None:
                self._log.close()
