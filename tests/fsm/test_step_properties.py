"""What must hold of `step` whatever happens: random events onto every kind of situation. Judged by invariants.check."""

from functools import cache
from typing import Any

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import Struct
from msgspec.structs import replace

from fsm import events as ev
from fsm.asked import RestartWish
from fsm.entries import SnapshotEntry, encode, make_entry
from fsm.facts import DataDirectory, KeyChange, PeerReport, Probe, Standby, TimelineHistory, TimelineSwitch
from fsm.machine import Decision, Issued, advance, attend, step
from fsm.observe import observe
from fsm.replay import Replay
from fsm.states import State
from fsm.table import TABLE
from fsm.view import Promise, View
from tests.fsm import invariants
from tests.fsm.world import (
    EMPTY,
    HALF_REWOUND,
    MIB,
    STANDBY,
    SYSTEM_ID,
    World,
    leader_with_standbys,
    member_value,
    replica_of,
)

NAMES = ("n1", "n2", "n3")
STEPS = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
DEPENDS_ON_A_PROBE = {"publish-member", "publish-status"}
"""Duties that publish a position: they are due when `loop_wait` is over *and* the next probe shows another one."""


# ---- situations to begin with ----------------------------------------------------------------------------------------


def _replica() -> World:
    return replica_of("n2", "n3")


def _candidate() -> World:
    world = replica_of("n2", "n3")
    world.held.add("ask-peers")
    world.delete("leader")
    return world


def _leader() -> World:
    return leader_with_standbys("n2", "n3")


def _leader_in_failsafe() -> World:
    world = leader_with_standbys("n2", "n3")
    world.confirming = {"n2", "n3"}
    world.lose_etcd()
    world.wait(40_000)
    return world


def _handing_over() -> World:
    world = leader_with_standbys("n2", "n3")
    world.put("failover", '{"leader":"n1","member":"n2"}')
    return world


def _restarting() -> World:
    world = leader_with_standbys("n2", "n3")
    world.held.add("stop-primary-to-restart")
    world.feed(ev.RestartAsked(at_ms=world.now_ms, request_id="r1"))
    world.wait(100)
    return world


def _promoting() -> World:
    world = _candidate()
    world.held = {"promote"}
    world.delete("members/n2")
    world.until_state("leader")
    return world


def _beginning() -> World:
    return World().boot()


def _with_leader(directory: DataDirectory) -> World:
    world = World(directory=directory).initialized()
    world.lead("n2", timeline=2)
    world.held = {"clone", "rewind", "start-standby", "read-leader-history"}
    world.boot()
    world.wait(2_000)
    return world


def _cloning() -> World:
    return _with_leader(EMPTY)


def _rewinding() -> World:
    return _with_leader(HALF_REWOUND)


def _reinit() -> World:
    return _with_leader(replace(EMPTY, condition="unfinished_clone"))


def _stopped_standby() -> World:
    return _with_leader(STANDBY)


SITUATIONS = (
    _beginning,
    _cloning,
    _stopped_standby,
    _replica,
    _candidate,
    _promoting,
    _leader,
    _leader_in_failsafe,
    _handing_over,
    _restarting,
    _rewinding,
    _reinit,
)


@cache
def view_of(number: int) -> View:
    """What the node knows in one of the situations."""
    return SITUATIONS[number]().view


# ---- events ----------------------------------------------------------------------------------------------------------


class Answer(Struct, frozen=True):
    """The n-th effect under way is answered; which result fits is found when it is played."""

    number: int
    ending: str
    result: ev.AnyResult | None
    kind: ev.FailureKind


class Later(Struct, frozen=True):
    """An event that happens some time after the one before."""

    after_ms: int
    what: ev.AnyEvent | Answer


SCHEDULED = '{"leader":"n1","member":"n2","scheduled_at":"2026-01-01T00:00:10+00:00"}'
schedules = st.sampled_from(("", "", "2026-01-01T00:00:10+00:00"))
unix_times = st.sampled_from((0, 1_767_225_600_000, 1_767_225_609_000, 1_767_225_700_000))
"""Around the instant of SCHEDULED, before, at and long after it."""
lsns = st.sampled_from((0, 1, 5 * MIB, 10 * MIB, 20 * MIB, 30 * MIB))
timelines = st.integers(1, 3)
names = st.sampled_from(NAMES)
THE_PRESENT = 1
"""Stands for this node's present lease, postmaster, or next revision, which are known when the event is played."""
lease_ids = st.sampled_from((THE_PRESENT, THE_PRESENT, 0, 2, 900))
pids = st.sampled_from((THE_PRESENT, THE_PRESENT, THE_PRESENT, 77))
revisions = st.one_of(st.just(THE_PRESENT), st.just(THE_PRESENT), st.integers(90, 160))
spans_ms = st.sampled_from((0, 0, 0, 1, 1, 2, 20, 20, 50, 50, 300, 501, 1_100, 3_500, 9_000, 12_000, 31_000))

