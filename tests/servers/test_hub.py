"""Kernels behind a JupyterHub: servers that run, start or stop, and tokens of users and services.

Rule: one real Hub with its proxy, below a path, as ``support/hub.py`` starts it; each test has a
user of its own, except where it says otherwise.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from bridgehead import (
    Bridge,
    BridgeError,
    KernelDied,
    KernelNotFound,
    RemoteError,
    SyncBridge,
    TransportError,
)
from bridgehead._transports.jupyterhub import HubServer, State
from support.cli import Ran, bridgehead
from support.hub import RunningHub, hub
from support.kit import goes_on

pytestmark = pytest.mark.servers
GUIDE = Path(__file__).parents[2] / "notebooks" / "guides" / "jupyterhub.md"
STARTS = 300.0  # s within which a server has started, on a loaded machine
ASKED = 5.0  # s within which the Hub was asked


@pytest.fixture(scope="module")
async def jupyterhub() -> AsyncIterator[RunningHub]:
    async with hub("/jupyter/") as running:
        yield running


@pytest.fixture(scope="module")
async def ada(jupyterhub: RunningHub) -> str:
    """Give the token of a user whose server runs, for tests that leave it running."""
    token = await jupyterhub.user("ada")
    async with Bridge.connect(
        jupyterhub.server("ada"), token, start_server=True, timeout=STARTS
    ) as bridge:
        await goes_on(bridge)
    return token


async def refused(opening: Any, match: str) -> str:
    """Return the message of the error with which opening a bridge fails."""
    with pytest.raises(KernelNotFound, match=match) as caught:
        await opening
    return str(caught.value)


# ---------------------------------------------------------------- servers that run


async def test_a_users_token_reaches_a_kernel_of_the_server(
    jupyterhub: RunningHub, ada: str
) -> None:
    url = jupyterhub.server("ada")
    pages = ("", "lab/tree/some.ipynb", "terminals/1", "proxy/8787/")
    for address in (*(url + page for page in pages), url.replace("/user/", "/hub/user/")):
        async with Bridge.connect(address, ada) as bridge:
            assert (bridge.info.url, bridge.info.lane, bridge.info.trust) == (
                url,
                "buffers",
                "data",
            )
            await bridge.push(x=[1, 2])
            assert await bridge.pull("sum(x)") == 3
            async with Bridge.attach(
                f"{url}api/kernels/{bridge.info.kernel_id}?token={ada}"
            ) as two:
                assert await two.pull("x") == [1, 2]


async def test_a_services_token_reaches_a_users_server(jupyterhub: RunningHub, ada: str) -> None:
    async with Bridge.connect(jupyterhub.server("ada"), jupyterhub.robot) as bridge:
        await goes_on(bridge)


async def test_a_services_token_has_a_users_server_started(jupyterhub: RunningHub) -> None:
    await jupyterhub.user("jon")
    url, robot = jupyterhub.server("jon"), jupyterhub.robot
    await refused(Bridge.connect(url, robot, timeout=ASKED), "jon/ of .* is stopped")
    async with Bridge.connect(url, robot, start_server=True, timeout=STARTS) as bridge:
        await goes_on(bridge)
        assert await jupyterhub.state("jon") is not None
    await jupyterhub.stop("jon")
    opening = asyncio.ensure_future(Bridge.connect(url, robot, timeout=STARTS).__aenter__())
    await jupyterhub.start("jon")  # by another program: the service waits for it
    async with await opening as bridge:
        await goes_on(bridge)


async def test_the_token_may_be_a_header(jupyterhub: RunningHub, ada: str) -> None:
    headers = {"Authorization": f"Bearer {ada}"}
    async with Bridge.connect(jupyterhub.server("ada"), headers=headers) as bridge:
        await goes_on(bridge)


def test_a_blocking_bridge_reaches_a_server(jupyterhub: RunningHub, ada: str) -> None:
    headers = {"Authorization": f"token {ada}"}
    with SyncBridge.connect(jupyterhub.server("ada"), headers=headers) as bridge:
        bridge["x"] = 1
        assert bridge["x"] == 1


# ---------------------------------------------------------------- servers that do not run


async def test_a_stopped_server_is_named_in_the_error(
    jupyterhub: RunningHub, caplog: pytest.LogCaptureFixture
) -> None:
    token = await jupyterhub.user("stopped")
    with caplog.at_level(logging.INFO, "bridgehead"):
        text = await refused(
            Bridge.connect(jupyterhub.server("stopped"), token, timeout=ASKED), "is stopped"
        )
    assert f"the server stopped/ of the JupyterHub at {jupyterhub.url}hub/ is stopped" in text
    assert "or with start_server=True" in text
    assert "within 5 s" in text
    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING"]
    assert "waiting" in caplog.text
    assert token not in caplog.text + text


@pytest.fixture
def starting_seen(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Give an event that is set when a bridge that is opening sees that the server starts."""
    seen, ask = asyncio.Event(), HubServer.state

    async def state(self: HubServer) -> State:
        found = await ask(self)
        if found == "starting":
            seen.set()
        return found

    monkeypatch.setattr(HubServer, "state", state)
    return seen


