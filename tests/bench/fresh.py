"""A Python of its own for what happens once in a process's life.

Rule: runs a module of this package with arguments, and takes one line of JSON from it.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any


async def run(module: str, *arguments: str) -> Any:
    """What the module printed, as JSON.

    Raises:
        RuntimeError: it failed; what it said last.
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
