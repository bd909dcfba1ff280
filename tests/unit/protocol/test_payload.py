"""Objects as payloads: what they carry, which are refused, and how they are unpickled."""

from __future__ import annotations

import decimal
import functools
import importlib
import pickle
import sys
import threading
import types
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
from cloudpickle.cloudpickle import list_registry_pickle_by_value

from bridgehead import (
    BridgeClosed,
    BridgeError,
    DecodeError,
    EncodeError,
    IncompatiblePython,
    MissingInKernel,
    NameNotFound,
    UntrustedPayload,
)
from bridgehead._protocol import payload
from bridgehead._shipped import data as codec


def test_an_encode_error_names_the_part_and_the_path_in_it() -> None:
    values = {"fine": 1, "config": {"lock": threading.Lock()}}
    with pytest.raises(EncodeError, match=r"^config\['lock'\] cannot be pickled: ") as caught:
        payload.encode(values, values)
    assert caught.value.path == "config['lock']"
    assert isinstance(caught.value.__cause__, TypeError)


@pytest.mark.parametrize("depth", [500, 900, 5000])
@pytest.mark.parametrize("kind", ["list", "dict", "tuple", "object", "partial"])
def test_an_object_nested_too_deeply_is_an_encode_error(depth: int, kind: str) -> None:
    value: Any = None
    for _ in range(depth):
        if kind == "partial":
            value = functools.partial(print, value)
        else:
            nest = {"list": [value], "dict": {"a": value}, "tuple": (value,)}
            value = nest.get(kind) or Nested(value)
    values = {"deep": value}
    source = payload.PayloadSource(values, values)
    if kind == "tuple" and depth < 1000:  # the pickler goes twice as deep into tuples
        assert (source.pack_small("crc32") or source.pack("crc32")).nbytes > depth
        return
    with pytest.raises(EncodeError, match="^deep.* cannot be pickled: .*recursion"):
        assert source.pack_small("crc32") is None
        source.pack("crc32")


class Nested:
    def __init__(self, inner: Any) -> None:
        self.inner = inner


class Unhashed(type):
    __hash__ = None  # type: ignore[assignment]


class BadHash(type):
    def __hash__(cls) -> int:
        raise RuntimeError("no hash")


class Lying:
    @property
    def __class__(self) -> Any:  # type: ignore[override]
        raise RuntimeError("no class")


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no str")


class Opaque:
    def __getattribute__(self, name: str) -> Any:
        raise Mute


ODD: dict[str, tuple[Any, str]] = {
    "its class has no hash": (Unhashed("A", (), {})(), "TypeError: unhashable type"),
    "the hash of its class raises": (BadHash("A", (), {})(), "RuntimeError: no hash"),
    "its __class__ raises": (Lying(), "RuntimeError: no class"),
    "its error has no message": (Opaque(), "Mute: <its str[(][)] raised>"),
}


@pytest.mark.parametrize("value", ODD)
def test_an_encode_error_is_what_any_object_gives_that_raises(value: str) -> None:
    odd, text = ODD[value]
    source = payload.PayloadSource({"a": [1, odd]}, {"a": [1, odd]})
    with pytest.raises(EncodeError, match=rf"^a\[1\] cannot be pickled: {text}"):
        source.pack_small("none") or source.pack("none")


def test_an_encode_error_names_all_parts_when_each_part_pickles_alone() -> None:
    class Once:
        left = 1

        def __reduce__(self) -> Any:
            if Once.left:
                Once.left = 0
                raise ValueError("the first time")
            return int, ()

    values = {"a": 1, "b": Once()}
    with pytest.raises(EncodeError, match=r"a, b cannot be pickled: ValueError: the first time"):
        payload.encode(values, values)


def test_a_payload_knows_its_size_and_what_it_carries() -> None:
    data = payload.encode({"x": b"a" * 5000}, {})
    assert data.nbytes == sum(frame.nbytes for frame in data.frames) > 5000
    assert (data.carries_code, data.refs) == (False, False)
    assert payload.encode({"f": lambda: 1}, {}).carries_code
    assert payload.EMPTY.nbytes == 0


def test_a_payload_is_marked_only_if_it_has_references() -> None:
    class Handle:
        pass

    refs = {Handle: lambda value: (int, ("42",))}
    packed = payload.encode([Handle(), 1], {}, refs=refs)
    assert packed.refs
    assert payload.decode(packed.frames) == [42, 1]
    assert not payload.encode([1], {}, refs=refs).refs


