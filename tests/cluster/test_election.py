"""Elections among real servers: exactly one of racing nodes makes the cluster, the most advanced eligible one leads."""

from collections.abc import AsyncIterator
from functools import partial

import pytest

from api.cli.demo import processes
from effects.clock import now_ms
from fsm.effects import ClaimInitialize, InitDb, Promote, StartPrimary
from fsm.entries import Entry
from fsm.events import AgentStarted, DirectoryRead, FenceConnected, KeysChanged, KeyWritten, Succeeded
from fsm.wire import parse_optime
from tests.cluster.harness import RealCluster, running_cluster
from tests.cluster.witnesses import (
    ask_primary,
    ask_server,
    frozen_processes,
    postmaster_of,
    processes_like,
    read_key,
    tell_primary,
    until,
    until_led_by_another,
    watched_cluster,
)

pytestmark = [pytest.mark.anyio, pytest.mark.servers]

TTL_S = 3
LAG_MAX = 200_000
RECEIVER = "SELECT pid FROM pg_stat_wal_receiver"
WRITE_MUCH = "INSERT INTO much SELECT repeat('x', 500) FROM generate_series(1, 1000)"
POSITION = "SELECT pg_wal_lsn_diff(pg_current_wal_flush_lsn(), '0/0')::bigint"
RECEIVED = "SELECT pg_wal_lsn_diff(pg_last_wal_receive_lsn(), '0/0')::bigint"


@pytest.fixture(scope="module")
async def real() -> AsyncIterator[RealCluster]:
    """A cluster under the monitor for the tests that leave it settled."""
    dynamic = {"ttl": TTL_S, "loop_wait": 1, "maximum_lag_on_failover": LAG_MAX}
    async with watched_cluster(etcd_members=3, dynamic=dynamic) as (found, _):
        tell_primary(found, "CREATE TABLE much (filling text)")
        yield found


def write_much(real: RealCluster) -> int:
    """Writes more than a replica may lag behind; how far the primary's WAL reaches then."""
    tell_primary(real, WRITE_MUCH)
    position = ask_primary(real, POSITION)
    assert isinstance(position, int)
    return position


def has_received(real: RealCluster, name: str, lsn: int) -> bool:
    """True when a replica's server holds the WAL up to a position."""
    return bool(ask_server(real, name, RECEIVED) >= lsn)


def has_status(real: RealCluster, name: str, lsn: int) -> bool:
    """True when a node has heard from etcd that the leader's WAL reaches a position."""
    changes = [c for e in real.entries(name) if isinstance(e.event, KeysChanged) for c in e.event.changes]
    texts = [change.value or "" for change in changes if change.key == "status"]
    return bool(texts) and parse_optime(texts[-1]) >= lsn


def holders_of(entries: list[Entry]) -> list[str]:
    """Who held the leader key, one after the other, as etcd's watch told it."""
    changes = [change for e in entries if isinstance(e.event, KeysChanged) for change in e.event.changes]
    values = [change.value for change in changes if change.key == "leader" and change.value is not None]
    return list(dict.fromkeys(values))


def claims_of(entries: list[Entry]) -> list[str]:
    """The nodes whose claim of `initialize` was applied."""
    claimed = [
        (e.node, e.event) for e in entries if isinstance(e.event, Succeeded) and e.event.duty == "claim-initialize"
    ]
    return [node for node, event in claimed if isinstance(event.result, KeyWritten) and event.result.applied]


def is_ready_to_race(real: RealCluster, name: str) -> bool:
    """True when a node knows its fence and its directory, and lacks nothing but etcd."""
    events = [entry.event for entry in real.entries(name)]
    has_read = any(isinstance(e, Succeeded) and isinstance(e.result, DirectoryRead) for e in events)
    return has_read and any(isinstance(e, FenceConnected) for e in events)


@pytest.mark.parametrize("attempt", [1, 2])
async def test_one_node_makes_the_cluster_when_three_race_from_empty_directories(attempt: int) -> None:
    """All wait for etcd and are let go at the same instant: one claim, one initdb, one holder of the key."""
    names = ("n1", "n2", "n3")
    async with running_cluster(etcd_members=3, dynamic={"ttl": TTL_S}, idle=names) as (real, _):
        for member in real.cluster.etcd_cluster.members:
            member.freeze()
        for node in real.cluster.nodes:
            node.start()
        for name in names:
            await until(partial(is_ready_to_race, real, name))
        for member in real.cluster.etcd_cluster.members:
            member.thaw()
        await real.settled()
        entries = real.entries()
        assert len(real.orders(ClaimInitialize)) >= 1
        assert claims_of(entries) == holders_of(entries) == [real.primary]
        assert [issued.duty for issued in real.orders(InitDb)] == ["init-db"]
        assert len(real.orders(StartPrimary)) == 1
        assert len([e for e in entries if isinstance(e.event, AgentStarted)]) == 3
        systems = {ask_server(real, name, "SELECT system_identifier::text FROM pg_control_system()") for name in names}
        initialize = await read_key(real, "initialize")
        assert initialize is not None
        assert systems == {initialize.value}


