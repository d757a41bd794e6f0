"""All logs of a cluster made into one chronicle: clocks, states, reigns, outages, and what could not be read. Pure."""

from collections.abc import Iterable, Mapping

from fsm.entries import Entry
from fsm.events import AgentStarted
from fsm.facts import Fact
from fsm.replay import Difference
from fsm.states import State
from fsm.story.clocks import Clock, ClockSamples, laid_upon_each_other
from fsm.story.moments import MomentCollector
from fsm.story.outages import Instant, Outage, Overlap, Reign, on_the_common_clock, outages_of, overlaps_of, reigns_of
from fsm.view import View


class LogSummary(Fact, frozen=True, kw_only=True):
    """What one node's log was worth."""

    node: str
    entries: int
    moves: Mapping[str, int]
    """How often each rule moved it."""
    first_ms: int
    """Its first and its last entry, on the common clock."""
    last_ms: int
    missing: int = 0
    """Entries that never reached its disk."""
    skipped: int = 0
    """Entries from which nothing can be decided again: before the first snapshot, or behind a gap."""
    difference: Difference | None = None
    """Where deciding again gave something else; nothing behind it is told."""


class Lane(Fact, frozen=True, kw_only=True):
    """A node was in a state. `until_ms`: None at the end of its log."""

    node: str
    state: State
    since_ms: int
    until_ms: int | None
    seq: int
    rule: str | None = None


class Chronicle(Fact, frozen=True, kw_only=True):
    """Everything that is told of a cluster."""

    logs: tuple[LogSummary, ...]
    clocks: tuple[Clock, ...]
    instants: tuple[Instant, ...]
    lanes: tuple[Lane, ...]
    reigns: tuple[Reign, ...]
    outages: tuple[Outage, ...]
    overlaps: tuple[Overlap, ...]
    unheard: tuple[str, ...] = ()
    """Members that the logs speak of and whose own logs were not given."""


class LogReader:
    """Takes one node's log entry by entry, with what the node knew before and after each."""

    def __init__(self) -> None:
        self.node = ""
        self.entries = 0
        self.moves: dict[str, int] = {}
        self.missing = self.skipped = 0
        self.difference: Difference | None = None
        self.members: set[str] = set()
        self._collector: MomentCollector | None = None
        self._samples: ClockSamples | None = None
        self._first: tuple[str, int] | None = None
        self._states: list[tuple[str, int, State, int, str | None]] = []
        self._last: tuple[str, int] | None = None
        self._silences: list[tuple[tuple[str, int] | None, tuple[str, int]]] = []

    def take(self, entry: Entry, before: View | None, after: View | None) -> None:
        """One entry; without views where nothing could be decided again."""
        if self._collector is None or self._samples is None:
            self.node = entry.node
            self._collector, self._samples = MomentCollector(entry.node), ClockSamples(entry.node)
            self._first = (entry.boot, entry.event.at_ms)
        self.entries += 1
        self._samples.take(entry)
        if entry.rule is not None:
            self.moves[entry.rule] = self.moves.get(entry.rule, 0) + 1
        if isinstance(entry.event, AgentStarted):
            self._silences.append((self._last, (entry.boot, entry.event.at_ms)))
        self._last = (entry.boot, entry.event.at_ms)
        if not self._states or self._states[-1][2] is not entry.after or isinstance(entry.event, AgentStarted):
            self._states.append((entry.boot, entry.event.at_ms, entry.after, entry.seq, entry.rule))
        if before is not None and after is not None:
            self._collector.take(entry, before, after)
            self.members.update(after.members)

    @property
    def collector(self) -> MomentCollector:
        """What mattered. Raises: ValueError for a log without an entry."""
        if self._collector is None:
            raise ValueError("a log without an entry")
        return self._collector

    @property
    def samples(self) -> ClockSamples:
        """What its clocks can be laid by. Raises: ValueError for a log without an entry."""
        if self._samples is None:
            raise ValueError("a log without an entry")
        return self._samples

    def summary(self, clocks: Mapping[tuple[str, str], Clock]) -> LogSummary:
        """What it was worth."""
        assert self._first is not None
        return LogSummary(
            node=self.node,
            entries=self.entries,
            moves=self.moves,
            first_ms=self._common(clocks, *self._first),
            last_ms=self._last_ms(clocks),
            missing=self.missing,
            skipped=self.skipped,
            difference=self.difference,
        )

    def lanes(self, clocks: Mapping[tuple[str, str], Clock]) -> list[Lane]:
        """Its states one after another."""
        starts = [self._common(clocks, boot, at_ms) for boot, at_ms, *_ in self._states]
        silent_from = {
            self._common(clocks, *back): self._common(clocks, *last)
            for last, back in self._silences
            if last is not None
        }
        # Between an agent's last entry and the next one's first nobody knows in which state the node was.
        ends: list[int | None] = [*(silent_from.get(start, start) for start in starts[1:]), None]
        return [
            Lane(node=self.node, state=state, since_ms=since_ms, until_ms=until_ms, seq=seq, rule=rule)
            for (_, _, state, seq, rule), since_ms, until_ms in zip(self._states, starts, ends, strict=True)
        ]

    def _common(self, clocks: Mapping[tuple[str, str], Clock], boot: str, at_ms: int) -> int:
        return clocks[self.node, boot].common_ms(at_ms)

    def _last_ms(self, clocks: Mapping[tuple[str, str], Clock]) -> int:
        assert self._last is not None
        return self._common(clocks, *self._last)


def chronicle_of(readers: Iterable[LogReader]) -> Chronicle:
    """The chronicle of the logs that were read; those without an entry are passed over."""
    read = [reader for reader in readers if reader.entries]
    clocks = laid_upon_each_other(reader.samples for reader in read)
    instants = on_the_common_clock((moment for reader in read for moment in reader.collector.moments), clocks)
    reigns = reigns_of(instants, _proofs(read, clocks))
    members = {name for reader in read for name in reader.members}
    return Chronicle(
        logs=tuple(reader.summary(clocks) for reader in read),
        clocks=tuple(clocks.values()),
        instants=tuple(instants),
        lanes=tuple(lane for reader in read for lane in reader.lanes(clocks)),
        reigns=tuple(reigns),
        outages=tuple(outages_of(instants, reigns)),
        overlaps=tuple(overlaps_of(reigns)),
        unheard=tuple(sorted(members - {reader.node for reader in read})),
    )


def _proofs(
    readers: Iterable[LogReader], clocks: Mapping[tuple[str, str], Clock]
) -> dict[tuple[str, int], tuple[int, int]]:
    """By node and entry of a reign's begin: the last entry that shows it, and when that was."""
    found = {}
    for reader in readers:
        begins = [moment for moment in reader.collector.moments if moment.kind == "writable"]
        for begin, (seq, boot, at_ms) in zip(begins, reader.collector.proofs, strict=True):
            found[reader.node, begin.seq] = (seq, clocks[reader.node, boot].common_ms(at_ms))
    return found
