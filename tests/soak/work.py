"""The steps that run functions in the kernel, and what the kernel keeps for them.

Rule: a step is a method that makes calls through ``Actor.do``, or checks their outcome itself.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from bridgehead import Callback, NameNotFound
from bridgehead._bridge.arguments import WhenFull
from tests.soak.actor import ANY_LOSS, GUARD, HARMED, Call
from tests.soak.calls import Calls
from tests.soak.model import Wrong
from tests.soak.values import (
    call_times,
    count_up,
    count_up_later,
    known,
    new,
    print_lines,
    rest,
    twice,
)

WHEN_FULL: tuple[WhenFull, ...] = ("drop_oldest", "wait")


class WorkSteps(Calls):
    """An actor with its steps that run functions."""

    async def function(self) -> None:
        """Run a function in the kernel."""
        value = new("tree", 2)

        async def call_it() -> Any:
            return await self.bridge.call(twice, value.make())

        call = Call(f"call twice {value}", call_it)
        if await self.do(call) and [known(one) for one in call.value] != [value, value]:
            raise Wrong(f"call returned {call.value!r:.200}")

    async def coroutine(self) -> None:
        """Run an async function, while other calls take their turns."""
        await self.do(self.a_task(cancel=False), *self.some(3))

    async def tasks(self) -> None:
        """Submit functions of both kinds; cancel some at any instant, which hits nothing else."""
        tasks = [self.a_task(cancel=True) for _ in range(self.chance.randint(1, 6))]
        await self.do(*tasks, *self.some(3))

    async def interrupted(self) -> None:
        """Give a function a deadline that interrupts it, and nothing else."""
        seconds = self.chance.uniform(0, 0.3)

        async def call_it() -> Any:
            await self.bridge.call(
                rest, None, seconds, timeout=call.timeout, on_timeout="interrupt"
            )

        call = Call(f"call rest {seconds:.3f} s, interrupted", call_it)
        call.timeout = self.chance.choice((self.instant(), seconds))
        await self.do(call, *self.some(3))

    async def function_output(self) -> None:
        """Run a function that prints; all of it arrives, unless the connection was harmed."""
        lines, parts, started = self.chance.choice((1, 20, 500)), [], self.good

        async def run() -> Any:
            await self.bridge.call(
                print_lines,
                lines,
                on_output=lambda message: parts.append(message.content.get("text", "")),
            )

        call = Call(f"call a function of {lines} prints", run)
        if await self.do(call) and not self.faults.happened(self.kernel, HARMED, started):
            expected = "".join(f"{i} {'x' * 20}\n" for i in range(lines))
            if "".join(parts) != expected:
                raise Wrong(f"of {len(expected)} characters {len(''.join(parts))} arrived")

    async def iteration(self) -> None:
        """Iterate over items of the kernel, to the end or not; they arrive in order."""
        count = self.chance.choice((3, 300, 20_000))
        most = self.chance.choice((count, self.chance.randint(1, count)))
        function = self.chance.choice((count_up, count_up_later))

        async def read() -> Any:
            found = []
            async with self.bridge.iterate(function, count) as items:
                async for item in items:
                    found.append(item)
                    if len(found) == most:
                        break
            return found

        call = Call(f"iterate over {most} of {function.__name__} {count}", read)
        if self.chance.random() < 0.3:
            call.cancel_after = self.instant()
        await self.do(call, *self.some(3))
        if call.error is None and call.value != list(range(most)):
            raise Wrong(f"{call.what}: {len(call.value)} items, or in another order")

    async def call_back(self) -> None:
        """Have the kernel call a function of this program: in order, none twice, none lost."""
        count, maxsize = self.chance.choice((1, 30, 2000)), self.chance.choice((None, 5, 300))
        when_full = self.chance.choice(WHEN_FULL)
        if maxsize is None or self.mortal:  # a call would wait ten minutes for a killed client
            when_full = "drop_oldest"
        if when_full == "wait" and maxsize is not None:  # each room takes a round trip
            count = min(count, 60 * maxsize)
        by_cell, started = self.chance.random() < 0.5, time.monotonic()
        arrived: list[int] = []
        reports: list[Callback] = []
        name = f"callback_{self.name}"

        async def call_it() -> None:
            report = self.bridge.callback(arrived.append, maxsize, when_full)
            reports.append(report)
            if by_cell:
                code = f"for i in range({count}): {name}(i)\ndel {name}"
                await self.bridge.run(code, push={name: report})
            else:
                await self.bridge.call(call_times, report, count)

        call = Call(f"call back {count} times, {maxsize} {when_full}, by cell: {by_cell}", call_it)
        if self.chance.random() < 0.2:
            call.cancel_after = self.instant()
        try:
            if await self.do(call, *self.some(2)) or call.error is None:
                await self._arrive(call, count, arrived, reports[0], started)
        finally:
            for report in reports:
                report.close()
        ordered = arrived == sorted(set(arrived))
        if not ordered or (when_full == "wait" and arrived != [*range(len(arrived))]):
            raise Wrong(f"{call.what}: {arrived!r:.200}")

    async def _arrive(
        self, call: Call, count: int, arrived: list[int], report: Callback, started: float
    ) -> None:
        """Wait until all calls have arrived or were dropped, or the kernel is lost."""
        end = time.monotonic() + GUARD
        while len(arrived) + report.dropped < count:
            if self.faults.happened(self.kernel, ANY_LOSS, started):
                return
            if time.monotonic() > end:
                raise Wrong(f"{call.what}: {len(arrived)} arrived, {report.dropped} dropped")
            await asyncio.sleep(0.02)
        if len(arrived) + report.dropped != count or report.failed:
            raise Wrong(f"{call.what}: {len(arrived)} arrived, {report!r}")

    async def kept(self) -> None:
        """Keep a result in the kernel under no name; it is there until it is freed."""
        value, started, submitted = self.value(), time.monotonic(), self.chance.random() < 0.5

        async def keep() -> Any:
            if submitted:
                return await self.bridge.submit(twice, value.make(), keep=True)
            return await self.bridge.call(twice, value.make(), keep=True)

        made = Call(f"keep two of {value}", keep)
        if self.chance.random() < 0.2:
            made.cancel_after = self.instant()
        if not await self.do(made, *self.some(2)) and made.error is not None:
            return
        ref, made.value = made.value, None

        async def read() -> Any:
            return await self.bridge.pull(ref, ref[1])

        async def count() -> Any:
            return await self.bridge.call(len, ref)

        read_it = Call("read what is kept", read, refused=(NameNotFound,))
        count_it = Call("count what is kept", count, refused=(NameNotFound,))
        await self.do(read_it, count_it)
        for call, right in ((read_it, [value] * 3), (count_it, 2)):
            if isinstance(call.error, NameNotFound):
                if not self.faults.happened(self.kernel, ANY_LOSS, started):
                    raise Wrong(f"what was kept is lost: {call.error}") from call.error
            elif call.error is None:
                found = call.value
                if call is read_it:
                    found = [known(one) for one in (*found[0], found[1])]
                if found != right:
                    raise Wrong(f"{call.what}: {found}, expected {right}")
        read_it.value = None
        match self.chance.choice(("drop", "delete", "leave")):
            case "drop":  # and the last reference with it
                return
            case "delete":
                delete = lambda: self.bridge.delete(ref)  # noqa: E731
                if not await self.do(Call("delete it", delete, refused=(NameNotFound,))):
                    return
            case "leave":
                async with ref:
                    pass
        again = Call("read what is freed", read, refused=(NameNotFound,))
        if await self.do(again):
            raise Wrong("what was freed is still there")
