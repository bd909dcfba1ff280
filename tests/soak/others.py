"""The steps that concern other actors: what their names are, and what they are handed.

Rule: a step is a method that makes calls through ``Actor.do``, or checks their outcome itself.
"""

from __future__ import annotations

import time
from typing import Any

from bridgehead import BridgeClosed, NameNotFound
from tests.soak.actor import ANY_LOSS, Call
from tests.soak.calls import SLOTS, Calls
from tests.soak.model import Wrong
from tests.soak.values import known


class OtherSteps(Calls):
    """An actor with its steps that concern others."""

    others: list[OtherSteps]  # in this process

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
        task = self.started(call)
        await self.ended([task], [call])
        self.take(call, task)
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
            started, task = time.monotonic(), self.started(call)
            await self.ended([task], [call])
            self.take(call, task)
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
