"""The test tree mirrors the source tree, and the catalogue of faults names existing tests.

The head of each folder lists its files. No two classes have one name, or names that differ by an s.

Rule: ``tests/unit/x/test_y.py`` and ``test_y_subject.py`` test ``src/bridgehead/_x/y.py``.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

import bridgehead

UNIT, SOURCE = Path(__file__).parent, Path(bridgehead.__file__).parent
FILES = [path.relative_to(UNIT) for path in sorted(UNIT.glob("*/**/test_*.py"))]
FOLDERS = sorted(file.parent for file in SOURCE.rglob("__init__.py"))
BULLET = re.compile(r"^- (``[\w.]+``(?:,\s+``[\w.]+``)*):", re.MULTILINE)
CATALOGUE = re.findall(r"`([\w/]+\.py)::(\w+)`", (UNIT.parent / "README.md").read_text())


@pytest.mark.parametrize("file", FILES, ids=str)
def test_a_file_names_the_module_that_it_tests(file: Path) -> None:
    folder = SOURCE / f"_{file.parent}"
    words = file.stem.split("_")[1:]
    names = {"_".join(words[: n + 1]) for n in range(len(words))}
    assert names & {path.stem for path in folder.iterdir() if path.stem != "__init__"}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_head_of_a_folder_lists_its_files(folder: Path) -> None:
    head = (folder / "__init__.py").read_text().split('"""')[1]
    listed = re.findall(r"``(\w+)``", head)
    parts = {path.stem for path in folder.glob("*.py")} | {
        path.parent.name for path in folder.glob("*/__init__.py")
    }
    assert parts - {"__init__"} <= set(listed)
    first = {name for bullet in BULLET.findall(head) for name in re.findall(r"[\w.]+", bullet)}
    assert first <= parts | {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("file", sorted({file for file, _ in CATALOGUE}))
def test_a_row_of_the_catalogue_names_tests_that_exist(file: str) -> None:
    text = (UNIT.parent / file).read_text()
    tests = {name for other, name in CATALOGUE if other == file}
    assert tests <= set(re.findall(r"def (test_\w+)\(", text))


def test_no_two_classes_have_one_name_or_differ_by_an_s() -> None:
    files = [file.read_text() for file in SOURCE.rglob("*.py")]
    names = Counter(name for text in files for name in re.findall(r"^class _?(\w+)", text, re.M))
    assert [name for name, count in names.items() if count > 1] == []
    public = {"Message", "Name"}  # what Messages and Names hold
    assert {name for name in names if f"{name}s" in names} == public
