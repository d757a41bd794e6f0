"""observe(view, event) -> view: what each event adds to what this node knows. A fold: no decision is taken here."""

from collections.abc import Callable, Iterable
from typing import Any

from msgspec.structs import replace

from fsm import fencing, watchdog
from fsm.agent_restart import agent_restart_asked, new_agent_checked, with_agent_restart
from fsm.dynamic import parse_dynamic
from fsm.effects import (
    DeleteSync,
    Effect,
    Promote,
    PublishAsLeader,
    ReleaseSyncNames,
    SetSyncNames,
    StartPrimary,
    TakeLeaderKey,
    WriteSync,
)
from fsm.events import (
    AgentRestartAsked,
    AgentStarted,
    AnyEvent,
    ClusterRead,
    ConfigAsked,
    DirectoryRead,
    DiskLooked,
    DiskSilent,
    Done,
    EtcdLost,
    Failed,
    FailsafeAsked,
    FailsafeCheckAsked,
    FailsafeChecked,
    FailsafeHeard,
    FenceArmed,
    FenceConnected,
    FenceLost,
    HistoryRead,
    KeysChanged,
    KeyWritten,
    LeaseHeld,
    NewAgentChecked,
    ParametersApplied,
    PeersHeard,
    PromiseKept,
    PromiseTryAsked,
    ReinitAsked,
    ReloadAsked,
    ReplayNeedsRead,
    RestartAsked,
    RestartCancelAsked,
    ServerDoomed,
    ServerExited,
    ServerProbed,
    ServerSilent,
    ServerSpawned,
    ServerStarted,
    StopAsked,
    Succeeded,
    SwitchoverAsked,
    SwitchoverCancelAsked,
    SyncMarked,
    Ticked,
    Unknown,
    VoteAsked,
    WatchdogFed,
)
from fsm.facts import Key, KeyChange
from fsm.handover import due_at_ms
from fsm.loss import TOLD_BY, followed
from fsm.losses import Promotion
from fsm.promises import (
    failsafe_asked,
    failsafe_checked,
    failsafe_heard,
    promise_forgotten,
    promise_kept,
    promise_unkept,
    restored,
)
from fsm.publish import is_rebuilding
from fsm.remembered import with_config, with_memory, without_keys
from fsm.requests import (
    cancel_asked,
    config_asked,
    failsafe_check_asked,
    is_outcome_of_request,
    promise_try_asked,
    reload_asked,
    restart_asked,
    restart_cancel_asked,
    settled,
    switchover_asked,
    with_outcome,
    with_wall_clock,
)
from fsm.stalls import disk_looked, disk_silent, mute_after, server_doomed, with_wal_heard, with_wal_moved
from fsm.states import State
from fsm.timing import CRASH_FORGIVEN_AFTER_MS, UNANSWERED_GRACE_MS
from fsm.view import Attempts, HeardPeer, LeaderHistory, Lease, Server, Underway, View, Vote
from fsm.vote import is_outdated
from fsm.waiting import looked, marked, ordered, released
from fsm.wire import (
    parse_failover,
    parse_failsafe,
    parse_last_timeline,
    parse_member,
    parse_optime,
    parse_sync,
    parse_timeline,
)

MEMBERS = "members/"


def observe(view: View, event: AnyEvent) -> View:
    """What this node knows after `event`. Every event counts one up in `seq` and moves `now_ms`, never backwards."""
    view = replace(view, seq=view.seq + 1, now_ms=max(view.now_ms, event.at_ms))
    view = _without_unanswered(_FOLDS[type(event)](view, event))
    return settled(with_agent_restart(view, event))


def _without_unanswered(view: View) -> View:
    """Give up on executors that are long past their deadline: the outcome of their effect is unknown."""
    late = [d for d, u in view.underway.items() if view.now_ms > u.deadline_ms + UNANSWERED_GRACE_MS]
    for duty in late:
        view = _with_failure(view, duty, "unknown", "the executor did not answer")
        view = replace(view, underway={d: u for d, u in view.underway.items() if d != duty})
    return view


# ---- the agent ------------------------------------------------------------------------------------------------------


