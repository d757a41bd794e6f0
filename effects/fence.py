"""The fence: a tiny process that is the parent of PostgreSQL and kills it when its deadline passes unrenewed.

Run as `python -I -S fence.py --directory DIR [--detach]`; it and its two files import nothing but the standard library,
so that it stays small and nothing of the agent can break it. The agent (effects/fence_link.py) sends one JSON object a
line to DIR/fence.sock and gets replies and notices the same way. It outlives the agent: an agent that restarts finds
the server and its deadline as they were.

It decides one thing only: whether the clock has passed the instant it was given. An exception outside a client's
command ends the fence, and PR_SET_PDEATHSIG then ends the server: it fails closed. An adopted server was started by
another parent and has no such tie; nothing but this process's life guards its deadline.

Source: prctl(2), timerfd_create(2), pidfd_open(2), PostgreSQL "Shutting Down the Server".
"""

# pathlib would cost this process a megabyte of its ten:
# ruff: noqa: PTH100, PTH120

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import socket
import sys
import time

# Run alone and isolated (-I), it finds the two files that belong to it, and they are found last of all.
sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from effects.fence_device import Watchdog
from effects.fence_kernel import (
    PR_SET_CHILD_SUBREAPER,
    PR_SET_PDEATHSIG,
    STOPPED,
    Process,
    descendants,
    living_processes,
    lock_memory,
    now_ms,
    open_timer,
    prctl,
    program_and_directory,
    raise_priority,
    read_whole,
    send_signal,
    set_oom_score,
    set_timer,
    state_of,
)

sys.path.pop()

PROTOCOL = 1
STATUS_LOCKED = 3
# Backends were measured gone 39 to 111 ms after SIGQUIT under pgbench; what lives longer will not go by itself.
QUIT_GRACE_MS = 150
# A timer this late means that this process was not running (frozen, suspended): the grace has been used up already.
LATE_MS = 20
IDLE_EXIT_MS = 2000
RETRY_MS, RETRY_MAX_MS = 10, 500
BUFFER_BYTES_MAX = LOG_BYTES_MAX = 256 * 1024
# Small reads: however much one client writes, the clock is looked at again after at most this many bytes.
READ_BYTES = 4096
CLIENTS_MAX = 32
LOG_LINES_WAITING_MAX = 100
STOP_SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
URGENCY = {None: 0, "smart": 1, "fast": 2, "immediate": 3}

NO_TERMINAL = os.O_NOCTTY | os.O_NOFOLLOW


class RefusedError(Exception):
    """A command that is not carried out; its text goes to the client."""


# ---- commands: what a client may write ---------------------------------------------------------------------------

Command = dict[str, object]


def whole_number(command: Command, key: str) -> int:
    """The number at `key`, refused when it is none or beyond what JSON carries exactly."""
    value = command.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**53:
        raise RefusedError(f"{key} must be a whole number from 0")
    return value


def optional_number(command: Command, key: str) -> int | None:
    """The number at `key`, or None where it is null or absent."""
    return None if command.get(key) is None else whole_number(command, key)


def text(command: Command, key: str) -> str:
    """The text at `key`."""
    value = command.get(key)
    if not isinstance(value, str) or not value:
        raise RefusedError(f"{key} must be a text")
    return value


def texts(command: Command, key: str) -> list[str]:
    """The list of texts at `key`, at least one."""
    value = command.get(key)
    if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
        raise RefusedError(f"{key} must be a list of texts")
    return value


def environment(command: Command) -> dict[str, str]:
    """The whole environment of the server; nothing of the fence's own is added."""
    value = command.get("env")
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise RefusedError("env must be an object of texts")
    return value


def user_of(command: Command) -> tuple[int, int, list[int]] | None:
    """User id, group id and groups that the server shall have; None where it stays the fence's own user."""
    value = command.get("user")
    if value is None:
        return None
    groups = value.get("groups") if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(groups, list) or not all(type(item) is int for item in groups):
        raise RefusedError("user must be null or an object of uid, gid and groups")
    return whole_number(value, "uid"), whole_number(value, "gid"), groups


# ---- the child that becomes the postmaster -----------------------------------------------------------------------


