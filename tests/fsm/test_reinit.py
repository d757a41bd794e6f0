"""Stories of base backups that an operator asked for: from every condition a node can be in, and what others see."""

from typing import Any

import pytest
from msgspec.structs import replace

from fsm import effects as do
from fsm import events as ev
from fsm.facts import DataDirectory
from fsm.publish import member_fields, postgres_state
from fsm.status import reinit_obstacle
from tests.fsm.world import CLUSTER, EMPTY, HALF_REWOUND, STANDBY, World, forked, is_following, replica_of

UNREADABLE = replace(EMPTY, condition="unreadable", detail="garbage")
HALF_CLONED = replace(EMPTY, condition="unfinished_clone")
FORMER_PRIMARY = replace(CLUSTER, checkpoint_lsn=1 << 40)


def ask(world: World, **more: bool) -> None:
    """An operator asks for a base backup."""
    world.feed(ev.ReinitAsked(at_ms=world.now_ms, by="operator", **more))


def stopped_node(directory: DataDirectory) -> World:
    """A node whose server does not run, over some directory, while n2 leads."""
    world = World(directory=directory).initialized()
    world.history = forked(2, 10 << 20)
    world.lead("n2", timeline=2)
    return world


def sources(world: World) -> list[str]:
    """Whom each base backup was taken of."""
    return [order.upstream.name for order in world.orders(do.Clone)]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "directory", [UNREADABLE, HALF_CLONED, HALF_REWOUND, FORMER_PRIMARY, STANDBY, EMPTY],
    ids=lambda directory: directory.condition,
)  # fmt: skip
def test_reinit_brings_the_node_back_when_its_server_is_stopped(directory: DataDirectory) -> None:
    """Whatever lies in the data directory; what may be somebody's data is kept aside."""
    world = stopped_node(directory)
    world.boot()
    ask(world)
    world.until(is_following)
    assert len(world.orders(do.Clone)) >= 1
    assert not world.view.is_reinit_asked
    kept = [order.keep_aside for order in world.orders(do.ClearDataDirectory)]  # type: ignore[union-attr]
    assert (True in kept) == (directory.condition in ("cluster", "unreadable"))


def test_reinit_stops_the_server_when_it_never_answers() -> None:
    """A standby that waits for WAL which nobody has does not take connections, and is what reinit is for."""
    world = replica_of("n2")
    world.crash()
    world.is_server_silent = True
    world.until(lambda w: w.server is not None)
    ask(world)
    world.until(lambda w: bool(w.orders(do.Clone)))
    world.is_server_silent = False
    world.until(is_following)


def test_reinit_works_when_a_found_standby_never_answers() -> None:
    """A restarted agent over such a server knows not even whether it is a standby that answers."""
    world = replica_of("n2")
    world.is_server_silent = True
    world.boot()
    world.wait(1_000)
    assert world.view.state == "bootstrapping"
    ask(world)
    world.until(lambda w: bool(w.orders(do.Clone)))
    world.is_server_silent = False
    world.until(is_following)


def test_reinit_goes_on_when_the_leader_vanishes_in_the_middle() -> None:
    """Half a base backup is of no use, so the node waits for a leader and takes another one."""
    world = replica_of("n2", "n3")
    world.held.add("clone")
    ask(world)
    world.until(lambda w: bool(w.orders(do.Clone)))
    world.delete("leader")
    world.failing["clone"] = "program"
    world.held.clear()
    world.directory = HALF_CLONED
    world.wait(5_000)
    assert postgres_state(world.view) == "creating replica"
    world.failing.clear()
    world.lead("n3")
    world.until(is_following)
    assert sources(world)[-1] == "n3"


def test_reinit_goes_on_when_the_agent_is_killed_in_the_middle() -> None:
    """The mark of the unfinished base backup is all that the next agent needs."""
    world = replica_of("n2")
    world.held.add("clone")
    ask(world)
    world.until(lambda w: bool(w.orders(do.Clone)))
    world.directory = HALF_CLONED
    world.held.clear()
    world.boot()
    world.until(is_following)
    assert "B4" in world.rules


def test_reinit_is_begun_again_when_the_leader_comes_back_before_anything_was_touched() -> None:
    """The request outlives the moment without a leader."""
    world = replica_of("n2", "n3")
    world.held.add("stop-standby")
    ask(world)
    world.delete("leader")
    assert "I2" in world.rules
    world.lead("n3")
    world.held.clear()
    world.until(lambda w: bool(w.orders(do.Clone)))


