"""Where a kernel comes from: launched, found by its connection file, or lent by its owner.

Rule: everything up to a transport that is ready to be talked to, and nothing after that.
"""

from __future__ import annotations

import asyncio
import glob
import json
import os
import sys
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jupyter_client.connect import find_connection_file
from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel
from jupyter_client.manager import AsyncKernelManager
from jupyter_core.paths import jupyter_runtime_dir
from jupyter_core.utils import ensure_async

from bridgehead._errors import InsecureConnection, KernelNotFound
from bridgehead._transports import to_the_end
from bridgehead._transports.zmq import ZmqTransport

SOCKET_PATH = 103  # bytes of a Unix socket's path on every POSIX, less the "-5" ZeroMQ's ports add
LISTEN_TIMEOUT = 3.0  # s until something must listen at an existing kernel's address


async def launch(
    kernel_name: str,
    *,
    connection_file: str | os.PathLike[str] | None,
    env: Mapping[str, str] | None,
    cwd: str | os.PathLike[str] | None,
    timeout: float,
) -> ZmqTransport:
    """Start a kernel and wait until it answers; cancelling or failing ends it again."""
    manager = AsyncKernelManager(kernel_name=kernel_name)
    try:
        manager.kernel_spec  # noqa: B018 - looks the kernel up
    except NoSuchKernel:
        known = ", ".join(sorted(KernelSpecManager().find_kernel_specs())) or "none"
        raise KernelNotFound(
            f"no kernel named {kernel_name!r} is installed; there is: {known}"
        ) from None
    file = _connection_path(connection_file)
    if sys.platform != "win32" and len(os.fsencode(file)) <= SOCKET_PATH:
        manager.transport = "ipc"
    manager.connection_file = str(file)
    log = tempfile.TemporaryFile("ab+")  # noqa: SIM115 - the transport closes it
    environment = {**os.environ, **(env or {})}
    # The debugger's word about frozen modules is noise to whoever didn't ask for a debugger.
    environment.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    options: dict[str, Any] = {"env": environment, "stdout": log, "stderr": log}
    if cwd is not None:
        options["cwd"] = os.fspath(cwd)
    transport = None
    try:
        # To its end: cancelled half-way, the manager would not know of the process it started.
        await to_the_end(asyncio.ensure_future(manager.start_kernel(**options)))
        transport = ZmqTransport(
            dict(manager.get_connection_info()),
            connection_file=str(file),
            manager=manager,
            owned=True,
            kernel_log=log,
        )
        await transport.open(timeout, timeout)
    except BaseException:
        if transport is not None:
            await transport.aclose()
        else:
            if manager.has_kernel:
                await to_the_end(asyncio.ensure_future(manager.shutdown_kernel(now=True)))
            log.close()
        raise
    return transport


def _connection_path(wanted: str | os.PathLike[str] | None) -> Path:
    """Absolute, so that ipc sockets don't land in whatever folder is current."""
    if wanted is not None:
        return Path(os.path.abspath(wanted))
    folder = jupyter_runtime_dir()
    os.makedirs(folder, mode=0o700, exist_ok=True)
    return Path(folder) / f"kernel-{uuid.uuid4().hex[:12]}.json"


async def attach(existing: str | os.PathLike[str] | None, *, timeout: float) -> ZmqTransport:
    """Connect to a kernel by its connection file, as ``jupyter console --existing`` finds it."""
    file = find(existing)
    try:
        with open(file, encoding="utf-8") as text:
            info = json.load(text)
        transport = ZmqTransport(_checked(info, file), connection_file=file)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise KernelNotFound(f"{file} is no connection file: {error}") from error
    return await _opened(transport, timeout, LISTEN_TIMEOUT)


async def over(lender: Any, *, timeout: float) -> ZmqTransport:
    """Connect to the kernel of an AsyncKernelClient or AsyncKernelManager the caller owns.

    Sockets and session are our own, so the lender's stay usable and undisturbed.
    """
    manager = None
    if hasattr(lender, "start_kernel"):
        manager = lender
        if not await ensure_async(manager.is_alive()):
            raise KernelNotFound(
                "this manager's kernel is not running; await manager.start_kernel() first"
            )
    elif not hasattr(lender, "get_connection_info"):
        raise TypeError(
            "over() takes an AsyncKernelClient or an AsyncKernelManager, "
            f"not {type(lender).__name__}"
        )
    info = lender.get_connection_info()
    file = lender.connection_file or None
    transport = ZmqTransport(
        _checked(info, file or "the client"), connection_file=file, manager=manager
    )
    return await _opened(transport, timeout, LISTEN_TIMEOUT if manager is None else timeout)


async def _opened(transport: ZmqTransport, timeout: float, connect: float) -> ZmqTransport:
    try:
        await transport.open(timeout, min(connect, timeout))
    except BaseException:
        await transport.aclose()
        raise
    return transport


def find(existing: str | os.PathLike[str] | None) -> str:
    """The connection file that ``existing`` means: a path, a fragment, a glob, or the latest.

    Raises:
        KernelNotFound: none, or more than one, with what was found.
    """
    folder = jupyter_runtime_dir()
    here = sorted(glob.glob(os.path.join(glob.escape(folder), "kernel-*.json")))
    if existing is None:
        try:
            return os.path.abspath(find_connection_file())
        except OSError:
            raise KernelNotFound(
                f"no kernel is running: there is no connection file in {folder}"
            ) from None
    name = os.fspath(existing)
    for candidate in (name, os.path.join(folder, name)):
        if os.path.isfile(candidate):
            return os.path.abspath(candidate)
    pattern = name if "*" in name else f"*{glob.escape(name)}*"
    places = (".", glob.escape(folder))
    found = (match for place in places for match in glob.glob(os.path.join(place, pattern)))
    matches = {os.path.abspath(match) for match in found if match.endswith(".json")}
    if len(matches) == 1:
        return matches.pop()
    if matches:
        raise KernelNotFound(
            f"{name!r} means {len(matches)} kernels; say which: {_listed(sorted(matches))}"
        )
    raise KernelNotFound(
        f"no connection file matches {name!r}; {folder} has: {_listed(here) or 'none'}"
    )


def _listed(files: list[str]) -> str:
    names = [os.path.basename(file) for file in files]
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _checked(info: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Refuse a connection over which a stranger could send pickles.

    Raises:
        InsecureConnection: no key, or plain TCP to another machine.
    """
    if not info.get("key"):
        raise InsecureConnection(
            f"{where} has an empty key, so anybody could forge messages; start the kernel with one"
        )
    local = info.get("transport") == "ipc" or info.get("ip") in ("127.0.0.1", "localhost", "::1")
    if not local and not info.get("curve_publickey"):
        raise InsecureConnection(
            f"{where} leads to {info.get('ip')} over plain TCP, readable on the way; forward the "
            "ports with SSH to 127.0.0.1, or start the kernel with CurveZMQ"
        )
    return dict(info)
