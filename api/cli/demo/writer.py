"""A client that writes all the time, and knows which of its rows the server acknowledged, and when."""

import contextlib
import threading
from typing import Any

import msgspec
import psycopg

from api.cli.demo.plan import Plan
from effects.clock import now_ms

TABLE = "tour_acknowledged"
INSERT = f"INSERT INTO {TABLE} (id) VALUES (%s)"  # noqa: S608 - a constant
PAUSE_S = 0.005
RETRY_PAUSE_S = 0.02
STOP_TIMEOUT_S = 15.0
# libpq takes no shorter connect_timeout than 2 s; a server that was killed refuses at once.
CONNECT_TIMEOUT_S = 2


class Acknowledged(msgspec.Struct, frozen=True):
    """One row that the server said is committed."""

    row_id: int
    at_ms: int


def connection_options(plan: Plan, *, session: str) -> dict[str, Any]:
    """What psycopg connects with: all nodes, in the order of the plan.

    session: libpq's target_session_attrs.
    """
    return {
        "host": ",".join(node.host for node in plan.nodes),
        "port": ",".join(str(node.postgres_port) for node in plan.nodes),
        "user": "postgres",
        "password": plan.superuser_password,
        "dbname": "postgres",
        "connect_timeout": CONNECT_TIMEOUT_S,
        "target_session_attrs": session,
        "application_name": "matriarch tour",
        "autocommit": True,
    }


class Writer:
    """Writes one row after another in a thread of its own, through every fault, until it is stopped.

    Ids are never used twice: a row whose commit got no answer may or may not be there, and belongs to nobody.
    """

    def __init__(self, plan: Plan, *, first_id: int = 1, id_step: int = 1) -> None:
        """Prepares it. Writers side by side are given different first ids and a common step."""
        self.acknowledged: list[Acknowledged] = []
        self._first_id, self._id_step = first_id, id_step
        self.attempts = 0
        self._options = connection_options(plan, session="read-write")
        self._is_over = threading.Event()
        self._may_write = threading.Event()
        self._may_write.set()
        self._is_idle = threading.Event()
        self._connection: psycopg.Connection[Any] | None = None
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)

    def start(self) -> None:
        """Begins to write. The table must be there."""
        self._thread.start()

    def pause(self) -> None:
        """Returns when no row is under way and none will be before `resume`."""
        self._may_write.clear()
        self._is_idle.wait(STOP_TIMEOUT_S)

    def resume(self) -> None:
        """Goes on."""
        self._is_idle.clear()
        self._may_write.set()

    def stop(self) -> None:
        """Ends it. Nothing happens when it has ended."""
        self._is_over.set()
        self._may_write.set()
        if self._thread.is_alive():
            self._thread.join(STOP_TIMEOUT_S)

    def _run(self) -> None:
        while not self._is_over.is_set():
            if not self._may_write.is_set():
                self._is_idle.set()
                self._may_write.wait()
                continue
            self._is_over.wait(PAUSE_S if self._write_one() else RETRY_PAUSE_S)
        self._disconnect()

    def _write_one(self) -> bool:
        """True when a row was acknowledged."""
        row_id = self._first_id + self.attempts * self._id_step
        self.attempts += 1
        try:
            if self._connection is None:
                self._connection = psycopg.connect(**self._options)
            self._connection.execute(INSERT, (row_id,))
        except psycopg.Error:
            self._disconnect()
            return False
        self.acknowledged.append(Acknowledged(row_id, now_ms()))
        return True

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(psycopg.Error):
                connection.close()
