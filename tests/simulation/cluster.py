"""A cluster put together, its clients, and the promises that are looked at whenever something happens."""

from collections import Counter
from typing import Any

from fsm import events as ev
from fsm import status
from fsm.machine import Decision
from fsm.states import State
from tests.simulation.agent import Agent
from tests.simulation.etcd import MEMBERS, Etcd
from tests.simulation.fence import Fence
from tests.simulation.kernel import MS, Clock, Kernel, S
from tests.simulation.network import Network
from tests.simulation.postgres import Branch, Host, Server, names_of
from tests.simulation.watch import Broken, Watch

SKEW_PPM = 200
WOKEN_US = 250 * MS
"""For how long a server whose whole node was paused may take writes after it: until its fence, which was paused too,
has ended it."""


__all__ = ["Broken", "Cluster", "Node"]
REPLAYED_ONE_IN = 8
"""Which part of the seeds decides each entry twice: once more from what the log would hold."""


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
        self.acknowledged: list[tuple[Branch, int, bool]] = []
        """Commits that clients were told of: where each is, and whether it waited for a standby."""
        self.is_mode_fixed = True
        """False once somebody has changed the synchronous mode."""
        self.is_closed = False
        """True when clients write no more."""
        self.retagged: set[str] = set()
        """Nodes whose tags were changed while they ran."""
        self.watch = Watch(self, is_replaying=seed % REPLAYED_ONE_IN == 3)
        self.etcd.look = self.watch.keys_changed
        self._seen_writable: set[tuple[str, int]] = set()
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
        if server is not None and server.is_writable and not self.is_closed:
            self.look_at(server)
            self._commit(server)
        self._write_soon(node)

    def _commit(self, server: Server) -> None:
        def acknowledge(branch: Branch, lsn: int) -> None:
            names = names_of(server.names)
            self.acknowledged.append((branch, lsn, names is not None and names.count > 0))

        server.commit(acknowledge)

    def write_by_routing(self) -> None:
        """A client beside the direct ones, from now on: it writes wherever a node says that it is the primary."""
        for node in self.nodes.values():
            server, agent = node.host.server, node.agent
            is_told = agent.process.is_running and status.is_writable(agent.view, agent.now_ms())
            if is_told and server is not None and server.is_writable and not self.is_closed:
                self._commit(server)
                break
        self.kernel.after(self.kernel.world, 150 * MS + self.kernel.rng.randrange(800) * MS, self.write_by_routing)

    # ---- promises ----------------------------------------------------------------------------------------------------

    def note(self, agent: Agent, event: ev.AnyEvent, decision: Decision) -> None:
        """A decision was taken."""
        self.steps += 1
        self.watch.note(agent, event, decision)
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
        is_first = (server.host.name, server.pid) not in self._seen_writable
        if is_first and [node.host.server for node in settled] == [server]:
            self._seen_writable.add((server.host.name, server.pid))
            self._settle_losses(server)
        if self.is_synchronous and self.is_mode_fixed and [node.host.server for node in settled] == [server]:
            self._check_acknowledged(server)

    def _check_acknowledged(self, server: Server) -> None:
        data = server.data
        for branch, lsn, _ in reversed(self.acknowledged[-50:]):
            if not data.holds(branch, lsn):
                lacks = f"{server.host.name} at {data.branch.tli}/{data.lsn} lacks the acknowledged"
                raise Broken(f"{lacks} {branch.tli}/{lsn}")

    def _settle_losses(self, server: Server) -> None:
        """What a new primary lacks is lost; so much was to be expected."""
        data = server.data
        lost = [found for found in self.acknowledged if not data.holds(found[0], found[1])]
        why = self.watch.judge_loss(server, lost)
        if why is not None:
            raise Broken(f"acknowledged commits are lost, {why}: {server.host.name}, {len(lost)} of them")
        if lost and not (self.is_synchronous and self.is_mode_fixed and not self._is_forced(server)):
            gone = {(id(branch), lsn) for branch, lsn, _ in lost}
            self.acknowledged = [found for found in self.acknowledged if (id(found[0]), found[1]) not in gone]

    def _is_forced(self, server: Server) -> bool:
        announced = self.watch.announced.get((server.host.name, server.pid))
        return announced is not None and announced.is_forced

    def check_end(self, well_since_us: int) -> None:
        """Everybody has all that was acknowledged, every effect was answered, every node has found its place.

        Called when all has been well since an instant, and the cluster has settled.
        """
        self.is_closed = True
        self.kernel.run(self.kernel.now_us + 5 * S)
        for node in self.nodes.values():
            missing = [found for found in self.acknowledged if not node.host.data.holds(found[0], found[1])]
            if missing:
                branch, lsn, _ = missing[-1]
                raise Broken(f"{node.name} lacks the acknowledged {branch.tli}/{lsn} in the end, one of {len(missing)}")
        self.watch.check_outcomes(well_since_us)

    def stuck(self) -> str | None:
        """Whose agent is in a state that it should have left in a healed cluster; None if nobody's is."""
        for node in self.nodes.values():
            if node.agent.view.state not in (State.LEADER, State.REPLICA):
                return f"{node.name} is still {node.agent.view.state.value}"
        return None

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

    def until_settled(self, within_us: int, *, is_final: bool = False) -> int:
        """Let it run until it is as it should be, in the end with every agent at rest; how long that took."""
        began_us = self.kernel.now_us
        while (trouble := self.trouble() or (self.stuck() if is_final else None)) is not None:
            if self.kernel.now_us - began_us > within_us:
                raise Broken(f"not healed within {within_us // S} s: {trouble}")
            self.kernel.run(self.kernel.now_us + 200 * MS)
        return self.kernel.now_us - began_us
