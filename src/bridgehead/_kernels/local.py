"""Where a kernel comes from: launched, found by its connection file, or lent by its owner.

Rule: everything up to a transport that is ready to be talked to, and nothing after that. What
would let a stranger in is refused here, before a socket is opened.
"""

from __future__ import annotations

import glob
import json
import os
import shlex
import stat
import sys
import tempfile
import uuid
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import zmq
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.connect import find_connection_file
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager, NoSuchKernel
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning.factory import KernelProvisionerFactory
from jupyter_client.provisioning.local_provisioner import LocalProvisioner
from jupyter_client.provisioning.provisioner_base import KernelProvisionerBase
from jupyter_core.paths import jupyter_runtime_dir
from jupyter_core.utils import ensure_async
from traitlets import TraitError

from bridgehead._errors import (
    InsecureConnection,
    InsecureConnectionWarning,
    KernelNotFound,
    NotSupported,
)
from bridgehead._transports import ipyparallel_engine as engines
from bridgehead._transports.addresses import stays_here
from bridgehead._transports.base import Transport
from bridgehead._transports.process import Keeper
from bridgehead._transports.tasks import to_the_end
from bridgehead._transports.zmq import ZmqTransport

SOCKET_PATH = 103  # bytes of a Unix socket's path on every POSIX, less the "-5" ZeroMQ's ports add
LISTEN_TIMEOUT = 3.0  # s until something must listen at an existing kernel's address

Insecurity = Literal["empty-key", "plain-tcp"]
INSECURITIES = get_args(Insecurity)

_warned: set[Path] = set()  # connection files that were told to be readable by others


def allowances(insecure: Insecurity | Collection[Insecurity]) -> frozenset[str]:
    """The names in an ``insecure`` argument, checked; one name may stand alone.

    Raises:
        ValueError: a name that isn't known.
        TypeError: no names at all.
    """
    known = " and ".join(map(repr, INSECURITIES))
    if not isinstance(insecure, Collection):
        raise TypeError(f"insecure= takes {known}, or both, not {type(insecure).__name__}")
    names = [insecure] if isinstance(insecure, str) else list(insecure)
    for name in names:
        if name not in INSECURITIES:
            raise ValueError(f"insecure= knows no {name!r}; it takes {known}, or both")
    return frozenset(names)


async def launch(
    kernel_name: str,
    *,
    connection_file: str | os.PathLike[str] | None,
    env: Mapping[str, str] | None,
    cwd: str | os.PathLike[str] | None,
    encryption: bool,
    insecure: frozenset[str],
    timeout: float,
) -> ZmqTransport:
    """Start a kernel and wait until it answers; cancelling or failing ends it again."""
    manager = AsyncKernelManager(kernel_name=kernel_name)
    spec = _spec(manager)
    file = _connection_path(connection_file)
    provisioner = _provisioner(spec)
    if encryption:
        _encrypt(manager)
    elif _takes_ipc(spec, provisioner) and len(os.fsencode(file)) <= SOCKET_PATH:
        manager.transport = "ipc"
    manager.connection_file = str(file)
    environment = {**os.environ, **(env or {})}
    # The debugger's word about frozen modules is noise to whoever didn't ask for a debugger.
    environment.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    options: dict[str, Any] = {"env": environment}
    log = None
    if issubclass(provisioner, LocalProvisioner):  # they are Popen's, and mean nothing to others
        log = tempfile.TemporaryFile("ab+")  # noqa: SIM115 - the keeper closes it
        options |= {"stdout": log, "stderr": log}
    if cwd is not None:
        options["cwd"] = os.fspath(cwd)
    keeper, transport = Keeper(manager, log), None
    try:
        # To its end: cancelled half-way, the manager would not know of the process it started.
        await to_the_end(manager.start_kernel(**options))
        # Only now: where the kernel is, is the provisioner's to tell.
        info = _checked(manager.get_connection_info(), f"the kernel {kernel_name!r}", insecure)
        if encryption and not info.get("curve_publickey"):
            raise NotSupported(f"{provisioner.__name__} started {kernel_name!r} without CURVE keys")
        transport = ZmqTransport(
            info, connection_file=manager.connection_file, keeper=keeper, owned=True
        )
        await transport.open(timeout, timeout)
    except BaseException:
        if transport is not None:
            await transport.aclose()
        else:
            await to_the_end(keeper.end(polite=False))
        raise
    return transport


