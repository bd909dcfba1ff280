"""Connect to a running kernel by its connection file or a client.

Rule: everything up to an open transport, and nothing after that. ``launch`` starts kernels,
``jupyter_servers`` connects to those behind a server, and ``security`` checks connections.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jupyter_core.paths import jupyter_runtime_dir
from jupyter_core.utils import ensure_async
from traitlets import TraitError

from bridgehead._errors import KernelNotFound
from bridgehead._kernels.security import checked, is_own_file, warn_if_others_can_read
from bridgehead._transports.base import Transport
from bridgehead._transports.ipyparallel_engine import EngineTransport, engine_of, is_view
from bridgehead._transports.process import KernelProcess
from bridgehead._transports.tasks import noted_on
from bridgehead._transports.zmq import CHANNELS, ZmqTransport

PORTS = tuple(CHANNELS.values())


async def attach(
    existing: str | os.PathLike[str] | None, *, insecure: frozenset[str], timeout: float
) -> ZmqTransport:
    """Connect to a kernel by its connection file, as ``jupyter console --existing`` finds it."""
    file = find(existing)
    try:
        with open(file, encoding="utf-8") as text:
            info = json.load(text)
        info = checked(info, file, insecure)
        warn_if_others_can_read(file)
        transport = ZmqTransport(info, connection_file=file)
        transport.ours = transport.ours and is_own_file(file)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, TraitError) as error:
        raise KernelNotFound(f"{file} is not a connection file: {error}") from error
    return await _opened(transport, timeout, transport.timings.listen_within)


async def over(client: Any, *, insecure: frozenset[str], timeout: float) -> Transport:
    """Connect to the kernel of the caller's AsyncKernelClient or AsyncKernelManager.

    The bridge makes its own sockets and session, so the client stays usable and undisturbed. Only
    an engine of an ipyparallel client is reached through that client.
    """
    if is_view(client):
        return await EngineTransport.open(
            client.client, engine_of(client), insecure=insecure, timeout=timeout
        )
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
    if kernel_process is not None:
        return await _opened(transport, timeout, timeout)
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


async def _opened(transport: ZmqTransport, timeout: float, connect: float) -> ZmqTransport:
    try:
        await transport.open(timeout, min(connect, timeout))
    except BaseException as error:
        with noted_on(error):
            await transport.aclose()
        raise
    return transport


def find(existing: str | os.PathLike[str] | None) -> str:
    """Return the connection file for ``existing``: a path, a fragment, a glob, or the latest.

    Raises:
        KernelNotFound: no file matches, or more than one; the message lists them.
    """
    folder = jupyter_runtime_dir()
    if existing is None:
        latest = _used_last([*_matching(".", "kernel-*.json"), *_matching(folder, "kernel-*.json")])
        if latest is None:
            raise KernelNotFound(f"no kernel is running: there is no connection file in {folder}")
        return latest
    name = os.fspath(existing)
    for candidate in (name, os.path.join(folder, name)):
        if os.path.isfile(candidate):
            return os.path.abspath(candidate)
    head, tail = os.path.split(name)
    if tail and os.path.isdir(head):  # only the rest is a fragment or a glob
        places = [head]
    else:
        places, tail = [".", folder], name
    pattern = tail if "*" in tail else f"*{glob.escape(tail)}*"
    found = (match for place in places for match in _matching(place, pattern))
    matches = {match for match in found if match.endswith(".json")}
    if len(matches) == 1:
        return matches.pop()
    if matches:
        raise KernelNotFound(
            f"{name!r} matches {len(matches)} kernels; pass one of: {_listed(sorted(matches))}"
        )
    here = [str(file) for file in connection_files()]
    raise KernelNotFound(
        f"no connection file matches {name!r}; {folder} has: {_listed(here) or 'none'}"
    )


def _matching(folder: str, pattern: str) -> list[str]:
    """Return the absolute paths that match a pattern in a folder, whose name is literal."""
    return [os.path.abspath(file) for file in glob.glob(os.path.join(glob.escape(folder), pattern))]


def _used_last(files: Iterable[str]) -> str | None:
    """Return the file that was read last, as ``jupyter console --existing`` chooses it."""
    used = {}
    for file in files:
        with contextlib.suppress(OSError):  # its kernel has just ended
            used[file] = os.stat(file).st_atime
    return max(used, key=used.__getitem__, default=None)


def connection_files() -> list[Path]:
    """Return the connection files in Jupyter's runtime folder, even those of dead kernels."""
    return sorted(Path(jupyter_runtime_dir()).glob("kernel-*.json"))


def _listed(files: list[str]) -> str:
    names = [os.path.basename(file) for file in files]
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
