"""Servers behind a proxy: one that is still starting, and a proxy that wants a login.

Rule: the proxy is that of JupyterHub, without a Hub; the servers are real.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from bridgehead import Bridge, KernelNotFound, SyncBridge
from support.hub import proxy
from support.kit import goes_on
from support.servers import GATEWAY, SERVER, TOKEN, Wire, ended, free_port, serving

pytestmark = pytest.mark.servers
PATHS = {SERVER: "--ServerApp.base_url", GATEWAY: "--KernelGatewayApp.base_url"}


class Proxy:
    """A proxy whose routes a test sets."""

    def __init__(self) -> None:
        self.port, self._api_port, self._token = free_port(), free_port(), secrets.token_hex(8)
        self.url = f"http://127.0.0.1:{self.port}/"

    async def route(self, path: str, target: str) -> None:
        headers = {"Authorization": f"token {self._token}"}
        async with httpx.AsyncClient(headers=headers) as client:
            url = f"http://127.0.0.1:{self._api_port}/api/routes{path}"
            (await client.post(url, json={"target": target})).raise_for_status()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        command = await asyncio.to_thread(proxy)
        process = await asyncio.create_subprocess_exec(
            *command,
            *(f"--port={self.port}", f"--api-port={self._api_port}", "--ip=127.0.0.1"),
            env={**os.environ, "CONFIGPROXY_AUTH_TOKEN": self._token},
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            async with asyncio.timeout(60):
                while True:
                    try:
                        await self.route("/nothing", "http://127.0.0.1:1")
                        break
                    except httpx.TransportError:
                        assert process.returncode is None
                        await asyncio.sleep(0.1)
            yield
        finally:
            await ended(process)


@pytest.mark.parametrize("kind", [SERVER, GATEWAY])
async def test_a_server_behind_a_proxy_is_waited_for(kind: str) -> None:
    one = Proxy()
    async with one.running():
        url = f"{one.url}team/me/"
        await one.route("/team/me", f"http://127.0.0.1:{free_port()}")
        with pytest.raises(
            KernelNotFound, match=r"a proxy answers in place of .*: 503 .* for 5 s: .* starting"
        ) as caught:
            await Bridge.connect(url, TOKEN, timeout=5)
        assert TOKEN not in str(caught.value)
        opening = asyncio.ensure_future(Bridge.connect(url, TOKEN, timeout=300).__aenter__())
        async with serving(kind, f"{PATHS[kind]}=/team/me/", path="/team/me/") as target:
            assert not opening.done()
            await one.route("/team/me", target.removesuffix("/team/me/"))
            async with await opening as bridge:
                assert bridge.info.url == url
                await goes_on(bridge)
            with pytest.raises(KernelNotFound, match="refuses the token"):
                await Bridge.connect(url, "wrong")
            with pytest.raises(KernelNotFound, match="wants a token"):
                await Bridge.connect(url, "")


async def test_headers_and_cookies_are_in_all_requests(anyone: str) -> None:
    headers, cookies = {"X-Door": "open"}, {"one": "1", "two": '"2|x"'}
    async with (
        Wire(anyone) as wire,
        Bridge.connect(wire.url, TOKEN, headers=headers, cookies=cookies) as bridge,
    ):
        await goes_on(bridge)
        asked = wire.asked.lower()
    assert b"/channels?" in asked
    requests = asked.count(b" http/1.1\r\n")
    assert asked.count(b"\r\nx-door: open\r\n") == requests
    assert asked.count(b'\r\ncookie: one=1; two="2|x"\r\n') == requests


async def login(server: str) -> dict[str, str]:
    """Return the cookies that a browser has after it logged in."""
    async with httpx.AsyncClient() as browser:
        (await browser.get(f"{server}login")).raise_for_status()
        assert (await browser.get(f"{server}login?token={TOKEN}")).is_redirect
        return dict(browser.cookies)


async def test_the_cookies_of_a_login_in_a_browser_are_enough(server: str) -> None:
    cookies = await login(server)
    async with Bridge.connect(server, cookies=cookies) as bridge:
        await goes_on(bridge)
    del cookies["_xsrf"]
    with pytest.raises(KernelNotFound, match="wants a token"):
        await Bridge.connect(server, cookies=cookies)


def test_a_blocking_bridge_takes_cookies(server: str) -> None:
    with SyncBridge.connect(server, cookies=asyncio.run(login(server))) as bridge:
        bridge["x"] = 1
        assert bridge["x"] == 1
