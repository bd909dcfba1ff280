"""The steps that run cells: what they print, queue behind, and leave.

Rule: a step is a method that makes calls through ``Actor.do``, or checks their outcome itself.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from bridgehead import BridgeError
from tests.soak.actor import HARMED, Call
from tests.soak.calls import Calls
from tests.soak.model import Wrong
from tests.soak.values import known

LONGEST_CELL = 40  # s; a stop of a kernel and the interrupts of a cell take less
# A cell without names of its own, which the model does not know.
ENDLESS = f"""
import time
end = time.monotonic() + {LONGEST_CELL}
while time.monotonic() < end:
    pass
"""


def prints(lines: int) -> str:
    """Return a cell that prints so many lines."""
    return f"for i in range({lines}): print(i, 'x' * 20)"


def printed(lines: int) -> str:
    """Return what that cell prints."""
    return "".join(f"{i} {'x' * 20}\n" for i in range(lines))


class CellSteps(Calls):
    """An actor with its steps that run cells."""

    async def behind_a_cell(self) -> None:
        """Queue calls behind a running cell; cancel some of them there."""
        seconds = self.chance.uniform(0.05, 0.5)

        async def run() -> Any:
            return await self.bridge.run(f"__import__('time').sleep({seconds:.3f})")

        calls = [self.any_call() for _ in range(self.chance.randint(1, 6))]
        for call in calls[::2]:
            if self.chance.random() < 0.5:
                call.cancel_after = self.chance.uniform(0, seconds)
        await self.do(Call(f"run a cell of {seconds:.3f} s", run), *calls)

    async def an_endless_cell(self) -> None:
        """Interrupt a cell that does not end by itself for a long time.

        It must not go on for ever: the client process that runs it may be killed.
        """
        begun = asyncio.Event()

        async def run() -> Any:
            try:
                await self.bridge.run(
                    f"print('going')\nexec({ENDLESS!r}, {{}})",
                    on_output=lambda message: begun.set(),
                )
            finally:
                begun.set()

        async def interrupt() -> None:
            with contextlib.suppress(TimeoutError):  # its output may be lost
                async with asyncio.timeout(5):
                    await begun.wait()
            # An interrupt that another client made may have ended it already, and the kernel may be
            # lost; else this one must end it.
            with self.faults.making(self.kernel, "interrupt"):
                for _ in range(20):
                    if cell.ended:
                        return
                    with contextlib.suppress(BridgeError, TimeoutError):
                        await self.bridge.interrupt()
                    await asyncio.sleep(0.5)

        cell = Call("run an endless cell", run, raises=("KeyboardInterrupt",))
        await self.do(cell, during=interrupt)
        if cell.error is None:
            raise Wrong("an endless cell ended")

    async def output(self) -> None:
        """Run a cell that prints much; all of it arrives, unless the connection was harmed."""
        lines = self.chance.choice((1, 20, 2000))
        started = self.good

        async def run() -> Any:
            return await self.bridge.run(prints(lines))

        call = Call(f"run a cell of {lines} prints", run)
        if await self.do(call) and not self.faults.happened(self.kernel, HARMED, started):
            expected = printed(lines)
            if call.value.stdout != expected:
                raise Wrong(f"of {len(expected)} characters {len(call.value.stdout)} arrived")

    async def staged(self) -> None:
        """Run a cell with a name that it gets, a value that it gives, and a limit of output."""
        name, value, started = self.slot(), self.value(), self.good
        lines, most = self.chance.choice((0, 20, 3000)), self.chance.choice((None, 50, 20_000))

        async def run() -> Any:
            return await self.bridge.run(
                prints(lines), push={name: value.make()}, pull=[name], max_output=most
            )

        def learn(result: Any) -> None:
            if known(result.values[name]) != value:
                raise Wrong(f"{call.what} gave {known(result.values[name])}")

        what = f"run a cell of {lines} prints, at most {most} characters, with {name}={value}"
        call = Call(what, run, {name: value}, learn=learn, is_cell=True, partial=True)
        if self.chance.random() < 0.2:
            call.cancel_after = self.instant()
        if not await self.do(call) or self.faults.happened(self.kernel, HARMED, started):
            return
        expected, result = printed(lines), call.value
        dropped = 0 if most is None else max(0, len(expected) - most)
        if result.dropped != dropped:
            raise Wrong(f"{what}: {result.dropped} characters were dropped, expected {dropped}")
        if not dropped and result.stdout != expected:
            raise Wrong(f"{what}: {len(result.stdout)} characters arrived")

    async def late_cell(self) -> None:
        """Give a cell that takes long a deadline that interrupts it, and nothing else."""

        async def run() -> Any:
            return await self.bridge.run(
                f"exec({ENDLESS!r}, {{}})", timeout=call.timeout, on_timeout="interrupt"
            )

        call = Call("run a cell that is late", run, is_cell=True)
        call.timeout = self.chance.choice((self.instant(), self.chance.uniform(0.1, 1)))
        await self.do(call, *self.some(3))
        if call.error is None:
            raise Wrong("an endless cell ended")

    async def streamed(self) -> None:
        """Iterate over the outputs of a cell; leave it in the middle, or not."""
        lines, started = self.chance.choice((1, 20, 2000)), self.good
        early = self.chance.random() < 0.5
        on_timeout = self.chance.choice(("leave", "interrupt"))

        async def read() -> Any:
            texts = []
            async with self.bridge.stream(prints(lines), on_timeout=on_timeout) as outputs:
                async for message in outputs:
                    texts.append(message.text)
                    if early:
                        break
            return "".join(texts)

        call = Call(f"stream a cell of {lines} prints, early: {early}, {on_timeout}", read)
        if self.chance.random() < 0.2:
            call.cancel_after = self.instant()
        await self.do(call, *self.some(3))
        if call.error is None and not self.faults.happened(self.kernel, HARMED, started):
            expected = printed(lines)
            if not (expected.startswith(call.value) if early else expected == call.value):
                raise Wrong(f"of {len(expected)} characters {len(call.value)} arrived")
