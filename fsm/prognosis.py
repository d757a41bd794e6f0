"""prognosis(view, reports) -> Prognosis: who would be promoted if the leader vanished now, and why no other. Pure.

It judges as an election does (fsm/election.py, fsm/guards/elections.py), but for all members at once and beforehand: by
their keys, and, where they were asked, by what they answered. Who would have won is what was known then; a member may
still fall behind, or fall silent, in the moment that counts.
"""

from collections.abc import Iterator, Mapping
from typing import Literal

from fsm.election import is_sync_key_decisive
from fsm.facts import Fact, PeerReport
from fsm.remembered import deciding_sync, remembered_sync
from fsm.view import View
from fsm.wire import Member, failover_priority, is_barred_by_tags
from fsm.worst_case import worst_cases

Chance = Literal["leads", "wins", "may win", "loses", "cannot"]


class Contender(Fact, frozen=True, kw_only=True):
    """One member and its chance.

    leads: it is the one that vanishes. may win: it and others are equal, whoever takes the key first. loses: it could
    be promoted, and another one is better. cannot: it would not stand.
    """

    name: str
    chance: Chance
    because: tuple[str, ...] = ()
    position_lsn: int = 0
    """How far its WAL reaches; 0 if that is not known."""
    timeline: int = 0
    priority: int = 1
    answers: bool | None = None
    """Whether its agent answered; None where it was not asked."""


class Prognosis(Fact, frozen=True, kw_only=True):
    """What a failover now would come to."""

    leader: str | None
    winners: tuple[str, ...]
    """Empty: nobody would be promoted. Several: they are equal."""
    contenders: tuple[Contender, ...]
    writable_at_most_ms: int | None
    """How long until somebody accepts writes again, at the worst, without PostgreSQL's own promotion."""
    writable_because: str
    at_risk_bytes: int | None
    """Acknowledged WAL that the winner does not have, by the newest positions known; None is unknown, never 0."""
    at_risk_because: str


class _Facts(Fact, frozen=True, kw_only=True):
    """What is known of one member, by its key and its answer."""

    name: str
    position_lsn: int
    timeline: int
    state: str
    is_barred: bool
    priority: int
    answers: bool | None


def prognosis(view: View, reports: Mapping[str, PeerReport] | None = None) -> Prognosis:
    """Who would be promoted if the present leader vanished now.

    Args:
        view: what is known of the cluster: a node's snapshot, or etcd's keys alone.
        reports: what members answered when all of them were asked; None where nobody was.
    """
    found = {name: _facts(view, member, reports) for name, member in sorted(view.members.items())}
    leader = found.get(view.leader or "")
    barred = {f.name: tuple(_obstacles(view, f, found)) for f in found.values() if f is not leader}
    able = [found[name] for name, reasons in barred.items() if not reasons]
    best = max(((f.position_lsn, f.priority) for f in able), default=None)
    winners = tuple(f.name for f in able if (f.position_lsn, f.priority) == best)
    worst = worst_cases(view.dynamic)[0]
    at_risk, why = _at_risk(view, leader, found[winners[0]] if winners else None)
    return Prognosis(
        leader=view.leader,
        winners=winners,
        contenders=tuple(_contender(f, view.leader, barred.get(f.name, ()), winners, found) for f in found.values()),
        writable_at_most_ms=worst.at_most_ms if winners else None,
        writable_because=worst.because if winners else "nobody would be promoted",
        at_risk_bytes=at_risk,
        at_risk_because=why,
    )


def _facts(view: View, member: Member, reports: Mapping[str, PeerReport] | None) -> _Facts:
    report = reports.get(member.name) if reports is not None else None
    is_self = member.name == view.name
    position_lsn, timeline, state = member.position_lsn, member.timeline, member.state
    if is_self:
        position_lsn, timeline = view.position_lsn or position_lsn, view.timeline or timeline
    if report is not None:
        position_lsn, timeline = report.position_lsn or position_lsn, report.timeline or timeline
        state = report.state or state
    return _Facts(
        name=member.name,
        position_lsn=position_lsn,
        timeline=timeline,
        state=state,
        is_barred=report.no_failover if report is not None else is_barred_by_tags(member.tags),
        priority=report.failover_priority if report is not None else failover_priority(member.tags),
        answers=None if reports is None else report is not None,
    )


