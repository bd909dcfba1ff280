"""ipyparallel, one local engine: a DirectView's push and pull."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import ipyparallel

from bridgehead._tools.bench.peers import Peer


class Ipyparallel(Peer):
    name = "ipyparallel"

    def __init__(self) -> None:
        self._cluster = ipyparallel.Cluster(n=1, log_level=logging.ERROR)
        self._view: Any = None

    async def start(self, modules: Sequence[str] = ()) -> None:
        client = await self._cluster.start_and_connect(activate=False)
        self._view = client[0]

    async def stop(self) -> None:
        await self._cluster.stop_cluster()

    async def push(self, name: str, value: Any) -> None:
        self._view.push({name: value}, block=True)

    async def pull(self, name: str) -> Any:
        return self._view.pull(name, block=True)


make = Ipyparallel
