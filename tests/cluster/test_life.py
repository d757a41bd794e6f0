"""Faults of a real cluster: three agents, three servers and etcd, each in processes of its own.

Two things hold in all of them: a monitor that tries a write on every server all the time never finds two that take one
at once, and each node's log decides the same again.
"""

import os
import signal
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import anyio
import anyio.to_thread
import httpx
import psycopg
import pytest

from api.cli.demo import processes
from api.cli.demo.cluster import DemoNode
from api.cli.demo.servers import primary_connection
from api.cli.demo.writer import connection_options
from effects.clock import now_ms
from effects.etcd import EtcdClient
from effects.etcd_types import delete, put
from effects.log_reader import read_log
from fsm.replay import Replay
from tests.cluster.harness import RealCluster, running_cluster

pytestmark = [pytest.mark.anyio, pytest.mark.servers]

PATIENCE_S = 60
TRY_WRITE = "INSERT INTO monitor (at_ms) VALUES (%s)"


class Monitor:
    """Tries a write on each server every few milliseconds, and remembers when each took one."""

    def __init__(self, real: RealCluster) -> None:
        self._real = real
        self._is_over = threading.Event()
        self.accepted: dict[str, list[tuple[int, int]]] = {node.name: [] for node in real.cluster.nodes}
        self._threads = [threading.Thread(target=self._watch, args=(node,)) for node in real.cluster.nodes]

    def __enter__(self) -> "Monitor":
        with primary_connection(self._real.cluster.plan) as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS monitor (at_ms bigint)")
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def _watch(self, node: DemoNode) -> None:
        plan = self._real.cluster.plan
        options = connection_options(plan, session="any") | {"host": "127.0.0.1", "port": str(node.plan.postgres_port)}
        options["options"] = "-c synchronous_commit=local -c statement_timeout=1000"
        while not self._is_over.is_set():
            try:
                with psycopg.connect(**options) as connection:
                    while not self._is_over.is_set():
                        began_ms = now_ms()
                        connection.execute(TRY_WRITE, (began_ms,))
                        self.accepted[node.name].append((began_ms, now_ms()))
                        self._is_over.wait(0.01)
            except psycopg.Error:
                self._is_over.wait(0.02)

    def has_seen_writes(self, name: str, *, since_ms: int) -> bool:
        """True once the server took a write that began at or after an instant."""
        taken = self.accepted[name]
        return bool(taken) and taken[-1][0] >= since_ms

    def overlaps(self) -> list[str]:
        """Pairs of servers that each took a write while the other was between two of its own."""
        spans = {name: (taken[0][0], taken[-1][1]) for name, taken in self._reigns().items() if taken}
        names = sorted(spans)
        return [
            f"{one} {spans[one]} and {other} {spans[other]}"
            for i, one in enumerate(names)
            for other in names[i + 1 :]
            if spans[one][0] < spans[other][1] and spans[other][0] < spans[one][1]
        ]

    def _reigns(self) -> dict[str, list[tuple[int, int]]]:
        """Each server's writes, cut into reigns wherever another server took one in between."""
        everything = sorted((began, ended, name) for name, taken in self.accepted.items() for began, ended in taken)
        reigns: dict[str, list[tuple[int, int]]] = {}
        current, count = "", 0
        for began, ended, name in everything:
            if name != current:
                current, count = name, count + 1
            reigns.setdefault(f"{name}#{count}", []).append((began, ended))
        return reigns


@asynccontextmanager
async def cluster() -> AsyncIterator[tuple[RealCluster, Monitor]]:
    """A running cluster under the monitor; at the end both promises are checked."""
    async with running_cluster() as (real, _):
        with Monitor(real) as monitor:
            yield real, monitor
        assert monitor.overlaps() == []
        for node in real.cluster.nodes:
            await anyio.to_thread.run_sync(check_replay, node)


def check_replay(node: DemoNode) -> None:
    """The node's log decides the same again."""
    run = Replay()
    for line in read_log([node.log_dir]):
        assert run.take(line.kind, line.body, line.missing) is None, run.verdict
    assert run.verdict.entries > 0


async def until(holds: Callable[[], bool]) -> None:
    """Wait until it holds."""
    with anyio.fail_after(PATIENCE_S):
        while not holds():  # noqa: ASYNC110 - other processes
            await anyio.sleep(0.05)


async def until_led_by_another(real: RealCluster, old: str) -> None:
    """Wait until another node is the primary."""
    with anyio.fail_after(PATIENCE_S):
        while (found := (await real.watcher.look()).primary) is None or found.name == old:  # noqa: ASYNC110
            await anyio.sleep(0.05)


async def test_cluster_elects_another_when_the_leaders_agent_is_frozen() -> None:
    """The fence ends the frozen agent's server at its deadline; the agent, thawed, brings it back as a replica."""
    async with cluster() as (real, _):
        old = real.leader
        old.freeze()
        await until_led_by_another(real, old.name)
        assert processes.server_of(old.data_dir) == []
        old.bring_back()
        await real.settled()


async def test_cluster_elects_another_when_the_leaders_agent_is_killed() -> None:
    """The server of a dead agent does not outlive the lease, and comes back with the next agent."""
    async with cluster() as (real, _):
        old = real.leader
        assert old.agent_pid is not None
        os.kill(old.agent_pid, signal.SIGKILL)
        await until_led_by_another(real, old.name)
        assert processes.server_of(old.data_dir) == []
        old.bring_back()
        await real.settled()


