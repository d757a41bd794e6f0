"""docs/mutants.md: written by `make sim-mutants`, and read for the seeds that found something last time."""

import re
from pathlib import Path
from typing import NamedTuple

from tests.simulation.kernel import S
from tests.simulation.mutants.search import Found
from tests.simulation.mutants.table import MUTANTS, NOT_SHOWN, Mutant

PAGE = Path(__file__).parents[3] / "docs" / "mutants.md"

_HEAD = """\
# Safeguards, each removed alone

Written by `make sim-mutants` on {date}, at commit {commit}: {killed} of {all} mutants killed, {tried} seeds.

A mutant is this agent, or a model of what it runs on, without one safeguard: the functions named below answer
otherwise, in a simulated cluster whose faults a seed draws (`make sim`), from those kinds that the mutant is about. It
is killed by a seed that breaks a promise with it and keeps every promise without it; both are run. The time is the
cluster's, from empty directories. *Tried*: how many seeds that took.

| mutant | the safeguard | what was removed | seed | what broke | at | tried |
|---|---|---|---:|---|---:|---:|
"""
_FUNCTIONS = """
## Where

| mutant | functions that answer otherwise | kinds of faults |
|---|---|---|
"""
_UNSHOWN = """
## Not shown

Safeguards whose removal alone no seed has shown so far. They are not among the mutants above.

| removed | what was tried |
|---|---|
"""
_ROW = re.compile(r"^\| `(?P<name>[a-z-]+)` \|.*\| (?P<seed>\d+) \| [^|]* \| (?P<at>[\d.]+) s \| \d+ \|$", re.MULTILINE)


class Known(NamedTuple):
    """A seed that killed a mutant, and the virtual time that it took."""

    seed: int
    at_s: float


def known() -> dict[str, Known]:
    """What the page says, by mutant."""
    text = PAGE.read_text() if PAGE.exists() else ""
    return {row["name"]: Known(int(row["seed"]), float(row["at"])) for row in _ROW.finditer(text)}


def known_seeds() -> dict[str, int]:
    """The seeds to try first."""
    return {name: found.seed for name, found in known().items()}


def page(results: list[Found], *, commit: str, date: str) -> str:
    """The whole page."""
    by_name = {mutant.name: mutant for mutant in MUTANTS}
    killed = sum(result.kill is not None for result in results)
    head = _HEAD.format(
        date=date, commit=commit, killed=killed, all=len(results), tried=sum(result.tried for result in results)
    )
    rows = [_row(by_name[result.name], result) for result in results]
    functions = "".join(_functions(by_name[result.name]) for result in results)
    unshown = "".join(f"| {removed} | {why} |\n" for removed, why in NOT_SHOWN)
    return head + "".join(rows) + _FUNCTIONS + functions + _UNSHOWN + unshown


def _row(mutant: Mutant, result: Found) -> str:
    kill = result.kill
    what = (
        f"— | **survived**, though it answered otherwise in {result.differed} runs | —"
        if kill is None
        else f"{kill.seed} | {kill.broken} | {kill.at_us / S:.1f} s"
    )
    return f"| `{mutant.name}` | {mutant.safeguard} | {mutant.removed} | {what} | {result.tried} |\n"


def _functions(mutant: Mutant) -> str:
    functions = ", ".join(f"`{target.replace(':', '.')}`" for target, _ in mutant.patches)
    faults = "all" if mutant.bias.kinds is None else ", ".join(mutant.bias.kinds)
    return f"| `{mutant.name}` | {functions} | {faults} |\n"
