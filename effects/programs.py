"""Runs PostgreSQL's programs (initdb, pg_controldata, pg_rewind, pg_basebackup): one run, one `ProgramEnded`.

PostgreSQL refuses to run as root, so a program may run as another user. It gets a session of its own, and nothing of
that session outlives the call: a deadline, a cancellation or the death of the agent ends it.
"""

import functools
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

import anyio
import msgspec

from effects.errors import ProgramFailed

STDOUT_BYTES_MAX = 4 * 1024 * 1024
STDERR_BYTES_MAX = 64 * 1024
READ_BYTES = 64 * 1024
# A grandchild that left the program's side may hold its pipes open; its output is not waited for longer than this.
DRAIN_TIMEOUT_S = 1.0
# What sh(1) answers for a command that cannot be executed.
STATUS_NOT_EXECUTABLE = 127
# These would silently redirect libpq, or carry secrets of the agent into a foreign process.
HIDDEN_PREFIXES = ("PG", "PATRONI_", "MATRIARCH_", "LC_", "LANG")


class RunAs(msgspec.Struct, frozen=True, kw_only=True):
    """The unprivileged user that runs PostgreSQL when the agent itself is root."""

    name: str
    uid: int
    gid: int
    home: str = "/"


class ProgramEnded(msgspec.Struct, frozen=True, kw_only=True):
    """How a program ended. A `status` below 0 is the number of the signal that killed it, as in `subprocess`."""

    program: str
    status: int
    stdout: str
    stderr: str
    timed_out: bool = False

    def check(self) -> "ProgramEnded":
        """Returns itself when the status is 0.

        Raises: ProgramFailed, which carries the program's name, its status and its stderr.
        """
        if self.status != 0:
            raise ProgramFailed(self.program, self.status, self.stderr)
        return self


class _Tail:
    """Keeps the end of a stream, at most `bytes_max` of it, and passes every whole line on as it comes."""

    def __init__(self, bytes_max: int, on_line: Callable[[str], None] | None = None) -> None:
        self._bytes_max, self._on_line = bytes_max, on_line
        self._kept, self._line = bytearray(), bytearray()

    def add(self, chunk: bytes) -> None:
        self._kept += chunk
        del self._kept[: -self._bytes_max]
        if self._on_line:
            # pg_basebackup and pg_rewind end their progress lines with \r on a terminal, with \n elsewhere.
            *whole, rest = (self._line + chunk).replace(b"\r", b"\n").split(b"\n")
            self._line = rest[-self._bytes_max :]
            for line in filter(None, whole):
                self._on_line(line.decode(errors="replace"))

    def end(self) -> None:
        if self._line and self._on_line:
            self._on_line(self._line.decode(errors="replace"))
            self._line = bytearray()

    @property
    def text(self) -> str:
        return self._kept.decode(errors="replace")


async def run_program(
    argv: Sequence[str | Path],
    *,
    run_as: RunAs | None = None,
    env: Mapping[str, str] | None = None,
    timeout_ms: int,
    on_stderr_line: Callable[[str], None] | None = None,
    stdin: bytes | None = None,
) -> ProgramEnded:
    """Returns how the program ended, whatever its status.

    argv: the program and its arguments; never a secret, since every user of the machine can read them.
    run_as: the user to run as; None is the agent's own. env: added to the cleaned environment (PGPASSFILE, ...).
    timeout_ms: after it the program's whole session is killed and the outcome says `timed_out`.
    on_stderr_line: called with each line of stderr as it comes. stdin: all that the program can read there.
    Returns: status 127 when the program cannot be executed. Raises: nothing of its own; see `ProgramEnded.check`.
    """
    program = Path(argv[0]).name
    stdout, stderr = _Tail(STDOUT_BYTES_MAX), _Tail(STDERR_BYTES_MAX, on_stderr_line)
    try:
        process = _start([str(word) for word in argv], run_as, program_environment(env, run_as), stdin is not None)
    except OSError as error:
        return ProgramEnded(program=program, status=STATUS_NOT_EXECUTABLE, stdout="", stderr=str(error))
    try:
        with anyio.move_on_after(timeout_ms / 1000) as scope:
            await _converse(process, stdin, stdout, stderr)
    finally:
        with anyio.CancelScope(shield=True):
            await _end_session(process)
    stderr.end()
    verdict = f"\nkilled after {timeout_ms} ms\n" if scope.cancelled_caught else ""
    return ProgramEnded(
        program=program,
        status=process.returncode,
        stdout=stdout.text,
        stderr=stderr.text + verdict,
        timed_out=scope.cancelled_caught,
    )


