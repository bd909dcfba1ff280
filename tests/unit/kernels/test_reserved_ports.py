"""Ports that are reserved for kernels: real sockets."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

import pytest
import zmq

from bridgehead._kernels.reserved_ports import CAN_RESERVE, reserved_port

HERE = "127.0.0.1"
IP_LOCAL_PORT_RANGE = 51  # in <linux/in.h>, from 6.3 on

pytestmark = pytest.mark.skipif(not CAN_RESERVE, reason="Linux can reserve ports")


@pytest.fixture
def port() -> Iterator[int]:
    with reserved_port(HERE) as holder:
        yield holder.getsockname()[1]


def test_the_kernel_of_the_port_listens_there_and_no_other_program(port: int) -> None:
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind((HERE, port))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((HERE, port))
    for _ in range(2):  # a kernel, and the next one after a restart
        with zmq.Context() as context, context.socket(zmq.ROUTER) as kernel:
            kernel.bind(f"tcp://{HERE}:{port}")
            socket.create_connection((HERE, port)).close()


def test_the_system_gives_the_port_to_no_other_socket(port: int) -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            only = struct.pack("I", port | port << 16)  # the lowest and the highest
            other.setsockopt(socket.IPPROTO_IP, IP_LOCAL_PORT_RANGE, only)
        except OSError:
            pytest.skip("this Linux has no range of ports for one socket")
        with pytest.raises(OSError, match="in use"):
            other.bind((HERE, 0))


def test_a_port_is_free_again_and_an_address_elsewhere_has_none() -> None:
    with reserved_port(HERE) as holder:
        port = holder.getsockname()[1]
    with socket.socket() as other:
        other.bind((HERE, port))
    with pytest.raises(OSError, match="assign"):
        reserved_port("192.0.2.1")
