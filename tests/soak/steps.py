"""The steps of an actor: what a program does with a bridge, in any order.

Rule: the plan, that is which steps with which arguments. It follows from the actor's random
generator alone; the interleaving of actors and faults does not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from bridgehead import EncodeError, NameNotFound, NotSupported, PayloadTooLarge
from tests.soak.actor import Call
from tests.soak.cells import CellSteps
from tests.soak.life import LifeSteps
from tests.soak.model import Wrong
from tests.soak.others import OtherSteps
from tests.soak.values import known
from tests.soak.watches import WatchSteps
from tests.soak.work import WorkSteps

MOST_POSSIBLE = 16  # namespaces, until an actor looks which one is true


class Steps(CellSteps, WorkSteps, WatchSteps, OtherSteps, LifeSteps):
    """An actor with its steps."""

    async def work(self, stop: asyncio.Event) -> None:
        """Make steps until the event is set."""
        while not stop.is_set():
            await self.step()

    async def step(self) -> None:
        weights = STEPS if not self.owns else {**STEPS, Steps.restart: 1}
        chosen = self.chance.choices(list(weights), list(weights.values()))[0]
        self.steps += 1
        await chosen(self)
        if self.owns and self.bridge.state == "dead":
            await self.restart()
        await self.look_if_uncertain()
        await asyncio.sleep(0)

    async def look_if_uncertain(self) -> None:
        """Look which namespace is true if very many are possible."""
        if self.names.count > MOST_POSSIBLE:
            await self.look()
            if self.names.count > 8 * MOST_POSSIBLE:
                self.renew()

    async def one(self) -> None:
        """Make one call, and look what it did."""
        call = self.any_call()
        await self.do(call)
        if call.changes and self.chance.random() < 0.5:
            await self.look_at(sorted(call.changes)[0])

    async def batch(self) -> None:
        """Make several calls at once; cancel some at any instant, give some a deadline."""
        calls = [self.any_call() for _ in range(self.chance.randint(2, 12))]
        for call in calls:
            if self.chance.random() < 0.25:
                call.cancel_after = self.instant()
            elif self.chance.random() < 0.15:
                call.timeout = self.instant()
        await self.do(*calls)

    async def cancelled(self) -> None:
        call = self.any_call()
        call.cancel_after = self.instant()
        await self.do(call)

    async def timed_out(self) -> None:
        call = self.any_call()
        call.timeout = self.instant()
        await self.do(call)

    async def errors(self) -> None:
        """Make calls that must fail, and change nothing."""
        name = self.slot()
        trusted = self.bridge.info.trust == "pickle"

        async def divide() -> Any:
            return await self.bridge.pull("1/0")

        async def unpicklable() -> Any:
            return await self.bridge.push({name: (one for one in ())})

        async def too_large() -> Any:
            return await self.bridge.push({name: bytes(5000)}, max_bytes=100)

        async def too_large_back() -> Any:
            return await self.bridge.pull("bytes(5000)", max_bytes=100)

        async def not_there() -> Any:
            return await self.bridge.pull("no_such_name")

        async def raise_in_cell() -> Any:
            return await self.bridge.run("raise ValueError('meant')")

        calls = [
            Call("pull 1/0", divide, raises=("ZeroDivisionError",)),
            Call("push a generator", unpicklable, refused=(EncodeError,)),
            Call("push too much", too_large, refused=(PayloadTooLarge,)),
            Call("pull too much", too_large_back, refused=(PayloadTooLarge,)),
            Call("pull what is not there", not_there, refused=(NameNotFound,)),
            Call("run a cell that raises", raise_in_cell, raises=("ValueError",)),
        ]
        self.chance.shuffle(calls)
        calls = calls[: 3 if trusted else 2]
        await self.do(*calls)
        for call in calls:
            if call.error is None:
                raise Wrong(f"{call.what} succeeded")

    async def at_once(self) -> None:
        """Push and pull while a cell runs; what is not awaited has no order."""
        await self.look()
        if not self.names.is_certain:
            return
        name, value = self.slot(), self.value()

        async def push() -> Any:
            return await self.bridge.push({name: value.make()}, now=True)

        async def pull() -> Any:
            return await self.bridge.pull(name, now=True)

        pushed = Call(f"push {name}={value} now", push, {name: value}, refused=(NotSupported,))
        if not await self.do(pushed):
            if pushed.ran is not False:
                self.renew()
            return
        learn = lambda found: self.names.see({name: known(found)})  # noqa: E731
        await self.do(Call(f"pull {name} now", pull, learn=learn, refused=(NotSupported,)))

    async def tidy(self) -> None:
        """Delete the values of earlier names."""
        if not self.old:
            return
        pattern = self.old.pop(0)

        async def delete() -> None:
            found = [one.name for one in await self.bridge.names(pattern)]
            if found:
                await self.bridge.delete(*found)

        await self.do(Call(f"tidy {pattern}", delete, refused=(NameNotFound,)))

    async def lag(self) -> None:
        await asyncio.sleep(self.chance.uniform(0, 0.2))


STEPS: dict[Callable[[Steps], Awaitable[None]], float] = {
    Steps.one: 30,
    Steps.batch: 12,
    Steps.cancelled: 8,
    Steps.timed_out: 4,
    Steps.behind_a_cell: 3,
    Steps.an_endless_cell: 1,
    Steps.output: 2,
    Steps.staged: 4,
    Steps.late_cell: 2,
    Steps.streamed: 3,
    Steps.errors: 4,
    Steps.function: 4,
    Steps.coroutine: 3,
    Steps.tasks: 3,
    Steps.interrupted: 3,
    Steps.function_output: 2,
    Steps.iteration: 3,
    Steps.call_back: 3,
    Steps.kept: 4,
    Steps.at_once: 4,
    Steps.read_another: 4,
    Steps.hand_off: 5,
    Steps.watch: 2,
    Steps.watch_names: 2,
    Steps.look: 3,
    Steps.tidy: 2,
    Steps.reopen: 1,
    Steps.close_amid_calls: 0.5,
    Steps.lag: 5,
}
