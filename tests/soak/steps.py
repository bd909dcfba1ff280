"""The steps of an actor: what a program does with a bridge, in any order.

Rule: a step is a method that makes calls through ``Actor.do``, or checks their outcome itself. The
plan, that is which steps with which arguments, follows from the actor's random generator alone;
the interleaving of actors and faults does not.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Any

from bridgehead import (
    BridgeClosed,
    BridgeError,
    EncodeError,
    NameNotFound,
    NotSupported,
    OutcomeUnknown,
    PayloadTooLarge,
    RemoteError,
)
from tests.soak.actor import ANY_LOSS, Call
from tests.soak.calls import SLOTS, Calls, by_name
from tests.soak.model import Wrong
from tests.soak.values import (
    count_up,
    count_up_later,
    known,
    new,
    print_lines,
    rest,
    twice,
)

HARMED = {"cut": 15.0, "stop": 8.0, "interrupt": 3.0, **ANY_LOSS}  # faults that lose outputs
MOST_POSSIBLE = 16  # namespaces, until an actor looks which one is true


LONGEST_CELL = 40  # s; a stop of a kernel and the interrupts of a cell take less
# A cell without names of its own, which the model does not know.
ENDLESS = f"""
import time
end = time.monotonic() + {LONGEST_CELL}
while time.monotonic() < end:
    pass
