"""What operations give back.

Rule: plain immutable values without IO; a repr that fits a line.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass(frozen=True, slots=True)
class Transfer:
    """What crossed in one push, or one handoff.

    Attributes:
        names: the names bound in the kernel.
        bytes: bytes of pickle and buffers, before any base64.
        seconds: from the call to the kernel's acknowledgement.
        lane: which one took it: ``"direct"``, ``"buffers"`` or ``"inline"``; of a handoff both,
            as ``"buffers, direct"``, where they differ.
    """

    names: tuple[str, ...]
    bytes: int
    seconds: float
    lane: str

    def __repr__(self) -> str:
        names = ", ".join(self.names)
        return f"<Transfer {names}: {self.bytes:,} bytes by {self.lane} in {self.seconds:.3g} s>"


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
    """

    name: str
    type: str
    shape: tuple[int, ...] | None = None
    len: int | None = None
    bytes: int | None = None

    def __repr__(self) -> str:
        size = f" {self.shape}" if self.shape is not None else ""
        size = f" of {self.len:,}" if self.len is not None else size
        return f"<{self.name}: {self.type}{size}{f', {self.bytes:,} bytes' if self.bytes else ''}>"


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
    """

    stdout: str = ""
    stderr: str = ""
    outputs: tuple[Mapping[str, Any], ...] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
    execution_count: int | None = None

    def __repr__(self) -> str:
        value = " ".join(str(self.data.get("text/plain", "")).split())
        value = value if len(value) <= 40 else value[:40] + "…"
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
        why_not: of each lane that is better than this one and leads nowhere, the reason.
        features: what the kernel says it can beyond the protocol, e.g. ``"kernel subshells"``.
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
    why_not: Mapping[str, str] = field(default_factory=dict)
    features: tuple[str, ...] = ()

    def __repr__(self) -> str:
        python = ".".join(map(str, self.python))
        return (
            f"<Info {self.kernel}, Python {python}, pid {self.pid}: "
            f"{self.lane} over {self.transport}{', data only' if self.trust == 'data' else ''}>"
        )

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left'>{html.escape(item.name)}</th>"
            f"<td style='text-align:left'>{html.escape(_shown(getattr(self, item.name)))}</td></tr>"
            for item in fields(self)
        )
        return f"<table>{rows}</table>"


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    if isinstance(value, tuple):
        return ".".join(map(str, value))
    return "" if value is None else str(value)
