"""The agent's end of the connection to the fence (effects/fence.py): commands with a reply each, and its notices.

The fence outlives the agent and may be of another version than it: unknown fields are ignored, missing ones have
defaults. A timeout is an unknown outcome; `status` tells what holds.
"""

import contextlib
import logging
import os
import signal
import socket
import struct
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from subprocess import DEVNULL, PIPE
from types import TracebackType
from typing import Literal, Self

import anyio
import anyio.abc
import msgspec
from anyio.streams.buffered import BufferedByteReceiveStream

from effects.clock import now_ms
from effects.errors import FenceUnavailable, PostgresError
from effects.programs import RunAs

COMMAND_TIMEOUT_MS = 1000
CONNECT_TIMEOUT_MS = 5000
LINE_BYTES_MAX = 256 * 1024
NOTICES_WAITING_MAX = 1024
STATUS_LOCKED = 3  # the fence's exit status when another one guards the directory
PAUSE_S = 0.01
FROZEN_LOOK_S, FROZEN_LOOKS = 0.1, 3
# The fence outlives the agent, so it gets none of the agent's environment, where passwords are, but this.
ENVIRONMENT_KEPT = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL")
PROGRAM = Path(__file__).with_name("fence.py")

logger = logging.getLogger(__name__)

StopMode = Literal["smart", "fast", "immediate"]


class Spawned(msgspec.Struct, frozen=True, kw_only=True, tag="spawned", tag_field="notice"):
    """A server was started: its program is executing."""

    pid: int
    at_ms: int


class Exited(msgspec.Struct, frozen=True, kw_only=True, tag="exited", tag_field="notice"):
    """The postmaster exited at `at_ms` and nothing of the server was left at `gone_at_ms`: it may be started again.

    `status` and `signal` are both None for an adopted server, whose parent alone learns them.
    """

    pid: int
    status: int | None = None
    signal: int | None = None
    leftovers_killed: int = 0
    at_ms: int
    gone_at_ms: int


class Fired(msgspec.Struct, frozen=True, kw_only=True, tag="fired", tag_field="notice"):
    """The deadline passed and the fence killed the server; its `Exited` follows."""

    armed_until_ms: int | None = None
    at_ms: int
    gone_at_ms: int
    processes: int = 0
    killed: int = 0


class Lost(msgspec.Struct, frozen=True, kw_only=True, tag="lost", tag_field="notice"):
    """The connection to the fence broke. If the fence died, its server is being shut down (PR_SET_PDEATHSIG)."""

    at_ms: int
    reason: str


FenceNotice = Spawned | Exited | Fired | Lost


class LastExit(msgspec.Struct, frozen=True, kw_only=True):
    """How the fence's latest server ended; the fields of `Exited`."""

    pid: int
    status: int | None = None
    signal: int | None = None
    leftovers_killed: int = 0
    at_ms: int
    gone_at_ms: int


class LastFired(msgspec.Struct, frozen=True, kw_only=True):
    """The latest time that the fence killed a server at its deadline; the fields of `Fired`."""

    armed_until_ms: int | None = None
    at_ms: int
    gone_at_ms: int
    processes: int = 0
    killed: int = 0


class FenceStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What the fence guards now, and with which of the kernel's favours."""

    fence_pid: int
    started_at_ms: int
    protocol: int = 1
    pid: int | None = None
    is_adopted: bool = False
    armed_until_ms: int | None = None
    stop_mode: str | None = None
    last_exit: LastExit | None = None
    fired: LastFired | None = None
    watchdog_s: int | None = None
    """The timeout of the device that it feeds; None while it feeds none."""
    clients: int = 0
    rss_bytes: int = 0
    is_memory_locked: bool = False
    has_priority: bool = False
    is_oom_protected: bool = False

    @property
    def lacks(self) -> tuple[str, ...]:
        """What the kernel did not grant it."""
        granted = {
            "memory_lock": self.is_memory_locked,
            "priority": self.has_priority,
            "oom_protection": self.is_oom_protected,
        }
        return tuple(name for name, is_granted in granted.items() if not is_granted)


