"""dask.distributed, one worker process: scatter and gather. Argument: ``direct``, or none."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from distributed import Client, LocalCluster

from bridgehead._tools.bench.peers import Peer
from bridgehead._tools.bench.samples import Sample


class Dask(Peer):
    def __init__(self, direct: str = "") -> None:
        self.name = "dask direct" if direct else "dask"
        self._direct = True if direct else None
        self._cluster: Any = None

    async def start(self, modules: Sequence[str] = ()) -> None:
        self._cluster = LocalCluster(
            n_workers=1,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
            memory_limit=0,
            silence_logs=logging.ERROR,
            asynchronous=False,
        )
        self._client = Client(self._cluster, asynchronous=False)
        self._kept: dict[str, Any] = {}

    async def stop(self) -> None:
        if self._cluster is not None:
            self._kept.clear()
            self._client.close()
            self._cluster.close()

    def refuses(self, payload: Sample) -> str | None:
        return "it takes most of a minute" if payload.name == "list1m" else None

    async def push(self, name: str, value: Any) -> None:
        self._kept[name] = self._client.scatter([value], direct=self._direct, hash=False)[0]

    async def pull(self, name: str) -> Any:
        return self._client.gather(self._kept[name], direct=self._direct)


make = Dask
