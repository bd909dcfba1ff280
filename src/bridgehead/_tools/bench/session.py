"""One run of ``bridgehead bench``: the figures as plain values.

Rule: each lane gets a kernel of its own, or all lanes use one running kernel; nothing is left in
either. This file prints nothing; the command line formats the report.
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
from bridgehead._tools.bench.peers import Execute, LanePeer, Memcpy, Peer, PicklePeer, RawZmq
from bridgehead._tools.bench.rounds import NAME, PeerTimes, side_by_side
from bridgehead._tools.bench.samples import PAYLOADS, Sample

USUAL = ("int", "dict1k", "dict10k", "np1m", "df", "np100m")
LARGE = "np1g"
LIBRARIES = ("numpy", "pandas", "pyarrow", "pyzmq", "jupyter_client", "ipykernel")


@dataclass(frozen=True, slots=True)
class Figure:
    """The medians of one peer with one payload.

    Attributes:
        payload: the payload's name, as ``--payloads`` takes it.
        title: the payload's name in tables.
        bytes: the size of the pickle and its buffers.
        peer: the name of the lane or of the other peer.
        lane: whether the peer is a lane of bridgehead.
        push_ms, pull_ms: medians in milliseconds; None if the peer was left out.
        rounds: the number of rounds.
        left_out: why the peer was left out; empty if it was not.
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
    """The figures of one run, with place and time.

    Attributes:
        date: local time, ISO 8601 to the second.
        machine: processor, cores and system, in words.
        versions: of Python and of the libraries that take part.
        kernel: the kernel's implementation, Python and transport, from its ``Info``.
        peers: the names of the peers, lanes first.
        figures: ordered by payload, then by peer.
        left_out: the lanes and payloads that could not be measured at all, and why.
    """

    date: str
    machine: str
    versions: dict[str, str]
    kernel: str
    peers: tuple[str, ...]
    figures: tuple[Figure, ...]
    left_out: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        """Return the report as values for JSON."""
        return asdict(self)


def chosen(names: Sequence[str]) -> tuple[list[Sample], dict[str, str]]:
    """Return the payloads of these names that this Python can make, and why it can't make others.

    Raises:
        ValueError: there is no payload of such a name.
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
    on_progress: Callable[[str], object] = lambda step: None,
) -> BenchReport:
    """Measure push and pull of each payload, on every lane that works and by the other peers.

    Args:
        payloads: the payloads to send.
        left_out: why other payloads are not sent, for the report.
        existing: a running kernel, as ``Bridge.attach`` takes it; None launches kernels.
        seconds: how long each peer is measured at most with each payload; see ``side_by_side``.
        on_progress: called with a description of each step.

    Raises:
        BridgeError: no kernel can be launched, the running kernel isn't found, or a kernel dies.
    """
    modules = sorted({module for payload in payloads for module in payload.needs})
    async with contextlib.AsyncExitStack() as stack:
        on_progress(
            "starting a kernel for each lane" if existing is None else "opening the bridges"
        )
        lanes, missing = await _lanes(stack, existing, modules)
        info = lanes[0].bridge.info
        peers: list[Peer] = list(lanes)
        empty = Execute(str(info.connection_file), lambda: lanes[0].bridge.state != "dead")
        for peer in (Memcpy(), PicklePeer(), RawZmq(), empty):
            await _started(stack, peer, modules)
            peers.append(peer)
        if existing is not None:
            stack.push_async_callback(_remove, lanes[0].bridge)
        figures: list[Figure] = []
        for payload in payloads:
            on_progress(f"measuring: {payload.title}")
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
    """Return a peer for each lane that works on this machine, and why other lanes do not.

    Without a running kernel, each lane gets a kernel of its own. Otherwise the messages that a
    kernel publishes for one bridge would wake up the other bridges while they are measured.
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
    """Remove the pushed object from a kernel that goes on running."""
    with contextlib.suppress(BridgeError):  # the name or the kernel no longer exists
        await bridge.delete(NAME)


def _figure(timing: PeerTimes) -> Figure:
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
    """Return the processor, the number of cores for this process, and the system."""
    processor = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                processor = " ".join(line.partition(":")[2].split())
                break
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    return f"{processor}, {cores} cores, {platform.system()}"


def versions() -> dict[str, str]:
    """Return the versions of Python and of the installed libraries."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
