"""TCP ports that no other program takes before a kernel listens there.

Rule: reserves ports, and knows no kernel. Which process listens on a port says ``listeners``.

jupyter_client chooses ports that are free at that moment. The kernel listens there half a second
later, and again after a restart; meanwhile the system may give them to other programs. If another
one has the port, an ipykernel 7.4 ends, or hangs without end (iopub), or has no heartbeat.
"""

from __future__ import annotations

import socket
import sys

CAN_RESERVE = sys.platform == "linux"


def reserved_port(ip: str) -> socket.socket:
    """Return a socket that reserves its port, at an address of this machine, until it is closed.

    It never listens. Linux gives its port to no other socket that asks for any port, or that is to
    be the only one there. libzmq sets SO_REUSEADDR, as this does, and so binds the port all the
    same.
    """
    holder = socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET)
    try:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind((ip, 0))
    except BaseException:
        holder.close()
        raise
    return holder
