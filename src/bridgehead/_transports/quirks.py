"""How other Python kernels differ from ipykernel.

Rule: measured facts in one table, looked up by ``kernel_info``. The code that a quirk affects
decides what follows from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bridgehead._transports.request_table import WINDOW


@dataclass(frozen=True, slots=True)
class Quirks:
    """The differences of one implementation."""

    window: int = WINDOW  # requests that may be in flight; where it is 1, the kernel needs nudges
    interruptible: bool = True
    asks: bool = True  # whether ``input()`` in a cell asks the cell's client


ORDINARY = Quirks()
UNUSUAL = {
    # xeus-python (0.19, measured). Sending a reply consumes the wake-up of what arrived while it
    # evaluated our expression, for a millisecond or more: it reads this only when another
    # connection to shell is made, or brings a message. Later messages of the same connection do not
    # help, because ZeroMQ signals only the first one that is not read. SIGINT ends the kernel, and
    # an interrupt_request does nothing. Input was not tried.
    "xeus": Quirks(window=1, interruptible=False, asks=False),
}


def quirks_of(kernel_info: Mapping[str, Any]) -> Quirks:
    """Return the quirks of the kernel with this ``kernel_info``."""
    implementation = str(kernel_info.get("implementation"))
    return next((UNUSUAL[part] for part in UNUSUAL if part in implementation), ORDINARY)
