"""Files that hold an object: csv, parquet, npy, json, pickle.

Rule: bytes in, an object out, and back; no kernel and no terminal is known here. What a format
can't hold is refused, never bent until it fits. A pickle is not opened here: opening one runs
code, and that is for the kernel it goes to.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

SUFFIXES = {
    ".csv": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".npy": "npy",
    ".json": "json",
    ".pickle": "pickle",
    ".pkl": "pickle",
}
FORMATS = tuple(dict.fromkeys(SUFFIXES.values()))
DIGITLESS = 2_000  # bits; Python may refuse to write more than 640 digits, by default 4,300
PIP = {"pandas": "all", "numpy": "all", "pyarrow": "pyarrow"}  # what brings a module

CONTAINERS = (list, tuple, dict, set, frozenset, bytes, bytearray)  # what csv has only as a repr


class Unusable(ValueError):
    """A file that is none of its format, or an object that the format can't hold."""


def format_of(name: str) -> str | None:
    """The format that a file's name tells by its suffix; None for another one."""
    return SUFFIXES.get(Path(name).suffix.lower())


def loaded(data: bytes, kind: str, name: str) -> Any:
    """The object that a file holds; of a pickle one that is opened where it arrives.

    Raises:
        Unusable: it is none of this format.
        ModuleNotFoundError: the module for this format is not installed.
    """
    try:
        return _LOAD[kind](data)
    except ImportError:
        raise
    except (ValueError, OSError, EOFError, LookupError, ArithmeticError, RecursionError) as error:
        said = str(error).partition("\n")[0] or type(error).__name__
        raise Unusable(f"{name} can't be read as {kind}: {said}") from error


def dumped(value: Any, kind: str) -> bytes:
    """The bytes of a file that holds the object; a pickle comes from the kernel as it is.

    Raises:
        Unusable: this format can't hold it; says what could.
        ModuleNotFoundError: the module for this format is not installed.
    """
    try:
        return _DUMP[kind](value)
    except RecursionError:
        raise Unusable(f"{kind} can't hold what contains itself; pickle can") from None
    except UnicodeEncodeError:
        raise Unusable(f"{kind} can't hold half a character; pickle can") from None
    except Unusable:
        raise
    except ValueError as error:  # a number of thousands of digits
        said = str(error).partition(";")[0]
        raise Unusable(f"{kind} can't hold this ({said}); pickle can") from error


def _read_csv(data: bytes) -> Any:
    import pandas

    return pandas.read_csv(io.BytesIO(data))


def _read_parquet(data: bytes) -> Any:
    import pandas
    import pyarrow  # noqa: F401 - pandas says less of it where it is missing

    return pandas.read_parquet(io.BytesIO(data), engine="pyarrow")


def _read_npy(data: bytes) -> Any:
    import numpy as np

    array = np.load(io.BytesIO(data), allow_pickle=False)
    if not isinstance(array, np.ndarray):
        raise ValueError("it is an archive of several, an npz")  # noqa: TRY004 - of what it holds
    return array


def _read_json(data: bytes) -> Any:
    return json.loads(data)


def _read_pickle(data: bytes) -> Any:
    from bridgehead._protocol.payload import RawPickle

    return RawPickle(data)


def _write_csv(value: Any) -> bytes:
    table = _table(value, "csv")
    try:
        _check_csv(table)
        text: str = table.to_csv(index=not _is_numbered(table.index))
    except (ValueError, RecursionError):
        raise
    except Exception as error:  # whatever the class of a cell raises
        raise Unusable(f"csv can't hold this table ({text_of(error)}); pickle can") from error
    return text.encode()


def _check_csv(table: Any) -> None:
    """Refuse what would be another column or a text when it is read."""
    if table.columns.nlevels > 1:
        raise Unusable("csv holds one name for a column, and these have several; pickle can")
    twice = _twice(_names_of(table))
    if twice is not None:
        raise Unusable(f"csv holds one column of each name, and {twice!r} is there twice")
    parts = [column for _, column in table.items()]
    for part in parts if table.index.nlevels > 1 else [*parts, table.index]:
        if part.dtype != object:
            continue
        for cell in part:
            if isinstance(cell, CONTAINERS) or getattr(cell, "ndim", 0) != 0:
                raise Unusable(
                    f"csv holds numbers and texts, and {part.name!r} has {described(cell)}; "
                    "pickle can"
                )


def _names_of(table: Any) -> list[Any]:
    """Of its columns, and of its index if that is more than the rows' order."""
    index = [] if _is_numbered(table.index) else list(table.index.names)
    return [name for name in index if name is not None] + list(table.columns)


def _twice(names: Iterable[Any]) -> str | None:
    """A name that another one can't be told from, once both are texts."""
    seen: set[str] = set()
    for name in map(text_of, names):
        if name in seen:
            return name
        seen.add(name)
    return None


def _write_parquet(value: Any) -> bytes:
    table = _table(value, "parquet")
    import pyarrow

    try:
        data: bytes = table.to_parquet(None, engine="pyarrow")
    except (pyarrow.ArrowException, ValueError, TypeError) as error:
        said = str(error).partition("\n")[0]
        raise Unusable(f"parquet can't hold this table ({said}); pickle can") from error
    return data


