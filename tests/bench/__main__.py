"""`make bench`: every figure with its budget and, where there is one, Patroni's at its fastest legal setting."""

import sys
from collections.abc import Sequence
from statistics import median

import anyio
import click
from rich.console import Console
from rich.table import Table

from api.cli.demo.cluster import DemoNode
from fsm.dynamic import Dynamic
from tests.bench import core, takeover
from tests.bench.cluster import Bench
from tests.bench.hangs import measure_hangs
from tests.chaos.net import why_not
from tests.cluster.faults import freeze_server
from tests.cluster.harness import RealCluster, running_cluster

IDLE_S = 30.0
HANG_S = 3.0
TTL_S = 5
TTLS_S = (3, 5, 20)


class Figures:
    """Collects what was measured."""

    def __init__(self) -> None:
        self.table = Table("figure", "min", "median", "max", "n", "budget", "Patroni 4.1.5")

    def add(self, name: str, found: Sequence[float], unit: str, budget: str, patroni: str = "") -> None:
        """One row; the median is the figure."""
        shown = [f"{value:,.{_digits(value, unit)}f} {unit}" for value in (min(found), median(found), max(found))]
        self.table.add_row(name, *shown, str(len(found)), budget, patroni)
        print(f"{name}: {shown[1]}", file=sys.stderr, flush=True)

    def add_outage(self, name: str, found: list[dict[str, float | None]], budget: str, patroni: str) -> None:
        """The gap, and its parts."""
        self.add(name, [part["gap"] or 0 for part in found], "ms", budget, patroni)
        for key in ("detect", "decide", "promote"):
            values = [value for part in found if (value := part[key]) is not None]
            if values:
                self.add(f"  {key}", values, "ms", "50 ms" if (name, key) == ("server killed", "detect") else "")


def _digits(value: float, unit: str) -> int:
    """How many digits are worth showing behind the point."""
    return 2 if unit == "x" else 0 if value >= 100 else 1


async def measure_cluster(figures: Figures, rounds: int) -> None:
    """Everything that needs real servers."""
    starts, replicas = [], []
    for _ in range(max(1, rounds - 1)):
        async with running_cluster() as (real, took_ms):
            starts.append(took_ms)
            # One that crashes again within a minute is started after a growing pause: the first crash of each counts.
            replicas.append(await Bench(real).replica_server_killed())
    async with running_cluster() as (real, took_ms):
        starts.append(took_ms)
        bench = Bench(real)
        figures.add("empty directories to three streaming", starts, "ms", "4,000 ms", "4,000 ms")
        replicas.append(await bench.replica_server_killed())
        figures.add("replica's server killed to streaming", replicas, "ms", "1,000 ms", "1,300 ms")
        await _measure_faults(figures, bench, rounds)
        await bench.set_ttl(20)
        await anyio.sleep(5)
        rest = await bench.at_rest(IDLE_S)
        figures.add("idle agent, PSS", [rest["agent_pss_mb"]], "MB", "70 MB", "36 MB")
        figures.add("fence, PSS", [rest["fence_pss_mb"]], "MB", "10 MB")
        figures.add("idle agent, processor", [rest["agent_cpu_percent"]], "%", "0.5 %", "0.45 %")
        figures.add("etcd requests at ttl 20", [rest["etcd_requests_per_s"]], "/s", "2 /s", "3.2 /s")


async def measure_synchronous(figures: Figures, rounds: int) -> None:
    """Writes through the loss of a synchronous standby, and of a leader that has one."""
    for size in (2, 3):
        async with running_cluster(size=size, dynamic={"synchronous_mode": True, "ttl": 20}) as (real, _):
            found = [await Bench(real).synchronous_standby_silent() for _ in range(rounds)]
            name = f"synchronous standby silent, 1 of {size - 1}, ttl=20"
            figures.add(name, [part["gap"] or 0 for part in found], "ms", "2,000 ms", "20,800 ms")


async def measure_takeovers(figures: Figures, rounds: int) -> None:
    """Faults of the leader's own processes, under pgbench with 16 clients."""
    async with running_cluster() as (real, _):
        bench = Bench(real)
        for ttl_s in TTLS_S:
            await bench.set_ttl(ttl_s)
            await anyio.sleep(TTL_S)
            await _measure_frozen_agent(figures, real, rounds, ttl_s)
            if ttl_s == TTL_S:
                await _measure_killed(figures, real, rounds)
                await _measure_frozen_server(figures, real, rounds)


