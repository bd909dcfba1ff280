"""The values that operations return.

Rule: plain values without I/O. Each has a repr that fits on a line, and most have a table for a
notebook. Both are static: they show what is known, and ask no kernel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from bridgehead._protocol.display import show_outputs
from bridgehead._protocol.formatting import columns, facts, heading, line, short_list, size

MAX_ROWS = 100  # of a table in a notebook


@dataclass(frozen=True, slots=True, repr=False)
class Transfer:
    """The result of a push or a handoff.

    Attributes:
        names: the names bound in the kernel.
        bytes: bytes of pickle and buffers, before any base64.
        seconds: from the call to the kernel's acknowledgement.
        lane: how the bytes travelled: ``"direct"``, ``"buffers"`` or ``"inline"``. If the two
            lanes of a handoff differ, both, as ``"buffers, direct"``.

    >>> await bridge.push(x=1)
    <Transfer x: 21 bytes by buffers in ... s>
    """

    names: tuple[str, ...]
    bytes: int
    seconds: float
    lane: str

    def __repr__(self) -> str:
        names = short_list(self.names, 40)
        return f"<Transfer {names}: {self.bytes:,} bytes by {self.lane} in {self.seconds:.3g} s>"

    def _repr_html_(self) -> str:
        rate = f" ({size(round(self.bytes / self.seconds))}/s)" if self.seconds > 0 else ""
        return heading("Transfer", short_list(self.names)) + facts(
            [
                ("Size", size(self.bytes)),
                ("Time", f"{self.seconds:.3g} s{rate}"),
                ("Lane", self.lane),
            ]
        )


@dataclass(frozen=True, slots=True, repr=False)
class Name:
    """One name in the kernel, described without computing a repr in the kernel.

    Attributes:
        name: the name in the kernel.
        type: ``"int"``, ``"pandas.DataFrame"``, ``"Model"`` for a class of ``__main__``.
        shape: of an array, a table or a tensor, else None.
        len: of a sized container without a shape, else None.
        bytes: of an array or a table, the size of its data; of a plain object, its own size
            without what it refers to; None for a user's class, because its methods are not run.
        preview: a short text of the value, if ``names(preview=True)`` asked for it: the beginning
            of a text, a container, an array or a table. None where the text would need code of a
            user's class.

    >>> Name("df", "pandas.DataFrame", shape=(344, 7), bytes=19264)
    <df: pandas.DataFrame (344, 7), 19,264 bytes>
    """

    name: str
    type: str
    shape: tuple[int, ...] | None = None
    len: int | None = None
    bytes: int | None = None
    preview: str | None = None

    def __repr__(self) -> str:
        extent = f" {line(self.shape, 20)}" if self.shape is not None else ""
        extent = f" of {self.len:,}" if self.len is not None else extent
        text = f"{line(self.name, 25)}: {line(self.type, 30)}{extent}"
        nbytes = f", {self.bytes:,} bytes" if self.bytes else ""
        return f"<{text}{nbytes}{f' = {line(self.preview)}' if self.preview else ''}>"

    def _repr_html_(self) -> str:
        return _table([self])

    @property
    def extent(self) -> str:
        """The extent as text: the shape of an array, or the length; else empty.

        >>> Name("df", "pandas.DataFrame", shape=(4000, 7)).extent
        '4,000 × 7'
        """
        if self.shape is not None:
            return " × ".join(f"{side:,}" for side in self.shape) or "scalar"
        return "" if self.len is None else f"{self.len:,}"


def _table(names: Sequence[Name]) -> str:
    """Return the HTML table of names; it has previews where there is one."""
    shows = any(name.preview is not None for name in names)
    heads = ("Name", "Type", "Shape", "Size", *(("Value",) if shows else ()))

    def row(name: Name) -> tuple[str | None, ...]:
        nbytes = None if name.bytes is None else size(name.bytes)
        return name.name, name.type, name.extent, nbytes, *((name.preview,) if shows else ())

    return columns(heads, map(row, names))


class Names(list[Name]):
    """The names in a kernel: a list of ``Name``, shown as a table in a notebook.

    >>> await bridge.push(rows=[1, 2], x=1)
    <Transfer rows, x: ...>
    >>> await bridge.names()
    <Names rows, x>
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return (
            f"<Names {short_list([name.name for name in self], 70)}>" if self else "<Names, none>"
        )

    def _repr_html_(self) -> str:
        count = f"{len(self):,}" if self else "none"
        table = _table(self[:MAX_ROWS]) if self else ""
        more = heading("", f"and {len(self) - MAX_ROWS:,} more") if len(self) > MAX_ROWS else ""
        return heading("Names", count) + table + more


