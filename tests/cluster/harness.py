"""A real cluster for tests and benchmarks: the demo's, varied, from empty directories, ended with the block."""

import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, TypedDict, Unpack

import anyio
import anyio.to_thread
import msgspec
import psycopg

from api.cli.demo.cluster import DemoCluster, DemoNode
from api.cli.demo.picture import ClusterPicture
from api.cli.demo.plan import overlaid
from api.cli.demo.watcher import Watcher
from api.cli.demo.workspace import Workspace, open_workspace
from api.cli.demo.writer import connection_options
from effects.clock import now_ms
from effects.errors import MatriarchError
from effects.etcd import EtcdClient
from effects.log_reader import read_log
from fsm.effects import Effect
from fsm.entries import Entry, decode_entry
from fsm.machine import Issued
from fsm.wire import SyncKey, parse_sync

SETTLED_TIMEOUT_S = 60
SHOWN_LINES = 40
PREFIX = "/service/demo/"
"""Where the cluster's keys lie in etcd."""
STREAMING = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"


class Wanted(TypedDict, total=False):
    """How a cluster differs from the demo's."""

    etcd_members: int
    """How many members etcd has; 1."""
    size: int
    """How many of the nodes n1, n2, n3 there are; 3."""
    dynamic: Mapping[str, Any]
    """Dynamic configuration (`bootstrap.dcs`), laid over the demo's: `{"synchronous_mode": "on", "ttl": 5}`."""
    nodes: Mapping[str, Mapping[str, Any]]
    """Settings by node, laid over its patroni.yml: `{"n2": {"tags": {"nofailover": True}}}`; "*" is every node."""
    idle: Collection[str]
    """Nodes that are not started; `real.cluster.node(name).start()` does it later. With all of them idle there is no
    cluster yet."""
    around: Callable[[DemoCluster, Workspace], AbstractContextManager[None]]
    """What is there before the first process starts until after the last has ended, such as disks."""
    hosts: Callable[[tuple[str, ...]], list[str]]
    """Makes `etcd3.hosts` of the members' endpoints; the endpoints themselves."""


async def sync_key(real: "RealCluster") -> SyncKey:
    """The `sync` key as etcd has it."""
    async with EtcdClient(list(real.cluster.etcd_cluster.endpoints)) as client:
        read = await client.read_prefix(f"{PREFIX}sync", timeout_ms=5_000)
    return parse_sync(read.keys[0].value if read.keys else None)


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

    async def settled(self, *, but: Collection[str] = ()) -> None:
        """Return when one leads and the others stream on its timeline.

        but: the names of nodes that are not looked at, because they are meant to be down.
        """
        with anyio.fail_after(SETTLED_TIMEOUT_S):
            while not _is_settled(await self.watcher.look(), but):  # noqa: ASYNC110 - other processes
                await anyio.sleep(0.05)

    @property
    def leader(self) -> DemoNode:
        """The node that leads by the newest picture."""
        return self.cluster.node(self.primary)

    @property
    def replicas(self) -> list[DemoNode]:
        """The nodes that do not lead by the newest picture."""
        return [node for node in self.cluster.nodes if node.name != self.primary]

    def entries(self, *names: str, since_ms: int = 0) -> list[Entry]:
        """What nodes logged, all of them unless some are named, node by node."""
        nodes = [n for n in self.cluster.nodes if n.log_dir.exists() and (not names or n.name in names)]
        found = [decode_entry(line.body) for n in nodes for line in read_log([n.log_dir]) if line.kind == "entry"]
        return [entry for entry in found if entry.event.at_ms >= since_ms]

    def orders(self, kind: type[Effect], *names: str, since_ms: int = 0) -> list[Issued]:
        """Every effect of a kind that nodes asked for, all of them unless some are named."""
        entries = self.entries(*names, since_ms=since_ms)
        return [issued for entry in entries for issued in entry.effects if isinstance(issued.effect, kind)]


def show_what_was_said(cluster: DemoCluster) -> str:
    """The end of every agent's console, for whoever reads why a test failed."""
    shown = []
    for node in cluster.nodes:
        if node.output_path.exists():
            shown += [f"---- {node.name}", *node.output_path.read_text(errors="replace").splitlines()[-SHOWN_LINES:]]
    return "\n".join(shown)


def _is_settled(picture: ClusterPicture, but: Collection[str]) -> bool:
    members = tuple(member for member in picture.members if member.name not in but)
    return msgspec.structs.replace(picture, members=members).is_settled


@asynccontextmanager
async def running_cluster(**wanted: Unpack[Wanted]) -> AsyncIterator[tuple[RealCluster, float]]:
    """A cluster from empty directories, and how long it took until all streamed, etcd's own start left out.

    wanted: how it differs from the demo's; see `Wanted`.
    """
    idle = wanted.get("idle", ())
    workspace = await anyio.to_thread.run_sync(open_workspace, None)
    try:
        await anyio.to_thread.run_sync(workspace.find_postgres, None)
        cluster = _prepared(workspace, wanted)
        surroundings = AsyncExitStack()
        try:
            if "around" in wanted:
                surroundings.enter_context(wanted["around"](cluster, workspace))
            async with Watcher(cluster) as watcher:
                await cluster.start(but=idle)
                began_ms = now_ms()
                real = RealCluster(cluster, watcher)
                if len(idle) < len(cluster.nodes):
                    await anyio.to_thread.run_sync(_until_all_stream, cluster, len(cluster.nodes) - len(idle) - 1)
                    took_ms = now_ms() - began_ms
                    await real.settled(but=idle)
                    yield real, took_ms
                else:
                    yield real, 0
        except BaseException:
            print(show_what_was_said(cluster))
            raise
        finally:
            with anyio.CancelScope(shield=True):
                await cluster.stop()
                await surroundings.aclose()
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(workspace.close)


def _prepared(workspace: Workspace, wanted: Wanted) -> DemoCluster:
    """The cluster as it is wanted, not yet started."""
    nodes = workspace.plan.nodes[: wanted.get("size", len(workspace.plan.nodes))]
    workspace.plan = msgspec.structs.replace(workspace.plan, nodes=nodes)
    cluster = DemoCluster(workspace, etcd_members=wanted.get("etcd_members", 1))
    hosts = wanted.get("hosts", list)(cluster.etcd_cluster.endpoints)
    settings = wanted.get("nodes", {})
    for node in cluster.nodes:
        common = {"etcd3": {"hosts": hosts}, "bootstrap": {"dcs": wanted.get("dynamic", {})}}
        node.overlay = overlaid(overlaid(common, settings.get("*", {})), settings.get(node.name, {}))
    return cluster


def _until_all_stream(cluster: DemoCluster, standbys: int) -> None:
    """Return when the primary feeds its standbys. Asks it directly: the agents' pictures may be a second old."""
    options = connection_options(cluster.plan, session="read-write")
    deadline_ms = now_ms() + SETTLED_TIMEOUT_S * 1000
    while now_ms() < deadline_ms:
        try:
            with psycopg.connect(**options) as connection:
                while now_ms() < deadline_ms:
                    if connection.execute(STREAMING).fetchone() == (standbys,):
                        return
                    time.sleep(0.01)
        except psycopg.Error:
            time.sleep(0.02)
    raise MatriarchError(f"no {standbys + 1} streaming nodes within {SETTLED_TIMEOUT_S} s")
