"""Connections to PostgreSQL: how they are made, and how psycopg's errors are renamed."""

import contextlib
import errno
import logging
import os
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import anyio
import psycopg
from psycopg import AsyncConnection
from psycopg.errors import ConnectionTimeout
from psycopg.rows import TupleRow

from effects.errors import PostgresError, ServerMute, ServerStarting
from effects.server_settings import Login, ServerSettings
from fsm.facts import Upstream

APPLICATION_NAME = "matriarch"
# Shorter than any ttl; libpq itself knows whole seconds only, so the caller's deadline counts.
CONNECT_TIMEOUT_S = 2
CANNOT_CONNECT_NOW = "57P03"
# A Unix socket whose queue is full says so at once: nobody has accepted for a while. libpq asks the same strerror(3).
QUEUE_IS_FULL = os.strerror(errno.EAGAIN)
PROTOCOL_3 = 196608

Connection = AsyncConnection[TupleRow]

# It warns of every query that was cancelled at a deadline; here that is an error that somebody is told of.
logging.getLogger("psycopg").setLevel(logging.ERROR)


@contextmanager
def renamed_errors(what: str) -> Iterator[None]:
    """Renames psycopg's errors. what: the beginning of the error's text, such as "CHECKPOINT"."""
    try:
        yield
    except psycopg.Error as error:
        state = f" (SQLSTATE {error.sqlstate})" if error.sqlstate else ""
        raise PostgresError(f"{what}: {' '.join(str(error).split())}{state}") from error


@asynccontextmanager
async def local_connection(settings: ServerSettings, options: str = "") -> AsyncIterator[Connection]:
    """A connection to the own server over its Unix socket, as the superuser, autocommitting; closed afterwards.

    options: settings of the session, such as "-c log_statement=none". Raises: PostgresError, ServerStarting.
    """
    connection = await connect_locally(settings, options)
    try:
        with renamed_errors("query"):
            yield connection
    finally:
        connection.pgconn.finish()


async def connect_locally(settings: ServerSettings, options: str = "") -> Connection:
    """As `local_connection`, for a connection that the caller keeps and closes."""
    try:
        return await _connect(str(settings.socket_dir), settings.port, settings.superuser, options)
    except psycopg.OperationalError as error:
        text = f"cannot connect to the own server: {' '.join(str(error).split())}"
        # libpq does not tell the SQLSTATE of a refused connection, and the text depends on lc_messages.
        refusal = await refusal_of(settings)
        if refusal == CANNOT_CONNECT_NOW and "shutting down" not in text:
            raise ServerStarting(text) from error
        is_mute = refusal is None and (isinstance(error, ConnectionTimeout) or QUEUE_IS_FULL in text)
        raise (ServerMute if is_mute else PostgresError)(text) from error


@asynccontextmanager
async def upstream_connection(upstream: Upstream, login: Login, options: str = "") -> AsyncIterator[Connection]:
    """A connection to another member's server; closed afterwards. Raises: PostgresError."""
    with renamed_errors(f"{upstream.name} at {upstream.host}:{upstream.port}"):
        connection = await _connect(upstream.host, upstream.port, login, options, **login.options)
        try:
            yield connection
        finally:
            connection.pgconn.finish()


@asynccontextmanager
async def replication_connection(upstream: Upstream, login: Login) -> AsyncIterator[Connection]:
    """A connection that speaks the replication protocol: simple queries only. Source: PostgreSQL, that chapter."""
    with renamed_errors(f"{upstream.name} at {upstream.host}:{upstream.port}"):
        connection = await _connect(upstream.host, upstream.port, login, "", replication="true", **login.options)
        try:
            yield connection
        finally:
            connection.pgconn.finish()


async def _connect(host: str, port: int, login: Login, options: str, **more: str) -> Connection:
    return await AsyncConnection.connect(
        host=host,
        port=port,
        user=login.username,
        password=login.password,
        dbname="postgres",
        application_name=APPLICATION_NAME,
        connect_timeout=CONNECT_TIMEOUT_S,
        options=options,
        autocommit=True,
        **more,  # type: ignore[arg-type]  # psycopg types its own keywords only, not libpq's
    )


async def refusal_of(settings: ServerSettings) -> str | None:
    """The SQLSTATE with which the own server refuses connections at present; None when it does not, or is silent.

    Source: PostgreSQL, "Message Formats", StartupMessage and ErrorResponse.
    """
    with (
        contextlib.suppress(OSError, anyio.EndOfStream, anyio.BrokenResourceError),
        anyio.move_on_after(CONNECT_TIMEOUT_S),
    ):
        async with await anyio.connect_unix(socket_path(settings)) as stream:
            await stream.send(startup_message(settings))
            return _sqlstate(await stream.receive())
    return None


def socket_path(settings: ServerSettings) -> Path:
    """The Unix socket on which the own server listens. Source: PostgreSQL, unix_socket_directories."""
    return settings.socket_dir / f".s.PGSQL.{settings.port}"


def startup_message(settings: ServerSettings) -> bytes:
    """The first message of a session, to which any server answers something. Source: "Message Formats"."""
    user = settings.superuser.username.encode()
    body = struct.pack("!i", PROTOCOL_3) + b"user\0" + user + b"\0database\0postgres\0\0"
    return struct.pack("!i", len(body) + 4) + body


def _sqlstate(message: bytes) -> str | None:
    if message[:1] != b"E":
        return None
    fields = message[5:].split(b"\0")
    return next((field[1:].decode() for field in fields if field[:1] == b"C"), None)
