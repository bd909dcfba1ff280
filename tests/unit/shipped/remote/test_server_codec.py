"""The data-only codec, shipped when it is needed, under every Python found here.

Rule: the near side's own text is evaluated by a foreign interpreter, as ``support/bare.py`` says.
"""

from __future__ import annotations

import datetime

import pytest

from bridgehead import ProtocolError, RemoteError, UntrustedPayload
from bridgehead._protocol import bootstrap as _shipping
from bridgehead._protocol import payload as _payload
from support.bare import Bomb, Space


@pytest.fixture
def untaught(space: Space) -> Space:
    """A namespace whose loader, new in its process, has no data-only codec yet."""
    space.uproot()
    return space.prepare()


def codec_sources() -> _payload.Payload:
    return _payload.Payload(_shipping.codec_sources(), carries_code=False, refs=False)


def test_a_request_that_needs_the_data_only_codec_is_refused_before_it_is_loaded(untaught: Space) -> None:
    untaught.bind(x=1)
    with pytest.raises(ProtocolError, match="is not here"):
        untaught.ask("fetch", expressions=["x"], trust="data")
    values = {"y": 1}
    with pytest.raises(ProtocolError, match="is not here"):
        untaught.ask("bind", _payload.encode_data(values, values), names=["y"], opens="data")
    assert "y" not in untaught.names()


def test_with_the_codec_loaded_only_data_is_sent_and_decoded(untaught: Space) -> None:
    names = untaught.names()
    for _ in range(2):
        untaught.ask("load_codec", codec_sources())
    assert untaught.names() == names
    data = {"a": [1, 2.5, None], "b": datetime.date(2024, 1, 2), ("c", 1): {3, b"x"}}
    values = {"x": data}
    untaught.ask("bind", _payload.encode_data(values, values), names=["x"], opens="data")
    _, frames = untaught.ask("fetch", expressions=["x"], trust="data")
    assert _payload.decode_data(frames, {}) == (data,)
    untaught.cell("def code(): pass")
    with pytest.raises(UntrustedPayload, match="code is") as caught:
        untaught.ask("fetch", expressions=["x", "code"], trust="data")
    assert "function" in caught.value.type
    bomb = {"y": Bomb(int, "7")}
    with pytest.raises(UntrustedPayload):
        untaught.ask("bind", _payload.encode(bomb, bomb), names=["y"], opens="data")
    assert untaught.names() == {*names, "x", "code"}


@pytest.mark.parametrize("source", [b"\xff", b"1 +", b"raise LookupError", b"import nowhere"])
def test_a_codec_that_cannot_be_loaded_is_reported(untaught: Space, source: bytes) -> None:
    payload = _payload.Payload([memoryview(source)], carries_code=False, refs=False)
    with pytest.raises(RemoteError):
        untaught.ask("load_codec", payload)
    untaught.ask("load_codec", codec_sources())
