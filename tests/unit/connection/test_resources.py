"""What keeps remote resources alive, on a loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from bridgehead import (
    Bridge,
    BridgeClosed,
    BridgeError,
    KernelRestarted,
    ProtocolError,
    ReplyLost,
    TransportError,
)
from bridgehead._connection import resources as held_resources
from bridgehead._connection.resources import SENDINGS, RemoteResource
from bridgehead._protocol.response import Response
from bridgehead._transports.base import Transport
from bridgehead._transports.tasks import waited
from unit.connection.test_tasks import later, remote_of

pytestmark = pytest.mark.timings(renew_every=0.05)


@pytest.fixture
async def loopback() -> AsyncIterator[Bridge]:
    async with Bridge.loopback() as bridge:
        yield bridge


class Seen(RemoteResource):
    """A resource that notes its events."""

    kind = "tests"

    def __init__(self, bridge: Bridge) -> None:
        super().__init__(bridge._connection.resources)
        self.events: list[Any] = []
        self.is_ended = False

    def take(self, event: Any) -> None:
        self.events.append(event)

    def end(self) -> None:
        self.is_ended = True


async def until_renewed(bridge: Bridge) -> None:
    """Wait until the lease is renewed: the clock of the leases is set ahead before."""
    (owner,) = remote_of(bridge).resources.owners.values()
    owner.renewed = -1.0
    async with asyncio.timeout(30):
        while owner.renewed < 0:
            await asyncio.sleep(0.01)


async def test_a_lease_is_renewed_while_there_is_a_resource(loopback: Bridge) -> None:
    async with loopback.watch("1 + 1") as watch:
        assert await anext(watch) == 2
        await until_renewed(loopback)
    while remote_of(loopback).resources.owners:
        await asyncio.sleep(0.01)


async def test_a_resource_that_follows_the_last_one_at_once_is_kept_alive(loopback: Bridge) -> None:
    """The task that renews is cancelled with the last resource; the next one has its own."""
    one, two = loopback.watch("1"), loopback.watch("2")
    assert await anext(one) == 1
    resources = loopback._connection.resources
    await one.aclose()
    assert await anext(two) == 2
    for _ in range(3):
        resource = Seen(loopback)
        resources.enter(resource)
        resources.made(resource)
        resources.drop(resource)
    await until_renewed(loopback)
    await two.aclose()


async def test_a_resource_that_the_kernel_does_not_have_ends(loopback: Bridge) -> None:
    resource = Seen(loopback)
    resources = loopback._connection.resources
    resources.enter(resource)
    resources.made(resource)
    async with asyncio.timeout(30):
        while not resource.is_ended:
            await asyncio.sleep(0.01)
    resources.drop(resource)


async def test_a_restart_ends_a_resource(loopback: Bridge) -> None:
    task = loopback.submit(later, 5, 1000)
    await loopback.push(x=1)
    await loopback.restart()
    with pytest.raises(KernelRestarted):
        await task


@pytest.mark.timings(renew_every=1000)
async def test_an_event_that_is_lost_before_the_resource_is_known_is_sent_again(
    loopback: Bridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection breaks between the first event and the response, which is asked for again."""
    await loopback.push(x=1)
    watch, other = loopback.watch("x"), loopback.watch("1")
    await anext(other)  # the lease is being renewed
    latest, within = watch._latest, loopback._connection.within

    async def broken(*args: Any) -> Any:
        monkeypatch.undo()
        response = await within(*args)
        with monkeypatch.context() as lost:
            lost.setattr(latest, "feed", lambda content, buffers: None)
            await loopback.run("x = 2")
        latest.renew()  # as a new connection does
        while latest.resources._renewal_due.is_set():
            await asyncio.sleep(0)
        return response

    monkeypatch.setattr(loopback._connection, "within", broken)
    assert await anext(watch) == 1
    async with asyncio.timeout(30):
        assert await anext(watch) == 2
    await watch.aclose()
    await other.aclose()


