"""Transfers: streams that arrive in chunks, or wait to be fetched.

Rule: use the standard library only, run on Python 3.8 and later, the same file at both ends. Each
object here belongs to one request or one response. The floors above decide how long they keep it.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from threading import Lock
from time import monotonic
from typing import Any, Iterable, Iterator, Sequence

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.wire.digest import Buffer
    from bridgehead._shipped.wire.errors import TooLarge, WireError
    from bridgehead._shipped.wire.frames import (
        OWN_MAPPING,
        allocate,
        check_sizes,
        copy_into,
        digest,
        raise_mmap_threshold,
    )

ADDRESSES = 1 << 47  # bytes; no process has a larger address space


class Inbox:
    """A stream that is received into frames of known sizes, in chunks, in any order.

    A frame gets its memory when the first of its bytes arrives: a frame that is only announced
    costs nothing. Several threads may write chunks at once.
    """

    owner: Any = None  # no socket thread; see CompleteTransfer

    def __init__(self, sizes: Sequence[int], limit: int | None = None) -> None:
        self.total: int = check_sizes(sizes)
        self.sizes: list[int] = sizes  # type: ignore[assignment]
        self.starts: list[int] = [0, *accumulate(sizes)]  # the offset of each frame, and the end
        if limit is not None and self.total > limit:
            raise TooLarge(self.total)
        if self.total > ADDRESSES:
            raise WireError("protocol", "no process has %d bytes" % self.total)
        self.begun: dict[int, memoryview] = {}  # by the frame's index
        self.chunks: dict[int, int] = {}  # lengths of the checked chunks, by offset
        self.touched: float = monotonic()
        self.lock: Any = Lock()

    def write(self, at: int, parts: Iterable[Buffer], signed: str) -> None:
        """Copy a chunk into its place, and check the copy against its digest."""
        views = [memoryview(part).cast("B") for part in parts]
        length = sum(view.nbytes for view in views)
        if type(at) is not int or at < 0 or at + length > self.total:
            raise WireError(
                "integrity",
                "%d bytes at offset %r do not fit a stream of %d" % (length, at, self.total),
            )
        if length and signed == "none:":
            raise WireError("integrity", "a message with frames has no digest")
        if length >= OWN_MAPPING:
            raise_mmap_threshold()
        targets = self.space(at, at + length)
        target = next(targets, None)
        for view in views:
            while view.nbytes and target is not None:
                count = min(view.nbytes, target.nbytes)
                copy_into(target[:count], view[:count])
                view, target = view[count:], target[count:]
                if not target.nbytes:
                    target = next(targets, None)
        # Check the copy, because the source may change (with loopback it is the sender's memory).
        if digest(str(signed).partition(":")[0], self.space(at, at + length)) != signed:
            raise WireError("integrity", "the digest of the frames does not match the header")
        self.chunks[at] = length
        self.touched = monotonic()

    def space(self, start: int, stop: int) -> Iterator[memoryview]:
        """Yield the memory between two offsets of the stream, as ``cut`` does."""
        for index in range(bisect_right(self.starts, start) - 1, len(self.sizes)):
            at = self.starts[index]
            if at >= stop:
                break
            if self.sizes[index]:
                yield self.frame(index)[max(start - at, 0) : stop - at]

    def frame(self, index: int) -> memoryview:
        """Return the memory of a frame; allocate it on first use. Raise ``MemoryError``."""
        with self.lock:
            if index not in self.begun:
                self.begun[index] = allocate(self.sizes[index])
            return self.begun[index]

    @property
    def frames(self) -> list[memoryview]:
        """All frames, with zeros where nothing has arrived."""
        return [self.frame(index) for index in range(len(self.sizes))]

    @property
    def received(self) -> int:
        """The number of bytes that arrived and were checked."""
        return sum(self.chunks.values())

    def take(self) -> list[memoryview]:
        """Return the frames; raise ``WireError`` unless every byte arrived exactly once."""
        end = 0
        for at in sorted(self.chunks):
            if at != end:
                break
            end += self.chunks[at]
        if end != self.total or self.received != self.total:
            raise WireError("integrity", "%d of %d bytes arrived" % (self.received, self.total))
        return self.frames


class CompleteTransfer:
    """Frames that arrived whole, over the direct lane, for the request that needs them."""

    def __init__(
        self, sizes: Sequence[int], frames: Sequence[memoryview], owner: Any = None
    ) -> None:
        self.sizes: Sequence[int] = sizes
        self.frames: list[memoryview] = list(frames)
        self.owner: Any = owner
        self.total: int = sum(sizes)
        self.received: int = self.total
        self.touched: float = monotonic()

    def write(self, at: int, parts: Sequence[Buffer], expected: str) -> None:
        """Raise ``WireError`` if there are bytes to write: nothing is missing."""
        if parts:
            raise WireError("integrity", "the message brings more bytes than the request announced")

    def take(self) -> list[memoryview]:
        """Return the frames, unchecked: the direct lane does not damage them."""
        return self.frames


class Outbox:
    """The frames of a response that the remote part keeps until the client has them.

    It is kept if it is too long for one message, until the last chunk was fetched; or if it may be
    lost with its connection, until the client acknowledges it. ``owner`` is the socket thread of
    a response on the direct lane; ``segment`` holds its frames, if there is one. The bytes before
    ``start`` were sent ahead, and are not kept.
    """

    def __init__(
        self,
        frames: list[memoryview],
        sizes: list[int],
        owner: Any = None,
        segment: Any = None,
        start: int = 0,
    ) -> None:
        self.frames, self.sizes, self.total = frames, sizes, sum(sizes)
        self.start = start
        self.owner, self.segment, self.touched = owner, segment, monotonic()
        self.response: Any = None  # the header of a response that the client may ask for again

    def drop(self) -> None:
        """Give the segment back, if there is one."""
        if self.segment is not None:
            self.owner.channel.take_back(self.segment)
