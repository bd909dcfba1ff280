"""A plugin for pytest that sends the round trips of cloudpickle's own tests through a kernel.

Rule: ``elsewhere/test_cloudpickle.py`` starts pytest with ``-p support.round_trips`` in a folder
with cloudpickle's tests. What a test pickles is pushed, too, and what it unpickles is pulled; what
it runs in another process is called in a kernel of its own. The junit report of a case has the
number of its round trips, as the property ``trips``.
"""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import cloudpickle
import psutil
import pytest

from bridgehead import BridgeError, MissingInKernel, RemoteError, SyncBridge

TESTS = "tests.cloudpickle_test"
DUMPS, LOADS = cloudpickle.dumps, pickle.loads


@pytest.fixture(scope="session")
def kernel() -> Iterator[SyncBridge]:
    with launched() as bridge:
        yield bridge


@pytest.fixture(autouse=True)
def trips(
    kernel: SyncBridge,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> Iterator[None]:
    trips = Trips(kernel)
    # Functions of the tests refer to these, so the replacements are pickled by name, too.
    dumps = _named("cloudpickle", "dumps", trips.dumps)
    loads = _named("pickle", "loads", trips.loads)
    for module, replacement in (cloudpickle, dumps), (cloudpickle, loads), (pickle, loads):
        monkeypatch.setattr(module, replacement.__name__, replacement)
    for name in "pickle_depickle", "subprocess_pickle_echo":
        monkeypatch.setattr(f"{TESTS}.{name}", trips.there_and_back)
    monkeypatch.setattr(f"{TESTS}.subprocess_worker", trips.worker)
    yield
    record_property("trips", trips.count)
    if names := [name.name for name in kernel.names()]:
        kernel.delete(*names)


def launched() -> SyncBridge:
    """Launch a kernel that finds modules where this process does, like a fork."""
    return SyncBridge.launch(env={"PYTHONPATH": os.pathsep.join(sys.path)})


def _named(module: str, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    def function(*arguments: Any, **options: Any) -> Any:
        return method(*arguments, **options)

    function.__module__, function.__name__, function.__qualname__ = module, name, name
    return function


class Trips:
    """The round trips of one case."""

    def __init__(self, bridge: SyncBridge) -> None:
        self.bridge = bridge
        self.count = 0
        self.pushed: dict[bytes, str | BridgeError] = {}  # by what cloudpickle makes of the object

    def there_and_back(self, value: Any, **_: object) -> Any:
        self.count += 1
        self.bridge.push(trip=value)
        return self.bridge.pull("trip")

    def dumps(self, value: Any, *arguments: Any, **options: Any) -> bytes:
        """Push the object; return its pickle by cloudpickle, which some tests look at."""
        data = DUMPS(value, *arguments, **options)
        name = f"trip{len(self.pushed)}"
        try:
            self.bridge.push({name: value})
            self.pushed[data] = name
        except BridgeError as error:
            self.pushed[data] = error
        return data

    def loads(self, data: Any, **options: Any) -> Any:
        pushed = self.pushed.get(data) if type(data) is bytes else None
        if pushed is None:
            return LOADS(data, **options)
        self.count += 1
        if isinstance(pushed, BridgeError):
            raise pushed
        return self.bridge.pull(pushed)

    @contextmanager
    def worker(self, **_: object) -> Iterator[Worker]:
        with launched() as bridge:
            yield Worker(self, bridge)


class Worker:
    """A kernel in place of the process in which a test runs functions."""

    def __init__(self, trips: Trips, bridge: SyncBridge) -> None:
        self.trips, self.bridge = trips, bridge

    def run(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        self.trips.count += 1
        try:
            return self.bridge.call(function, *arguments, **named)
        except MissingInKernel as error:  # cloudpickle's process raises what the import raises
            raise ImportError(str(error)) from error
        except RemoteError as error:
            raise error.__cause__ or error from None

    def memsize(self) -> int:
        return int(psutil.Process(self.bridge.info.pid).memory_info().rss)
