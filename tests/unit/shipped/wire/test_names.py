"""What crosses by a name, and what has to be refused or pickled by value."""

from __future__ import annotations

import collections
import copyreg
import ctypes
import dataclasses
import importlib.machinery
import importlib.util
import json
import pickle
import pickletools
import sys
import types
import typing
import xml.etree.ElementTree  # noqa: F401
from typing import Any

import numpy as np
import pytest

from bridgehead._shipped.wire import names, pickling


def back(value: Any) -> Any:
    return pickling.decode(pickling.encode(value)[0])


@pytest.mark.parametrize(
    "value",
    [
        *(len, np.add, str.upper, json.dumps, collections.OrderedDict, types.SimpleNamespace, ...),
        *(NotImplemented, type(None), type(...), types.FunctionType, typing.AnyStr, typing.Any),
        *(json, sys.modules["os.path"], dataclasses.MISSING, dataclasses.KW_ONLY, json.JSONDecoder),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_what_every_process_has_crosses_by_name(value: Any) -> None:
    assert back([value])[0] is value


@pytest.mark.parametrize(
    ("name", "by_value"),
    [
        ("__main__", True),
        ("__mp_main__", True),
        ("json", False),
        ("os.path", False),
        ("sys", False),
        ("no_such_module", False),
        ("made_on_the_spot", True),
        ("made_on_the_spot.sub", True),
        ("made_with_a_spec", True),
        ("xml.etree", False),
        ("xml.etree.ElementTree", False),
        ("json.made", False),
    ],
)
def test_a_module_that_no_other_process_could_import(
    monkeypatch: pytest.MonkeyPatch, name: str, by_value: bool
) -> None:
    for made in ("made_on_the_spot", "made_on_the_spot.sub", "json.made"):
        monkeypatch.setitem(sys.modules, made, types.ModuleType(made))
    empty = importlib.machinery.ModuleSpec("made_with_a_spec", None)
    with_spec = importlib.util.module_from_spec(empty)
    monkeypatch.setitem(sys.modules, "made_with_a_spec", with_spec)
    assert names.is_by_value(name) is by_value


def test_a_module_that_is_not_imported_yet_but_could_be_is_not_by_value(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A library may put an object of its own into ``sys.modules`` in its module's place."""
    monkeypatch.setitem(sys.modules, "this", types.ModuleType("this"))
    assert not names.is_by_value("this")


def test_a_module_with_a_second_name_crosses_by_the_name_it_is_found_under(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = types.ModuleType("another_name")
    monkeypatch.setitem(sys.modules, "json.alias", module)
    assert back(module) is module


@pytest.mark.parametrize(
    "view",
    [
        memoryview(np.array([{}], dtype=object)),
        memoryview(np.zeros(2, [("a", "i4"), ("b", "O")])),
        memoryview((ctypes.py_object * 2)()),
        memoryview((ctypes.c_char_p * 2)()),
        memoryview((ctypes.POINTER(ctypes.c_int) * 2)()),
    ],
    ids=lambda view: view.format,
)
def test_a_memoryview_of_addresses_is_refused(view: memoryview) -> None:
    with pytest.raises(pickle.PicklingError, match="has addresses"):
        pickling.encode(view)


@pytest.mark.parametrize(
    "view",
    [
        memoryview(b"abc"),
        memoryview(np.zeros(2, [("O", "i4"), ("P", "c16")])),
        memoryview(np.arange(6)[::2]),
    ],
    ids=lambda view: view.format,
)
def test_any_other_memoryview_crosses_as_bytes(view: memoryview) -> None:
    assert back(view) == view.tobytes()


NUMBERED = [
    *(json.dumps, json.JSONDecoder, len, collections.OrderedDict.fromkeys, complex(1, 2)),
    *([np.arange(3)], collections.OrderedDict(a=1), json.JSONEncoder.default),
]


@pytest.mark.parametrize("value", NUMBERED, ids=lambda value: type(value).__name__)
def test_a_name_crosses_as_a_name_if_copyreg_has_a_number_for_it(value: Any) -> None:
    """The other process may have given the number to another name."""
    arrays = np.arange(3).__reduce_ex__(5)[0]
    given = [(json.dumps.__module__, "dumps"), ("json.decoder", "JSONDecoder")]
    given += [("builtins", "len"), ("builtins", "complex"), ("collections", "OrderedDict")]
    given += [(arrays.__module__, arrays.__name__), ("numpy", "dtype")]
    given += [("json.encoder", "JSONEncoder.default"), ("builtins", "getattr")]
    for code, (module, name) in enumerate(given, 240):
        copyreg.add_extension(module, name, code)
    try:
        small = pickling.encode_small(value) if pickling.is_small(value) else None
        frames = pickling.encode(value)[0]
    finally:
        for code, (module, name) in enumerate(given, 240):
            copyreg.remove_extension(module, name, code)
    assert small is None
    codes = {opcode.name for opcode, _, _ in pickletools.genops(bytes(frames[0]).rstrip(b"\0"))}
    assert not codes & {"EXT1", "EXT2", "EXT4"}
    assert str(pickling.decode(frames)) == str(value)
