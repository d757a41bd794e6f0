"""What watches: a monitor on every server from inside its namespace, and writers that know what was acknowledged."""

import contextlib
import itertools
import os
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import psycopg
from psycopg import errors

from api.cli.demo.plan import NodePlan, Plan
from api.cli.demo.servers import primary_connection
from api.cli.demo.writer import connection_options
from effects.clock import unix_ms
from tests.chaos.net import enter
from tests.cluster.reigns import SERVERS_WORD, Overlap, Taken, overlaps_of, taken_by

MONITOR_PAUSE_S = 0.02
WRITER_PAUSE_S = 0.02
STANDBY_PAUSE_S = 0.05
JOIN_TIMEOUT_S = 15
MAKE_TABLES = """
CREATE TABLE IF NOT EXISTS chaos_ids (id bigint PRIMARY KEY);
CREATE TABLE IF NOT EXISTS chaos_monitor (at_ms bigint)"""
TRY_WRITE = "INSERT INTO chaos_monitor VALUES (%s) RETURNING " + SERVERS_WORD
WRITE_ID = "INSERT INTO chaos_ids (id) VALUES (%s)"
UNREPLICATED = "might not have been replicated"
"""Part of PostgreSQL's warning when a wait for standbys is broken off: such an answer acknowledges nothing here.
Source: PostgreSQL, syncrep.c."""


class Client(threading.Thread):
    """A client in a namespace of its own choice that does one thing again and again, through every fault."""

    def __init__(self, place: str | None, options: dict[str, Any], pause_s: float) -> None:
        """Prepares it. place: the host whose network it uses; None is the hub."""
        super().__init__(name=f"client in {place or 'the hub'}", daemon=True)
        self._place, self._options, self._pause_s = place, options, pause_s
        self._is_over = threading.Event()
        self._connection: psycopg.Connection[Any] | None = None

    def once(self, connection: psycopg.Connection[Any]) -> None:
        """What it does; an error of the connection ends the connection."""
        raise NotImplementedError

    def run(self) -> None:
        """Connect, do it, and again."""
        if self._place is not None:
            enter(self._place)
        while not self._is_over.is_set():
            with contextlib.suppress(psycopg.Error, OSError), psycopg.connect(**self._options) as connection:
                self._connection = connection
                self._while_connected(connection)
            self._connection = None
            self._is_over.wait(self._pause_s)

    def _while_connected(self, connection: psycopg.Connection[Any]) -> None:
        while not self._is_over.is_set():
            try:
                self.once(connection)
            except errors.ReadOnlySqlTransaction:
                self._is_over.wait(STANDBY_PAUSE_S - self._pause_s)
            self._is_over.wait(self._pause_s)

    def stop(self) -> None:
        """End it, also where it waits for a server that does not answer."""
        self._is_over.set()
        connection = self._connection
        if connection is not None:
            with contextlib.suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(connection.fileno())) as end:
                end.shutdown(socket.SHUT_RDWR)
        self.join(JOIN_TIMEOUT_S)


class Monitoring(Client):
    """Tries a write on one server, from inside its namespace, without waiting for any standby."""

    def __init__(self, plan: Plan, node: NodePlan, place: str | None, tell: Callable[[Taken], None]) -> None:
        options = _options_to(plan, node)
        options["options"] = "-c synchronous_commit=local"
        super().__init__(place, options, MONITOR_PAUSE_S)
        self._server, self._tell = node.name, tell

    def once(self, connection: psycopg.Connection[Any]) -> None:
        """One write."""
        row = connection.execute(TRY_WRITE, (unix_ms(),)).fetchone()
        self._tell(taken_by(self._server, row))


