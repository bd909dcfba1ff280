"""Test that the benchmark of the checkout, ``python -m tests.bench``, runs.

Rule: the benchmark measures, and leaves out missing peers. The figures are not checked.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]


def test_transfers_are_ratios_and_missing_peers_are_left_out(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    peers = "memcpy,pickle,pipe,zmq,execute,bridgehead:buffers,bridgehead:no-lane,missing"
    options = ["--peers", peers, "--payloads", "int,np1m", "--seconds", "0", "--json", str(file)]
    ran = subprocess.run(
        [sys.executable, "-m", "tests.bench", "transfers", *options],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert "left out: missing: ModuleNotFoundError" in ran.stdout
    assert "left out: bridgehead:no-lane: ValueError" in ran.stdout
    reached = {figure["what"]: figure for figure in json.loads(file.read_text())["transfers"]}
    for other in ("zmq tcp", "execute", "pipe"):
        for payload in ("int", "np1m"):
            for way in ("push", "pull"):
                assert reached[f"{payload} {way}, buffers / {other}"]["value"] > 0
    assert "np1m push, buffers / memcpy" in reached
