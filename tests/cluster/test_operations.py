"""What people ask of a real cluster over REST: restarts, other settings, planned changes of leader, a reload."""

import os
import signal
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import httpx
import psycopg
import pytest
import yaml

from api.cli.demo import processes
from api.cli.demo.cluster import DemoNode
from api.cli.demo.writer import connection_options
from effects.clock import now_ms, unix_ms
from fsm.events import ConfigAsked
from tests.cluster.harness import RealCluster
from tests.cluster.witnesses import Writers, until, watched_cluster

pytestmark = [pytest.mark.anyio, pytest.mark.servers]

PATIENCE_S = 90


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    """A client that waits as long as operations may take."""
    async with httpx.AsyncClient(trust_env=False, timeout=PATIENCE_S) as client:
        yield client


def replicas(real: RealCluster) -> list[DemoNode]:
    """The nodes that do not lead."""
    return [node for node in real.cluster.nodes if node.name != real.primary]


def moves(real: RealCluster) -> list[tuple[str, int, str]]:
    """Every move of every node so far: the node, the entry and the rule."""
    return [(entry.node, entry.seq, entry.rule) for entry in real.entries() if entry.rule]


async def json_of(http: httpx.AsyncClient, node: DemoNode, path: str) -> Any:
    """What a node answers there."""
    return (await http.get(f"{node.plan.api_url}{path}")).json()


async def status_of(http: httpx.AsyncClient, node: DemoNode, path: str) -> int:
    """The status that a node answers there."""
    return (await http.get(f"{node.plan.api_url}{path}")).status_code


async def wait_for(look: Any) -> None:
    """Return when `look` finds it so."""
    with anyio.fail_after(PATIENCE_S):
        while not await look():  # noqa: ASYNC110 - other processes
            await anyio.sleep(0.05)


async def test_leader_stays_leader_when_its_server_is_restarted(http: httpx.AsyncClient) -> None:
    """Another postmaster, the same leader, timeline and key; no node ever stood, and no acknowledged row is lost."""
    async with watched_cluster() as (real, _):
        leader, server = real.leader, processes.server_of(real.leader.data_dir)[0]
        before = await json_of(http, leader, "/patroni")
        moved = moves(real)
        with Writers(real) as writers:
            await until(partial(writers.have_written, 50))
            answer = await http.post(f"{leader.plan.api_url}/restart", json={"role": "primary", "timeout": "60s"})
            assert (answer.status_code, answer.text) == (200, "restarted successfully")
            assert await status_of(http, leader, "/primary") == 200
            await until(partial(writers.have_written, 50, since_ms=now_ms()))
        after = await json_of(http, leader, "/patroni")
        assert processes.server_of(leader.data_dir)[0] != server
        assert (after["role"], after["state"], after["timeline"]) == ("primary", "running", before["timeline"])
        assert after["postmaster_start_time"] != before["postmaster_start_time"]
        assert writers.lost() == set()
        await real.settled()
        assert real.primary == leader.name
        assert moves(real) == moved


async def test_primary_is_only_claimed_while_it_accepts_writes_when_it_is_restarted(http: httpx.AsyncClient) -> None:
    """While the server is down /primary is 503 and /leader stays 200, for the key never goes."""
    async with watched_cluster() as (real, _):
        leader = real.leader
        seen: set[tuple[int, int]] = set()

        async def watch(scope: anyio.CancelScope) -> None:
            with scope:
                while True:
                    seen.add((await status_of(http, leader, "/primary"), await status_of(http, leader, "/leader")))
                    await anyio.lowlevel.checkpoint()

        async with anyio.create_task_group() as tasks:
            scope = anyio.CancelScope()
            tasks.start_soon(watch, scope)
            assert (await http.post(f"{leader.plan.api_url}/restart")).status_code == 200
            scope.cancel()
        assert (503, 200) in seen
        assert {leads for _, leads in seen} == {200}
        await real.settled()


