"""Live Python objects, between an asyncio program and a running Jupyter kernel.

    from bridgehead import Bridge

    async with Bridge.launch() as bridge:
        await bridge.push(df=df, model=model)
        await bridge.run("result = model.fit(df)")
        result = await bridge.pull("result")

Rule: this file only lists what is public. The floors, each of which imports only those below it:

- ``__main__``: ``python -m bridgehead``.
- ``_tools``: the command line, magics, the panel, benchmarks. The fixtures for pytest are in a file
  of their own beside this package, ``pytest_bridgehead.py``.
- ``_bridge``: what users call.
- ``_connection``: how one bridge orders, sends and repeats its calls. Its head follows one push
  through all floors and lists where a restart is noticed. Start there.
- ``_lanes``: the ways of the objects' bytes. ``_kernels``: finding and starting kernels.
- ``_transports``: messages to a kernel and back, and the state of the kernel.
- ``_protocol``: objects become frames and headers, and back.
- ``_shipped``: what runs in the kernel, too. ``_errors``: the exceptions.
"""

from typing import Any

from bridgehead._bridge.bridge import Bridge
from bridgehead._bridge.cell_stream import CellStream
from bridgehead._bridge.executor import FleetExecutor
from bridgehead._bridge.fleet import Fleet
from bridgehead._bridge.fleet_map import FleetMap
from bridgehead._bridge.fleet_watch import FleetWatch
from bridgehead._bridge.notebook import run_notebook
from bridgehead._bridge.public_names import name_as_public
from bridgehead._bridge.sync import SyncBridge
from bridgehead._bridge.sync_fleet import SyncFleet
from bridgehead._bridge.sync_iterators import SyncStream
from bridgehead._bridge.sync_task import SyncTask
from bridgehead._connection.callbacks import Callback
from bridgehead._connection.iteration import Iteration
from bridgehead._connection.tasks import CompletedTasks, RemoteTask, as_completed
from bridgehead._connection.watch import Watch
from bridgehead._errors import (
    BridgeClosed,
    BridgeError,
    DecodeError,
    EncodeError,
    FleetError,
    IncompatiblePython,
    InsecureConnection,
    InsecureConnectionWarning,
    IntegrityError,
    KernelDied,
    KernelNotFound,
    KernelRestarted,
    KernelUnresponsive,
    MissingInKernel,
    NameNotFound,
    NotExecuted,
    NotSent,
    NotSupported,
    OutcomeUnknown,
    PayloadTooLarge,
    ProtocolError,
    RemoteError,
    ReplyLost,
    RequestAborted,
    RunTimeout,
    TransportError,
    UnsupportedKernel,
    UntrustedPayload,
)
from bridgehead._kernels.discovery import DiscoveredKernel, kernels
from bridgehead._protocol.ref import Ref
from bridgehead._protocol.results import Info, Name, Names, Result, Stats, Transfer
from bridgehead._tools.panel import panel
from bridgehead._transports.messages import Message, Messages

__all__ = [
    "Bridge",
    "BridgeClosed",
    "BridgeError",
    "Callback",
    "CellStream",
    "CompletedTasks",
    "DecodeError",
    "DiscoveredKernel",
    "EncodeError",
    "Fleet",
    "FleetError",
    "FleetExecutor",
    "FleetMap",
    "FleetWatch",
    "IncompatiblePython",
    "Info",
    "InsecureConnection",
    "InsecureConnectionWarning",
    "IntegrityError",
    "Iteration",
    "KernelDied",
    "KernelNotFound",
    "KernelRestarted",
    "KernelUnresponsive",
    "Message",
    "Messages",
    "MissingInKernel",
    "Name",
    "NameNotFound",
    "Names",
    "NotExecuted",
    "NotSent",
    "NotSupported",
    "OutcomeUnknown",
    "PayloadTooLarge",
    "ProtocolError",
    "Ref",
    "RemoteError",
    "RemoteTask",
    "ReplyLost",
    "RequestAborted",
    "Result",
    "RunTimeout",
    "Stats",
    "SyncBridge",
    "SyncFleet",
    "SyncStream",
    "SyncTask",
    "Transfer",
    "TransportError",
    "UnsupportedKernel",
    "UntrustedPayload",
    "Watch",
    "as_completed",
    "kernels",
    "panel",
    "run_notebook",
]

__version__ = "0.2.0"

name_as_public(globals()[name] for name in __all__)
del name_as_public


def load_ipython_extension(ipython: Any) -> None:
    """Define the magics ``%bridge`` and ``%%bridge``, for ``%load_ext bridgehead``."""
    from bridgehead._tools.magics.bridge_magics import (
        load,  # imports IPython, which few programs need
    )

    load(ipython)


def unload_ipython_extension(ipython: Any) -> None:
    """Close the bridges that the magics opened, for ``%unload_ext bridgehead``."""
    from bridgehead._tools.magics.bridge_magics import unload

    unload(ipython)
