"""etcd comes back empty: what its nodes remember of the `sync` and `config` keys, and what they do by that."""

import pytest
from msgspec.structs import replace

from fsm import effects as do
from fsm import events as ev
from fsm.vote import vote_revision
from fsm.wire import SyncKey, parse_sync, sync_text
from tests.fsm.test_sync_stories import ON, QUORUM, report
from tests.fsm.world import MIB, World, is_settled_leader, new_leader, replica_of

KEY = SyncKey(leader="n2", members=("n1", "n3"))
LONG_MS = 120_000


def wiped(config: str = ON, key: SyncKey = KEY) -> tuple[World, int]:
    """A replica n1 of n2, in a cluster whose etcd has just lost everything; and the revision of its last `sync` key."""
    world = replica_of("n2", "n3")
    world.put("config", config)
    world.put("sync", sync_text(key))
    world.wait(1_500)
    revision = world.keys["sync"].mod_revision
    world.wipe_etcd()
    for name in ("n2", "n3"):
        world.join(name)
    return world, revision


def answer(world: World, revision: int, *names: str, **more: object) -> None:
    """These members vote, with as much WAL as the node."""
    for name in names:
        world.reports[name] = replace(report(name, 5 * MIB, instance=f"{name}-1", vote_revision=revision), **more)


def test_replica_does_not_stand_when_the_lost_sync_key_did_not_name_it() -> None:
    """It may lack what was acknowledged, and etcd's loss does not mend that."""
    world, revision = wiped(key=SyncKey(leader="n2", members=("n3",)))
    answer(world, -revision, "n2", "n3")
    world.wait(LONG_MS)
    assert world.orders(do.TakeLeaderKey) == []


@pytest.mark.parametrize("config", [ON, QUORUM])
@pytest.mark.parametrize("voting", [(), ("n2",), ("n3",)])
def test_replica_waits_when_not_everybody_of_the_lost_sync_key_votes(config: str, voting: tuple[str, ...]) -> None:
    """Who is silent may have led since, or have taken this node out of the key."""
    world, revision = wiped(config)
    answer(world, -revision, *voting)
    world.wait(LONG_MS)
    assert world.orders(do.TakeLeaderKey) == []


def test_replica_waits_when_another_of_the_lost_sync_key_is_on_a_later_timeline() -> None:
    """Somebody was promoted since, however short its WAL is."""
    world, revision = wiped()
    answer(world, -revision, "n2", "n3")
    answer(world, -revision, "n2", timeline=2)
    world.wait(LONG_MS)
    assert world.orders(do.TakeLeaderKey) == []


def test_replica_leads_and_writes_the_lost_sync_key_back_when_everybody_of_it_votes() -> None:
    """In the transaction that takes the leader key: so no vote for the lost one counts after that."""
    world, revision = wiped()
    answer(world, -revision, "n2", "n3")
    world.held.add("write-sync")
    world.until_state("leader", within_ms=LONG_MS)
    assert parse_sync(world.keys["sync"].value) == KEY
    asked = world.orders(do.AskPeers)[-1]
    assert isinstance(asked, do.AskPeers)
    assert (asked.voters, asked.sync_revision) == (("n2", "n3"), -revision)
    world.held.clear()
    world.until(is_settled_leader, within_ms=LONG_MS)
    assert parse_sync(world.keys["sync"].value).leader == "n1"


def test_former_leader_waits_for_votes_when_its_sync_key_is_lost() -> None:
    """Another may have led since it last heard of etcd; that it was this node's own key once is no proof."""
    world, revision = wiped(key=SyncKey(leader="n1", members=("n3",)))
    answer(world, -revision, "n2")
    world.wait(LONG_MS)
    assert world.orders(do.TakeLeaderKey) == []
    answer(world, -revision, "n3")
    world.until(is_settled_leader, within_ms=LONG_MS)


def test_named_replica_leads_when_an_operator_asked_for_a_failover_after_the_loss() -> None:
    """Nobody waits for ever for a node that does not come back."""
    world, _ = wiped()
    world.put("failover", '{"member":"n1"}')
    world.until(is_settled_leader, within_ms=LONG_MS)


