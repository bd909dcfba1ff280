"""What is said of a kernel that was found."""

from __future__ import annotations

import pytest

from bridgehead._kernels.discovery import DiscoveredKernel


@pytest.mark.parametrize(
    ("kernel", "shown"),
    [
        (DiscoveredKernel("/run/kernel-1.json", "dead"), "<kernel: dead, kernel-1.json>"),
        (
            DiscoveredKernel("/run/kernel-1.json", "idle", "ipython 9", 12, "a/train.ipynb"),
            "<kernel of a/train.ipynb: idle, ipython 9, pid 12, kernel-1.json>",
        ),
        (
            DiscoveredKernel("http://host/api/kernels/1", "busy", server="http://host/"),
            "<kernel: busy, http://host/api/kernels/1>",
        ),
        (
            DiscoveredKernel("/run/kernel-1.json", "unknown", why="it\nbroke"),
            "<kernel: unknown, kernel-1.json, it broke>",
        ),
    ],
)
def test_a_kernel_is_shown_on_one_line(kernel: DiscoveredKernel, shown: str) -> None:
    assert repr(kernel) == shown
