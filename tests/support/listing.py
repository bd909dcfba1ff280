"""The output of ``ls`` and ``doctor``, and the completions of a shell.

Rule: one run of a command for each question.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from support.cli import PATIENCE, Ran, bridgehead, environment


def listed(runtime: Path, *arguments: object) -> dict[str, Any]:
    """Return the kernels that ``ls`` lists, by the stem of their connection file."""
    found = bridgehead("ls", "--json", *arguments, JUPYTER_RUNTIME_DIR=str(runtime)).json
    return {Path(one["where"]).stem: one for one in found}


def completed(shell: str, *words: str) -> list[str]:
    """Return the completions of the last word, however long the kernel takes."""
    set_wait = f"candidates.KERNEL_WAIT = {PATIENCE}"
    code = f"from bridgehead._tools.cli import candidates, main; {set_wait}; main()"
    script = [sys.executable, "-c", f"import sys; sys.argv[0] = 'bridgehead'; {code}"]
    env = environment(
        _BRIDGEHEAD_COMPLETE=f"{shell}_complete",
        COMP_WORDS=" ".join(["bridgehead", *words]),
        COMP_CWORD=words[-1] if shell == "fish" else str(len(words)),
    )
    done = subprocess.run(script, env=env, capture_output=True, check=False)
    assert done.stderr == b""
    return done.stdout.decode().splitlines()


def doctor(*arguments: object) -> tuple[Ran, dict[str, Any]]:
    """Run ``doctor --json``; return the run and the JSON."""
    ran = bridgehead("doctor", "--json", *arguments)
    return ran, json.loads(ran.out)
