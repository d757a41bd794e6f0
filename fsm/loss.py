"""loss_estimate(view): how much acknowledged WAL a promotion of this node may leave behind. Pure.

What is known of another leader's WAL is the `optime` of the `status` key, which it writes at most every `loop_wait`,
and the instant at which that was heard. From there:

- *seen*: that position less this node's own; 0 when this node is further, as it mostly is, for it streams all the time.
- *at most*: the leader is taken to have gone on at the higher of two rates until it can have written no more. One is
  that between its last two positions: the growth over the span between them, but over no more than `loop_wait`, for one
  that had been idle began only then. The other is that of what this node received after the last position. The end is
  now while the leader holds the key, else when the key became free, or when this node's own promise to it ran out,
  during which it may have led on without etcd. The position was up to one look at its server old. A leader that moves
  publishes within `loop_wait`, and one whose lease lives renewed it within `ttl`, so without a promise no more than
  `ttl + loop_wait` can have gone unheard, however old the position is.

A leader that suddenly wrote faster may have written more: it is a bound for what was seen, not for what can be. Where a
part of this is not known the answer is unknown, not 0.

In a synchronous mode whoever may be promoted by the `sync` key holds, or met others that hold, each commit that waited
(fsm/sync.py): 0. Commits that did not wait (`synchronous_commit` off or local) are not meant by that.
"""

from typing import Any

from msgspec.structs import replace

from fsm.election import is_failover_to_us, is_sync_key_decisive, is_synchronous_enough
from fsm.losses import FormerLeader, LossEstimate, Promotion
from fsm.timing import PROBE_IDLE_MS
from fsm.view import View
from fsm.wire import parse_optime

TOLD_BY = frozenset({"leader", "status"})
"""The keys that tell who led and how far."""


# ---- what is remembered ----------------------------------------------------------------------------------------------


def followed(before: View, after: View) -> FormerLeader:
    """What is known of the last other leader once keys have changed.

    Args:
        before: what this node knew before; a key that it had not read may have been written at any time.
        after: the same with the changed keys.
    """
    found, held = after.former, _holder(after)
    if _holder(before) == after.name and held != after.name:
        found = FormerLeader(name=after.name)
    if held in (None, after.name):
        # Nobody who is known led when etcd was first read: what the last leader published is there all the same.
        return _positioned(found, before, after) if held is None and not found.name else found
    if found.name != held:
        found = FormerLeader(name=held)
    return _positioned(found, before, after)


def _holder(view: View) -> str | None:
    key = view.keys.get("leader")
    return key.value if key else None


def _positioned(former: FormerLeader, before: View, after: View) -> FormerLeader:
    known, now = before.keys.get("status"), after.keys.get("status")
    lsn = parse_optime(now.value) if now else 0
    is_news = now is not None and (known is None or known.mod_revision != now.mod_revision)
    if not lsn or not is_news:
        return former
    heard_at_ms = _written_at_ms(before, after)
    return FormerLeader(
        name=former.name,
        lsn=lsn,
        heard_at_ms=heard_at_ms,
        rate_bytes_per_s=_rate(former, lsn, heard_at_ms, after.dynamic.loop_wait_s * 1000),
    )


def _written_at_ms(before: View, after: View) -> int | None:
    """When a key that changed was written at the earliest; None if that cannot be told."""
    if before.etcd.is_watched:
        return after.now_ms
    return before.etcd.lost_since_ms if "status" in before.keys else None