def _agent_started(view: View, event: AgentStarted) -> View:
    return View(
        seq=view.seq,
        now_ms=event.at_ms,
        state_since_ms=event.at_ms,
        identity=event.identity,
        dynamic=parse_dynamic(event.identity.first_config),
        promise=restored(event.promise, boot=event.boot, at_ms=event.at_ms),
    )


def _unchanged(view: View, event: Ticked) -> View:
    return view


def _stop_asked(view: View, event: StopAsked) -> View:
    return replace(view, is_stopping=True)


# ---- etcd -----------------------------------------------------------------------------------------------------------


def _cluster_read(view: View, event: ClusterRead) -> View:
    if event.revision < view.etcd.revision:
        view = without_keys(view)  # etcd was wiped or restored: what it said before was said by another history
    etcd = replace(view.etcd, is_watched=True, revision=event.revision, lost_since_ms=None, detail="")
    gone = [
        KeyChange(key=name, value=None, mod_revision=event.revision)
        for name, key in view.keys.items()
        if key.value is not None and name not in {change.key for change in event.keys}
    ]
    view = _with_due(_with_changes(replace(view, etcd=etcd), [*event.keys, *gone], before=view), event)
    if view.leader is None:  # somebody may have led since etcd was last heard of
        return replace(view, leader_free_since_ms=view.now_ms)
    return view


def _keys_changed(view: View, event: KeysChanged) -> View:
    etcd = replace(view.etcd, revision=max(view.etcd.revision, event.revision))
    return _with_due(_with_changes(replace(view, etcd=etcd), event.changes), event)


def _with_due(view: View, event: ClusterRead | KeysChanged) -> View:
    """When what is scheduled is due, by the newest word about the wall clock."""
    if not event.unix_ms:
        return view
    view = with_wall_clock(view, at_ms=event.at_ms, unix_ms=event.unix_ms)
    if view.failover is None or not view.failover.scheduled_at:
        return view
    due_ms = due_at_ms(view.failover.scheduled_at, at_ms=event.at_ms, unix_ms=event.unix_ms)
    return replace(view, failover_due_at_ms=due_ms)


def _etcd_lost(view: View, event: EtcdLost) -> View:
    since = view.etcd.lost_since_ms if view.etcd.lost_since_ms is not None else event.at_ms
    return replace(view, etcd=replace(view.etcd, is_watched=False, lost_since_ms=since, detail=event.detail))


def _with_changes(view: View, changes: Iterable[KeyChange], before: View | None = None) -> View:
    """Take over each change that is newer than what is known of its key: answers and events may be out of order.

    before: what was known before, where that is more than the keys.
    """
    before, keys = before or view, dict(view.keys)
    newer = []
    for change in changes:
        known = keys.get(change.key)
        if known is None or change.mod_revision >= known.mod_revision:
            keys[change.key] = Key(
                value=change.value,
                mod_revision=change.mod_revision,
                create_revision=change.create_revision,
                lease_id=change.lease_id,
            )
            newer.append(change)
    view = replace(view, keys=keys)
    for change in newer:
        view = _with_meaning(view, change)
    view = with_memory(view)
    is_told = any(change.key in TOLD_BY for change in newer)
    return replace(view, former=followed(before, view)) if is_told else view


def _with_meaning(view: View, change: KeyChange) -> View:
    """What a changed key means beyond its text."""
    if change.key.startswith(MEMBERS):
        return replace(view, members=_members_after(view, change))
    match change.key:
        case "leader":
            since = None if change.value is not None else view.leader_free_since_ms or view.now_ms
            vote = view.vote if change.value is None else None
            view = replace(view, leader_free_since_ms=since, vote=vote)
            # Whoever leads has the data that all others copy: what was asked before is void.
            return _without_reinit(view) if view.name and change.value == view.name else view
        case "config":
            return with_config(view, change.value)
        case "failover":
            request = parse_failover(change.value, change.mod_revision)
            return replace(view, failover=request, failover_seen_at_ms=view.now_ms, failover_due_at_ms=None)
        case "status":
            return replace(view, optime_lsn=parse_optime(change.value))
        case _ if change.key in _PARSED:
            field, parse = _PARSED[change.key]
            return replace(view, **{field: parse(change.value)})
        case _:
            return view