histories = st.builds(
    TimelineHistory,
    timeline=timelines,
    system_id=st.just(SYSTEM_ID),
    in_recovery=st.booleans(),
    switches=st.lists(st.builds(TimelineSwitch, timeline=timelines, lsn=lsns), max_size=2).map(tuple),
)
directories = st.builds(
    DataDirectory,
    condition=st.sampled_from(
        (
            "absent",
            "empty",
            "cluster",
            "cluster",
            "unfinished_init",
            "unfinished_clone",
            "unfinished_rewind",
            "unreadable",
        )
    ),
    system_id=st.sampled_from((SYSTEM_ID, SYSTEM_ID, SYSTEM_ID, "42")),
    timeline=timelines,
    control_state=st.sampled_from(("in production", "shut down", "shut down in recovery", "in archive recovery")),
    checkpoint_lsn=lsns,
    min_recovery_lsn=lsns,
    data_checksums=st.booleans(),
)
standbys = st.builds(
    Standby, application_name=names, state=st.sampled_from(("streaming", "streaming", "startup")), flush_lsn=lsns
)
probes = st.builds(
    Probe,
    in_recovery=st.booleans(),
    timeline=timelines,
    system_id=st.sampled_from((SYSTEM_ID, SYSTEM_ID, SYSTEM_ID, "42")),
    server_version=st.just(160004),
    postmaster_started_at=st.just("now"),
    flushed_lsn=lsns,
    received_lsn=lsns,
    replayed_lsn=lsns,
    receiver_status=st.sampled_from((None, "streaming")),
    upstream_host=st.sampled_from((None, "10.0.0.2", "10.0.0.3")),
    upstream_port=st.just(5432),
    standbys=st.lists(standbys, max_size=2).map(tuple),
)
reports = st.builds(
    PeerReport,
    name=st.sampled_from(("n2", "n3")),
    role=st.sampled_from(("replica", "replica", "primary")),
    state=st.sampled_from(("running", "stopped")),
    position_lsn=lsns,
    timeline=timelines,
    no_failover=st.booleans(),
    failover_priority=st.integers(0, 2),
    probed_ago_ms=st.sampled_from((0, 10, 5_000)),
)


def changes_of(key: str, values: st.SearchStrategy[str | None]) -> st.SearchStrategy[KeyChange]:
    """Changes of one key."""
    return st.builds(KeyChange, key=st.just(key), value=values, mod_revision=revisions, lease_id=lease_ids)


members = st.builds(
    member_value,
    names,
    st.sampled_from(("replica", "primary")),
    timeline=timelines,
    checkpoint_after_promote=st.booleans(),
    tags=st.sampled_from(({}, {"nofailover": True}, {"failover_priority": 2})),
)
changes = st.one_of(
    changes_of("leader", st.sampled_from((None, None, *NAMES))),
    changes_of("initialize", st.sampled_from((None, "", SYSTEM_ID, "42"))),
    changes_of(
        "config",
        st.sampled_from((None, "{}", '{"ttl":5}', '{"pause":true}', '{"failsafe_mode":false}', "broken", "[]")),
    ),
    changes_of(
        "failover", st.sampled_from((None, "{}", '{"leader":"n1","member":"n2"}', '{"member":"n1"}', SCHEDULED, "n2"))
    ),
    changes_of("sync", st.sampled_from((None, "{}", '{"leader":"n2","sync_standby":"n1,n3"}'))),
    changes_of("status", st.sampled_from((None, '{"optime":31457280}', "7"))),
    changes_of("history", st.sampled_from((None, "[]", '[[1,100,"x"]]', "[[2]]", "{}"))),
    *(changes_of(f"members/{name}", st.one_of(st.none(), members)) for name in NAMES),
)
some_changes = st.lists(changes, max_size=3).map(tuple)

