"""Two bridges of different kernels as one fleet: what a program does with both.

Rule: a fleet's results and errors are those of its two actors, which are used by it alone, and have
the same names, each in its kernel; ``Actor`` judges them. What a map or a task of a fleet reports
of a lost kernel may be the only report, so after such a loss the actors use other names.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np

from bridgehead import Fleet, FleetError
from tests.soak.actor import ANY_LOSS, LAST, Call
from tests.soak.calls import SLOTS
from tests.soak.model import Changes, Wrong
from tests.soak.steps import Steps
from tests.soak.values import DATA_KINDS, Value, known, later, new, rest, twice


class Pair:
    """Two actors whose bridges are one fleet."""

    def __init__(self, actors: Sequence[Steps], chance: random.Random) -> None:
        self.name, self.members, self.chance = actors[0].name, actors, chance
        self.steps = 0
        self.last: deque[str] = deque(maxlen=LAST)
        for actor in actors:
            actor.last = self.last

    @property
    def fleet(self) -> Fleet:
        return Fleet([actor.bridge for actor in self.members])

    async def work(self, stop: asyncio.Event) -> None:
        """Make steps until the event is set."""
        steps: dict[Callable[[], Any], float] = {
            self.push: 3,
            self.scatter: 3,
            self.map: 4,
            self.tasks: 2,
            self.tidy: 1,
        }
        while not stop.is_set():
            self.steps += 1
            await self.chance.choices(list(steps), list(steps.values()))[0]()
            for actor in self.members:
                await actor.look_if_uncertain()
            newest = max(actor.generation for actor in self.members)
            for actor in self.members:
                while actor.generation < newest:
                    actor.renew()

    async def look(self) -> None:
        for actor in self.members:
            await actor.look()

    async def keeps_nothing(self) -> None:
        for actor in self.members:
            await actor.keeps_nothing()

    # ------------------------------------------------------------ steps

    async def push(self) -> None:
        """Bind the same value in both kernels, and pull it from both."""
        name = self.name_of_both()
        value = new(self.chance.choice(DATA_KINDS), self.chance.choice((1, 20, 300)))
        pushes = lambda: self.fleet.push({name: value.make()}, return_exceptions=True)  # noqa: E731
        await self._of_each(f"push {name}={value}", pushes, [{name: value}] * 2)
        pulls = lambda: self.fleet.pull(name, return_exceptions=True)  # noqa: E731
        await self._of_each(f"pull {name}", pulls, wanted=name)

    async def scatter(self) -> None:
        """Divide an array; what is gathered again is the whole."""
        name, whole = self.name_of_both(), new("array", self.chance.choice((2, 1777, 500_001)))
        halves = [Value("array", int(one[0]), len(one)) for one in np.array_split(whole.make(), 2)]
        scatters = lambda: self.fleet.scatter(name, whole.make(), return_exceptions=True)  # noqa: E731
        if not await self._of_each(
            f"scatter {name}={whole}", scatters, [{name: half} for half in halves]
        ):
            return
        gathered: list[Any] = []

        async def gather() -> list[Any]:
            try:
                gathered.append(await self.fleet.gather(name))
            except FleetError as error:
                return [error.results.get(at, error.errors.get(at)) for at in range(2)]
            return [half.make() for half in halves]  # it is compared below

        await self._of_each(f"gather {name}", gather, wanted=name)
        if gathered and known(gathered[0]) != whole:
            raise Wrong(f"gathered {known(gathered[0])}, expected {whole}")

    def name_of_both(self) -> str:
        return self.members[0].fresh(self.chance.randrange(SLOTS))

    async def tidy(self) -> None:
        for actor in self.members:
            await actor.tidy()

    async def map(self) -> None:
        """Map a function over numbers; leave the map early, or not; results are in order."""
        count = self.chance.choice((1, 12, 200))
        most = self.chance.choice((count, self.chance.randint(1, count)))
        options: dict[str, Any] = {
            "chunksize": self.chance.choice((1, 7, "auto")),
            "window": self.chance.choice((1, 2, 4)),
            "retries": 5,
        }
        function = self.chance.choice((twice, later))
        seconds = [self.chance.choice((0, 0, 0, 0.01, 0.1)) for _ in range(count)]

        async def read() -> list[Any]:
            found: list[Any] = []
            iterables = [range(count)] if function is twice else [range(count), seconds]
            async with self.fleet.map(function, *iterables, **options) as results:
                async for result in results:
                    found.append(result)
                    call.items += 1
                    if len(found) == most:
                        break
            return found

        call = Call(f"map {function.__name__} over {most} of {count}, {options}", read)
        if self.chance.random() < 0.2:
            call.cancel_after = self.chance.choice((0.0, 0.005, 0.05, 0.5))
        await self._of_either([call])
        right = [[at, at] if function is twice else at for at in range(most)]
        if call.error is None and call.value != right:
            raise Wrong(f"{call.what}: {call.value!r:.200}")

    async def tasks(self) -> None:
        """Give tasks to whichever kernel has least to do; cancel some."""

        def submitted(value: Value) -> Call:
            function, seconds = self.chance.choice((later, rest)), self.chance.uniform(0, 0.2)

            async def submit() -> Any:
                task = self.fleet.submit(function, value.make(), seconds)
                try:
                    return await task
                except asyncio.CancelledError:
                    task.cancel()
                    raise

            call = Call(f"submit {function.__name__} {value} to either", submit)
            if self.chance.random() < 0.2:
                call.cancel_after = self.chance.uniform(0, 0.2)
            return call

        values = [new("tree", 2) for _ in range(self.chance.randint(1, 6))]
        calls = [submitted(value) for value in values]
        await self._of_either(calls)
        for call, value in zip(calls, values, strict=True):
            if call.error is None and known(call.value) != value:
                raise Wrong(f"{call.what} returned {known(call.value)}")

    # ------------------------------------------------------------ outcomes

    async def _of_each(
        self,
        what: str,
        make: Callable[[], Awaitable[Any]],
        changes: Sequence[Changes] = ({}, {}),
        wanted: str = "",
    ) -> bool:
        """Make a call that gives a result or an error for each kernel; return whether both ran.

        ``wanted`` is the name whose values it gives.
        """
        whole = Call(what, make)
        started = time.monotonic()
        await self._run([whole])
        if whole.error is not None:
            raise Wrong(f"{what} raised {whole.error!r}") from whole.error
        ok = True
        for actor, outcome, changed in zip(self.members, whole.value, changes, strict=True):
            call = Call(f"{what} at {actor.name}, {actor.kernel}", make, changed)
            if wanted:
                call.wanted = [wanted]
                call.learn = lambda value, of=actor: of.names.see({wanted: known(value)})
            if isinstance(outcome, BaseException):
                call.error, ok = outcome, False
            else:
                call.value = outcome
            call.ended = whole.ended
            actor.note(call.what, call.outcome)
            actor.settle_one(call, started)
        return ok

    async def _of_either(self, calls: list[Call]) -> None:
        """Make calls that any of the kernels may serve; check their errors."""
        started = time.monotonic()
        await self._run(calls)
        for call in calls:
            if call.error is not None:
                self._judge(call, started)
        for actor in self.members:
            if actor.faults.happened(actor.kernel, ANY_LOSS, actor.good):
                actor.renew()
                await actor.look()

    def _judge(self, call: Call, started: float) -> None:
        """Check that the error is true of the kernel that it names, or of either."""
        notes = " ".join(getattr(call.error, "__notes__", ()))
        named = [one for at, one in enumerate(self.members) if f"kernel {at} of 2" in notes]
        wrong: Wrong | None = None
        for actor in named or self.members:
            try:
                actor.judge(call, started)
            except Wrong as error:
                wrong = error
            else:
                return
        assert wrong is not None
        raise wrong

    async def _run(self, calls: list[Call]) -> None:
        actor = self.members[0]
        tasks = [actor.started(call) for call in calls]
        await actor.ended(tasks, calls)
        for call, task in zip(calls, tasks, strict=True):
            actor.take(call, task)
