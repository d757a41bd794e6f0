"""Faults of a real cluster: three agents, three servers and etcd, each in processes of its own.

Two things hold in all of them: a monitor that tries a write on every server all the time never finds two that take one
at once, and each node's log decides the same again.
"""

import os
import signal
from functools import partial

import httpx
import pytest

from api.cli.demo import processes
from api.cli.demo.servers import primary_connection
from effects.clock import now_ms
from effects.etcd import EtcdClient
from effects.etcd_types import delete, put
from fsm.events import ServerExited
from tests.cluster.witnesses import PATIENCE_S, until, until_led_by_another, watched_cluster

pytestmark = [pytest.mark.anyio, pytest.mark.servers]


async def test_cluster_elects_another_when_the_leaders_agent_is_frozen() -> None:
    """The fence ends the frozen agent's server at its deadline; the agent, thawed, brings it back as a replica."""
    async with watched_cluster() as (real, _):
        old = real.leader
        old.freeze()
        await until_led_by_another(real, old.name)
        assert processes.server_of(old.data_dir) == []
        old.bring_back()
        await real.settled()
        kill = next(e.event.kill for e in real.entries(old.name) if isinstance(e.event, ServerExited) and e.event.fired)
        assert kill is not None
        assert kill.processes > 1
        async with httpx.AsyncClient(trust_env=False, timeout=10) as http:
            told = (await http.get(f"{old.plan.api_url}/patroni")).json()["matriarch"]["fence"]["last_kill"]
        assert (told["reason"], told["took_ms"]) == ("deadline", kill.gone_at_ms - kill.at_ms)
        assert told["margin_ms"] > 0


async def test_cluster_elects_another_when_the_leaders_agent_is_killed() -> None:
    """The server of a dead agent does not outlive the lease, and comes back with the next agent."""
    async with watched_cluster() as (real, _):
        old = real.leader
        assert old.agent_pid is not None
        os.kill(old.agent_pid, signal.SIGKILL)
        await until_led_by_another(real, old.name)
        assert processes.server_of(old.data_dir) == []
        old.bring_back()
        await real.settled()


async def test_server_goes_on_when_the_leaders_agent_is_back_within_the_lease() -> None:
    """A restarted agent takes up its server and its key; nothing happens to either."""
    async with watched_cluster() as (real, _):
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
    async with watched_cluster() as (real, _):
        leader = real.leader
        fence, server = processes.fence_of(leader.state_dir), processes.server_of(leader.data_dir)[0]
        assert fence is not None
        os.kill(fence, signal.SIGKILL)
        await until(lambda: processes.server_of(leader.data_dir)[:1] != [server])
        await real.settled()


async def test_leader_goes_on_when_etcd_is_frozen_for_longer_than_the_lease() -> None:
    """Every member confirms the leader in etcd's place; when etcd is back nothing is disturbed."""
    async with watched_cluster() as (real, monitor):
        leader, server = real.primary, processes.server_of(real.leader.data_dir)[0]
        real.cluster.etcd.freeze()
        await until(partial(monitor.has_seen_writes, leader, since_ms=now_ms() + 12_000))
        real.cluster.etcd.thaw()
        await real.settled()
        assert real.primary == leader
        assert processes.server_of(real.leader.data_dir)[0] == server


async def test_leader_steps_down_when_etcd_is_frozen_and_a_member_is_silent() -> None:
    """Without etcd and without every member's word the leader's server ends in time, and comes back with etcd."""
    async with watched_cluster() as (real, _):
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
    async with watched_cluster() as (real, monitor):
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
    async with watched_cluster() as (real, _):
        leader = real.leader
        server = processes.server_of(leader.data_dir)[0]
        async with EtcdClient([real.cluster.etcd.endpoint]) as client:
            await client.transact([], [delete("/service/demo/leader")], timeout_ms=2_000)
        await until(lambda: processes.server_of(leader.data_dir)[:1] != [server])
        await real.settled()


async def test_node_clones_anew_when_an_operator_asks() -> None:
    """POST /reinitialize replaces a replica's data by a base backup; the old ones are kept aside."""
    async with watched_cluster() as (real, _):
        replica = next(node for node in real.cluster.nodes if node.name != real.primary)
        async with httpx.AsyncClient(trust_env=False, timeout=10) as http:
            answer = await http.post(f"{replica.plan.api_url}/reinitialize")
        assert answer.status_code == 200, answer.text
        await until(lambda: bool(list(replica.directory.glob("data.aside.*"))))
        await real.settled()


async def test_nodes_start_again_when_all_were_killed_at_once() -> None:
    """The data directories survive; nobody runs initdb again."""
    async with watched_cluster() as (real, _):
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
    async with watched_cluster() as (real, monitor):
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
