"""Addresses and tokens of servers, without a server."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridgehead import Bridge, BridgeError
from bridgehead._kernels.jupyter_servers import find
from support.other_user import NOBODY, needs_other_user

SECRET = "s3cr3t-T0KEN"
BAD = [
    "ftp://h/?token={}",
    "http://[::1/?token={}",
    "http://127.0.0.1:99999/?token={}",
    "http://user:{}@127.0.0.1:9/",
    "http://{}@127.0.0.1:9/",
    "http://:{}@127.0.0.1:9/",
    "http:/127.0.0.1:9/?token={}",
    "http://127.0.0.1:port/?token={}",
    "http://127.0.0.1:9\\@evil/?token={}",
    "http:///?token={}",
    "127.0.0.1:9/lab&token={}",
    "http://127.0.0.1:9/token={}",
    "http://ﬀ\uff03{}@h/",
    "http://h\u2100{}/?token={}",
    "http://a b{}/",
    "?token={}",
]
UNREACHABLE = [
    "localhost:9/?token={}",
    "127.0.0.1:9/lab?token={}",
    "HTTP://127.0.0.1:9/?token={}",
    "http://127.0.0.1:9/x/?token={}",
    "http://127.0.0.1:9/#token={}",
    "http://127.0.0.1:9/?TOKEN={}",
    "https://127.0.0.1:9/api/kernels/k?token={}",
]


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv("JUPYTER_TOKEN", raising=False)
    return tmp_path


def messages(error: BaseException | None) -> Iterator[str]:
    while error is not None:
        yield from (str(error), repr(error), *getattr(error, "__notes__", ()))
        error = error.__cause__ or error.__context__


@pytest.mark.parametrize("how", [Bridge.attach, Bridge.connect])
@pytest.mark.parametrize("address", [*BAD, *UNREACHABLE])
async def test_no_message_has_the_token(how: object, address: str) -> None:
    with pytest.raises((BridgeError, ValueError)) as caught:
        await how(address.replace("{}", SECRET), timeout=5)  # type: ignore[operator]
    assert not [text for text in messages(caught.value) if SECRET in text]


@pytest.mark.parametrize("address", ["HTTP://h:9/?token={}", "h:9/lab?token={}", " h:9?token={} "])
def test_an_address_is_read_in_any_case_and_without_scheme(address: str) -> None:
    found = find(address.replace("{}", SECRET), None)
    assert (found.url, found.token) == ("http://h:9/", SECRET)


@pytest.fixture
def port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def written(runtime: Path, port: int, **fields: object) -> Path:
    file = runtime / "jpserver-1.json"
    url = f"http://127.0.0.1:{port}/"
    info = {"url": url, "port": port, "token": SECRET, "pid": os.getpid(), **fields}
    file.write_text(json.dumps(info))
    return file


def tokens(port: int) -> set[str]:
    """Return the tokens that would be sent, without an address and with it."""
    return {find(None, None).token, find(f"127.0.0.1:{port}", None).token}


def test_a_servers_token_goes_to_that_server(runtime: Path, port: int) -> None:
    written(runtime, port)
    assert tokens(port) == {SECRET}
    everywhere = {"hostname": "0.0.0.0", "base_url": "/", "url": "http://elsewhere:1/"}
    written(runtime, port, **everywhere)
    assert tokens(port) == {SECRET}


@pytest.mark.parametrize("pid", [os.getppid(), 1, True, 1.5, None])
def test_the_token_of_a_stale_file_goes_to_no_other_process(
    runtime: Path, port: int, pid: object
) -> None:
    """The process in the file ended, and another program has the port; or the pid was reused."""
    written(runtime, port, pid=pid)
    assert tokens(port) == {""}


def test_the_token_goes_to_no_other_port(runtime: Path, port: int) -> None:
    written(runtime, port - 1)
    assert tokens(port - 1) == {""}


@needs_other_user
def test_a_file_of_another_user_is_no_server(runtime: Path, port: int) -> None:
    os.chown(written(runtime, port), NOBODY, NOBODY)
    assert find(f"127.0.0.1:{port}", None).token == ""
    with pytest.raises(BridgeError, match="lists: none"):
        find(None, None)
