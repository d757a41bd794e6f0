"""Timelines, as servers tell them over the replication protocol: another's history, and where the own replay is."""

import logging

import anyio
import msgspec
from psycopg import pq

from effects.controldata import parse_lsn
from effects.errors import PostgresError
from effects.server_settings import ServerSettings
from effects.sql import Connection, replication_connection
from fsm.facts import TimelineHistory, TimelineSwitch, Upstream

logger = logging.getLogger(__name__)


async def read_leader_history(settings: ServerSettings, upstream: Upstream, timeout_ms: int) -> TimelineHistory:
    """The timeline that `upstream` is on and every switch before it, asked as the replication user.

    timeout_ms: for all of it. Raises: PostgresError. Source: PostgreSQL, IDENTIFY_SYSTEM, TIMELINE_HISTORY.
    """
    try:
        with anyio.fail_after(timeout_ms / 1000):
            async with replication_connection(upstream, settings.replication) as connection:
                return await _read(connection)
    except TimeoutError as error:
        raise PostgresError(f"{upstream.name} did not tell its history within {timeout_ms} ms") from error


async def replayed_timeline(settings: ServerSettings) -> int:
    """The timeline of the WAL that the own standby replayed last; 0 when it does not say so.

    Of a standby that streamed nothing since its start only this command tells: pg_control knows the timeline of the
    last restartpoint. Source: PostgreSQL, IDENTIFY_SYSTEM; walsender.c, GetStandbyFlushRecPtr.
    """
    own = Upstream(name=settings.name, host=str(settings.socket_dir), port=settings.port)
    login = msgspec.structs.replace(settings.replication, options={})  # TLS is not for Unix sockets
    try:
        async with replication_connection(own, login) as connection:
            return int((await _ask(connection, "IDENTIFY_SYSTEM"))[1])
    except PostgresError as error:
        logger.warning("the timeline is taken from pg_control, which may be older: %s", error)
        return 0


async def _read(connection: Connection) -> TimelineHistory:
    # Recovery is asked for on both sides: a promotion between two answers must not make a history of two servers.
    before = await _ask(connection, "SHOW in_hot_standby")
    identity = await _ask(connection, "IDENTIFY_SYSTEM")
    timeline = int(identity[1])
    text = (await _ask(connection, f"TIMELINE_HISTORY {timeline}"))[1] if timeline > 1 else ""
    after = await _ask(connection, "SHOW in_hot_standby")
    if before != after:
        raise PostgresError("the server was promoted while it was asked")
    return TimelineHistory(
        timeline=timeline,
        system_id=identity[0],
        in_recovery=after[0] == "on",
        switches=parse_history(text),
    )


async def _ask(connection: Connection, command: str) -> list[str]:
    """The first row of the answer, as text: some versions call the file of TIMELINE_HISTORY bytea, and send text."""
    cursor = await connection.execute(command.encode())
    result = cursor.pgresult
    if result is None or result.status != pq.ExecStatus.TUPLES_OK or result.ntuples < 1:
        raise PostgresError(f"{command.split()[0]} returned no row")
    return [(result.get_value(0, column) or b"").decode(errors="replace") for column in range(result.nfields)]


def parse_history(text: str) -> tuple[TimelineSwitch, ...]:
    """The switches in a timeline history file, oldest first.

    Raises: PostgresError when a line is of another shape. Source: PostgreSQL, timeline.c, "timeline history files".
    """
    lines = (line.strip() for line in text.splitlines())
    return tuple(_parse_switch(line) for line in lines if line and not line.startswith("#"))


def _parse_switch(line: str) -> TimelineSwitch:
    timeline, lsn, reason = [*line.split(maxsplit=2), "", ""][:3]
    if not timeline.isdecimal():
        raise PostgresError(f"not a line of a timeline history: {line!r}")
    return TimelineSwitch(timeline=int(timeline), lsn=parse_lsn(lsn), reason=reason)
