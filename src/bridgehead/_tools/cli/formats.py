"""Files that hold an object: csv, parquet, arrow, npy, npz, json, pickle.

Rule: bytes become an object, and back. This file knows no kernel and no terminal. It refuses an
object that a format can't hold, and never converts it to make it fit; it refuses a file of which an
object would hold less. It does not open pickles: that runs code, so only the kernel that receives a
pickle opens it.
"""

from __future__ import annotations

import contextlib
import csv
import datetime
import functools
import io
import itertools
import json
import math
import os
import pickletools
import uuid
import zipfile
from collections.abc import Callable, Iterable
from decimal import Decimal
from numbers import Number
from pathlib import Path
from typing import Any

from bridgehead._tools.cli import arrow_table, csv_table

SUFFIXES = {
    ".csv": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".npy": "npy",
    ".npz": "npz",
    ".json": "json",
    ".pickle": "pickle",
    ".pkl": "pickle",
}
FORMATS = tuple(dict.fromkeys(SUFFIXES.values()))
# Python writes integers below this size (bits) in any case. Its limit on digits is 4,300 by
# default, and can be set to 640.
SAFE_BITS = 2_000
UTF8 = "utf-8"
MOST_CODES = 1_000_000  # of a pickle that are looked at, for a second object behind the first
PIP = {"pandas": "all", "numpy": "all", "pyarrow": "pyarrow"}  # what to install for a module


class Unusable(ValueError):
    """The file is not of its format, or the format can't hold the object."""


def format_of(name: str) -> str | None:
    """Return the format for the suffix of a file's name; None for an unknown suffix."""
    return SUFFIXES.get(Path(name).suffix.lower())


def loaded(data: bytes, kind: str, name: str, encoding: str = UTF8, sep: str = ",") -> Any:
    """Return the object in a file's bytes; a pickle stays closed until it is in the kernel.

    ``encoding`` is that of csv and json, ``sep`` the separator of csv.

    Raises:
        Unusable: the bytes are not of this format, or the object would hold less than they do.
        ModuleNotFoundError: the module for this format is not installed.
    """
    try:
        if kind == "csv":
            return csv_table.read(data, encoding, sep)
        if kind == "json" and encoding != UTF8:
            data = data.decode(encoding).encode()
        return _LOAD[kind](data)
    except ImportError:
        raise
    except Exception as error:  # the libraries raise many at a damaged file
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise Unusable(f"{name} can't be read as {kind}: {reason}") from error


def dumped(value: Any, kind: str, encoding: str = UTF8, sep: str = ",") -> bytes:
    """Return the bytes of a file with this object; a pickle arrives from the kernel as bytes.

    ``encoding`` is that of csv and json, ``sep`` the separator of csv.

    Raises:
        Unusable: the format can't hold the object; the message names formats that can.
        ModuleNotFoundError: the module for this format is not installed.
    """
    try:
        if kind == "csv":
            return _csv_text(value, sep).encode(encoding)
        data = _DUMP[kind](value)
        return data.decode().encode(encoding) if kind == "json" and encoding != UTF8 else data
    except LookupError:
        raise Unusable(f"there is no encoding {encoding!r}") from None
    except RecursionError:
        raise Unusable(
            f"{kind} can't hold a value that contains itself or is nested too deep; use pickle"
        ) from None
    except UnicodeEncodeError as error:
        if encoding != UTF8:
            sign = error.object[error.start : error.end]
            raise Unusable(f"{encoding} can't hold {sign!r}; use --encoding utf-8") from None
        raise Unusable(
            f"{kind} can't hold a lone surrogate (half a character); use pickle"
        ) from None
    except Unusable:
        raise
    except ValueError as error:  # a number of thousands of digits
        reason = str(error).partition(";")[0]
        raise Unusable(f"{kind} can't hold this value ({reason}); use pickle") from error


def _read_npy(data: bytes) -> Any:
    import numpy as np

    file = io.BytesIO(data)
    array = np.load(file, allow_pickle=False)
    if not isinstance(array, np.ndarray):
        raise ValueError("it is an npz archive; name the file .npz")  # noqa: TRY004 - of a file
    if file.tell() < len(data):
        raise ValueError("more follows the first array, and would be lost")
    return array


