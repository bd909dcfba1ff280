"""Live Python objects, between an asyncio program and a running Jupyter kernel.

    from bridgehead import Bridge

    async with Bridge.launch() as bridge:
        await bridge.push(df=df, model=model)
        await bridge.run("result = model.fit(df)")
        result = await bridge.pull("result")

Rule: this file only lists what is public.
"""

from typing import Any

from bridgehead._bridge.bridge import Bridge
from bridgehead._bridge.fleet import Fleet
from bridgehead._bridge.sync import SyncBridge
from bridgehead._connection.watch import Watch
from bridgehead._errors import (
    BridgeClosed,
    BridgeError,
    DecodeError,
    EncodeError,
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
    TransportError,
    UnsupportedKernel,
    UntrustedPayload,
)
from bridgehead._protocol.ref import Ref
from bridgehead._protocol.results import Info, Name, Names, Result, Transfer
from bridgehead._transports.messages import Message, Messages

__all__ = [
    "Bridge",
    "BridgeClosed",
    "BridgeError",
    "DecodeError",
    "EncodeError",
    "Fleet",
    "IncompatiblePython",
    "Info",
    "InsecureConnection",
    "InsecureConnectionWarning",
    "IntegrityError",
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
    "ReplyLost",
    "RequestAborted",
    "Result",
    "SyncBridge",
    "Transfer",
    "TransportError",
    "UnsupportedKernel",
    "UntrustedPayload",
    "Watch",
]

__version__ = "0.1.0"

for _name in __all__:  # tracebacks and pickles must not depend on the layout of the files
    globals()[_name].__module__ = __name__
del _name


def load_ipython_extension(ipython: Any) -> None:
    """Define the magics ``%bridge`` and ``%%bridge``, for ``%load_ext bridgehead``."""
    from bridgehead._tools.magics import load  # imports IPython, which few programs need

    load(ipython)


def unload_ipython_extension(ipython: Any) -> None:
    """Close the bridges that the magics opened, for ``%unload_ext bridgehead``."""
    from bridgehead._tools.magics import unload

    unload(ipython)
