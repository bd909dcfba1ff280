"""The near side of the protocol by itself: what is asked, and what any answer becomes.

Rule: an answer is untrusted until it was checked. Whatever a kernel says, the caller gets a
value or a ``BridgeError``, never an accident.
"""

from __future__ import annotations

import ast
import base64
import copy
import json
import pickle
import random
import re
import sys
import threading
import types
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import cloudpickle
import pytest
from cloudpickle.cloudpickle import list_registry_pickle_by_value

from bridgehead import (
    BridgeError,
    DecodeError,
    EncodeError,
    IncompatiblePython,
    IntegrityError,
    KernelRestarted,
    MissingInKernel,
    NameNotFound,
    ProtocolError,
    RemoteError,
    ReplyLost,
    UnsupportedKernel,
)
from bridgehead._lanes.base import Request
from bridgehead._lanes.inline import InlineLane
from bridgehead._protocol import bootstrap as _shipping
from bridgehead._protocol import payload as _parcel
from bridgehead._protocol import request as _request
from bridgehead._protocol import response as _protocol
from bridgehead._protocol.raising import raise_error
from bridgehead._protocol.request import KEY
from bridgehead._shipped.wire import frames as _wire
from bridgehead._shipped.wire import pickling as _codec
from bridgehead._shipped.wire.header import MIME
from bridgehead._transports.base import LARGEST

LOADER = _shipping.loader_source()[0]
EMPTY_DIGEST = "crc32:00000000"

# ---------------------------------------------------------------- what is asked


def header(**fields: Any) -> dict[str, Any]:
    return _request.header("fetch", [], epoch="e", algorithm="crc32", **fields)


def test_a_header_tells_what_the_other_side_must_check() -> None:
    frames = [memoryview(b"123"), memoryview(b""), memoryview(b"456789")]
    made = _request.header("bind", frames, epoch="abc", algorithm="crc32", names=["x"])
    assert made["sizes"] == [3, 0, 6]
    assert made["digest"] == "crc32:cbf43926"
    assert (made["op"], made["epoch"], made["names"]) == ("bind", "abc", ["x"])
    assert made["python"] == list(sys.version_info[:2])
    assert (made["at"], made["piece"]) == (0, 0)


def test_every_request_has_an_id_of_its_own() -> None:
    assert len({header()["id"] for _ in range(100)}) == 100


def test_the_loaders_name_tells_its_version_and_is_no_users_name() -> None:
    name, sources = _shipping.loader_source()
    assert re.fullmatch("_bridgehead_[0-9a-f]{12}", name)
    assert len(sources) == len(_shipping.SHIPPED)
    assert {source[:3] for source in sources} == {'"""'}


@pytest.mark.parametrize("install", [False, True])
def test_an_expression_is_one_python_expression_in_ascii(install: bool) -> None:
    text = _shipping.expression("inline", header(names=["größe", "'\"\\"]), "QUJD", install=install)
    assert "\n" not in text
    assert install or text.isascii()
    assert isinstance(ast.parse(text, mode="eval").body, ast.Call)


@pytest.mark.parametrize("install", [False, True])
def test_an_expression_uses_no_name_that_a_user_could_shadow(install: bool) -> None:
    tree = ast.parse(_shipping.expression("inline", header(), "", install=install), mode="eval")
    bound = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            bound.add(node.id)
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert used <= bound


def test_an_expression_carries_header_and_data_unchanged() -> None:
    asked = header(names=["größe", "a'b\"c\\d\ne"], expressions=["x['k']"])
    tree = ast.parse(_shipping.expression("inline", asked, "QUJD"), mode="eval")
    lane, text, data = [ast.literal_eval(arg) for arg in tree.body.args[1:]]
    assert (lane, json.loads(text), data) == ("inline", asked, "QUJD")


def test_only_the_first_expression_carries_the_loader() -> None:
    sources = _shipping.loader_source()[1]
    first = _shipping.expression("inline", header(), install=True)
    assert len(first) > sum(map(len, sources))
    assert len(_shipping.expression("inline", header())) < 1000


def test_a_request_is_seen_by_nobody_and_stops_nothing() -> None:
    content = _request.execute_content("1 + 1")
    assert content["user_expressions"] == {KEY: "1 + 1"}
    assert content["code"] == ""
    assert content["silent"] is True
    for field in ("store_history", "allow_stdin", "stop_on_error"):
        assert content[field] is False


# ---------------------------------------------------------------- what comes back


