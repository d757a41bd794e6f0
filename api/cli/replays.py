"""`matriarch replay`: decide recorded inputs again, and say whether anything came out differently."""

from pathlib import Path

import click
import msgspec

from api.cli.options import config_option, json_option, opened_logs, progress_over
from effects.clock import now_ms
from effects.log_reader import read_log
from fsm.replay import Replay, Verdict

PROGRESS_EVERY = 2_000


@click.command()
@click.argument("sources", nargs=-1)
@config_option
@json_option
def replay(sources: tuple[str, ...], config: Path | None, as_json: bool) -> int:
    """Replay the logs in SOURCES: segments, directories of them, tars or nodes' URLs; this node's own without any.

    Every entry's input is decided again; rule, states, effects and cancellations must come out as recorded. Exit
    status 1 at the first difference.
    """
    with opened_logs(sources, config) as logs:
        verdicts = {str(path): _replay_one(path, quiet=as_json) for path in logs}
    if as_json:
        click.echo(msgspec.json.encode(verdicts).decode())
    else:
        for path, verdict in verdicts.items():
            click.echo(f"{path}: {verdict_text(verdict)}")
    return 1 if any(verdict.difference for verdict in verdicts.values()) else 0


def _replay_one(path: Path, *, quiet: bool) -> Verdict:
    run = Replay()
    began_ms = now_ms()
    with progress_over([path], f"replaying {path.name}", is_hidden=quiet) as progress:
        done = 0
        reading = read_log([path])
        for line in reading:
            if run.take(line.kind, line.body, line.missing) is not None:
                break
            done += len(line.body)
            if run.verdict.entries % PROGRESS_EVERY == 0:
                progress(done)
                done = 0
    for torn in reading.torn:
        click.echo(f"{torn.path}:{torn.line_number}: {torn.torn_bytes} bytes of an unfinished line, left out", err=True)
    if not quiet:
        seconds = max(0.001, (now_ms() - began_ms) / 1000)
        click.echo(
            f"{run.verdict.entries} entries in {seconds:.1f} s: {run.verdict.entries / seconds:,.0f}/s", err=True
        )
    return run.verdict


def verdict_text(verdict: Verdict) -> str:
    """The verdict in a sentence."""
    counted = f"{verdict.entries} entries, {verdict.moves} moves, {verdict.snapshots} snapshots"
    if verdict.skipped:
        counted += f", {verdict.skipped} before the first snapshot not decided"
    if verdict.missing:
        counted += f", {verdict.missing} never reached the disk"
    found = verdict.difference
    if found is None:
        return f"replays without a difference ({counted})"
    whose = "by the same table" if found.same_table else "by another table"
    return (
        f"DIFFERS at entry {found.seq} in {found.part}, decided {whose}\n"
        f"  recorded: {found.recorded}\n  decided:  {found.decided}\n  ({counted})"
    )
