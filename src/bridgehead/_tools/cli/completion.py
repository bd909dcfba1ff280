"""``bridgehead completion``: the script that adds completion to a shell.

Rule: click generates the script. The help text says where to put it.
"""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a script that completes commands, options, names and kernels.

    \b
    bash:  eval "$(bridgehead completion bash)"   in ~/.bashrc
    zsh:   eval "$(bridgehead completion zsh)"    in ~/.zshrc
    fish:  bridgehead completion fish > ~/.config/fish/completions/bridgehead.fish
    """  # noqa: D301 - \b tells click not to wrap these lines
    from bridgehead._tools.cli.group import bridgehead

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(bridgehead, {}, "bridgehead", "_BRIDGEHEAD_COMPLETE").source())
