"""One look at the running server a second: one long-lived connection, one prepared statement, one round trip."""

import functools
from datetime import datetime

import anyio
import msgspec
import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict

from effects.ear import Ear
from effects.errors import PostgresError, ServerMute
from effects.redaction import HIDDEN, is_secret_name
from effects.server_settings import ServerSettings
from effects.sql import Connection, connect_locally, renamed_errors
from effects.timelines import replayed_timeline
from fsm.facts import ParameterChange, Probe, Standby
from fsm.units import shown_setting

# Recovery ended between two functions of one statement. Source: object_not_in_prerequisite_state.
PROMOTED_MEANWHILE = "55000"
SESSION = "-c statement_timeout=2s -c TimeZone=UTC -c default_transaction_read_only=on -c log_statement=none"

# In recovery the CASEs keep PostgreSQL from calling functions that only a primary may call. The list of parameters that
# wait for a restart is long to make and changes with a reload only, so it is asked for once a reload. What a parameter
# will be is the last that any configuration file says of it, else what PostgreSQL has for it by itself.
# A standby that was started has read all WAL on its own disk once it has asked for more, or waits for some; that is
# looked at before the positions, which then hold. Of the WAL receiver's position nothing is left after a restart.
# Source: PostgreSQL, "System Administration Functions", "The Statistics Views", "Wait Events"; all is in 14 to 18.
STATEMENT = """
WITH server AS MATERIALIZED (SELECT pg_is_in_recovery() AS in_recovery),
     receiver AS MATERIALIZED (SELECT status, received_tli FROM pg_stat_wal_receiver)
SELECT in_recovery,
       CASE WHEN in_recovery THEN NULL ELSE pg_walfile_name(pg_current_wal_insert_lsn()) END,
       CASE WHEN NOT in_recovery THEN 0
            ELSE coalesce((SELECT received_tli FROM receiver), 0) END,
       CASE WHEN NOT in_recovery THEN 0
            ELSE (SELECT greatest(c.timeline_id, r.min_recovery_end_timeline)
                    FROM pg_control_checkpoint() c, pg_control_recovery() r) END,
       (SELECT system_identifier FROM pg_control_system())::text,
       pg_postmaster_start_time(),
       CASE WHEN in_recovery THEN pg_last_wal_receive_lsn() IS NULL AND NOT EXISTS
                 (SELECT FROM pg_stat_activity WHERE backend_type = 'startup'
                     AND wait_event IN ('RecoveryRetrieveRetryInterval', 'RecoveryWalStream')) ELSE false END,
       CASE WHEN in_recovery THEN 0 ELSE pg_wal_lsn_diff(pg_current_wal_flush_lsn(), '0/0')::bigint END,
       CASE WHEN in_recovery THEN coalesce(pg_wal_lsn_diff(pg_last_wal_receive_lsn(), '0/0')::bigint, 0) ELSE 0 END,
       CASE WHEN in_recovery THEN coalesce(pg_wal_lsn_diff(pg_last_wal_replay_lsn(), '0/0')::bigint, 0) ELSE 0 END,
       CASE WHEN in_recovery THEN pg_last_xact_replay_timestamp() END,
       CASE WHEN in_recovery THEN pg_get_wal_replay_pause_state() <> 'not paused' ELSE false END,
       (SELECT status FROM receiver),
       current_setting('primary_conninfo'),
       (SELECT coalesce(json_agg(json_build_object(
                   'application_name', application_name, 'state', coalesce(state, ''),
                   'sync_state', coalesce(sync_state, 'async'), 'usename', coalesce(usename, ''),
                   'client_addr', host(client_addr), 'sync_priority', coalesce(sync_priority, 0),
                   'write_lsn', coalesce(pg_wal_lsn_diff(write_lsn, '0/0')::bigint, 0),
                   'flush_lsn', coalesce(pg_wal_lsn_diff(flush_lsn, '0/0')::bigint, 0),
                   'replay_lsn', coalesce(pg_wal_lsn_diff(replay_lsn, '0/0')::bigint, 0))
                 ORDER BY application_name, pid),
               '[]') FROM pg_stat_replication),
       current_setting('synchronous_standby_names'),
       current_setting('synchronous_commit'),
       pg_conf_load_time(),
       CASE WHEN pg_conf_load_time() IS DISTINCT FROM %s::timestamptz
            THEN (SELECT coalesce(json_agg(json_build_object(
                             'name', s.name, 'old_value', current_setting(s.name),
                             'new_value', coalesce(f.setting, s.boot_val, ''), 'unit', coalesce(s.unit, ''))
                           ORDER BY s.name), '[]')
                    FROM pg_settings s
                    LEFT JOIN LATERAL (SELECT setting FROM pg_file_settings WHERE lower(name) = lower(s.name)
                                        ORDER BY seqno DESC LIMIT 1) f ON true
                   WHERE s.pending_restart) END
  FROM server
"""


class QueryFailed(PostgresError):
    """The server answered, with an error."""


class _Row(msgspec.Struct, frozen=True):
    """The statement's columns in their order."""

    in_recovery: bool
    walfile: str | None
    received_timeline: int
    control_timeline: int
    system_id: str
    started_at: datetime
    is_replaying: bool
    flushed_lsn: int
    received_lsn: int
    replayed_lsn: int
    replayed_at: datetime | None
    replay_paused: bool
    receiver_status: str | None
    conninfo: str
    standbys: list[dict[str, object]]
    synchronous_standby_names: str
    synchronous_commit: str
    loaded_at: datetime
    pending_restart: list[dict[str, str]] | None


