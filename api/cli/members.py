"""`matriarch list` and `matriarch topology`: the members as etcd knows them."""

import os
import time
from datetime import datetime
from pathlib import Path

import anyio
import click

from api.cli.listing import SHAPES, listing_text
from api.cli.options import config_option, json_option
from api.cli.reading import read_cluster
from effects.clock import wall_time
from effects.settings import load_client
from effects.settings_types import ClientSettings

WATCH_EVERY_S = 2.0

scopes_argument = click.argument("scopes", nargs=-1, metavar="[CLUSTER]...")
watch_option = click.option("-W", "is_watching", is_flag=True, help="Show it anew every 2 seconds, until Ctrl-C.")
every_option = click.option(
    "-w", "--watch", "every_s", type=click.FloatRange(min=0.1), metavar="SECONDS", help="Show it anew every SECONDS."
)


@click.command("list")
@scopes_argument
@config_option
@click.option("-e", "--extended", "is_extended", is_flag=True, help="Show pending restarts, schedules and tags too.")
@click.option("-t", "--timestamp", "has_time", is_flag=True, help="Print the time above the table.")
@click.option("-f", "--format", "shape", type=click.Choice(SHAPES), default="pretty", show_default=True)
@json_option
@watch_option
@every_option
def list_members(
    scopes: tuple[str, ...],
    config: Path | None,
    is_extended: bool,
    has_time: bool,
    shape: str,
    as_json: bool,
    is_watching: bool,
    every_s: float | None,
) -> None:
    """Show the members of CLUSTER (this node's own by default) in the columns and words of patronictl."""
    settings = load_client(config, os.environ)
    shape = "json" if as_json else shape
    pause_s = every_s or (WATCH_EVERY_S if is_watching else None)
    _show(settings, scopes, shape, is_extended=is_extended, has_time=has_time, pause_s=pause_s)


@click.command()
@scopes_argument
@config_option
@watch_option
@every_option
def topology(scopes: tuple[str, ...], config: Path | None, is_watching: bool, every_s: float | None) -> None:
    """Show the members of CLUSTER as a tree: who replicates from whom."""
    settings = load_client(config, os.environ)
    _show(settings, scopes, "topology", pause_s=every_s or (WATCH_EVERY_S if is_watching else None))


def _show(
    settings: ClientSettings,
    scopes: tuple[str, ...],
    shape: str,
    *,
    pause_s: float | None,
    is_extended: bool = False,
    has_time: bool = False,
) -> None:
    """Prints the clusters, once or for ever."""
    while True:
        texts = []
        for scope in scopes or (settings.scope,):
            view = anyio.run(read_cluster, settings, scope)
            texts.append(listing_text(view, scope, shape, is_extended=is_extended))
        if pause_s is not None:
            click.clear()
        if has_time:
            click.echo(datetime.fromisoformat(wall_time()).astimezone().strftime("%Y-%m-%d %H:%M:%S"))
        for text in texts:
            click.echo(text)
        if pause_s is None:
            return
        time.sleep(pause_s)
