"""The command line: ``bridgehead demo``.

Rule: a face. Arguments in, tables and sentences out; what a command does lives in a file of its
own. click and rich are an extra, so without them there is one sentence and exit code 2, and a
``BridgeError`` is one line and exit code 1.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from bridgehead._errors import BridgeError, RemoteError

try:
    import click
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text
except ModuleNotFoundError as error:
    _missing: str | None = error.name
else:
    _missing = None

if TYPE_CHECKING:
    from bridgehead._demo import Report

T = TypeVar("T")

PROSE = 80  # columns that a sentence takes at most
PIPED = 10_000  # columns when nobody's terminal would wrap: tables are as wide as they are
SHOWN_COLUMNS = 4  # of a summary; the table that was pulled has them all


def main() -> None:
    """The console script; ``SystemExit`` 0, 1 (it failed) or 2 (it can't be tried)."""
    if _missing is not None:
        _not_installed(_missing)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a file name or a cell may hold what ASCII hasn't
            stream.reconfigure(errors="replace")
    commands().main(prog_name="bridgehead")


def commands() -> click.Group:
    """The click group with every command; built when called, because click may be missing."""

    @click.group(context_settings={"help_option_names": ["-h", "--help"]})
    @click.version_option(package_name="bridgehead", message="%(prog)s %(version)s")
    def bridgehead() -> None:
        """Live Python objects, between an asyncio program and a running Jupyter kernel."""

    bridgehead.command()(demo)
    return bridgehead
