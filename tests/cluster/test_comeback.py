"""A former leader comes back: rewound when it diverged, cloned where that is impossible, untouched where it did not."""

import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager

import anyio.to_thread
import pytest

from api.cli.demo.cluster import DemoNode
from effects.clock import now_ms
from effects.embedded import postgres_bin_dir
from effects.etcd import EtcdClient
from effects.etcd_types import put
from fsm.effects import Clone, Rewind
from tests.cluster.harness import RealCluster, running_cluster
from tests.cluster.witnesses import (
    PREFIX,
    ask_primary,
    ask_server,
    frozen_processes,
    processes_like,
    read_key,
    server_connection,
    tell_primary,
    until,
    until_led_by_another,
    watched_cluster,
)

pytestmark = [pytest.mark.anyio, pytest.mark.servers]

SENDERS = "SELECT pid FROM pg_stat_replication"
WRITE_EXTRA = "INSERT INTO extra SELECT n, repeat('x', 500) FROM generate_series(1, 1000) n"
LEVEL = "SELECT count(*) = 1 FROM pg_stat_replication WHERE flush_lsn >= pg_current_wal_insert_lsn()"
FLUSHED = "SELECT pg_current_wal_flush_lsn() >= pg_current_wal_insert_lsn()"


def initdb_options() -> list[str]:
    """What keeps data checksums off, where they are on by default (PostgreSQL 18)."""
    told = subprocess.run([postgres_bin_dir() / "initdb", "--help"], capture_output=True, text=True, check=True)
    return ["no-data-checksums"] if "--no-data-checksums" in told.stdout else []


@pytest.fixture(scope="module")
async def real() -> AsyncIterator[RealCluster]:
    """A cluster under the monitor. It has no data checksums: wal_log_hints, which the agent keeps on, must do."""
    everywhere = {"*": {"bootstrap": {"initdb": initdb_options()}}}
    async with watched_cluster(etcd_members=3, dynamic={"ttl": 3}, nodes=everywhere) as (found, _):
        tell_primary(found, "CREATE TABLE extra (id int, filling text)")
        yield found


@contextmanager
def nothing_sent(real: RealCluster) -> Iterator[None]:
    """What is written inside reaches no replica."""
    with frozen_processes(processes_like(real, real.primary, SENDERS)):
        yield


async def crash_with_extra_wal(real: RealCluster) -> DemoNode:
    """The leader commits rows that nobody receives, and dies; another leads."""
    old = real.leader
    with nothing_sent(real):
        tell_primary(real, "SET synchronous_commit = local", WRITE_EXTRA)
        old.crash()
    await until_led_by_another(real, old.name)
    return old


async def bring_back(real: RealCluster, old: DemoNode, *, rewinds: bool, clones: bool) -> None:
    """The former leader follows, by what was to be done and nothing else, and without the rows that it had alone."""
    since_ms = now_ms()
    old.bring_back()
    await real.settled()
    assert bool(real.orders(Rewind, old.name, since_ms=since_ms)) == rewinds
    assert bool(real.orders(Clone, old.name, since_ms=since_ms)) == clones
    assert ask_server(real, old.name, "SELECT pg_is_in_recovery()")
    assert ask_server(real, old.name, "SELECT count(*) FROM extra") == ask_primary(real, "SELECT count(*) FROM extra")


async def test_nothing_is_done_when_the_leader_was_changed_in_good_order(real: RealCluster) -> None:
    """After a switchover the former leader and the other replica only follow."""
    since_ms = now_ms()
    old = real.primary
    told = await real.watcher.switch_over(None)
    assert told.startswith("200"), told
    await until_led_by_another(real, old)
    await real.settled()
    assert real.orders(Rewind, since_ms=since_ms) == real.orders(Clone, since_ms=since_ms) == []


async def test_former_leader_is_rewound_when_it_committed_what_nobody_received(real: RealCluster) -> None:
    """It was killed, so its data need recovery before pg_rewind can read them."""
    await bring_back(real, await crash_with_extra_wal(real), rewinds=True, clones=False)


async def test_former_leader_is_rewound_when_its_extra_wal_was_never_committed(real: RealCluster) -> None:
    """WAL of a transaction that was open when it died is a divergence as well."""
    old = real.leader
    with nothing_sent(real), closing(server_connection(real, old.name, autocommit=False)) as connection:
        connection.execute(WRITE_EXTRA)
        await until(lambda: bool(ask_server(real, old.name, FLUSHED)))
        old.crash()
    await until_led_by_another(real, old.name)
    await bring_back(real, old, rewinds=True, clones=False)