class _Envelope(msgspec.Struct, frozen=True, kw_only=True):
    """The fields that tell a reply from a notice; the rest of the line is decoded for what it is."""

    reply: int | None = None
    ok: bool = True
    error: str = ""
    notice: str | None = None


class _Answer(msgspec.Struct, frozen=True, kw_only=True):
    pid: int = 0
    watchdog_s: int | None = None


class _Waiting:
    """One command under way."""

    def __init__(self) -> None:
        self.is_over = anyio.Event()
        self.line: bytes | None = None


class FenceLink:
    """A connection to the fence of one directory. `run` must be running for commands and notices to be answered."""

    def __init__(self, stream: anyio.abc.SocketStream, *, timeout_ms: int = COMMAND_TIMEOUT_MS) -> None:
        self._stream, self._timeout_ms = stream, timeout_ms
        self._lines = BufferedByteReceiveStream(stream)
        self._waiting: dict[int, _Waiting] = {}
        self._last_id = 0
        self._is_closing = False
        self._loss: Lost | None = None
        self._send_notice, self._notices = anyio.create_memory_object_stream[FenceNotice](NOTICES_WAITING_MAX)

    @classmethod
    async def connect_or_start(
        cls,
        directory: Path,
        *,
        python: str = sys.executable,
        timeout_ms: int = COMMAND_TIMEOUT_MS,
        connect_timeout_ms: int = CONNECT_TIMEOUT_MS,
    ) -> Self:
        """Connects to the fence that guards `directory`, starting one, detached from this process, if there is none.

        Arguments: `directory` exists and is the agent's own; `timeout_ms` is for each later command.
        A fence that stands still (SIGSTOP) keeps no deadline, and lets nobody else keep it: it is killed, and with it
        its server, by the kernel (PR_SET_PDEATHSIG).
        Raises: FenceUnavailable when a fence can neither be reached nor started, or is there and does not answer.
        """
        with anyio.move_on_after(connect_timeout_ms / 1000):
            while True:
                link = await cls._connect(directory, timeout_ms)
                if link is not None:
                    return link
                if not await _launch(directory, python):  # another one is just coming or going
                    await anyio.sleep(PAUSE_S)
        raise FenceUnavailable(f"the fence of {directory} does not answer within {connect_timeout_ms} ms")

    @classmethod
    async def _connect(cls, directory: Path, timeout_ms: int) -> Self | None:
        """The link once the fence has greeted; None when none listens, or it was about to leave."""
        try:
            stream = await _open_socket(directory)
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        except OSError as error:
            raise FenceUnavailable(f"cannot connect to the fence of {directory}: {error.strerror}") from error
        link = cls(stream, timeout_ms=timeout_ms)
        try:
            await link._be_greeted()
        except (anyio.EndOfStream, anyio.IncompleteRead, anyio.BrokenResourceError):
            await link.aclose()
            return None
        except BaseException:
            await link.aclose()
            raise
        return link

    async def _be_greeted(self) -> None:
        """Returns when the fence has greeted; kills one that stands still, which then closes the connection."""
        pid, stopped = _listener_of(self._stream), 0
        while True:
            with anyio.move_on_after(FROZEN_LOOK_S):
                await self._lines.receive_until(b"\n", LINE_BYTES_MAX)
                return
            stopped = stopped + 1 if _is_stopped(pid) else 0
            if stopped == FROZEN_LOOKS:
                logger.warning(
                    "the fence (pid %d) stands still and keeps no deadline: it is killed, with its server", pid
                )
                _kill(pid)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Closes the connection; the fence and its server go on."""
        self._is_closing = True
        self._end("closed by this side")
        self._notices.close()
        with anyio.CancelScope(shield=True):
            await anyio.aclose_forcefully(self._stream)

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Reads replies and notices until the connection ends; returns then."""
        task_status.started()
        reason = "its reader was stopped"
        try:
            while True:
                self._take(await self._lines.receive_until(b"\n", LINE_BYTES_MAX))
        except (anyio.EndOfStream, anyio.IncompleteRead, anyio.BrokenResourceError, anyio.ClosedResourceError):
            reason = "the fence closed it"
        except (anyio.DelimiterNotFound, anyio.WouldBlock, msgspec.MsgspecError) as error:
            reason = f"it was unreadable: {type(error).__name__}"
        finally:
            self._end(reason)

    def _take(self, line: bytes) -> None:
        envelope = msgspec.json.decode(line, type=_Envelope)
        if envelope.notice is None:
            waiting = self._waiting.pop(envelope.reply or 0, None)
            if waiting is not None:
                waiting.line = line
                waiting.is_over.set()
        elif envelope.notice in ("spawned", "exited", "fired"):
            self._send_notice.send_nowait(msgspec.json.decode(line, type=Spawned | Exited | Fired))

    def _end(self, reason: str) -> None:
        if self._loss is None:
            self._loss = Lost(at_ms=now_ms(), reason=reason)
            self._send_notice.close()
        for waiting in self._waiting.values():
            waiting.is_over.set()
        self._waiting.clear()

    async def notices(self) -> AsyncIterator[FenceNotice]:
        """Each notice in its order, for one reader; the last is `Lost`, unless it was this side that closed."""
        with contextlib.suppress(anyio.ClosedResourceError):
            async for notice in self._notices:
                yield notice
        if self._loss is not None and not self._is_closing:
            yield self._loss

    async def _command(self, name: str, **arguments: object) -> bytes:
        """The line of the reply. Raises FenceUnavailable (outcome unknown) and PostgresError (refused)."""
        if self._loss is not None:
            raise FenceUnavailable(f"no connection to the fence, {self._loss.reason}")
        self._last_id = command_id = self._last_id + 1
        waiting = self._waiting[command_id] = _Waiting()
        line = msgspec.json.encode({"id": command_id, "command": name, **arguments}) + b"\n"
        try:
            with anyio.fail_after(self._timeout_ms / 1000):
                await self._stream.send(line)
                await waiting.is_over.wait()
        except TimeoutError as error:
            raise FenceUnavailable(f"the fence did not answer {name} within {self._timeout_ms} ms") from error
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise FenceUnavailable(f"the connection to the fence broke during {name}") from error
        finally:
            self._waiting.pop(command_id, None)
        return _accepted(name, waiting.line)

    async def status(self) -> FenceStatus:
        """What the fence guards now."""
        return msgspec.json.decode(await self._command("status"), type=FenceStatus)

    async def start(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        cwd: Path,
        user: RunAs | None,
        output: Path,
        armed_until_ms: int | None,
    ) -> int:
        """Starts the server and returns its pid; its program is executing then, though not yet ready.

        Arguments: `argv` with the program's whole path; `env` is its whole environment; `user` None keeps the fence's
        own; what it prints is appended to `output`; `armed_until_ms` on CLOCK_BOOTTIME, None for a standby.
        Raises: PostgresError when one runs already or the program cannot be executed, FenceUnavailable.
        """
        line = await self._command(
            "start",
            argv=list(argv),
            env=dict(env),
            cwd=str(cwd),
            user=user and {"uid": user.uid, "gid": user.gid, "groups": os.getgrouplist(user.name, user.gid)},
            output=str(output),
            armed_until_ms=armed_until_ms,
        )
        return msgspec.json.decode(line, type=_Answer).pid

    async def adopt(self, pid: int, armed_until_ms: int | None) -> None:
        """Guards a postmaster that another program started. Raises: PostgresError, FenceUnavailable."""
        await self._command("adopt", pid=pid, armed_until_ms=armed_until_ms)

    async def arm(self, until_ms: int) -> int | None:
        """Lets the server run until `until_ms` on CLOCK_BOOTTIME, instead of the deadline before; the past kills now.

        Returns: the timeout of the watchdog that is fed in seconds, None while none is.
        Raises: PostgresError when no server runs or its deadline has passed, FenceUnavailable.
        """
        return msgspec.json.decode(await self._command("arm", until_ms=until_ms), type=_Answer).watchdog_s

    async def start_watchdog(self, device: str, timeout_s: int, slack_ms: int, driver: str) -> int:
        """Begins to feed a device, or gives it another timeout; the timeout that it has now, in seconds.

        It is fed until no server is left, or none has a deadline; with a deadline only as far as a reset comes at most
        `slack_ms` after it. Raises: PostgresError when the device cannot be used, FenceUnavailable.
        """
        line = await self._command("watchdog", device=device, timeout_s=timeout_s, slack_ms=slack_ms, driver=driver)
        return msgspec.json.decode(line, type=_Answer).watchdog_s or 0

    async def stop_watchdog(self, device: str) -> None:
        """Switches the device off, also one that a fence before left running. Raises: as `start_watchdog`."""
        await self._command("watchdog_stop", device=device)

    async def disarm(self) -> None:
        """Lets the server run without a deadline: it is a standby. Raises: as `arm`."""
        await self._command("disarm")

    async def stop(self, mode: StopMode, kill_after_ms: int | None = None) -> None:
        """Asks the server to shut down and returns at once; `Exited` tells when it is gone.

        A stop under way becomes more urgent by this, never less. After `kill_after_ms` what is left is killed.
        Raises: PostgresError when no server runs, FenceUnavailable. Source: PostgreSQL "Shutting Down the Server".
        """
        await self._command("stop", mode=mode, kill_after_ms=kill_after_ms)

    async def quit(self) -> None:
        """Ends the fence. Raises: PostgresError when a server runs, FenceUnavailable."""
        await self._command("quit")


