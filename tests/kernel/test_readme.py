"""The first program and the links of the README.

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
