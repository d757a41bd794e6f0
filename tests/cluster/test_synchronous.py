"""Synchronous modes on real servers: what was acknowledged survives the loss of the node that acknowledged it."""

import json
import time
from typing import Any

import anyio
import anyio.to_thread
import httpx
import pytest

from api.cli.demo.servers import primary_connection
from effects.clock import now_ms
from effects.etcd import EtcdClient
from effects.etcd_types import put
from fsm.effects import WriteSync
from tests.cluster.faults import freeze_node, freeze_server, thaw_node, thaw_server
from tests.cluster.harness import PREFIX, RealCluster, sync_key
from tests.cluster.witnesses import (
    PATIENCE_S,
    Writers,
    standbys,
    until,
    until_led_by_another,
    until_synchronous,
    watched_cluster,
)

pytestmark = [pytest.mark.anyio, pytest.mark.servers]

TTL_S = 4


async def configure(real: RealCluster, **settings: object) -> None:
    """Lay settings over the dynamic configuration."""
    async with EtcdClient(list(real.cluster.etcd_cluster.endpoints)) as client:
        read = await client.read_prefix(f"{PREFIX}config", timeout_ms=5_000)
        text = json.dumps({**json.loads(read.keys[0].value), **settings})
        await client.transact([], [put(f"{PREFIX}config", text)], timeout_ms=5_000)


def names_in_force(real: RealCluster) -> str:
    """What the primary says that commits wait for."""
    with primary_connection(real.cluster.plan) as connection:
        row = connection.execute("SHOW synchronous_standby_names").fetchone()
    assert row is not None
    return str(row[0])


async def test_commits_go_on_when_the_only_synchronous_standby_dies_without_a_word() -> None:
    """With a ttl of a minute: nobody waits for a lease to run out. Not strict: commits go on with nobody named."""
    async with watched_cluster(dynamic={"synchronous_mode": True, "ttl": 60}, size=2) as (real, _):
        await until_synchronous(real, lambda key: bool(key.members))
        silent = standbys(real)[0]
        with Writers(real) as writers:
            await until(lambda: writers.have_written(50))
            freeze_node(silent)
            since_ms = now_ms()
            await until(lambda: writers.have_written(50, since_ms=since_ms + 500))
            assert (await sync_key(real)).members == ()
            assert await has_member_key(real, silent.name), "its lease had run out: this would prove nothing"
            thaw_node(silent)
            await until_synchronous(real, lambda key: key.members == (silent.name,))
            assert names_in_force(real) == silent.name
        assert writers.lost() == set()


async def test_another_takes_over_when_a_synchronous_standby_dies_without_a_word() -> None:
    """At two standbys the other one is named, and after it the leader's loss loses nothing."""
    async with watched_cluster(dynamic={"synchronous_mode": True, "ttl": 20}) as (real, _):
        silent = real.cluster.node((await until_synchronous(real, lambda key: bool(key.members))).members[0])
        with Writers(real) as writers:
            await until(lambda: writers.have_written(20))
            freeze_node(silent)
            other = next(node for node in standbys(real) if node.name != silent.name)
            await until_synchronous(real, lambda key: key.members == (other.name,))
            old = real.leader
            since_ms = now_ms()
            await until(lambda: writers.have_written(20, since_ms=since_ms))
            old.crash()
            await until_led_by_another(real, old.name)
            assert real.primary == other.name
            thaw_node(silent)
            old.bring_back()
            await real.settled()
        assert writers.lost() == set()


async def test_strict_mode_waits_for_a_standby_when_none_is_there() -> None:
    """No commit returns until somebody has it; what waited is acknowledged once a standby is back."""
    dynamic = {"synchronous_mode": True, "synchronous_mode_strict": True, "ttl": TTL_S}
    async with watched_cluster(dynamic=dynamic, size=2) as (real, _):
        await until_synchronous(real, lambda key: bool(key.members))
        standby = standbys(real)[0]
        with Writers(real) as writers:
            await until(lambda: writers.have_written(20))
            standby.crash()
            await until(lambda: not standby.leftovers())
            await until(lambda: waiting_commits(real) > 0)
            count = len(writers.acknowledged)
            await anyio.to_thread.run_sync(until_silent_for_a_term, real)
            assert len(writers.acknowledged) == count
            standby.bring_back()
            since_ms = now_ms()
            await until(lambda: writers.have_written(20, since_ms=since_ms))
        await real.settled()
        assert writers.lost() == set()


