"""A real Patroni cluster of three nodes: the settings of a demo of ours, run by Patroni itself."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import httpx

from api.cli.demo import processes
from api.cli.demo.plan import NodePlan, Plan, make_plan, overlaid, settings_text
from effects.embedded import EmbeddedEtcd, free_ports
from effects.files import write_atomically
from effects.programs import RunAs
from tests.peers.patronictl import HIDDEN_PREFIXES

PROGRAM = Path(sys.executable).with_name("patroni")
PORTS = 7
STOP_TIMEOUT_S = 20
START_TIMEOUT_S = 90
# Ours needs no lines for itself; Patroni writes only what it is given.
ACCESS = ["local all all trust", "host all all 127.0.0.1/32 scram-sha-256", "host replication all 127.0.0.1/32 md5"]
# The user who runs PostgreSQL may not see a checkout or a Python below a private home; with this he may.
SEES_ALL = ("--inh-caps", "-all,+dac_override", "--ambient-caps", "+dac_override")


class PatroniNode:
    """One node's process and files."""

    def __init__(self, plan: NodePlan, root: Path, run_as: RunAs | None) -> None:
        self.plan, self._run_as = plan, run_as
        self.directory = root / plan.name
        self.data_dir = self.directory / "data"
        self.settings_path = self.directory / "patroni.yml"
        self.output_path = self.directory / "patroni.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def name(self) -> str:
        """The node's name."""
        return self.plan.name

    def write(self, text: str) -> None:
        """Writes its settings."""
        if not self.directory.exists():
            self.directory.mkdir(mode=0o700)
        write_atomically(self.settings_path, text)
        if self._run_as is not None:
            for path in (self.directory, self.settings_path):
                os.chown(path, self._run_as.uid, self._run_as.gid)

    def start(self) -> None:
        """Starts Patroni. It ends with this process."""
        assert threading.current_thread() is threading.main_thread(), "the kernel watches the thread that starts it"
        words = ["setpriv", "--pdeathsig", "TERM"]
        if self._run_as is not None:
            ids = ("--reuid", str(self._run_as.uid), "--regid", str(self._run_as.gid), "--clear-groups")
            words += [*ids, *SEES_ALL]
        environment = {name: value for name, value in os.environ.items() if not name.startswith(HIDDEN_PREFIXES)}
        with self.output_path.open("ab") as output:
            self._process = subprocess.Popen(
                [*words, "--", sys.executable, str(PROGRAM), str(self.settings_path)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment | {"HOME": str(self.directory), "LC_ALL": "C.UTF-8"},
                cwd="/",
                start_new_session=True,
            )

    def get(self, path: str) -> Any:
        """What it answers in JSON; None while it does not."""
        try:
            return httpx.get(f"{self.plan.api_url}{path}", trust_env=False, timeout=5).json()
        except (httpx.HTTPError, ValueError):
            return None

    def ask_to_stop(self) -> None:
        """Asks it to end, and its server with it."""
        if self._process is not None:
            processes.send(self._process.pid, signal.SIGTERM)

    def end(self) -> None:
        """Waits until it has ended, and kills what is left of it."""
        if self._process is None:
            return
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for pid in processes.server_of(self.data_dir):
            processes.send(pid, signal.SIGKILL)


class PatroniCluster:
    """Three nodes with the names of a demo's, and their etcd."""

    def __init__(self, plan: Plan, root: Path, bin_dir: Path, run_as: RunAs | None) -> None:
        self.plan, self._bin_dir = plan, bin_dir
        self.nodes = [PatroniNode(node, root, run_as) for node in plan.nodes]

    def node(self, name: str) -> PatroniNode:
        """The node of that name."""
        return next(node for node in self.nodes if node.name == name)

    def configure(self, name: str, overlay: Mapping[str, Any]) -> None:
        """Writes a node's settings: the demo's, with others laid over them."""
        node = self.node(name)
        own = {"postgresql": {"pg_hba": ACCESS, "parameters": {"unix_socket_directories": str(node.directory)}}}
        text = settings_text(self.plan, node.plan, node.directory, self._bin_dir, overlaid(own, overlay))
        node.write(text)

    @property
    def is_settled(self) -> bool:
        """True when one leads and the others stream on its timeline."""
        found = [node.get("/patroni") or {} for node in self.nodes]
        primaries = [status for status in found if status.get("role") == "primary" and status["state"] == "running"]
        standbys = [status for status in found if status.get("replication_state") == "streaming"]
        is_complete = len(primaries) == 1 and len(standbys) == len(found) - 1
        return is_complete and len({status.get("timeline") for status in found}) == 1


@asynccontextmanager
async def running_patroni(
    root: Path, bin_dir: Path, run_as: RunAs | None, overlays: Mapping[str, Mapping[str, Any]]
) -> AsyncIterator[PatroniCluster]:
    """A cluster of Patroni's, from empty directories; the first node leads.

    overlays: what is laid over each node's settings.
    """
    with EmbeddedEtcd(root / "etcd", is_fsync_off=True) as etcd:
        plan = make_plan([etcd.client_port, *free_ports(PORTS - 1)], ["s" * 12, "r" * 12, "w" * 12])
        cluster = PatroniCluster(plan, root, bin_dir, run_as)
        try:
            for node in cluster.nodes:
                cluster.configure(node.name, overlays[node.name])
            first, *others = cluster.nodes
            first.start()
            await until(lambda: (first.get("/patroni") or {}).get("role") == "primary")
            for node in others:
                node.start()
            await until(lambda: cluster.is_settled)
            yield cluster
        finally:
            with anyio.CancelScope(shield=True):
                for node in cluster.nodes:
                    node.ask_to_stop()
                for node in cluster.nodes:
                    await anyio.to_thread.run_sync(node.end)


async def until(holds: Callable[[], bool], patience_s: float = START_TIMEOUT_S) -> None:
    """Return once it holds; it is asked in a thread, so that it may ask a server."""
    with anyio.fail_after(patience_s):
        while not await anyio.to_thread.run_sync(holds):  # noqa: ASYNC110 - other processes
            await anyio.sleep(0.1)
