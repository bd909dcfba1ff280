"""The options that say which kernel a command means.

Rule: the options that all commands share, each said once; what they mean is ``target``'s.
Nothing that runs before the arguments are read imports more than click and the package itself.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import click

from bridgehead._tools.cli.complete import kernels
from bridgehead._tools.cli.target import Target, address_of

F = TypeVar("F", bound=Callable[..., Any])

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")


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
            wanted = Target(address_of(existing, url, token), timeout, trust, insecure)
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
