"""A chronicle in plain sentences, each with the entries that it rests on. Pure."""

from collections.abc import Iterator, Sequence

from fsm.facts import Fact
from fsm.story.chronicle import Chronicle
from fsm.story.moments import Moment
from fsm.story.outages import Instant, Outage, Overlap

NEAR_KINDS = frozenset({"close call", "failsafe", "server silent"})
"""What costs nobody anything, and might have."""
TOLD_KINDS = frozenset(
    {"moved", "leader key", "server gone", "told to start", "told to promote", "writable", "asked", "rebuilt",
     "rebuilding failed", "etcd lost", "etcd back", "server silent", "failsafe", "close call", "agent started"}
)  # fmt: skip


class Reference(Fact, frozen=True, kw_only=True):
    """An entry of a node's log."""

    node: str
    seq: int

    def __str__(self) -> str:
        return f"{self.node}#{self.seq}"


class Sentence(Fact, frozen=True, kw_only=True):
    """A sentence, and what it rests on. `at_ms`: when, on the common clock; None for one about the whole."""

    text: str
    at_ms: int | None = None
    rests_on: tuple[Reference, ...] = ()


class Tale(Fact, frozen=True, kw_only=True):
    """An outage as it is told."""

    title: str
    outage: Outage
    sentences: tuple[Sentence, ...]
    why_not: tuple[Sentence, ...] = ()
    """Why each other member was not promoted."""


def tale_of(outage: Outage, number: int) -> Tale:
    """An outage in sentences, in their order."""
    return Tale(
        title=f"{number}. {title_of(outage)}",
        outage=outage,
        sentences=tuple(_sentences(outage)),
        why_not=tuple(_why_not(outage)),
    )


def title_of(outage: Outage) -> str:
    """Who led before and after, and for how long nobody did."""
    to = outage.to_node
    if to is None:
        return f"nobody takes writes since {outage.from_node} stopped"
    who = f"{outage.from_node} to {to}" if to != outage.from_node else f"{to} came back"
    most = "" if outage.is_begin_known else "at most "
    kind = "planned, " if outage.is_planned else ""
    return f"{who}: {kind}{most}{span_text(outage.lasted_ms or 0)} without a primary"


def span_text(span_ms: int) -> str:
    """A span of time as people say it."""
    if span_ms < 1_000:
        return f"{span_ms} ms"
    if span_ms < 120_000:
        return f"{span_ms / 1000:.1f} s"
    minutes, seconds = divmod(round(span_ms / 1000), 60)
    return f"{minutes} min {seconds} s" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _sentences(outage: Outage) -> Iterator[Sentence]:
    known = "" if outage.is_begin_known else " The last sign of it is the begin of what is counted here."
    yield Sentence(text=f"{outage.cause}.{known}", at_ms=outage.since_ms, rests_on=_begin(outage))
    seen: set[tuple[str, str]] = set()
    for instant in outage.moments:
        moment = instant.moment
        if moment.kind not in TOLD_KINDS or _is_said_before(moment, seen):
            continue
        yield Sentence(text=_subject(moment), at_ms=instant.common_ms, rests_on=(_reference(moment),))
    parts = [f"{what} {span_text(found)}" for what, found in parts_of(outage) if found is not None]
    if parts:
        yield Sentence(text=f"Where the time went: {', '.join(parts)}.")


def parts_of(outage: Outage) -> tuple[tuple[str, int | None], ...]:
    """The parts of an outage that follow each other; `fence` lies within `detect` where somebody stepped down."""
    detect_ms = outage.detect_ms
    if detect_ms is not None and outage.fence_ms is not None:
        detect_ms = max(0, detect_ms - outage.fence_ms)
    return (
        ("fence", outage.fence_ms),
        ("detect", detect_ms),
        ("decide", outage.decide_ms),
        ("promote", outage.promote_ms),
    )


def _begin(outage: Outage) -> tuple[Reference, ...]:
    before = [i for i in outage.moments if i.common_ms <= outage.since_ms and i.moment.node == outage.from_node]
    return (_reference(before[-1].moment),) if before else ()