async def _measure_frozen_server(figures: Figures, real: RealCluster, rounds: int) -> None:
    """Case 4 of the fault matrix: the agent and etcd are well, no process of the server runs."""
    found = [await takeover.take_over(real, freeze_server) for _ in range(rounds)]
    stall_ms = Dynamic().primary_stall_timeout_s * 1000
    name = f"server frozen, ttl={TTL_S}: to a new writable primary"
    figures.add(name, [one.writable_after_ms for one in found], "ms", f"{stall_ms + 1_700:,} ms")


def measure_cut_off(figures: Figures, rounds: int) -> None:
    """Case 5 of the fault matrix, in namespaces."""
    if (reason := why_not()) is not None:
        print(f"leader cut off: not measured, {reason}", file=sys.stderr)
        return
    found = takeover.cut_off_gaps_ms(TTL_S, rounds)
    name = f"leader cut off from etcd and peers, ttl={TTL_S}: no row acknowledged for"
    figures.add(name, found, "ms", f"{TTL_S * 1000 + 1_700:,} ms")


async def _measure_frozen_agent(figures: Figures, real: RealCluster, rounds: int, ttl_s: int) -> None:
    found = [await takeover.take_over(real, DemoNode.freeze, watch_end=True) for _ in range(rounds)]
    name = f"agent frozen at ttl={ttl_s}: to a new writable primary"
    figures.add(name, [one.writable_after_ms for one in found], "ms", f"{ttl_s * 1000 + 1_700:,} ms")
    figures.add("  of the ttl", [one.writable_after_ms / (ttl_s * 1000) for one in found], "x", "")
    figures.add("  no row acknowledged for", [one.gap_ms for one in found], "ms", "")
    gone = [one.gone_after_deadline_ms for one in found if one.gone_after_deadline_ms is not None]
    figures.add("  lease deadline to last backend gone", gone, "ms", "150 ms")


async def _measure_killed(figures: Figures, real: RealCluster, rounds: int) -> None:
    """Cases 1 and 3 of the fault matrix: the agent does not come back; the fence dies; both die."""
    cases = {
        "agent killed, not back": (takeover.kill_agent, False, f"{TTL_S * 1000 + 1_700:,} ms"),
        "fence killed": (takeover.kill_fence, True, "800 ms"),
        "fence and agent killed": (takeover.kill_fence_and_agent, False, f"{TTL_S * 1000 + 1_700:,} ms"),
    }
    for name, (break_it, is_same, budget) in cases.items():
        found = [await takeover.take_over(real, break_it, is_same=is_same) for _ in range(rounds)]
        row = f"{name}, ttl={TTL_S}: writable again"
        figures.add(row, [one.writable_after_ms for one in found], "ms", budget)
        figures.add("  no row acknowledged for", [one.gap_ms for one in found], "ms", "")


async def _measure_faults(figures: Figures, bench: Bench, rounds: int) -> None:
    reactions = [await bench.watch_to_effect() for _ in range(rounds)]
    figures.add("change at etcd to effect ordered", reactions, "ms", "20 ms")
    killed = [await bench.server_killed() for _ in range(min(rounds, 2))]
    figures.add_outage("server killed", killed, "800 ms", "1,300 ms")
    switched = [await bench.switched_over() for _ in range(rounds)]
    figures.add_outage("switchover", switched, "500 ms", "1,800 ms")
    nodes = [await bench.node_killed() for _ in range(rounds)]
    figures.add_outage(f"node killed at ttl={TTL_S}", nodes, f"{TTL_S * 1000 + 700:,} ms", "22,400 ms at ttl=20")


@click.command()
@click.option("--rounds", default=5, show_default=True, help="How often each fault is made.")
@click.option("--core", "only_core", is_flag=True, help="Only the core: no servers.")
def main(rounds: int, only_core: bool) -> None:
    """Measure, and print medians beside the budgets."""
    figures = Figures()
    figures.add("step", core.step_us(), "us", "60 us")
    figures.add("replay", core.replay_per_s(), "/s", "20,000 /s")
    figures.add("simulator, three nodes on one core", core.simulated_s_per_s(), "x", "1,000 x")
    if not only_core:
        anyio.run(measure_cluster, figures, rounds)
        anyio.run(measure_synchronous, figures, rounds)
        anyio.run(measure_takeovers, figures, rounds)
        measure_cut_off(figures, min(rounds, 3))
        anyio.run(measure_hangs, figures.add, min(rounds, 3), HANG_S)
    Console(width=120).print(figures.table)


if __name__ == "__main__":
    main()
