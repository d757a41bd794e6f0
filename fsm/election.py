"""Who may stand, and who is better: the pure policy of an election. Source: Patroni's eligibility rules."""

from fsm.facts import PeerReport
from fsm.handover import request_in_force
from fsm.remembered import deciding_sync, remembered_sync
from fsm.stalls import has_no_room
from fsm.timing import (
    OUTRANKED_FOR_MS,
    PEER_ANSWER_TIMEOUT_MS,
    PEER_REPORT_FRESH_MS,
    SILENT_PEER_MS,
    STARTING_MEMBER_WAIT_MS,
)
from fsm.view import HeardPeer, View
from fsm.vote import election_revision
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


def is_sync_key_decisive(view: View) -> bool:
    """True when the `sync` key says who may be promoted: a mode is on, and some leader wrote the key before it served.

    Without a leader in it no commit ever waited. One that etcd lost decides too: see fsm/remembered.py.
    """
    return view.dynamic.synchronous_mode != "off" and deciding_sync(view).leader is not None


def is_synchronous_enough(view: View) -> bool:
    """True unless a synchronous mode is active and this node may miss acknowledged commits."""
    if not is_sync_key_decisive(view):
        return True
    key = deciding_sync(view)
    return view.name == key.leader or view.name in key.members


def is_near_enough(view: View) -> bool:
    """True when this node is not too far behind what the last leader published.

    Who is in the `sync` key holds every acknowledged commit, or hears enough others that do: what the leader wrote
    beyond that was never acknowledged, and counts for nothing here. (Patroni #3703: leaderless for ever by such WAL.)
    """
    return is_sync_key_decisive(view) or lag_bytes(view) <= view.dynamic.maximum_lag_on_failover_bytes


def is_failover_to_us(view: View) -> bool:
    """True when an operator asked for a failover to this node, whatever may be lost: no leader is named to agree."""
    request = request_in_force(view)
    return request is not None and request.leader is None and request.candidate == view.name


def voters(view: View) -> tuple[str, ...]:
    """The members whose vote this node needs some of; nobody where the `sync` key says enough by itself."""
    key, is_remembered = deciding_sync(view), remembered_sync(view) is not None
    if not is_sync_key_decisive(view) or (not is_remembered and (view.name == key.leader or not key.quorum)):
        return ()
    return tuple(sorted(name for name in {*key.members, key.leader} if name and name != view.name))


def votes(view: View) -> tuple[str, ...]:
    """The voters that hold no more WAL than this node, by a look since the key became free.

    One that was started and still reads the WAL on its disk holds more than it tells. What a member holds counts only
    once it receives no more; of Patroni's members, which do not vote, their word is taken, as Patroni takes it.
    """
    since_ms = view.leader_free_since_ms if view.leader_free_since_ms is not None else view.state_since_ms
    return tuple(
        heard.report.name
        for heard in view.peers.values()
        if heard.report.name in voters(view)
        and (heard.report.vote_revision == election_revision(view) or not heard.report.instance)
        and (heard.report.timeline <= view.timeline or remembered_sync(view) is None)
        and (heard.report.position_lsn > 0 or _has_no_data(view, heard.report))
        and heard.report.position_lsn <= view.position_lsn
        and not heard.report.is_replaying
        and heard.at_ms - heard.report.probed_ago_ms >= since_ms
    )


def _has_no_data(view: View, report: PeerReport) -> bool:
    """True for a voter by a remembered `sync` key that has no data: whoever is to have some must be elected first."""
    return remembered_sync(view) is not None and bool(report.vote_revision) and report.role == "uninitialized"


def has_enough_votes(view: View) -> bool:
    """True when whoever acknowledged a commit is among this node and those that it heard; see fsm/sync.py."""
    if not is_sync_key_decisive(view) or is_failover_to_us(view):
        return True
    if remembered_sync(view) is not None:
        return len(votes(view)) == len(voters(view))
    return view.name == view.sync.leader or len(votes(view)) >= view.sync.quorum


def outranks(view: View, report: PeerReport) -> bool:
    """True when the peer should be promoted rather than this node: more WAL, or as much and a higher priority."""
    if report.no_failover or not report.position_lsn:
        return False
    if report.position_lsn != view.position_lsn:
        return report.position_lsn > view.position_lsn
    own = failover_priority(dict(view.identity.tags)) if view.identity else 1
    return report.failover_priority > own


def is_primary_alive(report: PeerReport) -> bool:
    """True when the peer's server accepts writes, or has not yet ended since it was to stop doing so.

    That its agent knows that it does not lead any more ("demoted") ends no server. It is said within the peer's own
    deadline only, and a server that is to stop is gone within moments.
    """
    return report.role in ("primary", "master", "demoted") and report.state in ("running", "stopping")


def recent_reports(view: View) -> list[HeardPeer]:
    """What members said within the last second; older positions decide nothing."""
    return [heard for heard in view.peers.values() if view.now_ms - heard.at_ms <= OUTRANKED_FOR_MS]


