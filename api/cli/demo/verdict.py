"""What the tour found: its outages and its checks, and the tables that say so. Pure."""

import msgspec
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from api.cli.demo.measure import Phases


class Outage(msgspec.Struct, frozen=True, kw_only=True):
    """One fault and what it cost."""

    fault: str
    before: str
    after: str
    downtime_ms: int
    phases: Phases


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that must hold."""

    what: str
    holds: bool
    found: str


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """The whole tour."""

    title: str
    outages: tuple[Outage, ...]
    checks: tuple[Check, ...]
    notes: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """True when everything held."""
        return all(check.holds for check in self.checks)


def span_text(span_ms: int | None) -> str:
    """A span in milliseconds, or a dash."""
    return "-" if span_ms is None else f"{span_ms} ms"


def outage_table(verdict: Verdict) -> Table:
    """One row a fault."""
    table = Table(title=verdict.title, title_justify="left", title_style="bold")
    for heading in ("fault", "primary", "downtime", "detect", "decide", "promote"):
        table.add_column(heading, justify="left" if heading in ("fault", "primary") else "right", no_wrap=True)
    for outage in verdict.outages:
        primary = outage.before if outage.before == outage.after else f"{outage.before} > {outage.after}"
        parts = (outage.phases.detect_ms, outage.phases.decide_ms, outage.phases.promote_ms)
        table.add_row(outage.fault, primary, span_text(outage.downtime_ms), *map(span_text, parts))
    return table


def check_table(verdict: Verdict) -> Table:
    """One row a check."""
    table = Table()
    for heading in ("verdict", "what must hold", "what was found"):
        table.add_column(heading, overflow="fold")
    for check in verdict.checks:
        word = Text("holds", style="green") if check.holds else Text("FAILS", style="bold red")
        table.add_row(word, check.what, check.found)
    return table


def verdict_view(verdict: Verdict) -> RenderableType:
    """All of it, ending with one line."""
    last = "everything held" if verdict.holds else "NOT everything held"
    notes = [Text(note, style="dim") for note in verdict.notes]
    end = Text(f"tour: {last}", style="bold green" if verdict.holds else "bold red")
    return Group(outage_table(verdict), check_table(verdict), *notes, end)
