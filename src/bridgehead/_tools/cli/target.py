"""The kernel that a command's options choose, and a bridge to it.

Rule: the values of the options as one object, and how to open it. ``options`` defines the options
themselves. This file imports neither ``options`` nor ``complete``, because both import it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click

if TYPE_CHECKING:
    from bridgehead import Bridge

OPENING = 60.0  # s until a kernel must answer at all, whether it runs a cell or not
FOREVER = 1e8  # s


@dataclass(frozen=True, slots=True)
class Target:
    """The kernel that the options choose; ``timeout`` limits the whole command."""

    existing: str | None
    timeout: float | None
    trust: Any
    insecure: tuple[Any, ...]

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[Bridge]:
        """Open a bridge to the kernel; opening and the body together may take ``timeout`` seconds.

        A kernel may run a cell for hours: without a timeout, the bridge waits for it.

        Raises:
            TimeoutError: opening or the body took longer.
        """
        from bridgehead._tools.cli.exit import with_wait_notice

        known = "the kernel did not answer, and nothing was sent"
        try:
            async with asyncio.timeout(self.timeout) as limit:
                bridge = await with_wait_notice(self._open())
                async with bridge:
                    try:
                        yield bridge
                    finally:
                        known = (
                            f"the kernel is {bridge.state}, and the request may still run if it "
                            "was sent"
                        )
        except TimeoutError:
            if not limit.expired():
                raise
            raise TimeoutError(
                f"the command took longer than {self.timeout:g} s; {known}"
            ) from None

    async def _open(self) -> Bridge:
        from bridgehead import Bridge
        from bridgehead._bridge.opening import OpenOptions, attaching, open_bridge

        return await open_bridge(
            Bridge,
            OpenOptions(trust=self.trust),
            max(OPENING, self.timeout or 0),
            attaching(self.existing, self.insecure),
            handshake_timeout=FOREVER,  # a cell of hours may run before the handshake
        )


def address_of(existing: str | None, url: str | None, token: str | None) -> str | None:
    """Return the argument of ``attach`` for these options, with the token in the address."""
    if existing is not None and url is not None:
        raise click.UsageError("--existing and --url both choose a kernel; use one of them")
    if token is not None and url is None:
        raise click.UsageError("--token is for a Jupyter server; use it with --url")
    if url is None:
        return existing
    address = url if "://" in url else f"http://{url}"
    if not address.lower().startswith(("http://", "https://")):
        raise click.UsageError("--url must begin with http:// or https://")
    if token is None:
        return address
    return f"{address}{'&' if '?' in address else '?'}token={quote(token, safe='')}"