def is_former_primary_alive(view: View) -> bool:
    """True when a member heard lately still has a server that accepts writes, or is to stop and has not ended."""
    return any(h.report.name != view.name and is_primary_alive(h.report) for h in recent_reports(view))


def best_rival(view: View) -> str | None:
    """The name of a recently heard member that outranks this node or is still a primary; None if there is none."""
    for heard in recent_reports(view):
        if heard.report.name != view.name and (is_primary_alive(heard.report) or _may_outrank(view, heard.report)):
            return heard.report.name
    return None


def is_eligible(view: View, report: PeerReport, *, newest_timeline: int) -> bool:
    """True when a member may be elected by what it says of itself, its WAL and the `sync` key aside: by its tags, the
    `failsafe` key, and its timeline. What a node asks of itself is `is_able_to_stand`."""
    if report.no_failover or (view.failsafe and report.name not in view.failsafe):
        return False
    return not view.dynamic.check_timeline or not 0 < report.timeline < newest_timeline


def may_be_elected(view: View, report: PeerReport) -> bool:
    """True when a member that streams from this leader could be elected in its place, the `sync` key aside."""
    if view.dynamic.check_timeline and not report.timeline:
        return False  # nobody steps down for whom nothing is known of
    if report.disk_full or not is_eligible(view, report, newest_timeline=max(view.last_timeline, view.timeline)):
        return False
    behind_bytes = view.optime_lsn - report.position_lsn
    return is_sync_key_decisive(view) or behind_bytes <= view.dynamic.maximum_lag_on_failover_bytes


def _may_outrank(view: View, report: PeerReport) -> bool:
    """True when the peer outranks this node and could be promoted: nobody is to be waited for who never will be.

    The `sync` key's leader may hold more, that nobody acknowledged: it is not waited for either. Nor is a member whose
    disk is full: it could not write what it leads for; nor one whose server hangs.
    """
    if report.probed_ago_ms > SILENT_PEER_MS:
        return False
    if report.disk_full and not has_no_room(view.disk):
        return False
    if not is_eligible(view, report, newest_timeline=view.last_timeline):
        return False
    if remembered_sync(view) is not None:
        return report.name in voters(view) and outranks(view, report)  # without its vote nothing is decided anyway
    return (not is_sync_key_decisive(view) or report.name in view.sync.members) and outranks(view, report)


def is_on_its_way(report: PeerReport) -> bool:
    """True when the peer's server is starting, or about to be, and does not tell yet how far its WAL reaches."""
    if report.is_replaying:
        return not report.no_failover
    return not report.position_lsn and report.state in ("starting", "stopped") and not report.no_failover


def has_received_nothing(view: View) -> bool:
    """True when this node's standby has not streamed since it was started.

    Where everything was started at once, agents and servers come up in any order, and the former leader's last of all,
    after its crash recovery and with the newest rows. A standby that streamed until the leader went waits for nobody.
    A receiver that only tried to connect says the start of a segment, which lies before what was replayed.
    Source: PostgreSQL, RequestXLogStreaming.
    """
    probe = view.server.probe
    return probe is not None and probe.in_recovery and probe.received_lsn < max(probe.replayed_lsn, 1)


def stale_or_silent_peers(view: View) -> list[str]:
    """Members that have not yet told, in this candidacy, a position that they looked up lately."""
    asked = everybody_else(view) if is_waiting_for_starts(view) else other_members(view)
    waiting = [name for name in asked if not _has_told_its_position(view, view.peers.get(name))]
    if view.peers_heard_at_ms < view.state_since_ms:
        waiting.extend(name for name in everybody_else(view) if name not in waiting)  # must be asked, need not answer
    return waiting


def _has_told_its_position(view: View, heard: HeardPeer | None) -> bool:
    if heard is None or heard.at_ms < view.state_since_ms or heard.report.probed_ago_ms > PEER_REPORT_FRESH_MS:
        return False
    return not (is_waiting_for_starts(view) and is_on_its_way(heard.report))


def has_waited_long_enough(view: View) -> bool:
    """True when silent members, and those that start, have had their time in this candidacy: silence is no vote."""
    if view.now_ms - view.state_since_ms < PEER_ANSWER_TIMEOUT_MS:
        return False
    return not is_waiting_for_starts(view) or view.now_ms >= starts_awaited_until_ms(view)


def is_waiting_for_starts(view: View) -> bool:
    """True when members that are silent or starting may have more WAL than this node, and nothing else tells.

    In a synchronous mode the `sync` key tells.
    """
    return has_received_nothing(view) and not is_sync_key_decisive(view)


def starts_awaited_until_ms(view: View) -> int:
    """Until when members that start are waited for: counted once, however often this node stands meanwhile."""
    return max(view.leader_free_since_ms or 0, view.server.spawned_at_ms) + STARTING_MEMBER_WAIT_MS