def content_of(told: Any) -> dict[str, Any]:
    """The content of an execute_reply that carries an answer."""
    return entry({"status": "ok", "data": {MIME: json.dumps(told), "text/plain": ""}})


def entry(value: Any) -> dict[str, Any]:
    return {"status": "ok", "user_expressions": {KEY: value}}


def failed(ename: str, evalue: str, traceback: Any = ()) -> dict[str, Any]:
    return entry({"status": "error", "ename": ename, "evalue": evalue, "traceback": traceback})


def answer_of(value: Any, **fields: Any) -> tuple[dict[str, Any], list[bytes]]:
    """A good answer's header and frames."""
    frames = _codec.encode(value)[0]
    sizes = [frame.nbytes for frame in frames]
    told = {"sizes": sizes, "digest": _wire.digest("sha256", frames), **fields}
    return told, [bytes(frame) for frame in frames]


def consume(content: Any, parts: list[bytes]) -> list[memoryview]:
    """What a lane does with a reply."""
    told = _protocol.answer(content)
    inbox = _protocol.open_answer(told)
    _protocol.add_piece(told, inbox, 0, parts)
    frames = _protocol.close_answer(inbox)
    raise_error(told, frames)
    return frames


def error_of(error: Any, *, frames: list[bytes] | None = None) -> dict[str, Any]:
    parts = frames or []
    signed = {"sizes": list(map(len, parts)), "digest": _wire.digest("crc32", parts)}
    return content_of({"error": error, **signed})


def test_a_good_answer_is_its_frames() -> None:
    told, parts = answer_of({"x": [1, 2], "b": b"\xff" * 5000})
    frames = consume(content_of(told), parts)
    assert _parcel.decode(frames) == {"x": [1, 2], "b": b"\xff" * 5000}


def test_an_answer_of_no_frames_is_good_too() -> None:
    assert consume(content_of({"sizes": [], "digest": EMPTY_DIGEST}), []) == []


def test_an_answer_may_come_in_pieces() -> None:
    told, parts = answer_of(b"\xff" * 5000)
    data = b"".join(parts)
    inbox = _protocol.open_answer(told)
    for start, stop in ((0, 1000), (3000, len(data)), (1000, 3000)):
        parts = [data[start : stop - 500], data[stop - 500 : stop]]
        more = {"digest": _wire.digest("sha256", parts)}
        _protocol.add_piece(more, inbox, start, parts)
    assert _parcel.decode(_protocol.close_answer(inbox)) == b"\xff" * 5000


KINDS: dict[str, tuple[dict[str, Any], type[BridgeError], str]] = {
    "name": (
        {"kind": "name", "message": "xs", "names": ["xs"], "close": ["x"]},
        NameNotFound,
        r"^no 'xs' in the kernel; did you mean 'x'\?$",
    ),
    "missing": (
        {"kind": "missing", "message": "No module named 'a.b'", "module": "a.b", "where": "/py"},
        MissingInKernel,
        r"/py.*cannot import 'a\.b'.*by_value=\[a\]",
    ),
    "incompatible": (
        {"kind": "incompatible", "message": "the value carries code objects of Python 3.8"},
        IncompatiblePython,
        rf"Python 3\.8, and this is Python 3\.{sys.version_info[1]}",
    ),
    "integrity": (
        {"kind": "integrity", "message": "3 of 4 bytes arrived"},
        IntegrityError,
        "3 of 4 bytes arrived",
    ),
    "epoch": ({"kind": "epoch", "message": "?"}, KernelRestarted, "restarted"),
    "protocol": (
        {"kind": "protocol", "message": "unknown operation"},
        ProtocolError,
        "unknown operation",
    ),
    "unheard of": (
        {"kind": "quantum", "message": "entangled"},
        ProtocolError,
        "entangled",
    ),
    "remote": (
        {"kind": "remote", "ename": "ValueError", "evalue": "bad", "traceback": ["a", "b"]},
        RemoteError,
        "^ValueError: bad\n\nin the kernel:\na\nb$",
    ),
}


@pytest.mark.parametrize(("error", "cls", "text"), KINDS.values(), ids=KINDS.keys())
def test_each_kind_of_error_is_a_class_here(
    error: dict[str, Any], cls: type[BridgeError], text: str
) -> None:
    with pytest.raises(BridgeError, match=text) as caught:
        consume(error_of(error), [])
    assert type(caught.value) is cls


