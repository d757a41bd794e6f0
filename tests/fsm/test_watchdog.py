"""The kernel's watchdog: who needs one, with which timeout, and what follows where there is none. No I/O."""

import pytest
from msgspec.structs import replace

from fsm import effects as do
from fsm import events as ev
from fsm import watchdog
from fsm.dynamic import Dynamic
from fsm.status import standing_at, status_fields
from fsm.timing import WATCHDOG_ROOM_MS, fence_margin_ms
from fsm.view import View
from tests.fsm.world import World, leader_with_standbys, new_leader, replica_of
from tests.views import identity


def view_of(ttl_s: int, margin_s: int = 5, mode: str = "required") -> View:
    """A node with such settings."""
    found = replace(identity("n1"), watchdog_mode=mode, watchdog_safety_margin_s=margin_s, has_watchdog=True)
    return View(identity=found, dynamic=Dynamic(ttl_s=ttl_s))


@pytest.mark.parametrize(
    ("ttl_s", "margin_s", "timeout_s"),
    [(30, 5, 25), (30, -1, 15), (30, 0, 26), (30, 28, 0), (20, 5, 15), (10, 5, 5), (8, 5, 3), (7, 5, 0), (7, -1, 3),
     (3, -1, 0)],
)  # fmt: skip
def test_timeout_follows_patronis_settings_when_the_ttl_leaves_room(ttl_s: int, margin_s: int, timeout_s: int) -> None:
    """Ttl less the margin, half of it for -1, never so long that nothing could be fed, 0 where nothing would do."""
    assert watchdog.timeout_s(view_of(ttl_s, margin_s)) == timeout_s


@pytest.mark.parametrize("ttl_s", range(3, 301))
def test_reset_comes_within_the_lease_when_the_device_is_fed_as_long_as_it_may_be(ttl_s: int) -> None:
    """The fence feeds while `now + timeout <= deadline + slack`: that is before the lease's end, and after the fence
    has had its time; and after a renewal there is time to feed at all."""
    view = view_of(ttl_s)
    deadline_ms, lease_ends_ms = ttl_s * 1000 - fence_margin_ms(ttl_s), ttl_s * 1000
    assert deadline_ms + 150 < deadline_ms + watchdog.slack_ms(view) < lease_ends_ms
    if watchdog.timeout_s(view):
        last_feed_ms = deadline_ms + watchdog.slack_ms(view) - watchdog.timeout_s(view) * 1000
        assert last_feed_ms >= WATCHDOG_ROOM_MS


def test_watchdog_is_fed_before_the_promotion_when_one_is_required() -> None:
    """First the device, then a server that accepts writes."""
    world = replica_of("n2", watchdog_mode="required")
    begun = len(world.issued)
    world.delete("leader")
    world.until(lambda w: bool(w.orders(do.Promote)))
    kinds = [type(issued.effect) for issued in world.issued[begun:]]
    assert kinds.index(do.FeedWatchdog) < kinds.index(do.Promote)
    assert world.watchdog_s == 25


def test_promotion_waits_when_the_required_watchdog_has_not_answered() -> None:
    """Unknown is not yes."""
    world = replica_of("n2", watchdog_mode="required", held={"feed-watchdog"})
    world.delete("leader")
    world.until_state("leader")
    world.wait(500)
    assert world.orders(do.Promote) == []


def test_node_leads_without_when_the_watchdog_is_automatic_and_fails() -> None:
    """Patroni warns and goes on; here the fence guards it."""
    world = replica_of("n2", watchdog_mode="automatic", has_watchdog=True, failing={"feed-watchdog": "sql"})
    world.delete("leader")
    world.until(lambda w: bool(w.orders(do.Promote)))
    world.wait(5_000)
    assert world.view.state == "leader"


def test_nothing_is_asked_when_the_watchdog_is_automatic_and_there_is_none() -> None:
    """Most machines: no attempt, no message, no time lost."""
    world = leader_with_standbys("n2", watchdog_mode="automatic")
    assert world.orders(do.FeedWatchdog) == []
    assert "watchdog" not in status_fields(world.view, standing_at(world.view, world.now_ms))["matriarch"]


