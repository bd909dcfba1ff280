"""The kernel's process, as its manager sees it.

Rule: this module asks the manager and its provisioner, and nothing else. The provisioner decides
where the kernel runs, and how it is started and ended: as a child of this process, or in another
way that an installed provisioner brings. Only a child is checked ten times a second. Only a
child's exit code is trusted; from other provisioners it only says that the kernel has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any

from jupyter_client.provisioning.local_provisioner import LocalProvisioner
from jupyter_core.utils import ensure_async

from bridgehead._errors import NotSupported
from bridgehead._transports.tasks import noted_on, run_all, waited
from bridgehead._transports.timings import Timings

LOG = 1 << 20  # bytes; only the end of the log is ever read
LIMITS = {"memory": "RLIMIT_AS", "cpu": "RLIMIT_CPU"}  # as ``resource`` names them
LARGEST = 2**63 - 1  # that ``prlimit`` takes
LAST_WORDS = 2000  # bytes of the log that an error message quotes


def checked_limits(limits: Mapping[str, int] | None) -> dict[str, int]:
    """Return the limits of a process.

    Raises:
        TypeError: they are no mapping.
        ValueError: one is not known, or is not a number above 0, or is above that of this process.
        NotSupported: this is not Linux.
    """
    if not isinstance(limits, Mapping | None):
        raise TypeError(
            f"limits= takes a mapping such as {{'memory': 4 << 30}}, not {type(limits).__name__}"
        )
    for name, limit in (limits or {}).items():
        if name not in LIMITS:
            raise ValueError(f"limits= has {name!r}; known limits are {', '.join(LIMITS)}")
        if type(limit) is not int or limit <= 0:
            raise ValueError(f"limits[{name!r}] must be a whole number above 0, not {limit!r}")
    if limits and sys.platform != "linux":
        raise NotSupported("limits= works on Linux only; nothing was started")
    for name, limit in (limits or {}).items():
        import resource

        hard = resource.getrlimit(getattr(resource, LIMITS[name]))[1]
        most = LARGEST if hard == resource.RLIM_INFINITY else hard
        if limit > most:
            raise ValueError(
                f"limits[{name!r}] is {limit:,}, above this process's own limit of {most:,}; "
                "nothing was started"
            )
    return dict(limits or {})


def limited(command: list[str], limits: Mapping[str, int]) -> list[str]:
    """Return a command that sets the limits of its process, and then becomes ``command``.

    A limit that is set after the start comes too late for what the process has forked by then,
    such as the kernel itself.
    """
    if not limits:
        return command
    calls = [
        f"resource.setrlimit(resource.{LIMITS[name]}, ({n}, {n}))" for name, n in limits.items()
    ]
    code = "; ".join(["import os, resource, sys", *calls, "os.execvp(sys.argv[1], sys.argv[1:])"])
    return [sys.executable, "-I", "-S", "-c", code, *command]


class KernelProcess:
    """The manager of one kernel.

    ``log`` is the file of the kernel's standard error. ``clean`` removes what the manager does not,
    after the kernel's end. ``limits`` are those of ``Bridge.launch``, checked.
    """

    def __init__(
        self,
        manager: Any,
        timings: Timings,
        log: Any = None,
        clean: Callable[[], None] | None = None,
        limits: Mapping[str, int] | None = None,
    ) -> None:
        self._limits = limits or {}
        self.manager, self._timings, self._log, self._clean = manager, timings, log, clean
        self.exit_code: int | None = None

    @property
    def _process(self) -> Any:
        return getattr(self.manager.provisioner, "process", None)

    @property
    def is_child(self) -> bool:
        """Whether jupyter_client itself started the process here, and no installed provisioner."""
        return type(self.manager.provisioner) is LocalProvisioner

    def check_limits(self) -> None:
        """Check that the process that was started has its limits.

        Raises:
            NotSupported: it has not; its provisioner starts it by a command of its own.
        """
        process = self._process
        if self._limits and process is not None:
            import resource

            for name, limit in self._limits.items():
                with contextlib.suppress(ProcessLookupError):  # it has ended, as will be reported
                    hard = resource.prlimit(process.pid, getattr(resource, LIMITS[name]))[1]
                    if hard == resource.RLIM_INFINITY or hard > limit:
                        kind = type(self.manager.provisioner).__name__
                        raise NotSupported(
                            f"limits= do not hold: {kind} started the kernel by a command of its "
                            "own; the kernel was ended"
                        )

    async def pause(self, sooner: asyncio.Event) -> None:
        """Wait until the next check is due; ``sooner`` says that the kernel may have ended."""
        await asyncio.sleep(self._timings.child_every)
        self._trim()
        if self._process is None:
            async with waited(self._timings.provisioner_every):
                await sooner.wait()

    async def has_ended(self) -> bool:
        """Return whether the kernel has ended, and set ``exit_code`` if it is known."""
        try:
            if await ensure_async(self.manager.is_alive()):
                return False
        except Exception:  # noqa: BLE001 - a provisioner that fails now may answer later
            return False
        code = None
        if self._process is not None:
            code = self._process.returncode
        elif self.manager.provisioner is not None:
            with contextlib.suppress(Exception):
                # For many provisioners 0 only means that there is no kernel, however it ended.
                code = await self.manager.provisioner.poll() or None
        self.exit_code = code if type(code) is int else None
        return True

    def how(self) -> str:
        """Say how the kernel ended, and under which limits: they may have ended it."""
        limited = f", with limits={dict(self._limits)}" if self._limits else ""
        if self.exit_code is None:
            return f"ended{limited}"
        with contextlib.suppress(ValueError):
            if self.exit_code < 0:
                return f"was killed by {signal.Signals(-self.exit_code).name}{limited}"
        return f"ended with exit code {self.exit_code}{limited}"

    def last_words(self) -> str:
        if self._log is None or self._log.closed:
            return ""
        self._log.seek(0, 2)
        self._log.seek(max(0, self._log.tell() - LAST_WORDS))
        text = self._log.read().decode(errors="replace").strip()
        return f"; it last wrote:\n{text}" if text else ""

    def _trim(self) -> None:
        """Empty the log when it grows too long; the file is opened for appending."""
        if self._log is not None and self._log.seek(0, 2) > LOG:
            self._log.truncate(0)

    async def end(self, *, polite: bool) -> None:
        """End the kernel, if it runs, and clean up.

        ``polite`` sends a shutdown request first. It needs a kernel that can receive it: if only
        one end encrypts with CURVE, the manager's send blocks the whole event loop for ever.
        """
        manager = self.manager
        try:
            if manager.has_kernel:
                polite = polite and await ensure_async(manager.is_alive())
                await ensure_async(manager.shutdown_kernel(now=not polite))
            elif manager.provisioner is not None:  # the kernel has ended, or is being restarted
                await ensure_async(manager.cleanup_resources())
        except BaseException as error:
            # This was cancelled during the polite shutdown, or the shutdown failed.
            with noted_on(error):
                await run_all(self._kill, lambda: ensure_async(manager.cleanup_resources()))
            raise
        finally:
            if self._log is not None:
                self._log.close()
            if self._clean is not None:
                self._clean()

    async def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            async with waited(self._timings.killed):
                while self._process.poll() is None:  # noqa: ASYNC110 - nothing reports its end
                    await asyncio.sleep(self._timings.poll_every)
        elif self.manager.has_kernel:
            await self.manager.provisioner.kill()
