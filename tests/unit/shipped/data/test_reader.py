"""Hostile pickles are refused, and none of their code runs.

Rule: a hostile pickle is bytes, written opcode by opcode or by another pickler. If any of its code
ran, it would leave a trace: a file, a module or an audit event of the interpreter.
``tracemalloc`` sees the memory of Python and numpy, not Arrow's.
"""

from __future__ import annotations

import collections
import decimal
import json
import os
import pickle
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest

from bridgehead._protocol import bootstrap as _bootstrap
from bridgehead._shipped.data import decode_data
from bridgehead._shipped.wire import classes as _classes
from bridgehead._shipped.wire import collector as _collector
from bridgehead._shipped.wire import errors as _errors
from bridgehead._shipped.wire import frames as _frames
from bridgehead._shipped.wire import large as _large
from bridgehead._shipped.wire import libraries as _libraries
from bridgehead._shipped.wire import names as _names
from bridgehead._shipped.wire import pickling as _pickling
from support.data import (
    TRACE,
    called,
    codec_call,
    data,
    lap,
    named,
    objects,
    pickled,
    refusal_of,
    refused,
    same,
    sent,
    text,
)
from support.elsewhere import Python, pythons

# ---------------------------------------------------------------- hostile pickles


class Reduced:
    """An object whose pickle is a call of any function."""

    def __init__(self, *reduced: Any) -> None:
        self.reduced = reduced

    def __reduce__(self) -> Any:
        return self.reduced


TOUCH = f"touch {TRACE}"
CODE = f"open({str(TRACE)!r}, 'w')"

