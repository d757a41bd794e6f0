"""Restart of the agent in place: what passes from one agent to the next in the same process, and the passing itself.

The listening sockets stay open while the program is exchanged, so connections wait in the kernel's queue and none is
refused. They are numbered as systemd numbers the sockets of a unit, so socket activation is the same code. The agent's
lock goes the same way. Source: sd_listen_fds(3), execve(2), fcntl(2) F_DUPFD.
"""

import contextlib
import fcntl
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, MutableMapping, Sequence

import anyio
import msgspec

from effects.clock import now_ms
from effects.errors import ConfigError, ProgramFailed
from effects.lanes import Lane, Report
from fsm import effects as do
from fsm.events import AnyResult, NewAgentChecked

FIRST_FD = 3
"""Source: sd_listen_fds(3), SD_LISTEN_FDS_START."""
PARKED_FD_MIN = 200
LOCK_NAME, SOCKET_NAME = "agent.lock", "restapi"
HANDED_OVER = "MATRIARCH_HANDED_OVER"
SYSTEMD = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
FAULT = "matriarch: "
"""How every line of a fault begins on this program's stderr."""

logger = logging.getLogger(__name__)


class HandedOver(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an agent tells its successor; no secrets. `fixed`: settings that the server and the fence go by."""

    listen: str = ""
    is_activated: bool = False
    """systemd made the sockets, wherever they listen."""
    standing: str = ""
    """How health checks were answered: see `fsm.status.standing_word`."""
    fixed: dict[str, str] = {}


class Inherited:
    """What this process was started with, beyond arguments and environment."""

    def __init__(
        self, sockets: Sequence[socket.socket] = (), lock_fd: int | None = None, told: HandedOver | None = None
    ) -> None:
        """sockets: they listen already. lock_fd: the agent's lock, held. told: None unless an agent became this one."""
        self.sockets, self.lock_fd, self.told = list(sockets), lock_fd, told

    @property
    def is_successor(self) -> bool:
        """True when an agent became this one."""
        return self.told is not None

    @property
    def is_activated(self) -> bool:
        """True when systemd made the sockets: there it is the unit that says where to listen."""
        return bool(self.sockets) if self.told is None else self.told.is_activated

    def sockets_for(self, listen: str) -> list[socket.socket]:
        """The sockets that listen where they should; others are closed."""
        if self.serves(listen):
            return self.sockets
        for one in self.sockets:
            one.close()
        return []

    def serves(self, listen: str) -> bool:
        """True when sockets of this very process take the address, or make it unneeded."""
        return self.is_activated or (self.told is not None and self.told.listen == listen)

    def check(self, fixed: Mapping[str, str]) -> None:
        """Returns when the settings are about the same node. Raises: ConfigError."""
        told = self.told.fixed if self.told is not None else {}
        changed = [(name, told[name], value) for name, value in fixed.items() if told.get(name, value) != value]
        if changed:
            remedy = "that needs the agent to be stopped and started"
            raise ConfigError([f"{name}: changed from {old} to {new}; {remedy}" for name, old, new in changed])


def take_inherited(environ: MutableMapping[str, str]) -> Inherited:
    """What this process inherited; the variables that tell of it are removed, so that no other program takes it again.

    Raises: ConfigError when a file descriptor is no listening TCP socket. Source: sd_listen_fds(3).
    """
    pid, count, names = (environ.pop(name, "") for name in SYSTEMD)
    told = environ.pop(HANDED_OVER, "")
    if not (pid == str(os.getpid()) and count.isdecimal()):
        return Inherited(told=_told(told))
    found, lock_fd, named = [], None, names.split(":")
    for place in range(int(count)):
        fd = FIRST_FD + place
        os.set_inheritable(fd, False)
        if place < len(named) and named[place] == LOCK_NAME:
            lock_fd = fd
        else:
            found.append(_listening_socket(fd))
    return Inherited(found, lock_fd, _told(told))


def _told(text: str) -> HandedOver | None:
    """What an agent told; one of another version may tell more, or something else."""
    with contextlib.suppress(msgspec.MsgspecError):
        return msgspec.json.decode(text, type=HandedOver) if text else None
    return HandedOver(is_activated=True)


def _listening_socket(fd: int) -> socket.socket:
    try:
        found = socket.socket(fileno=fd)
    except OSError as error:
        raise ConfigError(
            [f"LISTEN_FDS: file descriptor {fd}: {error.strerror}; the unit's sockets are to be TCP"]
        ) from None
    is_tcp = found.family in (socket.AF_INET, socket.AF_INET6) and found.type == socket.SOCK_STREAM
    if not is_tcp or not found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise ConfigError([f"LISTEN_FDS: file descriptor {fd} is no listening TCP socket; use ListenStream=host:port"])
    found.setblocking(False)
    return found


class Successor:
    """Tries the agent that is on the disk, and becomes it. `tell`: what is told to the successor, as of now."""

    def __init__(self, tell: Callable[[], HandedOver]) -> None:
        self._tell = tell

    def lane(self, report: Report) -> Lane:
        """The executor of trials: a trial may take seconds, and nothing waits for it."""
        return Lane("successor", {do.CheckNewAgent: self.check}, report)

    async def check(self, effect: do.CheckNewAgent) -> AnyResult:
        """How long the new agent took to show that it would start. Raises: ProgramFailed with its faults."""
        began_ms = now_ms()
        environment = {**os.environ, HANDED_OVER: _text(self._tell())}
        ended = await anyio.run_process(
            [*own_command(), "--check"], stdin=subprocess.DEVNULL, check=False, env=environment
        )
        if ended.returncode != 0:
            raise ProgramFailed("the new agent", ended.returncode, faults_in(ended.stderr.decode(errors="replace")))
        return NewAgentChecked(took_ms=now_ms() - began_ms)


def faults_in(stderr: str) -> str:
    """What a failed trial says, in one line: its faults, else its last words."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    faults = [line.removeprefix(FAULT) for line in lines if line.startswith(FAULT)]
    return "; ".join(faults or lines[-1:])


def own_command() -> list[str]:
    """The command that this process was started with, by the whole path of its interpreter."""
    return [sys.executable, *sys.orig_argv[1:]]


def _text(told: HandedOver) -> str:
    return msgspec.json.encode(told).decode()


def become_successor(handed_over: Inherited) -> str:
    """Executes the agent on the disk in place of this one. Returns only when that failed, with the reason.

    Call it with signals handed on (effects/signals.py) and nothing open that matters but what is handed over.
    """
    passed = [(one.fileno(), SOCKET_NAME) for one in handed_over.sockets]
    passed += [(handed_over.lock_fd, LOCK_NAME)] if handed_over.lock_fd is not None else []
    environment = {
        **os.environ,
        "LISTEN_PID": str(os.getpid()),
        "LISTEN_FDS": str(len(passed)),
        "LISTEN_FDNAMES": ":".join(name for _, name in passed),
        HANDED_OVER: _text(handed_over.told or HandedOver()),
    }
    parked = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, PARKED_FD_MIN) for fd, _ in passed]
    displaced = _keep_displaced(len(passed))
    command = own_command()
    try:
        for place, fd in enumerate(parked):
            os.dup2(fd, FIRST_FD + place, inheritable=True)
        os.execve(command[0], command, environment)  # noqa: S606 - its own command, as it was started
    except OSError as error:
        return f"{command[0]}: {error.strerror}"
    finally:
        _put_back(displaced, parked)


def _keep_displaced(count: int) -> dict[int, int | None]:
    """Copies of what has the numbers that are needed, by number; None where nothing has."""
    kept: dict[int, int | None] = {}
    for fd in range(FIRST_FD, FIRST_FD + count):
        try:
            kept[fd] = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, PARKED_FD_MIN)
        except OSError:
            kept[fd] = None
    return kept


def _put_back(displaced: Mapping[int, int | None], parked: Sequence[int]) -> None:
    for fd, copy in displaced.items():
        if copy is None:
            os.close(fd)
        else:
            os.dup2(copy, fd, inheritable=False)
            os.close(copy)
    for fd in parked:
        os.close(fd)
