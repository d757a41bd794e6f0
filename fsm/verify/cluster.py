"""The checks of several nodes' logs against each other. etcd's revisions are the order; no clock is compared."""

from collections.abc import Sequence
from itertools import combinations

from fsm.verify.findings import Book
from fsm.verify.seen import Raised, Reign, Seen, Sight


def check_together(book: Book, logs: Sequence[Seen]) -> str | None:
    """Compare what the nodes saw; why revisions could not be compared, None where they could."""
    _check_writers(book, logs)
    _check_positions(book, logs)
    if any(seen.is_wiped for seen in logs):
        return "etcd's history began anew in between, so that revisions before and after it do not compare"
    _check_keys(book, logs)
    _check_reigns(book, [reign for seen in logs for reign in seen.reigns])
    _check_timelines(book, [raised for seen in logs for raised in seen.raised])
    _check_sync(book, logs)
    return None


def _judge(book: Book, check: str, holds: bool, sight: Sight, text: str) -> None:
    book.check(check, holds, sight.node, sight.seq, text)


def _check_keys(book: Book, logs: Sequence[Seen]) -> None:
    known: dict[tuple[str, int], tuple[str, Sight]] = {}
    for seen in logs:
        for (key, revision), (value, sight) in seen.keys.items():
            other, first = known.setdefault((key, revision), (value, sight))
            if first is not sight:
                told = f"{key} at revision {revision} is another than {first.node}#{first.seq} saw"
                _judge(book, "keys", other == value, sight, told)


def _check_reigns(book: Book, reigns: list[Reign]) -> None:
    for one, two in combinations(sorted(reigns, key=lambda reign: reign.key_revision), 2):
        if one.node != two.node:
            told = (
                f"it led until revision {one.last_revision} at least, and {two.node} by the key of {two.key_revision} "
                f"since #{two.seq}"
            )
            is_apart = one.last_revision < two.key_revision
            _judge(book, "reigns", is_apart, Sight(one.node, one.last_seq), told)


def _check_timelines(book: Book, raised: list[Raised]) -> None:
    begun: dict[tuple[str, int], Raised] = {}
    for one in raised:
        if one.timeline:
            first = begun.setdefault((one.system_id, one.timeline), one)
            is_same = (first.sight.node, first.term) == (one.sight.node, one.term)
            told = f"timeline {one.timeline} was begun by {first.sight.node}#{first.sight.seq} before"
            _judge(book, "timelines", is_same, one.sight, told)


def _check_writers(book: Book, logs: Sequence[Seen]) -> None:
    writers: dict[tuple[str, int], Sight] = {}
    for seen in logs:
        for (system_id, timeline), sight in seen.primaries.items():
            first = writers.setdefault((system_id, timeline), sight)
            told = f"timeline {timeline} was written by {first.node}#{first.seq} too"
            _judge(book, "timelines", first.node == sight.node, sight, told)


def _check_sync(book: Book, logs: Sequence[Seen]) -> None:
    """Between the `sync` key that a candidate stood by and its leader key nobody wrote another one."""
    written = sorted({revision for seen in logs for key, revision in seen.keys if key == "sync"})
    created = {revision for seen in logs for revision in seen.created}
    for taken in (taken for seen in logs for taken in seen.taken if taken.key_revision in created):
        later = [revision for revision in written if taken.sync_revision < revision < taken.key_revision]
        told = f"it stood by sync of revision {taken.sync_revision}, and took the key of {taken.key_revision}; {later}"
        _judge(book, "sync", not later, taken.sight, told)


def _check_positions(book: Book, logs: Sequence[Seen]) -> None:
    flushed: dict[tuple[str, int, str], tuple[int, Sight]] = {}
    for seen in logs:
        for key, (lsn, sight) in seen.flushed.items():
            flushed[key] = max(flushed.get(key, (0, sight)), (lsn, sight))
    for one in (one for seen in logs for one in seen.raised):
        found = flushed.get((one.system_id, one.old_timeline, one.sight.node.lower()))
        if found is not None and one.position_lsn is not None:
            lsn, sight = found
            told = f"it stands at {one.position_lsn}, and {sight.node}#{sight.seq} saw it to have {lsn} on disk"
            _judge(book, "positions", one.position_lsn >= lsn, one.sight, told)
