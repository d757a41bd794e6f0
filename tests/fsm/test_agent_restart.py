"""The agent becomes its successor when that loses nothing, and goes on as it is otherwise. No I/O."""

from fsm import effects as do
from fsm import events as ev
from fsm.requests import answer_of
from fsm.timing import AGENT_RESTART_WITHIN_MS
from tests.fsm.world import World, leader_with_standbys, replica_of


def ask(world: World, request_id: str = "r1") -> World:
    """Somebody asks for a restart of the agent."""
    world.feed(ev.AgentRestartAsked(at_ms=world.now_ms, request_id=request_id, by="SIGUSR2"))
    return world


def has_stepped_aside(world: World) -> bool:
    """True when the agent was told to become its successor."""
    return bool(world.orders(do.BecomeNewAgent))


def test_agent_is_tried_before_it_takes_over_when_a_restart_is_asked() -> None:
    """First the trial, then the step, and nothing else is done about it: server and lease are left alone."""
    world = leader_with_standbys("n2")
    world.until(lambda world: not world.view.underway)
    begun = len(world.issued)
    ask(world).until(has_stepped_aside)
    kinds = [type(issued.effect) for issued in world.issued[begun:]]
    assert kinds.index(do.CheckNewAgent) < kinds.index(do.BecomeNewAgent)
    assert not {do.FenceServer, do.StopServer, do.RevokeLease, do.ReleaseLeaderKey, do.DisarmFence} & set(kinds)


def test_agent_goes_on_when_its_successor_would_not_start() -> None:
    """The fault is in the answer; a later request tries again."""
    world = leader_with_standbys("n2", failing={"check-new-agent": "program"})
    ask(world).wait(5_000)
    answer = answer_of(world.view, "r1")
    assert answer is not None
    assert (answer.ending, "the story: program" in answer.detail) == ("refused", True)
    assert not has_stepped_aside(world)
    world.failing.clear()
    ask(world, "r2").until(has_stepped_aside)


def test_agent_steps_aside_only_with_a_fresh_lease_when_its_successor_takes_long_to_start() -> None:
    """Twice the trial's time must be left of the deadline that the fence confirmed."""
    world = leader_with_standbys("n2", trial_ms=12_000)
    ask(world).until(has_stepped_aside)
    left_ms = (world.view.fence.armed_until_ms or 0) - world.view.now_ms
    assert left_ms >= 25_000


def test_agent_says_why_when_the_lease_is_too_short_for_its_successor() -> None:
    """With ttl 3 a machine that takes four seconds to start an agent would lose its primary."""
    world = leader_with_standbys("n2", first_config='{"ttl":3}', trial_ms=4_000)
    ask(world).wait(AGENT_RESTART_WITHIN_MS + 1_000)
    answer = answer_of(world.view, "r1")
    assert answer is not None
    assert (answer.ending, "needs up to 9000 ms" in answer.detail) == ("refused", True)
    assert not has_stepped_aside(world)


def test_agent_goes_on_when_it_cannot_step_aside() -> None:
    """A log disk that hangs would hang its successor at the start."""
    world = leader_with_standbys("n2", failing={"become-new-agent": "refused"})
    ask(world).wait(3_000)
    answer = answer_of(world.view, "r1")
    assert answer is not None
    assert answer.ending == "refused"


def test_leader_stays_when_etcd_is_not_heard() -> None:
    """A successor could not take up the key; members that stand in for etcd answer this agent, not the next."""
    world = leader_with_standbys("n2")
    world.lose_etcd()
    ask(world).wait(5_000)
    assert not has_stepped_aside(world)
    world.heal_etcd()
    world.until(has_stepped_aside)


def test_replica_steps_aside_when_etcd_is_not_heard() -> None:
    """It holds nothing that could run out."""
    world = replica_of("n2")
    world.lose_etcd()
    ask(world).until(has_stepped_aside)


def test_agent_waits_when_its_promise_is_not_on_disk() -> None:
    """Once it is, a successor reads it there."""
    world = replica_of("n2", held={"keep-promise"})
    world.feed(ev.FailsafeAsked(at_ms=world.now_ms, leader="n2", ttl_s=30))
    assert world.view.promising is not None
    ask(world).wait(1_000)
    assert not has_stepped_aside(world)
    world.held.clear()
    world.until(has_stepped_aside)
    assert world.view.promise is not None


def test_replica_waits_when_nobody_leads() -> None:
    """A successor would not know whom this node has promised its vote."""
    world = replica_of("n2", tags={"nofailover": True})
    world.delete("leader")
    ask(world).wait(3_000)
    assert not has_stepped_aside(world)
    world.lead("n3")
    world.until(has_stepped_aside)


def test_agent_waits_when_its_server_is_being_worked_on() -> None:
    """What is half done would be nobody's."""
    world = replica_of("n2")
    world.held.add("follow")
    world.lead("n3")
    world.until(lambda world: "follow" in world.view.underway)
    ask(world).wait(2_000)
    assert not has_stepped_aside(world)
    world.held.clear()
    world.until(has_stepped_aside)


def test_second_request_is_refused_when_a_restart_is_under_way() -> None:
    """One at a time."""
    world = leader_with_standbys("n2")
    world.held.add("check-new-agent")
    ask(ask(world), "r2")
    answer = answer_of(world.view, "r2")
    assert answer is not None
    assert answer.ending == "conflict"


def test_successor_takes_up_the_primary_when_it_begins() -> None:
    """It knows nothing, and leads again without a word to the server."""
    world = leader_with_standbys("n2")
    ask(world).until(has_stepped_aside)
    pid, begun = world.view.server.pid, len(world.issued)
    world.pending.clear()
    world.boot().until_state("leader")
    assert world.view.server.pid == pid
    assert not [i for i in world.issued[begun:] if isinstance(i.effect, do.StartPrimary | do.FenceServer | do.Promote)]
