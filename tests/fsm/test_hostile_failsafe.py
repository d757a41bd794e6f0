"""A leader without etcd, told as somebody who looks for holes would tell it."""

from fsm import status
from tests.fsm.world import leader_with_standbys


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
