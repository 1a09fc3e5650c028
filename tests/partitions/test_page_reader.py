"""Pages come from a file into the arena, right and each once: by the kernel in the background, or at once."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import random
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from partitions import page_reader
from partitions.page import PAGE_BYTES
from partitions.page_reader import NO_FRAME, RUN_PAGES, PageReader

PLACES = 200
FRAMES = 256
UNTOUCHED = b"\xa5" * PAGE_BYTES


def page(place: int) -> bytes:
    """Differs from every other place's, also in each 512-byte sector."""
    return b"".join((place << 16 | sector).to_bytes(8, "little") * 64 for sector in range(PAGE_BYTES // 512))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "pages"
    file.write_bytes(b"".join(page(place) for place in range(PLACES)))
    return file


@pytest.fixture
def memory() -> mmap.mmap:
    memory = mmap.mmap(-1, FRAMES * PAGE_BYTES)
    memory[:] = UNTOUCHED * FRAMES
    return memory


def frame_of(memory: mmap.mmap, frame: int) -> bytes:
    return memory[frame * PAGE_BYTES : (frame + 1) * PAGE_BYTES]


Opens = Callable[..., PageReader]


@pytest.fixture(params=["in the background", "at once"])
def opens(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Opens]:
    """Opens readers of the one kind or the other, and closes them."""
    opened: list[PageReader] = []

    def open_reader(path: Path, memory: mmap.mmap, depth: int = 64) -> PageReader:
        if request.param == "at once":
            monkeypatch.setattr(page_reader, "_numbers", lambda: None)
        reader = PageReader(path, memory, depth=depth)
        opened.append(reader)
        if request.param == "in the background" and not reader.is_asynchronous:
            pytest.skip("no Linux AIO with O_DIRECT here")
        assert reader.is_asynchronous == (request.param == "in the background")
        return reader

    yield open_reader
    for reader in opened:
        reader.close()


@pytest.fixture
def asynchronous(path: Path, memory: mmap.mmap) -> Iterator[PageReader]:
    reader = PageReader(path, memory)
    if not reader.is_asynchronous:
        reader.close()
        pytest.skip("no Linux AIO with O_DIRECT here")
    yield reader
    reader.close()


def drain(reader: PageReader) -> list[int]:
    deadline = time.monotonic() + 10
    tags: list[int] = []
    while reader.in_flight:
        assert time.monotonic() < deadline
        tags += reader.wait(10)
    return tags


def test_the_control_blocks_have_the_sizes_that_the_kernel_gives_them() -> None:
    assert page_reader._IOCB.size == 64
    assert page_reader._EVENT.size == 32


@pytest.mark.parametrize("is_polled", [True, False])
def test_every_page_arrives_in_its_frame_under_its_tag_once(
    opens: Opens, path: Path, memory: mmap.mmap, is_polled: bool
) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    rng = random.Random(seed)
    reader = opens(path, memory)
    deadline = time.monotonic() + 20
    for _ in range(5):
        memory[:] = UNTOUCHED * FRAMES
        frames = rng.sample(range(FRAMES), PLACES)
        places = rng.sample(range(PLACES), PLACES)
        tags = [rng.randrange(1 << 63) for _ in range(PLACES - 2)] + [0, (1 << 63) - 1]
        waiting = list(zip(tags, places, frames, strict=True))
        expected = {tag: (place, frame) for tag, place, frame in waiting}
        arrived: list[int] = []
        while len(arrived) < PLACES:
            assert time.monotonic() < deadline
            count = min(reader.room, rng.randrange(1, 65), len(waiting))
            reader.start(waiting[:count])
            del waiting[:count]
            assert reader.room + reader.in_flight == 64
            got = reader.finished() if is_polled else reader.wait(10)
            for tag in got:
                place, frame = expected[tag]
                assert frame_of(memory, frame) == page(place)
            arrived += got
        assert sorted(arrived) == sorted(tags)
        assert (reader.in_flight, reader.room) == (0, 64)
        for frame in set(range(FRAMES)) - set(frames):
            assert frame_of(memory, frame) == UNTOUCHED


def test_more_reads_than_room_are_refused_whole(opens: Opens, path: Path, memory: mmap.mmap) -> None:
    reader = opens(path, memory, depth=4)
    with pytest.raises(ValueError, match="5 reads, but there is room for 4"):
        reader.start([(tag, tag, tag) for tag in range(5)])
    assert reader.room == 4
    reader.start([(tag, tag, tag) for tag in range(3)])
    assert (reader.in_flight, reader.room) == (3, 1)  # as long as the tags are not handed out
    with pytest.raises(ValueError, match="2 reads, but there is room for 1"):
        reader.start([(8, 8, 8), (9, 9, 9)])
    assert sorted(drain(reader)) == [0, 1, 2]
    assert frame_of(memory, 8) == UNTOUCHED


@pytest.mark.parametrize("frame", [-1, FRAMES])
def test_a_frame_outside_the_arena_is_refused(opens: Opens, path: Path, memory: mmap.mmap, frame: int) -> None:
    reader = opens(path, memory)
    with pytest.raises(ValueError, match="outside the arena"):
        reader.start([(0, 0, frame)])
    with pytest.raises(ValueError, match="outside the arena"):
        reader.read(0, frame)
    assert reader.in_flight == 0


def test_nothing_to_read_is_nothing_to_wait_for(opens: Opens, path: Path, memory: mmap.mmap) -> None:
    reader = opens(path, memory)
    reader.start([])
    began = time.monotonic()
    assert reader.finished() == []
    assert reader.wait(30) == []
    assert time.monotonic() - began < 10


def test_a_read_and_an_image_come_now_beside_others(opens: Opens, path: Path, memory: mmap.mmap) -> None:
    reader = opens(path, memory)
    reader.start([(tag, tag, tag) for tag in range(64)])
    reader.read(150, 100)
    assert frame_of(memory, 100) == page(150)
    assert frame_of(memory, 99) == frame_of(memory, 101) == UNTOUCHED
    first, second = reader.image(151), reader.image(0)
    assert first == page(151)
    assert second == page(0)
    assert sorted(drain(reader)) == list(range(64))
    assert all(frame_of(memory, frame) == page(frame) for frame in range(64))


def test_a_page_written_a_moment_ago_is_read_as_it_was_written(opens: Opens, path: Path, memory: mmap.mmap) -> None:
    """It is written through the system's cache, which O_DIRECT goes around."""
    reader = opens(path, memory)
    with path.open("r+b", buffering=0) as file:
        for place in (3, PLACES):  # one over an old page, one beyond the old end
            os.pwrite(file.fileno(), page(7000 + place), place * PAGE_BYTES)
    reader.start([(0, 3, 0), (1, PLACES, 1)])
    assert sorted(drain(reader)) == [0, 1]
    assert frame_of(memory, 0) == page(7003)
    assert frame_of(memory, 1) == page(7000 + PLACES)


@pytest.mark.parametrize("left", [0, 1, 4096, 8191])
def test_a_page_that_the_file_ends_in_is_an_error(opens: Opens, path: Path, memory: mmap.mmap, left: int) -> None:
    os.truncate(path, 9 * PAGE_BYTES + left)
    reader = opens(path, memory)
    message = rf"{path} offset {9 * PAGE_BYTES}: {left} bytes instead of a page"
    with pytest.raises(OSError, match=message) as error:
        reader.read(9, 0)
    assert error.value.errno == errno.EIO
    with pytest.raises(OSError, match=message):
        reader.image(9)
    reader.start([(tag, tag, tag) for tag in (8, 9)])
    with pytest.raises(OSError, match=message) as error:
        drain(reader)
    assert error.value.errno == errno.EIO


def test_each_failure_is_told_once_and_the_other_reads_are_not_lost(
    opens: Opens, path: Path, memory: mmap.mmap
) -> None:
    os.truncate(path, 10 * PAGE_BYTES)
    reader = opens(path, memory)
    reader.start([(place, place, place) for place in range(14)])
    tags: list[int] = []
    failed: list[str] = []
    deadline = time.monotonic() + 10
    while reader.in_flight:
        assert time.monotonic() < deadline
        try:
            tags += reader.wait(10)
        except OSError as error:
            failed.append(str(error))
    assert sorted(tags) == list(range(10))
    assert sorted(failed) == sorted(
        f"[Errno {errno.EIO}] {path} offset {place * PAGE_BYTES}: 0 bytes instead of a page" for place in range(10, 14)
    )
    assert reader.room == 64
    reader.start([(5, 5, 50)])
    assert drain(reader) == [5]
    assert frame_of(memory, 50) == page(5)


def test_a_file_that_may_not_be_read_is_an_error_that_says_where(opens: Opens, path: Path, memory: mmap.mmap) -> None:
    reader = opens(path, memory)
    writable = os.open(path, os.O_WRONLY)
    os.dup2(writable, reader._fd)
    os.close(writable)
    message = rf"{path} offset {2 * PAGE_BYTES}: Bad file descriptor"
    for failing in (lambda: reader.read(2, 0), lambda: reader.image(2)):
        with pytest.raises(OSError, match=message) as error:
            failing()
        assert error.value.errno == errno.EBADF
    reader.start([(1, 2, 3)])
    assert (reader.in_flight, reader.room) == (1, 63)
    with pytest.raises(OSError, match=message) as error:
        reader.wait(10)
    assert error.value.errno == errno.EBADF
    assert reader.finished() == []


def test_an_error_that_the_kernel_meets_while_reading_says_where(asynchronous: PageReader, memory: mmap.mmap) -> None:
    """A frame that the kernel may not write to."""
    libc = ctypes.CDLL(None, use_errno=True)
    start = asynchronous._arena_at + 20 * PAGE_BYTES
    assert libc.mprotect(ctypes.c_void_p(start), ctypes.c_size_t(PAGE_BYTES), 1) == 0
    asynchronous.start([(1, 11, 20)])
    with pytest.raises(OSError, match=rf"pages offset {11 * PAGE_BYTES}: Bad address") as error:
        drain(asynchronous)
    assert error.value.errno == errno.EFAULT
    assert frame_of(memory, 20) == UNTOUCHED


def test_waiting_ends_with_its_time(asynchronous: PageReader, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel is not told of these reads, so none of them ever ends."""
    monkeypatch.setattr(asynchronous, "_io_submit", lambda context, count, pointers: count)
    asynchronous.start([(0, 0, 0), (1, 1, 1)])
    for timeout_s in (0.05, 0, -1):
        began = time.monotonic()
        assert asynchronous.wait(timeout_s) == []
        assert max(timeout_s, 0) <= time.monotonic() - began < 5
    assert asynchronous.in_flight == 2


def test_what_is_done_is_not_kept_waiting_for_the_others(
    asynchronous: PageReader, memory: mmap.mmap, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first read never ends, the second one is refused by the kernel."""

    def takes_one(context: int, count: int, pointers: int) -> int:
        ctypes.set_errno(errno.EAGAIN)
        return 1 if count == 2 else -1

    monkeypatch.setattr(asynchronous, "_io_submit", takes_one)
    asynchronous.start([(0, 0, 0), (1, 1, 1)])
    began = time.monotonic()
    assert asynchronous.wait(5) == [1]
    assert time.monotonic() - began < 4
    assert frame_of(memory, 1) == page(1)
    assert asynchronous.in_flight == 1


def test_a_signal_does_not_end_the_waiting(
    asynchronous: PageReader, memory: mmap.mmap, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = asynchronous._io_wait
    interrupted = 0

    def interrupted_twice(*arguments: int) -> int:
        nonlocal interrupted
        if interrupted == 2:
            return waits(*arguments)
        interrupted += 1
        ctypes.set_errno(errno.EINTR)
        return -1

    monkeypatch.setattr(asynchronous, "_io_wait", interrupted_twice)
    asynchronous.start([(7, 3, 4)])
    assert asynchronous.wait(10) == [7]
    assert interrupted == 2
    assert frame_of(memory, 4) == page(3)


def test_waiting_that_fails_is_an_error(asynchronous: PageReader, monkeypatch: pytest.MonkeyPatch) -> None:
    poll = asynchronous._io_poll
    monkeypatch.setattr(asynchronous, "_io_poll", lambda context, *arguments: poll(1, *arguments))
    asynchronous.start([(0, 0, 0)])
    with pytest.raises(OSError, match="io_getevents: Invalid argument"):
        asynchronous.finished()


@pytest.mark.parametrize(
    ("answers", "in_background"),
    [
        ([10, 10, 10, 10, 10, 14], 64),  # fewer than asked, over and over
        ([-errno.EINTR, 64], 64),
        ([20, -errno.EINTR, -errno.EAGAIN], 20),
        ([-errno.EAGAIN], 0),
        ([63, 0], 63),
    ],
)
def test_reads_that_the_kernel_does_not_take_are_not_lost(
    asynchronous: PageReader,
    memory: mmap.mmap,
    monkeypatch: pytest.MonkeyPatch,
    answers: list[int],
    in_background: int,
) -> None:
    submit = asynchronous._io_submit
    taken = 0

    def reluctant(context: int, count: int, pointers: int) -> int:
        nonlocal taken
        answer = answers.pop(0)
        if answer < 0:
            ctypes.set_errno(-answer)
            return -1
        if answer:
            assert submit(context, answer, pointers) == answer
        taken += answer
        return answer

    monkeypatch.setattr(asynchronous, "_io_submit", reluctant)
    asynchronous.start([(1000 + at, 100 + at, 2 * at) for at in range(64)])
    assert answers == []
    assert asynchronous.in_flight == 64
    assert sorted(drain(asynchronous)) == list(range(1000, 1064))
    assert taken == in_background
    for at in range(64):
        assert frame_of(memory, 2 * at) == page(100 + at)
    monkeypatch.undo()
    assert asynchronous.room == 64
    asynchronous.start([(at, at, at) for at in range(64)])  # every iocb came back, each once
    assert sorted(drain(asynchronous)) == list(range(64))
    assert all(frame_of(memory, at) == page(at) for at in range(64))


def test_the_process_works_while_pages_are_read(asynchronous: PageReader, path: Path) -> None:
    kind = subprocess.run(["stat", "-f", "-c", "%T", path], capture_output=True, text=True, check=True).stdout.strip()
    if kind == "tmpfs":
        pytest.skip("tmpfs takes O_DIRECT, but reads at once")
    asked = 0
    for _ in range(20):
        asynchronous.start([(tag, tag, tag) for tag in range(64)])
        while asynchronous.in_flight:
            asynchronous.finished()
            asked += 1
    assert asked > 20  # start returned while some were under way, at least once


def test_a_run_goes_into_its_frames_and_leaves_out_the_gaps(opens: Opens, path: Path, memory: mmap.mmap) -> None:
    reader = opens(path, memory)
    reader.start_runs([(1, 10, (240, 3, NO_FRAME, 77)), (2, 0, range(101, 101 + RUN_PAGES)), (3, 199, (9,))])
    assert (reader.in_flight, reader.room) == (3, 61)
    assert sorted(drain(reader)) == [1, 2, 3]
    wanted = {240: 10, 3: 11, 77: 13, 9: 199} | {101 + place: place for place in range(RUN_PAGES)}
    for frame in range(FRAMES):
        assert frame_of(memory, frame) == (page(wanted[frame]) if frame in wanted else UNTOUCHED)


@pytest.mark.parametrize(
    "frames", [(), (NO_FRAME, 1), (1, NO_FRAME), (1, -2, 2), (0, FRAMES, 1), range(RUN_PAGES + 1)], ids=str
)
def test_a_run_that_is_none_is_refused(opens: Opens, path: Path, memory: mmap.mmap, frames: Sequence[int]) -> None:
    reader = opens(path, memory)
    with pytest.raises(ValueError, match=r"a run of|outside the arena"):
        reader.start_runs([(0, 0, (5,)), (1, 1, frames)])
    assert (reader.in_flight, memory[:]) == (0, UNTOUCHED * FRAMES)


def test_the_page_of_a_run_that_can_not_be_read_is_named(opens: Opens, path: Path, memory: mmap.mmap) -> None:
    os.truncate(path, 10 * PAGE_BYTES)
    reader = opens(path, memory)
    reader.start_runs([(1, 6, (1, NO_FRAME, 2, 3, 4, 5)), (2, 0, (6, 7))])
    tags: list[int] = []
    failed: list[str] = []
    while reader.in_flight:
        try:
            tags += reader.wait(10)
        except OSError as error:
            failed.append(str(error))
    assert tags == [2]
    assert failed == [f"[Errno {errno.EIO}] {path} offset {10 * PAGE_BYTES}: 0 bytes instead of a page"]
    assert reader.room == 64


def test_closing_waits_for_what_is_in_flight(opens: Opens, path: Path, memory: mmap.mmap) -> None:
    for _ in range(20):
        memory[:] = UNTOUCHED * FRAMES
        reader = opens(path, memory)
        reader.start([(tag, PLACES - 1 - tag, tag) for tag in range(64)])
        reader.close()
        after = memory[: 64 * PAGE_BYTES]
        assert after == b"".join(page(PLACES - 1 - tag) for tag in range(64))
        reader.close()
        assert (reader.in_flight, reader.room, reader.finished(), reader.wait(30)) == (0, 0, [], [])
        assert not reader.is_asynchronous


def test_closing_after_an_error_waits_for_the_others(opens: Opens, path: Path, memory: mmap.mmap) -> None:
    reader = opens(path, memory)
    reader.start([(0, PLACES + 5, 0)] + [(tag, tag, tag) for tag in range(1, 64)])
    with pytest.raises(OSError, match="0 bytes instead of a page"):
        drain(reader)
    reader.close()
    assert memory[PAGE_BYTES : 64 * PAGE_BYTES] == b"".join(page(tag) for tag in range(1, 64))


def test_a_closed_reader_reads_nothing(opens: Opens, path: Path, memory: mmap.mmap) -> None:
    reader = opens(path, memory)
    reader.close()
    with pytest.raises(ValueError, match="room for 0"):
        reader.start([(0, 0, 0)])
    with pytest.raises(ValueError, match="outside the arena"):
        reader.read(0, 0)
    with pytest.raises(OSError, match="Bad file descriptor"):
        reader.image(0)
    with mmap.mmap(-1, PAGE_BYTES) as other:
        another = opens(path, other)
        another.close()
    assert other.closed  # a closed reader does not keep it mapped


def test_the_file_must_be_there(tmp_path: Path, memory: mmap.mmap) -> None:
    with pytest.raises(FileNotFoundError):
        PageReader(tmp_path / "pages", memory)


def check_that_it_reads_at_once(path: Path, memory: mmap.mmap, depth: int = 64) -> None:
    descriptors = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else None
    reader = PageReader(path, memory, depth=depth)
    assert not reader.is_asynchronous
    reader.start([(1, 17, 5)])
    assert frame_of(memory, 5) == page(17)
    assert reader.finished() == [1]
    assert reader.image(18) == page(18)
    reader.close()
    if descriptors is not None:
        assert len(os.listdir("/proc/self/fd")) == descriptors


@pytest.mark.parametrize("refuses", ["the flag", "the read"])
def test_a_file_system_without_direct_reads(
    path: Path, memory: mmap.mmap, monkeypatch: pytest.MonkeyPatch, refuses: str
) -> None:
    really_open, really_read = os.open, os.preadv
    direct: set[int] = set()
    refused = 0

    def open_file(file: Path, flags: int) -> int:
        nonlocal refused
        if flags & os.O_DIRECT and refuses == "the flag":
            refused += 1
            raise OSError(errno.EINVAL, "Invalid argument")
        fd = really_open(file, flags)
        direct.discard(fd)
        if flags & os.O_DIRECT:
            direct.add(fd)
        return fd

    def read_file(fd: int, buffers: list[mmap.mmap], offset: int) -> int:
        nonlocal refused
        if fd in direct:
            refused += 1
            raise OSError(errno.EINVAL, "Invalid argument")
        return really_read(fd, buffers, offset)

    monkeypatch.setattr(os, "open", open_file)
    monkeypatch.setattr(os, "preadv", read_file)
    check_that_it_reads_at_once(path, memory)
    assert refused == 1


def test_a_kernel_that_refuses_the_context(asynchronous: PageReader, path: Path, memory: mmap.mmap) -> None:
    most = int(Path("/proc/sys/fs/aio-max-nr").read_text())
    check_that_it_reads_at_once(path, memory, depth=most + 1)


def test_a_kernel_without_the_system_call(path: Path, memory: mmap.mmap, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_reader, "_numbers", lambda: (100_000, 100_001, 100_002, 100_003))
    check_that_it_reads_at_once(path, memory)
