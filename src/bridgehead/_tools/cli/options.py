"""The options that choose a command's kernel.

Rule: the options that commands share, each defined once. ``target`` defines what they mean.
Code that runs before the arguments are parsed imports only click and the package itself.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import click

from bridgehead._tools.cli.candidates import kernels
from bridgehead._tools.cli.target import Target, address_of

F = TypeVar("F", bound=Callable[..., Any])

# How messages of the library write the arguments that they advise.
AS_OPTIONS = {
    "token=": "--token",
    "timeout=": "--timeout",
    "connect()": "bridgehead start --url ADDRESS",
    "start_server=": "--start-server",
    "start_server=True": "bridgehead start --url ADDRESS --start-server",
    "allow= or trust='pickle'": "--trust pickle",
    "allow= and trust=": "--trust",
    "insecure=['empty-key']": "--insecure empty-key",
    "insecure=['plain-tcp']": "--insecure plain-tcp",
    "insecure=['empty-key', 'plain-tcp']": "--insecure empty-key --insecure plain-tcp",
}

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
token = click.option(
    "--token",
    metavar="TEXT",
    help="The token of the server. Other users of this machine can see options; the "
    "environment variable JUPYTER_TOKEN is not visible to them.",
)
insecure = click.option(
    "--insecure",
    multiple=True,
    type=click.Choice(["empty-key", "plain-tcp"]),
    help="Allow a connection that doctor reports as insecure.",
)


def target(*, trust: bool = True, latest: bool = True) -> Callable[[F], F]:
    """Add the options that choose a kernel; the command receives them as a ``Target``.

    Without ``latest``, the command does not take the kernel used last: see ``lifecycle``.
    """

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
        for option in reversed(_options(trust, latest)):
            decorated = option(decorated)
        return decorated  # type: ignore[no-any-return]

    return decorate


def _options(trust: bool, latest: bool) -> list[Callable[[Any], Any]]:
    default = "the kernel used last" if latest else "the only one of bridgehead start"
    address = "the address of one of its kernels, …/api/kernels/ID, as ls shows it."
    found: list[Callable[[Any], Any]] = [
        click.option(
            "--existing",
            "-e",
            metavar="FILE",
            shell_complete=kernels,
            help="The kernel's connection file, or a part of its name; or NAME.ipynb, a notebook "
            f"that Jupyter has open. [default: {default}]",
        ),
        click.option(
            "--url",
            metavar="ADDRESS",
            help="The address of a Jupyter server: the command uses the server's kernel used "
            f"last. Or {address}"
            if latest
            else f"For a kernel of a Jupyter server: {address}",
        ),
        token,
        click.option(
            "--timeout",
            metavar="SECONDS",
            type=click.FloatRange(min=0, min_open=True),
            help="Stop after this time.",
        ),
        insecure,
    ]
    if trust:
        found.append(
            click.option(
                "--trust",
                type=click.Choice(["data", "pickle"]),
                help="data accepts only plain data, which can't run code; pickle accepts any "
                "object. [default: pickle for your kernels on this machine, else data]",
            )
        )
    return found
