"""How often each rule of the table fired, and what a picture makes of it: the warmth of an arrow, a line of text."""

from collections.abc import Iterable, Mapping
from math import log10

from msgspec import Struct

from fsm.table import TABLE

COLD_WIDTH = 1.5
WARM_WIDTH, WIDTH_A_DECADE = 2.0, 2.0
WIDTH_MAX = 14.0
"""Widths of arrows in pixels: of one that never fired, of one that fired once, and what ten times as often adds."""
BAR_A_DECADE = 4
THOUSANDS = ("", "k", "M", "G", "T")


class Heat(Struct, frozen=True, kw_only=True):
    """How often each rule fired; a rule that is not named never did."""

    rules: Mapping[str, int] = {}
    seeds: int | None = None
    """How many seeds of the simulator were counted; None for the logs of real nodes."""

    def of(self, rule_id: str) -> int:
        """How often a rule fired."""
        return self.rules.get(rule_id, 0)

    @property
    def strangers(self) -> tuple[str, ...]:
        """The rules that fired and are not in this table: another version's."""
        return tuple(sorted(set(self.rules) - {rule.id for rule in TABLE}))

    @property
    def summary(self) -> str:
        """How much of the table fired, in a few words."""
        fired = sum(self.of(rule.id) > 0 for rule in TABLE)
        counted = "" if self.seeds is None else f" in {self.seeds:,} seed{'' if self.seeds == 1 else 's'}"
        return f"{fired} of {len(TABLE)} rules fired{counted}"


def width_of(count: int) -> float:
    """How thick an arrow is that so many moves took, in pixels: by the logarithm of the number."""
    if count <= 0:
        return COLD_WIDTH
    return round(min(WARM_WIDTH + WIDTH_A_DECADE * log10(count), WIDTH_MAX), 1)


def short(count: int) -> str:
    """A number in four characters at the most: 999, 9.9k, 12k, 3.4M."""
    for power, unit in enumerate(THOUSANDS):
        scaled = count / 1000**power
        if scaled < 999.5 or unit == THOUSANDS[-1]:
            return f"{scaled:.1f}{unit}" if power and scaled < 9.95 else f"{scaled:.0f}{unit}"
    raise AssertionError("the last unit takes every number")


def heat_rows(heat: Heat) -> Iterable[str]:
    """One line a rule in the order of the table: its number, and a bar by its logarithm; "never" where it is 0."""
    longest = max(len(f"{heat.of(rule.id):,}") for rule in TABLE)
    for rule in TABLE:
        count = heat.of(rule.id)
        way = f"{rule.source} -> {rule.target}"
        bar = "#" * (1 + int(BAR_A_DECADE * log10(count))) if count else "never"
        yield f"{rule.id:4} {way:28} {count:>{longest},}  {bar}"


def heat_text(heat: Heat) -> str:
    """The numbers as text."""
    return "\n".join([f"RULES BY HOW OFTEN THEY FIRED: {heat.summary}", "", *heat_rows(heat), ""])
