"""Watches: watched values and names, under every Python found here.

Rule: another interpreter evaluates the client's expressions; see ``support/bare.py``.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest

from bridgehead import (
    BridgeError,
    IntegrityError,
    NameNotFound,
    NotSupported,
    PayloadTooLarge,
    RemoteError,
)
from bridgehead._protocol import payload as _payload
from bridgehead._protocol import response as _response
from bridgehead._protocol.request import Request
from bridgehead._shipped.wire import frames as _frames
from bridgehead._shipped.wire.header import EVENT_MESSAGE
from support.bare import REMOTE, Bare, Header, Space, later
from support.elsewhere import Python

# The parts of IPython and ipykernel 6 that the remote part uses, for one namespace.
SHELL = """
class Events:
    def __init__(self):
        self.functions = []
    def register(self, event, function):
        assert event == "post_run_cell"
        self.functions.append(function)
    def unregister(self, event, function):
        assert event == "post_run_cell"
        self.functions.remove(function)
class Session:
    def __init__(self):
        self.sent = []
    def send(self, stream, kind, content, parent, ident, buffers):
        buffers = [bytes(buffer) for buffer in buffers]
        self.sent.append((stream, kind, content, parent, ident, buffers))
class Kernel:
    shell_stream = "the shell channel"
    _parent_ident = {"shell": b"the client"}
    def __init__(self):
        self.session = Session()
    def get_parent(self, channel):
        return {"header": {"msg_id": "the request"}}
class Shell:
    def __init__(self, namespace):
        self.user_ns = self.user_global_ns = namespace
        self.user_ns_hidden = dict(namespace)
        self.events, self.kernel = Events(), Kernel()
def get_ipython(shell=Shell(globals())):
    return shell
"""
CELL_DONE = "[function(None) for function in [*get_ipython().events.functions]]"


class Watched(Space):
    """A namespace with an IPython shell."""

    def __init__(self, bare: Bare) -> None:
        super().__init__(bare)
        self.cell(SHELL)

    def run(self, code: str) -> list[Any]:
        """Run a cell of the user's; return the updates that the remote part sent after it."""
        self.cell(code)
        self.cell(CELL_DONE)
        sent = self.fetch("get_ipython().kernel.session.sent")
        self.cell("get_ipython().kernel.session.sent.clear()")
        return sent

    def watch(self, expression: str, identity: str = "w", **fields: Any) -> Any:
        fields = {"lane": "inline", "owner": f"the bridge of {identity}", **fields}
        return self.ask("watch", expressions=[expression], resource=identity, **fields)

    def renew(self, identity: str, seen: int) -> list[str]:
        """Renew the lease of a watch's bridge; return the resources that are not known."""
        fields = {"owner": f"the bridge of {identity}", "seen": {identity: seen}}
        return self.ask("renew", **fields)[0]["gone"]

    def watches(self) -> int:
        return self.fetch(f"len({REMOTE}.resources.known)")

    def open(self, update: Any) -> tuple[Header, list[memoryview]]:
        """Return the response in an update, its rest fetched."""
        _, kind, content, _, _, buffers = update
        assert kind == EVENT_MESSAGE
        response = json.loads(content["answer"])
        parts = buffers or [base64.b64decode(response.pop("data"), validate=True)]
        inbox = _response.open_response(response)
        _response.add_chunk(response, inbox, 0, parts)
        asked = {**self.header("watch"), "id": content["event"]}, _payload.EMPTY
        outcome = self.outcome(asked, _response.Response(response, Request({}), inbox))
        if isinstance(outcome, BridgeError):
            raise outcome
        assert outcome is not None
        return outcome

    def value(self, update: Any) -> Any:
        return _payload.decode(self.open(update)[1])[0]


@pytest.fixture
def watched(python: Python, kernels: Callable[..., Bare]) -> Watched:
    bare = kernels(python, None)
    Space(bare).prepare()
    opened = Watched(bare)
    opened.hello()
    return opened


def test_a_watched_value_is_sent_at_once_and_after_each_cell_that_changes_it(
    watched: Watched,
) -> None:
    watched.run("x = 1")
    assert _payload.decode(watched.watch("x")[1]) == (1,)
    (update,) = watched.run("x = 2")
    stream_, kind, content, parent, identity, buffers = update
    assert (stream_, kind) == ("the shell channel", "bridgehead_event")
    assert (parent, identity) == ({"header": {"msg_id": "the request"}}, b"the client")
    assert (content["resource"], buffers) == ("w", [])
    assert watched.value(update) == 2
    assert watched.run("y = 1") == []
    assert watched.run("x = 2") == []
    assert watched.value(watched.run("x = [3]")[0]) == [3]
    assert watched.value(watched.run("x.append(4)")[0]) == [3, 4]


def test_updates_come_as_buffers_on_the_buffers_lane(watched: Watched) -> None:
    watched.run("x = 1")
    watched.watch("x", lane="buffers")
    (update,) = watched.run("x = b'long' * 1000")
    assert "data" not in json.loads(update[2]["answer"])
    assert watched.value(update) == b"long" * 1000


def test_an_error_of_a_watched_expression_is_an_update_and_harms_no_cell(watched: Watched) -> None:
    watched.run("d = {'a': 1}")
    watched.watch("d['a']")
    (update,) = watched.run("d.clear()")
    with pytest.raises(RemoteError, match="KeyError: 'a'"):
        watched.open(update)
    assert watched.run("other = 1") == []
    assert watched.value(watched.run("d['a'] = 5")[0]) == 5
    (update,) = watched.run("del d")
    with pytest.raises(RemoteError, match="NameError"):
        watched.open(update)


