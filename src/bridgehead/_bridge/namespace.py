"""The kernel's namespace: objects that go to its names and come from them.

Rule: what an operation on names takes, gives and raises, and how it is one request. What runs
code, and what is heard of the kernel, is the bridge's.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from bridgehead._bridge.arguments import name_of, size_of, text_of, to_push
from bridgehead._bridge.opening import Openable
from bridgehead._bridge.progress import Report, reporting
from bridgehead._connection.calls import Packed
from bridgehead._connection.trust import TrustName, check_trust
from bridgehead._protocol import payload as _parcel
from bridgehead._protocol import response as _protocol
from bridgehead._protocol.ref import Ref, primary
from bridgehead._protocol.results import Name, Names, Transfer


class Namespace(Openable):
    """The names of one kernel; ``Bridge`` is what users see of it."""

    async def push(
        self,
        mapping: Mapping[str, Any] | None = None,
        /,
        *,
        by_value: Sequence[ModuleType] = (),
        timeout: float | None = None,
        progress: bool | Report = False,
        now: bool = False,
        max_bytes: int | None = None,
        trust: TrustName = "pickle",
        **values: Any,
    ) -> Transfer:
        """Bind objects to names in the kernel: all of them, or none.

        They are pickled together, so what they share stays shared; anything but few plain
        values is pickled in a thread. What arrives is what was there when ``push`` was called;
        change nothing of it before ``push`` returned: an array that changed meanwhile is refused
        by the kernel where it crossed in messages, and may arrive half changed through shared
        memory. An open text file arrives as a ``StringIO``, a memoryview as bytes: that is
        cloudpickle's way.

        Args:
            mapping: names to objects, for names that are no keyword argument.
            by_value: modules of yours to ship along, because the kernel can't import them.
            timeout: seconds.
            progress: True for a tqdm bar, or a callable of bytes done and bytes in all; what it
                raises ends the transfer: nothing is bound, unless all of it had arrived.
            now: be served in the middle of a running cell, in a thread of the kernel's beside
                it, instead of behind it: any kernel's on the direct lane, else that of a subshell
                (ipykernel 7 or later).
            max_bytes: refuse to send more than this.
            trust: ``"data"`` has the kernel open nothing but data, for objects of whose origin
                you are not sure; see ``launch``.
            values: more names.

        Raises:
            ValueError: nothing to push, or a name that is no identifier or is a keyword.
            EncodeError: an object can't be pickled; says which part. Nothing was sent.
            PayloadTooLarge: it has more than ``max_bytes``. Nothing was sent.
            IncompatiblePython: functions or classes for a kernel of another Python version.
            MissingInKernel: the kernel lacks a module. Its namespace is as it was.
            RemoteError: unpickling raised over there. Its namespace is as it was.
            IntegrityError: it was altered on the way, or changed while it was pushed.
            UntrustedPayload: it is more than data, and ``trust="data"``. Nothing was sent.
            NotSupported: ``now=True`` of a kernel without subshells, and without direct lane.

        Example::

            >>> transfer = await bridge.push({"now": 3}, rows=[1, 2])
            >>> transfer.names
            ('now', 'rows')
        """
        self._foothold.check()
        check_trust(trust)
        started = time.perf_counter()
        if not isinstance(now, bool):  # a value for that name, it would be lost without a word
            raise TypeError(
                f"now is True or False, not {type(now).__name__}; "
                "the name goes into the mapping: push({'now': …})"
            )
        objects = to_push(mapping, values)
        data = trust == "data"
        content = _parcel.Content(
            objects, objects, by_value, self._reduce, size_of(max_bytes), data
        )
        with reporting(progress, "push") as report:
            answered = await self._foothold.ask(
                "bind",
                timeout,
                content,
                now=now,
                report=report,
                names=list(objects),
                opens="data" if data else None,
            )
            sent = answered.request.nbytes
            report(sent, sent)
        seconds = time.perf_counter() - started
        return Transfer(tuple(objects), sent, seconds, answered.request.lane)

    async def _push_packed(
        self, names: list[str], packed: Packed, timeout: float | None
    ) -> Transfer:
        """Bind what a fleet has pickled, under these names."""
        self._foothold.check()
        started = time.perf_counter()
        answered = await self._foothold.ask("bind", timeout, packed=packed, names=names)
        seconds, request = time.perf_counter() - started, answered.request
        return Transfer(tuple(names), request.nbytes, seconds, request.lane)

    async def pull(
        self,
        *expressions: str | Ref,
        timeout: float | None = None,
        progress: bool | Report = False,
        now: bool = False,
        max_bytes: int | None = None,
        trust: TrustName | None = None,
    ) -> Any:
        """Bring values here: one expression gives its value, several give a tuple.

        All are evaluated before any is pickled, and pickled together.

        Args:
            expressions: names or any Python expressions over there, or refs.
            timeout: seconds.
            progress: as in ``push``; bytes that arrived, which through shared memory is all of
                them at once.
            now: as in ``push`` for names; any other expression needs a subshell.
            max_bytes: of the pickled values; more is refused over there, before it is sent,
                and here, before memory is taken for it.
            trust: for this call otherwise than the bridge; see ``launch``.

        Raises:
            NameNotFound: an expression that is one name, unknown there. Nothing was evaluated.
            RemoteError: evaluating or pickling raised over there.
            PayloadTooLarge: they have more than ``max_bytes``; says how many.
            ReplyLost: the answer arrived damaged.
            DecodeError: it can't be unpickled here.
            UntrustedPayload: it is more than data, where only data is trusted.
            IncompatiblePython: it carries code of another Python version.
            NotSupported: ``now=True`` of a kernel without subshells.

        Cancelling leaves what was evaluated over there as it is; the answer is dropped.

        Example::

            >>> await bridge.push(rows=[1, 2])
            <Transfer rows: ...>
            >>> await bridge.pull("sum(rows)", "rows")
            (3, [1, 2])
        """
        self._foothold.check()
        if not expressions:
            raise ValueError("there is nothing to pull; say pull('x')")
        texts = [text_of(expression) for expression in expressions]
        limit, trusted = size_of(max_bytes), self._foothold.trust.but(trust)
        with reporting(progress, "pull") as report:
            answered = await self._foothold.ask(
                "fetch",
                timeout,
                now=now,
                limit=limit,
                report=report,
                expressions=texts,
                **trusted.fields(),
            )
            total = sum(frame.nbytes for frame in answered.frames)
            report(total, total)
        values = _parcel.values(await trusted.open(answered.frames), len(texts))
        return values[0] if len(texts) == 1 else values

    def ref(self, expression: str) -> Ref:
        """A handle of an object over there; nothing moves until its ``pull``.

        Raises:
            SyntaxError: it is no expression.

        Example::

            >>> bridge.ref("rows")[0].real
            <Ref rows[0].real>
        """
        return Ref(self, primary(text_of(expression)))

    async def names(self, pattern: str = "*", *, timeout: float | None = None) -> Names:
        """The user's names over there, as ``%who`` shows them, without computing a repr.

        Args:
            pattern: a shell-style pattern; names with an underscore first need one that has it.
            timeout: seconds.

        Example::

            >>> await bridge.push(rows=[1, 2], x=1)
            <Transfer rows, x: ...>
            >>> [name.name for name in await bridge.names()]
            ['rows', 'x']
            >>> (await bridge.names("r*"))[0]
            <rows: list of 2, ... bytes>
        """
        self._foothold.check()
        if not isinstance(pattern, str):
            raise TypeError(f"a pattern is a string, not {type(pattern).__name__}")
        told = (await self._foothold.ask("names", timeout, pattern=pattern)).told
        return Names(
            Name(
                item["name"],
                item["type"],
                None if item["shape"] is None else tuple(item["shape"]),
                item["len"],
                item["bytes"],
            )
            for item in _protocol.understood(told.get("names"), [_protocol.NAME], "names")
        )

    async def delete(self, *names: str, timeout: float | None = None) -> None:
        """Remove names from the kernel: all of them, or none.

        Raises:
            ValueError: no names, or one that is no identifier.
            NameNotFound: one of them isn't there.

        Example::

            >>> await bridge.push(x=1)
            <Transfer x: ...>
            >>> await bridge.delete("x")
            >>> await bridge.delete("x")
            Traceback (most recent call last):
            NameNotFound: no 'x' in the kernel
        """
        self._foothold.check()
        if not names:
            raise ValueError("there is nothing to delete; say delete('x')")
        unique = list(dict.fromkeys(map(name_of, names)))
        await self._foothold.ask("drop", timeout, names=unique)

    async def exists(self, name: str, *, timeout: float | None = None) -> bool:
        """Whether the kernel's namespace has the name; a builtin is not in it.

        Raises:
            ValueError: it is no identifier.

        Example::

            >>> await bridge.exists("print")
            False
        """
        self._foothold.check()
        answered = await self._foothold.ask("has", timeout, name=name_of(name))
        has: bool = _protocol.understood(answered.told.get("has"), bool, "exists")
        return has

    def _reduce(self, value: Any) -> Any:
        """How a ref is pickled: as a call that is answered with the object over there."""
        if type(value) is not Ref:
            return None
        if getattr(value._bridge, "_bridge", value._bridge) is not self:
            raise TypeError(f"{value!r} belongs to another bridge")
        return Ref, (value._expression,)
