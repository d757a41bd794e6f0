"""A cluster in namespaces of its own under its witnesses: what a scenario acts upon."""

import contextlib
import shutil
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import httpx
import msgspec
import psycopg

from api.cli.demo import processes
from api.cli.demo.cluster import DemoCluster, DemoNode
from api.cli.demo.plan import Plan, overlaid
from api.cli.demo.servers import primary_connection
from api.cli.demo.watcher import Watcher
from api.cli.demo.workspace import Workspace, open_workspace
from api.cli.demo.writer import connection_options
from effects.clock import unix_ms
from effects.embedded import EmbeddedEtcd, introduce
from effects.errors import EtcdUnavailable
from effects.etcd import EtcdClient
from fsm.wire import parse_sync
from tests.chaos.cells import MODES
from tests.chaos.disks import Disks
from tests.chaos.net import HUB_ADDRESS, Net, entering
from tests.chaos.proxy import DelayingProxy
from tests.chaos.witnesses import MAKE_TABLES, Monitor, Writers
from tests.cluster.harness import PREFIX, RealCluster

NODE_NUMBER, ETCD_NUMBER = 11, 21
SETTLE_PATIENCE_S = 90
POLL_S = 0.05
# Room for 200 sessions of clients beside everybody else's.
PARAMETERS = {"max_connections": 300}


class Scene:
    """The cluster, its network and its witnesses."""

    def __init__(self, real: RealCluster, net: Net, ttl_s: int, mode: str) -> None:
        self.real, self.net, self.ttl_s, self.mode = real, net, ttl_s, mode
        self.workspace = real.cluster.workspace
        self.monitor: Monitor
        self.writers: Writers
        self.proxies: list[DelayingProxy] = []
        self.disks: Disks | None = None

    @property
    def nodes(self) -> list[DemoNode]:
        """All nodes."""
        return self.real.cluster.nodes

    @property
    def etcd(self) -> list[EmbeddedEtcd]:
        """All members of etcd."""
        return self.real.cluster.etcd_cluster.members

    @property
    def etcd_names(self) -> list[str]:
        """The hosts of etcd's members."""
        return [member.name for member in self.etcd]

    def others(self, node: DemoNode) -> list[str]:
        """The hosts of the other nodes."""
        return [other.name for other in self.nodes if other is not node]

    @property
    def is_synchronous(self) -> bool:
        """True when no acknowledged write may be lost, whatever happens."""
        return self.mode != "off"

    async def leader(self) -> DemoNode:
        """Who leads, by the agents' own answers, once one says so: a busy machine may let an answer come late."""
        with anyio.fail_after(SETTLE_PATIENCE_S):
            while (await self.real.watcher.look()).primary is None:  # noqa: ASYNC110 - other processes
                await anyio.sleep(POLL_S)
        return self.real.leader

    async def until(self, holds: Callable[[], bool], what: str, patience_s: float | None = None) -> None:
        """Return when it holds. Raises: TimeoutError that says what did not come."""
        limit_s = patience_s or SETTLE_PATIENCE_S + 3 * self.ttl_s
        with anyio.move_on_after(limit_s):
            while True:
                if await anyio.to_thread.run_sync(holds):
                    return
                await anyio.sleep(POLL_S)
        raise TimeoutError(f"not within {limit_s:g} s: {what}")

    async def until_another_leads(self, old: DemoNode) -> DemoNode:
        """The node other than `old` whose server takes writes, once there is one."""
        since_ms = unix_ms()
        others = [node for node in self.nodes if node is not old]
        await self.until(
            lambda: any(self.monitor.taken(node.name, since_ms=since_ms) for node in others),
            f"a server other than {old.name}'s takes writes",
        )
        return next(node for node in others if self.monitor.taken(node.name, since_ms=since_ms))

    async def until_settled(self) -> None:
        """Return when one leads and all others stream, etcd says the same, and in a synchronous mode commits wait."""
        what = "one leads, all others stream, and etcd says the same"
        with anyio.move_on_after(SETTLE_PATIENCE_S + 3 * self.ttl_s):
            while not ((await self.real.watcher.look()).is_settled and await self._is_whole_in_etcd()):  # noqa: ASYNC110
                await anyio.sleep(POLL_S)
            what = ""
        if what:
            raise TimeoutError(f"it did not come that {what}")
        since_ms = unix_ms()
        await self.until(lambda: bool(self.writers.acknowledged(since_ms=since_ms)), "a write is acknowledged", 30)

    async def _is_whole_in_etcd(self) -> bool:
        """The leader key names who leads, every member is published, so that each agent has reached etcd again."""
        found = await self._in_etcd()
        are_published = all(f"members/{node.name}" in found for node in self.nodes)
        is_waited_for = not self.is_synchronous or bool(parse_sync(found.get("sync")).members)
        return found.get("leader") == self.real.primary and are_published and is_waited_for

    async def _in_etcd(self) -> dict[str, str]:
        """The cluster's keys and their values; none while etcd does not answer."""
        async with EtcdClient(list(self.real.cluster.etcd_cluster.endpoints)) as client:
            try:
                read = await client.read_prefix(PREFIX, timeout_ms=5_000)
            except EtcdUnavailable:
                return {}
        return {key.key.removeprefix(PREFIX): key.value for key in read.keys}

    async def until_successor(self, *, other_than: DemoNode) -> None:
        """Return when, in a synchronous mode, the `sync` key names somebody else who may be promoted."""
        if not self.is_synchronous:
            return
        with anyio.move_on_after(SETTLE_PATIENCE_S):
            while not {*parse_sync((await self._in_etcd()).get("sync")).members} - {other_than.name}:  # noqa: ASYNC110 - other processes
                await anyio.sleep(POLL_S)
            return
        raise TimeoutError(f"nobody but {other_than.name} may be promoted after the leader")

    async def hold(self, span_s: float) -> None:
        """Let the fault last."""
        await anyio.sleep(span_s)

    async def configure(self, change: dict[str, Any]) -> None:
        """Change the cluster's dynamic configuration, and return when every agent has been told."""
        leader = await self.leader()
        async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
            with anyio.fail_after(SETTLE_PATIENCE_S):
                while (await client.patch(f"{leader.plan.api_url}/config", json=change)).is_error:  # noqa: ASYNC110
                    await anyio.sleep(POLL_S)
            for node in self.nodes:
                await self.until(partial(_has, node, change), f"{node.name} knows {change}")

    def connection_to(self, node: DemoNode, **options: Any) -> psycopg.Connection[Any]:
        """A connection from the hub to a node's server, whatever its role."""
        wanted = connection_options(self.real.cluster.plan, session="any")
        return psycopg.connect(**wanted | {"host": node.plan.host, "port": str(node.plan.postgres_port)} | options)