def test_errors_bring_what_they_know() -> None:
    with pytest.raises(NameNotFound) as unknown:
        consume(error_of({"kind": "name", "names": ["a", "b"], "close": []}), [])
    assert unknown.value.names == ("a", "b")
    assert str(unknown.value) == "no 'a', 'b' in the kernel"
    with pytest.raises(MissingInKernel) as missing:
        consume(error_of({"kind": "missing", "message": "no", "module": "torch"}), [])
    assert missing.value.module == "torch"


REMOTE = {"kind": "remote", "ename": "LookupError", "evalue": "bad", "traceback": ["a"]}


def test_a_remote_error_brings_the_original_as_its_cause() -> None:
    frames = [pickle.dumps(LookupError("bad", 7))]
    with pytest.raises(RemoteError) as caught:
        consume(error_of(dict(REMOTE, code_of=None), frames=frames), frames)
    assert type(caught.value.__cause__) is LookupError
    assert caught.value.__cause__.args == ("bad", 7)
    assert (caught.value.ename, caught.value.traceback) == ("LookupError", ["a"])


@pytest.mark.parametrize(
    ("code_of", "frame"),
    [
        pytest.param([2, 7], pickle.dumps(LookupError("bad")), id="code of another Python"),
        pytest.param("3.11", pickle.dumps(LookupError("bad")), id="code of who knows what"),
        pytest.param(None, b"no pickle", id="no pickle"),
        pytest.param(None, b"cno_such_module\nThing\n.", id="a class that is not here"),
        pytest.param(None, pickle.dumps("text"), id="no exception"),
    ],
)
def test_a_cause_that_cannot_be_rebuilt_is_left_out(code_of: Any, frame: bytes) -> None:
    with pytest.raises(RemoteError, match="LookupError: bad") as caught:
        consume(error_of(dict(REMOTE, code_of=code_of), frames=[frame]), [frame])
    assert caught.value.__cause__ is None


def test_a_loader_that_is_gone_is_a_restart() -> None:
    with pytest.raises(KernelRestarted):
        consume(failed("KeyError", repr(LOADER)), [])


def test_another_error_outside_the_loader_is_a_remote_error() -> None:
    with pytest.raises(RemoteError, match="KeyError: 'x'"):
        consume(failed("KeyError", "'x'"), [])
    with pytest.raises(RemoteError) as caught:
        consume(failed("KeyboardInterrupt", "", ["line 1", "line 2"]), [])
    assert caught.value.traceback == ["line 1", "line 2"]
    whole = {"status": "error", "ename": "KeyboardInterrupt", "evalue": "", "traceback": ["t"]}
    with pytest.raises(RemoteError, match="KeyboardInterrupt"):
        consume(whole, [])


SILENT: dict[str, Any] = {
    "no user_expressions": {"status": "ok"},
    "user_expressions that are null": {"status": "ok", "user_expressions": None},
    "no entry": {"status": "ok", "user_expressions": {}},
    "an entry that is null": entry(None),
    "no data": entry({"status": "ok"}),
    "data that is null": entry({"status": "ok", "data": None}),
    "only a repr": entry({"status": "ok", "data": {"text/plain": "<Answer>"}}),
    "an aborted request": {"status": "aborted"},
}


@pytest.mark.parametrize("content", SILENT.values(), ids=SILENT.keys())
def test_support_is_judged_by_a_value_that_came_back(content: Any) -> None:
    with pytest.raises(UnsupportedKernel):
        consume(content, [])


# ---------------------------------------------------------------- hostile answers

ODD: list[Any] = [
    None, True, False, 0, 1, -1, 7, 1.5, float("nan"), 2**60, 2**63, 2**64, 10**30, -(2**60),
    "", "x", "\ud800", [], [None], [[]], [[[1]]], [1, "a"], {}, {"a": None}, {"": {}},
]  # fmt: skip


def named(value: Any) -> str:
    return repr(value)[:40].encode("ascii", "replace").decode()


odd = pytest.mark.parametrize("value", ODD, ids=named)


def is_told(content: Any, parts: list[bytes]) -> None:
    """The content leads to a BridgeError whose text can be shown and which pickles."""
    with pytest.raises(BridgeError) as caught:
        consume(content, parts)
    assert isinstance(str(caught.value), str)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def holds(content: Any, parts: list[bytes]) -> None:
    """The content leads to frames or to a BridgeError, as above, and to nothing else."""
    try:
        frames = consume(content, parts)
    except BridgeError:
        is_told(content, parts)
    else:
        assert all(isinstance(frame, memoryview) for frame in frames)


