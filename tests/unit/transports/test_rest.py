"""A hostile server: what it answers is bounded, and controls no terminal."""

from __future__ import annotations

import asyncio
import gzip

import pytest

from bridgehead import Bridge, BridgeError, KernelNotFound, TransportError
from bridgehead._transports.rest import BODY, Rest
from support.web import Answer, answering, reply

EVIL = "\x1b]0;own\x07\x1b[2J"


async def endless(path: str, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        writer.write(b" " * (1 << 16))
        await writer.drain()


async def zip_bomb(path: str, writer: asyncio.StreamWriter) -> None:
    body = gzip.compress(b" " * (1 << 28))  # takes a second, so not when the tests are collected
    await reply(body, "200 OK", "content-encoding: gzip")(path, writer)


async def dripping(path: str, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n")
    while True:
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.01)  # no silence that a timeout of each read would notice


@pytest.mark.parametrize(
    "answer",
    [
        endless,
        zip_bomb,
        reply(b" " * (BODY + 1)),
        reply(b"[" * (BODY - 1)),
        reply(b'{"version":' * 100_000),
        reply({"message": EVIL * 100_000}, "403 Forbidden"),
        reply({"message": EVIL * 100_000}, "500 Error"),
        reply(b"", "302 Found", f"location: http://x/{'a' * 5000}"),
        reply([]),
        reply(5),
    ],
    ids=[
        *("endless", "zip bomb", "too long", "nested", "nested objects", "forbidden", "failed"),
        *("redirected", "a list", "a number"),
    ],
)
async def test_an_answer_is_bounded_and_controls_no_terminal(answer: Answer) -> None:
    async with answering(answer) as url, Rest(url, "token", None) as rest:
        with pytest.raises(BridgeError) as caught:
            await rest.reach()
    text = str(caught.value)
    assert len(text) < 1000
    assert not set(text) & set("\x1b\x07")


@pytest.mark.timings(server_response=0.1, server_connect=0.1)
async def test_an_answer_that_never_ends_has_a_deadline() -> None:
    async with answering(dripping) as url, Rest(url, "token", None) as rest:
        with pytest.raises(TransportError, match="no server answers"):
            await rest.reach()


@pytest.mark.parametrize("kernels", [[{}], [{"id": EVIL * 1000}], [{"id": 5}], [5], {"id": {}}])
async def test_a_list_of_kernels_may_be_anything(kernels: object) -> None:
    async def answer(path: str, writer: asyncio.StreamWriter) -> None:
        body: object = {"version": "2"} if path == "/api" else {"message": "no"}
        if path == "/api/kernels":
            body = kernels
        status = "404 Not Found" if path.startswith("/api/kernels/") else "200 OK"
        await reply(body, status)(path, writer)

    async with answering(answer) as url:
        for address in (url, f"{url}api/kernels/unknown"):
            with pytest.raises((KernelNotFound, TransportError)) as caught:
                await Bridge.attach(address, timeout=60)
            assert len(str(caught.value)) < 1000
