"""Health checks while everything around the agent hangs: its server, all of etcd, the disk that its log lies on."""

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import anyio

from api.cli.demo.cluster import DemoNode
from tests.cluster.faults import freeze_server, thaw_server
from tests.cluster.harness import RealCluster, running_cluster

RATE_PER_S = 5_000
DISK_MB = 64


async def ask_health(port: int, seconds: float, rate_per_s: float = 0) -> dict[str, Any]:
    """GET /primary through 16 kept-alive connections from another process; see tests/bench/load.py."""
    command = [sys.executable, "-m", "tests.bench.load", str(port), str(seconds), str(rate_per_s)]
    found: dict[str, Any] = json.loads((await anyio.run_process(command)).stdout)
    return found


async def ask_trivial_server(seconds: float, rate_per_s: float = 0) -> dict[str, Any]:
    """The same load on a server that does nothing: the most that the load generator can measure here."""
    command = [sys.executable, "-m", "tests.bench.trivial"]
    async with await anyio.open_process(command, stderr=None) as server:
        assert server.stdout is not None
        try:
            port = int(await server.stdout.receive())
            return await ask_health(port, seconds, rate_per_s)
        finally:
            server.terminate()


# ---- what hangs ------------------------------------------------------------------------------------------------------


@contextmanager
def frozen_server(node: DemoNode) -> Iterator[None]:
    """Every process of the node's server stopped inside."""
    freeze_server(node)
    try:
        yield
    finally:
        thaw_server(node)


@contextmanager
def frozen_etcd(real: RealCluster) -> Iterator[None]:
    """Every member of etcd stopped inside."""
    for member in real.cluster.etcd_cluster.members:
        member.freeze()
    try:
        yield
    finally:
        for member in real.cluster.etcd_cluster.members:
            member.thaw()


@contextmanager
def frozen_disk(node: DemoNode) -> Iterator[None]:
    """The file system of the agent's own directory frozen inside: writes do not return. Source: fsfreeze(8)."""
    subprocess.run(["fsfreeze", "--freeze", str(node.state_dir)], check=True)
    try:
        yield
    finally:
        subprocess.run(["fsfreeze", "--unfreeze", str(node.state_dir)], check=True)


@contextmanager
def own_disks(nodes: list[DemoNode]) -> Iterator[None]:
    """Each agent's own directory is a small ext4 of its own inside. Raises: CalledProcessError without loop devices."""
    mounted: list[Path] = []
    try:
        for node in nodes:
            image = node.directory / "state.img"
            node.state_dir.mkdir(parents=True)
            with image.open("wb") as file:
                file.truncate(DISK_MB << 20)
            subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)
            subprocess.run(["mount", "-o", "loop", str(image), str(node.state_dir)], check=True, capture_output=True)
            mounted.append(node.state_dir)
        yield
    finally:
        for path in mounted:
            subprocess.run(["umount", "--lazy", str(path)], check=False)


# ---- the measurement -------------------------------------------------------------------------------------------------

Add = Callable[[str, list[float], str, str], None]
"""Takes name, values, unit and budget of a row."""


@asynccontextmanager
async def cluster_on_own_disks() -> AsyncIterator[tuple[RealCluster, str]]:
    """Three nodes, three etcd members, and the reason why no disk can be made to hang here, "" where one can."""
    async with running_cluster(idle=("n1", "n2", "n3"), etcd_members=3) as (real, _):
        with ExitStack() as disks:
            reason = ""
            try:
                disks.enter_context(own_disks(real.cluster.nodes))
            except (OSError, subprocess.CalledProcessError) as error:
                reason = f"no file system on a loop device here: {error}"
            try:
                for node in real.cluster.nodes:
                    node.start()
                await real.settled()
                yield real, reason
            finally:
                with anyio.CancelScope(shield=True):
                    await real.cluster.stop()


async def measure_hangs(add: Add, rounds: int, seconds: float) -> None:
    """Rows for each hang: requests a second at the most, and at 5,000 a second what share was answered and how fast.

    Before each round the load generator is measured alone: on a busy machine its own tail is the machine's.
    """
    async with cluster_on_own_disks() as (real, no_disk):
        hangs: dict[str, Callable[[], AbstractContextManager[None]]] = {
            "idle": nullcontext,
            "its PostgreSQL frozen": lambda: frozen_server(real.leader),
            "all of etcd frozen": lambda: frozen_etcd(real),
            "its disk frozen": lambda: frozen_disk(real.leader),
        }
        if no_disk:
            print(f"its disk frozen: not measured: {no_disk}", file=sys.stderr)
            del hangs["its disk frozen"]
        for name, hang in hangs.items():
            alone, asked = [], []
            for _ in range(rounds):
                alone.append(await _both_ways(ask_trivial_server, seconds))
                with hang():
                    asked.append(await _both_ways(partial(ask_health, real.leader.plan.api_port), seconds))
                await real.settled()
            _add_rows(add, name, alone, asked)


class Round(NamedTuple):
    """One look: as fast as it goes, and at the rate that is asked of it."""

    free: dict[str, Any]
    paced: dict[str, Any]


async def _both_ways(ask: Callable[[float, float], Awaitable[dict[str, Any]]], seconds: float) -> Round:
    return Round(await ask(seconds, 0), await ask(seconds, RATE_PER_S))


def _add_rows(add: Add, name: str, alone: list[Round], asked: list[Round]) -> None:
    statuses = sorted({status for found in asked for status in found.paced["statuses"]})
    add(f"GET /primary, {name}", [found.free["per_s"] for found in asked], "/s", "5,000 /s")
    ratios = [by.free["per_s"] / of.free["per_s"] for by, of in zip(alone, asked, strict=True)]
    add("  load generator alone, times as many", ratios, "x", "")
    add(f"  at 5,000/s, answered ({', '.join(statuses)})", [found.paced["per_s"] for found in asked], "/s", "5,000 /s")
    add("  at 5,000/s, 50th percentile", [found.paced["p50_ms"] for found in asked], "ms", "")
    add("  at 5,000/s, 99th percentile", [found.paced["p99_ms"] for found in asked], "ms", "20 ms")
    add("  load generator alone, 99th percentile", [found.paced["p99_ms"] for found in alone], "ms", "")
