"""Whether a kernel's values are opened as pickles or as data.

Rule: the one place that decides how the frames of a value become an object in this process: as a
pickle, which may run the kernel's code, or as data, which cannot.
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
SLOW = 1 << 15  # bytes; the data-only codec is Python code, and more than this runs in a thread


@dataclass(frozen=True, slots=True)
class Trust:
    """How values are opened.

    Attributes:
        data: whether only data is accepted.
        allow: further classes that are accepted then, by ``module.qualname``.
    """

    data: bool
    allow: Mapping[str, type] = field(default_factory=dict)

    @property
    def name(self) -> TrustName:
        return "data" if self.data else "pickle"

    def fields(self) -> dict[str, Any]:
        """Return the header fields by which the kernel sends only what can be opened."""
        return {"trust": "data", "allow": sorted(self.allow)} if self.data else {}

    async def open(self, frames: list[memoryview]) -> Any:
        """Return the object that the frames hold; a long one is opened in a thread.

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

    def overridden(self, name: TrustName | None) -> Trust:
        """Return the trust for one call with another ``trust=``; None changes nothing."""
        if name is None:
            return self
        check_trust(name)
        return Trust(name == "data", self.allow)


def check_trust(trust: object) -> None:
    """Raise ``ValueError`` unless ``trust`` is ``"pickle"`` or ``"data"``."""
    if trust not in ("pickle", "data"):
        raise ValueError(f"trust= is 'pickle' or 'data', not {trust!r}")


def allowed(allow: Collection[type | str]) -> dict[str, type]:
    """Return the classes that ``allow=`` names, by ``module.qualname``.

    Raises:
        TypeError: an item is neither a class nor the name of one.
        ValueError: no class has this name.
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
        raise ValueError(f"allow= names {name!r}, but there is no such class: {error}") from None
