"""An actor: one bridge, the names that it alone changes, and the check of each outcome.

Rule: how a call is made, how long it may take, which error is true, and what its outcome says
about the namespace. Which calls are made is decided in ``steps``.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bridgehead import (
    Bridge,
    BridgeClosed,
    BridgeError,
    DecodeError,
    EncodeError,
    KernelDied,
    KernelRestarted,
    KernelUnresponsive,
    NameNotFound,
    NotExecuted,
    NotSent,
    OutcomeUnknown,
    RemoteError,
    ReplyLost,
    RequestAborted,
    RunTimeout,
    TransportError,
)
from tests.soak.left import dump
from tests.soak.model import Changes, Faults, Names, Wrong

GUARD = 180.0  # s: a call that takes longer hangs; a stop or a broken connection takes some 40
LATE = 20.0  # s after its deadline, until a call must have ended; this process may be stopped
HELD = 60.0  # s for which a server may keep a cell for a kernel that it restarts
LAST = 25  # calls in the report of a failure

# Which faults explain an error, and for how many seconds after their end. A server notices after
# some seconds that a kernel has died, and restarts it. An interrupt may end a kernel: see
# ``Kernel.survives``.
EXPLAINED: dict[type[BridgeError], Mapping[str, float]] = {
    KernelRestarted: {"restart": 2, "kill": 15, "interrupt": 15},
    KernelDied: {"restart": 5, "kill": 15, "interrupt": 15},
    KernelUnresponsive: {"stop": 8, "cut": 15, "kill": 15, "restart": 10, "interrupt": 15},
    ReplyLost: {"stop": 8, "cut": 15, "kill": 15, "restart": 5, "interrupt": 15},
    TransportError: {"cut": 15, "kill": 15, "restart": 10, "interrupt": 15},
    RequestAborted: {"failing cell": 5},
}
LOSSES = (KernelRestarted, KernelDied)
ANY_LOSS = {"restart": 2.0, "kill": 15.0}
HARMED = {"cut": 15.0, "stop": 8.0, "interrupt": 3.0, **ANY_LOSS}  # faults that lose outputs


@dataclass
class Call:
    """One call: what it does if it runs, and how it ends."""

    what: str
    make: Callable[[], Awaitable[Any]]
    changes: Changes = field(default_factory=dict)
    # Gets the value that is returned, and notes what it says about the names before the changes.
    learn: Callable[[Any], object] | None = None
    wanted: list[str] = field(default_factory=list)  # names that NameNotFound may report
    raises: tuple[str, ...] = ()  # names of exceptions in the kernel
    is_cell: bool = False
    partial: bool = False  # what raises in the kernel may have taken effect
    refused: tuple[type[BridgeError], ...] = ()  # errors that this call may always raise
    asks: bool = True  # whether its success shows that the kernel answers
    timeout: float | None = None
    cancel_after: float | None = None
    # Its end.
    value: Any = None
    error: BaseException | None = None
    ended: float = 0.0
    items: int = 0  # that have come so far, of a call that has several

    @property
    def lost(self) -> bool:
        return isinstance(self.error, LOSSES)

    @property
    def outcome(self) -> str:
        if self.error is None:
            return "ok"
        return " ".join(f"{type(self.error).__name__}: {self.error}"[:160].split())

    @property
    def ran(self) -> bool | None:
        """Whether it took effect, by what was reported; None if that was left open."""
        error = self.error
        if error is None:
            return True
        if isinstance(error, BridgeClosed):
            return None  # it was pending when the bridge was closed
        if isinstance(error, (NotSent, NotExecuted)):
            return False
        if isinstance(error, RemoteError):
            return None if self.partial else False
        if isinstance(error, (TimeoutError, MemoryError)):
            text = f"{error} {getattr(error, '__notes__', '')}"
            return False if "was not sent" in text else None
        return None


class Actor:
    """One bridge and its names."""

    def __init__(
        self,
        name: str,
        kernel: str,
        faults: Faults,
        chance: random.Random,
        opening: Callable[[], Any],
        *,
        owns: bool = False,
        served: bool = False,
        tight: bool = False,
        mortal: bool = False,
    ) -> None:
        """Prepare it.

        Args:
            opening: returns the opening of a bridge.
            owns: whether closing the bridge ends the kernel.
            served: whether the kernel is behind a server, which keeps a cell for a kernel that it
                restarts, and gives it to the new process.
            tight: whether this process has little memory.
            mortal: whether this process may be killed, so that no cell may wait for it.
        """
        self.name, self.kernel, self.faults, self.chance = name, kernel, faults, chance
        self.opening, self.owns, self.served = opening, owns, served
        self.tight, self.mortal = tight, mortal
        self.bridge: Bridge = None  # type: ignore[assignment] # not open yet
        self.names = Names()
        self.generation = 0
        self.good = time.monotonic()  # the start of the last call that succeeded
        self.reports = 0  # how often the bridge reported that the kernel is lost
        self.old: list[str] = []  # patterns of earlier names, whose values can be deleted
        self.steps = 0
        self.last: deque[str] = deque(maxlen=LAST)
        self._busy = False
        self._held: list[tuple[float, Changes]] = []  # cells that a server may still have

    # ------------------------------------------------------------ names

    def fresh(self, count: int) -> str:
        return f"{self.name}_{self.generation}_{count}"

    @property
    def pattern(self) -> str:
        return f"{self.name}_{self.generation}_*"

    def renew(self) -> None:
        """Use other names from now on: what happens to the old ones is not known."""
        self.old.append(self.pattern)
        self.generation += 1
        self.names.clear()

    # ------------------------------------------------------------ calls

    async def do(self, *calls: Call, during: Callable[[], Awaitable[Any]] | None = None) -> bool:
        """Make calls, in this order and at once; check all outcomes; return whether all ran."""
        self._busy, reports = True, self.reports
        started = time.monotonic()
        with contextlib.ExitStack() as pending:
            for call in calls:
                pending.enter_context(self.names.pending(call.changes))
            tasks = [self.started(call) for call in calls]
            if during is not None:
                tasks.append(asyncio.ensure_future(during()))
            await self.ended(tasks, calls)
            self._busy = False
            for call, task in zip(calls, tasks, strict=False):
                self.take(call, task)
                self.judge(call, started)
            if during is not None:
                tasks[-1].result()
            self._settle(calls, elsewhere=self.reports != reports)
        if any(call.error is None and call.asks for call in calls):
            self.good = started
        if any(isinstance(call.error, OutcomeUnknown) for call in calls):
            await asyncio.sleep(self.chance.uniform(0, 0.3))  # it is not lost for one call only
        return all(call.error is None for call in calls)

    def settle_one(self, call: Call, started: float) -> None:
        """Take the outcome of a call that a fleet has made: check it, and what it says."""
        self.judge(call, started)
        self._settle((call,), elsewhere=False)
        if call.error is None:
            self.good = started

    def started(self, call: Call) -> asyncio.Future[Any]:
        task = asyncio.ensure_future(call.make())
        task.add_done_callback(lambda _: setattr(call, "ended", time.monotonic()))
        if call.cancel_after is not None:
            asyncio.get_running_loop().call_later(call.cancel_after, task.cancel)
        return task

    def take(self, call: Call, task: asyncio.Future[Any]) -> None:
        if task.cancelled():
            call.error = asyncio.CancelledError("")
        elif (error := task.exception()) is not None:
            call.error = error
        else:
            call.value = task.result()
        self.note(call.what, call.outcome)

    def note(self, what: str, outcome: str = "") -> None:
        self.last.append(f"{time.monotonic():.3f} {self.name}: {what} -> {outcome}")

    async def ended(self, tasks: list[Any], calls: Any = ()) -> None:
        """Wait until tasks have ended, whatever their outcome; they may not hang.

        A call whose items still come does not hang, however many there are.
        """
        hanging, items, before = set(tasks), 0, -1
        try:
            while hanging and items > before:
                _, hanging = await asyncio.wait(hanging, timeout=GUARD)
                before, items = items, sum(call.items for call in calls)
        except asyncio.CancelledError:
            for task in tasks:
                task.cancel()
            raise
        if hanging:
            dump()
            whats = [call.what for call in calls if not call.ended]
            raise Wrong(f"no end within {GUARD:g} s: {whats or hanging}; state {self.state}")

    @property
    def state(self) -> str:
        return self.bridge.state if self.bridge is not None else "not open"

    # ------------------------------------------------------------ outcomes

    def judge(self, call: Call, started: float, kernel: str | None = None) -> None:
        """Check that the error of a call is documented, and true."""
        error, took = call.error, call.ended - started
        if error is None or isinstance(error, call.refused):
            return
        if isinstance(error, asyncio.CancelledError):
            true = call.cancel_after is not None
        elif type(error) is (RunTimeout if call.is_cell else TimeoutError):
            true = call.timeout is not None and call.timeout - 0.05 <= took
            true = true and took <= (call.timeout or 0) + LATE
        elif isinstance(error, NameNotFound):
            true = bool(call.wanted)
        elif isinstance(error, RemoteError):
            true = error.ename in call.raises or self._is_interrupt(error)
        else:
            kinds = EXPLAINED.get(type(error))  # type: ignore[arg-type]
            where = kernel or self.kernel
            true = bool(kinds) and self.faults.happened(where, kinds or {}, self.good)
        if not true and not (self.tight and is_out_of_memory(error)):
            text = f"{call.what} raised {type(error).__name__}, which no fault explains: {error}"
            raise Wrong(text) from error

    def _is_interrupt(self, error: RemoteError) -> bool:
        # Jupyter interrupts a kernel before it shuts it down or restarts it.
        return error.ename in ("KeyboardInterrupt", "CancelledError") and self.faults.happened(
            self.kernel, {"interrupt": 3, "restart": 3}, self.good
        )

    def lost_elsewhere(self) -> None:
        """Note that another actor's handoff was the call that reported the loss of the kernel."""
        self._lost()
        if not self._busy:
            self._clear()

    def _lost(self) -> None:
        self.reports += 1

    def _settle(self, calls: tuple[Call, ...], *, elsewhere: bool) -> None:
        if self.served:  # also of a cell whose caller gave up a moment before the kernel was lost
            open_ends = [call for call in calls if call.is_cell and (call.lost or call.ran is None)]
            self._held += [(time.monotonic(), call.changes) for call in open_ends]
        lost = any(call.lost for call in calls)
        if not lost and not elsewhere:
            for call in calls:
                self._learn(call)
            return
        if lost:
            self._lost()
        self._clear()
        # Those that succeeded may have run before or after the loss.
        for call in calls:
            if not call.lost:
                self.names.write(call.changes, None if call.ran else call.ran)

    def _clear(self) -> None:
        """Forget the names of a kernel that was lost, but for what a server may run in the next.

        That kernel may be lost, too, before the server gives it the cell.
        """
        self.names.clear()
        self._held = [one for one in self._held if time.monotonic() - one[0] < HELD]
        for _, changes in self._held:
            self.names.write(changes, None)

    def _learn(self, call: Call) -> None:
        error = call.error
        if isinstance(error, NameNotFound) and call.wanted:
            if not error.names or not set(error.names) <= set(call.wanted):
                raise Wrong(f"{call.what}: {error.names} are reported as missing")
            self.names.lack(error.names)
        elif error is None and call.learn is not None:
            try:
                call.learn(call.value)
            except ValueError as damaged:
                raise Wrong(f"{call.what} returned {damaged}") from None
        self.names.write(call.changes, call.ran)

    # ------------------------------------------------------------ opening and closing

    async def open(self) -> None:
        """Open the bridge; try again while a fault explains that it does not open."""
        for _ in range(40):
            started = time.monotonic()
            task = asyncio.ensure_future(_opened(self.opening()))
            await self.ended([task])
            error = task.exception()
            self.note("open", "ok" if error is None else f"{type(error).__name__}: {error}")
            if error is None:
                self.bridge, self.good = task.result(), started
                return
            kinds = {"restart": 10, "kill": 20, "cut": 15, "stop": 10, "interrupt": 15}
            explained = isinstance(error, (BridgeError, TimeoutError)) and self.faults.happened(
                self.kernel, kinds, started
            )
            if not explained and not (self.tight and is_out_of_memory(error)):
                dump()
                raise Wrong(f"the bridge did not open: {error!r}") from error
            await asyncio.sleep(0.5)
        raise Wrong("the bridge did not open in 40 tries")

    async def close(self) -> None:
        if self.bridge is None:
            return
        task = asyncio.ensure_future(self.bridge.aclose())
        await self.ended([task])
        error = task.exception()
        self.note("close", repr(error or "ok"))
        if error is not None:
            raise Wrong(f"the bridge did not close: {error!r}") from error
        if self.bridge.state != "closed":
            raise Wrong(f"a closed bridge is {self.bridge.state}")


async def _opened(opening: Any) -> Bridge:
    bridge: Bridge = await opening
    return bridge


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether this process had too little memory, and the error says so."""
    if isinstance(error, MemoryError):
        return True
    kinds = (DecodeError, EncodeError, RemoteError, OutcomeUnknown)
    text = f"{error} {error.__cause__!r}".lower()
    return isinstance(error, kinds) and any(word in text for word in ("memory", "allocate"))
