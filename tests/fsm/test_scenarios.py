"""Whole stories of one node, told to the real `step` in virtual time. Together they fire every rule of the table."""

import pytest
from msgspec.structs import replace

from fsm import effects as do
from fsm import events as ev
from fsm.facts import PeerReport, Standby
from fsm.machine import Decision
from fsm.table import TABLE
from fsm.timing import FAILED_STARTS_MAX, HANDOVER_CATCH_UP_MS, NAMED_SUCCESSOR_WAIT_MS, REWIND_ATTEMPTS_MAX
from tests.fsm.test_stalls import STORIES as STORIES_OF_STALLS
from tests.fsm.world import (
    CLUSTER,
    EMPTY,
    HALF_REWOUND,
    MIB,
    STANDBY,
    SYSTEM_ID,
    Postgres,
    World,
    forked,
    is_following,
    is_settled_leader,
    leader_with_standbys,
    new_leader,
    replica_of,
)


def report(name: str, lsn: int, **more: object) -> PeerReport:
    """What a healthy replica answers."""
    return PeerReport(name=name, role="replica", state="running", position_lsn=lsn, timeline=1, **more)  # type: ignore[arg-type]


# ---- beginnings ------------------------------------------------------------------------------------------------------


def test_node_makes_the_cluster_and_leads_it_when_nothing_exists() -> None:
    """An empty directory and an empty etcd become a cluster with a primary."""
    world = new_leader()
    assert world.rules == ["B2", "C1"]
    assert len(world.orders(do.InitDb)) == len(world.orders(do.StartPrimary)) == 1
    assert world.keys["initialize"].value == SYSTEM_ID
    assert world.keys["initialize"].lease_id == 0
    assert world.armed_until_ms == world.view.writable_until_ms


def test_node_leads_when_the_fences_own_notice_is_lost() -> None:
    """The answer to the start is enough to know of the server."""
    world = new_leader(is_notice_lost=True)
    assert len(world.orders(do.StartPrimary)) == 1


def test_node_waits_when_another_makes_the_cluster() -> None:
    """Exactly one node runs initdb: a claim by another is waited for."""
    world = World()
    world.put("initialize", "", lease_id=900)
    world.boot()
    world.wait(5_000)
    assert world.orders(do.InitDb) == world.orders(do.Clone) == []


def test_node_does_not_make_a_cluster_when_its_settings_forbid_it() -> None:
    """A node that may not initialize leaves it to others."""
    world = World(may_initialize=False).boot()
    world.wait(5_000)
    assert world.orders(do.ClaimInitialize) == []


def test_node_clones_and_follows_when_another_leads() -> None:
    """An empty node takes a base backup of the leader and becomes its replica."""
    world = World().initialized()
    world.lead("n2")
    world.boot()
    world.until(is_following)
    assert world.rules == ["B1"]
    assert len(world.orders(do.Clone)) == 1
    assert world.orders(do.StartStandby)[-1].upstream.name == "n2"  # type: ignore[union-attr]


def test_node_makes_the_cluster_again_when_its_initdb_was_cut_short() -> None:
    """The rest of an initdb that did not end is cleared away, not kept aside, and initdb runs again."""
    world = World(directory=replace(EMPTY, condition="unfinished_init")).boot()
    world.until(is_settled_leader)
    assert [order.keep_aside for order in world.orders(do.ClearDataDirectory)] == [False]  # type: ignore[union-attr]


def test_node_clones_anew_when_a_base_backup_was_left_unfinished() -> None:
    """Half a base backup is thrown away and taken again."""
    world = World(directory=replace(EMPTY, condition="unfinished_clone")).initialized()
    world.lead("n2")
    world.boot()
    world.until(is_following)
    assert world.rules == ["B4", "I1"]
    assert [order.keep_aside for order in world.orders(do.ClearDataDirectory)] == [False]  # type: ignore[union-attr]


def test_agent_exits_when_the_data_belong_to_another_cluster() -> None:
    """Data of another cluster are left alone, and a person is told."""
    world = World(directory=replace(CLUSTER, system_id="42")).initialized()
    world.lead("n2")
    world.boot()
    world.until(lambda w: w.exit is not None)
    assert world.exit is not None
    assert (world.exit.status, "42" in world.exit.reason) == (1, True)
    assert {order.resource for order in (i.effect for i in world.issued)} & {"fence"} == set()
    assert world.directory.system_id == "42"


