"""The agent is restarted in place, on real processes: nobody is refused, and server and lease do not notice."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import psycopg
import pytest

from api.cli.demo import processes
from api.cli.demo.cluster import AGENT_COMMAND, DemoNode
from effects.clock import now_ms
from effects.processes import server_processes
from fsm.effects import ArmFence
from fsm.events import AgentStarted
from tests.cluster.harness import RealCluster, running_cluster
from tests.cluster.witnesses import (
    ask_primary,
    frozen_processes,
    postmaster_of,
    read_key,
    server_connection,
    until,
    watched_cluster,
)

pytestmark = [pytest.mark.anyio, pytest.mark.servers]

MATRIARCH = (sys.executable, "-P", "-c", "from api.cli.main import main; main()")
EVERY_S = 0.005


@pytest.fixture(scope="module")
async def real() -> AsyncIterator[RealCluster]:
    """A cluster under the monitor."""
    async with watched_cluster(dynamic={"ttl": 60, "loop_wait": 2}) as (found, _):
        yield found


class Visitors:
    """Opens a new connection to a node's API every 5 ms, whatever becomes of those before, and keeps each answer."""

    def __init__(self, node: DemoNode, path: str) -> None:
        self._port, self._path = node.plan.api_port, path
        self.answers: Counter[str] = Counter()
        self.longest_ms = 0

    async def run(self) -> None:
        """Visit until cancelled."""
        async with anyio.create_task_group() as visits:
            while True:
                visits.start_soon(self._visit)
                await anyio.sleep(EVERY_S)

    async def _visit(self) -> None:
        began_ms = now_ms()
        answer = "cut off"
        try:
            answer = await self._ask()
        except (OSError, EOFError) as error:
            answer = type(error).__name__
        finally:
            if answer != "cut off":
                self.answers[answer] += 1
                self.longest_ms = max(self.longest_ms, now_ms() - began_ms)

    async def _ask(self) -> str:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        with contextlib.closing(writer):
            writer.write(f"GET {self._path} HTTP/1.1\r\nHost: n\r\nConnection: close\r\n\r\n".encode())
            line = await reader.readline()
            await reader.read()
            return line.split()[1].decode() if line else "closed without an answer"


@asynccontextmanager
async def visited(node: DemoNode, path: str) -> AsyncIterator[Visitors]:
    """The node's API is visited all the time inside; each visit is over when the block is left."""
    visitors = Visitors(node, path)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(visitors.run)
        yield visitors
        tasks.cancel_scope.cancel()


class Session:
    """One long session that writes a row at a time, for as long as the block."""

    def __init__(self, real: RealCluster) -> None:
        self.rows, self.failure = 0, ""
        self._is_over = threading.Event()
        self._connection = server_connection(real, real.primary, autocommit=True)
        self._connection.execute("CREATE TABLE IF NOT EXISTS session (id int)")
        self._thread = threading.Thread(target=self._write)

    def __enter__(self) -> "Session":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()
        self._connection.close()

    def _write(self) -> None:
        try:
            while not self._is_over.wait(0.005):
                self._connection.execute("INSERT INTO session VALUES (%s)", (self.rows,))
                self.rows += 1
        except psycopg.Error as error:
            self.failure = str(error)


async def restart(node: DemoNode, *options: str) -> tuple[int, dict[str, Any], str]:
    """`matriarch restart-agent --json`: its status, its answer, and what it says on stderr."""
    ended = await anyio.run_process(
        [*MATRIARCH, "restart-agent", str(node.settings_path), "--json", *options],
        check=False,
        stdin=subprocess.DEVNULL,
    )
    return ended.returncode, json.loads(ended.stdout or b"{}"), ended.stderr.decode()


def successions(real: RealCluster, node: DemoNode, since_ms: int) -> int:
    """How often an agent of the node took over in place."""
    events = (entry.event for entry in real.entries(node.name, since_ms=since_ms))
    return sum(isinstance(event, AgentStarted) and event.in_place for event in events)


@pytest.mark.parametrize(("role", "restarts"), [("leader", 5), ("replica", 1)])
async def test_agent_restarts_in_place_when_clients_come_all_the_time(
    real: RealCluster, role: str, restarts: int
) -> None:
    """Several times in a row: every visitor gets 200, no session ends, and the leader key was never anybody else's."""
    node = real.leader if role == "leader" else real.replicas[0]
    server, agent, leader = postmaster_of(node), node.agent_pid, real.primary
    key, since_ms = await read_key(real, "leader"), now_ms()
    with Session(real) as session:
        async with visited(node, "/primary" if role == "leader" else "/replica") as visitors:
            await until(lambda: session.rows > 0 and visitors.answers.total() > 100)
            for _ in range(restarts):
                status, answer, said = await restart(node)
                assert (status, said) == (0, "")
                assert answer["restarted"]
            rows = session.rows
            await until(lambda: session.rows > rows + 20)
    print(f"{role}: {visitors.answers}, the longest after {visitors.longest_ms} ms, {session.rows} rows")
    assert set(visitors.answers) == {"200"}
    assert session.failure == ""
    assert (postmaster_of(node), node.agent_pid) == (server, agent)
    assert successions(real, node, since_ms) == restarts
    await real.settled()
    found = await read_key(real, "leader")
    assert key is not None
    assert found is not None
    assert (real.primary, found.create_revision) == (leader, key.create_revision)
    assert ask_primary(real, "SELECT count(*) FROM session") >= session.rows


