"""Faults that the stories and properties found in the decisions, each mended and kept from coming back."""

import pytest
from msgspec.structs import replace

from fsm import effects as do
from fsm import events as ev
from fsm.election import has_received_nothing
from fsm.facts import KeyChange, PeerReport
from fsm.timing import (
    CRASH_FORGIVEN_AFTER_MS,
    DOUBTFUL_STARTS_MAX,
    PEER_ANSWER_TIMEOUT_MS,
    PROBE_SOON_MS,
    STANDBY_PAUSE_FIRST_MS,
    STANDBY_PAUSE_MOST_MS,
    STARTING_MEMBER_WAIT_MS,
)
from fsm.view import Server, View
from tests.fsm.test_scenarios import diverged, running_primary
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


def test_rewind_is_tried_again_when_an_earlier_divergence_ended_in_a_base_backup() -> None:
    """What failed for one divergence says nothing about the next."""
    world = diverged()
    world.failing["rewind"] = "program"
    world.until(is_following)
    world.failing.clear()
    tried = len(world.orders(do.Rewind))
    assert world.server is not None
    world.server.lsn = 60 * MIB
    world.wait(1_500)
    world.history = forked(3, 5 * MIB)
    world.lead("n3", timeline=3)
    world.wait(120_000)
    assert len(world.orders(do.Rewind)) > tried


def test_half_rewound_directory_is_replaced_when_rewind_is_impossible() -> None:
    """A directory that pg_rewind left half done and may not be rewound must not wait for ever in silence."""
    world = World(directory=replace(HALF_REWOUND, data_checksums=False), history=forked(2, 5 * MIB)).initialized()
    world.lead("n2", timeline=2)
    world.boot()
    world.until(is_following)
    assert world.orders(do.Clone)


def test_adopted_primary_has_a_deadline_when_etcd_is_lost_before_the_key_is_taken() -> None:
    """A primary that was taken up without a deadline must not run on for ever where another may be elected."""
    world = running_primary()
    world.held.add("take-leader-key")
    world.boot()
    world.until_state("candidate")
    world.lose_etcd()
    world.wait(60_000)
    assert world.server is None or world.armed_until_ms is not None


def test_running_standby_is_left_alone_when_its_data_belong_to_another_cluster() -> None:
    """Nothing of another cluster is touched."""
    world = World(directory=STANDBY)
    world.put("initialize", "42")
    world.lead("n2")
    world.server = Postgres(pid=9, in_recovery=True, timeline=1, lsn=9 * MIB)
    world.boot()
    world.wait(5_000)
    assert world.orders(do.Follow) == []


def test_node_looks_again_when_a_start_fails_because_the_directory_was_wiped() -> None:
    """What was known of the directory may be why the start failed."""
    world = World(directory=STANDBY).initialized()
    world.lead("n2")
    world.held.add("start-standby")
    world.boot()
    world.wait(2_000)
    world.directory = EMPTY
    world.held.clear()
    world.wait(120_000)
    assert is_following(world)


def test_leader_gives_up_when_its_fence_cannot_be_armed() -> None:
    """A leader that can never promote must not keep the key from those who can."""
    world = replica_of("n2", first_config='{"primary_start_timeout":20}')
    world.failing["arm-fence"] = "fence"
    world.delete("members/n2")
    world.delete("leader")
    world.until(lambda w: "C1" in w.rules)
    world.wait(60_000)
    assert "L3" in world.rules


def test_standby_is_started_again_when_it_ended_before_its_start_was_answered() -> None:
    """Notices of the fence and answers of the lane come in any order."""
    world = World(directory=STANDBY).initialized()
    world.lead("n2")
    world.held.add("start-standby")
    world.boot()
    world.wait(2_000)
    start = next(issued for issued in world.pending if issued.duty == "start-standby")
    world.pending.remove(start)
    world.feed(ev.ServerSpawned(at_ms=world.now_ms, pid=55))
    world.feed(ev.ServerExited(at_ms=world.now_ms, pid=55, status=1))
    answer = ev.ServerStarted(pid=55)
    world.feed(ev.Succeeded(at_ms=world.now_ms, effect_id=start.effect_id, duty=start.duty, result=answer))
    world.held.clear()
    world.wait(120_000)
    assert is_following(world)


