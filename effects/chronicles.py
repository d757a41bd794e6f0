"""Reads logs into a chronicle: decides every entry again, so that what each node knew is known. Only files are read."""

from collections.abc import Callable, Sequence
from pathlib import Path

from effects.log_reader import Line, read_log
from fsm.entries import Entry, decode_entry, decode_snapshot
from fsm.replay import Replay
from fsm.story.chronicle import Chronicle, LogReader, chronicle_of
from fsm.view import View

Progress = Callable[[int], object]
"""Called with how many bytes were read since it was called last."""

TOLD_EVERY_BYTES = 1 << 20


def read_chronicle(logs: Sequence[Path], progress: Progress = lambda _: None) -> Chronicle:
    """The chronicle of some logs.

    Args:
        logs: one directory of segments, or one segment, for each node.
        progress: is told how far it has come.

    Raises: LogCorrupt for a line that is not what was written, LogUnavailable for a file that cannot be read.
    """
    return chronicle_of(_read_one(log, progress) for log in logs)


def read_entries_of(logs: Sequence[Path], wanted: dict[str, set[int]]) -> dict[tuple[str, int], Entry]:
    """Some entries, by node and number; those that the logs do not have are left out."""
    found = {}
    for log in logs:
        for line in read_log([log]):
            if line.kind == "entry" and any(line.seq in numbers for numbers in wanted.values()):
                entry = decode_entry(line.body)
                if entry.seq in wanted.get(entry.node, ()):
                    found[entry.node, entry.seq] = entry
    return found


def _read_one(log: Path, progress: Progress) -> LogReader:
    reader, replay = LogReader(), Replay()
    view: View | None = None
    unread_bytes = 0
    for line in read_log([log]):
        view = _taken(line, reader, replay, view)
        unread_bytes += len(line.body)
        if unread_bytes >= TOLD_EVERY_BYTES:
            progress(unread_bytes)
            unread_bytes = 0
    progress(unread_bytes)
    reader.missing, reader.skipped = replay.verdict.missing, replay.verdict.skipped
    reader.difference = replay.verdict.difference
    return reader


def _taken(line: Line, reader: LogReader, replay: Replay, before: View | None) -> View | None:
    """One line read; what the node knows after it, None where that is not known."""
    differed = replay.verdict.difference is not None
    if not differed:
        replay.take(line.kind, line.body, line.missing)
    if line.kind == "snapshot":
        return decode_snapshot(line.body).view if not differed else None
    after = replay.view if replay.verdict.difference is None else None
    reader.take(decode_entry(line.body), before if after is not None else None, after)
    return after
