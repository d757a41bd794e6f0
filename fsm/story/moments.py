"""What mattered in one node's log: each entry's change of knowledge, in a sentence, with the entry it stands in. Pure.

A moment is a difference between what the node knew before an entry and after it, so a log replays into its moments and
nothing is told here that the node itself could not know.
"""

from collections.abc import Iterator
from typing import Literal

from msgspec.structs import replace

from fsm.effects import Promote
from fsm.entries import Entry
from fsm.events import (
    AgentStarted,
    ConfigAsked,
    Failed,
    FailsafeHeard,
    ReinitAsked,
    RestartAsked,
    ServerExited,
    StopAsked,
    Succeeded,
    SwitchoverAsked,
)
from fsm.facts import Fact
from fsm.loss import loss_text
from fsm.prognosis import Contender, prognosis
from fsm.states import State
from fsm.table import TABLE
from fsm.view import View

BECAUSE = {rule.id: rule.because for rule in TABLE}

Kind = Literal[
    "agent started",
    "moved",
    "leader key",
    "server gone",
    "server absent",
    "told to start",
    "told to promote",
    "writable",
    "standby",
    "etcd lost",
    "etcd back",
    "server silent",
    "server heard",
    "failsafe",
    "asked",
    "rebuilt",
    "rebuilding failed",
    "close call",
]

REBUILDING = {"rewind": "pg_rewind", "clone": "the base backup"}
START_DUTIES = frozenset({"promote", "start-primary"})
CLOSE_SHARE = 4
"""A lease of which less than one part in so many was left, and that was renewed nevertheless, was a close call."""


class Moment(Fact, frozen=True, kw_only=True):
    """One thing that mattered. `node`, `seq`: the entry. `boot`, `at_ms`: when, by the clock of that boot."""

    node: str
    seq: int
    boot: str
    at_ms: int
    revision: int
    kind: Kind
    text: str
    """What happened, in a sentence without a subject where the subject is the node."""
    rule: str | None = None
    state: State
    """The node's state after it."""
    value: str = ""
    """Of a leader key: who holds it. Of what was asked: what for. Of a server that takes writes: since when it runs."""
    timeline: int = 0
    others: tuple[Contender, ...] = ()
    """When it was told to promote: how the other members stood, as far as this node knew."""


class MomentCollector:
    """Takes one node's entries in order, each with what was known before and after it."""

    def __init__(self, node: str) -> None:
        self.node = node
        self.moments: list[Moment] = []
        self.proofs: list[tuple[int, str, int]] = []
        """For each reign of this node's server the last look that showed it writable: seq, boot, instant."""
        self.last: tuple[int, str, int] | None = None
        """The newest entry: seq, boot, instant."""

    def take(self, entry: Entry, before: View, after: View) -> None:
        """One entry that was decided again."""
        self.last = (entry.seq, entry.boot, entry.event.at_ms)
        for told in _told(entry, before, after):
            self.moments.append(told)
            if told.kind == "writable":
                self.proofs.append(self.last)
        if self.proofs and is_writable(after) and after.server.probed_at_ms == after.now_ms:
            self.proofs[-1] = self.last


def is_writable(view: View) -> bool:
    """True when the node's last look showed a server that takes writes, and nothing was heard against it since."""
    server = view.server
    return server.process == "running" and server.probe is not None and not server.probe.in_recovery


def _told(entry: Entry, before: View, after: View) -> Iterator[Moment]:
    """All that one entry changed, the cause before its consequences."""
    yield from _of_the_agent(entry, after)
    yield from _of_etcd(entry, before, after)
    yield from _of_the_server(entry, before, after)
    yield from _of_rebuilding(entry, after)
    yield from _of_the_lease(entry, before, after)
    if entry.rule is not None:
        text = f"{entry.before} -> {entry.after}: {BECAUSE.get(entry.rule, 'a rule of another table')}"
        yield _moment(entry, after, "moved", text)
    yield from _of_orders(entry, before, after)


def _of_the_agent(entry: Entry, after: View) -> Iterator[Moment]:
    match entry.event:
        case AgentStarted(identity=identity, in_place=in_place):
            how = "took over from the one before, in the same process" if in_place else "began"
            yield _moment(entry, after, "agent started", f"the agent of {identity.name} {how}")
        case StopAsked():
            yield _moment(entry, after, "asked", "the agent was asked to stop", value="stop")
        case SwitchoverAsked():
            wanted = after.switchover
            to = f" to {wanted.candidate}" if wanted is not None and wanted.candidate else ""
            yield _moment(entry, after, "asked", f"an operator asked for a switchover{to}", value="switchover")
        case RestartAsked():
            yield _moment(entry, after, "asked", "an operator asked for a restart of the server", value="restart")
        case ReinitAsked():
            yield _moment(entry, after, "asked", "an operator asked for a new base backup", value="reinit")
        case ConfigAsked():
            yield _moment(entry, after, "asked", "an operator changed the cluster's settings", value="config")


