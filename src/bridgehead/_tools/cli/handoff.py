"""``handoff``: bind one kernel's objects in another kernel.

Rule: the objects cross as ``Bridge.handoff`` has them cross; this program unpickles none of them.
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import click

from bridgehead._tools.cli.candidates import kernels
from bridgehead._tools.cli.candidates import names as complete_names
from bridgehead._tools.cli.exit import finish
from bridgehead._tools.cli.objects import print_moved
from bridgehead._tools.cli.options import as_json, target
from bridgehead._tools.cli.target import Target


@click.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True, shell_complete=complete_names)
@click.option(
    "--to",
    "other",
    metavar="FILE",
    required=True,
    shell_complete=kernels,
    help="The other kernel: its connection file, a part of its name, or an address as for --url.",
)
@target()
@as_json
def handoff(target: Target, names: tuple[str, ...], other: str, as_json: bool) -> None:
    """Bind the objects of a kernel to the same names in another kernel: all, or none.

    The kernel pickles the objects, and the other one opens them. Between two kernels of this
    machine they cross as shared memory. This program does not open them and holds no copy on
    that way. The token of a server is in the address, …/?token=TEXT, or in JUPYTER_TOKEN.
    """
    print_moved(finish(_handoff(target, names, other)), as_json)


async def _handoff(target: Target, names: tuple[str, ...], other: str) -> Any:
    there = dataclasses.replace(target, existing=other, trust=None)
    async with target.open() as source, there.open() as receiver:
        bar = sys.stderr.isatty()  # a log does not want one
        return await source.handoff(*names, to=receiver, trust=target.trust, progress=bar)
