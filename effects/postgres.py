"""The own PostgreSQL server: make it, start it, point it at another upstream, promote it, clear its directory.

Everything is done once and plainly; whether it should be done was decided elsewhere. Stopping is the fence's.
"""

import contextlib
import errno
import logging
import os
import shutil
import signal
from pathlib import Path

import msgspec
from anyio import to_thread
from psycopg import sql

from effects.controldata import control_floors, mark, read_control_file, read_data_directory, unmark, unmark_all
from effects.errors import PostgresError
from effects.fence_link import FenceLink
from effects.files import (
    free_bytes,
    make_directory,
    own_directory,
    remove_durably,
    sync_directory,
    used_bytes,
    write_atomically,
)
from effects.histories import keep_timelines_free, remove_vain_histories
from effects.pgconfig import (
    Parameters,
    Role,
    command_line_parameters,
    write_server_files,
    write_signal_file,
)
from effects.processes import remove_stale_lock_files, running_postmaster
from effects.programs import program_environment, run_program
from effects.server_settings import Login, ServerSettings
from effects.sql import Connection, local_connection
from fsm.facts import DataDirectory, Upstream

# The longest path of a Unix socket, less "/.s.PGSQL.65535". Source: unix(7), sun_path.
SOCKET_DIRECTORY_BYTES_MAX = 107 - 16
# No verifier of a password, and no statement with one, reaches the server's log; and no synchronous standby, which
# there cannot be yet, is waited for.
QUIETLY = " ".join(
    f"-c {setting}"
    for setting in (
        "log_statement=none",
        "log_min_duration_statement=-1",
        "log_min_error_statement=panic",
        "synchronous_commit=local",
        "statement_timeout=0",
    )
)
# What pg_rewind calls on its source. Source: PostgreSQL, pg_rewind, "Notes"; Patroni, "rewind" user.
REWIND_FUNCTIONS = (
    "pg_catalog.pg_ls_dir(text, boolean, boolean)",
    "pg_catalog.pg_stat_file(text, boolean)",
    "pg_catalog.pg_read_binary_file(text)",
    "pg_catalog.pg_read_binary_file(text, bigint, bigint, boolean)",
)

logger = logging.getLogger(__name__)


class Cleared(msgspec.Struct, frozen=True, kw_only=True):
    """How a data directory was emptied. `kept_at`: where its content is now; None when it was deleted."""

    kept_at: Path | None = None