def test_whole_cluster_comes_back_when_everything_was_restarted() -> None:
    """A node that was a replica starts its standby, finds nobody leading, stands, and leads."""
    world = World(directory=STANDBY).initialized().boot()
    world.until(is_settled_leader)
    assert world.rules == ["B1", "R1", "C1"]
    assert len(world.orders(do.Promote)) >= 1


def test_former_primary_comes_back_when_everything_was_restarted() -> None:
    """A node that was the primary starts as a standby first, so that an election decides who leads."""
    world = World(directory=replace(CLUSTER, control_state="in production")).initialized().boot()
    world.until(is_settled_leader)
    assert world.rules == ["B1", "R1", "C1"]
    assert world.orders(do.StartPrimary) == []


def running_primary(**more: object) -> World:
    """A world in which the server already runs as primary before the agent begins."""
    world = World(directory=CLUSTER, **more).initialized()  # type: ignore[arg-type]
    world.server = Postgres(pid=77, in_recovery=False, timeline=1, lsn=30 * MIB)
    return world


def test_agent_takes_up_its_primary_when_it_was_restarted() -> None:
    """An agent that restarts keeps its server and its key: nothing is stopped, started or promoted."""
    world = new_leader()
    world.wait(3_000)
    count = len(world.decisions)
    world.boot()
    world.until(is_settled_leader)
    later = [issued.effect for _, decision in world.decisions[count:] for issued in decision.effects]
    assert [d.rule for _, d in world.decisions[count:] if d.rule] == ["B6", "C1"]
    touching = (do.FenceServer, do.StopServer, do.StartPrimary, do.StartStandby, do.Promote)
    assert not [order for order in later if isinstance(order, touching)]


def test_agent_adopts_a_running_primary_when_its_key_is_free() -> None:
    """A primary that runs without a leader key is taken up and led, not restarted."""
    world = running_primary().boot()
    world.until(is_settled_leader)
    assert world.rules == ["B7", "C1"]
    assert world.orders(do.FenceServer) == world.orders(do.Promote) == []


def test_agent_ends_a_running_primary_when_another_leads() -> None:
    """Two primaries are one too many: the one without the key is ended at once."""
    world = running_primary()
    world.lead("n2")
    world.boot()
    world.until(lambda w: w.server is None)
    assert [order.mode for order in world.orders(do.FenceServer)] == ["immediate"]  # type: ignore[union-attr]


# ---- failover --------------------------------------------------------------------------------------------------------


def test_replica_leads_when_the_leader_key_is_gone_and_nobody_is_better() -> None:
    """With every peer heard and none ahead, the replica takes the key and promotes."""
    world = replica_of("n2", "n3")
    world.reports["n3"] = report("n3", 5 * MIB)
    world.delete("members/n2")
    gone_ms = world.now_ms
    world.delete("leader")
    world.until(is_settled_leader)
    assert world.rules[-2:] == ["R1", "C1"]
    assert world.now_ms - gone_ms < 500


def test_replica_steps_back_when_a_better_rival_answers() -> None:
    """Who has more WAL is given the time to take the key."""
    world = replica_of("n2", "n3")
    world.reports["n3"] = report("n3", 50 * MIB)
    world.delete("leader")
    world.until(lambda w: "C3" in w.rules)
    assert world.orders(do.TakeLeaderKey) == []
    world.lead("n3")
    world.until(is_following)
    assert world.orders(do.Follow)[-1].upstream.name == "n3"  # type: ignore[union-attr]


def test_replica_leads_when_the_better_rival_falls_silent() -> None:
    """A better rival that does not take the key and is not heard any more does not block the election."""
    world = replica_of("n2", "n3")
    world.reports["n3"] = report("n3", 50 * MIB)
    world.delete("leader")
    world.until(lambda w: "C3" in w.rules)
    world.reports.clear()
    world.until(is_settled_leader, within_ms=5_000)


def test_replica_leads_when_a_peer_is_silent() -> None:
    """Silence is no vote: after its time a silent member is not waited for."""
    world = replica_of("n2", "n3")
    gone_ms = world.now_ms
    world.delete("leader")
    world.until(is_settled_leader)
    assert 500 <= world.now_ms - gone_ms < 1_500


