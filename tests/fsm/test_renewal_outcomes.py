"""What a failed effect means for a leader: nothing, before its deadline, unless etcd says that the lease is gone."""

from typing import get_args

import pytest

from fsm import events as ev
from fsm.states import State
from fsm.table import DUTIES
from fsm.timers import DUTY_BY_ID
from tests.fsm.world import World, leader_with_standbys

KINDS: tuple[ev.FailureKind, ...] = get_args(ev.FailureKind)
HARMLESS = [kind for kind in KINDS if kind != "lease_gone"]
LEADERS_DUTIES = [duty.id for duty in DUTIES if State.LEADER in duty.states]


def outlast(world: World, duty: str) -> int:
    """Lets the world run until the leader does not lead any more; until when it was allowed to."""
    world.until(lambda w: duty in w.view.attempts or w.view.state is not State.LEADER)
    deadline_ms = world.view.writable_until_ms
    world.until_state("replica")
    return deadline_ms


@pytest.mark.parametrize("kind", HARMLESS)
def test_leader_serves_until_its_deadline_when_renewals_fail(kind: ev.FailureKind) -> None:
    """Whatever the kind, a bug of our own included."""
    world = leader_with_standbys("n2", "n3")
    world.failing["renew-lease"] = kind
    world.failing["ask-failsafe"] = "unavailable"
    deadline_ms = outlast(world, "renew-lease")
    assert world.rules[-1] == "L4"
    assert deadline_ms <= world.now_ms <= deadline_ms + 1


def test_leader_serves_until_its_deadline_when_the_outcome_of_renewals_is_unknown() -> None:
    """An answer that never came says nothing about the lease."""
    world = leader_with_standbys("n2", "n3")
    world.failing["ask-failsafe"] = "unavailable"
    world.held.add("renew-lease")
    deadline_ms = world.view.writable_until_ms
    while world.view.state is State.LEADER:
        world.until(lambda w: "renew-lease" in w.view.underway or w.view.state is not State.LEADER)
        for issued in [p for p in world.pending if p.duty == "renew-lease"]:
            world.pending.remove(issued)
            world.feed(ev.Unknown(at_ms=world.now_ms, effect_id=issued.effect_id, duty=issued.duty, detail="no answer"))
    assert world.rules[-1] == "L4"
    assert deadline_ms <= world.now_ms <= deadline_ms + 1


def test_leader_steps_down_at_once_when_etcd_says_that_the_lease_is_gone() -> None:
    """The key is gone with it."""
    world = leader_with_standbys("n2", "n3")
    deadline_ms = world.view.writable_until_ms
    world.failing["renew-lease"] = "lease_gone"
    world.until_state("replica")
    assert world.now_ms < deadline_ms


@pytest.mark.parametrize("kind", ["unavailable", "bug"])
@pytest.mark.parametrize("duty", [duty for duty in LEADERS_DUTIES if duty not in ("renew-lease", "arm-fence")])
def test_leader_leads_on_when_anything_but_its_lease_and_its_fence_fails(duty: str, kind: ev.FailureKind) -> None:
    """No failure of SQL, disk, peers or another key is a reason to stop a primary whose lease is renewed."""
    world = leader_with_standbys("n2", "n3")
    assert DUTY_BY_ID[duty]
    world.failing[duty] = kind
    world.wait(40_000)
    assert world.view.state is State.LEADER
    assert world.server is not None
