"""The limit on what one cell prints and displays: the kernel drops the middle.

Rule: use the standard library only, and run on Python 3.8 and later. This file knows the streams
and the display publisher of ipykernel. It knows no request.

Facts this file rests on, read and measured (ipykernel 6.31 and 7.4, IPython 9):

- What a child process writes reaches ``write`` of the stream, in a thread, with the header of the
  newest cell. So does what is written to the descriptor. A forked child of Python prints by a
  message of its own instead, which passes no ``write`` of the kernel.
- IPython replaces ``write`` for the time of a plain cell, and keeps what comes there in the
  history. A limit that is set inside of that, when the code begins, limits both.
- A child's last 64 KiB may still be in the pipe when the cell's code has ended.
- IPython publishes the error of a cell before the cell's code has ended, by ``_showtraceback``.
- Displays, their updates and what clears outputs go through the publisher's hooks, in the thread
  that registered them. The streams were flushed before.
"""

from __future__ import annotations

import os
import select
import sys
from threading import RLock
from time import monotonic, sleep
from typing import Any

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.wire.excerpt import Excerpt, characters, mark

DRAINED_WITHIN = 0.5  # s for a pipe to become empty, into which a child may still write
DRAINED_AGAIN = 0.001  # s between two looks


class OutputLimit:
    """The limit on the streams and displays of one cell, while its code runs.

    A display waits behind the text that was printed before it, so that the end of both is kept.
    """

    def __init__(self, most: int) -> None:
        """Let ``most`` characters pass, of streams and displays together."""
        self.excerpt = Excerpt(most)
        self._process, self._fork_room = os.getpid(), most  # each fork counts down its own
        self._lock = RLock()  # any thread may print, and so may a signal handler
        self._replaced: list[tuple[Any, Any, Any]] = []
        self._marked = 0  # how much had been dropped at the last line that stands for it
        self._publisher: Any = None
        self._cell = ""

    def begin(self, cell: str, publisher: Any) -> None:
        """Limit what is printed and displayed for the cell of this message, and nothing else."""
        self._cell = cell
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name, None)
            if any(stream is one for one, _, _ in self._replaced):
                continue  # a user has made both the same
            if hasattr(stream, "parent_header"):  # else it is the user's own, and is not sent
                self._limit(stream)
        if hasattr(publisher, "pub_socket"):  # else a loopback, which has no displays
            self._publisher = publisher
            publisher.register_hook(self._display)

    def _display(self, message: Any) -> Any:
        """Return the message of a display that belongs to the beginning; hold any other."""
        if os.getpid() != self._process or message["parent_header"].get("msg_id") != self._cell:
            return message
        publisher = self._publisher
        # As it is now, and an error of it is the cell's.
        frames = publisher.session.serialize(message, publisher.topic)
        with self._lock:
            begins = self.excerpt.take_whole(frames, characters(message["content"]))
        return message if begins else None

    def _limit(self, stream: Any) -> None:
        write = stream.write

        def limited(text: Any, *args: Any, **kwargs: Any) -> Any:
            if not issubclass(type(text), str) or (
                stream.parent_header.get("msg_id") != self._cell
            ):
                return write(text, *args, **kwargs)
            text = str.__str__(text)  # of a subclass, whose methods are the user's
            if os.getpid() != self._process:
                return self._write_in_fork(stream, write, text)
            with self._lock:
                head = self.excerpt.take(stream, text)
                if head:
                    write(head)
            return len(text)

        stream.write = limited
        self._replaced.append((stream, write, limited))

    def _write_in_fork(self, stream: Any, write: Any, text: str) -> Any:
        """Print a text of a forked child, whose copy of the excerpt would never be printed."""
        self._fork_room -= len(text)
        if self._fork_room >= 0 or type(getattr(stream, "_fid", None)) is not int:
            return write(text)
        # The kernel reads the descriptor, as of any child, and cuts. It reads in pieces, which may
        # damage a character at their ends, so what is within the limit does not go this way.
        rest = memoryview(text.encode("utf-8", "backslashreplace"))
        while rest:
            rest = rest[os.write(stream._original_stdstream_fd, rest) :]
        return len(text)

    def pass_on(self) -> None:
        """Send what is held: an error is about to be shown, and belongs behind it."""
        if os.getpid() != self._process:
            return
        for stream, _, _ in self._replaced:
            drain(getattr(stream, "_fid", None))
        with self._lock:
            if self.excerpt.most:  # else only what comes last is sent
                self._send(self.excerpt.pass_on())

    def finish(self) -> int:
        """Send the end, behind a line for what was dropped; return how much was dropped."""
        try:
            for stream, _, _ in self._replaced:
                drain(getattr(stream, "_fid", None))
        finally:
            for stream, write, limited in self._replaced:
                if stream.write is limited:  # else a user has replaced it
                    stream.write = write
            if self._publisher is not None:
                self._publisher.unregister_hook(self._display)
        self._send(self.excerpt.end())
        return self.excerpt.dropped

    def _send(self, ends: Any) -> None:
        streams = [stream for stream, _, _ in self._replaced]
        writes = {id(stream): write for stream, write, _ in self._replaced}
        dropped = self.excerpt.dropped - self._marked
        if dropped and streams:
            self._marked = self.excerpt.dropped
            of = next((key for key, text in ends if text is not None), streams[0])
            writes[id(of)](mark(dropped))
        for key, text in ends:
            if text is not None:
                writes[id(key)](text)
                continue
            for stream in streams:
                stream.flush()
            self._publisher.pub_socket.send_multipart(key)


def drain(pipe: Any) -> None:
    """Wait until a stream's thread has read what is in the pipe."""
    if type(pipe) is not int or not hasattr(select, "poll"):
        return
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    until = monotonic() + DRAINED_WITHIN
    while poll.poll(0) and monotonic() < until:
        sleep(DRAINED_AGAIN)
    sleep(DRAINED_AGAIN)  # for what the thread has just read
