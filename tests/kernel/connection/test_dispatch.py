"""Rows D of the catalogue of faults: dispatch, concurrency, other clients.

Rule: each test covers a row of the catalogue; its docstring starts with the row's number. A test
asserts how soon the call ends, what the namespace contains afterwards (as seen by a client without
bridgehead), and that the next operation on the same bridge works. Each test injects the real fault.
"""

from __future__ import annotations

import asyncio
import collections
import json
import os
import random
import signal
import sys
from pathlib import Path

import cloudpickle
import pytest

from bridgehead import Bridge, KernelNotFound, RemoteError
from support.elsewhere import MAJORS
from support.faults import operations
from support.kit import (
    PARENT,
    all_of,
    at_work,
    file_of,
    goes_on,
    kind,
    other,
    reported_within,
    until,
    wired,
)
from support.look import look

# A kernel can't import test modules, so what they define is pickled by value, as in a script.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.mark.parametrize("kernel_name", MAJORS, indirect=True)
@pytest.mark.slow
async def test_sixty_operations_at_once_get_their_own_replies(kernel_name: str) -> None:
    """D3. Sixty operations at once, ten times: each gets its own reply."""
    async with Bridge.launch(kernel_name) as bridge:
        for number in range(10):
            async with reported_within(1):
                pulled = await asyncio.gather(
                    *(bridge.push({f"x{i}": [number, i]}) for i in range(30)),
                    *(bridge.pull(f"{number} * 1000 + {i}") for i in range(30)),
                )
            assert pulled[30:] == [number * 1000 + i for i in range(30)]
        assert await look(file_of(bridge)) == {f"x{i}": f"[9, {i}]" for i in range(30)}
        await goes_on(bridge)


async def test_each_of_several_waiting_calls_has_its_own_deadline(kernel: Bridge) -> None:
    """D6. Three calls wait for a busy kernel: each raises TimeoutError at its deadline."""
    cell = asyncio.create_task(kernel.run("import time; time.sleep(1.5); done = True"))
    await until(lambda: at_work(kernel))
    patient = asyncio.create_task(kernel.pull("done"))
    async with reported_within(0.3):
        outcomes = await all_of(*(kernel.pull(f"{i}, done", timeout=0.3) for i in range(3)))
    assert [type(outcome) for outcome in outcomes] == [TimeoutError] * 3
    assert not cell.done()
    assert await patient is True
    await cell
    assert await look(file_of(kernel)) == {"done": "True"}
    await goes_on(kernel)


async def test_a_late_reply_is_not_given_to_the_next_call(kernel: Bridge) -> None:
    """D7. The reply to a timed-out request comes while another request waits."""
    for i in range(5):
        async with reported_within(0.1):
            with pytest.raises(TimeoutError):
                await kernel.pull("__import__('time').sleep(0.3) or 'late'", timeout=0.1)
        async with reported_within(0.5):
            assert await kernel.pull(f"'next', {i}") == ("next", i)
    assert await look(file_of(kernel)) == {}
    await goes_on(kernel)


TWICE = """
session = get_ipython().kernel.session
def send_twice(stream, kind, *args, send=session.send, **kwargs):
    for _ in range(2):
        message = send(stream, kind, *args, **kwargs)
        if kind != "execute_reply":
            break
    return message
session.send = send_twice
del session, send_twice
"""


async def test_a_duplicate_reply_is_ignored(tmp_path: Path) -> None:
    """D8. The kernel sends every reply twice, with different ids: the first one counts."""
    async with (
        Bridge.launch() as owner,
        other(owner) as other_client,
        wired(owner, tmp_path) as (bridge, wire),
    ):
        assert (await other_client.execute(TWICE))["status"] == "ok"
        wire.seen.clear()
        for i in range(10):
            async with reported_within(0.5):
                await bridge.push(x=[i])
                assert await bridge.pull("x", f"x + [{i}]") == ([i], [i, i])
        await asyncio.gather(*(bridge.push({f"y{i}": i}) for i in range(40)))
        assert await bridge.pull("y39") == 39
        replies = [parts for way, parts in wire.seen if way == "in" and "reply" in kind(parts)]
        parents = collections.Counter(parts[PARENT] for parts in replies)
        assert 2 in parents.values()
        namespace = await look(file_of(bridge))
        assert namespace.pop("x") == "[9]"
        assert namespace == {f"y{i}": str(i) for i in range(40)}
        await goes_on(bridge)


async def test_a_bridge_is_safe_from_a_client_that_shares_a_session_id(kernel: Bridge) -> None:
    """D9. A second client uses the first one's session id; a bridge always has its own."""
    async with other(kernel) as first, Bridge.over(first.client) as bridge:
        async with (
            Bridge.over(first.client) as another,
            other(kernel, first.client.session) as twin,
        ):
            assert (await twin.execute("stolen = 1"))["status"] == "ok"
            # Prove the fault: the replies of the first client now go to the second.
            lost = first.submit("1")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.5):
                    await first.answer(lost)
            async with reported_within(0.5):
                await bridge.push(x=1)
                assert await another.pull("x", "stolen") == (1, 1)
            assert await look(file_of(kernel)) == {"x": "1", "stolen": "1"}
            await goes_on(another)
        await goes_on(bridge)


