"""Synchronous modes told as stories of one node: what a leader writes and orders, and who stands for election."""

import pytest
from msgspec.structs import replace

from fsm import effects as do
from fsm import events as ev
from fsm.facts import PeerReport, Standby
from fsm.syncnames import PLACEHOLDER
from fsm.wire import SyncKey, compact, parse_sync, sync_text
from tests.fsm.world import MIB, STANDBY, SYSTEM_ID, Postgres, World, is_settled_leader, new_leader, replica_of

ON = '{"ttl":30,"synchronous_mode":true}'
STRICT = '{"ttl":30,"synchronous_mode":true,"synchronous_mode_strict":true}'
QUORUM = '{"ttl":30,"synchronous_mode":"quorum"}'


def streaming(world: World, *names: str, **lsn: int) -> None:
    """These members stream from the node, each with everything unless a position is given."""
    assert world.server is not None
    world.server.standbys = tuple(
        Standby(application_name=name, state="streaming", flush_lsn=lsn.get(name, world.server.lsn)) for name in names
    )


def leader_of(config: str, *names: str) -> World:
    """A leader in a synchronous mode whose standbys have been taken in."""
    world = new_leader(first_config=config)
    for name in names:
        world.join(name)
    streaming(world, *names)
    world.wait(5_000)
    return world


def key_of(world: World) -> SyncKey:
    """The `sync` key."""
    return parse_sync(world.keys["sync"].value if "sync" in world.keys else None)


def report(name: str, lsn: int, **more: object) -> PeerReport:
    """What a healthy replica answers."""
    return PeerReport(name=name, role="replica", state="running", position_lsn=lsn, timeline=1, **more)  # type: ignore[arg-type]


def voter(config: str, key: SyncKey, **more: object) -> World:
    """A replica n1 of n2, in a cluster with this `sync` key, whose leader is gone."""
    world = replica_of("n2", "n3", **more)
    world.put("config", config)
    world.put("sync", sync_text(key))
    world.wait(1_500)
    world.delete("members/n2")
    return world


# ---- the leader ------------------------------------------------------------------------------------------------------


def test_leader_claims_the_key_before_its_server_accepts_writes_when_the_mode_is_on() -> None:
    """Whoever was in the predecessor's key does not wait for this leader's commits."""
    world = new_leader(first_config=ON)
    kinds = [type(issued.effect) for issued in world.issued]
    assert kinds.index(do.WriteSync) < kinds.index(do.StartPrimary)
    assert key_of(world) == SyncKey(leader="n1")


def test_promotion_waits_for_the_key_when_it_is_not_written() -> None:
    """A key that still names another leader would let others be promoted over this one's commits."""
    world = voter(ON, SyncKey(leader="n2", members=("n1",)))
    world.held.add("write-sync")
    world.delete("leader")
    world.wait(5_000)
    assert world.view.state == "leader"
    assert world.orders(do.Promote) == []
    world.held.clear()
    world.until(is_settled_leader)
    assert key_of(world) == SyncKey(leader="n1")


def test_standby_is_named_when_it_streams() -> None:
    """First the names, then, once they are settled, the key."""
    world = leader_of(ON, "n2")
    assert world.server is not None
    assert world.server.sync_names == "n2"
    assert key_of(world) == SyncKey(leader="n1", members=("n2",))
    order = [i.duty for i in world.issued if i.duty in ("set-sync-names", "read-sync-mark", "write-sync")]
    assert order[-3:] == ["set-sync-names", "read-sync-mark", "write-sync"]


def test_key_does_not_name_a_standby_when_it_lacks_what_was_acknowledged_before() -> None:
    """Names that are in force say nothing of the past: the standby must have it first."""
    world = new_leader(first_config=ON)
    world.join("n2")
    assert world.server is not None
    for step in range(60):
        world.server.lsn += MIB
        streaming(world, "n2", n2=step * 1000 + 1)
        world.wait(100)
    assert world.server.sync_names == "n2"
    assert key_of(world).members == ()
    streaming(world, "n2")
    world.wait(2_000)
    assert key_of(world).members == ("n2",)


def test_standby_leaves_the_key_first_when_it_is_gone() -> None:
    """Who may be promoted is narrowed before commits stop waiting."""
    world = leader_of(ON, "n2")
    streaming(world)
    world.held.add("write-sync")
    world.wait(3_000)
    assert world.server is not None
    assert world.server.sync_names == "n2"
    world.held.clear()
    world.wait(1_000)
    assert key_of(world).members == ()
    assert world.server.sync_names == ""


