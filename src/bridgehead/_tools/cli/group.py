"""The group of all commands.

Rule: the name and one line of help of each command. The file of a command is imported when it is
used. Help and completion import the package itself, but not rich, numpy, pandas or a server's
packages.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click

from bridgehead import __version__
from bridgehead._tools.cli.exit import NoReader

# command: its file, and its line in the list
COMMANDS = {
    "ls": ("ls", "List the kernels, and which are busy."),
    "start": ("lifecycle", "Start a kernel that stays."),
    "names": ("objects", "List the names in a kernel."),
    "push": ("objects", "Bind the contents of files to names in a kernel."),
    "pull": ("objects", "Show a value of a kernel, or write it to a file."),
    "handoff": ("handoff", "Bind a kernel's objects in another kernel."),
    "run": ("run", "Run a file or code as a cell, or a notebook cell by cell."),
    "interrupt": ("lifecycle", "Interrupt the cell that a kernel runs."),
    "watch": ("watch", "Follow a value while cells change it."),
    "messages": ("watch", "Show the messages that a kernel publishes."),
    "stop": ("lifecycle", "End a kernel of start, or of a server."),
    "restart": ("lifecycle", "Replace the process of a kernel of start, or of a server."),
    "doctor": ("doctor", "Check a kernel and the connection to it."),
    "demo": ("demo", "Send a table to a kernel, use it in a cell, pull the result."),
    "bench": ("bench", "Measure push and pull on this machine."),
    "completion": ("completion", "Print a script that adds completion to a shell."),
}


class Commands(click.Group):
    """A group that imports a command when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"bridgehead._tools.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands from ``COMMANDS``, without importing any of them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])

    def make_context(self, *args: Any, **more: Any) -> click.Context:
        try:
            return super().make_context(*args, **more)
        except BrokenPipeError:  # click prints --help in this call
            raise NoReader from None

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise NoReader from None

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        import difflib

        if args[0] not in COMMANDS and not args[0].startswith("-"):
            close = difflib.get_close_matches(args[0], COMMANDS, 1)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise click.UsageError(f"there is no command {args[0]!r}.{hint}", ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="%(prog)s %(version)s")
def bridgehead() -> None:
    """Live Python objects, between an asyncio program and a running Jupyter kernel.

    Commands use the kernel that was used last, except stop and restart, which lose what is in
    a kernel. --existing FILE or --url ADDRESS choose another one. --json prints JSON, for scripts.

    \b
    First steps:
      bridgehead demo                    see objects cross to a kernel and back
      bridgehead start                   start a kernel, for the commands below
      bridgehead push df=table.csv       bind a file's table there
      bridgehead run -c "total = df.sum(numeric_only=True)"
      bridgehead pull total              show the value
      bridgehead stop                    end the kernel

    \b
    Exit codes:
      0    done
      1    the code raised in the kernel, or the result can't be used
      2    the command can't start: a wrong argument, a missing package or file
      3    not sent: no such kernel, or the request was refused before it was sent
      4    not executed: the kernel refused the request and changed nothing
      5    unknown: the connection to the kernel was lost or closed; the request may have run
      124  the command took longer than --timeout
      130  interrupted
      141  the reader of the output closed the pipe
    """  # noqa: D301 - \b tells click not to wrap these lines
