"""The table of kernels in the documentation, row by row.

Rule: no row is written by hand. ``pytest -m elsewhere -k table --write`` on Python 3.11 writes the
results of the survey to the page; without ``--write``, the page must contain them.
"""

from __future__ import annotations

import sys

import pytest

from support.elsewhere import NEWEST, OLDEST, TENTH, Elsewhere
from support.survey import survey, version, write, written

pytestmark = pytest.mark.elsewhere
CLIENT = (3, 11)  # it decides which objects can cross

# The kernels of the table: the distribution of each, and how many digits of its version count.
ROWS = {
    "python3": ("ipykernel", 1),
    "ipykernel6": ("ipykernel", 2),
    TENTH: ("ipykernel", 2),
    OLDEST: ("ipykernel", 2),
    NEWEST: ("ipykernel", 1),
    "bare": ("ipykernel", 1),
    "spyder": ("spyder-kernels", 1),
    "xpython": ("xeus-python", 2),
    "xpython-raw": ("xeus-python", 2),
    "bash": ("bash_kernel", 2),
}
MORE = {"bare": ", with neither cloudpickle nor numpy", "xpython-raw": ", raw"}
seen: dict[str, tuple[str, ...]] = {}


@pytest.mark.skipif(sys.version_info[:2] != CLIENT, reason="the table is what Python 3.11 sees")
@pytest.mark.parametrize("name", ROWS)
async def test_the_table_has_the_result_of_the_survey(
    elsewhere: Elsewhere, name: str, request: pytest.FixtureRequest
) -> None:
    kernel = name if name == "python3" else elsewhere(name)
    python = sys.executable if name == "python3" else elsewhere.python(name)
    distribution, digits = ROWS[name]
    release = ".".join(map(str, version(python, distribution)[:digits]))
    seen[name] = await survey(kernel, f"{distribution} {release}{MORE.get(name, '')}")
    if not request.config.getoption("--write"):
        assert seen[name] in written()


def test_the_table_has_a_row_for_each_kernel(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--write"):
        missing = set(ROWS) - set(seen)
        assert not missing, "--write needs the results of all kernels"
        write([seen[name] for name in ROWS])
    kernels = [row[:2] for row in written()]
    assert len(kernels) == len(set(kernels)) == len(ROWS)
