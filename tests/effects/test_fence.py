"""The fence with real processes: what it starts, what it kills, and that it outlives whatever should not end it.

Milliseconds are printed (`pytest -s`), never asserted: only that things happen, within generous deadlines.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import anyio
import anyio.abc
import psycopg
import pytest

from effects.clock import now_ms
from effects.errors import FenceUnavailable, PostgresError
from effects.fence_link import PROGRAM, Exited, FenceLink, FenceNotice, Fired, Lost, Spawned
from effects.programs import RunAs

pytestmark = pytest.mark.anyio

LIMIT_S = 20
# sh(1) lets what it starts in the background ignore SIGINT and SIGQUIT; setsid makes them leave its process group.
STUBBORN_CHILDREN = "setsid sleep 1000 & setsid sleep 1000 & wait"
BUSY_LOOP = "do $$ begin loop end loop; end $$"  # never looks whether its postmaster is alive
BUSY_TICKS = 10  # a backend that merely logged in has not used so many
PSS_BYTES_MAX = 16 * 1024 * 1024


class Guard(NamedTuple):
    """A link to a fence and its notices."""

    link: FenceLink
    notices: AsyncIterator[FenceNotice]
    directory: Path

    async def start(self, *argv: str, armed_for_ms: int | None = None) -> int:
        """The pid of a program that runs as the server, its `Spawned` taken."""
        until_ms = None if armed_for_ms is None else now_ms() + armed_for_ms
        environment = {"PATH": os.environ["PATH"]}
        pid = await self.link.start(argv, environment, Path("/"), None, self.directory / "output", until_ms)
        assert isinstance(await self.next(), Spawned)
        return pid

    async def next(self) -> FenceNotice:
        """The next notice."""
        with anyio.fail_after(LIMIT_S):
            return await anext(self.notices)

    async def exited(self) -> Exited:
        """The next notice, which is the server's exit."""
        notice = await self.next()
        assert isinstance(notice, Exited), notice
        return notice

    async def fired(self) -> Fired:
        """The next notice, which is a deadline's."""
        notice = await self.next()
        assert isinstance(notice, Fired), notice
        return notice


@contextlib.asynccontextmanager
async def guarding(directory: Path) -> AsyncIterator[Guard]:
    """A guard over `directory`, its link closed at the end; the fence goes on."""
    link = await FenceLink.connect_or_start(directory)
    async with anyio.create_task_group() as tasks, link:
        await tasks.start(link.run)
        async with contextlib.aclosing(link.notices()) as notices:  # type: ignore[type-var]
            yield Guard(link, notices, directory)


async def until(is_true: Callable[[], bool]) -> None:
    """Returns once the condition holds."""
    with anyio.fail_after(LIMIT_S):
        while not is_true():  # noqa: ASYNC110 - other processes set no anyio.Event
            await anyio.sleep(0.005)


def state_of(pid: int) -> str:
    """The state of a process as one letter, of proc(5); empty once it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def cpu_ticks_of(pid: int) -> int:
    """The processor time that a process has had for its own work, in clock ticks."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11])


def is_gone(pid: int) -> bool:
    """True when the process is dead, reaped or not."""
    return state_of(pid) in ("", "Z", "X")


def children_of(pid: int) -> list[int]:
    """The pids of the children of a process."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def pss_bytes_of(pid: int) -> int:
    """The memory of a process, its share of what it shares included."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in rollup if line.startswith("Pss:"))


def write_for_ever(connection: socket.socket, block: bytes) -> None:
    """Writes without reading until the fence has had enough, which raises."""
    while True:
        connection.sendall(block)


def connect(directory: Path) -> socket.socket:
    """A plain connection to the fence, with a time limit for each call."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(LIMIT_S)
    directory_fd = os.open(directory, os.O_RDONLY)
    try:
        connection.connect(f"/proc/self/fd/{directory_fd}/fence.sock")
    except OSError:
        connection.close()
        raise
    finally:
        os.close(directory_fd)
    return connection


def lines_of(connection: socket.socket, count: int) -> list[dict[str, object]]:
    """The next lines that the fence writes."""
    with connection.makefile("rb") as stream:
        return [json.loads(stream.readline()) for _ in range(count)]


def report(what: str, since_ms: int, to_ms: int) -> None:
    """Prints one measurement."""
    print(f"\n  measured: {what}: {to_ms - since_ms} ms", flush=True)


def end_fence(directory: Path) -> None:
    """Kills the fence of a directory, should one live; its server follows by PR_SET_PDEATHSIG."""
    with contextlib.suppress(OSError), connect(directory) as connection:
        connection.settimeout(1)
        os.kill(int(str(lines_of(connection, 1)[0]["fence_pid"])), signal.SIGKILL)


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """A directory for a fence, whose name is longer than a socket's may be."""
    path = tmp_path / ("long" * 30)
    path.mkdir()
    yield path
    end_fence(path)


