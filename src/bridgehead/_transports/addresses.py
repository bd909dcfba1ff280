"""Addresses, and whether they stay on this machine.

Rule: addresses as text. No name is resolved, no connection is opened.
"""

from __future__ import annotations

import ipaddress


def is_loopback(host: str | None) -> bool:
    """Return whether data for this host never leaves this machine."""
    if host is None or host == "localhost":
        return host is not None
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # another name, or the * of a kernel that listens everywhere
        return False


def stays_here(transport: str, ip: str) -> bool:
    """Return whether data never leaves this machine: a Unix socket, or a loopback address."""
    return transport == "ipc" or is_loopback(ip)
