"""Measurements in a new Python process, for what a process does only once.

Rule: runs a module of this package with arguments, and reads one line of JSON from it.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any


async def run(module: str, *arguments: str) -> Any:
    """Run a module and return the JSON that it printed.

    Raises:
        RuntimeError: the process failed; the message is its last line of output.
    """
    command = [sys.executable, "-m", f"tests.bench.{module}", *arguments]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe)
    try:
        out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
    if process.returncode:
        lines = err.decode().strip().splitlines()
        raise RuntimeError(lines[-1] if lines else f"exit code {process.returncode}")
    return json.loads(out)