@pytest.mark.timings(renew_every=1000)
async def test_a_renewal_whose_reply_is_lost_is_sent_again(
    loopback: Bridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote, times = loopback._connection.remote, 0
    ask = remote.request_unordered

    async def lossy(operation: str, *args: Any, **fields: Any) -> Any:
        nonlocal times
        times += operation == "renew"
        if operation == "renew" and times == 1:
            raise ReplyLost("lost")
        return await ask(operation, *args, **fields)

    monkeypatch.setattr(remote, "request_unordered", lossy)
    async with loopback.watch("1") as watch:
        await anext(watch)
        loopback._connection.resources.renew_soon()
        async with asyncio.timeout(30):
            while times < 2:
                await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"answer": "{}"},
        {"answer": "[", "event": "r:1"},
        {"answer": 5, "event": "r:1"},
        {"answer": "{}", "event": "r:x"},
        {"answer": '{"sizes": [3], "digest": "crc32:0", "data": "?"}', "event": "r:1"},
        {"answer": '{"sizes": [], "digest": "none:"}', "event": "other:1"},
        {"answer": '{"sizes": [], "digest": "none:"}', "event": 1},
    ],
)
async def test_an_event_that_cannot_be_read_is_reported(
    loopback: Bridge, content: dict[str, Any]
) -> None:
    resource = Seen(loopback)
    if str(content.get("event")).startswith("r:"):
        content = {**content, "event": content["event"].replace("r", resource.id)}
    resource.feed(content, [])
    (event,) = resource.events
    assert isinstance(event, ProtocolError)


async def test_the_event_of_another_resource_does_not_count(loopback: Bridge) -> None:
    """Else the event of this one that has its number would count as one that came twice."""
    resource, whole = Seen(loopback), '{"sizes": [], "digest": "none:"}'
    for event in ("other:1", 1):
        resource.feed({"answer": whole, "event": event}, [])
    assert [type(one) for one in resource.events] == 2 * [ProtocolError]
    resource.feed({"answer": whole, "event": f"{resource.id}:1"}, [])
    assert isinstance(resource.events.pop(), Response)


async def test_an_event_that_is_always_damaged_is_reported(loopback: Bridge) -> None:
    """J16. It is asked for again, but not for ever."""
    resource, resources = Seen(loopback), loopback._connection.resources
    damaged = '{"sizes": [3], "digest": "crc32:0", "data": "AAAA"}'
    for number in (1, 2):
        for _ in range(SENDINGS):
            assert resource.seen == number - 1
            resources._renewal_due.clear()
            resource.feed({"answer": damaged, "event": f"{resource.id}:{number}"}, [])
        assert resource.seen == number
        assert not resources._renewal_due.is_set()
        assert "damaged" in str(resource.events.pop())
        assert not resource.events
    resource.feed({"answer": damaged, "event": f"{resource.id}:3"}, [])
    assert resources._renewal_due.is_set()
    whole = '{"sizes": [], "digest": "none:"}'
    resource.feed({"answer": whole, "event": f"{resource.id}:3"}, [])
    assert (resource.seen, resource.damaged) == (3, 0)
    assert isinstance(resource.events.pop(), Response)


async def test_an_event_that_comes_twice_is_taken_once(loopback: Bridge) -> None:
    resource = Seen(loopback)
    content = {"answer": '{"sizes": [], "digest": "none:"}', "event": f"{resource.id}:1"}
    for _ in range(2):
        resource.feed(content, [])
    (event,) = resource.events
    assert isinstance(event, Response)
    resource.note_lost(event)
    resource.feed(content, [])
    assert len(resource.events) == 2