async def test_nobody_is_promoted_when_only_members_that_may_miss_commits_are_left() -> None:
    """The leader and its synchronous standby are gone: the third waits, although it is up and its data are good.

    The synchronous one that comes back leads, also when the third has been started anew before it.
    """
    async with watched_cluster(dynamic={"synchronous_mode": True, "ttl": TTL_S}) as (real, monitor):
        key = await until_synchronous(real, lambda key: bool(key.members))
        holder = real.cluster.node(key.members[0])
        other = next(node for node in standbys(real) if node.name != holder.name)
        old = real.leader
        with Writers(real) as writers:
            await until(lambda: writers.have_written(50))
            for node in (holder, old):
                node.crash()
            await until(lambda: not holder.leftovers() and not old.leftovers())
            other.crash()
            await until(lambda: not other.leftovers())
            other.bring_back()
            since_ms = now_ms()
            await until(lambda: now_ms() - since_ms > 3 * TTL_S * 1000)
            assert not monitor.has_seen_writes(other.name, since_ms=since_ms)
            holder.bring_back()
            await until_led_by_another(real, old.name)
            assert real.primary == holder.name
            old.bring_back()
            await real.settled()
        assert writers.lost() == set()


async def test_synchronous_standby_leads_when_the_leader_wrote_more_than_was_confirmed() -> None:
    """maximum_lag_on_failover of 0, and WAL behind the last commit that nobody confirmed: still no dead end.

    Source: Patroni #3703, leaderless for ever.
    """
    dynamic = {"synchronous_mode": True, "synchronous_mode_strict": True, "maximum_lag_on_failover": 0, "ttl": TTL_S}
    async with watched_cluster(dynamic=dynamic | {"loop_wait": 1}, size=2) as (real, _):
        await until_synchronous(real, lambda key: bool(key.members))
        old, standby = real.leader, standbys(real)[0]
        freeze_server(standby)
        with primary_connection(real.cluster.plan) as connection:
            connection.execute("SET synchronous_commit = local")
            connection.execute("CREATE TABLE unconfirmed AS SELECT generate_series(1, 10000)")
            row = connection.execute("SELECT pg_wal_lsn_diff(pg_current_wal_flush_lsn(), '0/0')::bigint").fetchone()
        assert row is not None
        await until_published(real, row[0])
        old.crash()
        await until(lambda: not old.leftovers())
        thaw_server(standby)
        await until_led_by_another(real, old.name)
        old.bring_back()
        await real.settled()


async def test_modes_change_when_the_configuration_does() -> None:
    """From on to quorum, to two, to off and back: key and names follow, and an operator's own names are given back."""
    parameters = {"synchronous_standby_names": "somebody_else", "synchronous_commit": "local"}
    async with watched_cluster(dynamic={"ttl": 10, "postgresql": {"parameters": parameters}}) as (real, _):
        assert names_in_force(real) == "somebody_else"
        others = tuple(sorted(node.name for node in standbys(real)))
        await configure(real, synchronous_mode="quorum")
        await until_synchronous(real, lambda key: (key.members, key.quorum) == (others, 1))
        await until(lambda: names_in_force(real) == f"ANY 1 ({','.join(others)})")
        await configure(real, synchronous_mode="on", synchronous_node_count=2)
        await until_synchronous(real, lambda key: (key.members, key.quorum) == (others, 0))
        await until(lambda: names_in_force(real) == f"2 ({','.join(others)})")
        await configure(real, synchronous_node_count=1)
        key = await until_synchronous(real, lambda key: len(key.members) == 1)
        await until(lambda: names_in_force(real) == key.members[0])
        await configure(real, synchronous_mode="off")
        await until_synchronous(real, lambda key: key.leader is None)
        await until(lambda: names_in_force(real) == "somebody_else")


async def test_tags_choose_the_synchronous_standby_when_they_differ() -> None:
    """`nosync` is never waited for; of the others the higher `sync_priority` is, also when it comes later."""
    nodes: dict[str, dict[str, Any]] = {
        "n1": {"tags": {"nosync": True}},
        "n2": {"tags": {"sync_priority": 5}},
        "n3": {"tags": {"sync_priority": 9}},
    }
    async with watched_cluster(dynamic={"synchronous_mode": True, "ttl": TTL_S}, nodes=nodes) as (real, _):
        best = "n2" if real.primary == "n3" else "n3"
        await until_synchronous(real, lambda key: key.members == (best,))
        real.cluster.node(best).crash()
        second = {"n1": "n2", "n2": None, "n3": None}[real.primary]
        await until_synchronous(real, lambda key: key.members == ((second,) if second else ()))
        real.cluster.node(best).bring_back()
        await until_synchronous(real, lambda key: key.members == (best,))
        await real.settled()


