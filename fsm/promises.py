"""What this node promises a leader that cannot reach etcd, and what it counts on as such a leader itself. Pure.

A promise is confirmed to its leader only when it is on disk, and binds from the moment that it was asked for. It is
made anew with each question, never shortened, and never given to a second leader while a first may count on it.
"""

from msgspec.structs import replace

from fsm.events import FailsafeAsked, FailsafeChecked, FailsafeHeard, PromiseKept, Succeeded
from fsm.facts import KeptPromise
from fsm.guards.server import is_no_primary_possible
from fsm.publish import failsafe_addresses, is_failsafe_possible
from fsm.states import State
from fsm.timing import writable_until_ms
from fsm.view import Promise, Refusal, View


def why_not_to_promise(view: View, leader: str) -> str | None:
    """Why this node does not confirm `leader`, in one line; None if it may."""
    if not view.dynamic.failsafe_mode:
        return "failsafe mode is off"
    if leader == view.name:
        return f'"{leader}" is this node itself'
    if leader not in {*view.members, *view.failsafe, *_promised_to(view)}:
        return f'"{leader}" is not a member that this node has heard of'
    return _why_own_part_forbids(view) or _why_another_is_in_the_way(view, leader)


def _why_own_part_forbids(view: View) -> str | None:
    """A node that leads, or may turn out to lead, lets nobody else go on."""
    if view.state is State.LEADER or view.leader == view.name:
        return "this node holds the leader key, as far as it knows"
    if "take-leader-key" in view.underway or _is_take_in_doubt(view):
        return "this node is taking the leader key, or may have taken it"
    if not is_no_primary_possible(view):
        return "this node's own server may be a primary"
    return None


def _is_take_in_doubt(view: View) -> bool:
    """The last attempt of this candidacy at the leader key may have been applied without an answer.

    Once this node is no candidate any more it gives back a key that comes to it late, and leads by none.
    """
    last = view.attempts.get("take-leader-key")
    return view.state is State.CANDIDATE and last is not None and last.kind == "unknown"


def _why_another_is_in_the_way(view: View, leader: str) -> str | None:
    if view.etcd.is_watched and view.leader not in (None, leader):
        return f'etcd names "{view.leader}" as the leader'
    if view.etcd.is_watched and view.leader == leader:
        return None  # it was elected, so whoever had a promise before does not count on it any more
    others = [p for p in _binding(view) if p.leader != leader]
    return f'"{others[0].leader}" was promised the same, and may count on it' if others else None


def _promised_to(view: View) -> set[str]:
    return {promise.leader for promise in (view.promise, view.promising) if promise is not None and promise.leader}


def _binding(view: View) -> list[Promise]:
    return [p for p in (view.promising, view.promise) if p is not None and view.now_ms < p.until_ms]


def asked_until_ms(view: View, asked: FailsafeAsked) -> int:
    """Until when the leader that asks counts on the answer; at least a ttl as this node knows it.

    A Patroni leader does not say how long; it counts on the cluster's ttl.
    """
    return asked.at_ms + max(asked.ttl_s, view.dynamic.ttl_s) * 1000


def failsafe_asked(view: View, event: FailsafeAsked) -> View:
    """The promise is to be made, and binds already; or it is refused, and why is told."""
    reason = why_not_to_promise(view, event.leader)
    if reason is not None:
        return replace(view, refusal=Refusal(leader=event.leader, asked_at_ms=event.at_ms, reason=reason))
    until_ms = max([asked_until_ms(view, event), *(p.until_ms for p in _binding(view))])
    return replace(view, promising=Promise(leader=event.leader, until_ms=until_ms, asked_at_ms=event.at_ms))


def promise_kept(view: View, event: Succeeded, result: PromiseKept) -> View:
    """The promise is on disk; one asked for since then is still to be."""
    known_ms = view.promise.until_ms if view.promise is not None else 0
    kept = Promise(leader=result.leader, until_ms=max(result.until_ms, known_ms), asked_at_ms=result.asked_at_ms)
    promising = view.promising
    is_all = promising is None or promising == replace(kept, until_ms=result.until_ms)
    return replace(view, promise=kept, promising=None if is_all else promising)


def promise_unkept(view: View, detail: str) -> View:
    """The promise could not be made durable, so it is confirmed to nobody and binds no longer; what was kept does."""
    promising = view.promising
    if promising is None:
        return view
    reason = f"the promise did not reach the disk: {detail}"
    refusal = Refusal(leader=promising.leader, asked_at_ms=promising.asked_at_ms, reason=reason)
    return replace(view, promising=None, refusal=refusal)


def promise_forgotten(view: View) -> View:
    """The file of a promise that had ended is gone."""
    promise = view.promise
    return replace(view, promise=None) if promise is not None and view.now_ms >= promise.until_ms else view


def restored(kept: KeptPromise | None, *, boot: str, at_ms: int) -> Promise | None:
    """What an agent that starts is bound by. After a reboot the clock began anew, so the whole span counts from now."""
    if kept is None:
        return None
    is_same_clock = kept.boot == boot and kept.asked_at_ms <= at_ms
    until_ms = kept.until_ms if is_same_clock else at_ms + kept.until_ms - kept.asked_at_ms
    return Promise(leader=kept.leader, until_ms=until_ms, asked_at_ms=at_ms)


# ---- the leader's part ----------------------------------------------------------------------------------------------


def failsafe_heard(view: View, event: Succeeded, result: FailsafeHeard) -> View:
    """Everybody who could be elected confirmed: as if the lease had been renewed when the question was sent."""
    if not is_failsafe_possible(view) or not set(failsafe_addresses(view)) <= set(result.accepted):
        return view
    until_ms = writable_until_ms(result.sent_at_ms, result.ttl_s)
    return replace(view, failsafe_until_ms=max(view.failsafe_until_ms, until_ms))


def failsafe_checked(view: View, event: Succeeded, result: FailsafeChecked) -> View:
    """What the members said to a question that binds nobody; nothing is counted on."""
    return replace(view, failsafe_answers=result.answers)
