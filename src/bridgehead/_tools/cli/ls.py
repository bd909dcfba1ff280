"""``ls``: a list of the kernels that can be reached.

Rule: ``_kernels.discovery`` finds the kernels. This file draws the list.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from bridgehead._tools.cli.exit import finish, not_sent
from bridgehead._tools.cli.options import as_json


@click.command()
@click.option("--url", metavar="ADDRESS", help="List only the kernels of this Jupyter server.")
@click.option("--token", metavar="TEXT", help="The token of that server.")
@as_json
def ls(url: str | None, token: str | None, as_json: bool) -> None:
    """List the kernels that can be reached, and which are busy.

    The list has the kernels with a connection file kernel-*.json in Jupyter's runtime folder,
    and the kernels of your Jupyter servers on this machine. The command asks each kernel for
    its state. It executes nothing in a kernel.

    "memory" is that of the process and of the processes that it started. "used" is how long
    ago the kernel was last active, as its server reports it. Without a server, it is how long
    ago a client connected: what clients do since then is not known. "for" is the notebook or
    console that the kernel was started for.

    Each run of this command leaves one request in the queue of a busy kernel until its cell
    ends. ipykernel 7 stops for good at about four thousand queued requests. So do not run
    this command every second during a cell of an hour: use watch or messages instead.

    \b
    States:
      idle, busy, starting
      silent   the process exists but does not answer: it is stopped, or in a C call
      dead     no process listens; the kernel left its connection file behind
      unknown  the kernel can't be asked
    """  # noqa: D301 - \b tells click not to wrap these lines
    found = finish(_look(url, token))
    if as_json:
        click.echo(json.dumps([asdict(one) for one in found], indent=1))
    elif found:
        _draw(found)
    else:
        where = " --url ADDRESS" if url is not None else ""
        click.echo(f"no kernels; bridgehead start{where} starts one", err=True)


async def _look(url: str | None, token: str | None) -> Any:
    from bridgehead._kernels import discovery, jupyter_servers

    if url is None and token is None:
        return await discovery.kernels()
    try:
        server = jupyter_servers.find(url, token)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    with not_sent():
        return await discovery.on_server(server)


def _draw(found: list[Any]) -> None:
    from rich.text import Text

    from bridgehead._kernels.discovery import age
    from bridgehead._tools.cli.terminal import console_for, label, new_table, plain, print_table

    console = console_for()
    styles = {"idle": "green", "busy": "bold yellow", "silent": "red", "dead": "dim"}
    table = new_table()
    table.add_column("state")
    table.add_column("kernel")
    table.add_column("pid", justify="right")
    table.add_column("memory", justify="right", no_wrap=True)
    table.add_column("used", justify="right", no_wrap=True)
    table.add_column("for", overflow="fold")
    table.add_column("where", overflow="fold")
    for one in found:
        local = not one.where.startswith(("http://", "https://"))
        table.add_row(
            Text(plain(one.state), style=styles.get(one.state, "")),
            label(one.kernel),
            "" if one.pid is None else str(one.pid),
            "" if one.memory is None else f"{one.memory / 1e6:,.0f} MB",
            age(one.active or one.used) if one.active or one.used else "",
            Text(plain(one.purpose)),
            Text(plain(Path(one.where).name if local else one.where)),
            style="dim" if one.state == "dead" else "",
        )
    print_table(console, "", table)
    for one in found:
        if one.why:
            console.print(Text(f"{plain(one.where)}: {plain(one.why)}", style="dim"))
