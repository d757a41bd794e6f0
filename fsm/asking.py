"""Reading what people ask for: the conditions of a restart, the instant of a switchover. Pure.

Source: Patroni, POST /restart and POST /switchover.
"""

import re
from typing import Any

from fsm.asked import RestartWish
from fsm.handover import instant_of, scheduled_unix_ms

ROLES = {"primary": "primary", "master": "primary", "replica": "replica", "standby_leader": "standby_leader"}
RESTART_KEYS = ("schedule", "role", "postgres_version", "timeout", "restart_pending")
UNITS_MS = {"us": 0.001, "ms": 1, "s": 1_000, "": 1_000, "min": 60_000, "h": 3_600_000, "d": 86_400_000}
TIMEOUT_MOST_MS = 24 * 3_600_000

_VERSION = re.compile(r"(\d{2})\.(\d{1,4})|(9)\.(\d{1,2})\.(\d{1,2})", re.ASCII)
_TIMEOUT = re.compile(r"\s*(\d{1,9}(?:\.\d{1,6})?)\s*(us|ms|s|min|h|d)?\s*", re.ASCII)


class Unreadable(ValueError):
    """A request that makes no sense: one line that says why, and the HTTP status that Patroni gives it."""

    def __init__(self, reason: str, status: int = 400) -> None:
        self.status = status
        super().__init__(reason)


def read_restart(body: dict[str, Any], now_unix_ms: int) -> RestartWish:
    """The conditions in a request's body. Raises: Unreadable."""
    for name in body:
        if name not in RESTART_KEYS:
            raise Unreadable(f'"{name[:40]}" is no condition of a restart: allowed are {", ".join(RESTART_KEYS)}')
    given = {name: value for name, value in body.items() if value is not None or name == "restart_pending"}
    schedule = body.get("schedule") or ""
    if schedule:
        check_schedule("schedule", schedule, now_unix_ms)
    return RestartWish(
        role=_role(body["role"]) if "role" in body else None,
        postgres_version=_version(body["postgres_version"]) if "postgres_version" in body else 0,
        # That the key is there is what counts. Source: Patroni, POST /restart.
        restart_pending="restart_pending" in body,
        timeout_ms=_timeout_ms(body["timeout"]) if "timeout" in body else 0,
        schedule=schedule,
        conditions={name: True if name == "restart_pending" else value for name, value in given.items()},
    )


def _role(value: object) -> str:
    if not isinstance(value, str) or value not in ROLES:
        raise Unreadable(f"role: allowed are {', '.join(ROLES)}")
    return ROLES[value]


def _version(value: object) -> int:
    """As server_version_num. Source: PostgreSQL, server_version_num."""
    found = _VERSION.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise Unreadable('postgres_version: allowed is a version such as "16.4"')
    if found[3]:
        return 90_000 + int(found[4]) * 100 + int(found[5])
    return int(found[1]) * 10_000 + int(found[2])


def _timeout_ms(value: object) -> int:
    found = None if isinstance(value, bool) else _TIMEOUT.fullmatch(str(value))
    span_ms = int(float(found[1]) * UNITS_MS[found[2] or ""]) if found else 0
    if not 0 < span_ms <= TIMEOUT_MOST_MS:
        raise Unreadable("timeout: allowed is a span of time above 0 and up to a day, in seconds or with a unit")
    return span_ms


def check_schedule(name: str, text: object, now_unix_ms: int) -> None:
    """Returns if the text under this name is an instant that lies ahead. Raises: Unreadable."""
    if not isinstance(text, str):
        raise Unreadable(f'"{name}" is not text')
    instant, due_ms = instant_of(text), scheduled_unix_ms(text)
    if instant is not None and instant.tzinfo is None:
        raise Unreadable(f"{name}: the time zone is missing, such as 2026-01-31T12:00:00+00:00")
    if due_ms is None:
        raise Unreadable(f"{name}: allowed is an instant such as 2026-01-31T12:00:00+00:00", 422)
    if due_ms < now_unix_ms:
        raise Unreadable(f"{name}: the instant has passed", 422)