def _read_npz(data: bytes) -> dict[str, Any]:
    """Return the arrays of an archive by their names, each checked as a file of its own."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.namelist()
            twice = _duplicate(members)
            if twice is not None:
                raise ValueError(f"two arrays have the name {twice!r}, and one would be lost")
            other = next((name for name in members if not name.endswith(".npy")), None)
            if other is not None:
                raise ValueError(f"{other!r} in it is no array, and would be lost")
            return {name[:-4]: _read_npy(archive.read(name)) for name in members}
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"it is no archive that can be read: {error}") from error


def _read_json(data: bytes) -> Any:
    return json.loads(data, object_pairs_hook=_unique, parse_float=_exact)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = _duplicate(key for key, _ in pairs)
        raise ValueError(f"the key {twice!r} appears twice, and the first value would be lost")
    return found


def _exact(text: str) -> float:
    number = float(text)
    if not math.isfinite(number) or Decimal(text) != Decimal(repr(number)):
        raise ValueError(f"the number {text} has more digits than a float keeps; write it as text")
    return number


def _read_pickle(data: bytes) -> Any:
    from bridgehead._protocol.payload import RawPickle

    end = len(data)
    with contextlib.suppress(ValueError):  # no pickle: the kernel reports it
        for code, _, at in itertools.islice(pickletools.genops(data), MOST_CODES):
            if code.name == "STOP" and at is not None:
                end = at + 1
    if end < len(data):
        raise ValueError("more follows the first object, and would be lost")
    return RawPickle(data)


def _csv_text(value: Any, sep: str) -> str:
    table = _table(value, "csv")
    write = functools.partial(
        table.to_csv, index=not _is_numbered(table.index), sep=sep, lineterminator="\n"
    )
    try:
        _check_csv(table)
        text: str = write()
        if "\r" in text:  # Python 3.11 quotes no cell for it, and readers take it for a line's end
            text = write(quoting=csv.QUOTE_NONNUMERIC)
    except (ValueError, RecursionError):
        raise
    except Exception as error:  # whatever the class of a cell raises
        raise Unusable(f"csv can't hold this table ({text_of(error)}); use pickle") from error
    return text


def _check_csv(table: Any) -> None:
    """Refuse a table that would have other columns, or reprs instead of values, when read."""
    if table.columns.nlevels > 1:
        raise Unusable("csv holds one name for each column, not several; use pickle")
    twice = _duplicate(_names_of(table))
    if twice is not None:
        raise Unusable(f"csv can't hold two columns of one name: {twice!r} appears twice")
    index = table.index.levels if table.index.nlevels > 1 else [table.index]
    for part in [*(column for _, column in table.items()), *index]:
        for cell in _unsure(part):
            if not isinstance(cell, _scalars()):
                where = "the index" if part.name is None else repr(part.name)
                raise Unusable(
                    f"csv holds numbers and texts, but {where} has {described(cell)}; use pickle"
                )


def _unsure(part: Any) -> Any:
    """Return the different cells of a column or an index; none if its dtype has only scalars."""
    import pandas

    dtype = part.dtype
    if isinstance(dtype, pandas.CategoricalDtype):
        return _unsure(dtype.categories)
    return () if dtype.kind in "biufcmM" or isinstance(dtype, pandas.StringDtype) else part


@functools.cache
def _scalars() -> tuple[type, ...]:
    """Return the types of which a cell of csv has the value, and not a repr."""
    import numpy as np
    import pandas

    dates = (datetime.date, datetime.time, datetime.timedelta, np.datetime64)
    of_pandas = (pandas.Period, pandas.Interval, type(pandas.NA), type(None))
    return (str, Number, np.bool_, uuid.UUID, os.PathLike, *dates, *of_pandas)


def _names_of(table: Any) -> list[Any]:
    """Return the names of the columns, and of the index unless it only numbers the rows."""
    index = [] if _is_numbered(table.index) else list(table.index.names)
    return [name for name in index if name is not None] + list(table.columns)


def _duplicate(names: Iterable[Any]) -> str | None:
    """Return the first name whose text equals that of an earlier one; None if there is none."""
    seen: set[str] = set()
    for name in map(text_of, names):
        if name in seen:
            return name
        seen.add(name)
    return None


def _write_parquet(value: Any) -> bytes:
    return _by_arrow(value, "parquet", arrow_table.write_parquet)


def _write_arrow(value: Any) -> bytes:
    return _by_arrow(value, "arrow", arrow_table.write_ipc)


def _by_arrow(value: Any, kind: str, write: Callable[[Any], bytes]) -> bytes:
    table = _table(value, kind)
    try:
        return write(table)
    except (ImportError, RecursionError):
        raise
    except Exception as error:  # of Arrow, or whatever the class of a cell raises
        reason = text_of(error).partition("\n")[0]
        raise Unusable(f"{kind} can't hold this table ({reason}); use pickle") from error


def _write_npy(value: Any, kind: str = "npy") -> bytes:
    import numpy as np

    # Of other classes it would hold less, such as of a masked array.
    if type(value) not in (np.ndarray, np.memmap) and not isinstance(value, np.generic):
        raise Unusable(f"{kind} holds arrays, not {described(value)}; {_alternatives(value)}")
    if value.dtype.hasobject:
        raise Unusable(f"{kind} holds an array of objects only as a pickle; use pickle")
    file = io.BytesIO()
    np.save(file, value, allow_pickle=False)
    return file.getvalue()


def _write_npz(value: Any) -> bytes:
    if type(value) is not dict:
        raise Unusable(
            f"npz holds a dict of arrays, not {described(value)}; {_alternatives(value)}"
        )
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:  # savez takes no array of the name "file"
        for name, array in value.items():
            if type(name) is not str or "\0" in name:
                raise Unusable(f"npz holds only names as keys, not {name!r}; use pickle")
            archive.writestr(f"{name}.npy", _write_npy(array, f"npz, at {name!r},"))
    return file.getvalue()


def _write_json(value: Any) -> bytes:
    _check_json(value, "")
    text = json.dumps(value, ensure_ascii=False, indent=1)
    with contextlib.suppress(UnicodeEncodeError):  # a lone surrogate, which JSON escapes
        return f"{text}\n".encode()
    return f"{json.dumps(value, indent=1)}\n".encode()


def _write_pickle(value: Any) -> bytes:
    if not isinstance(value, bytes):
        raise TypeError("pickles are made in the kernel")
    return value


_LOAD: dict[str, Callable[[bytes], Any]] = {
    "parquet": arrow_table.read_parquet,
    "arrow": arrow_table.read_ipc,
    "npy": _read_npy,
    "npz": _read_npz,
    "json": _read_json,
    "pickle": _read_pickle,
}
_DUMP: dict[str, Callable[[Any], bytes]] = {
    "parquet": _write_parquet,
    "arrow": _write_arrow,
    "npy": _write_npy,
    "npz": _write_npz,
    "json": _write_json,
    "pickle": _write_pickle,
}


def _table(value: Any, kind: str) -> Any:
    import pandas

    if isinstance(value, pandas.Series):
        return value.to_frame()
    if not isinstance(value, pandas.DataFrame):
        raise Unusable(f"{kind} holds tables, not {described(value)}; {_alternatives(value)}")
    return value


def _is_numbered(index: Any) -> bool:
    """Return whether an index only numbers the rows."""
    import pandas

    if list(index.names) != [None]:
        return False
    return bool(index.equals(pandas.RangeIndex(len(index))))


def _check_json(value: Any, where: str) -> None:
    """Refuse values that JSON can't hold, such as NaN; a tuple may become a list."""
    if value is None or type(value) in (bool, int, str):
        return
    place = f" at {where}" if where else ""
    if type(value) is float:
        if not math.isfinite(value):
            raise Unusable(f"json can't hold {value}{place}; use pickle")
        return
    if type(value) in (list, tuple):
        for at, item in enumerate(value):
            _check_json(item, f"{where}[{at}]")
        return
    if type(value) is dict:
        for key, item in value.items():
            if type(key) is not str:
                raise Unusable(f"json holds only strings as keys, not {key!r}{place}; use pickle")
            _check_json(item, f"{where}[{key!r}]")
        return
    raise Unusable(f"json can't hold {described(value)}{place}; {_alternatives(value)}")


