"""`matriarch run`: the agent, from its settings to its exit status."""

import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import anyio
import click

from effects.console import close_console, set_up_console
from effects.errors import ConfigError
from effects.programs import RunAs
from effects.settings import load, preflight
from effects.settings_types import Settings
from effects.signals import Signals
from effects.successor import Inherited, become_successor, take_inherited


@click.command()
@click.argument("config", required=False, type=click.Path(path_type=Path))
@click.option("--check", is_flag=True, help="Check settings and machine, start nothing.")
def run(config: Path | None, check: bool) -> int:
    """Run the agent with the settings in CONFIG (patroni.yml, or a directory of them) and in PATRONI_* variables.

    SIGTERM and SIGINT stop it in good order: the server first, then the leader key and the lease. An agent that is
    killed leaves its server to the fence, which holds it to the lease's deadline; a new agent takes both up again.
    SIGUSR2 restarts the agent in place (see `matriarch restart-agent`), SIGHUP reads the settings again.
    """
    inherited, signals = take_inherited(os.environ), Signals()
    signals.install()
    settings = load(config, os.environ)
    set_up_console(settings.log)
    for warning in settings.warnings:
        logging.getLogger("matriarch").warning("%s", warning)
    run_as = user_to_run_as(settings)
    from api.node import check_node, fixed_settings, listen_address

    preflight(settings, run_as, has_api_socket=inherited.serves(listen_address(settings)))
    inherited.check(fixed_settings(settings, run_as))
    if check:
        check_node(settings, run_as)
        click.echo("the settings are complete and this machine can run them")
        return 0
    return _run_and_succeed(settings, run_as, partial(load, config, os.environ), inherited, signals)


def _run_and_succeed(
    settings: Settings, run_as: RunAs | None, reread: Callable[[], Settings], inherited: Inherited, signals: Signals
) -> int:
    """Run the node, and its successors in this process; the exit status of the last. A successor that cannot be
    executed leaves this program to go on."""
    from api.node import run_node

    while True:
        ended = anyio.run(run_node, settings, run_as, reread, inherited, signals, backend_options={"use_uvloop": True})
        if ended.successor is None:
            return ended.status
        close_console()
        signals.hand_on()
        failure = become_successor(ended.successor)
        signals.install()
        set_up_console(settings.log)
        logging.getLogger("matriarch").critical("the new agent cannot be executed, the old one goes on: %s", failure)
        inherited = ended.successor


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
