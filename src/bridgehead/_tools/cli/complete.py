"""What a shell is offered for what was typed so far.

Rule: never slow, never loud. A kernel that doesn't answer at once completes nothing, and nothing
that goes wrong is shown in the middle of somebody's command line. What a kernel tells is put into
that line by the shell: only names that Python would take as such, which no shell takes for more.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

PATIENCE = 1.5  # s for a kernel to tell its names; longer feels like a hanging shell


def kernels(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
    """The connection files in Jupyter's runtime folder, or a path."""
    found: list[Any] = []
    with contextlib.suppress(Exception):
        from bridgehead._kernels.local import connection_files

        files = sorted(connection_files(), key=_age)
        found = [CompletionItem(file.name) for file in files if file.name.startswith(incomplete)]
    return found or [CompletionItem(incomplete, type="file")]


def files(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
    """Of NAME=FILE, the file; the shell itself knows files only where the word begins."""
    name, equals, start = incomplete.partition("=")
    before = f"{name}=" if name else ""
    if not equals:  # bash takes NAME=FILE for three words, and replaces the last one
        last = (tuple(ctx.params.get("bindings") or ()) or ("",))[-1]
        if not last or ("=" in last and last != "="):
            return []
        before, start = "", incomplete
    found = []
    with contextlib.suppress(OSError):
        folder, _, prefix = start.rpartition("/")
        for entry in sorted(os.scandir(folder + "/" if "/" in start else "."), key=str):
            if entry.name.startswith(prefix) and not entry.name.startswith("."):
                slash = "/" if entry.is_dir() else ""
                path = f"{folder}/{entry.name}" if "/" in start else entry.name
                found.append(CompletionItem(f"{before}{path}{slash}"))
    return found


def names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
    """The names of the kernel that the options typed so far mean."""
    if incomplete and not incomplete.isidentifier():
        return []
    try:
        found = asyncio.run(_names(ctx.params, incomplete))
    except (Exception, KeyboardInterrupt):  # noqa: BLE001 - a shell is not to hear of it
        return []
    return [CompletionItem(name, help=kind) for name, kind in found]


async def _names(options: dict[str, Any], begin: str) -> list[tuple[str, str]]:
    import logging
    import warnings

    from bridgehead import Bridge
    from bridgehead._protocol.formatting import line
    from bridgehead._tools.cli.target import address_of

    warnings.simplefilter("ignore")
    logging.disable()
    existing = address_of(*(options.get(name) for name in ("existing", "url", "token")))
    async with asyncio.timeout(PATIENCE):
        opening = Bridge.attach(existing, insecure=options.get("insecure") or (), timeout=PATIENCE)
        async with opening as bridge:
            listed = await bridge.names(f"{begin}*", timeout=PATIENCE)
            # A kernel's namespace may have any text as a key, and its types any name.
            return [(one.name, line(one.type)) for one in listed if one.name.isidentifier()]


def _age(file: Path) -> float:
    with contextlib.suppress(OSError):
        return -file.stat().st_mtime
    return 0.0
