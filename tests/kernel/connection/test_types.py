"""Rows G of the catalogue of faults: objects that do not pickle, unpickle or print as they should.

Rule: each test covers a row of the catalogue; its docstring starts with the row's number. A test
asserts how soon the call ends, what the namespace contains afterwards (as seen by a client without
bridgehead), and that the next operation on the same bridge works. Each test injects the real fault.
"""

from __future__ import annotations

import contextlib
import io
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from bridgehead import Bridge, EncodeError, RemoteError
from support.kit import LANES, file_of, goes_on, reported_within, wired
from support.look import look

# A kernel can't import test modules, so what they define is pickled by value, as in a script.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


class ReduceRaises:
    def __reduce__(self) -> Any:
        raise RuntimeError("not today")


def deep_list() -> list[Any]:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    return deep


UNPICKLABLE: dict[str, Callable[[], Any]] = {
    "lock": threading.Lock,
    "generator": lambda: (i for i in [1]),
    "socket": lambda: socket.socket(),
    "frame": sys._getframe,
    "reduce-raises": ReduceRaises,
    "recursion": deep_list,
}


@pytest.mark.parametrize("what", UNPICKLABLE)
async def test_an_unpicklable_object_is_refused_before_anything_is_sent(
    kernel: Bridge, tmp_path: Path, what: str
) -> None:
    """G1. An object can't be pickled: the error names its place, and no message is sent."""
    unpicklable = UNPICKLABLE[what]()
    async with wired(kernel, tmp_path) as (bridge, wire):
        wire.seen.clear()
        async with reported_within(0.5):
            with pytest.raises(EncodeError) as caught:
                await bridge.push(fine=1, config={"bad": unpicklable})
        assert caught.value.path == ("config" if what == "recursion" else "config['bad']")
        assert wire.seen == []
        assert await look(file_of(kernel)) == {}
        await goes_on(bridge)
    if what == "socket":
        unpicklable.close()
    while what == "recursion" and unpicklable:  # otherwise its deallocation recurses
        unpicklable = unpicklable.pop()


class HangsInKernel:
    def __reduce__(self) -> Any:
        return time.sleep, (600,)


@pytest.mark.timings(interrupt_wait=0.5)  # a call into C does not notice the interrupt
@pytest.mark.parametrize("lane", LANES)
async def test_unpickling_that_hangs_ends_at_the_deadline(kernel: Bridge, lane: Any) -> None:
    """G3. Unpickling sleeps for ten minutes: TimeoutError; an interrupt frees the kernel."""
    async with Bridge.attach(file_of(kernel), lane=lane) as bridge:
        async with reported_within(0.5):
            with pytest.raises(TimeoutError, match="the request may still run"):
                await bridge.push(x=HangsInKernel(), y=1, timeout=0.5)
        async with reported_within(0.5):
            await bridge.interrupt()
        assert await look(file_of(kernel)) == {}
        await goes_on(bridge)


class ExitsInKernel:
    def __reduce__(self) -> Any:
        return sys.exit, (3,)


@pytest.mark.parametrize("lane", LANES)
async def test_unpickling_that_exits_does_not_end_the_kernel(kernel: Bridge, lane: Any) -> None:
    """G4. ``sys.exit`` while unpickling is an error like any other; the kernel lives."""
    async with Bridge.attach(file_of(kernel), lane=lane) as bridge:
        pid = bridge.info.pid
        async with reported_within(0.5):
            with pytest.raises(RemoteError, match="SystemExit: 3"):
                await bridge.push(fine=1, bad=ExitsInKernel())
        assert await look(file_of(kernel)) == {}
        await goes_on(bridge)
        assert await bridge.pull("__import__('os').getpid()") == pid


async def test_files_and_memoryviews_arrive_as_another_type(kernel: Bridge, tmp_path: Path) -> None:
    """G5. An open text file arrives as a StringIO, a memoryview as bytes; push documents it."""
    assert "StringIO" in (Bridge.push.__doc__ or "")
    (tmp_path / "notes.txt").write_text("line\n")
    with open(tmp_path / "notes.txt") as notes:
        async with reported_within(0.5):
            await kernel.push(notes=notes, view=memoryview(b"abc"))
    assert isinstance(await kernel.pull("notes"), io.StringIO)
    assert await kernel.pull("notes.read(), view") == ("line\n", b"abc")
    namespace = await look(file_of(kernel))
    assert sorted(namespace) == ["notes", "view"]
    assert namespace["view"] == "b'abc'"
    await goes_on(kernel)


BAD_REPR = """
class Bad:
    def __init__(self): self.x = 5
    def refuse(self, *args, **kwargs): raise RuntimeError("no display")
    __repr__ = __str__ = __len__ = __format__ = _repr_html_ = _repr_mimebundle_ = refuse
    _ipython_display_ = refuse
bad = Bad()
"""


async def test_a_pull_computes_no_display(kernel: Bridge) -> None:
    """G6. ``__repr__``, ``__len__`` and all display hooks raise: the object still arrives."""
    await kernel.run(BAD_REPR)
    async with reported_within(0.5):
        assert (await kernel.pull("bad")).x == 5
        assert await kernel.pull("bad.x", "[bad][0].x") == (5, 5)
        assert [name.name for name in await kernel.names()] == ["Bad", "bad"]
    with contextlib.suppress(RemoteError):  # ipykernel 6 only prints the error
        await kernel.run("bad")
    assert "raised" in (await look(file_of(kernel)))["bad"]
    await goes_on(kernel)


async def test_output_and_threads_while_unpickling_do_not_damage_the_reply(
    kernel: Bridge,
) -> None:
    """G7. A ``__setstate__`` prints a hundred thousand lines and starts threads."""

    class Loud:
        def __getstate__(self) -> Any:
            return {"x": 1}

        def __setstate__(self, state: Any) -> None:
            import threading

            for line in range(100_000):
                print(line)
            threads = [threading.Thread(target=print, args=(n,)) for n in range(10)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            self.__dict__.update(state)

    async with reported_within(3):
        await kernel.push(loud=Loud(), y=1)
    assert await kernel.pull("loud.x", "y") == (1, 1)
    await goes_on(kernel)
