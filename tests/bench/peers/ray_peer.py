"""ray: put and an actor that keeps it; the arrays that it gives back are read-only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray

from bridgehead._tools.bench.peers import Peer

STORE = 6 << 30  # bytes of shared memory


class Ray(Peer):
    name = "ray"

    async def start(self, modules: Sequence[str] = ()) -> None:
        ray.init(
            num_cpus=1,
            include_dashboard=False,
            object_store_memory=STORE,
            log_to_driver=False,
            logging_level="ERROR",
        )

        @ray.remote
        class Box:
            def __init__(self) -> None:
                self.kept: dict[str, Any] = {}

            def set(self, name: str, value: Any) -> None:
                self.kept[name] = value

            def get(self, name: str) -> Any:
                return self.kept[name]

        self._box = Box.remote()
        ray.get(self._box.set.remote("warm", 1))

    async def stop(self) -> None:
        ray.shutdown()

    async def push(self, name: str, value: Any) -> None:
        ray.get(self._box.set.remote(name, ray.put(value)))

    async def pull(self, name: str) -> Any:
        return ray.get(self._box.get.remote(name))


make = Ray
