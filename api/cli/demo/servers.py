"""SQL that the tour asks the three servers directly, so that its verdict does not rest on what the agents say."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import psycopg

from api.cli.demo.plan import NodePlan, Plan
from api.cli.demo.writer import TABLE, connection_options
from effects.clock import now_ms
from effects.errors import PostgresError

UNSENT_TABLE = "tour_never_sent"
UNSENT_ROWS = 1_000
CATCH_UP_TIMEOUT_MS = 15_000
POLL_S = 0.05

MAKE_TABLES = f"""
DROP TABLE IF EXISTS {TABLE}, {UNSENT_TABLE};
CREATE TABLE {TABLE} (id bigint PRIMARY KEY);
CREATE TABLE {UNSENT_TABLE} (id bigint, filling text)"""
WRITE_UNSENT = f"INSERT INTO {UNSENT_TABLE} SELECT n, repeat('x', 200) FROM generate_series(1, {UNSENT_ROWS}) n"  # noqa: S608 - constants
SENDERS = "SELECT pid FROM pg_stat_replication"
LAGGING = "SELECT count(*) FROM pg_stat_replication WHERE replay_lsn IS DISTINCT FROM pg_current_wal_lsn()"
STANDING = """
SELECT pg_is_in_recovery(),
       CASE WHEN pg_is_in_recovery() THEN (SELECT received_tli FROM pg_stat_wal_receiver WHERE status = 'streaming')
            ELSE ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int END"""


class Standing(msgspec.Struct, frozen=True):
    """What one server says of itself; `timeline` is None for a standby that does not stream, or a silent server."""

    name: str
    is_primary: bool
    timeline: int | None


@contextmanager
def primary_connection(plan: Plan) -> Iterator[psycopg.Connection[Any]]:
    """A connection to the server that accepts writes. Raises: PostgresError."""
    with _connection(connection_options(plan, session="read-write")) as connection:
        yield connection


@contextmanager
def _connection(options: dict[str, Any]) -> Iterator[psycopg.Connection[Any]]:
    try:
        with psycopg.connect(**options) as connection:
            yield connection
    except psycopg.Error as error:
        raise PostgresError(f"the tour's own query failed: {str(error).strip().splitlines()[0]}") from error


@contextmanager
def _connection_to(plan: Plan, node: NodePlan) -> Iterator[psycopg.Connection[Any]]:
    options = connection_options(plan, session="any") | {"host": node.host, "port": str(node.postgres_port)}
    with _connection(options) as connection:
        yield connection


def make_tables(plan: Plan) -> None:
    """Makes the tour's two tables anew. Raises: PostgresError."""
    with primary_connection(plan) as connection:
        connection.execute(MAKE_TABLES)


def sender_pids(plan: Plan) -> list[int]:
    """The primary's processes that send WAL to the standbys. Raises: PostgresError."""
    with primary_connection(plan) as connection:
        return [pid for (pid,) in connection.execute(SENDERS).fetchall()]


def write_unsent(plan: Plan) -> None:
    """Commits rows on the primary without waiting for anybody. Raises: PostgresError."""
    with primary_connection(plan) as connection:
        connection.execute("SET synchronous_commit = local")
        connection.execute(WRITE_UNSENT)


def wait_until_level(plan: Plan) -> bool:
    """True once every standby has replayed all that the primary has; False when that takes too long.

    Raises: PostgresError.
    """
    deadline_ms = now_ms() + CATCH_UP_TIMEOUT_MS
    with primary_connection(plan) as connection:
        while now_ms() < deadline_ms:
            row = connection.execute(LAGGING).fetchone()
            if row == (0,):
                return True
            time.sleep(POLL_S)
    return False


def rows_of(plan: Plan, node: NodePlan) -> tuple[set[int], int]:
    """The ids that one server has, and how many of the rows that were never sent. Raises: PostgresError."""
    with _connection_to(plan, node) as connection:
        ids = {row_id for (row_id,) in connection.execute(f"SELECT id FROM {TABLE}").fetchall()}  # noqa: S608 - a constant
        unsent = connection.execute(f"SELECT count(*) FROM {UNSENT_TABLE}").fetchone()  # noqa: S608 - a constant
    return ids, unsent[0] if unsent else 0


def standing_of(plan: Plan, node: NodePlan) -> Standing:
    """What one server says of itself."""
    try:
        with _connection_to(plan, node) as connection:
            row = connection.execute(STANDING).fetchone()
    except PostgresError:
        return Standing(node.name, False, None)
    assert row is not None
    is_standby, timeline = row
    return Standing(node.name, not is_standby, timeline)
