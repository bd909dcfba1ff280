"""Waiting for servers, without a server: what is asked, and what the error says in the end."""

from __future__ import annotations

import asyncio
import logging

import pytest

from bridgehead import KernelNotFound, TransportError
from bridgehead._kernels.server_wait import _advice, _Wait, until_it_answers
from bridgehead._transports.jupyterhub import State
from bridgehead._transports.rest import Rest
from support.web import answering, reply

OF_HUB = "x-jupyterhub-version: 6.1.1"
AWAY = reply(b"", "302 Found", OF_HUB, "location: /hub/user/ada/api")
pytestmark = pytest.mark.timings(server_pauses=(0.01,))


class Hub:
    """A Hub with one server. ``server`` is what the Hub says of it; None if it does not run."""

    def __init__(self) -> None:
        self.server: object = None
        self.runs = False
        self.starts: list[str] = []  # what it answers to requests to start the server
        self.asked = 0
        self.breaks = False  # it answers nothing
        self.twice = asyncio.Event()  # the server's state was asked twice

    async def __call__(self, path: str, writer: asyncio.StreamWriter) -> None:
        if self.breaks:
            self.breaks = False
            return
        answer = reply({"kind": "user", "name": "ada"}, "200 OK", OF_HUB)
        if path == "/user/ada/api":
            answer = reply({"version": "2"}) if self.runs else AWAY
        elif path == "/hub/api/users/ada/server":
            answer = reply({}, self.starts.pop(0), OF_HUB)
            self.runs = not self.starts
        elif path.startswith("/hub/api/users/ada?"):
            self.asked += 1
            if self.asked == 2:
                self.twice.set()
            answer = reply({"servers": {"": self.server}}, "200 OK", OF_HUB)
        await answer(path, writer)


@pytest.mark.parametrize(
    ("server", "state"),
    [
        (None, "stopped"),
        ({"pending": "spawn"}, "starting"),
        ({"pending": "stop"}, "stopping"),
        ({"pending": None, "ready": True}, "running"),
    ],
)
async def test_a_server_is_waited_for_and_named(server: object, state: State) -> None:
    hub = Hub()
    hub.server = server
    async with answering(hub) as url, Rest(f"{url}user/ada/", "t", None) as rest:
        wait = _Wait(rest, start=False)
        task = asyncio.ensure_future(wait.run(5))
        await hub.twice.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert rest.hub is not None
        todo = _advice(rest.hub, state)
        assert wait.late(5) == f"{rest.hub} is {state}, and did not answer within 5 s; {todo}"


async def test_a_server_that_runs_in_the_end_is_no_error() -> None:
    hub = Hub()
    async with answering(hub) as url, Rest(f"{url}user/ada/", "t", None) as rest:
        task = asyncio.ensure_future(until_it_answers(rest, 60))
        await hub.twice.wait()
        assert not task.done()
        hub.runs = True
        await task


async def test_a_connection_that_breaks_meanwhile_ends_no_wait() -> None:
    hub = Hub()
    async with answering(hub) as url, Rest(f"{url}user/ada/", "t", None) as rest:
        hub.breaks = True
        with pytest.raises(TransportError, match="closed the connection"):
            await until_it_answers(rest, 60)
        task = asyncio.ensure_future(until_it_answers(rest, 60))
        await hub.twice.wait()
        hub.breaks = True
        while hub.breaks:
            await asyncio.sleep(0.01)
        hub.runs = True
        await task


async def test_a_hub_that_starts_too_many_servers_is_asked_again() -> None:
    hub = Hub()
    hub.starts = ["429 Too Many Requests", "429 Too Many Requests", "202 Accepted"]
    async with answering(hub) as url, Rest(f"{url}user/ada/", "t", None) as rest:
        await until_it_answers(rest, 60, start=True)
    assert not hub.starts
    assert hub.asked == 3


async def test_a_start_that_another_program_began_may_fail() -> None:
    hub = Hub()
    hub.server = {"pending": "spawn"}
    async with answering(hub) as url, Rest(f"{url}user/ada/", "t", None) as rest:
        task = asyncio.ensure_future(until_it_answers(rest, 60))
        await hub.twice.wait()
        hub.server = None
        with pytest.raises(KernelNotFound, match="ada/ of .* could not be started: the Hub does"):
            await task


@pytest.mark.parametrize("code", ["502 Bad Gateway", "503 Service Unavailable", "504 Timeout"])
@pytest.mark.parametrize("path", ["", "user/ada/"])
async def test_a_proxy_that_answers_in_place_of_all_is_waited_for(
    code: str, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    twice, asked = asyncio.Event(), 0

    async def answer(path: str, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += path.endswith("/api")
        if asked == 2:
            twice.set()
        await reply(b"<p>", code)(path, writer)

    with caplog.at_level(logging.INFO, "bridgehead"):
        async with answering(answer) as url, Rest(f"{url}{path}", "t", None) as rest:
            wait = _Wait(rest, start=bool(path))
            task = asyncio.ensure_future(wait.run(5))
            await twice.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert "a proxy answers in place of the server" in caplog.text
    assert "or is starting" in wait.late(5) or "still starting" in wait.late(5)


async def test_the_time_is_up_before_anything_answers() -> None:
    async with answering(reply({"version": "2"})) as url, Rest(url, "t", None) as rest:
        with pytest.raises(KernelNotFound, match="did not answer within 0 s"):
            await until_it_answers(rest, 0)
