"""`matriarch run`: the agent, from its settings to its exit status."""

import logging
import os
from functools import partial
from pathlib import Path

import anyio
import click

from effects.console import set_up_console
from effects.errors import ConfigError
from effects.programs import RunAs
from effects.settings import load, preflight
from effects.settings_types import Settings


@click.command()
@click.argument("config", required=False, type=click.Path(path_type=Path))
@click.option("--check", is_flag=True, help="Check settings and machine, start nothing.")
def run(config: Path | None, check: bool) -> int:
    """Run the agent with the settings in CONFIG (patroni.yml, or a directory of them) and in PATRONI_* variables.

    SIGTERM and SIGINT stop it in good order: the server first, then the leader key and the lease. An agent that is
    killed leaves its server to the fence, which holds it to the lease's deadline; a new agent takes both up again.
    """
    settings = load(config, os.environ)
    set_up_console(settings.log)
    for warning in settings.warnings:
        logging.getLogger("matriarch").warning("%s", warning)
    run_as = user_to_run_as(settings)
    preflight(settings, run_as)
    if check:
        click.echo("the settings are complete and this machine can run them")
        return 0
    from api.node import run_node

    return anyio.run(
        run_node, settings, run_as, partial(load, config, os.environ), backend_options={"use_uvloop": True}
    )


def user_to_run_as(settings: Settings) -> RunAs | None:
    """Who runs PostgreSQL's programs: the user in the settings, else as root `postgres` or `nobody`, else ourselves.

    Raises: ConfigError when the user does not exist, or this process may not become it.
    """
    import pwd

    from effects.embedded import unprivileged_user

    if settings.run_as is None:
        return unprivileged_user()
    if os.geteuid() != 0:
        return None
    try:
        found = pwd.getpwnam(settings.run_as)
    except KeyError:
        raise ConfigError([f"matriarch.run_as: this machine has no user {settings.run_as!r}; create it"]) from None
    return RunAs(name=found.pw_name, uid=found.pw_uid, gid=found.pw_gid, home=found.pw_dir)
