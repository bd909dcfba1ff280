"""The beginning and the end of what comes in pieces, and how much was dropped between them.

Rule: use the standard library only, run on Python 3.8 and later, the same file at both ends. An
excerpt counts characters. It knows no stream, no message and no thread. What belongs to the
beginning is passed on at once; the end is known only when all has come. It holds at most twice the
characters that it keeps.
"""

from __future__ import annotations

from typing import Any, Mapping

PIECES = 1000  # of one text, before they are joined: each takes memory of its own


class Excerpt:
    """The beginning and the end of a series of pieces, each with a key.

    Attributes:
        dropped: how many characters were dropped so far.
    """

    def __init__(self, limit: int) -> None:
        """Keep ``limit`` characters: half at the beginning, half at the end.

        What the beginning has left when a whole piece does not fit into it is the end's, too.
        """
        self.room = limit - limit // 2  # that the beginning has left
        self.most = limit // 2  # characters of the end
        self.dropped = 0
        self._end: list[list[Any]] = []  # key, pieces of text or None, characters
        self._held = 0

    def take(self, key: Any, text: str) -> str:
        """Return the part of a text that belongs to the beginning; hold the rest."""
        head = text[: self.room]
        rest = text[len(head) :]
        self.room -= len(head)
        if rest:
            self.room = 0
            if len(rest) > self.most:  # a text may be as long as all memory
                self.dropped += len(rest) - self.most
                rest = rest[len(rest) - self.most :]
            if self._end and self._end[-1][0] is key and self._end[-1][1] is not None:
                last = self._end[-1]
                last[1].append(rest)
                last[2] += len(rest)
                if len(last[1]) > PIECES:
                    last[1] = ["".join(last[1])]
            else:
                self._end.append([key, [rest], len(rest)])
            self._held += len(rest)
            self._trim(2 * self.most)
        return head

    def take_whole(self, key: Any, size: int) -> bool:
        """Return whether a piece that cannot be cut belongs to the beginning; else hold its key.

        A piece of size 0 takes no room, and is never dropped.
        """
        if size <= self.room and not self._end:
            self.room -= size
            return True
        self.most += self.room  # else a piece of more than half of the limit would never fit
        self.room = 0
        if size > self.most:  # it would push out what is held, and be dropped all the same
            self.dropped += size
            return False
        self._end.append([key, None, size])
        self._held += size
        self._trim(2 * self.most)
        return False

    def end(self) -> list[tuple[Any, str | None]]:
        """Return what was held of the end: each key with its text, or None for a whole piece."""
        self._trim(self.most)
        held, self._end, self._held = self._end, [], 0
        return [(key, None if parts is None else "".join(parts)) for key, parts, _ in held]

    def pass_on(self) -> list[tuple[Any, str | None]]:
        """Return what is held as the end so far; what follows has the room that is left."""
        self._trim(self.most)
        size, held = self._held, self.end()
        self.most -= size
        return held

    def _trim(self, above: int) -> None:
        """Drop the oldest of what is held, if that is more than ``above`` characters."""
        if self._held <= above:
            return
        at = 0
        kept: list[list[Any]] = []
        while self._held > self.most:
            key, parts, size = self._end[at]
            over = self._held - self.most
            if parts is None or size <= over:
                at += 1
                over = size
                if not size:
                    kept.append([key, parts, size])
            else:
                self._end[at] = [key, ["".join(parts)[over:]], size - over]
            self._held -= over
            self.dropped += over
        self._end[:at] = kept


def characters(content: Any) -> int:
    """Return how many characters the values of an output have; each part counts as one, too."""
    count, parts = 0, [content]
    for part in parts:  # grows meanwhile
        count += 1
        if isinstance(part, str):
            count += len(part)
        elif isinstance(part, Mapping):
            parts += part.values()
        elif isinstance(part, list):
            parts += part
    return count


def mark(dropped: int) -> str:
    """Return the line that stands for what was dropped."""
    return "\n[%s characters dropped]\n" % format(dropped, ",")
