"""The garbage collector is off while what arrived is built, and on again afterwards."""

from __future__ import annotations

import gc
import json
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bridgehead._protocol.payload import decode, decode_data
from bridgehead._protocol.response import parse_header
from bridgehead._shipped.data import encode_data
from bridgehead._shipped.wire.collector import PausedCollector
from support.channels import Ends, needs_segments

MANY: list[Any] = [[n, []] for n in range(20_000)]


@pytest.fixture
def collections() -> Iterator[list[str]]:
    """Return a list of the collections that begin, which a test may clear."""
    begun: list[str] = []

    def note(phase: str, info: Any) -> None:
        begun.append(phase)

    gc.callbacks.append(note)
    yield begun
    gc.callbacks.remove(note)


BUILT: dict[str, tuple[Callable[[Any], Any], Any]] = {
    "a pickle": (decode, [pickle.dumps(MANY, 5)]),
    "data": (lambda frames: decode_data(frames, {}), encode_data(MANY)),
    "a header": (parse_header, json.dumps({"x": MANY})),
}


@pytest.mark.parametrize(("build", "raw"), BUILT.values(), ids=BUILT)
def test_nothing_is_collected_while_an_object_is_built(
    build: Callable[[Any], Any], raw: Any, collections: list[str]
) -> None:
    gc.collect()
    collections.clear()
    build(raw)
    assert len(collections) <= 2  # one may begin before or after
    assert gc.isenabled()


@needs_segments
def test_nothing_is_collected_while_the_header_of_a_message_is_built(
    collections: list[str],
) -> None:
    ends, short = Ends(), MANY[:4000]
    try:
        ends.send(1, {"x": short})
        gc.collect()
        collections.clear()
        assert ends.arrived()[0][1]["x"] == short
        assert len(collections) <= 2
    finally:
        ends.close()


def test_the_collector_is_left_as_it_was() -> None:
    with pytest.raises(ValueError), PausedCollector(1 << 20):
        assert not gc.isenabled()
        raise ValueError
    assert gc.isenabled()
    with PausedCollector(10):
        assert gc.isenabled()
    gc.disable()
    try:
        with PausedCollector(1 << 20):
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
