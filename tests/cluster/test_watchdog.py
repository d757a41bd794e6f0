"""A leader that must have a watchdog, on real processes; a FIFO stands for the device (Patroni's driver `testing`)."""

from pathlib import Path

import httpx
import pytest

from effects.clock import now_ms
from tests.cluster.test_agent_restart import restart
from tests.cluster.witnesses import postmaster_of, until, until_led_by_another, watched_cluster
from tests.effects.test_fence_device import Device

pytestmark = [pytest.mark.anyio, pytest.mark.servers]


def required(device: Path) -> dict[str, dict[str, str]]:
    """Settings of a node that must have this watchdog."""
    return {"watchdog": {"mode": "required", "driver": "testing", "device": str(device)}}


async def test_only_a_node_with_its_watchdog_leads_when_one_is_required(tmp_path: Path) -> None:
    """The device is fed before and while it leads, over a restart of the agent too, and off when the server is gone; a
    node without one gives the key back, and nothing is promoted there."""
    with Device(tmp_path / "n1") as device:
        nodes = {"n1": required(device.path), "n2": required(tmp_path / "nowhere")}
        async with watched_cluster(size=2, dynamic={"ttl": 60}, nodes=nodes, idle=("n2",)) as (real, _):
            leader, other = real.cluster.node("n1"), real.cluster.node("n2")
            assert device.words == ["Ctimeout=55", "1"]
            server = postmaster_of(leader)
            assert (await restart(leader))[0] == 0
            fed = len(device.fed_at_ms)
            await until(lambda: len(device.fed_at_ms) > fed)
            assert (device.words, postmaster_of(leader)) == (["Ctimeout=55", "1"], server)
            other.start()
            await real.settled()
            since_ms = now_ms()
            async with httpx.AsyncClient(trust_env=False, timeout=60) as http:
                await http.post(f"{leader.plan.api_url}/switchover", json={"leader": "n1", "candidate": "n2"})
            await until(lambda: "L11" in [entry.rule for entry in real.entries("n2", since_ms=since_ms)])
            await until_led_by_another(real, "n2")
            await real.settled()
            assert "V" in device.words
            assert device.words[-1] == "1"