def test_commits_wait_on_when_etcd_cannot_be_told() -> None:
    """As long as the key says that the standby may be promoted, commits wait for it."""
    world = leader_of(ON, "n2")
    world.lose_etcd()
    streaming(world)
    world.confirming = {"n2"}
    world.wait(20_000)
    assert world.server is not None
    assert world.server.sync_names == "n2"


def test_standby_is_dropped_when_it_does_not_move_any_more() -> None:
    """Its connection stands, its lease runs: what tells is that commits wait for it in vain."""
    world = leader_of(ON, "n2")
    assert world.server is not None
    stuck_lsn = world.server.lsn
    world.server.lsn += 100
    streaming(world, "n2", n2=stuck_lsn)
    world.wait(1_800)
    assert key_of(world).members == ()
    assert world.server.sync_names == ""
    streaming(world, "n2")
    world.wait(1_500)
    assert world.server.sync_names == "", "it must keep up for a while before it is trusted again"
    world.wait(5_000)
    assert key_of(world).members == ("n2",)


def test_standby_that_lags_is_not_waited_for_when_a_limit_is_set() -> None:
    """maximum_lag_on_syncnode, against the foremost standby: it moves, but commits would wait for it too long."""
    limited = '{"ttl":30,"synchronous_mode":true,"synchronous_node_count":2,"maximum_lag_on_syncnode":1048576}'
    for config, named in ((limited, ("n3",)), (limited.replace("1048576", "-1"), ("n2", "n3"))):
        world = leader_of(config, "n2", "n3")
        assert key_of(world).members == ("n2", "n3")
        assert world.server is not None
        for _ in range(40):
            world.server.lsn += MIB
            streaming(world, "n2", "n3", n2=world.server.lsn - 2 * MIB)
            world.wait(100)
        assert key_of(world).members == named


def test_idle_standby_is_kept_when_there_is_nothing_to_move_for() -> None:
    """Silence of a server that writes nothing is no sign of death."""
    world = leader_of(ON, "n2")
    count = len(world.orders(do.SetSyncNames))
    world.wait(120_000)
    assert len(world.orders(do.SetSyncNames)) == count


def test_strict_leader_lets_commits_wait_when_nobody_is_there() -> None:
    """Before the first commit, and when the last standby goes: who is in the key stays there."""
    world = new_leader(first_config=STRICT)
    assert world.orders(do.StartPrimary)[0].names.text == PLACEHOLDER  # type: ignore[union-attr]
    world = leader_of(STRICT, "n2")
    streaming(world)
    world.wait(10_000)
    assert world.server is not None
    assert world.server.sync_names == "n2"
    assert key_of(world).members == ("n2",)
    world.join("n3")
    streaming(world, "n3")
    world.wait(5_000)
    assert key_of(world).members == ("n3",)


def test_quorum_leader_takes_in_everybody_when_they_stream() -> None:
    """All standbys vote; a commit waits for as many as are asked for."""
    world = leader_of(QUORUM, "n2", "n3")
    assert world.server is not None
    assert world.server.sync_names == "ANY 1 (n2,n3)"
    assert key_of(world) == SyncKey(leader="n1", members=("n2", "n3"), quorum=1)
    streaming(world, "n2")
    world.wait(3_000)
    assert world.server.sync_names == "ANY 1 (n2)"
    assert key_of(world) == SyncKey(leader="n1", members=("n2",))


def test_names_are_not_counted_on_when_the_checkpointer_may_not_have_read_them() -> None:
    """Commits do not wait at all before the process that makes them wait knows that anybody is named."""
    world = new_leader(first_config=ON)
    world.join("n2")
    world.failing["read-sync-mark"] = "sql"
    streaming(world, "n2")
    world.wait(10_000)
    assert world.server is not None
    assert (world.server.sync_names, key_of(world).members) == ("n2", ())
    assert world.orders(do.ReadSyncMark)[0].is_first  # type: ignore[union-attr]


def test_key_is_emptied_when_somebody_changes_the_names_by_hand() -> None:
    """What was acknowledged meanwhile, nobody knows: they are set right, and the standby is taken in anew."""
    world = leader_of(ON, "n2")
    assert world.server is not None
    world.server.sync_names = ""
    world.wait(600)
    assert (
        '{"leader":"n1","quorum":0,"sync_standby":null}'
        in [
            order.text  # type: ignore[union-attr]
            for order in world.orders(do.WriteSync)[-2:]
        ]
    )
    world.wait(5_000)
    assert (world.server.sync_names, key_of(world).members) == ("n2", ("n2",))


