"""The only place that reads a clock.

Everything that compares instants uses CLOCK_BOOTTIME: it never steps, and unlike CLOCK_MONOTONIC it goes on while the
machine sleeps, so a suspended holder of a lease wakes up knowing how late it is. Wall time is for people and for
Patroni's JSON only; nothing is decided by it but when a switchover that a person scheduled is due.
"""

import time
from datetime import UTC, datetime


def now_ms() -> int:
    """Milliseconds of CLOCK_BOOTTIME. Source: clock_gettime(2)."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


def unix_ms() -> int:
    """The wall clock in milliseconds since 1970. Source: clock_gettime(2), CLOCK_REALTIME."""
    return time.time_ns() // 1_000_000


def wall_time() -> str:
    """The wall clock as ISO 8601 in UTC with microseconds, for people; never compared."""
    return datetime.now(UTC).isoformat()
