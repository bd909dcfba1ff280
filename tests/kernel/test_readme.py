"""The programs and the links of the README.

Rule: tests read the README itself; they copy nothing from it.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"
TEXT = README.read_text()


def test_the_first_program_prints_a_table(tmp_path: Path) -> None:
    program = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)[0]
    (tmp_path / "first.py").write_text(program)
    ran = subprocess.run(
        [sys.executable, "-W", "error", "first.py"], cwd=tmp_path, capture_output=True, text=True
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.split() == ["mass", "species", "Adelie", "3700.0", "Gentoo", "5100.0"]


WORK = """
from bridgehead import Bridge


async def main():
    async with Bridge.launch() as bridge:
        await work(bridge)


asyncio.run(main())
"""


def test_the_example_of_work_prints_what_it_says(tmp_path: Path) -> None:
    (block,) = re.findall(r"^```python\n((?:(?!```).)*?async def work.*?)^```", TEXT, re.M | re.S)
    (tmp_path / "work.py").write_text(block + WORK)
    ran = subprocess.run(
        [sys.executable, "-W", "error", "work.py"], cwd=tmp_path, capture_output=True, text=True
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    wanted = ["3", "3", "[1, 2, 3]", "3", "(1, 3)", "at work", "[9, 1, 4]", "<Names rows>"]
    assert ran.stdout.splitlines() == wanted


CELLS = """
import asyncio
from bridgehead import Bridge


async def main():
    async with Bridge.launch() as bridge:
        await limited(bridge, "print('at work', rows)")
        await limited(bridge, "while True: pass")


asyncio.run(main())
"""


def test_the_example_of_cells_prints_what_it_says(tmp_path: Path) -> None:
    (block,) = re.findall(
        r"^```python\n((?:(?!```).)*?async def limited.*?)^```", TEXT, re.M | re.S
    )
    block = block.replace("timeout=10", "timeout=2")
    (tmp_path / "cells.py").write_text(block + CELLS)
    ran = subprocess.run(
        [sys.executable, "-W", "error", "cells.py"], cwd=tmp_path, capture_output=True, text=True
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    wanted = ["6 at work [3, 1, 2]", " 0", "0", "1", "2", "2"]
    late = "run timed out after 2 s: the kernel is idle, and the cell was interrupted "
    assert ran.stdout.splitlines() == [*wanted, late, *wanted[2:5], "4"]


USE = """
import copyreg
from bridgehead import SyncBridge

if __name__ == "__main__":
    samples = bytearray(b"12345678" * 1_000_000)
    with SyncBridge.launch() as bridge:
        bridge.push(signal=Signal(8000, samples))
        print(bridge.pull("(signal.rate, len(signal.samples), bytes(signal.samples[:3]))"))
        back = bridge.pull("signal")
        print(type(back).__name__, bytes(back.samples) == samples)
        del Signal.__reduce_ex__
        copyreg.pickle(Signal, lambda s: (Signal, (s.rate, pickle.PickleBuffer(s.samples))))
        buffers = []
        pickle.dumps(Signal(8000, samples), 5, buffer_callback=buffers.append)
        bridge.push(signal=Signal(8000, samples))
        print(len(buffers), bridge.pull("bytes(signal.samples[:3])"))
"""


def test_a_class_of_ones_own_crosses_out_of_band(tmp_path: Path) -> None:
    (block,) = re.findall(r"^```python\n((?:(?!```).)*?PickleBuffer.*?)^```", TEXT, re.M | re.S)
    assert len([line for line in block.splitlines() if line]) <= 8
    (tmp_path / "own.py").write_text(block + USE)
    ran = subprocess.run(
        [sys.executable, "-W", "error", "own.py"], cwd=tmp_path, capture_output=True, text=True
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    wanted = ["(8000, 8000000, b'123')", "Signal True", "1 b'123'"]
    assert ran.stdout.splitlines() == wanted


def test_every_link_has_a_target() -> None:
    headings = re.findall(r"^#+ (.*)$", TEXT, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
    links = [link for link in re.findall(r"\]\(([^)]+)\)", TEXT) if "://" not in link]
    assert links
    for link in links:
        if link.startswith("#"):
            assert link[1:] in anchors, link
        else:
            assert (README.parent / link).exists(), link
