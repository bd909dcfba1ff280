"""The data-only codec, shipped when it is needed, under every Python found here.

Rule: another interpreter evaluates the client's expressions; see ``support/bare.py``.
"""

from __future__ import annotations

import datetime

import pytest

from bridgehead import ProtocolError, RemoteError, UntrustedPayload
from bridgehead._protocol import bootstrap as _bootstrap
from bridgehead._protocol import payload as _payload
from support.bare import Bomb, Space


@pytest.fixture
def without_codec(space: Space) -> Space:
    """Open a namespace whose remote part, newly installed, has not loaded the data-only codec."""
    space.remove_remote()
    return space.prepare()


def codec_sources() -> _payload.Payload:
    return _payload.Payload(_bootstrap.codec_sources(), carries_code=False, refs=False)


def test_a_request_that_needs_the_data_only_codec_is_refused_before_it_is_loaded(
    without_codec: Space,
) -> None:
    without_codec.bind(x=1)
    with pytest.raises(ProtocolError, match="is not loaded"):
        without_codec.ask("fetch", expressions=["x"], trust="data")
    values = {"y": 1}
    with pytest.raises(ProtocolError, match="is not loaded"):
        without_codec.ask("bind", _payload.encode_data(values, values), names=["y"], opens="data")
    assert "y" not in without_codec.names()


def test_with_the_codec_loaded_only_data_is_sent_and_decoded(without_codec: Space) -> None:
    names = without_codec.names()
    for _ in range(2):
        without_codec.ask("load_codec", codec_sources())
    assert without_codec.names() == names
    data = {"a": [1, 2.5, None], "b": datetime.date(2024, 1, 2), ("c", 1): {3, b"x"}}
    values = {"x": data}
    without_codec.ask("bind", _payload.encode_data(values, values), names=["x"], opens="data")
    _, frames = without_codec.ask("fetch", expressions=["x"], trust="data")
    assert _payload.decode_data(frames, {}) == (data,)
    without_codec.cell("def code(): pass")
    with pytest.raises(UntrustedPayload, match="code is") as caught:
        without_codec.ask("fetch", expressions=["x", "code"], trust="data")
    assert "function" in caught.value.type
    bomb = {"y": Bomb(int, "7")}
    with pytest.raises(UntrustedPayload):
        without_codec.ask("bind", _payload.encode(bomb, bomb), names=["y"], opens="data")
    assert without_codec.names() == {*names, "x", "code"}


@pytest.mark.parametrize("source", [b"\xff", b"1 +", b"raise LookupError", b"import nowhere"])
def test_a_codec_that_cannot_be_loaded_is_reported(without_codec: Space, source: bytes) -> None:
    payload = _payload.Payload([memoryview(source)], carries_code=False, refs=False)
    with pytest.raises(RemoteError):
        without_codec.ask("load_codec", payload)
    without_codec.ask("load_codec", codec_sources())