@pytest.mark.parametrize(("later", "is_given"), [(0, True), (7, True), (-1, False)])
def test_standby_votes_by_a_lost_sync_key_only_when_it_remembers_no_later_one(later: int, is_given: bool) -> None:
    """Who missed the last key stands by an earlier one."""
    world, revision = wiped(key=SyncKey(leader="n2", members=("n3",)))
    wanted = -(revision + later)
    world.feed(ev.VoteAsked(at_ms=world.now_ms, candidate="n3", sync_revision=wanted))
    world.wait(3_000)
    assert (vote_revision(world.view) == wanted) is is_given


def test_standby_takes_a_vote_back_when_there_is_a_sync_key_again() -> None:
    """Whoever wrote it led."""
    world, revision = wiped(key=SyncKey(leader="n2", members=("n3",)))
    world.feed(ev.VoteAsked(at_ms=world.now_ms, candidate="n3", sync_revision=-revision))
    world.wait(3_000)
    world.put("sync", sync_text(SyncKey(leader="n3")))
    assert vote_revision(world.view) == 0


def test_sync_key_is_forgotten_when_the_leader_deletes_it_with_no_mode_on() -> None:
    """No commit waits any more, so everybody may be promoted, whatever etcd loses later."""
    world = replica_of("n2", "n3")
    world.put("config", ON)
    world.put("sync", sync_text(KEY))
    world.put("config", '{"ttl":30}')
    world.delete("sync")
    world.put("config", ON)
    assert world.view.remembered_sync is None


def test_sync_key_is_remembered_when_somebody_deletes_it_by_hand() -> None:
    """Which is etcd's loss of one key."""
    world = replica_of("n2", "n3")
    world.put("config", ON)
    world.put("sync", sync_text(SyncKey(leader="n2", members=("n3",))))
    world.wait(1_500)
    world.delete("sync")
    world.delete("members/n2")
    world.delete("leader")
    world.wait(LONG_MS)
    assert world.orders(do.TakeLeaderKey) == []


def test_configuration_in_force_is_written_back_when_etcd_lost_it() -> None:
    """What some node once began with may have a shorter ttl, or no synchronous mode."""
    world = new_leader(first_config='{"ttl":5}')
    in_force = '{"ttl":20,"synchronous_mode":true}'
    world.put("config", in_force)
    world.wait(3_000)
    world.wipe_etcd()
    assert (world.view.dynamic.ttl_s, world.view.dynamic.synchronous_mode) == (20, "on")
    world.until(is_settled_leader, within_ms=LONG_MS)
    assert world.keys["config"].value == in_force
    assert world.view.dynamic.ttl_s == 20
    (first, *_), last = world.orders(do.WriteConfig), world.orders(do.WriteConfig)[-1]
    assert isinstance(first, do.WriteConfig)
    assert isinstance(last, do.WriteConfig)
    assert (first.is_last_known, last.is_last_known) == (False, True)


def test_node_without_data_makes_no_new_cluster_when_etcd_lost_the_one_that_it_heard_of() -> None:
    """Whoever has the data would find another cluster in etcd, and be of no use any more."""
    world = World().initialized()
    world.boot()
    world.wait(3_000)
    world.wipe_etcd()
    world.wait(LONG_MS)
    assert world.orders(do.ClaimInitialize) == []
    assert world.directory.condition == "empty"


def test_new_node_makes_no_new_cluster_when_a_member_has_data() -> None:
    """Its agent started after etcd's loss; the other's was there before."""
    world = World()
    world.join("n2")
    world.boot()
    world.wait(LONG_MS)
    assert world.orders(do.ClaimInitialize) == []


def test_replica_leads_by_a_lost_sync_key_when_another_that_it_names_has_lost_its_data() -> None:
    """That one waits for a leader to copy, so nobody can wait for its data."""
    world, revision = wiped()
    answer(world, -revision, "n2")
    answer(world, -revision, "n3", role="uninitialized", state="creating replica", position_lsn=0, timeline=0)
    world.until(is_settled_leader, within_ms=LONG_MS)


def test_node_without_data_votes_by_a_lost_sync_key() -> None:
    """It holds nothing that anybody could lack."""
    world = World().initialized()
    world.boot()
    world.join("n2")
    world.wait(3_000)
    world.wipe_etcd()
    world.join("n2")
    world.feed(ev.VoteAsked(at_ms=world.now_ms, candidate="n2", sync_revision=-50))
    assert vote_revision(world.view) == -50