@pytest.mark.slow
async def test_an_iopub_overflow_changes_no_result() -> None:
    """D11. 20,000 messages on iopub that the subscriber never reads."""
    async with Bridge.launch() as bridge, other(bridge) as other_client:
        async with Bridge.attach(file_of(bridge)) as reader:
            never_read = reader.messages()
            flood = other_client.submit(
                "import sys\nfor i in range(20_000): print(i); sys.stdout.flush()"
            )
            await until(lambda: reader.state == "busy")
            async with reported_within(10):
                await asyncio.gather(*(reader.push({f"x{i}": i}) for i in range(20)))
                assert await reader.pull("x0 + x19") == 19
            assert (await other_client.answer(flood))["status"] == "ok"
            assert len(never_read) > 0
            namespace = await look(file_of(bridge))
            assert {name: namespace[name] for name in namespace if name[0] == "x"} == {
                f"x{i}": str(i) for i in range(20)
            }
            await goes_on(reader)
        await goes_on(bridge)


async def test_results_do_not_depend_on_iopub(kernel: Bridge, tmp_path: Path) -> None:
    """D11. No message arrives on iopub any more: operations end as soon as before."""
    async with wired(kernel, tmp_path) as (bridge, wire):
        wire.deaf = True
        async with reported_within(0.5):
            await bridge.push(x=1)
            assert await bridge.pull("x") == 1
            with pytest.raises(RemoteError, match="ZeroDivisionError"):
                await bridge.pull("1/0")
        async with reported_within(3):  # a cell waits a moment for its lost outputs
            assert (await bridge.run("y = 2\nprint(y)")).execution_count
        assert await look(file_of(kernel)) == {"x": "1", "y": "2"}
        await goes_on(bridge)
    await goes_on(kernel)


async def test_other_clients_see_no_more_than_busy_and_idle(kernel: Bridge) -> None:
    """D12. A client reads iopub during all operations: it sees no code, value or error."""
    secret = "a secret that no other client may see"
    async with other(kernel) as other_client:
        await kernel.push(secret=secret)
        assert await kernel.pull("secret") == secret
        await operations(kernel)
        await kernel.run("done = True")
        seen = []
        async with reported_within(1):
            while not seen or seen[-1]["msg_type"] != "execute_input":
                seen.append(await other_client.client.get_iopub_msg(timeout=20))
    kinds = {message["msg_type"] for message in seen[:-1]}
    assert kinds - {"iopub_welcome"} == {"status"}  # every client that subscribes is welcomed
    assert seen[-1]["content"]["code"] == "done = True"
    assert secret not in repr([message["content"] for message in seen])
    assert not any(message["buffers"] for message in seen)
    namespace = await look(file_of(kernel))
    assert namespace == {"x": "49", "y": "2", "done": "True", "secret": repr(secret)}
    await goes_on(kernel)


async def test_a_wrong_key_is_reported(kernel: Bridge, tmp_path: Path) -> None:
    """D14. The key is not the kernel's: the kernel never answers, and the error says why."""
    info = json.loads(Path(file_of(kernel)).read_text())
    (tmp_path / "wrong.json").write_text(json.dumps({**info, "key": "0" * 32}))
    async with reported_within(1):
        with pytest.raises(KernelNotFound, match="did not answer within 1 s: it has another key"):
            await Bridge.attach(tmp_path / "wrong.json", timeout=1)
    assert await look(file_of(kernel)) == {}
    await goes_on(kernel)


@pytest.mark.slow
async def test_no_reply_stays_unread_on_the_socket(kernel: Bridge) -> None:
    """D16. Send while replies arrive, 150 times: every reply is read from the socket."""
    await kernel.push(x=1)
    for number in range(150):
        async with reported_within(0.5):
            pulls = []
            for i in range(6):
                pulls.append(asyncio.create_task(kernel.pull(f"x + {i}")))
                await asyncio.sleep(random.choice((0, 0.001, 0.003)))
            assert await asyncio.gather(*pulls) == [1, 2, 3, 4, 5, 6], number
    assert await look(file_of(kernel)) == {"x": "1"}
    await goes_on(kernel)


@pytest.mark.slow
async def test_a_missed_heartbeat_is_not_reported_as_death() -> None:
    """D17. A kernel that is stopped for 2 s, or on an overloaded machine, is alive."""
    async with Bridge.launch() as owner, Bridge.attach(file_of(owner)) as bridge:
        os.kill(owner.info.pid, signal.SIGSTOP)
        try:
            pending = asyncio.create_task(bridge.push(x=1))
            await asyncio.sleep(2)
        finally:
            os.kill(owner.info.pid, signal.SIGCONT)
        async with reported_within(0.5):
            await pending
        launches = [asyncio.create_task(launch_and_close()) for _ in range(4)]
        while not all(task.done() for task in launches):
            async with reported_within(1):
                assert await bridge.pull("x") == 1
                async with Bridge.attach(file_of(owner)) as another:
                    assert await another.pull("x + 1") == 2
        await asyncio.gather(*launches)
        assert await look(file_of(owner)) == {"x": "1"}
        await goes_on(bridge)
        await goes_on(owner)


async def launch_and_close() -> None:
    async with Bridge.launch() as bridge:
        assert await bridge.pull("1") == 1
