"""rpyc, classic mode over TCP: deliver and obtain."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from rpyc.utils import classic

from bridgehead._tools.bench.peers import Peer

SERVER = """
from rpyc.core import SlaveService
from rpyc.utils.server import OneShotServer
options = {"allow_pickle": True, "sync_request_timeout": None}
server = OneShotServer(SlaveService, hostname="127.0.0.1", port=0, protocol_config=options)
server._listen()  # before the port is printed, or a client may be refused
print(server.port, flush=True)
server.start()
"""


class Rpyc(Peer):
    name = "rpyc"

    def __init__(self) -> None:
        command = [sys.executable, "-c", SERVER]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    async def start(self, modules: Sequence[str] = ()) -> None:
        assert self._process.stdout is not None
        self._connection = classic.connect("127.0.0.1", int(self._process.stdout.readline()))
        self._connection._config["sync_request_timeout"] = None

    async def stop(self) -> None:
        self._process.kill()
        with self._process:
            pass

    async def push(self, name: str, value: Any) -> None:
        self._connection.namespace[name] = classic.deliver(self._connection, value)

    async def pull(self, name: str) -> Any:
        return classic.obtain(self._connection.namespace[name])


make = Rpyc
