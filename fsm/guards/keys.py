"""Guards about etcd, the leader key and the lease."""

from fsm.publish import is_failsafe_possible
from fsm.timing import FAILSAFE_AFTER_MS, renew_every_ms
from fsm.view import View


def is_etcd_watched(view: View) -> bool:
    """etcd was read and every change since is heard of."""
    return view.etcd.is_watched


def is_etcd_unreachable(view: View) -> bool:
    """etcd is not heard of at present."""
    return not view.etcd.is_watched


def is_leader_key_free(view: View) -> bool:
    """etcd says that nobody holds the leader key."""
    return view.etcd.is_watched and view.leader is None


def is_leader_key_held_by_another(view: View) -> bool:
    """The leader key names another member."""
    return view.leader is not None and view.leader != view.name


def is_leader_key_named_for_us(view: View) -> bool:
    """The leader key names this node, under whatever lease."""
    return view.leader == view.name


def is_leader_key_ours(view: View) -> bool:
    """The leader key names this node and hangs on its present lease."""
    key = view.keys.get("leader")
    return key is not None and view.lease is not None and key.value == view.name and key.lease_id == view.lease.lease_id


def has_lost_the_leader_key(view: View) -> bool:
    """The leader key went to another, or is gone while no failsafe confirmation stands in for it."""
    if is_leader_key_held_by_another(view):
        return True
    return is_leader_key_free(view) and view.now_ms >= view.failsafe_until_ms


def has_lease(view: View) -> bool:
    """This node has a lease at etcd."""
    return view.lease is not None


def is_lease_wanted(view: View) -> bool:
    """This node has no lease, or one of another length than the cluster's ttl, and is not on its way out."""
    return not view.is_stopping and (view.lease is None or view.lease.asked_ttl_s != view.dynamic.ttl_s)


def is_renewal_due(view: View) -> bool:
    """A third of the lease is used."""
    return view.lease is not None and view.now_ms >= view.lease.sent_at_ms + renew_every_ms(view.lease.ttl_s)


def has_time_left(view: View) -> bool:
    """The deadline until which this node may let its server accept writes lies ahead."""
    return view.now_ms < view.writable_until_ms


def is_past_its_deadline(view: View) -> bool:
    """The lease may have run out at etcd, and no failsafe confirmation stands in for it."""
    return view.now_ms >= view.writable_until_ms


def has_promised_nothing(view: View) -> bool:
    """This node has not promised a leader without etcd to let it go on."""
    return all(p is None or view.now_ms >= p.until_ms for p in (view.promise, view.promising))


def is_failsafe_wanted(view: View) -> bool:
    """The lease was not renewed when it should have been, and members may confirm in etcd's place."""
    if not is_failsafe_possible(view):
        return False
    if view.lease is None:
        # etcd was reached for a moment, and had ended the lease; the members' word holds all the same.
        is_unrenewed = is_etcd_unreachable(view) and is_confirmed_by_members(view)
    else:
        is_unrenewed = "renew-lease" in view.attempts
    return is_unrenewed and view.now_ms >= failsafe_due_at_ms(view)


def failsafe_due_at_ms(view: View) -> int:
    """When members are asked (again) to confirm, if etcd has not by then."""
    confirmed_ms, ttl_s = view.achieved.get("ask-failsafe", 0), view.dynamic.ttl_s
    if view.lease is not None:
        confirmed_ms, ttl_s = max(view.lease.sent_at_ms, confirmed_ms), view.lease.ttl_s
    return confirmed_ms + renew_every_ms(ttl_s) + FAILSAFE_AFTER_MS


def is_confirmed_by_members(view: View) -> bool:
    """Everybody who could be elected has promised not to be, for the present."""
    return view.now_ms < view.failsafe_until_ms


def is_leadership_confirmed(view: View) -> bool:
    """The leader key is this node's, under its present lease, or everybody who could take it has promised not to."""
    return is_leader_key_ours(view) or is_confirmed_by_members(view)


def is_leader_key_obtainable(view: View) -> bool:
    """The leader key is free, or names this node under another lease than its present one."""
    if is_leader_key_ours(view):
        return False
    return is_leader_key_free(view) or (view.etcd.is_watched and is_leader_key_named_for_us(view))


def has_lease_time_left(view: View) -> bool:
    """The lease itself, failsafe or not, is good for a while."""
    return view.lease is not None and view.now_ms < view.lease.writable_until_ms


def is_leader_key_not_ours(view: View) -> bool:
    """The leader key does not name this node, as far as is known."""
    return view.leader != view.name


def has_settled_its_lease(view: View) -> bool:
    """The lease was given back, or etcd did not take it: then it runs out by itself."""
    return view.lease is None or "revoke-lease" in view.attempts or not view.etcd.is_watched
