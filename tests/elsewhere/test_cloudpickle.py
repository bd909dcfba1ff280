"""cloudpickle's own tests, with a real kernel in each round trip.

Rule: the tests come with the source distribution of cloudpickle 2.2.1, the last that has them; the
cloudpickle that they test is the one that is installed. See ``support/round_trips.py``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path
from xml.etree import ElementTree

import pytest

VERSION = "2.2.1"
LEAST = 178  # of its cases make a round trip that succeeds
HERE = Path(__file__).parents[1]
ALIKE = ("CloudPickleTest", "Protocol2CloudPickleTest")  # the same cases, with another protocol

# By name, why a case fails. It is no fault of bridgehead's.
FAIL = {
    "test_pickling_file_handles": "sys.stderr crosses by name; ipykernel's cannot be pickled",
}
# What cloudpickle 3 does not have any more.
OLD = {
    "from cloudpickle.compat import pickle": "import pickle",
    "import _make_empty_cell, cell_set": "import _make_empty_cell",
    "cell_set(cell, ob)": "cell.cell_contents = ob",
}

pytestmark = pytest.mark.elsewhere


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Return a folder with cloudpickle's tests, and without its modules."""
    wanted = ("--no-deps", "--no-binary", "cloudpickle", f"cloudpickle=={VERSION}")
    pip = (sys.executable, "-m", "pip", "download", "--disable-pip-version-check")
    _run([*pip, "--dest", str(tmp_path), *wanted], tmp_path)
    folder = f"cloudpickle-{VERSION}"
    with tarfile.open(tmp_path / f"{folder}.tar.gz") as archive:
        members = [one for one in archive if one.name.startswith(f"{folder}/tests/")]
        archive.extractall(tmp_path, members, filter="data")
    for file in (tmp_path / folder / "tests").glob("*.py"):
        text = file.read_text()
        for old, new in OLD.items():
            text = text.replace(old, new)
        file.write_text(text)
    return tmp_path / folder


def test_cloudpickles_own_tests_pass_with_their_round_trips_through_a_kernel(source: Path) -> None:
    """L3, L4, L12."""
    outcomes = _outcomes(source, "-p", "support.round_trips")
    trips = {case for case, (count, _) in outcomes.items() if count}
    failed = {case for case in trips if outcomes[case][1]}
    known = {f"{of}::{name}" for name in FAIL for of in ALIKE}
    if others := failed - known:
        alone = _outcomes(source, "-k", " or ".join({case.split("::")[-1] for case in others}))
        others -= {case for case, (_, fails) in alone.items() if fails}  # without a kernel, too
    assert not others, {case: outcomes[case][1] for case in others}
    assert failed >= known
    assert len(trips - failed) >= LEAST


def _outcomes(source: Path, *options: str) -> dict[str, tuple[int, str]]:
    """Return of each case its number of round trips, and why it fails, or ""."""
    report = source / "report.xml"
    # Without capturing, since sys.stderr of pytest is of a class that cloudpickle does not know.
    pytest_ = (sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider")
    written = ("-o", "junit_family=xunit1", "--junitxml", str(report))
    _run([*pytest_, *written, *options, "tests/cloudpickle_test.py"], source, 0, 1)
    return {
        "::".join([*case.get("classname", "").split(".")[2:], case.get("name", "")]): (
            sum(int(one.get("value", "")) for one in case.iter("property")),
            "".join(f"{one.get('message')}\n{one.text}" for one in case.iter("failure")),
        )
        for case in ElementTree.parse(report).iter("testcase")
    }


def _run(command: list[str], folder: Path, *codes: int) -> None:
    """Run a command; fail with what it printed unless it ends with 0 or one of the codes."""
    packages = [folder, folder / "tests", folder / "tests" / "cloudpickle_testpkg", HERE]
    path = os.pathsep.join([*map(str, packages), os.environ.get("PYTHONPATH", "")])
    ran = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if ran.returncode not in (0, *codes):
        reason = f"{' '.join(command)} ended with {ran.returncode}"
        pytest.fail(f"{reason}:\n{ran.stdout}", pytrace=False)
