"""A real cluster explains itself, answers while everything around it hangs, and says what a promotion left behind."""

import subprocess
import sys
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
import httpx
import msgspec
import pytest

from api.cli.demo.cluster import DemoNode
from effects.clock import now_ms
from fsm.effects import Promote
from fsm.explain import Explanation
from fsm.prognosis import Prognosis
from tests.cluster.faults import freeze_server, thaw_server
from tests.cluster.harness import RealCluster
from tests.cluster.witnesses import PATIENCE_S, postmaster_of, watched_cluster

pytestmark = [pytest.mark.anyio, pytest.mark.servers]

TTL_S = 5
ANSWERS = 200


async def explained(node: DemoNode, *words: str) -> subprocess.CompletedProcess[bytes]:
    """`matriarch explain` with a node's own settings."""
    command = [sys.executable, "-c", "from api.cli.main import main; main()", "explain", "-c", str(node.settings_path)]
    with anyio.fail_after(PATIENCE_S):
        return await anyio.run_process([*command, *words], check=False)


class Asking:
    """Asks one node's health over kept-alive connections."""

    def __init__(self, node: DemoNode, http: httpx.AsyncClient) -> None:
        self._url, self._http = node.plan.api_url, http
        self.deadline_ms = 0
        """The latest instant until which the node itself said that it leads."""

    async def code(self, path: str) -> tuple[int, int]:
        """When it was asked, and the status."""
        asked_at_ms = now_ms()
        answer = await self._http.get(self._url + path)
        found: dict[str, Any] = answer.json()
        left_ms = found["matriarch"].get("lease_left_ms", 0)
        self.deadline_ms = max(self.deadline_ms, now_ms() + left_ms)
        return asked_at_ms, answer.status_code


async def last_promotion(real: RealCluster) -> dict[str, Any]:
    """What the leader says of its last promotion."""
    async with httpx.AsyncClient(trust_env=False) as http:
        found: dict[str, Any] = (await http.get(real.leader.plan.api_url + "/patroni")).json()
    promotion: dict[str, Any] = found["matriarch"]["last_promotion"]
    return promotion


async def test_cluster_explains_itself_and_answers_while_servers_and_etcd_hang() -> None:
    """One life of a cluster: explained, its server frozen, its etcd frozen, a new leader, and its estimate."""
    async with watched_cluster(dynamic={"ttl": TTL_S, "failsafe_mode": False}) as (real, _):
        await _explains(real)
        await _answers_while_the_server_is_frozen(real)
        await _answers_no_from_its_deadline_while_etcd_is_frozen(real)
        await real.settled()
        promotion = await last_promotion(real)
        assert promotion["former_leader"]
        assert promotion["loss_basis"] in ("measured", "own")
        ordered = real.orders(Promote, real.primary)[-1].effect
        assert isinstance(ordered, Promote)
        assert ordered.loss is not None
        assert promotion["loss_estimate_bytes"] == ordered.loss.seen_bytes
        assert promotion["loss_at_most_bytes"] == ordered.loss.at_most_bytes


async def _explains(real: RealCluster) -> None:
    """The command in all its forms, with truthful statuses."""
    leader, replica = real.leader, real.replicas[0]
    text = await explained(replica)
    assert (text.returncode, text.stdout.decode().startswith(f"{replica.name} is replica for ")) == (0, True)
    assert b"\x1b" not in text.stdout
    found = msgspec.json.decode((await explained(replica, leader.name, "--json")).stdout, type=Explanation)
    assert (found.name, found.state) == (leader.name, "leader")
    assert (await explained(replica, "R1")).returncode == 1
    assert (await explained(leader, "nobody")).returncode == 2
    failover = await explained(replica, "--failover", "--json")
    prognosis = msgspec.json.decode(failover.stdout, type=Prognosis)
    assert (failover.returncode, prognosis.leader) == (0, leader.name)
    assert set(prognosis.winners) <= {node.name for node in real.replicas}
    assert prognosis.winners
    assert all(contender.answers for contender in prognosis.contenders)


async def _answers_while_the_server_is_frozen(real: RealCluster) -> None:
    """Nothing that is asked waits for PostgreSQL: every question about the leader is answered, and rightly."""
    leader = real.leader
    async with httpx.AsyncClient(trust_env=False, timeout=PATIENCE_S) as http:
        asking = Asking(leader, http)
        freeze_server(leader)
        try:
            for _ in range(ANSWERS):
                asked_at_ms, code = await asking.code("/leader")
                assert code == 200 or asked_at_ms > asking.deadline_ms
                assert (await http.get(leader.plan.api_url + "/replica")).status_code == 503
        finally:
            thaw_server(leader)
    await real.settled()


async def _answers_no_from_its_deadline_while_etcd_is_frozen(real: RealCluster) -> None:
    """Its loop goes on and its lease is not renewed: yes until the deadline, no from there on, at both paths."""
    leader, server = real.leader, postmaster_of(real.leader)
    assert server
    async with httpx.AsyncClient(trust_env=False, timeout=PATIENCE_S) as http:
        asking = Asking(leader, http)
        for member in real.cluster.etcd_cluster.members:
            member.freeze()
        try:
            answers = [await asking.code(path) for path in ("/primary", "/leader")]
            assert [code for _, code in answers] == [200, 200]
            with anyio.fail_after(PATIENCE_S):
                while {code for _, code in answers[-2:]} != {503}:
                    answers += [await asking.code(path) for path in ("/primary", "/leader")]
            assert [at_ms for at_ms, code in answers if code == 200 and at_ms >= asking.deadline_ms] == []
            told = await explained(leader)
            assert told.returncode == 0
            assert f"this is what {leader.name} knows" in told.stderr.decode()
            failover = await explained(leader, "--failover")
            assert failover.stdout.decode().startswith(f"if {leader.name} vanished now: ")
        finally:
            for member in real.cluster.etcd_cluster.members:
                member.thaw()
    for member in real.cluster.etcd_cluster.members:
        await anyio.to_thread.run_sync(partial(member.wait_until_healthy))
