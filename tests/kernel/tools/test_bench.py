"""Test ``bridgehead bench``.

Rule: small objects. Tests check what the command prints, never how fast it was.
"""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from bridgehead import Bridge
from bridgehead._lanes.handshake import LANES
from support.cli import PATIENCE, Ran, bridgehead, bridgehead_process, start_command

SMALL = ("--payloads", "int,dict1k,np1m", "--seconds", "0")
TITLES = {"int": "int", "dict1k": "dict, 1 kB", "np1m": "numpy 1 MB"}
OTHERS = {"memcpy", "pickle", "zmq tcp", "empty cell"}


def worked(*arguments: object) -> Ran:
    ran = bridgehead_process("bench", *arguments)
    assert ran.code == 0, ran.err
    return ran


def failed(*arguments: object, code: int = 1) -> str:
    """Return the only sentence of a failed command."""
    ran = bridgehead("bench", *arguments)
    assert (ran.code, ran.out) == (code, "")
    assert ran.err.startswith("bridgehead: ")
    assert ran.err.count("\n") == 1
    return ran.err


def works(lane: str, left_out: dict[str, str]) -> bool:
    """Return whether a lane was measured; the command says why it left a lane out."""
    return f"lane {lane}" not in left_out


@pytest.fixture(autouse=True, scope="module")
def nothing_left(jupyter_folders: Path) -> Iterator[None]:
    """Check that the commands leave no connection file behind."""
    before = set((jupyter_folders / "run").iterdir())
    yield
    assert set((jupyter_folders / "run").iterdir()) == before


@pytest.mark.slow
def test_the_table_has_a_row_for_each_object_and_peer() -> None:
    ran = worked(*SMALL)
    assert ran.err == ""
    assert not re.search(r" $", ran.out, re.MULTILINE)
    number = r"[\d,.e+-]+"
    titles = "|".join(TITLES.values())
    rows = re.findall(
        rf"^({titles})? +(?:[\d,]+)? +(\D+?)(?: +{number}){{4}}$",
        ran.out,
        re.MULTILINE,
    )
    title, found = "", set()
    for first, peer in rows:
        title = first or title
        found.add((title, peer))
    lanes = {lane for lane in LANES if f"lane {lane}" not in ran.out}
    assert lanes >= {"buffers", "inline"}
    expected = {(title, peer) for title in TITLES.values() for peer in lanes | OTHERS}
    within = {("numpy 1 MB", "pickle"), ("int", "memcpy"), ("dict, 1 kB", "memcpy")}
    assert found == expected - within


@pytest.mark.slow
def test_the_figures_are_written_as_json_and_as_a_picture(tmp_path: Path) -> None:
    picture = tmp_path / "figures.png"
    report = bridgehead("bench", *SMALL, "--json", "--plot", picture).json
    lanes = {lane for lane in LANES if works(lane, report["left_out"])}
    assert set(report["peers"]) == lanes | OTHERS
    rows = {(row["payload"], row["peer"]): row for row in report["figures"]}
    assert set(rows) == {(payload, peer) for payload in TITLES for peer in report["peers"]}
    for (payload, peer), row in rows.items():
        assert row["title"] == TITLES[payload]
        assert row["lane"] == (peer in lanes)
        if row["left_out"]:
            assert peer in ("memcpy", "pickle")
            assert row["push_ms"] is row["pull_ms"] is None
        else:
            assert row["push_ms"] > 0
            assert row["pull_ms"] > 0
            assert row["rounds"] >= 1
    assert rows["int", "buffers"]["bytes"] < 10
    assert 900 < rows["dict1k", "buffers"]["bytes"] < 1100
    assert 1_000_000 < rows["np1m", "buffers"]["bytes"] < 1_001_000
    assert report["machine"]
    assert report["versions"]["python"]
    data = picture.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = (int.from_bytes(data[start : start + 4]) for start in (16, 20))
    assert 800 <= width <= 3000
    assert 500 <= height <= 2000
    assert len(data) > 20_000  # the picture is not empty


@pytest.mark.slow
async def test_a_running_kernel_is_measured_and_left_unchanged() -> None:
    async with Bridge.launch() as bridge:
        await bridge.push(mine=1)
        file = bridge.info.connection_file
        ran = await asyncio.to_thread(worked, *SMALL, "--existing", file, "--json")
        assert any(row["lane"] and row["push_ms"] for row in ran.json["figures"])
        assert [name.name for name in await bridge.names("*")] == ["mine"]
        assert (await bridge.run("1")).execution_count == 1


def test_a_missing_kernel_is_reported_in_one_sentence() -> None:
    assert "nowhere.json" in failed("--existing", "nowhere.json", code=3)


@pytest.mark.parametrize(
    ("file", "why"),
    [
        pytest.param("nowhere/figures.png", "there is no folder", id="no-folder"),
        pytest.param("figures.doc", "its name must end in one of", id="no-format"),
    ],
)
def test_a_picture_that_cannot_be_drawn_is_refused_at_once(
    tmp_path: Path, file: str, why: str
) -> None:
    assert why in failed("--plot", tmp_path / file)


def test_an_unknown_object_is_refused_with_a_list_of_the_known_ones() -> None:
    ran = bridgehead("bench", "--payloads", "int,elephant")
    assert ran.code == 2
    assert "'elephant'" in ran.err
    assert "np100m" in ran.err


def without(module: str, *arguments: str) -> Ran:
    """Run the benchmark in a Python that lacks a module."""
    code = (
        "import importlib.machinery as m, sys; name = sys.argv.pop(1); sys.modules[name] = None; "
        "find = m.PathFinder.find_spec; m.PathFinder.find_spec = staticmethod(lambda n, *a: "
        "None if n.partition('.')[0] == name else find(n, *a)); del sys.modules[name]; "
        "sys.argv[0] = 'bridgehead'; from bridgehead._tools.cli import main; main()"
    )
    command = [sys.executable, "-c", code, module, "bench", *arguments]
    done = subprocess.run(command, capture_output=True, timeout=PATIENCE, check=False)
    return Ran(done.returncode, done.stdout, done.stderr.decode())


def test_without_matplotlib_the_command_says_what_to_install(tmp_path: Path) -> None:
    ran = without("matplotlib", "--plot", str(tmp_path / "figures.png"))
    assert ran.code == 2
    assert ran.err.count("\n") == 1
    assert "--plot needs matplotlib" in ran.err
    assert "pip install 'bridgehead[bench]'" in ran.err


@pytest.mark.slow
def test_without_numpy_the_other_objects_are_measured() -> None:
    ran = without("numpy", *SMALL)
    assert ran.code == 0, ran.err
    assert re.search(r"^int .*buffers", ran.out, re.MULTILINE)
    assert "Left out: numpy 1 MB: numpy is not installed" in ran.out


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT to one process")
@pytest.mark.slow
def test_control_c_ends_all_processes() -> None:
    # The command measures for an hour, so the interrupt always comes during a measurement.
    with start_command("bench", "--payloads", "list1m", "--seconds", "3600") as running:
        process = psutil.Process(running.pid)
        # The children are one kernel for each lane that works, and the server of raw zmq.
        while not any("zmq_server.py" in " ".join(p.cmdline()) for p in process.children()):
            assert running.poll() is None
            time.sleep(0.05)
        time.sleep(0.5)
        children = process.children(recursive=True)
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=120)
    assert running.returncode == 130
    assert b"Traceback" not in err
    _, alive = psutil.wait_procs(children, timeout=30)
    assert alive == []
