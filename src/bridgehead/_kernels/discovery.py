"""Which kernels can be reached from here, and which of them are busy.

Rule: a look, and nobody notices. Nothing is executed and nothing planted: a kernel is asked who
it is, on the channel that answers beside a cell, and on the one that answers behind it. All are
asked at once, with one deadline for each, so that a stopped one holds up nobody. Whatever is odd
about one of them is told on its line, and the others are listed all the same.

The limit: a busy kernel keeps the second question until its cell is done. Nothing else tells a
busy one from an idle one, and nobody remembers between two looks what was asked. Some four
thousand looks into one cell deadlock ipykernel 7.4 for good, as that many requests of any client
do; three thousand do not.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import zmq
import zmq.asyncio
from jupyter_client.asynchronous.client import AsyncKernelClient

from bridgehead._errors import BridgeError
from bridgehead._kernels import jupyter_servers as _servers
from bridgehead._kernels.jupyter_servers import JupyterServer
from bridgehead._kernels.local import connection_files

ANSWER_WAIT = 2.0  # s for a kernel or a server to answer at all
BEHIND = 0.4  # s that an idle kernel's shell may answer later than its control; else it is busy
ALIVE = ("idle", "busy", "starting")


@dataclass(frozen=True, slots=True)
class DiscoveredKernel:
    """A kernel, or what is left of one.

    Attributes:
        where: what leads there: a connection file's path, or a server's address.
        state: ``"idle"``, ``"busy"``, ``"starting"``; ``"silent"`` if its process is there and
            answers nothing; ``"dead"`` if nobody listens; ``"unknown"`` if it can't be asked.
        kernel: its implementation and version, or its kernelspec's name; empty if not known.
        pid: its process, where it says so.
        purpose: the notebook or console that it was started for, as far as is known.
        server: the address of the server that runs it, else None.
        used: when it was last used, in seconds since 1970: a connection file when it was read.
        why: what kept it from being asked; mostly empty.
    """

    where: str
    state: str
    kernel: str = ""
    pid: int | None = None
    purpose: str = ""
    server: str | None = None
    used: float = 0.0
    why: str = ""

    @property
    def is_alive(self) -> bool:
        return self.state in ALIVE


async def look_around(patience: float = ANSWER_WAIT) -> list[DiscoveredKernel]:
    """The kernels of Jupyter's runtime folder and of this user's servers; last used, first."""
    async with _context() as context:
        local, served = await asyncio.gather(
            asyncio.gather(
                *(_look_at_file(file, context, patience) for file in connection_files())
            ),
            asyncio.gather(*(_look_at_server(server, patience) for server in _servers.running())),
        )
    found = {Path(one.where).stem: one for one in local}
    for one in (one for server in served for one in server):
        # A server writes its kernels' files, too.
        name = f"kernel-{one.where.partition('/api/kernels/')[2]}"
        if name in found and found[name].is_alive:
            found[name] = replace(found[name], purpose=one.purpose, server=one.server)
        else:
            found.pop(name, None)
            found[one.where] = one
    return sorted(found.values(), key=lambda one: (not one.is_alive, -one.used))


async def _look_at_server(server: JupyterServer, patience: float) -> list[DiscoveredKernel]:
    """The kernels that a server tells of, or one line that says why it doesn't."""
    try:
        async with asyncio.timeout(patience):
            return await on_server(server)
    except TimeoutError as error:
        why = str(error) or "it does not answer"
    except (BridgeError, ImportError, ValueError) as error:
        why = str(error)
    except Exception as error:  # noqa: BLE001 - it says what nobody has thought of
        why = f"what it says can't be read: {_named(error)}"
    return [DiscoveredKernel(server.url, "unknown", server=server.url, why=why)]


async def on_server(server: JupyterServer) -> list[DiscoveredKernel]:
    """The kernels that a server tells of.

    Raises what reaching it raises, and ``ImportError`` where httpx or websockets are missing.
    """
    kernels, purposes = await _servers.told(server)
    return [
        DiscoveredKernel(
            f"{server.url}api/kernels/{kernel.get('id')}",
            str(kernel.get("execution_state", "unknown")),
            str(kernel.get("name", "")),
            None,
            purposes.get(str(kernel.get("id")), ""),
            server.url,
            _servers.seconds(kernel.get("last_activity")),
        )
        for kernel in kernels
    ]


@contextlib.asynccontextmanager
async def _context() -> Any:
    context = zmq.asyncio.Context()
    context.setsockopt(zmq.LINGER, 0)
    try:
        yield context
    finally:
        context.destroy(linger=0)