class Monitor:
    """Knows of every server when it took writes."""

    def __init__(self, plan: Plan, places: Mapping[str, str | None]) -> None:
        """places: in whose network each node's server is watched."""
        self._taken: list[Taken] = []
        self._clients = [Monitoring(plan, node, places[node.name], self._taken.append) for node in plan.nodes]

    def __enter__(self) -> Self:
        for client in self._clients:
            client.start()
        return self

    def __exit__(self, *_: object) -> None:
        for client in self._clients:
            client.stop()

    @property
    def is_watching(self) -> bool:
        """True while every server is watched."""
        return all(client.is_alive() for client in self._clients)

    def taken(self, server: str | None = None, *, since_ms: float = 0) -> list[Taken]:
        """The writes that were taken from an instant on, by one server or by any."""
        return [one for one in list(self._taken) if one.at_ms >= since_ms and server in (None, one.server)]

    def overlaps(self, *, since_ms: float = 0) -> list[Overlap]:
        """Every interval in which two servers took writes."""
        return overlaps_of(self.taken(since_ms=since_ms))


class Writing(Client):
    """Writes ids, and keeps those that were acknowledged, with the instant."""

    def __init__(self, place: str | None, options: dict[str, Any], first_id: int, id_step: int) -> None:
        super().__init__(place, options, WRITER_PAUSE_S)
        self._next_id, self._id_step = first_id, id_step
        self._is_doubtful = False
        self.acknowledged: list[tuple[int, int]] = []

    def once(self, connection: psycopg.Connection[Any]) -> None:
        """One id; it is never used again, whatever became of it."""
        if not connection._notice_handlers:
            connection.add_notice_handler(self._hear)
        self._is_doubtful = False
        row_id, self._next_id = self._next_id, self._next_id + self._id_step
        connection.execute(WRITE_ID, (row_id,))
        if not self._is_doubtful:
            self.acknowledged.append((row_id, unix_ms()))

    def _hear(self, notice: errors.Diagnostic) -> None:
        self._is_doubtful = self._is_doubtful or UNREPLICATED in (notice.message_detail or "")


class Writers:
    """One outside, to whichever server accepts writes, and one inside each node, to its own server."""

    def __init__(self, plan: Plan, places: Mapping[str, str | None]) -> None:
        """places: in whose network the writer inside each node runs."""
        self._plan = plan
        step = 1 + len(plan.nodes)
        outside = Writing(None, connection_options(plan, session="read-write"), 0, step)
        inside = [
            Writing(places[node.name], _options_to(plan, node), number, step)
            for number, node in enumerate(plan.nodes, 1)
        ]
        self._writers = [outside, *inside]
        self._known_lost: set[int] = set()

    def __enter__(self) -> Self:
        with primary_connection(self._plan) as connection:
            connection.execute(MAKE_TABLES)
        for writer in self._writers:
            writer.start()
        return self

    def __exit__(self, *_: object) -> None:
        for writer in self._writers:
            writer.stop()

    @property
    def are_writing(self) -> bool:
        """True while each of them goes on."""
        return all(writer.is_alive() for writer in self._writers)

    def acknowledged(self, *, since_ms: int = 0) -> list[tuple[int, int]]:
        """What was acknowledged from an instant on: ids and instants, in the order of time."""
        found = [ack for writer in self._writers for ack in list(writer.acknowledged) if ack[1] >= since_ms]
        return sorted(found, key=lambda ack: ack[1])

    def newly_lost(self) -> set[int]:
        """Acknowledged ids that the present primary does not have, each told once. Raises: PostgresError."""
        expected = {row_id for row_id, _ in self.acknowledged()}
        with primary_connection(self._plan) as connection:
            kept = {row_id for (row_id,) in connection.execute("SELECT id FROM chaos_ids").fetchall()}
        lost = expected - kept - self._known_lost
        self._known_lost |= lost
        return lost


def _options_to(plan: Plan, node: NodePlan) -> dict[str, Any]:
    return connection_options(plan, session="any") | {"host": node.host, "port": str(node.postgres_port)}


def longest_pause_ms(instants: Sequence[int], from_ms: int, until_ms: int) -> int:
    """The longest time without an event between two instants."""
    marks = [from_ms, *(at for at in instants if from_ms <= at <= until_ms), until_ms]
    return max(later - earlier for earlier, later in itertools.pairwise(marks))
