"""etcd and three agents, each a process of its own: started, killed, frozen, brought back, and all of it ended."""

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Collection
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from api.cli.demo import processes
from api.cli.demo.plan import NodePlan, settings_text
from api.cli.demo.workspace import Workspace
from effects.clock import now_ms
from effects.embedded import EmbeddedEtcdCluster
from effects.errors import PostgresError, ProgramFailed
from effects.files import write_atomically
from effects.programs import dying_with_the_parent

# The console script may lie in a directory that is not on PATH; the interpreter that runs this is always known.
AGENT_COMMAND = (sys.executable, "-P", "-c", "from api.cli.main import main; main()", "run")
# A foreign setting in the environment would apply to all three nodes at once.
HIDDEN_PREFIXES = ("PATRONI_", "MATRIARCH_", "PATRONICTL_", "PG", "ETCD")
AGENTS_STOP_TIMEOUT_S = 20.0
FENCE_STOP_TIMEOUT_S = 5.0
KILL_TIMEOUT_S = 5.0
POLL_S = 0.05
SHOWN_LINES = 3


class DemoNode:
    """One node's processes and files."""

    def __init__(self, plan: NodePlan, root: Path) -> None:
        self.plan = plan
        self.directory = root / plan.name
        self.data_dir = self.directory / "data"
        self.state_dir = self.directory / "matriarch" / plan.name
        self.settings_path = self.directory / "patroni.yml"
        self.output_path = self.directory / "agent.log"
        self.overlay: dict[str, Any] = {}
        """What is laid over the demo's settings in this node's patroni.yml when the cluster starts."""
        self.launcher: tuple[str, ...] = ()
        """Words before the agent's command: a program that puts it somewhere else, such as another namespace."""
        self.command = AGENT_COMMAND
        self._agent: subprocess.Popen[bytes] | None = None

    @property
    def name(self) -> str:
        """The node's name."""
        return self.plan.name

    @property
    def log_dir(self) -> Path:
        """Where its transition log lies."""
        return self.state_dir / "log"

    @property
    def agent_pid(self) -> int | None:
        """The agent's process; None when it does not run."""
        return self._agent.pid if self._agent is not None and self._agent.poll() is None else None

    @property
    def exit_status(self) -> int | None:
        """How the last agent ended; None while it runs, or before the first."""
        return self._agent.poll() if self._agent is not None else None

    @property
    def is_frozen(self) -> bool:
        """True while the agent is stopped (SIGSTOP)."""
        return self.agent_pid is not None and processes.is_frozen(self.agent_pid)

    @property
    def is_locked(self) -> bool:
        """True while an agent, this demo's or another's, runs on the node's directory."""
        with contextlib.suppress(FileNotFoundError), (self.state_dir / "agent.lock").open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def start(self) -> None:
        """Starts the agent. It ends with this process, in good order, however this process ends.

        It must be called from the main thread: the kernel tells the agent when the *thread* that started it ends.
        """
        assert threading.current_thread() is threading.main_thread(), "agents are started from the main thread"
        environment = {k: v for k, v in os.environ.items() if not k.startswith(HIDDEN_PREFIXES)}
        with self.output_path.open("ab") as output:
            self._agent = subprocess.Popen(
                [*dying_with_the_parent("TERM"), *self.launcher, *self.command, str(self.settings_path)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                cwd="/",
                start_new_session=True,  # the terminal's Ctrl-C is for the demo alone
            )

    def crash(self) -> None:
        """Kills agent, server and fence at once, as a machine that loses power does."""
        fence = processes.fence_of(self.state_dir)
        server = processes.server_of(self.data_dir)
        for pid in (self.agent_pid, *server, fence):
            if pid is not None:
                processes.send(pid, signal.SIGKILL)

    def crash_server(self) -> None:
        """Kills the postmaster alone; its children notice and end. Raises: PostgresError when none runs."""
        server = processes.server_of(self.data_dir)
        if not server:
            raise PostgresError(f"no server runs on {self.name}")
        processes.send(server[0], signal.SIGKILL)

    def freeze(self) -> None:
        """Stops the agent from running (SIGSTOP); its fence and its server go on."""
        if self.agent_pid is not None:
            processes.send(self.agent_pid, signal.SIGSTOP)

    def bring_back(self) -> None:
        """Lets a frozen agent go on; starts one that is gone."""
        if self.agent_pid is None:
            self.start()
        else:
            processes.send(self.agent_pid, signal.SIGCONT)

    def ask_to_stop(self) -> None:
        """Asks the agent to end in good order, also when it is frozen."""
        if self.agent_pid is not None:
            processes.send(self.agent_pid, signal.SIGTERM)
            processes.send(self.agent_pid, signal.SIGCONT)

    def leftovers(self) -> list[int]:
        """What of this node runs still: agent, server, fence."""
        found = [self.agent_pid, *processes.server_of(self.data_dir), processes.fence_of(self.state_dir)]
        return [pid for pid in found if pid is not None]

    def last_lines(self) -> str:
        """The end of what the agent said."""
        with contextlib.suppress(OSError):
            return "\n".join(self.output_path.read_text(errors="replace").splitlines()[-SHOWN_LINES:])
        return ""

    def check(self) -> None:
        """Returns while the agent runs, or when it was killed. Raises: ProgramFailed when it gave up by itself."""
        status = self.exit_status
        if status is not None and status > 0:
            raise ProgramFailed(f"the agent of {self.name}", status, self.last_lines())


class DemoCluster:
    """The whole of it, in one directory."""

    def __init__(self, workspace: Workspace, *, etcd_members: int = 1) -> None:
        """Prepares it; `start` starts it. With several etcd members only the first has the plan's port."""
        self.workspace, self.plan = workspace, workspace.plan
        self.nodes = [DemoNode(node, workspace.root) for node in workspace.plan.nodes]
        self.etcd_cluster = EmbeddedEtcdCluster(workspace.root / "etcd", etcd_members)
        self.etcd = self.etcd_cluster.members[0]
        self.etcd.client_port = workspace.plan.etcd_port
        self._has_started = False

    def node(self, name: str) -> DemoNode:
        """The node of that name."""
        return next(node for node in self.nodes if node.name == name)

    async def start(self, *, but: Collection[str] = ()) -> None:
        """Starts etcd, then all agents; returns before there is a cluster. Raises: MatriarchError.

        but: the names of nodes whose settings are written, and that are not started.
        """
        self._has_started = True
        await self._until_unlocked()
        await self._end_leftovers()  # of a demo in a kept directory that was killed
        for member in self.etcd_cluster.members:
            member.launch()
        for member in self.etcd_cluster.members:
            await anyio.to_thread.run_sync(member.wait_until_healthy, abandon_on_cancel=True)
        for node in self.nodes:
            node.directory.mkdir(mode=0o755, exist_ok=True)
            text = settings_text(self.plan, node.plan, node.directory, self.workspace.bin_dir, node.overlay)
            write_atomically(node.settings_path, text)
            if node.name not in but:
                node.start()

    async def stop(self) -> None:
        """Ends every process and removes what they left in the kernel. Call it shielded; it takes a bounded time."""
        if not self._has_started:
            return
        for node in self.nodes:
            node.ask_to_stop()
        await self._until_agents_ended(AGENTS_STOP_TIMEOUT_S)
        await self._end_leftovers()
        await anyio.to_thread.run_sync(self.etcd_cluster.stop)
        for node in self.nodes:
            processes.remove_shared_memory(node.data_dir)
            self._remove_sockets(node)

    async def _until_unlocked(self) -> None:
        """Returns when the agents of a demo that was killed here have ended, which the kernel told them to."""
        with anyio.move_on_after(AGENTS_STOP_TIMEOUT_S):
            while any(node.is_locked for node in self.nodes):  # noqa: ASYNC110 - other processes
                await anyio.sleep(POLL_S)

    async def _until_agents_ended(self, timeout_s: float) -> None:
        with anyio.move_on_after(timeout_s):
            while any(node.agent_pid is not None for node in self.nodes):  # noqa: ASYNC110 - other processes
                await anyio.sleep(POLL_S)

    async def _end_leftovers(self) -> None:
        """Fences without a server leave when they are asked; everything else is killed."""
        for node in self.nodes:
            fence = processes.fence_of(node.state_dir)
            if fence is not None and node.agent_pid is None:
                processes.send(fence, signal.SIGTERM)
                processes.send(fence, signal.SIGCONT)
        await self._until_nothing_is_left(FENCE_STOP_TIMEOUT_S)
        for node in self.nodes:
            for pid in node.leftovers():
                processes.send(pid, signal.SIGKILL)
        await self._until_nothing_is_left(KILL_TIMEOUT_S)

    async def _until_nothing_is_left(self, timeout_s: float) -> None:
        deadline_ms = now_ms() + int(timeout_s * 1000)
        while any(n.leftovers() for n in self.nodes) and now_ms() < deadline_ms:  # noqa: ASYNC110 - other processes
            await anyio.sleep(POLL_S)

    def _remove_sockets(self, node: DemoNode) -> None:
        """Removes a node's socket directory where it had to lie outside the workspace, for its path's length."""
        from api.node import socket_directory
        from effects.errors import ConfigError
        from effects.settings import load

        with contextlib.suppress(ConfigError, OSError):
            directory = socket_directory(load(node.settings_path, {}))
            if self.workspace.root not in directory.parents:
                shutil.rmtree(directory)
