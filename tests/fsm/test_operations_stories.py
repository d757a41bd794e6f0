"""Stories of what people ask of a node: restarts, other settings, planned and scheduled changes of leader."""

import pytest
from msgspec.structs import replace

from fsm import effects as do
from fsm import events as ev
from fsm.asked import Answer, RestartWish
from fsm.facts import Standby
from fsm.requests import answer_of
from fsm.status import is_writable
from fsm.timing import REQUEST_TIMEOUT_MS, SCHEDULE_LATE_MS, SWITCHOVER_WRITTEN_WITHIN_MS
from fsm.wire import compact
from tests.fsm.world import World, is_following, is_settled_leader, leader_with_standbys, new_leader, replica_of

NOON_UNIX_MS = 1_767_268_800_000
AT_NOON = "2026-01-01T12:00:00+00:00"


def ask_restart(world: World, **conditions: object) -> None:
    """An operator asks for a restart."""
    wish = RestartWish(**conditions)  # type: ignore[arg-type]  # the fields of RestartWish
    world.feed(ev.RestartAsked(at_ms=world.now_ms, request_id="r1", wish=wish, by="ops"))


def answer(world: World, request_id: str = "r1") -> Answer:
    """How the request ended, waited for."""
    world.until(lambda w: answer_of(w.view, request_id) is not None)
    found = answer_of(world.view, request_id)
    assert found is not None
    return found


# ---- restart ---------------------------------------------------------------------------------------------------------


def test_leader_stays_leader_when_its_server_is_restarted() -> None:
    """Checkpoint, fast stop, start as primary: the key, the lease and the state are the same, and nobody is elected."""
    world = leader_with_standbys("n2", "n3")
    key, rules, steps = world.keys["leader"], list(world.rules), len(world.issued)
    assert world.server is not None
    pid = world.server.pid
    ask_restart(world)
    assert answer(world).ending == "done"
    kinds = [type(issued.effect) for issued in world.issued[steps:]]
    wanted = [do.Checkpoint, do.StopToRestart, do.ReadDataDirectory, do.StartPrimary]
    assert [kind for kind in kinds if kind in wanted] == wanted
    assert do.FenceServer not in kinds
    assert (world.keys["leader"], world.rules) == (key, rules)
    assert world.server is not None
    assert world.server.pid != pid
    assert world.armed_until_ms == world.view.writable_until_ms
    assert world.view.server.failed_starts == 0


def test_primary_answers_no_when_its_server_is_down_for_a_restart() -> None:
    """/primary is 503 from the stop on, the member key says `restarting`, and 200 follows the first answer."""
    world = leader_with_standbys("n2")
    ask_restart(world)
    world.held.add("stop-primary-to-restart")
    world.until(lambda w: "stop-primary-to-restart" in w.view.underway)
    assert not is_writable(world.view, world.now_ms)
    world.wait(1_000)
    assert '"state":"restarting"' in world.keys["members/n1"].value  # type: ignore[operator]
    world.held.clear()
    assert answer(world).ending == "done"
    assert is_writable(world.view, world.now_ms)


def test_fence_stays_armed_when_the_stop_before_a_restart_takes_long() -> None:
    """The lease is renewed and the fence's deadline with it for as long as the server takes to stop."""
    world = leader_with_standbys("n2")
    ask_restart(world)
    world.held.add("stop-primary-to-restart")
    world.wait(40_000)
    assert world.view.state == "leader"
    assert world.armed_until_ms == world.view.writable_until_ms > world.now_ms


def test_leader_steps_down_when_its_server_does_not_come_back_in_time() -> None:
    """A restart is no excuse for ever: after the given time another may lead, and the operator is told."""
    world = leader_with_standbys("n2")
    world.failing["start-primary"] = "program"
    ask_restart(world, timeout_ms=20_000)
    found = answer(world)
    assert (found.ending, world.rules[-1]) == ("failed", "L3")
    assert found.detail == "the node became replica before the server was back"


def test_leader_is_not_replaced_when_failover_at_once_is_configured() -> None:
    """primary_start_timeout 0 is about crashes: a restart has its time."""
    world = leader_with_standbys("n2")
    world.put("config", '{"ttl":30,"primary_start_timeout":0}')
    rules = list(world.rules)
    ask_restart(world)
    assert (answer(world).ending, world.rules) == ("done", rules)


