"""``panel``: kernels and their names in a notebook, as a widget.

Rule: this file checks the arguments, and imports anywidget only when it is called.

- ``widget``: the messages between the page and the kernels that it shows.
- ``followed_kernel``: one kernel that is shown: its state, its memory and its names.
- ``jobs``: what the buttons do.
- ``texts``: which names can be used, and why something failed, as text.
- ``panel.js``, ``panel.css``: the page's end; they are sent as they are.
"""

from __future__ import annotations

from typing import Protocol

from bridgehead._bridge.bridge import Bridge
from bridgehead._bridge.fleet import Fleet
from bridgehead._bridge.sync import SyncBridge
from bridgehead._bridge.sync_fleet import SyncFleet

Shown = Bridge | SyncBridge | Fleet | SyncFleet


class ShownPanel(Protocol):
    """What ``panel`` returns: an anywidget, whose types are known only where it is installed."""

    def close(self) -> None:
        """End the panel; the bridges stay open."""


def panel(*bridges: Shown) -> ShownPanel:
    """Show kernels and their names in a notebook, and move objects between them with buttons.

    The widget shows the state, the memory, the lane and the trust of each kernel, and its names
    with type, shape, size and a preview. The names are kept current as cells run, whichever client
    runs them. A name can be pulled into this notebook, handed over to another kernel, or deleted;
    a name of this notebook can be pushed; a kernel can be interrupted and restarted. No code of a
    user's class runs for a preview.

    The panel follows the kernels while the notebook shows it. Its ``close()`` ends it and leaves
    the bridges open. It needs the extra ``panel``, and a page that shows Jupyter widgets.

    Args:
        bridges: open bridges, and fleets, whose kernels are shown each.

    Raises:
        TypeError: an argument is neither a bridge nor a fleet.
        ValueError: there is none, or a kernel is given twice.
        ImportError: anywidget is not installed.

    Example::

        >>> panel(bridge, other)
        <Panel of 2 kernels>
    """
    kernels: list[Bridge] = []
    for shown in bridges:
        if isinstance(shown, (Bridge, SyncBridge)):
            kernels.append(_bridge_of(shown))
        elif isinstance(shown, (Fleet, SyncFleet)):
            kernels += map(_bridge_of, shown)
        else:
            raise TypeError(
                f"panel() takes open bridges and fleets, not {type(shown).__name__}; "
                "e.g. panel(SyncBridge.launch())"
            )
    if not kernels or len(set(map(id, kernels))) < len(kernels):
        raise ValueError("panel() takes at least one bridge or fleet, and each kernel once")
    try:
        from bridgehead._tools.panel.widget import Panel
    except ImportError as error:
        if error.name not in ("anywidget", "ipywidgets", "traitlets"):
            raise
        raise ImportError(
            f"panel() needs {error.name}, which is not installed; pip install 'bridgehead[panel]'",
            name=error.name,
        ) from error
    return Panel(kernels, bridges)


def _bridge_of(shown: Bridge | SyncBridge) -> Bridge:
    return shown if isinstance(shown, Bridge) else shown._bridge