# ---- start, exit, stop ---------------------------------------------------------------------------------------------


async def test_fence_announces_status_when_server_exits(directory: Path) -> None:
    """The exit status of the server is told, and kept for whoever asks later."""
    async with guarding(directory) as guard:
        pid = await guard.start("/bin/sh", "-c", "exit 7")
        exited = await guard.exited()
        assert (exited.pid, exited.status, exited.signal) == (pid, 7, None)
        status = await guard.link.status()
        assert status.pid is None
        assert status.last_exit is not None
        assert status.last_exit.status == 7


async def test_fence_announces_signal_when_server_is_killed(directory: Path) -> None:
    """A server that is killed is told of at once, with the signal."""
    async with guarding(directory) as guard:
        pid = await guard.start("/bin/sleep", "1000")
        killed_at_ms = now_ms()
        os.kill(pid, signal.SIGKILL)
        exited = await guard.exited()
        report("kill -9 of a lone process to the agent's notice", killed_at_ms, now_ms())
        assert exited.signal == signal.SIGKILL


async def test_fence_kills_leftovers_before_it_announces_the_exit(directory: Path) -> None:
    """Orphans in sessions of their own are found and killed before anybody hears that the server is gone."""
    async with guarding(directory) as guard:
        pid = await guard.start("/bin/sh", "-c", STUBBORN_CHILDREN)
        await until(lambda: len(children_of(pid)) == 2)
        orphans = children_of(pid)
        os.kill(pid, signal.SIGKILL)
        exited = await guard.exited()
        assert exited.leftovers_killed == 2
        assert all(is_gone(orphan) for orphan in orphans)


async def test_fence_gives_the_child_a_clean_start(directory: Path) -> None:
    """The server begins in a session of its own with default signals, umask 077, its environment and its streams."""
    script = 'cat; umask; echo "$WORD"; grep -E "^Sig(Blk|Ign)" /proc/self/status; ps -o sid= -p $$ >&2; exit'
    async with guarding(directory) as guard:
        output = directory / "output"
        output.write_text("before\n")
        pid = await guard.link.start(
            ["/bin/sh", "-c", script], {"WORD": "matriarch", "PATH": os.environ["PATH"]}, Path("/"), None, output, None
        )
        assert isinstance(await guard.next(), Spawned)
        await guard.exited()
        before, umask, word, *signals, session = output.read_text().splitlines()
        assert (before, umask, word, int(session)) == ("before", "0077", "matriarch", pid)
        # 32 and 33 are the C library's own; whoever is started by posix_spawn (make does) inherits them as ignored.
        assert [int(line.split()[1], 16) & ~(0b11 << 31) for line in signals] == [0, 0]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change the user")
async def test_fence_starts_server_as_unprivileged_user_when_given(directory: Path, run_as: RunAs) -> None:
    """The server has the user's ids; the output file, which that user could not open, belongs to the fence's user."""
    async with guarding(directory) as guard:
        output = directory / "output"
        await guard.link.start(["/bin/sh", "-c", "/usr/bin/id -u; /usr/bin/id -g"], {}, Path("/"), run_as, output, None)
        await guard.next()
        await guard.exited()
        assert output.read_text().split() == [str(run_as.uid), str(run_as.gid)]
        assert output.stat().st_uid == 0


@pytest.mark.parametrize(("program", "cwd"), [("/no/such/program", "/"), ("/bin/sleep", "/no/such/directory")])
async def test_fence_reports_why_when_program_cannot_be_executed(directory: Path, program: str, cwd: str) -> None:
    """A failure between fork and exec is the answer to the command, and another start is possible at once."""
    async with guarding(directory) as guard:
        with pytest.raises(PostgresError, match=r"/no/such/.*No such file"):
            await guard.link.start([program, "1"], {}, Path(cwd), None, directory / "output", None)
        await guard.start("/bin/sleep", "1000")


