"""Segments of shared memory, without a kernel: pool, leases, seals, and what a fork changes.

Rule: real memory and real faults. What a limit or a fork would do to the test run happens in a
process of its own, whose code is a program in a string and which says what it found in JSON.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import gc
import json
import mmap
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridgehead import _segments
from bridgehead._segments import Maps, Pool, Segment, layout

pytestmark = pytest.mark.skipif(
    not _segments.possible(), reason="this system or this Python has no memfd with seals"
)
KIB, MIB = 1 << 10, 1 << 20


@pytest.fixture
def pool() -> Iterator[Pool]:
    pool = Pool(0.5)
    yield pool
    pool.close()


def handed(maps: Maps, segment: Segment) -> None:
    """Map a segment as if its file had come through a socket."""
    maps.add(segment.number, os.dup(segment.file), segment.capacity, segment.private)


def sent(pool: Pool, maps: Maps, *arrays: np.ndarray[Any, Any]) -> tuple[Segment, list[Any]]:
    """Arrays through a segment and back, as views of it."""
    frames = [memoryview(array).cast("B") for array in arrays]
    sizes = [frame.nbytes for frame in frames]
    segment = pool.take(sizes)
    assert segment is not None
    for _ in segment.fill(frames):
        pass
    if segment.number not in maps.known:
        handed(maps, segment)
    views = maps.lease(segment.number, sizes)
    return segment, [np.frombuffer(v, a.dtype) for v, a in zip(views, arrays, strict=True)]


def released(pool: Pool, maps: Maps) -> list[int]:
    """What the receiver would tell, taken in by the pool."""
    gc.collect()
    numbers = [maps.released.popleft() for _ in range(len(maps.released))]
    for number in numbers:
        segment = pool.segments.get(abs(number))
        if segment is not None:
            pool.give_back(segment, spoilt=number < 0)
    return numbers


def in_a_process(program: str, *, seconds: float = 60) -> Any:
    """What a program says it found; it is run with this interpreter and path."""
    ran = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", PRELUDE + program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    assert ran.returncode == 0, (ran.returncode, ran.stderr)
    return json.loads(ran.stdout.splitlines()[-1])


PRELUDE = """
import errno, gc, json, os, resource, sys
import numpy as np
from bridgehead import _segments
from bridgehead._segments import Maps, Pool, Segment
MIB = 1 << 20

def handed(maps, segment):
    maps.add(segment.number, os.dup(segment.file), segment.capacity, segment.private)

def lent(pool, maps, array):
    frames = [memoryview(array).cast("B")]
    segment = pool.take([array.nbytes])
    for _ in segment.fill(frames):
        pass
    if segment.number not in maps.known:
        handed(maps, segment)
    view, = maps.lease(segment.number, [array.nbytes])
    return segment, np.frombuffer(view, array.dtype)

def say(found):
    print(json.dumps(found), flush=True)

def in_child(work):
    # What a forked child says, and that it ended well.
    back, forth = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(forth, json.dumps(work()).encode())
            os._exit(0)
        finally:
            os._exit(1)
    os.close(forth)
    said = b""
    while part := os.read(back, 65536):
        said += part
    _, status = os.waitpid(child, 0)
    assert status == 0, (status, said)
    return json.loads(said)
