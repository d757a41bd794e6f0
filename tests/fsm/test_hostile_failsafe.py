"""A leader without etcd, told as somebody who looks for holes would tell it."""

from fsm import effects as do
from fsm import status
from tests.fsm.world import World, leader_with_standbys


def test_leader_whose_key_hangs_on_nothing_asks_the_members_again() -> None:
    """Lease gone, a new one granted and renewed, but the key cannot be taken: the members would still confirm."""
    world = leader_with_standbys("n2", "n3", first_config='{"ttl":30,"failsafe_mode":true}')
    world.until(lambda w: set(w.view.failsafe) == {"n1", "n2", "n3"}, within_ms=20_000)
    world.confirming = {"n2", "n3"}
    world.lose_etcd()
    world.until(lambda w: w.view.failsafe_until_ms > 0, within_ms=30_000)
    world.wait(45_000)
    assert world.view.state == "leader"
    world.failing["retake-leader-key"] = "unavailable"
    world.heal_etcd()
    world.wait(90_000)
    assert world.view.state == "leader", world._story()


def test_leader_who_goes_on_by_the_members_word_tells_so() -> None:
    """etcd was back for a moment and had ended the lease; the members confirm on; clients are to be sent here."""
    world = leader_with_standbys("n2", "n3", first_config='{"ttl":30,"failsafe_mode":true}')
    world.until(lambda w: set(w.view.failsafe) == {"n1", "n2", "n3"}, within_ms=20_000)
    world.confirming = {"n2", "n3"}
    world.lose_etcd()
    world.wait(60_000)
    world.held |= {"retake-leader-key", "grant-lease"}
    world.heal_etcd()
    world.lose_etcd()
    world.held.clear()
    world.wait(60_000)
    assert world.view.state == "leader"
    assert world.server is not None
    assert not world.server.in_recovery
    assert world.view.leader is None
    assert world.now_ms < world.view.writable_until_ms
    assert status.is_writable(world.view, world.now_ms)


def failing_leader() -> World:
    """A leader that goes on by its members' word, whose server is about to end."""
    world = leader_with_standbys("n2", "n3", first_config='{"ttl":30,"failsafe_mode":true}')
    world.until(lambda w: set(w.view.failsafe) == {"n1", "n2", "n3"}, within_ms=20_000)
    world.confirming = {"n2", "n3"}
    world.lose_etcd()
    world.wait(60_000)
    assert world.view.state == "leader"
    return world


def test_server_is_started_as_primary_when_only_the_members_confirm() -> None:
    """Their promises have not ended since it ran: nobody can have been elected, so it is the same reign."""
    world = failing_leader()
    count = len(world.orders(do.StartPrimary))
    world.crash()
    world.until(lambda w: w.server is not None and not w.server.in_recovery, within_ms=10_000)
    started = world.orders(do.StartPrimary)[count]
    assert isinstance(started, do.StartPrimary)
    assert started.armed_until_ms <= world.view.failsafe_until_ms
    assert world.view.state == "leader"


def test_server_is_not_started_as_primary_when_a_member_confirms_no_more() -> None:
    """With the end of the first promise another may lead."""
    world = failing_leader()
    world.failing["start-primary"] = "program"
    world.crash()
    world.confirming = {"n2"}
    world.until(lambda w: w.view.state != "leader", within_ms=60_000)
    world.failing.clear()
    count = len(world.orders(do.StartPrimary))
    world.wait(60_000)
    assert len(world.orders(do.StartPrimary)) == count
    assert world.server is None or world.server.in_recovery
