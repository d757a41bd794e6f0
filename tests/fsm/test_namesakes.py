"""Two agents of one name: the second to come finds out and goes, before it has touched anything."""

from fsm import effects as do
from fsm.facts import PeerReport
from tests.fsm.world import World, is_following, is_settled_leader

ELSEWHERE = "http://10.9.9.9:8008/patroni"


def newcomer(**more: object) -> World:
    """An agent that begins with an empty directory, under the name of a member that leads at another address."""
    world = World(**more).initialized()  # type: ignore[arg-type]  # the fields of World
    world.join("n1", role="primary", api_url=ELSEWHERE)
    world.put("leader", "n1", lease_id=700)
    return world


def test_agent_leaves_when_another_answers_under_its_name() -> None:
    """The leader key names its name, not it: nothing is released, no lease is asked for, no key is written."""
    world = newcomer()
    world.reports["n1"] = PeerReport(name="n1", role="primary", state="running", instance="other")
    revision = world.revision
    world.boot()
    world.until(lambda w: w.exit is not None)
    assert world.exit is not None
    assert (world.exit.status, ELSEWHERE in world.exit.reason) == (1, True)
    assert world.revision == revision
    assert world.orders(do.GrantLease) == world.orders(do.ReleaseLeaderKey) == []


def test_agent_goes_on_when_its_own_address_has_changed() -> None:
    """Nobody answers where it was before; or it answers itself, by another way to the same listener."""
    for instance in (None, ""):
        world = newcomer()
        if instance is not None:
            world.reports["n1"] = PeerReport(name="n1", role="replica", state="stopped", instance=instance)
        world.boot()
        world.until(lambda w: bool(w.orders(do.GrantLease)), within_ms=5_000)


def test_agent_asks_nobody_when_it_comes_back_at_its_own_address() -> None:
    """The key is its own, from before it was restarted."""
    world = World().initialized()
    world.join("n1")
    world.lead("n2")
    world.boot()
    world.until(is_following)
    assert world.orders(do.AskPeers) == []


def test_agent_makes_a_cluster_when_nobody_is_there() -> None:
    """Without a key of its name there is nobody to ask."""
    world = World().boot()
    world.until(is_settled_leader)
    assert world.orders(do.AskPeers) == []
