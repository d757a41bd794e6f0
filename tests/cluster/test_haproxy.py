"""A real HAProxy with the configuration that Patroni's users have, in front of three nodes that die and change."""

import contextlib
import itertools
import shutil
import subprocess
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from api.cli.demo.writer import connection_options
from effects.clock import now_ms
from effects.embedded import free_ports
from tests.cluster.harness import RealCluster
from tests.cluster.witnesses import (
    ask_primary,
    server_connection,
    tell_primary,
    until,
    until_led_by_another,
    watched_cluster,
)

HAPROXY = shutil.which("haproxy") or ("/usr/sbin/haproxy" if Path("/usr/sbin/haproxy").exists() else None)
pytestmark = [
    pytest.mark.anyio,
    pytest.mark.servers,
    pytest.mark.skipif(HAPROXY is None, reason="no haproxy: install Debian's package haproxy"),
]

TTL_S = 3
INTER_MS, FALL, RISE = 300, 2, 1
CHECK_TIMEOUT_MS = 1_000
# How long a session may outlive the change that a check must find: the checks until `fall`, the last of which may take
# its whole timeout.
NOTICED_WITHIN_MS = FALL * (INTER_MS + CHECK_TIMEOUT_MS)

CONFIGURATION = """
global
    maxconn 100

defaults
    log global
    mode tcp
    retries 2
    timeout client 30m
    timeout connect 2s
    timeout server 30m
    timeout check {check_timeout}ms

listen primary
    bind 127.0.0.1:{primary}
    option httpchk OPTIONS /primary
    http-check expect status 200
    default-server inter {inter}ms fall {fall} rise {rise} on-marked-down shutdown-sessions
{servers}

listen replicas
    bind 127.0.0.1:{replicas}
    option httpchk OPTIONS /replica
    http-check expect status 200
    default-server inter {inter}ms fall {fall} rise {rise} on-marked-down shutdown-sessions
{servers}
"""


class Proxy:
    """A running HAProxy and its two ports."""

    def __init__(self, primary_port: int, replicas_port: int) -> None:
        self.primary_port, self.replicas_port = primary_port, replicas_port


@contextlib.contextmanager
def running_proxy(real: RealCluster) -> Iterator[Proxy]:
    """HAProxy in front of the cluster; it ends with the block."""
    assert HAPROXY is not None
    primary, replicas = free_ports(2)
    servers = "\n".join(
        f"    server {node.name} 127.0.0.1:{node.plan.postgres_port} maxconn 50 check port {node.plan.api_port}"
        for node in real.cluster.nodes
    )
    text = CONFIGURATION.format(
        primary=primary,
        replicas=replicas,
        servers=servers,
        inter=INTER_MS,
        fall=FALL,
        rise=RISE,
        check_timeout=CHECK_TIMEOUT_MS,
    )
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "haproxy.cfg")
        path.write_text(text)
        with Path(directory, "output").open("wb") as output:
            process = subprocess.Popen([HAPROXY, "-db", "-f", path], stdout=output, stderr=output)
            try:
                yield Proxy(primary, replicas)
            finally:
                process.terminate()
                process.wait(10)


