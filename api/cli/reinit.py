"""`matriarch reinit`: replaces the data of nodes by a new base backup, and watches it."""

import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import click

from api.cli.options import config_option, json_option
from api.cli.reading import read_cluster
from api.cli.rest import RestClient
from api.cli.waiting import Wait
from effects.clock import now_ms
from effects.errors import MatriarchError
from effects.settings import load_client
from effects.settings_types import ClientSettings
from fsm.view import View
from fsm.wire import Member

if TYPE_CHECKING:
    from collections.abc import Iterator

LOOK_EVERY_S = 0.25
LINE_EVERY_MS = 3_000
IN_PROGRESS = " already in progress"


@click.command()
@click.argument("words", nargs=-1, required=True, metavar="[CLUSTER] NODE...")
@config_option
@click.option("--force", is_flag=True, help="Ask nothing, and give up a base backup or pg_rewind that is under way.")
@click.option("--from-leader", is_flag=True, help="Copy the leader, even where another member offers itself.")
@click.option("--wait/--no-wait", "is_waiting", default=None, help="Wait until they stream again (on a terminal: yes).")
@click.option("--timeout", "timeout_s", type=click.FloatRange(min=0), help="Wait no longer than so many seconds.")
@json_option
def reinit(
    words: tuple[str, ...],
    config: Path | None,
    force: bool,
    from_leader: bool,
    is_waiting: bool | None,
    timeout_s: float | None,
    as_json: bool,
) -> int:
    """Replace all data of each NODE by a new base backup, whatever state it is in; its old data are kept aside.

    Exit status: 0 done (without --wait: begun), 1 refused, failed or unknown how it ended, 2 bad usage.
    """
    settings = load_client(config, os.environ)
    view, names = _named(settings, words)
    members = [_replica(view, name) for name in names]
    if not force:
        _confirm(f"Replace all data of {', '.join(names)} by a new base backup?", is_on_stderr=as_json)
    teller = _tell_nothing if as_json else click.echo
    with RestClient(settings) as client:
        body = {"force": force, "from_leader": from_leader}
        waits = [_ask(client, member, body, may_ask=not force and not as_json, tell=teller) for member in members]
        if is_waiting or (is_waiting is None and sys.stdout.isatty() and not as_json):
            try:
                _watch(client, members, waits, timeout_s=timeout_s, as_json=as_json)
            except KeyboardInterrupt:
                click.echo(f"\nnot waited for any longer: {', '.join(names)} goes on by itself", err=True)
                raise
            is_good = all(wait.outcome == "done" for wait in waits)
        else:
            is_good = all(wait.outcome is None for wait in waits)
    if as_json:
        import msgspec

        click.echo(msgspec.json.encode([wait.fields() for wait in waits]).decode())
    return 0 if is_good else 1


def _confirm(question: str, *, is_on_stderr: bool) -> None:
    """Returns when a person says yes. Raises: MatriarchError."""
    try:
        is_wanted = click.confirm(question, err=is_on_stderr)
    except click.Abort:
        click.echo(err=True)
        hint = "" if sys.stdin.isatty() else "; where nobody can answer, --force asks nothing"
        raise MatriarchError(f"nothing was done{hint}") from None
    if not is_wanted:
        raise MatriarchError("nothing was done")


def _named(settings: ClientSettings, words: tuple[str, ...]) -> tuple[View, tuple[str, ...]]:
    """The cluster and the nodes that were named. Raises: click.UsageError."""
    view = anyio.run(read_cluster, settings, settings.scope)
    first, *others = words
    if first == settings.scope and (others or first not in view.members):
        names = tuple(others)
    elif first not in view.members and others:
        view, names = anyio.run(read_cluster, settings, first), tuple(others)
    else:
        names = words
    if not view.members:
        raise MatriarchError(f"etcd knows no member of the cluster {first if others else settings.scope}")
    known = ", ".join(sorted(name for name in view.members if name != view.leader)) or "none"
    if not names:
        raise click.UsageError(f"name the nodes; the replicas of {first} are: {known}")
    missing = [name for name in names if name not in view.members]
    if missing:
        raise click.UsageError(f"{', '.join(missing)}: no such member; the replicas are: {known}")
    return view, tuple(dict.fromkeys(names))


