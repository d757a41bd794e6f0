"""Which processes run on a data directory. Source: PostgreSQL, "Database File Layout", postmaster.pid."""

import contextlib
import os
import signal
from pathlib import Path

import anyio

KILL_PAUSE_S = 0.01


def running_postmaster(data_dir: Path) -> int | None:
    """The pid of the postmaster that runs on `data_dir`; None when none does, or its pid file is a dead one's.

    The pid file alone proves nothing: after a crash its number may belong to any process, so it must also be at work
    in this directory, as every postmaster is.
    """
    pid = None
    try:
        first, *_ = (data_dir / "postmaster.pid").read_text().splitlines()
        # A negative number is a single-user server's.
        pid = abs(int(first))
        return pid if Path(f"/proc/{pid}/cwd").samefile(data_dir) else None
    except PermissionError:
        return pid  # somebody else's process, which cannot be told from a postmaster: better taken for one
    except (OSError, ValueError):
        return None


def server_processes(data_dir: Path) -> list[int]:
    """Every process of a server on `data_dir`, orphans included: postmaster and backends all work in that directory."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and (entry / "cwd").samefile(data_dir) and int(entry.name) != os.getpid():
                found.append(int(entry.name))
    return found


async def kill_server(data_dir: Path) -> None:
    """Kill every process of a server without its fence's help; returns when none is left. Source: signal(7), SIGKILL.

    The last resort where the fence does not answer: the server may not outlive its lease because of that.
    """
    while pids := server_processes(data_dir):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await anyio.sleep(KILL_PAUSE_S)
