"""The wire format: frames, digests, pieces and headers, the same on both sides.

Rule: standard library only, Python 3.8 and later. Shipped to the kernel together with
``_loader.py`` and imported by the near side too, so the two cannot drift.

Words: a *frame* is a run of bytes; frame 0 of an object is its pickle, the others are its
out-of-band buffers (PEP 574). The frames of one request, laid end to end, are its *stream*;
a stream too long for one message crosses in *pieces*, each with its offset, and each checked
when it arrives (see ``_digest.py``).
"""

from __future__ import annotations

import mmap
from threading import Lock
from time import monotonic
from typing import Any, Dict, Iterable, Iterator, Sequence

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.wire.digest import DIGESTS, leaves
    from bridgehead._shipped.wire.digest import (
        Buffer as Buffer,  # for those that import it from here
    )

Header = Dict[str, Any]  # a JSON object

PROTOCOL = 2
MIME = "application/vnd.bridgehead.answer+json"
DATA_MESSAGE = "bridgehead_data"  # msg_type of the frames of an answer on the buffers lane
NEWS_MESSAGE = "bridgehead_news"  # msg_type of an answer that comes by itself, to who watches
PROBE = b"bridgehead probe"

ALIGN = 64  # bytes; an array that is not makes sums 3 times slower for its whole life
SHARED = 1 << 16  # bytes of frames from which on the direct lane uses shared memory
IN_BAND = 2048  # bytes; a smaller out-of-band buffer costs more as a frame than inside the pickle
OWN_MAPPING = 1 << 20  # bytes; from here on a frame gets huge pages of its own
ADDRESSES = 1 << 47  # bytes; no process has room for more
MESSAGE = 16 << 20  # bytes of buffers in one message that goes back
STEP = 1 << 18  # bytes copied at once: where memory is touched first, a MiB may take 8 ms


# ---------------------------------------------------------------- frames, digests, pieces


class Broken(Exception):
    """Something on the wire is not as it must be; ``kind`` names the near side's error."""

    def __init__(self, kind: str, message: str, **details: Any) -> None:
        super().__init__(message)
        self.kind, self.details = kind, details


class TooLarge(Exception):
    """It has more bytes than the caller allows; ``nbytes`` of them."""

    def __init__(self, nbytes: int) -> None:
        super().__init__("%d bytes" % nbytes)
        self.nbytes = nbytes


_warm = False


def warm_up() -> None:
    """Have messages of some MiB come in memory that was used before.

    glibc maps anew, and gives back, every block above a threshold, which grows with the
    largest block (up to 32 MiB) that was ever freed; nobody touches this one. Of a message of
    16 MiB the page faults alone took 8 ms, of the 11 until it was received.
    """
    global _warm
    if not _warm:
        _warm = True
        bytes(31 << 20)


def allocate(size: int) -> memoryview:
    """Writable memory for one received frame, aligned to ``ALIGN``.

    Large frames get an anonymous mapping: page-aligned, on huge pages where the system has
    them (100 MB touched in 16-19 ms instead of 62), given back when the last array dies.
    """
    if size < ALIGN:
        return memoryview(bytearray(size))
    if size < OWN_MAPPING:
        import ctypes

        room = bytearray(size + ALIGN)
        at = -ctypes.addressof(ctypes.c_char.from_buffer(room)) % ALIGN
        return memoryview(room)[at : at + size]
    if hasattr(mmap, "MAP_PRIVATE"):  # the default is shared: a forked child would write into it
        block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    else:
        block = mmap.mmap(-1, size)
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if advice is not None:
        try:
            block.madvise(advice)
        except OSError:  # a kernel without transparent huge pages
            pass
    return memoryview(block)


def digest(algorithm: str, frames: Iterable[Buffer], each: Any = map) -> str:
    """``"crc32:…"``, ``"sums:…"`` or ``"sha256:…"`` over all frames in order, by leaves.

    ``"none:"`` for what never was in a message: memory needs no digest. ``each`` may be the
    ``map`` of an executor.
    """
    if algorithm == "none":
        return "none:"
    value = DIGESTS.get(algorithm)
    if value is None:
        raise Broken("protocol", "unknown digest %r" % (algorithm,))
    return algorithm + ":" + (",".join(each(value, leaves(frames))) or value(()))


def cut(frames: Sequence[memoryview], start: int, stop: int) -> Iterator[memoryview]:
    """The parts of the stream between two offsets, as views: nothing is copied."""
    at = 0
    for frame in frames:
        end = at + frame.nbytes
        if end > start and at < stop:
            yield frame[max(start - at, 0) : stop - at]
        at = end


