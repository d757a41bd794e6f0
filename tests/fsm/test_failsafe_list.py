"""The `failsafe` key: a leader without etcd asks everybody who could be elected, or does not go on."""

from fsm import effects as do
from fsm import events as ev
from fsm.guards import is_able_to_stand
from fsm.publish import failsafe_addresses, is_failsafe_possible
from tests.fsm.world import World, leader_with_standbys, replica_of

OFF = '{"ttl":30,"failsafe_mode":false}'
ON = '{"ttl":30,"failsafe_mode":true}'


def listed(world: World) -> set[str]:
    """Who is in the key, as the node knows it."""
    return set(world.view.failsafe)


def settled_leader() -> World:
    """A leader whose list is written."""
    world = leader_with_standbys("n2", "n3")
    world.until(lambda w: listed(w) == {"n1", "n2", "n3"} and not w.view.failsafe_in_doubt)
    world.confirming = {"n2", "n3"}
    return world


def lose_the_answer(world: World, duty: str) -> None:
    """Nobody hears how an effect ended."""
    issued = next(p for p in world.pending if p.duty == duty)
    world.pending.remove(issued)
    world.feed(ev.Unknown(at_ms=world.now_ms, effect_id=issued.effect_id, duty=duty, detail="no answer"))


def test_leader_without_etcd_does_not_go_on_when_no_list_is_known() -> None:
    """While nobody is listed everybody may stand, so nobody knows who must confirm."""
    world = settled_leader()
    world.failing["publish-failsafe"] = "unavailable"
    world.delete("failsafe")
    world.lose_etcd()
    world.until_state("replica")
    assert world.rules[-1] == "L4"
    assert world.orders(do.AskFailsafe) == []


def test_leader_without_etcd_asks_whom_an_unanswered_write_may_have_listed() -> None:
    """A member that was to be listed may be by now, and may be elected once it is back."""
    world = settled_leader()
    world.held.add("publish-failsafe")
    world.join("n4")
    world.until(lambda w: "publish-failsafe" in w.view.underway)
    world.delete("members/n4")
    lose_the_answer(world, "publish-failsafe")
    world.lose_etcd()
    assert set(failsafe_addresses(world.view)) == {"n2", "n3", "n4"}
    world.until_state("replica")
    assert world.rules[-1] == "L4"


def test_list_is_written_again_when_it_is_not_certain_what_it_says() -> None:
    """The doubt ends with a write that was applied, for it comes only over the list that was seen."""
    world = settled_leader()
    world.held.add("publish-failsafe")
    world.join("n4")
    world.until(lambda w: "publish-failsafe" in w.view.underway)
    world.delete("members/n4")
    lose_the_answer(world, "publish-failsafe")
    world.held.clear()
    world.until(lambda w: not w.view.failsafe_in_doubt, within_ms=10_000)
    assert listed(world) == {"n1", "n2", "n3"}
    order = [o for o in world.orders(do.PublishAsLeader) if isinstance(o, do.PublishAsLeader) and o.key == "failsafe"]
    assert all(o.seen_revision is not None for o in order)


def test_list_is_refused_when_the_key_is_not_the_one_that_was_seen() -> None:
    """What was written meanwhile is heard, and the list is written over that."""
    world = settled_leader()
    world.held.add("publish-failsafe")
    world.join("n4")
    world.until(lambda w: "publish-failsafe" in w.view.underway)
    world.is_etcd_up = False  # the watch is slow
    world.put("failsafe", '{"n9":"http://n9:8008/patroni"}')
    world.is_etcd_up = True
    world.held.clear()
    world.until(lambda w: listed(w) == {"n1", "n2", "n3", "n4"}, within_ms=10_000)
    assert not world.view.failsafe_in_doubt


def test_list_is_emptied_when_the_mode_is_turned_off_and_written_when_it_is_on_again() -> None:
    """Who may stand is never decided by a mode that the leader has not heard of: the list says it."""
    world = settled_leader()
    world.put("config", OFF)
    world.until(lambda w: w.keys["failsafe"].value == "{}", within_ms=5_000)
    assert not is_failsafe_possible(world.view)
    world.put("config", ON)
    world.until(lambda w: listed(w) == {"n1", "n2", "n3"}, within_ms=5_000)
    world.until(lambda w: is_failsafe_possible(w.view), within_ms=5_000)


def test_unlisted_node_does_not_stand_when_the_mode_is_off_but_the_list_is_not_emptied() -> None:
    """The leader may go on without etcd by the mode that it knew, and would not ask this node."""
    world = replica_of("n2", "n3", first_config=OFF)
    world.put("failsafe", '{"n2":"http://n2:8008/patroni","n3":"http://n3:8008/patroni"}')
    assert not is_able_to_stand(world.view)
    world.put("failsafe", "{}")
    assert is_able_to_stand(world.view)


def test_answers_count_for_nothing_when_the_mode_was_turned_off_meanwhile() -> None:
    """Members that heard of it confirm nobody any more."""
    world = settled_leader()
    world.held.add("ask-failsafe")
    world.failing["renew-lease"] = "unavailable"
    world.until(lambda w: "ask-failsafe" in w.view.underway)
    world.put("config", OFF)
    world.held.clear()
    world.wait(1_000)
    assert world.view.failsafe_until_ms == 0