def test_candidate_asks_again_when_a_report_is_stale() -> None:
    """A position that a peer looked up long ago is asked for again before it decides the election."""
    world = replica_of("n2", "n3")
    world.reports["n3"] = report("n3", 5 * MIB, probed_ago_ms=5_000)
    world.delete("members/n2")
    world.delete("leader")
    world.until(lambda w: len(w.orders(do.AskPeers)) == 1 and not w.pending)
    assert world.orders(do.TakeLeaderKey) == []
    world.reports["n3"] = report("n3", 5 * MIB)
    world.until(is_settled_leader, within_ms=450)
    assert len(world.orders(do.AskPeers)) >= 2


def test_candidate_follows_when_another_takes_the_key_first() -> None:
    """The race for the key has one winner; the loser follows it."""
    world = replica_of("n2", "n3")
    world.held.add("ask-peers")
    world.delete("leader")
    world.until_state("candidate")
    world.lead("n3")
    world.until(is_following)
    assert world.rules[-1] == "C2"


def test_candidate_goes_back_when_etcd_is_lost() -> None:
    """Without etcd nobody is elected."""
    world = replica_of("n2", "n3")
    world.held.add("ask-peers")
    world.delete("leader")
    world.until_state("candidate")
    world.lose_etcd()
    world.until_state("replica")
    assert world.rules[-1] == "C4"


def test_candidate_goes_back_when_asked_to_stop() -> None:
    """A node that is leaving does not take the key on its way out."""
    world = replica_of("n2", "n3")
    world.held.add("ask-peers")
    world.delete("leader")
    world.until_state("candidate")
    world.stop_asked()
    assert "C6" in world.rules
    world.until(lambda w: w.exit is not None, within_ms=10_000)
    assert world.orders(do.TakeLeaderKey) == []


def test_candidate_goes_back_when_it_does_not_qualify_any_more() -> None:
    """A candidate whose server ends has nothing to promote."""
    world = replica_of("n2", "n3")
    world.held.add("ask-peers")
    world.delete("leader")
    world.until_state("candidate")
    world.crash()
    world.until_state("replica")
    assert world.rules[-1] == "C5"


def never_stands(world: World) -> None:
    """The leader is gone and the node leaves the key alone."""
    world.delete("leader")
    world.wait(60_000)
    assert world.view.state == "replica"
    assert world.orders(do.TakeLeaderKey) == []


def test_replica_does_not_stand_when_tagged_nofailover() -> None:
    """The tag `nofailover` keeps a node out of elections."""
    never_stands(replica_of(tags={"nofailover": True}))


def test_replica_does_not_stand_when_it_lags() -> None:
    """A replica further behind than maximum_lag_on_failover does not stand."""
    world = replica_of()
    world.put("status", '{"optime":99999999}')
    never_stands(world)


def test_replica_does_not_stand_when_it_is_on_an_old_timeline() -> None:
    """A replica on an older timeline than the cluster's history knows does not stand."""
    world = replica_of()
    world.put("history", '[[1,100,"no recovery target specified"]]')
    never_stands(world)


def test_replica_does_not_stand_when_it_is_not_synchronous() -> None:
    """In a synchronous mode only who has every acknowledged commit may stand."""
    world = replica_of(first_config='{"synchronous_mode":true}')
    world.put("sync", '{"leader":"n2","sync_standby":"n3"}')
    never_stands(world)


def test_replica_does_not_stand_when_the_cluster_is_paused() -> None:
    """In pause nobody is elected; afterwards somebody is."""
    world = replica_of()
    world.put("config", '{"pause":true}')
    never_stands(world)
    world.put("config", "{}")
    world.until(is_settled_leader)


def test_replica_keeps_its_promise_when_it_confirmed_a_leader_without_etcd() -> None:
    """Who let a leader go on without etcd does not stand until the promise has run out."""
    world = replica_of()
    world.feed(ev.FailsafeAsked(at_ms=world.now_ms, leader="n2"))
    assert world.view.promising is not None
    until_ms = world.view.promising.until_ms
    world.delete("leader")
    world.until(is_settled_leader)
    assert world.now_ms >= until_ms


