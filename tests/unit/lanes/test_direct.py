"""Copies into shared memory that their caller has given up."""

from __future__ import annotations

import asyncio
import gc
import threading
from typing import Any

import pytest

from bridgehead._lanes.direct import COPY_OFF_LOOP, copy_to_segment
from bridgehead._shipped.wire.segments import Pool
from bridgehead._transports import tasks
from support.channels import needs_segments

pytestmark = needs_segments


async def test_a_copy_that_fails_after_its_caller_left_is_not_logged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As when the kernel ends: the call is over, the pool is closed, and a thread still copies."""
    loop, logged, may_copy = asyncio.get_running_loop(), list[Any](), threading.Event()
    loop.set_exception_handler(lambda loop, context: logged.append(context))
    monkeypatch.setattr(tasks, "MOST_THREADS", 1)
    monkeypatch.setattr(tasks, "threads_of", {})
    pool, data = Pool(0.5), [memoryview(bytes(COPY_OFF_LOOP + 1))]
    busy = tasks.in_thread(may_copy.wait)
    copying = asyncio.ensure_future(copy_to_segment(pool, data, lambda done, total: None))
    await asyncio.sleep(0)
    copying.cancel()
    await asyncio.wait([copying])
    pool.close()
    may_copy.set()
    await busy
    await tasks.in_thread(bool)  # behind the copy
    await asyncio.sleep(0)
    del copying
    gc.collect()
    assert not logged
