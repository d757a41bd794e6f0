"""The transition log at work: restarts, group commit, retention, what a bad disk does, that nothing waits for it."""

import errno
import os
import resource
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from effects.log import Recovered, TransitionLog
from effects.log_reader import read_log, segments_of, seq_of

pytestmark = pytest.mark.anyio
DEADLINE_S = 10


def entry(seq: int, filling: str = "") -> bytes:
    """The body of an entry."""
    return b'{"v":1,"seq":%d,"node":"n1","filling":"%s"}' % (seq, filling.encode())


def snapshot(seq: int) -> bytes:
    """The body of a snapshot that includes the entries up to a seq."""
    return b'{"v":1,"seq":%d,"view":{}}' % seq


def seqs(path: Path) -> list[int]:
    """The seq of every entry in a log."""
    return [line.seq for line in read_log([path]) if line.kind == "entry"]


async def until(condition: Callable[[], bool]) -> None:
    """Waits for a condition, with a deadline."""
    with anyio.fail_after(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 - what is waited for happens in a thread or on disk
            await anyio.sleep(0.002)


@asynccontextmanager
async def running(directory: Path, **options: Any) -> AsyncIterator[tuple[TransitionLog, Recovered]]:
    """An open log with its writer and, where it is wanted, its first snapshot."""
    log, recovered = TransitionLog.open(directory, **options)
    if log.wants_segment:
        log.start_segment(snapshot(log.status.last_seq))
    async with anyio.create_task_group() as tasks:
        await tasks.start(log.run)
        yield log, recovered
        await log.aclose()
        tasks.cancel_scope.cancel()


async def append_all(log: TransitionLog, first: int, last: int) -> None:
    """Appends entries and waits until they are on disk."""
    for seq in range(first, last + 1):
        log.append(seq, entry(seq))
    assert await log.durable(last, DEADLINE_S * 1000)


def degraded(log: TransitionLog) -> str | None:
    """The log's reason for being degraded, asked anew each time."""
    return log.status.degraded


def wants_segment(log: TransitionLog) -> bool:
    """Whether the log wants a segment, asked anew each time."""
    return log.wants_segment


class HeldDisk:
    """os.fdatasync that hangs while it is held, and counts."""

    def __init__(self) -> None:
        self.released, self.hangs = threading.Event(), threading.Event()
        self.released.set()
        self.calls = 0
        self.was_waited_for = False
        self._real = os.fdatasync

    def __call__(self, fd: int) -> None:
        """Stands in for os.fdatasync."""
        self.calls += 1
        if not self.released.is_set():
            self.hangs.set()
            self.was_waited_for |= not self.released.wait(DEADLINE_S)
        self._real(fd)


@pytest.fixture
def held_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[HeldDisk]:
    """A disk that can be made to hang, let go at the end of the test; nothing may have waited for it to give up."""
    disk = HeldDisk()
    monkeypatch.setattr(os, "fdatasync", disk)
    yield disk
    disk.released.set()
    assert not disk.was_waited_for


# ---- writing and restarting


async def test_log_continues_the_chain_when_the_agent_restarts(tmp_path: Path) -> None:
    """Two lives of an agent make one chain; the second starts a segment of its own."""
    async with running(tmp_path) as (log, recovered):
        assert recovered == Recovered()
        await append_all(log, 1, 10)
    async with running(tmp_path) as (log, recovered):
        assert (recovered.last_seq, recovered.last_snapshot) == (10, snapshot(0))
        assert (recovered.entries_after_snapshot, recovered.torn_bytes, recovered.faults) == (10, 0, ())
        assert log.newest(8, 10) == [entry(9), entry(10)]
        await append_all(log, 11, 15)
    assert seqs(tmp_path) == list(range(1, 16))
    assert [path.name for path in segments_of(tmp_path)] == ["000000000001.jsonl", "000000000011.jsonl"]


async def test_log_replaces_the_segment_when_the_last_life_wrote_no_entry(tmp_path: Path) -> None:
    """Restarts without an entry between them leave one segment, and the chain stays whole."""
    async with running(tmp_path) as (log, _):
        await append_all(log, 1, 3)
    for _ in range(3):
        async with running(tmp_path):
            pass
    async with running(tmp_path) as (log, _):
        await append_all(log, 4, 4)
    assert [path.name for path in segments_of(tmp_path)] == ["000000000001.jsonl", "000000000004.jsonl"]
    assert seqs(tmp_path) == [1, 2, 3, 4]


async def test_log_is_readable_by_its_user_only_when_created(tmp_path: Path) -> None:
    """Files are 0600 in a 0700 directory, which is tightened where it exists."""
    directory = tmp_path / "log"
    directory.mkdir(mode=0o755)
    async with running(directory) as (log, _):
        await append_all(log, 1, 1)
    assert directory.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in directory.iterdir()} == {0o600}


