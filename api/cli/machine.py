"""`matriarch fsm`: the state machine as a picture or as text, from the table itself."""

from pathlib import Path

import click

from api.cli.options import opened_logs
from effects.heat import count_moves, is_coverage, read_coverage
from fsm.diagram import as_dot, as_json, as_mermaid, as_svg, as_text
from fsm.heat import Heat
from fsm.states import State

DRAWERS = {"mermaid": as_mermaid, "dot": as_dot, "svg": as_svg, "json": as_json, "text": as_text}


@click.command()
@click.option("-F", "--format", "shape", type=click.Choice(list(DRAWERS)), default="text", show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="Write to a file.")
@click.option("--state", type=click.Choice([str(state) for state in State]), help="Light this state up.")
@click.option(
    "--heat",
    metavar="FILE",
    help="Show how often each rule fired: by a simulation's coverage file, or a transition log (directory, tar, URL).",
)
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
def fsm(shape: str, output: Path | None, state: str | None, heat: str | None, as_json: bool) -> None:
    """Draw the states, rules and duties from the table that decides."""
    counted = None if heat is None else _read_heat(heat)
    text = DRAWERS["json" if as_json else shape](State(state) if state else None, counted)
    if output is None:
        click.echo(text.rstrip("\n"))
    else:
        output.write_text(text.rstrip("\n") + "\n")


def _read_heat(source: str) -> Heat:
    """The numbers that a file or a log has; rules of another version are named on stderr and left out."""
    if is_coverage(Path(source)):
        heat = read_coverage(Path(source))
    else:
        with opened_logs([source], None) as logs:
            heat = count_moves(logs)
    if heat.strangers:
        click.echo(f"{source}: not in this version's table, left out: {', '.join(heat.strangers)}", err=True)
    return heat
