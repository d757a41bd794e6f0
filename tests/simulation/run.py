"""One run: a cluster from empty directories, a while of faults, and the promise that it heals."""

import random
from collections.abc import Mapping
from typing import NamedTuple

from tests.simulation.bias import NO_BIAS, Bias, Happen
from tests.simulation.cluster import Broken, Cluster
from tests.simulation.faults import KINDS, Fault, draw
from tests.simulation.kernel import S

SETTLED_WITHIN_US = 120 * S
HEALED_WITHIN_US = 180 * S
FAULTS_US = 300 * S


class Ending(NamedTuple):
    """How a run ended. `broken`: the promise that was not kept; None when all were."""

    seed: int
    broken: str | None
    at_us: int
    cluster: Cluster
    faults: list[Fault]


def shrink(seed: int, faults: list[Fault], broken: str, bias: Bias = NO_BIAS) -> frozenset[int]:
    """A subset of the seed's faults, by number, that still breaks a promise of that kind; as small as was found.

    What happens in between is drawn anew as soon as a fault is left out, so a smaller set may break it in another way.
    """
    kept = list(range(len(faults)))
    size = max(1, len(kept) // 2)
    while size:
        for start in range(0, len(kept), size):
            fewer = kept[:start] + kept[start + size :]
            ending = run(seed, only=frozenset(fewer), bias=bias)
            if ending.broken is not None and kind_of(ending.broken) == kind_of(broken):
                kept = fewer
                break
        else:
            size //= 2
    return frozenset(kept)


def kind_of(broken: str) -> str:
    """What kind of promise it is, whoever broke it."""
    return broken.split(":", 1)[0].split(" lacks", 1)[-1]


def config_of(seed: int) -> tuple[str, int]:
    """The cluster's settings, and how many nodes it has."""
    rng = random.Random(~seed)
    ttl = rng.choice((3, 5, 10, 20, 30))
    mode = rng.choice(("off", "on", "on", "quorum", "quorum"))
    extra = f',"synchronous_mode":"{mode}"' if mode != "off" else ""
    if mode != "off" and rng.random() < 0.3:
        extra += ',"synchronous_mode_strict":true'
    if rng.random() < 0.25:
        extra += ',"failsafe_mode":false'
    return f'{{"ttl":{ttl},"loop_wait":1,"maximum_lag_on_failover":1048576{extra}}}', rng.choice((2, 3, 3, 3, 5))


def run(seed: int, *, only: frozenset[int] | None = None, has_journal: bool = False, bias: Bias = NO_BIAS) -> Ending:
    """Everything that the seed says.

    Args:
        seed: decides all of it.
        only: which of the seed's faults happen, by number; None lets all of them.
        has_journal: whether every decision is kept.
        bias: what it is told besides.
    """
    config, size = bias.settings(seed, config_of(seed))
    kinds: Mapping[str, Happen] = KINDS if bias.kinds is None else bias.kinds
    cluster = Cluster(
        seed, size=size, config=config, tags={name: dict(tags) for name, tags in (bias.tags or {}).items()}
    )
    for prepare in bias.prepare:
        prepare(cluster)
    if has_journal:
        cluster.journal = []
    faults: list[Fault] = []
    try:
        cluster.until_settled(SETTLED_WITHIN_US)
        began_us = cluster.kernel.now_us
        faults = draw(cluster, FAULTS_US, kinds)
        for number, fault in enumerate(faults):
            if only is None or number in only:
                cluster.kernel.after(cluster.kernel.world, fault.at_us, _happen, cluster, fault, kinds)
        cluster.kernel.run(began_us + FAULTS_US + 65 * S)
        _heal(cluster)
        well_since_us = cluster.kernel.now_us
        cluster.until_settled(HEALED_WITHIN_US, is_final=True)
        cluster.check_end(well_since_us)
    except Broken as broken:
        return Ending(seed, str(broken), cluster.kernel.now_us, cluster, faults)
    return Ending(seed, None, cluster.kernel.now_us, cluster, faults)


def _happen(cluster: Cluster, fault: Fault, kinds: Mapping[str, Happen]) -> None:
    undo = kinds[fault.kind](cluster, cluster.nodes[fault.whom])
    cluster.kernel.after(cluster.kernel.world, fault.lasts_us, undo)


def _heal(cluster: Cluster) -> None:
    """Everything works again, whatever was left of it."""
    cluster.network.heal()
    cluster.etcd.set_members(down=set(), frozen=set())
    cluster.etcd.delay_us = 0
    for watch in cluster.etcd.watches:
        watch.pump()
    for node in cluster.nodes.values():
        node.agent.disk.free_bytes, node.agent.disk.is_hanging, node.agent.rewind_fails = None, False, False
        node.host.ailments.heal()
        if not node.agent.process.is_alive:
            node.agent.start()