async def test_log_syncs_once_when_many_entries_wait(tmp_path: Path, held_disk: HeldDisk) -> None:
    """What comes in while the disk works is one group with one fdatasync."""
    async with running(tmp_path) as (log, _):
        await append_all(log, 1, 1)
        held_disk.released.clear()
        log.append(2, entry(2))
        await until(held_disk.hangs.is_set)
        calls = held_disk.calls
        for seq in range(3, 503):
            log.append(seq, entry(seq))
        held_disk.released.set()
        assert await log.durable(502, DEADLINE_S * 1000)
        assert held_disk.calls == calls + 1
    assert seqs(tmp_path) == list(range(1, 503))


async def test_log_wants_a_segment_when_the_current_one_is_large_or_old(tmp_path: Path) -> None:
    """Size and age are bounds of a segment; the instants are the caller's."""
    clock = [0]
    async with running(tmp_path, segment_bytes_max=1000, segment_age_ms_max=50, now_ms=lambda: clock[0]) as (log, _):
        assert not wants_segment(log)
        log.append(1, entry(1, "x" * 1000))
        assert wants_segment(log)
        log.start_segment(snapshot(1))
        assert not wants_segment(log)
        clock[0] = 50
        assert wants_segment(log)
        log.append(2, entry(2))
        log.start_segment(snapshot(2))
        assert not wants_segment(log)
    assert [path.name for path in segments_of(tmp_path)] == [
        "000000000001.jsonl",
        "000000000002.jsonl",
        "000000000003.jsonl",
    ]


async def test_retention_removes_the_oldest_segments_when_the_log_outgrows_its_size(tmp_path: Path) -> None:
    """The log stays within its size, the current segment always stays, and what is left still reads as one chain."""
    (tmp_path / "000000000000.0.torn").write_bytes(b"old")
    async with running(tmp_path, total_bytes_max=5000) as (log, _):
        for seq in range(1, 21):
            log.append(seq, entry(seq, "x" * 1000))
            log.start_segment(snapshot(seq))
        assert await log.durable(20, DEADLINE_S * 1000)
        await until(lambda: log.status.segments <= 5)
        assert log.status.bytes_total <= 5000
    assert seqs(tmp_path)[-1] == 20
    assert len(segments_of(tmp_path)) <= 5
    assert not (tmp_path / "000000000000.0.torn").exists()


async def test_retention_removes_old_segments_but_keeps_the_last_two_when_they_are_past_their_age(
    tmp_path: Path,
) -> None:
    """Age removes segments, but never the current one nor the one before it: the wall clock may have leapt."""
    for seq in (1, 2, 3):
        async with running(tmp_path) as (log, _):
            await append_all(log, seq, seq)
    for path in segments_of(tmp_path):
        os.utime(path, (1_000_000, 1_000_000))
    async with running(tmp_path) as (log, _):
        await append_all(log, 4, 4)
    assert [path.name for path in segments_of(tmp_path)] == ["000000000003.jsonl", "000000000004.jsonl"]