@odd
def test_any_content_is_told(value: Any) -> None:
    is_told(value, [])


@odd
@pytest.mark.parametrize("status", ["ok", "error"])
def test_any_user_expressions_are_told(value: Any, status: str) -> None:
    is_told({"status": status, "user_expressions": value}, [])


@odd
def test_any_entry_is_told(value: Any) -> None:
    is_told(entry(value), [])


@odd
@pytest.mark.parametrize("field", ["status", "ename", "evalue", "traceback"])
def test_any_field_of_a_failed_entry_is_told(value: Any, field: str) -> None:
    fields = {"status": "error", "ename": "E", "evalue": "v", "traceback": ["t"], field: value}
    is_told(entry(fields), [])


@odd
@pytest.mark.parametrize("field", ["ename", "evalue", "traceback"])
def test_any_field_of_a_failed_reply_is_told(value: Any, field: str) -> None:
    is_told({"status": "error", "ename": "E", "evalue": "v", "traceback": ["t"], field: value}, [])


@odd
def test_any_data_is_told(value: Any) -> None:
    is_told(entry({"status": "ok", "data": value}), [])


@odd
def test_any_value_of_our_mime_type_is_told(value: Any) -> None:
    is_told(entry({"status": "ok", "data": {MIME: value}}), [])


@odd
def test_any_json_instead_of_an_answer_is_told(value: Any) -> None:
    is_told(content_of(value), [])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "nothing",
        '{"sizes": [1',
        "\x00",
        "[" * 100_000,
        '{"a":' * 100_000,
        "[" * 100_000 + "]" * 100_000,
        "9" * 100_000,
    ],
    ids=lambda text: repr(text[:12]) + f" {len(text)} long",
)
def test_any_text_instead_of_json_is_told(text: str) -> None:
    with pytest.raises(ProtocolError):
        consume(entry({"status": "ok", "data": {MIME: text}}), [])


@pytest.mark.parametrize(
    "sizes",
    [
        *[value for value in ODD if value not in ("", [], {})],
        *[[value] for value in ODD if type(value) is not int or value < 0],
        [1, -1],
    ],
    ids=named,
)
def test_sizes_that_are_none_are_a_protocol_error(sizes: Any) -> None:
    with pytest.raises(ProtocolError):
        consume(content_of({"sizes": sizes, "digest": EMPTY_DIGEST}), [])


def test_missing_sizes_are_a_protocol_error() -> None:
    with pytest.raises(ProtocolError):
        consume(content_of({"digest": EMPTY_DIGEST}), [])


@pytest.mark.parametrize("size", [2**60, 2**62, 2**63, 2**64, 10**30], ids=lambda n: f"{n:.0e}")
def test_sizes_beyond_any_memory_are_told(size: int) -> None:
    is_told(content_of({"sizes": [3, size], "digest": EMPTY_DIGEST}), [b"abc"])


@odd
def test_an_answer_with_any_digest_but_the_right_one_is_lost(value: Any) -> None:
    told, parts = answer_of([1, 2, 3], digest=value)
    with pytest.raises(ReplyLost):
        consume(content_of(told), parts)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        pytest.param(lambda parts: [], "digest", id="none"),
        pytest.param(lambda parts: [parts[0][:-1]], "of", id="too few"),
        pytest.param(lambda parts: [*parts, b"x"], "do not fit", id="too many"),
        pytest.param(lambda parts: [parts[0][::-1]], "digest", id="others"),
    ],
)
def test_an_answer_whose_frames_are_not_those_signed_is_lost(
    change: Callable[[list[bytes]], list[bytes]], text: str
) -> None:
    told, parts = answer_of(["a", "b"])
    with pytest.raises(ReplyLost, match=text):
        consume(content_of(told), change(parts))


@odd
def test_any_error_but_none_is_told(value: Any) -> None:
    if value is None:
        assert consume(error_of(value), []) == []
    else:
        is_told(error_of(value), [])


@odd
@pytest.mark.parametrize("field", ["kind", "message", "names", "close", "module", "where"])
@pytest.mark.parametrize("kind", ["name", "missing", "incompatible", "integrity", "epoch"])
def test_any_field_of_an_error_is_told(value: Any, field: str, kind: str) -> None:
    is_told(error_of({**KINDS[kind][0], field: value}), [])