# Each pickle with the name that must never be looked up.
GADGETS: dict[str, tuple[bytes, str]] = {
    f"os.system, protocol {n}": (pickle.dumps(Reduced(os.system, (TOUCH,)), n), "posix.system")
    for n in range(6)
}
GADGETS |= {
    f"{module}.{name}": (pickled(called(module, name, *args)), f"{module}.{name}")
    for module, name, *args in [
        ("os", "system", TOUCH),
        ("nt", "system", TOUCH),
        ("os", "popen", TOUCH),
        ("os", "execv", "/bin/touch", ["touch", str(TRACE)]),
        ("os", "putenv", "BRIDGEHEAD_TRACE", "1"),
        ("os", "environ.update", {"BRIDGEHEAD_TRACE": "1"}),
        ("builtins", "eval", CODE),
        ("builtins", "exec", CODE),
        ("builtins", "compile", CODE, "", "exec"),
        ("builtins", "__import__", "antigravity"),
        ("__builtin__", "eval", CODE),
        ("builtins", "open", str(TRACE), "w"),
        ("builtins", "getattr", named("os", "environ"), "update"),
        ("builtins", "setattr", named("builtins", "len"), "x", 1),
        ("builtins", "type", "X", (), {}),
        ("builtins", "object.__subclasses__"),
        ("builtins", "map", named("builtins", "eval"), [CODE]),
        ("__main__", "__builtins__.eval", CODE),
        ("functools", "partial", named("os", "system"), TOUCH),
        ("functools", "reduce", named("builtins", "getattr"), ["a", "b"]),
        ("operator", "attrgetter", "system"),
        ("operator", "methodcaller", "system", TOUCH),
        ("operator", "itemgetter", 0),
        ("codecs", "encode", "x", "latin1"),
        ("_codecs", "decode", bytearray(b"x"), "zip"),
        ("copyreg", "_reconstructor", named("builtins", "object"), named("builtins", "object")),
        ("copyreg", "__newobj__", named("subprocess", "Popen"), ["touch", str(TRACE)]),
        ("copyreg", "add_extension", "os", "system", 200),
        ("types", "FunctionType", None, {}),
        ("types", "CodeType", 0, 0),
        ("marshal", "loads", bytearray(b"N")),
        ("subprocess", "Popen", ["touch", str(TRACE)]),
        ("subprocess", "check_output", TOUCH, None),
        ("pty", "spawn", ["touch", str(TRACE)]),
        ("runpy", "run_path", str(TRACE)),
        ("runpy", "_run_code", CODE, {}),
        ("importlib", "import_module", "antigravity"),
        ("importlib._bootstrap", "_load", None),
        ("shutil", "rmtree", str(TRACE)),
        ("shutil", "copyfile", "/etc/hostname", str(TRACE)),
        ("pathlib", "Path.write_text", named("pathlib", "Path"), "x"),
        ("pathlib", "Path.touch", str(TRACE)),
        ("pickle", "loads", bytearray(pickle.dumps(Reduced(os.system, (TOUCH,))))),
        ("_pickle", "loads", bytearray(b".")),
        ("cloudpickle", "loads", bytearray(b".")),
        ("pip", "main", ["install", "x"]),
        ("logging.config", "fileConfig", str(TRACE)),
        ("logging", "FileHandler", str(TRACE)),
        ("timeit", "main", [CODE]),
        ("timeit", "timeit", CODE),
        ("webbrowser", "open", "http://localhost"),
        ("ctypes", "CDLL", "libc.so.6"),
        ("cProfile", "run", CODE),
        ("profile", "run", CODE),
        ("pdb", "run", CODE),
        ("bdb", "Bdb.run", CODE),
        ("code", "interact"),
        ("doctest", "debug_script", CODE),
        ("asyncio", "create_subprocess_shell", TOUCH),
        ("multiprocessing.util", "spawnv_passfds", "", [], []),
        ("socket", "create_connection", ["localhost", 9]),
        ("urllib.request", "urlopen", "file:///etc/hostname"),
        ("tempfile", "mkdtemp"),
        ("zipimport", "zipimporter", str(TRACE)),
        ("sys", "exit", 1),
        ("sys", "modules.clear"),
        ("site", "addsitedir", "/tmp"),
        ("IPython", "get_ipython"),
        ("numpy", "load", str(TRACE), None, True),
        ("numpy", "save", str(TRACE), [1]),
        ("numpy", "fromfile", "/etc/hostname"),
        ("numpy", "memmap", str(TRACE), "u1", "w+", 0, [1]),
        ("numpy", "dtype", "O"),
        ("numpy.f2py.diagnose", "run_command", TOUCH),
        ("numpy.testing._private.utils", "runstring", CODE, {}),
        ("numpy.distutils.exec_command", "exec_command", TOUCH),
        ("numpy.core.multiarray", "_reconstruct", named("numpy", "ndarray"), [0], bytearray(b"b")),
        ("numpy._core.multiarray", "scalar", named("numpy", "dtype"), bytearray(b"x")),
        ("pandas", "eval", CODE),
        ("pandas", "read_pickle", str(TRACE)),
        ("pandas", "DataFrame.query", "x", CODE),
        ("pandas.core.indexes.base", "_new_Index", named("pandas", "Index"), {}),
        ("pandas._libs.internals", "_unpickle_block", 1, 2, 3),
        ("pyarrow", "OSFile", str(TRACE), "w"),
        ("pyarrow.lib", "_restore_array", 1),
        ("bridgehead._shipped.wire.pickling", "decode", [1]),
        ("bridgehead._shipped.data", "decode_data", [1]),
        ("bridgehead._shipped.data", "decode_data.__globals__"),
        ("bridgehead._shipped.data", "make_deque.__globals__"),
        ("bridgehead._shipped.data.reader", "Machine"),
        ("bridgehead._shipped.data", "pickle.loads", bytearray(b".")),
        ("bridgehead._shipped.data", "library", "antigravity"),
        ("bridgehead._shipped.data.registry", "CONSTRUCTORS"),
        ("bridgehead._shipped.data", "make_instance.__code__"),
        ("bridgehead._shipped.data ", "make_deque", 1),
        ("bridgehead", "_data.make_deque", 1),
        ("_bridgehead_xyz", "make_deque", 1),
        ("os\nx", "make_deque", 1),
        ("", "", 1),
    ]
}
GADGETS |= {
    "a global by lines": (b"cos\nsystem\n(X\x01\0\0\0atR.", "os.system"),
    "a global of the memo": (
        pickled(b"\x8c\x02os\x94\x8c\x06system\x940h\0h\x01\x93", text(TOUCH), b"\x85R"),
        "os.system",
    ),
    "a global that is never called": (pickled(named("os", "system")), "os.system"),
    "a global that is thrown away": (pickled(named("os", "system"), b"0N"), "os.system"),
    "deep in a structure": (
        pickled(b"](K\x01}", text("a"), named("os", "system"), b"se"),
        "os.system",
    ),
    "as an argument of a constructor": (
        pickled(codec_call("make_slice", named("os", "system"), None, None)),
        "os.system",
    ),
    "a class that is not allowed": (
        pickled(codec_call("make_instance", "subprocess.Popen", "call", (["touch"],), {})),
        "subprocess.Popen",
    ),
    "a very long name": (pickled(named("m" * 5000, "n" * 5000)), "m" * 100 + "." + "n" * 100),
}


