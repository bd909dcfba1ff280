"""The calls of an actor: what a program asks of a bridge, with random arguments.

Rule: a call and what its outcome says about the names. When it is made, and with which others, is
decided in ``steps``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from tests.soak.actor import Actor, Call
from tests.soak.model import Changes, Wrong
from tests.soak.values import DATA_KINDS, KINDS, Value, known, later, new, rest

SLOTS = 8  # names of an actor
SIZES = {
    "text": (0, 40, 20_000),
    "tree": (0, 3, 7),
    "bytes": (0, 3_000, 70_000),
    "array": (1, 12_500, 200_000),
    "arrays": (1, 20, 60),
    "frame": (1, 100, 5_000),
    "object": (0, 500, 70_000),
}
LARGE = {"bytes": 9_000_000, "array": 2_500_000, "arrays": 300}


def by_name(names: list[str], values: Any) -> Changes:
    values = (values,) if len(names) == 1 else values
    return dict(zip(names, map(known, values), strict=True))


class Calls(Actor):
    """An actor with its calls."""

    def slot(self) -> str:
        return self.fresh(self.chance.randrange(SLOTS))

    def value(self) -> Value:
        kinds = KINDS if self.bridge.info.trust == "pickle" else DATA_KINDS
        kind = self.chance.choice(kinds)
        if kind in LARGE and self.chance.random() < 0.06:
            return new(kind, LARGE[kind])
        return new(kind, self.chance.choice(SIZES.get(kind, (0,))))

    def a_push(self) -> Call:
        changes = {self.slot(): self.value() for _ in range(self.chance.choice((1, 1, 1, 2, 3)))}

        async def push(timeout: float | None = None) -> Any:
            values = {name: value.make() for name, value in changes.items()}
            return await self.bridge.push(values, timeout=call.timeout)

        call = Call(f"push {changes}", push, changes=changes)
        return call

    def a_pull(self) -> Call:
        wanted = sorted({self.slot() for _ in range(self.chance.choice((1, 1, 1, 2, 4)))})

        async def pull() -> Any:
            return await self.bridge.pull(*wanted, timeout=call.timeout)

        learn = lambda values: self.names.see(by_name(wanted, values))  # noqa: E731
        call = Call(f"pull {wanted}", pull, learn=learn, wanted=wanted)
        return call

    def a_delete(self) -> Call:
        wanted = sorted({self.slot() for _ in range(self.chance.choice((1, 1, 2)))})

        async def delete() -> Any:
            await self.bridge.delete(*wanted, timeout=call.timeout)

        learn = lambda _: self.names.have(wanted)  # noqa: E731
        changes = dict.fromkeys(wanted)
        call = Call(f"delete {wanted}", delete, changes, learn=learn, wanted=wanted)
        return call

    def a_names(self) -> Call:
        async def names() -> Any:
            return [one.name for one in await self.bridge.names("*", timeout=call.timeout)]

        call = Call("names", names, learn=self._own)
        return call

    def an_exists(self) -> Call:
        name = self.slot()

        async def exists() -> Any:
            return await self.bridge.exists(name, timeout=call.timeout)

        learn = lambda there: (self.names.have if there else self.names.lack)([name])  # noqa: E731
        call = Call(f"exists {name}", exists, learn=learn)
        return call

    def _own(self, names: list[str]) -> None:
        """Check the names of this actor among those of the kernel."""
        self.names.are([name for name in names if name.startswith(self.pattern[:-1])])

    def a_cell(self) -> Call:
        name, value = self.slot(), new("int", 0)
        code = f"{name} = {value.serial}"
        if self.chance.random() < 0.3:
            code = f"import time; time.sleep({self.chance.uniform(0, 0.1):.3f})\n{code}"

        async def run() -> Any:
            return await self.bridge.run(code, timeout=call.timeout)

        call = Call(f"run {code!r}", run, {name: value}, is_cell=True, partial=True)
        return call

    def a_kept_call(self) -> Call:
        name, value = self.slot(), new("int", 0)

        async def keep() -> Any:
            return await self.bridge.call(int, value.serial, keep=name, timeout=call.timeout)

        call = Call(f"call {value} keep {name}", keep, {name: value}, partial=True)
        return call

    def any_call(self) -> Call:
        makers: list[Callable[[], Call]] = [
            *([self.a_push, self.a_pull] * 3),
            *(self.a_delete, self.an_exists, self.a_cell, self.a_names),
        ]
        if self.bridge.info.trust == "pickle":
            makers.append(self.a_kept_call)
        return self.chance.choice(makers)()

    def a_task(self, *, cancel: bool) -> Call:
        function, seconds = self.chance.choice((later, rest)), self.chance.uniform(0, 0.3)
        function = function if cancel else later
        value = new("tree", 2)

        async def submit() -> Any:
            task = self.bridge.submit(function, value.make(), seconds)
            try:
                return await task
            except asyncio.CancelledError:
                task.cancel()
                raise

        def learn(found: Any) -> None:
            if known(found) != value:
                raise Wrong(f"{call.what} returned {known(found)}")

        call = Call(f"submit {function.__name__} {value}", submit, learn=learn)
        if cancel and self.chance.random() < 0.5:
            call.cancel_after = self.chance.choice((self.instant(), seconds))
        return call

    async def look_at(self, name: str) -> None:
        async def pull() -> Any:
            return await self.bridge.pull(name)

        learn = lambda value: self.names.see({name: known(value)})  # noqa: E731
        await self.do(Call(f"pull {name}", pull, learn=learn, wanted=[name]))

    async def look(self) -> None:
        """Check all names, and all values at one instant."""

        async def names() -> Any:
            return [one.name for one in await self.bridge.names(self.pattern)]

        call = Call("look at the names", names, learn=self._own)
        if not await self.do(call) or not call.value:
            return
        found: list[str] = call.value

        async def pull() -> Any:
            return await self.bridge.pull(*found)

        learn = lambda values: self.names.see(by_name(found, values))  # noqa: E731
        await self.do(Call(f"look at {found}", pull, learn=learn))

    def some(self, most: int) -> list[Call]:
        return [self.any_call() for _ in range(self.chance.randint(0, most))]

    def instant(self) -> float:
        return self.chance.choice((0.0, 0.001, 0.005, 0.03, 0.2)) * self.chance.uniform(0.5, 1.5)