async def test_server_goes_on_when_the_leaders_agent_is_back_within_the_lease() -> None:
    """A restarted agent takes up its server and its key; nothing happens to either."""
    async with cluster() as (real, _):
        leader = real.leader
        server = processes.server_of(leader.data_dir)[0]
        assert leader.agent_pid is not None
        os.kill(leader.agent_pid, signal.SIGKILL)
        await until(lambda: leader.agent_pid is None)
        leader.bring_back()
        await real.settled()
        assert real.primary == leader.name
        assert processes.server_of(leader.data_dir)[0] == server


async def test_server_ends_when_the_leaders_fence_is_killed() -> None:
    """Without its fence a server may not run; the agent starts another fence and the server anew."""
    async with cluster() as (real, _):
        leader = real.leader
        fence, server = processes.fence_of(leader.state_dir), processes.server_of(leader.data_dir)[0]
        assert fence is not None
        os.kill(fence, signal.SIGKILL)
        await until(lambda: processes.server_of(leader.data_dir)[:1] != [server])
        await real.settled()


async def test_leader_goes_on_when_etcd_is_frozen_for_longer_than_the_lease() -> None:
    """Every member confirms the leader in etcd's place; when etcd is back nothing is disturbed."""
    async with cluster() as (real, monitor):
        leader, server = real.primary, processes.server_of(real.leader.data_dir)[0]
        real.cluster.etcd.freeze()
        await until(partial(monitor.has_seen_writes, leader, since_ms=now_ms() + 12_000))
        real.cluster.etcd.thaw()
        await real.settled()
        assert real.primary == leader
        assert processes.server_of(real.leader.data_dir)[0] == server


async def test_leader_steps_down_when_etcd_is_frozen_and_a_member_is_silent() -> None:
    """Without etcd and without every member's word the leader's server ends in time, and comes back with etcd."""
    async with cluster() as (real, _):
        leader = real.leader
        silent = next(node for node in real.cluster.nodes if node.name != leader.name)
        silent.freeze()
        real.cluster.etcd.freeze()
        await until(lambda: not processes.server_of(leader.data_dir))
        real.cluster.etcd.thaw()
        silent.bring_back()
        await real.settled()


async def test_leader_keeps_leading_when_the_ttl_is_changed() -> None:
    """A new lease takes the old one's place under the key; the server accepts writes all the while."""
    async with cluster() as (real, monitor):
        leader, server = real.primary, processes.server_of(real.leader.data_dir)[0]
        async with EtcdClient([real.cluster.etcd.endpoint]) as client:
            for ttl_s in (20, 4, 8):
                text = f'{{"ttl":{ttl_s},"loop_wait":2}}'
                await client.transact([], [put("/service/demo/config", text)], timeout_ms=2_000)
                await until(partial(monitor.has_seen_writes, leader, since_ms=now_ms() + 3_000))
        await real.settled()
        assert real.primary == leader
        assert processes.server_of(real.leader.data_dir)[0] == server


async def test_leader_is_fenced_when_its_key_is_deleted_by_hand() -> None:
    """A leader that sees its key gone stops its server before anybody can have been promoted."""
    async with cluster() as (real, _):
        leader = real.leader
        server = processes.server_of(leader.data_dir)[0]
        async with EtcdClient([real.cluster.etcd.endpoint]) as client:
            await client.transact([], [delete("/service/demo/leader")], timeout_ms=2_000)
        await until(lambda: processes.server_of(leader.data_dir)[:1] != [server])
        await real.settled()


async def test_node_clones_anew_when_an_operator_asks() -> None:
    """POST /reinitialize replaces a replica's data by a base backup; the old ones are kept aside."""
    async with cluster() as (real, _):
        replica = next(node for node in real.cluster.nodes if node.name != real.primary)
        async with httpx.AsyncClient(trust_env=False, timeout=10) as http:
            answer = await http.post(f"{replica.plan.api_url}/reinitialize")
        assert answer.status_code == 200, answer.text
        await until(lambda: bool(list(replica.directory.glob("data.aside.*"))))
        await real.settled()


async def test_nodes_start_again_when_all_were_killed_at_once() -> None:
    """The data directories survive; nobody runs initdb again."""
    async with cluster() as (real, _):
        with primary_connection(real.cluster.plan) as connection:
            row = connection.execute("SELECT system_identifier FROM pg_control_system()").fetchone()
        for node in real.cluster.nodes:
            node.crash()
        await until(lambda: not any(node.leftovers() for node in real.cluster.nodes))
        for node in real.cluster.nodes:
            node.bring_back()
        await real.settled()
        with primary_connection(real.cluster.plan) as connection:
            assert connection.execute("SELECT system_identifier FROM pg_control_system()").fetchone() == row


async def test_leader_leads_again_when_its_successor_is_silent() -> None:
    """A switchover to a node whose agent is frozen ends where it began, with nothing lost."""
    async with cluster() as (real, monitor):
        leader = real.primary
        successor = next(node for node in real.cluster.nodes if node.name != leader)
        successor.freeze()
        async with httpx.AsyncClient(trust_env=False, timeout=PATIENCE_S) as http:
            wanted = {"leader": leader, "candidate": successor.name}
            answer = await http.post(f"{real.leader.plan.api_url}/switchover", json=wanted)
        assert answer.status_code == 503, answer.text
        await until(partial(monitor.has_seen_writes, leader, since_ms=now_ms()))
        successor.bring_back()
        await real.settled()
        assert real.primary == leader
