"""`matriarch list`: the members as etcd knows them."""

import os
from pathlib import Path
from typing import Any

import anyio
import click

from api.cli.options import config_option, json_option
from effects.clock import now_ms
from effects.settings import load
from effects.settings_types import Settings
from fsm.events import ClusterRead
from fsm.observe import observe
from fsm.view import View

COLUMNS = ("Member", "Host", "Role", "State", "TL", "LSN", "Lag in MB")
READ_TIMEOUT_MS = 5_000


@click.command("list")
@config_option
@json_option
def list_members(config: Path | None, as_json: bool) -> None:
    """Show the cluster's members: role, state, timeline, position and lag."""
    import msgspec
    from rich.console import Console
    from rich.table import Table

    settings = load(config, os.environ)
    view = anyio.run(read_cluster, settings)
    rows = member_rows(view)
    if as_json:
        click.echo(msgspec.json.encode(rows).decode())
        return
    table = Table(title=f"Cluster: {settings.scope} ({view.initialize or 'uninitialized'})", title_justify="left")
    for column in COLUMNS:
        table.add_column(column)
    for row in rows:
        table.add_row(*(str(row.get(column, "")) for column in COLUMNS))
    Console().print(table)


async def read_cluster(settings: Settings) -> View:
    """What etcd knows of the cluster. Raises: EtcdUnavailable, EtcdRefused."""
    from effects.etcd import EtcdClient
    from effects.keys import as_change, prefix_of

    prefix = prefix_of(settings.namespace, settings.scope)
    password = settings.etcd.password.reveal() if settings.etcd.password else None
    async with EtcdClient(settings.etcd.hosts, username=settings.etcd.username, password=password) as client:
        read = await client.read_prefix(prefix, timeout_ms=READ_TIMEOUT_MS)
    keys = tuple(as_change(prefix, key) for key in read.keys)
    return observe(View(), ClusterRead(at_ms=now_ms(), revision=read.revision, keys=keys))


def member_rows(view: View) -> list[dict[str, Any]]:
    """A row a member, in the columns and words of `patronictl list`."""
    from fsm.status import cluster_members

    return [_row(member) for member in cluster_members(view)]


def _row(member: dict[str, Any]) -> dict[str, Any]:
    lag = member.get("lag", "")
    return {
        "Member": member["name"],
        "Host": f"{member.get('host', '')}:{member.get('port', '')}",
        "Role": str(member["role"]).replace("_", " ").title(),
        "State": member["state"],
        "TL": member.get("timeline", ""),
        "LSN": member.get("lsn", ""),
        "Lag in MB": round(lag / 1048576) if isinstance(lag, int) else lag,
    }