"""


class Steps(Calls):
    """An actor with its steps."""

    others: list[Steps]  # in this process

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
        if self.names.count > MOST_POSSIBLE:
            await self.look()
            if self.names.count > 8 * MOST_POSSIBLE:
                self.renew()
        await asyncio.sleep(0)

    # ------------------------------------------------------------ steps

    async def one(self) -> None:
        """Make one call, and look what it did."""
        call = self.any_call()
        await self.do(call)
        if call.changes and self.chance.random() < 0.5:
            await self.look_at(sorted(call.changes)[0])

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
            return await self.bridge.run(f"for i in range({lines}): print(i, 'x' * 20)")

        call = Call(f"run a cell of {lines} prints", run)
        if await self.do(call) and not self.faults.happened(self.kernel, HARMED, started):
            expected = "".join(f"{i} {'x' * 20}\n" for i in range(lines))
            if call.value.stdout != expected:
                raise Wrong(f"of {len(expected)} characters {len(call.value.stdout)} arrived")

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

    async def read_another(self) -> None:
        """Pull a name of another actor of the same kernel."""
        others = [one for one in self.others if one.kernel == self.kernel and one is not self]
        if not others:
            return
        other = self.chance.choice(others)
        if other.bridge is None or self.bridge.info.trust == "data":
            return
        name = other.fresh(self.chance.randrange(SLOTS))
        begun, reports = other.good, other.reports

        async def pull() -> Any:
            return await self.bridge.pull(name)

        call = Call(f"pull {name} of another", pull, refused=(NameNotFound,))
        with other.names.reading(name) as possible:
            ok = await self.do(call)
        if other.reports != reports or self.faults.happened(self.kernel, ANY_LOSS, begun):
            return
        found = known(call.value) if ok else None
        if (ok or isinstance(call.error, NameNotFound)) and found not in possible:
            raise Wrong(f"{name} of {other.name} is {found}, expected one of {possible}")

    async def hand_off(self) -> None:
        """Hand names to another kernel, and look what arrived."""
        targets = [one for one in self.others if one.kernel != self.kernel and one.bridge]
        have = sorted(self.names.certain)
        if not targets or not have or not self.names.is_certain:
            return
        target, name = self.chance.choice(targets), self.chance.choice(have)
        value = self.names.certain[name]
        if value.kind == "object":
            return  # the bridges may trust less
        to, reports, started = target.bridge, target.reports, time.monotonic()

        async def hand() -> Any:
            return await self.bridge.handoff(name, to=to, timeout=call.timeout)

        call = Call(f"handoff {name} to {target.name}", hand)
        if self.chance.random() < 0.3:
            call.cancel_after = self.instant()
        task = self._start(call)
        await self.ended([task], [call])
        self._take(call, task)
        error = call.error
        of_target = any("target of" in note for note in getattr(error, "__notes__", ()))
        if isinstance(error, BridgeClosed):
            return  # the target closes its bridge
        who = target if of_target else self
        if isinstance(error, NameNotFound):
            raise Wrong(f"{call.what}: {error}, expected {self.names!r}")
        who.judge(call, started)
        if call.lost:
            who.lost_elsewhere()
        if call.ran is False or target.reports != reports:
            return
        if not call.ran:
            return
        self.good = started

        async def look() -> Any:
            return await to.pull(name)

        async def drop() -> Any:
            await to.delete(name)

        for what, make in (("pull", look), ("delete", drop)):
            call = Call(f"{what} {name} from {target.name}", make)
            started, task = time.monotonic(), self._start(call)
            await self.ended([task], [call])
            self._take(call, task)
            if isinstance(call.error, BridgeClosed) or to is not target.bridge:
                return
            if not isinstance(call.error, NameNotFound):
                target.judge(call, started)
            if call.lost:
                target.lost_elsewhere()
            if target.reports != reports or call.lost:
                return
            if isinstance(call.error, NameNotFound):
                raise Wrong(f"{name} was handed to {target.name}, and is not there")
            if what == "pull" and call.error is None and known(call.value) != value:
                raise Wrong(f"{name} at {target.name} is {known(call.value)}, not {value}")
            if call.error is not None:
                return

    async def watch(self) -> None:
        """Follow a name while cells change it."""
        name = self.slot()

        async def begin() -> Any:
            return self.bridge.watch(name)

        begun = Call(f"begin to watch {name}", begin, asks=False)
        if not await self.do(begun):
            return
        watch = begun.value
        try:
            value = new("int", 0)
            for _ in range(3):
                value = new("int", 0)
                code = f"{name} = {value.serial}"

                async def run(code: str = code) -> Any:
                    return await self.bridge.run(code)

                cell = Call(f"run {code!r}", run, {name: value}, is_cell=True, partial=True)
                if not await self.do(cell):
                    return
                while True:
                    call = Call(f"watch {name}", lambda: anext(watch), refused=(NameNotFound,))
                    reports, started = self.reports, time.monotonic()
                    task = self._start(call)
                    await self.ended([task], [call])
                    if isinstance(task.exception(), StopAsyncIteration):
                        self.note(call.what, "the end")
                        if not self.faults.happened(
                            self.kernel, {**ANY_LOSS, "cut": 15}, self.good
                        ):
                            raise Wrong(f"the watch of {name} ended, and no fault explains it")
                        return
                    self._take(call, task)
                    self.judge(call, started)
                    if call.lost:
                        self.lost_elsewhere()
                    if call.error is not None or self.reports != reports:
                        return
                    if known(call.value) == value:
                        break
        finally:
            await watch.aclose()

    async def reopen(self) -> None:
        """Close the bridge and open another one: the names are still there."""
        if self.owns:
            return
        await self.look()
        if not self.names.is_certain:
            return
        await self.close()
        if self.faults.happened(self.kernel, ANY_LOSS, self.good):
            self.renew()  # no bridge was there to report the loss
        since = time.monotonic()
        await self.open()
        if self.faults.happened(self.kernel, ANY_LOSS, since):
            self.renew()
        self._lost()

    async def close_amid_calls(self) -> None:
        """Close the bridge while calls wait."""
        if self.owns:
            return
        calls = [self.any_call() for _ in range(4)]
        for call in calls:
            call.refused = (BridgeClosed,)

        async def close() -> None:
            await asyncio.sleep(self.instant() / 10)
            await self.bridge.aclose()

        await self.do(*calls, during=close)
        self.renew()
        await self.open()
        self._lost()

    async def restart(self) -> None:
        """Restart the kernel, also while calls wait."""
        calls = [self.any_call() for _ in range(self.chance.choice((0, 0, 3)))]

        async def restart() -> None:
            with self.faults.making(self.kernel, "restart"):
                for _ in range(5):
                    try:
                        await self.bridge.restart()
                        return
                    except (OutcomeUnknown, RemoteError, TimeoutError) as error:
                        # The new process may be killed or interrupted, too.
                        self.note("restart", repr(error))
                        since = time.monotonic() - 60
                        kinds = {"kill": 15, "stop": 60, "interrupt": 5}
                        if not self.faults.happened(self.kernel, kinds, since):
                            raise Wrong(f"restart: {error!r}") from error
            raise Wrong("the kernel did not restart in five tries")

        await self.do(*calls, during=restart)
        self._lost()
        if self.served and any(call.is_cell for call in calls):
            self.renew()
        self.names.clear()  # all calls were meant for the old kernel
        await self.look()

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
    Steps.errors: 4,
    Steps.function: 4,
    Steps.coroutine: 3,
    Steps.tasks: 3,
    Steps.interrupted: 3,
    Steps.function_output: 2,
    Steps.iteration: 3,
    Steps.at_once: 4,
    Steps.read_another: 4,
    Steps.hand_off: 5,
    Steps.watch: 2,
    Steps.look: 3,
    Steps.tidy: 2,
    Steps.reopen: 1,
    Steps.close_amid_calls: 0.5,
    Steps.lag: 5,
}
