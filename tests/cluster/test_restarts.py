"""Everything is restarted at once, or comes back in any order: the data directories survive, and so does every row."""

from collections.abc import AsyncIterator, Sequence
from functools import partial
from itertools import permutations

import anyio
import pytest

from api.cli.demo import processes
from api.cli.demo.cluster import DemoNode
from effects.clock import now_ms
from effects.etcd import EtcdClient
from effects.etcd_types import delete
from fsm.effects import Clone, InitDb
from tests.cluster.harness import RealCluster
from tests.cluster.witnesses import (
    PATIENCE_S,
    PREFIX,
    Writers,
    ask_primary,
    postmaster_of,
    read_key,
    until,
    watched_cluster,
)

pytestmark = [pytest.mark.anyio, pytest.mark.servers]

POSITION = "SELECT pg_current_wal_flush_lsn()::text"
LEVEL = "SELECT count(*) = 2 FROM pg_stat_replication WHERE replay_lsn >= %s::pg_lsn"
SYSTEM = "SELECT system_identifier FROM pg_control_system()"
ORDERS = list(permutations(("leader", "replica 1", "replica 2")))


@pytest.fixture(scope="module")
async def real() -> AsyncIterator[RealCluster]:
    """A cluster under the monitor for the tests that leave it settled."""
    async with watched_cluster(etcd_members=3, dynamic={"ttl": 3, "loop_wait": 1}) as (found, _):
        yield found


async def stop_everything(real: RealCluster, *, how: str) -> None:
    """Ends all nodes at once, killed or asked to, and returns when neither agent nor server of them runs."""
    for node in real.cluster.nodes:
        node.crash() if how == "killed" else node.ask_to_stop()
    await until(lambda: not any(is_up(node) for node in real.cluster.nodes))


def is_up(node: DemoNode) -> bool:
    """True while an agent or a server runs there."""
    return node.agent_pid is not None or bool(processes.server_of(node.data_dir))


def has_fence(node: DemoNode) -> bool:
    """True when an agent has come as far as its fence."""
    return processes.fence_of(node.state_dir) is not None


async def check_survived(real: RealCluster, system: object, since_ms: int) -> None:
    """It is the same cluster, and nobody made or copied one."""
    await real.settled()
    assert ask_primary(real, SYSTEM) == system
    assert real.orders(InitDb, since_ms=since_ms) == real.orders(Clone, since_ms=since_ms) == []


@pytest.mark.parametrize("order", ORDERS[::2], ids=" < ".join)
async def test_cluster_comes_back_when_its_nodes_start_in_any_order(real: RealCluster, order: Sequence[str]) -> None:
    """Each node has its agent before the next one is started; no row that all had is lost."""
    roles = dict(zip(("leader", "replica 1", "replica 2"), (real.leader, *real.replicas), strict=True))
    system, since_ms = ask_primary(real, SYSTEM), now_ms()
    writers = Writers(real)
    with writers:
        await until(lambda: writers.have_written(100))
    written = ask_primary(real, POSITION)
    await until(lambda: ask_primary(real, LEVEL, written))
    await stop_everything(real, how="killed" if order[0] == "leader" else "stopped")
    for role in order:
        roles[role].bring_back()
        await until(partial(has_fence, roles[role]))
    await check_survived(real, system, since_ms)
    assert writers.lost() == set()


@pytest.mark.parametrize("attempt", [1, 2])
async def test_no_acknowledged_row_is_lost_when_everything_is_killed_under_writers(
    real: RealCluster, attempt: int
) -> None:
    """All start again at once: a replica that is up first waits for the former leader's recovery."""
    system, since_ms = ask_primary(real, SYSTEM), now_ms()
    with Writers(real) as writers:
        await until(lambda: writers.have_written(300))
        for node in (*real.replicas, real.leader):  # the leader last: it alone has the newest rows
            node.crash()
    await until(lambda: not any(is_up(node) for node in real.cluster.nodes))
    for node in real.cluster.nodes:
        node.bring_back()
    await check_survived(real, system, since_ms)
    assert writers.lost() == set()


async def test_initialize_is_written_again_and_replicas_start_when_somebody_deleted_it(real: RealCluster) -> None:
    """The leader knows which cluster this is; a replica that dies meanwhile comes back."""
    system, server = ask_primary(real, SYSTEM), postmaster_of(real.leader)
    replica = real.replicas[0]
    async with EtcdClient(real.cluster.etcd_cluster.endpoints) as client:
        await client.transact([], [delete(PREFIX + "initialize")], timeout_ms=2_000)
    before = postmaster_of(replica)
    replica.crash_server()
    await until(lambda: processes.server_of(replica.data_dir)[:1] not in ([], [before]))
    await real.settled()
    with anyio.fail_after(PATIENCE_S):
        while (written := await read_key(real, "initialize")) is None:  # noqa: ASYNC110 - another process writes it
            await anyio.sleep(0.05)
    assert (written.value, postmaster_of(real.leader)) == (str(system), server)