def test_cluster_has_a_primary_when_failover_at_once_is_configured() -> None:
    """primary_start_timeout 0 gives a crashed server no time, but one that is only coming up has it."""
    world = leader_with_standbys("n2", first_config='{"ttl":30,"primary_start_timeout":0}')
    world.crash()
    world.until_state("replica", within_ms=1_000)
    assert world.rules[-1] == "L3"
    follower = replica_of("n2", first_config='{"ttl":30,"primary_start_timeout":0}')
    follower.delete("leader")
    follower.until(is_settled_leader)
    assert "L3" not in follower.rules


def test_replica_stays_replica_when_its_server_is_restarted() -> None:
    """It stops, starts as a standby and follows again."""
    world = replica_of("n2")
    rules = list(world.rules)
    ask_restart(world)
    assert answer(world).ending == "done"
    world.until(is_following)
    assert world.rules == rules
    assert len(world.orders(do.StopToRestart)) == 1


def test_replica_is_restarted_when_the_cluster_is_paused() -> None:
    """A manual restart is done in pause too, and brings the server back."""
    world = replica_of("n2")
    world.put("config", '{"ttl":30,"pause":true}')
    ask_restart(world)
    assert answer(world).ending == "done"


@pytest.mark.parametrize(
    ("conditions", "said"),
    [
        ({"role": "replica"}, "it is a primary, not a replica"),
        ({"postgres_version": 160004}, "not below 160004"),
        ({"restart_pending": True}, "no parameter waits"),
    ],
)
def test_restart_is_refused_when_its_conditions_do_not_hold(conditions: dict[str, object], said: str) -> None:
    """Nothing is stopped."""
    world = leader_with_standbys("n2")
    ask_restart(world, **conditions)
    found = answer(world)
    assert (found.ending, said in found.detail) == ("refused", True)
    assert world.orders(do.StopToRestart) == []


def test_restart_is_done_when_its_conditions_hold() -> None:
    """An older server than the one named, of the role named."""
    world = leader_with_standbys("n2")
    ask_restart(world, role="primary", postgres_version=160005)
    assert answer(world).ending == "done"


def test_restart_is_refused_when_one_is_under_way_or_etcd_is_silent() -> None:
    """Only one at a time, and none that might not end."""
    world = leader_with_standbys("n2")
    world.held.add("checkpoint-for-restart")
    ask_restart(world)
    world.feed(ev.RestartAsked(at_ms=world.now_ms, request_id="r2"))
    assert answer(world, "r2").detail == "a restart is already in progress"
    other = leader_with_standbys("n2")
    other.lose_etcd()
    ask_restart(other)
    assert answer(other).ending == "refused"


def test_restart_goes_on_when_its_checkpoint_fails() -> None:
    """The checkpoint only shortens the stop."""
    world = leader_with_standbys("n2")
    world.failing["checkpoint-for-restart"] = "sql"
    ask_restart(world)
    assert answer(world).ending == "done"


def test_restart_gives_way_when_the_leader_key_is_lost_meanwhile() -> None:
    """Safety first: the fence ends what the restart was stopping."""
    world = leader_with_standbys("n2")
    world.held.add("stop-primary-to-restart")
    ask_restart(world)
    world.until(lambda w: "stop-primary-to-restart" in w.view.underway)
    world.delete("leader")
    world.until_state("replica")
    assert len(world.orders(do.FenceServer)) == 1
    assert answer(world).ending == "failed"


def schedule_restart(world: World, after_ms: int, request_id: str = "r1", **conditions: object) -> None:
    """An operator asks for a restart at noon, and it is `after_ms` before noon."""
    wish = RestartWish(schedule=AT_NOON, conditions={"schedule": AT_NOON}, **conditions)  # type: ignore[arg-type]
    asked = ev.RestartAsked(at_ms=world.now_ms, request_id=request_id, wish=wish, unix_ms=NOON_UNIX_MS - after_ms)
    world.feed(asked)


