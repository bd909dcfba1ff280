"""Connect to a kernel that runs: by its connection file, or by the client its owner lends.

Rule: everything up to a transport that is ready to be talked to, and nothing after that. Kernels
that we start are ``launch``'s, those behind a server ``jupyter_servers``'; what is insecure is
``security``'s.
"""

from __future__ import annotations

import glob
import json
import os
from pathlib import Path
from typing import Any

from jupyter_client.connect import find_connection_file
from jupyter_core.paths import jupyter_runtime_dir
from jupyter_core.utils import ensure_async
from traitlets import TraitError

from bridgehead._errors import KernelNotFound
from bridgehead._kernels.security import checked, is_own_file, warn_if_others_can_read
from bridgehead._transports import ipyparallel_engine as engines
from bridgehead._transports.base import Transport
from bridgehead._transports.process import KernelProcess
from bridgehead._transports.zmq import ZmqTransport

LISTEN_TIMEOUT = 3.0  # s until something must listen at an existing kernel's address


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
        raise KernelNotFound(f"{file} is no connection file: {error}") from error
    return await _opened(transport, timeout, LISTEN_TIMEOUT)


async def over(lender: Any, *, insecure: frozenset[str], timeout: float) -> Transport:
    """Connect to the kernel of an AsyncKernelClient or AsyncKernelManager the caller owns.

    Sockets and session are our own, so the lender's stay usable and undisturbed. An engine of an
    ipyparallel client's is reached by that client's own.
    """
    if engines.is_view(lender):
        engine = engines.engine_of(lender)
        return await engines.EngineTransport.open(
            lender.client, engine, insecure=insecure, timeout=timeout
        )
    kernel_process = None
    if hasattr(lender, "start_kernel"):
        kernel_process = KernelProcess(lender)
        if not await ensure_async(lender.is_alive()):
            raise KernelNotFound(
                "this manager's kernel is not running; await manager.start_kernel() first"
            )
    elif not hasattr(lender, "get_connection_info"):
        raise TypeError(
            "over() takes an AsyncKernelClient, an AsyncKernelManager or an ipyparallel view of "
            f"one engine, client[0], not {type(lender).__name__}"
        )
    file = lender.connection_file or None
    info = checked(lender.get_connection_info(), file or "the client", insecure)
    if file is not None:
        warn_if_others_can_read(file)
    transport = ZmqTransport(info, connection_file=file, kernel_process=kernel_process)
    return await _opened(transport, timeout, LISTEN_TIMEOUT if kernel_process is None else timeout)


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
    here = [str(file) for file in connection_files()]
    raise KernelNotFound(
        f"no connection file matches {name!r}; {folder} has: {_listed(here) or 'none'}"
    )


def connection_files() -> list[Path]:
    """Those in Jupyter's runtime folder, whether their kernels live or not."""
    return sorted(Path(jupyter_runtime_dir()).glob("kernel-*.json"))


def _listed(files: list[str]) -> str:
    names = [os.path.basename(file) for file in files]
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
