"""`make sim`: runs seeds on all cores, and shows what they went through. Exit status 1 when a promise was broken."""

import argparse
import json
import os
import secrets
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

from effects.telling import lines
from fsm.table import TABLE
from fsm.view import View
from tests.simulation.kernel import S
from tests.simulation.people import profile_of
from tests.simulation.run import run, shrink

YEAR_S = 365.25 * 86_400
BAR = 30
STORY_LINES = 60


class Result(NamedTuple):
    """What is told of one seed."""

    seed: int
    broken: str | None
    virtual_s: float
    nodes: int
    steps: int
    rules: Counter[str]
    faults: Counter[str]


def main() -> int:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(prog="make sim")
    parser.add_argument("--seeds", type=int, default=100, help="how many")
    parser.add_argument("--seed", type=int, default=None, help="this one only, told in full")
    parser.add_argument("--first", type=int, default=None, help="the first of them; drawn anew if it is not given")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="on how many cores")
    parser.add_argument(
        "--coverage", metavar="FILE", help="write how often each rule fired, for `matriarch fsm --heat`"
    )
    parser.add_argument("--json", action="store_true", help="the summary as JSON")
    wanted = parser.parse_args()
    if wanted.seed is not None:
        return tell(wanted.seed)
    first = secrets.randbelow(1 << 31) if wanted.first is None else wanted.first
    print(f"seeds {first} to {first + wanted.seeds - 1} on {wanted.jobs} cores", file=sys.stderr)
    began_s = time.monotonic()
    results = list(_shown(range(first, first + wanted.seeds), wanted.jobs, began_s))
    took_s = time.monotonic() - began_s
    if wanted.json:
        print(json.dumps(coverage_of(results) | {"took_s": round(took_s, 1)}))
    else:
        _summarize(results, took_s)
    if wanted.coverage:
        Path(wanted.coverage).write_text(json.dumps(coverage_of(results), indent=1) + "\n", encoding="utf-8")
    broken = [result for result in results if result.broken is not None]
    for result in broken:
        print(f"seed {result.seed}: {result.broken}; make sim SEED={result.seed} tells how")
    return 1 if broken else 0


def one(seed: int) -> Result:
    """One seed, in a process of its own."""
    ending = run(seed, bias=profile_of(seed))
    return Result(
        seed=seed,
        broken=ending.broken,
        virtual_s=ending.at_us / S,
        nodes=len(ending.cluster.nodes),
        steps=ending.cluster.steps,
        rules=ending.cluster.rules,
        faults=Counter(fault.kind for fault in ending.faults),
    )


def coverage_of(results: list[Result]) -> dict[str, object]:
    """How often each rule fired, a seed that fires it, and what was injected."""
    found = sorted(results, key=lambda result: result.seed)
    return {
        "seeds": len(found),
        "rules": {rule.id: sum(result.rules[rule.id] for result in found) for rule in TABLE},
        "fired_by": {rule.id: next((r.seed for r in found if r.rules[rule.id]), None) for rule in TABLE},
        "faults": sum((result.faults for result in found), Counter()),
        "virtual_s": round(sum(result.virtual_s for result in found)),
        "broken": {str(result.seed): result.broken for result in found if result.broken is not None},
    }


def _shown(seeds: range, jobs: int, began_s: float) -> Iterator[Result]:
    with ProcessPoolExecutor(jobs) as pool:
        waiting = [pool.submit(one, seed) for seed in seeds]
        virtual_s = 0.0
        for count, done in enumerate(as_completed(waiting), 1):
            result = done.result()
            virtual_s += result.virtual_s
            if sys.stderr.isatty():
                filled = BAR * count // len(seeds)
                speed = virtual_s / (time.monotonic() - began_s)
                print(f"\r[{'#' * filled:{BAR}}] {count}/{len(seeds)}  {speed:,.0f} x", end="", file=sys.stderr)
            yield result
    if sys.stderr.isatty():
        print(file=sys.stderr)


def _summarize(results: list[Result], took_s: float) -> None:
    virtual_s = sum(result.virtual_s for result in results)
    node_years = sum(result.virtual_s * result.nodes for result in results) / YEAR_S
    rules: Counter[str] = sum((result.rules for result in results), Counter())
    faults: Counter[str] = sum((result.faults for result in results), Counter())
    steps = sum(result.steps for result in results)
    print(
        f"{len(results)} seeds, {virtual_s / 3600:.1f} hours of a cluster ({node_years:.3f} years of a node), "
        f"{steps:,} decisions in {took_s:.1f} s: {virtual_s / took_s:,.0f} x real time"
    )
    print("moves:  " + "  ".join(f"{rule.id} {rules[rule.id]}" for rule in TABLE))
    missing = [rule.id for rule in TABLE if not rules[rule.id]]
    print(
        f"rules fired: {len(TABLE) - len(missing)} of {len(TABLE)}" + (f"; not {', '.join(missing)}" if missing else "")
    )
    print("faults: " + "  ".join(f"{kind} {count}" for kind, count in sorted(faults.items())))


def tell(seed: int) -> int:
    """What one seed does; where it breaks a promise, the shortest schedule that was found and the nodes' story."""
    bias = profile_of(seed)
    ending = run(seed, bias=bias)
    if ending.broken is None:
        print(f"seed {seed}: every promise was kept over {ending.at_us / S:.0f} s and {len(ending.faults)} faults")
        return 0
    print(f"seed {seed}: {ending.broken}, at {ending.at_us / S:.3f} s; looking for fewer faults")
    kept = shrink(seed, ending.faults, ending.broken, bias)
    story = run(seed, only=kept, has_journal=True, bias=bias)
    print(f"with {len(kept)} of {len(ending.faults)} faults: {story.broken}, at {story.at_us / S:.3f} s")
    print(f"settings {story.cluster.first_config}, {len(story.cluster.nodes)} nodes")
    for number in sorted(kept):
        print(f"  {story.faults[number]}")
    told: list[str] = []
    before: dict[str, View] = {}
    for at_us, name, event, decision in story.cluster.journal or ():
        for _, line in lines(before.get(name, View()), decision, event):
            told.append(f"{at_us / S:10.3f} s  {name}  {line}")
        before[name] = decision.view
    print("\n".join(told[-STORY_LINES:]))
    return 1


if __name__ == "__main__":
    sys.exit(main())