def _replica(view: View, name: str) -> Member:
    """A member that may be replaced. Raises: MatriarchError for the leader."""
    if name == view.leader:
        raise MatriarchError(f"{name} leads: its data are what the others copy; switch over first. Nothing was done")
    return view.members[name]


def _ask(
    client: RestClient, member: Member, body: dict[str, Any], *, may_ask: bool, tell: Callable[[str], object]
) -> Wait:
    """One request and its answer; a refusal because something is under way may be overruled by a person."""
    wait = Wait(member.name, now_ms())
    try:
        status, text = client.post(member, "/reinitialize", body)
        is_busy = status != 200 and text.endswith(IN_PROGRESS)
        if is_busy and may_ask and click.confirm(f"{member.name}: {text}; give that up and begin anew?"):
            wait.asked_at_ms = now_ms()
            status, text = client.post(member, "/reinitialize", body | {"force": True})
    except MatriarchError as error:
        status, text = 0, str(error)
    if status != 200:
        wait.outcome, wait.detail = "failed", text if status == 0 else f"refused ({status}): {text}"
        tell(f"{member.name}: {wait.detail}")
    else:
        tell(f"{member.name}: {text}")
    return wait


def _tell_nothing(_: str) -> None:
    pass


# ---- waiting ---------------------------------------------------------------------------------------------------------


def _watch(
    client: RestClient, members: Sequence[Member], waits: Sequence[Wait], *, timeout_s: float | None, as_json: bool
) -> None:
    """Looks at every node until each has an outcome or the time is over, and shows what it sees."""
    pending = {wait.name: wait for wait in waits if wait.outcome is None}
    deadline_ms = None if timeout_s is None else now_ms() + int(timeout_s * 1000)
    shown = _nothing() if as_json else _bars(waits) if sys.stdout.isatty() else _lines(waits)
    with shown as show:
        while pending:
            for member in members:
                if member.name in pending:
                    pending[member.name].take(client.status(member), now_ms())
            pending = {name: wait for name, wait in pending.items() if wait.outcome is None}
            show()
            if deadline_ms is not None and now_ms() >= deadline_ms:
                for wait in pending.values():
                    wait.outcome, wait.detail = "unknown", f"not within {timeout_s:g} s; it goes on ({wait.step})"
                break
            if pending:
                time.sleep(LOOK_EVERY_S)
    if not as_json:
        for wait in waits:
            seconds = (now_ms() - wait.asked_at_ms) / 1000
            click.echo(f"{wait.name}: {wait.outcome}, {wait.detail} ({seconds:.1f} s)")


@contextmanager
def _nothing() -> "Iterator[Callable[[], None]]":
    yield lambda: None


@contextmanager
def _lines(waits: Sequence[Wait]) -> "Iterator[Callable[[], None]]":
    """A line a node every few seconds, and whenever the work takes another step."""
    told: dict[str, tuple[str, int]] = {}

    def show() -> None:
        for wait in waits:
            step, at_ms = told.get(wait.name, ("", 0))
            if wait.outcome is None and (step != wait.step or now_ms() - at_ms >= LINE_EVERY_MS):
                told[wait.name] = wait.step, now_ms()
                click.echo(wait.line())

    yield show


@contextmanager
def _bars(waits: Sequence[Wait]) -> "Iterator[Callable[[], None]]":
    """A bar a node: bytes, rate, what is left, and the step."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.fields[name]}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[amount]}"),
        TextColumn("{task.fields[step]}"),
    )
    with Progress(*columns, console=Console(), refresh_per_second=8) as progress:
        tasks = {
            wait.name: progress.add_task("", total=None, name=wait.name, amount="", step="asked")
            for wait in waits
            if wait.outcome is None
        }

        def show() -> None:
            for wait in waits:
                if wait.name in tasks:
                    total = wait.bytes_total or None
                    step = f"{wait.step} (last failure: {wait.trouble})" if wait.trouble else wait.step
                    progress.update(
                        tasks[wait.name], total=total, completed=wait.bytes_done, amount=wait.amount(), step=step
                    )

        yield show
