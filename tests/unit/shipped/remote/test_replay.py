"""Chunks, long responses, and repeated messages, under every Python found here.

Rule: another interpreter evaluates the client's expressions; see ``support/bare.py``.
"""

from __future__ import annotations

import pickle
import random
import sys
import threading

import pytest

from bridgehead import BridgeClosed, IntegrityError, ProtocolError, RemoteError, ReplyLost
from bridgehead._protocol import payload as _payload
from bridgehead._protocol import response as _response
from bridgehead._protocol.raising import raise_error
from bridgehead._shipped.remote.kernel import Kernel
from bridgehead._shipped.remote.replay import REPLAY_WINDOW
from bridgehead._shipped.remote.server import Remote
from support.bare import CHUNK, Bomb, Space, flipped, megabytes, part, stream, to_bind

# ---------------------------------------------------------------- megabytes and chunks


@pytest.mark.parametrize("size", [0, 1, 2047, 2048, CHUNK - 1, CHUNK, CHUNK + 1, 5 * CHUNK + 3])
def test_bytes_of_every_size_cross_whole(space: Space, size: int) -> None:
    data = random.Random(size).randbytes(size)
    space.bind(data=data)
    assert space.fetch("data") == data


def test_megabytes_cross_out_of_band(space: Space) -> None:
    data, other = bytearray(megabytes(3)), megabytes(0.7)
    values = {"data": pickle.PickleBuffer(data), "other": pickle.PickleBuffer(other), "small": 1}
    payload = _payload.encode(values, values)
    assert [frame.nbytes for frame in payload.frames[1:]] == [len(data), len(other)]
    space.ask("bind", payload, names=list(values))
    space.cell("data[0] = data[0] ^ 255\nimport pickle")  # it arrives writable
    header = space.header("fetch", expressions=["pickle.PickleBuffer(data)", "bytes(other)"])
    response, frames = space.finish(header)
    assert len(data) in response["sizes"]
    back, other_back = _payload.decode(frames)
    data[0] ^= 255
    assert bytes(back) == data
    assert other_back == other


def test_a_long_response_comes_in_chunks_which_are_freed(space: Space) -> None:
    space.bind(data=megabytes(0.5))
    header = space.header("fetch", expressions=["data"])
    response, parts = space.cross(header)
    inbox = _response.open_response(response)
    _response.add_chunk(response, inbox, 0, parts)
    assert sum(map(len, parts)) == CHUNK < inbox.total
    assert space.kept() == (0, 1)
    for at in range(CHUNK, inbox.total, CHUNK):
        more, parts = space.cross({**header, "op": "next_chunk", "sizes": [], "at": at})
        _response.add_chunk(more, inbox, at, parts)
    assert _payload.decode(_response.close_response(inbox)) == (megabytes(0.5),)
    space.forget(header)
    assert space.kept() == (0, 0)
    failure, _ = space.cross({**header, "op": "next_chunk", "sizes": [], "at": CHUNK})
    with pytest.raises(IntegrityError, match="no longer kept"):
        raise_error(failure, ())


def test_a_long_response_that_lacks_a_chunk_is_reported(space: Space) -> None:
    space.bind(data=megabytes(0.25))
    header = space.header("fetch", expressions=["data"])
    response, parts = space.cross(header)
    inbox = _response.open_response(response)
    _response.add_chunk(response, inbox, 0, parts)
    with pytest.raises(ReplyLost, match="arrived"):
        _response.close_response(inbox)
    space.forget(header)


def test_nothing_happens_before_the_last_chunk(space: Space) -> None:
    values = {"data": megabytes(0.25)}
    payload = _payload.encode(values, values)
    before = space.snapshot()
    header = space.header("bind", payload.frames, names=["data"])
    space.chunk(header, payload.frames, 0)
    space.chunk(header, payload.frames, 2 * CHUNK)
    assert space.snapshot() == before
    assert space.kept() == (1, 0)
    space.forget(header)
    assert space.kept() == (0, 0)
    last = payload.nbytes // CHUNK * CHUNK
    with pytest.raises(IntegrityError, match="arrived"):
        space.finish(*part(header, stream(payload.frames)[last:], at=last))
    assert space.snapshot() == before


def test_a_chunk_sent_twice_is_harmless(space: Space) -> None:
    values = {"data": megabytes(0.25)}
    payload = _payload.encode(values, values)
    header = space.header("bind", payload.frames, names=["data"])
    last = payload.nbytes // CHUNK * CHUNK
    for at in [*range(0, last, CHUNK), *range(0, last, CHUNK)]:
        space.chunk(header, payload.frames, at)
    space.finish(*part(header, stream(payload.frames)[last:], at=last))
    assert space.fetch("data") == values["data"]
    assert space.kept() == (0, 0)