async def test_a_server_that_another_program_starts_is_waited_for(
    jupyterhub: RunningHub, starting_seen: asyncio.Event
) -> None:
    token = await jupyterhub.user("bea")
    opening = asyncio.ensure_future(
        Bridge.connect(jupyterhub.server("bea"), token, timeout=STARTS).__aenter__()
    )
    jupyterhub.hold("bea")
    await jupyterhub.start("bea")
    await asyncio.wait_for(starting_seen.wait(), STARTS)
    with pytest.raises(KernelNotFound, match=r"bea/ of .* is starting, and did not .* within 5 s"):
        await Bridge.connect(jupyterhub.server("bea"), token, timeout=ASKED)
    assert not opening.done()
    jupyterhub.release("bea")
    async with await opening as bridge:
        await goes_on(bridge)


async def test_a_start_goes_on_after_a_cancel_and_nothing_else_stays(
    jupyterhub: RunningHub,
) -> None:
    token = await jupyterhub.user("cleo")
    jupyterhub.hold("cleo")
    before = asyncio.all_tasks(), descriptors()
    how: dict[str, Any] = {"start_server": True, "timeout": STARTS}
    opening = asyncio.ensure_future(
        Bridge.connect(jupyterhub.server("cleo"), token, **how).__aenter__()
    )
    await jupyterhub.until_pending("cleo")
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert asyncio.all_tasks() == before[0]
    assert descriptors() <= before[1] + 1  # the test's own client has one more, or not
    jupyterhub.release("cleo")
    async with Bridge.connect(jupyterhub.server("cleo"), token, **how) as bridge:
        await goes_on(bridge)
        kernel_id = bridge.info.kernel_id
    state = await jupyterhub.state("cleo")
    assert state is not None
    assert state["ready"]
    with pytest.raises(KernelNotFound, match="has no kernel"):
        await Bridge.connect(jupyterhub.server("cleo"), token, kernel_id=kernel_id)


def descriptors() -> int:
    return psutil.Process().num_fds()


async def test_a_named_server_is_started_beside_the_default_one(
    jupyterhub: RunningHub, ada: str
) -> None:
    """Until it runs, the default server gets its requests."""
    url = jupyterhub.server("ada", "gpu")
    text = await refused(Bridge.connect(url, ada, timeout=ASKED), "server ada/gpu of the .* does")
    assert "does not exist" in text
    assert f"is a page of the user's server, use {jupyterhub.server('ada')}; " in text
    async with Bridge.connect(url, ada, start_server=True, timeout=STARTS) as bridge:
        assert bridge.info.url == url
        await goes_on(bridge)
        await refused(Bridge.connect(url, ada, kernel_id="0" * 32), "has no kernel|knows no kernel")
    await jupyterhub.stop("ada", "gpu")


