"""The descriptors that this process may still open."""

from __future__ import annotations

import os
import sys

import pytest

from bridgehead import NotSent
from bridgehead._kernels.descriptors import check_descriptors

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")


@pytest.mark.skipif(
    sys.platform == "linux" and not os.stat("/proc/self/fd").st_size, reason="needs Linux 6.2"
)
def test_far_from_the_limit_they_are_not_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each opening would take longer, the more descriptors are open."""
    monkeypatch.setattr(os, "listdir", None)
    check_descriptors(1)


def test_too_many_are_refused_with_their_number() -> None:
    with pytest.raises(NotSent, match=r"has \d+ open, but a connection to a kernel takes 9999999"):
        check_descriptors(9_999_999)
