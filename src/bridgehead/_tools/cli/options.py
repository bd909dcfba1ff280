"""Which kernel a command means, and how it is opened.

Rule: the options that all commands share, each said once; what they mean is ``Bridge.attach``'s.
Nothing that runs before the arguments are read imports more than click and the package itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

import click

from bridgehead._tools.cli.complete import kernels

if TYPE_CHECKING:
    from bridgehead import Bridge

F = TypeVar("F", bound=Callable[..., Any])

OPENING = 60.0  # s until a kernel must answer at all, in the middle of a cell or not
FOREVER = 1e8  # s
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")


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
        from bridgehead._bridge.opening import How, attaching, open_bridge

        return await open_bridge(
            Bridge,
            How(trust=self.trust),
            max(OPENING, self.timeout or 0),
            attaching(self.existing, self.insecure),
            handshake_timeout=FOREVER,  # its turn may come after a cell of hours
        )


def target(*, trust: bool = True) -> Callable[[F], F]:
    """The options that say which kernel, given to the command as a ``Target``."""

    def decorate(command: F) -> F:
        @functools.wraps(command)
        def wrapped(
            existing: str | None,
            url: str | None,
            token: str | None,
            timeout: float | None,
            insecure: tuple[str, ...],
            trust: str | None = None,
            **options: Any,
        ) -> Any:
            wanted = Target(_address(existing, url, token), timeout, trust, insecure)
            return command(wanted, **options)

        decorated: Any = wrapped
        for option in reversed(_options(trust)):
            decorated = option(decorated)
        return decorated  # type: ignore[no-any-return]

    return decorate


def _options(trust: bool) -> list[Callable[[Any], Any]]:
    found: list[Callable[[Any], Any]] = [
        click.option(
            "--existing",
            "-e",
            metavar="FILE",
            shell_complete=kernels,
            help="The kernel's connection file, or a part of its name. [default: used last]",
        ),
        click.option(
            "--url",
            metavar="ADDRESS",
            help="Of a Jupyter server, for the kernel used last there; or of one of its "
            "kernels, …/api/kernels/ID, as ls tells it.",
        ),
        click.option(
            "--token",
            metavar="TEXT",
            help="Of the server. Others on this machine can see it; JUPYTER_TOKEN keeps it.",
        ),
        click.option(
            "--timeout",
            metavar="SECONDS",
            type=click.FloatRange(min=0, min_open=True),
            help="Give up after so long.",
        ),
        click.option(
            "--insecure",
            multiple=True,
            type=click.Choice(["empty-key", "plain-tcp"]),
            help="Put up with a connection that doctor warns of.",
        ),
    ]
    if trust:
        found.append(
            click.option(
                "--trust",
                type=click.Choice(["data", "pickle"]),
                help="data opens nothing that could run code here; pickle opens anything. "
                "[default: pickle for a kernel of yours on this machine, else data]",
            )
        )
    return found


def _address(existing: str | None, url: str | None, token: str | None) -> str | None:
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
