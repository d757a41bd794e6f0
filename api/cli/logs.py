"""`matriarch log`: the transition log for people and for scripts, read from its files; no agent is needed."""

import time
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec

from api.cli.lines import COLOURS, columns, is_worth_showing
from api.cli.options import config_option, json_option, log_directories
from effects.log_reader import read_log, segments_of
from fsm.entries import Entry, decode_entry
from fsm.events import AnyEvent
from fsm.states import State
from fsm.table import TABLE

FOLLOW_PAUSE_S = 0.3
EVENTS = sorted(event.__name__ for event in AnyEvent.__args__)
RULES = {rule.id for rule in TABLE}


def known_rules(_context: click.Context, _option: click.Parameter, value: str | None) -> str | None:
    """The rules asked for. Raises: click.BadParameter for one that the table does not have."""
    unknown = set((value or "").split(",")) - RULES - {""}
    if unknown:
        raise click.BadParameter(f"no rule {', '.join(sorted(unknown))}; there are {', '.join(sorted(RULES))}")
    return value


class Filters(msgspec.Struct, frozen=True):
    """Which entries are shown."""

    after: int
    rule: str | None
    state: str | None
    event: str | None
    everything: bool

    def accept(self, entry: Entry) -> bool:
        """True when the entry is to be shown."""
        if entry.seq <= self.after or (self.rule and entry.rule not in self.rule.split(",")):
            return False
        if self.state and entry.after != self.state:
            return False
        if self.event:
            return type(entry.event).__name__ == self.event
        return self.everything or is_worth_showing(entry)


@click.command()
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path))
@config_option
@click.option("-f", "--follow", is_flag=True, help="Go on as entries come.")
@click.option("-n", "--last", type=click.IntRange(min=0), default=0, help="Only the last N of what would be shown.")
@click.option("--after", type=int, default=0, help="Only entries above this sequence number.")
@click.option("--rule", callback=known_rules, help="Only moves by these rules, such as R1,C1,L1.")
@click.option("--state", type=click.Choice(list(State)), help="Only entries that left the node in this state.")
@click.option("--event", type=click.Choice(EVENTS), help="Only entries of this event.")
@click.option("-a", "--all", "everything", is_flag=True, help="Also looks and ticks that led to nothing.")
@json_option
def log(
    paths: tuple[Path, ...],
    config: Path | None,
    follow: bool,
    last: int,
    after: int,
    rule: str | None,
    state: str | None,
    event: str | None,
    everything: bool,
    as_json: bool,
) -> None:
    """Show the transition log in PATHS (segments, or directories of them), or this node's own."""
    directories = log_directories(paths, config)
    filters = Filters(after, rule, state, event, everything)
    newest = after
    shown: list[tuple[Entry, bytes]] = []
    for entry, body in _entries(directories):
        newest = max(newest, entry.seq)
        if filters.accept(entry):
            shown.append((entry, body))
            if not last:
                _show(*shown.pop(), as_json)
    for entry, body in shown[-last:] if last else []:
        _show(entry, body, as_json)
    while follow:
        time.sleep(FOLLOW_PAUSE_S)
        for entry, body in _entries(_newest_segments(directories)):
            if entry.seq > newest:
                newest = entry.seq
                if filters.accept(entry):
                    _show(entry, body, as_json)


def _entries(directories: list[Path]) -> Iterator[tuple[Entry, bytes]]:
    for line in read_log(directories):
        if line.kind == "entry":
            yield decode_entry(line.body), line.body


def _newest_segments(paths: list[Path]) -> list[Path]:
    """The last two segments of each log: one that was just begun, and the end of the one before."""
    return [segment for path in paths for segment in (segments_of(path)[-2:] if path.is_dir() else [path])]


def _show(entry: Entry, body: bytes, as_json: bool) -> None:
    if as_json:
        click.echo(body.decode())
        return
    seq, at, state, seen, decided = columns(entry)
    state_text = click.style(f"{state:13}", fg=COLOURS.get(state))
    move = click.style(decided, bold=True) if entry.rule else decided
    click.echo(f"{seq:>7} {at} {state_text} {seen}{'  =>  ' + move if decided else ''}")