async def test_standby_that_lags_is_waited_for_only_when_no_limit_is_set() -> None:
    """maximum_lag_on_syncnode: one that applies everything a little later never stops, and is always behind."""
    dynamic = {
        "synchronous_mode": True,
        "synchronous_node_count": 2,
        "maximum_lag_on_syncnode": 1000,
        "postgresql": {"parameters": {"synchronous_commit": "remote_apply"}},
    }
    late = {"tags": {"nofailover": True}, "postgresql": {"parameters": {"recovery_min_apply_delay": "700ms"}}}
    async with watched_cluster(dynamic=dynamic, nodes={"n3": late}) as (real, _):
        other = next(node.name for node in standbys(real) if node.name != "n3")
        with Writers(real) as writers:
            await until_synchronous(real, lambda key: key.members == (other,))
            await until(lambda: writers.have_written(300))
            assert not [order for order in real.orders(WriteSync) if "n3" in order.effect.text]  # type: ignore[union-attr]
            await configure(real, maximum_lag_on_syncnode=-1)
            await until_synchronous(real, lambda key: set(key.members) == {other, "n3"})
        assert writers.lost() == set()


async def test_node_that_restarts_first_leaves_the_key_when_it_may_miss_commits() -> None:
    """Everything is killed at once; who was not synchronous comes up first, and waits for those who were."""
    async with watched_cluster(dynamic={"synchronous_mode": "quorum", "ttl": TTL_S}) as (real, monitor):
        await until_synchronous(real, lambda key: len(key.members) == 2)
        with Writers(real) as writers:
            await until(lambda: writers.have_written(50))
            old = real.primary
            for node in real.cluster.nodes:
                node.crash()
            await until(lambda: not any(node.leftovers() for node in real.cluster.nodes))
            first, second = (node for node in real.cluster.nodes if node.name != old)
            first.bring_back()
            since_ms = now_ms()
            await until(lambda: now_ms() - since_ms > 3 * TTL_S * 1000)
            assert not monitor.has_seen_writes(first.name, since_ms=since_ms), "one of two voters is not enough"
            second.bring_back()
            await until(lambda: writers.have_written(20, since_ms=since_ms))
            real.cluster.node(old).bring_back()
            await real.settled()
        assert writers.lost() == set()


# ---- a node's processes, and what the servers say --------------------------------------------------------------------


async def has_member_key(real: RealCluster, name: str) -> bool:
    """True while the node's lease lives."""
    async with EtcdClient(list(real.cluster.etcd_cluster.endpoints)) as client:
        read = await client.read_prefix(f"{PREFIX}members/{name}", timeout_ms=5_000)
    return bool(read.keys)


async def until_published(real: RealCluster, lsn: int) -> None:
    """Return when the leader has told etcd that its WAL reaches that far."""
    with anyio.fail_after(PATIENCE_S):
        async with EtcdClient(list(real.cluster.etcd_cluster.endpoints)) as client:
            while True:
                read = await client.read_prefix(f"{PREFIX}status", timeout_ms=5_000)
                if read.keys and json.loads(read.keys[0].value)["optime"] >= lsn:
                    return
                await anyio.sleep(0.05)


def waiting_commits(real: RealCluster) -> int:
    """How many sessions of the primary wait for a standby."""
    with primary_connection(real.cluster.plan) as connection:
        row = connection.execute("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'").fetchone()
    assert row is not None
    return int(row[0])


def until_silent_for_a_term(real: RealCluster) -> None:
    """Return after a time in which a node without strict mode would have gone on: its looks and its ttl are over."""
    began_ms = now_ms()
    while now_ms() - began_ms < 2 * TTL_S * 1000:
        assert waiting_commits(real) > 0
        time.sleep(0.2)


@pytest.mark.parametrize("mode", ["on", "quorum"])
async def test_switchover_goes_to_a_synchronous_standby_when_asked(mode: str) -> None:
    """To a member of the key and back; whom the key does not name is refused, and nothing happens."""
    async with watched_cluster(dynamic={"synchronous_mode": mode, "ttl": TTL_S}) as (real, _):
        with Writers(real) as writers:
            for _ in range(2):
                key = await until_synchronous(real, lambda key: key.leader == real.primary and bool(key.members))
                old, count = real.primary, len(writers.acknowledged)
                outsiders = [node.name for node in standbys(real) if node.name not in key.members]
                for name in outsiders if mode == "on" else []:
                    assert (await ask_for_switchover(real, name)).status_code == 412
                assert (await ask_for_switchover(real, key.members[0])).status_code == 200
                await until_led_by_another(real, old)
                assert real.primary == key.members[0]
                await until(lambda count=count: len(writers.acknowledged) > count + 20)  # type: ignore[misc]
                await real.settled()
        assert writers.lost() == set()


async def ask_for_switchover(real: RealCluster, candidate: str) -> httpx.Response:
    """POST /switchover at the leader."""
    async with httpx.AsyncClient(trust_env=False, timeout=30) as http:
        body = {"leader": real.primary, "candidate": candidate}
        return await http.post(f"{real.leader.plan.api_url}/switchover", json=body)