def test_a_watched_expression_that_raises_systemexit_is_reported(watched: Watched) -> None:
    watched.run("def look(): return 1")
    watched.watch("look()")
    (update,) = watched.run("def look(): raise SystemExit('bye')")
    with pytest.raises(RemoteError, match="SystemExit: bye"):
        watched.open(update)


def test_an_update_beyond_max_bytes_reports_its_size_alone(watched: Watched) -> None:
    watched.run("x = 1")
    watched.watch("x", max_bytes=1000)
    (update,) = watched.run("x = b'x' * 5000")
    with pytest.raises(PayloadTooLarge) as caught:
        watched.open(update)
    assert caught.value.bytes > 5000


def test_an_expression_that_fails_is_not_watched(watched: Watched) -> None:
    with pytest.raises(NameNotFound):
        watched.watch("nowhere")
    with pytest.raises(RemoteError):
        watched.watch("1 / 0")
    assert watched.watches() == 0
    assert watched.fetch("get_ipython().events.functions") == []


def test_an_ended_watch_sends_nothing_and_leaves_nothing(watched: Watched) -> None:
    watched.run("x = 1")
    for identity in ("v", "w"):
        watched.watch("x", identity)
    assert len(watched.run("x = 2")) == 2
    watched.ask("close", resources=["v"])
    (update,) = watched.run("x = 3")
    assert update[2]["resource"] == "w"
    watched.ask("close", resources=["w"])
    watched.ask("close", resources=["w"])  # a second time does no harm
    assert watched.run("x = 4") == []
    assert watched.fetch("get_ipython().events.functions") == []
    assert watched.watches() == 0


def test_a_long_update_is_fetched_in_chunks_and_dropped_by_a_newer_one(
    watched: Watched,
) -> None:
    watched.run("x = 1")
    watched.watch("x")
    (old,) = watched.run("x = bytes(range(256)) * 1000")
    assert watched.kept() == (0, 1)
    assert watched.value(old) == bytes(range(256)) * 1000
    (newer,) = watched.run("x = x[::-1]")
    assert watched.kept() == (0, 1)
    with pytest.raises(IntegrityError, match="no longer kept"):
        watched.open(old)
    assert watched.value(newer) == (bytes(range(256)) * 1000)[::-1]
    watched.ask("close", resources=["w"])
    assert watched.kept() == (0, 0)


def test_a_renewed_watch_goes_on_and_a_forgotten_one_is_dropped(watched: Watched) -> None:
    watched.run("x = 0")
    for identity in ("kept", "left"):
        watched.watch("x", identity)
    sent = []
    for n in range(1, 25):
        # Each message lets the clock go on by 30 s at most: one cell may run for hours, in which
        # no client can renew.
        with later(watched, 3600 * n):
            sent.append([update[2]["resource"] for update in watched.run(f"x = {n}")])
            assert watched.renew("kept", n) == []
    assert sent[0] == ["kept", "left"]
    assert sent[-1] == ["kept"]
    assert 600 / 30 / 4 <= sent.count(["kept", "left"]) <= 600 / 30
    assert watched.watches() == 1
    assert watched.renew("left", 0) == ["left"]


def test_an_event_that_was_lost_is_sent_again(watched: Watched) -> None:
    watched.run("x = 0")
    watched.watch("x")
    (first,) = watched.run("x = 1")
    assert watched.renew("w", 1) == []
    assert watched.run("") == []
    watched.renew("w", 0)
    (again,) = watched.run("")
    assert (again[2]["event"], watched.value(again)) == (first[2]["event"], 1)
    watched.cell("x = 2")  # no cell of IPython's: no event
    watched.renew("w", 0)
    (newer,) = watched.run("")
    assert newer[2]["event"] != first[2]["event"]
    assert watched.value(newer) == 2


def test_watched_names_are_sent_when_one_appears_vanishes_or_is_of_another_kind(
    watched: Watched,
) -> None:
    def names(header: Header) -> list[Any]:
        return [[one["name"], one["type"], one["len"]] for one in header["names"]]

    def after(cell: str) -> list[Any]:
        (update,) = watched.run(cell)
        header, frames = watched.open(update)
        assert frames == []  # descriptions are no pickle
        return names(header)

    watched.run("x = 1; other = 1")
    fields = {"resource": "w", "owner": "the bridge of w", "lane": "inline"}
    header, frames = watched.ask("watch_names", pattern="x*", **fields)
    assert (names(header), frames) == ([["x", "int", None]], [])
    assert after("x2 = 'ab'") == [["x", "int", None], ["x2", "str", 2]]
    assert watched.run("x = 2; other = 2; more = 3") == []
    assert after("x2 = 'abc'") == [["x", "int", None], ["x2", "str", 3]]
    assert after("x = 1.5") == [["x", "float", None], ["x2", "str", 3]]
    assert after("del x") == [["x2", "str", 3]]
    assert after("del x2") == []
    assert watched.run("y = 1") == []
    assert watched.renew("w", 4) == []  # the last event was lost
    (again,) = watched.run("")
    assert names(watched.open(again)[0]) == []
    assert watched.watches() == 1
    watched.ask("close", resources=["w"])
    assert watched.run("x = 1") == []
    assert watched.fetch("get_ipython().events.functions") == []


def test_a_kernel_without_cell_events_cannot_watch(space: Space) -> None:
    space.bind(x=1)
    with pytest.raises(NotSupported, match="does not report"):
        space.ask("watch", expressions=["x"], resource="w", owner="o")
    with pytest.raises(NotSupported, match="does not report"):
        space.ask("watch_names", pattern="*", resource="w", owner="o")
    space.ask("close", resources=["w"])


EMPTY_DIGEST = _frames.digest("sha256", [])
