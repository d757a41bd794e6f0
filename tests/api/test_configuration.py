"""`matriarch show-config` against a real etcd, as a user types it."""

import json
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
import yaml

from effects.embedded import EmbeddedEtcd
from effects.etcd import EtcdClient
from effects.etcd_types import delete, put
from tests.effects.test_settings import ENVIRONMENT

pytestmark = [pytest.mark.anyio, pytest.mark.servers]

CONFIG: dict[str, Any] = {"ttl": 20, "failsafe_mode": False, "postgresql": {"parameters": {"max_connections": 200}}}


@pytest.fixture
async def written(etcd_server: EmbeddedEtcd) -> AsyncIterator[str]:
    """The scope of a cluster that has a configuration."""
    scope = "shown"
    key = f"/service/{scope}/config"
    async with EtcdClient([etcd_server.endpoint]) as client:
        await client.transact([], [put(key, json.dumps(CONFIG))], timeout_ms=5_000)
        yield scope
        await client.transact([], [delete(key)], timeout_ms=5_000)


def show_config(etcd: EmbeddedEtcd, scope: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the command with variables alone."""
    variables = ENVIRONMENT | {"PATRONI_ETCD3_HOSTS": etcd.endpoint, "PATRONI_SCOPE": scope}
    command = [sys.executable, "-c", "from api.cli.main import main; main()", "show-config", *options]
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60, check=False)


async def test_configuration_is_printed_as_yaml_when_it_is_in_etcd(etcd_server: EmbeddedEtcd, written: str) -> None:
    """What is printed can be read back; --json gives the text as it is."""
    shown = show_config(etcd_server, written)
    assert shown.returncode == 0, shown.stderr
    assert yaml.safe_load(shown.stdout) == CONFIG
    assert shown.stdout.splitlines()[0] == "failsafe_mode: false"
    assert json.loads(show_config(etcd_server, written, "--json").stdout) == CONFIG


async def test_settings_in_force_are_printed_with_the_worst_cases_when_asked(
    etcd_server: EmbeddedEtcd, written: str
) -> None:
    """Value and origin in one line, and for each fault the bound and the arithmetic."""
    shown = show_config(etcd_server, written, "--effective")
    assert shown.returncode == 0, shown.stderr
    lines = [line.split() for line in shown.stdout.splitlines()]
    assert ["ttl", "20", "etcd"] in lines
    assert ["postgresql.parameters.max_connections", "200", "etcd"] in lines
    assert ["scope", written, "PATRONI_SCOPE"] in lines
    assert "the primary's node dies silently: 21 s" in shown.stdout
    assert "hunter" not in shown.stdout + shown.stderr
    found = json.loads(show_config(etcd_server, written, "--effective", "--json").stdout)
    assert {"name": "ttl", "value": "20", "source": "etcd", "remark": ""} in found["settings"]
    assert found["worst_cases"][0]["at_most_ms"] == 21_000


async def test_command_fails_in_one_line_when_the_cluster_is_not_made(etcd_server: EmbeddedEtcd) -> None:
    """Nothing to show is no configuration; --effective shows what would count."""
    shown = show_config(etcd_server, "nowhere")
    assert (shown.returncode, shown.stdout) == (1, "")
    assert shown.stderr.strip().splitlines() == [
        "matriarch: the cluster nowhere has no configuration in etcd yet: it is written when the cluster is made"
    ]
    assert show_config(etcd_server, "nowhere", "--effective").returncode == 0