def test_node_leaves_the_election_to_others_when_it_was_found_without_its_watchdog() -> None:
    """For a minute; and it tells the others, who do not wait for it."""
    world = replica_of("n2", watchdog_mode="required", failing={"feed-watchdog": "sql"})
    world.delete("leader")
    world.until(lambda w: "L11" in w.rules)
    world.until(lambda w: w.view.state == "replica" and "leader" not in w.keys and w.server is not None)
    fields = status_fields(world.view, standing_at(world.view, world.now_ms))
    assert fields["watchdog_failed"] is True
    tried = world.view.attempts["feed-watchdog"]
    world.failing.clear()
    world.until_state("leader", within_ms=120_000)
    assert world.view.now_ms >= tried.failed_at_ms + 60_000


def test_timeout_is_changed_when_the_ttl_is() -> None:
    """A shorter lease needs an earlier reset."""
    world = new_leader(watchdog_mode="required")
    world.until(lambda w: w.watchdog_s == 25)
    world.put("config", '{"ttl":20}')
    world.until(lambda w: w.watchdog_s == 15)
    assert world.view.state == "leader"


def test_watchdog_is_off_when_the_cluster_is_paused() -> None:
    """Nobody leads by a lease then. Source: Patroni."""
    world = new_leader(watchdog_mode="required")
    world.until(lambda w: w.watchdog_s == 25)
    world.put("config", '{"ttl":30,"pause":true}')
    world.until(lambda w: w.watchdog_s is None)
    assert world.view.state == "leader"


def test_watchdog_is_fed_on_when_the_agent_is_restarted() -> None:
    """The fence has it; the next agent finds it fed and asks for nothing."""
    world = new_leader(watchdog_mode="required")
    world.until(lambda w: w.watchdog_s == 25)
    begun = len(world.issued)
    world.boot().until_state("leader")
    world.wait(15_000)
    assert not [issued for issued in world.issued[begun:] if isinstance(issued.effect, do.FeedWatchdog)]
    assert world.view.watchdog.timeout_s == 25


def test_device_is_switched_off_when_the_fence_that_fed_it_died() -> None:
    """It would reset a machine on which no primary runs."""
    world = new_leader(watchdog_mode="required")
    world.until(lambda w: w.watchdog_s == 25)
    world.server = world.armed_until_ms = world.watchdog_s = None
    world.failing["start-primary"] = "program"
    world.feed(ev.FenceLost(at_ms=world.now_ms, detail="killed"))
    assert world.view.watchdog.is_left_running
    world.connect_fence()
    world.until(lambda w: not w.view.watchdog.is_left_running)


def test_feeding_begins_again_when_a_confirmation_says_that_it_ended() -> None:
    """A device that failed under the fence."""
    world = new_leader(watchdog_mode="required")
    world.until(lambda w: w.watchdog_s == 25)
    fed = len(world.orders(do.FeedWatchdog))
    world.watchdog_s = None
    world.until(lambda w: len(w.orders(do.FeedWatchdog)) > fed)
    world.until(lambda w: w.watchdog_s == 25)


def test_server_is_stopped_in_order_when_a_leader_loses_its_required_watchdog() -> None:
    """The lease is in force, so nothing needs to be cut off."""
    world = leader_with_standbys("n2", watchdog_mode="required")
    world.until(lambda w: w.watchdog_s == 25)
    world.failing["feed-watchdog"] = "sql"
    world.watchdog_s = None
    world.until_state("replica")
    assert world.rules[-1] == "L11"
    assert [order.mode for order in world.orders(do.FenceServer) if isinstance(order, do.FenceServer)] == ["fast"]


def test_status_tells_the_watchdog_when_it_is_fed() -> None:
    """Mode and timeout; after a failure why not."""
    world = new_leader(watchdog_mode="automatic", has_watchdog=True)
    world.until(lambda w: w.watchdog_s == 25)
    assert watchdog.watchdog_fields(world.view) == {"mode": "automatic", "timeout_s": 25}
    lost: World = new_leader(watchdog_mode="automatic", has_watchdog=True, failing={"feed-watchdog": "sql"})
    assert watchdog.watchdog_fields(lost.view) == {"mode": "automatic", "failure": "the story: sql"}