@odd
@pytest.mark.parametrize("field", ["ename", "evalue", "traceback", "code_of"])
def test_any_field_of_a_remote_error_is_told(value: Any, field: str) -> None:
    frames = [pickle.dumps(LookupError("bad"))]
    is_told(error_of({**REMOTE, "code_of": None, field: value}, frames=frames), frames)


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_that_tells_nothing_but_its_kind_is_told(kind: str) -> None:
    with pytest.raises(BridgeError) as caught:
        consume(error_of({"kind": KINDS[kind][0]["kind"]}), [])
    assert type(caught.value) is KINDS[kind][1]


def test_an_error_that_tells_nothing_is_a_protocol_error() -> None:
    with pytest.raises(ProtocolError):
        consume(error_of({}), [])


def mutated(value: Any, source: random.Random) -> Any:
    """``value`` with one node of it, anywhere, replaced, removed or put elsewhere."""
    value = copy.deepcopy(value)
    places: list[tuple[Any, Any]] = []

    def visit(node: Any) -> None:
        pairs = node.items() if isinstance(node, dict) else enumerate(node)
        for key, child in pairs:
            places.append((node, key))
            if isinstance(child, (dict, list)):
                visit(child)

    visit(value)
    node, key = source.choice(places)
    if source.random() < 0.3:
        del node[key]
    else:
        node[key] = source.choice([*ODD, [node[key]], {"x": node[key]}, str(node[key])])
    return value


@pytest.mark.parametrize("seed", range(40))
def test_answers_damaged_anywhere_are_told_or_harmless(seed: int) -> None:
    source = random.Random(seed)
    frames = [pickle.dumps(LookupError("bad"))]
    signed = {"sizes": [len(frames[0])], "digest": _wire.digest("crc32", frames)}
    told: list[Any] = [{**signed, "error": dict(kind[0], code_of=None)} for kind in KINDS.values()]
    told += [signed, {**signed, "names": [{"name": "x"}], "epoch": "0"}]
    for _ in range(50):
        inner = source.choice(told)
        for _ in range(source.randrange(3)):
            inner = mutated(inner, source)
        content = content_of(inner)
        for _ in range(source.randrange(2)):
            content = mutated(content, source)
        holds(content, source.choice([frames, [], [b"x"], [frames[0] + b"x"]]))


def wire(request: Any) -> Any:
    """As much of a transport as a lane needs."""
    spawn = lambda work: work.close()  # noqa: E731
    return SimpleNamespace(
        dispatcher=SimpleNamespace(request=request),
        spawn=spawn,
        resumes=False,
        largest=LARGEST,
        largest_back=LARGEST,
    )


@odd
async def test_any_inline_data_is_told(value: Any) -> None:
    told, _ = answer_of([1, 2, 3])

    async def request(content: Any, **order: Any) -> Any:
        return SimpleNamespace(content=content_of({**told, "data": value}), buffers=[])

    lane = InlineLane(wire(request))
    with pytest.raises((ProtocolError, ReplyLost)):
        request = Request(header(), [])
        await lane.rest(request, await lane.carry(request))


async def test_inline_data_is_decoded() -> None:
    told, parts = answer_of([1, 2, 3])
    data = base64.b64encode(b"".join(parts)).decode()

    async def request(content: Any, **order: Any) -> Any:
        return SimpleNamespace(content=content_of({**told, "data": data}), buffers=[])

    lane = InlineLane(wire(request))
    asked = Request(header(), [])
    _, frames = await lane.rest(asked, await lane.carry(asked))
    assert _parcel.decode(frames) == [1, 2, 3]


# ---------------------------------------------------------------- objects


def test_an_encode_error_names_the_part_and_the_path_in_it() -> None:
    values = {"fine": 1, "config": {"lock": threading.Lock()}}
    with pytest.raises(EncodeError, match=r"^config\['lock'\] cannot be pickled: ") as caught:
        _parcel.encode(values, values)
    assert caught.value.path == "config['lock']"
    assert isinstance(caught.value.__cause__, TypeError)


def test_an_encode_error_blames_nobody_when_each_part_pickles_alone() -> None:
    class Once:
        left = 1

        def __reduce__(self) -> Any:
            if Once.left:
                Once.left = 0
                raise ValueError("the first time")
            return int, ()

    values = {"a": 1, "b": Once()}
    with pytest.raises(EncodeError, match=r"a, b cannot be pickled: ValueError: the first time"):
        _parcel.encode(values, values)


