"""Whom commits wait for: `synchronous_standby_names` at the running server, put in force and looked at.

The parameter has a file of its own, which the generated configuration includes last: it is changed at any moment, while
other parameters may be written. Source: PostgreSQL, synchronous_standby_names, "Configuration File Includes".
"""

import os
import re
import signal
from pathlib import Path

import anyio
from anyio import to_thread

from effects.errors import PostgresError
from effects.files import remove_durably, write_atomically
from effects.pgconfig import GENERATED, SYNC_NAMES, include_of_names, quote
from effects.processes import running_postmaster
from effects.server_settings import ServerSettings
from effects.sql import Connection, local_connection

PARAMETER = "synchronous_standby_names"
# Nothing that is done here may itself wait for a standby.
SESSION = "-c synchronous_commit=local -c statement_timeout=2s -c log_statement=none"
POLL_S = 0.005
OVERRIDE = re.compile(rf"\s*{PARAMETER}\b", re.IGNORECASE)
# Where the process that tells commits to wait takes over a changed configuration: while it has nothing to do, and
# between the writes of a checkpoint that is spread over time. Source: PostgreSQL, "Wait Events", checkpointer.c.
TAKES_OVER_SETTINGS = ("CheckpointerMain", "CheckpointWriteDelay")


def write_names(settings: ServerSettings, text: str | None) -> None:
    """Writes what the server will read at its next start or reload. text: the value; None leaves it to other files.

    Raises: OSError, PostgresError.
    """
    path = settings.data_dir / SYNC_NAMES
    if text is None:
        remove_durably(path)
        return
    _drop_override(settings.data_dir / "postgresql.auto.conf", settings)
    write_atomically(path, f"{PARAMETER} = {quote(text)}\n", settings.run_as)


def _include(path: Path, settings: ServerSettings) -> None:
    """Lets the server's main file include the names: that of a server that somebody else started may not."""
    text, line = path.read_text(errors="replace"), include_of_names()
    if line not in text.splitlines():
        write_atomically(path, f"{text.rstrip()}\n{line}\n", settings.run_as)


def _drop_override(path: Path, settings: ServerSettings) -> None:
    """Takes out what ALTER SYSTEM wrote, which would win over the file."""
    if path.exists():
        lines = path.read_text().splitlines(keepends=True)
        kept = [line for line in lines if not OVERRIDE.match(line)]
        if kept != lines:
            write_atomically(path, "".join(kept), settings.run_as)


async def put_names_in_force(settings: ServerSettings, text: str | None, timeout_ms: int) -> None:
    """Returns once a session of the running server shows the value, and standbys were made to answer under it.

    text: None leaves the value to the other files, and waits for nothing.
    Raises: PostgresError when no server runs or it does not take the value over in time; OSError.
    """
    await to_thread.run_sync(write_names, settings, text)
    pid = running_postmaster(settings.data_dir)
    if pid is None:
        raise PostgresError(f"no server runs on {settings.data_dir}")
    if text is None:
        os.kill(pid, signal.SIGHUP)
        return
    await to_thread.run_sync(_include, settings.data_dir / GENERATED, settings)
    async with local_connection(settings, SESSION) as connection:
        os.kill(pid, signal.SIGHUP)
        with anyio.move_on_after(timeout_ms / 1000):
            while await _shown(connection) != text:  # noqa: ASYNC110 - another process
                await anyio.sleep(POLL_S)
            await _make_standbys_answer(connection)
            return
    raise PostgresError(f"the server did not take over {PARAMETER} = {quote(text)} within {timeout_ms} ms")


async def _shown(connection: Connection) -> str:
    cursor = await connection.execute(f"SELECT current_setting('{PARAMETER}')")
    row = await cursor.fetchone()
    return str(row[0]) if row else ""


async def _make_standbys_answer(connection: Connection) -> None:
    """Writes a little WAL: commits that wait are released by a standby's answer, and an idle one answers rarely.

    Source: PostgreSQL, SyncRepReleaseWaiters; wal_receiver_status_interval.
    """
    cursor = await connection.execute("SELECT pg_is_in_recovery()")
    row = await cursor.fetchone()
    if row == (False,):
        await connection.execute("SELECT pg_current_xact_id()")


async def read_mark(settings: ServerSettings, *, is_first: bool) -> tuple[str, int]:
    """The names in force, and how far the WAL was on disk at an instant after they were seen to be.

    is_first: commits waited for nobody before, so the checkpointer, which makes them wait, must have read the names.
    Raises: PostgresError, also while the checkpointer is busy with something that keeps it from reading them.
    """
    async with local_connection(settings, SESSION) as connection:
        if is_first:
            await _check_checkpointer(connection)
        names = await _shown(connection)
        await _make_standbys_answer(connection)
        cursor = await connection.execute("SELECT pg_wal_lsn_diff(pg_current_wal_flush_lsn(), '0/0')::bigint")
        row = await cursor.fetchone()
        return names, int(row[0]) if row else 0


async def _check_checkpointer(connection: Connection) -> None:
    cursor = await connection.execute(
        "SELECT coalesce(wait_event, 'none') FROM pg_stat_activity WHERE backend_type = 'checkpointer'"
    )
    row = await cursor.fetchone()
    event = str(row[0]) if row else "no checkpointer"
    if event not in TAKES_OVER_SETTINGS:
        raise PostgresError(f"the checkpointer is busy ({event}): it may not have read {PARAMETER} yet")


async def end_stale_senders(settings: ServerSettings, standbys: tuple[str, ...]) -> None:
    """Ends every WAL sender of these standbys but each one's newest. Raises: PostgresError.

    Source: PostgreSQL, pg_terminate_backend.
    """
    async with local_connection(settings, SESSION) as connection:
        await connection.execute(
            """
            SELECT pg_terminate_backend(pid)
              FROM (SELECT pid, row_number() OVER (PARTITION BY application_name ORDER BY backend_start DESC) AS age
                      FROM pg_stat_replication WHERE application_name = ANY(%s)) AS senders
             WHERE age > 1
            """,
            (list(standbys),),
        )
