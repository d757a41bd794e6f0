"""`make sim-mutants`: removes each safeguard alone, looks for a seed that notices, and writes docs/mutants.md.

Exit status 1 when a mutant survives.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed

from tests.simulation.kernel import S
from tests.simulation.mutants.page import PAGE, known_seeds, page
from tests.simulation.mutants.search import SEEDS_MOST, Found, search
from tests.simulation.mutants.table import MUTANTS, Mutant

BAR = 30


def main() -> int:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(prog="make sim-mutants")
    parser.add_argument("--seeds", type=int, default=SEEDS_MOST, help="how many are tried at the most for each mutant")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="how many mutants at once")
    parser.add_argument("--only", nargs="*", default=None, help="these mutants; docs/mutants.md is left as it is")
    parser.add_argument("--afresh", action="store_true", help="do not begin with the seeds that docs/mutants.md tells")
    wanted = parser.parse_args()
    mutants = [mutant for mutant in MUTANTS if wanted.only is None or mutant.name in wanted.only]
    began_s = time.monotonic()
    found = {
        result.name: result
        for result in _shown(mutants, wanted.seeds, wanted.jobs, {} if wanted.afresh else known_seeds())
    }
    results = [found[mutant.name] for mutant in mutants]
    if wanted.only is None:
        PAGE.write_text(page(results, commit=_commit(), date=time.strftime("%Y-%m-%d", time.gmtime())))
        print(f"written: {PAGE.name}, after {time.monotonic() - began_s:.0f} s")
    survivors = [result.name for result in results if result.kill is None]
    print(f"{len(results) - len(survivors)} of {len(results)} mutants killed")
    return 1 if survivors else 0


def told(result: Found) -> str:
    """One line about a mutant."""
    kill = result.kill
    text = (
        f"{result.name}: SURVIVED {result.tried} seeds, in {result.differed} of which it answered otherwise"
        if kill is None
        else f"{result.name}: seed {kill.seed} at {kill.at_us / S:.1f} s, {kill.broken} ({result.tried} tried)"
    )
    return text + "".join(f"\n    without the mutant too: {line}" for line in result.unsound)


def _shown(mutants: list[Mutant], seeds: int, jobs: int, known: dict[str, int]) -> Iterator[Found]:
    with ProcessPoolExecutor(jobs) as pool:
        waiting = [pool.submit(search, mutant.name, known.get(mutant.name), seeds) for mutant in mutants]
        for count, done in enumerate(as_completed(waiting), 1):
            result = done.result()
            if sys.stderr.isatty():
                filled = BAR * count // len(mutants)
                print("\r\x1b[K", end="", file=sys.stderr, flush=True)
                print(told(result), flush=True)
                print(f"[{'#' * filled:{BAR}}] {count}/{len(mutants)}", end="", file=sys.stderr, flush=True)
            else:
                print(told(result), flush=True)
            yield result
    if sys.stderr.isatty():
        print(file=sys.stderr)


def _commit() -> str:
    asked = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return asked.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main())
