"""What a demo cluster is made of: names, ports, passwords, and the settings file of each node. Pure."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import yaml

NODE_NAMES = ("n1", "n2", "n3")
SCOPE = "demo"
TTL_S = 5
LOOP_WAIT_S = 2
RETRY_TIMEOUT_S = 3
# Small, and nothing outside the data directory: with shared memory in files, a node that is killed and never brought
# back leaves nothing in /dev/shm. wal_keep_size lets a node come back that was away for a while.
PARAMETERS = {
    "shared_buffers": "16MB",
    "max_wal_size": "256MB",
    "wal_keep_size": "128MB",
    "dynamic_shared_memory_type": "mmap",
}


class NodePlan(msgspec.Struct, frozen=True, kw_only=True):
    """One node: its name, its address and its two ports."""

    name: str
    api_port: int
    postgres_port: int
    host: str = "127.0.0.1"

    @property
    def api_url(self) -> str:
        """Where its REST API listens."""
        return f"http://{self.host}:{self.api_port}"


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A whole demo cluster. It holds the passwords, so its file is 0600 and no representation shows it."""

    nodes: tuple[NodePlan, ...]
    etcd_port: int
    superuser_password: str
    replication_password: str
    rewind_password: str

    def __repr__(self) -> str:
        return f"Plan(nodes={self.nodes!r}, etcd_port={self.etcd_port})"

    @property
    def ports(self) -> list[int]:
        """Every port that clients use."""
        return [self.etcd_port, *(port for node in self.nodes for port in (node.api_port, node.postgres_port))]


def make_plan(ports: list[int], passwords: list[str]) -> Plan:
    """A plan from seven free ports and three passwords."""
    etcd_port, *others = ports
    nodes = tuple(
        NodePlan(name=name, api_port=others[2 * i], postgres_port=others[2 * i + 1])
        for i, name in enumerate(NODE_NAMES)
    )
    superuser, replication, rewind = passwords
    return Plan(
        nodes=nodes,
        etcd_port=etcd_port,
        superuser_password=superuser,
        replication_password=replication,
        rewind_password=rewind,
    )


def with_ports(plan: Plan, ports: list[int]) -> Plan:
    """The same cluster on other ports, with the same passwords."""
    return make_plan(ports, [plan.superuser_password, plan.replication_password, plan.rewind_password])


def plan_text(plan: Plan) -> str:
    """The plan as it is kept in its file."""
    return json.dumps(msgspec.to_builtins(plan), indent=1) + "\n"


def read_plan(text: str) -> Plan:
    """A plan from its file. Raises: msgspec.DecodeError, msgspec.ValidationError."""
    return msgspec.json.decode(text, type=Plan)


def overlaid(settings: Mapping[str, Any], overlay: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with others laid over them: mappings are joined, everything else is replaced."""
    joined = dict(settings)
    for key, value in overlay.items():
        below = joined.get(key)
        joined[key] = overlaid(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return joined


def settings_text(
    plan: Plan, node: NodePlan, directory: Path, bin_dir: Path, overlay: Mapping[str, Any] | None = None
) -> str:
    """The patroni.yml of one node.

    Args:
        plan: the cluster.
        node: which of its nodes.
        directory: the node's own directory.
        bin_dir: PostgreSQL's programs.
        overlay: what is laid over the demo's settings.
    """
    api, postgres = f"{node.host}:{node.api_port}", f"{node.host}:{node.postgres_port}"
    settings = {
        "scope": SCOPE,
        "name": node.name,
        "etcd3": {"hosts": f"127.0.0.1:{plan.etcd_port}"},
        "restapi": {"listen": api, "connect_address": api},
        "postgresql": {
            "listen": postgres,
            "connect_address": postgres,
            "data_dir": str(directory / "data"),
            "bin_dir": str(bin_dir),
            "authentication": {
                "superuser": {"username": "postgres", "password": plan.superuser_password},
                "replication": {"username": "replicator", "password": plan.replication_password},
                "rewind": {"username": "rewinder", "password": plan.rewind_password},
            },
        },
        "bootstrap": {
            "dcs": {
                "ttl": TTL_S,
                "loop_wait": LOOP_WAIT_S,
                "retry_timeout": RETRY_TIMEOUT_S,
                "postgresql": {"parameters": PARAMETERS},
            }
        },
    }
    return yaml.safe_dump(overlaid(settings, overlay or {}), sort_keys=False)
