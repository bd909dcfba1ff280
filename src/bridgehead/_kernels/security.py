"""Checks that refuse insecure connections to a kernel.

Rule: every check that keeps strangers away from a kernel: its key, plain TCP, CURVE keys, and the
permissions of its connection file. All checks run before a socket is opened. A check opens no
connection and changes no file.
"""

from __future__ import annotations

import shlex
import stat
import sys
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import zmq
from jupyter_client.asynchronous.client import AsyncKernelClient

from bridgehead._errors import (
    InsecureConnection,
    InsecureConnectionWarning,
    KernelNotFound,
    NotSupported,
)
from bridgehead._protocol.spelling import spelled
from bridgehead._transports.addresses import stays_here

Insecurity = Literal["empty-key", "plain-tcp"]
INSECURITIES = get_args(Insecurity)
_warned: set[Path] = set()  # connection files with a warning that others can read them


def allowances(insecure: Insecurity | Collection[Insecurity]) -> frozenset[str]:
    """Check an ``insecure`` argument and return its names; a single name may be a plain string.

    Raises:
        ValueError: a name is unknown.
        TypeError: the argument is not a collection of names.
    """
    known = " and ".join(map(repr, INSECURITIES))
    if not isinstance(insecure, Collection):
        raise TypeError(f"insecure= takes {known}, or both, not {type(insecure).__name__}")
    names = [insecure] if isinstance(insecure, str) else list(insecure)
    for name in names:
        if name not in INSECURITIES:
            raise ValueError(f"insecure={name!r} is unknown; use {known}, or both")
    return frozenset(names)


def checked(info: Mapping[str, Any], where: str, insecure: frozenset[str]) -> dict[str, Any]:
    """Refuse a connection over which a stranger could read messages or send pickles.

    Raises:
        InsecureConnection: no key, or plain TCP beyond this machine, and not allowed by name.
        KernelNotFound: the CURVE keys are not valid.
        NotSupported: this jupyter_client would not use the CURVE keys.
    """
    found = insecurities(info, where)
    refused = [why for name, why in found.items() if name not in insecure]
    if refused:
        names = [name for name in INSECURITIES if name in insecure or name in found]
        raise InsecureConnection(
            f"{where} {', and '.join(refused)}; {spelled(f'insecure={names}')} would allow it"
        )
    return {**info, "key": info.get("key") or ""}


def insecurities(info: Mapping[str, Any], where: str) -> dict[str, str]:
    """Return what is insecure and what to do about it, by the names that ``insecure=`` takes."""
    found = {}
    if not info.get("key"):
        found["empty-key"] = (
            "has an empty key, so everyone who reaches the kernel can run code in it "
            "(start the kernel with a key)"
        )
    ip = info.get("ip", "127.0.0.1")
    if not _curve(info, where) and not stays_here(info.get("transport", "tcp"), ip):
        found["plain-tcp"] = (
            f"leads to {ip} over plain TCP, which others on the network can read "
            "(forward the ports with SSH to 127.0.0.1, or start the kernel with CURVE)"
        )
    return found


def is_open_to_users(info: Mapping[str, Any]) -> bool:
    """Return whether every user of this machine can connect, although none of them has the key.

    So it is on plain TCP on loopback. What ``insecurities`` returns is worse.
    """
    transport, ip = info.get("transport", "tcp"), info.get("ip", "127.0.0.1")
    plain = transport == "tcp" and not info.get("curve_publickey")
    return plain and bool(info.get("key")) and stays_here(transport, ip)


def _curve(info: Mapping[str, Any], where: str) -> bool:
    """Return whether the connection is encrypted.

    An incomplete pair of keys is an error, because jupyter_client would silently not use it.
    """
    public, secret = info.get("curve_publickey"), info.get("curve_secretkey")
    if public is None and secret is None:
        return False
    if "curve_publickey" not in AsyncKernelClient.class_trait_names():
        raise NotSupported(
            f"{where} has CURVE keys, and this jupyter_client does not support them; "
            "pip install 'jupyter_client>=8.9' in the environment of this program"
        )
    try:
        fits = zmq.curve_public(str(secret).encode()) == str(public).encode()
    except (ValueError, zmq.ZMQError):
        fits = False
    if not fits:
        raise KernelNotFound(f"the CURVE keys in {where} are damaged: they do not belong together")
    return True


def mode_for_others(file: str) -> int | None:
    """Return the mode of a file if other users of this machine can read it, else None.

    The permissions of its folders count, too. The result is None on Windows, which has other
    permissions.
    """
    path = Path(file).resolve()
    if sys.platform == "win32" or not path.exists():
        return None
    mode = stat.S_IMODE(path.stat().st_mode)
    readable = mode & (stat.S_IRGRP | stat.S_IROTH)
    enterable = (folder.stat().st_mode & (stat.S_IXGRP | stat.S_IXOTH) for folder in path.parents)
    return mode if readable and all(enterable) else None


def warn_if_others_can_read(file: str) -> None:
    """Warn once for each file."""
    path = Path(file).resolve()
    if path in _warned:
        return
    mode = mode_for_others(file)
    if mode is not None:
        warnings.warn(
            f"other users of this machine can read {file} (mode {mode:04o}), and the key in it "
            f"lets them run code in the kernel as you; run chmod 600 {shlex.quote(file)}, and "
            "start a new kernel if another user may have read it",
            InsecureConnectionWarning,
            stacklevel=1,
        )
        _warned.add(path)  # after the warning: if warnings are errors, every attempt must fail
