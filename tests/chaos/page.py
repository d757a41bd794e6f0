"""docs/chaos.md, made from the results of the matrix. Pure, but for the writing."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.chaos.cells import MODES, TTLS_S, Cell, Result
from tests.chaos.registry import SCENARIOS

HEAD = """\
# Chaos

What happens to a cluster of three nodes and three etcd members, each in a network namespace of its own, when something
breaks. `make chaos` runs every kind of fault once (root; part of `make test`), `make chaos ALL=1` the whole matrix;
this page is made from its results.

A writer outside and one inside each node's namespace record what was acknowledged to them, with the default
`synchronous_commit`. A monitor inside each node's namespace tries a write on that node's server every 20 ms with
`synchronous_commit=local`; *two* is how long two servers took such writes at once, by the servers' own clock, a reign
being everything that one server takes on one timeline. *gap* is the longest time without an acknowledged write
anywhere; *recovery* the time from the fault's end until one led and all others streamed. Demanded of every cell: 0 ms
with two, no acknowledged id lost in a synchronous mode, one primary with all nodes streaming after the fault, every log
replays. In mode `off` a fault that costs the primary may cost what was not yet sent, so loss is shown and not judged.
"""


def write_page(path: Path, results: Mapping[Cell, Result], cells: Sequence[Cell]) -> None:
    """Write the page."""
    path.write_text(page_of(results, cells))


def page_of(results: Mapping[Cell, Result], cells: Sequence[Cell]) -> str:
    """The page's text: the newest result of each cell of the matrix, and how many are missing."""
    found = [results[cell] for cell in cells if cell in results]
    parts = [HEAD, _sum(found, len(cells))]
    for one in sorted(SCENARIOS.values(), key=lambda one: one.number):
        parts.append(f"\n## {one.number}. {one.name}\n\n{one.text}\n")
        bound = f"Two servers may take writes for {one.two_ms_at_most:g} ms: the fault itself makes the second.\n"
        parts += [f"\n{bound}"] if one.two_ms_at_most else []
        parts.append(_table([result for result in found if result.cell.fault == one.name]))
    return "".join(parts)


def _sum(found: Sequence[Result], total: int) -> str:
    held = sum(result.is_good for result in found)
    dates = sorted(result.finished_at[:10] for result in found if result.finished_at)
    commits = sorted({result.commit for result in found})
    when = f" ({dates[0]} to {dates[-1]}, at commit {', '.join(commits)})" if dates else ""
    return f"\n{len(found)} of {total} cells have been run{when}: {held} held, {len(found) - held} did not.\n"


def _table(results: Sequence[Result]) -> str:
    if not results:
        return "\nNot run yet.\n"
    order = {(ttl_s, mode): (ttl_s, number) for ttl_s in TTLS_S for number, mode in enumerate(MODES)}
    rows = [
        "\n| ttl, mode | result | two | gap | acknowledged / lost | recovery | more |\n|---|---|---|---|---|---|---|\n"
    ]
    for result in sorted(results, key=lambda result: order[result.cell.ttl_s, result.cell.mode]):
        recovery = f"{result.recovery_ms} ms" if result.recovery_ms is not None else "none"
        more = "; ".join([*result.problems, *(f"{what}: {value}" for what, value in result.notes.items())])
        cells = (
            f"{result.cell.ttl_s} s, {result.cell.mode}",
            "held" if result.is_good else "**failed**",
            f"{result.two_ms:g} ms",
            f"{result.gap_ms} ms",
            f"{result.acknowledged} / {result.lost}",
            recovery,
            more.replace("|", "\\|"),
        )
        rows.append(f"| {' | '.join(cells)} |\n")
    return "".join(rows)