async def test_fence_refuses_start_when_a_server_runs(directory: Path) -> None:
    """One fence guards one server."""
    async with guarding(directory) as guard:
        pid = await guard.start("/bin/sleep", "1000")
        with pytest.raises(PostgresError, match=f"server {pid} runs"):
            await guard.start("/bin/sleep", "1000")
        with pytest.raises(PostgresError, match="runs"):
            await guard.link.quit()


async def test_fence_refuses_what_makes_no_sense_when_no_server_runs(directory: Path) -> None:
    """There is nothing to arm, disarm or stop without a server, and no start with a deadline in the past."""
    async with guarding(directory) as guard:
        for command in (guard.link.arm(now_ms() + 60_000), guard.link.disarm(), guard.link.stop("fast")):
            with pytest.raises(PostgresError, match="no server runs"):
                await command
        with pytest.raises(PostgresError, match="passed"):
            await guard.start("/bin/sleep", "1000", armed_for_ms=-1)


async def test_stop_kills_everything_when_server_outlives_kill_after(directory: Path) -> None:
    """A server deaf to a polite stop ends at `kill_after_ms`, with all its processes."""
    async with guarding(directory) as guard:
        pid = await guard.start("/bin/sh", "-c", "trap '' TERM INT QUIT; setsid sleep 1000 & while :; do wait; done")
        await until(lambda: len(children_of(pid)) == 1)
        await guard.link.stop("smart", 50)
        exited = await guard.exited()
        assert exited.signal == signal.SIGKILL
        assert exited.leftovers_killed == 1


async def test_stop_becomes_more_urgent_never_less(directory: Path) -> None:
    """After a fast stop a smart one changes nothing, an immediate one does."""
    async with guarding(directory) as guard:
        await guard.start("/bin/sh", "-c", "trap : TERM INT; echo ready; while :; do sleep 0.01; done")
        await until(lambda: (directory / "output").read_text() == "ready\n")
        await guard.link.stop("fast")
        await guard.link.stop("smart")
        assert (await guard.link.status()).stop_mode == "fast"
        await guard.link.stop("immediate")
        assert (await guard.exited()).signal == signal.SIGQUIT


# ---- the deadline --------------------------------------------------------------------------------------------------


async def test_fence_kills_server_when_deadline_passes(directory: Path) -> None:
    """Nothing is left when the deadline has fired, children deaf to SIGQUIT included, and it is not fired early."""
    async with guarding(directory) as guard:
        pid = await guard.start("/bin/sh", "-c", STUBBORN_CHILDREN, armed_for_ms=300)
        await until(lambda: len(children_of(pid)) == 2)
        processes = [pid, *children_of(pid)]
        fired = await guard.fired()
        assert fired.armed_until_ms is not None
        assert fired.at_ms >= fired.armed_until_ms
        assert all(is_gone(process) for process in processes)
        assert (fired.processes, fired.killed >= 1) == (len(processes), True)
        assert (await guard.exited()).pid == pid
        report("deadline to nothing left (lone processes)", fired.armed_until_ms, fired.gone_at_ms)


async def test_fence_kills_server_when_deadline_passes_and_it_is_stopped(directory: Path) -> None:
    """A server frozen by SIGSTOP cannot sit out its deadline."""
    async with guarding(directory) as guard:
        pid = await guard.start("/bin/sleep", "1000", armed_for_ms=200)
        os.kill(pid, signal.SIGSTOP)
        await guard.fired()
        assert is_gone(pid)
        assert (await guard.exited()).signal == signal.SIGKILL


async def test_arm_replaces_the_deadline(directory: Path) -> None:
    """A server lives past a deadline that was renewed or taken away, and dies at once by one in the past."""
    async with guarding(directory) as guard:
        pid = await guard.start("/bin/sleep", "1000", armed_for_ms=200)
        first_ms = now_ms() + 200
        await guard.link.arm(now_ms() + 60_000)
        await until(lambda: now_ms() > first_ms + 50)
        await guard.link.arm(now_ms() + 100)
        await guard.link.disarm()
        second_ms = now_ms() + 100
        await until(lambda: now_ms() > second_ms + 50)
        assert not is_gone(pid)
        assert (await guard.link.status()).armed_until_ms is None
        await guard.link.arm(now_ms() - 1)
        await guard.fired()
        assert is_gone(pid)


