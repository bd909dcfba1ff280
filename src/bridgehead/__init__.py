"""Live Python objects, between an asyncio program and a running Jupyter kernel.

    from bridgehead import Bridge

    async with Bridge.launch() as bridge:
        await bridge.push(df=df, model=model)
        await bridge.run("result = model.fit(df)")
        result = await bridge.pull("result")

Rule: this file only says what is public.
"""

from bridgehead._bridge import Bridge
from bridgehead._errors import (
    BridgeClosed,
    BridgeError,
    DecodeError,
    EncodeError,
    IncompatiblePython,
    InsecureConnection,
    IntegrityError,
    KernelDied,
    KernelNotFound,
    KernelRestarted,
    MissingInKernel,
    NameNotFound,
    NotExecuted,
    NotSent,
    NotSupported,
    OutcomeUnknown,
    ProtocolError,
    RemoteError,
    ReplyLost,
    RequestAborted,
    TransportError,
    UnsupportedKernel,
)
from bridgehead._ref import Ref
from bridgehead._results import Info, Name, Result, Transfer
from bridgehead._sync import SyncBridge
from bridgehead._transports.messages import Message, Messages

__all__ = [
    "Bridge",
    "BridgeClosed",
    "BridgeError",
    "DecodeError",
    "EncodeError",
    "IncompatiblePython",
    "Info",
    "InsecureConnection",
    "IntegrityError",
    "KernelDied",
    "KernelNotFound",
    "KernelRestarted",
    "Message",
    "Messages",
    "MissingInKernel",
    "Name",
    "NameNotFound",
    "NotExecuted",
    "NotSent",
    "NotSupported",
    "OutcomeUnknown",
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
]

__version__ = "0.1.0"
