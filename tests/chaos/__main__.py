"""`make chaos`: faults on real processes, each result told and kept as it comes; and the page made of them."""

import argparse
import signal
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from effects.clock import now_ms
from tests.chaos.cells import Cell, Result, append_result, in_groups, picked, read_results
from tests.chaos.net import why_no_disks, why_not
from tests.chaos.outside import KEPT_IN, ROOT, commit, results_of
from tests.chaos.page import write_page
from tests.chaos.registry import short_set, whole_matrix

RESULTS = KEPT_IN / "results.jsonl"
MATRIX_RESULTS = ROOT / "docs" / "chaos.jsonl"
PAGE = ROOT / "docs" / "chaos.md"
GUESSED_S = {5: 35, 20: 100}
"""How long a cell takes, until some of the same ttl have told."""


def main() -> int:
    """Run what is asked for; 0 when everything held."""
    asked = _asked()
    # Asked to stop, it ends what runs, as at Ctrl-C; also where a shell that put it aside lets it ignore SIGINT.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    reason = why_not()
    if reason is not None:
        print(f"chaos        skipped: {reason}", file=sys.stderr)
        return 2
    cells = picked(whole_matrix() if asked.all or asked.k else short_set(), asked.k)
    if any(cell.wiring == "disks" for cell in cells) and (reason := why_no_disks()):
        print(f"chaos        no disk is filled: {reason}")
        cells = [cell for cell in cells if cell.wiring != "disks"]
    path = asked.results or (MATRIX_RESULTS if asked.all or asked.page else RESULTS)
    known = read_results(path)
    if asked.page:
        write_page(PAGE, known, whole_matrix())
        return 0
    left = cells if asked.fresh else [cell for cell in cells if not _is_done(known.get(cell), asked.all)]
    print(f"chaos        {len(left)} of {len(cells)} cells to run; results go to {path}")
    bad = _run(left, path)
    if asked.all:
        write_page(PAGE, read_results(path), whole_matrix())
        print(f"chaos        {PAGE.relative_to(ROOT)} is written anew")
    print(
        f"chaos        {len(left) - len(bad)} held, {len(bad)} did not{''.join(f'{chr(10)}  {cell}' for cell in bad)}"
    )
    return 1 if bad else 0


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests.chaos", description=__doc__)
    parser.add_argument("-k", metavar="EXPRESSION", help="only cells whose name has these words: 'cut and quorum'")
    parser.add_argument("--all", action="store_true", help="the whole matrix; goes on where it was broken off")
    parser.add_argument("--fresh", action="store_true", help="run cells again that held already at this commit")
    parser.add_argument("--page", action="store_true", help="only write docs/chaos.md from the results")
    parser.add_argument("--results", type=Path, help="the file of results, one JSON object a line")
    return parser.parse_args()


def _is_done(result: Result | None, is_resumed: bool) -> bool:
    """True for a cell of a matrix that goes on which held already with the same code."""
    return is_resumed and result is not None and result.is_good and result.commit == commit()


def _run(cells: Sequence[Cell], path: Path) -> list[Cell]:
    bad, left, spent = [], list(cells), dict[int, list[float]]()
    for group in in_groups(cells):
        print(f"chaos        now {group[0]}, {_left(left, spent)} left", flush=True)
        began_ms = now_ms()
        for result in results_of(group):
            append_result(path, result)
            left.remove(result.cell)
            spent.setdefault(result.cell.ttl_s, []).append((now_ms() - began_ms) / 1000)
            began_ms = now_ms()
            if not result.is_good:
                bad.append(result.cell)
            following = f"next {left[0]}, {_left(left, spent)} left" if left else "that was the last"
            print(f"{line_of(result)}\n             {following}", flush=True)
    return bad


def line_of(result: Result) -> str:
    """A result in a line, and what did not hold in one each."""
    told = [
        "held   " if result.is_good else "FAILED ",
        f"{result.cell!s:44}",
        f"two {result.two_ms:g} ms",
        f"gap {result.gap_ms} ms",
        f"{result.acknowledged} acknowledged, {result.lost} lost",
        f"recovered in {result.recovery_ms} ms" if result.recovery_ms is not None else "not recovered",
        *(f"{what}: {value}" for what, value in result.notes.items()),
    ]
    kept = [f"logs in {result.kept_in}"] if result.kept_in else []
    return "\n             ".join([f"{told[0]}{told[1]} " + "; ".join(told[2:]), *result.problems, *kept])


def _left(cells: Iterable[Cell], spent: dict[int, list[float]]) -> str:
    """How long cells will take, by what those before them took."""
    total_s = 0.0
    for cell in cells:
        known = spent.get(cell.ttl_s)
        total_s += sum(known) / len(known) if known else GUESSED_S[cell.ttl_s]
    minutes = round(total_s / 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("chaos        broken off; ALL=1 goes on from here")