def test_base_backup_is_started_when_the_leader_changed_meanwhile() -> None:
    """A base backup can follow the new leader: it never was a primary of its own."""
    world = replica_of()
    world.feed(ev.ReinitAsked(at_ms=world.now_ms, by="operator"))
    world.held.add("start-standby")
    world.until(lambda w: "clone" in w.view.achieved)
    world.history = forked(2, 200 * MIB)
    world.lead("n3", timeline=2)
    world.held.clear()
    world.until(is_following)


def test_leader_without_etcd_asks_a_listed_member_whose_key_has_run_out() -> None:
    """Who is listed may be elected as soon as it is back, so its silence is no consent."""
    world = leader_with_standbys("n2", "n3")
    world.until(lambda w: set(w.view.failsafe) == {"n1", "n2", "n3"})
    world.failing["publish-failsafe"] = "unavailable"
    world.delete("members/n3")
    world.confirming = {"n2"}
    world.lose_etcd()
    world.until_state("replica")
    assert world.rules[-1] == "L4"


def test_node_does_not_stand_when_it_is_not_listed_for_failsafe() -> None:
    """A leader that goes on without etcd would not ask this node."""
    world = replica_of("n2", "n3")
    world.put("failsafe", '{"n2":"http://n2:8008/patroni","n3":"http://n3:8008/patroni"}')
    world.delete("members/n2")
    world.delete("leader")
    world.wait(120_000)
    assert "R1" not in world.rules


def test_promise_lasts_as_long_as_the_leader_counts_on_when_this_node_knows_a_shorter_ttl() -> None:
    """The leader that asks may not have heard of the new ttl."""
    world = replica_of("n2", first_config='{"ttl":5}')
    world.feed(ev.FailsafeAsked(at_ms=world.now_ms, leader="n2", ttl_s=20))
    assert world.view.promising is not None
    assert world.view.promising.until_ms == world.now_ms + 20_000


def test_node_promises_nothing_when_a_stranger_asks() -> None:
    """Only a member can be a leader that may go on."""
    world = replica_of("n2")
    world.feed(ev.FailsafeAsked(at_ms=world.now_ms, leader="stranger"))
    world.wait(1_000)
    assert (world.view.promise, world.view.promising) == (None, None)


def test_keys_are_forgotten_when_etcd_comes_back_with_an_older_history() -> None:
    """A wiped or restored etcd counts its revisions anew; what it said before is worth nothing."""
    world = replica_of("n2")
    before = world.view.etcd.revision
    change = KeyChange(key="leader", value="n3", mod_revision=2)
    world.feed(ev.ClusterRead(at_ms=world.now_ms, revision=3, keys=(change,)))
    assert before > 3
    assert world.view.leader == "n3"
    assert world.view.initialize is None
    assert world.view.members == {}


def test_former_primary_is_cloned_when_it_wrote_the_leaders_timeline() -> None:
    """Two servers that each began timeline 2 share its number and nothing else; pg_rewind would see no difference."""
    directory = replace(STANDBY, control_state="shut down", timeline=2)
    world = World(directory=directory, history=forked(2, 5 * MIB)).initialized()
    world.lead("n2", timeline=2)
    world.boot()
    world.until(is_following)
    assert not world.orders(do.Rewind)
    assert world.orders(do.Clone)