async def test_the_command_line_has_a_server_started(
    jupyterhub: RunningHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUPYTER_TOKEN", await jupyterhub.user("ian"))
    url = jupyterhub.server("ian")

    async def command(*arguments: str) -> Ran:
        return await asyncio.to_thread(bridgehead, *arguments, "--url", url)

    for arguments in (("run", "-c", "1"), ("interrupt",), ("start",)):
        ran = await command(*arguments, "--timeout", f"{ASKED:g}")
        text = ran.refused(3)
        assert f"the server ian/ of the JupyterHub at {jupyterhub.url}hub/ is stopped" in text
        assert "home, or with bridgehead start --url ADDRESS --start-server" in text
    ran = await command("start", "--start-server", "--timeout", f"{STARTS:g}")
    assert ran.out.startswith(f"{url}api/kernels/"), ran.err
    assert (await command("run", "-c", "6 * 7")).out == "42\n"


async def test_a_start_that_fails_is_reported_with_its_reason(
    jupyterhub: RunningHub, starting_seen: asyncio.Event
) -> None:
    token = await jupyterhub.user("dora")
    jupyterhub.fail("dora")
    text = await refused(
        Bridge.connect(jupyterhub.server("dora"), token, start_server=True, timeout=STARTS),
        "dora/ of .* could not be started: no room on the cluster",
    )
    assert token not in text
    jupyterhub.hold("dora")
    await jupyterhub.start("dora")
    opening = asyncio.ensure_future(
        Bridge.connect(jupyterhub.server("dora"), token, timeout=STARTS).__aenter__()
    )
    await asyncio.wait_for(starting_seen.wait(), STARTS)
    jupyterhub.release("dora")
    await refused(opening, "could not be started: no room on the cluster")


async def test_a_server_whose_process_was_killed_is_started_again(
    jupyterhub: RunningHub,
) -> None:
    """The proxy answers 503 then, and the Hub says for half a minute that it runs."""
    token = await jupyterhub.user("eve")
    how: dict[str, Any] = {"start_server": True, "timeout": STARTS}
    async with Bridge.connect(jupyterhub.server("eve"), token, **how) as bridge:
        server = await bridge.call(os.getppid)
    os.kill(server, signal.SIGKILL)
    async with Bridge.connect(jupyterhub.server("eve"), token, **how) as bridge:
        await goes_on(bridge)


async def test_a_server_that_is_stopped_beneath_a_bridge_blames_no_token(
    jupyterhub: RunningHub, caplog: pytest.LogCaptureFixture, shorten: Callable[..., None]
) -> None:
    token = await jupyterhub.user("fay")
    url = jupyterhub.server("fay")
    bridge = await Bridge.connect(url, token, start_server=True, timeout=STARTS)
    other = await Bridge.connect(url, token)
    await jupyterhub.stop("fay")
    shorten(reconnect_within=0.1)
    with pytest.raises(TransportError, match="fay/ of .* does not run"):
        await other.pull("1")
    with pytest.raises(TransportError, match="fay/ of .* does not run"):
        await bridge.interrupt()
    await bridge.aclose()
    assert "may still run: the server fay/" in caplog.text
    assert "token" not in caplog.text
    await jupyterhub.start("fay")
    async with other, asyncio.timeout(STARTS):
        with pytest.raises(KernelDied, match="the server no longer has it"):
            while True:
                with contextlib.suppress(TransportError):
                    await other.pull("1")
                await asyncio.sleep(0.1)


async def test_the_programs_of_the_guide_print_what_it_says(
    jupyterhub: RunningHub, ada: str, tmp_path: Path
) -> None:
    blocks = re.findall(r"^```python notest\n(.*?)^```", GUIDE.read_text(), re.M | re.DOTALL)
    tokens = {"HUB_TOKEN": ada, "SERVICE_TOKEN": jupyterhub.robot}
    printed = []
    for block in blocks:
        program = block.replace("https://hub.example.com/", jupyterhub.url)
        (tmp_path / "program.py").write_text(program.replace('"bea"', '"missing"'))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "program.py"),
            cwd=tmp_path,
            env={**os.environ, **tokens},
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await process.communicate()
        assert process.returncode == 0
        printed += out.decode().splitlines()
    assert printed[:2] == ["16", "ada 2"]
    assert "missing has no server that runs: the server missing/ of the JupyterHub at" in printed[2]


# ---------------------------------------------------------------- tokens


