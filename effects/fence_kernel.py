"""What the fence asks of the kernel: its clock, a timer, its own standing, and the processes of this machine.

Loaded by effects/fence.py when it starts; standard library only, as the fence itself.

Source: prctl(2), timerfd_create(2), mlockall(2), proc(5).
"""

# pathlib would cost the fence a megabyte of its ten:
# ruff: noqa: PTH115, PTH208

from __future__ import annotations

import ctypes
import os
import time

STOPPED, DEAD = (b"T", b"t"), (b"Z", b"X")
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT = 1, 2, 4
CAP_IPC_LOCK = 14
TFD_TIMER_ABSTIME, TFD_NONBLOCK, TFD_CLOEXEC = 1, os.O_NONBLOCK, os.O_CLOEXEC

libc = ctypes.CDLL(None, use_errno=True)


def now_ms() -> int:
    """Milliseconds of CLOCK_BOOTTIME, which counts suspend too: the clock of effects/clock.py, not importable here."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


def prctl(option: int, argument: int) -> None:
    """Sets one attribute of this process. Source: prctl(2)."""
    zero = ctypes.c_ulong(0)
    if libc.prctl(option, ctypes.c_ulong(argument), zero, zero, zero) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def open_timer() -> int:
    """A timer on CLOCK_BOOTTIME: unlike a poll timeout it is due at once after a suspend. Source: timerfd_create(2)."""
    fd: int = libc.timerfd_create(time.CLOCK_BOOTTIME, TFD_NONBLOCK | TFD_CLOEXEC)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "timerfd_create")
    return fd


def set_timer(fd: int, at_ms: int | None) -> None:
    """Makes the timer readable at the instant `at_ms`, or never."""
    second, ms = (0, 0) if at_ms is None else divmod(max(at_ms, 1), 1000)
    if libc.timerfd_settime(fd, TFD_TIMER_ABSTIME, (ctypes.c_long * 4)(0, 0, second, ms * 1_000_000), None) != 0:
        raise OSError(ctypes.get_errno(), "timerfd_settime")


def read_whole(path: str) -> bytes:
    """What one small /proc file holds; empty when its process is gone."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError:
        return b""
    try:
        return os.read(fd, 4096)
    except OSError:
        return b""
    finally:
        os.close(fd)


def lock_memory() -> bool:
    """True when what this process has touched can no longer be swapped out. Source: mlockall(2)."""
    # MCL_FUTURE under RLIMIT_MEMLOCK would make a later allocation fail, so it is for holders of the capability only.
    capabilities = read_whole("/proc/self/status").partition(b"CapEff:")[2].split()
    may_lock = bool(capabilities) and int(capabilities[0], 16) >> CAP_IPC_LOCK & 1
    return bool(libc.mlockall(MCL_CURRENT | MCL_ONFAULT | (MCL_FUTURE if may_lock else 0)) == 0)


def raise_priority() -> bool:
    """True when this process runs before ordinary ones. Its children do not: the kernel resets them at fork."""
    try:
        os.sched_setscheduler(0, os.SCHED_OTHER | os.SCHED_RESET_ON_FORK, os.sched_param(0))
        os.setpriority(os.PRIO_PROCESS, 0, -10)
    except OSError:
        return False
    return True


def set_oom_score(score: int) -> bool:
    """True when the out-of-memory killer will use this score for this process. Source: proc(5), oom_score_adj."""
    try:
        fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
    except OSError:
        return False
    try:
        return os.write(fd, str(score).encode()) > 0
    except OSError:
        return False
    finally:
        os.close(fd)


def state_of(stat: bytes) -> bytes:
    """The state in the text of /proc/PID/stat: one letter after the program's name, which may hold anything."""
    return stat.rpartition(b")")[2].lstrip()[:1]


class Process:
    """One row of /proc."""

    __slots__ = ("parent_pid", "pid", "started_tick", "state")

    def __init__(self, pid: int, stat: bytes) -> None:
        fields = stat.rpartition(b")")[2].split()
        self.pid, self.state = pid, state_of(stat)
        self.parent_pid, self.started_tick = int(fields[1]), int(fields[19])


def living_processes() -> dict[int, Process]:
    """Every process of this machine that is not dead, by pid. Source: proc(5), /proc/PID/stat."""
    rows = ((int(name), read_whole(f"/proc/{name}/stat")) for name in os.listdir("/proc") if name.isdecimal())
    found = [Process(pid, stat) for pid, stat in rows if stat]
    return {process.pid: process for process in found if process.state not in DEAD}


def descendants(root_pid: int, living: dict[int, Process]) -> list[Process]:
    """The children of `root_pid`, their children, and so on. Process groups tell nothing: backends call setsid."""
    children: dict[int, list[Process]] = {}
    for process in living.values():
        children.setdefault(process.parent_pid, []).append(process)
    found = list(children.get(root_pid, ()))
    for process in found:
        found.extend(children.get(process.pid, ()))
    return found


def program_and_directory(pid: int) -> tuple[str, str] | None:
    """What a process executes and where: all processes of one PostgreSQL server share both; None when not readable."""
    try:
        return os.readlink(f"/proc/{pid}/exe").removesuffix(" (deleted)"), os.readlink(f"/proc/{pid}/cwd")
    except OSError:
        return None


def send_signal(pid: int, number: int) -> bool:
    """True when the process was there to get the signal."""
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True
