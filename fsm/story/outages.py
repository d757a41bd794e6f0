"""Reigns and outages: who took writes from when to when, and where the time in between went. Pure.

A reign is the time in which one server took writes, as far as the logs tell: from the first look that showed it until
it was gone, or to the last sign of it where its node fell silent. What lies between two reigns is an outage.
Its parts, where they could be told:

detect   from the end of the reign until the node that led next (the same one, when its server was started again) knew
         of it: with a silent node that is the lease
fence    from the decision to step down until the server was gone
decide   from when it was known until a server was told to take writes
promote  from then until a look showed that it took them
route    how long clients and proxies took to find it: no agent can know that
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Literal

from msgspec.structs import replace

from fsm.facts import Fact
from fsm.states import State
from fsm.story.clocks import Clock
from fsm.story.moments import BECAUSE, Moment
from fsm.table import TABLE

END_RULES = frozenset(rule.id for rule in TABLE if rule.source is State.LEADER)
"""The rules by which a leader steps down."""

End = Literal["stepped down", "server gone", "fell silent", "goes on"]


class Instant(Fact, frozen=True, kw_only=True):
    """A moment on the common clock."""

    common_ms: int
    moment: Moment


class Reign(Fact, frozen=True, kw_only=True):
    """One server taking writes. `until_ms`: None while it goes on at the end of its log."""

    node: str
    timeline: int
    since_ms: int
    began: Moment
    until_ms: int | None
    end: End
    ended: Moment | None = None
    """What ended it; None where the node fell silent or the log ends."""
    last_seq: int = 0
    """The entry of the last sign of it, and when that was."""
    seen_until_ms: int = 0


class Outage(Fact, frozen=True, kw_only=True):
    """Nobody took writes. `to_node`: None while that lasts at the end of the logs."""

    from_node: str
    to_node: str | None
    since_ms: int
    until_ms: int | None
    cause: str
    """In one sentence, with the node as its subject."""
    is_planned: bool
    """Somebody asked for it."""
    rule: str | None
    """The rule by which the leader stepped down, if it did."""
    is_begin_known: bool
    """False where the old leader's node fell silent: then the outage began some time after `since_ms`."""
    detect_ms: int | None = None
    fence_ms: int | None = None
    decide_ms: int | None = None
    promote_ms: int | None = None
    moments: tuple[Instant, ...] = ()
    """What happened on all nodes from a little before until a little after."""
    order: Moment | None = None
    """The order to take writes that ended it."""

    @property
    def lasted_ms(self) -> int | None:
        """How long nobody took writes, at the most; None while it lasts."""
        return None if self.until_ms is None else self.until_ms - self.since_ms


class Overlap(Fact, frozen=True, kw_only=True):
    """Two servers took writes at once by what the logs tell."""

    one: Reign
    other: Reign
    lasted_ms: int


ORDERS = ("told to promote", "told to start")
PLANNED = frozenset({"switchover", "failover", "restart", "stop"})
"""What is asked for on purpose, and may cost a moment without a primary."""

BEFORE_MS, AFTER_MS = 3_000, 2_000
"""How much around an outage is told with it."""


def on_the_common_clock(moments: Iterable[Moment], clocks: Mapping[tuple[str, str], Clock]) -> list[Instant]:
    """All nodes' moments in one order: by instant, and by revision and entry where the instants are the same."""
    instants = [
        Instant(common_ms=clocks[moment.node, moment.boot].common_ms(moment.at_ms), moment=moment) for moment in moments
    ]
    return sorted(instants, key=lambda i: (i.common_ms, i.moment.revision, i.moment.node, i.moment.seq))


def reigns_of(instants: Sequence[Instant], proofs: Mapping[tuple[str, int], tuple[int, int]]) -> list[Reign]:
    """The reigns, by when they began.

    Args:
        instants: of all nodes, in order.
        proofs: by node and entry of a reign's begin: the entry of the last sign of it, and when that was.
    """
    found: list[Reign] = []
    for number, instant in enumerate(instants):
        if instant.moment.kind == "writable":
            reign = _reign(instant, instants[number + 1 :], proofs)
            index = next((i for i, before in enumerate(found) if _continues(before, reign)), None)
            if index is None:
                found.append(reign)
            else:
                found[index] = replace(reign, since_ms=found[index].since_ms, began=found[index].began)
    return _closed(sorted(found, key=lambda reign: reign.since_ms))


def _reign(begin: Instant, later: Sequence[Instant], proofs: Mapping[tuple[str, int], tuple[int, int]]) -> Reign:
    moment = begin.moment
    last_seq, seen_until_ms = proofs.get((moment.node, moment.seq), (moment.seq, begin.common_ms))
    ended = next((i for i in later if i.moment.node == moment.node and _ends_a_reign(i.moment)), None)
    end, until_ms = _end_of(ended, seen_until_ms)
    return Reign(
        node=moment.node,
        timeline=moment.timeline,
        since_ms=begin.common_ms,
        began=moment,
        until_ms=until_ms,
        end=end,
        ended=ended.moment if ended is not None and end != "fell silent" else None,
        last_seq=last_seq,
        seen_until_ms=seen_until_ms,
    )


def _ends_a_reign(moment: Moment) -> bool:
    if moment.kind == "moved":
        return moment.rule in END_RULES
    return moment.kind in ("server gone", "server absent", "standby", "agent started", "writable")


def _end_of(ended: Instant | None, seen_until_ms: int) -> tuple[End, int | None]:
    if ended is None:
        return "goes on", None
    if ended.moment.kind == "moved":
        return "stepped down", ended.common_ms
    if ended.moment.kind in ("server gone", "server absent"):
        return "server gone", ended.common_ms
    return "fell silent", seen_until_ms