def test_reinit_is_void_when_the_node_is_elected() -> None:
    """A leader's data are what all others copy: no request of before may ever replace them."""
    world = replica_of("n2", "n3")
    world.held.add("stop-standby")
    ask(world)
    world.put("leader", "n1", lease_id=1)
    assert not world.view.is_reinit_asked
    ask(world, is_forced=True)
    assert not world.view.is_reinit_asked


def test_reinit_that_runs_goes_on_when_it_is_asked_for_again_without_force() -> None:
    """Two operators who ask at the same moment get one base backup."""
    world = replica_of("n2")
    world.held.add("clone")
    ask(world)
    world.until(lambda w: bool(w.orders(do.Clone)))
    world.now_ms += 10
    ask(world)
    world.held.clear()
    world.until(is_following)
    assert len(world.orders(do.Clone)) == 1


def test_reinit_cancels_the_first_base_backup_of_a_new_node_when_forced() -> None:
    """Also one that nobody asked for."""
    world = World().initialized()
    world.lead("n2")
    world.held.add("clone")
    world.boot()
    world.until(lambda w: bool(w.orders(do.Clone)))
    assert (reinit_obstacle(world.view) or "").endswith(" already in progress")
    assert reinit_obstacle(world.view, is_forced=True) is None
    world.now_ms += 10
    ask(world, is_forced=True, is_from_leader=True)
    world.held.clear()
    world.until(is_following)
    assert len(world.orders(do.Clone)) == 2
    assert world.rules == ["B8", "I3", "R3", "I1"]


def test_reinit_cancels_pg_rewind_when_forced() -> None:
    """And says what is under way to whom does not force it."""
    world = stopped_node(replace(FORMER_PRIMARY, control_state="shut down"))
    world.held.add("rewind")
    world.boot()
    world.until(lambda w: bool(w.orders(do.Rewind)))
    assert reinit_obstacle(world.view) == "pg_rewind already in progress"
    ask(world, is_forced=True)
    assert world.decisions[-2][1].cancelled
    world.until(is_following)
    assert world.rules == ["B3", "W4", "I1"]


def test_reinit_that_ended_is_done_anew_when_it_is_forced_before_its_server_answers() -> None:
    """A base backup that cannot be started is not kept only because it is complete."""
    world = replica_of("n2")
    ask(world)
    world.is_server_silent = True
    world.until(lambda w: len(w.orders(do.StartStandby)) == 1)
    world.wait(100)
    ask(world, is_forced=True)
    world.is_server_silent = False
    world.until(is_following)
    assert len(world.orders(do.Clone)) == 2


def test_reinit_starts_the_server_when_the_cluster_is_paused() -> None:
    """In pause nothing is started that somebody else stopped; this server the agent stopped itself."""
    world = replica_of("n2")
    world.put("config", '{"ttl":30,"pause":true}')
    ask(world)
    world.until(is_following, within_ms=60_000)
    assert world.rules[-1] == "I1"


def test_new_data_are_started_at_once_when_the_old_ones_kept_ending() -> None:
    """How often a server of the old data ended says nothing about the new ones."""
    world = replica_of("n2")
    for _ in range(4):
        world.crash()
        world.until(is_following)
    assert world.view.server.failed_starts >= 4
    world.crash()
    ask(world)
    world.until(lambda w: "clone" in w.view.achieved)
    assert world.view.server.failed_starts == 0
    world.until(is_following, within_ms=500)


# ---- what others see -------------------------------------------------------------------------------------------------


def test_state_is_creating_replica_when_reinit_was_asked_until_the_copy_is_complete() -> None:
    """Whoever polls it, as patronictl does with --wait, sees neither the old server nor a gap."""
    world = replica_of("n2")
    began = len(world.decisions)
    ask(world)
    world.until(is_following)
    seen: list[str] = []
    for _, decision in world.decisions[began:]:
        state = postgres_state(decision.view)
        seen += [state] if seen[-1:] != [state] else []
    assert seen == ["creating replica", "starting", "running"]


