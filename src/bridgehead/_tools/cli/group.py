"""Which commands there are.

Rule: names and one line each; the file of a command is imported when it is asked for. Help and
completion wait for the package itself, but not for rich, numpy, pandas or a server's packages.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click

from bridgehead._tools.cli.exit import NoReader

# command: its file, and its line in the list
COMMANDS = {
    "ls": ("ls", "The kernels that can be reached, and which are busy."),
    "names": ("objects", "What a kernel's namespace has."),
    "push": ("objects", "Bind what files hold to names in a kernel."),
    "pull": ("objects", "Bring a value here: into a file, or to look at."),
    "run": ("run", "Run a file as a cell; its output is shown as it comes."),
    "watch": ("watch", "Follow a value as cells change it."),
    "messages": ("watch", "What a kernel tells its clients, as it happens."),
    "doctor": ("doctor", "What is known of a kernel and the way to it; what to do."),
    "demo": ("demo", "Send a table to a kernel, use it there, fetch the result."),
    "bench": ("bench", "Measure push and pull on this machine."),
    "completion": ("completion", "A script that completes commands and names in a shell."),
}


class Commands(click.Group):
    """A group whose commands are imported when they are wanted."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"bridgehead._tools.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """From the lines above, without importing any of them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])

    def make_context(self, *args: Any, **more: Any) -> click.Context:
        try:
            return super().make_context(*args, **more)
        except BrokenPipeError:  # this is where --help is printed
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
@click.version_option(package_name="bridgehead", message="%(prog)s %(version)s")
def bridgehead() -> None:
    """Live Python objects, between an asyncio program and a running Jupyter kernel.

    Commands that talk to a kernel take the one used last; --existing FILE or --url ADDRESS
    name another one. --json is for scripts.

    \b
    Exit codes:
      0    done
      1    it ran in the kernel and raised, or what came back is of no use
      2    it can't be tried: a wrong argument, a missing package or file
      3    not sent: no such kernel, or refused before it crossed
      4    not executed: the kernel refused it, and is as it was
      5    unknown: the kernel went away meanwhile, and it may have run
      124  it took longer than --timeout
      130  interrupted
      141  whoever read the output went away
    """  # noqa: D301 - click's own mark: these lines are not wrapped