def test_server_is_restarted_at_the_instant_when_that_is_scheduled() -> None:
    """Everybody can see it until then; it is done once, and nothing else happens."""
    world = leader_with_standbys("n2")
    rules, due_ms = list(world.rules), world.now_ms + 20_000
    schedule_restart(world, 20_000)
    assert answer(world).ending == "done"
    world.wait(1_000)
    assert f'"scheduled_restart":{{"schedule":"{AT_NOON}"' in world.keys["members/n1"].value  # type: ignore[operator]
    world.until(lambda w: bool(w.orders(do.StopToRestart)))
    assert due_ms <= world.now_ms < due_ms + 1_000
    world.wait(60_000)
    assert (len(world.orders(do.StopToRestart)), world.rules) == (1, rules)
    assert "scheduled_restart" not in world.keys["members/n1"].value  # type: ignore[operator]


def test_second_scheduled_restart_is_refused_when_there_is_one() -> None:
    """It would have to be dropped first."""
    world = leader_with_standbys("n2")
    schedule_restart(world, 20_000)
    schedule_restart(world, 20_000, "r2")
    assert answer(world, "r2").ending == "conflict"
    world.feed(ev.RestartCancelAsked(at_ms=world.now_ms, request_id="r3"))
    world.feed(ev.RestartCancelAsked(at_ms=world.now_ms, request_id="r4"))
    assert (answer(world, "r3").ending, answer(world, "r4").ending) == ("done", "refused")
    world.wait(40_000)
    assert world.orders(do.StopToRestart) == []


def test_scheduled_restart_is_moot_when_the_server_was_started_anew() -> None:
    """It was meant for the server that ran then."""
    world = leader_with_standbys("n2")
    schedule_restart(world, 20_000)
    world.crash()
    world.until(is_settled_leader)
    world.wait(60_000)
    assert (world.orders(do.StopToRestart), world.view.scheduled_restart) == ([], None)


def test_scheduled_restart_waits_when_the_cluster_is_paused_and_is_dropped_when_it_was_missed() -> None:
    """Nothing is done by itself in pause, nor long after."""
    world = leader_with_standbys("n2")
    schedule_restart(world, 1_000)
    world.put("config", '{"ttl":30,"pause":true}')
    world.wait(120_000)
    assert "scheduled_restart" in world.keys["members/n1"].value  # type: ignore[operator]
    world.put("config", '{"ttl":30}')
    assert (world.orders(do.StopToRestart), world.view.scheduled_restart) == ([], None)


def test_scheduled_restart_is_dropped_when_its_conditions_do_not_hold_at_its_instant() -> None:
    """They are looked at then."""
    world = leader_with_standbys("n2")
    schedule_restart(world, 1_000, role="replica")
    world.wait(30_000)
    assert (world.orders(do.StopToRestart), world.view.scheduled_restart) == ([], None)


# ---- the dynamic configuration ---------------------------------------------------------------------------------------


def ask_config(world: World, text: str, revision: int) -> None:
    """An operator asks for another configuration, made from the one at a revision."""
    world.config_texts["r1"] = text
    world.feed(ev.ConfigAsked(at_ms=world.now_ms, request_id="r1", revision=revision))


@pytest.mark.parametrize("make", [lambda: leader_with_standbys("n2"), lambda: replica_of("n2")])
def test_config_is_written_when_it_is_still_what_was_seen(make: object) -> None:
    """Any member does it, and the settings are in force with the answer."""
    world: World = make()  # type: ignore[operator]
    ask_config(world, '{"ttl":20}', world.keys["config"].mod_revision)
    assert answer(world).ending == "done"
    assert world.view.dynamic.ttl_s == 20


def test_config_is_left_alone_when_somebody_else_changed_it() -> None:
    """A conflict is told, and not tried again."""
    world = leader_with_standbys("n2")
    ask_config(world, '{"ttl":20}', world.keys["config"].mod_revision - 1)
    assert answer(world).ending == "conflict"
    world.wait(60_000)
    assert len(world.orders(do.ChangeConfig)) == 1
    assert world.view.dynamic.ttl_s == 30


def test_config_is_not_written_later_when_etcd_was_silent() -> None:
    """Who was told of a failure must not be surprised by a success a minute after."""
    world = leader_with_standbys("n2", first_config='{"ttl":30,"failsafe_mode":true}')
    world.confirming = {"n2"}
    world.lose_etcd()
    ask_config(world, '{"ttl":20}', 0)
    world.wait(REQUEST_TIMEOUT_MS + 1)
    assert answer(world).ending == "failed"
    world.heal_etcd()
    world.wait(20_000)
    assert world.orders(do.ChangeConfig) == []


