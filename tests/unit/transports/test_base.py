"""What a transport asks until there is a reply."""

from __future__ import annotations

import pytest

from bridgehead import Bridge, BridgeError, KernelDied, KernelRestarted, ReplyLost, TransportError
from bridgehead._transports.base import LOSSES
from bridgehead._transports.dispatch import Reconnected

LOST = ReplyLost("lost"), TransportError("broken")
BREAKS = 20  # more than the losses that are allowed


class Asked:
    """A question that fails with each of some errors, and then has an answer."""

    def __init__(self, *errors: BridgeError) -> None:
        self.errors, self.times = [*errors], 0

    async def __call__(self) -> int:
        self.times += 1
        if self.errors:
            raise self.errors.pop(0)
        return self.times


@pytest.mark.parametrize("lost", LOST)
async def test_what_is_lost_is_asked_again_but_not_for_ever(
    loopback: Bridge, lost: BridgeError
) -> None:
    again = loopback._transport.until_replied
    assert await again(Asked(*[lost] * (LOSSES - 1))) == LOSSES
    asked = Asked(*[lost] * LOSSES)
    with pytest.raises(type(lost)):
        await again(asked)
    assert asked.times == LOSSES
    with pytest.raises(type(lost)):
        await again(Asked(lost), losses=1)


async def test_a_connection_that_is_made_again_is_no_loss(loopback: Bridge) -> None:
    broken = [Reconnected("made again")] * BREAKS
    assert await loopback._transport.until_replied(Asked(*broken), losses=1) == BREAKS + 1


async def test_what_is_known_of_the_kernel_ends_it(loopback: Bridge) -> None:
    """A restart, and a loss of the kernel that is noticed beside a lost reply."""
    again, life = loopback._transport.until_replied, loopback._transport.life
    with pytest.raises(KernelRestarted):
        await again(Asked(KernelRestarted("restarted")))
    life.connection_lost(lambda: KernelDied("died"), "dead")
    asked = Asked(ReplyLost("lost"))
    with pytest.raises(KernelDied):
        await again(asked)
    assert asked.times == 1
    life.connection_made()
