"""How long a fault leaves nobody to write to, and how soon the fence ends a server: pgbench at work, real signals.

Spans are milliseconds of CLOCK_BOOTTIME, which all processes of the machine share. Nothing is asserted about them.
"""

import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise

import anyio
import anyio.to_thread
from msgspec import Struct

from api.cli.demo import processes
from api.cli.demo.cluster import DemoNode
from api.cli.demo.servers import make_tables
from api.cli.demo.writer import Writer
from effects.clock import now_ms
from fsm.events import FenceArmed, Succeeded
from tests.chaos.cells import Cell
from tests.chaos.outside import results_of
from tests.cluster.harness import SETTLED_TIMEOUT_S, RealCluster

CLIENTS = 16
SCALE = 5
POLL_S = 0.001
SOON_MS = 400
"""How long before the lease may end the server's processes are looked at without a pause."""


class Takeover(Struct, frozen=True, kw_only=True):
    """What one fault came to."""

    writable_after_ms: int
    """From the fault to the first row that is acknowledged after the longest gap: by whoever is the primary then."""
    gap_ms: int
    """For how long no row was acknowledged."""
    gone_after_deadline_ms: int | None = None
    """From the deadline that the fence was last given to the last process of the server gone; negative is before."""


@asynccontextmanager
async def pgbench(real: RealCluster) -> AsyncIterator[None]:
    """pgbench on the present primary inside, as fast as it goes; it ends by itself when its server does."""
    node = real.leader
    program = real.cluster.workspace.bin_dir / "pgbench"
    environment = {
        "PGHOST": "127.0.0.1",
        "PGPORT": str(node.plan.postgres_port),
        "PGUSER": "postgres",
        "PGPASSWORD": real.cluster.plan.superuser_password,
        "PGDATABASE": "postgres",
    }
    await anyio.run_process([str(program), "-i", "-q", "-s", str(SCALE)], env=os.environ | environment)
    command = [str(program), "-n", "-c", str(CLIENTS), "-j", "2", "-T", "3600"]
    async with await anyio.open_process(command, env=os.environ | environment) as running:
        try:
            yield
        finally:
            if running.returncode is None:
                running.kill()


async def take_over(
    real: RealCluster, break_it: Callable[[DemoNode], None], *, is_same: bool = False, watch_end: bool = False
) -> Takeover:
    """Break something at the leader while pgbench and a writer of single rows write to it.

    Args:
        real: the cluster, settled.
        break_it: breaks it, without waiting.
        is_same: the same node accepts writes again in the end; otherwise another one does.
        watch_end: also see when the last process of the old server is gone.
    """
    old = real.leader
    await anyio.to_thread.run_sync(make_tables, real.cluster.plan)
    writer = Writer(real.cluster.plan)
    async with pgbench(real):
        writer.start()
        try:
            await _until(lambda: len(writer.acknowledged) > 100)
            postmaster = processes.server_of(old.data_dir)[:1]
            fault_ms = now_ms()
            break_it(old)
            gone_ms = await anyio.to_thread.run_sync(last_one_gone_ms, old) if watch_end else None
            await _until_led(real, old, postmaster, is_same=is_same)
            led_ms = now_ms()
            await _until(lambda: writer.acknowledged[-1].at_ms > led_ms)
        finally:
            await anyio.to_thread.run_sync(writer.stop)
    instants = [row.at_ms for row in writer.acknowledged]
    gap_ms, until_ms = max((later - earlier, later) for earlier, later in pairwise(instants) if later > fault_ms)
    found = Takeover(writable_after_ms=until_ms - fault_ms, gap_ms=gap_ms)
    old.bring_back()
    await real.settled()
    if gone_ms is None:
        return found
    deadline_ms = max(until for until in _deadlines(real, old) if until <= gone_ms + SETTLED_TIMEOUT_S * 1000)
    return Takeover(
        writable_after_ms=found.writable_after_ms,
        gap_ms=gap_ms,
        gone_after_deadline_ms=gone_ms - deadline_ms,
    )


def last_one_gone_ms(node: DemoNode) -> int:
    """When no process of the node's server was left. Returns when that is so."""
    fence = processes.fence_of(node.state_dir)
    known = processes.server_of(node.data_dir)
    looked_ms = now_ms()
    while any(processes.is_alive(pid) for pid in known):
        if now_ms() - looked_ms > SOON_MS and processes.is_alive(known[0]):
            known, looked_ms = processes.server_of(node.data_dir) or known, now_ms()
        time.sleep(POLL_S)
    while fence is not None and processes.descendants(fence):
        time.sleep(POLL_S)
    return now_ms()


def _deadlines(real: RealCluster, node: DemoNode) -> list[int]:
    """Every deadline that the node's fence confirmed, by its log."""
    results = (e.event.result for e in real.entries(node.name) if isinstance(e.event, Succeeded))
    return [result.until_ms for result in results if isinstance(result, FenceArmed)]


async def _until(is_so: Callable[[], bool]) -> None:
    with anyio.fail_after(SETTLED_TIMEOUT_S):
        while not is_so():  # noqa: ASYNC110 - other processes
            await anyio.sleep(0.01)


async def _until_led(real: RealCluster, old: DemoNode, postmaster: list[int], *, is_same: bool) -> None:
    """Return when another node leads, or the same one with another postmaster."""
    with anyio.fail_after(SETTLED_TIMEOUT_S):
        while True:
            members = (await real.watcher.look()).members
            leading = [m.name for m in members if m.is_answering and m.role == "primary"]
            has_new_server = processes.server_of(old.data_dir)[:1] not in ([], postmaster)
            if set(leading) - {old.name} or (is_same and has_new_server and leading):
                return
            await anyio.sleep(0.02)


def cut_off_gaps_ms(ttl_s: int, rounds: int) -> list[int]:
    """For how long no row was acknowledged to anybody when the leader was cut off from etcd and its peers.

    Needs root: each node is in a network namespace of its own; in synchronous mode, so that a row that is acknowledged
    on the leader's side of the cut is none. See tests/chaos/network_faults.py.

    Raises: RuntimeError when a round did not keep a promise.
    """
    gaps_ms = []
    for _ in range(rounds):
        (result,) = results_of([Cell(ttl_s=ttl_s, mode="on", wiring="plain", fault="cut-from-all")])
        if not result.is_good:
            raise RuntimeError(f"{result.cell}: {'; '.join(result.problems)}")
        gaps_ms.append(result.gap_ms)
    return gaps_ms


# ---- faults ----------------------------------------------------------------------------------------------------------


def kill_agent(node: DemoNode) -> None:
    """kill -9 of the agent alone; it does not come back by itself."""
    if node.agent_pid is not None:
        processes.send(node.agent_pid, signal.SIGKILL)


def kill_fence(node: DemoNode) -> None:
    """kill -9 of the fence alone."""
    fence = processes.fence_of(node.state_dir)
    if fence is not None:
        processes.send(fence, signal.SIGKILL)


def kill_fence_and_agent(node: DemoNode) -> None:
    """kill -9 of both, the agent first."""
    kill_agent(node)
    kill_fence(node)
