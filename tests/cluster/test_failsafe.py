"""The failsafe on real nodes: checked beforehand, and promised by members whose agents are killed right after."""

import contextlib
import json
import os
import signal
import subprocess
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
import pytest

from api.cli.demo import processes
from api.cli.demo.cluster import AGENT_COMMAND, DemoNode
from effects.errors import EtcdOutcomeUnknown, EtcdUnavailable
from effects.etcd import EtcdClient
from effects.etcd_types import delete
from effects.promises import read_promise
from fsm.effects import Promote
from tests.cluster.faults import freeze_node, thaw_node
from tests.cluster.harness import PREFIX, RealCluster, running_cluster
from tests.cluster.witnesses import PATIENCE_S, until

pytestmark = [pytest.mark.anyio, pytest.mark.servers]

TTL_S = 10


def checked(node: DemoNode, *options: str) -> subprocess.CompletedProcess[str]:
    """How `matriarch failsafe check` with the node's settings ends."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PATRONI_")}
    command = [*AGENT_COMMAND[:-1], "failsafe", "check", "-c", str(node.settings_path), *options]
    return subprocess.run(
        command, env=environment, cwd="/", timeout=PATIENCE_S, check=False, text=True, capture_output=True
    )


async def verdict(real: RealCluster) -> tuple[int, dict[str, Any]]:
    """The exit status and what was found, asked from a replica's machine."""
    ended = await anyio.to_thread.run_sync(partial(checked, real.replicas[0], "--json"))
    assert ended.stdout, ended.stderr
    return ended.returncode, json.loads(ended.stdout)


async def until_verdict(real: RealCluster, *, holds: bool) -> dict[str, Any]:
    """The first verdict of this kind; the list in etcd follows the members within moments."""
    with anyio.fail_after(PATIENCE_S):
        while True:
            status, found = await verdict(real)
            assert (status == 0) == found["holds"]
            if found["holds"] is holds:
                return found


def promised_until_ms(node: DemoNode) -> int:
    """Until when the node has promised not to stand; 0 if it has not."""
    kept = read_promise(node.state_dir)
    return kept.until_ms if kept is not None else 0


async def free_the_leader_key(real: RealCluster) -> None:
    """Deletes the leader key: an etcd that stood still gives every lease its whole life again."""
    async with EtcdClient(list(real.cluster.etcd_cluster.endpoints)) as client:
        with anyio.fail_after(PATIENCE_S):
            while True:
                with contextlib.suppress(EtcdUnavailable, EtcdOutcomeUnknown):
                    await client.transact([], [delete(f"{PREFIX}leader")], timeout_ms=2_000)
                    return


async def kill_agent(node: DemoNode) -> None:
    """Kills the agent alone; the server and its fence go on. Another one is started."""
    pid = node.agent_pid
    assert pid is not None
    processes.send(pid, signal.SIGKILL)
    await until(lambda: node.agent_pid is None)
    node.start()


async def test_failsafe_is_checked_and_promises_outlive_the_agents_that_gave_them() -> None:
    """The check names who is in the way; a member that promised stands when its promise has ended, and not before."""
    async with running_cluster(dynamic={"ttl": TTL_S}) as (real, _):
        leader, replicas = real.leader, real.replicas
        found = await until_verdict(real, holds=True)
        assert found["leader"] == leader.name
        assert [member["verdict"] for member in found["members"]] == ["confirms", "confirms"]
        assert all(promised_until_ms(node) == 0 for node in replicas), "asking beforehand binds nobody"
        table = await anyio.to_thread.run_sync(checked, replicas[0])
        assert "failsafe holds" in table.stdout

        freeze_node(replicas[1])
        found = await until_verdict(real, holds=False)
        assert [(m["name"], m["verdict"]) for m in found["members"] if m["verdict"] != "confirms"] == [
            (replicas[1].name, "silent")
        ]
        thaw_node(replicas[1])
        await until_verdict(real, holds=True)

        (etcd,) = real.cluster.etcd_cluster.members
        etcd.freeze()
        await until(lambda: all(promised_until_ms(node) for node in replicas))
        for node in replicas:
            await kill_agent(node)
        leader.crash()
        ends_ms = {node.name: promised_until_ms(node) for node in replicas}
        etcd.thaw()
        await free_the_leader_key(real)
        await until(lambda: bool(real.orders(Promote, *ends_ms)))
        for name, end_ms in ends_ms.items():
            promotions = [
                e.event.at_ms
                for e in real.entries(name)
                if any(isinstance(issued.effect, Promote) for issued in e.effects)
            ]
            assert all(at_ms >= end_ms for at_ms in promotions), (name, promotions, end_ms)
        leader.bring_back()
        await real.settled()
        await until(lambda: not any(promised_until_ms(node) for node in real.cluster.nodes))
