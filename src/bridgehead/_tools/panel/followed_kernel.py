"""One kernel that the panel follows: its state, its memory and its names.

Rule: everything here runs on the event loop of the kernel's bridge, except ``soon``. It follows the
kernel while a view of the page shows it, with one watch of the names, and no longer. What changed
is sent, not the whole. All texts are made here; the page only shows them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bridgehead._bridge.bridge import Bridge
from bridgehead._errors import KernelRestarted, NotSupported
from bridgehead._protocol.formatting import line, size
from bridgehead._protocol.results import Name, Names
from bridgehead._shipped.wire.header import MAX_NAMES
from bridgehead._tools.panel.texts import usable, why
from bridgehead._transports.tasks import waited

TICK = 0.5  # s between two looks at what this process knows of the kernel, without asking it
RETRY = 2.0  # s until a kernel that could not be listed is asked again
SHOWN_NAMES = 5000  # of one kernel
CLOSED = "The bridge was closed; open another one, and another panel"
TOO_MANY = (
    f"This kernel has more than {MAX_NAMES:,} names, too many to show. In a cell, names('df*') of "
    "its bridge lists those that match. Choose Refresh when there are fewer."
)
LIVE = ("idle", "busy", "starting")
# Of a kernel whose process is not on this machine; every ipykernel has psutil.
MEMORY = "__import__('psutil').Process().memory_info().rss"

Send = Callable[[dict[str, Any]], None]
Row = Sequence[Any]


class FollowedKernel:
    """A kernel, and what the page knows of it."""

    def __init__(
        self,
        number: int,
        label: str,
        bridge: Bridge,
        send: Send,
        at_tick: Callable[[], object] = lambda: None,
    ) -> None:
        self.number, self.label, self.bridge = number, label, bridge
        self._send, self._at_tick = send, at_tick
        self.loop = bridge._connection.loop
        self._views: set[str] = set()  # that show the kernel
        self._open_views: set[str] = set()  # those of them that show its names
        self._ticking: list[asyncio.Task[None]] = []
        self._following: asyncio.Task[None] | None = None
        self._again = asyncio.Event()
        self._watch: Any = None  # the one that waits for a change
        self._ending: asyncio.Task[None] | None = None  # ends that watch
        self._is_asked = False  # the user asked, and so hears of a restart
        self._memory: int | None = None
        self._head: dict[str, Any] = {}  # as it was sent
        self._note, self._more = "", 0
        self._rows: dict[str, Row] = {}
        self._version = 0  # of the rows that were sent

    def soon(self, function: Callable[..., object], *args: Any) -> bool:
        """Call a function on the loop; any thread may call this, and does not wait.

        Return False if the loop was closed, and the bridge with it.
        """
        try:
            self.loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            return False
        return True

    # ------------------------------------------------------------ views

    def show(self, view: str, names: bool) -> None:
        """Send all to a view; follow the names if the view shows them."""
        self._head = {}
        self.publish()
        self._views.add(view)
        if not self._ticking:
            work = [self._tick()] if self._is_here else [self._tick(), self._follow_memory()]
            self._ticking = [self.loop.create_task(one) for one in work]
        if not names:
            self._close_names(view)
            return
        self._open_views.add(view)
        self.send_rows()
        if self._following is None or self._following.done():
            self._following = self.loop.create_task(self._follow())

    def hide(self, view: str) -> None:
        """Forget a view; follow nothing if it was the last one."""
        self._views.discard(view)
        self._close_names(view)
        if not self._views:
            for task in self._ticking:
                task.cancel()
            self._ticking = []

    def _close_names(self, view: str) -> None:
        self._open_views.discard(view)
        if not self._open_views and self._following is not None:
            self._following.cancel()  # which ends the watch in the kernel
            self._following = None

    # ------------------------------------------------------------ names

    def refresh(self, asked: bool = False) -> None:
        """List the names anew; ``asked`` by the user."""
        self._is_asked |= asked
        self._again.set()
        if self._watch is not None:
            self._ending = self.loop.create_task(self._watch.aclose())

    async def _follow(self) -> None:
        try:
            while self.bridge.state != "closed":
                self._again.clear()
                was_listed = False
                if self.bridge.state in LIVE:
                    was_listed = await self._list()
                else:
                    self._set_names(Names())
                if not was_listed:
                    async with waited(RETRY):
                        await self._again.wait()
        finally:
            if self.bridge.state == "closed":
                self.show_closed()

    def show_closed(self) -> None:
        """Say that the bridge was closed; any thread may call this once the loop was closed, too.

        All is sent again: a view may be new.
        """
        self._note, self._head = f"{CLOSED}.", {}
        self._set_names(Names())
        self.publish()

    async def _list(self) -> bool:
        """Show the names until the kernel ends, or they are to be listed anew.

        Return whether there were any to show.
        """
        asked, self._is_asked = self._is_asked, False
        try:
            return await self._watch_names(asked)
        except NotSupported:  # the kernel only replies, or has too many names: list them when asked
            self._note = "This kernel does not report changes; names are listed when you ask."
            try:
                self._set_names(await self._names())
                self.publish()
                await self._again.wait()
            except Exception as error:  # noqa: BLE001 - shown, and tried again
                self._fail(error)
        except KernelRestarted:
            # The restart is not the panel's to hear of: the caller's next call reports it.
            self._note = (
                "The kernel was restarted by another program. Choose Refresh to see its names."
            )
            self._set_names(Names())
            self.publish()
        except Exception as error:  # noqa: BLE001 - shown, and tried again
            self._fail(error)
        return False

    async def _watch_names(self, asked: bool) -> bool:
        was_listed = False
        watch = self._watch = self.bridge.watch_names(preview=True)
        watch.is_unattended = not asked
        try:
            async for names in watch:
                was_listed, self._note = True, ""
                self._set_names(names)
                self.publish()
        finally:
            if self._watch is watch:  # the next one may have begun
                self._watch = None
            await watch.aclose()
        return was_listed

    async def _names(self) -> Names:
        try:
            return await self.bridge.names(preview=True, timeout=60)
        except NotSupported:
            self._note = TOO_MANY
            return Names()

    def _fail(self, error: Exception) -> None:
        self._note = why(error)
        self._set_names(Names())
        self.publish()

    def _set_names(self, names: Names) -> None:
        """Send what changed."""
        rows = {name.name: row_of(name) for name in names[:SHOWN_NAMES]}
        self._more = len(names) - len(rows)
        changed = [row for name, row in rows.items() if self._rows.get(name) != row]
        gone = [row[0] for name, row in self._rows.items() if name not in rows]
        self._rows = rows
        if changed or gone:
            before, self._version = self._version, self._version + 1
            self._send(
                {
                    "kind": "names",
                    "kernel": self.number,
                    "from": before,
                    "to": self._version,
                    "set": changed,
                    "gone": gone,
                }
            )

    def send_rows(self) -> None:
        """Send all rows, to a page that has none or missed a change."""
        self._send(
            {
                "kind": "names",
                "kernel": self.number,
                "from": None,
                "to": self._version,
                "set": list(self._rows.values()),
                "gone": [],
            }
        )

    # ------------------------------------------------------------ state and memory

    @property
    def _is_here(self) -> bool:
        """Whether the kernel's process is one of this machine, by what the handshake proved."""
        info = self.bridge.info
        return info.lane == "direct" or info.transport in ("loopback", "ipc")

    async def _tick(self) -> None:
        before = self.bridge.state
        try:
            while self.bridge.state != "closed":
                self._at_tick()
                state = self.bridge.state
                if state != before and not {state, before} <= {*LIVE}:
                    self._again.set()  # the kernel is lost, or there is one again
                before = state
                if self._is_here:
                    self._memory = _memory_of(self.bridge.info.pid)
                self.publish()
                await asyncio.sleep(TICK)
        finally:  # also if the loop ends with the bridge
            self._again.set()
            if self.bridge.state == "closed" and self._following is None:
                self.show_closed()

    async def _follow_memory(self) -> None:
        """Follow the memory of a kernel elsewhere: it is sent after each of its cells."""
        while self.bridge.state != "closed":
            if self.bridge.state in LIVE:
                with contextlib.suppress(Exception):  # the memory is then not known
                    watch = self.bridge.watch(MEMORY, max_bytes=1000)
                    watch.is_unattended = True
                    async with watch:
                        async for memory in watch:
                            self._memory = memory if type(memory) is int else None
            self._memory = None
            await asyncio.sleep(RETRY)

    def publish(self) -> None:
        """Send the kernel's head, if it is another one than before."""
        head = {
            "kind": "kernel",
            "kernel": self.number,
            "label": self.label,
            "state": self.bridge.state,
            "note": self._note,
            "more": self._more,
            **describe(self.bridge, self._memory),
        }
        if head != self._head:
            self._head = head
            self._send(head)


