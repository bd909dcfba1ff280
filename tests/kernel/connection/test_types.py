"""Rows G of the catalogue of faults: objects that do not pickle, unpickle or print as they should.

Rule: one test a row of the catalogue, its docstring opening with the row's number. A test asserts
how soon the caller is told, what the namespace holds afterwards (looked at by a client that knows
nothing of bridges), and that the next operation on the same bridge is right. The injection is the
real fault.
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
from support.kit import LANES, file_of, goes_on, told_within, wired
from support.look import look

# Test modules aren't importable in a kernel; what they define is shipped like a script's own.
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
async def test_unpicklable_fails_before_anything_is_sent(
    kernel: Bridge, tmp_path: Path, what: str
) -> None:
    """G1. What cannot be pickled: its place is told, and no message leaves."""
    find_unpicklable = UNPICKLABLE[what]()
    async with wired(kernel, tmp_path) as (bridge, wire):
        wire.seen.clear()
        async with told_within(0.5):
            with pytest.raises(EncodeError) as caught:
                await bridge.push(fine=1, config={"bad": find_unpicklable})
        assert caught.value.path == ("config" if what == "recursion" else "config['bad']")
        assert wire.seen == []
        assert await look(file_of(kernel)) == {}
        await goes_on(bridge)
    if what == "socket":
        find_unpicklable.close()
    while what == "recursion" and find_unpicklable:  # or its own deallocation recurses
        find_unpicklable = find_unpicklable.pop()


class HangsThere:
    def __reduce__(self) -> Any:
        return time.sleep, (600,)


@pytest.mark.parametrize("lane", LANES)
async def test_unpickling_that_hangs_ends_at_the_deadline(kernel: Bridge, lane: Any) -> None:
    """G3. Unpickling sleeps for ten minutes: TimeoutError; an interrupt frees the kernel."""
    async with Bridge.attach(file_of(kernel), lane=lane) as bridge:
        async with told_within(0.5):
            with pytest.raises(TimeoutError, match="the request may still run"):
                await bridge.push(x=HangsThere(), y=1, timeout=0.5)
        async with told_within(0.5):
            await bridge.interrupt()
        assert await look(file_of(kernel)) == {}
        await goes_on(bridge)


class ExitsThere:
    def __reduce__(self) -> Any:
        return sys.exit, (3,)


@pytest.mark.parametrize("lane", LANES)
async def test_unpickling_that_exits_does_not_end_the_kernel(kernel: Bridge, lane: Any) -> None:
    """G4. ``sys.exit`` while unpickling is an error like any other; the kernel lives."""
    async with Bridge.attach(file_of(kernel), lane=lane) as bridge:
        pid = bridge.info.pid
        async with told_within(0.5):
            with pytest.raises(RemoteError, match="SystemExit: 3"):
                await bridge.push(fine=1, bad=ExitsThere())
        assert await look(file_of(kernel)) == {}
        await goes_on(bridge)
        assert await bridge.pull("__import__('os').getpid()") == pid


async def test_what_arrives_as_another_type(kernel: Bridge, tmp_path: Path) -> None:
    """G5. An open text file arrives as a StringIO and a memoryview as bytes: push says so."""
    assert "StringIO" in (Bridge.push.__doc__ or "")
    (tmp_path / "notes.txt").write_text("line\n")
    with open(tmp_path / "notes.txt") as notes:
        async with told_within(0.5):
            await kernel.push(notes=notes, view=memoryview(b"abc"))
    assert isinstance(await kernel.pull("notes"), io.StringIO)
    assert await kernel.pull("notes.read(), view") == ("line\n", b"abc")
    there = await look(file_of(kernel))
    assert sorted(there) == ["notes", "view"]
    assert there["view"] == "b'abc'"
    await goes_on(kernel)


BAD_REPR = """
class Bad:
    def __init__(self): self.x = 5
    def refuse(self, *args, **kwargs): raise RuntimeError("no display")
    __repr__ = __str__ = __len__ = __format__ = _repr_html_ = _repr_mimebundle_ = refuse
    _ipython_display_ = refuse
bad = Bad()
"""


async def test_pull_computes_no_display(kernel: Bridge) -> None:
    """G6. ``__repr__``, ``__len__`` and every display hook raise: the object comes all the same."""
    await kernel.run(BAD_REPR)
    async with told_within(0.5):
        assert (await kernel.pull("bad")).x == 5
        assert await kernel.pull("bad.x", "[bad][0].x") == (5, 5)
        assert [name.name for name in await kernel.names()] == ["Bad", "bad"]
    with contextlib.suppress(RemoteError):  # ipykernel 6 only prints it
        await kernel.run("bad")
    assert "raised" in (await look(file_of(kernel)))["bad"]
    await goes_on(kernel)


async def test_what_an_object_prints_and_starts_while_it_is_unpickled_harms_no_reply(
    kernel: Bridge,
) -> None:
    """G7. A hundred thousand lines, and threads, from a ``__setstate__``."""

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

    async with told_within(3):
        await kernel.push(loud=Loud(), y=1)
    assert await kernel.pull("loud.x", "y") == (1, 1)
    await goes_on(kernel)
