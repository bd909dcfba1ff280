"""A closer look at one value: facts, the head of a table, a picture; runs no code of the user's.

Rule: use the standard library only, and run on Python 3.8 and later. As for ``preview``, only what
Python or a known library itself computes of its own types is looked at. All of it is text, and a
picture is pixels that were encoded here. It is small, whatever the size of the value.
"""

from __future__ import annotations

import datetime
import sys
from decimal import Decimal
from itertools import islice
from struct import pack
from types import BuiltinFunctionType, FunctionType
from typing import Any, Iterable, Sequence
from zlib import compress, crc32

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.remote.inspection import of_class
    from bridgehead._shipped.remote.library_values import arrow_type, is_defined, is_of_pandas
    from bridgehead._shipped.remote.preview import (
        NUMBERS,
        _item,
        has_parts,
        preview,
        without_attributes,
    )
    from bridgehead._shipped.wire.header import ValueDetail

HEAD_ROWS, HEAD_COLUMNS = 20, 12  # of a table that are shown
SAMPLE = 1_000_000  # items of an array that the statistics are of, at most
SIDE = 320  # pixels of a picture, at most
TEXT_HEAD = 2000  # characters of a text
# Their ``str`` is Python's own.
PLAIN_OBJECTS = (datetime.datetime, datetime.date, datetime.time, datetime.timedelta, Decimal)
CONTAINERS = (list, tuple, set, frozenset)


class Look:
    """What was found out of a value: the parts of its ``ValueDetail``, and a picture."""

    def __init__(self) -> None:
        self.facts: list[list[str]] = []
        self.columns: list[str] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self.picture = b""

    def fact(self, label: str, value: object) -> None:
        self.facts.append([label, str(value)])

    def table(self, columns: Iterable[Any], rows: Iterable[Iterable[Any]]) -> None:
        self.columns = [cell_text(column) for column in columns]
        self.rows = [[cell_text(cell) for cell in row] for row in rows]

    def detail(self) -> ValueDetail:
        return {
            "facts": self.facts,
            "columns": self.columns,
            "rows": self.rows,
            "text": self.text,
        }


def look_at(value: Any) -> Look:
    """Return what can be said of a value safely."""
    look = Look()
    try:
        _look(look, value, type(value))
    except Exception:  # a half-built object, or one that changes at this moment
        return look if look.facts else Look()
    if not (look.facts or look.columns or look.text or look.picture):
        look.text = preview(value) or ""  # a number, a class
    return look


def cell_text(value: Any) -> str:
    """Return the short text of a value in a table; of an unknown class its name."""
    kind = type(value)
    if kind is str:
        return str(value[:TEXT_HEAD])
    if kind is float:
        return "%.6g" % value
    pandas = sys.modules.get("pandas")
    known = [getattr(pandas, name, None) for name in ("Timestamp", "Timedelta", "Period")]
    if any(kind is one for one in (*PLAIN_OBJECTS, *known)):
        return str(value)
    if value is getattr(pandas, "NaT", look_at) or value is getattr(pandas, "NA", look_at):
        return "missing"
    return _item(value, 1)


def _look(look: Look, value: Any, kind: Any) -> None:
    if kind is str or kind is bytes or kind is bytearray:
        head = value[:TEXT_HEAD]
        look.text = head if kind is str else repr(bytes(head))
    elif kind is dict:
        pairs = islice(value.items(), HEAD_ROWS)
        look.table(("key", "value"), ((_item(key, 0), _item(one, 1)) for key, one in pairs))
    elif any(kind is one for one in CONTAINERS):
        head = enumerate(islice(value, HEAD_ROWS))
        look.table(("", "value"), ((str(at), _item(one, 1)) for at, one in head))
    elif kind is FunctionType or kind is BuiltinFunctionType:
        document = value.__doc__
        look.text = document[:TEXT_HEAD] if type(document) is str else ""
    else:
        looker = LIBRARIES.get(of_class(kind, "__module__").partition(".")[0])
        if looker is not None and is_defined(kind):
            looker(look, value, of_class(kind, "__name__"))


def _look_at_pandas(look: Look, value: Any, name: str) -> None:
    if name not in ("Series", "DataFrame") or not is_of_pandas(value):
        return
    head = without_attributes(value).iloc[:HEAD_ROWS]
    if name == "Series":
        columns = [(value.name, head)]
    else:
        head = head.iloc[:, :HEAD_COLUMNS]
        columns = [(label, head.iloc[:, at]) for at, label in enumerate(head.columns)]
    if name == "Series":
        look.fact("Items", value.dtype)
    rows = zip(head.index.tolist(), *(_pandas_items(column) for _, column in columns))
    look.table(("", *("" if label is None else label for label, _ in columns)), rows)


def _pandas_items(column: Any) -> Sequence[Any]:
    arrow = arrow_type(column.dtype)
    if has_parts(arrow):
        return ["<%s>" % of_class(type(arrow), "__name__")] * len(column)
    found: Sequence[Any] = column.tolist()
    return found


def _look_at_polars(look: Look, value: Any, name: str) -> None:
    if name == "Series":
        look.fact("Items", value.dtype)
        items = _polars_items(value.head(HEAD_ROWS))
        look.table(("", value.name), ((str(at), item) for at, item in enumerate(items)))
    elif name == "DataFrame":
        head = value.head(HEAD_ROWS)[:, :HEAD_COLUMNS]
        look.table(head.columns, zip(*map(_polars_items, head.get_columns())))


