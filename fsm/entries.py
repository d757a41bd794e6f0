"""What the transition log holds: one entry an event, and the snapshots from which entries replay."""

import msgspec

from fsm.dump import TABLE_HASH
from fsm.events import AnyEvent, Failed, Succeeded, Unknown
from fsm.facts import Fact
from fsm.machine import EFFECTS_PER_STEP_MAX, Decision, Issued
from fsm.states import State
from fsm.view import View

VERSION = 1


class Entry(Fact, frozen=True, kw_only=True):
    """One step: what was observed, and what was decided. `at_ms` of the event is CLOCK_BOOTTIME of the node."""

    v: int = VERSION
    seq: int
    node: str
    boot: str
    wall: str
    """The wall clock when the entry was made, for people."""
    revision: int
    """The newest etcd revision that this node had heard of: the order across nodes."""
    event: AnyEvent
    rule: str | None = None
    before: State
    after: State
    effects: tuple[Issued, ...] = ()
    cancelled: tuple[int, ...] = ()
    cause: int | None = None
    """The `seq` of the entry whose effect this event is the outcome of."""
    table: str = TABLE_HASH


class SnapshotEntry(Fact, frozen=True, kw_only=True):
    """All that a node knew after the entry `seq`."""

    v: int = VERSION
    seq: int
    node: str
    wall: str
    table: str = TABLE_HASH
    view: View


def make_entry(decision: Decision, event: AnyEvent, *, boot: str, wall: str) -> Entry:
    """The entry of one step.

    Args:
        decision: what `step` answered.
        event: what it was asked about.
        boot: the machine's boot id, which CLOCK_BOOTTIME counts from.
        wall: the wall clock now.
    """
    view = decision.view
    return Entry(
        seq=view.seq,
        node=view.name,
        boot=boot,
        wall=wall,
        revision=view.etcd.revision,
        event=event,
        rule=decision.rule,
        before=decision.before,
        after=decision.after,
        effects=decision.effects,
        cancelled=decision.cancelled,
        cause=_cause(event),
    )


def _cause(event: AnyEvent) -> int | None:
    return event.effect_id // EFFECTS_PER_STEP_MAX if isinstance(event, Succeeded | Failed | Unknown) else None


_encoder = msgspec.json.Encoder()
_entries = msgspec.json.Decoder(Entry)
_snapshots = msgspec.json.Decoder(SnapshotEntry)


def encode(entry: Entry | SnapshotEntry) -> bytes:
    """The JSON of an entry, in the order of its fields."""
    return _encoder.encode(entry)


def decode_entry(body: bytes) -> Entry:
    """An entry from its JSON. Raises: msgspec.ValidationError, msgspec.DecodeError."""
    return _entries.decode(body)


def decode_snapshot(body: bytes) -> SnapshotEntry:
    """A snapshot from its JSON. Raises: msgspec.ValidationError, msgspec.DecodeError."""
    return _snapshots.decode(body)
