"""The log's files: what runs in the writer's thread, and what runs once before the event loop has work.

Nothing here touches the event loop. `LogDisk.write` may hang for as long as the disk does; a lock keeps a second writer
out, and tickets keep it from writing anything twice, so a thread abandoned in a hang does no harm when it wakes.

After a failed write or fdatasync the file is believed only up to the last fdatasync that succeeded, and everything
behind it is written again: the kernel reports a failed write-back once and may then call the lost pages clean.
Source: PostgreSQL wiki, "Fsync Errors".
"""

import contextlib
import errno
import fcntl
import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import msgspec

from effects.errors import LogUnavailable
from effects.log_reader import (
    GENESIS,
    Fault,
    Kind,
    SegmentScan,
    encode_line,
    find_faults,
    first_seq_of,
    next_tip,
    scan_segment,
    segments_of,
)

_FILE_MODE, _DIRECTORY_MODE = 0o600, 0o700
_COPY_BYTES = 1 << 20


class Limits(msgspec.Struct, frozen=True):
    """How much of the log is kept, and how much of it is checked when it is opened."""

    total_bytes_max: int
    total_age_s_max: int
    verify_bytes_max: int
    newest_max: int


class Queued(msgspec.Struct, frozen=True):
    """A line to be written. Tickets count up by one; the `seq` of a snapshot is that of the last entry it includes."""

    ticket: int
    kind: Kind
    seq: int
    body: bytes


class Recovered(msgspec.Struct, frozen=True):
    """What opening the log found.

    torn_bytes: length of the damaged end that was cut off; kept_aside: the file that holds it now (None: nothing was
    cut, or the disk is too full to keep it, and the cut is tried again with every write).
    faults: lines that are not what was written; unverified_bytes: older segments that were not checked, to start fast.
    """

    last_seq: int = 0
    torn_bytes: int = 0
    kept_aside: Path | None = None
    last_snapshot: bytes | None = None
    entries_after_snapshot: int = 0
    faults: tuple[Fault, ...] = ()
    unverified_bytes: int = 0


class SegmentLost(LogUnavailable):
    """The segment was removed or shortened under the log: what it held is gone, only a new one can follow."""


@dataclass
class _Segment:
    path: Path
    first_prev: bytes
    tip: bytes
    bytes_total: int
    fd: int = -1


@dataclass(frozen=True)
class _Cut:
    path: Path
    good_bytes: int

    @property
    def aside(self) -> Path:
        return self.path.with_name(f"{self.path.stem}.{self.good_bytes}.torn")