@pytest.mark.parametrize("runs", [True, False])
async def test_a_token_is_blamed_only_if_it_was_refused(
    jupyterhub: RunningHub, ada: str, runs: bool
) -> None:
    user = "ada" if runs else "gina"
    await jupyterhub.user(user)
    url, other = jupyterhub.server(user), await jupyterhub.user("bob")
    text = await refused(Bridge.connect(url, "", timeout=ASKED), "wants a token .*; pass token=")
    assert f"{jupyterhub.url}hub/token" in text
    text = await refused(Bridge.connect(url, "secret-wrong", timeout=ASKED), "refuses the token")
    assert "misspelled, expired or revoked" in text
    assert "secret" not in text
    assert "_xsrf" not in text
    if runs:
        text = await refused(Bridge.connect(url, other), "refuses the user bob")
        assert "the token is valid, but lacks the scope access:servers!server=ada/" in text
    else:
        # At once: it would wait in vain.
        for options in ({}, {"start_server": True}):
            text = await refused(
                Bridge.connect(url, other, **options),
                "is not for the user bob, whose token this is",
            )
            assert "check the user's name in the address" in text
            assert "access:servers!server=gina/" in text


async def test_a_token_that_may_only_use_a_server_waits_for_it(jupyterhub: RunningHub) -> None:
    """Such a token is what a program gets; it can't see whether a server is starting."""
    await jupyterhub.user("hal")
    token = await jupyterhub.user("hal", "access:servers!server=hal/")
    url = jupyterhub.server("hal")
    await refused(Bridge.connect(url, token, timeout=ASKED), "does not run, or is starting")
    await refused(
        Bridge.connect(url, token, start_server=True), "lacks the scope servers!server=hal/"
    )
    await jupyterhub.start("hal")
    async with Bridge.connect(url, token, timeout=STARTS) as bridge:
        await goes_on(bridge)


async def test_an_address_without_a_server_is_reported(jupyterhub: RunningHub, ada: str) -> None:
    for url in (jupyterhub.url, f"{jupyterhub.url}hub/home", f"{jupyterhub.url}hub/token"):
        text = await refused(Bridge.connect(url, ada), "is of a JupyterHub")
        assert f"as in {jupyterhub.url}user/NAME/" in text
    for path in ("user/", "usr/ada/", "lab"):
        text = await refused(Bridge.connect(f"{jupyterhub.url}{path}", ada), "is of a JupyterHub")
        assert f"as in {jupyterhub.url}user/NAME/" in text
    with pytest.raises(ValueError, match=r"start_server= is for a server of a JupyterHub"):
        await Bridge.connect(jupyterhub.url, ada, start_server=True)
    text = await refused(
        Bridge.connect(jupyterhub.server("missing"), ada), "missing/ of .* is not for the user ada"
    )
    assert ada not in text
    robot = jupyterhub.robot  # may use the servers of all users
    missing = jupyterhub.server("missing")
    await refused(Bridge.connect(missing, robot, timeout=ASKED), "; check the user's name")
    await refused(
        Bridge.connect(missing, robot, start_server=True),
        "missing/ of .* cannot be started by the service robot .*there is no such user",
    )


async def test_no_log_has_a_secret(
    jupyterhub: RunningHub, ada: str, caplog: pytest.LogCaptureFixture
) -> None:
    secrets = {"X-Door": "s3cret-header"}, {"login": "s3cret-cookie"}
    with caplog.at_level(logging.DEBUG):
        async with Bridge.connect(
            jupyterhub.server("ada"), ada, headers=secrets[0], cookies=secrets[1]
        ) as bridge:
            await bridge.push(door="s3cret-value")
            assert await bridge.pull("door + 's3cret-code'") == "s3cret-values3cret-code"
            with pytest.raises(RemoteError):
                await bridge.run("print(door); raise ValueError(door)")
            kernel = f"{bridge.info.url}api/kernels/{bridge.info.kernel_id}?token={ada}"
        with pytest.raises(KernelNotFound, match="has no kernel"):
            await Bridge.attach(kernel)
        with pytest.raises(BridgeError) as caught:
            await Bridge.connect(jupyterhub.url, ada, headers=secrets[0], cookies=secrets[1])
    for text in (caplog.text, str(caught.value)):
        assert text
        assert ada not in text
        assert "s3cret" not in text