results = st.one_of(
    st.just(ev.Done()),
    st.builds(ev.LeaseHeld, lease_id=st.sampled_from((2, 3)), ttl_s=st.sampled_from((5, 30)), sent_at_ms=st.just(-1)),
    st.builds(ev.KeyWritten, applied=st.booleans(), revision=revisions, now=st.one_of(st.none(), changes)),
    st.builds(ev.DirectoryRead, directory=directories),
    st.builds(ev.HistoryRead, leader=names, history=histories),
    st.builds(ev.PeersHeard, reports=st.lists(reports, max_size=2).map(tuple)),
    st.builds(
        ev.FailsafeHeard,
        sent_at_ms=st.just(-1),
        accepted=st.sampled_from(((), ("n2",), ("n2", "n3"))),
    ),
)
kinds = st.sampled_from(
    ("unavailable", "refused", "lease_gone", "expired", "program", "sql", "cancelled", "fence", "bug")
)
answers = st.builds(
    Answer,
    number=st.integers(0, 9),
    ending=st.sampled_from(("succeeded", "succeeded", "succeeded", "failed", "unknown")),
    result=st.one_of(st.none(), results),
    kind=kinds,
)
identities = st.builds(
    ev.Identity,
    name=st.just("n1"),
    scope=st.just("demo"),
    api_url=st.just("http://10.0.0.1:8008/patroni"),
    conn_url=st.just("postgres://10.0.0.1:5432/postgres"),
    clone_on_rewind_failure=st.booleans(),
    clone_on_divergence=st.booleans(),
)
NOW = st.just(0)
key_events = st.one_of(
    st.builds(ev.KeysChanged, at_ms=NOW, revision=revisions, changes=some_changes, unix_ms=unix_times),
    st.builds(ev.ClusterRead, at_ms=NOW, revision=revisions, keys=some_changes),
)
server_events = st.one_of(
    st.builds(ev.ServerProbed, at_ms=NOW, pid=pids, probe=probes),
    st.builds(ev.ServerProbed, at_ms=NOW, pid=pids, probe=probes),
    st.builds(ev.ServerSpawned, at_ms=NOW, pid=pids),
    st.builds(ev.ServerExited, at_ms=NOW, pid=pids, fired=st.booleans()),
    st.builds(ev.ServerSilent, at_ms=NOW, pid=pids, detail=st.just("timeout"), starting=st.booleans()),
)
rare_events = st.one_of(
    st.builds(ev.AgentStarted, at_ms=NOW, identity=identities, boot=st.just("b"), wall=st.just("")),
    st.builds(ev.StopAsked, at_ms=NOW),
    st.builds(ev.EtcdLost, at_ms=NOW, detail=st.just("gone")),
    st.builds(
        ev.FenceConnected,
        at_ms=NOW,
        pid=st.one_of(st.none(), pids),
        armed_until_ms=st.sampled_from((None, 1, 2_000_000)),
    ),
    st.builds(ev.FenceLost, at_ms=NOW, detail=st.just("gone")),
    st.builds(ev.SwitchoverAsked, at_ms=NOW, leader=st.just("n1"), candidate=names),
    st.builds(ev.ReinitAsked, at_ms=NOW),
    st.builds(
        ev.RestartAsked,
        at_ms=NOW,
        request_id=names,
        wish=st.builds(RestartWish, timeout_ms=st.sampled_from((0, 1, 5_000)), schedule=schedules),
        unix_ms=unix_times,
    ),
    st.builds(ev.RestartCancelAsked, at_ms=NOW, request_id=names),
    st.builds(ev.ConfigAsked, at_ms=NOW, request_id=names, revision=st.sampled_from((0, 7))),
    st.builds(ev.SwitchoverCancelAsked, at_ms=NOW, request_id=names, revision=st.just(7)),
    st.builds(ev.ReloadAsked, at_ms=NOW, request_id=names),
    st.builds(ev.FailsafeAsked, at_ms=NOW, leader=names),
    st.builds(ev.FailsafeAsked, at_ms=NOW, leader=st.just("n2"), ttl_s=st.sampled_from((0, 5, 60))),
)
ticks = st.builds(ev.Ticked, at_ms=NOW)
happenings = st.lists(
    st.builds(
        Later,
        after_ms=spans_ms,
        what=st.one_of(answers, answers, answers, key_events, server_events, ticks, rare_events),
    ),
    min_size=12,
    max_size=40,
)
situations = st.integers(0, len(SITUATIONS) - 1)


# ---- playing them ----------------------------------------------------------------------------------------------------


