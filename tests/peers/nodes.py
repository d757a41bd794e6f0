"""What the tests do to single nodes of the cluster, and what they see of them."""

import os
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import anyio
import httpx
import yaml

from api.cli.demo import processes
from api.cli.demo.cluster import DemoNode
from tests.cluster.harness import RealCluster

SCOPE = "demo"
PATIENCE_S = 90


async def until(holds: Callable[[], bool], patience_s: float = PATIENCE_S) -> None:
    """Return once it holds."""
    with anyio.fail_after(patience_s):
        while not holds():  # noqa: ASYNC110 - other processes
            await anyio.sleep(0.02)


def status_of(node: DemoNode) -> dict[str, Any]:
    """What the node says of itself; nothing while it does not answer."""
    try:
        found: dict[str, Any] = httpx.get(f"{node.plan.api_url}/patroni", trust_env=False, timeout=2).json()
    except (httpx.HTTPError, ValueError):
        return {}
    return found


def ours(node: DemoNode) -> dict[str, Any]:
    """The part of it that only Matriarch has."""
    found: dict[str, Any] = status_of(node).get("matriarch", {})
    return found


def replicas(real: RealCluster) -> list[DemoNode]:
    """The nodes that do not lead."""
    return [node for node in real.cluster.nodes if node.name != real.primary]


def is_copying(node: DemoNode) -> bool:
    """True once a base backup has brought bytes."""
    return bool((ours(node).get("progress") or {}).get("bytes_done"))


def listed(real: RealCluster) -> set[str]:
    """The members that the leader sees in etcd."""
    found = httpx.get(f"{real.leader.plan.api_url}/cluster", trust_env=False, timeout=5).json()
    return {member["name"] for member in found["members"]}


def asides(node: DemoNode) -> list[str]:
    """The names of data directories that were kept."""
    return sorted(path.name for path in node.directory.glob("data.aside.*"))


async def change_settings(real: RealCluster, node: DemoNode, change: Callable[[dict[str, Any]], None]) -> None:
    """Other settings for a node, and its agent started anew with them; its server goes on."""
    settings = yaml.safe_load(node.settings_path.read_text())
    change(settings)
    node.settings_path.write_text(yaml.safe_dump(settings, sort_keys=False))
    await kill_agent(node)
    node.start()
    await real.settled()


async def kill_agent(node: DemoNode) -> None:
    """kill -9 of the agent alone; its server goes on."""
    assert node.agent_pid is not None
    os.kill(node.agent_pid, signal.SIGKILL)
    await until(lambda: node.agent_pid is None)


async def stop_agent(node: DemoNode) -> None:
    """The agent ends in good order, and its server with it."""
    node.ask_to_stop()
    await until(lambda: not node.leftovers() or node.agent_pid is None)
    await until(lambda: not processes.server_of(node.data_dir))


def copying_processes(node: DemoNode) -> list[int]:
    """The processes of the node's pg_basebackup."""
    wanted = f"--pgdata={node.data_dir}"
    return [pid for pid in processes.living() if wanted in processes.command_line(pid)]


@asynccontextmanager
async def held_copy(node: DemoNode) -> AsyncIterator[None]:
    """Once bytes came, the base backup stands still until the block ends, or somebody else ends it."""
    await until(lambda: is_copying(node))
    held = copying_processes(node)
    for pid in held:
        processes.send(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in held:
            processes.send(pid, signal.SIGCONT)


class Seen:
    """The states that a node showed, one after another, without repetitions."""

    def __init__(self) -> None:
        self.states: list[str] = []
        self.steps: list[str] = []
        self.bytes_done: list[int] = []

    def take(self, status: dict[str, Any]) -> None:
        """One more answer of GET /patroni."""
        matriarch = status.get("matriarch", {})
        for kept, value in (
            (self.states, status.get("state")),
            (self.steps, (matriarch.get("rebuilding") or {}).get("step")),
            (self.bytes_done, (matriarch.get("progress") or {}).get("bytes_done")),
        ):
            if value is not None and kept[-1:] != [value]:
                kept.append(value)


@contextmanager
def observed(node: DemoNode) -> Iterator[Seen]:
    """What a node shows while the block runs, asked all the time by a thread."""

    seen, is_over = Seen(), threading.Event()

    def look() -> None:
        while not is_over.wait(0.02):
            seen.take(status_of(node))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        is_over.set()
        thread.join()