class PostgresServer:
    """One server: its settings and the fence that is its parent."""

    def __init__(self, settings: ServerSettings, fence: FenceLink) -> None:
        self.settings = settings
        self._fence = fence

    # ---- making ------------------------------------------------------------------------------------------------------

    async def init_db(self, *, timeout_ms: int) -> None:
        """Makes a new cluster with initdb: UTF8, data checksums, passwords by SCRAM.

        The mark `initializing` is set before and stays unless initdb succeeds. timeout_ms: for initdb.
        Raises: ProgramFailed, PostgresError when the directory is not empty, OSError. Source: PostgreSQL, initdb.
        """
        passwords = self.settings.private_dir / "initdb-password"
        await to_thread.run_sync(self._begin_init, passwords)
        try:
            ended = await run_program(
                self._initdb_command(passwords), run_as=self.settings.run_as, timeout_ms=timeout_ms
            )
        finally:
            passwords.unlink(missing_ok=True)
        ended.check()
        await to_thread.run_sync(self._finish_init)

    def _begin_init(self, passwords: Path) -> None:
        settings = self.settings
        if settings.data_dir.exists() and any(settings.data_dir.iterdir()):
            raise PostgresError(f"{settings.data_dir} is not empty: no cluster is made over it")
        mark(settings, "initializing")
        own_directory(settings.data_dir, settings.run_as)
        make_directory(settings.private_dir, settings.run_as)
        write_atomically(passwords, f"{settings.superuser.password}\n", settings.run_as)

    def _initdb_command(self, passwords: Path) -> list[str]:
        return [
            self.settings.program("initdb"),
            f"--pgdata={self.settings.data_dir}",
            f"--username={self.settings.superuser.username}",
            f"--pwfile={passwords}",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--data-checksums",
            "--no-instructions",
            *self.settings.initdb_options,
        ]

    def _finish_init(self) -> None:
        # initdb's own rules do not let standbys in from other hosts; without it ours are written.
        (self.settings.data_dir / "pg_hba.conf").unlink(missing_ok=True)
        write_server_files(self.settings, {}, None)
        unmark(self.settings, "initializing")

    async def prepare_cluster(self) -> None:
        """Creates the roles for replication and rewind, or sets their rights and passwords where they exist.

        Raises: PostgresError, ServerStarting. Source: PostgreSQL, CREATE ROLE; pg_rewind, "Notes".
        """
        settings = self.settings
        async with local_connection(settings, QUIETLY) as connection:
            await _write_role(connection, settings.replication, "LOGIN REPLICATION")
            if settings.rewind.username == settings.superuser.username:
                return
            if settings.rewind.username != settings.replication.username:
                await _write_role(connection, settings.rewind, "LOGIN")
            role = sql.Identifier(settings.rewind.username)
            functions = sql.SQL(", ").join(sql.SQL(function) for function in REWIND_FUNCTIONS)
            await connection.execute(sql.SQL("GRANT EXECUTE ON FUNCTION {} TO {}").format(functions, role))

    # ---- running -----------------------------------------------------------------------------------------------------

    async def start(
        self, role: Role, upstream: Upstream | None, parameters: Parameters, *, armed_until_ms: int | None
    ) -> int:
        """Writes the configuration, starts the server through the fence and returns its pid, before it is ready.

        upstream: where a standby receives WAL from; None replays only what is there. parameters: the cluster's dynamic
        ones. armed_until_ms: when the fence kills it (CLOCK_BOOTTIME); None for a standby.
        Raises: PostgresError, ProgramFailed, FenceUnavailable, OSError. Source: PostgreSQL, postgres.
        """
        settings = self.settings
        floors = control_floors(await read_control_file(settings)) if role == "standby" else {}
        await to_thread.run_sync(self._prepare_start, role, upstream, parameters)
        return await self._fence.start(
            argv=[
                settings.program("postgres"),
                "-D",
                str(settings.data_dir),
                *command_line_parameters(settings, parameters, floors),
            ],
            env=program_environment(None, settings.run_as),
            cwd=settings.data_dir,
            user=settings.run_as,
            output=settings.output_file,
            armed_until_ms=armed_until_ms,
        )

    def _prepare_start(self, role: Role, upstream: Upstream | None, parameters: Parameters) -> None:
        socket_dir = self.settings.socket_dir
        if len(os.fsencode(socket_dir)) > SOCKET_DIRECTORY_BYTES_MAX:
            raise PostgresError(f"{socket_dir} is too long for a Unix socket: choose a shorter socket directory")
        make_directory(socket_dir, self.settings.run_as, mode=0o755)
        for stale in remove_stale_lock_files(self.settings.data_dir, self.settings.socket_lock):
            logger.warning("%s was removed: no server runs, and its number is another process's by now", stale)
        self.settings.promotion_permit.unlink(missing_ok=True)
        remove_vain_histories(self.settings)
        write_server_files(self.settings, parameters, upstream)
        write_signal_file(self.settings, role)

    async def follow(self, upstream: Upstream | None, parameters: Parameters) -> None:
        """Points the running server at another upstream, or at none, and makes it read its configuration again.

        parameters: the cluster's dynamic ones; also how a change of them is brought to a running server.
        Raises: PostgresError when no server runs, OSError. Source: PostgreSQL, primary_conninfo, SIGHUP.
        """
        self.settings.promotion_permit.unlink(missing_ok=True)
        await to_thread.run_sync(write_server_files, self.settings, parameters, upstream)
        self._signal(signal.SIGHUP)

    def client_rules(self) -> str | None:
        """The text of pg_hba.conf as it is; None if there is none."""
        path = self.settings.data_dir / "pg_hba.conf"
        return path.read_text(errors="replace") if path.exists() else None

    async def promote(self, timeline: int = 0) -> None:
        """Asks the running standby to promote itself; returns before it has. Nothing happens on a primary.

        timeline: the least number that its timeline is to have; PostgreSQL chooses by itself if that is 0 or lower.
        Done as pg_ctl does it, without a connection, so that no full connection table or password can be in the way.
        Raises: PostgresError when no server runs, OSError. Source: PostgreSQL, pg_ctl promote.
        """
        if not (self.settings.data_dir / "standby.signal").exists():
            return
        await to_thread.run_sync(keep_timelines_free, self.settings, timeline)
        self.settings.promotion_permit.touch(mode=0o600)
        request = self.settings.data_dir / "promote"
        with contextlib.suppress(FileExistsError):
            request.touch(mode=0o600, exist_ok=False)
            # A left-over must not be a file that pg_rewind cannot read on this server.
            os.chown(request, self.settings.owner_uid, -1)
        self._signal(signal.SIGUSR1)

    async def checkpoint(self) -> None:
        """Returns when a checkpoint is complete. Raises: PostgresError. Source: PostgreSQL, CHECKPOINT."""
        async with local_connection(self.settings, "-c statement_timeout=0") as connection:
            await connection.execute("CHECKPOINT")

    def _signal(self, number: signal.Signals) -> None:
        pid = running_postmaster(self.settings.data_dir)
        if pid is None:
            raise PostgresError(f"no server runs on {self.settings.data_dir}")
        os.kill(pid, number)

    # ---- the directory -----------------------------------------------------------------------------------------------

    async def read_data_directory(self) -> DataDirectory:
        """What lies in the data directory; see effects/controldata.py."""
        return await read_data_directory(self.settings)

    async def clear_data_directory(self, *, keep_aside: bool) -> Cleared:
        """Empties the data directory; its content is kept beside it when that is asked for and there is room.

        Only the newest one is kept. There is room when as much again would fit on the disk, for a clone will need it;
        there is none beside a mount point, which cannot be renamed. Whoever dies while it deletes leaves the mark
        `cloning`, so that nobody takes the rest for data.
        Raises: PostgresError when a server runs on it or it has tablespaces, or cannot be renamed; OSError.
        """
        return await to_thread.run_sync(self._clear, keep_aside)

    def _clear(self, keep_aside: bool) -> Cleared:
        directory = self.settings.data_dir.resolve()
        if running_postmaster(directory):
            raise PostgresError(f"a server runs on {directory}: it is not cleared")
        tablespaces = directory / "pg_tblspc"
        if tablespaces.is_dir() and any(tablespaces.iterdir()):
            raise PostgresError(f"{directory} has tablespaces: clear it and them by hand, then clone again")
        kept_at = _move_aside(directory) if keep_aside and directory.exists() else None
        own_directory(directory, self.settings.run_as)
        if any(directory.iterdir()):
            mark(self.settings, "cloning")
            _remove_content(directory)
        sync_directory(directory.parent)
        unmark_all(self.settings)
        return Cleared(kept_at=kept_at)


