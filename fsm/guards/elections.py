"""Guards about who may stand, and whether an election is decided."""

from fsm import election
from fsm.guards.cluster import has_data_of_this_cluster, has_made_the_cluster
from fsm.guards.server import is_standby_running, may_a_primary_be_running
from fsm.timing import NAMED_SUCCESSOR_WAIT_MS, PEER_REASK_MS
from fsm.view import View


def is_able_to_stand(view: View) -> bool:
    """Tags, timeline, failsafe list, synchronous mode and lag allow this node to be promoted, and its standby runs."""
    return (
        is_standby_running(view)
        and not election.is_barred(view)
        and has_data_of_this_cluster(view)
        and is_on_the_newest_timeline(view)
        and is_listed_for_failsafe(view)
        and election.is_synchronous_enough(view)
        and election.lag_bytes(view) <= view.dynamic.maximum_lag_on_failover_bytes
    )


def is_listed_for_failsafe(view: View) -> bool:
    """A leader that goes on without etcd would ask this node, or failsafe is off, or an operator named this node."""
    if not view.dynamic.failsafe_mode or not view.failsafe or is_named_successor(view):
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
    return view.failover is not None and view.failover.candidate == view.name


def is_first_choice_open(view: View) -> bool:
    """No other living member was named as successor, or it has let its time pass."""
    request = view.failover
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
    if has_special_claim(view) or is_named_successor(view) or not election.stale_or_silent_peers(view):
        return False
    asked_at_ms = max(view.achieved.get("ask-peers", 0), 0)
    return asked_at_ms < view.state_since_ms or view.now_ms - asked_at_ms >= PEER_REASK_MS


def is_election_decided(view: View) -> bool:
    """Everybody who answers in time was heard and nobody is better, or there is nobody to ask."""
    if has_special_claim(view) or is_named_successor(view):
        return True
    if not is_unrivalled(view) or view.server.probed_at_ms < view.state_since_ms:
        return False
    return not election.stale_or_silent_peers(view) or election.has_waited_long_enough(view)
