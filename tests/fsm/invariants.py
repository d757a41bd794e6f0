"""What must hold of every single decision, whatever happened: stories and random sequences are both judged by it."""

from fsm import effects as do
from fsm.events import AgentStarted, AnyEvent
from fsm.guards import has_promised_nothing, is_leader_key_ours
from fsm.machine import EFFECTS_PER_STEP_MAX, EXCLUSIVE_RESOURCES, Decision, Issued
from fsm.states import State
from fsm.table import TABLE
from fsm.timers import DUTY_BY_ID
from fsm.view import View

RULE_BY_ID = {rule.id: rule for rule in TABLE}
MAKES_A_PRIMARY = (do.Promote, do.StartPrimary)
NEEDS_A_STOPPED_SERVER = (do.InitDb, do.ClearDataDirectory, do.Clone, do.Rewind, do.StartPrimary, do.StartStandby)
MAY_NOT_MEET_A_PRIMARY = (do.StopServer, do.DisarmFence, do.ReleaseLeaderKey, do.Follow, *NEEDS_A_STOPPED_SERVER[:4])
STRAY_PRIMARY_PAUSE_MS = 500
"""The longest that a primary outside `leader` goes without somebody trying to end it."""


def check(before: View, event: AnyEvent, decision: Decision) -> None:
    """Fails when a decision breaks a promise that does not depend on the story."""
    _check_count_and_clock(before, event, decision)
    _check_move(before, event, decision)
    _check_issue(decision)
    for issued in decision.effects:
        _check_primary(decision.view, issued.effect)
        _check_directory(decision.view, issued.effect)
        _check_leading(decision.view, issued.effect)
    _check_stray_primary(decision)


def _check_count_and_clock(before: View, event: AnyEvent, decision: Decision) -> None:
    after = decision.view
    assert after.seq == before.seq + 1
    assert after.now_ms >= before.now_ms or isinstance(event, AgentStarted)
    assert decision.wake_at_ms is None or decision.wake_at_ms >= after.now_ms
    assert (decision.wake_at_ms == after.now_ms) == (decision.rule is not None)


def _check_move(before: View, event: AnyEvent, decision: Decision) -> None:
    start = State.BOOTSTRAPPING if isinstance(event, AgentStarted) else before.state
    if decision.rule is None:
        assert decision.after is start
        return
    rule = RULE_BY_ID[decision.rule]
    assert (rule.source, rule.target) == (start, decision.after)
    assert decision.view.state_since_ms == decision.view.now_ms
    if start is State.LEADER and decision.view.server.process == "running":
        assert isinstance(decision.effects[0].effect, do.FenceServer), "a move out of leader begins with the fence"


def _check_issue(decision: Decision) -> None:
    ids = [issued.effect_id for issued in decision.effects]
    assert ids == [decision.view.seq * EFFECTS_PER_STEP_MAX + n for n in range(len(ids))]
    for issued in decision.effects:
        _check_issued(decision, issued)
    for resource in EXCLUSIVE_RESOURCES:
        assert sum(u.resource == resource for u in decision.view.underway.values()) <= 1


def _check_issued(decision: Decision, issued: Issued) -> None:
    underway = decision.view.underway[issued.duty]
    assert underway.effect_id == issued.effect_id
    assert underway.deadline_ms == decision.view.now_ms + issued.effect.timeout_ms
    assert issued.effect.timeout_ms > 0
    assert decision.after in DUTY_BY_ID[issued.duty].states


def _check_primary(view: View, effect: do.AnyEffect) -> None:
    """Only the holder of the leader key makes a primary, and only while its deadline lies ahead."""
    if isinstance(effect, MAKES_A_PRIMARY):
        assert view.state is State.LEADER
        assert is_leader_key_ours(view)
        assert view.now_ms < effect.valid_until_ms <= view.writable_until_ms
    if isinstance(effect, do.StartPrimary):
        assert effect.armed_until_ms == view.writable_until_ms
    if isinstance(effect, do.Promote):
        assert view.fence.armed_until_ms is not None
        assert view.fence.armed_until_ms > view.now_ms


def _check_directory(view: View, effect: do.AnyEffect) -> None:
    """Nobody works on the data directory under a server, and complete data are never thrown away."""
    if isinstance(effect, NEEDS_A_STOPPED_SERVER):
        assert view.server.process == "absent"
    if isinstance(effect, MAY_NOT_MEET_A_PRIMARY):
        assert view.server.process == "absent" or not view.server.may_be_primary
    if isinstance(effect, do.StopToRestart):
        assert view.restart is not None
        assert view.server.pid == view.restart.pid
        assert view.state in (State.LEADER, State.REPLICA)
        assert view.state is State.LEADER or not view.server.may_be_primary
    if isinstance(effect, do.ClearDataDirectory):
        assert view.directory is not None
        assert effect.keep_aside == (view.directory.condition in ("cluster", "unreadable"))
    if isinstance(effect, do.InitDb | do.Clone):
        assert view.directory is not None
        assert view.directory.condition in ("absent", "empty")


def _check_leading(view: View, effect: do.AnyEffect) -> None:
    """What only the leader may write carries the leader's deadline; the fence never gets a later one."""
    if isinstance(effect, do.ArmFence) and view.state in (State.BOOTSTRAPPING, State.CANDIDATE):
        assert view.fence.armed_until_ms is None  # a found primary gets a deadline, never a later one
        assert effect.until_ms <= view.now_ms + view.dynamic.ttl_s * 1000
    elif isinstance(effect, do.ArmFence):
        assert is_leader_key_ours(view) or view.now_ms < view.failsafe_until_ms
        assert view.now_ms < effect.until_ms == view.writable_until_ms
    if isinstance(effect, do.WriteInitialize | do.WriteConfig | do.PublishAsLeader):
        assert view.state is State.LEADER
        assert effect.valid_until_ms == view.writable_until_ms
    if isinstance(effect, do.ClaimInitialize) or (
        isinstance(effect, do.TakeLeaderKey) and view.state is State.CANDIDATE
    ):
        assert has_promised_nothing(view)
    if isinstance(effect, do.TakeLeaderKey):
        assert view.state in (State.CANDIDATE, State.LEADER)
        assert view.lease is not None
        assert effect.valid_until_ms == view.lease.writable_until_ms


def _check_stray_primary(decision: Decision) -> None:
    """A server that may be a primary has its fence ordered, or its retry is due within moments, in each state
    that does not lead and is not about to."""
    view = decision.view
    is_stray = view.server.process == "running" and view.server.may_be_primary
    if not is_stray or view.state not in (State.REPLICA, State.REWINDING, State.REINIT):
        return
    if any(underway.kind == "FenceServer" for underway in view.underway.values()):
        return
    failed = view.attempts["fence-stray"]
    assert view.now_ms - failed.failed_at_ms < STRAY_PRIMARY_PAUSE_MS
