"""Security of connections: keys, connection files, ports and CURVE.

Rule: real kernels and real sockets. A stranger is a plain ZeroMQ socket. A proxy between the bridge
and the kernel records the bytes on the wire.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import sys
import tempfile
import time
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import zmq
import zmq.asyncio
from jupyter_client.asynchronous import AsyncKernelClient
from jupyter_client.manager import AsyncKernelManager

from bridgehead import (
    Bridge,
    InsecureConnection,
    InsecureConnectionWarning,
    KernelNotFound,
    NotSupported,
    SyncBridge,
)

PORTS = ("shell_port", "iopub_port", "control_port", "stdin_port", "hb_port")
CURVE = ("curve_publickey", "curve_secretkey")
MARKER = b"the marker that no listener should see. " * 4000


def connection(bridge: Bridge) -> dict[str, Any]:
    """Return the content of the kernel's connection file."""
    info: dict[str, Any] = json.loads(Path(bridge.info.connection_file or "").read_text())
    return info


def written(file: Path, info: dict[str, Any]) -> Path:
    """Write a connection file that only this user can read."""
    file.write_text(json.dumps(info))
    file.chmod(0o600)
    return file


def other_keys() -> dict[str, str]:
    return dict(zip(CURVE, (key.decode() for key in zmq.curve_keypair()), strict=True))


@pytest.fixture
def long(tmp_path: Path) -> Path:
    """Make a path too long for Unix sockets, so that launched kernels use TCP."""
    folder = tmp_path / ("long" * 25)
    folder.mkdir()
    return folder / "kernel.json"


@asynccontextmanager
async def kernel(**options: Any) -> AsyncIterator[AsyncKernelManager]:
    """Start a kernel as another program does."""
    manager = AsyncKernelManager()
    for name, value in options.items():
        setattr(manager, name, value)
    if options.get("key") == b"":
        manager.session.key = b""
    await manager.start_kernel()
    try:
        yield manager
    finally:
        await manager.shutdown_kernel(now=True)


# ------------------------------------------------------------ insecure=


async def test_an_unknown_name_for_insecure_is_reported_before_a_connection_is_opened() -> None:
    message = "insecure='everything' is unknown; use 'empty-key' and 'plain-tcp', or both"
    for wrong in ("everything", ["empty-key", "everything"]):
        with pytest.raises(ValueError, match=message):
            Bridge.attach("nowhere", insecure=wrong)  # not awaited: it is refused before
        with pytest.raises(ValueError, match=message):
            Bridge.over(None, insecure=wrong)
    for wrong in (True, None):
        with pytest.raises(TypeError, match=r"insecure= takes 'empty-key'.*, not (bool|NoneType)"):
            Bridge.attach("nowhere", insecure=wrong)
    with pytest.raises(ValueError, match=message):
        await asyncio.to_thread(SyncBridge.attach, "nowhere", insecure="everything")


async def test_an_insecure_connection_is_reported_with_the_argument_that_allows_it(
    tmp_path: Path,
) -> None:
    # No kernel listens at these ports, and none is needed: the check comes before a connection.
    info = {"transport": "tcp", "key": "k", **dict.fromkeys(PORTS, 9)}
    for ip in ("203.0.113.1", "0.0.0.0", "*", "somewhere.example", "2001:db8::1", ""):
        file = written(tmp_path / "elsewhere.json", {**info, "ip": ip})
        message = rf"leads to {ip.replace('*', '[*]')} over plain TCP.*insecure=\['plain-tcp'\]"
        with pytest.raises(InsecureConnection, match=message):
            await Bridge.attach(file)
    for key in ({"key": ""}, {"key": None}):
        file = written(tmp_path / "open.json", {**info, "ip": "127.0.0.1", **key})
        with pytest.raises(InsecureConnection, match=r"empty key.*insecure=\['empty-key'\]"):
            await Bridge.attach(file)
    file = written(tmp_path / "both.json", {**info, "ip": "203.0.113.1", "key": ""})
    for allowed in ((), ["empty-key"], ["plain-tcp"]):
        with pytest.raises(InsecureConnection, match=r"insecure=\['empty-key', 'plain-tcp'\]"):
            await Bridge.attach(file, insecure=allowed)


