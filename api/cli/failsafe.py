"""`matriarch failsafe check`: would the primary go on if etcd went away now, and if not, because of whom."""

import os
from pathlib import Path
from typing import Any

import anyio
import click

from api.cli.listing import Listing, table_text
from api.cli.options import config_option, json_option
from api.cli.reading import read_cluster
from api.cli.rest import RestClient, base_url
from effects.errors import MatriarchError
from effects.settings import load_client
from effects.settings_types import ClientSettings
from fsm.view import View
from fsm.wire import Member

PATH = "/failsafe/check"
COLUMNS = ("Cluster", "Member", "Listed", "Answer", "ms", "Why")


@click.group()
def failsafe() -> None:
    """What happens to the primary when etcd does not answer."""


@failsafe.command(short_help="Would the primary go on if etcd went away now?")
@click.argument("scope", required=False, metavar="[CLUSTER]")
@config_option
@json_option
def check(scope: str | None, config: Path | None, as_json: bool) -> int:
    """Ask the leader's agent whether every member would let it go on if etcd went away now. It binds nobody.

    Exit status: 0 it would go on, 1 it would not, or cannot be told, 2 bad usage or settings.
    """
    settings = load_client(config, os.environ)
    scope = scope or settings.scope
    leader = _leader(anyio.run(read_cluster, settings, scope), scope)
    found = _ask(settings, leader)
    if as_json:
        import json

        click.echo(json.dumps(found))
    else:
        click.echo(check_text(found, scope))
    return 0 if found["holds"] is True else 1


def _leader(view: View, scope: str) -> Member:
    """The member that would ask. Raises: MatriarchError."""
    if not view.members:
        raise MatriarchError(f"etcd knows no member of the cluster {scope}")
    if view.leader is None:
        raise MatriarchError(f"nobody leads the cluster {scope}, so there is nobody who could go on")
    member = view.members.get(view.leader)
    if member is None or not member.api_url:
        raise MatriarchError(f"{view.leader} leads the cluster {scope}, but etcd does not tell where its API is")
    return member


def _ask(settings: ClientSettings, leader: Member) -> dict[str, Any]:
    """What the leader's agent found. Raises: MatriarchError."""
    with RestClient(settings) as client:
        status, found = client.get(leader, PATH)
    if isinstance(found, dict) and "holds" in found:
        return found
    if status in (401, 403, 503) and isinstance(found, str):
        raise MatriarchError(f"{leader.name} was not asked to check, or could not ({status}): {found}")
    remedy = "it is Patroni, or an earlier Matriarch; this check needs a leader that has it"
    raise MatriarchError(f"{leader.name} at {base_url(leader)} does not know {PATH}: {remedy}")


def check_text(found: dict[str, Any], scope: str) -> str:
    """The table of the members and the verdict below it."""
    rows = tuple(
        (scope, member["name"], "yes" if member["is_listed"] else "no", member["verdict"], member["took_ms"],
         member["reason"])
        for member in found["members"]
    )  # fmt: skip
    verdict = "holds" if found["holds"] else "would NOT hold"
    footer = (f" failsafe {verdict}: {found['reason']}",)
    if not rows:
        return footer[0].strip()
    title = f" Cluster: {scope}, leader {found['leader']} "
    return table_text(Listing(columns=COLUMNS, rows=rows, title=title, footer=footer))