def test_append_refuses_when_the_entry_could_not_be_read_back(tmp_path: Path) -> None:
    """A caller's mistake is an error at once, not a corrupt log later."""
    log, _ = TransitionLog.open(tmp_path)
    log.start_segment(snapshot(0))
    for seq, body in [(0, entry(0)), (1, entry(2)), (1, b'{"seq":1,\n"v":1}'), (1, b"no json")]:
        with pytest.raises(ValueError, match=r"entry|line|body"):
            log.append(seq, body)
    with pytest.raises(ValueError, match="up to 0"):
        log.start_segment(snapshot(7))


async def test_aclose_writes_the_rest_when_the_writer_was_cancelled(tmp_path: Path) -> None:
    """Shutting down in either order loses nothing."""
    log, _ = TransitionLog.open(tmp_path)
    log.start_segment(snapshot(0))
    async with anyio.create_task_group() as tasks:
        await tasks.start(log.run)
        tasks.cancel_scope.cancel()
    log.append(1, entry(1))
    await log.aclose()
    assert seqs(tmp_path) == [1]


# ---- bad disks


async def test_append_and_durable_return_in_time_when_the_disk_hangs(tmp_path: Path, held_disk: HeldDisk) -> None:
    """A hanging fdatasync delays nobody, degrades the log, and is made up for when the disk comes back."""
    clock = [0]
    async with running(tmp_path, hang_ms=100, now_ms=lambda: clock[0]) as (log, _):
        await append_all(log, 1, 1)
        held_disk.released.clear()
        log.append(2, entry(2))
        await until(held_disk.hangs.is_set)
        assert degraded(log) is None
        with anyio.fail_after(DEADLINE_S / 2):
            assert not await log.durable(2, 20)
            for seq in range(3, 1003):
                log.append(seq, entry(seq))
            clock[0] = 100
            assert not await log.durable(1002, 3_600_000)
        assert "not answered for 100 ms" in str(degraded(log))
        assert log.newest(1000, 10) == [entry(1001), entry(1002)]
        assert await log.durable(1, 0)
        held_disk.released.set()
        await until(lambda: log.status.durable_seq == 1002)
        assert (degraded(log), log.status.queued, log.status.dropped) == (None, 0, 0)
    assert seqs(tmp_path) == list(range(1, 1003))


async def test_log_states_a_gap_when_more_came_than_memory_may_hold(tmp_path: Path, held_disk: HeldDisk) -> None:
    """Beyond the bound the newest entries are left out; a new segment with a snapshot closes the gap, and says so."""
    async with running(tmp_path, queued_bytes_max=20_000) as (log, _):
        await append_all(log, 1, 1)
        held_disk.released.clear()
        for seq in range(2, 102):
            log.append(seq, entry(seq, "x" * 1000))
        await until(held_disk.hangs.is_set)
        assert log.status.dropped > 50
        assert not wants_segment(log)
        held_disk.released.set()
        await until(lambda: wants_segment(log))
        assert degraded(log) == "entries are left out until a new segment starts"
        log.start_segment(snapshot(101))
        await append_all(log, 102, 105)
        assert not await log.durable(100, DEADLINE_S * 1000)
        assert degraded(log) is None
        dropped = log.status.dropped
    gaps = [(line.kind, line.seq, line.missing) for line in read_log([tmp_path]) if line.missing]
    assert gaps == [("snapshot", 101, dropped)]
    assert [seq for seq in seqs(tmp_path) if seq > 101 - dropped] == [102, 103, 104, 105]


async def test_aclose_gives_up_when_the_disk_hangs(tmp_path: Path, held_disk: HeldDisk) -> None:
    """Shutdown is bounded, and the thread that wakes up later writes nothing twice."""
    async with anyio.create_task_group() as tasks:
        log, _ = TransitionLog.open(tmp_path)
        log.start_segment(snapshot(0))
        await tasks.start(log.run)
        await append_all(log, 1, 1)
        held_disk.released.clear()
        log.append(2, entry(2))
        await until(held_disk.hangs.is_set)
        tasks.cancel_scope.cancel()
    with anyio.fail_after(DEADLINE_S / 2):
        await log.aclose(timeout_ms=20)
    held_disk.released.set()
    await until(lambda: log.status.durable_seq == 2)
    assert seqs(tmp_path) == [1, 2]


