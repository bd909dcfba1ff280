"""The memory and the descriptors that this process may still take.

Rule: texts as real systems have them, with folders of the test's own as control groups; and one
real control group, where the test may make it.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridgehead._shipped.wire import limits as _limits
from bridgehead._shipped.wire.limits import free_memory, group_folders
from support.channels import needs_segments
from support.shared import MIB, in_a_process

pytestmark = needs_segments

CGROUP = "32 31 0:29 {root} {mount} rw,relatime - cgroup cgroup rw,memory\n"
CGROUP2 = "41 31 0:38 {root} {mount} rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
CPU = "33 31 0:30 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"


@pytest.mark.parametrize(
    ("groups", "mounts", "folders"),
    [
        pytest.param(
            "0::/user.slice/user-1.slice/run-7.scope\n",
            CPU + CGROUP2.format(root="/", mount="/sys/fs/cgroup"),
            ["/user.slice/user-1.slice/run-7.scope", "/user.slice/user-1.slice", "/user.slice", ""],
            id="systemd",
        ),
        pytest.param(
            "4:cpu,memory:/slurm/uid_1/job_2\n3:cpuset:/other\n0::/\n",
            CPU + CGROUP.format(root="/", mount="/sys/fs/cgroup/memory"),
            ["/memory/slurm/uid_1/job_2", "/memory/slurm/uid_1", "/memory/slurm", "/memory"],
            id="slurm, version 1",
        ),
        pytest.param(
            "5:memory:/docker/abc\n",
            CGROUP.format(root="/docker/abc", mount="/sys/fs/cgroup/memory"),
            ["/memory"],
            id="docker, version 1",
        ),
        pytest.param(
            "5:memory:/docker/abc/inner\n",
            CGROUP.format(root="/docker/abc", mount="/sys/fs/cgroup/memory"),
            ["/memory/inner", "/memory"],
            id="docker in docker",
        ),
        pytest.param(
            "0::/../../elsewhere\n",
            CGROUP2.format(root="/", mount="/sys/fs/cgroup"),
            [""],
            id="moved out of its namespace",
        ),
        pytest.param("0::/\n", CGROUP2.format(root="/", mount="/sys/fs/cgroup"), [""], id="docker"),
        pytest.param("0::/a\n", CPU, [], id="nothing is mounted"),
    ],
)
def test_the_groups_of_a_process(groups: str, mounts: str, folders: list[str]) -> None:
    found = [folder for _, folder in group_folders(groups, mounts)]
    assert found == [f"/sys/fs/cgroup{folder}" for folder in folders]


def group(folder: Path, limit: str, used: int, cache: int, kind: str = "cgroup2") -> None:
    names = _limits._FILES[kind]
    for name, text in zip(names, (limit, used, None), strict=True):
        if text is not None:
            (folder / name).write_text(f"{text}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{names[2]} {cache}\nactive_file 7\n")


@pytest.mark.parametrize("kind", ["cgroup", "cgroup2"])
def test_the_tightest_group_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    inner = tmp_path / "job" / "step"
    inner.mkdir(parents=True)
    unlimited = "max" if kind == "cgroup2" else str((1 << 63) - 4096)
    group(inner, unlimited, 3 * MIB, 0, kind)
    group(inner.parent, str(9 * MIB), 4 * MIB, MIB, kind)
    group(tmp_path, str(90 * MIB), 5 * MIB, 0, kind)
    text = "0::/job/step" if kind == "cgroup2" else "7:memory:/job/step"
    mount = (CGROUP2 if kind == "cgroup2" else CGROUP).format(root="/", mount=tmp_path)
    read = _limits._read
    files = {"/proc/self/cgroup": text, "/proc/self/mountinfo": mount}
    monkeypatch.setattr(_limits, "_read", lambda path: files.get(path) or read(path))
    assert free_memory() == 6 * MIB
    group(inner.parent, str(9 * MIB), 11 * MIB, MIB, kind)
    assert free_memory() == 0
    (inner.parent / _limits._FILES[kind][1]).unlink()  # one that cannot be read limits nothing
    assert free_memory() == 85 * MIB


def test_the_address_space_counts() -> None:
    found = in_a_process("""
from bridgehead._shipped.wire.limits import free_memory
before = free_memory()
with open("/proc/self/statm") as text:
    used = int(text.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 64 * MIB, used + 64 * MIB))
say([before, free_memory(), Pool(0.5).take([48 * MIB])])
""")
    assert found[0] > 64 * MIB >= found[1] > 16 * MIB
    assert found[2] is None


@contextlib.contextmanager
def real_group(limit: int) -> Iterator[Path]:
    folder = Path(f"/sys/fs/cgroup/memory/bridgehead-{os.getpid()}")
    try:
        folder.mkdir()
        (folder / "memory.limit_in_bytes").write_text(str(limit))
    except OSError as error:
        pytest.skip(f"this process may make no control group of version 1: {error}")
    try:
        yield folder
    finally:
        folder.rmdir()


def test_a_real_group_limits_the_memory() -> None:
    program = "from bridgehead._shipped.wire.limits import free_memory\nprint(free_memory())"
    with real_group(200 * MIB) as folder:
        ran = subprocess.run(
            [
                sys.executable,
                "-c",
                f"import os\nopen('{folder}/cgroup.procs', 'w').write('0')\n{program}",
            ],
            capture_output=True,
            text=True,
        )
        assert ran.returncode == 0, ran.stderr
    assert 50 * MIB < int(ran.stdout) <= 200 * MIB