async def _look_at_file(
    file: Path, context: zmq.asyncio.Context, patience: float
) -> DiscoveredKernel:
    seen = DiscoveredKernel(str(file), "unknown")
    try:
        info, written = _read(file)
    except OSError as error:
        return replace(seen, why=f"it can't be read: {error.strerror or error}")
    except Exception as error:  # noqa: BLE001 - anything can be in a file
        return replace(seen, why=f"no connection file: {_named(error)}")
    seen = replace(
        seen,
        used=written,
        kernel=str(info.get("kernel_name") or ""),
        purpose=str(info.get("jupyter_session") or ""),
    )
    try:
        if not await _listens(info, patience):
            return replace(seen, state="dead")
        return await _asked(seen, info, context, patience)
    except TimeoutError:
        return replace(seen, state="silent")
    except zmq.ZMQError as error:
        return replace(seen, why=str(error))
    except OSError as error:
        return replace(seen, why=f"{info['ip']} can't be reached: {error.strerror or error}")
    except Exception as error:  # noqa: BLE001 - what answers there can say anything
        return replace(seen, why=f"it can't be asked: {_named(error)}")


def _named(error: Exception) -> str:
    """What was the matter; the text of some says nothing without their names."""
    return f"{type(error).__name__}: {error}"


def _read(file: Path) -> tuple[dict[str, Any], float]:
    """What a connection file says, and when it was last read.

    By that time Jupyter knows the kernel used last, so a look leaves it as it was.
    """
    used = file.stat().st_atime
    how = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)  # nobody may write to what is a pipe
    try:
        number = os.open(file, how | getattr(os, "O_NOATIME", 0))
    except PermissionError:  # it is somebody else's
        number = os.open(file, how)
    with os.fdopen(number, encoding="utf-8") as text:
        info = dict(json.load(text))
    for name in ("shell_port", "control_port"):
        if not 0 < int(info[name]) < 1 << 16:
            raise ValueError(f"{name} is {info[name]}")
    return {"ip": "127.0.0.1", **info}, used


async def _listens(info: Mapping[str, Any], patience: float) -> bool:
    """Whether anybody is at the kernel's control port; ZeroMQ would try for ever."""
    port = int(info["control_port"])
    async with asyncio.timeout(patience):
        try:
            if info.get("transport", "tcp") == "ipc":
                _, writer = await asyncio.open_unix_connection(f"{info['ip']}-{port}")
            else:
                _, writer = await asyncio.open_connection(_reachable(str(info["ip"])), port)
        except (ConnectionError, FileNotFoundError, socket.gaierror):
            return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True


def _reachable(ip: str) -> str:
    return "127.0.0.1" if ip in ("0.0.0.0", "*", "") else ip  # noqa: S104 - where it listens


async def _asked(
    seen: DiscoveredKernel, info: dict[str, Any], context: zmq.asyncio.Context, patience: float
) -> DiscoveredKernel:
    client = AsyncKernelClient(context=context)
    known: Any = {**info, "key": info.get("key") or ""}
    client.load_connection_info(known)
    control = client.connect_control()
    shell = client.connect_shell()
    try:
        await _ask(client, control, "kernel_info_request")
        started = time.monotonic()
        told = await _answer(client, control, "kernel_info_reply", patience)
        if told is None:  # before ipykernel 6 the control channel answered behind a cell, too
            return replace(seen, state="silent")
        await _ask(client, shell, "kernel_info_request")  # not to one that would only keep it
        left = max(BEHIND, 2 * (time.monotonic() - started))
        behind = await _answer(client, shell, "kernel_info_reply", left)
        state = "busy" if behind is None else "idle"
        name = f"{told.get('implementation', '')} {told.get('implementation_version', '')}"
        seen = replace(seen, state=state, kernel=name.strip() or seen.kernel)
        if told.get("implementation") != "ipython":
            return seen
        await _ask(client, control, "usage_request")
        usage = await _answer(client, control, "usage_reply", left)
        pid = (usage or {}).get("pid")
        return replace(seen, pid=pid if isinstance(pid, int) else None)
    finally:
        control.close(linger=0)
        shell.close(linger=0)


async def _ask(client: AsyncKernelClient, channel: Any, kind: str) -> None:
    session = client.session  # its own send() would eat the asyncio socket's wake-up
    await channel.send_multipart(session.serialize(session.msg(kind, {})))


async def _answer(
    client: AsyncKernelClient, channel: Any, kind: str, patience: float
) -> dict[str, Any] | None:
    """What it says to that, or None; polled, because a cancelled receive loses messages."""
    until = time.monotonic() + patience
    while (left := until - time.monotonic()) > 0:
        if not await channel.poll(left * 1000):
            return None
        frames = await channel.recv_multipart()
        _, frames = client.session.feed_identities(frames)
        message = client.session.deserialize(frames)
        if message["msg_type"] == kind:
            return dict(message["content"])
    return None


def age(used: float) -> str:
    """How long ago, in the largest unit that fits."""
    seconds = max(0.0, time.time() - used)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
