"""Addresses and tokens of servers, without a server."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridgehead import Bridge, BridgeError, KernelNotFound
from bridgehead._kernels.jupyter_servers import find
from support.other_user import NOBODY, needs_other_user
from support.web import answering, reply

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


@pytest.mark.parametrize(
    ("pairs", "match"),
    [
        ({"X-Door": f"{SECRET}\r\n"}, "the value of X-Door has characters"),
        ({"X-Door": f"é{SECRET}"}, "the value of X-Door has characters"),
        ({"X Door": SECRET}, "'X Door' is not a name"),
        ({"": SECRET}, "'' is not a name"),
        ({5: SECRET}, "5 is not a name"),
        ({"X-Door": SECRET.encode()}, "the value of X-Door is bytes"),
        (SECRET, "must be a mapping"),
    ],
)
@pytest.mark.parametrize("what", ["headers", "cookies"])
async def test_bad_headers_and_cookies_are_refused_and_not_shown(
    what: str, pairs: object, match: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=match) as caught:
        await Bridge.connect("127.0.0.1:9", **{what: pairs})  # type: ignore[arg-type]
    assert what in str(caught.value)
    assert not [text for text in messages(caught.value) if SECRET in text]


async def test_headers_that_contradict_the_connection_are_refused() -> None:
    for name in ("Host", "Cookie", "accept-encoding", "Sec-WebSocket-Protocol", "UPGRADE"):
        with pytest.raises(ValueError, match=f"cannot have {name}"):
            await Bridge.connect("127.0.0.1:9", headers={name: "x"})
    with pytest.raises(ValueError, match="cookies: the value of a has characters"):
        await Bridge.connect("127.0.0.1:9", cookies={"a": "1; b=2"})
    with pytest.raises(ValueError, match=r"token= and the header Authorization"):
        await Bridge.connect("127.0.0.1:9", SECRET, headers={"authorization": "Bearer x"})


@pytest.mark.parametrize(
    ("page", "server"),
    [
        ("user/ada/lab/tree/x", "user/ada/"),
        ("user/ada/gpu/lab?reset", "user/ada/gpu/"),
        ("user/lab/tree", "user/lab/"),
        ("user/a%40b/", "user/a%40b/"),
        ("hub/user/ada/lab", "user/ada/"),
        ("hub/spawn/ada", "user/ada/"),
        ("hub/spawn-pending/ada/gpu", "user/ada/gpu/"),
        ("base/hub/spawn-pending/ada", "base/user/ada/"),
        ("lab/user/ada/", "lab/user/ada/"),
        ("lab/user/ada/gpu/lab", "lab/user/ada/gpu/"),
        ("api/hub/user/ada/lab", "api/user/ada/"),
        ("notebooks/user/ada/", "notebooks/user/ada/"),
        ("a/console/user/ada/lab", "a/console/user/ada/"),
        ("user/user/lab", "user/user/"),
        ("user/user/gpu/", "user/user/gpu/"),
        ("hub/user/user/lab", "user/user/"),
        ("user/ada/terminals/1", "user/ada/"),
        ("user/ada/files/a/b.csv", "user/ada/"),
        ("user/ada/proxy/8787/", "user/ada/"),
        ("user/ada/consoles/x", "user/ada/"),
        ("user/ada/gpu/terminals/1", "user/ada/gpu/"),
        ("user/ada/vscode/", "user/ada/vscode/"),  # the Hub knows whether there is such a server
        ("user/ada/rstudio/session/x", "user/ada/rstudio/"),
        ("hub/home", "hub/home/"),
        ("user", "user/"),
    ],
)
def test_the_pages_of_a_hub_name_the_server(page: str, server: str) -> None:
    assert find(f"https://h/{page}", None).url == f"https://h/{server}"


@pytest.mark.parametrize("page", ["", "lab", "lab/tree/user/ada/x.ipynb", "tree/user/ada/lab"])
@pytest.mark.parametrize("path", ["", "jupyter/", "proxy/files/"])
def test_the_pages_of_a_server_lead_to_it(path: str, page: str) -> None:
    """A folder of files may have the name ``user``."""
    assert find(f"https://h/{path}{page}", None).url == f"https://h/{path}"


@pytest.mark.parametrize("server", ["", "jupyter/", "user/ada/", "lab/user/user/gpu/"])
def test_an_address_names_a_kernel(server: str) -> None:
    found = find(f"https://h/{server}api/kernels/k-1?token={SECRET}", None)
    assert (found.url, found.kernel_id) == (f"https://h/{server}", "k-1")


async def test_a_server_that_refuses_to_start_a_kernel_left_none(
    caplog: pytest.LogCaptureFixture,
) -> None:
    version = reply({"version": "2.21.1"})
    refusal = reply({"message": "Forbidden"}, "403 Forbidden")

    async def answer(path: str, writer: asyncio.StreamWriter) -> None:
        await (refusal if "kernels" in path else version)(path, writer)

    async with answering(answer) as url:
        with pytest.raises(KernelNotFound, match="403 Forbidden"):
            await Bridge.connect(url, SECRET)
    assert [record.getMessage() for record in caplog.records if record.levelname != "DEBUG"] == []
