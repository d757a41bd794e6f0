"""What people read on the agent's console: each move and its reason, each fault once, each return to order."""

import logging
from collections.abc import Iterator

from fsm import watchdog
from fsm.effects import Promote, WriteConfig
from fsm.events import (
    AgentRestartAsked,
    AgentStarted,
    ClusterRead,
    ConfigAsked,
    DirectoryRead,
    EtcdLost,
    Failed,
    ParametersApplied,
    ReinitAsked,
    ReloadAsked,
    RestartAsked,
    RestartCancelAsked,
    ServerExited,
    ServerProbed,
    ServerSilent,
    Succeeded,
    SwitchoverAsked,
    SwitchoverCancelAsked,
    Unknown,
)
from fsm.facts import FenceKill, ParameterChange, Probe
from fsm.loss import loss_text
from fsm.machine import Decision
from fsm.remembered import remembered_sync
from fsm.stalls import is_full_at
from fsm.states import State
from fsm.table import TABLE
from fsm.view import View

BECAUSE = {rule.id: rule.because for rule in TABLE}
WISHES = (
    RestartAsked,
    RestartCancelAsked,
    ConfigAsked,
    SwitchoverAsked,
    SwitchoverCancelAsked,
    ReloadAsked,
    AgentRestartAsked,
    ReinitAsked,
)
SILENCE_TOLD_AFTER_MS = 2_000
QUIET_KINDS = ("cancelled", "expired")

Line = tuple[int, str]


def lines(before: View, decision: Decision, event: object) -> Iterator[Line]:
    """The lines for one step, each with its level.

    Args:
        before: what the node knew.
        decision: what the step answered.
        event: what the step was asked about.
    """
    view = decision.view
    match event:
        case EtcdLost():
            yield logging.WARNING, f"etcd is not heard of, trying again: {event.detail}"
        case ClusterRead() if not before.etcd.is_watched:
            yield logging.INFO, f"etcd answers; the leader is {view.leader or 'nobody yet'}"
        case ServerExited():
            yield _exit_line(event)
        case ServerProbed() if _is_news(before, event):
            what = "is a standby" if event.probe.in_recovery else "accepts writes"
            yield logging.INFO, f"the server {what}, on timeline {event.probe.timeline}"
        case ServerSilent():
            yield from _silence_lines(before, event)
        case Succeeded(result=DirectoryRead(directory=directory)) if directory.condition == "unreadable":
            remedy = "nothing is touched; mend it, or replace it by `reinit`"
            yield logging.ERROR, f"the data directory cannot be used: {directory.detail}; {remedy}"
        case Failed() if event.kind not in QUIET_KINDS:
            yield from _failure_lines(view, event.duty, event.kind, event.detail)
        case Unknown():
            yield from _failure_lines(view, event.duty, "unknown outcome", event.detail)
    yield from _disk_lines(before, view)
    yield from _cluster_lines(before, view)
    yield from _promise_lines(before, view)
    yield from _request_lines(before, view, event)
    yield from _configuration_lines(before, event)
    yield from _decision_lines(decision)


def _decision_lines(decision: Decision) -> Iterator[Line]:
    """The move and its reason; before a promotion, what it may leave behind."""
    if decision.rule is not None:
        yield logging.INFO, f"{decision.rule} {decision.before} -> {decision.after}: {BECAUSE[decision.rule]}"
        yield from _lack_lines(decision)
    for issued in decision.effects:
        if isinstance(issued.effect, Promote) and issued.effect.loss is not None:
            yield logging.INFO, f"promoting: {loss_text(issued.effect.loss)}"
        if isinstance(issued.effect, WriteConfig) and issued.effect.is_last_known:
            yield logging.WARNING, "etcd has lost its config key: the configuration in force is written back"


