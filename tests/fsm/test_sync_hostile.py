"""Synchronous modes under a hostile hand: answers that are lost, watches that lag, agents that begin anew half way."""

from msgspec.structs import replace

from fsm import effects as do
from fsm import events as ev
from fsm.sync import is_safe
from fsm.syncnames import parse_names
from fsm.wire import SyncKey, sync_text
from tests.fsm.test_sync_stories import ON, QUORUM, key_of, leader_of, report, streaming, voter
from tests.fsm.world import MIB, World, is_settled_leader, new_leader


def write_unseen(world: World, key: SyncKey) -> None:
    """Somebody writes the `sync` key, and the watch does not tell of it."""
    world.revision += 3
    world.keys["sync"] = replace(world.keys["sync"], value=sync_text(key), mod_revision=world.revision)


def is_safe_now(world: World) -> bool:
    """True when whoever may be promoted by the key in etcd meets whoever acknowledges at the server."""
    assert world.server is not None
    names = parse_names(world.server.sync_names)
    return names is not None and is_safe(key_of(world), names)


def apply_and_lose_the_answer(world: World, duty: str) -> None:
    """etcd applies what a held duty asks for, but neither the answer nor the watch's word arrives."""
    issued = next(p for p in world.pending if p.duty == duty)
    world.pending.remove(issued)
    world.is_etcd_up = False
    world._perform_sync_key(issued.effect)  # type: ignore[arg-type]  # one of the two
    world.feed(ev.EtcdLost(at_ms=world.now_ms, detail="no answer"))
    world.feed(ev.Unknown(at_ms=world.now_ms, effect_id=issued.effect_id, duty=duty, detail="no answer"))


def with_write_under_way() -> World:
    """A leader that is about to take n2 into the key."""
    world = new_leader(first_config=ON)
    world.join("n2")
    world.held.add("write-sync")
    streaming(world, "n2")
    world.wait(6_000)
    assert any(p.duty == "write-sync" for p in world.pending)
    return world


def test_names_stay_when_the_key_may_have_been_written() -> None:
    """The leader does not know that n2 may be promoted by now; n2 is gone, and so is etcd."""
    world = with_write_under_way()
    apply_and_lose_the_answer(world, "write-sync")
    assert key_of(world).members == ("n2",)
    streaming(world)
    world.wait(5_000)
    assert is_safe_now(world)


def test_names_stay_when_the_key_is_being_written() -> None:
    """The same while the answer is still awaited."""
    world = with_write_under_way()
    streaming(world)
    world.wait(1_500)
    assert world.server is not None
    assert world.server.sync_names == "n2"


def test_new_agent_writes_the_key_when_its_predecessor_may_be_writing_it() -> None:
    """A write that is still on its way to etcd must not be applied after commits ceased to wait."""
    world = with_write_under_way()
    late = next(p for p in world.pending if p.duty == "write-sync").effect
    world.held.clear()
    streaming(world)
    world.boot()
    world.wait(10_000)
    assert world.server is not None
    assert world.server.sync_names == ""
    world._perform_sync_key(late)  # type: ignore[arg-type]
    assert is_safe_now(world)


def test_first_names_are_looked_for_when_others_took_their_place_before_they_settled() -> None:
    """The checkpointer that did not read the first names has not read the second either."""
    world = new_leader(first_config=ON)
    world.join("n2")
    world.join("n3")
    world.failing["read-sync-mark"] = "sql"
    streaming(world, "n2")
    world.wait(3_000)
    streaming(world, "n3")
    world.wait(3_000)
    assert world.server is not None
    assert world.server.sync_names == "n3"
    assert world.orders(do.ReadSyncMark)[-1].is_first  # type: ignore[union-attr]


def test_first_names_are_looked_for_when_somebody_had_emptied_them() -> None:
    """The checkpointer may still go by the empty ones."""
    world = leader_of(ON, "n2")
    assert world.server is not None
    world.server.sync_names = ""
    world.wait(5_000)
    assert world.server.sync_names == "n2"
    assert world.orders(do.ReadSyncMark)[-1].is_first  # type: ignore[union-attr]


def test_leader_key_is_not_taken_when_another_led_unseen() -> None:
    """The watch lags: n3 led, named only itself in the `sync` key, and is gone. What it acknowledged is not here."""
    world = voter(ON, SyncKey(leader="n2", members=("n1",)))
    world.held.add("take-leader-key")
    world.delete("leader")
    world.wait(300)
    write_unseen(world, SyncKey(leader="n3"))
    world.held.clear()
    world.wait(1_000)
    assert len(world.orders(do.TakeLeaderKey)) > 1
    assert "leader" not in world.keys


def test_votes_are_asked_for_anew_when_etcd_was_not_heard_of_for_a_while() -> None:
    """Somebody may have led meanwhile: what a voter said before that is no vote."""
    world = voter(QUORUM, SyncKey(leader="n2", members=("n1", "n3"), quorum=1))
    world.reports["n3"] = report("n3", 5 * MIB)
    world.held.add("take-leader-key")
    world.delete("leader")
    world.wait(2_000)
    world.held.clear()
    world.lose_etcd()
    world.wait(500)
    assert world.view.state == "replica"
    del world.reports["n3"]
    write_unseen(world, SyncKey(leader="n4", members=("n1", "n3"), quorum=1))
    world.heal_etcd()
    world.wait(10_000)
    assert world.view.state != "leader"


def test_key_does_not_rest_on_names_when_they_were_released_for_a_moment() -> None:
    """The mode is switched off and on again before the key was deleted: commits waited for nobody meanwhile."""
    world = leader_of(ON, "n2")
    world.failing["delete-sync"] = "unavailable"
    world.put("config", '{"ttl":30}')
    world.wait(20)
    assert world.server is not None
    assert world.server.sync_names == ""
    world.put("config", ON)
    world.wait(30)
    assert is_safe_now(world)


def test_voter_is_not_counted_when_it_still_reads_its_own_disk() -> None:
    """Started anew, it tells how far it has replayed; what it acknowledged before lies beyond that."""
    world = voter(QUORUM, SyncKey(leader="n2", members=("n1", "n3"), quorum=1))
    world.reports["n3"] = report("n3", 5 * MIB, is_replaying=True)
    world.delete("leader")
    world.wait(20_000)
    assert world.orders(do.TakeLeaderKey) == []
    world.reports["n3"] = report("n3", 6 * MIB)
    world.until(is_settled_leader, within_ms=5_000)
