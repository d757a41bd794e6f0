"""`matriarch list` and `topology` beside the real patronictl, over keys that no healthy cluster has."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from anyio import to_thread

from api.cli.demo.plan import make_plan, settings_text
from effects.embedded import EmbeddedEtcd
from effects.etcd import EtcdClient
from effects.etcd_types import put
from tests.peers.matriarch import Matriarch
from tests.peers.patronictl import Patronictl

pytestmark = [pytest.mark.anyio, pytest.mark.servers]

MIB = 1 << 20
COMMANDS = (
    ["list"],
    ["list", "-e"],
    ["list", "-f", "json"],
    ["list", "-f", "yaml"],
    ["list", "-f", "yml"],
    ["list", "-f", "tsv"],
    ["list", "-e", "-f", "tsv"],
    ["topology"],
)


def member(name: str, role: str = "replica", port: int = 5432, **more: Any) -> dict[str, Any]:
    """What a member publishes."""
    streams = {"receive_lsn": 90 * MIB, "replay_lsn": 80 * MIB, "xlog_location": 90 * MIB}
    return {
        "conn_url": f"postgres://{name}.test:{port}/postgres",
        "api_url": f"http://{name}.test:8008/patroni",
        "state": "running",
        "role": role,
        "version": "4.1.5",
        **({"xlog_location": 100 * MIB} if role == "primary" else streams),
        "timeline": 3,
        **more,
    }


LED = {"leader": "n1", "initialize": "7300000000000000001", "status": {"optime": 100 * MIB}}
STREAMING: dict[str, Any] = {"replication_state": "streaming"}
CLUSTERS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "being made": {"initialize": "", "members/n1": member("n1", state="initializing new cluster")},
    "no leader": {"initialize": "73", "members/n1": member("n1"), "members/n2": member("n2", state="stopped")},
    "tags and restarts": LED
    | {
        "members/n1": member("n1", "primary", pending_restart=True, pending_restart_reason={
            "max_connections": {"old_value": "100", "new_value": "200"},
            "a_rather_long_parameter_name": {"old_value": "x" * 30, "new_value": "y"},
        }),
        "members/n2": member("n2", **STREAMING, tags={"clonefrom": True, "zone": "münchen", "prio": 1.5}),
        "members/n3": member("n3", state="creating replica", scheduled_restart={
            "schedule": "2099-01-01T00:00:00+00:00", "postgres_version": "17.0", "postmaster_start_time": "x",
        }),
    },
    "a tree": LED
    | {
        "members/n1": member("n1", "primary"),
        "members/n2": member("n2", **STREAMING, tags={"replicatefrom": "n3"}),
        "members/n3": member("n3", **STREAMING),
        "members/n4": member("n4", **STREAMING, tags={"replicatefrom": "n2"}),
        "members/n5": member("n5", **STREAMING, tags={"replicatefrom": "n5"}),
        "members/n6": member("n6", **STREAMING, tags={"replicatefrom": "gone"}),
    },
    "synchronous, paused, with a plan": LED
    | {
        "config": {"synchronous_mode": True, "pause": True},
        "sync": {"leader": "n1", "sync_standby": "n2", "quorum": 0},
        "failover": {"leader": "n1", "member": "n2", "scheduled_at": "2099-01-01T12:00:00+02:00"},
        "members/n1": member("n1", "primary", port=5433),
        "members/n2": member("n2", **STREAMING, port=5433),
        "members/n3": member("n3", port=5433, replication_state="in archive recovery"),
    },
    "odd members": LED
    | {
        "members/n1": member("n1", "primary"),
        "members/old-streaming": {"conn_url": "postgres://n1.test:5432/x", "api_url": "http://x/patroni",
                                  "state": "running", "role": "replica", "xlog_location": 60 * MIB, **STREAMING},
        "members/old-waiting": {"conn_url": "postgres://n1.test:5432/x", "api_url": "http://x/patroni",
                                "state": "running", "role": "replica", "xlog_location": 200 * MIB},
        "members/ünïcode-節點": member("n4", **STREAMING),
    },
}  # fmt: skip


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
async def test_list_equals_patronictls_when_the_keys_are_odd(
    etcd_server: EmbeddedEtcd, tmp_path: Path, words: list[str]
) -> None:
    """Byte for byte, in every format."""
    scopes = [f"odd-{number}" for number in range(len(CLUSTERS))]
    async with EtcdClient([etcd_server.endpoint]) as client:
        for scope, keys in zip(scopes, CLUSTERS.values(), strict=True):
            for key, value in keys.items():
                text = value if isinstance(value, str) else json.dumps(value)
                await client.transact([], [put(f"/service/{scope}/{key}", text)], timeout_ms=5_000)
    plan = make_plan([etcd_server.client_port, *range(1, 7)], ["a", "b", "c"])
    config = tmp_path / "patroni.yml"
    config.write_text(settings_text(plan, plan.nodes[0], tmp_path / "node", tmp_path))
    theirs = Patronictl(tmp_path, "odd", etcd_server.client_port)
    wanted = await to_thread.run_sync(partial(theirs.run, *words, *scopes))
    found = await to_thread.run_sync(partial(Matriarch(config).run, *words, *scopes))
    assert wanted.status == 0, wanted
    assert found == wanted