def test_promoted_node_begins_a_timeline_of_a_number_that_nobody_began() -> None:
    """A leader that came and went before this node heard of its timeline had told etcd which number it took."""
    world = replica_of("n2")
    world.put("timeline", "7")
    world.delete("leader")
    world.until(is_settled_leader, within_ms=10_000)
    assert world.keys["timeline"].value == "8"
    assert [effect.timeline for effect in world.orders(do.Promote)] == [8]  # type: ignore[union-attr]


def test_node_is_not_promoted_when_the_number_of_its_timeline_is_not_told() -> None:
    """One number is enough for a term, however long the promotion takes."""
    world = replica_of("n2")
    world.failing["reserve-timeline"] = "unavailable"
    world.delete("leader")
    world.until(lambda w: w.view.state == "leader", within_ms=10_000)
    world.wait(2_000)
    assert world.orders(do.Promote) == []
    world.failing.clear()
    world.held.add("promote")
    world.until(lambda w: "timeline" in w.keys, within_ms=10_000)
    world.wait(5_000)
    world.held.clear()
    world.until(is_settled_leader, within_ms=60_000)
    assert world.keys["timeline"].value == "2"
    assert len([issued for issued in world.issued if issued.duty == "reserve-timeline"]) <= 10


def test_candidate_waits_when_the_server_of_the_former_leader_has_not_ended() -> None:
    """Its key may be gone before its server is, when somebody deletes it by hand."""
    world = replica_of("n2")
    world.reports["n2"] = PeerReport(name="n2", role="demoted", state="running", position_lsn=5 * MIB, timeline=1)
    world.delete("leader")
    for state in ("running", "stopping"):
        world.reports["n2"] = replace(world.reports["n2"], state=state)
        world.wait(5_000)
        assert world.orders(do.TakeLeaderKey) == []
    world.reports["n2"] = replace(world.reports["n2"], state="stopped")
    world.until(is_settled_leader, within_ms=5_000)


def test_candidate_withdraws_when_it_promises_a_leader_to_let_it_go_on() -> None:
    """The leader that lost etcd asks while this node stands already."""
    world = replica_of("n2", "n3")
    world.held.add("ask-peers")
    world.delete("leader")
    world.until_state("candidate")
    world.feed(ev.FailsafeAsked(at_ms=world.now_ms, leader="n2"))
    assert world.rules[-1] == "C7"


# ---- handover --------------------------------------------------------------------------------------------------------


def test_leader_hands_over_when_a_switchover_is_asked_for() -> None:
    """Checkpoint while serving, fast stop, release of the key; then the old leader follows the new one."""
    world = leader_with_standbys("n2")
    world.reports["n2"] = report("n2", 900 * MIB)
    world.feed(ev.SwitchoverAsked(at_ms=world.now_ms, leader="n1", candidate="n2"))
    world.until(lambda w: "leader" not in w.keys)
    assert world.rules[-1] == "L2"
    assert [order.mode for order in world.orders(do.FenceServer)] == ["fast"]  # type: ignore[union-attr]
    kinds = [type(issued.effect) for issued in world.issued]
    assert kinds.index(do.Checkpoint) < kinds.index(do.FenceServer) < kinds.index(do.ReleaseLeaderKey)
    world.history = forked(2, world.directory.checkpoint_lsn + 100)
    world.lead("n2", timeline=2)
    world.until(is_following)
    assert world.rules[-1] == "L2", "a clean handover needs no rewind"


def test_leader_does_not_hand_over_when_the_target_does_not_stream() -> None:
    """A request that cannot be met is cleared, and the leader goes on."""
    world = leader_with_standbys("n2")
    world.join("n3")
    world.feed(ev.SwitchoverAsked(at_ms=world.now_ms, leader="n1", candidate="n3"))
    world.wait(5_000)
    assert world.view.state == "leader"
    assert world.keys["failover"].value == "{}"


def test_named_successor_leads_at_once_when_the_key_is_released() -> None:
    """It asks once whether the former primary still lives, waits for nobody else, and clears the request."""
    world = replica_of("n2", "n3")
    world.put("failover", '{"leader":"n2","member":"n1"}')
    world.delete("leader")
    world.until(is_settled_leader)
    world.until(lambda w: w.keys["failover"].value == "{}", within_ms=2_000)
    assert len(world.orders(do.AskPeers)) == 1


