"""pg_rewind, with the checks that it does not make itself: before it starts, that its source can be believed; after it,
that the data directory now leads to the right timeline.
"""

import re
from collections.abc import Callable

import anyio
import msgspec
from anyio import to_thread
from psycopg.conninfo import make_conninfo

from effects.clock import now_ms
from effects.controldata import describe, mark, read_control_file, unmark
from effects.errors import PostgresError
from effects.pgconfig import Parameters, write_passfile, write_server_files, write_signal_file
from effects.processes import remove_stale_lock_files, running_postmaster
from effects.programs import ProgramEnded, run_program
from effects.server_settings import ServerSettings
from effects.sql import upstream_connection
from fsm.facts import Upstream

CONNECT_TIMEOUT_S = 5
SOURCE_POLL_S = 0.05
PROGRESS = re.compile(r"\s*(\d+)/(\d+) kB \(\s*\d+%\) copied")
# pg_rewind writes to the target only after this line; when it ends by itself before it, the target is as it was.
# Source: PostgreSQL, pg_rewind "How It Works": the file map is complete before anything is copied.
COPYING = "need to copy"
NOT_REQUIRED = "no rewind required"


class RewindProgress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a rewind is. `is_copying`: the target has been, or is being, changed."""

    bytes_done: int = 0
    bytes_total: int = 0
    is_copying: bool = False


class Rewound(msgspec.Struct, frozen=True, kw_only=True):
    """What a rewind did. Not needed: the target's WAL was a part of the source's history as it was."""

    needed: bool
    bytes_copied: int = 0


async def rewind(
    settings: ServerSettings,
    upstream: Upstream,
    timeline: int,
    on_progress: Callable[[RewindProgress], None],
    *,
    parameters: Parameters,
    timeout_ms: int,
) -> Rewound:
    """Makes the stopped server's data directory one of a standby of `upstream` again.

    timeline: the one that `upstream` must be on by its own control file, which is waited for: pg_rewind reads that
    file, and would take a promotion that is not checkpointed for "no rewind required". parameters: the cluster's
    dynamic ones, for the configuration is written again (pg_rewind copies the source's). timeout_ms: for all of it.
    The mark `rewinding` is set before and stays, unless all is well or the target was surely not touched.
    Raises: ProgramFailed, PostgresError, OSError. Source: PostgreSQL, pg_rewind; Patroni, checkpoint_after_promote.
    """
    deadline_ms = now_ms() + timeout_ms
    if running_postmaster(settings.data_dir):
        raise PostgresError(f"a server runs on {settings.data_dir}: it must be stopped before it is rewound")
    await wait_for_checkpoint(settings, upstream, timeline, timeout_ms)
    await to_thread.run_sync(_begin, settings)
    reader = _Reader(on_progress)
    ended = await _run(settings, upstream, reader, max(deadline_ms - now_ms(), 1))
    if ended.status != 0 and not reader.progress.is_copying and not ended.timed_out:
        await to_thread.run_sync(_finish, settings)
    ended.check()
    if reader.progress.is_copying:
        await _check_target(settings, timeline)
    await to_thread.run_sync(write_server_files, settings, parameters, upstream)
    await to_thread.run_sync(_finish, settings)
    return Rewound(needed=NOT_REQUIRED not in ended.stderr, bytes_copied=reader.progress.bytes_done)


async def wait_for_checkpoint(settings: ServerSettings, upstream: Upstream, timeline: int, timeout_ms: int) -> None:
    """Returns once the control file of `upstream` says at least `timeline`.

    Raises: PostgresError when it does not within `timeout_ms`, or cannot be asked. Source: pg_control_checkpoint().
    """
    found: int | None = None
    with anyio.move_on_after(timeout_ms / 1000):
        async with upstream_connection(upstream, settings.rewind, "-c statement_timeout=2s") as connection:
            while found is None or found < timeline:
                if found is not None:
                    await anyio.sleep(SOURCE_POLL_S)
                cursor = await connection.execute("SELECT timeline_id FROM pg_control_checkpoint()")
                row = await cursor.fetchone()
                found = int(row[0]) if row else 0
        return
    raise PostgresError(
        f"{upstream.name} has not checkpointed timeline {timeline} within {timeout_ms} ms: "
        f"its control file says {found or 'nothing'}, so pg_rewind would not see the divergence"
    )


async def _run(settings: ServerSettings, upstream: Upstream, reader: "_Reader", timeout_ms: int) -> ProgramEnded:
    return await run_program(
        _command(settings, upstream),
        run_as=settings.run_as,
        # Reading a whole WAL directory takes as long as it takes, whatever the roles' limits are.
        env={"PGOPTIONS": "-c statement_timeout=0"},
        timeout_ms=timeout_ms,
        on_stderr_line=reader.read,
    )


def _command(settings: ServerSettings, upstream: Upstream) -> list[str]:
    source = make_conninfo(
        host=upstream.host,
        port=upstream.port,
        user=settings.rewind.username,
        dbname="postgres",
        passfile=str(settings.passfile),
        application_name=settings.name,
        connect_timeout=CONNECT_TIMEOUT_S,
        **settings.rewind.public_options,
    )
    return [
        settings.program("pg_rewind"),
        f"--target-pgdata={settings.data_dir}",
        f"--source-server={source}",
        "--progress",
        *settings.rewind_options,
    ]


def parse_line(line: str, before: RewindProgress) -> RewindProgress:
    """The progress after one more line of pg_rewind's stderr."""
    counts = PROGRESS.match(line)
    if counts:
        done, total = (int(count) * 1024 for count in counts.groups())
        return RewindProgress(bytes_done=done, bytes_total=total, is_copying=True)
    return msgspec.structs.replace(before, is_copying=True) if COPYING in line else before


class _Reader:
    """Follows stderr line by line and tells of every change."""

    def __init__(self, on_progress: Callable[[RewindProgress], None]) -> None:
        self._on_progress = on_progress
        self.progress = RewindProgress()

    def read(self, line: str) -> None:
        now = parse_line(line, self.progress)
        if now != self.progress:
            self.progress = now
            self._on_progress(now)


def _begin(settings: ServerSettings) -> None:
    mark(settings, "rewinding")
    write_passfile(settings)
    remove_stale_lock_files(settings.data_dir, settings.socket_lock)
    # pg_rewind recovers a crashed target in single-user mode, which refuses to start as a standby.
    write_signal_file(settings, "primary")


def _finish(settings: ServerSettings) -> None:
    # From now on nobody who starts it by hand makes a second primary of it.
    write_signal_file(settings, "standby")
    unmark(settings, "rewinding")


async def _check_target(settings: ServerSettings, timeline: int) -> None:
    target = describe(await read_control_file(settings), "cluster")
    if max(target.timeline, target.min_recovery_timeline) < timeline:
        raise PostgresError(
            f"pg_rewind reported success, but {settings.data_dir} leads to timeline "
            f"{max(target.timeline, target.min_recovery_timeline)} instead of {timeline}"
        )