def _rate(former: FormerLeader, lsn: int, heard_at_ms: int | None, loop_wait_ms: int) -> int | None:
    if not former.lsn or lsn < former.lsn or heard_at_ms is None:
        return None
    span_ms = loop_wait_ms if former.heard_at_ms is None else min(loop_wait_ms, heard_at_ms - former.heard_at_ms)
    return -(-(lsn - former.lsn) * 1000 // max(1, span_ms))


# ---- what is estimated -----------------------------------------------------------------------------------------------


def loss_estimate(view: View) -> LossEstimate:
    """What a promotion of this node at this moment may leave behind."""
    former = view.former
    age_ms = None if former.heard_at_ms is None else max(0, view.now_ms - former.heard_at_ms)
    if former.name and former.name == view.name:
        return LossEstimate(former=former.name, basis="own", seen_bytes=0, at_most_bytes=0)
    known = LossEstimate(
        former=former.name,
        basis="unknown",
        position_lsn=former.lsn,
        position_age_ms=age_ms,
    )
    if is_sync_key_decisive(view) and is_synchronous_enough(view) and not is_failover_to_us(view):
        return replace(known, basis="synchronous", seen_bytes=0, at_most_bytes=0)
    if not former.lsn or not view.position_lsn:
        return known
    member = view.members.get(former.name)
    if member is not None and member.timeline and member.timeline != view.timeline:
        return replace(known, basis="other timeline")
    lacking = former.lsn - view.position_lsn
    rate, span_ms = _growth(view), unheard_ms(view)
    is_bounded = rate is not None and span_ms is not None
    at_most = max(0, lacking + -(-(rate or 0) * (span_ms or 0) // 1000)) if is_bounded else None
    return replace(known, basis="measured", seen_bytes=max(0, lacking), at_most_bytes=at_most, rate_bytes_per_s=rate)


def _growth(view: View) -> int | None:
    """How fast the former leader's WAL was last seen to grow, in bytes a second; None if it was not seen to."""
    return max(
        (rate for rate in (view.former.rate_bytes_per_s, _received_rate(view)) if rate is not None), default=None
    )


def _received_rate(view: View) -> int | None:
    """How fast this node received WAL since the former leader's last known position; None if it received none."""
    more, heard_at_ms = view.position_lsn - view.former.lsn, view.former.heard_at_ms
    if more <= 0 or heard_at_ms is None or view.received_at_ms <= heard_at_ms:
        return None
    return -(-more * 1000 // (view.received_at_ms - heard_at_ms))


def unheard_ms(view: View) -> int | None:
    """For how long the former leader may have written after its last known position; None if nobody knows."""
    former, promise = view.former, view.promise
    until_ms = view.now_ms if view.leader else view.leader_free_since_ms or view.now_ms
    has_promised = promise is not None and (former.heard_at_ms is None or promise.until_ms > former.heard_at_ms)
    if promise is not None and has_promised:
        until_ms = min(view.now_ms, max(until_ms, promise.until_ms))
    span_ms = None if former.heard_at_ms is None else max(0, until_ms - former.heard_at_ms)
    if not has_promised:
        most_ms = (view.dynamic.ttl_s + view.dynamic.loop_wait_s) * 1000
        span_ms = most_ms if span_ms is None else min(span_ms, most_ms)
    return None if span_ms is None else span_ms + PROBE_IDLE_MS


# ---- what is told ----------------------------------------------------------------------------------------------------


def loss_text(loss: LossEstimate) -> str:
    """The estimate in a sentence, with what it rests on."""
    former = loss.former or "the last leader"
    match loss.basis:
        case "synchronous":
            return f"no commit that waited for a synchronous standby can be lost (the sync key after {former})"
        case "own":
            return "nothing that was acknowledged can be lost: this node led last itself"
        case "other timeline":
            return f"how much WAL of {former} is lost is unknown: it is on another timeline"
        case "measured":
            return f"{_amount(loss)} of {former}'s WAL may be lost; {_position(loss)}"
        case _:
            position = _position(loss) if loss.position_lsn else "no position of it is known"
            return f"how much WAL of {former} is lost is unknown: {position}"


def _amount(loss: LossEstimate) -> str:
    if loss.at_most_bytes is None:
        return f"{loss.seen_bytes or 0:,} bytes or an unknown amount more"
    if loss.at_most_bytes == loss.seen_bytes:
        return f"by what was seen, {loss.at_most_bytes:,} bytes"
    return f"by what was seen, {loss.seen_bytes or 0:,} to {loss.at_most_bytes:,} bytes"


def _position(loss: LossEstimate) -> str:
    age = "of unknown age" if loss.position_age_ms is None else f"{loss.position_age_ms / 1000:.1f} s old"
    rate = "" if loss.rate_bytes_per_s is None else f", its WAL grew by {loss.rate_bytes_per_s:,} bytes/s"
    return f"its last known position is {age}{rate}"


def promotion_fields(promotion: Promotion) -> dict[str, Any]:
    """A promotion as GET /patroni shows it; what is unknown is null."""
    loss = promotion.loss
    return {
        "former_leader": loss.former or None,
        "loss_basis": loss.basis,
        "loss_estimate_bytes": loss.seen_bytes,
        "loss_at_most_bytes": loss.at_most_bytes,
        "position_age_ms": loss.position_age_ms,
    }
