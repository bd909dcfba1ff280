"""What of an address decides who can listen in.

Rule: addresses as text; nobody is asked.
"""

from __future__ import annotations

import ipaddress


def is_loopback(host: str | None) -> bool:
    """Whether what crosses to this host never leaves this machine."""
    if host is None or host == "localhost":
        return host is not None
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # another name, or the * of a kernel that listens everywhere
        return False


def stays_here(transport: str, ip: str) -> bool:
    """Whether what crosses never leaves this machine: a Unix socket, or a loopback address."""
    return transport == "ipc" or is_loopback(ip)
