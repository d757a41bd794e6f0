"""What watches a real cluster in the tests: a monitor of two primaries, writers that know what was acknowledged."""

import signal
import threading
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, LiteralString, Unpack

import anyio
import anyio.to_thread
import psycopg

from api.cli.demo import processes
from api.cli.demo.cluster import DemoNode
from api.cli.demo.servers import make_tables, primary_connection
from api.cli.demo.writer import TABLE, Writer, connection_options
from effects.clock import now_ms
from effects.etcd import EtcdClient
from effects.etcd_types import KeyValue
from effects.log_reader import read_log, segments_of
from effects.verifying import verify_logs
from fsm.replay import Replay
from fsm.wire import SyncKey
from tests.cluster.harness import RealCluster, Wanted, running_cluster, sync_key
from tests.cluster.reigns import SERVERS_WORD, Taken, overlaps_of, taken_by

PATIENCE_S = 60
PREFIX = "/service/demo/"
STREAMING_FROM = "SELECT array_agg(pid ORDER BY pid) FROM pg_stat_replication WHERE state = 'streaming'"
TRY_WRITE = "INSERT INTO monitor (at_ms) VALUES (%s) RETURNING " + SERVERS_WORD


class Monitor:
    """Tries a write on each server every few milliseconds, and remembers when each took one."""

    def __init__(self, real: RealCluster) -> None:
        self._real = real
        self._is_over = threading.Event()
        self.accepted: dict[str, list[tuple[int, int]]] = {node.name: [] for node in real.cluster.nodes}
        self._taken: list[Taken] = []
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
                        row = connection.execute(TRY_WRITE, (began_ms,)).fetchone()
                        self.accepted[node.name].append((began_ms, now_ms()))
                        self._taken.append(taken_by(node.name, row))
                        self._is_over.wait(0.01)
            except psycopg.Error:
                self._is_over.wait(0.02)

    def has_seen_writes(self, name: str, *, since_ms: int) -> bool:
        """True once the server took a write that began at or after an instant."""
        taken = self.accepted[name]
        return bool(taken) and taken[-1][0] >= since_ms

    def overlaps(self) -> list[str]:
        """Pairs of servers that took writes at once."""
        return [str(overlap) for overlap in overlaps_of(list(self._taken))]


class Writers:
    """Writes ids through several connections to whichever server accepts writes, and knows which were acknowledged.

    Use it as a context manager: inside the block it writes; after it, `lost` tells what became of the ids. The table is
    the tour's, made anew.
    """

    def __init__(self, real: RealCluster, count: int = 4) -> None:
        self._plan = real.cluster.plan
        self._writers = [Writer(self._plan, first_id=number, id_step=count) for number in range(count)]

    def __enter__(self) -> "Writers":
        make_tables(self._plan)
        for writer in self._writers:
            writer.start()
        return self

    def __exit__(self, *_: object) -> None:
        for writer in self._writers:
            writer.stop()

    @property
    def acknowledged(self) -> set[int]:
        """Every id whose insertion a server said is committed."""
        return {row.row_id for writer in self._writers for row in list(writer.acknowledged)}

    def have_written(self, count: int, *, since_ms: int = 0) -> bool:
        """True once so many ids were acknowledged after an instant."""
        found = (row.at_ms > since_ms for writer in self._writers for row in list(writer.acknowledged))
        return sum(found) >= count

    def lost(self) -> set[int]:
        """The acknowledged ids that the present primary does not have. Raises: PostgresError when there is none."""
        with primary_connection(self._plan) as connection:
            kept = {row_id for (row_id,) in connection.execute(f"SELECT id FROM {TABLE}").fetchall()}
        return self.acknowledged - kept


@asynccontextmanager
async def watched_cluster(**wanted: Unpack[Wanted]) -> AsyncIterator[tuple[RealCluster, Monitor]]:
    """A running cluster under the monitor; at the end both promises are checked. `wanted`: see `running_cluster`."""
    async with running_cluster(**wanted) as (real, _):
        with Monitor(real) as monitor:
            yield real, monitor
        assert monitor.overlaps() == []
        for node in real.cluster.nodes:
            await anyio.to_thread.run_sync(check_replay, node)
        assert await anyio.to_thread.run_sync(found_in_logs, real.cluster.nodes) == []


def found_in_logs(nodes: Iterable[DemoNode]) -> list[str]:
    """What the logs of some nodes say that must not be, each by itself and all together (`matriarch verify`)."""
    verified = verify_logs([node.log_dir for node in nodes if segments_of(node.log_dir)])
    assert all(verified.looked[check] for check in ("replay", "move", "outcome")), verified.looked
    return [str(finding) for finding in verified.findings]


def check_replay(node: DemoNode) -> None:
    """The node's log decides the same again."""
    run = Replay()
    for line in read_log([node.log_dir]):
        assert run.take(line.kind, line.body, line.missing) is None, run.verdict
    assert run.verdict.entries > 0


def server_connection(real: RealCluster, name: str, **options: Any) -> psycopg.Connection[Any]:
    """A connection to one node's server, whatever its role, to be closed by the caller."""
    port = real.cluster.node(name).plan.postgres_port
    of_all = connection_options(real.cluster.plan, session="any")
    return psycopg.connect(**of_all | {"host": "127.0.0.1", "port": str(port)} | options)


def ask_server(real: RealCluster, name: str, query: LiteralString, *values: object) -> Any:
    """The first column of the only row that a query returns on one node's server."""
    with server_connection(real, name) as connection:
        row = connection.execute(query, values or None).fetchone()
    assert row is not None
    return row[0]


def ask_primary(real: RealCluster, query: LiteralString, *values: object) -> Any:
    """The first column of the only row that a query returns on the primary."""
    with primary_connection(real.cluster.plan) as connection:
        row = connection.execute(query, values or None).fetchone()
    assert row is not None
    return row[0]


def tell_primary(real: RealCluster, *statements: LiteralString) -> None:
    """Executes statements on the primary, each in a transaction of its own."""
    with primary_connection(real.cluster.plan) as connection:
        for statement in statements:
            connection.execute(statement)


def postmaster_of(node: DemoNode) -> int:
    """The postmaster that runs on a node."""
    return processes.server_of(node.data_dir)[0]


def processes_like(real: RealCluster, name: str, query: LiteralString) -> list[int]:
    """The processes of a node's server that a query names, such as its WAL senders."""
    with server_connection(real, name) as connection:
        return [pid for (pid,) in connection.execute(query).fetchall()]


@contextmanager
def frozen_processes(pids: Collection[int]) -> Iterator[None]:
    """Processes stand still inside (SIGSTOP)."""
    for pid in pids:
        processes.send(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            processes.send(pid, signal.SIGCONT)


async def read_key(real: RealCluster, name: str) -> KeyValue | None:
    """A key of the cluster as etcd has it."""
    async with EtcdClient(real.cluster.etcd_cluster.endpoints) as client:
        read = await client.read_prefix(PREFIX + name, timeout_ms=5_000)
    return next((found for found in read.keys if found.key == PREFIX + name), None)


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


async def until_synchronous(real: RealCluster, holds: Callable[[SyncKey], bool]) -> SyncKey:
    """The `sync` key, once it is as wanted."""
    with anyio.fail_after(PATIENCE_S):
        while not holds(found := await sync_key(real)):  # noqa: ASYNC110 - other processes
            await anyio.sleep(0.05)
    return found


def standbys(real: RealCluster) -> list[DemoNode]:
    """The nodes that do not lead."""
    return [node for node in real.cluster.nodes if node.name != real.primary]
