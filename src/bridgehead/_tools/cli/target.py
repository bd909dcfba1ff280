"""The kernel that a command's options mean, and a bridge to it.

Rule: what the options say, as one value, and how it is opened; the options themselves are
``options``'. It imports neither ``options`` nor ``complete``: both use it.
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

OPENING = 60.0  # s until a kernel must answer at all, in the middle of a cell or not
FOREVER = 1e8  # s


@dataclass(frozen=True, slots=True)
class Target:
    """The kernel that the options mean; ``timeout`` is of the whole command."""

    existing: str | None
    timeout: float | None
    trust: Any
    insecure: tuple[Any, ...]

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[Bridge]:
        """A bridge to it; what is done with it takes no longer than ``timeout``, all in all.

        A kernel that is there may be in the middle of a cell for hours, and is waited for.

        Raises:
            TimeoutError: it took longer.
        """
        from bridgehead._tools.cli.exit import patiently

        known = "the kernel had no time for it, and nothing was sent"
        try:
            async with asyncio.timeout(self.timeout) as limit:
                bridge = await patiently(self._open())
                async with bridge:
                    try:
                        yield bridge
                    finally:
                        known = (
                            f"the kernel is {bridge.state}. What was sent to it may still run there"
                        )
        except TimeoutError:
            if not limit.expired():
                raise
            raise TimeoutError(f"it took longer than {self.timeout:g} s; {known}") from None

    async def _open(self) -> Bridge:
        from bridgehead import Bridge
        from bridgehead._bridge.opening import OpenOptions, attaching, open_bridge

        return await open_bridge(
            Bridge,
            OpenOptions(trust=self.trust),
            max(OPENING, self.timeout or 0),
            attaching(self.existing, self.insecure),
            handshake_timeout=FOREVER,  # its turn may come after a cell of hours
        )


def address_of(existing: str | None, url: str | None, token: str | None) -> str | None:
    """What ``attach`` takes for these options; a token goes into the server's address."""
    if existing is not None and url is not None:
        raise click.UsageError("--existing and --url name a kernel each; say one of them")
    if token is not None and url is None:
        raise click.UsageError("--token is for a server; say --url as well")
    if url is None:
        return existing
    address = url if "://" in url else f"http://{url}"
    if not address.startswith(("http://", "https://")):
        raise click.UsageError("--url begins with http:// or https://")
    if token is None:
        return address
    return f"{address}{'&' if '?' in address else '?'}token={quote(token, safe='')}"