async def test_deadline_fires_when_the_agent_is_gone(directory: Path) -> None:
    """Without a connection the server lives to its deadline, not longer, and a new agent finds out."""
    async with guarding(directory) as guard:
        pid = await guard.start("/bin/sleep", "1000", armed_for_ms=400)
        armed_until_ms = (await guard.link.status()).armed_until_ms
    assert not is_gone(pid)
    await until(lambda: is_gone(pid))
    async with guarding(directory) as guard:
        status = await guard.link.status()
        assert status.fired is not None
        assert status.fired.armed_until_ms == armed_until_ms
        assert status.last_exit is not None
        assert status.last_exit.pid == pid


async def test_new_agent_takes_over_when_the_former_is_gone(directory: Path) -> None:
    """A standby's server and an armed one's deadline are found as they were; its exit is told to the new agent."""
    async with guarding(directory) as guard:
        pid = await guard.start("/bin/sleep", "1000", armed_for_ms=60_000)
        before = await guard.link.status()
    async with guarding(directory) as guard:
        after = await guard.link.status()
        assert (after.fence_pid, after.pid, after.armed_until_ms) == (before.fence_pid, pid, before.armed_until_ms)
        await guard.link.stop("fast")
        assert (await guard.exited()).signal == signal.SIGINT


async def test_fence_kills_without_grace_when_it_was_frozen_past_the_deadline(directory: Path) -> None:
    """A fence that was stopped looks at the clock first: SIGKILL at once, whatever waits in its socket."""
    async with guarding(directory) as guard:
        pid = await guard.start("/bin/sleep", "1000", armed_for_ms=200)
        status = await guard.link.status()
        os.kill(status.fence_pid, signal.SIGSTOP)
        await until(lambda: state_of(status.fence_pid) == "T")
        await until(lambda: now_ms() > (status.armed_until_ms or 0) + 50)
        assert not is_gone(pid)
        thawed_at_ms = now_ms()
        os.kill(status.fence_pid, signal.SIGCONT)
        fired = await guard.fired()
        report("fence thawed past the deadline to nothing left", thawed_at_ms, fired.gone_at_ms)
        assert (await guard.exited()).signal == signal.SIGKILL


async def test_link_raises_when_the_fence_is_frozen(directory: Path) -> None:
    """A frozen fence is a timeout for a command, and for a new connection that does not wait."""
    link = await FenceLink.connect_or_start(directory, timeout_ms=200)
    async with anyio.create_task_group() as tasks, link:
        await tasks.start(link.run)
        fence_pid = (await link.status()).fence_pid
        os.kill(fence_pid, signal.SIGSTOP)
        try:
            with pytest.raises(FenceUnavailable, match="did not answer status"):
                await link.status()
            with pytest.raises(FenceUnavailable, match="does not answer"):
                await FenceLink.connect_or_start(directory, connect_timeout_ms=200)
        finally:
            os.kill(fence_pid, signal.SIGCONT)
        await link.status()


async def test_frozen_fence_and_its_server_end_when_a_new_agent_comes(directory: Path) -> None:
    """Its deadline would be kept by nobody: neither by it nor by an agent that cannot speak to it."""
    async with guarding(directory) as guard:
        server_pid = await guard.start("/bin/sleep", "1000", armed_for_ms=60_000)
        fence_pid = (await guard.link.status()).fence_pid
        os.kill(fence_pid, signal.SIGSTOP)
        async with await FenceLink.connect_or_start(directory) as link, anyio.create_task_group() as tasks:
            await tasks.start(link.run)
            assert (await link.status()).fence_pid != fence_pid
            await until(lambda: is_gone(server_pid))
            await link.quit()
            tasks.cancel_scope.cancel()


# ---- the fence's own life ------------------------------------------------------------------------------------------


