"""List the kernels that this process can reach, and their states.

Rule: asking leaves a kernel unchanged. Nothing is executed and nothing installed: a kernel is asked
for its ``kernel_info``, first on the control channel, which answers during a cell, then on the
shell channel, which answers after it. All kernels are asked at once, each with its own deadline, so
a stopped one delays no other. An error of one kernel is shown on its line, and the others are
listed all the same. Before, ``launch_folder`` removes what killed programs left.

The limit: a busy kernel keeps the second question until its cell ends. Nothing else distinguishes
a busy kernel from an idle one, and no state is kept between two calls. Some four thousand calls
during one cell deadlock ipykernel 7.4 for good, as that many requests of any client do; three
thousand do not.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import zmq
import zmq.asyncio
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_core.paths import jupyter_runtime_dir

from bridgehead._errors import BridgeError
from bridgehead._kernels.connection_file import connection_files, read
from bridgehead._kernels.jupyter_servers import (
    JupyterServer,
    import_libraries,
    list_kernels,
    running,
    seconds,
)
from bridgehead._kernels.launch_folder import sweep
from bridgehead._protocol.formatting import line
from bridgehead._transports.base import Transport
from bridgehead._transports.tasks import require_asyncio

ALIVE = ("idle", "busy", "starting")


@dataclass(frozen=True, slots=True, repr=False)
class DiscoveredKernel:
    """A kernel, or the connection file of a dead one; see ``bridgehead.kernels``.

    Attributes:
        where: the path of its connection file, or its address on a server.
        state: ``"idle"``, ``"busy"``, ``"starting"``; ``"silent"`` if a process listens but does
            not answer; ``"dead"`` if no process listens; ``"unknown"`` if asking failed.
        kernel: its implementation and version, or its kernelspec's name; empty if unknown.
        pid: the id of its process, if the kernel reports it.
        purpose: the notebook or console that it was started for, if known.
        server: the address of the server that runs it, else None.
        used: when a client last connected, in seconds since 1970: when its connection file was
            last read. For a kernel without a file here, as ``active``.
        why: why asking failed; mostly empty.
        active: its last activity, in seconds since 1970, as its server reports it; else 0.
        memory: the bytes of its process and of the processes that it started, if it reports them.

    >>> DiscoveredKernel("/run/kernel-1.json", "idle", "ipython 9.8.0", purpose="train.ipynb")
    <kernel of train.ipynb: idle, ipython 9.8.0, kernel-1.json>
    """

    where: str
    state: str
    kernel: str = ""
    pid: int | None = None
    purpose: str = ""
    server: str | None = None
    used: float = 0.0
    why: str = ""
    active: float = 0.0
    memory: int | None = None

    def __repr__(self) -> str:
        is_file = not self.where.startswith(("http://", "https://"))
        pid = None if self.pid is None else f"pid {self.pid}"
        where = Path(self.where).name if is_file else self.where
        known = (self.state, self.kernel, pid, where, self.why)
        purpose = f" of {line(self.purpose, 60)}" if self.purpose else ""
        return f"<kernel{purpose}: {', '.join(line(one, 80) for one in known if one)}>"

    @property
    def is_alive(self) -> bool:
        """Whether it answers.

        >>> DiscoveredKernel("/run/kernel-1.json", "dead").is_alive
        False
        """
        return self.state in ALIVE


async def kernels() -> list[DiscoveredKernel]:
    """Return the kernels that can be reached: what ``bridgehead ls`` shows.

    These are the kernels with a connection file in Jupyter's runtime folder, and those of this
    user's Jupyter servers on this machine. Kernels that answer come first, and of them the one that
    was used last. ``Bridge.attach`` takes one of them. Nothing is executed in a kernel. Each call
    leaves one request in the queue of a busy kernel until its cell ends; ipykernel 7 stops for good
    at about four thousand queued requests.

    Raises:
        RuntimeError: no asyncio event loop runs here, as under trio.

    >>> for kernel in await bridgehead.kernels():
    ...     print(kernel.state, kernel.where)
    """
    require_asyncio()
    patience = Transport.timings.listed_answer
    sweep(jupyter_runtime_dir())
    servers = list(running())
    if servers:  # before the deadlines begin: it may take longer than a kernel may take to answer
        with contextlib.suppress(ImportError):  # reported for each server
            import_libraries()
    async with _context() as context:
        local, served = await asyncio.gather(
            asyncio.gather(
                *(_look_at_file(file, context, patience) for file in connection_files())
            ),
            asyncio.gather(*(_look_at_server(server, patience) for server in servers)),
        )
    found = {Path(one.where).stem: one for one in local}
    for one in (one for server in served for one in server):
        # A server also writes connection files for its kernels: list each kernel once.
        name = f"kernel-{one.where.partition('/api/kernels/')[2]}"
        if name in found and found[name].is_alive:
            found[name] = replace(
                found[name], purpose=one.purpose, server=one.server, active=one.active
            )
        else:
            found.pop(name, None)
            found[one.where] = one
    return sorted(found.values(), key=lambda one: (not one.is_alive, -one.used))


async def _look_at_server(server: JupyterServer, patience: float) -> list[DiscoveredKernel]:
    """Return the kernels that a server lists, or one entry that says why it lists none."""
    try:
        async with asyncio.timeout(patience):
            return await on_server(server)
    except TimeoutError as error:
        why = str(error) or "it does not answer"
    except (BridgeError, ImportError, ValueError) as error:
        why = str(error)
    except Exception as error:  # noqa: BLE001 - the server may send anything
        why = f"its response cannot be read: {_named(error)}"
    return [DiscoveredKernel(server.url, "unknown", server=server.url, why=why)]


async def on_server(server: JupyterServer) -> list[DiscoveredKernel]:
    """Return the kernels that a server lists.

    Raises the errors of the connection to the server, and ``ImportError`` if httpx or websockets
    are not installed.
    """
    kernels, purposes = await list_kernels(server)
    return [
        DiscoveredKernel(
            f"{server.url}api/kernels/{kernel.get('id')}",
            str(kernel.get("execution_state", "unknown")),
            str(kernel.get("name", "")),
            None,
            purposes.get(str(kernel.get("id")), ""),
            server.url,
            active,
            active=active,
        )
        for kernel in kernels
        for active in [seconds(kernel.get("last_activity"))]
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
    found = DiscoveredKernel(str(file), "unknown")
    try:
        info, used = _read(file)
    except OSError as error:
        return replace(found, why=f"the file cannot be read: {error.strerror or error}")
    except Exception as error:  # noqa: BLE001 - a file may contain anything
        return replace(found, why=f"not a connection file: {_named(error)}")
    found = replace(
        found,
        used=used,
        kernel=str(info.get("kernel_name") or ""),
        purpose=str(info.get("jupyter_session") or ""),
    )
    try:
        if not await _listens(info, patience):
            return replace(found, state="dead")
        return await _ask_kernel(found, info, context, patience)
    except TimeoutError:
        return replace(found, state="silent")
    except zmq.ZMQError as error:
        return replace(found, why=str(error))
    except OSError as error:
        return replace(found, why=f"{info['ip']} cannot be reached: {error.strerror or error}")
    except Exception as error:  # noqa: BLE001 - the program at that address may send anything
        return replace(found, why=f"asking it failed: {_named(error)}")


def _named(error: Exception) -> str:
    """Return an error's class and text, because some texts mean nothing without the class."""
    return f"{type(error).__name__}: {error}"