def _lack_lines(decision: Decision) -> Iterator[Line]:
    """Why a leader that steps down has no watchdog, where it must have one."""
    obstacle = watchdog.obstacle(decision.view)
    if decision.before is State.LEADER and obstacle is not None:
        yield logging.ERROR, f"no watchdog: {obstacle}; mend it, or set watchdog.mode to automatic"


def _cluster_lines(before: View, view: View) -> Iterator[Line]:
    """What changed in the cluster as a whole: who leads, for whom commits wait, who stands in for etcd."""
    if before.leader != view.leader and before.etcd.is_watched:
        yield logging.INFO, f"the leader is {view.leader}" if view.leader else "nobody leads"
    if before.sync != view.sync and view.sync.leader is not None:
        named = ", ".join(view.sync.members) or "nobody else"
        quorum = f", each with votes of {view.sync.quorum} more" if view.sync.quorum else ""
        yield logging.INFO, f"after {view.sync.leader} may be promoted: {named}{quorum}"
    remembered = remembered_sync(view)
    if remembered is not None and remembered_sync(before) is None:
        named = ", ".join(sorted({*remembered.key.members, str(remembered.key.leader)}))
        yield (
            logging.WARNING,
            f"etcd has lost its sync key: by the last one known one of {named} may be promoted, "
            "and only when every other one of them has voted",
        )
    if view.failsafe_until_ms > before.failsafe_until_ms and before.failsafe_until_ms <= before.leadership_until_ms:
        yield logging.WARNING, "every member confirms this leader in etcd's place (failsafe)"


def _promise_lines(before: View, view: View) -> Iterator[Line]:
    """Whom this node lets go on without etcd, and whom not: once, not with every question."""
    promise, former = view.promise, before.promise
    if promise is not None and promise.leader and (former is None or former.leader != promise.leader):
        yield (
            logging.WARNING,
            f"promised {promise.leader}, which does not reach etcd, not to stand meanwhile (failsafe)",
        )
    if promise is None and former is not None:
        yield logging.INFO, "what was promised to a leader without etcd has ended: this node may stand again"
    refusal, earlier = view.refusal, before.refusal
    if refusal is not None and (
        earlier is None or (earlier.leader, earlier.reason) != (refusal.leader, refusal.reason)
    ):
        yield logging.WARNING, f"does not let {refusal.leader} go on without etcd: {refusal.reason}"


def _disk_lines(before: View, view: View) -> Iterator[Line]:
    """What became of the disk, and of a server that only its disk could end."""
    was_full, is_full = is_full_at(before.disk, before.now_ms), is_full_at(view.disk, view.now_ms)
    if is_full and not was_full:
        room = f"{view.disk.free_bytes} bytes are free"
        yield logging.WARNING, f"the server's disk is full ({room}): this node does not lead while another can"
    if was_full and not is_full and before.seq:
        yield logging.INFO, "there is room on the server's disk again"
    if view.disk.trouble is not None and before.disk.trouble is None:
        yield logging.WARNING, f"the server's disk does not take writes: {view.disk.detail}"
    if before.disk.trouble is not None and view.disk.trouble is None:
        yield logging.INFO, "the server's disk takes writes again"
    if view.server.is_doomed and not before.server.is_doomed:
        yield logging.WARNING, f"the server (pid {view.server.pid}) is killed, and waits in the kernel for its disk"


def _silence_lines(before: View, event: ServerSilent) -> Iterator[Line]:
    """A server that does not answer, once it has been silent for a while: while it starts there is no socket yet."""
    since_ms = before.server.silent_since_ms
    if event.starting or since_ms is None or event.pid != before.server.pid:
        return
    if before.now_ms - since_ms < SILENCE_TOLD_AFTER_MS <= event.at_ms - since_ms:
        yield logging.WARNING, f"the server does not answer: {event.detail}"