def _polars_items(column: Any) -> Sequence[Any]:
    """Return the items of a column; an item that has items of its own may be of any length."""
    if column.dtype.is_nested():
        return ["<%s>" % of_class(type(column.dtype), "__name__")] * len(column)
    found: Sequence[Any] = column.to_list()
    return found


def _look_at_pyarrow(look: Look, value: Any, name: str) -> None:
    if name in ("Table", "RecordBatch"):
        head = value.slice(0, HEAD_ROWS).select(range(min(value.num_columns, HEAD_COLUMNS)))
        look.table(head.schema.names, zip(*map(_arrow_items, head.columns)))


def _arrow_items(column: Any) -> Sequence[Any]:
    """Return the items of a column; an item that has items of its own may be of any length."""
    kind = getattr(column.type, "value_type", column.type)  # of a dictionary's items
    extension = getattr(sys.modules["pyarrow"], "BaseExtensionType", None)  # maybe a user's class
    if column.type.num_fields or kind.num_fields or isinstance(kind, extension or ()):
        return ["<%s>" % of_class(type(column.type), "__name__")] * len(column)
    found: Sequence[Any] = column.to_pylist()
    return found


def _look_at_torch(look: Look, value: Any, name: str) -> None:
    look.fact("Items", value.dtype)
    look.fact("Device", value.device)
    if value.device.type == "cpu":
        _look_at_numbers(look, value.detach().numpy())


def _look_at_numpy(look: Look, value: Any, name: str) -> None:
    if name == "ndarray":
        look.fact("Items", value.dtype)
        _look_at_numbers(look, value)


def _look_at_numbers(look: Look, value: Any) -> None:
    """Look at an array: statistics of its beginning, its first rows, its picture."""
    numpy, kind = sys.modules["numpy"], value.dtype.kind
    sample = value
    for axis in range(value.ndim):
        if sample.size > SAMPLE:
            most = max(1, SAMPLE * sample.shape[axis] // sample.size)
            sample = sample[(slice(None),) * axis + (slice(most),)]
    if kind in NUMBERS and sample.size:
        if sample.size < value.size:
            look.fact("Statistics", "of the first {:,} items".format(sample.size))
        if kind == "b":
            look.fact("True", "{:,} of {:,}".format(int(sample.sum()), sample.size))
        elif kind != "c":
            finite = sample if kind in "iu" else sample[numpy.isfinite(sample)]
            if finite.size:
                look.fact("Minimum", cell_text(finite.min().item()))
                look.fact("Maximum", cell_text(finite.max().item()))
                look.fact("Mean", cell_text(finite.mean(dtype=float).item()))
                look.fact("Deviation", cell_text(finite.std(dtype=float).item()))
            if finite.size < sample.size:
                look.fact("Not finite", "{:,}".format(sample.size - finite.size))
    if value.dtype.name == "uint8" and _is_picture(value.shape):
        step = -(-max(value.shape[:2]) // SIDE)
        small = value[::step, ::step]
        look.picture = png(small.shape, small.tobytes())
    elif kind in NUMBERS + "US" and value.ndim in (1, 2):
        rows = value[:HEAD_ROWS].reshape(min(len(value), HEAD_ROWS), -1)[:, :HEAD_COLUMNS]
        look.table(("", *map(str, range(rows.shape[1]))), _numbered(rows.tolist()))


def _numbered(rows: Sequence[Any]) -> Iterable[Sequence[Any]]:
    return ((str(at), *row) for at, row in enumerate(rows))


def _is_picture(shape: Sequence[int]) -> bool:
    return len(shape) in (2, 3) and min(shape[:2]) >= 8 and (len(shape) == 2 or shape[2] in (3, 4))


def _look_at_pillow(look: Look, value: Any, name: str) -> None:
    look.fact("Size", "%d × %d pixels" % value.size)
    look.fact("Mode", value.mode)
    if getattr(value, "tile", None):  # not read from its file yet, which may be large, or gone
        return
    step = max(1.0, max(value.size) / SIDE)
    small = value.resize([max(1, int(side / step)) for side in value.size], 0)  # the nearest pixels
    mode = "RGBA" if "A" in value.mode or "transparency" in value.info else "RGB"
    width, height = small.size
    look.picture = png((height, width, len(mode)), small.convert(mode).tobytes())


LIBRARIES = {
    "PIL": _look_at_pillow,
    "numpy": _look_at_numpy,
    "pandas": _look_at_pandas,
    "polars": _look_at_polars,
    "pyarrow": _look_at_pyarrow,
    "torch": _look_at_torch,
}


def png(shape: Sequence[int], pixels: bytes) -> bytes:
    """Return a PNG of pixels: grey, RGB or RGBA, eight bits each."""
    height, width, channels = (*shape, 1)[:3]
    colour = {1: 0, 3: 2, 4: 6}[channels]
    stride = width * channels
    lines = (b"\0" + pixels[at * stride : (at + 1) * stride] for at in range(height))

    def part(name: bytes, content: bytes) -> bytes:
        return pack(">I", len(content)) + name + content + pack(">I", crc32(name + content))

    start = pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    parts = part(b"IHDR", start), part(b"IDAT", compress(b"".join(lines))), part(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)