def test_member_key_has_no_positions_when_its_data_are_being_replaced() -> None:
    """The old server's position says nothing about the new one, and `streaming` would hide what is going on."""
    world = replica_of("n2")
    world.held.add("stop-standby")
    assert "replication_state" in member_fields(world.view)
    ask(world)
    fields = member_fields(world.view)
    assert fields["state"] == "creating replica"
    assert not {"xlog_location", "receive_lsn", "replay_lsn", "replication_state", "timeline"} & set(fields)


# ---- whom to copy ----------------------------------------------------------------------------------------------------

OFFER: dict[str, Any] = {"tags": {"clonefrom": True}, "replication_state": "streaming"}


def test_base_backup_is_taken_of_a_tagged_member_when_it_streams() -> None:
    """It spares the leader; the most advanced one first."""
    world = replica_of("n2")
    world.join("n3", xlog_location=100, **OFFER)
    world.join("n4", xlog_location=200, **OFFER)
    ask(world)
    world.until(is_following)
    assert sources(world) == ["n4"]


@pytest.mark.parametrize(
    "more",
    [
        {"tags": {"clonefrom": False}, "replication_state": "streaming"},
        OFFER | {"state": "starting"},
        OFFER | {"replication_state": "in archive recovery"},
        OFFER | {"timeline": 7},
        OFFER | {"conn_url": "nonsense"},
    ],
    ids=["not offered", "not running", "not streaming", "on another timeline", "without an address"],
)
def test_base_backup_is_taken_of_the_leader_when_no_tagged_member_is_fit(more: dict[str, Any]) -> None:
    """A copy of a standby that is behind, or on another timeline, would not follow the leader."""
    world = replica_of("n2")
    world.join("n3", **more)
    ask(world)
    world.until(is_following)
    assert sources(world) == ["n2"]


def test_base_backup_is_taken_of_the_leader_when_the_sync_key_counts_on_this_node() -> None:
    """It may be promoted while it is copied anew: not with the data of somebody who misses acknowledged commits."""
    world = replica_of("n2")
    world.put("config", '{"ttl":30,"synchronous_mode":true,"synchronous_mode_strict":true}')
    world.put("sync", '{"leader":"n2","quorum":0,"sync_standby":"n1"}')
    world.join("n3", **OFFER)
    ask(world)
    world.until(is_following)
    assert sources(world) == ["n2"]


def test_base_backup_is_taken_of_the_leader_when_the_operator_wants_it() -> None:
    """`--from-leader`, for this request only."""
    world = replica_of("n2")
    world.join("n3", **OFFER)
    ask(world, is_from_leader=True)
    world.until(is_following)
    ask(world)
    world.until(lambda w: len(w.orders(do.Clone)) == 2)
    assert sources(world) == ["n2", "n3"]


def test_base_backup_is_taken_of_the_leader_when_the_sync_key_names_this_node() -> None:
    """Whoever is trusted to have every acknowledged commit must not get the data of somebody who may miss some."""
    world = replica_of("n2")
    world.join("n3", **OFFER)
    world.put("sync", '{"leader":"n2","sync_standby":"N1","quorum":0}')
    ask(world)
    world.until(is_following)
    assert sources(world) == ["n2"]


def test_base_backup_is_taken_of_the_next_source_when_one_fails() -> None:
    """A tagged member that cannot be copied is no reason to be without data; then it is tried again."""
    world = replica_of("n2")
    world.join("n3", **OFFER)
    world.failing["clone"] = "program"
    ask(world)
    world.until(lambda w: len(w.orders(do.Clone)) == 3)
    assert sources(world) == ["n3", "n2", "n3"]


def test_base_backup_is_taken_of_the_same_member_when_it_is_forced_anew() -> None:
    """One that was given up did not fail: it begins at once, and with the best source."""
    world = replica_of("n2")
    world.join("n3", **OFFER)
    world.held.add("clone")
    ask(world)
    world.until(lambda w: bool(w.orders(do.Clone)))
    world.now_ms += 10
    ask(world, is_forced=True)
    world.held.clear()
    world.until(is_following)
    assert sources(world) == ["n3", "n3"]


def test_new_node_is_cloned_of_a_tagged_member_when_there_is_one() -> None:
    """Not only where an operator asks."""
    world = World().initialized()
    world.lead("n2")
    world.join("n3", **OFFER)
    world.boot()
    world.until(is_following)
    assert sources(world) == ["n3"]
