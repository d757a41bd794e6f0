"""When to look again: every instant at which a guard may change its mind without an event, and how often to probe."""

from collections.abc import Callable, Iterator

from fsm.election import starts_awaited_until_ms
from fsm.guards.keys import failsafe_due_at_ms
from fsm.guards.leading import start_timeout_ms
from fsm.handover import request_in_force
from fsm.stalls import has_no_room
from fsm.states import State
from fsm.syncnames import STRICTLY_NOBODY
from fsm.table import DUTIES, Duty
from fsm.timing import (
    DISK_FULL_FOR_MS,
    FENCE_SILENT_MS,
    FULL_STANDS_AFTER_MS,
    HANDOVER_CATCH_UP_MS,
    NAMED_SUCCESSOR_WAIT_MS,
    OUTRANKED_FOR_MS,
    PEER_ANSWER_TIMEOUT_MS,
    PEER_REASK_LATER_MS,
    PEER_REASK_MS,
    PROBE_IDLE_MS,
    PROBE_SOON_MS,
    PROBE_STUCK_MS,
    PROBE_SYNC_MS,
    PROBE_URGENT_MS,
    PROMOTE_AGAIN_MS,
    SCHEDULE_LATE_MS,
    SCHEDULE_SKEW_MS,
    SWITCHOVER_WRITTEN_WITHIN_MS,
    SYNC_SETTLE_MS,
    UNANSWERED_GRACE_MS,
    WATCHDOG_TRIED_ANEW_MS,
    backoff_ms,
    renew_every_ms,
    standby_pause_ms,
)
from fsm.view import View

DUTY_BY_ID: dict[str, Duty] = {duty.id: duty for duty in DUTIES}
_SETTLING = {duty.id: duty for duty in DUTIES if duty.settle_ms}


def may_issue_at_ms(view: View, duty: Duty) -> int:
    """The instant from which a duty may be issued (again); 0 if it was never tried."""
    settled_at_ms = view.achieved[duty.id] + duty.settle_ms if duty.settle_ms and duty.id in view.achieved else 0
    attempts = view.attempts.get(duty.id) if view.attempts else None
    if attempts is None:
        return settled_at_ms
    pause_ms = backoff_ms(attempts.failures, first_ms=duty.first_ms, most_ms=duty.most_ms)
    return max(settled_at_ms, attempts.failed_at_ms + pause_ms)


def _lease_instants(view: View) -> Iterator[int]:
    if view.lease is not None:
        yield view.lease.sent_at_ms + renew_every_ms(view.lease.ttl_s)
        yield view.lease.writable_until_ms
    if view.state is State.LEADER:
        yield failsafe_due_at_ms(view)
    yield view.leadership_until_ms
    yield view.failsafe_until_ms
    yield from (p.until_ms for p in (view.promise, view.promising) if p is not None)


def _election_instants(view: View) -> Iterator[int]:
    tried = view.attempts.get("feed-watchdog")
    if tried is not None:
        yield tried.failed_at_ms + WATCHDOG_TRIED_ANEW_MS
    if view.leader_free_since_ms is not None:
        yield view.leader_free_since_ms + NAMED_SUCCESSOR_WAIT_MS
        yield view.leader_free_since_ms + view.dynamic.ttl_s * 1000
    if view.state is State.CANDIDATE:
        yield view.state_since_ms + PEER_ANSWER_TIMEOUT_MS
        yield starts_awaited_until_ms(view)
        yield view.achieved.get("ask-peers", 0) + PEER_REASK_MS
        yield view.achieved.get("ask-peers", 0) + PEER_REASK_LATER_MS
    if view.state in (State.CANDIDATE, State.REPLICA):
        yield view.peers_heard_at_ms + PEER_REASK_MS
        yield view.peers_heard_at_ms + PEER_REASK_LATER_MS
        yield from (heard.at_ms + OUTRANKED_FOR_MS + 1 for heard in view.peers.values())


def _server_instants(view: View) -> Iterator[int]:
    server = view.server
    if server.exited_at_ms is not None:
        yield server.exited_at_ms + HANDOVER_CATCH_UP_MS
        yield server.exited_at_ms + standby_pause_ms(server.failed_starts)
    if view.state is State.LEADER:
        down_since_ms = max(server.exited_at_ms or server.spawned_at_ms, view.state_since_ms)
        yield down_since_ms + start_timeout_ms(view)
        yield view.achieved.get("promote", 0) + PROMOTE_AGAIN_MS
        yield server.spawned_at_ms + FENCE_SILENT_MS
        yield view.fence.armed_until_ms or 0