"""


# ---------------------------------------------------------------- layout


@given(st.lists(st.integers(0, 1 << 40), max_size=40))
def test_frames_are_apart_and_aligned(sizes: list[int]) -> None:
    offsets, total = layout(sizes)
    end = 0
    for offset, size in zip(offsets, sizes, strict=True):
        assert offset % 64 == 0
        assert offset >= end
        end = offset + size
    assert total >= end
    assert total < sum(sizes) + 64 * len(sizes) + 1


def test_views_are_aligned_writable_and_what_was_written(pool: Pool) -> None:
    maps = Maps()
    arrays = [np.arange(n, dtype=kind) for n in (1, 7, 1000, 99_999) for kind in "bhdD"]
    segment, back = sent(pool, maps, *arrays)
    for array, copy in zip(arrays, back, strict=True):
        assert copy.ctypes.data % 64 == 0
        assert copy.flags.writeable
        assert np.array_equal(copy, array)
        copy[:] = 0
    assert len(pool.segments) == 1
    assert segment.leases == 1


def test_an_empty_frame_among_others(pool: Pool) -> None:
    _, (none, one, last) = sent(pool, Maps(), np.zeros(0), np.arange(10_000.0), np.zeros(0))
    assert none.size == last.size == 0
    assert one.sum() == 49_995_000


# ---------------------------------------------------------------- leases


def test_a_lease_ends_with_the_last_array_and_not_before(pool: Pool) -> None:
    maps = Maps()
    segment, arrays = sent(pool, maps, *[np.full(1000, n) for n in range(50)])
    last = arrays[17][3:5]
    deeper = last.reshape(2, 1).T[0]
    del arrays
    assert released(pool, maps) == []
    del last
    assert released(pool, maps) == []
    assert segment.leases == 1
    assert deeper.tolist() == [17, 17]
    deeper[:] = 4
    del deeper
    assert released(pool, maps) == [segment.number]
    assert segment.leases == 0


def test_a_lease_ends_in_whatever_thread_the_last_array_dies(pool: Pool) -> None:
    maps = Maps()
    segment, arrays = sent(pool, maps, np.arange(100_000))
    holder = [arrays.pop()]
    thread = threading.Thread(target=holder.clear)
    thread.start()
    thread.join()
    assert released(pool, maps) == [segment.number]


def test_a_cycle_keeps_a_lease_until_it_is_collected(pool: Pool) -> None:
    maps = Maps()
    segment, arrays = sent(pool, maps, np.arange(100_000))
    circle: list[Any] = [arrays.pop()]
    circle.append(circle)
    gc.disable()
    try:
        del circle
        assert not maps.released
    finally:
        gc.enable()
    assert released(pool, maps) == [segment.number]


def test_a_segment_that_is_used_is_not_reused(pool: Pool) -> None:
    maps = Maps()
    first, (old,) = sent(pool, maps, np.full(MIB, 1, "u1"))
    part = old[1000:1010]
    del old
    for n in range(2, 22):
        segment, (new,) = sent(pool, maps, np.full(MIB, n, "u1"))
        assert segment is not first
        assert new[0] == n
        del new
        released(pool, maps)
        assert (part == 1).all()
    assert len(pool.segments) == 2
    del part
    released(pool, maps)
    assert {segment.leases for segment in pool.segments.values()} == {0}


def test_what_was_there_before_shows_in_no_later_view(pool: Pool) -> None:
    maps = Maps()
    first, (large,) = sent(pool, maps, np.full(MIB, 255, "u1"))
    del large
    released(pool, maps)
    again, (small,) = sent(pool, maps, np.zeros(MIB // 2, "u1"))
    assert again is first
    assert small.nbytes == MIB // 2
    assert not small.any()


def test_each_of_several_receivers_has_its_own_lease(pool: Pool) -> None:
    """Of what is lent to several, a private mapping is each one's own."""
    segment = pool.take([MIB])
    assert segment is not None
    for _ in segment.fill([memoryview(np.full(MIB, 7, "u1"))]):
        pass
    segment.private, segment.leases = True, 2
    near, far = Maps(), Maps()
    handed(near, segment)
    handed(far, segment)
    one = np.frombuffer(near.lease(segment.number, [MIB])[0], "u1")
    two = np.frombuffer(far.lease(segment.number, [MIB])[0], "u1")
    one[:] = 1
    assert (two == 7).all()
    two[:] = 2
    assert (one == 1).all()
    assert bytes(segment.read([MIB])[0]) == b"\7" * MIB
    del one
    released(pool, near)
    assert segment.leases == 1
    # What the next one gets is what is in the segment, and not what the last one wrote.
    again = np.frombuffer(near.lease(segment.number, [MIB])[0], "u1")
    assert (again == 7).all()
    assert (two == 2).all()


