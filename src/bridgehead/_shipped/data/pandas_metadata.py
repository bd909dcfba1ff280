"""What pandas adds to the schema of an Arrow table.

Rule: ``to_pandas`` does what this metadata says, for each column and each label that it names. So a
few bytes of it could cost gigabytes or hours. It is refused unless each part
is as pandas writes it; a key that pandas does not know does nothing.
"""

from __future__ import annotations

import json
import re
from typing import Any, List

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.data.registry import need
    from bridgehead._shipped.data.standard import ZONE_NAME

# What ``to_pandas`` converts the labels of columns to. Any other name could be that of a dtype of
# numpy whose items take gigabytes.
_LABELS = re.compile(
    r"[a-z-]{2,30}|(u?int|float|datetime|timedelta|complex)(8|16|32|64|128)(\[[^][]{1,60}\])?"
    r"|[a-z]{2,20}\d{0,3}(\[[^][]{1,60}\])?\[pyarrow\]"
    r"|(period|interval)\[[^][]{1,40}(\[[^][]{1,40}\][^][]{0,40})?\]",
    re.ASCII | re.IGNORECASE,
)
_LONG_NAME = 1000  # characters; of longer names, ``to_pandas`` evaluates no tuples of labels
_PANDAS_DEPTH = 20  # lists and objects inside each other in what pandas added to a schema


def check_pandas_metadata(metadata: Any, fields: List[str]) -> None:
    """Check the metadata of a schema with these names of fields.

    Raise ``WireError``, or what an unexpected part of it causes: ``ValueError``, ``TypeError``,
    ``KeyError``, ``AttributeError`` or ``RecursionError``.
    """
    raw = (metadata or {}).get(b"pandas")
    if raw is None:
        return
    found = json.loads(raw)
    _check_nesting(found, 0)
    columns, labels = found["columns"], found.get("column_indexes", [])
    # A column that is named several times would be converted as often.
    names = [column.get("field_name") or column["name"] for column in columns]
    need(len(set(names)) == len(names), "metadata that repeats a column")
    levels = [part for part in found["index_columns"] if type(part) is str]
    fine = len(set(levels)) == len(levels) >= len(found["index_columns"]) - 1
    need(fine, "metadata that repeats an index")
    for part in (*columns, *labels):
        zone = (part.get("metadata") or {}).get("timezone")
        need(zone is None or ZONE_NAME.fullmatch(zone), "invalid name of a time zone")
        need(len(part["numpy_type"]) <= _LONG_NAME, "metadata with the name of a long type")
    for part in labels:
        known = _LABELS.fullmatch(part["pandas_type"]) and _LABELS.fullmatch(part["numpy_type"])
        need(known, "metadata with labels of an unknown type")
    if len(labels) > 1:
        texts = (*names, *[column["name"] for column in columns], *fields)
        longest = max(map(len, map(str, texts)), default=0)
        need(longest <= _LONG_NAME, "metadata with long tuples of labels")


def _check_nesting(value: Any, depth: int) -> None:
    need(depth <= _PANDAS_DEPTH, "metadata nested too deeply")
    if type(value) in (list, dict):
        for part in value.values() if type(value) is dict else value:
            _check_nesting(part, depth + 1)
