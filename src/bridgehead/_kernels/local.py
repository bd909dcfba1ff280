"""Connect to a running kernel by its connection file or a client.

Rule: everything up to an open transport, and nothing after that. ``launch`` starts kernels,
``jupyter_servers`` connects to those behind a server, and ``security`` checks connections.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jupyter_core.utils import ensure_async
from traitlets import TraitError

from bridgehead._errors import KernelNotFound
from bridgehead._kernels.connection_file import find, read, refuse_own
from bridgehead._kernels.descriptors import ATTACHED, check_descriptors
from bridgehead._kernels.security import checked, warn_if_others_can_read
from bridgehead._transports.base import Transport
from bridgehead._transports.process import KernelProcess
from bridgehead._transports.tasks import noted_on
from bridgehead._transports.zmq import CHANNELS, ZmqTransport

PORTS = tuple(CHANNELS.values())


async def attach(
    existing: str | os.PathLike[str] | None, *, insecure: frozenset[str], timeout: float
) -> ZmqTransport:
    """Connect to a kernel by its connection file, as ``jupyter console --existing`` finds it."""
    check_descriptors(ATTACHED)
    file = find(existing)
    refuse_own(file)
    try:
        content = read(file)
        info = checked(content.info, file, insecure)
        warn_if_others_can_read(file)
        transport = ZmqTransport(info, connection_file=file)
        if not content.is_own:
            transport.no_proof = transport.no_proof or "the connection file is another user's"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, TraitError) as error:
        raise KernelNotFound(f"{file} is not a connection file: {error}") from error
    return await _opened(transport, timeout, transport.timings.listen_within)


async def over(client: Any, *, insecure: frozenset[str], timeout: float) -> Transport:
    """Connect to the kernel of the caller's AsyncKernelClient or AsyncKernelManager.

    The bridge makes its own sockets and session, so the client stays usable and undisturbed. Only
    an engine of an ipyparallel client is reached through that client.
    """
    from bridgehead._transports.ipyparallel_engine import EngineTransport, engine_of, is_view

    if is_view(client):
        return await EngineTransport.open(
            client.client, engine_of(client), insecure=insecure, timeout=timeout
        )
    check_descriptors(ATTACHED)
    unusable = _unusable(client)
    if unusable is not None:
        raise _not_taken(unusable)
    kernel_process = None
    if hasattr(client, "start_kernel"):
        kernel_process = KernelProcess(client, ZmqTransport.timings)
        if not await ensure_async(client.is_alive()):
            raise KernelNotFound(
                "this manager's kernel is not running; await manager.start_kernel() first"
            )
    connection_info = client.get_connection_info()
    # A client that reaches its kernel without sockets, as that of a gateway, has no ports. The
    # bridge would wait for such a kernel until the timeout.
    if not isinstance(connection_info, Mapping) or not any(map(connection_info.get, PORTS)):
        raise _not_taken(
            f"{type(client).__name__} without the ports of a kernel; call load_connection_file() "
            "first, or use Bridge.connect() if a server runs the kernel"
        )
    file = client.connection_file or None
    info = checked(connection_info, file or "the client", insecure)
    if file is not None:
        warn_if_others_can_read(file)
    transport = ZmqTransport(info, connection_file=file, kernel_process=kernel_process)
    if kernel_process is not None:  # the kernel may be starting
        return await _opened(transport, timeout, timeout, runs=False)
    return await _opened(transport, timeout, transport.timings.listen_within)


def _unusable(client: Any) -> str | None:
    """Say what the argument of ``over`` is, and what to pass instead; None if it may be used."""
    kind = type(client).__name__
    if isinstance(client, type):
        return f"the class {client.__name__}; pass an instance of it"
    if isinstance(client, (str, Path)):
        return f"{kind}; Bridge.attach() takes a connection file or an address"
    if hasattr(client, "get_kernel"):
        return f"{kind}, which has many kernels; pass manager.get_kernel(kernel_id)"
    inprocess = sys.modules.get("ipykernel.inprocess")
    if inprocess is not None and isinstance(
        client, (inprocess.InProcessKernelManager, inprocess.InProcessKernelClient)
    ):
        return (
            f"{kind}, whose kernel runs in this process and has no sockets; use its namespace "
            "kernel.shell.user_ns, or Bridge.launch() for a kernel of its own process"
        )
    needed = ("get_connection_info", "connection_file")
    return None if all(hasattr(client, name) for name in needed) else kind


def _not_taken(what: str) -> TypeError:
    return TypeError(
        "over() takes an AsyncKernelClient, an AsyncKernelManager or an ipyparallel view of "
        f"one engine, client[0], not {what}"
    )


async def _opened(
    transport: ZmqTransport, timeout: float, connect: float, *, runs: bool = True
) -> ZmqTransport:
    try:
        await transport.open(timeout, min(connect, timeout), runs=runs)
    except BaseException as error:
        with noted_on(error):
            await transport.aclose()
        raise
    return transport
