"""Elections, votes and standbys, told as somebody who looks for holes would tell it."""

from collections.abc import Callable

import pytest

from fsm import effects as do
from fsm import events as ev
from fsm.facts import PeerReport
from fsm.wire import compact
from tests.fsm.test_votes import ask, has_voted, is_receiving, standby
from tests.fsm.world import MIB, STANDBY, World, is_settled_leader, replica_of


def list_for_failsafe(world: World, *names: str) -> None:
    """Only these may be elected."""
    world.put("failsafe", compact({name: f"http://10.0.0.{name[1:]}:8008/patroni" for name in names}))


def report(name: str, **more: object) -> PeerReport:
    """What a replica far ahead answers."""
    fields = {"role": "replica", "state": "running", "position_lsn": 500 * MIB, "timeline": 1, "instance": f"{name}-1"}
    return PeerReport(name=name, **{**fields, **more})  # type: ignore[arg-type]


def gone(world: World) -> None:
    """The leader and its member key are gone."""
    world.delete("members/n2")
    world.delete("leader")


def test_rival_that_is_not_listed_for_failsafe_is_not_waited_for() -> None:
    """It may not stand (is_listed_for_failsafe), so it must not keep others from it."""
    world = replica_of("n2", "n3")
    list_for_failsafe(world, "n1", "n2")
    world.reports["n3"] = report("n3")
    gone(world)
    world.until(is_settled_leader, within_ms=60_000)


def test_rival_on_an_older_timeline_is_not_waited_for() -> None:
    """It may not stand (is_on_the_newest_timeline; check_timeline is on by default)."""
    world = replica_of("n2", "n3")
    assert world.server is not None
    world.server.timeline = 2
    world.lead("n2", timeline=2)
    world.put("history", '[[1,1000,"no recovery target specified"]]')
    world.wait(2_000)
    world.reports["n3"] = report("n3", timeline=1)
    gone(world)
    world.until(is_settled_leader, within_ms=60_000)


def test_control_rival_with_less_wal_is_not_waited_for() -> None:
    """The same stories with a rival that is behind end well."""
    world = replica_of("n2", "n3")
    list_for_failsafe(world, "n1", "n2")
    world.reports["n3"] = report("n3", position_lsn=1)
    gone(world)
    world.until(is_settled_leader, within_ms=60_000)


def test_switchover_does_not_let_one_stand_whom_the_leader_would_not_ask() -> None:
    """docs/failsafe.md: only `failover --candidate` is excepted; a switchover's leader is alive."""
    world = replica_of("n2", "n3")
    list_for_failsafe(world, "n2", "n3")
    world.put("failover", '{"leader":"n2","member":"n1"}')
    world.wait(500)
    world.delete("leader")  # the lease ran out; n2 goes on, for n3 has promised, and n1 was not asked
    world.wait(10_000)
    assert world.orders(do.TakeLeaderKey) == []


@pytest.mark.parametrize("first", ["reload", "ask"])
def test_reload_does_not_undo_the_promise(first: str) -> None:
    """In whichever order they are asked for."""
    world = standby(tags={"nofailover": True})
    world.delete("leader")
    events: dict[str, Callable[[], object]] = {
        "ask": lambda: ask(world),
        "reload": lambda: world.feed(ev.ReloadAsked(at_ms=world.now_ms, request_id="r", tags={"nofailover": True})),
    }
    second = "ask" if first == "reload" else "reload"
    events[first]()
    events[second]()
    promised = False
    for _ in range(400):
        promised = promised or has_voted(world)
        assert not (promised and is_receiving(world)), world._story()
        world.wait(1)
    assert promised


@pytest.mark.parametrize("duty", ["reload-server", "apply-parameters"])
def test_slow_change_does_not_undo_the_promise(duty: str) -> None:
    """The order takes as long as PostgreSQL's own check of the settings (effects/pgcheck.py): a look comes before."""
    world = standby(tags={"nofailover": True})
    world.held.add(duty)
    world.delete("leader")
    ask(world)
    if duty == "reload-server":
        world.feed(ev.ReloadAsked(at_ms=world.now_ms, request_id="r", tags={"nofailover": True}))
    else:
        world.put("config", '{"ttl":31,"synchronous_mode":"quorum"}')
    world.until(has_voted, within_ms=3_000)
    assert not is_receiving(world)
    world.held.clear()
    for _ in range(400):
        assert not is_receiving(world), world._story()
        world.wait(1)