def test_key_is_deleted_and_names_are_released_when_the_mode_is_switched_off() -> None:
    """Everybody may be promoted again, and an operator's own names count."""
    world = leader_of(ON, "n2")
    world.put("config", '{"ttl":30}')
    world.wait(2_000)
    assert "sync" not in world.keys
    assert len(world.orders(do.ReleaseSyncNames)) == 1
    assert world.server is not None
    assert world.server.sync_names == ""


def test_agent_that_restarts_keeps_key_and_names_when_they_are_right() -> None:
    """A new agent trusts a key that its predecessor wrote, and takes nobody else in before it has looked anew."""
    world = leader_of(ON, "n2")
    count = len(world.orders(do.SetSyncNames))
    world.boot()
    world.wait(5_000)
    assert world.view.state == "leader"
    assert len(world.orders(do.SetSyncNames)) == count
    assert key_of(world) == SyncKey(leader="n1", members=("n2",))
    assert world.view.waiting.is_settled


def test_stale_sender_is_ended_when_a_member_streams_twice() -> None:
    """The connection that a dead standby left behind must not be waited for."""
    world = leader_of(ON, "n2")
    assert world.server is not None
    world.server.standbys = (*world.server.standbys, replace(world.server.standbys[0], flush_lsn=1))
    world.wait(1_000)
    assert world.orders(do.EndStaleSenders)[0].standbys == ("n2",)  # type: ignore[union-attr]


# ---- elections -------------------------------------------------------------------------------------------------------


def test_replica_does_not_stand_when_the_key_does_not_name_it() -> None:
    """It may miss what was acknowledged, however fresh it looks."""
    world = voter(ON, SyncKey(leader="n2", members=("n3",)))
    world.delete("leader")
    world.wait(60_000)
    assert "R1" not in world.rules


def test_synchronous_standby_leads_when_others_have_more_that_nobody_confirmed() -> None:
    """Neither an asynchronous replica nor the former leader with more WAL is waited for: they will not be promoted."""
    world = voter(ON, SyncKey(leader="n2", members=("n1",)))
    world.reports = {"n3": report("n3", 90 * MIB), "n2": report("n2", 95 * MIB)}
    world.join("n2")
    world.delete("leader")
    world.until(is_settled_leader, within_ms=5_000)


def test_synchronous_standby_leads_when_the_last_position_lies_beyond_its_own() -> None:
    """WAL that was never confirmed does not count as lag. Source: Patroni #3703."""
    world = voter(
        '{"ttl":30,"synchronous_mode":true,"maximum_lag_on_failover":0}', SyncKey(leader="n2", members=("n1",))
    )
    world.put("status", compact({"optime": 90 * MIB}))
    world.delete("leader")
    world.until(is_settled_leader, within_ms=5_000)


def test_synchronous_standby_leads_when_its_tags_say_nosync_by_now() -> None:
    """A tag tells whom to choose, not who may be promoted: the key does. Source: Patroni #3662."""
    world = voter(ON, SyncKey(leader="n2", members=("n1",)), tags={"nosync": True})
    world.delete("leader")
    world.until(is_settled_leader, within_ms=5_000)


def test_voter_waits_when_too_few_others_are_heard() -> None:
    """In quorum mode silence is no vote, however long it lasts; a vote is a look since the key became free."""
    world = voter(QUORUM, SyncKey(leader="n2", members=("n1", "n3"), quorum=1))
    world.delete("leader")
    world.wait(60_000)
    assert world.orders(do.TakeLeaderKey) == []
    asked = len(world.orders(do.AskPeers))
    world.wait(10_000)
    assert len(world.orders(do.AskPeers)) - asked <= 25
    world.reports["n3"] = report("n3", 5 * MIB)
    world.until(is_settled_leader, within_ms=5_000)


def test_voter_waits_when_the_other_one_looked_before_the_key_became_free() -> None:
    """What the other acknowledged after its last look, it does not tell."""
    world = voter(QUORUM, SyncKey(leader="n2", members=("n1", "n3"), quorum=1))
    world.reports["n3"] = report("n3", 5 * MIB, probed_ago_ms=3_600_000)
    world.delete("leader")
    world.wait(10_000)
    assert world.orders(do.TakeLeaderKey) == []


def test_voter_gives_way_when_another_has_more() -> None:
    """A voter that is ahead may hold what was acknowledged."""
    world = voter(QUORUM, SyncKey(leader="n2", members=("n1", "n3"), quorum=1))
    world.reports["n3"] = report("n3", 90 * MIB)
    world.delete("leader")
    world.wait(10_000)
    assert world.orders(do.TakeLeaderKey) == []


