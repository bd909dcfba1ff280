"""Servers of a JupyterHub, without a Hub: addresses, and answers that a Hub rarely or never gives.

What a Hub usually answers is in ``servers/test_hub.py``.
"""

from __future__ import annotations

import asyncio

import pytest

from bridgehead import Bridge, BridgeError, KernelNotFound, TransportError
from bridgehead._transports.rest import Rest
from support.web import Answer, answering, reply

EVIL = "\x1b]0;own\x07\x1b[2J" * 1000
SECRET = "s3cr3t-T0KEN"
OF_HUB = "x-jupyterhub-version: 6.1.1"
AWAY = reply(b"", "302 Found", OF_HUB, "location: /hub/user/ada/api")


def states(*answers: Answer, user: object = None) -> dict[str, Answer]:
    """Return the answers of a Hub whose server does not run; the last one of its state repeats."""
    left = list(answers)

    async def state(path: str, writer: asyncio.StreamWriter) -> None:
        await (left.pop(0) if len(left) > 1 else left[0])(path, writer)

    name = {"kind": "user", "name": "ada"} if user is None else user
    return {"users/ada?": state, "user": reply(name, "200 OK", OF_HUB), "/user/ada/": AWAY}


def of(state: object) -> Answer:
    return reply({"servers": {"": state}}, "200 OK", OF_HUB)


def by_path(answers: dict[str, Answer]) -> Answer:
    async def answer(path: str, writer: asyncio.StreamWriter) -> None:
        rest = path.removeprefix("/hub/api/")
        chosen = next((answers[start] for start in answers if rest.startswith(start)), None)
        await (chosen or reply({}, "404 Not Found", OF_HUB))(path, writer)

    return answer


@pytest.mark.parametrize(
    ("path", "hub", "label"),
    [
        ("user/ada/", "hub/", "ada/"),
        ("user/ada/gpu/", "hub/", "ada/gpu"),
        ("a/b/user/a%40b/", "a/b/hub/", "a@b/"),
        ("user/user/user/", "hub/", "user/user"),
        ("user/", None, None),
        ("", None, None),
        ("user/ada/gpu/more/", None, None),
    ],
)
async def test_an_address_names_hub_user_and_server(
    path: str, hub: str | None, label: str | None
) -> None:
    async with Rest(f"https://h:1/{path}", SECRET, None) as rest:
        if hub is None:
            assert rest.hub is None
        else:
            assert rest.hub is not None
            assert (rest.hub.hub, rest.hub.label) == (f"https://h:1/{hub}", label)


@pytest.mark.parametrize(
    ("answer", "state"),
    [
        (of({"pending": "spawn", "ready": False}), "starting"),
        (of({"pending": "stop", "ready": True}), "stopping"),
        (of({"pending": None, "ready": True}), "running"),
        (of({"pending": EVIL, "ready": True}), "stopped"),
        (of({"pending": None, "ready": "yes"}), "stopped"),
        (of(None), "stopped"),
        (of(5), "stopped"),
        (reply({"servers": EVIL}, "200 OK", OF_HUB), "unknown"),
        (reply([], "200 OK", OF_HUB), "unknown"),
        (reply(b"[" * 100_000, "200 OK", OF_HUB), "unknown"),
        (reply({"message": EVIL}, "500 Error", OF_HUB), "unknown"),
        (reply({"message": EVIL}, "403 Forbidden", OF_HUB), "unknown"),
        (reply({"message": EVIL}, "403 Forbidden"), "unknown"),
        (reply({"message": EVIL}, "404 Not Found", OF_HUB), "unknown"),
    ],
)
async def test_whatever_a_hub_answers_is_a_state_of_the_server(answer: Answer, state: str) -> None:
    async with (
        answering(by_path(states(answer))) as url,
        Rest(f"{url}user/ada/", SECRET, None) as rest,
    ):
        assert rest.hub is not None
        assert await rest.hub.state() == state
        with pytest.raises(TransportError, match="ada/ of the JupyterHub at .* does not run"):
            await rest.reach()


@pytest.mark.parametrize(
    ("start", "progress", "match"),
    [
        (reply({"message": EVIL}, "500 Error", OF_HUB), reply({}), "could not be started: 500"),
        (reply({"message": SECRET}, "400 Bad", OF_HUB), reply(b"data: 5"), "started: 400 …;"),
        (
            reply({}, "500 Error", OF_HUB),
            reply(b'data: {"progress": 1}\n\ndata: {"failed": true, "message": "no room"}\n'),
            "could not be started: no room;",
        ),
        (reply({"message": EVIL}, "403 Forbidden", OF_HUB), reply({}), "started by the user ada"),
        (reply({"message": EVIL}, "404 Not Found", OF_HUB), reply({}), "started by the user ada"),
    ],
)
async def test_a_start_that_a_hub_refuses_is_reported(
    start: Answer, progress: Answer, match: str
) -> None:
    answers = {"users/ada/server/progress": progress, "users/ada/server": start, **states(of(None))}
    async with answering(by_path(answers)) as url:
        with pytest.raises(KernelNotFound, match=match) as caught:
            await Bridge.connect(f"{url}user/ada/", SECRET, start_server=True)
    assert_harmless(caught.value)


async def test_an_address_like_that_of_a_hub_may_be_of_another_server() -> None:
    """It refuses a token, and its pages are not a Hub's."""

    async def answer(path: str, writer: asyncio.StreamWriter) -> None:
        found = {"/user/ada/api": reply({"version": "2"}), "/user/ada/api/kernels": refusal}
        await found.get(path, reply(b"<p>", "404 Not Found"))(path, writer)

    refusal = reply({"message": "no"}, "403 Forbidden")
    async with answering(answer) as url:
        with pytest.raises(KernelNotFound, match=r"refuses the token \(403 no\)"):
            await Bridge.connect(f"{url}user/ada/", SECRET)


async def test_an_error_of_the_server_itself_blames_no_token() -> None:
    """As when it cannot reach the Hub, which knows the tokens."""
    failed = reply({"message": "Failed to connect to Hub API"}, "500 Error", OF_HUB)

    async def answer(path: str, writer: asyncio.StreamWriter) -> None:
        await (reply({"version": "2"}) if path == "/user/ada/api" else failed)(path, writer)

    async with answering(answer) as url:
        with pytest.raises(TransportError, match="500 Failed to connect to Hub API") as caught:
            await Bridge.connect(f"{url}user/ada/", SECRET, kernel_id="k")
    assert "token" not in str(caught.value)


def assert_harmless(error: BridgeError) -> None:
    text = str(error)
    assert len(text) < 1000
    assert not set(text) & set("\x1b\x07")
    assert SECRET not in text
