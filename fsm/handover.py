"""When the request in the `failover` key counts: at once, or, if it is scheduled, around its instant.

The instant is a wall clock's. Events that bring keys tell the wall clock as well, so that it becomes an instant of
this node's own clock; every such event corrects it.
"""

from datetime import datetime

from fsm.states import State
from fsm.timing import SCHEDULE_LATE_MS, SCHEDULE_SKEW_MS
from fsm.view import View
from fsm.wire import FailoverRequest


def instant_of(text: str | None) -> datetime | None:
    """The instant that an ISO 8601 text names, with or without a time zone; None for anything else."""
    try:
        return datetime.fromisoformat(text or "")
    except ValueError:
        return None


def scheduled_unix_ms(text: str | None) -> int | None:
    """The Unix time that an ISO 8601 text with a time zone names; None for anything else."""
    found = instant_of(text)
    try:
        return int(found.timestamp() * 1000) if found is not None and found.tzinfo is not None else None
    except (OverflowError, ValueError):
        return None


def due_at_ms(text: str | None, *, at_ms: int, unix_ms: int) -> int | None:
    """When an instant comes on this node's clock, which showed `at_ms` at the Unix time `unix_ms`."""
    due_unix_ms = scheduled_unix_ms(text)
    return None if due_unix_ms is None or not unix_ms else at_ms + due_unix_ms - unix_ms


def request_in_force(view: View) -> FailoverRequest | None:
    """The request if it is to be acted on now: not scheduled, or due and not long overdue, and then not in pause.

    The other members look a little earlier than the leader: their clocks differ, and when it has stopped they must
    know whom it stopped for.
    """
    request = view.failover
    if request is None or not request.scheduled_at:
        return request
    due_ms = view.failover_due_at_ms
    if due_ms is None or view.dynamic.pause:
        return None
    early_ms = 0 if view.state is State.LEADER else SCHEDULE_SKEW_MS
    return request if due_ms - early_ms <= view.now_ms <= due_ms + SCHEDULE_LATE_MS else None


def in_force_since_ms(view: View) -> int:
    """The instant from which the request counts; 0 if there is none."""
    return 0 if view.failover is None else max(view.failover_seen_at_ms, view.failover_due_at_ms or 0)


def is_schedule_missed(view: View) -> bool:
    """True when the scheduled instant cannot be read, or has gone by without anybody acting on it."""
    request = view.failover
    if request is None or not request.scheduled_at or view.dynamic.pause:
        return False
    if view.failover_due_at_ms is None:
        return scheduled_unix_ms(request.scheduled_at) is None
    return view.now_ms > view.failover_due_at_ms + SCHEDULE_LATE_MS