def _continues(before: Reign, after: Reign) -> bool:
    """The same server, seen again by an agent that was started beside it."""
    return before.node == after.node and before.end == "fell silent" and before.began.value == after.began.value


def _closed(reigns: list[Reign]) -> list[Reign]:
    """A reign whose log ends goes on only if nobody reigns later: else its node was never heard of again."""
    latest_ms = max((reign.since_ms for reign in reigns), default=0)
    return [
        replace(reign, end="fell silent", until_ms=reign.seen_until_ms)
        if reign.end == "goes on" and reign.since_ms < latest_ms and reign.seen_until_ms < latest_ms
        else reign
        for reign in reigns
    ]


def overlaps_of(reigns: Sequence[Reign]) -> list[Overlap]:
    """Each two reigns that went on at once by what the logs tell; a node that fell silent counts to its last sign."""
    found = []
    for one, other in combinations(reigns, 2):
        until_ms = min(reign.until_ms or reign.seen_until_ms for reign in (one, other))
        if until_ms > other.since_ms:
            found.append(Overlap(one=one, other=other, lasted_ms=until_ms - other.since_ms))
    return found


def outages_of(instants: Sequence[Instant], reigns: Sequence[Reign]) -> list[Outage]:
    """What lies between each reign and the next, and behind the last one if it has ended."""
    found: list[Outage] = []
    for number, reign in enumerate(reigns):
        following = reigns[number + 1] if number + 1 < len(reigns) else None
        if reign.until_ms is None:
            continue
        since_ms = reign.until_ms - min(BEFORE_MS, (reign.until_ms - reign.since_ms) // 2)
        until_ms = following.since_ms + AFTER_MS if following is not None else None
        if following is not None and following.until_ms is not None:
            until_ms = following.since_ms + min(AFTER_MS, (following.until_ms - following.since_ms) // 2)
        found.append(_outage(_between(instants, since_ms, until_ms), reign, following))
    return found


def _outage(around: Sequence[Instant], reign: Reign, following: Reign | None) -> Outage:
    """An outage, of which everything that happened around it is given."""
    assert reign.until_ms is not None
    since_ms, until_ms = reign.until_ms, following.since_ms if following is not None else None
    during = [i for i in around if i.common_ms >= since_ms and (until_ms is None or i.common_ms <= until_ms)]
    asked = [i.moment for i in around if i.moment.kind == "asked" and i.common_ms <= (until_ms or i.common_ms)]
    order = next((i for i in reversed(during) if i.moment.kind in ORDERS and _is_of(i, following)), None)
    noticed_ms = _noticed_ms(during, reign, following, order)
    return Outage(
        from_node=reign.node,
        to_node=following.node if following is not None else None,
        since_ms=since_ms,
        until_ms=until_ms,
        cause=_cause(reign, asked),
        is_planned=any(moment.value in PLANNED for moment in asked),
        rule=reign.ended.rule if reign.ended is not None and reign.end == "stepped down" else None,
        is_begin_known=reign.end != "fell silent",
        detect_ms=_span(since_ms, noticed_ms),
        fence_ms=_fence_ms(during, reign),
        decide_ms=_span(noticed_ms, order.common_ms if order else None),
        promote_ms=_span(order.common_ms if order else None, until_ms),
        moments=tuple(around),
        order=order.moment if order else None,
    )


def _between(instants: Sequence[Instant], since_ms: int, until_ms: int | None) -> Sequence[Instant]:
    first = bisect_left(instants, since_ms, key=lambda instant: instant.common_ms)
    end = len(instants) if until_ms is None else bisect_right(instants, until_ms, key=lambda instant: instant.common_ms)
    return instants[first:end]


def _is_of(instant: Instant, reign: Reign | None) -> bool:
    return reign is not None and instant.moment.node == reign.node


def _noticed_ms(during: Sequence[Instant], reign: Reign, following: Reign | None, order: Instant | None) -> int | None:
    """When the node that led next knew that nobody did any more."""
    for instant in during:
        moment = instant.moment
        if order is not None and instant.common_ms > order.common_ms:
            return None
        is_next = _is_of(instant, following)
        if is_next and moment.kind == "leader key" and moment.value == "":
            return instant.common_ms
        if is_next and moment.node == reign.node and moment.kind in ("server gone", "server absent"):
            return instant.common_ms
    return None


def _fence_ms(during: Sequence[Instant], reign: Reign) -> int | None:
    """How long it took from stepping down until the server was gone."""
    if reign.end != "stepped down":
        return None
    gone = (i for i in during if i.moment.node == reign.node and i.moment.kind in ("server gone", "server absent"))
    first = next(gone, None)
    return first.common_ms - reign.until_ms if first is not None and reign.until_ms is not None else None


def _cause(reign: Reign, asked: Sequence[Moment]) -> str:
    requests = [moment for moment in asked if moment.value in PLANNED]
    match reign.end:
        case "stepped down":
            assert reign.ended is not None
            return f"{reign.node} stepped down: {BECAUSE.get(reign.ended.rule or '', 'by a rule of another table')}"
        case "server gone":
            assert reign.ended is not None
            return requests[-1].text if requests else f"{reign.node}: {reign.ended.text}"
        case _:
            return f"{reign.node} fell silent: neither its agent nor its server was heard of any more"


def _span(from_ms: int | None, until_ms: int | None) -> int | None:
    return None if from_ms is None or until_ms is None else until_ms - from_ms
