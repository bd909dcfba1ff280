"""The default of ``trust=``: a kernel is trusted if it proves to be this user's process here.

Rule: real kernels. Those of another user run in a process that has given up its rights, which
only root can start; the connection file and its key are this user's.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.manager import AsyncKernelManager

from bridgehead import Bridge, UntrustedPayload
from bridgehead._lanes import handshake as _handshake
from bridgehead._lanes.socket import SocketListener
from support.cuts import listening
from support.other_user import NOBODY, OTHER_USER, needs_other_user

PROVEN = "the kernel proved over a Unix socket that it is this user's process"
UNPROVEN = "it is not proven to be this user's process on this machine: "
LANES = ["auto", "buffers", "inline"]


@pytest.fixture
async def theirs(tmp_path: Path) -> AsyncIterator[AsyncKernelManager]:
    """Start the kernel of another user, whose connection file this user has."""
    program = tmp_path / "other_user.py"
    program.write_text(OTHER_USER)
    manager = AsyncKernelManager(connection_file=str(tmp_path / "kernel-theirs.json"))
    spec = manager.kernel_spec
    assert spec is not None
    spec.argv = [sys.executable, str(program), "-f", "{connection_file}"]
    spec.argv += ["--HistoryManager.enabled=False"]
    async with listening(manager):
        yield manager


@needs_other_user
@pytest.mark.parametrize("lane", LANES)
async def test_a_kernel_of_another_user_is_not_trusted(
    theirs: AsyncKernelManager, lane: Any, tmp_path: Path
) -> None:
    proof = tmp_path / "it-ran"
    for opening in (
        Bridge.attach(theirs.connection_file, lane=lane),
        Bridge.over(theirs.client(), lane=lane),
        Bridge.over(theirs, lane=lane),  # a child of this program that has changed its user
    ):
        async with opening as bridge:
            assert await bridge.pull("__import__('os').getuid()") == NOBODY
            assert (bridge.info.trust, bridge.info.transport) == ("data", "tcp")
            assert bridge.info.why_trust.startswith(UNPROVEN + "the kernel cannot connect")
            await bridge.run(
                "import os\nclass Evil:\n    def __reduce__(self):\n"
                f"        return os.system, ('touch {proof}',)\nevil = Evil()"
            )
            with pytest.raises(UntrustedPayload):
                await bridge.pull("evil")
            assert not proof.exists()
    async with Bridge.attach(theirs.connection_file, lane=lane, trust="pickle") as bridge:
        assert (bridge.info.trust, bridge.info.why_trust) == ("pickle", "the caller asked for it")


@pytest.mark.parametrize("lane", [*LANES, "direct"])
async def test_a_kernel_of_this_user_proves_it_whatever_the_lane(live: Bridge, lane: Any) -> None:
    file = live.info.connection_file
    async with Bridge.attach(file, lane=lane) as bridge:
        assert (bridge.info.trust, bridge.info.why_trust) == ("pickle", PROVEN)
        assert await bridge.pull("{1, 2}.union") is not None  # a method, which is no data
    async with Bridge.attach(file, lane=lane, trust="data") as bridge:
        assert (bridge.info.trust, bridge.info.why_trust) == ("data", "the caller asked for it")


async def test_the_proof_needs_no_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Bridge.launch() as kernel:
        file = kernel.info.connection_file
        assert kernel.info.why_trust == PROVEN
        with monkeypatch.context() as here:
            here.setattr(_handshake, "shared_memory", lambda: "")
            async with Bridge.attach(file) as bridge:
                assert (bridge.info.trust, bridge.info.lane) == ("pickle", "buffers")
                assert "this system or this Python has no memory" in bridge.info.why_not["direct"]
        await kernel.run(
            "import os, sys; del os.memfd_create\n"
            "[module] = [sys.modules[n] for n in sys.modules if n.startswith('_bridgehead_')]\n"
            "module._shm_open = None"
        )
        async with Bridge.attach(file) as bridge:
            assert (bridge.info.trust, bridge.info.lane) == ("pickle", "buffers")
            assert "this kernel's system or Python has no" in bridge.info.why_not["direct"]


async def test_without_the_secret_nothing_is_proven(
    live: Bridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Other(SocketListener):
        def offer(self, *, lane: bool = True) -> Any:
            return {**super().offer(lane=lane), "secret": "00" * 64}

    monkeypatch.setattr(_handshake, "SocketListener", Other)
    for lane in LANES:
        async with Bridge.attach(live.info.connection_file, lane=lane) as bridge:
            assert bridge.info.trust == "data"
            assert bridge.info.why_trust.startswith(UNPROVEN)


async def test_where_no_proof_is_possible_only_a_child_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Bridge.launch(lane="buffers") as kernel:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
        async with Bridge.attach(kernel.info.connection_file) as bridge:
            assert bridge.info.trust == "data"
            assert "this process cannot listen for it" in bridge.info.why_trust
        await kernel.restart()
        assert kernel.info.why_trust == "this program started the kernel's process"
        assert kernel.info.trust == "pickle"


async def test_a_restarted_kernel_proves_it_again() -> None:
    async with Bridge.launch(lane="inline") as bridge:
        await bridge.restart()
        assert await bridge.pull("1 + 1") == 2
        assert (bridge.info.trust, bridge.info.why_trust) == ("pickle", PROVEN)


@needs_other_user
async def test_a_file_of_another_user_is_not_trusted(live: Bridge, tmp_path: Path) -> None:
    file = tmp_path / "kernel-theirs.json"
    file.write_text(Path(live.info.connection_file or "").read_text())
    file.chmod(0o600)
    async with Bridge.attach(file) as bridge:
        assert bridge.info.trust == "pickle"
    os.chown(file, NOBODY, NOBODY)
    async with Bridge.attach(file) as bridge:
        assert bridge.info.trust == "data"
        assert bridge.info.why_trust == UNPROVEN + "the connection file is another user's"


@needs_other_user
async def test_the_link_to_a_file_counts_as_well(live: Bridge, tmp_path: Path) -> None:
    link = tmp_path / "kernel-link.json"
    link.symlink_to(live.info.connection_file or "")
    async with Bridge.attach(link) as bridge:
        assert bridge.info.trust == "pickle"
    os.chown(link, NOBODY, NOBODY, follow_symlinks=False)
    async with Bridge.attach(link) as bridge:
        assert bridge.info.trust == "data"
