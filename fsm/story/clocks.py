"""One clock for the logs of several nodes: where each node's own clock stands on it, and how well that is known. Pure.

An entry's instant is CLOCK_BOOTTIME of its node, which nobody sets; the wall clock beside it is for people and may be
wrong, or be set meanwhile. What nodes have in common is etcd: its revisions are heard by every watch within
milliseconds of each other. So the clock of one boot is laid upon another's by the median distance of what both heard,
and the wall clock of the node that wrote most gives the common clock its date. Where two logs share no revision only
their wall clocks are left, and that is said.
"""

from collections import defaultdict, deque
from collections.abc import Iterable, Mapping
from datetime import datetime
from statistics import median
from typing import Literal

from fsm.entries import Entry
from fsm.events import KeysChanged
from fsm.facts import Fact

WALL_STEP_MS = 1_000
"""A wall clock that moved against the node's own clock by more than this was set, rather than slewed."""
SAMPLE_EVERY_MS = 1_000
"""How often the wall clock is looked at, and how much the first entry of a boot counts."""

Source = Literal["reference", "same machine", "etcd", "wall clock"]


class WallStep(Fact, frozen=True, kw_only=True):
    """The wall clock of a node was set. `by_ms`: forward if positive."""

    seq: int
    at_ms: int
    by_ms: int


class Clock(Fact, frozen=True, kw_only=True):
    """Where the clock of one boot of a node stands on the common one."""

    node: str
    boot: str
    offset_ms: int
    """Added to an entry's instant: milliseconds since 1970 on the common clock."""
    source: Source
    shared: int = 0
    """How many revisions it was laid by."""
    spread_ms: int = 0
    """Within how much nine of ten of those agree; what is nearer together than that has no known order."""
    wall_ahead_ms: int = 0
    """How far the node's wall clock is ahead of the common one; negative: behind."""
    steps: tuple[WallStep, ...] = ()

    def common_ms(self, at_ms: int) -> int:
        """An instant of this boot on the common clock, in milliseconds since 1970."""
        return at_ms + self.offset_ms


class ClockSamples:
    """Gathers what the clocks of one node's log can be laid by; entries are taken in their order."""

    def __init__(self, node: str) -> None:
        self.node = node
        self.heard: dict[str, dict[int, int]] = defaultdict(dict)
        """By boot: when each revision was heard."""
        self.walls: dict[str, list[int]] = defaultdict(list)
        """By boot: wall clock less own clock, looked at now and then."""
        self.steps: dict[str, list[WallStep]] = defaultdict(list)
        self._sampled_at_ms: dict[str, int] = {}

    def take(self, entry: Entry) -> None:
        """One entry."""
        boot, at_ms = entry.boot, entry.event.at_ms
        if isinstance(entry.event, KeysChanged):
            self.heard[boot].setdefault(entry.event.revision, at_ms)
        if at_ms - self._sampled_at_ms.get(boot, -SAMPLE_EVERY_MS) >= SAMPLE_EVERY_MS:
            self._sampled_at_ms[boot] = at_ms
            self._look_at_the_wall(entry, boot, at_ms)

    def _look_at_the_wall(self, entry: Entry, boot: str, at_ms: int) -> None:
        wall_ms = parsed_wall_ms(entry.wall)
        if wall_ms is None:
            return
        walls, distance_ms = self.walls[boot], wall_ms - at_ms
        if walls and abs(by_ms := distance_ms - walls[-1]) > WALL_STEP_MS:
            self.steps[boot].append(WallStep(seq=entry.seq, at_ms=at_ms, by_ms=by_ms))
        walls.append(distance_ms)


def parsed_wall_ms(text: str) -> int | None:
    """Milliseconds since 1970 of an entry's wall clock; None where it is none."""
    try:
        return round(datetime.fromisoformat(text).timestamp() * 1000)
    except (ValueError, OverflowError):
        return None


def laid_upon_each_other(samples: Iterable[ClockSamples]) -> dict[tuple[str, str], Clock]:
    """The clock of each node and boot.

    Args:
        samples: of all logs, each wholly taken.

    Returns:
        Clocks by node and boot. Those that nothing joins to the reference are there too, by their wall clocks.
    """
    gathered = {(one.node, boot): one for one in samples for boot in {**one.walls, **one.heard}}
    if not gathered:
        return {}
    reference = max(gathered, key=lambda key: (len(gathered[key].heard[key[1]]), len(gathered[key].walls[key[1]])))
    offset_ms = _own_offset_ms(gathered[reference], reference[1])
    clocks = {reference: _clock(gathered, reference, offset_ms, "reference")}
    waiting = deque([reference])
    while waiting:
        known = waiting.popleft()
        for key in [key for key in gathered if key not in clocks]:
            laid = _laid(gathered, known, key, clocks[known].offset_ms)
            if laid is not None:
                clocks[key] = laid
                waiting.append(key)
    for key in [key for key in gathered if key not in clocks]:
        clocks[key] = _clock(gathered, key, _own_offset_ms(gathered[key], key[1]), "wall clock")
    return clocks


def _own_offset_ms(samples: ClockSamples, boot: str) -> int:
    return round(median(samples.walls[boot])) if samples.walls[boot] else 0


def _laid(
    gathered: Mapping[tuple[str, str], ClockSamples], known: tuple[str, str], key: tuple[str, str], offset_ms: int
) -> Clock | None:
    if known[1] == key[1]:
        return _clock(gathered, key, offset_ms, "same machine")
    mine, theirs = gathered[key].heard[key[1]], gathered[known].heard[known[1]]
    distances = sorted(theirs[revision] - at_ms for revision, at_ms in mine.items() if revision in theirs)
    if not distances:
        return None
    middle_ms = round(median(distances))
    spread_ms = sorted(abs(distance - middle_ms) for distance in distances)[len(distances) * 9 // 10]
    return _clock(gathered, key, offset_ms + middle_ms, "etcd", len(distances), spread_ms)


def _clock(
    gathered: Mapping[tuple[str, str], ClockSamples],
    key: tuple[str, str],
    offset_ms: int,
    source: Source,
    shared: int = 0,
    spread_ms: int = 0,
) -> Clock:
    node, boot = key
    return Clock(
        node=node,
        boot=boot,
        offset_ms=offset_ms,
        source=source,
        shared=shared,
        spread_ms=spread_ms,
        wall_ahead_ms=_own_offset_ms(gathered[key], boot) - offset_ms,
        steps=tuple(gathered[key].steps[boot]),
    )