def _spec(manager: AsyncKernelManager) -> KernelSpec:
    """The kernelspec that is to be started.

    Raises:
        KernelNotFound: there is none, or its provisioner is not installed.
    """
    try:
        spec = manager.kernel_spec
    except NoSuchKernel:
        name, found = manager.kernel_name, KernelSpecManager().find_kernel_specs()
        if name in found:
            wanted = _provisioner_name(KernelSpec.from_resource_dir(found[name]))
            raise KernelNotFound(
                f"the kernel {name!r} is to be started by the provisioner {wanted!r}, which is not "
                "installed here; pip install the package that brings it"
            ) from None
        known = ", ".join(sorted(found)) or "none"
        raise KernelNotFound(f"no kernel named {name!r} is installed; there is: {known}") from None
    assert spec is not None
    return spec


def _provisioner(spec: KernelSpec) -> type[KernelProvisionerBase]:
    """What will start this kernel: jupyter_client's own, or one that an entry point names."""
    known = KernelProvisionerFactory.instance().provisioners
    found: type[KernelProvisionerBase] = known[_provisioner_name(spec)].load()
    return found


def _provisioner_name(spec: KernelSpec) -> str:
    default = KernelProvisionerFactory.instance().default_provisioner_name
    return str(spec.metadata.get("kernel_provisioner", {}).get("provisioner_name", default))


def _takes_ipc(spec: KernelSpec, provisioner: type[KernelProvisionerBase]) -> bool:
    """Whether Unix sockets are sure to work: they are not every kernel's, as TCP is.

    xeus-python ends at once, and a provisioner may put the kernel where this folder is not.
    """
    ipykernel = any("ipykernel" in word for word in spec.argv)
    return sys.platform != "win32" and ipykernel and provisioner is LocalProvisioner


def _encrypt(manager: AsyncKernelManager) -> None:
    """Have the manager make CURVE keys, which it writes into the connection file and keeps.

    Raises:
        NotSupported: jupyter_client, pyzmq or the kernelspec knows no CURVE.
    """
    if not manager.has_trait("transport_encryption"):
        raise NotSupported(
            "this jupyter_client cannot encrypt; pip install 'jupyter_client>=8.9' here"
        )
    try:
        manager.transport_encryption = "required"
    except TraitError as error:  # this pyzmq was built without it
        raise NotSupported(str(error)) from None
    spec = manager.kernel_spec
    if spec is None or "curve" not in str(spec.metadata.get("supported_encryption", "")).lower():
        raise NotSupported(
            f"the kernelspec {manager.kernel_name!r} does not say that its kernel can encrypt; "
            "pip install 'ipykernel>=7.3' in the kernel's environment, then python -m ipykernel "
            "install there, if the kernelspec was made that way"
        )


def _connection_path(wanted: str | os.PathLike[str] | None) -> Path:
    """Absolute, so that ipc sockets don't land in whatever folder is current."""
    if wanted is not None:
        return Path(os.path.abspath(wanted))
    folder = jupyter_runtime_dir()
    os.makedirs(folder, mode=0o700, exist_ok=True)
    return Path(folder) / f"kernel-{uuid.uuid4().hex[:12]}.json"


async def attach(
    existing: str | os.PathLike[str] | None, *, insecure: frozenset[str], timeout: float
) -> ZmqTransport:
    """Connect to a kernel by its connection file, as ``jupyter console --existing`` finds it."""
    file = find(existing)
    try:
        with open(file, encoding="utf-8") as text:
            info = json.load(text)
        info = _checked(info, file, insecure)
        _warn_if_others_can_read(file)
        transport = ZmqTransport(info, connection_file=file)
        transport.ours = transport.ours and _mine(file)
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
        return await engines.EnginesTransport.open(
            lender.client, engine, insecure=insecure, timeout=timeout
        )
    keeper = None
    if hasattr(lender, "start_kernel"):
        keeper = Keeper(lender)
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
    info = _checked(lender.get_connection_info(), file or "the client", insecure)
    if file is not None:
        _warn_if_others_can_read(file)
    transport = ZmqTransport(info, connection_file=file, keeper=keeper)
    return await _opened(transport, timeout, LISTEN_TIMEOUT if keeper is None else timeout)


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


