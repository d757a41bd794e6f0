"""Cells of the matrix: one fault, one ttl, one synchronous mode; and what came out of each. Pure, but for the file."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

MODES: dict[str, dict[str, Any]] = {
    "off": {},
    "on": {"synchronous_mode": True},
    "strict": {"synchronous_mode": True, "synchronous_mode_strict": True},
    "quorum": {"synchronous_mode": "quorum"},
}
TTLS_S = (5, 20)


class Cell(msgspec.Struct, frozen=True, order=True):
    """One cell."""

    ttl_s: int
    mode: str
    wiring: str
    """How the cluster is put together for it: "plain", "proxied" (a proxy before each etcd member), "disks"."""
    fault: str
    """The name of its scenario."""

    def __str__(self) -> str:
        return f"{self.fault}-ttl{self.ttl_s}-{self.mode}"

    @property
    def group(self) -> tuple[int, str, str]:
        """Cells of one group are run on one cluster, one after another."""
        return (self.ttl_s, self.mode, self.wiring)


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What came out of a cell."""

    cell: Cell
    problems: list[str]
    """What did not hold; empty when everything did."""
    two_ms: float = 0
    """How long two servers took writes at once."""
    gap_ms: int = 0
    """The longest time without an acknowledged write anywhere, from the fault's begin until everything had settled."""
    acknowledged: int = 0
    lost: int = 0
    recovery_ms: int | None = None
    """From the fault's end until one led and all streamed; None when that did not come."""
    notes: dict[str, str] = {}
    """What else the scenario measured or saw."""
    took_s: float = 0
    kept_in: str = ""
    """Where the logs of a cell that failed lie."""
    finished_at: str = ""
    commit: str = ""

    @property
    def is_good(self) -> bool:
        """True when everything held."""
        return not self.problems


def picked(cells: Iterable[Cell], expression: str | None) -> list[Cell]:
    """The cells whose name satisfies an expression of words, `and`, `or`, `not` and parentheses, as pytest's -k.

    Raises: ValueError when it is none.
    """
    if not expression:
        return list(cells)
    tokens = re.findall(r"[()]|[^\s()]+", expression)
    terms = [token if token in ("and", "or", "not", "(", ")") else f"({token.lower()!r} in name)" for token in tokens]
    try:
        code = compile(" ".join(terms), "-k", "eval")
    except SyntaxError:
        raise ValueError(f"-k {expression!r}: give words joined by and, or, not and parentheses") from None
    return [cell for cell in cells if eval(code, {"__builtins__": {}}, {"name": str(cell).lower()})]


def in_groups(cells: Sequence[Cell]) -> list[list[Cell]]:
    """The cells by group, in the order in which groups come first, each group's cells in their order."""
    groups: dict[tuple[int, str, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.group, []).append(cell)
    return list(groups.values())


def read_results(path: Path) -> dict[Cell, Result]:
    """The newest result of each cell in a file of results; a line that was cut off is passed over."""
    found: dict[Cell, Result] = {}
    if path.exists():
        for line in path.read_bytes().splitlines():
            try:
                result = msgspec.json.decode(line, type=Result)
            except msgspec.DecodeError:
                continue
            found[result.cell] = result
    return found


def append_result(path: Path, result: Result) -> None:
    """Add a result to a file of results."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.write(msgspec.json.encode(result) + b"\n")
