"""Streams on their way: what arrives in pieces, and what waits to be fetched.

Rule: standard library only, Python 3.8 and later; the same on both sides. Each object here is
one request's or one answer's; who keeps it, and for how long, is decided above.
"""

from __future__ import annotations

from threading import Lock
from time import monotonic
from typing import Any, Iterable, Iterator, Sequence

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.wire.digest import Buffer
    from bridgehead._shipped.wire.errors import TooLarge, WireError
    from bridgehead._shipped.wire.frames import OWN_MAPPING, allocate, digest, raise_mmap_threshold

ADDRESSES = 1 << 47  # bytes; no process has room for more
STEP = 1 << 18  # bytes copied at once: where memory is touched first, a MiB may take 8 ms


class Inbox:
    """One stream being received into frames of known sizes, piece by piece, in any order.

    A frame gets its memory when the first of its bytes arrives: what was only announced
    costs nothing. Pieces may be written in several threads at once.
    """

    owner: Any = None  # nobody's in particular; see Held

    def __init__(self, sizes: Sequence[int], limit: int | None = None) -> None:
        if type(sizes) is not list or not all(type(n) is int and n >= 0 for n in sizes):
            raise WireError("protocol", "frame sizes must be whole numbers of bytes")
        self.sizes: list[int] = sizes
        self.total: int = sum(sizes)
        if limit is not None and self.total > limit:
            raise TooLarge(self.total)
        if self.total > ADDRESSES:
            raise WireError("protocol", "no memory for %d bytes" % self.total)
        self.begun: dict[int, memoryview] = {}  # by the frame's index
        self.chunks: dict[int, int] = {}  # what is here and checked: offset and length
        self.touched: float = monotonic()
        self.lock: Any = Lock()

    def write(self, at: int, parts: Iterable[Buffer], signed: str) -> None:
        """Copy a piece into its place, and check there that it is what was signed."""
        views = [memoryview(part).cast("B") for part in parts]
        length = sum(view.nbytes for view in views)
        if type(at) is not int or at < 0 or at + length > self.total:
            raise WireError(
                "integrity", "%d bytes at offset %r do not fit %d" % (length, at, self.total)
            )
        if length and signed == "none:":
            raise WireError("integrity", "frames in a message need a digest")
        if length >= OWN_MAPPING:
            raise_mmap_threshold()
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
            raise WireError("integrity", "the digest of the frames is not the one that was signed")
        self.chunks[at] = length
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
                    raise WireError("protocol", "no memory for %d bytes" % self.total) from error
            return self.begun[index]

    @property
    def frames(self) -> list[memoryview]:
        """All frames, zeros where nothing has arrived."""
        return [self.frame(index) for index in range(len(self.sizes))]

    @property
    def received(self) -> int:
        return sum(self.chunks.values())

    def take(self) -> list[memoryview]:
        """The frames, once every byte of them is there, and came once; else ``WireError``."""
        end = 0
        for at in sorted(self.chunks):
            if at != end:
                break
            end += self.chunks[at]
        if end != self.total or self.received != self.total:
            raise WireError("integrity", "%d of %d bytes arrived" % (self.received, self.total))
        return self.frames


class CompleteTransfer:
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
            raise WireError("integrity", "more bytes than the request has")

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