async def test_server_ends_when_the_fence_is_killed(directory: Path) -> None:
    """The server does not survive its guard, and the link says that the guard is lost."""
    async with guarding(directory) as guard:
        pid = await guard.start("/bin/sleep", "1000")
        os.kill((await guard.link.status()).fence_pid, signal.SIGKILL)
        assert isinstance(await guard.next(), Lost)
        await until(lambda: is_gone(pid))
        with pytest.raises(FenceUnavailable):
            await guard.link.status()
    async with guarding(directory) as guard:
        assert (await guard.link.status()).pid is None


async def test_fence_ignores_hangup_and_interrupt(directory: Path) -> None:
    """Signals meant for a terminal's programs do not end the guard."""
    async with guarding(directory) as guard:
        await guard.start("/bin/sleep", "1000")
        before = await guard.link.status()
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGPIPE):
            os.kill(before.fence_pid, number)
        after = await guard.link.status()
        assert (after.fence_pid, after.pid) == (before.fence_pid, before.pid)


async def test_fence_stops_server_and_leaves_when_terminated(directory: Path) -> None:
    """SIGTERM to the fence is a fast stop, and the fence goes when the server is gone."""
    async with guarding(directory) as guard:
        await guard.start("/bin/sleep", "1000")
        os.kill((await guard.link.status()).fence_pid, signal.SIGTERM)
        assert (await guard.exited()).signal == signal.SIGINT
        assert isinstance(await guard.next(), Lost)
        await until(lambda: not (directory / "fence.sock").exists())


async def test_fence_leaves_when_idle(directory: Path) -> None:
    """With no server and no client there is nothing to guard: the fence ends and takes its socket along."""
    async with guarding(directory) as guard:
        fence_pid = (await guard.link.status()).fence_pid
        assert (directory / "fence.sock").stat().st_mode & 0o777 == 0o600
    await until(lambda: is_gone(fence_pid))
    assert not (directory / "fence.sock").exists()


async def test_fence_leaves_when_asked_to(directory: Path) -> None:
    """`quit` ends a fence that guards nothing."""
    async with guarding(directory) as guard:
        await guard.link.quit()
        assert isinstance(await guard.next(), Lost)


async def test_second_fence_exits_when_one_guards_the_directory(directory: Path) -> None:
    """The directory's lock admits one fence; another says so in one line, with status 3."""
    async with guarding(directory) as guard:
        command = [sys.executable, "-I", "-S", str(PROGRAM), "--directory", str(directory)]
        ended = await anyio.run_process(command, check=False)
        assert ended.returncode == 3
        assert ended.stderr.decode().splitlines() == ["another fence guards this directory"]
        await guard.link.status()


async def test_agents_share_one_fence_when_they_start_it_together(directory: Path) -> None:
    """Starting at the same time ends with one fence that serves all, each told of what happens."""
    links: list[FenceLink] = []

    async def connect_one() -> None:
        links.append(await FenceLink.connect_or_start(directory))

    async with anyio.create_task_group() as connecting:
        for _ in range(4):
            connecting.start_soon(connect_one)
    async with anyio.create_task_group() as tasks, contextlib.AsyncExitStack() as stack:
        for link in links:
            await stack.enter_async_context(link)
            await tasks.start(link.run)
        assert len({(await link.status()).fence_pid for link in links}) == 1


async def test_fence_log_starts_over_when_it_is_full(directory: Path) -> None:
    """The log of a fence that lives for years stays within its bound."""
    log = directory / "fence.log"
    log.write_bytes(b"x" * 256 * 1024)
    async with guarding(directory) as guard:
        await guard.link.status()
        assert log.stat().st_size < 1024
        assert "started" in log.read_text()


async def test_fence_has_what_the_kernel_grants_when_looked_at(directory: Path) -> None:
    """A timer on the clock that counts suspend, and of lock, priority and protection what the status says."""
    async with guarding(directory) as guard:
        pid = await guard.start("/bin/sleep", "1000", armed_for_ms=60_000)
        status = await guard.link.status()
        proc = Path("/proc") / str(status.fence_pid)
        timers = [
            (proc / "fdinfo" / fd.name).read_text()
            for fd in (proc / "fd").iterdir()
            if str(fd.readlink()) == "anon_inode:[timerfd]"
        ]
        assert [f"clockid: {time.CLOCK_BOOTTIME}\n" in timer for timer in timers] == [True]
        locked_kb = int((proc / "status").read_text().partition("VmLck:")[2].split()[0])
        assert status.is_memory_locked == (locked_kb > 0)
        assert status.has_priority == (os.getpriority(os.PRIO_PROCESS, status.fence_pid) < 0)
        assert status.is_oom_protected == ((proc / "oom_score_adj").read_text() == "-1000\n")
        assert os.getpriority(os.PRIO_PROCESS, pid) == os.getpriority(os.PRIO_PROCESS, 0)
        assert ("priority" in status.lacks) == (not status.has_priority)


