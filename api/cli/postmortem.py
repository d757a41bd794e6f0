"""`matriarch postmortem`: what happened to a cluster, told from the logs of its nodes."""

from pathlib import Path

import click
import msgspec

from api.cli.options import config_option, json_option, opened_logs, progress_over
from api.report.page import report_html, tales_of, wanted_entries
from api.text import printable
from effects.chronicles import read_chronicle, read_entries_of
from effects.files import write_atomically
from fsm.story.chronicle import Chronicle
from fsm.story.telling import Sentence, doubts_of, near_misses

REPORT_MODE = 0o644


@click.command()
@click.argument("sources", nargs=-1)
@config_option
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write one HTML file that opens anywhere.")
@json_option
def postmortem(sources: tuple[str, ...], config: Path | None, output: Path | None, as_json: bool) -> int:
    """Tell what happened by the logs in SOURCES, one of each node.

    A source is a directory of segments or one above them, a segment, a tar of them, or a node's URL
    (http://10.0.0.1:8008); without any it is this node's own log.

    Outages and near misses in plain sentences, each with the entries (node#number) it rests on; where the time went;
    why another node was not promoted; and what the logs cannot tell. Exit status 1 if two servers took writes at once.
    """
    with opened_logs(sources, config) as logs:
        chronicle = _read(logs, output, is_quiet=as_json)
    if as_json:
        click.echo(msgspec.json.encode(_summary(chronicle)).decode())
    else:
        _tell(chronicle)
        if output is not None:
            click.echo(f"\nwritten: {output}")
    return 1 if chronicle.overlaps else 0


def _read(logs: list[Path], output: Path | None, *, is_quiet: bool) -> Chronicle:
    from api.cli.main import own_version

    with progress_over(logs, "reading", is_hidden=is_quiet) as progress:
        chronicle = read_chronicle(logs, progress)
    if output is not None:
        entries = read_entries_of(logs, wanted_entries(chronicle))
        write_atomically(output, report_html(chronicle, entries, own_version()), mode=REPORT_MODE)
    return chronicle


def _summary(chronicle: Chronicle) -> dict[str, object]:
    return {
        "logs": chronicle.logs,
        "clocks": chronicle.clocks,
        "reigns": chronicle.reigns,
        "outages": [
            {"title": tale.title, "outage": tale.outage, "sentences": tale.sentences, "why_not": tale.why_not}
            for tale in tales_of(chronicle)
        ],
        "near_misses": near_misses(chronicle),
        "doubts": doubts_of(chronicle),
        "overlaps": chronicle.overlaps,
    }


def _tell(chronicle: Chronicle) -> None:
    for doubt in doubts_of(chronicle):
        click.secho(_line(doubt, None), dim=True)
    if not chronicle.outages:
        click.echo("By these logs there was no time without a primary after the first.")
    for tale in tales_of(chronicle):
        click.secho(f"\n{printable(tale.title)}", bold=True)
        for sentence in tale.sentences:
            click.echo(f"  {_line(sentence, tale.outage.since_ms)}")
        if tale.why_not:
            click.echo("  Why not another node:")
        for sentence in tale.why_not:
            click.echo(f"    {_line(sentence, None)}")
    misses = near_misses(chronicle)
    if misses:
        click.secho("\nNear misses", bold=True)
    for sentence in misses:
        click.echo(f"  {_line(sentence, None)}")


def _line(sentence: Sentence, since_ms: int | None) -> str:
    when = f"{(sentence.at_ms - since_ms) / 1000:+9.3f} s  " if sentence.at_ms is not None and since_ms else ""
    rests_on = f"  ({', '.join(map(str, sentence.rests_on))})" if sentence.rests_on else ""
    return printable(f"{when}{sentence.text}{rests_on}")