class Launch:
    """All that a new server needs, checked, and the pipe that closes when its exec has succeeded."""

    def __init__(self, command: Command, client: Client, oom_score: bytes) -> None:
        self.argv, self.env, self.user = texts(command, "argv"), environment(command), user_of(command)
        self.cwd, self.output = text(command, "cwd"), text(command, "output")
        self.client, self.reply_id, self.oom_score = client, command.get("id"), int(oom_score or b"0")
        self.read_fd = self.write_fd = -1
        self.failure = ""

    def fork(self) -> int:
        """The pid of the new process. Signals stay blocked until it has dropped the fence's own ways with them."""
        self.read_fd, self.write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        fence_pid = os.getpid()
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            pid = os.fork()
            if pid == 0:
                self._become_server(fence_pid)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            os.close(self.write_fd)
        return pid

    def _become_server(self, fence_pid: int) -> None:
        try:
            os.setsid()
            set_oom_score(self.oom_score)
            self._open_streams()
            self._change_user()
            os.chdir(self.cwd)
            os.umask(0o077)
            self._default_signals()
            # After the change of user, which clears it; and the fence may have died before it was set.
            prctl(PR_SET_PDEATHSIG, signal.SIGQUIT)
            if os.getppid() == fence_pid:
                os.execve(self.argv[0], self.argv, self.env)  # noqa: S606
        except BaseException as error:  # noqa: BLE001 - reported to the parent; nothing may return from here
            where = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else error
            os.write(self.write_fd, str(where).encode(errors="replace")[:1000] or b"unknown")
        finally:
            os._exit(127)

    def _open_streams(self) -> None:
        nothing = os.open("/dev/null", os.O_RDONLY)
        output = os.open(self.output, os.O_WRONLY | os.O_APPEND | os.O_CREAT | NO_TERMINAL, 0o600)
        for source, target in ((nothing, 0), (output, 1), (output, 2)):
            os.dup2(source, target)

    def _change_user(self) -> None:
        if self.user is not None:
            uid, gid, groups = self.user
            os.setgroups(groups)
            os.setgid(gid)
            os.setuid(uid)

    @staticmethod
    def _default_signals() -> None:
        signal.set_wakeup_fd(-1)
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())


class Server:
    """The PostgreSQL server under watch, from its fork or adoption until nothing of it is left."""

    def __init__(self, pid: int, armed_until_ms: int | None) -> None:
        self.pid, self.armed_until_ms = pid, armed_until_ms
        self.launch: Launch | None = None  # until its exec is known to have succeeded
        self.pidfd: int | None = None  # of an adopted server; an own child tells of its exit by SIGCHLD
        self.identity: tuple[str, str] | None = None
        self.stop_mode: str | None = None
        self.kill_at_ms: int | None = None
        self.retry_ms = RETRY_MS
        self.fired_at_ms: int | None = None
        self.exited_at_ms: int | None = None
        self.exit_status: int | None = None
        self.exit_signal: int | None = None
        self.killed: set[int] = set()
        self.process_count = 0  # when the deadline passed: itself and its children

    def others(self) -> list[Process]:
        """Its living processes but the postmaster, whose orphans are this process's children (subreaper)."""
        living = living_processes()
        if self.pidfd is None:
            return [process for process in descendants(os.getpid(), living) if process.pid != self.pid]
        found = {process.pid: process for process in descendants(self.pid, living)}
        if self.exited_at_ms is not None:
            last_tick = self.exited_at_ms * TICKS_PER_S // 1000  # a server started since then is not this one
            found |= {
                pid: process
                for pid, process in living.items()
                if process.started_tick <= last_tick and program_and_directory(pid) == self.identity
            }
        return list(found.values())

    def signal_postmaster(self, number: int) -> None:
        """Sends it a signal; by pidfd to an adopted one, whose parent reaps it: its pid might be another's by now."""
        if self.pidfd is None:
            send_signal(self.pid, number)
        else:
            try:
                signal.pidfd_send_signal(self.pidfd, number)
            except ProcessLookupError:
                return

    def quit(self) -> None:
        """SIGQUIT to every process. A stopped one is killed: continued past the deadline it might still write."""
        is_stopped = state_of(read_whole(f"/proc/{self.pid}/stat")) in STOPPED
        self.signal_postmaster(signal.SIGKILL if is_stopped else signal.SIGQUIT)
        for process in self.others():
            send_signal(process.pid, signal.SIGKILL if process.state in STOPPED else signal.SIGQUIT)

    def kill(self) -> bool:
        """True when nothing but the postmaster was left to kill; it is the first, for it would start more."""
        if self.exited_at_ms is None:
            self.signal_postmaster(signal.SIGKILL)
        others = self.others()
        self.killed |= {process.pid for process in others if send_signal(process.pid, signal.SIGKILL)}
        return not others

    def next_wake_ms(self) -> int | None:
        """When to look again, or None when only an event can change anything."""
        due = [self.kill_at_ms, self.armed_until_ms if self.fired_at_ms is None and not self.exited_at_ms else None]
        return min((at_ms for at_ms in due if at_ms is not None), default=None)


