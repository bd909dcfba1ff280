"""What the shell offers for the word that is typed: kernels, files and names.

Rule: never slow, never loud. A kernel that doesn't answer at once completes nothing. No error is
shown in the middle of a command line. The shell inserts what the kernel sends into that line, so
only valid Python names are offered: no shell gives them another meaning.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

KERNEL_WAIT = 1.5  # s to wait for a kernel's names; a longer wait feels like a hanging shell


def kernels(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
    """Complete connection files in Jupyter's runtime folder, or else a path."""
    found: list[Any] = []
    with contextlib.suppress(Exception):
        from bridgehead._kernels.connection_file import connection_files

        files = sorted(connection_files(), key=_age)
        found = [CompletionItem(file.name) for file in files if file.name.startswith(incomplete)]
    return found or [CompletionItem(incomplete, type="file")]


def files(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
    """Complete the file of NAME=FILE; the shell completes files only at the start of a word."""
    name, equals, start = incomplete.partition("=")
    before = f"{name}=" if name else ""
    if not equals:  # bash splits NAME=FILE into three words, and replaces the last one
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
    """Complete names in the kernel that the options typed so far choose."""
    if incomplete and not incomplete.isidentifier():
        return []
    try:
        found = asyncio.run(_names(ctx.params, incomplete))
    except (Exception, KeyboardInterrupt):  # noqa: BLE001 - a command line shows no errors
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
    async with asyncio.timeout(KERNEL_WAIT):
        opening = Bridge.attach(
            existing, insecure=options.get("insecure") or (), timeout=KERNEL_WAIT
        )
        async with opening as bridge:
            listed = await bridge.names(f"{begin}*", timeout=KERNEL_WAIT)
            # Any text may be a key of a kernel's namespace, and a type may have any name.
            return [(one.name, line(one.type)) for one in listed if one.name.isidentifier()]


def _age(file: Path) -> float:
    with contextlib.suppress(OSError):
        return -file.stat().st_mtime
    return 0.0
