"""One running project: what the tests do to it and ask of it, with the commands that a user would type."""

import json
import os
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psycopg

from effects.clock import now_ms
from tests.compose.daemon import has_compose_plugin
from tests.compose.images import ROOT, docker

NODES, ETCD_MEMBERS = ("node1", "node2", "node3"), ("etcd1", "etcd2", "etcd3")
SERVICES = (*ETCD_MEMBERS, *NODES, "haproxy")
PATIENCE_S, POLL_S = 120, 0.2
LOG_LINES = 60
CAUGHT_UP = "SELECT count(*) FROM pg_stat_replication WHERE replay_lsn >= pg_current_wal_insert_lsn()"
FILE = ("--file", str(ROOT / "compose.yaml"))
ASK_STATUS = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:8008/patroni').read().decode())"


class Project:
    """The services of compose.yaml under a project name of their own, on ports of their own."""

    def __init__(self, address: str, tag: str, env_file: Path) -> None:
        self.address, self.name = address, f"matriarch-test-{os.getpid()}"
        self.primary_port, self.replicas_port, self.statistics_port = _free_ports(3)
        self.has_failed = False
        self._env_file = env_file
        # Nothing of the tester's own settings, nor of a file .env, changes what is tested.
        self._environment = {key: value for key, value in os.environ.items() if not key.startswith("PATRONI_")} | {
            "DOCKER_HOST": address,
            "MATRIARCH_TAG": tag,
            "PUBLISH_ADDRESS": "127.0.0.1",
            "PRIMARY_PORT": str(self.primary_port),
            "REPLICAS_PORT": str(self.replicas_port),
            "STATISTICS_PORT": str(self.statistics_port),
            "PATRONI_SUPERUSER_PASSWORD": "it's a secret: $ and # too",
        }
        self._compose = ["docker", "compose"] if has_compose_plugin() else ["docker-compose"]

    # ---- commands ---------------------------------------------------------------------------------------------------

    def compose(self, *words: str) -> str:
        """What a command of Compose prints."""
        ended = subprocess.run(
            [*self._compose, "--env-file", str(self._env_file), "--project-name", self.name, *FILE, *words],
            env=self._environment,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert ended.returncode == 0, f"{' '.join(words)} failed:\n{ended.stdout[-2000:]}\n{ended.stderr[-2000:]}"
        return ended.stdout

    def up(self) -> None:
        """Create and start what is not there; the images are built already."""
        self.compose("up", "--detach", "--no-build")

    def docker(self, *words: str) -> str:
        """What a docker command prints."""
        return docker(self.address, *words, timeout_s=300).strip()

    def container(self, service: str) -> str:
        """The id of a service's container, running or not."""
        labels = (f"com.docker.compose.project={self.name}", f"com.docker.compose.service={service}")
        found = self.docker(
            "ps", "--all", "--quiet", *(word for label in labels for word in ("--filter", f"label={label}"))
        )
        assert found, f"{service} has no container"
        return found

    def inside(self, service: str, *command: str) -> str:
        """What a command in a service's container prints."""
        return self.docker("exec", self.container(service), *command)

    def state(self, service: str) -> dict[str, object]:
        """What the daemon says of a service's container."""
        found: dict[str, object] = json.loads(
            self.docker("inspect", "--format", "{{json .State}}", self.container(service))
        )
        return found

    def restarts(self, service: str) -> int:
        """How often the daemon has started a container again by itself."""
        return int(self.docker("inspect", "--format", "{{.RestartCount}}", self.container(service)))

    # ---- what is so -------------------------------------------------------------------------------------------------

    def is_healthy(self, service: str) -> bool:
        """True when the container's own health check says so."""
        health = self.state(service).get("Health")
        return isinstance(health, dict) and health.get("Status") == "healthy"

    def answers(self, node: str, path: str) -> bool:
        """True when the node's agent answers 200 to a path."""
        words = ["docker", "--host", self.address, "exec", self.container(node), "answers", "8008", path]
        return subprocess.run(words, capture_output=True, timeout=60).returncode == 0

    def primaries(self) -> list[str]:
        """The nodes that say they are the primary."""
        return [node for node in NODES if self.answers(node, "/primary")]

    def is_settled(self) -> bool:
        """True when one node is the primary and the two others stream from it."""
        primaries = self.primaries()
        replicas = [node for node in NODES if self.answers(node, "/replica?replication_state=streaming")]
        return len(primaries) == 1 and len(replicas) == len(NODES) - 1

    def settle(self) -> str:
        """The primary, once all stream."""
        until(self.is_settled, "one primary and two streaming replicas")
        return self.primaries()[0]

    def etcd_leader(self) -> str:
        """The etcd member that leads the others."""
        for member in ETCD_MEMBERS:
            words = ("etcdctl", "--write-out=json", "--endpoints=127.0.0.1:2379", "endpoint", "status")
            status = json.loads(self.inside(member, *words))[0]["Status"]
            if status["leader"] == status["header"]["member_id"]:
                return member
        raise AssertionError("no member of etcd leads")

    def etcd_seen_at_s(self, node: str) -> int:
        """When the node last heard of etcd, as GET /patroni says it."""
        return int(json.loads(self.inside(node, "python3", "-c", ASK_STATUS))["dcs_last_seen"])

    # ---- SQL over the published ports -------------------------------------------------------------------------------

    def query(self, port: int, statement: str) -> list[tuple[object, ...]]:
        """The rows that one statement gives over a published port. Raises: psycopg.Error."""
        with psycopg.connect(
            host="127.0.0.1",
            port=port,
            user="postgres",
            password=self._environment["PATRONI_SUPERUSER_PASSWORD"],
            dbname="postgres",
            connect_timeout=10,
            autocommit=True,
        ) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def write(self, row: int) -> None:
        """Write one row through the primary's port, as often as it takes: who does not know writes again."""

        def is_written() -> bool:
            with suppress(psycopg.Error):
                self.query(self.primary_port, f"INSERT INTO proof VALUES ({row:d}) ON CONFLICT DO NOTHING")
                return True
            return False

        until(is_written, f"row {row} written through port {self.primary_port}")

    def rows(self, port: int) -> set[object]:
        """The rows as a published port shows them; none while it does not answer."""
        with suppress(psycopg.Error):
            return {row[0] for row in self.query(port, "SELECT id FROM proof")}
        return set()

    def is_replicated(self) -> bool:
        """True when both replicas have replayed all that the primary has written."""
        with suppress(psycopg.Error):
            return self.query(self.primary_port, CAUGHT_UP) == [(len(NODES) - 1,)]
        return False

    # ---- for who reads a failure ------------------------------------------------------------------------------------

    def logs(self) -> str:
        """The state of all containers and the last lines that each wrote."""
        parts = []
        for service in SERVICES:
            with suppress(AssertionError, subprocess.TimeoutExpired):
                state = self.state(service)
                said = subprocess.run(
                    ["docker", "--host", self.address, "logs", "--tail", str(LOG_LINES), self.container(service)],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    timeout=60,
                ).stdout
                state.pop("Health", None)
                parts.append(f"==== {service}: {state}\n{said}")
        for node in NODES:
            with suppress(AssertionError, subprocess.TimeoutExpired):
                path = f"/var/lib/postgresql/matriarch/{node}/postgres.log"
                parts.append(f"==== {node}, PostgreSQL\n{self.inside(node, 'tail', '-n', '20', path)}")
        return "\n".join(parts)


def until(is_so: Callable[[], bool], what: str) -> None:
    """Return when it is so. Raises: AssertionError when patience ends."""
    deadline_ms = now_ms() + PATIENCE_S * 1000
    while not is_so():
        assert now_ms() < deadline_ms, f"not within {PATIENCE_S} s: {what}"
        time.sleep(POLL_S)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [opened.getsockname()[1] for opened in sockets]
    for opened in sockets:
        opened.close()
    return ports