def _obstacles(view: View, facts: _Facts, everybody: Mapping[str, _Facts]) -> Iterator[str]:
    """Why a member would not stand, or not be elected."""
    if view.dynamic.pause:
        yield "the cluster is paused: nobody is elected"
    if facts.answers is False:
        yield "its agent does not answer"
    if facts.is_barred:
        yield "its tags forbid it (nofailover, or failover_priority 0)"
    if facts.state != "running":
        yield f'its server is "{facts.state or "unknown"}"'
    newest = max(view.last_timeline, everybody[view.leader].timeline if view.leader and view.leader in everybody else 0)
    if view.dynamic.check_timeline and 0 < facts.timeline < newest:
        yield f"it is on timeline {facts.timeline}, the newest is {newest}"
    if view.dynamic.failsafe_mode and view.failsafe and facts.name not in view.failsafe:
        yield "the failsafe key does not list it: a leader without etcd would not ask it"
    yield from _missing_wal(view, facts, everybody)


def _missing_wal(view: View, facts: _Facts, everybody: Mapping[str, _Facts]) -> Iterator[str]:
    """Why it may lack what was acknowledged: by the `sync` key where there is one, else by its lag."""
    if is_sync_key_decisive(view):
        yield from _missing_votes(view, facts, everybody)
        return
    lag_bytes, limit = max(0, view.optime_lsn - facts.position_lsn), view.dynamic.maximum_lag_on_failover_bytes
    if not facts.position_lsn:
        yield "how far its WAL reaches is not known"
    elif lag_bytes > limit:
        yield f"it is {lag_bytes:,} bytes behind, maximum_lag_on_failover is {limit:,}"


def _missing_votes(view: View, facts: _Facts, everybody: Mapping[str, _Facts]) -> Iterator[str]:
    key, is_remembered = deciding_sync(view), remembered_sync(view) is not None
    if facts.name == key.leader and not is_remembered:
        return
    if facts.name not in {*key.members, key.leader}:
        named = ", ".join(key.members) or "nobody"
        yield f"the sync key does not name it (it names {named}): it may lack acknowledged commits"
        return
    voters = {*key.members, key.leader or ""} - {facts.name, view.leader}
    heard = [everybody[name] for name in voters if name in everybody and everybody[name].answers is not False]
    votes = sum(0 < f.position_lsn <= facts.position_lsn for f in heard)
    needed = len(voters) if is_remembered else key.quorum
    if votes < needed:
        yield f"of the {needed} votes that the sync key asks for it would have {votes}"


def _contender(
    facts: _Facts,
    leader: str | None,
    obstacles: tuple[str, ...],
    winners: tuple[str, ...],
    everybody: Mapping[str, _Facts],
) -> Contender:
    chance: Chance = "cannot"
    because = obstacles
    if facts.name == leader:
        chance, because = "leads", ()
    elif facts.name in winners:
        others = ", ".join(name for name in winners if name != facts.name)
        chance = "may win" if others else "wins"
        because = (
            (f"it has as much WAL as {others} and the same priority: whoever takes the key first",) if others else ()
        )
    elif not obstacles:
        chance, because = "loses", (_why_worse(facts, everybody[winners[0]]),)
    return Contender(
        name=facts.name,
        chance=chance,
        because=because,
        position_lsn=facts.position_lsn,
        timeline=facts.timeline,
        priority=facts.priority,
        answers=facts.answers,
    )


def _why_worse(facts: _Facts, winner: _Facts) -> str:
    more = winner.position_lsn - facts.position_lsn
    if more:
        return f"{winner.name} has {more:,} bytes more WAL"
    return f"{winner.name} has as much WAL and a higher failover_priority ({winner.priority}, here {facts.priority})"


def _at_risk(view: View, leader: _Facts | None, winner: _Facts | None) -> tuple[int | None, str]:
    if winner is None:
        return None, "nobody would be promoted"
    if is_sync_key_decisive(view):
        return 0, "the sync key names it: no commit that waited is missing"
    lsn = max(view.optime_lsn, leader.position_lsn if leader else 0)
    if not lsn or not winner.position_lsn:
        return None, "a position is not known"
    lacking = max(0, lsn - winner.position_lsn)
    if leader is None or not (leader.answers or leader.name == view.name):
        who = leader.name if leader else "the last leader"
        return None, f"{who} was not asked or does not answer; {lacking:,} by the last position that it published"
    return lacking, f"by what {leader.name} and {winner.name} tell now"
