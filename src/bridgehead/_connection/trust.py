"""Whether a kernel's values are opened as pickles or as data.

Rule: the one place that decides how the frames of a value become an object in this process: as a
pickle, which may run the kernel's code, or as data, which cannot. Trust is proven, not assumed: a
connection file, a loopback address or a forwarded port says nothing about the process behind it.
Until the first handshake has ended, only data is opened.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from importlib import import_module
from typing import Any, Literal

from bridgehead._protocol import payload as _payload
from bridgehead._shipped.wire.pickling import LARGE
from bridgehead._transports.tasks import in_thread

TrustName = Literal["pickle", "data"]
SLOW = 1 << 15  # bytes; the data-only codec is Python code, and more than this runs in a thread
QUICKER = 2  # a shift: a buffer's bytes take a fourth of the time, as their checks are loops in C


class Trust:
    """How values are opened.

    Attributes:
        data: whether only data is accepted.
        why: the reason.
        allow: further classes that are accepted then, by ``module.qualname``.
    """

    def __init__(self, asked: TrustName | None, allow: Mapping[str, type] | None = None) -> None:
        self._asked = asked
        self.data: bool = asked != "pickle"
        self.why = "the caller asked for it" if asked is not None else "no handshake has ended yet"
        self.allow: Mapping[str, type] = allow or {}

    @property
    def needs_proof(self) -> bool:
        """Whether the caller left the decision to the handshake."""
        return self._asked is None

    @property
    def name(self) -> TrustName:
        return "data" if self.data else "pickle"

    def decide(self, proven: bool | None, reason: str, own: str) -> None:
        """Decide by the proof of a handshake, unless the caller has decided.

        Args:
            proven: whether the kernel proved that it is this user's process on this machine; None
                if it could not be asked to.
            reason: why it is not proven.
            own: why the kernel is this program's own without a proof; empty if it is not.
        """
        if self._asked is not None:
            return
        self.data = not self.trusts(proven, own)
        if self.data:
            self.why = f"it is not proven to be this user's process on this machine: {reason}"
        elif proven:
            self.why = "the kernel proved over a Unix socket that it is this user's process"
        else:
            self.why = own

    def trusts(self, proven: bool | None, own: str) -> bool:
        """Return whether the kernel is trusted after such a proof; see ``decide``."""
        if self._asked is not None:
            return self._asked == "pickle"
        # A child that could prove it and did not may have changed its user, or may be a client of
        # a kernel elsewhere, as sudo, docker and ssh are.
        return bool(proven or (proven is None and own))

    def fields(self) -> dict[str, Any]:
        """Return the header fields by which the kernel sends only what can be opened."""
        return {"trust": "data", "allow": sorted(self.allow)} if self.data else {}

    async def open_values(self, frames: list[memoryview], names: Sequence[str]) -> tuple[Any, ...]:
        """Return the values of a response; long ones are opened in a thread.

        ``names`` says what each of them is, for errors. Raises what ``_payload.decode``,
        ``decode_data`` and ``check_values`` do.
        """
        return _payload.check_values(await self._open(frames, names), len(names))

    async def _open(self, frames: list[memoryview], names: Sequence[str]) -> Any:
        size = sum(frame.nbytes for frame in frames[:1])
        if not self.data:
            if size < LARGE:
                return _payload.decode(frames)
            return await in_thread(_payload.decode, frames)
        size += sum(frame.nbytes for frame in frames[1:]) >> QUICKER
        if size < SLOW:
            return _payload.decode_data(frames, self.allow, names)
        return await in_thread(_payload.decode_data, frames, self.allow, names)

    def overridden(self, name: TrustName | None) -> Trust:
        """Return the trust for one call with another ``trust=``; None changes nothing."""
        if name is None:
            return self
        check_trust(name)
        return Trust(name, self.allow)


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