def owned(frames: Sequence[Buffer]) -> list[memoryview]:
    """Copies that nobody else can write to, in steps between which others get their turn."""
    copies = []
    for frame in frames:
        source, copy = memoryview(frame), allocate(memoryview(frame).nbytes)
        for at in range(0, source.nbytes, 1 << 20):
            copy[at : at + (1 << 20)] = source[at : at + (1 << 20)]
        copies.append(copy)
    return copies


def copied(frames: list[memoryview]) -> list[memoryview]:
    """A snapshot: the pickle is ours, the other frames are views of live objects.

    Each frame in one step that no other thread comes between, and into memory as for one that
    is received: 100 MB in 14 ms, as ``bytes`` in 50.
    """
    copies = frames[:1]
    for frame in frames[1:]:
        try:
            copy = allocate(frame.nbytes)
        except OSError:  # which is how a mapping says it
            raise MemoryError("no memory for a copy of %d bytes" % frame.nbytes) from None
        copy[:] = frame
        copies.append(copy)
    return copies


def within(frames: list[memoryview], limit: int | None) -> list[memoryview]:
    """The frames; ``TooLarge`` if they have more bytes than the caller allows."""
    total = sum(frame.nbytes for frame in frames)
    if limit is not None and total > limit:
        raise TooLarge(total)
    return frames


def messages(frames: Sequence[memoryview]) -> Iterator[list[memoryview]]:
    """What goes back with one answer, in messages of a bounded size."""
    total = sum(frame.nbytes for frame in frames)
    for start in range(0, total or 1, MESSAGE):
        yield list(cut(frames, start, start + MESSAGE)) if total > MESSAGE else list(frames)


class Inbox:
    """One stream being received into frames of known sizes, piece by piece, in any order.

    A frame gets its memory when the first of its bytes arrives: what was only announced
    costs nothing. Pieces may be written in several threads at once.
    """

    owner: Any = None  # nobody's in particular; see Held

    def __init__(self, sizes: Sequence[int], limit: int | None = None) -> None:
        if type(sizes) is not list or not all(type(n) is int and n >= 0 for n in sizes):
            raise Broken("protocol", "frame sizes must be whole numbers of bytes")
        self.sizes: list[int] = sizes
        self.total: int = sum(sizes)
        if limit is not None and self.total > limit:
            raise TooLarge(self.total)
        if self.total > ADDRESSES:
            raise Broken("protocol", "no memory for %d bytes" % self.total)
        self.begun: dict[int, memoryview] = {}  # by the frame's index
        self.pieces: dict[int, int] = {}  # what is here and checked: offset and length
        self.touched: float = monotonic()
        self.lock: Any = Lock()

    def write(self, at: int, parts: Iterable[Buffer], signed: str) -> None:
        """Copy a piece into its place, and check there that it is what was signed."""
        views = [memoryview(part).cast("B") for part in parts]
        length = sum(view.nbytes for view in views)
        if type(at) is not int or at < 0 or at + length > self.total:
            raise Broken(
                "integrity", "%d bytes at offset %r do not fit %d" % (length, at, self.total)
            )
        if length and signed == "none:":
            raise Broken("integrity", "frames in a message need a digest")
        if length >= OWN_MAPPING:
            warm_up()
        targets = self.space(at, at + length)
        target = next(targets, None)
        for view in views:
            while view.nbytes and target is not None:
                count = min(view.nbytes, target.nbytes, STEP)
                target[:count] = view[:count]
                view, target = view[count:], target[count:]
                if not target.nbytes:
                    target = next(targets, None)
        # Checked is the copy: what was copied from may change (loopback's is the sender's own).
        if digest(str(signed).partition(":")[0], self.space(at, at + length)) != signed:
            raise Broken("integrity", "the digest of the frames is not the one that was signed")
        self.pieces[at] = length
        self.touched = monotonic()

    def space(self, start: int, stop: int) -> Iterator[memoryview]:
        """The memory between two offsets of the stream, as ``cut`` gives it."""
        at = 0
        for index, size in enumerate(self.sizes):
            if at + size > start and at < stop:
                yield self.frame(index)[max(start - at, 0) : stop - at]
            at += size

    def frame(self, index: int) -> memoryview:
        with self.lock:
            if index not in self.begun:
                try:
                    self.begun[index] = allocate(self.sizes[index])
                except (MemoryError, OSError, OverflowError) as error:
                    raise Broken("protocol", "no memory for %d bytes" % self.total) from error
            return self.begun[index]

    @property
    def frames(self) -> list[memoryview]:
        """All frames, zeros where nothing has arrived."""
        return [self.frame(index) for index in range(len(self.sizes))]

    @property
    def received(self) -> int:
        return sum(self.pieces.values())

    def take(self) -> list[memoryview]:
        """The frames, once every byte of them is there, and came once; else ``Broken``."""
        end = 0
        for at in sorted(self.pieces):
            if at != end:
                break
            end += self.pieces[at]
        if end != self.total or self.received != self.total:
            raise Broken("integrity", "%d of %d bytes arrived" % (self.received, self.total))
        return self.frames


