"""A client process of the soak: actors on kernels of the main process, until stdin is closed.

Rule: the main process may kill or stop it at any instant. It has its own limits and its own model;
it reads which faults were made from the main process's file.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import resource
import sys
from pathlib import Path
from typing import Any

from bridgehead import Bridge
from tests.bench import proc
from tests.soak import left
from tests.soak.actor import GUARD
from tests.soak.model import Faults
from tests.soak.report import failed
from tests.soak.steps import Steps


async def main(wanted: dict[str, Any]) -> int:
    limits(**wanted["limits"])
    faults = Faults(Path(wanted["faults"]))
    actors: list[Steps] = []
    for kernel, file in wanted["kernels"].items():
        for lane in wanted["lanes"]:
            name = f"{wanted['name']}{len(actors)}"
            chance = random.Random(f"{wanted['seed']} {name}")
            how = {"lane": lane, "timeout": GUARD}  # it waits for the cells of other processes
            attach = lambda file=file, how=how: Bridge.attach(file, **how)  # noqa: E731
            tight = "memory" in wanted["limits"]
            actors.append(Steps(name, kernel, faults, chance, attach, tight=tight, mortal=True))
    stop = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin, stop.set)
    try:
        for actor in actors[:2]:  # what comes with the first bridge of each lane stays
            await actor.open()
            await actor.close()
        before = left.Held.now()
        async with asyncio.TaskGroup() as group:
            for actor in actors:
                actor.others = actors
                group.create_task(opened_and_closed(actor, stop))
        asyncio.get_running_loop().remove_reader(sys.stdin)
        await left.nothing_more(before)
        print(f"client {wanted['name']}: {sum(actor.steps for actor in actors)} steps", flush=True)
    except BaseException as error:
        failed(error, faults, actors)
        return 1
    return 0


async def opened_and_closed(actor: Steps, stop: asyncio.Event) -> None:
    await actor.open()
    await actor.work(stop)
    await actor.keeps_nothing()
    await actor.close()


def limits(descriptors: int = 0, memory: int = 0) -> None:
    """Lower the limits of this process: descriptors, and bytes of memory beyond what it has."""
    if descriptors:
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))
    if memory:
        most = proc.mapped(os.getpid()) + memory
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


if __name__ == "__main__":
    sys.exit(asyncio.run(main(json.loads(sys.argv[1]))))
