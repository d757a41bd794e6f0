"""How fast a real three-node cluster starts, notices, decides and comes back: the demo's cluster, measured.

Spans are milliseconds of CLOCK_BOOTTIME, which all processes of the machine share. Nothing is asserted about them.
"""

import time
from collections.abc import Callable
from pathlib import Path

import anyio
import anyio.to_thread

from api.cli.demo import measure, processes
from api.cli.demo.servers import make_tables, primary_connection
from api.cli.demo.writer import Writer
from effects.clock import now_ms
from effects.etcd import EtcdClient
from effects.etcd_types import put
from tests.cluster.faults import freeze_node, thaw_node
from tests.cluster.harness import PREFIX, SETTLED_TIMEOUT_S, RealCluster, sync_key


class Bench:
    """Measures one running cluster."""

    def __init__(self, real: RealCluster) -> None:
        self.real = real
        self.cluster, self.watcher = real.cluster, real.watcher

    async def outage(self, notices: measure.Notices, break_it: Callable[[], object]) -> dict[str, float | None]:
        """Break something under a writer; the writer's gap, and its parts from the logs."""
        await anyio.to_thread.run_sync(make_tables, self.cluster.plan)
        writer = Writer(self.cluster.plan)
        writer.start()
        try:
            await self._until_written(writer, 100)
            before, fault_ms = self.real.primary, now_ms()
            outcome = break_it()
            if hasattr(outcome, "__await__"):
                await outcome
            await self._until_written(writer, len(writer.acknowledged) + 200, since_ms=fault_ms)
        finally:
            await anyio.to_thread.run_sync(writer.stop)
        fault = measure.Fault(what="", before=before, after="", at_ms=fault_ms, until_ms=now_ms(), notices=notices)
        gap_ms = measure.longest_gap_ms([row.at_ms for row in writer.acknowledged], fault)
        parts = measure.phases(await anyio.to_thread.run_sync(self.real.entries), fault)
        return {
            "gap": gap_ms,
            "detect": parts.detect_ms,
            "decide": parts.decide_ms,
            "promote": parts.promote_ms,
        }

    async def _until_written(self, writer: Writer, count: int, since_ms: int = 0) -> None:
        with anyio.fail_after(SETTLED_TIMEOUT_S):
            while len(writer.acknowledged) < count or writer.acknowledged[-1].at_ms < since_ms:  # noqa: ASYNC110
                await anyio.sleep(0.02)

    # ---- faults -----------------------------------------------------------------------------------------------------

    async def node_killed(self) -> dict[str, float | None]:
        """kill -9 of the leader's agent, fence and server."""
        old = self.real.primary
        found = await self.outage(measure.frees_the_leader_key, self.cluster.node(old).crash)
        self.cluster.node(old).bring_back()
        await self.real.settled()
        return found

    async def server_killed(self) -> dict[str, float | None]:
        """kill -9 of the leader's postmaster."""
        found = await self.outage(measure.ends_the_server, self.cluster.node(self.real.primary).crash_server)
        await self.real.settled()
        return found

    async def switched_over(self) -> dict[str, float | None]:
        """A planned switchover."""
        candidate = next(node.name for node in self.cluster.nodes if node.name != self.real.primary)
        found = await self.outage(measure.frees_the_leader_key, lambda: self.watcher.switch_over(candidate))
        await self.real.settled()
        return found

    async def synchronous_standby_silent(self) -> dict[str, float | None]:
        """Every process of the synchronous standby's node stops running; its connections stay, its lease runs on."""
        while not (members := (await sync_key(self.real)).members):  # noqa: ASYNC110 - other processes
            await anyio.sleep(0.05)
        node = self.cluster.node(members[0])
        found = await self.outage(measure.frees_the_leader_key, lambda: freeze_node(node))
        thaw_node(node)
        await self.real.settled()
        return found

    async def replica_server_killed(self) -> float:
        """kill -9 of a replica's postmaster, until it streams again."""
        name = next(node.name for node in self.cluster.nodes if node.name != self.real.primary)
        node = self.cluster.node(name)
        fault_ms = now_ms()
        node.crash_server()
        await anyio.to_thread.run_sync(self._until_streaming, name)
        span = now_ms() - fault_ms
        await self.real.settled()
        return span

    def _until_streaming(self, name: str) -> None:
        since = "AND application_name = %s AND backend_start > %s"
        sql = f"SELECT 1 FROM pg_stat_replication WHERE state = 'streaming' {since}"
        with primary_connection(self.cluster.plan) as connection:
            row = connection.execute("SELECT now()").fetchone()
            assert row is not None
            while connection.execute(sql, (name, row[0])).fetchone() is None:
                time.sleep(0.005)

    async def watch_to_effect(self) -> float:
        """A key is put at etcd; milliseconds until the leader's step has ordered an effect because of it."""
        async with EtcdClient([self.cluster.etcd.endpoint]) as client:
            put_ms = now_ms()
            await client.transact(
                [], [put(PREFIX + "failover", '{"leader":"nobody","member":"nowhere"}')], timeout_ms=2_000
            )
            await anyio.sleep(2.5)
        ordered = [
            entry.event.at_ms
            for entry in await anyio.to_thread.run_sync(self.real.entries)
            if any(issued.duty == "clear-failover" for issued in entry.effects) and entry.event.at_ms >= put_ms
        ]
        return min(ordered) - put_ms

    # ---- at rest ----------------------------------------------------------------------------------------------------

    async def set_ttl(self, ttl_s: int) -> None:
        """Change the cluster's ttl in etcd."""
        async with EtcdClient([self.cluster.etcd.endpoint]) as client:
            text = f'{{"ttl":{ttl_s},"loop_wait":10,"retry_timeout":10}}'
            await client.transact([], [put(PREFIX + "config", text)], timeout_ms=2_000)

    async def at_rest(self, seconds: float) -> dict[str, float]:
        """Memory and processor time of idle agents and fences, and the cluster's requests to etcd."""
        agents = [node.agent_pid for node in self.cluster.nodes if node.agent_pid]
        fences = [pid for node in self.cluster.nodes if (pid := processes.fence_of(node.state_dir))]
        cpu_before, requests_before = [_cpu_s(pid) for pid in agents], await self._etcd_requests()
        await anyio.sleep(seconds)
        cpu = [_cpu_s(pid) - before for pid, before in zip(agents, cpu_before, strict=True)]
        return {
            "agent_pss_mb": max(_pss_mb(pid) for pid in agents),
            "fence_pss_mb": max(_pss_mb(pid) for pid in fences),
            "agent_cpu_percent": 100 * max(cpu) / seconds,
            "etcd_requests_per_s": (await self._etcd_requests() - requests_before) / seconds,
        }

    async def _etcd_requests(self) -> float:
        """Messages that etcd received over gRPC since it started, from its own counters."""
        import httpx

        async with httpx.AsyncClient(trust_env=False) as http:
            text = (await http.get(f"http://{self.cluster.etcd.endpoint}/metrics")).text
        lines = (line for line in text.splitlines() if line.startswith("grpc_server_msg_received_total"))
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


def _cpu_s(pid: int) -> float:
    """Seconds on a processor, all threads. The ticks of /proc/PID/stat are too coarse for who mostly sleeps."""
    stats = (path.read_text().split() for path in Path(f"/proc/{pid}/task").glob("*/schedstat"))
    return sum(int(fields[0]) for fields in stats) / 1e9


def _pss_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024