def _of_etcd(entry: Entry, before: View, after: View) -> Iterator[Moment]:
    if before.etcd.is_watched and not after.etcd.is_watched and not isinstance(entry.event, AgentStarted):
        yield _moment(entry, after, "etcd lost", f"etcd is not heard any more ({after.etcd.detail})")
    if after.etcd.is_watched and not before.etcd.is_watched:
        yield _moment(entry, after, "etcd back", "etcd is heard, and every key was read")
    if not after.etcd.is_watched:
        return
    if before.leader != after.leader or (after.leader is None and not before.etcd.is_watched):
        who = after.leader
        told = _moment(entry, after, "leader key", f"the leader key names {who or 'nobody'}", value=who or "")
        yield replace(told, revision=after.keys["leader"].mod_revision) if "leader" in after.keys else told
    wanted = after.failover
    if wanted is not None and wanted != before.failover:
        text = f"the failover key asks for {wanted.candidate or 'any other leader'}"
        told = _moment(entry, after, "asked", text, value="switchover" if wanted.leader else "failover")
        yield replace(told, revision=wanted.mod_revision)


def _of_the_server(entry: Entry, before: View, after: View) -> Iterator[Moment]:
    if isinstance(entry.event, ServerExited):
        yield _moment(entry, after, "server gone", f"the server is gone ({exit_text(entry.event)})", value="gone")
    elif before.server.process == "running" and after.server.process == "absent":
        yield _moment(entry, after, "server absent", "there is no server any more")
    if is_writable(after) and not is_writable(before):
        assert after.server.probe is not None
        timeline, which = after.timeline, after.server.probe.postmaster_started_at
        text = f"the server takes writes, on timeline {timeline}"
        yield _moment(entry, after, "writable", text, timeline=timeline, value=which)
    elif _is_standby(after) and not _is_standby(before):
        yield _moment(entry, after, "standby", f"the server is a standby, on timeline {after.timeline}")
    was_mute, is_mute = before.server.mute is not None, after.server.mute is not None
    if is_mute and not was_mute:
        yield _moment(entry, after, "server silent", "the server says nothing any more, on no connection")
    if was_mute and not is_mute and after.server.process == "running":
        yield _moment(entry, after, "server heard", "the server answers again")


def _is_standby(view: View) -> bool:
    server = view.server
    return server.process == "running" and server.probe is not None and server.probe.in_recovery


def exit_text(event: ServerExited) -> str:
    """How a server ended, in a few words."""
    if event.fired:
        return "the fence ended it at its deadline"
    return f"by signal {event.signal}" if event.signal else f"with status {event.status}"


def _of_rebuilding(entry: Entry, after: View) -> Iterator[Moment]:
    event = entry.event
    if isinstance(event, Succeeded) and event.duty in REBUILDING:
        yield _moment(entry, after, "rebuilt", f"{REBUILDING[event.duty]} is done", value=event.duty)
    if isinstance(event, Failed) and event.duty in REBUILDING:
        text = f"{REBUILDING[event.duty]} failed: {event.detail}"
        yield _moment(entry, after, "rebuilding failed", text, value=event.duty)


def _of_the_lease(entry: Entry, before: View, after: View) -> Iterator[Moment]:
    """The failsafe, and renewals that came late."""
    event = entry.event
    if not isinstance(event, Succeeded) or before.state is not State.LEADER:
        return
    if isinstance(event.result, FailsafeHeard) and after.failsafe_until_ms > before.failsafe_until_ms:
        if before.failsafe_until_ms <= before.now_ms:
            yield _moment(entry, after, "failsafe", "the members confirmed that the leader goes on without etcd")
        return
    if event.duty != "renew-lease" or before.lease is None:
        return
    left_ms, whole_ms = before.writable_until_ms - after.now_ms, before.lease.ttl_s * 1_000
    if 0 <= left_ms < whole_ms // CLOSE_SHARE:
        yield _moment(entry, after, "close call", f"the lease was renewed with {left_ms} ms left", value=str(left_ms))


def _of_orders(entry: Entry, before: View, after: View) -> Iterator[Moment]:
    for issued in entry.effects:
        if isinstance(issued.effect, Promote):
            loss = f"; {loss_text(issued.effect.loss)}" if issued.effect.loss is not None else ""
            others = _others(before)
            text = f"the server is told to promote{loss}"
            yield _moment(entry, after, "told to promote", text, others=others)
        elif issued.duty in START_DUTIES:
            yield _moment(entry, after, "told to start", "the server is started to take writes")


def _others(view: View) -> tuple[Contender, ...]:
    """How the other members stood when this node was told to promote, by what they answered or their keys say."""
    reports = {name: heard.report for name, heard in view.peers.items() if heard.at_ms >= view.received_at_ms}
    at_election = replace(view, keys={name: key for name, key in view.keys.items() if name != "leader"})
    contenders = prognosis(at_election, reports or None).contenders
    return tuple(contender for contender in contenders if contender.name != view.name)


def _moment(
    entry: Entry,
    after: View,
    kind: Kind,
    text: str,
    *,
    value: str = "",
    timeline: int = 0,
    others: tuple[Contender, ...] = (),
) -> Moment:
    return Moment(
        node=entry.node or after.name,
        seq=entry.seq,
        boot=entry.boot,
        at_ms=entry.event.at_ms,
        revision=entry.revision,
        kind=kind,
        text=text,
        rule=entry.rule,
        state=entry.after,
        value=value,
        timeline=timeline,
        others=others,
    )
