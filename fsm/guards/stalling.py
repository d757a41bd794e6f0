"""Guards about a leader's server that hangs, its disk that is full or hangs, and who could take over at once."""

from fsm.election import is_sync_key_decisive, may_be_elected
from fsm.facts import PeerReport
from fsm.guards.server import is_primary_running, is_promotable
from fsm.remembered import deciding_sync
from fsm.stalls import has_no_room, is_full_at
from fsm.timing import FULL_STANDS_AFTER_MS, HEIR_FRESH_MS, SILENT_LOOKS_MIN
from fsm.view import View


def _stall_timeout_ms(view: View) -> int:
    return view.dynamic.primary_stall_timeout_s * 1000


def is_server_stalled(view: View) -> bool:
    """The server, which had answered before, has said nothing on any connection for primary_stall_timeout."""
    server, mute = view.server, view.server.mute
    if server.process != "running" or server.probe is None or mute is None or view.restart is not None:
        return False
    is_long = mute.looks >= SILENT_LOOKS_MIN and mute.span_ms >= _stall_timeout_ms(view)
    return bool(_stall_timeout_ms(view)) and is_long


def is_disk_stuck(view: View) -> bool:
    """Nothing could be written to the server's disk for primary_stall_timeout, and no WAL reached it."""
    trouble = view.disk.trouble
    if trouble is None or view.server.process != "running":
        return False
    is_long = trouble.looks >= SILENT_LOOKS_MIN and trouble.span_ms >= _stall_timeout_ms(view)
    return bool(_stall_timeout_ms(view)) and is_long


def is_disk_full(view: View) -> bool:
    """The server's disk has had no room for more WAL for a while, or has not had plenty since."""
    return is_full_at(view.disk, view.now_ms)


def has_ended_for_want_of_room(view: View) -> bool:
    """The server ended by itself, does not serve again, and there is no room for it to recover."""
    is_up = is_primary_running(view) or is_promotable(view)
    if is_up or not view.server.failed_starts or "start-primary" in view.underway:
        return False
    return has_no_room(view.disk)


def is_heir_wanted(view: View) -> bool:
    """The server or its disk is in trouble: it must be known whether somebody could take over."""
    return view.server.mute is not None or view.disk.trouble is not None or has_no_room(view.disk)


def heirs(view: View) -> list[str]:
    """Members that said a moment ago that they could be promoted, by the same rules by which they would stand."""
    fresh = [h.report for h in view.peers.values() if view.now_ms - h.at_ms <= HEIR_FRESH_MS]
    running = [report for report in fresh if _is_running_standby(view, report)]
    if is_sync_key_decisive(view):
        key = deciding_sync(view)
        running = [report for report in running if report.name in key.members]
        if len(running) <= key.quorum:  # each needs the votes of so many others
            return []
    return [report.name for report in running if may_be_elected(view, report)]


def _is_running_standby(view: View, report: PeerReport) -> bool:
    is_here = report.name in view.members and report.name != view.name
    is_standby = report.state == "running" and report.role not in ("primary", "master", "demoted", "uninitialized")
    return is_here and is_standby and bool(report.position_lsn) and not report.is_replaying


def has_heir(view: View) -> bool:
    """A member that could be promoted at once said so a moment ago."""
    return bool(heirs(view))


def has_streaming_heir(view: View) -> bool:
    """A member that could be promoted at once said so a moment ago, and streams from this server."""
    probe = view.server.probe
    streaming = {s.application_name for s in probe.standbys if s.state == "streaming"} if probe else set()
    return any(name in streaming for name in heirs(view))


def has_room_to_lead(view: View) -> bool:
    """This node's disk is not full, or nobody with room has taken the free key for a while."""
    free_since_ms = view.leader_free_since_ms
    is_last_resort = free_since_ms is not None and view.now_ms - free_since_ms >= FULL_STANDS_AFTER_MS
    return is_last_resort or not has_no_room(view.disk)