class LogDisk:
    """The segments of one log, written by one thread at a time."""

    def __init__(self, directory: Path, limits: Limits) -> None:
        self.directory = directory
        self.written_ticket = 0
        self.durable_seq = 0
        self.bytes_total = 0
        self.segments = 0
        self._limits = limits
        self._lock = threading.Lock()
        self._segment: _Segment | None = None
        self._cut: _Cut | None = None
        self._is_suspect = False
        self._directory_fd = -1

    # ---- opening

    def open(self) -> tuple[Recovered, deque[tuple[int, bytes]]]:
        """Takes the log over: finds its end, cuts a damaged tail, checks what is recent. Raises LogUnavailable."""
        try:
            self._claim_directory()
            scan, newest, recovered = self._find_end()
            recovered = self._check(recovered)
        except OSError as error:
            raise LogUnavailable(_reason(error, self.directory)) from error
        if scan is not None:
            self._segment = _Segment(scan.path, scan.first_prev or GENESIS, scan.tip, scan.good_bytes)
        self.durable_seq = recovered.last_seq
        self._count()
        return recovered, newest

    def _claim_directory(self) -> None:
        self.directory.mkdir(mode=_DIRECTORY_MODE, parents=True, exist_ok=True)
        self.directory.chmod(_DIRECTORY_MODE)
        self._directory_fd = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(self._directory_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LogUnavailable(f"another process writes the log in {self.directory}") from error
        for unfinished in self.directory.glob("*.new"):
            unfinished.unlink()

    def _find_end(self) -> tuple[SegmentScan | None, deque[tuple[int, bytes]], Recovered]:
        """The last segment with a good line in it, its newest entries, and what had to be cut behind them."""
        torn_bytes, kept_aside = 0, None
        for path in reversed(segments_of(self.directory)):
            scan, newest = scan_segment(path, self._limits.newest_max)
            if scan.good_bytes == scan.bytes_total and scan.good_bytes:
                return scan, newest, _recovered(scan, torn_bytes, kept_aside)
            torn_bytes += scan.bytes_total - scan.good_bytes
            if scan.good_bytes:
                kept_aside = self._cut_tail(_Cut(path, scan.good_bytes)) or kept_aside
                return scan, newest, _recovered(scan, torn_bytes, kept_aside)
            kept_aside = path.rename(_Cut(path, 0).aside)
        return None, deque(maxlen=self._limits.newest_max), Recovered(torn_bytes=torn_bytes, kept_aside=kept_aside)

    def _cut_tail(self, cut: _Cut) -> Path | None:
        """Cuts a damaged tail and keeps it aside; None when the disk has no room for that now (it is tried again)."""
        try:
            _keep_aside_and_truncate(cut)
        except OSError:
            self._cut = cut
            return None
        return cut.aside

    def _check(self, recovered: Recovered) -> Recovered:
        """Adds the faults of the newest segments, up to a size: a full check belongs to replay, not to a restart."""
        segments = segments_of(self.directory)
        sizes = [path.stat().st_size for path in segments]
        checked = len(segments)
        while checked > 0 and (checked == len(segments) or sum(sizes[checked - 1 :]) <= self._limits.verify_bytes_max):
            checked -= 1
        faults = tuple(find_faults(segments[checked:]))
        return msgspec.structs.replace(recovered, faults=faults, unverified_bytes=sum(sizes[:checked]))

    # ---- writing

    def write(self, group: Sequence[Queued]) -> None:
        """Writes what of a group is not yet on disk, with one fdatasync; returns when it is durable.

        Raises SegmentLost or LogUnavailable; what was durable before stays so, and the same group may be given again.
        """
        with self._lock:
            try:
                self._repair()
                unwritten = [line for line in group if line.ticket > self.written_ticket]
                for kind, lines in groupby(unwritten, lambda line: line.kind):
                    if kind == "entry":
                        self._write_entries(list(lines))
                    else:
                        self._begin_segment(list(lines)[-1])
            except SegmentLost:
                self._close_segment()
                raise
            except OSError as error:
                self._is_suspect = True
                raise LogUnavailable(_reason(error, self.directory)) from error

    def close(self) -> None:
        """Gives the files and the directory back, unless a write still hangs in them."""
        if not self._lock.acquire(blocking=False):
            return
        with contextlib.ExitStack() as stack:
            stack.callback(self._lock.release)
            self._close_segment()
            if self._directory_fd >= 0:
                os.close(self._directory_fd)
                self._directory_fd = -1

    def _repair(self) -> None:
        """After a failure: opens the segment anew and cuts it where the last successful fdatasync left it."""
        if self._cut is not None:
            _keep_aside_and_truncate(self._cut)
            self._cut = None
        segment = self._segment
        if not self._is_suspect or segment is None or segment.fd < 0:
            return
        self._close_fd(segment)
        try:
            segment.fd = os.open(segment.path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise SegmentLost(f"{segment.path} was removed") from error
        if os.fstat(segment.fd).st_size < segment.bytes_total:
            raise SegmentLost(f"{segment.path} was shortened")
        os.ftruncate(segment.fd, segment.bytes_total)
        self._is_suspect = False

    def _write_entries(self, entries: list[Queued]) -> None:
        segment = self._segment
        if segment is None or segment.fd < 0:
            raise SegmentLost("there is no segment to write to")
        tip, lines = segment.tip, []
        for entry in entries:
            lines.append(encode_line("entry", tip, entry.body))
            tip = next_tip(tip, entry.body)
        written = _write_all(segment.fd, b"".join(lines))
        os.fdatasync(segment.fd)
        if os.fstat(segment.fd).st_nlink == 0:  # writing to a removed file succeeds: only this tells
            raise SegmentLost(f"{segment.path} was removed")
        segment.tip = tip
        segment.bytes_total += written
        self.bytes_total += written
        self._settle(entries[-1])

    def _begin_segment(self, snapshot: Queued) -> None:
        """Starts a segment under a passing name, so that no segment ever lacks its snapshot; then retention."""
        self.directory.mkdir(mode=_DIRECTORY_MODE, parents=True, exist_ok=True)
        path = self.directory / f"{snapshot.seq + 1:012d}.jsonl"
        prev = self._prev_for(path)
        line = encode_line("snapshot", prev, snapshot.body)
        new = path.with_name(path.name + ".new")
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, _FILE_MODE)
        try:
            _write_all(fd, line)
            os.fdatasync(fd)
            new.replace(path)
            _sync_directory(self.directory)
        except OSError:
            os.close(fd)
            raise
        self._close_segment()
        self._segment = _Segment(path, prev, next_tip(prev, snapshot.body), len(line), fd)
        self._is_suspect = False
        self._settle(snapshot)
        self._retain()

    def _prev_for(self, path: Path) -> bytes:
        """The `prev` of a new segment; one that holds no entry is replaced by it and so hands on its own."""
        if self._segment is None:
            return GENESIS
        return self._segment.first_prev if self._segment.path == path else self._segment.tip

    def _settle(self, last: Queued) -> None:
        self.written_ticket = last.ticket
        self.durable_seq = last.seq

    def _close_segment(self) -> None:
        if self._segment is not None:
            self._close_fd(self._segment)

    def _close_fd(self, segment: _Segment) -> None:
        if segment.fd >= 0:
            with contextlib.suppress(OSError):  # reports an old write-back error at most, which fdatasync reported
                os.close(segment.fd)
            segment.fd = -1

    # ---- retention

    def _retain(self) -> None:
        """Removes the oldest segments beyond size or age; one that cannot be removed waits for the next time."""
        with contextlib.suppress(OSError):
            for path in list(self._outlived()):
                path.unlink()
            oldest_seq = first_seq_of(segments_of(self.directory)[0])
            for torn in self.directory.glob("*.torn"):
                if first_seq_of(torn) < oldest_seq:
                    torn.unlink()
        with contextlib.suppress(OSError):
            self._count()

    def _outlived(self) -> Iterator[Path]:
        """The segments to remove, oldest first: never the current one, nor by age the one before it.

        Age is taken between the files' own times, so no clock is read; should the wall clock leap, the last segment
        before the leap, which shows what happened, stays.
        """
        segments = segments_of(self.directory)
        stats = [path.stat() for path in segments]
        excess_bytes = sum(stat.st_size for stat in stats) - self._limits.total_bytes_max
        for index, (path, stat) in enumerate(zip(segments[:-1], stats[:-1], strict=True)):
            is_old = stats[-1].st_mtime - stat.st_mtime > self._limits.total_age_s_max and index < len(segments) - 2
            if excess_bytes <= 0 and not is_old:
                return
            excess_bytes -= stat.st_size
            yield path

    def _count(self) -> None:
        sizes = [path.stat().st_size for path in segments_of(self.directory)]
        self.segments, self.bytes_total = len(sizes), sum(sizes)


def _recovered(scan: SegmentScan, torn_bytes: int, kept_aside: Path | None) -> Recovered:
    last_seq = max(scan.last_seq, first_seq_of(scan.path) - 1)
    return Recovered(last_seq, torn_bytes, kept_aside, scan.snapshot, scan.entries_after_snapshot)


def _keep_aside_and_truncate(cut: _Cut) -> None:
    """Copies what lies behind the last good line into a file of its own, then cuts it off. May be repeated."""
    if cut.path.stat().st_size <= cut.good_bytes:
        return
    aside_fd = os.open(cut.aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, _FILE_MODE)
    try:
        with cut.path.open("r+b", buffering=0) as segment:
            segment.seek(cut.good_bytes)
            while chunk := segment.read(_COPY_BYTES):
                _write_all(aside_fd, chunk)
            os.fdatasync(aside_fd)
            segment.truncate(cut.good_bytes)
            os.fdatasync(segment.fileno())
    finally:
        os.close(aside_fd)


def _write_all(fd: int, content: bytes) -> int:
    """Writes everything and returns its length: write(2) may stop short, on a disk that is filling up for one."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(fd, rest) :]
    return len(content)


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _reason(error: OSError, directory: Path) -> str:
    name = errno.errorcode.get(error.errno or 0, "OSError")
    return f"{error.strerror or name} ({name}): {error.filename or directory}"
