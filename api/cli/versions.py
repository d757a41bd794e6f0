"""`matriarch version`."""

import platform

import click

from api.cli.options import json_option


@click.command()
@json_option
def version(as_json: bool) -> None:
    """Print the versions of Matriarch, its table and Python."""
    import msgspec

    from api.cli.main import own_version
    from fsm.dump import TABLE_HASH

    found = {"matriarch": own_version(), "table": TABLE_HASH, "python": platform.python_version()}
    if as_json:
        click.echo(msgspec.json.encode(found).decode())
    else:
        click.echo(f"Matriarch {found['matriarch']}, table {TABLE_HASH}, Python {found['python']}")