def test_second_change_is_refused_when_one_is_under_way() -> None:
    """One at a time: each is made from what the one before left."""
    world = leader_with_standbys("n2")
    world.held.add("change-config")
    ask_config(world, '{"ttl":20}', 0)
    world.feed(ev.ConfigAsked(at_ms=world.now_ms, request_id="r2"))
    assert answer(world, "r2").ending == "conflict"


# ---- reload ----------------------------------------------------------------------------------------------------------


def test_tags_are_published_and_the_server_reloaded_when_settings_are_read_again() -> None:
    """POST /reload and SIGHUP."""
    world = leader_with_standbys("n2")
    world.feed(ev.ReloadAsked(at_ms=world.now_ms, request_id="r1", tags={"nofailover": True}))
    assert answer(world).ending == "done"
    world.wait(1_000)
    assert '"tags":{"nofailover":true}' in world.keys["members/n1"].value  # type: ignore[operator]
    assert world.orders(do.ReloadServer) == [do.ReloadServer(timeout_ms=10_000)]


def test_server_is_told_again_when_settings_are_read_during_a_reload() -> None:
    """What was under way may have read the settings before they changed."""
    world = leader_with_standbys("n2")
    world.held.add("reload-server")
    world.feed(ev.ReloadAsked(at_ms=world.now_ms, request_id="r1"))
    world.wait(100)
    world.feed(ev.ReloadAsked(at_ms=world.now_ms, request_id="r2"))
    world.held.clear()
    assert answer(world, "r2").ending == "done"
    assert len(world.orders(do.ReloadServer)) == 2


def test_nothing_is_reloaded_when_no_server_runs() -> None:
    """Its next start goes by the new settings."""
    world = leader_with_standbys("n2")
    world.held.add("start-primary")
    world.crash()
    world.feed(ev.ReloadAsked(at_ms=world.now_ms, request_id="r1"))
    assert (answer(world).ending, world.orders(do.ReloadServer)) == ("done", [])


def test_standby_goes_on_following_when_its_settings_are_read_again() -> None:
    """Its files still name the leader."""
    world = replica_of("n2")
    world.feed(ev.ReloadAsked(at_ms=world.now_ms, request_id="r1"))
    assert answer(world).ending == "done"
    order = world.orders(do.ReloadServer)[-1]
    assert isinstance(order, do.ReloadServer)
    assert order.upstream is not None
    assert order.upstream.host == "10.0.0.2"


# ---- planned and scheduled changes of leader -------------------------------------------------------------------------


def schedule(world: World, after_ms: int, *, leader: str = "n1") -> None:
    """Somebody schedules a switchover to n2 for noon, and it is `after_ms` before noon."""
    world.put("failover", compact({"leader": leader, "member": "n2", "scheduled_at": AT_NOON}))
    tell_wall_clock(world, NOON_UNIX_MS - after_ms)


def tell_wall_clock(world: World, unix_ms: int) -> None:
    """A change of keys arrives, with the wall clock."""
    change = replace(world.keys["failover"])
    world.feed(ev.KeysChanged(at_ms=world.now_ms, revision=world.revision, changes=(change,), unix_ms=unix_ms))


def test_leader_hands_over_at_the_instant_when_a_switchover_is_scheduled() -> None:
    """Not before it, and at it without anything else happening."""
    world = leader_with_standbys("n2", "n3")
    schedule(world, 20_000)
    due_ms = world.now_ms + 20_000
    world.until(lambda w: "L2" in w.rules)
    assert due_ms <= world.now_ms < due_ms + 1_000


def test_leader_hands_over_when_the_wall_clock_was_set_meanwhile() -> None:
    """Each change of keys corrects the instant."""
    world = leader_with_standbys("n2")
    schedule(world, 3_600_000)
    world.wait(1_000)
    tell_wall_clock(world, NOON_UNIX_MS - 500)
    world.until(lambda w: "L2" in w.rules, within_ms=2_000)


def test_schedule_is_dropped_when_its_instant_was_missed() -> None:
    """A leader that comes up an hour late does not hand over then."""
    world = leader_with_standbys("n2")
    schedule(world, -SCHEDULE_LATE_MS - 1_000)
    world.until(lambda w: w.keys["failover"].value == "{}")
    assert "L2" not in world.rules


