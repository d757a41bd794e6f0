"""Faults of the decisions that are known and not yet mended: each story fails today, and says so once it does not.

A story that is reported as XPASS belongs into test_mended_faults.py, without its mark.
"""

import pytest

from tests.fsm.world import SYSTEM_ID, World, is_following, is_settled_leader, leader_with_standbys, replica_of


def fault(reason: str) -> pytest.MarkDecorator:
    """Marks a story that fails today."""
    return pytest.mark.xfail(strict=True, reason=reason)


@fault("write-initialize asks for a claim of this node, and claim-initialize is no duty of leader")
def test_leader_writes_initialize_again_when_somebody_deleted_it() -> None:
    """Without that key nobody can be cloned and no standby is started."""
    world = leader_with_standbys("n2")
    world.delete("initialize")
    world.wait(60_000)
    assert "initialize" in world.keys
    assert world.keys["initialize"].value == SYSTEM_ID


@fault("the maker's claim ended with its lease, and while it leads nothing claims again")
def test_leader_writes_initialize_when_its_claim_ran_out_while_failsafe_held() -> None:
    """A maker that lost etcd between the first start and the first write still owes the cluster its identity."""
    world = World()
    world.held.add("write-initialize")
    world.boot()
    world.until(lambda w: "C1" in w.rules)
    world.lose_etcd()
    world.wait(60_000)
    world.held.clear()
    world.heal_etcd()
    world.until(is_settled_leader)


@fault("a standby is not started while `initialize` is absent, although the leader serves")
def test_standby_is_started_again_when_initialize_was_deleted() -> None:
    """A deleted key must not take down the replicas one crash at a time."""
    world = replica_of("n2")
    world.delete("initialize")
    world.crash()
    world.until(is_following, within_ms=60_000)
