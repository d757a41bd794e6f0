"""The transition log as the agent sees it: append without waiting, ask whether an entry is durable, read, follow.

`append` puts an entry into memory and returns; one task (`run`) takes all that is queued, and a thread writes it with
one fdatasync (group commit). A disk that hangs or refuses degrades the log and nothing else: entries are queued up to a
bound, the newest stay readable in memory, `durable` answers False, and the write is tried again.

When the bound is reached, the *newest* entries are left out, so that everything on disk still replays: what was queued
is written first, then a new segment with a snapshot from the caller closes the gap (`wants_segment`). A gap shows as a
jump of `seq` between two linked lines (`Line.missing`).
"""

from collections import deque
from collections.abc import AsyncIterator, Callable
from itertools import chain, islice
from pathlib import Path
from typing import TypeVar, TypeVarTuple

import anyio
import anyio.to_thread
import msgspec
from anyio.abc import TaskStatus

from effects import clock as machine_clock
from effects.errors import LogUnavailable
from effects.log_disk import Limits, LogDisk, Queued, Recovered, SegmentLost
from effects.log_reader import ENVELOPE_BYTES, Kind, read_entries, seq_of

Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")

__all__ = ["LogStatus", "Recovered", "TransitionLog"]

DAY_MS = 24 * 3600 * 1000
_GAPS_REMEMBERED_MAX = 64
_PAGE = 500
_FLUSH_TIMEOUT_MS = 2_000


class LogStatus(msgspec.Struct, frozen=True):
    """How the log is doing. `degraded` says why entries are not reaching the disk now (None: they are).

    queued: lines waiting for the disk; dropped: entries since start that will never reach it.
    """

    last_seq: int
    durable_seq: int
    degraded: str | None
    queued: int
    dropped: int
    segments: int
    bytes_total: int


class _Bell:
    """Wakes all who wait, once. Costs nothing while nobody does."""

    def __init__(self) -> None:
        self._event: anyio.Event | None = None

    def ring(self) -> None:
        if self._event is not None:
            self._event.set()
            self._event = None

    async def heard(self) -> None:
        if self._event is None:
            self._event = anyio.Event()
        await self._event.wait()


class _Bounds(msgspec.Struct, frozen=True):
    segment_bytes_max: int
    segment_age_ms_max: int
    queued_bytes_max: int
    hang_ms: int
    retry_ms: int


