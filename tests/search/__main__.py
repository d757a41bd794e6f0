"""`make sim-search`: search both modes, from both beginnings, and print what was looked at."""

import argparse
import sys
from itertools import product
from time import monotonic

from tests.search.run import search
from tests.search.world import Rules

SAFEGUARDS = ("waits_for_settled", "names_rest_on_key", "voters_leave", "sync_is_compared")


def without(rules: Rules, safeguard: str) -> Rules:
    """The same rules without a safeguard."""
    return Rules(*(False if field == safeguard else value for field, value in zip(Rules._fields, rules, strict=True)))  # type: ignore[arg-type]  # by field


def main() -> int:
    """Exit status 1 where something was found that must not be."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--nodes", type=int, default=3)
    asked.add_argument("--depth", type=int, default=14)
    asked.add_argument("--states", type=int, default=1_000_000, help="end a search after so many")
    asked.add_argument("--without", choices=SAFEGUARDS, help="take a safeguard away, and see it noticed")
    wanted = asked.parse_args()
    print("nodes  mode    begins     states      moves  depth     time")
    is_broken = False
    for mode, begins_settled in product(("on", "quorum"), (False, True)):
        rules = Rules(mode=mode, begins_settled=begins_settled)
        if wanted.without:
            rules = without(rules, wanted.without)
        began = monotonic()
        found = search(wanted.nodes, rules, depth=wanted.depth, states_most=wanted.states)
        begins = "settled" if begins_settled else "new"
        size = f"{found.states:>9,}  {found.moves:>9,}  {found.depth:>5}{' (all)' if found.is_whole else ''}"
        print(f"{wanted.nodes:>5}  {mode:<6}  {begins:<7}  {size}  {monotonic() - began:6.1f} s", flush=True)
        if found.story is not None:
            is_broken = True
            print(f"  {found.broken}")
            print("".join(f"    {number}. {told}\n" for number, told in enumerate(found.story, 1)), end="")
    return 1 if is_broken else 0


if __name__ == "__main__":
    sys.exit(main())