async def test_every_loopback_address_is_this_machine(tmp_path: Path) -> None:
    async with kernel(ip="127.0.0.1") as manager:
        info = json.loads(Path(manager.connection_file).read_text())
        for ip in ("localhost", None):
            file = written(tmp_path / "here.json", {**info, "ip": ip} if ip else _without_ip(info))
            async with Bridge.attach(file) as bridge:
                assert bridge._transport.capabilities.digest == "crc32"
        if sys.platform == "linux":  # elsewhere 127.0.0.1 alone is configured
            async with Proxy("127.8.9.10") as proxy:
                file = written(tmp_path / "here.json", await proxy.between(info))
                async with Bridge.attach(file) as bridge:
                    assert bridge._transport.capabilities.digest == "crc32"
                    assert await bridge.pull("1 + 1") == 2


def _without_ip(info: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in info.items() if name != "ip"}


async def test_an_empty_key_works_if_allowed() -> None:
    async with kernel(key=b"") as manager:
        file = manager.connection_file
        assert json.loads(Path(file).read_text())["key"] == ""
        client = manager.client()
        for opening in (Bridge.attach(file), Bridge.over(manager), Bridge.over(client)):
            with pytest.raises(InsecureConnection, match="empty key"):
                await opening
        for opening in (
            Bridge.attach(file, insecure="empty-key"),
            Bridge.over(manager, insecure=["empty-key"]),
            Bridge.over(client, insecure={"empty-key", "plain-tcp"}),
        ):
            async with opening as bridge:
                await bridge.push(x=[1, b"2"])
                assert await bridge.pull("x") == [1, b"2"]
                assert (await bridge.run("print('heard')")).stdout == "heard\n"


def outer_address() -> str:
    """Return an address of this machine that other machines could reach."""
    for addresses in psutil.net_if_addrs().values():
        for address in addresses:
            if address.family == socket.AF_INET and not address.address.startswith("127."):
                return address.address
    pytest.skip("this machine has no address beyond loopback")


async def test_plain_tcp_beyond_loopback_works_if_allowed() -> None:
    async with kernel(ip=outer_address()) as manager:
        file = manager.connection_file
        message = f"leads to {manager.ip} over plain TCP"
        with pytest.raises(InsecureConnection, match=message):
            await Bridge.attach(file)
        with pytest.raises(InsecureConnection, match=message):
            await Bridge.over(manager)
        with pytest.raises(InsecureConnection, match=message):
            await asyncio.to_thread(SyncBridge.attach, file)
        async with Bridge.attach(file, insecure="plain-tcp") as bridge:
            await bridge.push(x=bytearray(100_000))
            assert len(await bridge.pull("x")) == 100_000
            # A checksum would not stop an attacker.
            assert bridge._transport.capabilities.digest == "sha256"
        with await asyncio.to_thread(SyncBridge.attach, file, insecure="plain-tcp") as blocking:
            assert blocking.pull("len(x)") == 100_000


async def test_curve_beyond_loopback_needs_no_allowance() -> None:
    options = {"ip": outer_address(), "transport_encryption": "required"}
    async with kernel(**options) as manager, Bridge.attach(manager.connection_file) as bridge:
        assert await bridge.pull("1 + 1") == 2
        assert bridge._transport.capabilities.digest == "sha256"