class TransitionLog:
    """The append-only log of one agent. All methods belong to the event loop's thread."""

    def __init__(self, disk: LogDisk, last_seq: int, newest: deque[tuple[int, bytes]], bounds: _Bounds) -> None:
        self._disk = disk
        self._bounds = bounds
        self._last_seq = last_seq
        self._newest = newest
        self._now_ms: Callable[[], int] = machine_clock.now_ms
        self._queue: deque[Queued] = deque()
        self._queued_bytes = 0
        self._segment_bytes = 0
        self._segment_started_ms = 0
        self._last_ticket = 0
        self._takes_entries = False  # a snapshot comes first, at start and after a gap
        self._gaps: deque[tuple[int, int]] = deque(maxlen=_GAPS_REMEMBERED_MAX)
        self._dropped = 0
        self._failure: str | None = None
        self._write_began_ms: int | None = None
        self._is_running = self._is_closing = False
        self._queue_grew, self._settled, self._entry_came = _Bell(), _Bell(), _Bell()

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        segment_bytes_max: int = 16 << 20,
        segment_age_ms_max: int = DAY_MS,
        total_bytes_max: int = 512 << 20,
        total_age_s_max: int = 30 * 24 * 3600,
        newest_max: int = 5_000,
        queued_bytes_max: int = 32 << 20,
        verify_bytes_max: int = 16 << 20,
        hang_ms: int = 2_000,
        retry_ms: int = 1_000,
        now_ms: Callable[[], int] = machine_clock.now_ms,
    ) -> tuple["TransitionLog", Recovered]:
        """The log in a directory, made when absent (0700, files 0600), and what was found there. Blocks on the disk.

        segment_bytes_max, segment_age_ms_max: when `wants_segment` asks for a new segment; age is measured by `now_ms`.
        total_bytes_max, total_age_s_max: retention; the oldest segments go, never the current one.
        newest_max: entries kept in memory for readers.
        queued_bytes_max: size of the bodies kept for a disk that does not take them.
        verify_bytes_max: how much of the log is checked now (the last segment always is).
        hang_ms: a write that takes longer counts as degraded. retry_ms: between attempts after a failure.

        Never raises for the disk's sake: a log that cannot be opened is kept in memory only until the agent is
        restarted, because without its end the next free seq is unknown. `status.degraded` says so.
        """
        disk = LogDisk(directory, Limits(total_bytes_max, total_age_s_max, verify_bytes_max, newest_max))
        failure = None
        try:
            recovered, newest = disk.open()
        except LogUnavailable as error:
            failure = f"kept in memory only until the agent is restarted: {error}"
            recovered, newest = Recovered(), deque[tuple[int, bytes]](maxlen=newest_max)
        bounds = _Bounds(segment_bytes_max, segment_age_ms_max, queued_bytes_max, hang_ms, retry_ms)
        log = cls(disk, recovered.last_seq, newest, bounds)
        log._now_ms = now_ms
        log._failure = failure
        return log, recovered

    # ---- writing

    def append(self, seq: int, body: bytes) -> None:
        """Takes an entry; never waits, and never fails for the disk's sake.

        seq: above every earlier one. body: a JSON object on one line whose `seq` is the same.
        Raises ValueError when the caller breaks this: an entry that cannot be read back must not be written.
        """
        if seq <= self._last_seq or _seq_of_line(body) != seq:
            raise ValueError(f"entry {seq} after {self._last_seq}: out of order, or its body bears another seq")
        self._last_seq = seq
        self._newest.append((seq, body))
        if self._takes_entries and self._queued_bytes + len(body) <= self._bounds.queued_bytes_max:
            self._enqueue("entry", seq, body)
        else:
            self._leave_out(seq)
        self._entry_came.ring()

    def start_segment(self, snapshot_body: bytes) -> None:
        """Starts a new segment with a snapshot from which the entries after it replay; entries are taken from here on.

        snapshot_body: a JSON object on one line; its `seq`, if it has one, is that of the last entry it includes.
        Does nothing while the disk refuses and entries are being left out: `wants_segment` tells when it is time.
        """
        if _seq_of_line(snapshot_body) not in (0, self._last_seq):
            raise ValueError(f"a snapshot that does not include exactly the entries up to {self._last_seq}")
        if not self._takes_entries and not self._may_resume:
            return
        self._takes_entries = True
        self._segment_bytes = 0
        self._segment_started_ms = self._now_ms()
        self._enqueue("snapshot", self._last_seq, snapshot_body)

    @property
    def wants_segment(self) -> bool:
        """True when the caller should call `start_segment`: at start, by size, by age, or to end a gap."""
        if not self._takes_entries:
            return self._may_resume
        is_full = self._segment_bytes >= self._bounds.segment_bytes_max
        is_old = self._now_ms() - self._segment_started_ms >= self._bounds.segment_age_ms_max
        return (is_full or is_old) and self.degraded is None

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Writes what is queued until `aclose`. Cancelling it does not wait for the disk; `aclose` writes the rest."""
        self._is_running = True
        task_status.started()
        try:
            while not self._is_closing or (self._queue and self._failure is None):
                if not self._queue:
                    await self._queue_grew.heard()
                elif not await self._write_queue():
                    await anyio.sleep(self._bounds.retry_ms / 1000)
        finally:
            self._is_running = False

    async def durable(self, seq: int, timeout_ms: int) -> bool:
        """True once an entry is on disk; False after the wait, or at once when the log is degraded or left it out.

        The write-ahead of effects that cannot be undone. Source: fdatasync(2).
        """
        with anyio.move_on_after(timeout_ms / 1000):
            while self._disk.durable_seq < seq and self.degraded is None and not self._is_left_out(seq):
                await self._settled.heard()
        return self._disk.durable_seq >= seq and not self._is_left_out(seq)

    async def aclose(self, timeout_ms: int = _FLUSH_TIMEOUT_MS) -> None:
        """Writes what is queued, for as long as the timeout at most, and gives the files back."""
        self._is_closing = True
        self._queue_grew.ring()
        with anyio.move_on_after(timeout_ms / 1000, shield=True):
            while self._queue and self._failure is None:
                if self._is_running:
                    await self._settled.heard()
                else:
                    await self._write_queue()
        self._disk.close()

    # ---- reading

    def newest(self, after: int, limit: int) -> list[bytes]:
        """The first `limit` bodies with a seq above `after` among the entries in memory, in order."""
        return [body for _, body in self._in_memory(after, limit)]

    async def read(self, after: int, limit: int) -> list[bytes]:
        """The first `limit` bodies with a seq above `after`, from memory, or from disk where that does not reach back.

        Raises LogCorrupt and LogUnavailable for the disk's part.
        """
        return [body for _, body in await self._read(after, limit)]

    async def follow(self, after: int) -> AsyncIterator[bytes]:
        """Every body with a seq above `after`: old ones first, then each as it comes. Raises as `read` does."""
        while True:
            page = await self._read(after, _PAGE)
            for seq, body in page:
                after = seq
                yield body
            if not page:
                await self._entry_came.heard()

    @property
    def directory(self) -> Path:
        """Where its segments lie."""
        return self._disk.directory

    @property
    def status(self) -> LogStatus:
        """How the log is doing now."""
        disk = self._disk
        return LogStatus(
            last_seq=self._last_seq,
            durable_seq=disk.durable_seq,
            degraded=self.degraded,
            queued=len(self._queue),
            dropped=self._dropped,
            segments=disk.segments,
            bytes_total=disk.bytes_total,
        )

    @property
    def degraded(self) -> str | None:
        """Why entries are not reaching the disk now; None when they are."""
        if self._failure is not None:
            return self._failure
        began_ms = self._write_began_ms
        if began_ms is not None and self._now_ms() - began_ms >= self._bounds.hang_ms:
            return f"the disk has not answered for {self._now_ms() - began_ms} ms: {self._disk.directory}"
        if not self._takes_entries and self._gaps:
            return "entries are left out until a new segment starts"
        return None

    # ---- inside

    @property
    def _may_resume(self) -> bool:
        return self._failure is None and not self._queue

    def _enqueue(self, kind: Kind, seq: int, body: bytes) -> None:
        self._last_ticket += 1
        self._queue.append(Queued(self._last_ticket, kind, seq, body))
        self._queued_bytes += len(body)
        self._segment_bytes += len(body) + ENVELOPE_BYTES
        self._queue_grew.ring()

    def _leave_out(self, seq: int) -> None:
        """Notes an entry that will never reach the disk; those after it must wait for a snapshot."""
        self._takes_entries = False
        self._dropped += 1
        if self._gaps and self._gaps[-1][1] == seq - 1:
            self._gaps[-1] = (self._gaps[-1][0], seq)
        else:
            self._gaps.append((seq, seq))

    def _is_left_out(self, seq: int) -> bool:
        return any(first <= seq <= last for first, last in self._gaps)

    async def _write_queue(self) -> bool:
        """One group: True when all of it is on disk."""
        group = list(self._queue)
        self._write_began_ms = self._now_ms()
        try:
            await _in_thread(self._disk.write, group)
            self._failure = None
        except LogUnavailable as error:
            self._failure = str(error)
            if isinstance(error, SegmentLost):
                self._give_up_segment()
        finally:
            self._write_began_ms = None
            self._forget_written()
            self._settled.ring()
        return self._failure is None

    def _give_up_segment(self) -> None:
        """The file is gone, and with it the place of all that is queued; a new segment can start at once."""
        for line in self._queue:
            if line.kind == "entry" and line.ticket > self._disk.written_ticket:
                self._leave_out(line.seq)
        self._takes_entries = False
        self._queue.clear()
        self._queued_bytes = 0
        self._failure = None

    def _forget_written(self) -> None:
        while self._queue and self._queue[0].ticket <= self._disk.written_ticket:
            self._queued_bytes -= len(self._queue.popleft().body)

    def _in_memory(self, after: int, limit: int) -> list[tuple[int, bytes]]:
        """What is in memory above `after`: the newest entries, and older ones that still wait for the disk."""
        wanted: deque[tuple[int, bytes]] = deque()
        for entry in reversed(self._newest):
            if entry[0] <= after:
                return list(islice(wanted, limit))
            wanted.appendleft(entry)
        first_seq = wanted[0][0] if wanted else self._last_seq + 1
        waiting = (
            (line.seq, line.body) for line in self._queue if line.kind == "entry" and after < line.seq < first_seq
        )
        return list(islice(chain(waiting, wanted), limit))

    async def _read(self, after: int, limit: int) -> list[tuple[int, bytes]]:
        """From memory where it reaches back to `after`; else from disk, completed from memory."""
        if after >= self._last_seq or (self._newest and self._newest[0][0] <= after + 1):
            return self._in_memory(after, limit)
        entries = await _in_thread(read_entries, self._disk.directory, after, limit)
        reached = entries[-1][0] if entries else after
        return entries + self._in_memory(reached, limit - len(entries))


def _seq_of_line(body: bytes) -> int:
    """The `seq` of a body that may become a line of the log; raises ValueError for any other."""
    if b"\n" in body:
        raise ValueError("a body of the log must be one line")
    return seq_of(body)


async def _in_thread(call: Callable[[*Arguments], Result], *arguments: *Arguments) -> Result:
    """Runs what may hang in a thread that takes no place from others (a limiter of its own) and can be abandoned."""
    return await anyio.to_thread.run_sync(call, *arguments, abandon_on_cancel=True, limiter=anyio.CapacityLimiter(1))
