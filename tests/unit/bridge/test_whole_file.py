"""Files that are written whole, or stay as they were."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from bridgehead._bridge.whole_file import write_whole


def test_a_new_file_has_the_mode_of_any_other(tmp_path: Path) -> None:
    file, other = tmp_path / "a.json", tmp_path / "other"
    other.touch()
    write_whole(file, b"1")
    assert file.stat().st_mode == other.stat().st_mode
    assert file.read_bytes() == b"1"


def test_a_file_that_cannot_be_written_whole_stays_unchanged(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_whole(file, b"1")
    with pytest.raises(TypeError):
        write_whole(file, "no bytes")  # type: ignore[arg-type]
    assert file.read_bytes() == b"1"
    assert list(tmp_path.iterdir()) == [file]


# The system refuses the file in the middle of a write, as a full disk does.
FULL = """
import resource, signal, sys
from pathlib import Path
from bridgehead._bridge.whole_file import write_whole
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    write_whole(Path(sys.argv[1]), b"n" * 1_000_000)
except OSError as error:
    print(error.strerror)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="the system limits no file's size")
def test_a_disk_without_room_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(b"o" * 50_000)
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(file)], capture_output=True, text=True, check=True
    )
    assert "too large" in done.stdout
    assert file.read_bytes() == b"o" * 50_000
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.skipif(sys.platform == "win32", reason="links need a right there")
def test_a_file_keeps_its_mode_and_its_links(tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    file, link = folder / "a.json", tmp_path / "link.json"
    file.touch(0o600)
    link.symlink_to(Path("elsewhere/a.json"))
    write_whole(link, b"1")
    assert link.is_symlink()
    assert (file.read_bytes(), file.stat().st_mode & 0o777) == (b"1", 0o600)
    link.unlink()
    link.symlink_to(folder / "new.json")  # which is not there yet
    write_whole(link, b"2")
    assert (folder / "new.json").read_bytes() == b"2"


def test_all_names_of_a_file_have_the_new_content(tmp_path: Path) -> None:
    file, other = tmp_path / "a.json", tmp_path / "b.json"
    file.write_bytes(b"old")
    other.hardlink_to(file)
    write_whole(file, b"new")
    assert (file.read_bytes(), other.read_bytes()) == (b"new", b"new")
    assert file.samefile(other)


@pytest.mark.skipif(sys.platform == "win32", reason="links need a right there")
def test_links_in_a_circle_are_an_error_of_the_file(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.symlink_to(two)
    two.symlink_to(one)
    with pytest.raises(OSError) as caught:
        write_whole(one, b"1")
    assert caught.value.errno == errno.ELOOP
    assert {*tmp_path.iterdir()} == {one, two}
    assert one.is_symlink()


def test_a_file_name_may_be_as_long_as_the_system_allows(tmp_path: Path) -> None:
    file = tmp_path / ("a" * 250 + ".json")
    write_whole(file, b"1")
    assert file.read_bytes() == b"1"


AS_ANOTHER_USER = """
import os, sys
from pathlib import Path
from bridgehead._bridge.whole_file import write_whole
if os.getuid() == 0:
    os.setuid(65534)
for name in sys.argv[1:]:
    try:
        write_whole(Path(name), b"new")
        print("written")
    except PermissionError as error:
        print("refused", error.filename == name)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="modes of folders are POSIX's")
def test_rights_of_the_file_decide_and_not_those_of_its_folder() -> None:
    """A file that the user may not write is not replaced, and one that he may is written."""
    with tempfile.TemporaryDirectory() as folder:  # those of pytest are for one user
        own, others = Path(folder, "own"), Path(folder, "others")
        for file, mode in ((own, 0o666), (others, 0o444)):
            file.write_bytes(b"old")
            file.chmod(mode)
        Path(folder).chmod(0o555)
        command = [sys.executable, "-c", AS_ANOTHER_USER, str(own), str(others)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        Path(folder).chmod(0o755)
        assert done.stdout.split("\n")[:2] == ["written", "refused True"]
        assert (own.read_bytes(), others.read_bytes()) == (b"new", b"old")


@pytest.mark.skipif(
    sys.platform == "win32" or os.getuid() != 0, reason="only root has files of another user"
)
def test_a_file_of_another_user_keeps_its_owner() -> None:
    with tempfile.TemporaryDirectory() as folder:  # those of pytest are for one user
        file = Path(folder, "file")
        file.write_bytes(b"old")
        file.chmod(0o4666)
        Path(folder).chmod(0o777)  # so that the other user could replace the file
        command = [sys.executable, "-c", AS_ANOTHER_USER, str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout.split() == ["written"]
        assert (file.read_bytes(), file.stat().st_uid) == (b"new", 0)
        assert [*Path(folder).iterdir()] == [file]


@pytest.mark.skipif(not Path("/dev/stdout").exists(), reason="the system has no /dev/stdout")
def test_a_file_that_is_a_pipe_is_written() -> None:
    code = (
        "from pathlib import Path; from bridgehead._bridge.whole_file import write_whole; "
        "write_whole(Path('/dev/stdout'), b'1')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout == b"1"