def _is_said_before(moment: Moment, seen: set[tuple[str, str]]) -> bool:
    """A change of the leader key is heard by everybody: it is told once."""
    if moment.kind != "leader key" and not (moment.kind == "asked" and moment.text.startswith("the failover key")):
        return False
    what = (moment.kind, f"{moment.text}@{moment.revision}")
    if what in seen:
        return True
    seen.add(what)
    return False


def _subject(moment: Moment) -> str:
    if moment.kind == "leader key":
        return f"The leader key names {moment.value or 'nobody'}; {moment.node} was the first to hear it."
    if moment.kind == "agent started":
        return f"{moment.text[0].upper()}{moment.text[1:]}."
    rule = f" [{moment.rule}]" if moment.kind == "moved" else ""
    return f"{moment.node}: {moment.text}{rule}."


def _reference(moment: Moment) -> Reference:
    return Reference(node=moment.node, seq=moment.seq)


def _why_not(outage: Outage) -> Iterator[Sentence]:
    if outage.order is None:
        return
    rests_on = (_reference(outage.order),)
    for contender in outage.order.others:
        because = "; ".join(contender.because) or "nothing spoke against it: whoever took the key first"
        verdict = {"wins": "could have won", "may win": "could have won", "loses": "was behind"}
        text = f"{contender.name} {verdict.get(contender.chance, 'could not')}: {because}."
        yield Sentence(text=text, rests_on=rests_on)


def near_misses(chronicle: Chronicle) -> list[Sentence]:
    """What cost nobody anything, and might have: outside the outages, in order."""
    found = [i for i in chronicle.instants if i.moment.kind in NEAR_KINDS and not _is_within(i, chronicle.outages)]
    return [Sentence(text=_subject(i.moment), at_ms=i.common_ms, rests_on=(_reference(i.moment),)) for i in found] + [
        _overlap_sentence(overlap) for overlap in chronicle.overlaps
    ]


def _is_within(instant: Instant, outages: Sequence[Outage]) -> bool:
    return any(o.since_ms <= instant.common_ms <= (o.until_ms or instant.common_ms) for o in outages)


def _overlap_sentence(overlap: Overlap) -> Sentence:
    one, other = overlap.one, overlap.other
    text = (
        f"TWO PRIMARIES by what the logs tell: {one.node} (timeline {one.timeline}) and {other.node} "
        f"(timeline {other.timeline}) for {span_text(overlap.lasted_ms)}."
    )
    return Sentence(text=text, at_ms=other.since_ms, rests_on=(_reference(one.began), _reference(other.began)))


def doubts_of(chronicle: Chronicle) -> list[Sentence]:
    """What the logs cannot tell: missing nodes, gaps, clocks that nothing joins, clocks that were set."""
    found = [
        Sentence(text=f"The log of {name} was not given: what happened there is known from the others only.")
        for name in chronicle.unheard
    ]
    for log in chronicle.logs:
        if log.missing:
            found.append(Sentence(text=f"{log.node}: {log.missing} entries never reached the disk."))
        if log.skipped:
            found.append(Sentence(text=f"{log.node}: {log.skipped} entries could not be decided again."))
        if log.difference is not None:
            place = Reference(node=log.node, seq=log.difference.seq)
            text = f"{log.node}: deciding entry {place.seq} again gave another {log.difference.part}."
            found.append(Sentence(text=text, rests_on=(place,)))
    for clock in chronicle.clocks:
        if clock.source == "wall clock" and len(chronicle.clocks) > 1:
            found.append(Sentence(text=f"{clock.node}: nothing joins its log to the others but its wall clock."))
        if abs(clock.wall_ahead_ms) > 1_000:
            how = "ahead" if clock.wall_ahead_ms > 0 else "behind"
            text = f"{clock.node}: its wall clock was {span_text(abs(clock.wall_ahead_ms))} {how} of the others."
            found.append(Sentence(text=text))
        found.extend(
            Sentence(
                text=f"{clock.node}: its wall clock was set {'forward' if step.by_ms > 0 else 'back'} "
                f"by {span_text(abs(step.by_ms))}.",
                at_ms=clock.common_ms(step.at_ms),
                rests_on=(Reference(node=clock.node, seq=step.seq),),
            )
            for step in clock.steps
        )
    return found
