"""multiprocessing: a pipe to one process, every object as one pickle."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

from bridgehead._tools.bench.peers import Peer


def keep(pipe: Connection) -> None:
    kept: dict[str, Any] = {}
    while True:
        try:
            command, name, value = pipe.recv()
        except EOFError:
            return
        if command == "push":
            kept[name] = value
            pipe.send("ok")
        else:
            pipe.send(kept[name])
        del value


class Pipe(Peer):
    name = "pipe"

    async def start(self, modules: Sequence[str] = ()) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, remote = context.Pipe()
        self._process = context.Process(target=keep, args=(remote,), daemon=True)
        self._process.start()
        remote.close()

    async def stop(self) -> None:
        self._pipe.close()
        self._process.join(5)

    async def push(self, name: str, value: Any) -> None:
        self._pipe.send(("push", name, value))
        assert self._pipe.recv() == "ok"

    async def pull(self, name: str) -> Any:
        self._pipe.send(("pull", name, None))
        return self._pipe.recv()


make = Pipe