def _move_aside(directory: Path) -> Path | None:
    """The new name of the data directory; None when there was no room to keep it under any name."""
    older = sorted(directory.parent.glob(f"{directory.name}.aside.*"), key=_aside_number)
    aside = directory.with_name(f"{directory.name}.aside.{_aside_number(older[-1]) + 1 if older else 1}")
    try:
        directory.rename(aside)
    except OSError as error:
        if error.errno == errno.EBUSY:
            return None
        raise PostgresError(f"{directory} cannot be kept aside as {aside.name}: {error.strerror}") from error
    for path in older:
        shutil.rmtree(path)
    if free_bytes(aside) < used_bytes(aside):
        shutil.rmtree(aside)
        return None
    return aside


def _aside_number(path: Path) -> int:
    number = path.name.rpartition(".")[2]
    return int(number) if number.isdecimal() else 0


def _remove_content(directory: Path) -> None:
    """Removes what is in a directory, which itself may be a mount point; links are removed, not followed."""
    # First, so that a directory that is half removed is never taken for a cluster.
    remove_durably(directory / "global" / "pg_control")
    for path in directory.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


async def _write_role(connection: Connection, login: Login, rights: str) -> None:
    name = login.username.encode()
    # libpq makes the verifier here, so the password itself never travels. Source: libpq, PQencryptPasswordConn.
    verifier = connection.pgconn.encrypt_password(login.password.encode(), name, b"scram-sha-256").decode()
    cursor = await connection.execute("SELECT 1 FROM pg_catalog.pg_roles WHERE rolname = %s", (login.username,))
    verb = "ALTER" if await cursor.fetchone() else "CREATE"
    statement = sql.SQL("{} ROLE {} WITH {} PASSWORD {}").format(
        sql.SQL(verb), sql.Identifier(login.username), sql.SQL(rights), sql.Literal(verifier)
    )
    await connection.execute(statement)