def natural_result(view: View, kind: str, duty: str, drawn: Any) -> Any:
    """The drawn result if it is of the kind that this effect brings back, with its times set; else the plainest one."""
    expected: Any = {
        "GrantLease": ev.LeaseHeld,
        "RenewLease": ev.LeaseHeld,
        "ArmFence": ev.FenceArmed,
        "ReadDataDirectory": ev.DirectoryRead,
        "ReadLeaderHistory": ev.HistoryRead,
        "StartPrimary": ev.ServerStarted,
        "StartStandby": ev.ServerStarted,
        "AskPeers": ev.PeersHeard,
        "AskFailsafe": ev.FailsafeHeard,
        "KeepPromise": ev.PromiseKept,
        **dict.fromkeys(
            (
                "TakeLeaderKey", "ReleaseLeaderKey", "ClaimInitialize", "WriteInitialize", "WriteConfig",
                "ChangeConfig", "PublishMember", "PublishAsLeader", "RequestFailover", "ClearFailover",
            ),
            ev.KeyWritten,
        ),
    }.get(kind, ev.Done)  # fmt: skip
    sent_at_ms = view.underway[duty].since_ms
    if expected is ev.FenceArmed:
        return ev.FenceArmed(until_ms=view.writable_until_ms)
    if expected is ev.PromiseKept:
        kept = view.promising or view.promise or Promise(leader="n2", until_ms=view.now_ms)
        return ev.PromiseKept(leader=kept.leader, asked_at_ms=kept.asked_at_ms, until_ms=kept.until_ms)
    if isinstance(drawn, expected):
        is_timed = isinstance(drawn, ev.LeaseHeld | ev.FailsafeHeard)
        return replace(drawn, sent_at_ms=sent_at_ms) if is_timed else drawn
    plainest: dict[type, ev.AnyResult] = {
        ev.Done: ev.Done(),
        ev.ServerStarted: ev.ServerStarted(pid=view.server.pid or view.seq),
        ev.LeaseHeld: ev.LeaseHeld(lease_id=2, ttl_s=30, sent_at_ms=sent_at_ms),
        ev.KeyWritten: ev.KeyWritten(applied=True, revision=view.etcd.revision),
        ev.DirectoryRead: ev.DirectoryRead(directory=STANDBY),
        ev.HistoryRead: ev.HistoryRead(
            leader=view.leader or "n2", history=TimelineHistory(timeline=1, system_id=SYSTEM_ID)
        ),
        ev.PeersHeard: ev.PeersHeard(reports=()),
        ev.FailsafeHeard: ev.FailsafeHeard(sent_at_ms=sent_at_ms, ttl_s=30, accepted=("n2", "n3")),
    }
    return plainest[expected]


def event_from(view: View, what: ev.AnyEvent | Answer, at_ms: int) -> ev.AnyEvent:
    """The event that happens now."""
    if not isinstance(what, Answer):
        return _of_the_present(view, replace(what, at_ms=at_ms))
    if not view.underway:
        return ev.Ticked(at_ms=at_ms)
    duty = sorted(view.underway)[what.number % len(view.underway)]
    underway = view.underway[duty]
    if what.ending == "failed":
        return ev.Failed(at_ms=at_ms, effect_id=underway.effect_id, duty=duty, kind=what.kind, detail="drawn")
    if what.ending == "unknown":
        return ev.Unknown(at_ms=at_ms, effect_id=underway.effect_id, duty=duty, detail="drawn")
    result = natural_result(view, underway.kind, duty, what.result)
    if isinstance(result, ev.KeyWritten) and result.now:
        result = replace(result, now=_changed_now(view, result.now, 1))
    return ev.Succeeded(at_ms=at_ms, effect_id=underway.effect_id, duty=duty, result=result)


def _of_the_present(view: View, event: ev.AnyEvent) -> ev.AnyEvent:
    """The event with every THE_PRESENT replaced by what it stands for."""
    match event:
        case ev.KeysChanged():
            now = tuple(_changed_now(view, change, n) for n, change in enumerate(event.changes, 1))
            return replace(event, changes=now, revision=view.etcd.revision + len(now))
        case ev.ClusterRead():
            now = tuple(_changed_now(view, change, n) for n, change in enumerate(event.keys, 1))
            return replace(event, keys=now, revision=view.etcd.revision + 10)
        case ev.ServerProbed() | ev.ServerExited() | ev.ServerSilent():
            pid = view.server.pid or 5
            return replace(event, pid=pid if event.pid == THE_PRESENT else event.pid)
        case ev.ServerSpawned():
            return replace(event, pid=view.seq if event.pid == THE_PRESENT else event.pid)
        case _:
            return event


def _changed_now(view: View, change: KeyChange, number: int) -> KeyChange:
    newest = max((key.mod_revision for key in view.keys.values()), default=view.etcd.revision)
    own = view.lease.lease_id if view.lease else 2
    return replace(
        change,
        mod_revision=newest + number if change.mod_revision == THE_PRESENT else change.mod_revision,
        lease_id=own if change.lease_id == THE_PRESENT else change.lease_id,
    )