def described(value: Any) -> str:
    """Return an object's type with its article, e.g. ``"a pandas.DataFrame"``."""
    kind = type(value)
    name = kind.__name__
    if kind.__module__ not in ("builtins", "__main__"):
        name = f"{kind.__module__.partition('.')[0]}.{name}"
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def repr_of(value: Any) -> str:
    """Return the repr of a value, or its type where the repr fails."""
    try:
        return repr(value)
    except Exception:  # noqa: BLE001 - a class's own repr may raise anything
        return f"<{described(value)}>"


def text_of(value: Any) -> str:
    """Return the text of a value, or its type where ``str`` fails."""
    try:
        return str(value)
    except Exception:  # noqa: BLE001 - a class's own code may raise anything
        return f"<{described(value)}>"


def _alternatives(value: Any) -> str:
    name = type(value).__name__
    if name in ("DataFrame", "Series"):
        return "use csv, parquet, arrow or pickle"
    if name == "ndarray":
        return "use npy or pickle"
    return "use pickle"


def jsonable(value: Any) -> Any:
    """Return the nearest JSON value, for scripts: a table's rows, an array's numbers, a repr.

    A value that is nested too deep becomes its repr, which can show a value that contains itself.
    A value that JSON would shorten, such as a table with two columns of one name, becomes its
    text.
    """
    try:
        return _jsonable(value)
    except RecursionError:
        return repr_of(value)


def _jsonable(value: Any) -> Any:
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        number = int(value)
        return number if number.bit_length() < SAFE_BITS or _has_digits(number) else repr_of(number)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, dict):
        if _duplicate(value) is not None:
            return repr_of(value)
        return {text_of(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_jsonable(item) for item in value]
    try:
        nearest = _nearest(value)
    except RecursionError:
        raise
    except Exception:  # noqa: BLE001 - a class's own code may raise anything
        return repr_of(value)
    return repr_of(value) if nearest is value else _jsonable(nearest)


def _nearest(value: Any) -> Any:
    """Return a value as a list, a number or a text; the value itself if it has none."""
    if type(value).__name__ == "DataFrame" and hasattr(value, "to_dict"):
        if _duplicate(_names_of(value)) is not None:
            return value.to_string()
        table = value if _is_numbered(value.index) else value.reset_index()
        return table.to_dict("records")
    for way in ("isoformat", "tolist", "to_list"):
        if hasattr(value, way) and not isinstance(value, type):
            return getattr(value, way)()
    return value


def _has_digits(number: int) -> bool:
    try:
        return bool(str(number))
    except ValueError:
        return False