def program_environment(added: Mapping[str, str] | None, run_as: RunAs | None) -> dict[str, str]:
    """The environment for a PostgreSQL program: no PG*, PATRONI_* or MATRIARCH_*, messages in English, then `added`."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(HIDDEN_PREFIXES)}
    clean["LC_ALL"] = "C"
    if run_as:
        clean |= {"HOME": run_as.home, "USER": run_as.name, "LOGNAME": run_as.name}
    return clean | dict(added or {})


def _start(argv: list[str], run_as: RunAs | None, env: dict[str, str], has_stdin: bool) -> subprocess.Popen[bytes]:
    # Not the event loop's own subprocesses: uvloop's know no `user` (0.23 refuses the keyword). Not in a worker thread
    # either: the parent death signal fires when the *thread* that started the process ends (prctl(2)).
    extra_groups: list[int] | None = [] if run_as else None
    return subprocess.Popen(
        [*dying_with_the_parent("KILL"), *argv],
        stdin=subprocess.PIPE if has_stdin else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=env,
        cwd="/",
        start_new_session=True,
        user=run_as.uid if run_as else None,
        group=run_as.gid if run_as else None,
        extra_groups=extra_groups,
        umask=0o077,
        bufsize=0,
    )


@functools.cache
def dying_with_the_parent(signal_name: str) -> tuple[str, ...]:
    """Words to put before a command so that it gets the signal (KILL, TERM) when the *thread* that started it ends.

    A pg_basebackup that outlives its agent would write into a directory that the next agent uses. Empty where there is
    no setpriv that can do it (busybox's cannot). Source: prctl(2) PR_SET_PDEATHSIG, setpriv(1).
    """
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        return ()
    words = (setpriv, "--pdeathsig", signal_name, "--")
    is_able = subprocess.run([*words, "true"], capture_output=True, check=False).returncode == 0
    return words if is_able else ()


async def _converse(process: subprocess.Popen[bytes], stdin: bytes | None, stdout: _Tail, stderr: _Tail) -> None:
    """Feeds and reads the pipes until the program has ended."""
    assert process.stdout is not None
    assert process.stderr is not None
    async with anyio.create_task_group() as readers:
        readers.start_soon(_drain, process.stdout.fileno(), stdout)
        readers.start_soon(_drain, process.stderr.fileno(), stderr)
        if process.stdin is not None:
            readers.start_soon(_feed, process.stdin, stdin or b"")
        await _wait_for_exit(process.pid)
        readers.cancel_scope.deadline = anyio.current_time() + DRAIN_TIMEOUT_S


async def _wait_for_exit(pid: int) -> None:
    """Returns when the process is a zombie. Source: pidfd_open(2)."""
    pidfd = os.pidfd_open(pid)
    try:
        await anyio.wait_readable(pidfd)
    finally:
        os.close(pidfd)


async def _drain(pipe: int, into: _Tail) -> None:
    os.set_blocking(pipe, False)
    while True:
        await anyio.wait_readable(pipe)
        chunk = os.read(pipe, READ_BYTES)
        if not chunk:
            return
        into.add(chunk)


async def _feed(pipe: IO[bytes], text: bytes) -> None:
    os.set_blocking(pipe.fileno(), False)
    try:
        while text:
            await anyio.wait_writable(pipe.fileno())
            text = text[os.write(pipe.fileno(), text) :]
    except BrokenPipeError:
        pass  # the program ended, or does not read; its status tells
    finally:
        pipe.close()


async def _end_session(process: subprocess.Popen[bytes]) -> None:
    # The leader is not reaped yet, so its number, and the group's, cannot be somebody else's.
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except PermissionError:
        process.kill()
    await _wait_for_exit(process.pid)
    with process:  # reaps it and closes its pipes
        pass