def test_a_damaged_chunk_is_refused_when_it_arrives(space: Space) -> None:
    values = {"data": megabytes(0.25)}
    payload = _payload.encode(values, values)
    before = space.snapshot()
    header = space.header("bind", payload.frames, names=["data"])
    last = payload.nbytes // CHUNK * CHUNK
    for at in range(0, last - CHUNK, CHUNK):
        space.chunk(header, payload.frames, at)
    sent, data = part(header, stream(payload.frames)[last - CHUNK : last], op="chunk", at=last)
    for damaged in (flipped(data, CHUNK // 2), data[1:] + data[:1], data[:-1], b""):
        response, _ = space.cross({**sent, "at": last - CHUNK}, damaged)
        with pytest.raises(IntegrityError, match="digest"):
            raise_error(response, ())
    with pytest.raises(IntegrityError, match="arrived"):
        space.finish(*part(header, stream(payload.frames)[last:], at=last))
    assert space.snapshot() == before
    assert space.kept() == (0, 0)


def test_chunks_with_other_sizes_are_not_of_the_same_request(space: Space) -> None:
    values = {"data": megabytes(0.25)}
    payload = _payload.encode(values, values)
    before = space.snapshot()
    header = space.header("bind", payload.frames, names=["data"])
    space.chunk(header, payload.frames, 0)
    header["sizes"] = [*header["sizes"][:-1], header["sizes"][-1] - 1]
    with pytest.raises(IntegrityError, match="not of one request"):
        space.chunk(header, payload.frames, CHUNK)
    assert space.snapshot() == before
    assert space.kept() == (0, 0)


def test_the_chunks_of_two_requests_may_be_mixed(space: Space) -> None:
    payloads = {
        name: _payload.encode({name: megabytes(n)}, {}) for n, name in [(0.25, "a"), (0.5, "b")]
    }
    headers = {
        name: space.header("bind", payload.frames, names=[name])
        for name, payload in payloads.items()
    }
    order = [
        (name, at) for name, payload in payloads.items() for at in range(0, payload.nbytes, CHUNK)
    ]
    lasts = {name: max(at for other, at in order if other == name) for name in payloads}
    random.Random(7).shuffle(order)
    for name, at in order:
        if at != lasts[name]:
            space.chunk(headers[name], payloads[name].frames, at)
    for name, at in lasts.items():
        space.finish(*part(headers[name], stream(payloads[name].frames)[at:], at=at))
    assert space.fetch("a", "b") == (megabytes(0.25), megabytes(0.5))


# ---------------------------------------------------------------- repeated messages


def test_a_repeated_request_does_not_run_again(space: Space) -> None:
    header, payload = to_bind(space, a=1)
    data = stream(payload.frames)
    space.finish(header, data)
    space.bind(a=2)
    before = space.snapshot()
    for _ in range(2):
        with pytest.raises(ProtocolError, match="made before"):
            space.finish(header, data)
    assert space.snapshot() == before


def test_a_failed_request_does_not_run_again(space: Space) -> None:
    header, payload = to_bind(space, a=Bomb(int, "no number"))
    with pytest.raises(RemoteError):
        space.finish(header, stream(payload.frames))
    with pytest.raises(ProtocolError, match="made before"):
        space.finish(header, stream(payload.frames))


def test_a_repeated_batch_does_not_run_again(space: Space) -> None:
    asked = to_bind(space, a=1)
    space.batch(asked, id="twice")
    space.bind(a=2)
    with pytest.raises(ProtocolError, match="made before"):
        space.batch(asked, id="twice")
    assert space.fetch("a") == 2


def test_a_request_that_arrived_damaged_may_be_sent_again(space: Space) -> None:
    header, payload = to_bind(space, a=1)
    data = stream(payload.frames)
    with pytest.raises(IntegrityError):
        space.finish(header, flipped(data, 3))
    space.finish(header, data)
    assert space.fetch("a") == 1


@pytest.mark.parametrize("resumable", [False, True])
def test_a_withdrawn_request_does_not_run_and_is_no_fault_of_the_protocol(
    space: Space, resumable: bool
) -> None:
    space.bind(a=1)
    header = space.header("fetch", expressions=["a"], resumable=resumable)
    space.ask("cancel", request=header["id"])
    failure, _ = space.cross(header)
    with pytest.raises(BridgeClosed):
        raise_error(failure, ())
    ran = space.header("fetch", expressions=["a"])
    space.finish(ran)
    space.ask("cancel", request=ran["id"])
    failure, _ = space.cross(ran)
    with pytest.raises(ProtocolError, match="made before"):
        raise_error(failure, ())


def test_threads_can_record_requests_at_the_same_time() -> None:
    """A subshell and the main thread each make more requests than the window holds."""
    remote, failures = Remote(Kernel({})), []

    def ask(thread: int) -> None:
        for number in range(20 * REPLAY_WINDOW):
            try:
                remote.transfers.record(f"{thread} {number}")
            except Exception as error:
                failures.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=ask, args=(thread,)) for thread in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert failures == []
    assert len(remote.transfers.done) == REPLAY_WINDOW