def test_lease_is_not_mixed_up_when_a_renewal_of_the_former_one_comes_late() -> None:
    """While the key is moved to a new lease, a late renewal belongs to the old one."""
    world = leader_with_standbys("n2")
    former = world.view.lease
    assert former is not None
    world.held.add("retake-leader-key")
    world.put("config", '{"ttl":10}')
    world.until(lambda w: w.view.lease is not None and w.view.lease.lease_id != former.lease_id)
    present = world.view.lease
    late = ev.LeaseHeld(lease_id=former.lease_id, ttl_s=former.ttl_s, sent_at_ms=world.now_ms)
    world.feed(ev.Succeeded(at_ms=world.now_ms, effect_id=1, duty="renew-lease", result=late))
    assert world.view.lease == present
    assert world.view.former_lease is not None
    assert world.view.former_lease.sent_at_ms == late.sent_at_ms
    assert world.view.state == "leader"


def test_node_may_stand_when_another_claims_the_cluster_whose_data_it_has() -> None:
    """After etcd was wiped whoever claims first need not be the one with the most WAL."""
    world = replica_of("n2", "n3")
    world.put("initialize", "")
    world.delete("leader")
    world.until(lambda w: "C1" in w.rules)


def test_rewind_is_tried_on_when_its_source_does_not_answer() -> None:
    """A source that cannot be reached says nothing about the data here: they are not replaced for that."""
    world = diverged()
    world.failing["rewind"] = "sql"
    world.wait(120_000)
    assert world.view.state == "rewinding"
    assert not world.orders(do.ClearDataDirectory)


def test_leader_writes_initialize_again_when_somebody_deleted_it() -> None:
    """Without that key nobody can be cloned and no former primary is started."""
    world = leader_with_standbys("n2")
    world.delete("initialize")
    world.wait(60_000)
    assert "initialize" in world.keys
    assert world.keys["initialize"].value == SYSTEM_ID


def test_leader_writes_initialize_again_when_it_holds_no_system_identifier() -> None:
    """What is no system identifier belongs to no cluster, so the leader's own takes its place."""
    world = leader_with_standbys("n2")
    world.put("initialize", "wrong")
    world.wait(60_000)
    assert world.keys["initialize"].value == SYSTEM_ID


def test_leader_leaves_initialize_alone_when_it_names_another_cluster() -> None:
    """An identity is never written over by another one: a person must look."""
    world = leader_with_standbys("n2")
    world.put("initialize", "7300000000000000042")
    world.wait(60_000)
    assert world.keys["initialize"].value == "7300000000000000042"


def test_leader_writes_initialize_when_its_claim_ran_out_while_failsafe_held() -> None:
    """A maker that lost etcd between the first start and the first write still owes the cluster its identity."""
    world = World()
    world.held.add("write-initialize")
    world.boot()
    world.until(lambda w: "C1" in w.rules)
    world.lose_etcd()
    world.wait(60_000)
    world.held.clear()
    world.heal_etcd()
    world.until(is_settled_leader)


def test_standby_is_started_again_when_initialize_was_deleted() -> None:
    """A deleted key must not take down the replicas one crash at a time."""
    world = replica_of("n2")
    world.delete("initialize")
    world.crash()
    world.until(is_following, within_ms=60_000)


def test_node_makes_no_cluster_when_it_promised_a_leader_to_let_it_go_on() -> None:
    """A leader without etcd may lose its claim and its key; whoever confirmed it must not begin another cluster."""
    world = World()
    world.put("initialize", "", lease_id=900)
    world.join("n2", "primary")
    world.put("leader", "n2", lease_id=900)
    world.boot()
    world.wait(2_000)
    world.feed(ev.FailsafeAsked(at_ms=world.now_ms, leader="n2", ttl_s=30))
    world.delete("initialize")
    world.delete("leader")
    world.wait(20_000)
    assert world.orders(do.ClaimInitialize) == []


def test_standby_is_started_after_growing_pauses_when_it_keeps_ending() -> None:
    """A start that succeeds is no success when the server ends right after it."""
    world = replica_of("n2")
    ends_ms = []
    for _ in range(10):
        world.crash()
        ends_ms.append(world.now_ms)
        world.until(lambda w: w.server is not None)
        ends_ms[-1] = world.now_ms - ends_ms[-1]
    assert ends_ms == sorted(ends_ms)
    assert ends_ms[0] < STANDBY_PAUSE_FIRST_MS <= ends_ms[1]
    assert ends_ms[-1] >= STANDBY_PAUSE_MOST_MS