def _write_npy(value: Any) -> bytes:
    import numpy as np

    if not isinstance(value, (np.ndarray, np.generic)):
        raise Unusable(f"npy holds an array, and this is {described(value)}; {_better(value)}")
    if value.dtype.hasobject:
        raise Unusable("npy holds an array of objects only as a pickle; take pickle itself")
    file = io.BytesIO()
    np.save(file, value, allow_pickle=False)
    return file.getvalue()


def _write_json(value: Any) -> bytes:
    _check_json(value, "")
    text = json.dumps(value, ensure_ascii=False, indent=1)
    with contextlib.suppress(UnicodeEncodeError):  # half a character, which JSON escapes
        return f"{text}\n".encode()
    return f"{json.dumps(value, indent=1)}\n".encode()


def _write_pickle(value: Any) -> bytes:
    if not isinstance(value, bytes):
        raise TypeError("a pickle is made in the kernel")
    return value


_LOAD: dict[str, Callable[[bytes], Any]] = {
    "csv": _read_csv,
    "parquet": _read_parquet,
    "npy": _read_npy,
    "json": _read_json,
    "pickle": _read_pickle,
}
_DUMP: dict[str, Callable[[Any], bytes]] = {
    "csv": _write_csv,
    "parquet": _write_parquet,
    "npy": _write_npy,
    "json": _write_json,
    "pickle": _write_pickle,
}


def _table(value: Any, kind: str) -> Any:
    import pandas

    if isinstance(value, pandas.Series):
        return value.to_frame()
    if not isinstance(value, pandas.DataFrame):
        raise Unusable(f"{kind} holds a table, and this is {described(value)}; {_better(value)}")
    return value


def _is_numbered(index: Any) -> bool:
    """Whether an index says no more than the rows' order does."""
    import pandas

    if list(index.names) != [None]:
        return False
    return bool(index.equals(pandas.RangeIndex(len(index))))


def _check_json(value: Any, where: str) -> None:
    """Refuse what would come back as something else: a tuple as a list may pass, NaN may not."""
    if value is None or type(value) in (bool, int, str):
        return
    place = f" at {where}" if where else ""
    if type(value) is float:
        if not math.isfinite(value):
            raise Unusable(f"json has no {value}{place}; pickle can hold it")
        return
    if type(value) in (list, tuple):
        for at, item in enumerate(value):
            _check_json(item, f"{where}[{at}]")
        return
    if type(value) is dict:
        for key, item in value.items():
            if type(key) is not str:
                raise Unusable(f"json has only texts as keys, and one{place} is {key!r}")
            _check_json(item, f"{where}[{key!r}]")
        return
    raise Unusable(f"json can't hold {described(value)}{place}; {_better(value)}")


def described(value: Any) -> str:
    """What an object is, with its article."""
    kind = type(value)
    name = kind.__name__
    if kind.__module__ not in ("builtins", "__main__"):
        name = f"{kind.__module__.partition('.')[0]}.{name}"
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def repr_of(value: Any) -> str:
    """Its repr, or what it is where it has none: a class of somebody's, or too many digits."""
    try:
        return repr(value)
    except Exception:  # noqa: BLE001 - whatever a class's own code raises
        return f"<{described(value)}>"


def text_of(value: Any) -> str:
    """Its text, in the same way."""
    try:
        return str(value)
    except Exception:  # noqa: BLE001 - the same
        return f"<{described(value)}>"


def _better(value: Any) -> str:
    name = type(value).__name__
    if name in ("DataFrame", "Series"):
        return "csv, parquet and pickle can"
    if name == "ndarray":
        return "npy and pickle can"
    return "pickle can"


def jsonable(value: Any) -> Any:
    """The nearest that JSON has, for scripts: a table's rows, an array's numbers, a repr.

    Of what is nested deeper than Python can go, its repr, which knows what contains itself; and
    of what would lose something, such as a table with two columns of one name, its text.
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
        return number if number.bit_length() < DIGITLESS or _has_digits(number) else repr_of(number)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, dict):
        if _twice(value) is not None:
            return repr_of(value)
        return {text_of(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_jsonable(item) for item in value]
    try:
        nearest = _nearest(value)
    except RecursionError:
        raise
    except Exception:  # noqa: BLE001 - whatever a class's own code raises
        return repr_of(value)
    return repr_of(value) if nearest is value else _jsonable(nearest)


def _nearest(value: Any) -> Any:
    """The same as a list, a number or a text; the value itself if there is none."""
    if type(value).__name__ == "DataFrame" and hasattr(value, "to_dict"):
        if _twice(_names_of(value)) is not None:
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


def write_whole(file: Path, data: bytes) -> None:
    """The file, whole or as it was before; a device or a pipe is written as it is.

    Raises:
        OSError: it can't be written.
    """
    if file.exists() and not file.is_file():  # before its links are followed: a pipe's has no end
        with file.open("wb") as out:
            out.write(data)
        return
    target = file.resolve()
    umask = os.umask(0)
    os.umask(umask)
    mode = target.stat().st_mode & 0o7777 if target.exists() else 0o666 & ~umask
    number, name = tempfile.mkstemp(dir=target.parent, prefix=".new-")  # its own may be too long
    try:
        with os.fdopen(number, "wb") as out:
            out.write(data)
        Path(name).chmod(mode)
        Path(name).replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise
