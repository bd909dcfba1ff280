"""What is said of a kernel that was found."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from bridgehead._kernels import discovery
from bridgehead._kernels.discovery import DiscoveredKernel


@pytest.mark.parametrize(
    ("kernel", "shown"),
    [
        (DiscoveredKernel("/run/kernel-1.json", "dead"), "<kernel: dead, kernel-1.json>"),
        (
            DiscoveredKernel("/run/kernel-1.json", "idle", "ipython 9", 12, "a/train.ipynb"),
            "<kernel of a/train.ipynb: idle, ipython 9, pid 12, kernel-1.json>",
        ),
        (
            DiscoveredKernel("http://host/api/kernels/1", "busy", server="http://host/"),
            "<kernel: busy, http://host/api/kernels/1>",
        ),
        (
            DiscoveredKernel("/run/kernel-1.json", "unknown", why="it\nbroke"),
            "<kernel: unknown, kernel-1.json, it broke>",
        ),
    ],
)
def test_a_kernel_is_shown_on_one_line(kernel: DiscoveredKernel, shown: str) -> None:
    assert repr(kernel) == shown


async def test_libraries_are_imported_before_a_kernel_has_to_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An import that takes seconds stops the event loop, and an answer would come too late."""
    done: list[str] = []

    async def ask(*of: Any) -> DiscoveredKernel:
        done.append("asked")
        return DiscoveredKernel(str(of[0]), "dead")

    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(discovery, "import_libraries", lambda: done.append("imported"))
    monkeypatch.setattr(discovery, "_look_at_file", ask)
    (tmp_path / "kernel-1.json").write_text("{}")
    assert [one.state for one in await discovery.kernels()] == ["dead"]
    assert done == ["asked"]  # there is no server
    server = {"url": "http://127.0.0.1:1/", "pid": os.getpid(), "token": ""}
    (tmp_path / "jpserver-1.json").write_text(json.dumps(server))
    await discovery.kernels()
    assert done == ["asked", "imported", "asked"]