def test_a_lease_outlives_its_maps(pool: Pool) -> None:
    maps = Maps()
    segment, (array,) = sent(pool, maps, np.arange(100_000))
    maps.forget(segment.number)
    pool.close()
    del maps
    gc.collect()
    array += 1
    assert array.sum() == 5_000_050_000


def test_a_view_beyond_the_segment_is_refused(pool: Pool) -> None:
    maps = Maps()
    segment = pool.take([MIB])
    assert segment is not None
    handed(maps, segment)
    for sizes in ([segment.capacity + 1], [1] * (segment.capacity // 64 + 1), [1 << 62, 1 << 62]):
        with pytest.raises(ValueError, match="in a segment of"):
            maps.lease(segment.number, sizes)
    with pytest.raises(KeyError):
        maps.lease(segment.number + 1, [1])
    assert not maps.released


# ---------------------------------------------------------------- the pool


def taken(pool: Pool, *sizes: int) -> list[Segment]:
    found = [pool.take([size]) for size in sizes]
    assert all(found)
    return [segment for segment in found if segment is not None]


def test_the_best_fit_is_reused(pool: Pool) -> None:
    segments = taken(pool, 8 * MIB, 2 * MIB, 4 * MIB)
    for segment in segments:
        pool.give_back(segment)
    assert taken(pool, 3 * MIB) == [segments[2]]
    assert taken(pool, 3 * MIB) == [segments[0]]
    assert taken(pool, 2 * MIB) == [segments[1]]
    assert len(pool.segments) == 3


def test_a_little_object_takes_no_large_segment(pool: Pool) -> None:
    large = taken(pool, 64 * MIB)
    pool.give_back(large[0])
    small = taken(pool, 64 * KIB)
    assert small[0].capacity < MIB
    assert small != large


def test_nearly_the_same_size_fits_again(pool: Pool) -> None:
    for nbytes in (10_000_001, 10_000_000, 10_000_002, 10_000_064):
        pool.give_back(taken(pool, nbytes)[0])
    assert len(pool.segments) == 1


@given(st.integers(1, 1 << 34))
def test_little_is_wasted(nbytes: int) -> None:
    pool = Pool(1.0)
    try:
        segment = pool.take([nbytes])  # what is not written to takes no memory
        if segment is None:
            assert nbytes > _segments.free_memory() - MIB
        else:
            assert nbytes <= segment.capacity <= max(nbytes * 9 // 8, nbytes + mmap.PAGESIZE)
    finally:
        pool.close()


def test_no_more_than_its_share_of_the_free_memory() -> None:
    free = _segments.free_memory()
    pool = Pool(64 * MIB / free)
    try:
        assert pool.take([2 * free]) is None
        first = taken(pool, 20 * MIB)[0]
        assert pool.take([60 * MIB]) is None
        pool.give_back(first)
        # What nobody uses makes room.
        second = taken(pool, 50 * MIB)[0]
        assert list(pool.segments.values()) == [second]
        assert first.file == -1
    finally:
        pool.close()


def test_a_share_of_nothing_is_none() -> None:
    assert Pool(0).take([1]) is None


def test_what_is_idle_is_given_back(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    used, idle = taken(pool, MIB, MIB)
    pool.give_back(idle)
    pool.trim()
    assert len(pool.segments) == 2
    monkeypatch.setattr(_segments, "IDLE", 0.05)
    time.sleep(0.1)
    pool.trim()
    assert list(pool.segments.values()) == [used]
    assert idle.file == -1
    pool.give_back(used)  # it was touched just now
    assert list(pool.segments.values()) == [used]
    time.sleep(0.1)
    pool.trim()
    assert pool.nbytes == 0


class Holder:
    def __init__(self) -> None:
        self.told: list[int] = []

    def gone(self, number: int) -> None:
        self.told.append(number)


def test_whoever_has_it_mapped_is_told_that_it_is_gone(pool: Pool) -> None:
    segment, holder = taken(pool, MIB)[0], Holder()
    segment.holders.append(holder)
    pool.give_back(segment)
    pool.trim(0)
    assert holder.told == [segment.number]


def test_spoilt_memory_is_not_used_again(pool: Pool) -> None:
    segment = taken(pool, MIB)[0]
    segment.leases = 2
    pool.give_back(segment, spoilt=True)
    assert pool.segments  # somebody else still reads it
    pool.give_back(segment, spoilt=True)
    assert not pool.segments
    assert taken(pool, MIB) != [segment]


def test_memory_goes_back_to_the_system(pool: Pool) -> None:
    maps = Maps()

    def shared() -> int:
        with open("/proc/self/status") as lines:
            return next(int(s.split()[1]) for s in lines if s.startswith("RssShmem:"))

    before = shared()
    _, (array,) = sent(pool, maps, np.ones(64 * MIB, "u1"))
    assert shared() - before > 60 * KIB
    del array
    released(pool, maps)
    maps.known.clear()
    pool.trim(0)
    gc.collect()
    assert shared() - before < 4 * KIB


def test_no_file_stays_open(pool: Pool) -> None:
    before = len(os.listdir("/proc/self/fd"))
    maps = Maps()
    for n in range(1, 20):
        segment, arrays = sent(pool, maps, np.ones(n * MIB // 4, "u1"))
        del arrays
        released(pool, maps)
        pool.trim(0)
        maps.forget(segment.number)
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def test_threads_take_and_others_trim(pool: Pool) -> None:
    """What is being filled or lent is never given back below whoever uses it."""
    failures: list[BaseException] = []
    end = time.monotonic() + 3

    def use(value: int) -> None:
        data = np.full(256 * KIB, value, "u1")
        try:
            while time.monotonic() < end and not failures:
                segment = pool.take([data.nbytes])
                assert segment is not None
                assert segment.file >= 0, "a segment that was given back was lent"
                for _ in segment.fill([memoryview(data)]):
                    pass
                assert bytes(segment.read([data.nbytes])[0]) == data.tobytes()
                pool.give_back(segment)
        except BaseException as error:
            failures.append(error)

    def trim() -> None:
        while time.monotonic() < end and not failures:
            pool.trim(0)

    threads = [threading.Thread(target=use, args=(n,)) for n in (1, 2, 3)]
    threads.append(threading.Thread(target=trim))
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not failures, failures


@pytest.mark.parametrize("warm", [False, True])
def test_a_pool_that_is_closed_while_somebody_fills(pool: Pool, warm: bool) -> None:
    """The kernel goes while a thread copies: an OSError, which is understood, or nothing."""
    data = [memoryview(np.ones(_segments.STEP + 1, "u1"))] * 4
    segment = pool.take([frame.nbytes for frame in data])
    assert segment is not None
    if warm:
        for _ in segment.fill(data):
            pass
    steps = segment.fill(data)
    while not next(steps):  # pages are mapped first
        pass
    pool.close()
    with contextlib.suppress(OSError):
        for _ in steps:
            pass


# ---------------------------------------------------------------- seals


def test_nobody_can_truncate_a_segment(pool: Pool) -> None:
    """H2: the peer truncates."""
    maps = Maps()
    segment, (array,) = sent(pool, maps, np.arange(100_000))
    for file in (segment.file, maps.known[segment.number].file):
        for size in (0, segment.capacity - 1, segment.capacity + 1):
            with pytest.raises(PermissionError):
                os.ftruncate(file, size)
        with pytest.raises(PermissionError):
            fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
        with pytest.raises(PermissionError):  # nor through another description of it
            os.truncate(f"/proc/self/fd/{file}", 0)
    assert array.sum() == 4_999_950_000


@pytest.mark.parametrize("seals", [0, fcntl.F_SEAL_GROW, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL])
def test_what_could_be_truncated_is_refused(seals: int) -> None:
    """H2: a segment without the seal would be SIGBUS one day."""
    file = os.memfd_create("loose", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(file, MIB)
    if seals:
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, seals)
    maps, before = Maps(), os.fstat(file).st_ino
    with pytest.raises(OSError, match="could be truncated"):
        maps.add(1, file, MIB, False)
    assert not maps.known
    gc.collect()
    with pytest.raises(OSError):  # its file was closed
        assert os.fstat(file).st_ino != before
        raise OSError


def test_a_segment_smaller_than_is_said_is_refused(pool: Pool) -> None:
    segment = taken(pool, MIB)[0]
    with pytest.raises(OSError, match="could be truncated"):
        Maps().add(segment.number, os.dup(segment.file), segment.capacity + 1, False)


@pytest.mark.parametrize("what", ["a pipe", "a file", "a memfd that refuses seals"])
def test_another_kind_of_file_is_refused(what: str, tmp_path: Any) -> None:
    if what == "a pipe":
        file, other = os.pipe()
        os.close(other)
    elif what == "a file":
        (tmp_path / "f").write_bytes(bytes(MIB))
        file = os.open(tmp_path / "f", os.O_RDWR)
    else:
        file = os.memfd_create("loose", os.MFD_CLOEXEC)
        os.ftruncate(file, MIB)
    with pytest.raises(OSError):
        Maps().add(1, file, MIB, False)


@pytest.mark.parametrize("capacity", [-1, 1 << 62, (1 << 64) - 1])
def test_a_capacity_that_no_machine_has_is_refused(pool: Pool, capacity: int) -> None:
    segment, maps = taken(pool, MIB)[0], Maps()
    with pytest.raises((OSError, ValueError, OverflowError)):
        maps.add(segment.number, os.dup(segment.file), capacity, False)
    assert not maps.known


# ---------------------------------------------------------------- no memory


def test_a_limit_on_the_size_of_files() -> None:
    """H1: the system refuses the pages; nothing is left, and smaller ones go on."""
    found = in_a_process("""
resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, MIB))
pool = Pool(0.5)
large, files = pool.take([64 * MIB]), len(os.listdir("/proc/self/fd"))
again = [pool.take([64 * MIB]) for _ in range(5)]
small = pool.take([MIB // 2])
for _ in small.fill([memoryview(bytes(MIB // 2))]):
    pass
leaked = len(os.listdir("/proc/self/fd")) - files
say([large, again, small is not None, leaked, len(pool.segments)])
""")
    assert found == [None, [None] * 5, True, 1, 1]


def test_no_file_descriptor_left() -> None:
    """H1: EMFILE is no memory, and no error of anybody's."""
    found = in_a_process("""
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
pool, many = Pool(0.5), []
try:
    while True:
        many.append(os.open("/dev/null", os.O_RDONLY))
except OSError as error:
    assert error.errno == errno.EMFILE
none = pool.take([MIB])
os.close(many.pop())
os.close(many.pop())
say([none, pool.take([MIB]) is not None, len(pool.segments)])
""")
    assert found == [None, True, 1]


def test_no_address_space_left() -> None:
    """H1: ENOMEM while a segment that is used again is mapped, and where one is received."""
    found = in_a_process("""
pool, maps = Pool(0.9), Maps()
segment = pool.take([64 * MIB])
data = [memoryview(bytes(64 * MIB))]
for _ in segment.fill(data):
    pass
with open("/proc/self/statm") as text:
    used = int(text.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 16 * MIB, used + 16 * MIB))
found = []
try:
    handed(maps, segment)
except (OSError, ValueError, OverflowError):
    found.append("refused")
gc.collect()
try:
    for _ in segment.fill(data):
        pass
    found.append("filled")
except OSError:
    found.append("OSError")
small = pool.take([MIB])
for _ in small.fill([memoryview(bytes(MIB))]):
    pass
say(found)
""")
    assert found == ["refused", "OSError"]


def test_a_full_file_system_for_shared_memory() -> None:
    """H1: memfds live in the kernel's own mount: what /dev/shm is, or how full, is no matter."""
    found = in_a_process("""
pool, maps = Pool(0.5), Maps()
before = sorted(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else []
segment, array = lent(pool, maps, np.ones(8 * MIB, "u1"))
after = sorted(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else []
say([before == after, int(array.sum())])
""")
    assert found == [True, 8 * MIB]


# ---------------------------------------------------------------- forks


@pytest.mark.parametrize("warm", [False, True])
def test_a_child_writes_into_its_own(warm: bool) -> None:
    found = in_a_process(f"""
pool, maps = Pool(0.5), Maps()
segment, array = lent(pool, maps, np.zeros(MIB, "u1"))
if {warm}:
    del array
    gc.collect()
    pool.give_back(segment)
    maps.released.clear()
    segment, array = lent(pool, maps, np.full(MIB, 5, "u1"))
    assert len(pool.segments) == 1
array[:] = 1

def child():
    seen = int(array.sum())
    array[:] = 9
    return seen, int(array.sum())

seen = in_child(child)
here = int(array.sum())
array[:] = 3
say([*seen, here, int(array.sum()), array.ctypes.data % 64])
""")
    assert found == [MIB, 9 * MIB, MIB, 3 * MIB, 0]


def test_the_parent_writes_and_the_child_sees_nothing_of_it() -> None:
    found = in_a_process("""
pool, maps = Pool(0.5), Maps()
segment, array = lent(pool, maps, np.ones(MIB, "u1"))
go, ready = os.pipe()

def child():
    assert os.read(go, 1)
    return int(array.sum())

import threading
def write():
    import time
    time.sleep(0.1)
    array[:] = 7
    os.write(ready, b"x")
threading.Thread(target=write).start()
say([in_child(child), int(array.sum())])
""")
    assert found == [MIB, 7 * MIB]


def test_what_a_fork_made_private_is_not_used_again() -> None:
    """Its sender writes into the file, and the receiver would see nothing of it."""
    found = in_a_process("""
pool, maps = Pool(0.5), Maps()
segment, array = lent(pool, maps, np.ones(MIB, "u1"))
in_child(lambda: 0)
part = array[5:9]
del array
gc.collect()
quiet = list(maps.released)
del part
gc.collect()
told = list(maps.released)
say([quiet, [number + segment.number for number in told], list(maps.known)])
""")
    assert found == [[], [0], []]


def test_what_arrives_after_a_fork_is_shared_again_and_right() -> None:
    found = in_a_process("""
pool, maps = Pool(0.5), Maps()
sums = []
for n in range(1, 9):
    segment, array = lent(pool, maps, np.full(MIB, n, "u1"))
    child = in_child(lambda: int(array.sum())) if n % 2 else None
    array += 1
    sums.append([child, int(array.sum()) // MIB])
    del array
    gc.collect()
    for number in [maps.released.popleft() for _ in range(len(maps.released))]:
        pool.give_back(pool.segments[abs(number)], spoilt=number < 0)
say([sums, len(pool.segments)])
""")
    assert found[0] == [[n * MIB if n % 2 else None, n + 1] for n in range(1, 9)]
    assert found[1] <= 2


def test_an_idle_mapping_is_not_spoilt_by_a_fork() -> None:
    """No array of anybody's is in it: there is nothing to keep apart."""
    found = in_a_process("""
pool, maps = Pool(0.5), Maps()
segment, array = lent(pool, maps, np.ones(MIB, "u1"))
del array
gc.collect()
pool.give_back(segment)
in_child(lambda: 0)
again, array = lent(pool, maps, np.full(MIB, 2, "u1"))
say([again is segment, int(array.sum())])
""")
    assert found == [True, 2 * MIB]


def test_a_child_that_ends_gives_nothing_back() -> None:
    """Its copies of leases are no leases: the segment stays the parent's."""
    found = in_a_process("""
pool, maps = Pool(0.5), Maps()
segment, array = lent(pool, maps, np.ones(MIB, "u1"))

def child():
    global array
    del array
    gc.collect()
    pool.trim(0)
    pool.close()
    return 0

in_child(child)
array += 1
say([segment.leases, list(maps.released), int(array.sum())])
""")
    assert found == [1, [], 2 * MIB]


def test_a_grandchild_and_a_second_child() -> None:
    found = in_a_process("""
pool, maps = Pool(0.5), Maps()
segment, array = lent(pool, maps, np.ones(MIB, "u1"))

def child():
    array[:] = 2
    def grandchild():
        array[:] = 3
        return int(array[0])
    return [in_child(grandchild), int(array[0])]

first = in_child(child)
second = in_child(lambda: int(array[0]))
say([first, second, int(array[0])])
""")
    assert found == [[3, 2], 1, 1]


def test_a_hundred_forks_cost_no_mappings_or_files() -> None:
    found = in_a_process("""
pool, maps = Pool(0.5), Maps()
segment, array = lent(pool, maps, np.ones(MIB, "u1"))
in_child(lambda: 0)
def counts():
    with open("/proc/self/maps") as lines:
        return len(lines.readlines()), len(os.listdir("/proc/self/fd"))
before = counts()
for _ in range(100):
    in_child(lambda: 0)
after = counts()
gone = 2 * 100  # ends of pipes of the children that in_child leaves open
say([after[0] - before[0] < 10, after[1] - before[1] <= gone])
""")
    assert found == [True, True]


def test_subprocesses_inherit_nothing(pool: Pool) -> None:
    maps = Maps()
    sent(pool, maps, np.ones(MIB, "u1"))
    listed = subprocess.run(
        [sys.executable, "-c", "import os\nfor n in range(3, 64):\n"
         " try: print(os.readlink(f'/proc/self/fd/{n}'))\n except OSError: pass"],
        capture_output=True, text=True, close_fds=False, check=True,
    ).stdout  # fmt: skip
    assert "bridgehead" not in listed


def test_a_segment_of_many_frames(pool: Pool) -> None:
    arrays = [np.full(513 + n % 7, n) for n in range(3000)]
    maps = Maps()
    segment, back = sent(pool, maps, *arrays)
    assert all(int(array[0]) == n for n, array in enumerate(back))
    assert len(pool.segments) == 1
    del back
    assert released(pool, maps) == [segment.number]


@settings(max_examples=30)
@given(st.lists(st.integers(0, 3 * KIB), min_size=1, max_size=8).filter(any), st.integers(0, 3))
def test_any_frames_there_and_back(sizes: list[int], times: int) -> None:
    pool, maps = Pool(0.5), Maps()
    try:
        for n in range(times + 1):
            frames = [bytes([(n + at) % 256]) * size for at, size in enumerate(sizes)]
            segment = pool.take(sizes)
            assert segment is not None
            for _ in segment.fill([memoryview(frame) for frame in frames]):
                pass
            if segment.number not in maps.known:
                handed(maps, segment)
            views: Sequence[memoryview] = maps.lease(segment.number, sizes)
            assert [bytes(view) for view in views] == frames
            assert [bytes(copy) for copy in segment.read(sizes)] == frames
            del views
            released(pool, maps)
    finally:
        pool.close()


def test_the_sender_sees_nothing_of_what_it_lent(pool: Pool) -> None:
    """What was sent is a copy: neither side's arrays show in the other's."""
    mine = np.zeros(MIB, "u1")
    _, (theirs,) = sent(pool, Maps(), mine)
    theirs[:] = 1
    assert not mine.any()
    mine[:] = 2
    assert (theirs == 1).all()


def test_the_address_is_that_of_the_mapping(pool: Pool) -> None:
    maps = Maps()
    segment, (array,) = sent(pool, maps, np.ones(MIB, "u1"))
    mapping = maps.known[segment.number]
    start = ctypes.addressof(mapping.exporter.from_buffer(mapping.map))
    assert array.ctypes.data == start
    assert start % mmap.PAGESIZE == 0
