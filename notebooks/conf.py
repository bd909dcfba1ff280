"""The site: how Sphinx builds it from this folder.

Rule: pages and notebooks are the source of all text. The reference comes from docstrings, the
command line's page from click's help. Nothing is executed here: tests run the notebooks and every
block of Python in a page.
"""

import builtins
import inspect
import os
import re
from collections.abc import Iterator
from typing import Any

import bridgehead
import click
from bridgehead._tools.magics.bridge_magics import COMMANDS, BridgeMagics
from bridgehead._tools.cli.group import bridgehead as command_line

os.environ["COLUMNS"] = "80"  # of the texts of --help

project = "bridgehead"
copyright = author = "the bridgehead authors"
version = release = bridgehead.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["**/.ipynb_checkpoints"]

myst_heading_anchors = 4  # links to headings, as GitHub makes them
nb_execution_mode = "off"
nb_merge_streams = True

autodoc_class_signature = "separated"  # most classes are made by the library, and not by users
autodoc_inherit_docstrings = False
autodoc_default_options = {"members": True, "exclude-members": "__init__, __new__"}
autodoc_typehints_format = "short"
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # an attribute is described once, in the class
python_maximum_signature_line_length = 80

nitpicky = True  # a link to a name of bridgehead that does not exist ends the build
nitpick_ignore_regex = [
    (r"py:(?!exc).*", r"(?!bridgehead\.[A-Za-z]).*"),  # types of other libraries, private types
    ("py:exc", "|".join([*dir(builtins), r"(asyncio|concurrent\.futures)\..*"])),
]

html_theme = "pydata_sphinx_theme"
html_title = "bridgehead"
html_show_sourcelink = False
html_domain_indices = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_sidebars = {"changelog": []}
html_theme_options = {
    "navbar_end": ["theme-switcher"],
    "show_toc_level": 2,
    "footer_start": ["copyright"],
    "footer_end": [],
}


# Types that only the library's own code names, and what a reader can use of them.
READ_AS = {
    r"~?[\w.]*\bOpening\[[^\]]*\]": "Awaitable[{kind}]",
    r"~?[\w.]*\bHandoffTargets\b": "Fleet",
    r"~?[\w.]*\bShownPanel\b": "AnyWidget",
}


def setup(app: Any) -> None:
    app.connect("source-read", _append_help)
    app.connect("autodoc-process-signature", _readable)


def _readable(app: Any, what: str, name: str, obj: Any, options: Any, *texts: str | None) -> Any:
    """Return the arguments and the result of a signature, in types that a reader knows."""
    kind = name.split(".")[1]
    for private, public in READ_AS.items():
        texts = tuple(text and re.sub(private, public.format(kind=kind), text) for text in texts)
    return texts


def _append_help(app: Any, page: str, content: list[str]) -> None:
    """Append to two pages what their commands say for ``--help``."""
    helps = {"reference/cli": _of_commands, "reference/magics": _of_magics}.get(page)
    for name, kind, text in helps() if helps else ():
        content[0] += f"\n## {name}\n\n```{kind}\n{text}\n```\n"


def _of_commands() -> Iterator[tuple[str, str, str]]:
    settings = command_line.context_settings
    with click.Context(command_line, None, "bridgehead", **settings) as context:
        yield "bridgehead", "text", command_line.get_help(context)
        for name in command_line.list_commands(context):
            command = command_line.get_command(context, name)
            with click.Context(command, context, name) as inner:
                yield name, "text", command.get_help(inner)


def _of_magics() -> Iterator[tuple[str, str, str]]:
    text = inspect.getdoc(BridgeMagics.bridge)
    yield "%bridge and %%bridge", "{eval-rst}", f".. highlight:: none\n\n{text}"
    for name in (*COMMANDS, "cell"):
        text = getattr(BridgeMagics, name).parser.format_help().removeprefix("::\n\n  ")
        yield "%%bridge" if name == "cell" else f"%bridge {name}", "text", text
