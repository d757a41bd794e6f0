"""Changes of the cluster's configuration in etcd reach all three servers of a real cluster, and do them no harm."""

import json
import os
import signal
from collections.abc import Callable
from typing import Any

import anyio
import anyio.to_thread
import httpx
import psycopg
import pytest
import yaml

from api.cli.demo import processes
from api.cli.demo.cluster import DemoNode
from api.cli.demo.writer import connection_options
from effects.etcd import EtcdClient
from effects.etcd_types import put
from tests.cluster.harness import RealCluster, running_cluster
from tests.cluster.witnesses import check_replay

pytestmark = [pytest.mark.anyio, pytest.mark.servers]

PATIENCE_S = 60
CONFIG = "/service/demo/config"


async def configuration(real: RealCluster) -> Any:
    """What the config key holds."""
    async with EtcdClient([real.cluster.etcd.endpoint]) as client:
        read = await client.read_prefix(CONFIG, timeout_ms=2_000)
        return json.loads(read.keys[0].value or "{}")


async def change(real: RealCluster, **postgresql: object) -> None:
    """Write the configuration with other `postgresql` settings; parameters are laid upon those that are there."""
    async with EtcdClient([real.cluster.etcd.endpoint]) as client:
        config: dict[str, Any] = await configuration(real)
        section: dict[str, Any] = config.setdefault("postgresql", {})
        parameters = {**section.get("parameters", {}), **dict(postgresql.pop("parameters", {}))}  # type: ignore[call-overload]
        config["postgresql"] = {**section, **postgresql, "parameters": parameters}
        await client.transact([], [put(CONFIG, json.dumps(config))], timeout_ms=2_000)


def ask(real: RealCluster, node: DemoNode, statement: str) -> str | None:
    """The one value that a server answers; None while it does not answer."""
    options = connection_options(real.cluster.plan, session="any")
    try:
        with psycopg.connect(**options | {"host": "127.0.0.1", "port": str(node.plan.postgres_port)}) as connection:
            row = connection.execute(statement.encode()).fetchone()
    except psycopg.Error:
        return None
    return str(row[0]) if row else None


def values(real: RealCluster, statement: str) -> list[str | None]:
    """What each server answers, in the order of the nodes."""
    return [ask(real, node, statement) for node in real.cluster.nodes]


async def until(holds: Callable[[], bool]) -> None:
    """Wait until it holds."""
    with anyio.fail_after(PATIENCE_S):
        while not await anyio.to_thread.run_sync(holds):  # noqa: ASYNC110 - other processes
            await anyio.sleep(0.1)


def status(node: DemoNode) -> dict[str, Any]:
    """GET /patroni of one node."""
    found: dict[str, Any] = httpx.get(f"{node.plan.api_url}/patroni", trust_env=False, timeout=10).json()
    return found


def reasons(real: RealCluster) -> list[object]:
    """What waits for a restart on each node, as its own status says."""
    return [status(node).get("pending_restart_reason") for node in real.cluster.nodes]


def listed_reasons(node: DemoNode) -> list[object]:
    """What waits for a restart on each member, as one node's GET /cluster says."""
    found = httpx.get(f"{node.plan.api_url}/cluster", trust_env=False, timeout=10).json()
    return [member.get("pending_restart_reason") for member in found["members"]]


def have_standbys_replayed(real: RealCluster) -> bool:
    """True when the standbys have replayed what the primary has written so far."""
    written = ask(real, real.leader, "SELECT pg_current_wal_lsn()")
    if written is None:
        return False
    caught_up = f"SELECT NOT pg_is_in_recovery() OR pg_last_wal_replay_lsn() >= '{written}'"
    return values(real, caught_up) == ["True"] * 3


def restart_server(node: DemoNode) -> None:
    """A fast shutdown from outside; the agent starts the server again."""
    os.kill(processes.server_of(node.data_dir)[0], signal.SIGINT)


async def restart_and_see(real: RealCluster, node: DemoNode, max_connections: str) -> None:
    """Restart one server and wait until it is there again with this value."""
    started = ask(real, node, "SELECT pg_postmaster_start_time()")
    restart_server(node)
    await until(lambda: ask(real, node, "SELECT pg_postmaster_start_time()") not in (None, started))
    assert ask(real, node, "SHOW max_connections") == max_connections
    await real.settled()
    await until(lambda: have_standbys_replayed(real))


async def test_parameter_applies_on_every_server_without_a_restart_when_it_is_changed_in_etcd() -> None:
    """A reload is enough for work_mem; what nobody set falls back to PostgreSQL's own value."""
    async with running_cluster() as (real, _):
        started = values(real, "SELECT pg_postmaster_start_time()")
        await change(real, parameters={"work_mem": "7MB"})
        await until(lambda: values(real, "SHOW work_mem") == ["7MB"] * 3)
        await change(real, parameters={"work_mem": None})
        await until(lambda: values(real, "SHOW work_mem") == ["4MB"] * 3)
        assert values(real, "SELECT pg_postmaster_start_time()") == started
        assert reasons(real) == [None] * 3
        for node in real.cluster.nodes:
            await anyio.to_thread.run_sync(check_replay, node)