def test_standby_is_started_at_once_when_it_had_served_for_a_while_before_it_ended() -> None:
    """Crashes that lie far apart are not one crash loop."""
    world = replica_of("n2")
    for _ in range(5):
        world.wait(CRASH_FORGIVEN_AFTER_MS + 1_000)
        world.crash()
        crashed_ms = world.now_ms
        world.until(lambda w: w.server is not None)
        assert world.now_ms - crashed_ms < STANDBY_PAUSE_FIRST_MS


def restarted_with(state: str) -> World:
    """A replica after a restart of everything, and another member whose server does not tell a position yet."""
    world = World(directory=STANDBY).initialized()
    world.join("n2", state=state)
    world.reports["n2"] = PeerReport(name="n2", role="uninitialized", state=state)
    return world.boot()


@pytest.mark.parametrize("state", ["starting", "stopped"])
def test_replica_leaves_the_lead_to_a_member_that_is_starting_when_that_one_has_more_wal(state: str) -> None:
    """After a restart of everything the former leader, in crash recovery, comes up last and has the newest rows."""
    world = restarted_with(state)
    world.until_state("candidate")
    world.wait(STARTING_MEMBER_WAIT_MS - 1_000)
    assert "C1" not in world.rules
    world.reports["n2"] = PeerReport(name="n2", role="replica", state="running", position_lsn=11 * MIB, timeline=1)
    world.until(lambda w: "C3" in w.rules)
    world.lead("n2")
    world.wait(20_000)
    assert "C1" not in world.rules


def test_replica_leads_when_a_member_is_starting_for_too_long() -> None:
    """A server that never comes up must not keep the cluster without a leader."""
    world = restarted_with("starting")
    world.until_state("leader", within_ms=STARTING_MEMBER_WAIT_MS + 5_000)


def test_replica_waits_for_a_listed_member_when_everything_was_restarted_and_that_one_is_silent() -> None:
    """Its agent may be up a moment later, and its key at etcd has run out by then; for ever it is not waited for."""
    world = World(directory=STANDBY).initialized()
    world.put("failsafe", '{"n1":"http://n1:8008/patroni","n2":"http://n2:8008/patroni"}')
    world.boot()
    world.until_state("candidate")
    world.wait(STARTING_MEMBER_WAIT_MS - 1_000)
    assert "C1" not in world.rules
    world.until_state("leader", within_ms=5_000)


@pytest.mark.parametrize(("received_lsn", "has_nothing"), [(0, True), (9 * MIB, True), (10 * MIB, False)])
def test_standby_has_received_nothing_when_its_receiver_only_tried_to_connect(
    received_lsn: int, has_nothing: bool
) -> None:
    """The receiver then says the start of a segment, which is less than what was replayed from the own disk."""
    probe = Postgres(pid=9, in_recovery=True, timeline=1, lsn=10 * MIB).probe()
    view = View(server=Server(process="running", probe=replace(probe, received_lsn=received_lsn)))
    assert has_received_nothing(view) == has_nothing


def test_replica_leads_at_once_when_it_streamed_until_the_leader_went() -> None:
    """A failover does not wait for a member that happens to start: who streamed to the end has all there was."""
    world = replica_of("n2", "n3")
    world.reports["n3"] = PeerReport(name="n3", role="uninitialized", state="starting")
    world.delete("members/n2")
    world.delete("leader")
    world.until_state("leader", within_ms=PEER_ANSWER_TIMEOUT_MS)


def crashed_leader(lsn: int, first_config: str) -> World:
    """A former leader that crashed with WAL up to a position; another leads since 20 MiB."""
    directory = replace(CLUSTER, control_state="in production", checkpoint_lsn=10 * MIB)
    world = World(directory=directory, history=forked(2, 20 * MIB), first_config=first_config).initialized()
    world.recovered_lsn = lsn
    world.lead("n2", timeline=2)
    return world.boot()