@pytest.mark.parametrize(("raw", "name"), GADGETS.values(), ids=GADGETS)
def test_a_gadget_is_refused_by_name_before_it_is_looked_up(raw: bytes, name: str) -> None:
    assert refused(raw) == ("untrusted", name)


def refusal(raw: Any, limit: int) -> str:
    return str(refusal_of(raw, limit))


def long(value: int) -> bytes:
    return pickle.dumps(value, 2)[2:-1]


def tower(height: int) -> bytes:
    """Return opcodes for nested pairs of one tuple: a hash or a repr visits 2**height parts."""
    return b")\x94" + b"".join(b"h%ch%c\x86\x94" % (n, n) for n in range(height))


DEEP: Any = "<f8"
for _ in range(40):
    DEEP = ("array", DEEP, (1,))
FORGED = b"(K\x01\x8c\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x3ftb"


def array_of(description: Any, shape: Any, raw: bytes = b"", order: str = "C") -> bytes:
    return pickled(
        codec_call("make_array", description, shape, order, b"C" + bytes([len(raw)]) + raw)
    )


def struct_of(*fields: Any, size: int = 16, aligned: Any = False) -> Any:
    return ("struct", list(fields), size, aligned, False)


MALFORMED: dict[str, Any] = {
    "no frame at all": [],
    "an empty frame": b"",
    "only a protocol": b"\x80\x05",
    "only an end": b".",
    "no value": b"\x80\x05.",
    "two values": pickled(b"NN"),
    "a mark at the end": pickled(b"N("),
    "bytes after the end": pickled(b"N") + b"x",
    "a second pickle": pickled(b"N") * 2,
    "another protocol": b"\x80\x06N.",
    "a protocol in the middle": pickled(b"N0\x80\x05N"),
    "no end": b"\x80\x05]",
    "nothing to append to": pickled(b"NK\x01a"),
    "a tuple to append to": pickled(b")K\x01a"),
    "text to append to": pickled(text("a"), b"K\x01a"),
    "items without a mark": pickled(b"]K\x01e"),
    "items of nothing": pickled(b"(K\x01e"),
    "an item of a list": pickled(b"]K\x01K\x02s"),
    "a key without a value": pickled(b"}(K\x01u"),
    "members of a list": pickled(b"](K\x01\x90"),
    "members of a frozen set": pickled(b"(\x91(K\x01\x90"),
    "a tuple of too few": pickled(b"K\x01\x87"),
    "a tuple beyond the mark": pickled(b"K\x01(K\x01\x86"),
    "a pop of nothing": pickled(b"0N"),
    "a pop of no mark": pickled(b"1N"),
    "a memo of nothing": pickled(b"\x94N"),
    "a memo that is not there": pickled(b"h\x00"),
    "a memo entry beyond the end": pickled(b"j\xff\xff\xff\xff"),
    "BINPUT": pickled(b"Nq\x00"),
    "LONG_BINPUT, huge": pickled(b"Nr\xff\xff\xff\x7f"),
    "PUT, huge": b"Np99999999999\n.",
    "GET": b"Ng0\n.",
    "DUP": pickled(b"N2"),
    "INST": b"(ios\nsystem\n.",
    "OBJ": b"(cos\nsystem\no."[:1] + b"o.",
    "NEWOBJ of a constructor": pickled(named("bridgehead._shipped.data", "make_deque"), b")\x81"),
    "NEWOBJ_EX": pickled(named("bridgehead._shipped.data", "make_deque"), b")}\x92"),
    "BUILD of a dict": pickled(b"}}b"),
    "BUILD of a constructor": pickled(
        named("bridgehead._shipped.data", "make_deque"), b"}", text("__kwdefaults__"), b"}sb"
    ),
    "BUILD of an array's state": pickled(codec_call("make_array", "<f8", (0,), "C", b"C\0"), b"}b"),
    "forged flags of a dtype": pickled(codec_call("make_dtype", "<f8"), FORGED),
    "PERSID": b"Pos.system\n.",
    "BINPERSID": pickled(text("x"), b"Q"),
    **{
        f"EXT{n}": pickled(code)
        for n, code in [(1, b"\x82\x01"), (2, b"\x83\x01\x00"), (4, b"\x84\x01\0\0\0")]
    },
    **{
        f"text opcode {code[:1].decode()}": code + b"."
        for code in (
            b"I01\n",
            b"I5\n",
            b"L5L\n",
            b"F1.5\n",
            b"S'a'\n",
            b"Va\n",
            b"(l",
            b"(d",
            b"T\1\0\0\0a",
            b"U\1a",
        )
    },
    **{
        f"opcode {code:#04x}": b"N" + bytes([code]) + b"."
        for code in (0, 1, 0x7F, 0x99, 0xFE, 0xFF)
    },
    "REDUCE of text": pickled(text("os"), b")R"),
    "REDUCE of a list of arguments": pickled(
        named("bridgehead._shipped.data", "make_deque"), b"](K\1eR"
    ),
    "REDUCE without a function": pickled(b")R"),
    "a constructor as a value": pickled(named("bridgehead._shipped.data", "make_deque")),
    "a constructor in a list": pickled(b"]", named("bridgehead._shipped.data", "make_deque"), b"a"),
    "a constructor as a key": pickled(b"}", named("bridgehead._shipped.data", "make_deque"), b"Ns"),
    "a constructor thrown away": pickled(named("bridgehead._shipped.data", "make_deque"), b"0N"),
    "a constructor as an argument": pickled(
        codec_call("make_slice", named("bridgehead._shipped.data", "make_deque"), None, None)
    ),
    "a constructor of the memo": pickled(
        named("bridgehead._shipped.data", "make_deque"), b"\x94N\x85Rh\x00\x86"
    ),
    "a name that is no text": pickled(b"K\x01K\x02\x93"),
    "a missing buffer": pickled(b"\x97"),
    "a buffer as a value": [pickled(b"\x97"), b"x"],
    "a buffer in the memo": [pickled(b"\x97\x94"), b"x"],
    "a read-only nothing": pickled(b"N\x98"),
    "a buffer too many": [pickled(b"N"), b"x"],
    "text that is not": pickled(b"X\1\0\0\0\xff"),
    "text that is not, in a run": pickled(b"](\x8c\1a\x94\x8c\1\xff\x94K\1e"),
    "a short int": b"\x80\x05J\1\2",
    "a short float": b"\x80\x05G\1\2.",
    "a list as a key": pickled(b"}]Ns"),
    "a dict in a set": pickled(b"\x8f(}\x90"),
    "a list in a key": pickled(b"}", b"]\x85Ns"),
    "an array as a key": pickled(b"}", codec_call("make_array", "<f8", (0,), "C", b"C\0"), b"Ns"),
    # bombs
    "LONG4, huge": pickled(b"\x8b\xff\xff\xff\x7f"),
    "LONG4, negative": pickled(b"\x8b\xff\xff\xff\xff"),
    "BINUNICODE, huge": pickled(b"X\xff\xff\xff\xff"),
    "BINUNICODE8, huge": pickled(b"\x8d" + b"\xff" * 8),
    "BINBYTES, huge": pickled(b"B\xff\xff\xff\xff"),
    "BINBYTES8, huge": pickled(b"\x8e\0\0\0\0\0\1\0\0"),
    "BYTEARRAY8, huge": pickled(b"\x96\0\0\0\0\0\1\0\0"),
    "FRAME, huge": pickled(b"\x95\0\0\0\0\0\1\0\0N"),
    "marks": b"(" * 10**5,
    "a tower of tuples as a key": pickled(b"}", tower(60), b"Ns"),
    "a tower of tuples in a set": pickled(b"\x8f(", tower(60), b"\x90"),
    "a tower of tuples, frozen": pickled(b"(", tower(60), b"\x91"),
    "a tower in a tuple in a key": pickled(b"}", tower(60), b"K\x01\x86Ns"),
    "a tower as a name": pickled(codec_call("make_range_index", 0, 1, 1, b"(" + tower(60) + b"t")),
    "a deep tuple as a key": pickled(b"})" + b"\x85" * 5000 + b"Ns"),
    "keys of one hash": pickled(
        b"}(", *(long(n * ((1 << 61) - 1)) + b"N" for n in range(1, 1500)), b"u"
    ),
    "keys of one hash, one by one": pickled(
        b"}", *(long(n * ((1 << 61) - 1)) + b"Ns" for n in range(1, 1500))
    ),
    "members of one hash": pickled(
        b"(", *(long(n * ((1 << 61) - 1)) for n in range(1, 1500)), b"\x91"
    ),
    "the same long list again and again": pickled(
        b"](", b"N" * 20000, b"e\x940", *[codec_call("make_objects", (20000,), "C", b"h\0")] * 200
    ),
    # constructors
    "a constructor of too few": pickled(codec_call("make_range", 1)),
    "a constructor of too many": pickled(codec_call("make_range", 1, 2, 3, 4)),
    "a range of no step": pickled(codec_call("make_range", 1, 2, 0)),
    "a range of floats": pickled(codec_call("make_range", 1.0, 2.0, 1.0)),
    "a slice of a list": pickled(codec_call("make_slice", [], None, None)),
    "a slice of a slice": pickled(
        codec_call("make_slice", codec_call("make_slice", None, None, None), None, None)
    ),
    "a deque of less than nothing": pickled(codec_call("make_deque", -1)),
    "a deque of truth": pickled(codec_call("make_deque", True)),
    "a default of any name": pickled(codec_call("make_default", "eval")),
    "a date that is none": pickled(codec_call("make_date", 2020, 13, 1)),
    "a date beyond": pickled(codec_call("make_date", 10**100, 1, 1)),
    "a time in no zone": pickled(codec_call("make_time", 1, 1, 1, 1, "UTC", 0)),
    "a timedelta beyond": pickled(codec_call("make_timedelta", 10**12, 0, 0)),
    "a time zone beyond": pickled(
        codec_call("make_timezone", codec_call("make_timedelta", 5, 0, 0), None)
    ),
    "a time zone of a path": pickled(codec_call("make_zone", "../../../etc/passwd")),
    "a time zone of a root": pickled(codec_call("make_zone", "/etc/passwd")),
    "a decimal that is none": pickled(codec_call("make_decimal", "five")),
    "a fraction of nothing": pickled(codec_call("make_fraction", 1, 0)),
    "a fraction of long numbers": pickled(codec_call("make_fraction", long(1 << 20000), 3)),
    "a short uuid": pickled(codec_call("make_uuid", b"C\1a")),
    "an instance made in another way": pickled(codec_call("make_instance", "x", "new", (), [])),
    "items of what is no instance": pickled(
        codec_call("make_date", 2020, 1, 1), text("state"), b"}s"
    ),
    "a dtype of objects": array_of("|O", (1,), bytes(8)),
    "a dtype of objects by name": array_of("O", (1,), bytes(8)),
    "a dtype of strings of Python's": array_of("|T16", (1,), bytes(16)),
    "a dtype with a shape": array_of("(1000000000,)f8", (1,), bytes(8)),
    "a dtype by commas": array_of("f8,O", (1,), bytes(16)),
    "a dtype of no size": array_of("|V99999999999", (0,)),
    "a dtype in dots": array_of("numpy.object_", (1,), bytes(8)),
    "a dtype that is a dict": array_of({"names": ["a"]}, (1,), bytes(8)),
    "a dtype of deep parts": array_of(DEEP, (1,)),
    "a dtype of a tower": pickled(b"]\x940", codec_call("make_dtype", tower(30))),
    "a huge dtype": array_of(("array", "<f8", (1 << 40,)), (0,)),
    "fields that overlap": array_of(struct_of(("a", "<f8", 0), ("b", "<f8", 4)), (1,), bytes(16)),
    "a field that sticks out": array_of(struct_of(("a", "<f8", 9)), (1,), bytes(16)),
    "a field before": array_of(struct_of(("a", "<f8", -8)), (1,), bytes(16)),
    "a field of objects": array_of(struct_of(("a", "|O", 0)), (1,), bytes(16)),
    "a field twice": array_of(struct_of(("a", "<f8", 0), ("a", "<f8", 8)), (1,), bytes(16)),
    "a huge structure": array_of(struct_of(("a", "<f8", 0), size=1 << 40), (0,)),
    "a structure not aligned": array_of(
        struct_of(("a", "<f8", 1), size=24, aligned=True), (1,), bytes(24)
    ),
    "a huge shape": array_of("<f8", (1 << 40,), bytes(8)),
    "a huge shape of nothing": array_of("|V0", (1 << 60, 1 << 60)),
    "a shape of many": array_of("|u1", (1,) * 100, b"x"),
    "a negative shape": array_of("<f8", (-1, -1), bytes(8)),
    "a shape of truth": array_of("|u1", (True,), b"x"),
    "a shape that overflows": array_of("<f8", (1 << 32, 1 << 32), bytes(8)),
    "a short buffer": array_of("<f8", (2,), bytes(8)),
    "a long buffer": array_of("<f8", (1,), bytes(16)),
    "another order": array_of("<f8", (1,), bytes(8), "K"),
    "a bool that is neither 0 nor 1": array_of("|b1", (2,), b"\1\2"),
    "a field of a bool that is neither 0 nor 1": array_of(
        struct_of(("a", "|b1", 3)), (1,), b"\5" * 16
    ),
    "a character beyond Unicode": array_of("<U1", (1,), b"\xff" * 4),
    "objects of another shape": pickled(codec_call("make_objects", (2, 2), "C", [1, 2, 3])),
    "a scalar of objects": pickled(codec_call("make_scalar", "|O", b"C\x08" + bytes(8))),
    "a scalar too short": pickled(codec_call("make_scalar", "<f8", b"C\x01a")),
    "records of text": pickled(codec_call("make_records", "x")),
    "masked text": pickled(codec_call("make_masked", "x", None, (), False)),
    "texts of numbers": pickled(codec_call("make_texts", (1,), [1], (), True)),
    "an index of text": pickled(codec_call("make_index", "x", None, None)),
    "a series of text": pickled(codec_call("make_series", "x", "y", None, {}, True)),
    "a frame of text": pickled(codec_call("make_frame", "x", "y", [], {}, True)),
    "a frame without columns": pickled(
        codec_call(
            "make_frame",
            INDEX := codec_call("make_range_index", 0, 1, 1, None),
            INDEX,
            [],
            {},
            True,
        )
    ),
    "a frame of the wrong height": pickled(
        codec_call(
            "make_frame",
            *(codec_call("make_range_index", 0, 1 << 40, 1, None), INDEX),
            b"](](K\0e" + codec_call("make_array", "<f8", (1, 1), "C", b"C\x08" + bytes(8)) + b"ta",
            *({}, True),
        )
    ),
    "codes beyond the levels": pickled(
        codec_call(
            "make_multi_index",
            b"]" + INDEX + b"a",
            *(["|i1"], [None], None, b"C\x01\x09"),
        )
    ),
    "codes beyond the categories": pickled(
        codec_call(
            "make_categorical",
            *("|i1", b"C\x01\x09"),
            codec_call(
                "make_index", codec_call("make_array", "|i1", (1,), "C", b"C\x01\x09"), None, None
            ),
            False,
        )
    ),
    "places beyond the length": pickled(
        codec_call(
            "make_sparse",
            codec_call("make_array", "|i1", (1,), "C", b"C\x01\x09"),
            b"C\x04\x09\0\0\0",
            5,
            0,
            False,
        )
    ),
    "a period of any frequency": pickled(codec_call("make_period", 1, "__import__('os')")),
    "an offset of nothing": pickled(codec_call("make_offset", "NEVER")),
    "a timestamp of years": pickled(codec_call("make_timestamp", 1, "Y", None, 0)),
    "an interval of lists": pickled(codec_call("make_interval", [1], [2], "both")),
    "NaT of any name": pickled(codec_call("make_missing", "eval")),
    "Arrow's noise": pickled(codec_call("make_arrow", "table", b"C\x10" + b"\xff" * 16)),
}


