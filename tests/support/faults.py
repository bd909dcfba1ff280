"""Faults that several files of the catalogue inject.

Rule: this file injects faults and checks no promise. A helper that only one file uses stays in
that file.
"""

from __future__ import annotations

import asyncio
import pickle
import sys
from collections.abc import Callable
from typing import Any

import cloudpickle
import pytest

from bridgehead import Bridge, BridgeError

# A kernel cannot import test modules, so their classes and functions are pickled by value.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

BIG = {
    "direct": 48 << 20,
    "buffers": 48 << 20,
    "inline": 12 << 20,
}  # bytes; such a push takes some tenths of a second


class CallsInKernel:
    """An object that calls a function of the standard library when the kernel unpickles it."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


class RaisesInKernel:
    def __getstate__(self) -> dict[str, int]:
        return {"x": 1}

    def __setstate__(self, state: Any) -> None:
        raise RuntimeError("not in this kernel")


async def operations(bridge: Bridge) -> None:
    """Use every operation except run, with success and with failure."""
    await bridge.push(x=1, f=lambda v: v + 1, a=list(range(1000)))
    await bridge.push(large=pickle.PickleBuffer(bytes(40 << 20)))
    await bridge.pull("x", "a", "f(x)", "bytes(large)")
    await bridge.pull("[y for y in range(3)]")
    await bridge.call(lambda v: v * 2, bridge.ref("x"))
    await bridge.call(lambda: 5, keep="kept")
    await bridge.names()
    await bridge.exists("x")
    for bad in (
        bridge.pull("1/0"),
        bridge.pull("no_such"),
        bridge.pull("x y"),
        bridge.push(z=RaisesInKernel()),
        bridge.call(lambda: 1 / 0),
        bridge.delete("no_such"),
    ):
        with pytest.raises(BridgeError):
            await bad
    await asyncio.gather(*(bridge.push(x=i) for i in range(50)))
    await bridge.interrupt()
    await bridge.delete("f", "a", "kept", "large")
    async with Bridge.attach(bridge.info.connection_file, lane="inline") as another:
        await another.push(y=2)
        await another.pull("x", "y")
