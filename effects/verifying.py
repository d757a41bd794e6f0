"""Reads logs for the checks of fsm/verify. Only files are read."""

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from effects.log_reader import LogReading, read_log
from fsm.entries import decode_entry, decode_snapshot
from fsm.facts import Fact
from fsm.verify.cluster import check_together
from fsm.verify.findings import Book, Finding
from fsm.verify.node import NodeCheck

Progress = Callable[[int], object]
TOLD_EVERY_BYTES = 1 << 18


class Read(Fact, frozen=True, kw_only=True):
    """How much of one log was read."""

    path: str
    node: str
    entries: int
    missing: int = 0
    skipped: int = 0
    """Entries before the first snapshot, which cannot be decided again."""
    other_tables: int = 0
    torn_bytes: int = 0


class Verification(Fact, frozen=True, kw_only=True):
    """What the checks said. `looked`: how often each had something to look at."""

    logs: tuple[Read, ...]
    looked: dict[str, int]
    found: dict[str, int]
    findings: tuple[Finding, ...]
    doubt: str | None = None
    """Why the nodes could not be compared by revisions."""

    @property
    def holds(self) -> bool:
        """True when nothing was found."""
        return not self.findings


def verify_logs(logs: Sequence[Path], progress: Progress = lambda _: None) -> Verification:
    """Check some logs, each by itself and all together.

    Args:
        logs: one directory of segments, or one segment, for each node.
        progress: is told how many bytes were read since it was told last.

    Raises: LogCorrupt for a line that is not what was written, LogUnavailable for a file that cannot be read.
    """
    book = Book()
    checks, reads = [], []
    for log in logs:
        check, reading = NodeCheck(book), read_log([log])
        count = _read(check, reading, progress)
        checks.append(check)
        reads.append(
            Read(
                path=str(log),
                node=check.name,
                entries=count,
                missing=check.replay.verdict.missing,
                skipped=check.replay.verdict.skipped,
                other_tables=check.other_tables,
                torn_bytes=sum(torn.torn_bytes for torn in reading.torn),
            )
        )
    doubt = check_together(book, [check.seen for check in checks])
    return Verification(
        logs=tuple(reads), looked=dict(book.looked), found=dict(book.found), findings=tuple(book.findings), doubt=doubt
    )


def _read(check: NodeCheck, reading: LogReading, progress: Progress) -> int:
    count = unread_bytes = 0
    for line in reading:
        if line.kind == "snapshot":
            check.snapshot(decode_snapshot(line.body), line.missing)
        else:
            check.entry(decode_entry(line.body), line.missing)
            count += 1
        unread_bytes += len(line.body)
        if unread_bytes >= TOLD_EVERY_BYTES:
            progress(unread_bytes)
            unread_bytes = 0
    progress(unread_bytes)
    return count


def encode_verification(found: Verification) -> bytes:
    """The JSON of a verification."""
    return msgspec.json.encode(found)
