"""One node that is told everything by variables, as in a container: from nothing to a primary, and its end."""

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import httpx
import psycopg
import pytest

from effects.embedded import EmbeddedEtcd, free_ports
from effects.etcd import EtcdClient

pytestmark = [pytest.mark.anyio, pytest.mark.servers]

PATIENCE_S = 60
COMMAND = (sys.executable, "-P", "-c", "from api.cli.main import main; main()", "run")


class Node:
    """An agent with its variables."""

    def __init__(self, etcd: EmbeddedEtcd, base: Path, postgres_bin: Path) -> None:
        self.scope = f"v{uuid.uuid4().hex[:6]}"
        self.api_port, self.port = free_ports(2)
        self.output_path = base / "agent.log"
        self.variables = {
            "PATRONI_SCOPE": self.scope,
            "PATRONI_NAMESPACE": "/by-variables/",
            "PATRONI_NAME": "node1",
            "PATRONI_ETCD3_HOSTS": f"'127.0.0.1:1','{etcd.endpoint}'",
            "PATRONI_POSTGRESQL_LISTEN": f"127.0.0.1:{self.port}",
            "PATRONI_POSTGRESQL_CONNECT_ADDRESS": f"127.0.0.1:{self.port}",
            "PATRONI_POSTGRESQL_DATA_DIR": str(base / "data"),
            "PATRONI_POSTGRESQL_BIN_DIR": str(postgres_bin),
            "PATRONI_RESTAPI_LISTEN": f"127.0.0.1:{self.api_port}",
            "PATRONI_RESTAPI_CONNECT_ADDRESS": f"127.0.0.1:{self.api_port}",
            "PATRONI_SUPERUSER_USERNAME": "admin",
            "PATRONI_SUPERUSER_PASSWORD": "p:ss",
            "PATRONI_REPLICATION_USERNAME": "replicator",
            "PATRONI_REPLICATION_PASSWORD": "repl",
            "PATRONI_REWIND_USERNAME": "rewinder",
            "PATRONI_REWIND_PASSWORD": "rew",
            "PATRONI_BOOTSTRAP_DCS_TTL": "30",
            "PATRONI_BOOTSTRAP_DCS_LOOP_WAIT": "10",
            "PATRONI_BOOTSTRAP_DCS_RETRY_TIMEOUT": "30",
            "PATRONI_BOOTSTRAP_DCS_SYNCHRONOUS_MODE": "true",
            "PATRONI_BOOTSTRAP_DCS_SYNCHRONOUS_MODE_STRICT": "false",
            "PATRONI_BOOTSTRAP_DCS_POSTGRESQL_USE_PG_REWIND": "true",
            "PATRONI_BOOTSTRAP_DCS_POSTGRESQL_PARAMETERS_MAX_CONNECTIONS": "200",
            "PATRONI_BOOTSTRAP_DCS_POSTGRESQL_PARAMETERS_SHARED_BUFFERS": "16MB",
            "PATRONI_BOOTSTRAP_DCS_POSTGRESQL_PARAMETERS_DYNAMIC_SHARED_MEMORY_TYPE": "mmap",
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Run the agent."""
        outside = {key: value for key, value in os.environ.items() if key in ("PATH", "HOME")}
        with self.output_path.open("ab") as output:
            self.process = subprocess.Popen(
                COMMAND, env=outside | self.variables, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )

    def is_primary(self) -> bool:
        """True once GET /primary answers 200."""
        try:
            return httpx.get(f"http://127.0.0.1:{self.api_port}/primary", trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    def ask(self, statement: str) -> object:
        """The one value that the server answers to its superuser, over TCP."""
        conninfo = {"host": "127.0.0.1", "port": self.port, "user": "admin", "password": "p:ss", "dbname": "postgres"}
        with psycopg.connect(**conninfo) as connection:  # type: ignore[arg-type]  # libpq's own words
            row = connection.execute(statement.encode()).fetchone()
        return row[0] if row else None

    def stop(self) -> int:
        """End the agent in order; its exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_S)


@pytest.fixture
async def node(etcd_server: EmbeddedEtcd, open_directory: Path, postgres_bin: Path) -> AsyncIterator[Node]:
    """A node that is started, and ended whatever happens."""
    base = open_directory / uuid.uuid4().hex[:8]
    base.mkdir(mode=0o755)
    made = Node(etcd_server, base, postgres_bin)
    made.start()
    yield made
    if made.process is not None and made.process.poll() is None:
        await anyio.to_thread.run_sync(made.stop)


async def until(holds: Callable[[], bool], node: Node) -> None:
    """Wait until it holds; the agent's last lines are shown where it does not."""
    with anyio.move_on_after(PATIENCE_S):
        while not await anyio.to_thread.run_sync(holds):  # noqa: ASYNC110 - other processes
            await anyio.sleep(0.1)
        return
    raise AssertionError(node.output_path.read_text()[-2000:])


async def test_node_makes_a_cluster_when_variables_tell_it_everything(node: Node, etcd_server: EmbeddedEtcd) -> None:
    """The variables fill the config key and reach the server; nothing is warned of, and no password is logged."""
    await until(node.is_primary, node)
    async with EtcdClient([etcd_server.endpoint]) as client:
        prefix = f"/by-variables/{node.scope}/"
        read = await client.read_prefix(prefix, timeout_ms=5_000)
    keys: dict[str, Any] = {key.key.removeprefix(prefix): key.value for key in read.keys}
    assert keys["leader"] == "node1"
    assert json.loads(keys["config"]) == {
        "ttl": 30,
        "loop_wait": 10,
        "retry_timeout": 30,
        "synchronous_mode": True,
        "synchronous_mode_strict": False,
        "postgresql": {
            "use_pg_rewind": True,
            "parameters": {"max_connections": 200, "shared_buffers": "16MB", "dynamic_shared_memory_type": "mmap"},
        },
    }
    assert node.ask("SHOW max_connections") == "200"
    assert node.ask("SELECT string_agg(rolname, ',' ORDER BY rolname) FROM pg_roles WHERE rolcanlogin") == (
        "admin,replicator,rewinder"
    )
    assert await anyio.to_thread.run_sync(node.stop) == 0
    log = node.output_path.read_text()
    assert "WARNING" not in log
    assert "p:ss" not in log


async def test_value_in_etcd_wins_when_the_agent_comes_back_with_another_variable(node: Node) -> None:
    """The variable is ignored, and the console says so at the start."""
    await until(node.is_primary, node)
    assert await anyio.to_thread.run_sync(node.stop) == 0
    node.variables["PATRONI_BOOTSTRAP_DCS_POSTGRESQL_PARAMETERS_MAX_CONNECTIONS"] = "300"
    node.variables["PATRONI_BOOTSTRAP_DCS_TTLL"] = "20"
    node.start()
    await until(node.is_primary, node)
    assert node.ask("SHOW max_connections") == "200"
    log = node.output_path.read_text()
    assert "postgresql.parameters.max_connections is 300 here, 200 in etcd" in log
    assert "PATRONI_BOOTSTRAP_DCS_TTLL: not a known variable, ignored; did you mean PATRONI_BOOTSTRAP_DCS_TTL?" in log
    assert log.count("ignored, as etcd says otherwise") == 1