class Client:
    """One connection; never waited for."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.connection, self.received, self.unsent = connection, b"", b""

    def send(self, line: bytes) -> None:
        """Sends what the socket takes now and keeps the rest."""
        self.unsent += line
        try:
            while self.unsent:
                self.unsent = self.unsent[self.connection.send(self.unsent) :]
        except BlockingIOError:
            return

    def lines(self) -> list[bytes]:
        """The complete lines that arrived. Raises EOFError when the peer has closed."""
        try:
            chunk = self.connection.recv(READ_BYTES)
        except BlockingIOError:
            return []
        if not chunk:
            raise EOFError
        *lines, self.received = (self.received + chunk).split(b"\n")
        return lines


class Journal:
    """DIR/fence.log. Lines wait in memory while a deadline runs: a disk that hangs must not hang the fence."""

    def __init__(self, directory_fd: int) -> None:
        self.directory_fd = directory_fd
        self.waiting: list[str] = []

    def note(self, line: str) -> None:
        """Keeps one line, stamped, for the next flush; the oldest goes when too many wait."""
        self.waiting.append(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {now_ms()} {line}\n")
        del self.waiting[:-LOG_LINES_WAITING_MAX]

    def flush(self) -> None:
        """Writes what waits; a log that cannot be written is nobody's concern but its reader's."""
        if not self.waiting:
            return
        block, self.waiting = "".join(self.waiting).encode(errors="replace"), []
        try:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | NO_TERMINAL
            fd = os.open("fence.log", flags, 0o600, dir_fd=self.directory_fd)
            if os.fstat(fd).st_size + len(block) > LOG_BYTES_MAX:
                os.ftruncate(fd, 0)
            os.write(fd, block)
            os.close(fd)
        except OSError:
            return


# ---- the fence ---------------------------------------------------------------------------------------------------


class Fence:
    """The loop: the clock first, then dead children, then clients."""

    def __init__(self, directory_fd: int, listener: socket.socket) -> None:
        self.watchdog = Watchdog()
        self.directory_fd, self.listener, self.journal = directory_fd, listener, Journal(directory_fd)
        self.started_at_ms = now_ms()
        self.server: Server | None = None
        self.last_exit: dict[str, object] | None = None
        self.last_fired: dict[str, object] | None = None
        self.clients: dict[int, Client] = {}
        self.idle_at_ms: int | None = None
        self.is_leaving = self.is_finished = False
        self.commands = {
            "status": self._status, "start": self._start, "arm": self._arm, "disarm": self._disarm,
            "stop": self._stop, "adopt": self._adopt, "quit": self._quit,
            "watchdog": self._start_watchdog, "watchdog_stop": self._stop_watchdog,
        }  # fmt: skip
        self.poller = select.poll()
        self.timer_fd = open_timer()
        self.signal_fd, self.wakeup_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        for fd in (listener.fileno(), self.timer_fd, self.signal_fd):
            self.poller.register(fd, select.POLLIN)
        self._shield()

    def _shield(self) -> None:
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(self.wakeup_fd, warn_on_full_buffer=False)
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        self.former_oom_score = read_whole("/proc/self/oom_score_adj")
        self.has_priority, self.is_oom_protected = raise_priority(), set_oom_score(-1000)
        self.is_memory_locked = lock_memory()
        self.journal.note(f"fence {os.getpid()} started, memory locked: {self.is_memory_locked}")

    def run(self) -> None:
        """Returns when the fence has no more reason to live. What it raises ends the server too: PR_SET_PDEATHSIG."""
        try:
            while not self.is_finished:
                self._turn()
        except BaseException as error:
            self.journal.note(f"fence {os.getpid()} ends by {error!r}")
            raise
        finally:
            self.journal.flush()

    def _turn(self) -> None:
        set_timer(self.timer_fd, self._next_wake_ms())
        ready = self.poller.poll()
        self._enforce()
        for fd, events in ready:
            self._serve(fd, events)
        self._enforce()
        if failure := self.watchdog.turn(now_ms(), self.server.armed_until_ms if self.server else None):
            self.journal.note(f"watchdog {failure}")
        self._leave_if_idle()
        if self.server is None or self.server.armed_until_ms is None:
            self.journal.flush()

    def _next_wake_ms(self) -> int | None:
        armed_ms = self.server.armed_until_ms if self.server else None
        due = [self.idle_at_ms, self.server.next_wake_ms() if self.server else None]
        due.append(self.watchdog.next_wake_ms(now_ms(), armed_ms))
        return min((at_ms for at_ms in due if at_ms is not None), default=None)

    def _serve(self, fd: int, events: int) -> None:
        if fd == self.timer_fd:
            self._drain(fd)
        elif fd == self.signal_fd:
            self._take_signals()
        elif fd == self.listener.fileno():
            self._accept()
        elif fd in self.clients:
            self._serve_client(self.clients[fd], events)
        elif self.server is not None and self.server.launch is not None and fd == self.server.launch.read_fd:
            self._finish_launch(self.server, self.server.launch)
        elif self.server is not None and fd == self.server.pidfd:
            self._take_adopted_exit(self.server, fd)

    @staticmethod
    def _drain(fd: int) -> bytes:
        try:
            return os.read(fd, 4096)
        except BlockingIOError:
            return b""

    # ---- the deadline and the end of a server

    def _enforce(self) -> None:
        server, at_ms = self.server, now_ms()
        if server is None:
            return
        armed_ms = server.armed_until_ms
        if armed_ms is not None and at_ms >= armed_ms and not server.fired_at_ms and not server.exited_at_ms:
            self._fire(server, armed_ms, at_ms)
        if server.kill_at_ms is not None and at_ms >= server.kill_at_ms:
            self._kill(server, at_ms)

    def _fire(self, server: Server, armed_ms: int, at_ms: int) -> None:
        server.fired_at_ms = at_ms
        server.process_count = 1 + len(read_whole(f"/proc/{server.pid}/task/{server.pid}/children").split())
        grace_ends_ms = armed_ms + QUIT_GRACE_MS if at_ms - armed_ms <= LATE_MS else at_ms
        server.kill_at_ms = min(grace_ends_ms, server.kill_at_ms or grace_ends_ms)
        if server.kill_at_ms > at_ms:
            server.quit()
        self.journal.note(f"deadline {armed_ms} passed: killing {server.pid}")

    def _kill(self, server: Server, at_ms: int) -> None:
        is_nothing_left = server.kill()
        server.kill_at_ms = at_ms + server.retry_ms
        server.retry_ms = min(2 * server.retry_ms, RETRY_MAX_MS)
        if is_nothing_left and server.pidfd is not None and server.exited_at_ms is not None:
            self._bury(server)

    def _take_signals(self) -> None:
        numbers = self._drain(self.signal_fd)
        if signal.SIGTERM in numbers:
            self._terminate()
        self._reap()

    def _terminate(self) -> None:
        self.journal.note("SIGTERM: leaving when no server runs")
        self.is_leaving, self.is_finished = True, self.server is None
        if self.server is not None and self.server.exited_at_ms is None:
            self._stop_server(self.server, "fast")

    def _reap(self) -> None:
        server = self.server
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:  # the proof: not one process of the server is left
                break
            if pid == 0:
                return
            if server is not None and pid == server.pid:
                self._take_exit(server, os.waitstatus_to_exitcode(status))
        if server is not None and server.pidfd is None and server.exited_at_ms is not None:
            self._bury(server)

    def _take_exit(self, server: Server, code: int) -> None:
        server.exited_at_ms = server.kill_at_ms = now_ms()
        server.exit_status, server.exit_signal = (code, None) if code >= 0 else (None, -code)
        if server.launch is not None and not server.launch.failure:
            self._finish_launch(server, server.launch)

    def _take_adopted_exit(self, server: Server, pidfd: int) -> None:
        self.poller.unregister(pidfd)
        server.exited_at_ms = server.kill_at_ms = now_ms()

    def _bury(self, server: Server) -> None:
        self.server, self.is_finished = None, self.is_leaving
        self.watchdog.stop()  # not before: a server that cannot be killed is what it is for
        if server.pidfd is not None:
            os.close(server.pidfd)
        if server.launch is not None:  # it never became a server
            self._reply(server.launch.client, server.launch.reply_id, {"ok": False, "error": server.launch.failure})
            return
        gone_at_ms = now_ms()
        if server.fired_at_ms is not None:
            self.last_fired = {
                "armed_until_ms": server.armed_until_ms, "at_ms": server.fired_at_ms, "gone_at_ms": gone_at_ms,
                "processes": server.process_count, "killed": len(server.killed),
            }  # fmt: skip
            self._announce({"notice": "fired", **self.last_fired})
        self.last_exit = {
            "pid": server.pid, "status": server.exit_status, "signal": server.exit_signal,
            "leftovers_killed": len(server.killed), "at_ms": server.exited_at_ms, "gone_at_ms": gone_at_ms,
        }  # fmt: skip
        self._announce({"notice": "exited", **self.last_exit})

    # ---- commands

    def _running(self) -> Server:
        if self.server is None or self.server.exited_at_ms is not None:
            raise RefusedError("no server runs")
        return self.server

    def _refuse_second(self) -> None:
        if self.is_leaving:
            raise RefusedError("the fence is leaving")
        if self.server is not None:
            what = "runs" if self.server.exited_at_ms is None else "has exited, but some of its processes still live"
            raise RefusedError(f"server {self.server.pid} {what}")

    @staticmethod
    def _deadline(command: Command) -> int | None:
        armed_until_ms = optional_number(command, "armed_until_ms")
        if armed_until_ms is not None and armed_until_ms <= now_ms():
            raise RefusedError("armed_until_ms has passed")
        return armed_until_ms

    def _status(self, _command: Command, _client: Client) -> Command:
        server = self.server
        pages = read_whole("/proc/self/statm").split()
        return {
            "protocol": PROTOCOL, "fence_pid": os.getpid(), "started_at_ms": self.started_at_ms,
            "pid": server.pid if server and server.exited_at_ms is None else None,
            "is_adopted": bool(server and server.pidfd is not None),
            "armed_until_ms": server.armed_until_ms if server else None,
            "stop_mode": server.stop_mode if server else None,
            "last_exit": self.last_exit, "fired": self.last_fired, "clients": len(self.clients),
            "rss_bytes": int(pages[1]) * os.sysconf("SC_PAGE_SIZE"), "is_memory_locked": self.is_memory_locked,
            "watchdog_s": self.watchdog.timeout_s or None,
            "has_priority": self.has_priority, "is_oom_protected": self.is_oom_protected,
        }  # fmt: skip

    def _start(self, command: Command, client: Client) -> None:
        self._refuse_second()
        armed_until_ms, launch = self._deadline(command), Launch(command, client, self.former_oom_score)
        self.server = Server(launch.fork(), armed_until_ms)
        self.server.launch = launch
        self.poller.register(launch.read_fd, select.POLLIN)

    def _finish_launch(self, server: Server, launch: Launch) -> None:
        try:
            launch.failure = os.read(launch.read_fd, 4096).decode(errors="replace")
        except BlockingIOError:  # the event was for the former owner of this file descriptor
            return
        self.poller.unregister(launch.read_fd)
        os.close(launch.read_fd)
        if launch.failure:  # replied to when the child is gone, so that a new start is not refused
            return
        server.launch = None
        self._announce({"notice": "spawned", "pid": server.pid, "at_ms": now_ms()})
        self._reply(launch.client, launch.reply_id, {"pid": server.pid})

    def _adopt(self, command: Command, _client: Client) -> Command:
        self._refuse_second()
        pid, armed_until_ms = whole_number(command, "pid"), self._deadline(command)
        if pid in (0, 1, os.getpid()):
            raise RefusedError(f"{pid} is no server")
        identity = program_and_directory(pid)
        if identity is None:
            raise RefusedError(f"process {pid} is not there or belongs to another user")
        server = Server(pid, armed_until_ms)
        server.identity, server.pidfd = identity, os.pidfd_open(pid)
        self.server = server
        self.poller.register(server.pidfd, select.POLLIN)
        self.journal.note(f"adopted {pid}")
        return {"pid": pid}

    def _arm(self, command: Command, _client: Client) -> Command:
        server, until_ms = self._running(), whole_number(command, "until_ms")
        if server.fired_at_ms is not None:
            raise RefusedError("the deadline has passed, the server is being killed")
        server.armed_until_ms = until_ms
        return {"armed_until_ms": until_ms, "watchdog_s": self.watchdog.timeout_s or None}

    def _disarm(self, _command: Command, _client: Client) -> Command:
        server = self._running()
        if server.fired_at_ms is not None:
            raise RefusedError("the deadline has passed, the server is being killed")
        server.armed_until_ms = None
        self.watchdog.stop()
        return {}

    def _start_watchdog(self, command: Command, _client: Client) -> Command:
        path, timeout_s = text(command, "device"), whole_number(command, "timeout_s")
        self.watchdog.start(path, timeout_s, whole_number(command, "slack_ms"), text(command, "driver"), now_ms())
        return {"watchdog_s": self.watchdog.timeout_s}

    def _stop_watchdog(self, command: Command, _client: Client) -> Command:
        if self.watchdog.fd is None and command.get("device"):  # left running by a fence before
            self.watchdog.open(text(command, "device"))
        self.watchdog.stop()
        return {}

    def _stop(self, command: Command, _client: Client) -> Command:
        server, mode, wait_ms = self._running(), text(command, "mode"), optional_number(command, "kill_after_ms")
        if mode not in STOP_SIGNALS:
            raise RefusedError("mode must be smart, fast or immediate")
        self._stop_server(server, mode)
        if wait_ms is not None:
            kill_at_ms = now_ms() + wait_ms
            server.kill_at_ms = min(kill_at_ms, server.kill_at_ms or kill_at_ms)
        return {"mode": server.stop_mode}

    def _stop_server(self, server: Server, mode: str) -> None:
        if URGENCY[mode] > URGENCY[server.stop_mode]:
            server.stop_mode = mode
            server.signal_postmaster(STOP_SIGNALS[mode])
            self.journal.note(f"{mode} stop of {server.pid}")

    def _quit(self, _command: Command, _client: Client) -> Command:
        if self.server is not None:
            raise RefusedError(f"server {self.server.pid} runs")
        self.is_finished = True
        return {}

    # ---- clients

    def _accept(self) -> None:
        try:
            client = Client(self.listener.accept()[0])
        except OSError:
            return
        if len(self.clients) >= CLIENTS_MAX:
            client.connection.close()
            return
        self.clients[client.connection.fileno()] = client
        self.poller.register(client.connection, select.POLLIN)
        self._send(client, {"notice": "hello", "protocol": PROTOCOL, "fence_pid": os.getpid()})

    def _serve_client(self, client: Client, events: int) -> None:
        try:
            if events & select.POLLOUT:
                self._send(client, None)
            lines = client.lines() if events & ~select.POLLOUT else []
        except (OSError, EOFError):
            self._drop(client)
            return
        for line in lines:
            self._enforce()
            self._answer(client, line)
        if len(client.received) > BUFFER_BYTES_MAX:
            self._reply(client, None, {"ok": False, "error": "line too long"})
            self._drop(client)

    def _answer(self, client: Client, line: bytes) -> None:
        reply_id: object = None
        try:
            command = json.loads(line)
            if not isinstance(command, dict):
                raise RefusedError("a command is a JSON object")
            reply_id = command.get("id") if isinstance(command.get("id"), int | str) else None
            act = self.commands.get(str(command.get("command")))
            if act is None:
                raise RefusedError("unknown command")
            answer = act(command, client)
        except RefusedError as refusal:
            answer = {"ok": False, "error": str(refusal)}
        except Exception as error:  # noqa: BLE001 - whatever a client writes, the server stays guarded
            answer = {"ok": False, "error": f"{type(error).__name__}: {error}"[:300]}
        if answer is not None:
            self._reply(client, reply_id, answer)

    def _reply(self, client: Client, reply_id: object, answer: Command) -> None:
        self._send(client, {"reply": reply_id, "ok": True, **answer})

    def _announce(self, notice: Command) -> None:
        self.journal.note(json.dumps(notice))
        for client in list(self.clients.values()):
            self._send(client, notice)

    def _send(self, client: Client, message: Command | None) -> None:
        fd = client.connection.fileno()
        if fd not in self.clients:
            return
        try:
            client.send(b"" if message is None else json.dumps(message).encode() + b"\n")
        except OSError:
            self._drop(client)
            return
        if len(client.unsent) > BUFFER_BYTES_MAX:
            self._drop(client)
        else:
            self.poller.modify(fd, select.POLLIN | (select.POLLOUT if client.unsent else 0))

    def _drop(self, client: Client) -> None:
        if self.clients.pop(client.connection.fileno(), None) is not None:
            self.poller.unregister(client.connection)
            client.connection.close()

    def _leave_if_idle(self) -> None:
        if self.server is not None or self.clients:
            self.idle_at_ms = None
        elif self.idle_at_ms is None:
            self.idle_at_ms = now_ms() + IDLE_EXIT_MS
        elif now_ms() >= self.idle_at_ms:
            self.journal.note("idle: leaving")
            self.is_finished = True


def take_lock(directory_fd: int) -> None:
    """Holds DIR/fence.lock for as long as this process lives; exits where another fence holds it."""
    fd = os.open("fence.lock", os.O_RDWR | os.O_CREAT | NO_TERMINAL | os.O_CLOEXEC, 0o600, dir_fd=directory_fd)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("another fence guards this directory", file=sys.stderr)
        raise SystemExit(STATUS_LOCKED) from None


def listen(directory_fd: int) -> socket.socket:
    """The listening socket. Through /proc its name is short, however long the directory's is. Source: unix(7)."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    remove_socket(directory_fd)
    os.umask(0o177)
    listener.bind(f"/proc/self/fd/{directory_fd}/fence.sock")
    os.umask(0o077)
    listener.listen(16)
    return listener