@dataclass(frozen=True, slots=True)
class Detail:
    """A closer look at one value in the kernel, for the panel; all of it is text of one line.

    Attributes:
        facts: pairs of a label and what there is to say.
        columns, rows: the head of a table.
        text: the beginning of a text; it may have several lines.
        picture: a PNG, or empty.
    """

    facts: tuple[tuple[str, str], ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text: str
    picture: bytes


@dataclass(frozen=True, slots=True, repr=False)
class Result:
    r"""The result of a cell; in a notebook it shows the outputs as the cell would have.

    Attributes:
        stdout: everything it printed.
        stderr: everything it wrote to standard error.
        outputs: its outputs in order, each as in a notebook file: ``output_type`` is
            ``"stream"``, ``"display_data"``, ``"execute_result"`` or ``"error"``.
        data: the value of the last expression, by MIME type; empty if there is none.
        execution_count: the cell's number, as in ``In [n]``.
        trust: the trust of the bridge, ``"pickle"`` or ``"data"``. With ``"data"``, the kernel may
            have sent anything as text, HTML or JavaScript: the tools of this package show and save
            only text without control characters, and images.
        dropped: characters that were dropped in the middle of the outputs, because they had more
            than ``max_output``; a line in the outputs stands for them.
        values: of ``pull=``, by expression.

    >>> await bridge.run("print('at work')\n6 * 7")
    <Result [1] 42, 8 characters printed>
    """

    stdout: str = ""
    stderr: str = ""
    outputs: tuple[Mapping[str, Any], ...] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
    execution_count: int | None = None
    trust: str = "data"
    dropped: int = 0
    values: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        value = line(self.data.get("text/plain", ""), 41)
        printed = f", {len(self.stdout)} characters printed" if self.stdout else ""
        dropped = f", {self.dropped:,} dropped" if self.dropped else ""
        return f"<Result [{self.execution_count}] {value or 'no value'}{printed}{dropped}>"

    def _ipython_display_(self) -> None:
        """Show the outputs in IPython or a notebook, as the cell would have shown them."""
        show_outputs(self.outputs, self.trust, otherwise=repr(self))


@dataclass(frozen=True, slots=True, repr=False)
class Info:
    """Facts about the kernel and the connection, from the handshake.

    Attributes:
        kernel: the implementation's name and version, e.g. ``"ipython 9.8.0"``.
        python: the kernel's version, e.g. ``(3, 11, 7)``.
        executable: the kernel's interpreter.
        versions: installed versions of cloudpickle, ipykernel, numpy, pandas.
        pid: the kernel's process.
        cwd: its working directory when the bridge was opened.
        epoch: a nonce made when the remote part was installed; a restarted kernel has another.
        transport: how messages travel: ``"ipc"``, ``"tcp"``, ``"websocket"``, ``"ipyparallel"``
            or ``"loopback"``.
        lane: how frames travel: ``"direct"``, ``"buffers"`` or ``"inline"``.
        trust: what this program opens of what the kernel sends: ``"pickle"`` or ``"data"``.
        connection_file: for ``Bridge.attach`` and ``jupyter console --existing``.
        url, kernel_id: of a kernel behind a server, for ``Bridge.connect``.
        why_not: for each better lane that cannot be used, the reason.
        features: the kernel's optional features, e.g. ``"kernel subshells"``.
        why_trust: the reason for ``trust``.

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
    why_not: Mapping[str, str] = field(default_factory=dict)
    features: tuple[str, ...] = ()
    why_trust: str = ""

    def __str__(self) -> str:
        python = ".".join(map(str, self.python))
        return (
            f"{line(self.kernel, 30)}, Python {line(python, 10)}, pid {self.pid}: "
            f"{_route(self)}{', data only' if self.trust == 'data' else ''}"
        )

    def __repr__(self) -> str:
        return f"<Info {self}>"

    def _repr_html_(self) -> str:
        values = ((item.name, getattr(self, item.name)) for item in fields(self))
        return heading("Info") + facts((name, _text(value)) for name, value in values)


@dataclass(frozen=True, slots=True)
class Stats:
    """What is counted of a bridge, at one moment.

    Attributes:
        watches: those of ``watch`` and ``watch_names`` that the kernel has for this bridge.
        tasks: async functions and expressions that the kernel runs for this bridge.
        iterations: iterators that the kernel keeps for this bridge.
        refs: objects that the kernel keeps for this bridge under no name.
        callbacks: those that were sent to the kernel and are not closed.
        operations: requests and cells that were begun since the bridge was opened; one call may
            need several.
        sent, received: bytes of the objects that crossed to the kernel, and from it.
        retries: requests that were sent again, because they had not run or their connection broke.
        late: responses that came when no caller waited for them any more.

    >>> bridge.stats
    <Stats watches=0, tasks=0, iterations=0, refs=0, callbacks=0, operations=..., sent=..., ...>
    """

    watches: int
    tasks: int
    iterations: int
    refs: int
    callbacks: int
    operations: int
    sent: int
    received: int
    retries: int
    late: int

    def __repr__(self) -> str:
        values = (f"{item.name}={getattr(self, item.name):,}" for item in fields(self))
        return f"<Stats {', '.join(values)}>"


def bridge_html(kind: str, state: str, info: Info) -> str:
    """Return the HTML with which a notebook shows a bridge."""
    file = info.connection_file
    return heading(kind, state) + facts(
        [
            ("Kernel", f"{info.kernel}, Python {_text(info.python)}"),
            ("Lane", _route(info)),
            ("Trust", f"{'data only' if info.trust == 'data' else info.trust}: {info.why_trust}"),
            ("Connection", info.url or (file and file.replace("\\", "/").rpartition("/")[2])),
        ]
    )


def fleet_html(bridges: Sequence[tuple[str, Info]]) -> str:
    """Return the HTML with which a notebook shows a fleet: state and info of each bridge."""
    heads = ("", "State", "Kernel", "Python", "Process", "Lane")
    return heading("Fleet", f"of {len(bridges)}") + columns(
        heads,
        [
            (number, state, info.kernel, _text(info.python), info.pid, _route(info))
            for number, (state, info) in enumerate(bridges)
        ],
    )


def _route(info: Info) -> str:
    return f"{info.lane} over {info.transport}"


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    if isinstance(value, tuple):
        return ".".join(map(str, value))
    return "" if value is None else str(value)