def _has(node: DemoNode, change: dict[str, Any]) -> bool:
    try:
        found = httpx.get(f"{node.plan.api_url}/config", timeout=2, trust_env=False).json()
    except (httpx.HTTPError, ValueError):
        return False
    return all(found.get(key) == value for key, value in change.items())


@asynccontextmanager
async def running_scene(net: Net, ttl_s: int, mode: str, wiring: str, keep: Path) -> AsyncIterator[Scene]:
    """A settled cluster under its witnesses.

    keep: where its logs are put when something is wrong with it.
    """
    workspace = await anyio.to_thread.run_sync(open_workspace, None)
    with contextlib.ExitStack() as leaving:
        leaving.callback(workspace.close)
        await anyio.to_thread.run_sync(workspace.find_postgres, None)
        workspace.plan = _placed(workspace.plan, net)
        cluster = DemoCluster(workspace, etcd_members=3)
        proxies = _wired(cluster, net, wiring, leaving)
        disks = leaving.enter_context(Disks(cluster.nodes)) if wiring == "disks" else None
        _configured(cluster, proxies, ttl_s, mode)
        try:
            async with Watcher(cluster) as watcher:
                await cluster.start()
                scene = Scene(RealCluster(cluster, watcher), net, ttl_s, mode)
                scene.proxies, scene.disks = proxies, disks
                await scene.real.settled()
                with _witnessed(scene):
                    await scene.until_settled()
                    yield scene
        except BaseException:
            keep_logs(workspace, keep)
            raise
        finally:
            with anyio.CancelScope(shield=True):
                await cluster.stop()


@contextlib.contextmanager
def _witnessed(scene: Scene) -> Iterator[None]:
    plan = scene.real.cluster.plan
    with primary_connection(plan) as connection:
        connection.execute(MAKE_TABLES)
    places: dict[str, str | None] = {node.name: node.name for node in plan.nodes}
    with Monitor(plan, places) as scene.monitor, Writers(plan, places) as scene.writers:
        yield


def _placed(plan: Plan, net: Net) -> Plan:
    """The plan with an address of its own for each node."""
    nodes = []
    for number, node in enumerate(plan.nodes, NODE_NUMBER):
        address = net.addresses.get(node.name) or net.add(node.name, number)
        nodes.append(msgspec.structs.replace(node, host=address))
    return msgspec.structs.replace(plan, nodes=tuple(nodes))


def _wired(cluster: DemoCluster, net: Net, wiring: str, leaving: contextlib.ExitStack) -> list[DelayingProxy]:
    """Puts everybody into their namespaces; the proxies before etcd's members, where they are wanted."""
    for node in cluster.nodes:
        node.launcher = entering(node.name)
    for number, member in enumerate(cluster.etcd_cluster.members, ETCD_NUMBER):
        member.host = net.addresses.get(member.name) or net.add(member.name, number)
        member.launcher = entering(member.name)
    introduce(cluster.etcd_cluster.members)
    if wiring != "proxied":
        return []
    return [
        leaving.enter_context(DelayingProxy(HUB_ADDRESS, (member.host, member.client_port)))
        for member in cluster.etcd_cluster.members
    ]


def _configured(cluster: DemoCluster, proxies: list[DelayingProxy], ttl_s: int, mode: str) -> None:
    hosts = [proxy.endpoint for proxy in proxies] or list(cluster.etcd_cluster.endpoints)
    dynamic = {**MODES[mode], "ttl": ttl_s, "postgresql": {"parameters": PARAMETERS}}
    for node in cluster.nodes:
        node.overlay = overlaid({"etcd3": {"hosts": hosts}, "bootstrap": {"dcs": dynamic}}, node.overlay)


def keep_logs(workspace: Workspace, into: Path) -> None:
    """Copies what everybody wrote down: consoles, transition logs, the servers' and etcd's messages."""
    shutil.rmtree(into, ignore_errors=True)
    for pattern in ("*/agent.log", "*/matriarch/**/log", "*/matriarch/**/postgres.log", "*/patroni.yml", "etcd/*.log"):
        for found in workspace.root.glob(pattern):
            target = into / found.relative_to(workspace.root)
            target.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(OSError, shutil.Error):
                shutil.copytree(found, target) if found.is_dir() else shutil.copy(found, target)
    print(f"the logs are kept in {into}", file=sys.stderr)


def server_pids(node: DemoNode) -> list[int]:
    """The postmaster of a node's server and its children, the postmaster first."""
    return processes.server_of(node.data_dir)
