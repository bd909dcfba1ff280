"""What a transport can carry, which the lanes and the policies above choose by.

Rule: facts, no behaviour. They are frozen: what is chosen when a bridge is opened stays true. A
transport that learns one while it connects replaces the object before it is open; ``has_control``
is the dispatcher's from the beginning, so it is the same for all transports of a class.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_SEND = 32 << 20  # bytes of frames in a message, if the connection sets no limit of its own


@dataclass(frozen=True)
class Capabilities:
    """What one transport can carry."""

    digest: str = "sha256"  # the safe choice: a connection may leave this machine
    direct: bool = True  # a socket to the kernel's process is possible, if that proves to be ours
    binary: bool = True  # messages may carry buffers
    resumable: bool = False  # a broken connection is made again, to the same kernel
    max_send: int = MAX_SEND  # bytes of frames that one message may carry to the kernel
    max_receive: int = MAX_SEND  # bytes of frames in the response to one request
    has_control: bool = True  # a channel of its own, which the kernel serves while a cell runs
    # The remote part may send messages without a request. Where it may not, it is asked on the
    # control channel, and answers when it has some.
    pushes: bool = True
    signals: bool = True  # ``interrupt`` sends a signal to the kernel's process