def _stall_instants(view: View) -> Iterator[int]:
    if view.disk.full_since_ms is not None:
        yield view.disk.full_since_ms + DISK_FULL_FOR_MS
    if view.leader_free_since_ms is not None and has_no_room(view.disk):
        yield view.leader_free_since_ms + FULL_STANDS_AFTER_MS


def _sync_instants(view: View) -> Iterator[int]:
    if view.waiting.shown_since_ms is not None:
        yield view.waiting.shown_since_ms + SYNC_SETTLE_MS
    yield from (track.distrusted_until_ms for track in view.waiting.standbys.values())


def _request_instants(view: View) -> Iterator[int]:
    if view.failover_due_at_ms is not None:
        yield view.failover_due_at_ms - SCHEDULE_SKEW_MS
        yield view.failover_due_at_ms
        yield view.failover_due_at_ms + SCHEDULE_LATE_MS + 1
    yield from (asked.until_ms for asked in view.asked.values())
    if view.restart is not None:
        yield view.restart.until_ms
    if view.agent_restart is not None:
        yield view.agent_restart.until_ms
    if view.scheduled_restart is not None:
        yield view.scheduled_restart.due_at_ms
    if view.switchover is not None:
        yield view.switchover_asked_at_ms + SWITCHOVER_WRITTEN_WITHIN_MS


def _effect_instants(view: View) -> Iterator[int]:
    yield from (underway.deadline_ms + UNANSWERED_GRACE_MS + 1 for underway in view.underway.values())
    yield from (may_issue_at_ms(view, DUTY_BY_ID[duty]) for duty in view.attempts)
    yield from (may_issue_at_ms(view, _SETTLING[duty]) for duty in view.achieved if duty in _SETTLING)


_SOURCES: tuple[Callable[[View], Iterator[int]], ...] = (
    _lease_instants,
    _election_instants,
    _server_instants,
    _stall_instants,
    _sync_instants,
    _request_instants,
    _effect_instants,
)


def wake_at_ms(view: View) -> int | None:
    """The next instant at which deciding again could give another answer; None if only an event could."""
    now_ms, next_ms = view.now_ms, None
    for source in _SOURCES:
        for instant_ms in source(view):
            if instant_ms > now_ms and (next_ms is None or instant_ms < next_ms):
                next_ms = instant_ms
    return next_ms


def probe_every_ms(view: View) -> int | None:
    """How often the server should be looked at now; None while none runs. Eagerness fades if nothing comes of it."""
    if view.server.process != "running":
        return None
    since_ms = view.now_ms - max(view.server.spawned_at_ms, view.state_since_ms, view.leader_free_since_ms or 0)
    eager = PROBE_URGENT_MS if since_ms < 3_000 else PROBE_SOON_MS if since_ms < 30_000 else PROBE_IDLE_MS
    if _is_somebody_waiting(view):
        return max(eager, PROBE_SOON_MS) if _has_promotion_failed(view) else eager
    usual = _probe_for_commits_every_ms(view)
    return min(max(eager, PROBE_SOON_MS), usual) if _is_change_expected(view) else usual


def _probe_for_commits_every_ms(view: View) -> int:
    """How often a leader looks whether those that commits wait for keep up."""
    waiting = view.waiting
    if view.state is not State.LEADER or view.dynamic.synchronous_mode == "off" or waiting.names is None:
        return PROBE_IDLE_MS
    is_unsettled = not waiting.is_settled and waiting.names != STRICTLY_NOBODY
    has_stopped = any(
        track.moved_at_ms < view.server.probed_at_ms and not track.is_stuck
        for name, track in waiting.standbys.items()
        if name in waiting.names.names
    )
    return PROBE_STUCK_MS if is_unsettled or has_stopped else PROBE_SYNC_MS


def _is_somebody_waiting(view: View) -> bool:
    """Clients wait for a primary, or the machine for its server's first answer."""
    probe = view.server.probe
    if probe is None or view.state is State.CANDIDATE:
        return True
    return view.state is State.LEADER and probe.in_recovery


def _has_promotion_failed(view: View) -> bool:
    """The last order to promote failed and the next one is not due: a look would hardly show anything new."""
    return "promote" in view.attempts and "promote" not in view.underway


def _is_change_expected(view: View) -> bool:
    """A handover is asked for, nobody leads, or the standby does not stream yet, or not from where it was told to."""
    probe = view.server.probe
    if view.server.probed_at_ms <= max(view.achieved.get(duty, -1) for duty in ("follow", "cut-receiver")):
        return True
    is_idle_standby = probe is not None and probe.in_recovery and probe.receiver_status != "streaming"
    return request_in_force(view) is not None or view.leader is None or is_idle_standby
