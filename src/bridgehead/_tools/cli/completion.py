"""``bridgehead completion``: the script that a shell takes in.

Rule: click writes the script; here is said where it goes.
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
    """  # noqa: D301 - click's own mark: these lines are not wrapped
    from bridgehead._tools.cli.group import bridgehead

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(bridgehead, {}, "bridgehead", "_BRIDGEHEAD_COMPLETE").source())
