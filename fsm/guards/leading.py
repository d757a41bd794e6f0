"""Guards about the leader's server, and handing over."""

from fsm.election import is_sync_key_decisive
from fsm.guards.server import is_primary_running, is_promotable
from fsm.handover import in_force_since_ms, is_schedule_missed, request_in_force
from fsm.publish import own_history
from fsm.remembered import deciding_sync
from fsm.timelines import timeline_to_reserve, was_primary
from fsm.timing import (
    FAILED_STARTS_MAX,
    HANDOVER_CATCH_UP_MS,
    PEER_REASK_LATER_MS,
    PEER_REASK_MS,
    START_TIMEOUT_LEAST_MS,
)
from fsm.view import View
from fsm.wire import is_barred_by_tags


def is_beyond_restart(view: View) -> bool:
    """The server was not brought to accept writes within primary_start_timeout, or keeps ending."""
    server = view.server
    if is_primary_running(view) or server.process == "unknown":
        return False
    if server.failed_starts >= FAILED_STARTS_MAX and not is_promotable(view):
        return True
    down_since_ms = max(server.exited_at_ms or server.spawned_at_ms, view.state_since_ms)
    return view.now_ms - down_since_ms >= start_timeout_ms(view)


def start_timeout_ms(view: View) -> int:
    """How long the leader's server may take to accept writes again before another node is to lead."""
    if view.restart is not None:
        return view.restart.start_timeout_ms
    if view.dynamic.primary_start_timeout_s:
        return view.dynamic.primary_start_timeout_s * 1000
    # 0 is for a server that ended under this leader. One that is only coming up (promoted, or new) has its time: with
    # none no election would ever end in a primary.
    exited_at_ms = view.server.exited_at_ms
    has_crashed = exited_at_ms is not None and exited_at_ms >= view.state_since_ms
    return 1 if has_crashed else START_TIMEOUT_LEAST_MS


def is_timeline_unreserved(view: View) -> bool:
    """The `timeline` key does not hold the number of the timeline that this leader is to begin, or is on."""
    return view.server.probe is not None and view.reserved_timeline != timeline_to_reserve(view)


def is_timeline_reserved(view: View) -> bool:
    """The number of the timeline that this leader is to begin is told to everybody."""
    return not is_timeline_unreserved(view)


def is_handover_wanted(view: View) -> bool:
    """A switchover or failover away from this leader is asked for, and a member that can take over streams from it."""
    request = request_in_force(view)
    if request is None or request.candidate == view.name:
        return False
    return request.leader in (None, view.name) and bool(handover_targets(view))


def is_handover_prepared(view: View) -> bool:
    """The checkpoint before the handover is done, or was tried: a fast stop now has little left to write."""
    tried = view.attempts.get("checkpoint-for-handover")
    return view.has_achieved("checkpoint-for-handover", in_force_since_ms(view)) or tried is not None


def is_failover_request_moot(view: View) -> bool:
    """The failover key asks for something that is done, or that a look at the server since shows to be impossible."""
    if is_schedule_missed(view):
        return True
    if request_in_force(view) is None or view.server.probed_at_ms <= in_force_since_ms(view):
        return False
    return not is_handover_wanted(view)


def handover_targets(view: View) -> list[str]:
    """Members that stream from this leader and may be promoted, the named one only if one is named.

    In a synchronous mode a switchover goes to a member of the `sync` key; a failover to whom the operator names.
    """
    probe, request = view.server.probe, request_in_force(view)
    if probe is None or request is None:
        return []
    streaming = {s.application_name for s in probe.standbys if s.state == "streaming"}
    able = [m for m in view.members.values() if m.name in streaming and not is_barred_by_tags(dict(m.tags))]
    if is_sync_key_decisive(view) and (request.leader is not None or request.candidate is None):
        able = [m for m in able if m.name in deciding_sync(view).members]
    return [m.name for m in able if request.candidate in (None, m.name)]


def is_successor_ready(view: View) -> bool:
    """Nobody is to be waited for before the key is released, or the named successor holds all WAL."""
    request, exited_at_ms = request_in_force(view), view.server.exited_at_ms
    if request is None or request.candidate in (None, view.name) or exited_at_ms is None:
        return True
    if view.directory is None or not was_primary(view.directory):
        return view.directory is not None
    heard = view.peers.get(request.candidate)
    if heard is None or heard.at_ms < exited_at_ms:
        return False
    return heard.report.position_lsn > view.directory.checkpoint_lsn


def is_successor_overdue(view: View) -> bool:
    """The named successor has had its time since the server stopped, and still does not hold all WAL."""
    exited_at_ms = view.server.exited_at_ms
    is_overdue = exited_at_ms is not None and view.now_ms - exited_at_ms >= HANDOVER_CATCH_UP_MS
    return is_overdue and not is_successor_ready(view)


def is_successor_question_due(view: View) -> bool:
    """The named successor was not asked just now how far it has come: at first every few milliseconds."""
    pause_ms = PEER_REASK_LATER_MS if is_successor_overdue(view) else PEER_REASK_MS
    return not is_successor_ready(view) and view.now_ms - view.peers_heard_at_ms >= pause_ms


def has_not_checkpointed_since_promotion(view: View) -> bool:
    """This primary was promoted in this stay and has not finished a checkpoint since."""
    return has_promoted(view) and not view.has_achieved("checkpoint-after-promote", view.state_since_ms)


def has_promoted(view: View) -> bool:
    """This node's server was promoted in this stay in the state."""
    return view.has_achieved("promote", view.state_since_ms)


def is_own_history_unread(view: View) -> bool:
    """This primary came to its timeline by a promotion, and has not yet read its own history."""
    probe = view.server.probe
    return probe is not None and not probe.in_recovery and probe.timeline > 1 and own_history(view) is None


def is_handover_unprepared(view: View) -> bool:
    """The checkpoint before the handover has not been tried yet."""
    return not is_handover_prepared(view)