class Held:
    """Frames that arrived as a whole, beside the messages, until the request that needs them."""

    def __init__(
        self, sizes: Sequence[int], frames: Sequence[memoryview], owner: Any = None
    ) -> None:
        self.sizes: Sequence[int] = sizes
        self.frames: list[memoryview] = list(frames)
        self.owner: Any = owner
        self.total: int = sum(memoryview(frame).nbytes for frame in frames)
        self.received: int = self.total
        self.touched: float = monotonic()

    def write(self, at: int, parts: Sequence[Buffer], expected: str) -> None:
        if parts:
            raise Broken("integrity", "more bytes than the request has")

    def take(self) -> list[memoryview]:
        """The frames; nothing can have altered them on the way."""
        return self.frames


class Outbox:
    """An answer too long for one message, until the last piece of it was fetched; or one that
    may be lost with its connection, until the near end says that it has it.

    Of the direct lane's, ``owner`` is the server; ``segment`` has the frames, if there is one.
    """

    def __init__(
        self,
        frames: list[memoryview],
        sizes: Sequence[int],
        owner: Any = None,
        segment: Any = None,
    ) -> None:
        self.frames, self.sizes, self.total = frames, sizes, sum(sizes)
        self.owner, self.segment, self.touched = owner, segment, monotonic()
        self.answer: Any = None  # the header, of one that may be asked for again

    def drop(self) -> None:
        if self.segment is not None:
            self.owner.channel.take_back(self.segment)


# ---------------------------------------------------------------- headers


FIELDS: Dict[str, type] = {
    "op": str,
    "id": str,
    "digest": str,
    "sizes": list,
    "at": int,
    "piece": int,
}
MAY: Dict[str, type] = {  # or be null
    "max_bytes": int,
    "keep": str,
    "allow": list,
    "sums": bool,
    "resumes": bool,
    "had": list,
    "reader": list,  # the Python of who opens the answer, if that is not who asks
}
NEEDS: Dict[str, Dict[str, type]] = {
    "bind": {"names": list},
    "fetch": {"expressions": list},
    "watch": {"expressions": list, "watch": str},
    "unwatch": {"watch": str},
    "drop": {"names": list},
    "names": {"pattern": str},
    "has": {"name": str},
    "batch": {"requests": list},
}
JOINS = ("bind", "fetch", "drop", "names", "has")  # what may cross in a batch


def check(header: Header) -> None:
    """Refuse a header that this loader could misread."""
    if type(header) is not dict:
        raise Broken("protocol", "the header is no JSON object")
    if header.get("protocol") != PROTOCOL:
        raise Broken("protocol", "this loader speaks protocol %d" % PROTOCOL)
    for field, kind in FIELDS.items():
        _check_kind(field, header.get(field), kind)
    for field, kind in NEEDS.get(header["op"], {}).items():
        _check_kind(field, header.get(field), kind)
    for field, kind in MAY.items():
        if header.get(field) is not None:
            _check_kind(field, header[field], kind)
    for field in ("names", "expressions", "allow", "had"):
        items = header.get(field)
        if type(items) is list and not all(type(item) is str for item in items):
            raise Broken("protocol", "the header's %r are no strings" % field)
    if header["piece"] < 0:
        raise Broken("protocol", "a message cannot carry %d bytes" % header["piece"])
    digest(header["digest"].partition(":")[0], ())  # is there such an algorithm?


def _check_kind(field: str, value: Any, kind: type) -> None:
    if type(value) is not kind:  # which may be long, or nested deeply: its type must do
        told = "%s, not %s" % (type(value).__name__, kind.__name__)
        raise Broken("protocol", "the header's %r is %s" % (field, told))
