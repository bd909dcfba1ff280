"""Work in the kernel: every name of it, on every lane, without a kernel and with one.

Rule: the rows are in ``support/work.py``. Servers, engines and other kernels run them in files of
their own.
"""

from __future__ import annotations

import contextlib
import logging
from typing import Any

import pytest

from bridgehead import Bridge, NotSupported, SyncBridge, UntrustedPayload
from support.elsewhere import MAJORS
from support.kit import LANES, file_of
from support.work import GIVES_LEN, WORK, use_sync


@pytest.mark.parametrize("name", WORK)
async def test_each_name_works_on_every_lane(bridge: Bridge, name: str) -> None:
    is_loopback = bridge.info.transport == "loopback"
    lacks = is_loopback and name == "on_timeout"  # there is no process to interrupt
    with pytest.raises(NotSupported, match="on_timeout") if lacks else contextlib.nullcontext():
        await WORK[name](bridge)
    assert await bridge.pull("1") == 1


@pytest.mark.parametrize("kernel_name", MAJORS, indirect=True)
@pytest.mark.parametrize("lane", LANES)
async def test_each_name_works_in_both_majors(live: Bridge, lane: Any) -> None:
    async with Bridge.attach(file_of(live), lane=lane) as bridge:
        for work in WORK.values():
            await work(bridge)


@pytest.mark.parametrize("lane", LANES)
def test_each_name_works_with_a_sync_bridge(kernel: Bridge, lane: Any) -> None:
    with SyncBridge.attach(file_of(kernel), lane=lane) as sync:
        use_sync(sync)


@pytest.mark.parametrize("name", GIVES_LEN)
async def test_only_data_is_opened_with_trust_data(
    kernel: Bridge, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    give = GIVES_LEN[name]
    for lane in LANES:
        async with Bridge.attach(file_of(kernel), lane=lane, trust="pickle") as trusting:
            assert await give(trusting) is len
        async with Bridge.attach(file_of(kernel), lane=lane, trust="data") as bridge:
            with pytest.raises(UntrustedPayload), caplog.at_level(logging.CRITICAL):
                await give(bridge)
            assert await bridge.pull("1") == 1