# ------------------------------------------------------------ files that others can read


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """Make a folder that every user can enter, unlike pytest's own."""
    if sys.platform == "win32":
        pytest.skip("permissions are not checked on Windows")
    folder = Path(tempfile.mkdtemp(prefix="bh-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
async def test_a_connection_file_that_others_can_read_warns_once(
    open_folder: Path, live: Bridge, mode: int
) -> None:
    file = written(open_folder / "kernel.json", connection(live))
    file.chmod(mode)
    message = (
        rf"other users of this machine can read {file} \(mode 0{mode:o}\), and the key in it lets "
        rf"them run code in the kernel as you; run chmod 600 {file}"
    )
    for _ in range(2):  # if warnings are errors, every attempt raises
        with pytest.raises(InsecureConnectionWarning, match=message):
            await Bridge.attach(file)
    with pytest.warns(InsecureConnectionWarning, match=message) as caught:
        async with Bridge.attach(file) as bridge:
            assert await bridge.pull("1 + 1") == 2
    assert len(caught) == 1
    symlink = open_folder / "symlink.json"
    symlink.symlink_to(file)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for again in (file, symlink):
            async with Bridge.attach(again) as bridge:
                assert await bridge.pull("1 + 1") == 2


async def test_the_file_of_a_client_that_others_can_read_warns(open_folder: Path) -> None:
    async with kernel(connection_file=str(open_folder / "kernel.json")) as manager:
        async with Bridge.over(manager):
            pass
        (open_folder / "kernel.json").chmod(0o644)
        with pytest.warns(InsecureConnectionWarning, match="chmod 600"):
            async with Bridge.over(manager) as bridge:
                assert await bridge.pull("1 + 1") == 2


@pytest.mark.parametrize(("folder", "file"), [(0o700, 0o644), (0o755, 0o600), (0o744, 0o644)])
async def test_a_connection_file_that_others_cannot_reach_is_fine(
    open_folder: Path, live: Bridge, folder: int, file: int
) -> None:
    inner = open_folder / "inner" / "innermost"
    inner.mkdir(parents=True)
    path = written(inner / "kernel.json", connection(live))
    path.chmod(file)
    inner.parent.chmod(folder)  # one folder that others cannot enter is enough
    async with Bridge.attach(path) as bridge:  # warnings are errors here
        assert await bridge.pull("1 + 1") == 2


# ------------------------------------------------------------ encryption=True


async def test_clients_with_the_file_can_use_an_encrypted_kernel(tmp_path: Path) -> None:
    async with Bridge.launch(encryption=True) as bridge:
        info = connection(bridge)
        file = Path(bridge.info.connection_file or "")
        assert (info["transport"], info["ip"]) == ("tcp", "127.0.0.1")
        assert all(len(info[name]) == 40 for name in CURVE)
        assert file.stat().st_mode & 0o777 == 0o600
        assert bridge.info.transport == "tcp"
        await bridge.push(x=MARKER)
        async with Bridge.attach(file) as other:
            assert await other.pull("x") == MARKER
            assert (await other.run("print('heard')")).stdout == "heard\n"
        with await asyncio.to_thread(SyncBridge.attach, file) as blocking:
            assert blocking.pull("len(x)") == len(MARKER)
        async with Bridge.over(bridge._transport.manager) as other:
            assert await other.pull("x") == MARKER
        written(tmp_path / "copy.json", {**info, "key": "0" * 32})
        with pytest.raises(KernelNotFound, match="did not answer within 1 s: it has another key"):
            await Bridge.attach(tmp_path / "copy.json", timeout=1)
    assert not file.exists()


async def test_a_blocking_bridge_launches_encrypted() -> None:
    with await asyncio.to_thread(SyncBridge.launch, encryption=True) as kernel:
        kernel["x"] = 5
        assert kernel["x"] == 5
        assert set(CURVE) < set(json.loads(Path(kernel.info.connection_file or "").read_text()))


async def test_an_encrypted_kernel_refuses_wrong_and_missing_keys(tmp_path: Path) -> None:
    async with Bridge.launch(encryption=True) as bridge:
        info = connection(bridge)
        keyless = {name: value for name, value in info.items() if name not in CURVE}
        half = {name: value for name, value in info.items() if name != "curve_secretkey"}
        for wrong, message in (
            ({**info, **other_keys()}, "refuses the CURVE keys in the file"),
            (keyless, "it encrypts and the file lacks its CURVE keys"),
            (half, "the CURVE keys in .* are damaged: they do not belong together"),
            (
                {**info, "curve_publickey": other_keys()["curve_publickey"]},
                "do not belong together",
            ),
            ({**info, "curve_secretkey": "short"}, "do not belong together"),
        ):
            file = written(tmp_path / "wrong.json", wrong)
            async with asyncio.timeout(20):  # less than the minute that an opening may take
                with pytest.raises(KernelNotFound, match=message):
                    await Bridge.attach(file)
        assert await bridge.pull("1 + 1") == 2


async def test_a_file_with_keys_never_opens_an_unencrypted_connection(
    tmp_path: Path, long: Path
) -> None:
    for options in ({}, {"connection_file": long}):  # Unix sockets, and TCP
        async with Bridge.launch(**options) as bridge:
            file = written(tmp_path / "other.json", {**connection(bridge), **other_keys()})
            async with asyncio.timeout(20):
                with pytest.raises(
                    KernelNotFound, match="refuses the CURVE keys.* or it does not encrypt"
                ):
                    await Bridge.attach(file)


@pytest.mark.slow
async def test_a_handshake_that_fails_while_this_process_is_busy_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The handshake may fail once, microseconds after ``connect``, while this process does not run.
    connect = AsyncKernelClient.connect_shell

    def connect_slowly(client: AsyncKernelClient, *args: Any, **kwargs: Any) -> Any:
        socket = connect(client, *args, **kwargs)
        time.sleep(0.3)
        return socket

    async with Bridge.launch() as plain, Bridge.launch(encryption=True) as encrypted:
        info = connection(encrypted)
        keyless = {name: value for name, value in info.items() if name not in CURVE}
        monkeypatch.setattr(AsyncKernelClient, "connect_shell", connect_slowly)
        for wrong, message in (
            ({**connection(plain), **other_keys()}, "or it does not encrypt"),
            (keyless, "the file lacks its CURVE keys"),
        ):
            async with asyncio.timeout(20):
                with pytest.raises(KernelNotFound, match=message):
                    await Bridge.attach(written(tmp_path / "wrong.json", wrong))


async def test_a_restart_keeps_the_encryption() -> None:
    async with Bridge.launch(encryption=True) as bridge:
        before = connection(bridge)
        async with Bridge.attach(bridge.info.connection_file) as other:
            await bridge.restart()
            assert connection(bridge) == before
            assert await bridge.pull("1 + 1") == 2
            with pytest.raises(Exception, match="was not executed"):
                await other.pull("1 + 1")
        assert await published_to_a_stranger(bridge, "still secret") == b""


async def published_to_a_stranger(bridge: Bridge, text: str) -> bytes:
    """Return what a stranger receives on iopub who knows the port and nothing else."""
    context = zmq.asyncio.Context()
    stranger = context.socket(zmq.SUB)
    stranger.linger = 0
    stranger.subscribe(b"")
    info = connection(bridge)
    stranger.connect(f"tcp://{info['ip']}:{info['iopub_port']}")
    try:
        heard = b""
        for _ in range(5):  # a subscription takes a moment
            await bridge.run(f"print({text!r})")
            while await stranger.poll(200):
                heard += b"".join(await stranger.recv_multipart())
        return heard
    finally:
        stranger.close()
        context.term()


@pytest.mark.parametrize("encryption", [True, False])
async def test_a_stranger_at_the_port_reads_outputs_only_without_encryption(
    long: Path, encryption: bool
) -> None:
    async with Bridge.launch(connection_file=long, encryption=encryption) as bridge:
        assert bridge.info.transport == "tcp"
        heard = await published_to_a_stranger(bridge, "text for the user alone")
    assert (b"text for the user alone" in heard) is not encryption


class Proxy:
    """Listens at one port for each port of the kernel, and records the data that passes."""

    def __init__(self, ip: str = "127.0.0.1") -> None:
        self._ip = ip
        self.sent, self.answered = bytearray(), bytearray()
        self._servers: list[asyncio.Server] = []
        self._pumps: set[asyncio.Task[None]] = set()

    async def between(self, info: dict[str, Any]) -> dict[str, Any]:
        """Return the connection info that leads through the proxy."""
        through = {**info, "ip": self._ip}
        for name in PORTS:
            server = await asyncio.start_server(self._forward(info["ip"], info[name]), self._ip)
            self._servers.append(server)
            through[name] = server.sockets[0].getsockname()[1]
        return through

    def _forward(self, ip: str, port: int) -> Any:
        async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            kernel_reader, kernel_writer = await asyncio.open_connection(ip, port)
            for source, target, record in (
                (reader, kernel_writer, self.sent),
                (kernel_reader, writer, self.answered),
            ):
                pump = asyncio.create_task(self._pump(source, target, record))
                self._pumps.add(pump)
                pump.add_done_callback(self._pumps.discard)

        return client

    @staticmethod
    async def _pump(
        source: asyncio.StreamReader, target: asyncio.StreamWriter, record: bytearray
    ) -> None:
        try:
            while part := await source.read(1 << 16):
                record += part
                target.write(part)
                await target.drain()
        except ConnectionError:
            pass
        finally:
            target.close()

    async def __aenter__(self) -> Proxy:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for server in self._servers:
            server.close()
        for pump in list(self._pumps):
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)


@pytest.mark.parametrize("lane", ["buffers", "inline"])
@pytest.mark.parametrize("encryption", [True, False])
async def test_an_encrypted_connection_carries_nothing_readable(
    tmp_path: Path, long: Path, encryption: bool, lane: Any
) -> None:
    async with (
        Bridge.launch(connection_file=long, encryption=encryption) as bridge,
        Proxy() as proxy,
    ):
        file = written(tmp_path / "through.json", await proxy.between(connection(bridge)))
        async with Bridge.attach(file, lane=lane) as other:
            assert other.info.lane == lane
            await other.push(x=MARKER)
            assert await other.pull("x") == MARKER
            result = await other.run("print('text for the user alone')")
            assert result.stdout == "text for the user alone\n"
        sent, answered = bytes(proxy.sent), bytes(proxy.answered)
    assert len(sent) > len(MARKER) < len(answered)  # everything passed through the proxy
    mechanism = b"CURVE" if encryption else b"NULL"
    for wire in (sent, answered):
        assert mechanism.ljust(20, b"\0") in wire  # ZMTP's greeting says it
    plain = MARKER if lane == "buffers" else b"execute_request"
    assert (plain in sent) is not encryption
    for text in (MARKER[:40], b"text for the user alone", b"execute_request", b"msg_id"):
        if encryption:
            assert text not in sent
            assert text not in answered
    assert (b"text for the user alone" in answered) is not encryption


# A kernel that ignores CURVE keys, as ipykernel 6 does, although its kernelspec says otherwise.
UNKNOWING = """
import json, os, sys
file = sys.argv[-1]
with open(file) as text:
    info = json.load(text)
for name in ("curve_publickey", "curve_secretkey"):
    info.pop(name, None)
sys.argv[-1] = file + ".known"
with open(sys.argv[-1], "w") as text:
    json.dump(info, text)
from ipykernel.kernelapp import launch_new_instance
launch_new_instance()
"""


@pytest.mark.slow
async def test_a_kernel_that_does_not_encrypt_is_reported(
    jupyter_folders: Path, tmp_path: Path
) -> None:
    (tmp_path / "unknowing.py").write_text(UNKNOWING)
    argv = [sys.executable, str(tmp_path / "unknowing.py"), "-f", "{connection_file}"]
    spec: dict[str, Any] = {"argv": argv, "display_name": "unknowing", "language": "python"}
    folder = jupyter_folders / "data" / "kernels" / "unknowing"
    folder.mkdir(parents=True)
    silent = r"'unknowing' does not say that its kernel can encrypt; pip install 'ipykernel>=7.3'"
    boasting = "the kernel does not encrypt, although its kernelspec says"
    # Several times: it is chance whether such a socket is closed for good, so that any send blocks.
    for metadata, message in (
        ({}, silent),
        *4 * (({"supported_encryption": ["curve"]}, boasting),),
    ):
        (folder / "kernel.json").write_text(json.dumps({**spec, "metadata": metadata}))
        file = tmp_path / "kernel.json"
        async with asyncio.timeout(50):  # launch alone would wait a minute
            with pytest.raises(NotSupported, match=message):
                await Bridge.launch("unknowing", connection_file=file, encryption=True)
        assert not file.exists()
    async with Bridge.launch("unknowing", connection_file=tmp_path / "k.json") as bridge:
        assert await bridge.pull("1 + 1") == 2  # without encryption nothing is wrong with it


# ------------------------------------------------------------ wrong keys, forwarded ports


async def test_a_wrong_key_is_reported(tmp_path: Path) -> None:
    async with Bridge.launch() as bridge:
        file = written(tmp_path / "wrong.json", {**connection(bridge), "key": "0" * 32})
        with pytest.raises(KernelNotFound, match="did not answer within 1 s: it has another key"):
            await Bridge.attach(file, timeout=1)
        assert await bridge.pull("1") == 1


async def test_a_forwarded_port_without_a_kernel_is_reported(tmp_path: Path) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    # SSH does this with a forwarded port if no program listens behind it.
    server = await asyncio.start_server(hang_up, "127.0.0.1")
    port = server.sockets[0].getsockname()[1]
    info = {"transport": "tcp", "ip": "127.0.0.1", "key": "k", **dict.fromkeys(PORTS, port)}
    file = written(tmp_path / "forwarded.json", info)
    try:
        async with asyncio.timeout(20):
            with pytest.raises(KernelNotFound, match="closes every connection.*forwarded port"):
                await Bridge.attach(file)
    finally:
        server.close()
        await server.wait_closed()
    assert os.listdir(os.environ["JUPYTER_RUNTIME_DIR"]) == []