class Watchers:
    """A writer, readers and a poller of the health checks, each a thread, while the cluster goes through faults."""

    def __init__(self, real: RealCluster, proxy: Proxy) -> None:
        self._real, self._proxy = real, proxy
        self._is_over = threading.Event()
        self.written: list[int] = []
        self.written_at_ms: list[int] = []
        self.reads: list[tuple[int, int, bool, int]] = []
        """When a read began and ended, whether its server was a primary, and since when that connection stood."""
        self.leaders_seen: list[list[str]] = []
        targets = [self._write, self._read, self._read, self._poll]
        self._threads = [threading.Thread(target=target) for target in targets]

    def __enter__(self) -> "Watchers":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def _connection(self, port: int) -> psycopg.Connection[Any]:
        options = connection_options(self._real.cluster.plan, session="any")
        return psycopg.connect(**options | {"host": "127.0.0.1", "port": str(port)})

    def _write(self) -> None:
        ids = itertools.count(1)
        while not self._is_over.is_set():
            with contextlib.suppress(psycopg.Error), self._connection(self._proxy.primary_port) as connection:
                while not self._is_over.is_set():
                    number = next(ids)
                    connection.execute("INSERT INTO through_proxy (id) VALUES (%s)", (number,))
                    self.written.append(number)
                    self.written_at_ms.append(now_ms())
                    self._is_over.wait(0.005)
            self._is_over.wait(0.02)

    def _read(self) -> None:
        while not self._is_over.is_set():
            with contextlib.suppress(psycopg.Error), self._connection(self._proxy.replicas_port) as connection:
                connected_ms = now_ms()
                while not self._is_over.is_set():
                    began_ms = now_ms()
                    row = connection.execute("SELECT NOT pg_is_in_recovery(), count(*) FROM through_proxy").fetchone()
                    assert row is not None
                    self.reads.append((began_ms, now_ms(), row[0], connected_ms))
                    self._is_over.wait(0.02)
            self._is_over.wait(0.02)

    def _poll(self) -> None:
        """Asks all nodes for /primary, one after the other and then again those that said yes."""
        with httpx.Client(trust_env=False, timeout=0.5) as http:
            while not self._is_over.is_set():
                # A node that says yes before and after another said yes was a primary beside it.
                first, second = self._saying_yes(http), self._saying_yes(http)
                self.leaders_seen.append(sorted(first & second))
                self._is_over.wait(0.01)

    def _saying_yes(self, http: httpx.Client) -> set[str]:
        found = set()
        for node in self._real.cluster.nodes:
            with contextlib.suppress(httpx.HTTPError):
                if http.get(f"{node.plan.api_url}/primary").status_code == 200:
                    found.add(node.name)
        return found

    def have_written_since(self, since_ms: int) -> bool:
        """True once rows went through the primary's port after an instant."""
        return sum(at_ms > since_ms for at_ms in self.written_at_ms[-50:]) >= 50

    def have_read_since(self, since_ms: int) -> bool:
        """True once reads went through the replicas' port after an instant."""
        return sum(began_ms > since_ms for began_ms, *_ in self.reads[-20:]) >= 20

    def longest_stay_on_a_primary_ms(self) -> int:
        """The longest span in which one connection through the replicas' port kept finding itself on a primary."""
        stays: dict[int, list[int]] = {}
        for _, ended_ms, is_primary, connected_ms in self.reads:
            if is_primary:
                stays.setdefault(connected_ms, []).append(ended_ms)
        return max((max(ends) - min(ends) for ends in stays.values()), default=0)


@pytest.fixture(scope="module")
async def real() -> AsyncIterator[RealCluster]:
    """A cluster under the monitor, with the table that the clients use."""
    async with watched_cluster(etcd_members=3, dynamic={"ttl": TTL_S, "loop_wait": 1}) as (found, _):
        tell_primary(found, "CREATE TABLE through_proxy (number bigserial, id bigint PRIMARY KEY)")
        # A commit waits for one standby, whichever, so that a killed leader takes no acknowledged row with it.
        for node in found.cluster.nodes:
            with server_connection(found, node.name) as connection:
                connection.execute("ALTER SYSTEM SET synchronous_standby_names = 'ANY 1 (*)'")
                connection.execute("SELECT pg_reload_conf()")
        yield found


async def go_on(watchers: Watchers) -> None:
    """Return when rows were written and read through the proxy from now on."""
    since_ms = now_ms()
    await until(lambda: watchers.have_written_since(since_ms) and watchers.have_read_since(since_ms))


async def test_clients_of_the_proxy_go_through_failovers(real: RealCluster) -> None:
    """A node killed, a server killed, a switchover: writes and reads go on, in order, and on the right servers."""
    with running_proxy(real) as proxy, Watchers(real, proxy) as watchers:
        await go_on(watchers)
        old = real.leader
        old.crash()
        await until_led_by_another(real, old.name)
        await go_on(watchers)
        old.bring_back()
        await real.settled()
        real.leader.crash_server()
        await go_on(watchers)
        await real.settled()
        told = await real.watcher.switch_over(None)
        assert told.startswith("200"), told
        await real.settled()
        await go_on(watchers)
    assert [seen for seen in watchers.leaders_seen if len(seen) > 1] == []
    assert {name for seen in watchers.leaders_seen for name in seen} >= {old.name, real.primary}
    kept = ask_primary(real, "SELECT array_agg(id ORDER BY number) FROM through_proxy")
    assert set(watchers.written) - set(kept) == set()
    assert kept == sorted(kept)
    assert watchers.longest_stay_on_a_primary_ms() <= NOTICED_WITHIN_MS