def describe(bridge: Bridge, memory: int | None) -> dict[str, str]:
    """Return what is known of a kernel, as texts."""
    info = bridge.info
    is_data = info.trust == "data"
    return {
        "kernel_text": f"{line(info.kernel, 30)}, pid {info.pid}",
        "memory": "" if memory is None else size(memory),
        "lane": f"{info.lane} over {info.transport}",
        "trust": "data only" if is_data else "trusted",
        "why_trust": line(info.why_trust, 200),
        "no_restart": line(bridge._transport.no_restart, 200),
    }


def row_of(name: Name) -> Row:
    """Return a row of the page's table.

    It has the key, the shown name, the class, extent, size and preview; then what the page sorts
    by, whether the name can be used, and the type with its module.
    """
    shown = line(name.name, 80)
    count = name.len
    if name.shape is not None:
        count = 1
        for side in name.shape:
            count *= side
    # Never the key of another name, one that can be used: the names may differ by a blank.
    key = name.name if usable(name.name) else f"{shown} " if usable(shown) else shown
    return (
        key,
        shown,
        line(name.type.rpartition(".")[2], 60),
        name.extent[:60],
        "" if name.bytes is None else size(name.bytes).replace("bytes", "B"),
        name.preview or "",
        -1 if count is None else min(count, 1 << 53),  # what JavaScript counts exactly
        -1 if name.bytes is None else min(name.bytes, 1 << 53),
        usable(name.name),
        line(name.type, 60),
    )


def _memory_of(pid: int) -> int | None:
    try:
        import psutil  # type: ignore[import-untyped]

        return int(psutil.Process(pid).memory_info().rss)
    except Exception:  # noqa: BLE001 - it is not installed, or the process has ended
        return None


def labels(bridges: Sequence[tuple[object, Bridge]], namespace: Mapping[str, Any]) -> list[str]:
    """Return a label for each kernel: the name of its bridge or fleet in the notebook, or a number.

    ``bridges`` has what the caller gave, with each kernel of it.
    """
    found: list[str] = []
    variables = [
        (name, value) for name, value in list(namespace.items()) if usable(name) and name[0] != "_"
    ]
    for number, (given, _) in enumerate(bridges):
        name = next((name for name, value in variables if value is given), f"kernel {number + 1}")
        if isinstance(given, Sequence):
            at = sum(other is given for other, kernel in bridges[:number])
            name = f"{name}[{at}]"
        found.append(line(name, 30))
    return found
