"""Which processes belong to a node of the demo, by what the kernel says of each; and ending them, by number.

A node is three things that may outlive each other: the agent (our child), its fence (whose command line names the
node's directory) and the postmaster (which its pid file names and which works in the data directory).
"""

import contextlib
import ctypes
import os
import signal
from pathlib import Path

import msgspec

from effects.fence_link import PROGRAM as FENCE_PROGRAM
from effects.processes import running_postmaster

IPC_RMID = 0
DEAD = ("Z", "X")
STOPPED = ("T", "t")
SHARED_MEMORY_LINE = 6
"""The line of postmaster.pid with the key and the id of the server's shared memory. Source: PostgreSQL, pidfile.h."""


class Process(msgspec.Struct, frozen=True):
    """One living process."""

    pid: int
    parent_pid: int
    state: str


def living() -> dict[int, Process]:
    """Every process that is not dead, by pid. Source: proc(5)."""
    found = (_process(int(path.name)) for path in Path("/proc").iterdir() if path.name.isdecimal())
    return {process.pid: process for process in found if process is not None}


def _process(pid: int) -> Process | None:
    """A process; None when there is none by that number, or only its exit status is left."""
    try:
        state, parent, *_ = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return None if state in DEAD else Process(pid, int(parent), state)


def is_alive(pid: int) -> bool:
    """True while there is such a process and it is not dead."""
    return _process(pid) is not None


def is_frozen(pid: int) -> bool:
    """True while a process is stopped (SIGSTOP)."""
    process = _process(pid)
    return process is not None and process.state in STOPPED


def command_line(pid: int) -> list[str]:
    """The words that a process was started with; none when it is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    return []


def descendants(pid: int) -> list[int]:
    """The children of a process, their children, and so on."""
    children: dict[int, list[int]] = {}
    for process in living().values():
        children.setdefault(process.parent_pid, []).append(process.pid)
    found = list(children.get(pid, ()))
    for child in found:
        found.extend(children.get(child, ()))
    return found


def fence_of(state_dir: Path) -> int | None:
    """The fence that guards a node's directory; None when there is none."""
    wanted = {str(FENCE_PROGRAM), "--directory", str(state_dir)}
    for pid in living():
        if wanted <= set(command_line(pid)):
            return pid
    return None


def server_of(data_dir: Path) -> list[int]:
    """The postmaster on a data directory and its children, the postmaster first; empty when none runs."""
    pid = running_postmaster(data_dir)
    return [] if pid is None or not is_alive(pid) else [pid, *descendants(pid)]


def servers_below(root: Path) -> list[int]:
    """The servers and fences that run in a demo's directory."""
    fences = (fence_of(path) for path in root.glob("*/matriarch/*") if path.is_dir())
    servers = (pid for path in root.glob("*/data") for pid in server_of(path))
    return [*(pid for pid in fences if pid is not None), *servers]


def send(pid: int, number: signal.Signals) -> None:
    """Sends a signal; nothing happens when the process is gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def shared_memory_of(data_dir: Path) -> tuple[int, int] | None:
    """Key and id of the shared memory that the pid file of a server names; None without one."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        key, number = (data_dir / "postmaster.pid").read_text().splitlines()[SHARED_MEMORY_LINE].split()
        return int(key), int(number)
    return None


def remove_shared_memory(data_dir: Path) -> None:
    """Removes what a killed server left in the kernel, which its next start would have removed. Source: shmctl(2)."""
    named = shared_memory_of(data_dir)
    if named is None or named not in _unattached_segments():
        return
    ctypes.CDLL(None, use_errno=True).shmctl(named[1], IPC_RMID, None)


def _unattached_segments() -> set[tuple[int, int]]:
    """Key and id of every segment that nobody uses. Source: proc(5), /proc/sysvipc/shm."""
    try:
        rows = Path("/proc/sysvipc/shm").read_text().splitlines()[1:]
    except OSError:
        return set()
    fields = [row.split() for row in rows]
    return {(int(row[0]), int(row[1])) for row in fields if row[6] == "0"}
