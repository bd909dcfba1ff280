"""The kernel that a command's options choose, and a bridge to it.

Rule: the values of the options as one object, and how to open it. ``options`` defines the options
themselves. This file imports neither ``options`` nor ``candidates``, because both import it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

import click

if TYPE_CHECKING:
    from bridgehead import Bridge
    from bridgehead._transports.base import Transport

T = TypeVar("T")

OPENING = 60.0  # s until a kernel must answer at all, whether it runs a cell or not
FOREVER = 1e8  # s


@dataclass(frozen=True, slots=True)
class Target:
    """The kernel that the options choose; ``timeout`` limits the whole command."""

    existing: str | None
    timeout: float | None
    trust: Any
    insecure: tuple[Any, ...]

    @property
    def of_server(self) -> bool:
        """Whether the kernel is one of a Jupyter server."""
        from bridgehead._transports.addresses import is_of_server

        return self.existing is not None and is_of_server(self.existing)

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[Bridge]:
        """Open a bridge to the kernel; opening and the body together may take ``timeout`` seconds.

        A kernel may run a cell for hours: without a timeout, the bridge waits for it.

        Raises:
            NotSent: the kernel cannot be reached.
            TimeoutError: opening or the body took longer.
        """
        from bridgehead._tools.cli.exit import with_wait_notice

        known = "the kernel did not answer, and nothing was sent"
        async with within(self.timeout, lambda: known) as limit:
            bridge = await self._opened(limit, with_wait_notice(self._open()))
            async with bridge:
                try:
                    yield bridge
                finally:
                    known = (
                        f"the kernel is {bridge.state}, and the request may still run if it was "
                        "sent"
                    )

    async def _open(self) -> Bridge:
        from bridgehead import Bridge
        from bridgehead._bridge.constructors import open_bridge
        from bridgehead._bridge.opening import OpenOptions

        return await open_bridge(
            Bridge,
            OpenOptions(trust=self.trust),
            self._patience,
            self._connecting,
            # A cell of hours may run before the handshake.
            handshake_timeout=self.timeout if self.timeout and self.of_server else FOREVER,
        )

    @contextlib.asynccontextmanager
    async def reach(self) -> AsyncIterator[Transport]:
        """Connect without the handshake, which would wait for the cell that the kernel runs.

        Raises:
            NotSent: the kernel cannot be reached.
            TimeoutError: connecting or the body took longer than ``timeout``.
        """
        from bridgehead._tools.cli.exit import not_sent

        known = "the kernel may not have received the request"
        async with within(self.timeout, lambda: known) as limit:
            transport = await self._opened(limit, self._connecting(self._patience))
            try:
                with not_sent():
                    await transport.introduced()
                yield transport
            finally:
                await transport.aclose()

    async def _opened(self, limit: asyncio.Timeout, opening: Awaitable[T]) -> T:
        """Open within the limit of the command.

        A server that does not answer in time has an error of its own: it is stopped, or starting.
        """
        from bridgehead._tools.cli.exit import not_sent

        until = limit.when()
        if self.of_server:
            limit.reschedule(None)
        with not_sent():
            opened = await opening
        if self.of_server:
            limit.reschedule(until)
        return opened

    @property
    def _patience(self) -> float:
        """Seconds until the kernel must answer at all; of a server, all that the command has."""
        if self.of_server:
            return self.timeout or OPENING
        return max(OPENING, self.timeout or 0)

    @property
    def _connecting(self) -> Callable[[float], Awaitable[Transport]]:
        from bridgehead._bridge.constructors import attaching

        return attaching(self.existing, self.insecure)


@contextlib.asynccontextmanager
async def within(seconds: float | None, known: Callable[[], str]) -> AsyncIterator[asyncio.Timeout]:
    """Limit the time of the block; ``known`` says what is known of the request by then.

    Raises:
        TimeoutError: the block took longer.
    """
    try:
        async with asyncio.timeout(seconds) as limit:
            yield limit
    except TimeoutError:
        if not limit.expired():
            raise
        raise TimeoutError(f"the command took longer than {seconds:g} s; {known()}") from None


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
