"""What is shipped becomes one module over there: no name in it may mean two things.

Rule: the sources are read, nothing is run.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

from bridgehead._protocol import bootstrap as _shipping
from bridgehead._shipped import data as _data


def sources() -> dict[str, str]:
    """Every file of the loader's module, in the order in which they are run there."""
    files = resources.files("bridgehead._shipped")
    found = {name: files.joinpath(name).read_text("utf-8") for name in _shipping.SHIPPED}
    data = resources.files(_data)
    for name in _data.FILES:
        found[f"data/{name}"] = data.joinpath(f"{name}.py").read_text("utf-8")
    return found


def bound(tree: ast.Module) -> Iterator[tuple[str, str | None]]:
    """Each name bound at the top of a file, and what is imported under it; None for its own."""
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


def test_no_name_of_the_loaders_module_means_two_things() -> None:
    """typing's Mapping once took the place of a class of that name, and ended the direct lane."""
    meanings: dict[str, set[str]] = {}
    for file, text in sources().items():
        names: dict[str, set[str]] = {}
        for name, imported in bound(ast.parse(text)):
            names.setdefault(name, set()).add(imported or f"{Path(file).stem}'s own")
        for name, found in names.items():
            imported_here = {one for one in found if not one.endswith("'s own")}
            # An import that may fail and gets a stand-in in the same file is one thing.
            meanings.setdefault(name, set()).update(imported_here or found)
    twice = {name: found for name, found in meanings.items() if len(found) > 1}
    assert not twice