async def test_replica_stays_replica_when_its_server_is_restarted(http: httpx.AsyncClient) -> None:
    """The leader goes on without a pause; conditions that do not hold change nothing."""
    async with watched_cluster() as (real, _):
        node, leader = replicas(real)[0], real.leader
        server, primary = processes.server_of(node.data_dir)[0], processes.server_of(leader.data_dir)[0]
        for conditions in ({"role": "primary"}, {"postgres_version": "14.0"}, {"restart_pending": True}):
            answer = await http.post(f"{node.plan.api_url}/restart", json=conditions)
            assert answer.status_code == 503, answer.text
        assert processes.server_of(node.data_dir)[0] == server
        answer = await http.post(f"{node.plan.api_url}/restart")
        assert (answer.status_code, answer.text) == (200, "restarted successfully")
        assert processes.server_of(node.data_dir)[0] != server
        await real.settled()
        assert (await json_of(http, node, "/patroni"))["role"] == "replica"
        assert (real.primary, processes.server_of(leader.data_dir)[0]) == (leader.name, primary)
        await check_scheduled_restart(http, node)
        await real.settled()


async def check_scheduled_restart(http: httpx.AsyncClient, node: DemoNode) -> None:
    """A restart for tomorrow can be seen and dropped; one for soon is done then."""
    url, server = f"{node.plan.api_url}/restart", processes.server_of(node.data_dir)[0]
    tomorrow = {"schedule": (datetime.now(UTC) + timedelta(days=1)).isoformat()}
    assert [(await http.post(url, json=tomorrow)).status_code for _ in range(2)] == [202, 409]
    assert (await json_of(http, node, "/patroni"))["scheduled_restart"] == tomorrow
    assert [(await http.delete(url)).status_code for _ in range(2)] == [200, 404]
    due = datetime.now(UTC) + timedelta(seconds=3)
    assert (await http.post(url, json={"schedule": due.isoformat()})).status_code == 202

    async def is_done() -> bool:
        found = processes.server_of(node.data_dir)
        return bool(found) and found[0] != server and await status_of(http, node, "/replica") == 200

    await wait_for(is_done)
    assert unix_ms() >= due.timestamp() * 1000


async def test_no_acknowledged_row_is_lost_when_a_synchronous_cluster_is_restarted(http: httpx.AsyncClient) -> None:
    """Every node one after another, the leader last, with the mode switched on over REST; nobody ever stands."""
    async with watched_cluster() as (real, _):
        leader = real.leader
        answer = await http.patch(f"{leader.plan.api_url}/config", json={"synchronous_mode": True})
        assert answer.status_code == 200, answer.text

        async def is_synchronous() -> bool:
            found = await json_of(http, leader, "/cluster")
            return any(member["role"] == "sync_standby" for member in found["members"])

        await wait_for(is_synchronous)
        moved = moves(real)
        with Writers(real) as writers:
            for node in (*replicas(real), leader):
                await until(partial(writers.have_written, 20, since_ms=now_ms()))
                restarted = await http.post(f"{node.plan.api_url}/restart")
                assert restarted.status_code == 200, restarted.text
            await until(partial(writers.have_written, 20, since_ms=now_ms()))
        await wait_for(is_synchronous)
        assert (writers.lost(), moves(real), real.primary) == (set(), moved, leader.name)
        await real.settled()


async def test_every_node_goes_by_another_configuration_when_one_was_patched(http: httpx.AsyncClient) -> None:
    """PATCH on a replica reaches all; who asked for what is in the log; nonsense is refused and changes nothing."""
    async with watched_cluster() as (real, _):
        node = replicas(real)[0]
        url = f"{node.plan.api_url}/config"
        answer = await http.patch(url, json={"loop_wait": 3, "postgresql": {"parameters": {"work_mem": "5MB"}}})
        assert answer.status_code == 200, answer.text
        assert answer.json()["loop_wait"] == 3

        async def is_everywhere() -> bool:
            found = [await json_of(http, one, "/config") for one in real.cluster.nodes]
            return all(config == answer.json() for config in found)

        await wait_for(is_everywhere)
        for body, status in (({"ttl": "soon"}, 400), ({"postgresql": []}, 400), ({}, 400)):
            refused = await http.patch(url, json=body)
            assert refused.status_code == status, refused.text
        assert await is_everywhere()
        gone = await http.patch(url, json={"postgresql": {"parameters": {"work_mem": None}}})
        assert "work_mem" not in gone.text
        whole = await http.put(url, json={"ttl": 8, "loop_wait": 2})
        assert (whole.status_code, whole.json()) == (200, {"ttl": 8, "loop_wait": 2})
        asked = [entry.event for entry in real.entries() if isinstance(entry.event, ConfigAsked)]
        assert [(change.path, change.new) for change in asked[0].changes][:1] == [("loop_wait", "3")]
        assert asked[0].by == "127.0.0.1"
        await real.settled()


