"""A real three-node cluster for tests and benchmarks: the demo's, from empty directories, ended with the block."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import anyio.to_thread
import psycopg

from api.cli.demo.cluster import DemoCluster, DemoNode
from api.cli.demo.watcher import Watcher
from api.cli.demo.workspace import open_workspace
from api.cli.demo.writer import connection_options
from effects.clock import now_ms
from effects.errors import MatriarchError
from effects.log_reader import read_log
from fsm.entries import Entry, decode_entry

SETTLED_TIMEOUT_S = 60
STREAMING = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"


class RealCluster:
    """One running cluster, and what its agents say of themselves."""

    def __init__(self, cluster: DemoCluster, watcher: Watcher) -> None:
        self.cluster, self.watcher = cluster, watcher

    @property
    def primary(self) -> str:
        """Who leads by the newest picture."""
        found = self.watcher.picture.primary
        assert found is not None
        return found.name

    async def settled(self) -> None:
        """Return when one leads and the others stream on its timeline."""
        with anyio.fail_after(SETTLED_TIMEOUT_S):
            while not (await self.watcher.look()).is_settled:  # noqa: ASYNC110 - other processes
                await anyio.sleep(0.05)

    @property
    def leader(self) -> DemoNode:
        """The node that leads by the newest picture."""
        return self.cluster.node(self.primary)

    def entries(self) -> list[Entry]:
        """What all nodes logged."""
        return [
            decode_entry(line.body)
            for node in self.cluster.nodes
            for line in read_log([node.log_dir])
            if line.kind == "entry"
        ]


@asynccontextmanager
async def running_cluster() -> AsyncIterator[tuple[RealCluster, float]]:
    """A cluster from empty directories, and how long it took until all three streamed, etcd's own start left out."""
    workspace = await anyio.to_thread.run_sync(open_workspace, None)
    try:
        await anyio.to_thread.run_sync(workspace.find_postgres, None)
        cluster = DemoCluster(workspace)
        try:
            async with Watcher(cluster) as watcher:
                await cluster.start()
                began_ms = now_ms()
                await anyio.to_thread.run_sync(_until_both_stream, cluster)
                took_ms = now_ms() - began_ms
                real = RealCluster(cluster, watcher)
                await real.settled()
                yield real, took_ms
        finally:
            with anyio.CancelScope(shield=True):
                await cluster.stop()
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(workspace.close)


def _until_both_stream(cluster: DemoCluster) -> None:
    """Return when the primary feeds two standbys. Asks it directly: the agents' pictures may be a second old."""
    options = connection_options(cluster.plan, session="read-write")
    deadline_ms = now_ms() + SETTLED_TIMEOUT_S * 1000
    while now_ms() < deadline_ms:
        try:
            with psycopg.connect(**options) as connection:
                while now_ms() < deadline_ms:
                    if connection.execute(STREAMING).fetchone() == (2,):
                        return
                    time.sleep(0.01)
        except psycopg.Error:
            time.sleep(0.02)
    raise MatriarchError(f"no three streaming nodes within {SETTLED_TIMEOUT_S} s")
