"""What is the address of a server, and what a file."""

from __future__ import annotations

import pytest

from bridgehead._transports.addresses import is_of_server

ADDRESSES = [
    *("http://h", "https://h/lab", "HTTP://h", "Https://h:1/", "ftp://h", "http:/127.0.0.1:9/"),
    *("localhost:8888", "127.0.0.1:8888/lab?token=x", "[::1]:8888/", "host.example:80#x", " h:1 "),
    *("localhost/?token=x", "h/?TOKEN=x", "x&token=x", "ws://h", "lab?token=x\n"),
]
FILES = [
    *("kernel-1234.json", "/run/user/0/kernel-1.json", "1234", "*12*", "./h:1.json", "C:\\k.json"),
    *("~/k.json", "", ".", "kernel", "a:b", "mytoken.json"),
]


@pytest.mark.parametrize("text", ADDRESSES)
def test_the_address_of_a_server_is_recognised(text: str) -> None:
    assert is_of_server(text)


@pytest.mark.parametrize("text", FILES)
def test_a_file_is_no_address(text: str) -> None:
    assert not is_of_server(text)
