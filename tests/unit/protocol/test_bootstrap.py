"""The shipped files become one module in the kernel: no name in it may have two meanings.

Rule: these tests read the sources, and run none of them.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

from bridgehead._protocol.bootstrap import SHIPPED
from bridgehead._shipped import data as codec


def sources() -> dict[str, str]:
    """Every file of the remote module, in the order in which the kernel runs them."""
    files = resources.files("bridgehead._shipped")
    found = {name: files.joinpath(name).read_text("utf-8") for name in SHIPPED}
    data = resources.files(codec)
    for name in codec.FILES:
        found[f"data/{name}"] = data.joinpath(f"{name}.py").read_text("utf-8")
    return found


def bound(tree: ast.Module) -> Iterator[tuple[str, str | None]]:
    """Each name bound at the top level of a file, with what it imports; None for a definition."""
    left: list[ast.stmt] = list(tree.body)
    while left:
        node = left.pop()
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name, None
        elif isinstance(node, ast.Import):
            for alias in node.names:
                root = alias.name if alias.asname else alias.name.partition(".")[0]
                yield alias.asname or root, root
        elif isinstance(node, ast.ImportFrom):
            if not str(node.module).startswith("bridgehead"):
                for alias in node.names:
                    yield alias.asname or alias.name, f"{node.module}.{alias.name}"
        elif isinstance(node, (ast.If, ast.Try, ast.With, ast.For)):
            left += [child for child in ast.walk(node) if child is not node and is_plain(child)]
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for child in (child for target in targets for child in ast.walk(target)):
                if isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store):
                    yield child.id, None


def is_plain(node: ast.AST) -> bool:
    return isinstance(node, ast.stmt) and not isinstance(node, (ast.If, ast.Try, ast.With, ast.For))


def test_no_name_in_the_remote_module_has_two_meanings() -> None:
    """typing's Mapping once replaced a class of that name, and the direct lane stopped working."""
    meanings: dict[str, set[str]] = {}
    for file, text in sources().items():
        names: dict[str, set[str]] = {}
        for name, imported in bound(ast.parse(text)):
            names.setdefault(name, set()).add(imported or f"defined in {Path(file).stem}")
        for name, found in names.items():
            imported_names = {one for one in found if not one.startswith("defined in ")}
            # An optional import with a replacement in the same file has one meaning.
            meanings.setdefault(name, set()).update(imported_names or found)
    twice = {name: found for name, found in meanings.items() if len(found) > 1}
    assert not twice
