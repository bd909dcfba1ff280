"""The memory of processes on Linux, in bytes.

Rule: reads ``/proc``, and writes to it only to reset a peak.
"""

from __future__ import annotations

from pathlib import Path


def proportional(pid: int) -> int:
    """Return a process's memory; a page that n processes share counts for one n-th (Pss)."""
    return _kilobytes(Path(f"/proc/{pid}/smaps_rollup").read_text(), "Pss")


def resident(pid: int) -> int:
    """Return a process's memory now (VmRSS)."""
    return _kilobytes(Path(f"/proc/{pid}/status").read_text(), "VmRSS")


def private(pid: int) -> int:
    """Return a process's memory now without what it shares or maps from files (RssAnon)."""
    return _kilobytes(Path(f"/proc/{pid}/status").read_text(), "RssAnon")


def mapped(pid: int) -> int:
    """Return the size of a process's address space now (VmSize), which RLIMIT_AS limits."""
    return _kilobytes(Path(f"/proc/{pid}/status").read_text(), "VmSize")


def peak(pid: int) -> int:
    """Return the most memory that a process had since ``reset_peak`` (VmHWM)."""
    return _kilobytes(Path(f"/proc/{pid}/status").read_text(), "VmHWM")


def reset_peak(pid: int) -> None:
    """Set the peak to what the process has now."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def shared() -> int:
    """Return the shared memory of the whole machine."""
    return _kilobytes(Path("/proc/meminfo").read_text(), "Shmem")


def _kilobytes(text: str, name: str) -> int:
    for line in text.splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(name)