def test_others_leave_the_key_to_the_named_successor_when_it_lives() -> None:
    """The first choice is another's for a while; then the key is for whoever qualifies."""
    world = replica_of("n2", "n3")
    world.put("failover", '{"leader":"n2","member":"n3"}')
    gone_ms = world.now_ms
    world.delete("leader")
    world.until_state("candidate")
    assert world.now_ms - gone_ms >= NAMED_SUCCESSOR_WAIT_MS


# ---- losing the lease ------------------------------------------------------------------------------------------------


def test_leader_steps_down_fence_first_when_etcd_is_silent() -> None:
    """No renewal and no confirmation: at the deadline, not before, the server is fenced and the state given up."""
    world = leader_with_standbys("n2", "n3")
    lease = world.view.lease
    assert lease is not None
    world.lose_etcd()
    world.until_state("replica")
    assert world.rules[-1] == "L4"
    assert world.now_ms <= world.view.writable_until_ms + 1
    world.until(lambda w: w.server is None, within_ms=1_000)


def test_leader_steps_down_when_one_member_does_not_confirm() -> None:
    """Failsafe needs every member: one silent member may be electing a new leader."""
    world = leader_with_standbys("n2", "n3")
    world.confirming = {"n2"}
    world.lose_etcd()
    world.until_state("replica")
    assert world.rules[-1] == "L4"


def test_leader_goes_on_when_every_member_confirms() -> None:
    """etcd may be gone for long: as long as all members confirm, the primary serves, and takes up its key again."""
    world = leader_with_standbys("n2", "n3")
    world.confirming = {"n2", "n3"}
    world.lose_etcd()
    world.wait(300_000)
    assert world.view.state == "leader"
    assert world.server is not None
    world.heal_etcd()
    world.wait(10_000)
    assert world.view.state == "leader"
    assert world.keys["leader"].lease_id == world.view.lease.lease_id  # type: ignore[union-attr]


def test_leader_goes_on_when_etcd_ended_its_lease_and_every_member_confirms() -> None:
    """It reached etcd for one answer, which says that the lease is gone; whoever could take the key has promised."""
    world = leader_with_standbys("n2", "n3")
    world.confirming = {"n2", "n3"}
    world.lose_etcd()
    world.wait(60_000)
    world.leases.clear()
    world.is_etcd_up = True
    world.until(lambda w: w.view.lease is None, within_ms=60_000)
    world.is_etcd_up = False
    world.wait(300_000)
    assert world.view.state == "leader"
    assert world.server is not None
    world.confirming = {"n2"}
    world.until_state("replica", within_ms=60_000)


def test_leader_steps_down_when_its_key_is_deleted() -> None:
    """A primary without the leader key is fenced at once."""
    world = leader_with_standbys("n2")
    world.delete("leader")
    assert world.rules[-1] == "L1"
    assert isinstance(world.decisions[-1][1].effects[0].effect, do.FenceServer)


def test_leader_steps_down_when_another_holds_its_key() -> None:
    """A leader key with another's name ends this leadership."""
    world = leader_with_standbys("n2")
    world.lead("n2")
    assert world.rules[-1] == "L1"


def test_fence_fires_first_when_the_agent_is_frozen() -> None:
    """An agent that slept past its deadline wakes up to a dead server and steps down."""
    world = leader_with_standbys("n2")
    assert world.armed_until_ms is not None
    world.now_ms = world.armed_until_ms + 10_000
    world._end_server("in production", signal=9, fired=True)
    world.until_state("replica")
    assert world.rules[-1] in ("L1", "L4")


# ---- crashes ---------------------------------------------------------------------------------------------------------


def test_leader_restarts_its_server_in_place_when_it_crashes() -> None:
    """A crash is mended on the spot, without a change of leader or timeline."""
    world = leader_with_standbys("n2")
    world.crash()
    world.until(is_settled_leader, within_ms=5_000)
    assert world.rules == ["B2", "C1"]
    assert len(world.orders(do.StartPrimary)) == 2


def test_leader_gives_up_when_its_server_keeps_crashing() -> None:
    """A crash loop is a failure even if each single start is quick."""
    world = leader_with_standbys("n2")
    for _ in range(FAILED_STARTS_MAX):
        world.until(is_settled_leader)
        world.crash()
    world.until_state("replica", within_ms=5_000)
    assert world.rules[-1] == "L3"


