"""Addresses, and whether they stay on this machine.

Rule: addresses as text. No name is resolved, no connection is opened.
"""

from __future__ import annotations

import ipaddress
import re

# With a scheme, as host and port, or with a token, which no name of a file has. In small letters.
_OF_SERVER = r"[a-z][a-z0-9+.-]*:/|(\[[0-9a-f:.%]+\]|[\w.-]+):\d{1,5}([/?#].*)?$|.*\btoken="


def is_of_server(text: str) -> bool:
    """Return whether a text is the address of a server, and no path or name of a file.

    It need not have a scheme. An invalid address counts as one, too, if it may contain a token: an
    error about a file would show it.
    """
    return re.match(_OF_SERVER, text.strip().lower(), re.DOTALL) is not None


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
