"""What a node knows and tells of its fence: deadlines confirmed, servers killed, and what was left of the lease."""

import pytest
from msgspec.structs import replace

from fsm import effects as do
from fsm import events as ev
from fsm.facts import FenceKill
from fsm.fencing import fence_fields, fence_metrics
from fsm.timing import fence_margin_ms
from tests.fsm.world import World, leader_with_standbys, new_leader


def kill_of(world: World) -> FenceKill:
    """What the fence would say that it did at the present deadline, in 80 ms."""
    armed_ms = world.view.fence.armed_until_ms
    assert armed_ms is not None
    return FenceKill(armed_until_ms=armed_ms, at_ms=armed_ms + 1, gone_at_ms=armed_ms + 81, processes=9, killed=2)


def test_kill_is_told_with_its_margin_when_the_fence_fired() -> None:
    """The lease outlives the deadline by the margin; 81 ms of it were used."""
    world = leader_with_standbys("n2")
    kill, pid = kill_of(world), world.view.server.pid
    assert pid is not None
    world.feed(ev.ServerExited(at_ms=kill.gone_at_ms + 5, pid=pid, fired=True, kill=kill, exited_at_ms=kill.at_ms + 40))
    assert fence_fields(world.view)["last_kill"] == {
        "reason": "deadline", "at_ms": kill.at_ms, "took_ms": 80, "margin_ms": fence_margin_ms(30) - 81,
        "processes": 9, "killed": 2,
    }  # fmt: skip
    assert fence_fields(world.view)["armed_until_ms"] is None


def test_kill_while_no_agent_ran_is_known_when_the_next_agent_meets_the_fence() -> None:
    """It is counted once, however often the connection is made anew."""
    world = new_leader()
    kill = kill_of(world)
    world.start_agent()
    for _ in range(2):
        world.feed(ev.FenceConnected(at_ms=kill.gone_at_ms + 500, kill=kill))
    fence = world.view.fence
    assert fence.last_kill is not None
    assert (fence.kills, fence.last_kill.reason) == (1, "deadline")


def test_rule_is_the_reason_when_the_agent_ordered_the_kill() -> None:
    """A leader whose key is gone."""
    world = leader_with_standbys("n2")
    world.delete("leader")
    world.until_state("replica")
    world.until(lambda world: world.view.server.process == "absent")
    kill = world.view.fence.last_kill
    assert kill is not None
    assert (kill.reason, kill.margin_ms is not None) == ("L1", True)


def test_nothing_is_killed_when_a_server_is_stopped_in_order() -> None:
    """A fast shutdown that came to its end is no kill, though the fence's lane did it."""
    world = leader_with_standbys("n2", held={"fence-stray"})
    world.stop_asked()
    pid = world.view.server.pid
    assert pid is not None
    world.feed(ev.ServerExited(at_ms=world.now_ms, pid=pid, status=0))
    assert world.view.fence.kills == 0


def test_confirmations_are_counted_when_the_lease_is_renewed() -> None:
    """Each renewal arms the fence anew."""
    world = new_leader()
    before = world.view.fence.confirmations
    world.wait(35_000)
    assert world.view.fence.confirmations >= before + 3


@pytest.mark.parametrize(("left_ms", "told"), [(2_500, 2.5), (0, 0), (-10, 0)])
def test_metrics_tell_what_is_left_when_asked_at_an_instant(left_ms: int, told: float) -> None:
    """Seconds, never below 0."""
    view = new_leader().view
    view = replace(view, fence=replace(view.fence, armed_until_ms=view.now_ms + left_ms))
    found = {name: value for name, _, _, value in fence_metrics(view, view.now_ms)}
    assert (found["armed_seconds"], found["connected"], found["kills_total"]) == (told, 1, 0)


def leader_whose_server_left_something() -> World:
    """Its fence and its postmaster were killed at once; the next fence is there, and so are two backends."""
    world = new_leader(held={"end-leftovers"})
    world.feed(ev.FenceLost(at_ms=world.now_ms, detail="gone"))
    world.server, world.armed_until_ms = None, None
    world.feed(ev.FenceConnected(at_ms=world.now_ms, leftovers=2))
    return world


def test_nothing_is_started_or_given_up_when_backends_outlived_postmaster_and_fence() -> None:
    """Such a backend writes on until it next waits: the leader key stays until it is known to be gone."""
    world = leader_whose_server_left_something()
    told = len(world.issued)
    world.wait(world.view.dynamic.ttl_s * 2_000)
    issued = world.issued[told:]
    assert world.view.server.process == "unknown"
    assert world.keys["leader"].value == world.name
    assert not [
        one for one in issued if isinstance(one.effect, do.StartPrimary | do.StartStandby | do.ReleaseLeaderKey)
    ]


def test_server_starts_again_when_the_backends_without_a_postmaster_are_gone() -> None:
    """They are ended first of all, and the leader goes on."""
    world = leader_whose_server_left_something()
    assert world.orders(do.EndLeftovers)
    world.held = set()
    world.until(lambda world: world.view.server.process == "running")
    assert world.view.fence.leftovers == 0


def test_answer_about_leftovers_is_not_believed_when_the_fence_was_lost_meanwhile() -> None:
    """Whoever killed the next fence too may have left something again: that one's successor looks anew."""
    world = leader_whose_server_left_something()
    world.feed(ev.FenceLost(at_ms=world.now_ms, detail="gone"))
    world.held = set()
    world.wait(1_000)
    assert (world.view.server.process, world.view.fence.is_connected) == ("unknown", False)