class Prober:
    """Looks at the own server through one connection, which it makes anew when it breaks. For one task at a time."""

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._connection: Connection | None = None
        self._loaded_at: datetime | None = None
        self._pending_restart: dict[str, ParameterChange] = {}
        self._received: tuple[datetime, int] | None = None
        self._ear = Ear(settings)

    async def probe(self, timeout_ms: int) -> Probe:
        """What the server says about itself.

        timeout_ms: for all of it, connecting included.
        Raises: ServerStarting while the server takes no connections yet, ServerMute when it says nothing, neither now
        nor in answer to what it was asked before, PostgresError when it says anything else.
        """
        try:
            with anyio.fail_after(timeout_ms / 1000):
                row = await self._ask()
                fact = self._fact(row, await self._timeline(row))
        except (TimeoutError, ServerMute) as error:
            self._drop()
            raise self._silence(f"the server did not answer within {timeout_ms} ms") from error
        except QueryFailed:
            raise  # the connection is good, and may be the only one that can be had
        except BaseException:
            self.close()
            raise
        self._ear.close()
        return fact

    def _silence(self, text: str) -> PostgresError:
        """What a silence amounts to: a slow server's late answer to an earlier question is an answer."""
        if self._ear.has_heard():
            self._ear.close()
            return PostgresError(f"{text}, but answered an earlier question late")
        self._ear.knock()
        return ServerMute(text)

    def close(self) -> None:
        """Drops all connections, without a word to the server, which may be frozen."""
        self._ear.close()
        self._drop()

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.pgconn.finish()
            self._connection = None
            self._loaded_at = None

    async def _ask(self) -> _Row:
        """The statement's row. What a restart or a promotion since the last probe spoils is asked for once more."""
        if self._connection is not None:
            try:
                with self._ear.listening(self._connection.pgconn.socket):
                    return await self._execute(self._connection)
            except psycopg.Error as error:
                self._forgive(self._connection, error)
        if self._connection is None:
            self._connection = await connect_locally(self._settings, SESSION)
        with renamed_errors("probe"):
            return await self._execute(self._connection)

    def _forgive(self, connection: Connection, error: psycopg.Error) -> None:
        if connection.pgconn.status != pq.ConnStatus.OK:
            self._drop()
        elif error.sqlstate != PROMOTED_MEANWHILE:
            raise QueryFailed(f"probe: {error} (SQLSTATE {error.sqlstate})") from error

    async def _execute(self, connection: Connection) -> _Row:
        cursor = await connection.execute(STATEMENT, (self._loaded_at,), prepare=True)
        row = await cursor.fetchone()
        if row is None:
            raise PostgresError("the probe returned no row")
        return _Row(*row)

    def _fact(self, row: _Row, timeline: int) -> Probe:
        if row.pending_restart is not None:
            self._loaded_at = row.loaded_at
            self._pending_restart = {found["name"]: _change(found) for found in row.pending_restart}
        upstream = parse_upstream(row.conninfo)
        assert self._connection is not None
        return Probe(
            in_recovery=row.in_recovery,
            timeline=timeline,
            system_id=row.system_id,
            server_version=self._connection.info.server_version,
            postmaster_started_at=row.started_at.isoformat(sep=" "),
            flushed_lsn=row.flushed_lsn,
            received_lsn=row.received_lsn,
            replayed_lsn=row.replayed_lsn,
            replayed_at=row.replayed_at.isoformat(sep=" ") if row.replayed_at else None,
            replay_paused=row.replay_paused,
            is_replaying=row.is_replaying,
            receiver_status=row.receiver_status,
            upstream_host=upstream[0],
            upstream_port=upstream[1],
            standbys=msgspec.convert(row.standbys, tuple[Standby, ...]),
            synchronous_standby_names=row.synchronous_standby_names,
            synchronous_commit=row.synchronous_commit,
            pending_restart=tuple(self._pending_restart),
            pending_restart_reason=self._pending_restart,
        )

    async def _timeline(self, row: _Row) -> int:
        """The timeline that the server is on. The control file lags behind, by as much as a whole promotion."""
        if row.walfile is not None:
            return int(row.walfile[:8], 16)
        if row.received_timeline:
            self._received = (row.started_at, row.received_timeline)
        if self._received is not None and self._received[0] == row.started_at:
            return max(row.control_timeline, self._received[1])  # the receiver may have gone since; this still holds
        return max(row.control_timeline, await replayed_timeline(self._settings))


def _change(found: dict[str, str]) -> ParameterChange:
    if is_secret_name(found["name"]):
        return ParameterChange(old_value=HIDDEN, new_value=HIDDEN)
    return ParameterChange(old_value=found["old_value"], new_value=shown_setting(found["new_value"], found["unit"]))


@functools.lru_cache(maxsize=8)
def parse_upstream(conninfo: str) -> tuple[str | None, int | None]:
    """Host and port that a `primary_conninfo` names; None for what it leaves out or cannot be parsed."""
    try:
        words = conninfo_to_dict(conninfo)
    except Exception:  # noqa: BLE001 - psycopg raises several kinds; an operator may have written anything there
        return None, None
    host, port = words.get("host"), str(words.get("port") or "")
    return (str(host) if host else None), (int(port) if port.isdecimal() else None)
