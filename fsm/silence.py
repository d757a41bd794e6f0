"""What is known of something that does not answer: since when, by how many looks. Values, and how they grow.

A silence is counted only while this agent itself could run: where its own loop stood still, whatever did not come in
that time says nothing about who was asked, and the count begins anew.
"""

from fsm.facts import Fact
from fsm.timing import SILENCE_GAP_MS, STARVED_MS

WAL_SEGMENT_BYTES = 16 << 20
"""What PostgreSQL asks of the disk at once for more WAL, unless initdb was told otherwise. Source: --wal-segsize."""


class Silence(Fact, frozen=True, kw_only=True):
    """A silence without a gap. `looks`: how many looks in a row heard nothing."""

    since_ms: int
    told_at_ms: int
    looks: int

    @property
    def span_ms(self) -> int:
        """How long it had lasted when it was last told of: time in which nobody looked does not count."""
        return self.told_at_ms - self.since_ms


class Disk(Fact, frozen=True, kw_only=True):
    """The disk under the data directory, and under pg_wal where that lies elsewhere."""

    free_bytes: int | None = None
    """What the server's user may still write, of the two disks the fuller one's; None while nobody knows."""
    segment_bytes: int = WAL_SEGMENT_BYTES
    full_since_ms: int | None = None
    """Since when there is no room for one more WAL segment, or a write was refused for want of room."""
    is_full: bool = False
    """True from when that has lasted until there has clearly been more room for a while."""
    roomy_since_ms: int | None = None
    trouble: Silence | None = None
    """Writes that hang or fail for another reason than room; None while they get through."""
    detail: str = ""


def prolonged(before: Silence | None, *, began_ms: int, at_ms: int, lag_ms: int) -> Silence:
    """The silence after one more look that heard nothing.

    Args:
        before: the silence so far.
        began_ms: when the look began.
        at_ms: when it was given up.
        lag_ms: the longest that this agent's own loop stood still meanwhile.
    """
    if lag_ms >= STARVED_MS:
        return Silence(since_ms=at_ms, told_at_ms=at_ms, looks=0)
    if before is None or began_ms - before.told_at_ms > SILENCE_GAP_MS:
        return Silence(since_ms=began_ms, told_at_ms=at_ms, looks=1)
    return Silence(since_ms=before.since_ms, told_at_ms=at_ms, looks=before.looks + 1)