@pytest.mark.parametrize("raw", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_pickle_is_refused(raw: Any) -> None:
    assert refused(raw)[0] == "protocol"


def test_there_are_more_than_200_hostile_pickles() -> None:
    assert len(GADGETS) + len(MALFORMED) > 200


CHAINS = {
    "deques": named("bridgehead._shipped.data", "make_deque") + b"\x94N\x85R0",
    "defaultdicts": named("bridgehead._shipped.data", "make_default") + b"\x94N\x85R0",
}


@pytest.mark.parametrize("links", [100, pytest.param(20_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("order", ["inwards", "outwards"])
@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_of_containers_that_is_too_long_to_free_is_refused(
    name: str, order: str, links: int
) -> None:
    put = b"a" if name == "deques" else b"s"
    key = b"" if name == "deques" else b"N"
    make = b"h\0N\x85R"
    if order == "inwards":  # each is made inside the previous one
        body = make + (key + make) * links + put * links
    else:  # each is put into the next one
        body = make + b"\x94"
        for place in range(links):
            body += b"0" + make + b"\x94" + key + b"j" + struct.pack("<I", place + 1) + put
    raw = pickled(CHAINS[name], body)
    if links == 100:
        assert len(decode_data([raw])) == 1
    else:
        assert "chain" in refusal(raw, 500 * len(raw))


def test_a_chain_of_object_arrays_is_refused() -> None:
    raw = b"N"
    for _ in range(3000):
        raw = (
            named("bridgehead._shipped.data", "make_objects")
            + b"(K\1\x85"
            + data("C")
            + b"]("
            + raw
        )
    raw = pickled(raw + b"etR" * 3000)
    assert "chain" in refusal(raw, 2000 * 3000)


def test_a_cycle_of_many_deques_is_refused_and_freed() -> None:
    make = b"h\0N\x85R"
    raw = CHAINS["deques"] + make + b"\x94" + make * 10_000 + b"h\1" + b"a" * 10_001
    assert "chain" in refusal(pickled(raw), 500 * len(raw))


def test_many_containers_side_by_side_arrive() -> None:
    value = [collections.deque([collections.deque()]) for _ in range(2000)]
    value.append(lap(collections.deque([1])))
    value += [objects(objects(1), 2) for _ in range(2000)]
    assert same(value, sent(value))


# ---------------------------------------------------------------- the Pythons of this machine

BARE_CODEC = """
import collections, datetime, decimal, fractions, json, os, sys, types, uuid
name, sources, hostile, traces = json.loads(sys.stdin.read())
module = types.ModuleType(name)
sys.modules[name] = module
for source in sources:
    exec(compile(source, "<remote>", "exec"), module.__dict__)
loop = collections.deque([1], 5)
loop.append(loop)
values = [
    None, True, 2**70, 1.5, 2j, "\\ud800x", b"y" * 300, bytearray(b"z"), [1, "a"] * 2000, (1,),
    {"a": {1, 2}, (1, frozenset([2])): []}, range(3), slice(1, None), ..., loop,
    collections.OrderedDict(a=1), collections.Counter("aab"), collections.defaultdict(list, a=[1]),
    datetime.datetime(2020, 1, 2, tzinfo=datetime.timezone.utc), datetime.timedelta(1, 2, 3),
    decimal.Decimal("1.50"), fractions.Fraction(1, 3), uuid.UUID(int=5),
    {"key %d" % n: n for n in range(3000)},
]
frames = [bytes(frame) for frame in module.encode_data(values)]
got = module.decode_data(frames)
assert repr(got) == repr(values), got
assert got[14][1] is got[14]
kinds = []
for raw in hostile:
    before = set(sys.modules)
    try:
        module.decode_data([raw.encode("latin-1")])
    except module.WireError as error:
        kinds.append(error.kind)
    else:
        kinds.append("decoded")
    assert set(sys.modules) == before
    assert not os.path.exists(traces)
try:
    module.encode_data([len])
except module.WireError as error:
    kinds.append(str(error))
print(json.dumps([kinds, frames[0].decode("latin-1")]))
"""
BARE_HOSTILE = {name: raw for name, raw in MALFORMED.items() if isinstance(raw, bytes)}


@pytest.mark.parametrize("python", pythons(), ids=str)
def test_the_codec_works_in_a_bare_python(python: Python) -> None:
    modules = (_errors, _frames, _names, _classes, _libraries, _large, _collector, _pickling)
    shared = [Path(module.__file__).read_text("utf-8") for module in modules]
    sources = [*shared, *(str(frame, "utf-8") for frame in _bootstrap.codec_sources())]
    hostile = [raw for raw, _ in GADGETS.values()] + list(BARE_HOSTILE.values())
    name = "_bridgehead_0123456789ab"
    request = json.dumps([name, sources, [raw.decode("latin-1") for raw in hostile], str(TRACE)])
    ran = subprocess.run(
        [python.path, "-I", "-S", "-c", BARE_CODEC],
        input=request,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    kinds, frame = json.loads(ran.stdout)
    assert kinds[: len(GADGETS)] == ["untrusted"] * len(GADGETS)
    assert set(kinds[len(GADGETS) : -1]) <= {"protocol", "missing"}
    assert kinds[-1] == "builtins.builtin_function_or_method is not data (at [0])"
    # A frame that another Python wrote, under the name of the module there, is decoded here.
    got = decode_data([frame.encode("latin-1")])
    assert got[2] == 2**70
    assert got[20] == decimal.Decimal("1.50")
