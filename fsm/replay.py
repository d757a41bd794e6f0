"""Decide recorded inputs again and compare: the proof that a log tells what really was decided."""

from typing import Literal

import msgspec

from fsm.dump import TABLE_HASH
from fsm.entries import Entry, SnapshotEntry, decode_entry, decode_snapshot
from fsm.facts import Fact
from fsm.machine import step
from fsm.view import View


class Difference(Fact, frozen=True, kw_only=True):
    """The first place where deciding again gave something else."""

    seq: int
    part: str
    recorded: str
    decided: str
    same_table: bool
    """False: another table judged then, so a difference is a change of rules, not a fault."""


class Verdict(Fact, frozen=True, kw_only=True):
    """How a replay ended. `skipped`: entries before the first snapshot, from which nothing can be decided."""

    entries: int = 0
    moves: int = 0
    snapshots: int = 0
    skipped: int = 0
    missing: int = 0
    last_seq: int = 0
    difference: Difference | None = None


class Replay:
    """Takes recorded lines in order, and knows the verdict so far."""

    def __init__(self) -> None:
        self.verdict = Verdict()
        self._view: View | None = None

    @property
    def view(self) -> View | None:
        """What the node knew after the last line; None where that is not known."""
        return self._view

    def take(self, kind: Literal["entry", "snapshot"], body: bytes, missing: int = 0) -> Difference | None:
        """Decide one recorded line again; the difference if there is one, after which nothing more can be compared.

        Args:
            kind: what the line is.
            body: its JSON.
            missing: how many entries before it never reached the disk; the view is unknown until the next snapshot.
        """
        if missing:
            self.miss(missing)
        if kind == "snapshot":
            return self.take_snapshot(decode_snapshot(body))
        return self.take_entry(decode_entry(body))

    def miss(self, missing: int) -> None:
        """Entries never reached the disk: nothing can be decided before the next snapshot."""
        self._view = None
        self._count(missing=missing)

    def take_snapshot(self, snapshot: SnapshotEntry) -> Difference | None:
        """Take a snapshot up; the difference to what is known by the entries before it."""
        before, self._view = self._view, snapshot.view
        self._count(snapshots=1)
        is_new_agent = snapshot.view.identity is None
        if before is not None and before != snapshot.view and not is_new_agent:
            return self._differs(snapshot.seq, "view", snapshot.view, before, snapshot.table)
        return None

    def take_entry(self, entry: Entry) -> Difference | None:
        """Decide a recorded entry again; the difference if there is one."""
        if self._view is None:
            self._count(skipped=1)
            return None
        decision = step(self._view, entry.event)
        self._view = decision.view
        self._count(entries=1, moves=1 if entry.rule else 0, last_seq=entry.seq - self.verdict.last_seq)
        for part in ("seq", "rule", "before", "after", "effects", "cancelled"):
            recorded = getattr(entry, part)
            decided = decision.view.seq if part == "seq" else getattr(decision, part)
            if recorded != decided:
                return self._differs(entry.seq, part, recorded, decided, entry.table)
        return None

    def _count(self, **more: int) -> None:
        counts = {name: getattr(self.verdict, name) + n for name, n in more.items()}
        self.verdict = msgspec.structs.replace(self.verdict, **counts)

    def _differs(self, seq: int, part: str, recorded: object, decided: object, table: str) -> Difference:
        found = Difference(
            seq=seq,
            part=part,
            recorded=msgspec.json.encode(recorded).decode(),
            decided=msgspec.json.encode(decided).decode(),
            same_table=table == TABLE_HASH,
        )
        self.verdict = msgspec.structs.replace(self.verdict, difference=found)
        return found