def test_former_leader_leads_without_votes_when_it_is_the_first_to_be_back() -> None:
    """Everything that it acknowledged is on its own disk."""
    world = World(directory=STANDBY).initialized()
    world.put("config", QUORUM)
    world.put("sync", sync_text(SyncKey(leader="n1", members=("n2", "n3"), quorum=1)))
    world.boot()
    world.until(is_settled_leader, within_ms=30_000)


def test_named_replica_leads_when_an_operator_asked_for_a_failover() -> None:
    """Somebody decided that what may be lost may be lost."""
    world = voter(ON, SyncKey(leader="n2", members=("n3",)))
    world.put("failover", '{"member":"n1"}')
    world.delete("leader")
    world.until(is_settled_leader, within_ms=5_000)


def test_named_voter_waits_for_votes_when_the_leader_was_to_agree() -> None:
    """A switchover whose leader died half way promises nothing about what it acknowledged last."""
    world = voter(QUORUM, SyncKey(leader="n2", members=("n1", "n3"), quorum=1))
    world.put("failover", '{"leader":"n2","member":"n1"}')
    world.delete("leader")
    world.wait(10_000)
    assert world.orders(do.TakeLeaderKey) == []


@pytest.mark.parametrize(
    ("config", "key"),
    [(ON, SyncKey(leader="n2", members=("n3",))), (QUORUM, SyncKey(leader="n2", members=("n1", "n3"), quorum=1))],
)
def test_running_primary_is_left_without_a_key_when_it_may_miss_commits(config: str, key: SyncKey) -> None:
    """A primary that somebody started by hand is not taken up where the key does not say that it holds everything."""
    world = World(directory=STANDBY).initialized()
    world.put("config", config)
    world.put("sync", sync_text(key))
    world.server = Postgres(pid=77, in_recovery=False, timeline=1, lsn=30 * MIB)
    world.boot()
    world.wait(5_000)
    assert "B7" not in world.rules
    assert world.keys["initialize"].value == SYSTEM_ID


# ---- what is not known -----------------------------------------------------------------------------------------------


def unknown(world: World, duty: str) -> None:
    """The outcome of the duty's effect, which was held, is not known."""
    issued = next(issued for issued in world.pending if issued.duty == duty)
    world.pending.remove(issued)
    world.feed(ev.Unknown(at_ms=world.now_ms, effect_id=issued.effect_id, duty=duty, detail="no answer"))


def test_names_are_left_alone_when_nobody_knows_whether_the_key_was_written() -> None:
    """A write that may have been applied may have put somebody into the key whom other names would not wait for."""
    world = new_leader(first_config=ON)
    for name in ("n2", "n3"):
        world.join(name)
    world.held.add("write-sync")
    streaming(world, "n2")
    world.until(lambda w: any(issued.duty == "write-sync" for issued in w.pending))
    streaming(world, "n3")
    world.wait(1_000)
    world.lose_etcd()
    unknown(world, "write-sync")
    world.wait(8_000)
    assert world.server is not None
    assert world.server.sync_names == "n2", "n2 may be in the key: commits must not go on without it"
    world.held.clear()
    world.heal_etcd()
    world.wait(8_000)
    assert (world.server.sync_names, key_of(world).members) == ("n3", ("n3",))


def test_key_is_written_anew_when_a_new_agent_finds_it_its_own() -> None:
    """What the former agent had sent may still be on its way: after a write by the new one it is refused."""
    world = leader_of(ON, "n2")
    count = len(world.orders(do.WriteSync))
    revision = world.keys["sync"].mod_revision
    world.boot()
    world.wait(5_000)
    assert len(world.orders(do.WriteSync)) == count + 1
    assert world.keys["sync"].mod_revision > revision
    assert key_of(world) == SyncKey(leader="n1", members=("n2",))


def test_leader_key_is_not_taken_when_the_sync_key_was_written_unseen() -> None:
    """Somebody may have led and gone in between, and have taken this node out of those who hold everything."""
    world = voter(ON, SyncKey(leader="n2", members=("n1",)))
    world.held.add("take-leader-key")
    world.delete("leader")
    world.until(lambda w: any(issued.duty == "take-leader-key" for issued in w.pending))
    order = world.orders(do.TakeLeaderKey)[-1]
    assert isinstance(order, do.TakeLeaderKey)
    assert order.sync_revision == world.keys["sync"].mod_revision