async def test_fence_stays_small(directory: Path) -> None:
    """What it costs is printed, and bounded far below the agent's own size."""
    async with guarding(directory) as guard:
        status = await guard.link.status()
        pss_bytes = pss_bytes_of(status.fence_pid)
        print(f"\n  measured: fence PSS {pss_bytes / 1e6:.1f} MB, RSS {status.rss_bytes / 1e6:.1f} MB")
        assert pss_bytes < PSS_BYTES_MAX


# ---- clients that misbehave ----------------------------------------------------------------------------------------


GARBAGE = [
    b"\xff\xfe\x00",
    b"{",
    b"[" * 3000,
    b"9" * 3000,
    b"null",
    b'{"id": 1}',
    b'{"id": 1, "command": "sing"}',
    b'{"id": [], "command": {"a": 1}}',
    b'{"id": 1, "command": "start"}',
    b'{"id": 1, "command": "start", "argv": [1], "env": [], "cwd": 3, "output": null}',
    b'{"id": 1, "command": "start", "argv": ["/bin/true"], "env": {"A": 1}, "cwd": "/", "output": "/dev/null"}',
    b'{"id": 1, "command": "start", "argv": ["/bin/a\\u0000b"], "env": {}, "cwd": "/", "output": "/dev/null"}',
    b'{"id": 1, "command": "start", "argv": ["/\\ud800"], "env": {}, "cwd": "/", "output": "/dev/null"}',
    b'{"id": 1, "command": "start", "argv": ["/bin/true"], "env": {}, "cwd": "/", "output": "/dev/null", "user": 0}',
    b'{"id": 1, "command": "adopt", "pid": 1}',
    b'{"id": 1, "command": "adopt", "pid": 99999999999}',
    b'{"id": 1, "command": "arm", "until_ms": -5}',
    b'{"id": 1, "command": "stop", "mode": "hard"}',
    b'{"id": 1, "command": "watchdog", "device": 3}',
    b'{"id": 1, "command": "watchdog", "device": "/", "timeout_s": 5, "slack_ms": 0, "driver": "default"}',
    b'{"id": 1, "command": "watchdog_stop", "device": "/nowhere/at/all"}',
]


@pytest.mark.parametrize("line", GARBAGE, ids=[str(number) for number in range(len(GARBAGE))])
async def test_fence_answers_with_one_error_when_a_line_is_garbage(directory: Path, line: bytes) -> None:
    """Whatever a client writes costs it one refusal and the fence nothing."""
    async with guarding(directory) as guard:
        with connect(directory) as connection:
            connection.sendall(line + b'\n{"id": 99, "command": "status"}\n')
            _hello, *replies = lines_of(connection, 3)  # a start is refused only after its child's exec has failed
            refusal, status = sorted(replies, key=lambda reply: reply["reply"] == 99)
            assert refusal["ok"] is False
            assert refusal["error"]
            assert status["ok"] is True
        await guard.link.status()


async def test_fence_drops_client_when_it_does_not_read(directory: Path) -> None:
    """A client whose answers pile up is cut off; the others do not notice."""
    async with guarding(directory) as guard:
        with connect(directory) as connection, pytest.raises((BrokenPipeError, ConnectionResetError)):
            write_for_ever(connection, b'{"id": 1, "command": "status"}\n' * 100)
        await guard.link.status()


async def test_fence_drops_client_when_a_line_has_no_end(directory: Path) -> None:
    """A line longer than the fence keeps is refused."""
    async with guarding(directory) as guard:
        with connect(directory) as connection, pytest.raises((BrokenPipeError, ConnectionResetError)):
            write_for_ever(connection, b"x" * 65536)
        await guard.link.status()


# ---- real PostgreSQL -----------------------------------------------------------------------------------------------