_PARSED: dict[str, tuple[str, Callable[[str | None], object]]] = {
    "sync": ("sync", parse_sync),
    "failsafe": ("failsafe", parse_failsafe),
    "timeline": ("reserved_timeline", parse_timeline),
    "history": ("last_timeline", parse_last_timeline),
}
"""Keys that mean one field of the view, and how each is read."""


def _members_after(view: View, change: KeyChange) -> dict[str, Any]:
    name = change.key.removeprefix(MEMBERS)
    others = {n: m for n, m in view.members.items() if n != name}
    return others if change.value is None else {**others, name: parse_member(name, change.value)}


# ---- fence and server -----------------------------------------------------------------------------------------------


def _fence_connected(view: View, event: FenceConnected) -> View:
    fence = fencing.connected(view, event)
    view = replace(view, watchdog=watchdog.connected(view, event))
    if event.pid is None:
        return replace(view, fence=fence, server=Server(process="unknown" if event.leftovers else "absent"))
    # An armed server may have been told to promote by the agent before this one.
    armed = event.armed_until_ms is not None
    # One that somebody else started may be anything until it answers.
    server = Server(
        process="running",
        pid=event.pid,
        spawned_at_ms=event.at_ms,
        may_be_primary=armed or event.is_adopted,
        is_promotion_asked=armed,
    )
    return replace(view, fence=fence, server=server)


def _fence_lost(view: View, event: FenceLost) -> View:
    return replace(
        view, fence=fencing.lost(view), watchdog=watchdog.lost(view), server=Server(process="unknown"), directory=None
    )


def _server_spawned(view: View, event: ServerSpawned) -> View:
    return _with_postmaster(view, event.pid, is_standby=any(u.kind == "StartStandby" for u in view.underway.values()))


def _with_postmaster(view: View, pid: int, *, is_standby: bool) -> View:
    """A new postmaster runs; told twice, by the fence's notice and by the start's outcome, in either order."""
    is_known = view.server.process == "running" and view.server.pid == pid
    if is_known or view.server.exited_pid == pid:
        return view
    server = Server(
        process="running",
        pid=pid,
        spawned_at_ms=view.now_ms,
        is_starting=True,
        may_be_primary=not is_standby,
        failed_starts=view.server.failed_starts,
    )
    return replace(view, server=server, directory=None)


def _server_exited(view: View, event: ServerExited) -> View:
    if event.pid != view.server.pid:
        return view
    was_asked = any(u.kind in ("FenceServer", "StopServer", "StopToRestart") for u in view.underway.values())
    served_since = view.server.served_since_ms
    forgiven = served_since is not None and event.at_ms - served_since >= CRASH_FORGIVEN_AFTER_MS
    before = 0 if forgiven else view.server.failed_starts
    server = Server(
        process="absent",
        exited_pid=event.pid,
        exited_at_ms=event.exited_at_ms or event.at_ms,
        failed_starts=before + (0 if was_asked else 1),
    )
    view = replace(view, fence=fencing.exited(view, event), watchdog=watchdog.released())
    return replace(view, server=server, directory=None)


def _server_probed(view: View, event: ServerProbed) -> View:
    if event.pid != view.server.pid or view.server.is_doomed:
        return view  # a late answer of an earlier postmaster, or of one that is as good as gone
    view = with_wal_moved(view, event)
    server = replace(
        view.server,
        probe=event.probe,
        probed_at_ms=event.at_ms,
        silent_since_ms=None,
        mute=None,
        is_starting=False,
        served_since_ms=view.server.served_since_ms if view.server.served_since_ms is not None else event.at_ms,
        may_be_primary=not event.probe.in_recovery or view.server.is_promotion_asked,
    )
    if event.probe.in_recovery and event.probe.position_lsn > view.position_lsn:
        view = replace(view, received_at_ms=event.at_ms)
    is_leading = view.state is State.LEADER and not event.probe.in_recovery
    waiting = looked(view, event.probe, event.at_ms) if is_leading else view.waiting
    return replace(view, server=server, waiting=waiting)


