"""A node whose file was copied from another's, name and all, must not take that one's keys."""

import os
import subprocess
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
import yaml

from api.cli.demo.cluster import AGENT_COMMAND, DemoNode
from effects.embedded import free_ports
from tests.cluster.harness import running_cluster
from tests.cluster.witnesses import PATIENCE_S, read_key

pytestmark = [pytest.mark.anyio, pytest.mark.servers]


def copied_settings(node: DemoNode, directory: Path) -> Path:
    """The node's settings with other ports and directories, and the same name."""
    settings = yaml.safe_load(node.settings_path.read_text())
    for section, port in zip(("restapi", "postgresql"), free_ports(2), strict=True):
        address = f"127.0.0.1:{port}"
        settings[section] |= {"listen": address, "connect_address": address}
    settings["postgresql"]["data_dir"] = str(directory / "data")
    path = directory / "patroni.yml"
    path.write_text(yaml.safe_dump(settings))
    return path


def run_to_its_end(path: Path) -> subprocess.CompletedProcess[str]:
    """How an agent with these settings ends."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PATRONI_")}
    command = [*AGENT_COMMAND, str(path)]
    return subprocess.run(
        command, env=environment, cwd="/", timeout=PATIENCE_S, check=False, text=True, stderr=subprocess.PIPE
    )


async def test_second_agent_of_a_name_leaves_and_the_leader_goes_on(open_directory: Path) -> None:
    """It says who has the name; neither the leader key nor the member key is touched."""
    async with running_cluster(size=2) as (real, _):
        leader = real.leader
        before = [await read_key(real, key) for key in ("leader", "initialize")]
        directory = open_directory / "namesake"
        directory.mkdir(mode=0o755)
        ended = await anyio.to_thread.run_sync(run_to_its_end, copied_settings(leader, directory))
        assert ended.returncode == 1
        assert f'a node named "{leader.name}" answers at {leader.plan.api_url}/patroni already' in ended.stderr
        assert [await read_key(real, key) for key in ("leader", "initialize")] == before
        await real.settled()
        assert real.primary == leader.name
