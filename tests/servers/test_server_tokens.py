"""Tokens and addresses of servers: how they are found, and that tokens stay secret.

Rule: as in ``test_servers``.
"""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from bridgehead import Bridge, TransportError
from bridgehead._transports.rest import Rest
from bridgehead._transports.websocket import WebsocketTransport
from support.kit import goes_on
from support.servers import SERVER, TOKEN, free_port, on, serving

pytestmark = pytest.mark.servers


async def test_a_line_break_after_the_token_is_removed(server: str) -> None:
    async with Bridge.connect(server, f"{TOKEN}\n") as bridge:
        await goes_on(bridge)


@pytest.mark.parametrize("token", ["sécret", "se\ncret", "se\x00cret"])
async def test_no_error_shows_the_token(token: str) -> None:
    with pytest.raises(ValueError, match="characters that no server accepts") as caught:
        await Bridge.connect("http://127.0.0.1:1", token)
    assert "cret" not in str(caught.value)
    for address in ("htp://host/?token=secret", "http:///?token=secret", "ftp://me:secret@host"):
        with pytest.raises(ValueError, match="is not the address") as caught:
            await Bridge.connect(address)
        assert "secret" not in str(caught.value)


async def test_no_log_shows_the_token(server: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        async with on(server) as bridge:
            await goes_on(bridge)
    assert "/api/kernels" in caplog.text
    assert TOKEN not in caplog.text


async def test_no_proxy_is_used_for_a_server_on_this_machine(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy would send token and data to another machine, unencrypted."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
        monkeypatch.setenv(name.upper(), f"http://127.0.0.1:{free_port()}")
    async with on(server) as bridge:
        await goes_on(bridge)


async def test_a_websocket_follows_no_redirect() -> None:
    visits = 0

    async def redirect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        location = f"ws://127.0.0.1:{stranger.sockets[0].getsockname()[1]}/"
        writer.write(f"HTTP/1.1 302 Found\r\nlocation: {location}\r\n\r\n".encode())
        await writer.drain()
        writer.close()

    async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal visits
        visits += 1
        writer.close()

    async with (
        await asyncio.start_server(count, "127.0.0.1", 0) as stranger,
        await asyncio.start_server(redirect, "127.0.0.1", 0) as redirecting,
    ):
        port = redirecting.sockets[0].getsockname()[1]
        transport = WebsocketTransport(
            Rest(f"http://127.0.0.1:{port}/", TOKEN, None), "kernel", owned=False
        )
        with pytest.raises(TransportError, match="refuses a websocket with status 302"):
            await transport.open(20)
        await transport.aclose()
    assert not visits


async def test_a_server_on_all_interfaces_is_reached_over_loopback(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The server's file contains the machine's name, to which plain http would be refused."""
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path))
    async with serving(SERVER, "--ServerApp.ip=0.0.0.0", runtime=str(tmp_path)) as url:
        for address in (None, url):
            async with Bridge.connect(address) as bridge:
                assert bridge.info.url == url


@pytest.mark.parametrize("module", ["httpx", "websockets"])
def test_without_the_extra_the_error_says_what_to_install(module: str) -> None:
    program = f"""
import asyncio, sys
sys.modules["{module}"] = None
from bridgehead import Bridge
try:
    asyncio.run(Bridge.connect("http://127.0.0.1:1").__aenter__())
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert f"needs {module}: pip install 'bridgehead[server]'" in done.stdout, done.stderr