class Postgres(NamedTuple):
    """A new cluster, and how to start a server on it."""

    bin_dir: Path
    cluster: Path
    run_as: RunAs | None

    @property
    def argv(self) -> list[str]:
        """The command of the postmaster: a Unix socket in the cluster's own directory, no port."""
        settings = {"listen_addresses": "", "unix_socket_directories": self.cluster, "fsync": "off"}
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        return [str(self.bin_dir / "postgres"), "-D", str(self.cluster), *options]

    async def start(self, guard: Guard, armed_for_ms: int | None = None) -> int:
        """The pid of a postmaster that the fence started and that accepts connections."""
        until_ms = None if armed_for_ms is None else now_ms() + armed_for_ms
        output = guard.directory / "output"
        pid = await guard.link.start(self.argv, {}, self.cluster, self.run_as, output, until_ms)
        assert isinstance(await guard.next(), Spawned)
        await (await self.connect()).close()
        return pid

    def launch(self) -> subprocess.Popen[bytes]:
        """A postmaster that the fence did not start."""
        user = {"user": self.run_as.uid, "group": self.run_as.gid, "extra_groups": []} if self.run_as else {}
        quiet = subprocess.DEVNULL
        return subprocess.Popen(self.argv, cwd="/", stdout=quiet, stderr=quiet, **user)  # type: ignore[call-overload,no-any-return]

    async def connect(self) -> psycopg.AsyncConnection[tuple[object, ...]]:
        """A connection, as soon as the server accepts one."""
        with anyio.fail_after(LIMIT_S):
            while True:
                try:
                    return await psycopg.AsyncConnection.connect(
                        f"host={self.cluster} user=postgres dbname=postgres", autocommit=True
                    )
                except psycopg.OperationalError:
                    await anyio.sleep(0.01)

    async def keep_busy(self, tasks: anyio.abc.TaskGroup) -> None:
        """Returns once one more backend is busy, and stays so until it is gone."""
        connection = await self.connect()
        backend_pid = connection.info.backend_pid

        async def loop() -> None:
            with contextlib.suppress(psycopg.OperationalError):
                await connection.execute(BUSY_LOOP)
            await connection.close()

        tasks.start_soon(loop)
        await until(lambda: cpu_ticks_of(backend_pid) >= BUSY_TICKS)


def server_pids(cluster: Path) -> list[int]:
    """The living processes whose working directory is the cluster's: PostgreSQL's all are."""
    found = []
    for link in Path("/proc").glob("[0-9]*/cwd"):
        with contextlib.suppress(OSError):
            if link.readlink() == cluster and not is_gone(int(link.parent.name)):
                found.append(int(link.parent.name))
    return found


@pytest.fixture(scope="module")
def cluster_template(open_directory: Path, postgres_bin: Path, run_as: RunAs | None) -> Path:
    """A cluster that was initialized once; each test copies it."""
    template = open_directory / "fence-template"
    template.mkdir(mode=0o700)
    if run_as:
        os.chown(template, run_as.uid, run_as.gid)
    command = [str(postgres_bin / "initdb"), "-D", str(template), "-U", "postgres", "-A", "trust", "--no-sync"]
    user = {"user": run_as.uid, "group": run_as.gid, "extra_groups": []} if run_as else {}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd="/", **user)  # type: ignore[call-overload]
    return template


@pytest.fixture
def postgres(
    cluster_template: Path, node_directory: Callable[..., Path], postgres_bin: Path, run_as: RunAs | None
) -> Iterator[Postgres]:
    """A cluster of this test's own; nothing of its server outlives the test."""
    cluster = node_directory("cluster")
    shutil.copytree(cluster_template, cluster, dirs_exist_ok=True)
    if run_as:
        for path in (cluster, *cluster.rglob("*")):
            os.chown(path, run_as.uid, run_as.gid)
    yield Postgres(postgres_bin, cluster, run_as)
    for pid in server_pids(cluster):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.servers
async def test_postgres_is_gone_and_may_start_again_when_its_postmaster_is_killed(
    directory: Path, postgres: Postgres
) -> None:
    """No backend outlives a postmaster killed -9, a busy one neither, so that a new one starts at once."""
    async with guarding(directory) as guard, anyio.create_task_group() as tasks:
        pid = await postgres.start(guard)
        await postgres.keep_busy(tasks)
        backends = server_pids(postgres.cluster)
        killed_at_ms = now_ms()
        os.kill(pid, signal.SIGKILL)
        exited = await guard.exited()
        heard_at_ms = now_ms()
        assert server_pids(postgres.cluster) == []
        report(f"kill -9 of a postmaster with {len(backends) - 1} children to its notice", killed_at_ms, heard_at_ms)
        assert exited.signal == signal.SIGKILL
        assert exited.leftovers_killed >= 1
        await postgres.start(guard)