async def test_agent_goes_on_when_the_new_settings_would_not_start(real: RealCluster) -> None:
    """The trial finds the fault, the command names it, and the agent that runs is none the worse for it."""
    node = real.leader
    text, agent, server = node.settings_path.read_text(), node.agent_pid, postmaster_of(node)
    try:
        node.settings_path.write_text(text.replace("postgresql:", "postgrsql:", 1))
        os.kill(node.agent_pid or 0, signal.SIGUSR2)
        await until(lambda: "the new agent would not start" in node.output_path.read_text())
        assert "postgresql.listen" in node.output_path.read_text()
    finally:
        node.settings_path.write_text(text)
    status, answer, _ = await restart(node)
    assert (status, answer["restarted"]) == (0, True)
    await real.settled()
    assert (real.primary, node.agent_pid, postmaster_of(node)) == (node.name, agent, server)


async def test_agent_is_told_why_when_the_new_settings_are_about_another_node(real: RealCluster) -> None:
    """Another scope would leave the server to nobody: that is no restart in place."""
    node = real.replicas[0]
    text = node.settings_path.read_text()
    try:
        node.settings_path.write_text(text.replace("scope: demo", "scope: other", 1))
        status, answer, said = await restart(node)
        assert (status, said, answer["restarted"]) == (1, "", False)
        assert "scope: changed from demo to other" in answer["refused"]
    finally:
        node.settings_path.write_text(text)
    assert (await restart(node))[0] == 0


async def test_session_goes_on_when_the_leaders_agent_is_killed_and_back_within_the_lease(real: RealCluster) -> None:
    """An agent that dies without a word leaves server, key and clients alone; the next one takes them up."""
    node = real.leader
    server, since_ms = postmaster_of(node), now_ms()
    with Session(real) as session:
        await until(lambda: session.rows > 0)
        os.kill(node.agent_pid or 0, signal.SIGKILL)
        await until(lambda: node.agent_pid is None)
        node.bring_back()
        await until(lambda: bool(real.orders(ArmFence, node.name, since_ms=since_ms)))
        await real.settled()
        rows = session.rows
        await until(lambda: session.rows > rows + 20)
    assert session.failure == ""
    assert (real.primary, postmaster_of(node)) == (node.name, server)


AS_SYSTEMD = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="matriarch.socket")
os.execv(sys.argv[2], sys.argv[2:])
"""


def start_as_systemd(node: DemoNode, listening: socket.socket) -> subprocess.Popen[bytes]:
    """The node's agent with a socket that is not its own. Source: systemd.socket(5)."""
    number = listening.fileno()
    with node.output_path.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-c", AS_SYSTEMD, str(number), *AGENT_COMMAND, str(node.settings_path)],
            pass_fds=[number],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


async def test_nobody_is_refused_when_systemd_made_the_socket() -> None:
    """Not even while there is no agent at all: who comes then is answered by the next one, in place or not."""
    async with running_cluster(size=1, idle={"n1"}, dynamic={"ttl": 60}) as (real, _):
        node = real.cluster.node("n1")
        with socket.create_server(("127.0.0.1", node.plan.api_port)) as listening:
            agent = start_as_systemd(node, listening)
            try:
                await answered(node, "200")
                server = postmaster_of(node)
                agent.kill()
                agent.wait()
                async with visited(node, "/liveness") as visitors:
                    await anyio.wait_all_tasks_blocked()
                    agent = start_as_systemd(node, listening)
                    await until(lambda: visitors.answers["200"] > 0)
                assert set(visitors.answers) <= {"200", "503"}
                await answered(node, "200")
                assert (await restart(node))[::2] == (0, "")
                await answered(node, "200")
                assert (postmaster_of(node), agent.poll()) == (server, None)
            finally:
                agent.terminate()
                await anyio.to_thread.run_sync(agent.wait)


async def answered(node: DemoNode, wanted: str) -> None:
    """Return once a visitor of /primary is answered so."""
    async with visited(node, "/primary") as visitors:
        await until(lambda: visitors.answers[wanted] > 0)


@contextmanager
def process_at_work_in(directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A program that has nothing to do with a server, in its directory."""
    with subprocess.Popen(["sleep", "600"], cwd=directory) as process:
        yield process
        process.kill()


async def test_backend_is_ended_before_anything_starts_when_it_outlived_agent_fence_and_postmaster() -> None:
    """A backend that cannot notice that its postmaster died would write on when it runs again.

    A person's shell that stands in the data directory is none of the server's processes.
    """
    async with running_cluster(size=1, dynamic={"ttl": 5, "loop_wait": 1, "retry_timeout": 1}) as (real, _):
        node = real.leader
        with server_connection(real, node.name) as session, frozen_processes([session.info.backend_pid]):
            backend, since_ms = session.info.backend_pid, now_ms()
            fence, postmaster, agent = processes.fence_of(node.state_dir), postmaster_of(node), node.agent_pid
            assert fence is not None
            assert agent is not None
            for pid in (agent, fence, postmaster):
                processes.send(pid, signal.SIGKILL)
            await until(lambda: server_processes(node.data_dir) == [backend] and node.agent_pid is None)
            with process_at_work_in(node.data_dir) as person:
                node.start()
                await real.settled()
                assert person.poll() is None
        assert not processes.is_alive(backend)
        ordered = [
            (issued.duty, entry.event.at_ms)
            for entry in real.entries(node.name, since_ms=since_ms)
            for issued in entry.effects
            if issued.duty in ("end-leftovers", "start-primary", "start-standby")
        ]
        assert ordered[0][0] == "end-leftovers"
        assert len({duty for duty, _ in ordered}) > 1
