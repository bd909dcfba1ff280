"""Connection files: which one is meant, whose it is, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bridgehead import KernelNotFound
from bridgehead._kernels.connection_file import find, read
from support.other_user import NOBODY, needs_other_user

FLIP = """
import os, sys
path, theirs, mine = sys.argv[1:]
print("ready", flush=True)
while True:
    os.link(theirs, path + "a"); os.rename(path + "a", path)
    if os.path.lexists(path + "a"):
        os.unlink(path + "a")
    os.symlink(mine, path + "b"); os.rename(path + "b", path)
"""


@needs_other_user
def test_content_and_owner_are_of_the_same_file(tmp_path: Path) -> None:
    """The content is always another user's; in between the path leads to a file of this user."""
    theirs, mine, path = tmp_path / "theirs", tmp_path / "mine", tmp_path / "kernel-1.json"
    theirs.write_text(json.dumps({"theirs": True}))
    mine.write_text("not a connection file")
    os.chown(theirs, NOBODY, NOBODY)
    process = subprocess.Popen(
        [sys.executable, "-c", FLIP, path, theirs, mine], stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        process.stdout.readline()
        seen = 0
        while seen < 300:
            try:
                content = read(path)
            except (OSError, ValueError):
                continue
            seen += 1
            assert content.info == {"theirs": True}
            assert not content.is_own
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("what", ["pipe", "folder", "long", "nested", "list", "text"])
def test_what_is_no_connection_file_is_refused_at_once(tmp_path: Path, what: str) -> None:
    file = tmp_path / "kernel-1.json"
    texts = {
        "long": '{"key": "' + "x" * (1 << 16) + '"}',
        "nested": "[" * 60_000,
        "list": "[]",
        "text": "no JSON",
    }
    if what == "pipe":
        os.mkfifo(file)
    elif what == "folder":
        file.mkdir()
    else:
        file.write_text(texts[what])
    with pytest.raises((OSError, ValueError)):
        read(file)


@pytest.mark.parametrize("unnoticed", [True, False])
def test_reading_may_go_unnoticed(tmp_path: Path, unnoticed: bool) -> None:
    file = tmp_path / "kernel-1.json"
    file.write_text("{}")
    os.utime(file, (1, file.stat().st_mtime))  # before its content changed: any read is noted
    content = read(file, unnoticed=unnoticed)
    assert (content.info, content.is_own, content.used) == ({}, True, 1)
    if unnoticed:
        assert file.stat().st_atime == 1


def test_each_reading_counts_for_the_kernel_used_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Most mounts of Linux note only the first reading of a day, and the first after a change."""
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path))
    files = [tmp_path / f"kernel-{number}.json" for number in range(2)]
    for file in files:
        file.write_text("{}")
        os.utime(file, (1, 1))
    for file in files * 3:
        before = time.time()
        read(file)
        assert find(None) == str(file)
        assert read(file, unnoticed=True).used > before - 1
        assert file.stat().st_mtime == 1


def test_a_file_in_the_current_folder_does_not_hide_one_of_the_runtime_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime, here = tmp_path / "runtime", tmp_path / "here"
    for folder in (runtime, here):
        folder.mkdir()
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(runtime))
    monkeypatch.chdir(here)
    own = runtime / "kernel-1234.json"
    own.write_text("{}")
    for name in (
        "kernel-1234.json",
        "kernel-99.json",
        "1234",
        "1234.json",
        "kernel-1234.json.json",
    ):
        (here / name).write_text("{}")
        os.utime(here / name, (1 << 33, 1 << 33))  # used last
    for existing in (None, "kernel-1234.json", "1234", "1234.json", "kernel-*.json", "ernel-1"):
        assert find(existing) == str(own), existing
    assert find("./kernel-1234.json") == str(here / "kernel-1234.json")
    assert find("kernel-99.json") == str(here / "kernel-99.json")
    assert find("99") == str(here / "kernel-99.json")
    assert find(here / "1234.json") == str(here / "1234.json")
    own.unlink()
    assert find("1234.json") == str(here / "1234.json")
    with pytest.raises(KernelNotFound, match="matches 2 kernels"):
        find("kernel-12*")


def test_the_name_of_a_notebook_means_its_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = tmp_path / "runtime"
    runtime.mkdir()
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(runtime))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KernelNotFound, match=r"There are kernels for: no notebook"):
        find("train.ipynb")
    notebooks = ["/books/train.ipynb", "/books/score.ipynb", "/more/score.ipynb", "", 5]
    for number, notebook in enumerate(notebooks):
        (runtime / f"kernel-{number}.json").write_text(json.dumps({"jupyter_session": notebook}))
    (runtime / "kernel-x.json").write_text("{")
    (tmp_path / "train.ipynb").write_text("{}")  # the notebook itself is no connection file
    for name in ("train.ipynb", "books/train.ipynb", "/books/train.ipynb"):
        assert find(name) == str(runtime / "kernel-0.json")
    assert find("more/score.ipynb") == str(runtime / "kernel-2.json")
    with pytest.raises(KernelNotFound, match=r"2 notebooks .*: /books/score.ipynb, /more/score"):
        find("score.ipynb")
    with pytest.raises(KernelNotFound, match=r"kernels for: /books/score.ipynb, /books/train"):
        find("rain.ipynb")
    with pytest.raises(KernelNotFound, match=r"kernel-0.json \(train.ipynb\), kernel-1.json \(sc"):
        find("train")
    # A server that was killed left the file of an earlier kernel.
    (runtime / "kernel-9.json").write_text(json.dumps({"jupyter_session": "/books/train.ipynb"}))
    os.utime(runtime / "kernel-0.json", (1, 1))
    assert find("train.ipynb") == str(runtime / "kernel-9.json")
