"""What operations give back.

Rule: plain values without IO; a repr that fits a line, and one for where HTML is shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from bridgehead._html import fit, grid, sheet, size

NAMED = 40  # characters that names, a type or a value take in one line


@dataclass(frozen=True, slots=True)
class Transfer:
    """What crossed in one push, or one handoff.

    Attributes:
        names: the names bound in the kernel.
        bytes: bytes of pickle and buffers, before any base64.
        seconds: from the call to the kernel's acknowledgement.
        lane: which one took it: ``"direct"``, ``"buffers"`` or ``"inline"``; of a handoff both,
            as ``"buffers, direct"``, where they differ.

    >>> await bridge.push(x=1)
    <Transfer x: 21 bytes by buffers in ... s>
    """

    names: tuple[str, ...]
    bytes: int
    seconds: float
    lane: str

    def __repr__(self) -> str:
        names = fit(", ".join(self.names), NAMED)
        return f"<Transfer {names}: {self.bytes:,} bytes by {self.lane} in {self.seconds:.3g} s>"

    def _repr_html_(self) -> str:
        told = [
            ("names", ", ".join(self.names)),
            ("size", size(self.bytes)),
            ("time", f"{self.seconds:.3g} s"),
            ("lane", self.lane),
        ]
        return sheet("Transfer", told)


@dataclass(frozen=True, slots=True)
class Name:
    """One name in the kernel, told without computing a repr there.

    Attributes:
        name: as the kernel knows it.
        type: ``"int"``, ``"pandas.DataFrame"``, ``"Model"`` for a class of ``__main__``.
        shape: of an array, a table or a tensor, else None.
        len: of a sized container without a shape, else None.
        bytes: of an array's or a table's data; of a plain object itself, without what it
            refers to; None for a user's class, whose methods are not run to find out.

    >>> Name("df", "pandas.DataFrame", shape=(344, 7), bytes=19264)
    <df: pandas.DataFrame (344, 7), 19,264 bytes>
    """

    name: str
    type: str
    shape: tuple[int, ...] | None = None
    len: int | None = None
    bytes: int | None = None

    def __repr__(self) -> str:
        many = f" {self.shape}" if self.shape is not None else ""
        many = f" of {self.len:,}" if self.len is not None else many
        bytes_ = f", {self.bytes:,} bytes" if self.bytes else ""
        return f"<{fit(self.name, NAMED)}: {fit(self.type, NAMED)}{many}{bytes_}>"

    @property
    def extent(self) -> str:
        """How much it is: of an array its shape, ``"344 × 7"``, else its length.

        >>> Name("df", "pandas.DataFrame", shape=(344, 7)).extent
        '344 × 7'
        """
        if self.shape is not None:
            return " × ".join(map(str, self.shape)) or "()"
        return "" if self.len is None else f"{self.len:,}"


class Names(list[Name]):
    """The names of a kernel, in order: a list, which is shown as a table.

    >>> await bridge.push(rows=[1, 2], x=1)
    <Transfer rows, x: ...>
    >>> await bridge.names()
    <Names rows, x>
    >>> print(await bridge.names())
    rows  list  2  120 bytes
    x     int      28 bytes
    """

    def __repr__(self) -> str:
        return f"<Names {fit(', '.join(told.name for told in self), NAMED) or '(none)'}>"

    def __str__(self) -> str:
        widths = [max(map(len, column)) for column in zip(*self._rows(), strict=True)]
        return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in self._rows())

    def _repr_html_(self) -> str:
        columns = ("name", "type", "shape or length", "size")
        return grid(f"{len(self):,} names", columns, self._rows())

    def _rows(self) -> list[tuple[str, str, str, str]]:
        return [
            (told.name, told.type, told.extent, "" if told.bytes is None else size(told.bytes))
            for told in self
        ]


@dataclass(frozen=True, slots=True)
class Result:
    """What a cell gave.

    Attributes:
        stdout: everything it printed.
        stderr: everything it wrote to standard error.
        outputs: its outputs in order, each as in a notebook file: ``output_type`` is
            ``"stream"``, ``"display_data"``, ``"execute_result"`` or ``"error"``.
        data: the last expression's value by MIME type; empty if there was none.
        execution_count: the cell's number, as in ``In [n]``.

    >>> await bridge.run("print('at work')\\n6 * 7")
    <Result [1] 42, 8 characters printed>
    """

    stdout: str = ""
    stderr: str = ""
    outputs: tuple[Mapping[str, Any], ...] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
    execution_count: int | None = None

    def __repr__(self) -> str:
        value = fit(str(self.data.get("text/plain", "")), NAMED)
        printed = f", {len(self.stdout)} characters printed" if self.stdout else ""
        return f"<Result [{self.execution_count}] {value or 'no value'}{printed}>"


@dataclass(frozen=True, slots=True)
class Info:
    """What the handshake learnt about the kernel and the way to it.

    Attributes:
        kernel: the implementation's name and version, e.g. ``"ipython 9.8.0"``.
        python: the kernel's version, e.g. ``(3, 11, 7)``.
        executable: the kernel's interpreter.
        versions: installed versions of cloudpickle, ipykernel, numpy, pandas.
        pid: the kernel's process.
        cwd: its working directory when the bridge was opened.
        epoch: a nonce made when the loader was installed; a restarted kernel has another.
        transport: how messages travel: ``"ipc"``, ``"tcp"``, ``"websocket"``, ``"ipyparallel"``
            or ``"loopback"``.
        lane: how frames travel: ``"direct"``, ``"buffers"`` or ``"inline"``.
        trust: what is opened of what the kernel sends: ``"pickle"`` or ``"data"``.
        connection_file: for ``Bridge.attach`` and ``jupyter console --existing``.
        url, kernel_id: of a kernel behind a server, for ``Bridge.connect``.

    >>> bridge.info
    <Info loopback, Python ..., pid ...: buffers over loopback>
    """

    kernel: str
    python: tuple[int, ...]
    executable: str
    versions: Mapping[str, str]
    pid: int
    cwd: str
    epoch: str
    transport: str
    lane: str
    trust: str
    connection_file: str | None
    url: str | None = None
    kernel_id: str | None = None

    def __repr__(self) -> str:
        python = ".".join(map(str, self.python))
        return (
            f"<Info {self.kernel}, Python {python}, pid {self.pid}: "
            f"{self.lane} over {self.transport}{', data only' if self.trust == 'data' else ''}>"
        )

    def _repr_html_(self) -> str:
        return self._sheet("Info")

    def _sheet(self, title: str) -> str:
        told = [(item.name, _shown(getattr(self, item.name))) for item in fields(self)]
        return sheet(title, told)


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    if isinstance(value, tuple):
        return ".".join(map(str, value))
    return "" if value is None else str(value)