async def test_first_configuration_is_the_nodes_own_until_etcd_says_otherwise() -> None:
    """bootstrap.dcs fills the config key; later it is ignored, which the console tells, with both values."""
    async with running_cluster() as (real, _):
        own = yaml.safe_load(real.leader.settings_path.read_text())["bootstrap"]["dcs"]
        assert await configuration(real) == own
        logs = [node.output_path for node in real.cluster.nodes]
        assert not any("ignored, as etcd says otherwise" in log.read_text() for log in logs)
        await change(real, parameters={"max_wal_size": "300MB"})
        line = 'postgresql.parameters.max_wal_size is "256MB" here, "300MB" in etcd'
        await until(lambda: all(line in log.read_text() for log in logs))


async def test_controlled_parameter_is_raised_and_lowered_safely_when_servers_are_restarted_one_by_one() -> None:
    """Raised on the standbys first, lowered on the primary first; in the wrong order a standby keeps what it needs."""
    async with running_cluster() as (real, _):
        standbys = [node for node in real.cluster.nodes if node.name != real.primary]
        await change(real, parameters={"max_connections": 150})
        raised = {"max_connections": {"old_value": "100", "new_value": "150"}}
        await until(lambda: reasons(real) == [raised] * 3)
        await until(lambda: listed_reasons(standbys[0]) == [raised] * 3)
        for node in [*standbys, real.leader]:
            await restart_and_see(real, node, "150")
        await until(lambda: reasons(real) == [None] * 3)

        await change(real, parameters={"max_connections": 80})
        lowered = {"max_connections": {"old_value": "150", "new_value": "80"}}
        await until(lambda: reasons(real) == [lowered] * 3)
        await restart_and_see(real, standbys[0], "150")  # the wrong order: its primary still has 150
        await until(lambda: reasons(real) == [lowered] * 3)
        await restart_and_see(real, real.leader, "80")
        for node in [node for node in real.cluster.nodes if node.name != real.primary]:
            await restart_and_see(real, node, "80")
        await until(lambda: reasons(real) == [None] * 3)


async def test_standbys_go_on_replaying_when_the_primary_was_restarted_first_with_more() -> None:
    """In the wrong order of a raise standbys stop replaying; their agents start them anew with what they need."""
    async with running_cluster() as (real, _):
        await change(real, parameters={"max_connections": 150})
        await until(lambda: all(reasons(real)))
        await restart_and_see(real, real.leader, "150")
        await until(lambda: values(real, "SHOW max_connections") == ["150"] * 3)
        await until(lambda: have_standbys_replayed(real))
        await until(lambda: reasons(real) == [None] * 3)
        await real.settled()


async def test_servers_run_on_and_start_again_when_a_parameter_is_bad() -> None:
    """What PostgreSQL refuses is left out and told; the rest of the same change applies, and every server starts."""
    async with running_cluster() as (real, _):
        await change(real, parameters={"wrok_mem": "1MB", "effective_cache_size": "much", "work_mem": "9MB"})
        await until(lambda: values(real, "SHOW work_mem") == ["9MB"] * 3)
        refused = [status(node)["matriarch"]["refused_parameters"] for node in real.cluster.nodes]
        assert [sorted(found) for found in refused] == [["effective_cache_size", "wrok_mem"]] * 3
        for node in real.cluster.nodes:
            node.crash()
        await until(lambda: not any(node.leftovers() for node in real.cluster.nodes))
        for node in real.cluster.nodes:
            node.bring_back()
        await real.settled()
        await until(lambda: values(real, "SHOW work_mem") == ["9MB"] * 3)
        assert "wrok_mem is left out of the server's configuration" in real.leader.output_path.read_text()


async def test_rules_for_clients_apply_on_every_server_when_they_are_in_etcd() -> None:
    """pg_hba from the dynamic configuration replaces the default one; bad rules leave it as it is."""
    rules = ["local all,replication all scram-sha-256", "host all,replication all all scram-sha-256"]
    counted = "SELECT count(*) FROM pg_hba_file_rules"
    async with running_cluster() as (real, _):
        assert values(real, counted) == ["4"] * 3
        await change(real, pg_hba=rules, parameters={"work_mem": "5MB"})
        await until(lambda: values(real, "SHOW work_mem") == ["5MB"] * 3)
        await until(lambda: values(real, counted) == ["2"] * 3)
        await change(real, pg_hba=[*rules, "nobody all all all"], parameters={"work_mem": "6MB"})
        await until(lambda: values(real, "SHOW work_mem") == ["6MB"] * 3)
        assert values(real, counted) == ["2"] * 3
        assert status(real.leader)["matriarch"]["refused_parameters"]["pg_hba"].startswith("line 3: ")