async def test_leadership_moves_when_asked_for_over_rest(http: httpx.AsyncClient) -> None:
    """A failover through a node that does not lead, a switchover through one, and one at an instant."""
    async with watched_cluster() as (real, _):
        old, successor = real.primary, replicas(real)[0].name
        asked_of = replicas(real)[1]
        answer = await http.post(f"{asked_of.plan.api_url}/failover", json={"candidate": successor})
        assert (answer.status_code, answer.text) == (200, f'Successfully failed over to "{successor}"')
        await real.settled()
        assert real.primary == successor
        wanted = {"leader": successor, "candidate": old}
        answer = await http.post(f"{asked_of.plan.api_url}/switchover", json=wanted)
        assert (answer.status_code, answer.text) == (200, f'Successfully switched over to "{old}"')
        await real.settled()
        await check_schedule(real, http, asked_of)


async def check_schedule(real: RealCluster, http: httpx.AsyncClient, node: DemoNode) -> None:
    """A switchover for tomorrow can be seen and dropped; one for soon is done then."""
    leader, url = real.primary, f"{node.plan.api_url}/switchover"
    candidate = next(one.name for one in real.cluster.nodes if one.name != leader)
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    wanted = {"leader": leader, "candidate": candidate}
    assert (await http.post(url, json=wanted | {"scheduled_at": tomorrow})).status_code == 202

    async def is_shown() -> bool:
        found = await json_of(http, real.leader, "/cluster")
        return bool(found.get("scheduled_switchover") == {"at": tomorrow, "from": leader, "to": candidate})

    await wait_for(is_shown)
    assert [(await http.delete(url)).status_code for _ in range(2)] == [200, 404]
    due = datetime.now(UTC) + timedelta(seconds=4)
    assert (await http.post(url, json=wanted | {"scheduled_at": due.isoformat()})).status_code == 202

    async def is_done() -> bool:
        found = await real.watcher.look()
        return found.primary is not None and found.primary.name == candidate

    await wait_for(is_done)
    assert unix_ms() >= due.timestamp() * 1000
    await real.settled()


async def test_settings_are_read_again_when_asked_for(http: httpx.AsyncClient) -> None:
    """POST /reload and SIGHUP take tags, parameters and pg_hba from the file, without a restart of the server.

    A broken file changes nothing.
    """
    async with watched_cluster() as (real, _):
        node = replicas(real)[0]
        server, settings = processes.server_of(node.data_dir)[0], yaml.safe_load(node.settings_path.read_text())

        def write(tag: str, work_mem_kb: int) -> None:
            settings["tags"] = {tag: 1}
            settings["postgresql"]["parameters"] = {"work_mem": f"{work_mem_kb}kB"}
            settings["postgresql"]["pg_hba"] = [
                "local all,replication all scram-sha-256",
                "host all,replication all all scram-sha-256",
            ]
            node.settings_path.write_text(yaml.safe_dump(settings))

        async def has_taken(tag: str, work_mem_kb: int) -> bool:
            found = await anyio.to_thread.run_sync(in_force, real, node)
            tags = (await json_of(http, node, "/patroni")).get("tags")
            return (tags, *found) == ({tag: 1}, str(work_mem_kb), 2)

        write("by_reload", 4321)
        answer = await http.post(f"{node.plan.api_url}/reload")
        assert answer.status_code == 202, answer.text
        await wait_for(partial(has_taken, "by_reload", 4321))
        node.settings_path.write_text("scope: [")
        answer = await http.post(f"{node.plan.api_url}/reload")
        assert (answer.status_code, "were not read again" in answer.text) == (503, True)
        assert await has_taken("by_reload", 4321)
        write("by_signal", 4322)
        assert node.agent_pid is not None
        os.kill(node.agent_pid, signal.SIGHUP)
        await wait_for(partial(has_taken, "by_signal", 4322))
        assert processes.server_of(node.data_dir)[0] == server
        await real.settled()


def in_force(real: RealCluster, node: DemoNode) -> tuple[str, int]:
    """The node's work_mem in kB, and the number of its access rules, by its server's own word."""
    options = connection_options(real.cluster.plan, session="any")
    options |= {"host": "127.0.0.1", "port": str(node.plan.postgres_port)}
    with psycopg.connect(**options) as connection:
        row = connection.execute(
            "SELECT (SELECT setting FROM pg_settings WHERE name = 'work_mem'), (SELECT count(*) FROM pg_hba_file_rules)"
        ).fetchone()
    assert row is not None
    return row[0], row[1]
