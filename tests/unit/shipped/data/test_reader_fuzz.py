"""Fuzz of the reader: any bytes are decoded or refused, and any data arrives as it was sent."""

from __future__ import annotations

import collections
import random
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import support
from bridgehead._shipped.data import decode_data, encode_data
from bridgehead._shipped.data import registry as _registry
from bridgehead._shipped.wire.errors import WireError
from support.data import NUMPY, PANDAS, PLAIN, named, objects, pickled, same, sent, text
from support.streams import STREAMS, arrow_calls, use

ENCODED = [encode_data(value) for value in [*PLAIN.values(), *NUMPY.values()] if value is not ...]
ENCODED += [
    encode_data(PANDAS["frame of all columns"]),
    encode_data(PANDAS["levels on both sides"]),
]
ENCODED = [frames for frames in ENCODED if sum(frame.nbytes for frame in frames) < 30_000]
QUICK = settings(
    max_examples=30 * settings.default.max_examples // 10,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def check_decoded_or_refused(frames: Sequence[Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy and pandas warn about odd but harmless values
        try:
            decode_data(frames)
        except WireError as error:
            kind = error.kind
        else:
            return
    assert kind in ("protocol", "untrusted", "missing")


OPCODES = b"().0]1}NKMJGX\x88\x89\x8c\x8f\x90\x91\x93\x94\x95\x96\x97\x98aehjtsuRC\x85\x86\x87"


@QUICK
@given(st.binary(), st.lists(st.binary(), max_size=2))
def test_any_bytes_are_decoded_or_refused(raw: bytes, others: list[bytes]) -> None:
    check_decoded_or_refused([raw, *others])


@QUICK
@given(
    st.lists(
        st.one_of(
            st.sampled_from([bytes([code]) for code in OPCODES]),
            st.sampled_from(sorted(_registry.CONSTRUCTORS)).map(
                lambda name: named("bridgehead._shipped.data", name)
            ),
            st.sampled_from([b"K\x01", b"h\0", b"h\1", text("C"), text("<f8"), b"C\x01a"]),
        )
    ),
    st.lists(st.binary(), max_size=2),
)
def test_any_opcodes_are_decoded_or_refused(opcodes: list[bytes], others: list[bytes]) -> None:
    check_decoded_or_refused([pickled(*opcodes), *others])


@QUICK
@given(st.data())
def test_altered_frames_are_decoded_or_refused(source: Any) -> None:
    frames = [bytearray(frame) for frame in source.draw(st.sampled_from(ENCODED))]
    for _ in range(source.draw(st.integers(1, 4))):
        frame = source.draw(st.sampled_from(frames))
        at = source.draw(st.integers(0, len(frame)))
        kind = source.draw(st.sampled_from(["flip", "insert", "remove", "cut"]))
        if kind == "flip" and at < len(frame):
            frame[at] = source.draw(st.integers(0, 255))
        elif kind == "insert":
            frame[at:at] = source.draw(st.binary(max_size=4))
        elif kind == "remove":
            del frame[at : at + source.draw(st.integers(1, 9))]
        else:
            del frame[at:]
    if source.draw(st.booleans()):
        frames.append(bytearray(source.draw(st.binary(max_size=9))))
    check_decoded_or_refused(frames)


def check_refused_or_safe(raw: bytes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            value, again = decode_data([raw]), decode_data([raw])
        except WireError:
            return
        use(value, again)


@QUICK
@given(STREAMS)
def test_any_calls_are_refused_or_safe(raw: bytes) -> None:
    check_refused_or_safe(raw)


@QUICK
@given(arrow_calls())
def test_any_arrow_data_is_refused_or_safe(raw: bytes) -> None:
    check_refused_or_safe(pickled(raw))


@pytest.mark.slow
def test_a_minute_of_hostile_streams_ends_no_process(tmp_path: Path) -> None:
    """A new seed each time; the stream that ended the process is in the error."""
    program = Path(support.__file__).parent / "fuzz_data.py"
    seed, last = random.randrange(1 << 30), tmp_path / "last"
    command = [sys.executable, program, "60", str(seed), last]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, (seed, last.read_bytes(), ran.stderr)


SCALARS = st.one_of(
    *(st.none(), st.booleans(), st.integers(), st.floats(), st.complex_numbers(), st.text()),
    *(st.binary(), st.dates(), st.datetimes(), st.timedeltas(), st.times(), st.uuids()),
    *(st.decimals(allow_nan=False), st.fractions()),
)
KEYS = st.recursive(
    st.one_of(st.none(), st.integers(), st.text(), st.binary(), st.dates(), st.fractions()),
    lambda part: st.one_of(st.tuples(part, part), st.frozensets(part, max_size=3)),
    max_leaves=5,
)
VALUES = st.recursive(
    SCALARS,
    lambda part: st.one_of(
        st.lists(part),
        st.tuples(part, part),
        st.dictionaries(KEYS, part),
        st.sets(KEYS),
        st.lists(part).map(collections.deque),
        st.dictionaries(KEYS, part).map(collections.OrderedDict),
        st.lists(part).map(lambda items: objects(*items)),
    ),
    max_leaves=20,
)


@QUICK
@given(VALUES)
def test_any_data_arrives_as_it_was_sent(value: Any) -> None:
    assert same(value, sent(value))