def test_leader_gives_up_when_its_server_does_not_come_back_in_time() -> None:
    """After primary_start_timeout somebody else should serve."""
    world = leader_with_standbys("n2")
    world.put("config", '{"primary_start_timeout":20}')
    world.failing["start-primary"] = "program"
    crashed_ms = world.now_ms
    world.crash()
    world.until_state("replica")
    assert world.rules[-1] == "L3"
    assert 20_000 <= world.now_ms - crashed_ms < 21_000


def test_replica_restarts_its_standby_when_it_crashes() -> None:
    """A standby that ends is started again."""
    world = replica_of()
    world.crash()
    world.until(is_following, within_ms=5_000)
    assert world.rules == ["B1"]


def test_node_begins_anew_when_its_data_directory_is_gone() -> None:
    """Without data a replica begins from the beginning: with a base backup."""
    world = replica_of()
    world.crash()
    world.directory = EMPTY
    world.until(lambda w: len(w.orders(do.Clone)) == 1)
    assert "R4" in world.rules
    world.until(is_following)


# ---- divergence ------------------------------------------------------------------------------------------------------


def diverged(**more: object) -> World:
    """A former primary that crashed, while n2 was promoted."""
    directory = replace(CLUSTER, control_state="in production", checkpoint_lsn=30 * MIB)
    options: dict[str, object] = {"directory": directory, "history": forked(2, 20 * MIB), **more}
    world = World(**options).initialized()  # type: ignore[arg-type]
    world.lead("n2", timeline=2)
    return world.boot()


def test_former_primary_is_rewound_when_it_diverged() -> None:
    """pg_rewind brings it back onto the leader's timeline, and it follows."""
    world = diverged()
    world.until(is_following)
    assert world.rules == ["B3", "W1"]
    assert len(world.orders(do.Rewind)) == 1
    assert world.orders(do.ClearDataDirectory) == []


def test_running_standby_is_rewound_when_it_diverged() -> None:
    """A standby that replayed beyond the fork is stopped, rewound, and follows."""
    world = replica_of("n2", "n3")
    assert world.server is not None
    world.server.lsn = 40 * MIB
    world.wait(1_500)
    world.history = forked(2, 20 * MIB)
    world.lead("n3", timeline=2)
    world.until(lambda w: "W1" in w.rules)
    world.until(is_following)
    assert world.rules == ["B1", "R2", "W1"]


def test_rewind_waits_when_the_new_leader_has_not_checkpointed() -> None:
    """Before the leader's first checkpoint its control file tells the old timeline: pg_rewind would do nothing."""
    world = diverged()
    world.lead("n2", timeline=2, checkpoint_after_promote=False)
    world.boot()
    world.wait(5_000)
    assert world.orders(do.Rewind) == []
    world.lead("n2", timeline=2)
    world.until(is_following)


def test_node_is_cloned_when_rewind_fails_for_good() -> None:
    """The ladder goes on: after three failures the data are kept aside and a base backup is taken."""
    world = diverged()
    world.failing["rewind"] = "program"
    world.until(is_following)
    assert world.rules == ["B3", "W2", "I1"]
    assert len(world.orders(do.Rewind)) == REWIND_ATTEMPTS_MAX
    assert [order.keep_aside for order in world.orders(do.ClearDataDirectory)] == [True]  # type: ignore[union-attr]


def test_node_is_parked_when_rewind_fails_and_a_clone_is_not_allowed() -> None:
    """Where the settings forbid a base backup, the node waits for a person, who may ask for one."""
    world = diverged(clone_on_rewind_failure=False)
    world.failing["rewind"] = "program"
    world.wait(120_000)
    assert (world.view.state, len(world.orders(do.Rewind))) == ("rewinding", REWIND_ATTEMPTS_MAX)
    world.feed(ev.ReinitAsked(at_ms=world.now_ms, by="operator"))
    world.until(is_following)
    assert world.rules == ["B3", "W4", "I1"]


def test_node_is_cloned_when_rewind_is_impossible() -> None:
    """Without checksums and wal_log_hints only a base backup helps."""
    directory = replace(CLUSTER, control_state="in production", checkpoint_lsn=30 * MIB, data_checksums=False)
    world = diverged(directory=directory)
    world.until(is_following)
    assert world.rules == ["B5", "I1"]
    assert world.orders(do.Rewind) == []