def _server_silent(view: View, event: ServerSilent) -> View:
    if event.pid != view.server.pid:
        return view
    since = view.server.silent_since_ms if view.server.silent_since_ms is not None else event.at_ms
    mute = mute_after(view.server, event)
    server = replace(view.server, silent_since_ms=since, is_starting=event.starting, mute=mute)
    return replace(view, server=server)


# ---- people and peers -----------------------------------------------------------------------------------------------


def _reinit_asked(view: View, event: ReinitAsked) -> View:
    """Nothing for a leader, nor for what is being done already, unless it is to be done anew; no failure counts any
    more, so that it begins at once."""
    if view.leader == view.name or (is_rebuilding(view) and not event.is_forced):
        return view
    attempts = {duty: attempt for duty, attempt in view.attempts.items() if duty not in ("clone", "clear-directory")}
    return replace(
        view,
        is_reinit_asked=True,
        reinit_asked_at_ms=event.at_ms,
        is_reinit_from_leader=event.is_from_leader,
        attempts=attempts,
    )


def _without_reinit(view: View) -> View:
    return replace(view, is_reinit_asked=False, is_reinit_from_leader=False)


def _vote_asked(view: View, event: VoteAsked) -> View:
    """A second question about the same election changes nothing: the promise stands since the first."""
    asked = Vote(candidate=event.candidate, sync_revision=event.sync_revision, asked_at_ms=event.at_ms)
    if event.candidate == view.name or event.candidate not in view.members:
        return view
    if view.vote is not None and view.vote.sync_revision == event.sync_revision:
        return view
    if is_outdated(view, event.sync_revision):
        return view  # a vote that is given to another is not disturbed by it
    return replace(view, vote=asked)


# ---- outcomes -------------------------------------------------------------------------------------------------------


def _succeeded(view: View, event: Succeeded) -> View:
    is_awaited = is_outcome_of_request(view, event)
    if event.duty == "clone":
        view = _with_clone(view)
    view = _answered(view, event.duty, event.effect_id)
    view = replace(
        view,
        achieved={**view.achieved, event.duty: event.at_ms},
        attempts={d: a for d, a in view.attempts.items() if d != event.duty},
    )
    view = _RESULTS[type(event.result)](view, event, event.result)
    return with_outcome(view, event) if is_awaited else view


def _failed(view: View, event: Failed) -> View:
    is_awaited = is_outcome_of_request(view, event)
    view = _answered(view, event.duty, event.effect_id)
    if event.duty != "clone" or event.kind != "cancelled":  # one that was given up says nothing about its source
        view = _with_failure(view, event.duty, event.kind, event.detail)
    view = _after_failure(view, event)
    return with_outcome(view, event) if is_awaited else view


def _after_failure(view: View, event: Failed) -> View:
    """What some failures tell beyond having failed."""
    if event.duty == "disarm-fence":
        return replace(view, fence=fencing.disarmed(view))  # it may have been done all the same
    if event.kind == "lease_gone":
        return replace(view, lease=None, former_lease=None)
    if event.duty in CHANGES_DIRECTORY or (event.duty in STARTS and view.server.process == "absent"):
        return replace(view, directory=None)
    return view


def _unknown(view: View, event: Unknown) -> View:
    is_awaited = is_outcome_of_request(view, event)
    view = _with_failure(_answered(view, event.duty, event.effect_id), event.duty, "unknown", event.detail)
    view = replace(view, directory=None) if event.duty in CHANGES_DIRECTORY else view
    return with_outcome(view, event) if is_awaited else view


CHANGES_DIRECTORY = frozenset({"init-db", "clone", "rewind", "clear-directory", "clear-unfinished-init"})
"""Duties whose effect touches the data directory: whatever their outcome, it is read again."""

STARTS = frozenset({"start-primary", "start-standby", "restart-to-promote"})
"""Duties that start the server: one that failed may have failed for what became of the directory."""


def _answered(view: View, duty: str, effect_id: int) -> View:
    underway = view.underway.get(duty)
    if underway is None or underway.effect_id != effect_id:
        return view
    return replace(view, underway={d: u for d, u in view.underway.items() if d != duty})


