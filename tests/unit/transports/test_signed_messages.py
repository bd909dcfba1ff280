"""Signed messages are read, or refused, as jupyter_client reads and refuses them.

Rule: the counterpart is jupyter_client's ``Session``, never a copy of it.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st
from jupyter_client.jsonutil import extract_dates
from jupyter_client.session import DELIM, Session

from bridgehead import ProtocolError
from bridgehead._transports.signed_messages import REMEMBERED, SignedMessages, split

KEY = b"a key"
BUFFERS = [b"", b"one", bytes(1 << 17)]


def session(key: bytes = KEY, scheme: str = "hmac-sha256", **traits: Any) -> Session:
    return Session(key=key, signature_scheme=scheme, **traits)


def frames_of(parts: list[bytes]) -> list[zmq.Frame]:
    return [zmq.Frame(part) for part in parts]


def status(sender: Session) -> list[bytes]:
    """Return the parts of a message as a kernel publishes it, without its topic."""
    request = sender.msg("execute_request", {"code": "1"})
    return sender.serialize(sender.msg("status", {"execution_state": "busy"}, parent=request))[1:]


def plain(message: dict[str, Any]) -> str:
    """Describe a message, its dates as jupyter_client makes them; NaN equals itself here."""
    headers = {part: extract_dates(message[part]) for part in ("header", "parent_header")}
    headers["header"].pop("date", None)  # jupyter_client adds one if there is none
    buffers = [bytes(buffer) for buffer in message["buffers"]]
    return repr(sorted({**message, **headers, "buffers": buffers}.items()))


def outcome(read: Any, parts: list[bytes]) -> str:
    try:
        return plain(read(frames_of(parts)))
    except ProtocolError:
        return "refused"


def outcome_there(reader: Session, parts: list[bytes]) -> str:
    try:
        return plain(reader.deserialize(frames_of(parts), copy=False))
    except Exception:  # of any class
        return "refused"


# ---------------------------------------------------------------- any message

TEXTS = st.text("ab01.:-TZ é\udc80\0", max_size=6)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXTS)
VALUES = st.recursive(
    SCALARS,
    lambda part: st.one_of(st.lists(part, max_size=3), st.dictionaries(TEXTS, part, max_size=3)),
    max_leaves=6,
)
OBJECTS = st.dictionaries(TEXTS, VALUES, max_size=3)
DATES = st.sampled_from(
    ["2026-11-30T09:00:00.123456Z", "2026-11-30T09:00:00+01:00", "monday", None]
)
VERSIONS = st.sampled_from(["5.4", "5.0", "5", "4.1", "6.0", "05.1", "5.x", "x", "", None, 5, [5]])
TYPES = st.sampled_from(
    [
        *("status", "stream", "pyout", "pyin", "pyerr", "object_info_reply", "inspect_reply"),
        *("kernel_info_reply", "execute_reply", "complete_reply", "display_data", "input_request"),
    ]
)


def mostly(usual: st.SearchStrategy[Any], other: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.integers(0, 19).flatmap(lambda number: usual if number else other)


@st.composite
def headers(draw: Any) -> dict[str, Any]:
    header = {
        "msg_id": draw(st.one_of(TEXTS, DATES)),
        "msg_type": draw(mostly(TYPES, VALUES)),
        "date": draw(DATES),
        "version": draw(st.one_of(st.sampled_from(["5.4", "4.1"]), VERSIONS)),
        **draw(OBJECTS),
    }
    return {key: header[key] for key in header if draw(mostly(st.just(True), st.just(False)))}


CONTENTS = st.fixed_dictionaries(
    {},
    optional={
        "status": st.sampled_from(["ok", "error", 1]),
        "data": st.one_of(TEXTS, st.dictionaries(st.just("application/json"), TEXTS), VALUES),
        "language": TEXTS,
        "protocol_version": st.one_of(st.lists(st.integers(0, 9)), TEXTS),
        "payload": st.lists(st.fixed_dictionaries({"source": st.just("page"), "text": TEXTS})),
        "matches": st.lists(TEXTS),
        "matched_text": TEXTS,
        "found": st.booleans(),
    },
)


@st.composite
def texts(draw: Any) -> list[bytes]:
    """Draw the four parts that are signed: JSON mostly, of a message mostly."""
    values = [
        draw(mostly(headers(), VALUES)),
        draw(mostly(st.one_of(headers(), st.just({})), VALUES)),
        draw(mostly(OBJECTS, VALUES)),
        draw(mostly(st.one_of(CONTENTS, OBJECTS), VALUES)),
    ]
    parts = [json.dumps(value).encode() for value in values]
    if draw(mostly(st.just(False), st.just(True))):
        parts[draw(st.integers(0, 3))] = draw(
            st.one_of(
                st.binary(max_size=9), st.sampled_from([b'"\xff\xed\xb2\x80"', b"[" * 99_999])
            )
        )
    return parts


@st.composite
def changed(draw: Any, parts: list[bytes]) -> list[bytes]:
    """Draw a copy of a message that was harmed on its way."""
    parts = list(parts)
    place = draw(st.integers(0, len(parts) - 1))
    kind = draw(st.sampled_from(["none", "bit", "cut", "drop", "again", "swap", "empty", "upper"]))
    if kind == "bit" and parts[place]:
        damaged = bytearray(parts[place])
        damaged[draw(st.integers(0, len(damaged) - 1))] ^= 1 << draw(st.integers(0, 7))
        parts[place] = bytes(damaged)
    elif kind == "cut":
        del parts[place:]
    elif kind == "drop":
        del parts[place]
    elif kind == "again":
        parts.insert(place, parts[place])
    elif kind == "swap":
        other = draw(st.integers(0, len(parts) - 1))
        parts[place], parts[other] = parts[other], parts[place]
    elif kind == "empty":
        parts[place] = b""
    elif kind == "upper":
        parts[place] = parts[place].upper()
    return parts


@given(
    texts(),
    st.sampled_from([b"", KEY]),
    st.sampled_from(["hmac-sha256", "hmac-sha512", "hmac-md5"]),
    st.lists(st.sampled_from(BUFFERS), max_size=2),
    st.data(),
)
@pytest.mark.filterwarnings("ignore:.*ecated")
def test_any_message_is_read_or_refused_as_jupyter_client_does(
    signed: list[bytes], key: bytes, scheme: str, buffers: list[bytes], data: st.DataObject
) -> None:
    sender = session(key, scheme)
    whole = [sender.sign(signed), *signed, *buffers]
    reader, there = SignedMessages(session(key, scheme)), session(key, scheme)
    assert outcome(reader.read, whole) == outcome_there(there, whole)
    # Each of these arrives alone: jupyter_client remembers the signatures of what it refuses, too.
    harmed = data.draw(changed(whole))
    reader, there = SignedMessages(session(key, scheme)), session(key, scheme)
    assert outcome(reader.read, harmed) == outcome_there(there, harmed)


@given(st.lists(st.sampled_from([b"", b"topic", DELIM, DELIM[:-1], DELIM + b"x"]), max_size=5))
def test_the_topic_is_what_comes_before_the_first_delimiter(parts: list[bytes]) -> None:
    frames = frames_of(parts)
    if DELIM not in parts:
        with pytest.raises(ProtocolError):
            split(frames)
        return
    identities, rest = session().feed_identities(frames, copy=False)
    assert split(frames) == (identities[0] if identities else b"", rest)


# ---------------------------------------------------------------- single messages


def test_buffers_are_not_copied() -> None:
    parts = frames_of([*status(session()), *BUFFERS])
    message = SignedMessages(session()).read(parts)
    assert [buffer.obj for buffer in message["buffers"]] == parts[5:]


def test_a_message_counts_once() -> None:
    sender, reader = session(), SignedMessages(session())
    messages = [frames_of(status(sender)) for _ in range(1 + 3 * REMEMBERED)]
    for number, message in enumerate(messages):
        assert reader.read(message)["content"] == {"execution_state": "busy"}
        for earlier in messages[max(0, number - 3) : number + 1]:
            with pytest.raises(ProtocolError, match="before"):
                reader.read(earlier)
    for latest in messages[-REMEMBERED:]:
        with pytest.raises(ProtocolError, match="before"):
            reader.read(latest)
    assert len(reader._recent | reader._earlier) <= 2 * REMEMBERED


def test_without_a_key_nothing_is_compared() -> None:
    reader = SignedMessages(session(b""))
    message = frames_of([b"anything", *status(session())[1:]])
    assert reader.read(message) == reader.read(message)


def test_a_damaged_copy_does_not_keep_out_the_message() -> None:
    """jupyter_client remembers the signature of the copy, and refuses the message after it."""
    reader = SignedMessages(session())
    parts = status(session())
    with pytest.raises(ProtocolError, match="wrong"):
        reader.read(frames_of([*parts[:4], b'{"execution_state": "idle"}']))
    assert reader.read(frames_of(parts))["content"] == {"execution_state": "busy"}


@pytest.mark.parametrize("date", ["2026-02-30T09:00:00Z", "2026-11-30T09:00:00", "", None, 5, {}])
def test_a_date_may_be_anything(date: Any) -> None:
    """jupyter_client refuses a date that does not exist, and warns of one without a time zone."""
    sender = session()
    message = sender.msg("status", {"execution_state": "busy"})
    message["header"]["date"] = date
    read = SignedMessages(session()).read(frames_of(sender.serialize(message)[1:]))
    assert read["header"]["date"] == date


def test_the_key_of_the_session_may_be_replaced() -> None:
    """A kernel that is restarted elsewhere may have another key."""
    own = session()
    reader = SignedMessages(own)
    own.key = b"another key"
    with pytest.raises(ProtocolError, match="wrong"):
        reader.read(frames_of(status(session())))
    assert reader.read(frames_of(status(session(b"another key"))))["msg_type"] == "status"
