"""`matriarch`: the commands, and one place where errors become a line and an exit status.

Exit statuses: 0 it held, 1 it did not, 2 bad usage or settings.
"""

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

import click

from effects.errors import ConfigError, MatriarchError

COMMANDS = {
    "run": ("api.cli.run", "Run the agent beside one PostgreSQL server."),
    "restart-agent": ("api.cli.restart_agent", "Restart the agent in place, with the code on the disk."),
    "demo": ("api.cli.demo.command", "A real three-node cluster on this machine, to play with or as a tour."),
    "list": ("api.cli.members", "Show the cluster's members."),
    "topology": ("api.cli.members", "Show the members as a tree."),
    "reinit": ("api.cli.reinit", "Replace the data of nodes by a new base backup, and watch it."),
    "failsafe": ("api.cli.failsafe", "Check whether the primary would go on if etcd went away now."),
    "show-config": ("api.cli.configuration", "Show the cluster's configuration, or every setting in force."),
    "explain": ("api.cli.explain", "Say why a node moves or stays, or who would win a failover now."),
    "log": ("api.cli.logs", "Show the transition log, one line an entry."),
    "replay": ("api.cli.replays", "Decide a recorded log again and compare."),
    "postmortem": ("api.cli.postmortem", "Tell what happened to a cluster by the logs of its nodes."),
    "verify": ("api.cli.verify", "Check what must hold of a cluster's logs, each alone and all together."),
    "fsm": ("api.cli.machine", "Draw the state machine."),
    "completion": ("api.cli.completion", "Print the completion script of a shell."),
    "version": ("api.cli.versions", "Print the version."),
}


FUNCTIONS = {"list": "list_members", "show-config": "show_config", "restart-agent": "restart_agent"}
"""The functions of commands that are not called as the command is."""


class LazyGroup(click.Group):
    """Knows every command's name and summary, and imports one only when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order of a node's life."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, imported now."""
        if cmd_name not in COMMANDS:
            return None
        module = import_module(COMMANDS[cmd_name][0])
        command: click.Command = getattr(module, FUNCTIONS.get(cmd_name, cmd_name))
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands in `--help`, without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])


def own_version() -> str:
    """The version of the installed distribution."""
    try:
        return version("pgmatriarch")
    except PackageNotFoundError:
        return "unknown"


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(own_version(), prog_name="matriarch")
def cli() -> None:
    """A high-availability agent for PostgreSQL: one beside each server, every decision in its log."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; an error is told in plain lines on stderr."""
    try:
        status = cli.main(args=arguments, prog_name="matriarch", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except ConfigError as error:
        _tell(error.faults)
        sys.exit(2)
    except MatriarchError as error:
        _tell([str(error)])
        sys.exit(1)
    except BrokenPipeError:
        sys.stderr.close()  # the reader went away, as `head` does
        sys.exit(0)
    except OSError as error:
        _tell([f"{error.filename}: {error.strerror}" if error.filename else str(error)])
        sys.exit(1)
    except Exception as error:
        if os.environ.get("MATRIARCH_TRACEBACK"):
            raise
        _tell([f"a fault of Matriarch's own: {type(error).__name__}: {error}; MATRIARCH_TRACEBACK=1 shows where"])
        sys.exit(1)
    sys.exit(status if isinstance(status, int) else 0)


def _tell(lines: Sequence[str]) -> None:
    for line in lines:
        click.echo(f"matriarch: {line}", err=True)
