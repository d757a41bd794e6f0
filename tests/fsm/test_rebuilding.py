"""What a node whose data are being replaced tells of it."""

import pytest

from fsm import effects as do
from fsm import events as ev
from fsm.rebuilding import rebuilding_fields
from tests.fsm.world import World, is_following, replica_of


def steps_from(world: World, began: int) -> list[str]:
    """The steps that were shown since, without repetitions."""
    found: list[str] = []
    for _, decision in world.decisions[began:]:
        step = (rebuilding_fields(decision.view) or {}).get("step")
        found += [step] if step and found[-1:] != [step] else []
    return found


def test_every_step_is_told_when_a_running_node_is_replaced() -> None:
    """From the old server's end to the new one's start; nothing before and after."""
    world = replica_of("n2")
    assert rebuilding_fields(world.view) is None
    began = len(world.decisions)
    world.feed(ev.ReinitAsked(at_ms=world.now_ms))
    world.until(is_following)
    order = ["stopping the server", "clearing the data directory", "base backup", "starting the server"]
    assert [step for step in steps_from(world, began) if step != "preparing"] == order
    assert rebuilding_fields(world.view) is None


@pytest.mark.parametrize("duty", ["clone", "clear-directory"])
def test_last_failure_is_told_when_work_is_tried_again(duty: str) -> None:
    """Somebody who waits must not have to read the log to learn why."""
    world = replica_of("n2")
    world.failing[duty] = "program"
    world.feed(ev.ReinitAsked(at_ms=world.now_ms))
    world.until(lambda w: duty in w.view.attempts and w.view.attempts[duty].failures == 2)
    fields = rebuilding_fields(world.view)
    assert fields is not None
    assert (fields["failures"], fields["last_failure"]) == (2, "the story: program")


def test_waiting_for_a_leader_is_told_when_nobody_leads() -> None:
    """The half base backup cannot go on without one."""
    world = replica_of("n2")
    world.held.add("clone")
    world.feed(ev.ReinitAsked(at_ms=world.now_ms))
    world.until(lambda w: bool(w.orders(do.Clone)))
    world.delete("leader")
    world.failing["clone"] = "sql"
    world.held.clear()
    world.wait(1_000)
    fields = rebuilding_fields(world.view)
    assert fields is not None
    assert fields["step"] == "waiting for a leader to copy"
