"""What the buttons of the panel do: each is one operation of a bridge, as a task.

Rule: a button starts a task on the loop of the kernel's bridge, and nothing waits for it. Its
progress and its end are sent to the page as text. A task that is cancelled leaves what the
operation of the bridge leaves.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from base64 import b64encode
from collections.abc import Callable, Coroutine, MutableMapping
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

from bridgehead._protocol.formatting import line, size
from bridgehead._protocol.results import Detail
from bridgehead._tools.panel.followed_kernel import CLOSED, FollowedKernel, Send
from bridgehead._tools.panel.texts import checked, usable, why

EVERY = 0.1  # s between two messages of a progress
KEPT = 5  # jobs that have ended


class Job:
    """One operation, as the page shows it."""

    _numbers = itertools.count(1)

    def __init__(self, kernel: FollowedKernel, text: str, send: Send) -> None:
        self.number, self.kernel, self.text = next(self._numbers), kernel, text
        self.state, self.done, self.total = "running", 0, 0
        self._send, self._sent = send, 0.0
        self.task: asyncio.Task[None] | None = None

    def message(self) -> dict[str, Any]:
        return {
            "kind": "job",
            "job": self.number,
            "state": self.state,
            "text": self.text,
            "done": self.done,
            "total": self.total,
        }

    def report(self, done: int, total: int) -> None:
        """Note the progress; this is called often, and in any thread."""
        self.done, self.total = done, total
        now = time.monotonic()
        if now - self._sent >= EVERY and self.state == "running":
            self._sent = now
            self._send(self.message())

    def cancel(self) -> None:
        if self.task is not None:
            self.task.cancel()

    async def run(self, work: Coroutine[Any, Any, str]) -> None:
        """Do the work, and say how it ended; ``work`` returns a text."""
        self._send(self.message())
        what = self.text
        try:
            self.text = await work
            self.state = "done"
        except asyncio.CancelledError:
            self.state, self.text = "cancelled", f"Cancelled: {what}"
        except Exception as error:  # noqa: BLE001 - shown in the panel
            self.state, self.text = "failed", f"{what} failed. {why(error)}"
        except BaseException:  # the loop ends
            self.state, self.text = "failed", f"{what} was interrupted"
            raise
        finally:
            self._send(self.message())


class JobTable:
    """The operations of one panel."""

    def __init__(
        self,
        kernels: list[FollowedKernel],
        namespace: MutableMapping[str, Any],
        send: Send,
        pulled: Callable[[], object],
    ) -> None:
        """Call ``pulled`` when a name of the notebook was bound."""
        self._kernels, self._namespace, self._send = kernels, namespace, send
        self._pulled = pulled
        self.known: dict[int, Job] = {}
        self._looks: dict[int, asyncio.Task[None]] = {}  # by kernel: the one that is wanted

    def start(
        self, kernel: FollowedKernel, text: str, work: Callable[[Job], Coroutine[Any, Any, str]]
    ) -> None:
        """Start a job on the loop of its kernel; any thread may call this."""
        job = Job(kernel, text, self._send)
        self.known[job.number] = job
        for number in [one.number for one in list(self.known.values()) if one.state != "running"][
            :-KEPT
        ]:
            self.known.pop(number, None)

        def begin() -> None:
            job.task = kernel.loop.create_task(job.run(work(job)))

        if not kernel.soon(begin):
            job.state, job.text = "failed", f"{text} failed. {CLOSED}."
            self._send(job.message())

    def cancel(self, number: int) -> None:
        job = self.known.get(number)
        if job is not None:
            job.kernel.soon(job.cancel)

    def dismiss(self, number: int) -> None:
        job = self.known.get(number)
        if job is not None and job.state != "running":
            self.known.pop(number, None)

    def stop(self) -> None:
        """Cancel what is at work."""
        for number in list(self.known):
            self.cancel(number)
        for kernel in self._kernels:
            kernel.soon(self._end_look, kernel.number)

    # ------------------------------------------------------------ one method for each button

    def pull(self, kernel: FollowedKernel, name: Any, target: Any) -> None:
        name, target = checked(name, "name"), checked(target, "name for the notebook")

        async def work(job: Job) -> str:
            began = time.perf_counter()
            value = await kernel.bridge.pull(name, progress=job.report)
            self._namespace[target] = value
            self._pulled()
            return f"{target} is now in the notebook: {self._crossed(job, began)}"

        shown = name if target == name else f"{name} as {target}"
        self.start(kernel, f"Pull {shown} from {kernel.label}", work)

    def push(self, kernel: FollowedKernel, source: Any, target: Any) -> None:
        source = checked(source, "name of the notebook")
        target = checked(target, "name for the kernel")

        async def work(job: Job) -> str:
            if source not in self._namespace:
                raise LookupError(f"the notebook has no name {source!r} any more; choose another")
            began = time.perf_counter()
            await kernel.bridge.push({target: self._namespace[source]}, progress=job.report)
            kernel.refresh()
            return f"{target} is now in {kernel.label}: {self._crossed(job, began)}"

        shown = source if target == source else f"{source} as {target}"
        self.start(kernel, f"Push {shown} to {kernel.label}", work)

    def handoff(self, kernel: FollowedKernel, name: Any, to: FollowedKernel) -> None:
        name = checked(name, "name")

        async def work(job: Job) -> str:
            moved = await kernel.bridge.handoff(name, to=to.bridge, progress=job.report)
            to.soon(to.refresh)
            seconds = f"{moved.seconds:.2g} s"
            return f"{name} is now in {to.label}: {size(moved.bytes)} in {seconds}, {moved.lane}"

        self.start(kernel, f"Hand {name} over from {kernel.label} to {to.label}", work)

    def delete(self, kernel: FollowedKernel, name: Any) -> None:
        name = checked(name, "name")

        async def work(job: Job) -> str:
            await kernel.bridge.delete(name)
            kernel.refresh()
            return f"{name} was deleted from {kernel.label}"

        self.start(kernel, f"Delete {name} from {kernel.label}", work)

    def interrupt(self, kernel: FollowedKernel) -> None:
        async def work(job: Job) -> str:
            await kernel.bridge.interrupt()
            return f"{kernel.label} was interrupted"

        self.start(kernel, f"Interrupt {kernel.label}", work)

    def restart(self, kernel: FollowedKernel) -> None:
        async def work(job: Job) -> str:
            await kernel.bridge.restart()
            kernel.refresh()
            return f"{kernel.label} was restarted; it has no names"

        self.start(kernel, f"Restart {kernel.label}", work)

    def look(self, kernel: FollowedKernel, name: Any) -> None:
        """Send a closer look at a value; a later one ends an earlier one of the same kernel."""
        name = checked(name, "name")

        async def work() -> None:
            seen = {"kind": "look", "kernel": kernel.number, "name": name}
            try:
                detail = await kernel.bridge._look(name)
                self._send({**seen, **_shown(detail)})
            except Exception as error:  # noqa: BLE001 - shown in the panel
                self._send({**seen, "error": why(error)})

        def begin() -> None:
            self._end_look(kernel.number)
            self._looks[kernel.number] = kernel.loop.create_task(work())

        kernel.soon(begin)

    def _end_look(self, number: int) -> None:
        earlier = self._looks.pop(number, None)
        if earlier is not None:
            earlier.cancel()

    def _crossed(self, job: Job, began: float) -> str:
        return f"{size(job.total)} in {time.perf_counter() - began:.2g} s"


def _shown(detail: Detail) -> dict[str, Any]:
    picture = detail.picture and f"data:image/png;base64,{b64encode(detail.picture).decode()}"
    return {
        "facts": detail.facts,
        "columns": detail.columns,
        "rows": detail.rows,
        "text": detail.text,
        "picture": picture or "",
        "error": "",
    }


def taken_names(shell: Any) -> list[str]:
    """Return the names in a notebook that a pull would replace, whatever has them.

    IPython's own ``_``, ``_i7`` and ``_7``, which are new after each cell, are left out.
    """
    hidden = getattr(shell, "user_ns_hidden", {})
    names = list(shell.user_ns)
    return [one for one in names if usable(one) and not (one[0] == "_" and one in hidden)]


def notebook_names(shell: Any) -> list[tuple[str, str]]:
    """Return the names that the user gave in a notebook, and their types, to choose from.

    Bridges and panels cannot be pushed. What was only imported is in the kernel by an import.
    """
    hidden = getattr(shell, "user_ns_hidden", {})
    found = []
    for name, value in list(shell.user_ns.items()):
        if not usable(name) or name[:1] == "_" or (name in hidden and hidden[name] is value):
            continue
        kind = type(value)
        is_imported = (
            issubclass(kind, (type, FunctionType, BuiltinFunctionType, ModuleType))
            and getattr(value, "__module__", None) != "__main__"
        )
        # A class may have anything as its module.
        if not is_imported and not str(kind.__module__).startswith("bridgehead"):
            found.append((name, line(kind.__name__, 40)))
    return sorted(found)
