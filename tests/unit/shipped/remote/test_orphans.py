"""Orphans, the subshells that a bridge left behind, under every Python found here.

Rule: another interpreter evaluates the client's expressions; see ``support/bare.py``.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from typing import Any

import pytest

from bridgehead import ProtocolError, RemoteError
from bridgehead._protocol import payload as _payload
from support.bare import REMOTE, Space, later


@pytest.fixture(scope="module")
def ended() -> int:
    """Return the id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def owner(identity: str, pid: Any, host: str | None = None) -> dict[str, Any]:
    return {"id": identity, "host": platform.node() if host is None else host, "pid": pid}


def orphans(space: Space) -> list[str]:
    return space.hello()["orphans"]


def test_a_subshell_whose_process_has_ended_is_reported_once(space: Space, ended: int) -> None:
    space.bind(x=1)
    space.ask("fetch", expressions=["x"], subshell=owner("left", ended))
    space.ask("fetch", expressions=["x"], subshell=owner("used", os.getpid()))
    assert orphans(space) == ["left"]
    assert orphans(space) == []


def test_a_busy_subshell_is_never_reported(space: Space, ended: int) -> None:
    look = f"({REMOTE}.subshells.orphans(), [*{REMOTE}.subshells.known])"
    _, frames = space.ask("fetch", expressions=[look], subshell=owner("busy", ended))
    assert _payload.decode(frames) == (([], ["busy"]),)
    with pytest.raises(RemoteError):
        space.ask("fetch", expressions=["1 / 0"], subshell=owner("failed", ended))
    assert sorted(orphans(space)) == ["busy", "failed"]


def test_a_subshell_of_a_running_process_or_another_host_is_reported_by_its_age(
    space: Space, ended: int
) -> None:
    space.bind(x=1)
    for identity, pid, host in [
        ("alive", os.getpid(), None),
        ("elsewhere", ended, "another host"),
    ]:
        space.ask("fetch", expressions=["x"], subshell=owner(identity, pid, host))
    assert orphans(space) == []
    with later(space, 601):
        space.ask("fetch", expressions=["x"], subshell=owner("alive", os.getpid()))
        assert orphans(space) == ["elsewhere"]
    with later(space, 1203):
        assert orphans(space) == ["alive"]


@pytest.mark.parametrize("odd", [5, "s", [], {}, {"id": 5}, owner("s", "no pid")], ids=repr)
def test_a_request_with_a_malformed_owner_is_refused(space: Space, odd: Any) -> None:
    space.bind(x=1)
    header = space.header("fetch", expressions=["x"])
    with pytest.raises(ProtocolError, match="'subshell'"):
        space.finish({**header, "subshell": odd})
    space.finish({**header, "subshell": None})
    with later(space, 601):
        assert orphans(space) == []
