"""`matriarch verify`: what must hold of a cluster's logs, whatever happened to it."""

from pathlib import Path

import click

from api.cli.options import config_option, json_option, opened_logs, progress_over
from api.text import printable
from effects.verifying import Read, Verification, encode_verification, verify_logs
from fsm.verify.findings import CHECKS


@click.command()
@click.argument("sources", nargs=-1)
@config_option
@json_option
def verify(sources: tuple[str, ...], config: Path | None, as_json: bool) -> int:
    """Check the logs in SOURCES, one of each node: segments, directories, tars or nodes' URLs; without any this node's.

    Each log by itself: replay, moves, outcomes, lease, fence, who may lead. All together, by etcd's revisions: who led,
    what the keys said, timelines, positions. Exit status 1 if anything was found.
    """
    with opened_logs(sources, config) as logs, progress_over(logs, "verifying", is_hidden=as_json) as progress:
        found = verify_logs(logs, progress)
    if as_json:
        click.echo(encode_verification(found).decode())
    else:
        _tell(found)
    return 0 if found.holds else 1


def _tell(found: Verification) -> None:
    for read in found.logs:
        click.echo(_read_text(read))
    for check, asked in CHECKS.items():
        looked, wrong = found.looked.get(check, 0), found.found.get(check, 0)
        mark = f"{wrong} WRONG" if wrong else "holds" if looked else "nothing to look at"
        click.echo(f"  {check:<10} {looked:>9,}  {mark:<18}  {asked}")
    if found.doubt:
        click.echo(f"  not compared: {found.doubt}")
    for finding in found.findings:
        click.echo(printable(str(finding)))


def _read_text(read: Read) -> str:
    parts = [f"{read.entries:,} entries"]
    parts += [f"{read.missing:,} never reached the disk"] if read.missing else []
    parts += [f"{read.skipped:,} before the first snapshot not decided"] if read.skipped else []
    parts += [f"{read.other_tables:,} decided by another table"] if read.other_tables else []
    parts += [f"{read.torn_bytes:,} bytes of an unfinished line left out"] if read.torn_bytes else []
    return printable(f"{read.path}: {read.node}: {', '.join(parts)}")