def test_crashed_leader_follows_when_it_has_no_more_wal_and_rewind_is_off() -> None:
    """Its recovery as a standby shows that it has nothing of its own: no base backup is taken."""
    world = crashed_leader(20 * MIB, '{"postgresql":{"use_pg_rewind":false}}')
    world.until(is_following)
    world.wait(10_000)
    assert world.orders(do.Clone) == world.orders(do.Rewind) == []


def test_crashed_leader_is_cloned_when_its_recovery_shows_more_wal_and_rewind_is_off() -> None:
    """What it has beyond the fork shows once it is recovered."""
    world = crashed_leader(21 * MIB, '{"postgresql":{"use_pg_rewind":false}}')
    world.until(lambda w: bool(w.orders(do.Clone)) and is_following(w))
    assert world.rules[:2] == ["B1", "R5"]


def test_crashed_leader_follows_when_it_has_no_more_wal_and_rewind_is_on() -> None:
    """Neither is run where there is nothing to rewind."""
    world = crashed_leader(20 * MIB, "{}")
    world.until(is_following)
    world.wait(10_000)
    assert world.orders(do.Clone) == world.orders(do.Rewind) == []


def test_crashed_leader_is_rewound_when_its_recovery_shows_more_wal() -> None:
    """What it has beyond the fork shows once it is recovered, and pg_rewind takes it away."""
    world = crashed_leader(21 * MIB, "{}")
    world.until(lambda w: bool(w.orders(do.Rewind)) and is_following(w))
    assert world.rules == ["B1", "R2", "W1"]


def test_crashed_leader_is_rewound_when_it_does_not_start() -> None:
    """A server that ends while it recovers cannot tell whether it diverged; pg_rewind, or a base backup, can help."""
    world = crashed_leader(20 * MIB, "{}")
    for _ in range(DOUBTFUL_STARTS_MAX):
        world.until(lambda w: w.server is not None)
        world.crash()
        world.directory = replace(CLUSTER, control_state="in crash recovery", checkpoint_lsn=10 * MIB)
    world.until(lambda w: bool(w.orders(do.Rewind)) and is_following(w))


def test_replica_leads_in_time_when_it_stands_again_and_again_before_that() -> None:
    """Members that start are waited for once, not anew in each candidacy: a rival that comes and goes costs no more."""
    world = restarted_with("starting")
    world.until_state("candidate")
    began_ms = world.now_ms
    while world.now_ms < began_ms + STARTING_MEMBER_WAIT_MS:
        world.reports["n2"] = PeerReport(name="n2", role="replica", state="running", position_lsn=90 * MIB, timeline=1)
        world.until_state("replica")
        world.reports["n2"] = PeerReport(name="n2", role="uninitialized", state="starting")
        world.until_state("candidate")
        world.wait(500)
    world.until_state("leader", within_ms=2_000)


def test_synchronous_standby_does_not_wait_for_members_that_start_when_the_key_names_it() -> None:
    """It holds every acknowledged commit, whatever the others will say."""
    world = restarted_with("starting")
    world.put("config", '{"ttl":30,"synchronous_mode":true}')
    world.put("sync", '{"leader":"n2","quorum":0,"sync_standby":"n1"}')
    world.until_state("leader", within_ms=STARTING_MEMBER_WAIT_MS // 2)


def test_server_is_looked_at_calmly_when_its_promotion_fails_and_leases_do_not_last() -> None:
    """Each new term would look every 15 ms anew, for a promotion that is not even ordered at the time."""
    world = new_leader()
    world.put("config", '{"ttl":3}')
    world.failing |= {"promote": "sql", "renew-lease": "lease_gone"}
    world.until(lambda w: w.rules.count("L4") == 3)
    before = len(world.decisions)
    world.wait(10_000)
    assert world.rules.count("L4") > 3
    looks = [event for event, _ in world.decisions[before:] if isinstance(event, ev.ServerProbed)]
    assert len(looks) < 10_000 / PROBE_SOON_MS * 1.5
