"""Faults that the stories and properties found in the decisions, each mended and kept from coming back."""

from msgspec.structs import replace

from fsm import effects as do
from fsm import events as ev
from tests.fsm.test_scenarios import diverged, running_primary
from tests.fsm.world import EMPTY, HALF_REWOUND, MIB, STANDBY, Postgres, World, forked, is_following, replica_of


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