@pytest.mark.servers
async def test_postgres_exits_with_status_0_when_stopped_fast(directory: Path, postgres: Postgres) -> None:
    """A fast stop through the fence is PostgreSQL's own: it writes its checkpoint and leaves nothing behind."""
    async with guarding(directory) as guard:
        await postgres.start(guard)
        stopped_at_ms = now_ms()
        await guard.link.stop("fast", 10_000)
        exited = await guard.exited()
        report("fast stop of an idle server", stopped_at_ms, exited.gone_at_ms)
        assert (exited.status, exited.signal, exited.leftovers_killed) == (0, None, 0)


@pytest.mark.servers
async def test_postgres_is_gone_when_its_deadline_passes(directory: Path, postgres: Postgres) -> None:
    """At the deadline every process of a busy server ends, and crash recovery brings it back."""
    async with guarding(directory) as guard, anyio.create_task_group() as tasks:
        await postgres.start(guard, armed_for_ms=60_000)
        for _ in range(3):
            await postgres.keep_busy(tasks)
        await guard.link.arm(now_ms() + 100)
        fired = await guard.fired()
        assert server_pids(postgres.cluster) == []
        await guard.exited()
        report("deadline to nothing left of a busy server", fired.armed_until_ms or 0, fired.gone_at_ms)
        await postgres.start(guard)


@pytest.mark.servers
async def test_postgres_is_gone_when_its_deadline_passes_and_it_is_stopped(directory: Path, postgres: Postgres) -> None:
    """A server of which every process is frozen does not outlive its deadline."""
    async with guarding(directory) as guard:
        await postgres.start(guard, armed_for_ms=60_000)
        for pid in server_pids(postgres.cluster):
            os.kill(pid, signal.SIGSTOP)
        await guard.link.arm(now_ms() + 100)
        fired = await guard.fired()
        assert server_pids(postgres.cluster) == []
        report("deadline to nothing left of a frozen server", fired.armed_until_ms or 0, fired.gone_at_ms)


@pytest.mark.servers
async def test_postgres_is_gone_when_the_fence_is_killed(directory: Path, postgres: Postgres) -> None:
    """PostgreSQL does not survive its guard: PR_SET_PDEATHSIG holds after the change of user."""
    async with guarding(directory) as guard:
        await postgres.start(guard)
        killed_at_ms = now_ms()
        os.kill((await guard.link.status()).fence_pid, signal.SIGKILL)
        await until(lambda: server_pids(postgres.cluster) == [])
        report("fence killed -9 to nothing left", killed_at_ms, now_ms())


@pytest.mark.servers
async def test_adopted_postgres_is_guarded_like_an_own_one(directory: Path, postgres: Postgres) -> None:
    """A postmaster with another parent is seen to exit, and what it leaves is killed though it is not our child."""
    foreign = postgres.launch()
    async with guarding(directory) as guard, anyio.create_task_group() as tasks:
        await postgres.keep_busy(tasks)
        await guard.link.adopt(foreign.pid, now_ms() + 60_000)
        status = await guard.link.status()
        assert (status.pid, status.is_adopted) == (foreign.pid, True)
        foreign.kill()
        exited = await guard.exited()
        assert (exited.pid, exited.status, exited.signal) == (foreign.pid, None, None)
        assert exited.leftovers_killed >= 1
        assert server_pids(postgres.cluster) == []
    foreign.wait()


@pytest.mark.servers
async def test_adopted_postgres_is_gone_when_its_deadline_passes(directory: Path, postgres: Postgres) -> None:
    """The deadline of an adopted server kills all of it."""
    foreign = postgres.launch()
    async with guarding(directory) as guard, anyio.create_task_group() as tasks:
        await postgres.keep_busy(tasks)
        await guard.link.adopt(foreign.pid, now_ms() + 100)
        await guard.fired()
        assert server_pids(postgres.cluster) == []
    foreign.wait()