async def test_leader_renews_and_replicas_stream_when_nothing_happens(real: RealCluster) -> None:
    """Over two lives of the lease the leader key is not written again: it hangs on a lease that is renewed."""
    leader, server, before = real.primary, postmaster_of(real.leader), await read_key(real, "leader")
    written, since_ms = write_much(real), now_ms()
    await until(lambda: now_ms() > since_ms + 2 * TTL_S * 1000)
    await real.settled()
    assert before is not None
    assert before == await read_key(real, "leader")
    assert (real.primary, postmaster_of(real.leader)) == (leader, server)
    for replica in real.replicas:
        await until(partial(has_received, real, replica.name, written))


async def test_most_advanced_replica_leads_when_the_leader_dies(real: RealCluster) -> None:
    """The other replica lacks WAL, stands as well, and gives way."""
    old, (behind, ahead) = real.leader, real.replicas
    with frozen_processes(processes_like(real, behind.name, RECEIVER)):
        written = write_much(real)
        await until(partial(has_received, real, ahead.name, written))
        assert not has_received(real, behind.name, written)
        old.crash()
        await until_led_by_another(real, old.name)
        assert real.primary == ahead.name
    old.bring_back()
    await real.settled()
    assert ask_primary(real, "SELECT count(*) FROM much") >= 1000


async def test_lagging_replica_does_not_lead_when_nobody_else_is_left(real: RealCluster) -> None:
    """It lacks more than maximum_lag_on_failover: no leader is better than the loss, until the other is back."""
    old, (behind, ahead) = real.leader, real.replicas
    # Its receiver stands still to the end: what the sockets hold would be written as soon as it goes on.
    with frozen_processes(processes_like(real, behind.name, RECEIVER)):
        written = write_much(real)
        await until(partial(has_received, real, ahead.name, written))
        await until(partial(has_status, real, behind.name, written))
        ahead.crash()
        since_ms = now_ms()
        old.crash()
        await until(lambda: now_ms() > since_ms + 2 * TTL_S * 1000)
        assert not has_received(real, behind.name, written)
        assert real.orders(Promote, since_ms=since_ms) == []
        assert await read_key(real, "leader") is None
        ahead.bring_back()
        await until_led_by_another(real, old.name)
        assert real.primary == ahead.name
    old.bring_back()
    await real.settled()


async def test_replica_on_an_old_timeline_does_not_lead_when_nobody_else_is_left(real: RealCluster) -> None:
    """It was down while another was elected: the cluster's history knows a newer timeline than its own."""
    away, first = real.replicas[0], real.leader
    away.crash()
    since_ms = now_ms()
    first.crash()
    await until_led_by_another(real, first.name)
    second = real.leader
    await until(lambda: bool([e for e in real.entries(second.name, since_ms=since_ms) if has_told_history(e)]))
    second.crash()
    since_ms = now_ms()
    away.bring_back()
    await until(lambda: bool(processes.server_of(away.data_dir)))
    await until(lambda: now_ms() > since_ms + 2 * TTL_S * 1000)
    assert real.orders(Promote, since_ms=since_ms) == []
    assert await read_key(real, "leader") is None
    second.bring_back()
    await until_led_by_another(real, first.name)
    assert real.primary == second.name
    first.bring_back()
    await real.settled()


def has_told_history(entry: Entry) -> bool:
    """True when a leader has written its new timeline into the cluster's history."""
    return isinstance(entry.event, Succeeded) and entry.event.duty == "publish-history"


async def test_node_with_nofailover_does_not_lead_when_nobody_else_is_left() -> None:
    """The tag holds whatever happens; the leader leads again when it is back."""
    tags = {"tags": {"nofailover": True}}
    async with watched_cluster(etcd_members=3, size=2, dynamic={"ttl": TTL_S}, nodes={"n2": tags}) as (real, _):
        leader = real.leader
        assert leader.name == "n1"
        since_ms = now_ms()
        leader.crash()
        await until(lambda: now_ms() > since_ms + 2 * TTL_S * 1000)
        assert real.orders(Promote, since_ms=since_ms) == []
        leader.bring_back()
        await real.settled()
        assert real.primary == "n1"
