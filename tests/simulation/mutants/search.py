"""Seeds for a mutant until one breaks a promise that the same seed keeps without it."""

import contextlib
from typing import NamedTuple

from tests.simulation.cluster import Cluster
from tests.simulation.mutants import checks
from tests.simulation.mutants.patch import Difference, mutated
from tests.simulation.mutants.table import MUTANTS, Mutant
from tests.simulation.run import run

SEEDS_MOST = 60


class Trial(NamedTuple):
    """What one seed does with a mutant, or without it."""

    seed: int
    broken: str | None
    at_us: int
    differs_at_us: int | None
    """When the mutant first answered otherwise; None if it never did."""


class Found(NamedTuple):
    """What became of a mutant."""

    name: str
    tried: int
    kill: Trial | None
    differed: int
    """In how many runs it answered otherwise at all."""
    unsound: tuple[str, ...]
    """What broke without the mutant too, and so counts for nothing here."""


def trial(mutant: Mutant, seed: int, *, is_mutated: bool = True) -> Trial:
    """Run one seed."""
    difference = Difference()

    def listen(cluster: Cluster) -> None:
        difference.now_us = lambda: cluster.kernel.now_us

    bias = mutant.bias._replace(prepare=(listen, checks.an_end, *mutant.bias.prepare))
    with contextlib.ExitStack() as stack:
        for target, replacement in mutant.patches if is_mutated else ():
            stack.enter_context(mutated(target, replacement, difference))
        try:
            ending = run(seed, bias=bias)
        except Exception as error:  # noqa: BLE001  # an agent that ends with a traceback is found as well
            return Trial(
                seed, f"the agent ended: {type(error).__name__} {error}", difference.now_us(), difference.at_us
            )
    return Trial(seed, ending.broken, ending.at_us, difference.at_us)


def search(name: str, first: int | None, most: int = SEEDS_MOST) -> Found:
    """Try seeds, `first` before all others."""
    mutant = next(mutant for mutant in MUTANTS if mutant.name == name)
    seeds = [*([first] if first is not None else []), *(seed for seed in range(1, most + 1) if seed != first)]
    unsound: list[str] = []
    differed = 0
    for tried, seed in enumerate(seeds, 1):
        found = trial(mutant, seed)
        differed += found.differs_at_us is not None
        if found.broken is None:
            continue
        without = trial(mutant, seed, is_mutated=False)
        if without.broken is None:
            return Found(mutant.name, tried, found, differed, tuple(unsound))
        unsound.append(f"seed {seed}: {without.broken}")
    return Found(mutant.name, len(seeds), None, differed, tuple(unsound))
