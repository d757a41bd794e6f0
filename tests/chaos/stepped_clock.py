"""`matriarch` with a wall clock that is wrong: for one test, in place of a time namespace, which has no wall clock.

Source: time_namespaces(7): CLOCK_REALTIME is not in it. Run as `python -P stepped_clock.py OFFSET_FILE run SETTINGS`;
the file holds milliseconds that are added to every reading, and is read anew each time, so that the clock can step.
"""

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from effects import clock

OFFSET_FILE = Path(sys.argv[1])
true_unix_ms = clock.unix_ms


def offset_ms() -> int:
    """By how much the clock is wrong now."""
    return int(OFFSET_FILE.read_text() or 0)


def unix_ms() -> int:
    """In place of effects.clock.unix_ms."""
    return true_unix_ms() + offset_ms()


def wall_time() -> str:
    """In place of effects.clock.wall_time."""
    return (datetime.now(UTC) + timedelta(milliseconds=offset_ms())).isoformat()


clock.unix_ms, clock.wall_time = unix_ms, wall_time

if __name__ == "__main__":
    from api.cli.main import main

    main(sys.argv[2:])