async def test_former_leader_is_rewound_when_the_cluster_went_through_several_timelines(real: RealCluster) -> None:
    """Its timeline ended two promotions ago."""
    old = await crash_with_extra_wal(real)
    second = real.primary
    candidate = next(node.name for node in real.cluster.nodes if node.name not in (old.name, second))
    await real.settled(but=(old.name,))
    told = await real.watcher.switch_over(candidate)
    assert told.startswith("200"), told
    await until_led_by_another(real, second)
    await bring_back(real, old, rewinds=True, clones=False)


async def test_former_leader_is_cloned_when_its_rewind_fails(real: RealCluster) -> None:
    """Its WAL is lost, so nobody can tell where it went its own way; the old data are kept aside."""
    old = await crash_with_extra_wal(real)
    for path in (old.data_dir / "pg_wal").glob("0*"):
        path.unlink()
    await bring_back(real, old, rewinds=True, clones=True)
    assert forget_what_was_kept_aside(old) == 1


async def test_former_leader_is_cloned_when_its_rewind_would_be_refused(real: RealCluster) -> None:
    """Neither checksums nor wal_log_hints: pg_rewind could not know which pages differ."""
    old = await crash_with_extra_wal(real)
    await anyio.to_thread.run_sync(run_without_hints, real, old)
    await bring_back(real, old, rewinds=False, clones=True)
    assert forget_what_was_kept_aside(old) == 1


async def test_former_leader_is_cloned_when_rewind_is_off(real: RealCluster) -> None:
    """The settings say what may be done with data that diverged."""
    config = await read_key(real, "config")
    assert config is not None
    off = config.value.replace('"postgresql":{', '"postgresql":{"use_pg_rewind":false,')
    assert off != config.value
    async with EtcdClient(real.cluster.etcd_cluster.endpoints) as client:
        await client.transact([], [put(PREFIX + "config", off)], timeout_ms=2_000)
        old = await crash_with_extra_wal(real)
        await bring_back(real, old, rewinds=False, clones=True)
        await client.transact([], [put(PREFIX + "config", config.value)], timeout_ms=2_000)
    assert forget_what_was_kept_aside(old) == 1


@pytest.mark.parametrize("use_pg_rewind", [True, False])
async def test_nothing_is_done_when_the_leader_crashed_with_nothing_of_its_own(use_pg_rewind: bool) -> None:
    """The server's own recovery settles the doubt: neither pg_rewind nor a base backup is run."""
    dynamic = {"ttl": 3, "postgresql": {"use_pg_rewind": use_pg_rewind}}
    async with running_cluster(etcd_members=3, size=2, dynamic=dynamic) as (quiet, _):
        old, since_ms = quiet.leader, now_ms()
        tell_primary(quiet, "CREATE TABLE extra (id int, filling text)", "CHECKPOINT", WRITE_EXTRA)
        await until(lambda: bool(ask_primary(quiet, LEVEL)))
        old.crash()
        await until_led_by_another(quiet, old.name)
        await bring_back(quiet, old, rewinds=False, clones=False)
        assert quiet.orders(Rewind, since_ms=since_ms) == quiet.orders(Clone, since_ms=since_ms) == []


def forget_what_was_kept_aside(node: DemoNode) -> int:
    """Removes the data directories that were kept aside, and tells how many there were."""
    found = list(node.directory.glob("data.aside.*"))
    for path in found:
        shutil.rmtree(path)
    return len(found)


def run_without_hints(real: RealCluster, node: DemoNode) -> None:
    """Runs a stopped server for a moment as somebody's without an agent: recovered, and with wal_log_hints off."""
    user = real.cluster.workspace.run_as
    program = real.cluster.workspace.bin_dir / "postgres"
    ended = subprocess.run(
        [program, "--single", "-D", node.data_dir, "-c", "wal_log_hints=off", "postgres"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        user=user.uid if user else None,
        group=user.gid if user else None,
        extra_groups=[] if user else None,
        cwd="/",
        env={"PATH": os.defpath, "LC_ALL": "C"},
        check=False,
    )
    assert ended.returncode == 0, ended.stderr.decode(errors="replace")