def _accepted(name: str, line: bytes | None) -> bytes:
    if line is None:
        raise FenceUnavailable(f"the connection to the fence broke during {name}")
    envelope = msgspec.json.decode(line, type=_Envelope)
    if not envelope.ok:
        raise PostgresError(f"the fence refused {name}: {envelope.error}")
    return line


async def _open_socket(directory: Path) -> anyio.abc.SocketStream:
    """A connection to DIR/fence.sock, by a name short enough for any directory. Source: unix(7), sun_path."""
    directory_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return await anyio.connect_unix(f"/proc/self/fd/{directory_fd}/fence.sock")
    finally:
        os.close(directory_fd)


def _kill(pid: int) -> None:
    """Raises: FenceUnavailable when this user may not."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    except PermissionError as error:
        raise FenceUnavailable(f"the fence (pid {pid}) stands still, and may not be killed") from error


def _listener_of(stream: anyio.abc.SocketStream) -> int:
    """The process that called listen(2) at the other end; 0 for one of another namespace. Source: unix(7)."""
    raw = stream.extra(anyio.abc.SocketAttribute.raw_socket)  # noqa: S610 - no query, but the socket itself
    credentials = raw.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[0])


def _is_stopped(pid: int) -> bool:
    """True for a process that SIGSTOP or a debugger holds. Source: proc(5), /proc/PID/stat."""
    if pid <= 0:
        return False
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False
    return stat.rpartition(b")")[2].lstrip()[:1] in (b"T", b"t")


async def _launch(directory: Path, python: str) -> bool:
    """True once a new fence listens; False when another one holds the directory. Raises FenceUnavailable."""
    command = [python, "-I", "-S", str(PROGRAM), "--directory", str(directory), "--detach"]
    environment = {name: os.environ[name] for name in ENVIRONMENT_KEPT if name in os.environ}
    try:
        ended = await anyio.run_process(
            command, stdin=DEVNULL, stdout=DEVNULL, stderr=PIPE, check=False, env=environment
        )
    except OSError as error:
        raise FenceUnavailable(f"cannot start the fence with {python}: {error.strerror}") from error
    if ended.returncode not in (0, STATUS_LOCKED):
        last = (ended.stderr.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
        raise FenceUnavailable(f"the fence ended with status {ended.returncode}: {last}")
    return ended.returncode == 0
