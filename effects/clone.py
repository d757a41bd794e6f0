"""A base backup of another member into the empty data directory, with progress."""

import re
from collections.abc import Callable
from typing import Any, Literal

import msgspec
from anyio import to_thread
from psycopg.conninfo import make_conninfo

from effects.controldata import mark, unmark
from effects.errors import ConfigError, PostgresError
from effects.files import own_directory
from effects.pgconfig import write_passfile, write_signal_file
from effects.programs import run_program
from effects.server_settings import ServerSettings
from fsm.facts import Upstream

CONNECT_TIMEOUT_S = 5
FORBIDDEN_OPTIONS = frozenset(
    {
        "compress", "dbname", "format", "gzip", "help", "host", "no-password", "no-sync", "password", "pgdata", "port",
        "progress", "target", "username", "verbose", "version", "wal-method", "write-recovery-conf", "xlog-method",
    }
)  # fmt: skip
"""What would lead elsewhere, make no data directory, or hide the progress. Source: PostgreSQL, pg_basebackup."""
PROGRESS = re.compile(r"\s*(\d+)/(\d+) kB \(\s*\d+%\)")

Phase = Literal["connecting", "checkpoint", "copying", "streaming", "syncing"]
# The line of `pg_basebackup --verbose` with which each phase begins.
PHASES: tuple[tuple[str, Phase], ...] = (
    ("initiating base backup", "checkpoint"),
    ("write-ahead log start point", "copying"),
    ("waiting for background process", "streaming"),
    ("syncing data to disk", "syncing"),
)


class CloneProgress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a base backup is. `bytes_total` is the source's estimate, 0 while it is not known."""

    bytes_done: int = 0
    bytes_total: int = 0
    phase: Phase = "connecting"


async def clone(
    settings: ServerSettings,
    upstream: Upstream,
    on_progress: Callable[[CloneProgress], None],
    *,
    timeout_ms: int,
) -> CloneProgress:
    """Takes a base backup of `upstream` as the replication user and returns how much it was.

    The mark `cloning` is set before and stays unless the clone is complete and on disk; then the directory is one of a
    standby. on_progress: called at least once a second while bytes arrive. timeout_ms: for the whole backup.
    Raises: ProgramFailed, PostgresError, OSError. Source: PostgreSQL, pg_basebackup.
    """
    await to_thread.run_sync(_begin, settings)
    reader = _Reader(on_progress)
    ended = await run_program(
        _command(settings, upstream),
        run_as=settings.run_as,
        timeout_ms=timeout_ms,
        on_stderr_line=reader.read,
    )
    ended.check()
    await to_thread.run_sync(_finish, settings)
    return reader.progress


def parse_line(line: str, before: CloneProgress) -> CloneProgress:
    """The progress after one more line of pg_basebackup's stderr."""
    counts = PROGRESS.match(line)
    if counts:
        done, total = (int(count) * 1024 for count in counts.groups())
        return CloneProgress(bytes_done=done, bytes_total=total, phase="copying")
    phase = next((phase for words, phase in PHASES if words in line), None)
    return msgspec.structs.replace(before, phase=phase) if phase else before


class _Reader:
    """Follows stderr line by line and tells of every change."""

    def __init__(self, on_progress: Callable[[CloneProgress], None]) -> None:
        self._on_progress = on_progress
        self.progress = CloneProgress()

    def read(self, line: str) -> None:
        now = parse_line(line, self.progress)
        if now != self.progress:
            self.progress = now
            self._on_progress(now)


def _begin(settings: ServerSettings) -> None:
    if settings.data_dir.exists() and any(settings.data_dir.iterdir()):
        raise PostgresError(f"{settings.data_dir} is not empty: nothing is cloned over it")
    mark(settings, "cloning")
    write_passfile(settings)
    own_directory(settings.data_dir, settings.run_as)


def _finish(settings: ServerSettings) -> None:
    # From now on nobody who starts it by hand makes a second primary of it.
    write_signal_file(settings, "standby")
    unmark(settings, "cloning")


def _command(settings: ServerSettings, upstream: Upstream) -> list[str]:
    source = make_conninfo(
        host=upstream.host,
        port=upstream.port,
        user=settings.replication.username,
        passfile=str(settings.passfile),
        # Not the member's own name: a backup under way must not be taken for a synchronous standby.
        application_name=f"{settings.name} base backup",
        connect_timeout=CONNECT_TIMEOUT_S,
        **settings.replication.public_options,
    )
    return [
        settings.program("pg_basebackup"),
        f"--pgdata={settings.data_dir}",
        f"--dbname={source}",
        "--wal-method=stream",
        "--checkpoint=fast",
        "--no-password",
        *([] if any("manifest" in option for option in settings.basebackup_options) else ["--no-manifest"]),
        "--progress",
        "--verbose",
        *settings.basebackup_options,
    ]


def basebackup_arguments(options: Any) -> tuple[str, ...]:
    """Words for pg_basebackup from `postgresql.basebackup`: a map, or a list of options and of maps.

    Raises: ConfigError for what this agent decides itself. Source: Patroni, postgresql.basebackup.
    """
    parts = [options] if isinstance(options, dict) else options if isinstance(options, list) else []
    pairs = [pair for part in parts for pair in (part.items() if isinstance(part, dict) else [(part, True)])]
    words = [(str(name).removeprefix("--"), value) for name, value in pairs if value is not False]
    forbidden = sorted({name for name, _ in words if name.partition("=")[0] in FORBIDDEN_OPTIONS})
    if forbidden:
        remedy = "the agent sets it itself, or cannot work with it; leave it out"
        raise ConfigError([f"postgresql.basebackup.{name}: {remedy}" for name in forbidden])
    return tuple(f"--{name}" if value is None or value is True else f"--{name}={value}" for name, value in words)
