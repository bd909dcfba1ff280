"""The types of the public names, as type checkers see them.

Rule: mypy and pyright themselves run, as a user runs them on a program.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import bridgehead

API = Path(__file__).parents[1] / "typing" / "api.py"


def checked(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *command],
        capture_output=True,
        text=True,
        cwd=API.parents[2],
        # pyright verifies a package only on its path, and follows no .pth file.
        env={**os.environ, "PYTHONPATH": str(Path(bridgehead.__file__).parents[1])},
    )


def pyright(*arguments: str) -> dict[str, Any]:
    """Return the report of pyright, in this environment, on what the arguments name."""
    ran = checked("pyright", "--outputjson", "--pythonpath", sys.executable, *arguments)
    assert ran.stdout, ran.stderr
    report: dict[str, Any] = json.loads(ran.stdout)
    return report


@pytest.mark.slow
def test_mypy_infers_the_intended_types() -> None:
    ran = checked("mypy", "--strict", str(API))
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.slow
def test_pyright_infers_the_intended_types() -> None:
    report = pyright(str(API))
    assert report["summary"]["filesAnalyzed"] == 1
    assert [
        f"{one['range']['start']['line'] + 1}: {one['message']}"
        for one in report["generalDiagnostics"]
    ] == []


@pytest.mark.slow
def test_every_public_type_is_known() -> None:
    report = pyright("--verifytypes", "bridgehead", "--ignoreexternal")["typeCompleteness"]
    unknown = [
        symbol["name"]
        for symbol in report["symbols"]
        if not symbol["isTypeKnown"] or symbol["isTypeAmbiguous"]
    ]
    assert (unknown, report["completenessScore"]) == ([], 1)
