"""What watches: a monitor on every server from inside its namespace, and writers that know what was acknowledged."""

import contextlib
import itertools
import os
import socket
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self

import msgspec
import psycopg
from psycopg import errors

from api.cli.demo.plan import NodePlan, Plan
from api.cli.demo.servers import primary_connection
from api.cli.demo.writer import connection_options
from effects.clock import unix_ms
from tests.chaos.net import enter

MONITOR_PAUSE_S = 0.02
WRITER_PAUSE_S = 0.02
STANDBY_PAUSE_S = 0.05
JOIN_TIMEOUT_S = 15
CLOSE_MS = 500
"""Writes of a server nearer to each other than this are one stretch; the monitor tries one every 20 ms."""
SHORTEST_MS = 1.0
MAKE_TABLES = """
CREATE TABLE IF NOT EXISTS chaos_ids (id bigint PRIMARY KEY);
CREATE TABLE IF NOT EXISTS chaos_monitor (at_ms bigint)"""
TRY_WRITE = """
INSERT INTO chaos_monitor VALUES (%s)
RETURNING extract(epoch FROM clock_timestamp()) * 1000, substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)"""
WRITE_ID = "INSERT INTO chaos_ids (id) VALUES (%s)"
UNREPLICATED = "might not have been replicated"
"""Part of PostgreSQL's warning when a wait for standbys is broken off: such an answer acknowledges nothing here.
Source: PostgreSQL, syncrep.c."""


class Taken(msgspec.Struct, frozen=True):
    """One write that a server took, by the server's own clock: all of them are this machine's."""

    server: str
    timeline: str
    at_ms: float


class Overlap(msgspec.Struct, frozen=True):
    """Two reigns, one of which took a write while the other was not over."""

    one: str
    other: str
    from_ms: float
    until_ms: float
    lasted_ms: float
    """How long both took writes again and again: without the time in which one of them stood still between two writes.
    A single write counts for a millisecond."""

    def __str__(self) -> str:
        return (
            f"{self.one} and {self.other} for {self.lasted_ms:.1f} ms, from {self.from_ms:.1f} to {self.until_ms:.1f}"
        )


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
        assert row is not None
        self._tell(Taken(self._server, str(row[1]), float(row[0])))


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

    def taken(self, server: str | None = None, *, since_ms: float = 0) -> list[Taken]:
        """The writes that were taken from an instant on, by one server or by any."""
        return [one for one in list(self._taken) if one.at_ms >= since_ms and server in (None, one.server)]

    def overlaps(self, *, since_ms: float = 0) -> list[Overlap]:
        """Every interval in which two servers took writes."""
        return overlaps_of(self.taken(since_ms=since_ms))


def overlaps_of(taken: Iterable[Taken]) -> list[Overlap]:
    """The intervals in which two servers took writes.

    A reign is what one server takes on one timeline, from its first write to its last, whatever interrupts it: each
    promotion makes a new timeline, so two reigns of different servers may never overlap, not even interleaved.
    """
    reigns: dict[tuple[str, str], list[float]] = defaultdict(list)
    for one in taken:
        reigns[one.server, one.timeline].append(one.at_ms)
    spans = sorted((min(times), max(times), reign) for reign, times in reigns.items())
    found = []
    for number, (_, until_ms, reign) in enumerate(spans):
        for from_ms, other_until_ms, other in spans[number + 1 :]:
            if other[0] != reign[0] and from_ms <= until_ms:
                lasted_ms = _together_ms(_stretches(reigns[reign]), _stretches(reigns[other]))
                first, second = (f"{server} on timeline {int(timeline, 16)}" for server, timeline in (reign, other))
                found.append(
                    Overlap(first, second, from_ms, min(until_ms, other_until_ms), max(SHORTEST_MS, lasted_ms))
                )
    return found


def _stretches(instants_ms: Iterable[float]) -> list[tuple[float, float]]:
    """The intervals in which writes followed one another closely."""
    found: list[tuple[float, float]] = []
    for at_ms in sorted(instants_ms):
        if found and at_ms - found[-1][1] <= CLOSE_MS:
            found[-1] = (found[-1][0], at_ms)
        else:
            found.append((at_ms, at_ms))
    return found


def _together_ms(one: Iterable[tuple[float, float]], other: Sequence[tuple[float, float]]) -> float:
    """How much of two sets of intervals is in both."""
    return sum(max(0.0, min(a[1], b[1]) - max(a[0], b[0])) for a in one for b in other)


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
