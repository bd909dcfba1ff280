"""What the README shows first works as it stands there, and its links lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"
TEXT = README.read_text()


def test_the_first_program_gives_a_table(tmp_path: Path) -> None:
    program = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)[0]
    (tmp_path / "first.py").write_text(program)
    ran = subprocess.run(
        [sys.executable, "-W", "error", "first.py"], cwd=tmp_path, capture_output=True, text=True
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.split() == ["mass", "species", "Adelie", "3700.0", "Gentoo", "5100.0"]


def test_every_link_leads_somewhere() -> None:
    headings = re.findall(r"^#+ (.*)$", TEXT, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
    links = [client for client in re.findall(r"\]\(([^)]+)\)", TEXT) if "://" not in client]
    assert links
    for client in links:
        if client.startswith("#"):
            assert client[1:] in anchors, client
        else:
            assert (README.parent / client).exists(), client
