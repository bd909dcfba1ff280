"""How kernels differ from ipykernel, by their implementation.

Rule: measured facts in one table, found by ``kernel_info``. What follows from a quirk is decided
where it matters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bridgehead._transports.dispatch import WINDOW


@dataclass(frozen=True, slots=True)
class Quirks:
    """How a kernel must be treated."""

    window: int = WINDOW  # requests that it may be sent before it has replied
    interruptible: bool = True


ORDINARY = Quirks()
UNUSUAL = {
    # Of kernels built on xeus (0.19, measured): of two messages of some MiB that come together it
    # reads one; SIGINT ends it, and an interrupt_request does nothing.
    "xeus": Quirks(window=1, interruptible=False),
}


def quirks_of(kernel_info: Mapping[str, Any]) -> Quirks:
    """Return the quirks of the kernel that gave this ``kernel_info``."""
    implementation = str(kernel_info.get("implementation"))
    return next((UNUSUAL[part] for part in UNUSUAL if part in implementation), ORDINARY)
