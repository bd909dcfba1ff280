"""What is withdrawn never begins; what has begun goes on."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from bridgehead._shipped.remote.cell_guard import CellGuard

pytestmark = pytest.mark.skipif(
    not hasattr(signal, "pthread_kill"), reason="there is no guard where no thread can be signalled"
)


@pytest.fixture
def guard() -> Iterator[CellGuard]:
    handler = signal.getsignal(signal.SIGURG)
    yield CellGuard(SimpleNamespace(), at_end=lambda shell: None)
    signal.signal(signal.SIGURG, handler)


def test_what_is_withdrawn_never_begins(guard: CellGuard) -> None:
    guard.withdraw("cell")
    with pytest.raises(KeyboardInterrupt, match="withdrawn before it began"):
        guard.begin("cell")
    guard.begin("other")
    guard.end("")


def test_what_has_begun_goes_on_however_deep_it_is(guard: CellGuard) -> None:
    guard.begin("cell")
    guard.begin("request")  # whose code the cell's code runs
    guard.withdraw("cell")
    guard.end("cell")
    guard.begin("cell")  # it runs a cell, which has the same message
    guard.end("")


def test_what_has_ended_is_not_withdrawn(guard: CellGuard) -> None:
    guard.begin("cell")
    guard.end("")
    guard.withdraw("cell")
    assert not guard.withdrawn
