"""The configuration in etcd is brought to the running server, whatever happens meanwhile, and told to others."""

import json

from msgspec.structs import replace

from fsm import effects as do
from fsm import events as ev
from fsm.facts import ParameterChange, TimelineSwitch
from fsm.publish import history_rows, member_fields
from fsm.view import LeaderHistory
from tests.fsm.world import World, forked, leader_with_standbys, replica_of
from tests.views import leader_view, primary_probe, standby_probe, standby_view, with_server


def revisions(world: World) -> list[int]:
    """The revisions that a server was told, in order."""
    return [effect.config_revision for effect in world.orders(do.ApplyParameters) if hasattr(effect, "config_revision")]


def change(world: World, value: str = '{"ttl":30,"loop_wait":9}') -> int:
    """Somebody changes the configuration; its revision."""
    return world.put("config", value).mod_revision


def test_replica_tells_its_server_once_when_the_configuration_changes() -> None:
    """One change, one effect; the standby goes on streaming from where it does."""
    world = replica_of("n2")
    world.wait(3_000)
    told = len(revisions(world))
    revision = change(world)
    world.wait(5_000)
    assert revisions(world)[told:] == [revision]
    effect = world.orders(do.ApplyParameters)[-1]
    assert isinstance(effect, do.ApplyParameters)
    assert effect.upstream is not None
    assert (effect.upstream.host, effect.upstream.port) == ("10.0.0.2", 5432)


def test_leader_tells_its_server_when_the_configuration_changes() -> None:
    """A primary streams from nobody."""
    world = leader_with_standbys("n2")
    world.wait(3_000)
    revision = change(world)
    world.wait(5_000)
    effect = world.orders(do.ApplyParameters)[-1]
    assert isinstance(effect, do.ApplyParameters)
    assert (effect.config_revision, effect.upstream) == (revision, None)


def test_newest_configuration_is_told_when_it_changes_again_meanwhile() -> None:
    """What was under way does not count for what came after it was ordered."""
    world = replica_of("n2")
    world.wait(3_000)
    world.held = {"apply-parameters"}
    first = change(world)
    second = change(world, '{"ttl":30,"loop_wait":8}')
    world.held = set()
    world.wait(5_000)
    assert revisions(world)[-2:] == [first, second]
    assert world.view.server.config_revision == second


def test_configuration_is_told_again_when_the_server_was_restarted() -> None:
    """Only a reload makes a server tell what waits for a restart."""
    world = replica_of("n2")
    world.wait(3_000)
    told = len(revisions(world))
    world.crash()
    world.wait(10_000)
    assert len(revisions(world)) == told + 1


def test_configuration_is_told_again_when_telling_failed() -> None:
    """It is tried until it is done."""
    world = replica_of("n2")
    world.wait(3_000)
    world.failing["apply-parameters"] = "program"
    revision = change(world)
    world.wait(5_000)
    del world.failing["apply-parameters"]
    world.wait(40_000)
    assert world.view.server.config_revision == revision


def test_configuration_in_force_stays_when_the_key_cannot_be_read() -> None:
    """No JSON, or no object, changes nothing."""
    world = replica_of("n2")
    change(world, '{"ttl":45}')
    for text in ("{", "[]", "null", ""):
        change(world, text)
        assert world.view.dynamic.ttl_s == 45


def test_late_answer_of_an_earlier_server_is_ignored_when_another_runs() -> None:
    """What one postmaster was told, the next one was not."""
    world = replica_of("n2")
    world.wait(3_000)
    before = world.view.server.config_revision
    late = ev.ParametersApplied(pid=1, config_revision=99_999)
    world.feed(ev.Succeeded(at_ms=world.now_ms, effect_id=1, duty="apply-parameters", result=late))
    assert world.view.server.config_revision == before


def test_member_key_tells_the_reason_when_a_restart_is_pending() -> None:
    """In Patroni's order: after the tags, before the positions."""
    reason = {"max_connections": ParameterChange(old_value="100", new_value="200")}
    probe = standby_probe(pending_restart=("max_connections",), pending_restart_reason=reason)
    fields = member_fields(with_server(standby_view(), probe=probe))
    names = list(fields)
    assert names.index("version") < names.index("pending_restart") < names.index("pending_restart_reason")
    assert names.index("pending_restart_reason") < names.index("xlog_location")
    assert fields["pending_restart_reason"] == {"max_connections": {"old_value": "100", "new_value": "200"}}
    assert "pending_restart" not in member_fields(standby_view())


def test_history_keeps_its_newest_rows_when_their_number_is_limited() -> None:
    """Dropped rows do not come back."""
    switches = tuple(TimelineSwitch(timeline=n, lsn=n * 100, reason="r") for n in (1, 2, 3))
    history = replace(forked(4, 300), switches=switches)
    view = leader_view(leader_history=LeaderHistory(leader="n1", history=history, wall="w"))
    view = with_server(view, probe=primary_probe(timeline=4))
    assert [row[0] for row in history_rows(view)] == [1, 2, 3]
    limited = replace(view, dynamic=replace(view.dynamic, max_timelines_history=2))
    rows = history_rows(limited)
    assert [row[0] for row in rows] == [2, 3]
    key = replace(view.keys["config"], value=json.dumps(rows))
    assert history_rows(replace(limited, keys={**view.keys, "history": key})) == rows


def paused_replica(*too_low: str) -> World:
    """A replica that has stopped replaying."""
    world = replica_of("n2")
    world.wait(3_000)
    assert world.server is not None
    world.server.replay_paused = True
    world.too_low = too_low
    return world


def test_standby_is_restarted_when_its_parameters_are_too_low_for_its_wal() -> None:
    """It would not replay any further; started anew it has what it needs."""
    world = paused_replica("max_connections")
    starts = len(world.orders(do.StartStandby))
    world.until(lambda world: len(world.orders(do.StartStandby)) > starts, within_ms=20_000)
    assert world.orders(do.StopServer)
    assert world.view.server.too_low == ()


def test_standby_is_left_alone_when_somebody_paused_its_replay() -> None:
    """Nothing of it is too low: it was asked to wait, and waits; it is looked at again and again."""
    world = paused_replica()
    world.wait(20_000)
    assert world.orders(do.StopServer) == []
    assert 3 <= len(world.orders(do.ReadReplayNeeds)) <= 5


def test_standby_is_left_alone_when_the_cluster_is_paused() -> None:
    """In pause no server is stopped."""
    world = paused_replica("max_connections")
    world.put("config", '{"pause":true}')
    world.wait(20_000)
    assert world.orders(do.StopServer) == []
