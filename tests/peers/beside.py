"""A cluster of ours and one of Patroni's side by side, in the same phases: the same node has the same part in both."""

import http.client
import json
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import yaml

from api.cli.demo.plan import NodePlan
from effects.programs import RunAs
from tests.cluster.harness import RealCluster, running_cluster
from tests.peers.patroni import PatroniCluster, running_patroni, until

NODES = ("n1", "n2", "n3")
LEADER, FIRST, SECOND = NODES
"""Who leads, and the two who stream from it."""
ANSWER_TIMEOUT_S = 30
PHASE_TIMEOUT_S = 30
# Patroni takes no ttl below 20 s, and loop_wait + 2 * retry_timeout must fit into it.
DYNAMIC = {"ttl": 20, "loop_wait": 1, "retry_timeout": 3}

Tags = Mapping[str, Any]


class Answer(msgspec.Struct, frozen=True):
    """An answer of a REST API. The status is 0 when the connection was closed without one."""

    status: int
    headers: dict[str, str] = {}
    body: bytes = b""

    @property
    def media_type(self) -> str:
        """Its Content-Type, without what follows it."""
        return self.headers.get("content-type", "").partition(";")[0]

    def json(self) -> Any:
        """Its body, which must be JSON."""
        return json.loads(self.body)


class Phase(msgspec.Struct, frozen=True, kw_only=True):
    """How both clusters are set up for a while."""

    name: str
    patch: dict[str, Any]
    """What is laid over the dynamic configuration."""
    tags: dict[str, Tags]
    roles: tuple[str, ...]
    """What GET /cluster then calls each node."""


def ask(node: NodePlan, method: str, path: str, body: bytes | None = None, *, has_length: bool = True) -> Answer:
    """What a node's API answers, over a connection of its own. has_length: whether the body's length is told."""
    connection = http.client.HTTPConnection("127.0.0.1", node.api_port, timeout=ANSWER_TIMEOUT_S)
    try:
        connection.putrequest(method, path)
        if body is not None and has_length:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        found = connection.getresponse()
        return Answer(found.status, {name.lower(): value for name, value in found.getheaders()}, found.read())
    except (http.client.RemoteDisconnected, ConnectionResetError):
        return Answer(0)
    finally:
        connection.close()


class Both:
    """The two clusters."""

    def __init__(self, ours: RealCluster, theirs: PatroniCluster) -> None:
        self.ours, self.theirs = ours, theirs

    def plans(self, name: str) -> tuple[NodePlan, NodePlan]:
        """Where Patroni's node of that name is reached, and ours."""
        return self.theirs.node(name).plan, self.ours.cluster.node(name).plan

    def ask(
        self, name: str, method: str, path: str, body: bytes | None = None, *, has_length: bool = True
    ) -> tuple[Answer, Answer]:
        """What Patroni's node and ours answer."""
        theirs, ours = (ask(plan, method, path, body, has_length=has_length) for plan in self.plans(name))
        return theirs, ours

    async def enter(self, phase: Phase) -> None:
        """Returns when both clusters are in that phase and show it."""
        for name, tags in phase.tags.items():
            self._set_tags(name, tags)
            for plan in self.plans(name):
                _asked(plan, "POST", "/reload")
        for plan in self.plans(LEADER):
            _asked(plan, "PATCH", "/config", phase.patch)
        missing = [""]

        def is_entered() -> bool:
            missing[:] = [line for name in NODES for plan in self.plans(name) for line in _missing(plan, phase)]
            return not missing

        try:
            await until(is_entered, PHASE_TIMEOUT_S)
        except TimeoutError:
            raise AssertionError(f"not in phase {phase.name}:\n" + "\n".join(missing)) from None

    def _set_tags(self, name: str, tags: Tags) -> None:
        self.theirs.configure(name, {"tags": dict(tags)})
        node = self.ours.cluster.node(name)
        settings = yaml.safe_load(node.settings_path.read_text()) | {"tags": dict(tags)}
        node.settings_path.write_text(yaml.safe_dump(settings, sort_keys=False))


def _asked(plan: NodePlan, method: str, path: str, body: object = None) -> None:
    answer = httpx.request(method, f"{plan.api_url}{path}", json=body, trust_env=False, timeout=ANSWER_TIMEOUT_S)
    assert answer.is_success, (plan, answer.status_code, answer.text)


def _missing(plan: NodePlan, phase: Phase) -> Iterator[str]:
    """What a node does not show yet of a phase."""
    status, cluster = ask(plan, "GET", "/patroni").json(), ask(plan, "GET", "/cluster").json()
    members = {member["name"]: member for member in cluster["members"]}
    roles, tags = dict(zip(NODES, phase.roles, strict=True)), {name: _shown(phase.tags[name]) for name in NODES}
    own = roles[plan.name]
    fields = {
        "state": "running",
        "tags": tags[plan.name] or None,
        "sync_standby": own == "sync_standby" or None,
        "quorum_standby": own == "quorum_standby" or None,
        "pause": phase.patch.get("pause"),
        "replication_state": None if own == "leader" else "streaming",
    }
    for name, value in fields.items():
        if status.get(name) != value:
            yield f"{plan}: {name} is {status.get(name)!r}, not {value!r}"
    for name, member in members.items():
        found = (member["role"], member["state"], member.get("tags", {}))
        wanted = (roles[name], "running" if roles[name] == "leader" else "streaming", tags[name])
        if found != wanted:
            yield f"{plan}: {name} is shown as {found!r}, not {wanted!r}"


def _shown(tags: Tags) -> Tags:
    return {name: value for name, value in tags.items() if value is not False}


@asynccontextmanager
async def running_both(root: Path, run_as: RunAs | None, tags: Mapping[str, Tags]) -> AsyncIterator[Both]:
    """Both clusters, with the same settings, led by the first node. tags: each node's."""
    settings = {name: {"tags": dict(found)} for name, found in tags.items()}
    async with running_cluster(dynamic=DYNAMIC, nodes=settings, idle=(FIRST, SECOND)) as (ours, _):
        for name in (FIRST, SECOND):
            ours.cluster.node(name).start()
        overlays = {name: own | {"bootstrap": {"dcs": DYNAMIC}} for name, own in settings.items()}
        async with running_patroni(root, ours.cluster.workspace.bin_dir, run_as, overlays) as theirs:
            await ours.settled()
            yield Both(ours, theirs)