@pytest.mark.timings(end_again=0.01)
@pytest.mark.parametrize("in_order", [False, True])
async def test_what_the_kernel_did_not_end_is_ended_again(
    loopback: Bridge, monkeypatch: pytest.MonkeyPatch, in_order: bool
) -> None:
    """J6. The request that ends a task or a kept result may be lost with its connection."""
    remote = loopback._connection.remote
    tries: list[str] = []

    def losing(request: Any) -> Any:
        async def lose(operation: str, **fields: Any) -> Any:
            if operation == "close":
                tries.append(operation)
                if len(tries) <= 2:
                    raise TransportError("the connection broke")
            return await request(operation, **fields)

        return lose

    name = "request_unordered" if in_order else "request_beside"
    monkeypatch.setattr(remote, name, losing(getattr(remote, name)))
    if in_order:
        (await loopback.call(list, keep=True))._objects.clear()
    else:
        task = loopback.submit(later, 5, 1000)
        await loopback.push(x=1)
        task.cancel()
    async with asyncio.timeout(30):
        while remote_of(loopback).resources.known:
            await asyncio.sleep(0.01)
    assert len(tries) >= 3
    assert await loopback.call(len, [1]) == 1


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Give the pauses that begin from now on."""
    begun: list[float] = []

    def noted(pause: float) -> AbstractAsyncContextManager[Any]:
        begun.append(pause)
        return waited(pause)

    monkeypatch.setattr(held_resources, "waited", noted)
    return begun


async def test_what_comes_to_be_ended_meanwhile_makes_no_pause_longer(
    loopback: Bridge, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    """J6. In ten cuts within a second, the pause became half a minute."""
    asked = asyncio.Event()

    async def fail(identities: list[str]) -> None:
        asked.set()
        raise TransportError("the connection broke")

    ending = loopback._connection.resources._ending
    monkeypatch.setattr(ending, "_end", fail)
    for number in range(10):
        asked.clear()
        ending.add(str(number))
        async with asyncio.timeout(30):
            await asked.wait()
    await asyncio.sleep(0)
    assert pauses == 10 * [Transport.timings.end_again]


@pytest.mark.timings(renew_every=120.0)
async def test_a_renewal_that_is_due_makes_no_pause_longer(
    loopback: Bridge, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    resources = loopback._connection.resources
    asked = asyncio.Event()

    async def fail(operation: str, **fields: Any) -> None:
        asked.set()
        raise TransportError("the connection broke")

    async with loopback.watch("1") as watch:
        await anext(watch)
        monkeypatch.setattr(resources._remote, "request_unordered", fail)
        del pauses[:]
        for _ in range(10):
            asked.clear()
            resources.renew_soon()
            async with asyncio.timeout(30):
                await asked.wait()
        await asyncio.sleep(0)
        assert set(pauses) <= {Transport.timings.renew_again, Transport.timings.renew_every}
        monkeypatch.undo()


@pytest.mark.parametrize("error", [KernelRestarted("restarted"), TransportError("closed")])
async def test_what_ended_with_the_kernel_is_not_ended_again(
    loopback: Bridge, monkeypatch: pytest.MonkeyPatch, error: BridgeError
) -> None:
    """And the bridge closes although something waits to be ended."""
    tries: list[str] = []

    async def refuse(operation: str, **fields: Any) -> None:
        tries.append(operation)
        raise error

    resources = loopback._connection.resources
    monkeypatch.setattr(loopback._connection.remote, "request_beside", refuse)
    resource = Seen(loopback)
    resources.enter(resource)
    resource.is_asked = True
    resources.drop(resource)
    async with asyncio.timeout(30):
        while not tries:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0)
    assert bool(resources._ending.waiting) == isinstance(error, TransportError)
    await loopback.aclose()


async def test_what_is_asked_for_while_the_bridge_closes_is_refused(loopback: Bridge) -> None:
    """The request that ends all does not name it, so it would stay in the kernel."""
    task = loopback.submit(later, 1, 1000)
    async with asyncio.timeout(30):
        while not loopback.stats.tasks:
            await asyncio.sleep(0.01)
    resources, remote = loopback._connection.resources, remote_of(loopback)
    end, refused = resources._end_now, []

    async def end_now(identities: list[str]) -> None:
        try:
            await loopback.call(later, 2, 1000)
        except BridgeClosed as error:
            refused.append(error)
        await end(identities)

    resources._end_now = end_now  # type: ignore[method-assign]
    await loopback.aclose()
    assert len(refused) == 1
    assert not remote.resources.known
    with pytest.raises(BridgeClosed):
        await task