def test_running_standby_is_cloned_when_rewind_is_switched_off() -> None:
    """With use_pg_rewind off a diverged replica is replaced by a base backup."""
    world = replica_of("n2", "n3")
    world.put("config", '{"postgresql":{"use_pg_rewind":false}}')
    world.history = forked(2, 1 * MIB)
    world.lead("n3", timeline=2)
    world.until(lambda w: "R5" in w.rules)
    world.until(is_following)
    assert world.rules == ["B1", "R5", "I1"]


def test_rewinding_node_goes_back_when_the_leader_it_diverged_from_is_gone() -> None:
    """With nobody to rewind against, and nothing touched, the node is a replica again, and may even stand."""
    world = diverged(history=forked(2, 20 * MIB))
    world.held.add("rewind")
    world.lead("n2", timeline=2, checkpoint_after_promote=False)
    world.until_state("rewinding")
    world.delete("leader")
    world.until(lambda w: "W3" in w.rules)
    assert world.orders(do.Rewind) == []


def test_unfinished_rewind_is_finished_when_the_agent_begins() -> None:
    """A directory that pg_rewind left half done is never started before it is mended."""
    world = World(directory=HALF_REWOUND, history=forked(2, 5 * MIB)).initialized()
    world.lead("n2", timeline=2)
    world.boot()
    world.until(is_following)
    assert world.rules == ["B3", "W1"]
    kinds = [type(issued.effect) for issued in world.issued]
    assert kinds.index(do.Rewind) < kinds.index(do.StartStandby)


# ---- base backup on request ------------------------------------------------------------------------------------------


def test_replica_is_cloned_when_an_operator_asks() -> None:
    """The standby is stopped, its data kept aside, and a new base backup takes their place, once."""
    world = replica_of()
    world.feed(ev.ReinitAsked(at_ms=world.now_ms, by="operator"))
    world.until(lambda w: "I1" in w.rules)
    world.until(is_following)
    assert world.rules == ["B1", "R3", "I1"]
    assert [order.keep_aside for order in world.orders(do.ClearDataDirectory)] == [True]  # type: ignore[union-attr]
    world.wait(30_000)
    assert len(world.orders(do.Clone)) == 1


def test_reinit_is_given_up_when_the_leader_is_gone_before_anything_was_touched() -> None:
    """With nobody to clone from the old data are still the best there is."""
    world = replica_of("n2", "n3")
    world.held.add("stop-standby")
    world.feed(ev.ReinitAsked(at_ms=world.now_ms, by="operator"))
    world.until_state("reinit")
    world.delete("leader")
    assert world.rules[:3] == ["B1", "R3", "I2"]
    assert world.orders(do.ClearDataDirectory) == []


def test_reinit_begins_anew_when_it_is_forced_in_the_middle() -> None:
    """The base backup that is under way is given up for the one that was asked for."""
    world = replica_of("n2")
    world.held.add("clone")
    world.feed(ev.ReinitAsked(at_ms=world.now_ms, by="operator"))
    world.until(lambda w: bool(w.orders(do.Clone)))
    world.now_ms += 10
    world.feed(ev.ReinitAsked(at_ms=world.now_ms, by="operator", is_forced=True))
    assert world.rules[-2:] == ["I3", "R3"]
    assert world.decisions[-2][1].cancelled
    world.held.clear()
    world.until(is_following)
    assert world.rules == ["B1", "R3", "I3", "R3", "I1"]
    assert len(world.orders(do.Clone)) == 2
    assert not world.view.is_reinit_asked


# ---- the way out -----------------------------------------------------------------------------------------------------


def test_leader_stops_in_order_when_asked_to() -> None:
    """SIGTERM at a leader: fast stop, key released, lease given back, exit 0."""
    world = leader_with_standbys("n2")
    world.stop_asked()
    world.until(lambda w: w.exit is not None, within_ms=10_000)
    assert world.rules[-1] == "L5"
    assert world.exit is not None
    assert world.exit.status == 0
    assert world.server is None
    assert "leader" not in world.keys
    assert f"members/{world.name}" not in world.keys