def test_schedule_is_dropped_when_nobody_can_read_it() -> None:
    """An instant without a time zone could be any."""
    world = leader_with_standbys("n2")
    world.put("failover", '{"leader":"n1","member":"n2","scheduled_at":"2026-01-01T12:00:00"}')
    world.until(lambda w: w.keys["failover"].value == "{}")
    assert "L2" not in world.rules


def test_schedule_waits_and_is_kept_when_the_cluster_is_paused() -> None:
    """Nothing is done by itself in pause; the request stays for a person to decide on."""
    world = leader_with_standbys("n2")
    schedule(world, 1_000)
    world.put("config", '{"ttl":30,"pause":true}')
    world.wait(120_000)
    assert "L2" not in world.rules
    assert world.view.failover is not None


def test_election_ignores_a_schedule_when_its_instant_is_far() -> None:
    """Who is named for tomorrow has no claim today: the member with the most WAL leads, and everybody is asked."""
    world = replica_of("n2", "n3", name="n1")
    world.put("failover", compact({"leader": "n2", "member": "n3", "scheduled_at": AT_NOON}))
    tell_wall_clock(world, NOON_UNIX_MS - 3_600_000)
    free_ms = world.now_ms
    world.delete("leader")
    world.until(is_settled_leader)
    assert world.now_ms - free_ms < 2_000
    assert len(world.orders(do.AskPeers)) >= 1


def test_named_member_is_waited_for_when_its_schedule_is_due() -> None:
    """A member whose clock is a little late knows whom the leader stopped for."""
    world = replica_of("n2", "n3", name="n1")
    world.put("failover", compact({"leader": "n2", "member": "n3", "scheduled_at": AT_NOON}))
    tell_wall_clock(world, NOON_UNIX_MS - 2_000)
    world.delete("leader")
    world.wait(1_000)
    assert world.view.state == "replica"


def test_scheduled_request_is_written_when_asked_for() -> None:
    """In Patroni's format."""
    world = replica_of("n2", "n3")
    world.feed(ev.SwitchoverAsked(at_ms=world.now_ms, leader="n2", candidate="n3", scheduled_at=AT_NOON))
    world.until(lambda w: "failover" in w.keys)
    assert world.keys["failover"].value == compact({"leader": "n2", "member": "n3", "scheduled_at": AT_NOON})


def test_switchover_is_not_written_later_when_etcd_was_silent() -> None:
    """A request that nobody waits for any longer changes nothing."""
    world = replica_of("n2", "n3")
    world.lose_etcd()
    world.feed(ev.SwitchoverAsked(at_ms=world.now_ms, leader="n2", candidate="n3"))
    world.wait(SWITCHOVER_WRITTEN_WITHIN_MS + 1_000)
    world.heal_etcd()
    world.wait(5_000)
    assert "failover" not in world.keys


def test_schedule_is_cancelled_when_an_operator_says_so() -> None:
    """The key is emptied, not deleted, and only if it is still the request that was seen."""
    world = leader_with_standbys("n2")
    schedule(world, 3_600_000)
    world.feed(
        ev.SwitchoverCancelAsked(at_ms=world.now_ms, request_id="r1", revision=world.keys["failover"].mod_revision)
    )
    assert answer(world).ending == "done"
    assert world.keys["failover"].value == "{}"


def test_failover_moves_the_leadership_when_only_a_candidate_is_named() -> None:
    """Without `leader` it is a failover; a living leader hands over in good order all the same."""
    world = leader_with_standbys("n2", "n3")
    world.feed(ev.SwitchoverAsked(at_ms=world.now_ms, candidate="n3"))
    world.until(lambda w: "L2" in w.rules)
    assert world.keys["failover"].value == '{"member":"n3"}'


def test_nothing_is_restarted_when_nobody_asked() -> None:
    """A crash is another thing: it counts, and has the cluster's own time."""
    world = new_leader()
    assert world.server is not None
    world.server.standbys = (Standby(application_name="n2", state="streaming"),)
    world.crash()
    world.until(is_settled_leader)
    assert world.orders(do.StopToRestart) == []
    assert world.view.restart is None