@pytest.mark.parametrize("error", [ValueError, NameNotFound, BridgeClosed])
def test_what_a_reference_raises_is_the_error(error: type[Exception]) -> None:
    class Handle:
        pass

    def refuse(value: Any) -> Any:
        raise error("refused")

    with pytest.raises(error, match="refused"):
        payload.encode([Handle()], {"handle": Handle()}, refs={Handle: refuse})


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    (tmp_path / "users_module.py").write_text("def double(x): return 2 * x\nclass Stuck: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "users_module", raising=False)
    return importlib.import_module("users_module")


def test_a_module_is_shipped_by_value_only_when_asked(module: types.ModuleType) -> None:
    assert not payload.encode(module.double, {}).carries_code
    packed = payload.encode(module.double, {}, by_value=[module])
    assert packed.carries_code
    assert not payload.encode(module.double, {}).carries_code
    del sys.modules["users_module"]
    assert payload.decode(packed.frames)(4) == 8


def test_a_module_is_unregistered_after_a_failure_too(module: types.ModuleType) -> None:
    with pytest.raises(EncodeError):
        payload.encode(threading.Lock(), {"x": threading.Lock()}, by_value=[module])
    assert "users_module" not in list_registry_pickle_by_value()


def test_a_module_that_the_user_registered_stays_registered(module: types.ModuleType) -> None:
    cloudpickle.register_pickle_by_value(module)
    try:
        assert payload.encode(module.double, {}, by_value=[module]).carries_code
        assert "users_module" in list_registry_pickle_by_value()
    finally:
        cloudpickle.unregister_pickle_by_value(module)


OURS = list(sys.version_info[:2])
OTHER = [OURS[0], OURS[1] + 1]
CODE = payload.encode(lambda: 1, {})
DATA = payload.encode([1], {})


@pytest.mark.parametrize(
    ("packed", "python", "versions", "refused"),
    [
        pytest.param(DATA, OTHER, {}, None, id="data to another Python"),
        pytest.param(DATA, [3, 8], {}, None, id="data to 3.8"),
        pytest.param(CODE, [*OURS, 99], {"cloudpickle": "3"}, None, id="code to the same minor"),
        pytest.param(CODE, OTHER, {"cloudpickle": "3"}, IncompatiblePython, id="code to another"),
        pytest.param(CODE, OURS, {"numpy": "2"}, MissingInKernel, id="code without cloudpickle"),
    ],
)
def test_code_is_refused_before_it_is_sent_and_data_is_not(
    packed: Any, python: Any, versions: Any, refused: type[BridgeError] | None
) -> None:
    if refused is None:
        assert payload.check_payload(packed, python, versions) is None
    else:
        with pytest.raises(refused) as caught:
            payload.check_payload(packed, python, versions)
        assert type(caught.value) is refused


@pytest.mark.parametrize(
    ("frames", "text"),
    [
        pytest.param([b"no pickle"], "cannot be unpickled here", id="not a pickle"),
        pytest.param([b""], "cannot be unpickled here", id="an empty frame"),
        pytest.param(
            [b"cno_such_module\nThing\n."], "'no_such_module' exists in the", id="an unknown module"
        ),
        pytest.param([b"cos\nno_such_name\n."], "no_such_name", id="an unknown name"),
        pytest.param([b"\x80\x05\x97."], "cannot be unpickled here", id="a missing buffer"),
        pytest.param([b"\x80\x63."], "cannot be unpickled here", id="a newer protocol"),
        pytest.param(
            [pickle.dumps([1] * 50)[:-9]], "cannot be unpickled here", id="a truncated pickle"
        ),
    ],
)
def test_a_pickle_that_cannot_be_opened_is_a_decode_error(frames: list[bytes], text: str) -> None:
    with pytest.raises(DecodeError, match=text) as caught:
        payload.decode(frames)
    assert isinstance(caught.value.__cause__, Exception)


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def tower(height: int) -> Any:
    value: Any = ()
    for _ in range(height):
        value = (value, value)
    return value


BEYOND_DATA = {
    "a slice of a list": slice([1], None),
    "lists nested too deeply": nested(300),
    "a tower of tuples": tower(40),
    "a dtype with fields in one place": np.dtype(
        {"names": ["a", "b"], "formats": ["i4", "i2"], "offsets": [0, 0]}
    ),
    "a bool that is neither 0 nor 1": np.array([2], "u1").view(bool),
    "keys of one hash": dict.fromkeys(n * sys.hash_info.modulus for n in range(1, 1500)),
    "a decimal that takes long to convert": decimal.Decimal("1E+999999"),
    "a sparse array of many rows": [np.zeros((10**9, 0))],
}


@pytest.mark.parametrize("value", BEYOND_DATA.values(), ids=BEYOND_DATA)
def test_what_no_reader_of_data_takes_is_refused_before_it_is_sent(value: Any) -> None:
    values = {"fine": [1], "bad": value}
    refused = "^bad (cannot cross as data: |is a .*, which is not data).*nothing was sent"
    with pytest.raises(UntrustedPayload, match=refused):
        payload.encode_data(values, values)


def test_lists_nested_beyond_the_limit_of_the_pickler_are_refused() -> None:
    with pytest.raises(EncodeError):
        payload.encode_data({"x": nested(100_000)}, {"x": 1})


def raise_mute() -> None:
    raise Mute


class Muting:
    def __reduce__(self) -> Any:
        return raise_mute, ()


def test_a_decode_error_needs_no_message_of_its_cause() -> None:
    frames = payload.encode([Muting()], {}).frames
    with pytest.raises(DecodeError, match="unpickled here: Mute: <its str[(][)] raised>"):
        payload.decode(frames)


def test_a_value_for_which_there_is_no_memory_is_a_decode_error() -> None:
    """K4. The request ran, and the error says what is missing here."""

    def no_memory(*args: Any) -> Any:
        raise MemoryError

    class Dear:
        def __reduce__(self) -> Any:
            return no_memory, ()

    with pytest.raises(DecodeError, match="the request ran.*memory") as caught:
        payload.decode([memoryview(cloudpickle.dumps(Dear()))])
    assert isinstance(caught.value.__cause__, MemoryError)

    class Full:
        def __setstate__(self, state: Any) -> None:
            raise MemoryError

    frames = codec.encode_data(types.SimpleNamespace(a=1), ["types.SimpleNamespace"])
    with pytest.raises(DecodeError, match="the request ran.*memory") as caught:
        payload.decode_data(frames, {"types.SimpleNamespace": Full})
    assert isinstance(caught.value.__cause__, MemoryError)
