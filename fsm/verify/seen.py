"""What one node's log says that other nodes' logs must agree with."""

from typing import NamedTuple

from fsm import effects as do
from fsm import events as ev
from fsm.entries import Entry
from fsm.machine import Issued
from fsm.states import State
from fsm.verify.account import Account, changes_of
from fsm.view import View

SHARED_KEYS = frozenset({"leader", "sync", "timeline", "initialize", "history", "failsafe", "status"})
"""Keys whose history is compared; `config` is left out, whose secrets each node hides in its own way."""


class Sight(NamedTuple):
    """Where something was seen."""

    node: str
    seq: int


class Reign(NamedTuple):
    """One stay of a node in state leader, by revisions: from that of its key to the last one that it knew of."""

    node: str
    key_revision: int
    last_revision: int
    seq: int
    last_seq: int


class Taken(NamedTuple):
    """A node took the leader key, and stood by a `sync` key; see `Seen.created`."""

    sight: Sight
    sync_revision: int
    key_revision: int


class Raised(NamedTuple):
    """A promotion was ordered."""

    sight: Sight
    timeline: int
    term: int
    system_id: str
    old_timeline: int
    position_lsn: int | None


class Seen:
    """Filled while one log is read."""

    def __init__(self) -> None:
        self.keys: dict[tuple[str, int], tuple[str, Sight]] = {}
        self.created: set[int] = set()
        """Revisions at which the leader key was created; at others it was bound to a new lease of its holder."""
        self.reigns: list[Reign] = []
        self.taken: list[Taken] = []
        self.raised: list[Raised] = []
        self.primaries: dict[tuple[str, int], Sight] = {}
        self.flushed: dict[tuple[str, int, str], tuple[int, Sight]] = {}
        self.is_wiped = False
        self.announced: object = None
        self._ordered_at_ms: dict[int, int] = {}
        self._revision = 0
        self._is_leading = False

    def ordered(self, issued: Issued, now_ms: int) -> None:
        """Note when an effect was ordered, and what was announced with it."""
        self._ordered_at_ms[issued.effect_id] = now_ms
        if isinstance(issued.effect, do.TakeLeaderKey) and issued.effect.loss is not None:
            self.announced = issued.effect.loss

    def ordered_at_ms(self, issued: Issued | None) -> int | None:
        """When an effect was ordered; None where that is not known."""
        return None if issued is None else self._ordered_at_ms.get(issued.effect_id)

    def take(self, entry: Entry, account: Account, cause: Issued | None, view: View | None) -> None:
        """Note what an entry says."""
        sight = Sight(entry.node, entry.seq)
        if isinstance(entry.event, ev.AgentStarted):
            self.announced, self._ordered_at_ms = None, {}
        if isinstance(entry.event, ev.ClusterRead):
            self.is_wiped = self.is_wiped or entry.event.revision < self._revision
        self._revision = max(self._revision, account.revision)
        for change in changes_of(entry.event):
            if change.key in SHARED_KEYS and change.value is not None:
                self.keys.setdefault((change.key, change.mod_revision), (change.value, sight))
            if change.key == "leader" and change.create_revision == change.mod_revision:
                self.created.add(change.mod_revision)
        self._note_taking(entry.event, cause, sight)
        self._note_probe(entry.event, account, sight)
        for issued in entry.effects:
            if isinstance(issued.effect, do.Promote):
                self._note_promotion(issued.effect, account, view, sight)
        self._note_reign(entry, account)

    def _note_reign(self, entry: Entry, account: Account) -> None:
        is_leading = entry.after is State.LEADER and account.leader is not None and account.leader.value == entry.node
        if is_leading and account.leader is not None:
            began = self.reigns.pop() if self._is_leading else None
            first = began or Reign(entry.node, account.leader.mod_revision, 0, entry.seq, 0)
            self.reigns.append(first._replace(last_revision=entry.revision, last_seq=entry.seq))
        self._is_leading = is_leading

    def _note_taking(self, event: ev.AnyEvent, cause: Issued | None, sight: Sight) -> None:
        if not isinstance(event, ev.Succeeded) or cause is None or not isinstance(cause.effect, do.TakeLeaderKey):
            return
        written = event.result
        if isinstance(written, ev.KeyWritten) and written.applied and written.now is not None:
            self.taken.append(Taken(sight, cause.effect.sync_revision, written.now.mod_revision))

    def _note_probe(self, event: ev.AnyEvent, account: Account, sight: Sight) -> None:
        if not isinstance(event, ev.ServerProbed) or event.probe.in_recovery or event.pid != account.pid:
            return
        probe = event.probe
        self.primaries.setdefault((probe.system_id, probe.timeline), sight)
        for standby in probe.standbys:
            if standby.state == "streaming":
                key = (probe.system_id, probe.timeline, standby.application_name.lower())
                if standby.flush_lsn > self.flushed.get(key, (0, sight))[0]:
                    self.flushed[key] = (standby.flush_lsn, sight)

    def _note_promotion(self, effect: do.Promote, account: Account, view: View | None, sight: Sight) -> None:
        probe = view.server.probe if view is not None else None
        key = account.leader
        # One that was started anew may hold more than it has replayed so far; it says so only once it streams.
        is_told = probe is not None and probe.received_lsn >= probe.replayed_lsn > 0 and not probe.is_replaying
        self.raised.append(
            Raised(
                sight,
                effect.timeline,
                (key.create_revision or key.mod_revision) if key is not None else 0,
                probe.system_id if probe else "",
                probe.timeline if probe else 0,
                probe.position_lsn if probe is not None and is_told else None,
            )
        )