def _request_lines(before: View, view: View, event: object) -> Iterator[Line]:
    """Who asked for what, and how it ended."""
    if isinstance(event, AgentStarted) and event.in_place:
        yield logging.INFO, "this agent took over from the one before, in the same process"
    if isinstance(event, WISHES):
        yield logging.INFO, f"{event.by or 'somebody'} asks for {_wish(event)}"
    for answer in view.answers:
        if answer not in before.answers:
            level = logging.INFO if answer.ending == "done" else logging.WARNING
            yield level, f"what was asked for: {answer.ending}{f', {answer.detail}' if answer.detail else ''}"


def _wish(event: object) -> str:
    match event:
        case RestartAsked():
            return "a restart of the server" + (f" at {event.wish.schedule}" if event.wish.schedule else "")
        case RestartCancelAsked():
            return "the scheduled restart to be dropped"
        case ConfigAsked():
            places = ", ".join(change.path for change in event.changes)
            return f"another dynamic configuration ({places or 'nothing changed'})"
        case SwitchoverAsked():
            to, at = event.candidate or "any member", event.scheduled_at
            kind = f"a switchover from {event.leader}" if event.leader else "a failover"
            return f"{kind} to {to}{f' at {at}' if at else ''}"
        case SwitchoverCancelAsked():
            return "the scheduled switchover to be dropped"
        case ReloadAsked():
            return "the settings to be read again"
        case AgentRestartAsked():
            return "a restart of the agent in place"
        case _:
            return "new data from a base backup"


def _is_news(before: View, event: ServerProbed) -> bool:
    """True for a server's first answer, and for one from the other side of recovery."""
    known = before.server.probe
    return known is None or known.in_recovery != event.probe.in_recovery


def _configuration_lines(before: View, event: object) -> Iterator[Line]:
    """What became of a change of the configuration."""
    match event:
        case ServerProbed() if event.probe.pending_restart_reason != _pending_restart(before):
            yield _pending_line(event.probe)
        case Succeeded(result=ParametersApplied(refused=refused)):
            yield from _applied_lines(before, refused)


def _pending_restart(view: View) -> dict[str, ParameterChange]:
    return view.server.probe.pending_restart_reason if view.server.probe else {}


def _pending_line(probe: Probe) -> Line:
    waiting = probe.pending_restart_reason
    if not waiting:
        return logging.INFO, "no parameter waits for a restart any more"
    changes = ", ".join(f"{name} from {c.old_value} to {c.new_value}" for name, c in waiting.items())
    return logging.INFO, f"a restart of the server is needed to change {changes}"


def _applied_lines(before: View, refused: dict[str, str]) -> Iterator[Line]:
    yield logging.INFO, "the server was told the configuration"
    told = before.server.refused_parameters
    for name, reason in refused.items():
        if told.get(name) != reason:
            yield logging.WARNING, f"{name} is left out of the server's configuration: {reason}"


def _exit_line(event: ServerExited) -> Line:
    if event.fired:
        return logging.ERROR, f"the fence ended the server (pid {event.pid}) at its deadline{_how(event.kill)}"
    if event.signal is not None:
        return logging.WARNING, f"the server (pid {event.pid}) was killed by signal {event.signal}"
    if event.status:
        remedy = "why, it says in postgres.log in the agent's own directory"
        return logging.WARNING, f"the server (pid {event.pid}) ended with status {event.status}; {remedy}"
    return logging.INFO, f"the server (pid {event.pid}) ended"


def _how(kill: FenceKill | None) -> str:
    """How the fence's work went, as far as it is known."""
    if kill is None:
        return ""
    forced = f", {kill.killed} of them by SIGKILL" if kill.killed else ""
    return f": {kill.processes} processes{forced}, the last gone {kill.gone_at_ms - kill.at_ms} ms later"


def _failure_lines(view: View, duty: str, kind: str, detail: str) -> Iterator[Line]:
    """The first failures of a duty in a row, then ever fewer."""
    count = view.attempts[duty].failures if duty in view.attempts else 1
    if count <= 3 or count == 10 or count % 100 == 0:
        yield logging.WARNING, f"{duty} failed ({kind}, attempt {count}): {detail}"