def _with_failure(view: View, duty: str, kind: str, detail: str) -> View:
    before = view.attempts[duty].failures if duty in view.attempts else 0
    attempts = Attempts(failures=before + 1, failed_at_ms=view.now_ms, kind=kind, detail=detail)
    view = promise_unkept(view, detail) if duty == "keep-promise" else view
    return replace(view, attempts={**view.attempts, duty: attempts})


def _done(view: View, event: Succeeded, result: Done) -> View:
    if event.duty in CHANGES_DIRECTORY:
        return replace(view, directory=None)
    match event.duty:
        case "disarm-fence":
            return replace(view, fence=fencing.disarmed(view), watchdog=watchdog.released())
        case "end-leftovers":
            return fencing.without_leftovers(view)
        case "release-watchdog":
            return replace(view, watchdog=watchdog.released())
        case "revoke-lease":
            return replace(view, lease=None)
        case "request-failover":
            return replace(view, switchover=None)
        case "forget-promise":
            return promise_forgotten(view)
        case _:
            return view


def _with_clone(view: View) -> View:
    """New data: what failed on the old ones says nothing about these, and who asked for them before they were begun
    need not ask again."""
    attempts = {duty: attempt for duty, attempt in view.attempts.items() if duty != "rewind"}
    view = replace(view, attempts=attempts, server=replace(view.server, failed_starts=0))
    begun = view.underway.get("clone")
    is_answer = begun is None or begun.since_ms >= view.reinit_asked_at_ms
    return _without_reinit(view) if is_answer else view


def _lease_held(view: View, event: Succeeded, result: LeaseHeld) -> View:
    known, former = view.lease, view.former_lease
    if former is not None and former.lease_id == result.lease_id:
        newest_ms = max(former.sent_at_ms, result.sent_at_ms)
        return replace(view, former_lease=replace(former, sent_at_ms=newest_ms))
    if known is None or known.lease_id != result.lease_id:
        if event.duty != "grant-lease":
            return view  # a late renewal of a lease that is long forgotten
        lease = Lease(
            lease_id=result.lease_id,
            ttl_s=result.ttl_s,
            sent_at_ms=result.sent_at_ms,
            asked_ttl_s=result.asked_ttl_s or result.ttl_s,
        )
        return replace(view, lease=lease, former_lease=known)
    if known.sent_at_ms >= result.sent_at_ms:
        return view
    return replace(view, lease=replace(known, ttl_s=result.ttl_s, sent_at_ms=result.sent_at_ms))


def _key_written(view: View, event: Succeeded, result: KeyWritten) -> View:
    if not result.applied:
        view = _with_failure(view, event.duty, "refused", "the condition of the transaction did not hold")
    elif event.duty == "write-sync" and "write-sync" not in view.underway:  # else a late answer to an earlier one
        view = replace(view, waiting=replace(view.waiting, is_key_certain=True))
    elif event.duty == "publish-failsafe" and "publish-failsafe" not in view.underway:
        view = replace(view, failsafe_in_doubt=())
    elif event.duty == "publish-member":
        view = replace(view, published_at_ms=event.at_ms)
    if event.duty == "request-failover":
        view = replace(view, switchover=None)
    changes = [change for change in (result.now, result.also) if change is not None]
    return _with_changes(view, changes) if changes else view


def _fence_armed(view: View, event: Succeeded, result: FenceArmed) -> View:
    return replace(view, fence=fencing.confirmed(view, result.until_ms), watchdog=watchdog.armed(view, result))


def _server_started(view: View, event: Succeeded, result: ServerStarted) -> View:
    return _with_postmaster(view, result.pid, is_standby=event.duty != "start-primary")


def _parameters_applied(view: View, event: Succeeded, result: ParametersApplied) -> View:
    if result.pid != view.server.pid:
        return view  # another postmaster runs by now, and is told anew
    server = replace(view.server, config_revision=result.config_revision, refused_parameters=result.refused)
    return replace(view, server=server)


def _replay_needs_read(view: View, event: Succeeded, result: ReplayNeedsRead) -> View:
    if result.pid != view.server.pid:
        return view
    return replace(view, server=replace(view.server, too_low=result.too_low))


def _directory_read(view: View, event: Succeeded, result: DirectoryRead) -> View:
    return replace(view, directory=result.directory) if view.server.process == "absent" else view


