"""Options that several commands share, and where they lead."""

import os
from pathlib import Path

import click

from effects.errors import ConfigError

config_option = click.option(
    "-c",
    "--config-file",
    "config",
    type=click.Path(path_type=Path),
    envvar=["MATRIARCH_CONFIG_FILE", "PATRONICTL_CONFIG_FILE"],
    help="The node's patroni.yml (PATRONI_* variables count as well).",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Machine-readable JSON instead of text.")


def log_directories(paths: tuple[Path, ...], config: Path | None) -> list[Path]:
    """Where the logs lie: the paths given, else this node's own.

    Raises: ConfigError when nothing names a log, or a path does not exist.
    """
    if paths:
        missing = [f"{path}: no such file or directory" for path in paths if not path.exists()]
        if missing:
            raise ConfigError(missing)
        return [_inside(path) for path in paths]
    from effects.settings import load

    found = load(config, os.environ).state_dir / "log"
    if not found.exists():
        raise ConfigError([f"{found}: there is no log yet; name one, or run the agent first"])
    return [found]


def _inside(path: Path) -> Path:
    """A node's own directory stands for the log in it."""
    return path / "log" if (path / "log").is_dir() else path
