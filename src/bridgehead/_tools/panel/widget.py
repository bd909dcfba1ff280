"""The widget: messages between the page and the kernels that it shows.

Rule: a message from the page starts something and never waits, because it may arrive in the thread
in which the notebook's cells run. Nothing is a trait that a notebook's file would save: names and
previews cross as messages. Any thread may send.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import MutableMapping, Sequence
from importlib import resources
from typing import Any

import anywidget
from IPython.core.getipython import get_ipython

from bridgehead._bridge.bridge import Bridge
from bridgehead._tools.panel.followed_kernel import FollowedKernel, labels
from bridgehead._tools.panel.jobs import JobTable, notebook_names, taken_names
from bridgehead._tools.panel.texts import why

# s without a sign of a view until it counts as gone: the page was closed without a word, as by a
# crash. The page gives one every 20 s; a browser runs the timers of a hidden page once a minute.
LEASE = 150.0


def _file(name: str) -> str:
    return resources.files("bridgehead._tools.panel").joinpath(name).read_text("utf-8")


class Panel(anywidget.AnyWidget):
    """What ``bridgehead.panel`` returns; show it as the last value of a cell."""

    _esm = _file("panel.js")
    _css = _file("panel.css")

    def __init__(self, bridges: Sequence[Bridge], given: Sequence[object]) -> None:
        """Take the kernels, and what the caller gave, which keeps them open."""
        self._given = tuple(given)
        # Held to send, and to use the views: the loop of a kernel may end one. What runs under it
        # never waits for another thread.
        self._sending = threading.RLock()
        self._is_closed = False
        self._views: dict[str, float] = {}  # of the page, and when each gave a sign last
        self._runs_cell = False  # the notebook: without subshells, no sign arrives then
        self._shell: Any = get_ipython()
        self._notebook: dict[str, Any] | None = None  # the last message about its names
        namespace: MutableMapping[str, Any] = (
            vars(sys.modules["__main__"]) if self._shell is None else self._shell.user_ns
        )
        pairs = list(zip(_givers(given), bridges, strict=True))
        self._kernels = [
            FollowedKernel(number, label, bridge, self._post, self._end_silent_views)
            for number, (label, bridge) in enumerate(
                zip(labels(pairs, namespace), bridges, strict=True)
            )
        ]
        self._jobs = JobTable(self._kernels, namespace, self._post, self._send_notebook)
        super().__init__()
        # ipykernel 7.4 sends a click to the shell from which Python spoke last, and a thread counts
        # as the main shell: the click would wait for the running cell.
        comm: Any = self.comm
        if comm is not None:
            comm._reply_subshell_for = lambda data, chosen: chosen
        self.on_msg(self._received)

    def __repr__(self) -> str:
        count = len(self._kernels)
        return f"<Panel of {count} kernel{'s' if count > 1 else ''}>"

    def close(self) -> None:
        """End the panel; the bridges stay open.

        >>> shown = panel(bridge)
        >>> shown.close()
        """
        with self._sending:
            self._is_closed = True
            self._end_views(list(self._views))
        self._jobs.stop()
        super().close()

    # ------------------------------------------------------------ messages

    def _post(self, message: dict[str, Any]) -> None:
        with self._sending:
            if not self._is_closed:
                self.send(message)

    def _received(self, widget: object, content: Any, buffers: object) -> None:
        """Do what the page asks for; this may be the thread in which cells run, so never wait."""
        if type(content) is not dict or self._is_closed:
            return
        view, serial = str(content.get("view")), content.get("serial")
        with self._sending:
            if view in self._views:
                self._views[view] = time.monotonic()
        self._post({"kind": "heard", "view": view, "serial": serial})
        try:
            self._do(str(content.get("ask")), view, content)
        except Exception as error:  # noqa: BLE001 - shown in the panel
            self._post({"kind": "refused", "view": view, "text": why(error)})

    def _do(self, ask: str, view: str, content: dict[str, Any]) -> None:
        if ask == "hello":
            self._begin_view(view)
            return
        if ask == "bye":
            self._end_views([view])
            return
        if view not in self._views:  # it was silent for long, and begins anew
            self._post({"kind": "forgotten", "view": view})
        if ask == "here":
            return
        if ask in ("cancel", "dismiss"):
            getattr(self._jobs, ask)(content.get("job"))
            return
        kernel = self._kernel(content.get("kernel"))
        if ask in ("open", "shut"):
            with self._sending:  # so that a loop that ends the view hides it after this
                if view in self._views:
                    kernel.soon(kernel.show, view, ask == "open")
        elif ask == "names":
            kernel.soon(kernel.send_rows)
        elif ask == "refresh":
            kernel.soon(kernel.refresh, True)
        elif ask in ("interrupt", "restart"):
            getattr(self._jobs, ask)(kernel)
        elif ask in ("look", "delete"):
            getattr(self._jobs, ask)(kernel, content.get("name"))
        elif ask in ("pull", "push"):
            getattr(self._jobs, ask)(kernel, content.get("name"), content.get("target"))
        elif ask == "handoff":
            self._jobs.handoff(kernel, content.get("name"), self._kernel(content.get("target")))
        else:
            raise ValueError(f"the page asked for {ask!r}, which this panel does not know")

    def _kernel(self, number: Any) -> FollowedKernel:
        if type(number) is not int or not 0 <= number < len(self._kernels):
            raise ValueError("the page asked for a kernel that this panel does not show")
        return self._kernels[number]

    # ------------------------------------------------------------ views of the page

    def _begin_view(self, view: str) -> None:
        """Send all to a view that was opened; it asks for the names that it shows."""
        with self._sending:
            if self._is_closed:
                return
            if not self._views and self._shell is not None:
                self._runs_cell = False
                self._shell.events.register("pre_run_cell", self._cell_begins)
                self._shell.events.register("post_run_cell", self._cell_done)
            self._views[view] = time.monotonic()
        # A handoff needs both bridges in one event loop.
        loops = [id(kernel.loop) for kernel in self._kernels]
        self._post(
            {
                "kind": "panel",
                "view": view,
                "kernels": [
                    {"label": kernel.label, "group": loops.index(id(kernel.loop))}
                    for kernel in self._kernels
                ],
            }
        )
        self._notebook = None
        self._send_notebook()
        for job in list(self._jobs.known.values()):
            self._post(job.message())
        for kernel in self._kernels:
            with self._sending:
                is_open = view not in self._views or kernel.soon(kernel.show, view, False)
            if not is_open:
                kernel.show_closed()

    def _end_silent_views(self) -> None:
        """Forget each view whose page is gone; the loops of the kernels call this."""
        with self._sending:
            if not self._runs_cell:
                before = time.monotonic() - LEASE
                self._end_views([view for view, heard in self._views.items() if heard < before])

    def _end_views(self, views: Sequence[str]) -> None:
        with self._sending:
            gone = [view for view in views if self._views.pop(view, None) is not None]
            if gone and not self._views and self._shell is not None:
                with contextlib.suppress(ValueError):  # another program removed it
                    self._shell.events.unregister("post_run_cell", self._cell_done)
                with contextlib.suppress(ValueError):
                    self._shell.events.unregister("pre_run_cell", self._cell_begins)
            for view in views:
                for kernel in self._kernels:
                    kernel.soon(kernel.hide, view)

    def _cell_begins(self, info: object = None) -> None:
        self._runs_cell = True

    def _cell_done(self, result: object = None) -> None:
        """After each cell of the notebook: it may have pushed something, which runs no cell."""
        with self._sending:
            for view in list(self._views):  # its sign may wait behind the cell
                self._views[view] = time.monotonic()
            self._runs_cell = False
        self._send_notebook()
        for kernel in self._kernels:
            kernel.soon(kernel.refresh)

    def _send_notebook(self) -> None:
        message: dict[str, Any] = {"kind": "notebook", "names": [], "taken": []}
        if self._shell is not None:
            names, taken = notebook_names(self._shell), taken_names(self._shell)
            message.update(names=names, taken=taken)
        if message != self._notebook:
            self._notebook = message
            self._post(message)


def _givers(given: Sequence[object]) -> list[object]:
    """Return, for each kernel, the bridge or the fleet that the caller gave."""
    found: list[object] = []
    for one in given:
        found += [one] * (len(one) if isinstance(one, Sequence) else 1)
    return found
