"""The steps that follow what changes in the kernel.

Rule: a step is a method that makes calls through ``Actor.do``, or checks their outcome itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from bridgehead import NameNotFound, Watch
from tests.soak.actor import ANY_LOSS, Call
from tests.soak.calls import Calls
from tests.soak.model import Wrong
from tests.soak.values import Value, known, new


class WatchSteps(Calls):
    """An actor with its steps that watch."""

    async def watch(self) -> None:
        """Follow a name while cells change it."""
        name = self.slot()
        watch = await self._begun(f"watch {name}", lambda: self.bridge.watch(name))
        if watch is None:
            return
        try:
            for _ in range(3):
                value = new("int", 0)
                if not await self._change(name, value):
                    return
                right = lambda found, value=value: known(found) == value  # noqa: E731
                if not await self._until(f"watch {name}", watch, right):
                    return
        finally:
            await watch.aclose()

    async def watch_names(self) -> None:
        """Follow the names of this actor while cells make and delete some."""
        await self.look()
        if not self.names.is_certain:
            return
        what, pattern = f"watch the names {self.pattern}", self.pattern
        watch = await self._begun(what, lambda: self.bridge.watch_names(pattern))
        if watch is None:
            return
        try:
            for _ in range(3):
                name = self.slot()
                value = None if name in self.names.certain else new("int", 0)
                if not await self._change(name, value) or not self.names.is_certain:
                    return
                right = lambda found: {one.name for one in found} == set(self.names.certain)  # noqa: E731
                if not await self._until(what, watch, right):
                    return
        finally:
            await watch.aclose()

    async def _begun(self, what: str, make: Callable[[], Watch[Any]]) -> Watch[Any] | None:
        async def begin() -> Any:
            return make()

        call = Call(f"begin to {what}", begin, asks=False)
        return call.value if await self.do(call) else None

    async def _change(self, name: str, value: Value | None) -> bool:
        """Have a cell bind or delete a name; return whether it did."""
        code = f"del {name}" if value is None else f"{name} = {value.serial}"

        async def run() -> Any:
            return await self.bridge.run(code)

        return await self.do(Call(f"run {code!r}", run, {name: value}, is_cell=True, partial=True))

    async def _until(self, what: str, watch: Watch[Any], right: Callable[[Any], bool]) -> bool:
        """Wait until the watch gives what is right; return false if the kernel is lost before."""
        while True:
            call = Call(what, lambda: anext(watch), refused=(NameNotFound,))
            reports, started = self.reports, time.monotonic()
            task = self.started(call)
            await self.ended([task], [call])
            if isinstance(task.exception(), StopAsyncIteration):
                self.note(call.what, "the end")
                if not self.faults.happened(self.kernel, {**ANY_LOSS, "cut": 15}, self.good):
                    raise Wrong(f"the {what} ended, and no fault explains it")
                return False
            self.take(call, task)
            self.judge(call, started)
            if call.lost:
                self.lost_elsewhere()
            if call.error is not None or self.reports != reports:
                return False
            if right(call.value):
                return True
