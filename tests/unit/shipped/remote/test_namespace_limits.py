"""The limit ``max_bytes``, under every Python found here.

Rule: another interpreter evaluates the client's expressions; see ``support/bare.py``.
"""

from __future__ import annotations

import pytest

from bridgehead import PayloadTooLarge
from bridgehead._protocol import payload as _payload
from support.bare import Space

# Large values: inside the pickle, and out of band.
LONG = {
    "in-band": "long = b'x' * (8 << 20)",
    "out-of-band": "import pickle\nlong = pickle.PickleBuffer(bytearray(8 << 20))",
    "in many parts": "long = [b'%d' % n * 100 for n in range(20000)]",
}


@pytest.mark.parametrize("code", LONG.values(), ids=LONG.keys())
def test_a_value_beyond_max_bytes_is_reported_with_its_size_and_not_copied(
    space: Space, code: str
) -> None:
    space.cell(code)
    size = sum(frame.nbytes for frame in space.ask("fetch", expressions=["long"])[1])
    for limit in (0, 1000, size - 1):
        with pytest.raises(PayloadTooLarge) as caught:
            space.ask("fetch", expressions=["long"], max_bytes=limit)
        assert caught.value.bytes == size
    space.cell("import tracemalloc\ntracemalloc.start()")
    try:
        with pytest.raises(PayloadTooLarge):
            space.ask("fetch", expressions=["long"], max_bytes=1000)
        assert space.fetch("tracemalloc.get_traced_memory()[1]") < 2 << 20
    finally:
        space.cell("tracemalloc.stop()")
    assert space.kept() == (0, 0)


@pytest.mark.parametrize("limit", [0, 5])
def test_the_limit_itself_is_allowed(space: Space, limit: int) -> None:
    space.bind(x=1)
    _, frames = space.ask("fetch", expressions=["x"])
    size = frames[0].nbytes
    assert _payload.decode(space.ask("fetch", expressions=["x"], max_bytes=size)[1]) == (1,)
    with pytest.raises(PayloadTooLarge):
        space.ask("fetch", expressions=["x"], max_bytes=min(limit, size - 1))


def test_a_call_whose_result_is_too_large_runs_and_reports_the_size(space: Space) -> None:
    code = "__import__('os').environ.update(RAN='1') or b'x' * 5000"
    payload = _payload.encode((eval, (code, {}), {}), {})
    with pytest.raises(PayloadTooLarge) as caught:
        space.ask("call", payload, max_bytes=4000)
    assert 5000 < caught.value.bytes < 5100
    assert space.fetch("__import__('os').environ.pop('RAN')") == "1"
    _, frames = space.ask("call", payload, max_bytes=6000)
    assert _payload.decode(frames) == (b"x" * 5000,)
    space.ask("call", payload, max_bytes=1, keep="kept")  # the response has no frames
    assert space.fetch("len(kept)") == 5000
