"""A cluster put together, its clients, and the promises that are looked at whenever something happens."""

from collections import Counter
from typing import Any

from fsm import events as ev
from fsm.machine import Decision
from tests.simulation.agent import Agent
from tests.simulation.etcd import MEMBERS, Etcd
from tests.simulation.fence import Fence
from tests.simulation.kernel import MS, Clock, Kernel, S
from tests.simulation.network import Network
from tests.simulation.postgres import Branch, Host, Server

SKEW_PPM = 200
WOKEN_US = 250 * MS
"""For how long a server whose whole node was paused may take writes after it: until its fence, which was paused too,
has ended it."""


class Broken(AssertionError):
    """A promise was broken."""


class Node:
    """One node: disk, fence, agent."""

    def __init__(self, cluster: "Cluster", name: str, tags: dict[str, Any]) -> None:
        kernel, rng = cluster.kernel, cluster.kernel.rng
        self.name = name
        self.clock = Clock(
            kernel, skew_ppm=rng.randrange(-SKEW_PPM, SKEW_PPM + 1), offset_ms=rng.randrange(1, 10_000_000)
        )
        self.host = Host(kernel, cluster.network, name, cluster.server_of)
        self.fence = Fence(kernel, self.clock, self.host)
        self.agent = Agent(
            kernel,
            cluster.network,
            cluster.etcd,
            self.clock,
            self.host,
            self.fence,
            cluster.agent_of,
            cluster.first_config,
            tags,
        )
        self.host.look = cluster.look_at
        self.agent.took = cluster.note
        self.paused_whole_until_us = -1


class Cluster:
    """Everything, from empty directories."""

    def __init__(self, seed: int, *, size: int = 3, config: str, tags: dict[str, dict[str, Any]] | None = None) -> None:
        self.kernel = Kernel(seed)
        self.network = Network(self.kernel)
        self.etcd = Etcd(self.kernel, self.network)
        self.first_config = config
        self.nodes = {name: Node(self, name, (tags or {}).get(name, {})) for name in (f"n{i + 1}" for i in range(size))}
        self.rules: Counter[str] = Counter()
        self.steps = 0
        self.acknowledged: list[tuple[Branch, int]] = []
        self.is_synchronous = '"synchronous_mode"' in config and '"synchronous_mode":"off"' not in config
        self.journal: list[tuple[int, str, ev.AnyEvent, Decision]] | None = None
        self.lost_bytes = 0
        for node in self.nodes.values():
            self.kernel.after(self.kernel.world, self.kernel.rng.randrange(300) * MS, node.agent.start)
            self._write_soon(node)

    # ---- ways --------------------------------------------------------------------------------------------------------

    def server_of(self, name: str) -> Server | None:
        """The server that listens at a node's address."""
        node = self.nodes.get(name)
        return node.host.server if node else None

    def agent_of(self, name: str) -> Agent | None:
        """The agent that listens at a node's address."""
        node = self.nodes.get(name)
        return node.agent if node else None

    @property
    def others(self) -> tuple[str, ...]:
        """All hosts there are."""
        return (*self.nodes, *MEMBERS)

    # ---- clients -----------------------------------------------------------------------------------------------------

    def _write_soon(self, node: Node) -> None:
        self.kernel.after(self.kernel.world, 150 * MS + self.kernel.rng.randrange(500) * MS, self._write, node)

    def _write(self, node: Node) -> None:
        """A client on the node itself commits if its server takes writes."""
        server = node.host.server
        if server is not None and server.is_writable:
            self.look_at(server)
            server.commit(self._acknowledge)
        self._write_soon(node)

    def _acknowledge(self, branch: Branch, lsn: int) -> None:
        self.acknowledged.append((branch, lsn))

    # ---- promises ----------------------------------------------------------------------------------------------------

    def note(self, agent: Agent, event: ev.AnyEvent, decision: Decision) -> None:
        """A decision was taken."""
        self.steps += 1
        if decision.rule is not None:
            self.rules[decision.rule] += 1
        if self.journal is not None:
            self.journal.append((self.kernel.now_us, agent.name, event, decision))

    def look_at(self, server: Server) -> None:
        """A server may take writes from this instant on: it is the only one, and has all that was acknowledged."""
        if not server.is_writable:
            return
        writable = [node for node in self.nodes.values() if node.host.server and node.host.server.is_writable]
        settled = [node for node in writable if self.kernel.now_us > node.paused_whole_until_us]
        if len(settled) > 1:
            raise Broken(f"two primaries: {', '.join(node.name for node in writable)}")
        if self.is_synchronous and [node.host.server for node in settled] == [server]:
            self._check_acknowledged(server)

    def _check_acknowledged(self, server: Server) -> None:
        data = server.data
        for branch, lsn in reversed(self.acknowledged[-50:]):
            if not data.holds(branch, lsn):
                lacks = f"{server.host.name} at {data.branch.tli}/{data.lsn} lacks the acknowledged"
                raise Broken(f"{lacks} {branch.tli}/{lsn}")

    def trouble(self) -> str | None:
        """What a healed cluster still lacks; None when it is as it should be."""
        writable = [node for node in self.nodes.values() if node.host.server and node.host.server.is_writable]
        if len(writable) != 1:
            return f"{len(writable)} servers take writes"
        leader = writable[0]
        held = self.etcd.keys.get("leader")
        if held is None or held.value != leader.name:
            return "the leader key does not name the primary"
        primary = leader.host.server
        assert primary is not None
        for node in self.nodes.values():
            if node is leader:
                continue
            server = node.host.server
            if server is None or server.link is None or server.link.upstream is not primary:
                return f"{node.name} does not stream"
        return None

    def until_settled(self, within_us: int) -> int:
        """Let it run until it is as it should be; how long that took."""
        began_us = self.kernel.now_us
        while (trouble := self.trouble()) is not None:
            if self.kernel.now_us - began_us > within_us:
                raise Broken(f"not healed within {within_us // S} s: {trouble}")
            self.kernel.run(self.kernel.now_us + 200 * MS)
        return self.kernel.now_us - began_us