def play(view: View, drawn: list[Later]) -> list[tuple[View, ev.AnyEvent, Decision]]:
    """Every step of a random story: the view before, the event, the decision; moves are followed to their end."""
    steps = []
    now_ms = view.now_ms
    for later in drawn:
        now_ms += later.after_ms
        event = event_from(view, later.what, now_ms)
        for _ in range(4):
            decision = step(view, event)
            steps.append((view, event, decision))
            view = decision.view
            if decision.rule is None:
                break
            event = ev.Ticked(at_ms=view.now_ms)
    return steps


# ---- properties ------------------------------------------------------------------------------------------------------


@STEPS
@given(situations, happenings)
def test_step_keeps_every_promise_when_anything_happens(situation: int, drawn: list[Later]) -> None:
    """Nothing raises, and every decision keeps what invariants.check lists."""
    for before, event, decision in play(view_of(situation), drawn):
        invariants.check(before, event, decision)


@STEPS
@given(situations, happenings)
def test_step_answers_the_same_when_asked_twice(situation: int, drawn: list[Later]) -> None:
    """The same view and event give the same decision, and the view that went in is left as it was."""
    for before, event, decision in play(view_of(situation), drawn):
        copy = msgspec.json.encode(before)
        assert step(before, event) == decision
        assert msgspec.json.encode(before) == copy


@STEPS
@given(situations, happenings)
def test_advance_takes_the_first_row_that_holds_when_compared_with_a_plain_loop(
    situation: int, drawn: list[Later]
) -> None:
    """The compiled machine is the table."""
    for _, _, decision in play(view_of(situation), drawn):
        view = decision.view
        for state in State:
            there = replace(view, state=state)
            plain = (rule for rule in TABLE if rule.source is state and all(guard(there) for guard in rule.guards))
            assert advance(there) is next(plain, None)


@STEPS
@given(situations, happenings)
def test_log_replays_without_difference_when_read_back(situation: int, drawn: list[Later]) -> None:
    """Entries and snapshots survive JSON, and deciding them again gives the same."""
    start = view_of(situation)
    steps = play(start, drawn)
    replay = Replay()
    replay.take("snapshot", encode(SnapshotEntry(seq=start.seq, node="n1", wall="", view=start)))
    for _, event, decision in steps:
        assert replay.take("entry", encode(make_entry(decision, event, boot="b", wall="w"))) is None
    end = steps[-1][2].view if steps else start
    assert replay.take("snapshot", encode(SnapshotEntry(seq=end.seq, node="n1", wall="", view=end))) is None
    assert replay.verdict.entries == len(steps)


@STEPS
@given(situations, happenings)
def test_nothing_becomes_due_when_nothing_happens_before_the_next_wake(situation: int, drawn: list[Later]) -> None:
    """`wake_at_ms` misses nothing: at no instant before it is there a move to make or an effect to issue."""
    for _, _, decision in play(view_of(situation), drawn):
        if decision.rule is not None or decision.view.identity is None:
            continue
        now_ms = decision.view.now_ms
        wake_ms = decision.wake_at_ms if decision.wake_at_ms is not None else now_ms + 1_000_000
        for at_ms in {now_ms, now_ms + 1, (now_ms + wake_ms) // 2, wake_ms - 1} - {wake_ms}:
            view = observe(decision.view, ev.Ticked(at_ms=at_ms))
            moved = advance(view)
            assert moved is None, f"{moved.id} became due {wake_ms - at_ms} ms before the wake"
            issued: list[Issued] = []
            attend(view, issued)
            early = {i.duty for i in issued} - DEPENDS_ON_A_PROBE
            assert not early, f"{early} became due {wake_ms - at_ms} ms before the wake"


@STEPS
@given(situations, happenings)
def test_node_comes_to_rest_when_nothing_happens(situation: int, drawn: list[Later]) -> None:
    """Moves at one instant do not go round in circles."""
    steps = play(view_of(situation), drawn)
    view = steps[-1][2].view if steps else view_of(situation)
    visited = []
    for _ in range(len(State) + 1):
        decision = step(view, ev.Ticked(at_ms=view.now_ms))
        view = decision.view
        if decision.rule is None:
            return
        visited.append(decision.rule)
    raise AssertionError(f"moves without end: {visited}")


def test_every_situation_is_what_it_is_called_when_built() -> None:
    """The properties begin in all six states."""
    assert {view_of(number).state for number in range(len(SITUATIONS))} == set(State)
