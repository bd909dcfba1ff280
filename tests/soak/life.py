"""The steps that end a bridge or its kernel, and begin another.

Rule: a step is a method that makes calls through ``Actor.do``, or checks their outcome itself.
"""

from __future__ import annotations

import asyncio
import gc
import time

from bridgehead import BridgeClosed, OutcomeUnknown, RemoteError
from tests.soak.actor import ANY_LOSS, GUARD, Call
from tests.soak.calls import Calls
from tests.soak.model import Wrong
from tests.soak.remote import resources

KEPT = "watches", "tasks", "iterations", "refs", "callbacks"  # of a bridge's ``stats``


class LifeSteps(Calls):
    """An actor with its steps that close, open and restart."""

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

    async def keeps_nothing(self) -> None:
        """Check that the kernel has nothing for the bridge, when no call of this actor is left."""
        end = time.monotonic() + GUARD
        while True:
            gc.collect()  # refs and iterators in frames of errors
            stats = {kind: getattr(self.bridge.stats, kind) for kind in KEPT}
            # After an opening that followed, what the former bridge had is not looked at.
            owner = self.bridge._connection.resources.owner
            call = Call("look what is kept", lambda: self.bridge.call(resources, owner))
            if await self.do(call) and not call.value and not any(stats.values()):
                return
            if time.monotonic() > end:
                raise Wrong(f"for {self.name}, {stats} and in the kernel {call.value} are left")
            await asyncio.sleep(0.2)
