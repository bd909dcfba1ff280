"""What Linux tells of a process's memory, in bytes.

Rule: it reads ``/proc``, and writes there only to set a peak back.
"""

from __future__ import annotations

from pathlib import Path


def proportional(pid: int) -> int:
    """Its memory, where a page that n processes share counts for one n-th (Pss)."""
    return _kilobytes(Path(f"/proc/{pid}/smaps_rollup").read_text(), "Pss")


def resident(pid: int) -> int:
    """Its memory now (VmRSS)."""
    return _kilobytes(Path(f"/proc/{pid}/status").read_text(), "VmRSS")


def peak(pid: int) -> int:
    """The most it had since ``reset_peak`` (VmHWM)."""
    return _kilobytes(Path(f"/proc/{pid}/status").read_text(), "VmHWM")


def reset_peak(pid: int) -> None:
    """The peak is what it has now."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def shared() -> int:
    """Shared memory of the whole machine, whoever holds it."""
    return _kilobytes(Path("/proc/meminfo").read_text(), "Shmem")


def _kilobytes(text: str, name: str) -> int:
    for line in text.splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(name)