def test_a_parcel_tells_its_size_and_what_it_carries() -> None:
    data = _parcel.encode({"x": b"a" * 5000}, {})
    assert data.nbytes == sum(frame.nbytes for frame in data.frames) > 5000
    assert (data.carries_code, data.refs) == (False, False)
    assert _parcel.encode({"f": lambda: 1}, {}).carries_code
    assert _parcel.EMPTY.nbytes == 0


def test_references_are_marked_only_where_there_are_some() -> None:
    class Handle:
        pass

    def refs(value: Any) -> Any:
        return (int, ("42",)) if type(value) is Handle else None

    parcel = _parcel.encode([Handle(), 1], {}, refs=refs)
    assert parcel.refs
    assert _parcel.decode(parcel.frames) == [42, 1]
    assert not _parcel.encode([1], {}, refs=refs).refs


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    made = types.ModuleType("of_my_own")
    exec("def double(x): return 2 * x\nclass Stuck:\n    pass\n", made.__dict__)
    monkeypatch.setitem(sys.modules, "of_my_own", made)
    return made


def test_a_module_is_shipped_by_value_only_when_asked(module: types.ModuleType) -> None:
    assert not _parcel.encode(module.double, {}).carries_code
    parcel = _parcel.encode(module.double, {}, by_value=[module])
    assert parcel.carries_code
    assert not _parcel.encode(module.double, {}).carries_code
    del sys.modules["of_my_own"]
    assert _parcel.decode(parcel.frames)(4) == 8


def test_a_module_is_unregistered_after_a_failure_too(module: types.ModuleType) -> None:
    with pytest.raises(EncodeError):
        _parcel.encode(threading.Lock(), {"x": threading.Lock()}, by_value=[module])
    assert "of_my_own" not in list_registry_pickle_by_value()


def test_a_module_that_the_user_registered_stays_registered(module: types.ModuleType) -> None:
    cloudpickle.register_pickle_by_value(module)
    try:
        assert _parcel.encode(module.double, {}, by_value=[module]).carries_code
        assert "of_my_own" in list_registry_pickle_by_value()
    finally:
        cloudpickle.unregister_pickle_by_value(module)


HERE = list(sys.version_info[:2])
OTHER = [HERE[0], HERE[1] + 1]
CODE = _parcel.encode(lambda: 1, {})
DATA = _parcel.encode([1], {})


@pytest.mark.parametrize(
    ("parcel", "python", "versions", "refused"),
    [
        pytest.param(DATA, OTHER, {}, None, id="data to another Python"),
        pytest.param(DATA, [3, 8], {}, None, id="data to 3.8"),
        pytest.param(CODE, [*HERE, 99], {"cloudpickle": "3"}, None, id="code to the same minor"),
        pytest.param(CODE, OTHER, {"cloudpickle": "3"}, IncompatiblePython, id="code to another"),
        pytest.param(CODE, HERE, {"numpy": "2"}, MissingInKernel, id="code without cloudpickle"),
    ],
)
def test_code_is_refused_before_it_is_sent_and_data_never(
    parcel: Any, python: Any, versions: Any, refused: type[BridgeError] | None
) -> None:
    if refused is None:
        assert _parcel.check_parcel(parcel, python, versions) is None
    else:
        with pytest.raises(refused) as caught:
            _parcel.check_parcel(parcel, python, versions)
        assert type(caught.value) is refused


@pytest.mark.parametrize(
    ("frames", "text"),
    [
        pytest.param([b"no pickle"], "cannot be unpickled here", id="no pickle"),
        pytest.param([b""], "cannot be unpickled here", id="nothing"),
        pytest.param([b"cno_such_module\nThing\n."], "'no_such_module' exists in the", id="module"),
        pytest.param([b"cos\nno_such_name\n."], "no_such_name", id="a name that is not here"),
        pytest.param([b"\x80\x05\x97."], "cannot be unpickled here", id="a buffer too few"),
        pytest.param([b"\x80\x63."], "cannot be unpickled here", id="a newer pickle"),
        pytest.param([pickle.dumps([1] * 50)[:-9]], "cannot be unpickled here", id="cut off"),
    ],
)
def test_what_cannot_be_unpickled_here_is_a_decode_error(frames: list[bytes], text: str) -> None:
    with pytest.raises(DecodeError, match=text) as caught:
        _parcel.decode(frames)
    assert isinstance(caught.value.__cause__, Exception)