def remove_socket(directory_fd: int) -> None:
    """Removes DIR/fence.sock, should it be there."""
    try:
        os.unlink("fence.sock", dir_fd=directory_fd)
    except FileNotFoundError:
        return


def detach() -> None:
    """Returns in a child with a session of its own; the parent ends with status 0: the socket is there."""
    if os.fork() != 0:
        os._exit(0)
    os.setsid()
    os.chdir("/")
    nothing = os.open("/dev/null", os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)


def main(arguments: list[str]) -> None:
    """Guards the directory named by `--directory`."""
    if len(arguments) < 2 or arguments[0] != "--directory" or arguments[2:] not in ([], ["--detach"]):
        raise SystemExit("usage: fence.py --directory DIR [--detach]")
    # Whatever leaked in from the agent (uvloop does not close its ends of a child's pipes) must not outlive it here.
    os.closerange(3, 4096)
    directory_fd = os.open(arguments[1], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    take_lock(directory_fd)
    listener = listen(directory_fd)
    if "--detach" in arguments:
        detach()
        listener.listen(16)  # so that whoever connects is told this process's number. Source: unix(7), SO_PEERCRED
    fence = Fence(directory_fd, listener)
    fence.run()
    fence.watchdog.stop()
    remove_socket(directory_fd)


if __name__ == "__main__":
    main(sys.argv[1:])
