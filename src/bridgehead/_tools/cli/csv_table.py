"""Csv files as tables.

Rule: a cell is a number only if it is written back as the same number, else the column is text. So
``01234``, ``NA`` and digits that a float would lose stay as they are. A file from which something
would be lost is refused: rows of another length than the header, two columns of one name.
"""

from __future__ import annotations

import csv
import io
import re
import sys
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

OTHERS = ";\t|"  # separators that a file may have in place of the comma
SAFE_DIGITS = 15  # of decimals, all of which a float keeps
INT64 = 1 << 63
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,19}")
_FLOAT = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]{1,3})?")
_BOOLEANS = ("True", "False")


def read(data: bytes, encoding: str, sep: str) -> Any:
    """Return the table in the bytes of a file.

    Raises:
        ValueError: something in the file would be lost; says what.
    """
    import pandas

    header, rows = _rows(data, encoding, sep)
    names = set()
    for name in header:
        if name in names:
            raise ValueError(f"two columns have the name {name!r}, and one of them would be lost")
        names.add(name)
    columns: list[Sequence[str]] = list(zip(*rows, strict=True)) or [()] * len(header)
    made = {name: _column(cells) for name, cells in zip(header, columns, strict=True)}
    return pandas.DataFrame(made, columns=header)


def _rows(data: bytes, encoding: str, sep: str) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows; empty lines are left out, as in all readers of csv."""
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"byte {error.start:,} is not {encoding}; give the file's own --encoding, such as "
            "latin-1, cp1252 or utf-16"
        ) from None
    except LookupError:
        raise ValueError(f"there is no encoding {encoding!r}") from None
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader(io.StringIO(text.removeprefix("\ufeff"), newline=""), delimiter=sep)
    rows: list[list[str]] = []
    try:
        for row in reader:
            if not row:
                continue
            if rows and len(row) != len(rows[0]):
                raise ValueError(
                    f"line {reader.line_num:,} has {len(row)} cells, and the header has "
                    f"{len(rows[0])}"
                )
            if not rows:
                _check_header(row, sep)
            rows.append(row)
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num:,}: {error}") from None
    if not rows:
        raise ValueError("it is empty")
    header = rows.pop(0)
    return header, rows


def _check_header(header: list[str], sep: str) -> None:
    """Refuse a file with another separator, which would become a table of one column."""
    other = next((one for one in OTHERS if one != sep and one in header[0]), None)
    if len(header) == 1 and other is not None:
        shown = "\\t" if other == "\t" else other
        raise ValueError(f"its header has no {sep!r} but {shown!r}; give --sep '{shown}'")


def _column(cells: Sequence[str]) -> Any:
    """Return the cells as integers, floats, booleans or texts; an empty cell is a missing one."""
    import numpy as np
    import pandas

    missing = np.array([not cell for cell in cells], bool)
    filled = [cell for cell in cells if cell]
    if not filled:
        return pandas.Series([None] * len(cells), dtype=object)
    if all(map(_INTEGER.fullmatch, filled)):
        numbers = [int(cell or 0) for cell in cells]
        low, high = min(numbers), max(numbers)
        kind = "int64" if low >= -INT64 and high < INT64 else "uint64"
        if kind == "int64" or (low >= 0 and high < 2 * INT64):
            values = np.array(numbers, kind)
            return pandas.arrays.IntegerArray(values, missing) if missing.any() else values
    elif all(map(_is_float, filled)):
        return np.array([float(cell or "nan") for cell in cells])
    elif all(cell in _BOOLEANS for cell in filled):
        flags = np.array([cell == "True" for cell in cells], bool)
        return pandas.arrays.BooleanArray(flags, missing) if missing.any() else flags
    return pandas.Series([cell or None for cell in cells])


def _is_float(cell: str) -> bool:
    """Return whether a float keeps all digits of a cell."""
    if not _FLOAT.fullmatch(cell) or cell == "-0":
        return False
    if len(cell) <= SAFE_DIGITS and "e" not in cell.lower():
        return True
    number = float(cell)
    return number not in (float("inf"), float("-inf")) and Decimal(cell) == Decimal(repr(number))
