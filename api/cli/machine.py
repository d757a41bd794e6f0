"""`matriarch fsm`: the state machine as a picture or as text, from the table itself."""

from pathlib import Path

import click

from fsm.diagram import as_dot, as_json, as_mermaid, as_svg
from fsm.dump import table_text
from fsm.states import State

DRAWERS = {
    "mermaid": as_mermaid,
    "dot": as_dot,
    "svg": as_svg,
    "json": as_json,
    "text": lambda _: table_text(),
}


@click.command()
@click.option("-F", "--format", "shape", type=click.Choice(list(DRAWERS)), default="text", show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="Write to a file.")
@click.option("--state", type=click.Choice([str(state) for state in State]), help="Light this state up.")
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
def fsm(shape: str, output: Path | None, state: str | None, as_json: bool) -> None:
    """Draw the states, rules and duties from the table that decides."""
    text = DRAWERS["json" if as_json else shape](State(state) if state else None)
    if output is None:
        click.echo(text.rstrip("\n"))
    else:
        output.write_text(text.rstrip("\n") + "\n")