def file_size_limit(directory: Path) -> Iterator[tuple[Path, Callable[[], None]]]:
    """A file may not grow beyond 8 KiB: write(2) then stops short and fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    yield directory, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def full_tmpfs(directory: Path) -> Iterator[tuple[Path, Callable[[], None]]]:
    """A file system of 16 KiB that can be enlarged. Needs root."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(directory)]
    mounted = subprocess.run(mount, capture_output=True, check=False)
    if mounted.returncode != 0:
        pytest.skip("may not mount a file system")

    def enlarge() -> None:
        subprocess.run(["mount", "-o", "remount,size=1m", str(directory)], check=True)

    yield directory, enlarge
    subprocess.run(["umount", "-l", directory], check=True)


@pytest.fixture(params=[file_size_limit, full_tmpfs])
def small_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Path, Callable[[], None]]]:
    """A directory on a disk that is soon full, and what gives it room."""
    yield from request.param(tmp_path)


async def test_log_degrades_and_recovers_when_the_disk_is_full(small_disk: tuple[Path, Callable[[], None]]) -> None:
    """A full disk is named in the status, nothing is raised, and what was kept is written when there is room."""
    directory, make_room = small_disk
    async with running(directory, retry_ms=5) as (log, _):
        for seq in range(1, 41):
            log.append(seq, entry(seq, "x" * 1000))
        await until(lambda: degraded(log) is not None)
        assert str(directory) in str(degraded(log))
        assert not await log.durable(40, DEADLINE_S * 1000)
        assert not wants_segment(log)
        assert len(log.newest(0, 100)) == 40
        make_room()
        await until(lambda: degraded(log) is None)
        assert await log.durable(40, DEADLINE_S * 1000)
        assert log.status.dropped == 0
        assert seqs(directory) == list(range(1, 41))


async def test_log_writes_again_from_the_last_sync_when_fdatasync_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a failed fdatasync nothing written since the last good one is believed, and nothing appears twice."""
    real, failures = os.fdatasync, [OSError(errno.EIO, "Input/output error")] * 3

    def failing(fd: int) -> None:
        if failures:
            raise failures.pop()
        real(fd)

    async with running(tmp_path, retry_ms=1) as (log, _):
        await append_all(log, 1, 5)
        monkeypatch.setattr(os, "fdatasync", failing)
        for seq in range(6, 11):
            log.append(seq, entry(seq))
        await until(lambda: log.status.durable_seq == 10)
        assert failures == []
    assert seqs(tmp_path) == list(range(1, 11))


async def test_log_starts_anew_when_its_segment_is_removed(tmp_path: Path) -> None:
    """Writing to a removed file succeeds, so the log looks whether it is still there."""
    async with running(tmp_path) as (log, _):
        await append_all(log, 1, 3)
        segments_of(tmp_path)[-1].unlink()
        log.append(4, entry(4))
        await until(lambda: wants_segment(log))
        assert not await log.durable(4, DEADLINE_S * 1000)
        log.start_segment(snapshot(4))
        await append_all(log, 5, 6)
    assert seqs(tmp_path) == [5, 6]


async def test_log_is_kept_in_memory_when_its_directory_cannot_be_opened(tmp_path: Path) -> None:
    """An agent without a log disk starts all the same, says so, and never claims durability."""
    (tmp_path / "file").write_text("in the way")
    async with running(tmp_path / "file" / "log") as (log, recovered):
        assert recovered == Recovered()
        assert not wants_segment(log)
        log.append(1, entry(1))
        assert not await log.durable(1, DEADLINE_S * 1000)
        assert "memory only" in str(degraded(log))
        assert await log.read(0, 10) == [entry(1)]


async def test_log_is_not_written_by_two_when_another_agent_holds_it(tmp_path: Path) -> None:
    """A second agent in the same directory keeps its log in memory rather than cut the first one's."""
    async with running(tmp_path) as (log, _):
        await append_all(log, 1, 3)
        second, _ = TransitionLog.open(tmp_path)
        assert "another process" in str(degraded(second))
        await append_all(log, 4, 5)
    assert seqs(tmp_path) == [1, 2, 3, 4, 5]


