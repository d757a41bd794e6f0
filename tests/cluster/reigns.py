"""When servers took writes, and whether two did at once. Pure."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

import msgspec

SERVERS_WORD = """
substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8), (extract(epoch FROM clock_timestamp()) * 1000)::float8"""
"""What a write returns: on which timeline the server took it, and when, by its own clock."""
CLOSE_MS = 500
"""Writes of a server nearer to each other than this are one stretch; the monitor tries one every 20 ms."""
SHORTEST_MS = 1.0


class Taken(msgspec.Struct, frozen=True):
    """One write that a server took, by the server's own clock: all of them are this machine's."""

    server: str
    timeline: str
    at_ms: float


class Overlap(msgspec.Struct, frozen=True):
    """Two reigns, one of which took a write while the other was not over."""

    one: str
    other: str
    from_ms: float
    until_ms: float
    lasted_ms: float
    """How long both took writes again and again: without the time in which one of them stood still between two writes.
    A single write counts for a millisecond."""

    def __str__(self) -> str:
        return (
            f"{self.one} and {self.other} for {self.lasted_ms:.1f} ms, from {self.from_ms:.1f} to {self.until_ms:.1f}"
        )


def taken_by(server: str, row: tuple[object, ...] | None) -> Taken:
    """A write, from the row that it returned."""
    assert row is not None
    timeline, at_ms = row
    assert isinstance(timeline, str)
    assert isinstance(at_ms, float)
    return Taken(server, timeline, at_ms)


def overlaps_of(taken: Iterable[Taken]) -> list[Overlap]:
    """The intervals in which two servers took writes.

    A reign is what one server takes on one timeline, from its first write to its last, whatever interrupts it: each
    promotion makes a new timeline, so two reigns of different servers may never overlap, not even interleaved.
    """
    reigns: dict[tuple[str, str], list[float]] = defaultdict(list)
    for one in taken:
        reigns[one.server, one.timeline].append(one.at_ms)
    spans = sorted((min(times), max(times), reign) for reign, times in reigns.items())
    found = []
    for number, (_, until_ms, reign) in enumerate(spans):
        for from_ms, other_until_ms, other in spans[number + 1 :]:
            if other[0] != reign[0] and from_ms <= until_ms:
                lasted_ms = _together_ms(_stretches(reigns[reign]), _stretches(reigns[other]))
                first, second = (f"{server} on timeline {int(timeline, 16)}" for server, timeline in (reign, other))
                found.append(
                    Overlap(first, second, from_ms, min(until_ms, other_until_ms), max(SHORTEST_MS, lasted_ms))
                )
    return found


def _stretches(instants_ms: Iterable[float]) -> list[tuple[float, float]]:
    """The intervals in which writes followed one another closely."""
    found: list[tuple[float, float]] = []
    for at_ms in sorted(instants_ms):
        if found and at_ms - found[-1][1] <= CLOSE_MS:
            found[-1] = (found[-1][0], at_ms)
        else:
            found.append((at_ms, at_ms))
    return found


def _together_ms(one: Iterable[tuple[float, float]], other: Sequence[tuple[float, float]]) -> float:
    """How much of two sets of intervals is in both."""
    return sum(max(0.0, min(a[1], b[1]) - max(a[0], b[0])) for a in one for b in other)
