"""Who may stand, and who is better: the pure policy of an election. Source: Patroni's eligibility rules."""

from fsm.facts import PeerReport
from fsm.timing import (
    OUTRANKED_FOR_MS,
    PEER_ANSWER_TIMEOUT_MS,
    PEER_REPORT_FRESH_MS,
    STARTING_MEMBER_WAIT_MS,
)
from fsm.view import HeardPeer, View
from fsm.wire import failover_priority, is_barred_by_tags


def other_members(view: View) -> dict[str, str]:
    """The API addresses of the other members that published one, by name."""
    return {m.name: m.api_url for m in view.members.values() if m.name != view.name and m.api_url}


def everybody_else(view: View) -> dict[str, str]:
    """As `other_members`, and those whose key has run out but who may lead without etcd (the `failsafe` key)."""
    listed = {name: url for name, url in view.failsafe.items() if name != view.name and url}
    return listed | other_members(view)


def is_barred(view: View) -> bool:
    """True when this node's own tags forbid a failover to it."""
    return view.identity is not None and is_barred_by_tags(dict(view.identity.tags))


def lag_bytes(view: View) -> int:
    """How far this node is behind the last position that a leader published."""
    return max(0, view.optime_lsn - view.position_lsn)


def is_synchronous_enough(view: View) -> bool:
    """True unless a synchronous mode is active and this node may miss acknowledged commits.

    The `sync` key names who has every acknowledged commit; without a leader in it no commit ever waited.
    """
    if view.dynamic.synchronous_mode == "off" or view.sync.leader is None:
        return True
    return view.name == view.sync.leader or view.name in view.sync.members


def outranks(view: View, report: PeerReport) -> bool:
    """True when the peer should be promoted rather than this node: more WAL, or as much and a higher priority."""
    if report.no_failover or not report.position_lsn:
        return False
    if report.position_lsn != view.position_lsn:
        return report.position_lsn > view.position_lsn
    own = failover_priority(dict(view.identity.tags)) if view.identity else 1
    return report.failover_priority > own


def is_primary_alive(report: PeerReport) -> bool:
    """True when the peer says that its server accepts writes; it says so within its own deadline only."""
    return report.role in ("primary", "master") and report.state == "running"


def recent_reports(view: View) -> list[HeardPeer]:
    """What members said within the last second; older positions decide nothing."""
    return [heard for heard in view.peers.values() if view.now_ms - heard.at_ms <= OUTRANKED_FOR_MS]


def best_rival(view: View) -> str | None:
    """The name of a recently heard member that outranks this node or is still a primary; None if there is none."""
    for heard in recent_reports(view):
        if heard.report.name != view.name and (is_primary_alive(heard.report) or outranks(view, heard.report)):
            return heard.report.name
    return None


def is_on_its_way(report: PeerReport) -> bool:
    """True when the peer's server is starting, or about to be, and does not tell yet how far its WAL reaches."""
    return not report.position_lsn and report.state in ("starting", "stopped") and not report.no_failover


def has_received_nothing(view: View) -> bool:
    """True when this node's standby has not streamed since it was started: it may have been away for long."""
    return view.server.probe is not None and view.server.probe.received_lsn == 0


def is_awaiting_a_start(view: View) -> bool:
    """True when another member may have more WAL than this node and cannot say so yet.

    Where everything was started at once, the servers come up in any order, and the former leader's last of all, after
    its crash recovery. A standby that streamed from the leader until it went has nobody to wait for.
    """
    return has_received_nothing(view) and any(is_on_its_way(heard.report) for heard in recent_reports(view))


def stale_or_silent_peers(view: View) -> list[str]:
    """Members that have not yet told, in this candidacy, a position that they looked up lately."""
    waiting = [name for name in other_members(view) if not _has_told_its_position(view, view.peers.get(name))]
    if view.peers_heard_at_ms < view.state_since_ms:
        waiting.extend(name for name in everybody_else(view) if name not in waiting)  # must be asked, need not answer
    return waiting


def _has_told_its_position(view: View, heard: HeardPeer | None) -> bool:
    if heard is None or heard.at_ms < view.state_since_ms or heard.report.probed_ago_ms > PEER_REPORT_FRESH_MS:
        return False
    return not (has_received_nothing(view) and is_on_its_way(heard.report))


def has_waited_long_enough(view: View) -> bool:
    """True when silent members, and those that start, have had their time in this candidacy: silence is no vote."""
    patience_ms = STARTING_MEMBER_WAIT_MS if is_awaiting_a_start(view) else PEER_ANSWER_TIMEOUT_MS
    return view.now_ms - view.state_since_ms >= patience_ms