def _sync_marked(view: View, event: Succeeded, result: SyncMarked) -> View:
    return replace(view, waiting=marked(view.waiting, result.names, result.flushed_lsn))


def _history_read(view: View, event: Succeeded, result: HistoryRead) -> View:
    return replace(view, leader_history=LeaderHistory(leader=result.leader, history=result.history, wall=result.wall))


def _peers_heard(view: View, event: Succeeded, result: PeersHeard) -> View:
    view = with_wal_heard(view, result)
    heard = {report.name: HeardPeer(report=report, at_ms=event.at_ms) for report in result.reports}
    return replace(view, peers={**view.peers, **heard}, peers_heard_at_ms=event.at_ms)


_RESULTS: dict[type, Callable[[View, Succeeded, Any], View]] = {
    Done: _done,
    LeaseHeld: _lease_held,
    KeyWritten: _key_written,
    FenceArmed: _fence_armed,
    WatchdogFed: watchdog.fed,
    ServerStarted: _server_started,
    ParametersApplied: _parameters_applied,
    ReplayNeedsRead: _replay_needs_read,
    DirectoryRead: _directory_read,
    NewAgentChecked: new_agent_checked,
    SyncMarked: _sync_marked,
    HistoryRead: _history_read,
    PeersHeard: _peers_heard,
    FailsafeHeard: failsafe_heard,
    PromiseKept: promise_kept,
    FailsafeChecked: failsafe_checked,
}

_FOLDS: dict[type, Callable[[View, Any], View]] = {
    AgentStarted: _agent_started,
    Ticked: _unchanged,
    StopAsked: _stop_asked,
    ClusterRead: _cluster_read,
    KeysChanged: _keys_changed,
    EtcdLost: _etcd_lost,
    FenceConnected: _fence_connected,
    FenceLost: _fence_lost,
    ServerSpawned: _server_spawned,
    ServerExited: _server_exited,
    ServerProbed: _server_probed,
    ServerSilent: _server_silent,
    ServerDoomed: server_doomed,
    DiskLooked: disk_looked,
    DiskSilent: disk_silent,
    SwitchoverAsked: switchover_asked,
    SwitchoverCancelAsked: cancel_asked,
    ConfigAsked: config_asked,
    RestartAsked: restart_asked,
    RestartCancelAsked: restart_cancel_asked,
    ReloadAsked: reload_asked,
    AgentRestartAsked: agent_restart_asked,
    ReinitAsked: _reinit_asked,
    FailsafeAsked: failsafe_asked,
    VoteAsked: _vote_asked,
    FailsafeCheckAsked: failsafe_check_asked,
    PromiseTryAsked: promise_try_asked,
    Succeeded: _succeeded,
    Failed: _failed,
    Unknown: _unknown,
}


def with_issued(view: View, duty: str, underway: Underway, effect: Effect) -> View:
    """What this node knows once it has told an executor to do something."""
    view = replace(view, underway={**view.underway, duty: underway})
    if isinstance(effect, PublishAsLeader) and effect.key == "failsafe":
        listed = parse_failsafe(effect.text)
        others = [former for former in view.failsafe_in_doubt if former != listed]
        view = replace(view, failsafe_in_doubt=(*others, listed))
    if isinstance(effect, WriteSync | DeleteSync):
        view = replace(view, waiting=replace(view.waiting, is_key_certain=False))
    if isinstance(effect, SetSyncNames | StartPrimary) and effect.names is not None:
        view = replace(view, waiting=ordered(view.waiting, effect.names))
    if isinstance(effect, ReleaseSyncNames):
        view = replace(view, waiting=released(view.waiting))
    if isinstance(effect, TakeLeaderKey) and effect.loss is not None:
        view = replace(view, loss=effect.loss)
    if isinstance(effect, Promote) and effect.loss is not None:
        view = replace(view, promotion=Promotion(at_ms=view.now_ms, loss=effect.loss))
    if underway.kind in ("Promote", "StartPrimary"):
        is_promotion = underway.kind == "Promote"
        server = replace(view.server, may_be_primary=True, is_promotion_asked=is_promotion)
        view = replace(view, server=server)
    return view
