"""`matriarch demo`."""

from functools import partial
from io import TextIOWrapper
from pathlib import Path

import click


@click.command()
@click.option("--tour", is_flag=True, help="No terminal needed: three faults, their downtimes, and a verdict.")
@click.option("--postgres", help="PostgreSQL of the wheel, 18 or 16, or a directory with its programs (POSTGRES_BIN).")
@click.option("--keep", type=click.Path(path_type=Path), help="Keep everything in this directory; go on from it later.")
def demo(tour: bool, postgres: str | None, keep: Path | None) -> int:
    """Run a real three-node cluster on this machine: one etcd, three agents, three PostgreSQL servers.

    In a terminal it shows the cluster, and keys crash, freeze and bring back its nodes; elsewhere it prints lines.
    Ctrl-C, SIGTERM or closing the terminal ends all of it. Its etcd is for demos: never use it in production.

    Exit status: 0 everything held, 1 something did not, 2 bad usage.
    """
    import sys

    import anyio
    from rich.console import Console

    from api.cli.demo.session import run_session
    from api.cli.demo.stories import story_for

    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that is not UTF-8 shows question marks
    console = Console()
    is_interactive = sys.stdin.isatty() and sys.stdout.isatty() and not console.is_dumb_terminal
    story = story_for(console, tour=tour, is_interactive=is_interactive)
    session = partial(run_session, story, postgres=postgres, keep=keep, told_status=1 if tour else 0)
    try:
        return anyio.run(session)
    finally:
        _forget_a_closed_terminal()


def _forget_a_closed_terminal() -> None:
    """Lets the interpreter end quietly when what it still has to print can go nowhere."""
    import os
    import sys

    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
