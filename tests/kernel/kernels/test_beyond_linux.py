"""What works where the system has less than Linux, tried here with that hidden from a program.

Rule: a program of its own in each test; it and its kernels have the ``sitecustomize`` of a folder
in ``support/beyond``. What only such a system itself can show is not tested.
"""

from __future__ import annotations

import asyncio
import os
import sys
import textwrap
from pathlib import Path

import pytest

import bridgehead
import support

BEYOND = Path(support.__file__).parent / "beyond"
WITHOUT_POSIX = """
    import asyncio, os, socket
    import numpy as np
    from bridgehead import Bridge, RemoteError, SyncBridge

    async def main():
        assert not (hasattr(os, "fork") or hasattr(socket, "AF_UNIX"))
        async with Bridge.launch() as bridge:
            info = bridge.info
            assert (info.lane, info.transport, info.trust) == ("buffers", "tcp", "pickle")
            array = np.arange(3_000_000.0)
            await bridge.push(array=array, small=[1, {"a": (2, None)}])
            assert (await bridge.pull("array") == array).all()
            assert await bridge.pull("small") == [1, {"a": (2, None)}]
            assert await bridge.call(lambda x: x + 1, 1) == 2
            begun = asyncio.Event()
            cell = asyncio.ensure_future(bridge.run(
                "import time; print('begun', flush=True)\\nwhile True: time.sleep(0.01)",
                on_output=lambda message: begun.set(),
            ))
            await begun.wait()
            await bridge.interrupt()
            try:
                await cell
            except RemoteError as error:
                assert error.ename == "KeyboardInterrupt"
            await bridge.restart()
            assert (await bridge.run("print('again')")).stdout == "again\\n"

    asyncio.run(main())
    with SyncBridge.launch() as bridge:
        bridge.push(x=1)
        assert bridge.pull("x") == 1
"""
PLAIN_MEMORY = """
    import asyncio, os
    import numpy as np
    from bridgehead import Bridge, Fleet

    async def main():
        assert not hasattr(os, "memfd_create")
        before = set(os.listdir("/dev/shm"))
        async with Bridge.launch() as first, Bridge.launch() as second:
            assert first.info.lane == second.info.lane == "direct"
            large, small = np.arange(3_000_000.0), [np.arange(20_000.0) + n for n in range(200)]
            await first.push(large=large, small=small)
            back, parts = await first.pull("large", "small")
            assert (back == large).all()
            assert all((one == other).all() for one, other in zip(small, parts))
            await first.handoff("large", "small", to=second)
            assert (await second.pull("large") == large).all()
            back[0], kept = 5, await first.pull("large")
            child = os.fork()
            if child == 0:
                back[1] = kept[1] = 77
                os._exit(0)
            os.waitpid(child, 0)
            assert back[:2].tolist() == [5, 1] and kept[1] == 1
            fleet = Fleet([first, second])
            await fleet.push(for_all=large)
            assert all((one == large).all() for one in await fleet.pull("for_all"))
            await first.run("del large, small")
            for n in range(20):  # what is free is used again
                await first.push(large=large + n)
                assert (await first.pull("large") == large + n).all()
            assert set(os.listdir("/dev/shm")) == before
        async with Bridge.launch(trust="data") as bridge:
            assert bridge.info.lane == "buffers"
            assert "is not trusted" in bridge.info.why_not["direct"]
            await bridge.push(large=large)
            assert (await bridge.pull("large") == large).all()

    asyncio.run(main())
"""


async def succeed(program: str, folder: str) -> None:
    """Run a program with what a folder hides, and assert that it succeeds."""
    sources = Path(bridgehead.__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": f"{BEYOND / folder}{os.pathsep}{sources}"}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", textwrap.dedent(program)),
        env=environment,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(120):
            _, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, errors.decode()


@pytest.mark.slow
async def test_messages_over_tcp_need_nothing_that_windows_lacks() -> None:
    await succeed(WITHOUT_POSIX, "windows")


@pytest.mark.slow  # the lanes' own tests run so, too: see .ci/run
async def test_memory_without_seals_is_shared_with_a_trusted_kernel() -> None:
    await succeed(PLAIN_MEMORY, "plain_memory")