async def test_log_cuts_the_torn_tail_later_when_it_cannot_be_kept_aside_at_start(tmp_path: Path) -> None:
    """Torn bytes are never thrown away: while they cannot be kept aside the log is degraded and tries again."""
    async with running(tmp_path) as (log, _):
        await append_all(log, 1, 3)
    (segment,) = segments_of(tmp_path)
    good_bytes = segment.stat().st_size
    segment.write_bytes(segment.read_bytes() + b'{"crc":"')
    in_the_way = tmp_path / f"000000000001.{good_bytes}.torn"
    in_the_way.mkdir()
    async with running(tmp_path, retry_ms=5) as (log, recovered):
        assert (recovered.last_seq, recovered.torn_bytes, recovered.kept_aside) == (3, 8, None)
        await until(lambda: degraded(log) is not None)
        in_the_way.rmdir()
        await append_all_when_able(log, 4)
    assert seqs(tmp_path) == [1, 2, 3, 4]
    assert in_the_way.read_bytes() == b'{"crc":"'


async def append_all_when_able(log: TransitionLog, seq: int) -> None:
    """Appends an entry to a degraded log and waits until it is on disk."""
    log.append(seq, entry(seq))
    await until(lambda: log.status.durable_seq == seq)


# ---- reading while it is written


async def test_read_completes_disk_with_memory_when_memory_does_not_reach_back(tmp_path: Path) -> None:
    """A page is the same wherever its entries lie."""
    async with running(tmp_path, newest_max=10) as (log, _):
        await append_all(log, 1, 50)
        log.start_segment(snapshot(50))
        await append_all(log, 51, 100)
        assert log.newest(0, 3) == [entry(91), entry(92), entry(93)]
        assert await log.read(0, 3) == [entry(1), entry(2), entry(3)]
        assert await log.read(45, 1000) == [entry(seq) for seq in range(46, 101)]
        assert await log.read(100, 10) == []


async def test_follow_yields_every_entry_once_when_the_log_grows(tmp_path: Path) -> None:
    """A follower sees the old entries from disk, then the new ones as they come, in order and without holes."""
    followed: list[int] = []

    async def follow(log: TransitionLog) -> None:
        async for body in log.follow(0):
            followed.append(seq_of(body))  # noqa: PERF401 - the list is watched while it grows

    async with running(tmp_path, newest_max=20) as (log, _), anyio.create_task_group() as tasks:
        await append_all(log, 1, 100)
        tasks.start_soon(follow, log)
        for first in range(101, 400, 30):
            await append_all(log, first, first + 29)
        await until(lambda: len(followed) == 400)
        tasks.cancel_scope.cancel()
    assert followed == list(range(1, 401))


async def test_waiting_entries_stay_readable_when_memory_keeps_fewer_than_wait(
    tmp_path: Path, held_disk: HeldDisk
) -> None:
    """Entries that wait for a hanging disk are read from the queue, so a follower misses none."""
    async with running(tmp_path, newest_max=5) as (log, _):
        await append_all(log, 1, 1)
        held_disk.released.clear()
        for seq in range(2, 51):
            log.append(seq, entry(seq))
        await until(held_disk.hangs.is_set)
        assert await log.read(1, 100) == [entry(seq) for seq in range(2, 51)]
        held_disk.released.set()


async def test_reading_the_files_sees_a_whole_prefix_when_the_agent_writes_meanwhile(tmp_path: Path) -> None:
    """Another process may read at any time: it sees the first entries, whole and in order."""

    def read_all() -> list[int]:
        return seqs(tmp_path)

    async with running(tmp_path) as (log, _):
        await append_all(log, 1, 1)
        for seq in range(2, 2002):
            log.append(seq, entry(seq, "x" * 200))
            if seq % 100 == 0:
                seen = await anyio.to_thread.run_sync(read_all)
                assert seen == list(range(1, len(seen) + 1))
        assert await log.durable(2001, DEADLINE_S * 1000)
    assert seqs(tmp_path) == list(range(1, 2002))
