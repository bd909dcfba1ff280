"""Messages advise arguments in the words of their reader: Python's, or the options of a program."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import click
import pytest

import bridgehead
from bridgehead import SyncBridge
from bridgehead._kernels.security import INSECURITIES
from bridgehead._tools.cli import options
from bridgehead._tools.cli.group import bridgehead as command_line
from bridgehead._tools.magics import bridge_magics
from support.cli import bridgehead as ran

SOURCE = Path(bridgehead.__file__).parent
# The names that ``security`` joins to one text.
JOINED = {f"insecure={names}" for names in ([INSECURITIES[0]], list(INSECURITIES))}


def _spelled() -> set[str]:
    """Return the arguments that the library's messages advise."""
    found = set()
    for file in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "spelled":
                (argument,) = node.args
                if isinstance(argument, ast.Constant):
                    found.add(argument.value)
    return found


def test_the_command_line_has_an_option_for_each_argument() -> None:
    assert _spelled() | JOINED == set(options.AS_OPTIONS)
    assert set(bridge_magics.AS_OPTIONS) <= _spelled()


def test_the_options_exist() -> None:
    context = click.Context(command_line)
    of_command = {
        name: {word for one in command.params for word in one.opts}
        for name in command_line.list_commands(context)
        if (command := command_line.get_command(context, name)) is not None
    }
    known, of_start = set().union(*of_command.values()), of_command["start"]
    for text in options.AS_OPTIONS.values():
        wanted = set(re.findall(r"--[\w-]+", text))
        assert wanted <= (of_start if "bridgehead start" in text else known), text
    parser = bridge_magics.BridgeMagics.connect.parser
    offered = {word for action in parser._actions for word in action.option_strings}
    for text in bridge_magics.AS_OPTIONS.values():
        assert set(re.findall(r"--[\w-]+", text)) <= offered, text


def test_a_program_and_the_command_line_each_have_their_own_words() -> None:
    with pytest.raises(ValueError, match="a user or password; pass token="):
        SyncBridge.connect("http://ada:secret@127.0.0.1:1")
    refused = ran("names", "--url", "http://ada:secret@127.0.0.1:1").refused(2)
    assert refused.endswith("a user or password; pass --token")
    assert "secret" not in refused
