"""Which processes run on a data directory. Source: PostgreSQL, "Database File Layout", postmaster.pid."""

import contextlib
import os
import signal
from pathlib import Path

import anyio

from effects.fence_kernel import descendants, living_processes, program_and_directory

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


def leftovers(data_dir: Path, program: str) -> list[int]:
    """Processes of a server on `data_dir` whose postmaster is gone; none while one runs.

    Told by what they execute as well, for a person's shell may stand in that directory; and a program that this agent
    runs on it (initdb, pg_rewind) has a server of its own, as its child, which is none of them.

    Args:
        data_dir: the server's data directory.
        program: what the server is started with.
    """
    if running_postmaster(data_dir) is not None:
        return []
    own = {process.pid for process in descendants(os.getpid(), living_processes()) if process.parent_pid != os.getpid()}
    names = {"postgres", Path(program).resolve().name}
    return [pid for pid in server_processes(data_dir) if pid not in own and _executes(pid, names)]


def _executes(pid: int, names: set[str]) -> bool:
    found = program_and_directory(pid)
    return found is not None and Path(found[0]).name in names


async def end_leftovers(data_dir: Path, program: str) -> None:
    """Kill every process whose postmaster is gone; returns when none is left that will run another instruction."""
    while (pids := leftovers(data_dir, program)) and not are_doomed(pids):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await anyio.sleep(KILL_PAUSE_S)


def remove_stale_lock_files(data_dir: Path, socket_lock: Path) -> list[Path]:
    """The lock files of a dead server that were removed since they would keep the next one from starting.

    PostgreSQL takes a lock file for a living server's when any process or thread bears the number in it, and where a
    container starts anew the numbers come round again: the dead postmaster's was seen to be a thread of the next agent.
    A file whose number nobody bears is left to PostgreSQL, which looks at the shared memory as well. None is removed
    while any process works in `data_dir`. Source: PostgreSQL, miscinit.c, CreateLockFile.

    Args:
        data_dir: the server's data directory.
        socket_lock: the lock file of its Unix socket.
    """
    if running_postmaster(data_dir) is not None or server_processes(data_dir):
        return []
    stale = [
        path
        for path, is_ours in ((data_dir / "postmaster.pid", True), (socket_lock, _names(socket_lock, data_dir)))
        if is_ours and _is_number_taken(path)
    ]
    for path in stale:
        path.unlink(missing_ok=True)
    return stale


def _names(lock_file: Path, data_dir: Path) -> bool:
    """True when a lock file was written by a server of this directory."""
    try:
        return Path(lock_file.read_text().splitlines()[1]).samefile(data_dir)
    except (OSError, IndexError):
        return False


def _is_number_taken(lock_file: Path) -> bool:
    """True when some process or thread bears the number in a lock file. Threads have no entry in a listing of /proc."""
    try:
        return Path(f"/proc/{abs(int(lock_file.read_text().splitlines()[0]))}").exists()
    except (OSError, ValueError, IndexError):
        return False


async def kill_server(data_dir: Path) -> None:
    """Kill every process of a server without its fence's help; returns when none is left. Source: signal(7), SIGKILL.

    The last resort where the fence does not answer: the server may not outlive its lease because of that.
    """
    while pids := server_processes(data_dir):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await anyio.sleep(KILL_PAUSE_S)


SIGKILL_PENDING = 1 << (signal.SIGKILL - 1)


def are_doomed(pids: list[int]) -> bool:
    """True when each of these processes hangs in the kernel with SIGKILL pending: none will run another instruction.

    What a process has asked of the kernel may still be done, such as a write; that it was done it can tell nobody any
    more. Source: proc(5), `State` D, `SigPnd` and `ShdPnd`; signal(7).
    """
    return bool(pids) and all(_is_doomed(pid) for pid in pids)


def _is_doomed(pid: int) -> bool:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return True  # it is gone
    found = dict(line.split(":", 1) for line in lines if ":" in line)
    pending = int(found.get("SigPnd", "0"), 16) | int(found.get("ShdPnd", "0"), 16)
    state = found.get("State", "").strip()[:1]
    return state in ("Z", "X") or (state == "D" and bool(pending & SIGKILL_PENDING))
