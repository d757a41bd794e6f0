"""What is done to nodes and to etcd, each as a block that ends it; more of it in tests/cluster/faults.py."""

import base64
import contextlib
import signal
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import anyio.to_thread
import httpx
import psycopg

from api.cli.demo import processes
from api.cli.demo.cluster import DemoNode
from effects.embedded import EmbeddedEtcd
from tests.chaos.scene import Scene, server_pids


def kill(*pids: int | None) -> None:
    """SIGKILL, at once, to whoever is there."""
    for pid in pids:
        if pid is not None:
            processes.send(pid, signal.SIGKILL)


def agent_of(node: DemoNode) -> int:
    """The agent's process. Raises: AssertionError when there is none."""
    assert node.agent_pid is not None, f"the agent of {node.name} does not run"
    return node.agent_pid


def fence_of(node: DemoNode) -> int:
    """The fence's process. Raises: AssertionError when there is none."""
    found = processes.fence_of(node.state_dir)
    assert found is not None, f"{node.name} has no fence"
    return found


def whole_node(node: DemoNode) -> list[int]:
    """Every process of a node: server, fence, agent and whom it started."""
    agent = agent_of(node)
    found = [*server_pids(node), fence_of(node), agent, *processes.descendants(agent)]
    return list(dict.fromkeys(found))


@contextmanager
def members_frozen(members: Collection[EmbeddedEtcd]) -> Iterator[None]:
    """Members of etcd stand still inside."""
    for member in members:
        member.freeze()
    try:
        yield
    finally:
        for member in members:
            member.thaw()


@contextlib.asynccontextmanager
async def members_killed(members: Collection[EmbeddedEtcd]) -> Any:
    """Members of etcd are gone inside, and run again after it."""
    for member in members:
        member.kill()
    try:
        yield
    finally:
        for member in members:
            member.launch()
    for member in members:
        await anyio.to_thread.run_sync(member.wait_until_healthy)


def put_and_compact(member: EmbeddedEtcd, times: int) -> int:
    """The revision up to which etcd's history is gone, after some writes beside the cluster's keys.

    Source: etcd, "gRPC gateway": the API as JSON.
    """
    revision = 0
    with httpx.Client(base_url=f"http://{member.endpoint}/v3/kv/", timeout=10, trust_env=False) as client:
        for number in range(times):
            key, value = (base64.b64encode(text.encode()).decode() for text in ("/beside", str(number)))
            answer = client.post("put", json={"key": key, "value": value}).raise_for_status()
            revision = int(answer.json()["header"]["revision"])
        client.post("compaction", json={"revision": revision, "physical": True}).raise_for_status()
    return revision


@contextmanager
def many_sessions(scene: Scene, node: DemoNode, count: int) -> Iterator[list[psycopg.Connection[Any]]]:
    """So many idle sessions on a server, and one that is in the middle of a long write transaction."""
    with contextlib.ExitStack() as leaving:
        found = [_left_alone(leaving, scene.connection_to(node)) for _ in range(count)]
        writing = _left_alone(leaving, scene.connection_to(node, autocommit=False))
        writing.execute("CREATE TABLE IF NOT EXISTS chaos_long (id bigint, filling text)")
        writing.execute("INSERT INTO chaos_long SELECT n, repeat('x', 100) FROM generate_series(1, 20000) n")
        yield [*found, writing]


def _left_alone(leaving: contextlib.ExitStack, connection: psycopg.Connection[Any]) -> psycopg.Connection[Any]:
    def close() -> None:
        with contextlib.suppress(psycopg.Error):
            connection.close()

    leaving.callback(close)
    return connection


def still_serves(connection: psycopg.Connection[Any]) -> bool:
    """True when a session that was opened before is alive."""
    try:
        return connection.execute("SELECT 1").fetchone() == (1,)
    except psycopg.Error:
        return False
