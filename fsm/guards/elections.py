"""Guards about who may stand, and whether an election is decided."""

from fsm import election
from fsm.guards.cluster import has_data_of_this_cluster, has_made_the_cluster
from fsm.guards.server import is_standby_running, may_a_primary_be_running
from fsm.guards.stalling import has_room_to_lead
from fsm.handover import request_in_force
from fsm.stalls import is_mute
from fsm.timing import NAMED_SUCCESSOR_WAIT_MS, PEER_ANSWER_TIMEOUT_MS, PEER_REASK_LATER_MS, PEER_REASK_MS
from fsm.view import View


def is_able_to_stand(view: View) -> bool:
    """Tags, timeline, failsafe list, disk, synchronous mode and lag allow this node to lead; its standby answers."""
    return (
        is_standby_running(view)
        and not is_mute(view)
        and not election.is_barred(view)
        and has_data_of_this_cluster(view)
        and is_on_the_newest_timeline(view)
        and is_listed_for_failsafe(view)
        and (has_room_to_lead(view) or is_named_successor(view))
        and (election.is_failover_to_us(view) or _is_fresh_enough(view))
    )


def _is_fresh_enough(view: View) -> bool:
    return election.is_synchronous_enough(view) and election.is_near_enough(view)


def is_synchronous_enough(view: View) -> bool:
    """No synchronous mode is active, or the `sync` key says that this node holds every acknowledged commit, unasked."""
    return election.is_synchronous_enough(view) and not election.voters(view)


def is_listed_for_failsafe(view: View) -> bool:
    """A leader that goes on without etcd would ask this node, or asks nobody, or an operator asked for a failover here.

    Also where failsafe is off by now: the leader may not have heard of it. It empties the list when it has.
    """
    if not view.failsafe or election.is_failover_to_us(view):
        return True
    return view.name in view.failsafe


def is_on_the_newest_timeline(view: View) -> bool:
    """This node is on the newest timeline that the cluster's history knows, or that check is off."""
    return not view.dynamic.check_timeline or view.timeline >= view.last_timeline


def is_unrivalled(view: View) -> bool:
    """No member that was heard lately has more WAL, a higher priority, or a server that still accepts writes."""
    return election.best_rival(view) is None


def is_rivalled(view: View) -> bool:
    """A member that was heard lately has more WAL, a higher priority, or a server that still accepts writes."""
    return not is_unrivalled(view)


def is_named_successor(view: View) -> bool:
    """A switchover or failover names this node."""
    request = request_in_force(view)
    return request is not None and request.candidate == view.name


def is_first_choice_open(view: View) -> bool:
    """No other living member was named as successor, or it has let its time pass."""
    request = request_in_force(view)
    if request is None or request.candidate in (None, view.name) or request.candidate not in view.members:
        return True
    since = view.leader_free_since_ms
    return since is not None and view.now_ms - since >= NAMED_SUCCESSOR_WAIT_MS


def is_standing_in_vain(view: View) -> bool:
    """This node may not be promoted any more: its standby is gone or it no longer qualifies."""
    return not is_able_to_stand(view) and not has_special_claim(view)


def has_special_claim(view: View) -> bool:
    """This node made the cluster, or runs a primary already: there is nobody to elect."""
    return has_made_the_cluster(view) or may_a_primary_be_running(view)


def is_peer_question_due(view: View) -> bool:
    """A peer has not told a fresh position in this candidacy, and was not asked just now."""
    is_heard = (
        _has_found_former_primary_gone(view) if is_named_successor(view) else not election.stale_or_silent_peers(view)
    )
    if has_special_claim(view) or (is_heard and election.has_enough_votes(view)):
        return False
    asked_at_ms = view.achieved.get("ask-peers", 0)
    is_in_a_hurry = view.now_ms - view.state_since_ms < PEER_ANSWER_TIMEOUT_MS
    pause_ms = PEER_REASK_MS if is_in_a_hurry else PEER_REASK_LATER_MS
    return asked_at_ms < view.state_since_ms or view.now_ms - asked_at_ms >= pause_ms


def _has_found_former_primary_gone(view: View) -> bool:
    return view.peers_heard_at_ms >= view.state_since_ms and not election.is_former_primary_alive(view)


def is_election_decided(view: View) -> bool:
    """Everybody who answers in time was heard, nobody is better, and in a synchronous mode enough have voted."""
    if has_special_claim(view):
        return True
    if not election.has_enough_votes(view):
        return False
    if is_named_successor(view):
        return _has_found_former_primary_gone(view)
    if not is_unrivalled(view) or view.server.probed_at_ms < view.state_since_ms:
        return False
    return not election.stale_or_silent_peers(view) or election.has_waited_long_enough(view)
