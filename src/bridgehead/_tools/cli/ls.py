"""``ls``: the kernels that can be reached.

Rule: ``_nearby`` looks, this draws.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from bridgehead._tools.cli.exit import finish
from bridgehead._tools.cli.options import as_json


@click.command()
@click.option("--url", metavar="ADDRESS", help="The kernels of this server.")
@click.option("--token", metavar="TEXT", help="Of that server.")
@as_json
def ls(url: str | None, token: str | None, as_json: bool) -> None:
    """List the kernels that can be reached, and which are busy.

    Those with a connection file in Jupyter's runtime folder, and those of the Jupyter servers
    that run here as you. They are asked who they are, and nothing is executed in them.

    A busy kernel keeps one question of each look until its cell is done, and ipykernel 7 stops
    for good at some four thousand of them: during a long cell, don't look every second for an
    hour. watch and messages are for following one.

    \b
    idle, busy, starting
    silent   its process is there, and says nothing: stopped, or in a C call
    dead     nobody listens any more; its connection file was left behind
    unknown  it can't be asked
    """  # noqa: D301 - click's own mark: these lines are not wrapped
    found = finish(_look(url, token))
    if as_json:
        click.echo(json.dumps([asdict(one) for one in found], indent=1))
    elif found:
        _draw(found)
    else:
        click.echo("no kernels", err=True)


async def _look(url: str | None, token: str | None) -> Any:
    from bridgehead._kernels import discovery as _nearby
    from bridgehead._kernels import jupyter_servers as _servers

    if url is None and token is None:
        return await _nearby.look_around()
    try:
        server = _servers.find(url, token)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    return await _nearby.on_server(server)


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
    table.add_column("used", justify="right", no_wrap=True)
    table.add_column("for", overflow="fold")
    table.add_column("where", overflow="fold")
    for one in found:
        local = not one.where.startswith(("http://", "https://"))
        table.add_row(
            Text(plain(one.state), style=styles.get(one.state, "")),
            label(one.kernel),
            "" if one.pid is None else str(one.pid),
            age(one.used) if one.used else "",
            Text(plain(one.purpose)),
            Text(plain(Path(one.where).name if local else one.where)),
            style="dim" if one.state == "dead" else "",
        )
    print_table(console, "", table)
    for one in found:
        if one.why:
            console.print(Text(f"{plain(one.where)}: {plain(one.why)}", style="dim"))