def _read(file: Path) -> tuple[dict[str, Any], float]:
    """Return the content of a connection file, and when it was last read; leave that time."""
    content = read(file, unnoticed=True)
    for name in ("shell_port", "control_port"):
        if not 0 < int(content.info[name]) < 1 << 16:
            raise ValueError(f"{name} is {content.info[name]}")
    return {"ip": "127.0.0.1", **content.info}, content.used


async def _listens(info: Mapping[str, Any], patience: float) -> bool:
    """Return whether a program listens at the kernel's control port; ZeroMQ would try for ever."""
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
    return "127.0.0.1" if ip in ("0.0.0.0", "*", "") else ip  # noqa: S104 - compared, not bound


async def _ask_kernel(
    found: DiscoveredKernel, info: dict[str, Any], context: zmq.asyncio.Context, patience: float
) -> DiscoveredKernel:
    client = AsyncKernelClient(context=context)
    info_with_key: Any = {**info, "key": info.get("key") or ""}
    client.load_connection_info(info_with_key)
    control = client.connect_control()
    shell = client.connect_shell()
    try:
        await _send(client, control, "kernel_info_request")
        started = time.monotonic()
        kernel_info = await _reply(client, control, "kernel_info_reply", patience)
        if kernel_info is None:  # before ipykernel 6, control also waited for the running cell
            return replace(found, state="silent")
        # Only now: a kernel that does not answer would keep the request in its queue.
        await _send(client, shell, "kernel_info_request")
        left = max(Transport.timings.shell_after_control, 2 * (time.monotonic() - started))
        shell_reply = await _reply(client, shell, "kernel_info_reply", left)
        state = "busy" if shell_reply is None else "idle"
        implementation = str(kernel_info.get("implementation", ""))
        name = f"{implementation} {kernel_info.get('implementation_version', '')}"
        found = replace(found, state=state, kernel=name.strip() or found.kernel)
        if implementation != "ipython":
            return found
        await _send(client, control, "usage_request")
        usage = await _reply(client, control, "usage_reply", left)
        pid, memory = ((usage or {}).get(name) for name in ("pid", "kernel_memory"))
        return replace(
            found,
            pid=pid if isinstance(pid, int) else None,
            memory=memory if isinstance(memory, int) else None,
        )
    finally:
        control.close(linger=0)
        shell.close(linger=0)


async def _send(client: AsyncKernelClient, channel: Any, kind: str) -> None:
    session = client.session  # Session.send() would consume the asyncio socket's wake-up
    await channel.send_multipart(session.serialize(session.msg(kind, {})))


async def _reply(
    client: AsyncKernelClient, channel: Any, kind: str, patience: float
) -> dict[str, Any] | None:
    """Return the content of the next reply of this kind, or None after ``patience`` seconds.

    The channel is polled, because a cancelled receive loses messages.
    """
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
    """Say how long ago this was, in the largest unit that fits."""
    seconds = max(0.0, time.time() - used)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
