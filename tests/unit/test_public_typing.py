"""What type checkers make of the public names.

Rule: mypy and pyright themselves, run as a user would run them on code of theirs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import bridgehead

API = Path(__file__).parents[1] / "typing" / "api.py"


def checked(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *command],
        capture_output=True,
        text=True,
        cwd=API.parents[2],
        # To verify a package pyright looks for it where it is, and not where a .pth file leads.
        env={**os.environ, "PYTHONPATH": str(Path(bridgehead.__file__).parents[1])},
    )


def pyright(*arguments: str) -> dict[str, Any]:
    """What pyright tells of this environment, about what the arguments name."""
    ran = checked("pyright", "--outputjson", "--pythonpath", sys.executable, *arguments)
    assert ran.stdout, ran.stderr
    told: dict[str, Any] = json.loads(ran.stdout)
    return told


def test_mypy_reads_the_api_as_it_is_meant() -> None:
    ran = checked("mypy", "--strict", str(API))
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_pyright_reads_the_api_as_it_is_meant() -> None:
    told = pyright(str(API))
    assert told["summary"]["filesAnalyzed"] == 1
    assert [
        f"{one['range']['start']['line'] + 1}: {one['message']}"
        for one in told["generalDiagnostics"]
    ] == []


def test_every_public_type_is_known() -> None:
    told = pyright("--verifytypes", "bridgehead", "--ignoreexternal")["typeCompleteness"]
    unknown = [
        symbol["name"]
        for symbol in told["symbols"]
        if not symbol["isTypeKnown"] or symbol["isTypeAmbiguous"]
    ]
    assert (unknown, told["completenessScore"]) == ([], 1)
