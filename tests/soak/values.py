"""The values that cross: each is made from a kind, a serial number and a size.

Rule: a value that arrives says by itself which one it is, and is compared byte by byte with what
was sent. No value is made twice, so an old one is never taken for a new one.
"""

from __future__ import annotations

import datetime
import itertools
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import cloudpickle
import numpy as np
import pandas as pd

# A kernel cannot import this package, so its class is pickled by value, as in a script.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

DATA_KINDS = ("int", "text", "tree", "bytes", "array", "arrays", "frame")
KINDS = (*DATA_KINDS, "object")
_serials = itertools.count(1)


@dataclass(frozen=True)
class Value:
    """What is known of a value: enough to make it, and to compare it."""

    kind: str
    serial: int
    size: int

    def __repr__(self) -> str:
        return f"{self.kind}#{self.serial}" + (f"({self.size})" if self.size else "")

    def make(self) -> Any:
        serial, size = self.serial, self.size
        match self.kind:
            case "int":
                return serial
            case "text":
                return f"{serial}:" + "äöü\n\0" * size
            case "tree":
                shared = [serial, float(size), None, True]
                when = datetime.datetime(2024, 2, 29, 12) + datetime.timedelta(seconds=serial)
                return {"serial": serial, "size": size, "when": when, "two": (shared, shared)}
            case "bytes":
                return serial.to_bytes(8, "big") + bytes([serial % 251]) * size
            case "array":
                return np.arange(serial, serial + size, dtype=np.int64)
            case "arrays":  # as many as a kernel with few descriptors does not have
                return [np.full(12_500, serial + i, dtype=np.int64) for i in range(size)]
            case "frame":
                numbers = np.arange(serial, serial + size)
                return pd.DataFrame({"n": numbers, "text": numbers.astype(str)})
            case "object":
                return Thing(serial, bytes(size))
        raise AssertionError(self.kind)


class Thing:
    """An instance of a class that the kernel cannot import."""

    def __init__(self, serial: int, content: bytes) -> None:
        self.serial, self.content = serial, content


def twice(value: Any) -> Any:
    """Run in the kernel."""
    return [value, value]


def rest(value: Any, seconds: float) -> Any:
    """Run in the kernel, and take a while."""
    import time

    time.sleep(seconds)
    return value


async def later(value: Any, seconds: float) -> Any:
    """Run on the kernel's event loop, beside other requests."""
    import asyncio

    await asyncio.sleep(seconds)
    return value


def count_up(count: int) -> Iterator[int]:
    """Iterate in the kernel."""
    yield from range(count)


async def count_up_later(count: int) -> AsyncIterator[int]:
    """Iterate on the kernel's event loop."""
    import asyncio

    for i in range(count):
        if i % 100 == 0:
            await asyncio.sleep(0)
        yield i


def print_lines(count: int) -> None:
    """Run in the kernel."""
    for i in range(count):
        print(i, "x" * 20)


def call_times(report: Any, count: int) -> None:
    """Run in the kernel; ``report`` is a callback."""
    for i in range(count):
        report(i)


def new(kind: str, size: int) -> Value:
    if kind == "int":
        size = 0
    return Value(kind, next(_serials), size)


def known(value: Any) -> Value:
    """Return which value this is; ``ValueError`` if it is none, or is damaged."""
    found = _guess(value)
    if found is None or not _same(found.make(), value):
        raise ValueError(f"a damaged value, like {found}: {value!r:.300}")
    return found


def _guess(value: Any) -> Value | None:
    try:
        match value:
            case bool():
                return None
            case int():
                return Value("int", value, 0)
            case str():
                serial, _, rest = value.partition(":")
                return Value("text", int(serial), len(rest) // 5)
            case dict():
                return Value("tree", value["serial"], value["size"])
            case bytes():
                return Value("bytes", int.from_bytes(value[:8], "big"), len(value) - 8)
            case np.ndarray():
                return Value("array", int(value[0]), len(value))
            case list():
                return Value("arrays", int(value[0][0]), len(value))
            case pd.DataFrame():
                return Value("frame", int(value["n"].iloc[0]), len(value))
        if type(value).__name__ == "Thing":
            return Value("object", value.serial, len(value.content))
    except (LookupError, TypeError, ValueError, AttributeError):
        pass
    return None


def _same(right: Any, value: Any) -> bool:
    if isinstance(right, np.ndarray):
        return right.dtype == value.dtype and right.shape == value.shape and (right == value).all()
    if isinstance(right, list) and right and isinstance(right[0], np.ndarray):
        return len(right) == len(value) and all(map(_same, right, value))
    if isinstance(right, pd.DataFrame):
        return bool(right.equals(value))
    if isinstance(right, Thing):
        return type(value).__name__ == "Thing" and vars(right) == vars(value)
    if isinstance(right, dict):  # what is shared stays shared
        return bool(right == value) and value["two"][0] is value["two"][1]
    return type(right) is type(value) and right == value
