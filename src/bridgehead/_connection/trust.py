"""What is opened of what a kernel sends.

Rule: the one place where it is decided how a value's frames become an object here: as a
pickle, which may run code of the kernel's, or as data, which can't.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal

from bridgehead._protocol import payload as _payload
from bridgehead._shipped.wire.pickling import LARGE

TrustName = Literal["pickle", "data"]
SLOW = 1 << 15  # bytes; the data-only codec is Python, and goes into a thread from here on


@dataclass(frozen=True, slots=True)
class Trust:
    """How values are opened.

    Attributes:
        data: whether nothing but data is.
        allow: classes beyond data that are, by ``module.qualname``.
    """

    data: bool
    allow: Mapping[str, type] = field(default_factory=dict)

    @property
    def name(self) -> TrustName:
        return "data" if self.data else "pickle"

    def fields(self) -> dict[str, Any]:
        """What a request's header says of it, so that the kernel sends what can be opened."""
        return {"trust": "data", "allow": sorted(self.allow)} if self.data else {}

    async def open(self, frames: list[memoryview]) -> Any:
        """The object, made in a thread if that takes long.

        Raises what ``_payload.decode`` and ``decode_data`` do.
        """
        size = sum(frame.nbytes for frame in frames[:1])
        if not self.data:
            if size < LARGE:
                return _payload.decode(frames)
            return await asyncio.to_thread(_payload.decode, frames)
        if size < SLOW:
            return _payload.decode_data(frames, self.allow)
        return await asyncio.to_thread(_payload.decode_data, frames, self.allow)

    def but(self, name: TrustName | None) -> Trust:
        """The same for one call that says otherwise; None says nothing."""
        if name is None:
            return self
        check_trust(name)
        return Trust(name == "data", self.allow)


def check_trust(trust: object) -> None:
    """Raise ``ValueError`` unless it is a kind of trust."""
    if trust not in ("pickle", "data"):
        raise ValueError(f"trust is 'pickle' or 'data', not {trust!r}")


def allowed(allow: Collection[type | str]) -> dict[str, type]:
    """The classes that ``allow=`` names, by ``module.qualname``.

    Raises:
        TypeError: something that is neither a class nor a name of one.
        ValueError: a name under which there is no class.
    """
    if isinstance(allow, (str, type)):
        raise TypeError(f"allow= takes a list of classes, as in allow=[{allow!r}]")
    found = {}
    for item in allow:
        kind = _imported(item) if isinstance(item, str) else item
        if not isinstance(kind, type):
            raise TypeError(f"allow= takes classes or their names, not {item!r}")
        found[f"{kind.__module__}.{kind.__qualname__}"] = kind
    return found


def _imported(name: str) -> Any:
    module, _, last = name.rpartition(".")
    try:
        return getattr(import_module(module), last)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"allow= names {name!r}, and there is no such class: {error}") from None