def test_replica_stops_in_order_when_asked_to() -> None:
    """SIGTERM at a replica: its server is stopped, its member key goes with its lease, exit 0."""
    world = replica_of()
    world.stop_asked()
    world.until(lambda w: w.exit is not None, within_ms=10_000)
    assert world.server is None
    assert "members/n1" not in world.keys
    assert world.keys["leader"].value == "n2"


def test_node_stops_when_etcd_does_not_answer() -> None:
    """A lease that cannot be given back runs out by itself: the end does not wait for etcd."""
    world = replica_of()
    world.lose_etcd()
    world.stop_asked()
    world.until(lambda w: w.exit is not None, within_ms=10_000)
    assert world.server is None


def test_former_leader_leads_again_when_its_successor_does_not_catch_up() -> None:
    """Who stopped for a handover has all WAL and still the key: it does not give it to a node that misses some."""
    world = leader_with_standbys("n2")
    world.feed(ev.SwitchoverAsked(at_ms=world.now_ms, leader="n1", candidate="n2"))
    world.until_state("replica")
    stopped_ms = world.now_ms
    world.until(is_settled_leader, within_ms=2 * HANDOVER_CATCH_UP_MS)
    assert world.now_ms - stopped_ms <= HANDOVER_CATCH_UP_MS + 500
    assert world.rules[-3:] == ["L2", "R6", "C1"]
    world.until(lambda w: w.view.failover is None, within_ms=5_000)
    assert world.view.state == "leader"


# ---- all of it -------------------------------------------------------------------------------------------------------


def test_standbys_of_a_leader_are_known_when_they_stream() -> None:
    """The stories' own beginning: a leader sees who streams from it."""
    world = leader_with_standbys("n2", "n3")
    probe = world.view.server.probe
    assert probe is not None
    assert probe.standbys == tuple(Standby(application_name=name, state="streaming") for name in ("n2", "n3"))


def test_unreadable_directory_is_replaced_when_an_operator_asks() -> None:
    """A node that is parked over an unreadable directory is what `reinit` is for."""
    world = World(directory=replace(EMPTY, condition="unreadable", detail="no PG_VERSION")).initialized()
    world.lead("n2")
    world.boot()
    world.wait(1_000)
    world.feed(ev.ReinitAsked(at_ms=world.now_ms, by="operator"))
    world.until(is_following)
    assert world.orders(do.Clone)


def test_leader_steps_down_when_its_fence_confirms_no_deadline() -> None:
    """A frozen fence would not end the server: the agent does so itself, while the key is still its own."""
    world = leader_with_standbys("n2")
    world.held.add("arm-fence")  # nobody answers
    world.armed_until_ms = None  # and nobody will end the server
    world.until_state("replica", within_ms=60_000)
    assert world.rules[-1] == "L6"
    assert world.view.now_ms < world.view.leadership_until_ms


def test_leader_steps_down_when_the_watchdog_that_it_must_have_cannot_be_fed() -> None:
    """With `watchdog.mode: required` nothing is promoted without one, and the key goes to somebody else."""
    world = replica_of("n2", watchdog_mode="required", failing={"feed-watchdog": "sql"})
    world.delete("leader")
    world.until(lambda w: "L11" in w.rules)
    world.until(lambda w: "leader" not in w.keys)
    assert world.orders(do.Promote) == []


def test_node_begins_anew_when_its_directory_is_gone_while_rewinding() -> None:
    """An empty directory needs no rewind but a base backup."""
    world = diverged()
    world.failing["rewind"] = "program"
    world.until(lambda w: len(w.orders(do.Rewind)) == 1)
    world.directory = EMPTY
    world.until(is_following)


def test_every_rule_is_fired_when_all_stories_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """No row of the table is without a story that needs it. Stories of known faults count as far as they go."""
    fired: set[str] = set()
    tell = World.feed

    def listen(world: World, event: ev.AnyEvent) -> Decision:
        decision = tell(world, event)
        fired.update([decision.rule] if decision.rule else [])
        return decision

    monkeypatch.setattr(World, "feed", listen)
    for story in (*STORIES, *STORIES_OF_STALLS):
        story()
    assert {rule.id for rule in TABLE} - fired == set()


STORIES = [
    story
    for name, story in globals().items()
    if name.startswith("test_") and story is not test_every_rule_is_fired_when_all_stories_are_told
]
