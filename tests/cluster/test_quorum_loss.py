"""etcd without a quorum: nobody is elected, the present leader goes on by its members' word, or steps down in time."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import anyio.to_thread
import pytest

from api.cli.demo import processes
from effects.clock import now_ms
from fsm.effects import Promote
from fsm.events import LeaseHeld, ServerExited, Succeeded
from tests.cluster.harness import RealCluster
from tests.cluster.witnesses import (
    STREAMING_FROM,
    Monitor,
    ask_primary,
    postmaster_of,
    read_key,
    until,
    watched_cluster,
)

pytestmark = [pytest.mark.anyio, pytest.mark.servers]

TTL_S = 3


@asynccontextmanager
async def without_quorum(real: RealCluster, *, how: str) -> AsyncIterator[None]:
    """Two of three members are gone inside, the leading one among them; afterwards they are back."""
    leading = real.cluster.etcd_cluster.leader
    other = next(member for member in real.cluster.etcd_cluster.members if member is not leading)
    for member in (leading, other):
        member.freeze() if how == "frozen" else member.kill()
    yield
    for member in (leading, other):
        member.thaw() if how == "frozen" else member.launch()
    for member in (leading, other):
        await anyio.to_thread.run_sync(member.wait_until_healthy)


@pytest.fixture(scope="module")
async def watched() -> AsyncIterator[tuple[RealCluster, Monitor]]:
    """A cluster under the monitor for the tests that leave it as it was."""
    async with watched_cluster(etcd_members=3, dynamic={"ttl": TTL_S}) as found:
        yield found


@pytest.mark.parametrize("how", ["killed", "frozen"])
async def test_leader_goes_on_when_etcd_has_no_quorum(watched: tuple[RealCluster, Monitor], how: str) -> None:
    """Through three lives of its lease the leader, its server and its replicas stay, and also when etcd is back."""
    real, monitor = watched
    leader, server = real.primary, postmaster_of(real.leader)
    senders = ask_primary(real, STREAMING_FROM)
    since_ms = now_ms()
    async with without_quorum(real, how=how):
        await until(partial(monitor.has_seen_writes, leader, since_ms=since_ms + 3 * TTL_S * 1000))
    await until(partial(monitor.has_seen_writes, leader, since_ms=now_ms() + TTL_S * 1000))
    await real.settled()
    assert (real.primary, postmaster_of(real.leader)) == (leader, server)
    assert ask_primary(real, STREAMING_FROM) == senders
    assert real.orders(Promote, since_ms=since_ms) == []
    key = await read_key(real, "leader")
    assert key is not None
    assert key.value == leader


async def test_leader_steps_down_when_a_replica_dies_while_etcd_has_no_quorum(
    watched: tuple[RealCluster, Monitor],
) -> None:
    """Who is listed may be elected, so its silence is no consent; with the quorum an election follows."""
    real, monitor = watched
    leader, replica = real.leader, real.replicas[0]
    since_ms = now_ms()
    async with without_quorum(real, how="killed"):
        await until(partial(monitor.has_seen_writes, leader.name, since_ms=since_ms + TTL_S * 1000))
        replica.crash()
        await until(lambda: not processes.server_of(leader.data_dir))
        assert real.orders(Promote, since_ms=since_ms) == []
    replica.bring_back()
    await real.settled()


async def test_leader_steps_down_in_time_when_etcd_has_no_quorum_and_failsafe_is_off() -> None:
    """The server is gone before the lease that it led by can be over at etcd."""
    async with watched_cluster(etcd_members=3, dynamic={"ttl": TTL_S, "failsafe_mode": False}) as (real, _):
        leader, server = real.leader, postmaster_of(real.leader)
        async with without_quorum(real, how="killed"):
            await until(lambda: not processes.server_of(leader.data_dir))
            await until(
                lambda: bool(exits_of(real, leader.name, server))
            )  # the processes are gone before the log tells
            events = [entry.event for entry in real.entries(leader.name)]
            exits = exits_of(real, leader.name, server)
            held = [e.result for e in events if isinstance(e, Succeeded) and isinstance(e.result, LeaseHeld)]
            assert [ended.exited_at_ms < held[-1].sent_at_ms + TTL_S * 1000 for ended in exits] == [True]
        await real.settled()


def exits_of(real: RealCluster, name: str, pid: int) -> list[ServerExited]:
    """What the node logged of the end of this server."""
    events = [entry.event for entry in real.entries(name)]
    return [event for event in events if isinstance(event, ServerExited) and event.pid == pid]
