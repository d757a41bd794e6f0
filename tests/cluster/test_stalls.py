"""A leader whose server hangs, or whose disk is full or hangs, on real servers: replaced, and only then.

What holds in all of them is checked as everywhere: no two servers take a write, and the logs decide the same again.
"""

import contextlib
from functools import partial

import httpx
import psycopg
import pytest

from api.cli.demo.cluster import DemoNode
from effects.clock import now_ms
from fsm.events import ServerDoomed, ServerExited
from tests.cluster.disks import (
    fill,
    freezable_data_disks,
    freezable_log_disks,
    freeze_disk,
    log_disk,
    make_room,
    small_data_disks,
    thaw_disk,
)
from tests.cluster.faults import freeze_server
from tests.cluster.harness import RealCluster
from tests.cluster.witnesses import (
    Monitor,
    postmaster_of,
    server_connection,
    until,
    watched_cluster,
)

pytestmark = [pytest.mark.anyio, pytest.mark.servers]

EAGER = {"ttl": 20, "primary_stall_timeout": 5}


def api_code(node: DemoNode, path: str) -> int:
    """What a health check of the node answers."""
    return httpx.get(f"http://127.0.0.1:{node.plan.api_port}{path}", timeout=5).status_code


def rules_of(real: RealCluster, name: str, since_ms: int) -> list[str]:
    """The rules that moved a node since an instant."""
    return [entry.rule for entry in real.entries(name, since_ms=since_ms) if entry.rule]


async def until_written_elsewhere(real: RealCluster, monitor: Monitor, old: str, since_ms: int, what: str) -> None:
    """Wait until another server takes writes, and say how long that took from an instant."""
    others = [node.name for node in real.cluster.nodes if node.name != old]
    await until(lambda: any(monitor.has_seen_writes(name, since_ms=since_ms) for name in others))
    first_ms = min(began for name in others for began, _ in monitor.accepted[name] if began >= since_ms)
    print(f"{what}: {first_ms - since_ms} ms to a new writable primary")


async def test_leader_is_replaced_when_its_server_hangs() -> None:
    """Every process of the server stands still: clients are sent away first, then another leads; it comes back."""
    async with watched_cluster(dynamic=EAGER) as (real, monitor):
        old, since_ms = real.leader, now_ms()
        freeze_server(old)
        await until(lambda: api_code(old, "/primary") == 503 and api_code(old, "/leader") == 503)
        await until_written_elsewhere(real, monitor, old.name, since_ms, "server frozen")
        await real.settled()
        assert rules_of(real, old.name, since_ms)[0] == "L7"


async def test_leader_hands_over_when_its_disk_is_full() -> None:
    """The server stops in order, a standby with room leads, and the full one neither leads again nor stays away."""
    async with watched_cluster(dynamic={"ttl": 20}, around=small_data_disks("300m")) as (real, monitor):
        old, since_ms = real.leader, now_ms()
        fill(old.data_dir)
        await until_written_elsewhere(real, monitor, old.name, since_ms, "disk full")
        assert rules_of(real, old.name, since_ms)[0] in ("L9", "L10")
        make_room(old.data_dir)
        await real.settled()
        assert real.primary != old.name


async def test_leader_is_replaced_when_its_disk_hangs() -> None:
    """Reads are answered, writes hang in the kernel, where nothing can be killed: the key is given up all the same."""
    async with watched_cluster(dynamic=EAGER, around=freezable_data_disks()) as (real, monitor):
        old, since_ms = real.leader, now_ms()
        freeze_disk(old.data_dir)
        await until_written_elsewhere(real, monitor, old.name, since_ms, "disk hangs")
        assert rules_of(real, old.name, since_ms)[0] in ("L7", "L8")
        assert any(isinstance(entry.event, ServerDoomed) for entry in real.entries(old.name, since_ms=since_ms))
        thaw_disk(old.data_dir)
        await real.settled()
        assert real.primary != old.name


async def test_leader_is_replaced_when_its_server_panics_for_want_of_room() -> None:
    """PostgreSQL ends when it cannot write WAL, and cannot recover: nobody waits for primary_start_timeout."""
    async with watched_cluster(dynamic={"ttl": 20}, around=small_data_disks("300m")) as (real, monitor):
        old, since_ms = real.leader, now_ms()
        server = postmaster_of(old)
        fill(old.data_dir)
        with contextlib.suppress(psycopg.Error), server_connection(real, old.name, autocommit=True) as connection:
            while True:  # one segment after the other, until there is no room for the next
                connection.execute(
                    "SELECT pg_logical_emit_message(false, 'fill', repeat('x', 1000000)), pg_switch_wal()"
                )
        await until_written_elsewhere(real, monitor, old.name, since_ms, "server without room")
        exits = [entry.event for entry in real.entries(old.name, since_ms=since_ms)]
        assert any(isinstance(event, ServerExited) and event.pid == server for event in exits)
        assert rules_of(real, old.name, since_ms)[0] in ("L3", "L9", "L10")
        make_room(old.data_dir)
        await real.settled()
        assert real.primary != old.name


async def test_leader_goes_on_when_the_disk_of_its_log_is_full_or_hangs() -> None:
    """The log is kept in memory and says so; lease, health checks, server and clients do not notice."""
    async with watched_cluster(dynamic={"ttl": 3}, around=freezable_log_disks()) as (real, monitor):
        leader, since_ms = real.leader, now_ms()
        fill(log_disk(leader))
        await until(lambda: is_log_degraded(leader))
        await until(partial(monitor.has_seen_writes, leader.name, since_ms=now_ms() + 4_000))
        make_room(log_disk(leader))
        await until(lambda: not is_log_degraded(leader))
        freeze_disk(log_disk(leader))
        try:
            await until(lambda: is_log_degraded(leader))
            await until(partial(monitor.has_seen_writes, leader.name, since_ms=now_ms() + 4_000))
            assert [api_code(node, "/primary") for node in real.cluster.nodes].count(200) == 1
            assert api_code(leader, "/primary") == 200
        finally:
            thaw_disk(log_disk(leader))
        await real.settled()
        assert [rule for node in real.cluster.nodes for rule in rules_of(real, node.name, since_ms)] == []


def is_log_degraded(node: DemoNode) -> bool:
    """True while the node says that its log does not reach the disk."""
    status = httpx.get(f"http://127.0.0.1:{node.plan.api_port}/patroni", timeout=5).json()
    return status["matriarch"].get("log_degraded", False) is True
