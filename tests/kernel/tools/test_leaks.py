"""Test that a twentieth of ``python -m tests.soak --leaks`` leaves nothing.

Rule: it runs in a process of its own, because it compares what the process holds.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
STAGES = ("1,000 small", "25 large", "15 openings", "5 launches")


def test_many_operations_leave_nothing() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "tests.soak", "--leaks", "--share", "0.05"],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        timeout=600,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert all(f"before {stage}" in ran.stdout for stage in STAGES), ran.stdout