@pytest.mark.parametrize("delay", range(12))
@pytest.mark.parametrize("what", ["config", "reload"])
def test_change_does_not_undo_the_promise(delay: int, what: str) -> None:
    """At whatever moment it comes."""
    world = standby(tags={"nofailover": True})
    world.delete("leader")
    ask(world)
    world.wait(delay)
    if what == "config":
        world.put("config", '{"ttl":31,"synchronous_mode":"quorum"}')
    else:
        world.feed(ev.ReloadAsked(at_ms=world.now_ms, request_id="r", tags={"nofailover": True}))
    promised = False
    for _ in range(400):
        promised = promised or has_voted(world)
        assert not (promised and is_receiving(world)), world._story()
        world.wait(1)


@pytest.mark.parametrize("what", ["ApplyParameters", "ReloadServer"])
def test_nothing_takes_the_permit_away_while_the_promotion_is_under_way(what: str) -> None:
    """Follow, ReloadServer and ApplyParameters all remove the permit (effects/postgres.py, `follow`)."""
    world = replica_of("n2", "n3")
    world.held.add("promote")
    gone(world)
    world.until(lambda w: any(p.duty == "promote" for p in w.pending), within_ms=20_000)
    # the order is carried out: the permit is laid, the server asked; recovery has yet to end
    issued = next(p for p in world.pending if p.duty == "promote")
    world.pending.remove(issued)
    world.feed(ev.Succeeded(at_ms=world.now_ms, effect_id=issued.effect_id, duty="promote", result=ev.Done()))
    world.probe()
    if what == "ReloadServer":
        world.feed(ev.ReloadAsked(at_ms=world.now_ms, request_id="r", tags={}))
    else:
        world.put("config", '{"ttl":31}')
    world.wait(500)
    kinds = {type(p.effect).__name__ for _, d in world.decisions[-80:] for p in d.effects}
    assert what not in kinds, kinds


def test_standby_that_is_not_yet_consistent_is_pointed_at_a_leader_who_comes_later() -> None:
    """pg_rewind asks for WAL up to where its source was; without an upstream it never comes, and nobody may connect."""
    world = World(directory=STANDBY).initialized()
    world.lead("n2")
    world.delete("leader")
    world.is_server_silent = True  # "not yet accepting connections: consistent recovery state not reached"
    world.boot()
    world.until(lambda w: w.server is not None, within_ms=30_000)
    world.wait(3_000)
    world.lead("n2")
    world.wait(120_000)
    assert world.server is not None
    assert world.server.upstream is not None, world._story()


def test_named_successor_waits_for_a_former_leader_whose_server_has_not_ended() -> None:
    """docs/architecture.md, "Why two primaries do not happen", 9: whatever became of the key."""
    world = replica_of("n2", "n3")
    world.put("failover", '{"leader":"n2","member":"n1"}')
    world.reports["n2"] = report("n2", role="demoted", state="stopping", position_lsn=1)
    world.delete("leader")
    world.wait(2_000)
    assert world.orders(do.TakeLeaderKey) == []
    world.reports["n2"] = report("n2", role="replica", state="stopped", position_lsn=1)
    world.until(is_settled_leader, within_ms=5_000)


def test_old_data_claim_an_empty_etcd_only_when_every_former_lease_is_over() -> None:
    """etcd comes back empty: whoever led may not have heard of it, and serves until its deadline."""
    world = replica_of("n2", "n3")
    world.lose_etcd()
    world.keys.clear()
    world.leases.clear()
    world.revision = 1
    world.heal_etcd()
    wiped_at_ms = world.now_ms
    world.until(lambda w: bool(w.orders(do.ClaimInitialize)), within_ms=120_000)
    assert world.now_ms - wiped_at_ms >= world.view.dynamic.ttl_s * 1000
