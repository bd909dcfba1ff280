"""One run of ``bridgehead bench``: what works on this machine, measured, as plain values.

Rule: a kernel of the run's own for each lane, or somebody's, by every lane; nothing is left in
either. It prints nothing; how a report looks is the command line's business.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

from bridgehead._bridge.bridge import Bridge
from bridgehead._bridge.opening import Opening
from bridgehead._errors import BridgeError, NotSupported
from bridgehead._lanes.handshake import LANES, LaneName
from bridgehead._tools.bench.payloads import PAYLOADS, Sample
from bridgehead._tools.bench.peers import Execute, LanePeer, Memcpy, Peer, Pickle, RawZmq
from bridgehead._tools.bench.rounds import NAME, Timing, side_by_side

USUAL = ("int", "dict1k", "dict10k", "np1m", "df", "np100m")
LARGE = "np1g"
LIBRARIES = ("numpy", "pandas", "pyarrow", "pyzmq", "jupyter_client", "ipykernel")


@dataclass(frozen=True, slots=True)
class Figure:
    """What one peer took for one payload.

    Attributes:
        payload: its name, as ``--payloads`` takes it.
        title: its name in words.
        bytes: of the pickle and its buffers.
        peer: the lane, or what it is compared with.
        lane: whether it is one of bridgehead's lanes.
        push_ms, pull_ms: medians, in milliseconds; None if it was left out.
        rounds: how many there were.
        left_out: why, if it was.
    """

    payload: str
    title: str
    bytes: int
    peer: str
    lane: bool
    push_ms: float | None
    pull_ms: float | None
    rounds: int
    left_out: str = ""


@dataclass(frozen=True, slots=True)
class BenchReport:
    """What was measured, where and when.

    Attributes:
        date: local time, ISO 8601 to the second.
        machine: processor, cores and system, in words.
        versions: of Python and the libraries that carry.
        kernel: what was measured with, as its ``Info`` says it.
        peers: names of what was measured, lanes first.
        figures: by payload, then peer.
        left_out: what could not be measured at all, and why: lanes and payloads.
    """

    date: str
    machine: str
    versions: dict[str, str]
    kernel: str
    peers: tuple[str, ...]
    figures: tuple[Figure, ...]
    left_out: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def chosen(names: Sequence[str]) -> tuple[list[Sample], dict[str, str]]:
    """The payloads of these names that can be made here, and why others can't.

    Raises:
        ValueError: there is no such payload.
    """
    for name in names:
        if name not in PAYLOADS:
            raise ValueError(f"there is no payload {name!r}; there are {', '.join(PAYLOADS)}")
    wanted = [PAYLOADS[name] for name in dict.fromkeys(names)]
    left_out = {}
    for payload in wanted:
        if missing := payload.missing():
            needed = " and ".join(missing)
            left_out[payload.title] = f"{needed} is not installed (pip install 'bridgehead[bench]')"
    return [payload for payload in wanted if payload.title not in left_out], left_out


async def measure(
    payloads: Sequence[Sample],
    left_out: Mapping[str, str],
    *,
    existing: str | os.PathLike[str] | None = None,
    seconds: float,
    told: Callable[[str], object] = lambda doing: None,
) -> BenchReport:
    """Measure push and pull of each payload by every lane that works, and beside them.

    Args:
        payloads: what to send; ``left_out`` is why others aren't, for the report.
        existing: a running kernel, as ``Bridge.attach`` takes it; None launches some.
        seconds: that each peer is measured for at most with each payload; see ``side_by_side``.
        told: called with what is being done.

    Raises:
        BridgeError: no kernel can be launched, or there is no such one, or it dies.
    """
    modules = sorted({module for payload in payloads for module in payload.needs})
    async with contextlib.AsyncExitStack() as stack:
        told("a kernel is starting for each lane" if existing is None else "opening the bridges")
        lanes, missing = await _lanes(stack, existing, modules)
        info = lanes[0].bridge.info
        peers: list[Peer] = list(lanes)
        empty = Execute(str(info.connection_file), lambda: lanes[0].bridge.state != "dead")
        for peer in (Memcpy(), Pickle(), RawZmq(), empty):
            await _started(stack, peer, modules)
            peers.append(peer)
        if existing is not None:
            stack.push_async_callback(_remove, lanes[0].bridge)
        figures: list[Figure] = []
        for payload in payloads:
            told(f"{payload.title}, there and back")
            timings = await side_by_side(peers, payload, seconds)
            figures += map(_figure, timings)
    return BenchReport(
        date=datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        machine=machine(),
        versions=versions(),
        kernel=f"{info.kernel}, Python {'.'.join(map(str, info.python))}, over {info.transport}",
        peers=tuple(peer.name for peer in peers),
        figures=tuple(figures),
        left_out={**left_out, **missing},
    )


async def _lanes(
    stack: contextlib.AsyncExitStack,
    existing: str | os.PathLike[str] | None,
    modules: Sequence[str],
) -> tuple[list[LanePeer], dict[str, str]]:
    """A bridge by each lane that works here.

    Each has a kernel of its own, unless it is somebody's: what a kernel publishes while it
    serves one bridge would else wake up the others while they are measured.
    """
    works: list[LanePeer] = []
    left_out: dict[str, str] = {}
    for name in sorted(LANES):
        lane = cast("LaneName", name)
        peer = LanePeer(name, _opening(existing, lane))
        try:
            await _started(stack, peer, modules)
        except NotSupported as error:
            left_out[f"lane {name}"] = str(error)
        else:
            works.append(peer)
    if not works:
        raise NotSupported("; ".join(f"{lane}: {why}" for lane, why in left_out.items()))
    return works, left_out


def _opening(existing: str | os.PathLike[str] | None, lane: LaneName) -> Opening[Bridge]:
    return Bridge.launch(lane=lane) if existing is None else Bridge.attach(existing, lane=lane)


async def _started(stack: contextlib.AsyncExitStack, peer: Peer, modules: Sequence[str]) -> None:
    stack.push_async_callback(peer.stop)
    await peer.start(modules)


async def _remove(bridge: Bridge) -> None:
    """What was pushed, from a kernel that goes on."""
    with contextlib.suppress(BridgeError):  # it isn't there, or the kernel isn't
        await bridge.delete(NAME)


def _figure(timing: Timing) -> Figure:
    measured = bool(timing.push) and not timing.left_out
    return Figure(
        payload=timing.payload.name,
        title=timing.payload.title,
        bytes=timing.size,
        peer=timing.peer.name,
        lane=timing.peer.lane,
        push_ms=timing.median("push") * 1000 if measured else None,
        pull_ms=timing.median("pull") * 1000 if measured else None,
        rounds=len(timing.push) if measured else 0,
        left_out=timing.left_out,
    )


def machine() -> str:
    """The processor, how many of it this process may use, and the system."""
    processor = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                processor = " ".join(line.partition(":")[2].split())
                break
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    return f"{processor}, {cores} cores, {platform.system()}"


def versions() -> dict[str, str]:
    """Of Python, and of the libraries that are there."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
