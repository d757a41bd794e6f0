"""The checks of one node's log, entry by entry."""

from msgspec.structs import replace

from fsm import effects as do
from fsm import events as ev
from fsm.dump import TABLE_HASH
from fsm.entries import Entry, SnapshotEntry
from fsm.guards import has_special_claim
from fsm.machine import Issued
from fsm.observe import observe
from fsm.replay import Difference, Replay
from fsm.states import State
from fsm.table import TABLE
from fsm.timing import UNANSWERED_GRACE_MS
from fsm.verify.account import Account
from fsm.verify.findings import Book
from fsm.verify.seen import Seen
from fsm.view import View
from fsm.wire import is_barred_by_tags

RULE_BY_ID = {rule.id: rule for rule in TABLE}
MAKES_A_PRIMARY = (do.Promote, do.StartPrimary)
NEVER_ANSWERED = (do.Exit, do.BecomeNewAgent)
FOR_ANYBODY = (do.ChangeConfig,)
"""What any node does when it is asked; until when is who asked's own affair."""
OVERDUE_MS = 10_000
"""How long after an effect's deadline, counted while the agent takes events, its outcome is surely missing."""
GAP_MS = 1_000
"""No more than this is counted between two events: the agent, or the machine, may have stood still."""


class NodeCheck:
    """Takes one log's lines in order. `seen` is what the other nodes' logs are compared with."""

    def __init__(self, book: Book) -> None:
        self.book = book
        self.seen = Seen()
        self.replay = Replay()
        self.other_tables = 0
        self.name = ""
        self._can_replay = True
        self._facts: View | None = None
        self._account: Account | None = None
        self._state: State | None = None
        self._underway: dict[int, tuple[Issued, int, int]] = {}
        self._answered_from_id: int | None = None
        self._ran_ms = 0

    def snapshot(self, snapshot: SnapshotEntry, missing: int = 0) -> None:
        """What the node knew at the start of a segment."""
        self._miss(missing)
        if not self._can_replay:
            self.replay = Replay()
        found = self.replay.take_snapshot(snapshot)
        self._can_replay, self._facts = True, snapshot.view
        is_ours = snapshot.table == TABLE_HASH
        if found is not None and is_ours:
            self._judge(
                "replay", False, snapshot.seq, f"the snapshot is not what the entries before it led to: {found.part}"
            )
        if self._account is None and snapshot.view.identity is not None:
            self._resume(snapshot.view)

    def _resume(self, view: View) -> None:
        self.name, self._state = view.name, view.state
        self._account = Account.of(view)
        self._underway = {}
        self._answered_from_id = (view.seq + 1) * 100

    def _miss(self, missing: int) -> None:
        if missing:
            self.replay.miss(missing)
            self._account = self._state = self._answered_from_id = self._facts = None
            self._underway = {}

    def entry(self, entry: Entry, missing: int = 0) -> None:
        """One entry, and how many before it never reached the disk."""
        self._miss(missing)
        before = self._facts
        if isinstance(entry.event, ev.AgentStarted):
            self._begin(entry)
        view = self._decide(entry)
        self._check_move(entry, before)
        self._state = entry.after
        if self._account is None:
            return
        self.name = entry.node
        ran_ms = entry.event.at_ms - self._account.now_ms
        self._ran_ms += min(max(ran_ms, 0), GAP_MS)
        cause = self._check_outcome(entry)
        self._account.take(entry.event, cause)
        self._check_event(entry, cause)
        for issued in entry.effects:
            self._issue(entry, issued, view)
        self._check_standing(entry, view)
        self.seen.take(entry, self._account, cause, view)

    def _judge(self, check: str, holds: bool, seq: int, text: str) -> None:
        self.book.check(check, holds, self.name, seq, text)

    # ---- as it was decided ------------------------------------------------------------------------------------------

    def _begin(self, entry: Entry) -> None:
        assert isinstance(entry.event, ev.AgentStarted)
        self.name = entry.event.identity.name
        self._account = Account(self.name)
        self._account.now_ms = entry.event.at_ms
        self._state, self._underway = State.BOOTSTRAPPING, {}
        self._answered_from_id = None
        self._ran_ms = 0

    def _decide(self, entry: Entry) -> View | None:
        """What the node knew after an entry; None where that is not known."""
        if self._can_replay:
            found = self.replay.take_entry(entry)
            if self.replay.view is None:
                return None
            self._differs(entry, found)
            self._facts = self.replay.view
        elif self._facts is not None:
            # What it did differs from here on; what it heard is known all the same.
            self._facts = replace(observe(self._facts, entry.event), state=entry.after)
        return self._facts

    def _differs(self, entry: Entry, found: Difference | None) -> None:
        is_ours = entry.table == TABLE_HASH
        self.other_tables += not is_ours
        self._can_replay = found is None
        if found is None:
            self.book.looked["replay"] += 1
        elif is_ours:
            text = f"{found.part} was recorded as {_short(found.recorded)}, and is decided as {_short(found.decided)}"
            self._judge("replay", False, entry.seq, text)

    def _check_move(self, entry: Entry, before: View | None) -> None:
        if entry.table != TABLE_HASH:
            return
        start = State.BOOTSTRAPPING if isinstance(entry.event, ev.AgentStarted) else entry.before
        left = self._state
        self._judge(
            "move", left in (None, start), entry.seq, f"it starts from {start}, and the entry before it left {left}"
        )
        if entry.rule is None:
            self._judge("move", entry.after is start, entry.seq, f"{start} became {entry.after} by no rule")
            return
        rule = RULE_BY_ID.get(entry.rule)
        is_row = rule is not None and (rule.source, rule.target) == (start, entry.after)
        self._judge("move", is_row, entry.seq, f"{entry.rule} does not lead from {start} to {entry.after}")
        if start is State.LEADER and before is not None and _runs_after(before, entry):
            first = entry.effects[0].effect if entry.effects else None
            is_fence = isinstance(first, do.FenceServer)
            self._judge("leaving", is_fence, entry.seq, "the server runs on: the first order is not to end it")

    # ---- outcomes ---------------------------------------------------------------------------------------------------

    def _check_outcome(self, entry: Entry) -> Issued | None:
        event = entry.event
        if not isinstance(event, ev.Succeeded | ev.Failed | ev.Unknown):
            return None
        issued, _, _ = self._underway.pop(event.effect_id, (None, 0, 0))
        is_older = self._answered_from_id is not None and event.effect_id < self._answered_from_id
        if not is_older:
            told = f"an outcome of effect {event.effect_id} ({event.duty}), which is not under way"
            self._judge("outcome", issued is not None and issued.duty == event.duty, entry.seq, told)
        return issued

    def _check_overdue(self, entry: Entry) -> None:
        for effect_id, (issued, seq, ran_ms) in list(self._underway.items()):
            most_ms = issued.effect.timeout_ms + UNANSWERED_GRACE_MS + OVERDUE_MS
            if self._ran_ms - ran_ms > most_ms:
                del self._underway[effect_id]
                self._judge("outcome", False, entry.seq, f"{issued.duty}, ordered at #{seq}, has had no outcome")

    # ---- lease and fence --------------------------------------------------------------------------------------------

    def _check_event(self, entry: Entry, cause: Issued | None) -> None:
        self._check_overdue(entry)
        event, account = entry.event, self._account
        assert account is not None
        if isinstance(event, ev.Succeeded) and isinstance(event.result, ev.LeaseHeld | ev.FailsafeHeard):
            sent_ms, asked_ms = event.result.sent_at_ms, self.seen.ordered_at_ms(cause)
            is_between = sent_ms <= event.at_ms and (asked_ms is None or asked_ms <= sent_ms)
            self._judge(
                "lease", is_between, entry.seq, f"sent at {sent_ms}, ordered at {asked_ms}, answered at {event.at_ms}"
            )
        if isinstance(event, ev.Succeeded) and isinstance(event.result, ev.FenceArmed) and cause is not None:
            wanted = getattr(cause.effect, "until_ms", None)
            told = f"asked for {wanted}, confirmed {event.result.until_ms}"
            self._judge("fence", event.result.until_ms == wanted, entry.seq, told)

    def _issue(self, entry: Entry, issued: Issued, view: View | None) -> None:
        effect, account = issued.effect, self._account
        assert account is not None
        self.seen.ordered(issued, account.now_ms)
        if not isinstance(effect, NEVER_ANSWERED):
            self._underway[issued.effect_id] = (issued, entry.seq, self._ran_ms)
        if isinstance(effect, MAKES_A_PRIMARY):
            self._check_primary(entry, effect)
        if isinstance(effect, do.ArmFence) and entry.after is State.LEADER:
            told = f"armed until {effect.until_ms}, while the leadership ends at {account.deadline_ms}"
            self._judge("fence", account.now_ms < effect.until_ms <= account.deadline_ms, entry.seq, told)
        if isinstance(effect, do.TakeLeaderKey):
            self._check_taking(entry, effect, view)
        elif not isinstance(effect, FOR_ANYBODY) and (valid_ms := getattr(effect, "valid_until_ms", None)) is not None:
            told = f"{issued.duty} at {account.now_ms} until {valid_ms}; the leadership ends at {account.deadline_ms}"
            self._judge("deadline", account.now_ms < valid_ms <= account.deadline_ms, entry.seq, told)

    def _check_primary(self, entry: Entry, effect: do.Promote | do.StartPrimary) -> None:
        account, kind = self._account, type(effect).__name__
        assert account is not None
        self._judge("primary", entry.after is State.LEADER, entry.seq, f"{kind} in state {entry.after}")
        self._judge(
            "primary", account.is_key_ours, entry.seq, f"{kind} without the leader key under a lease of its own"
        )
        armed_ms = effect.armed_until_ms if isinstance(effect, do.StartPrimary) else account.armed_until_ms
        is_armed = armed_ms is not None and account.now_ms < armed_ms <= account.deadline_ms
        told = f"{kind} at {account.now_ms} with the fence at {armed_ms}; the leadership ends at {account.deadline_ms}"
        self._judge("primary", is_armed, entry.seq, told)
        if isinstance(effect, do.Promote):
            announced = self.seen.announced
            is_told = effect.loss is not None and announced in (None, effect.loss)
            self._judge(
                "loss", is_told, entry.seq, "the estimate is missing, or not the one with which the key was taken"
            )

    # ---- who may stand ----------------------------------------------------------------------------------------------

    def _check_taking(self, entry: Entry, effect: do.TakeLeaderKey, view: View | None) -> None:
        account = self._account
        assert account is not None
        until_ms = account.lease_until_ms.get(effect.lease_id, 0)
        told = f"the key is to be taken until {effect.valid_until_ms} at {account.now_ms}; the lease ends at {until_ms}"
        self._judge("deadline", account.now_ms < effect.valid_until_ms <= until_ms, entry.seq, told)
        if view is None or entry.after is not State.CANDIDATE or has_special_claim(view):
            return
        self._check_eligible(entry, view)
        if _is_sync_decisive(view) and view.sync.leader != view.name and view.sync.quorum and not _is_forced(view):
            heard = votes_for(view, effect.sync_revision)
            told = f"{len(heard)} votes for revision {effect.sync_revision}, {view.sync.quorum} are needed"
            self._judge("votes", len(heard) >= view.sync.quorum, entry.seq, told)

    def _check_eligible(self, entry: Entry, view: View) -> None:
        tags = dict(view.identity.tags) if view.identity else {}
        self._judge("candidate", not is_barred_by_tags(tags), entry.seq, "its own tags forbid it")
        is_newest = not view.dynamic.check_timeline or view.timeline >= view.last_timeline
        self._judge(
            "candidate", is_newest, entry.seq, f"on timeline {view.timeline}, the newest is {view.last_timeline}"
        )
        listed = {view.sync.leader, *view.sync.members}
        is_listed = not _is_sync_decisive(view) or view.name in listed or _is_forced(view)
        self._judge("candidate", is_listed, entry.seq, f"the sync key lists {', '.join(sorted(map(str, listed)))}")

    def _check_standing(self, entry: Entry, view: View | None) -> None:
        account = self._account
        assert account is not None
        if entry.after is State.LEADER:
            told = f"still leader at {account.now_ms}; the leadership ended at {account.deadline_ms}"
            is_leader_still = entry.rule is not None or account.now_ms < account.deadline_ms
            self._judge("deadline", is_leader_still, entry.seq, told)
        if entry.after is State.CANDIDATE and entry.rule == "R1" and view is not None:
            self._check_eligible(entry, view)


def _runs_after(before: View, entry: Entry) -> bool:
    """True when the server still runs after the event of an entry."""
    is_gone = isinstance(entry.event, ev.ServerExited | ev.FenceLost | ev.FenceConnected)
    return before.server.process == "running" and not is_gone


def _is_sync_decisive(view: View) -> bool:
    return view.dynamic.synchronous_mode != "off" and view.sync.leader is not None


def _is_forced(view: View) -> bool:
    """True when an operator asked for a failover to this node, whatever may be lost."""
    request = view.failover
    return request is not None and request.leader is None and request.candidate == view.name


def votes_for(view: View, sync_revision: int) -> set[str]:
    """Who, of the sync key's people, said for this revision of it that they hold no more WAL."""
    electors = {view.sync.leader, *view.sync.members} - {view.name}
    reports = [heard.report for heard in view.peers.values() if heard.report.name in electors]
    return {
        report.name
        for report in reports
        if (report.vote_revision == sync_revision or not report.instance)
        and 0 < report.position_lsn <= view.position_lsn
    }


def _short(text: str) -> str:
    return text if len(text) <= 160 else text[:160] + "…"
