"""How long nobody could write, and where the time went: from the writer's rows and the nodes' logs. Pure."""

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

import msgspec

from fsm.entries import Entry
from fsm.events import KeysChanged, ServerExited, ServerProbed, Succeeded

Notices = Callable[[Entry], bool]
"""True for an entry by which a node notices a fault."""

START_DUTIES = frozenset({"promote", "start-primary"})


class Phases(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of one outage; None for a part whose end is not in the logs.

    `detect_ms`: from the fault until a node saw that nobody leads any more, or that its server is gone.
    `decide_ms`: from then until the server was told to promote, or to start. `promote_ms`: until it accepted writes.
    """

    detect_ms: int | None = None
    decide_ms: int | None = None
    promote_ms: int | None = None


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """What was broken, when, and who led before and after.

    `until_ms`: where to stop looking. `was_paused`: the writer waited for the fault, so that the rows before it say
    nothing. `notices`: what the fault is noticed by.
    """

    what: str
    before: str
    after: str
    at_ms: int
    until_ms: int
    was_paused: bool = False
    notices: Notices


def longest_gap_ms(instants_ms: Sequence[int], fault: Fault) -> int:
    """The longest time without an acknowledged row around a fault.

    Args:
        instants_ms: when rows were acknowledged, ascending.
        fault: what was broken, and when.
    """
    before = [instant for instant in instants_ms if instant <= fault.at_ms]
    start_ms = fault.at_ms if fault.was_paused or not before else before[-1]
    after = [instant for instant in instants_ms if fault.at_ms < instant <= fault.until_ms]
    return max(later - earlier for earlier, later in pairwise([start_ms, *after, fault.until_ms]))


def frees_the_leader_key(entry: Entry) -> bool:
    """True when the node learned by this entry that nobody holds the leader key."""
    event = entry.event
    if isinstance(event, KeysChanged):
        return any(change.key == "leader" and change.value is None for change in event.changes)
    return isinstance(event, Succeeded) and event.duty in ("release-leader-key", "revoke-lease")


def ends_the_server(entry: Entry) -> bool:
    """True when the node learned by this entry that its server is gone."""
    return isinstance(entry.event, ServerExited)


def phases(entries: Iterable[Entry], fault: Fault) -> Phases:
    """The parts of an outage.

    Args:
        entries: of all nodes of one machine, in any order: they share one clock.
        fault: what was broken, and when.
    """
    ordered = sorted((entry for entry in entries if entry.event.at_ms >= fault.at_ms), key=lambda e: e.event.at_ms)
    order = next((entry for entry in ordered if _tells_to_lead(entry)), None)
    order_ms = order.event.at_ms if order else None
    noticed_ms = next((e.event.at_ms for e in ordered if fault.notices(e)), None)
    if noticed_ms is not None and order_ms is not None and noticed_ms > order_ms:
        noticed_ms = None
    writable_ms = next((e.event.at_ms for e in ordered if order and _accepts_writes(e, order)), None)
    return Phases(
        detect_ms=_span(fault.at_ms, noticed_ms),
        decide_ms=_span(noticed_ms, order_ms),
        promote_ms=_span(order_ms, writable_ms),
    )


def _tells_to_lead(entry: Entry) -> bool:
    return any(issued.duty in START_DUTIES for issued in entry.effects)


def _accepts_writes(entry: Entry, order: Entry) -> bool:
    event = entry.event
    is_later = entry.node == order.node and entry.seq > order.seq
    return is_later and isinstance(event, ServerProbed) and not event.probe.in_recovery


def _span(from_ms: int | None, until_ms: int | None) -> int | None:
    return None if from_ms is None or until_ms is None else until_ms - from_ms


def came_back_by_rewind(entries: Iterable[Entry], node: str, since_ms: int) -> bool:
    """True when the node's pg_rewind succeeded after an instant."""
    return any(
        isinstance(entry.event, Succeeded) and entry.event.duty == "rewind"
        for entry in entries
        if entry.node == node and entry.event.at_ms >= since_ms
    )