def _checked(info: Mapping[str, Any], where: str, insecure: frozenset[str]) -> dict[str, Any]:
    """Refuse a connection over which a stranger could read messages or send pickles.

    Raises:
        InsecureConnection: no key, or plain TCP beyond this machine, and not allowed by name.
        KernelNotFound: CURVE keys that are none.
        NotSupported: this jupyter_client would leave the CURVE keys unused.
    """
    found = insecurities(info, where)
    refused = [why for name, why in found.items() if name not in insecure]
    if refused:
        names = [name for name in INSECURITIES if name in insecure or name in found]
        raise InsecureConnection(
            f"{where} {', and '.join(refused)}; insecure={names} would allow it"
        )
    return {**info, "key": info.get("key") or ""}


def insecurities(info: Mapping[str, Any], where: str) -> dict[str, str]:
    """What lets a stranger in, by the names that ``insecure=`` takes, and what to do about it."""
    found = {}
    if not info.get("key"):
        found["empty-key"] = (
            "has an empty key, so whoever reaches the kernel can run code in it "
            "(start the kernel with a key)"
        )
    ip = info.get("ip", "127.0.0.1")
    if not _curve(info, where) and not stays_here(info.get("transport", "tcp"), ip):
        found["plain-tcp"] = (
            f"leads to {ip} over plain TCP, readable on the way "
            "(forward the ports with SSH to 127.0.0.1, or start the kernel with CURVE)"
        )
    return found


def _curve(info: Mapping[str, Any], where: str) -> bool:
    """Whether the connection is encrypted: half a pair of keys would be left unused, silently."""
    public, secret = info.get("curve_publickey"), info.get("curve_secretkey")
    if public is None and secret is None:
        return False
    if "curve_publickey" not in AsyncKernelClient.class_trait_names():
        raise NotSupported(
            f"{where} has CURVE keys, and this jupyter_client knows none; "
            "pip install 'jupyter_client>=8.9' here"
        )
    try:
        fits = zmq.curve_public(str(secret).encode()) == str(public).encode()
    except (ValueError, zmq.ZMQError):
        fits = False
    if not fits:
        raise KernelNotFound(f"the CURVE keys in {where} are damaged: they are no pair")
    return True


def _mine(file: str) -> bool:
    """Whether the kernel that wrote this connection file is this user's."""
    return not hasattr(os, "getuid") or os.stat(file).st_uid == os.getuid()


def mode_for_others(file: str) -> int | None:
    """The mode of a file that others on this machine can read, folders considered; else None.

    None on Windows, whose permissions are of another kind.
    """
    path = Path(file).resolve()
    if sys.platform == "win32" or not path.exists():
        return None
    mode = stat.S_IMODE(path.stat().st_mode)
    readable = mode & (stat.S_IRGRP | stat.S_IROTH)
    enterable = (folder.stat().st_mode & (stat.S_IXGRP | stat.S_IXOTH) for folder in path.parents)
    return mode if readable and all(enterable) else None


def _warn_if_others_can_read(file: str) -> None:
    """Once for each file."""
    path = Path(file).resolve()
    if path in _warned:
        return
    mode = mode_for_others(file)
    if mode is not None:
        warnings.warn(
            f"others on this machine can read {file} (mode {mode:04o}), and with the key in it run "
            f"code in the kernel as you; say chmod 600 {shlex.quote(file)}, and start the kernel "
            "anew if somebody may have read it",
            InsecureConnectionWarning,
            stacklevel=1,
        )
        _warned.add(path)  # not before: where warnings are errors, every attempt is one
