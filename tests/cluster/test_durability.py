"""What was acknowledged in a synchronous mode survives kill -9 of the node that acknowledged it.

A run of all tests makes a round or two in each mode; `make durability ROUNDS=20` as many as it says. What happens when
is drawn from a seed, which is printed: `SEED=… make durability` draws the same again.
"""

import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from api.cli.demo.cluster import DemoNode
from effects.clock import now_ms
from effects.errors import PostgresError
from tests.cluster.faults import freeze_server, thaw_server
from tests.cluster.harness import RealCluster, sync_key
from tests.cluster.witnesses import Writers, standbys, until, until_led_by_another, until_synchronous, watched_cluster

pytestmark = [pytest.mark.anyio, pytest.mark.servers]

ROUNDS = int(os.environ.get("ROUNDS", "1"))
SEED = int(os.environ.get("SEED", random.randrange(10**6)))
TTL_S = 4
MODES: dict[str, dict[str, Any]] = {
    "on": {"synchronous_mode": True},
    "strict": {"synchronous_mode": True, "synchronous_mode_strict": True},
    "two": {"synchronous_mode": True, "synchronous_node_count": 2},
    "quorum": {"synchronous_mode": "quorum"},
}


async def stumble(nodes: list[DemoNode], chance: random.Random) -> None:
    """Now and then a standby's server stops running for a while, or is killed once; for ever."""
    is_killed = False
    while True:
        await anyio.sleep(chance.uniform(0.2, 1.5))
        node = chance.choice(nodes)
        if not is_killed and chance.random() < 0.3:
            is_killed = True
            try:
                node.crash_server()
            except PostgresError:
                continue  # it is being started
        else:
            freeze_server(node)
            try:
                await anyio.sleep(chance.uniform(0.1, 2.5))
            finally:
                thaw_server(node)


@asynccontextmanager
async def stumbling(nodes: list[DemoNode], chance: random.Random) -> AsyncIterator[None]:
    """Standbys come and go inside the block."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stumble, nodes, chance)
        yield
        tasks.cancel_scope.cancel()


async def lose_the_leader(real: RealCluster, writers: Writers, chance: random.Random) -> None:
    """Kill -9 everything of the leader's node, at any moment; somebody leads again, and the node comes back."""
    old = real.leader
    async with stumbling(standbys(real), chance):
        since_ms = now_ms()
        await until(lambda: writers.have_written(50, since_ms=since_ms))
        await anyio.sleep(chance.uniform(0, 3))
        old.crash()
    await until(lambda: not old.leftovers())
    if (await sync_key(real)).members:
        await until_led_by_another(real, old.name)
    old.bring_back()  # at once when nobody else may lead
    await real.settled()


@pytest.mark.parametrize(
    ("mode", "size"), [("on", 2), ("on", 3), ("strict", 2), ("strict", 3), ("two", 3), ("quorum", 2), ("quorum", 3)]
)
async def test_acknowledged_rows_survive_when_the_leaders_node_is_killed(mode: str, size: int) -> None:
    """Again and again, at any moment, while its standbys come and go."""
    print(f"SEED={SEED}")
    chance = random.Random(f"{SEED} {mode} {size}")
    async with watched_cluster(dynamic={**MODES[mode], "ttl": TTL_S}, size=size) as (real, _):
        await until_synchronous(real, lambda key: bool(key.members))
        with Writers(real) as writers:
            for _ in range(ROUNDS):
                await lose_the_leader(real, writers, chance)
        assert writers.lost() == set()
        assert len(writers.acknowledged) >= 50 * ROUNDS
