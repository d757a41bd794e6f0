"""Options that several commands share, and where they lead."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import click

from effects.errors import ConfigError
from effects.log_archive import fetched, is_tar, is_url
from effects.log_reader import SEGMENT_PATTERN, segments_of

config_option = click.option(
    "-c",
    "--config-file",
    "config",
    type=click.Path(path_type=Path),
    envvar=["MATRIARCH_CONFIG_FILE", "PATRONICTL_CONFIG_FILE"],
    help="The node's patroni.yml (PATRONI_* variables count as well).",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Machine-readable JSON instead of text.")


@contextmanager
def opened_logs(sources: Sequence[str], config: Path | None) -> Iterator[list[Path]]:
    """The logs that are named: directories, segments, tars and nodes' URLs; this node's own where nothing is named.

    What was fetched or unpacked for it is gone after the block.

    Raises: ConfigError when nothing names a log, LogUnavailable for a tar or a node that has none.
    """
    with ExitStack() as leaving:
        logs: list[Path] = []
        for source in sources:
            if is_url(source) or is_tar(Path(source)):
                logs += leaving.enter_context(fetched(source))
            else:
                logs += log_directories((Path(source),), None)
        yield logs if sources else log_directories((), config)


@contextmanager
def progress_over(logs: Sequence[Path], label: str, *, is_hidden: bool) -> Iterator[Callable[[int], None]]:
    """A bar for reading some logs, on stderr where somebody looks at it.

    Yields what is told how many bytes were read since it was told last.
    """
    files = [file for log in logs for file in ([log] if log.is_file() else log.glob(SEGMENT_PATTERN))]
    total_bytes = sum(file.stat().st_size for file in files)
    hidden = is_hidden or not sys.stderr.isatty()
    with click.progressbar(length=total_bytes, label=label, hidden=hidden, file=sys.stderr) as bar:
        yield bar.update


def log_directories(paths: tuple[Path, ...], config: Path | None) -> list[Path]:
    """Where the logs lie: the paths given, else this node's own.

    Raises: ConfigError when nothing names a log, or a path does not exist.
    """
    if paths:
        missing = [f"{path}: no such file or directory" for path in paths if not path.exists()]
        if missing:
            raise ConfigError(missing)
        return [log for path in paths for log in _logs_in(path)]
    from effects.settings import load

    found = load(config, os.environ).state_dir / "log"
    if not found.exists():
        raise ConfigError([f"{found}: there is no log yet; name one, or run the agent first"])
    return [found]


def _logs_in(path: Path) -> list[Path]:
    """The logs that a path stands for: a segment, a directory of them, or one somewhere above them.

    Raises: ConfigError when there is none.
    """
    if path.is_file() or segments_of(path):
        return [path]
    found = sorted({segment.parent for segment in path.rglob(SEGMENT_PATTERN)})
    if not found:
        raise ConfigError([f"{path}: no log segments ({SEGMENT_PATTERN}) in it or below it"])
    return found
