"""What goes wrong, drawn from the seed: a subset of kinds for each run, in bursts, each undone after a while."""

import json
from collections.abc import Callable, Collection
from typing import NamedTuple

from fsm import events as ev
from tests.simulation.cluster import WOKEN_US, Cluster, Node
from tests.simulation.etcd import MEMBERS
from tests.simulation.kernel import MS, S

Undo = Callable[[], object]


class Fault(NamedTuple):
    """Something that happens at an instant and ends after a while."""

    at_us: int
    kind: str
    whom: str
    lasts_us: int

    def __str__(self) -> str:
        return f"{self.at_us / S:8.3f} s  {self.kind} {self.whom} for {self.lasts_us / S:.1f} s"


def nothing() -> None:
    """There is nothing to undo."""


# ---- processes -------------------------------------------------------------------------------------------------------


def kill_agent(cluster: Cluster, node: Node) -> Undo:
    """SIGKILL; it is started again later."""
    cluster.kernel.kill(node.agent.process)
    return lambda: _bring_back(node)


def _bring_back(node: Node) -> None:
    if not node.agent.process.is_alive:
        node.agent.start()


def pause_agent(cluster: Cluster, node: Node) -> Undo:
    """SIGSTOP."""
    cluster.kernel.pause(node.agent.process)
    return lambda: cluster.kernel.resume(node.agent.process)


def kill_fence(cluster: Cluster, node: Node) -> Undo:
    """SIGKILL: the server goes with it."""
    node.fence.die()
    return nothing


def pause_fence(cluster: Cluster, node: Node) -> Undo:
    """SIGSTOP: what it should end, the agent ends."""
    cluster.kernel.pause(node.fence.process)
    return lambda: cluster.kernel.resume(node.fence.process)


def kill_keepers(cluster: Cluster, node: Node) -> Undo:
    """Fence and agent at once."""
    node.fence.die()
    return kill_agent(cluster, node)


def crash_server(cluster: Cluster, node: Node) -> Undo:
    """The server's processes are gone."""
    if node.host.server is not None:
        node.host.server.end()
    return nothing


def pause_server(cluster: Cluster, node: Node) -> Undo:
    """SIGSTOP for every process of the server."""
    server = node.host.server
    if server is None:
        return nothing
    cluster.kernel.pause(server.process)
    return lambda: resume_server(cluster, node, server.pid)


def resume_server(cluster: Cluster, node: Node, pid: int) -> None:
    """SIGCONT."""
    server = node.host.server
    if server is not None and server.pid == pid and server.process.is_paused:
        cluster.kernel.resume(server.process)
        cluster.look_at(server)


def pause_node(cluster: Cluster, node: Node) -> Undo:
    """The whole machine stands still, and its clock goes on."""
    undo = [pause_agent(cluster, node), pause_fence(cluster, node), pause_server(cluster, node)]

    def resume() -> None:
        node.paused_whole_until_us = cluster.kernel.now_us + WOKEN_US
        for one in undo:
            one()

    node.paused_whole_until_us = 1 << 62
    return resume


def crash_node(cluster: Cluster, node: Node) -> Undo:
    """The machine loses its power."""
    undo = kill_agent(cluster, node)
    server = node.host.server
    if server is not None:
        server.end()
    node.fence.die()
    return undo


# ---- network ---------------------------------------------------------------------------------------------------------


def _cut(others: Callable[[Cluster, Node], tuple[str, ...]], ways: str) -> Callable[[Cluster, Node], Undo]:
    def cut(cluster: Cluster, node: Node) -> Undo:
        before = set(cluster.network.cut)
        cluster.network.cut_between(node.name, others(cluster, node), ways=ways)
        added = cluster.network.cut - before

        def heal() -> None:
            cluster.network.cut -= added
            for watch in cluster.etcd.watches:
                watch.pump()

        return heal

    return cut


def _peers(cluster: Cluster, node: Node) -> tuple[str, ...]:
    return tuple(name for name in cluster.nodes if name != node.name)


def _everybody(cluster: Cluster, node: Node) -> tuple[str, ...]:
    return (*_peers(cluster, node), *MEMBERS)


def slow_network(cluster: Cluster, node: Node) -> Undo:
    """Every message takes longer."""
    cluster.network.slow_us = cluster.kernel.rng.choice((20, 200, 1_000)) * MS

    def heal() -> None:
        cluster.network.slow_us = 0

    return heal


# ---- etcd ------------------------------------------------------------------------------------------------------------


def etcd_down(count: int) -> Callable[[Cluster, Node], Undo]:
    """Members refuse connections."""

    def happen(cluster: Cluster, node: Node) -> Undo:
        cluster.etcd.set_members(down=set(cluster.kernel.rng.sample(MEMBERS, count)))
        return lambda: cluster.etcd.set_members(down=set())

    return happen


def etcd_frozen(count: int) -> Callable[[Cluster, Node], Undo]:
    """Members take connections and do not answer."""

    def happen(cluster: Cluster, node: Node) -> Undo:
        cluster.etcd.set_members(frozen=set(cluster.kernel.rng.sample(MEMBERS, count)))
        return lambda: cluster.etcd.set_members(frozen=set())

    return happen


def etcd_changes_leader(cluster: Cluster, node: Node) -> Undo:
    """Leases live longer, watches end."""
    cluster.etcd.change_leader()
    cluster.etcd.break_watches()
    return nothing


def etcd_slow(cluster: Cluster, node: Node) -> Undo:
    """Answers take up to five seconds."""
    cluster.etcd.delay_us = cluster.kernel.rng.choice((500, 2_000, 5_000)) * MS

    def heal() -> None:
        cluster.etcd.delay_us = 0

    return heal


def etcd_wiped(cluster: Cluster, node: Node) -> Undo:
    """All members come back without data, while whoever leads hears of that, and every node has data.

    A node that lost its own, and whose agent began after the loss, could not know that there ever was a cluster.
    """
    held = cluster.etcd.keys.get("leader")
    holder = cluster.nodes.get(held.value or "") if held else None
    is_calm = not cluster.network.cut and not cluster.network.slow_us and cluster.etcd.has_quorum
    has_all_data = all(one.host.data.condition == "cluster" for one in cluster.nodes.values())
    is_holder_well = holder is not None and holder.agent.process.is_running and holder.fence.process.is_running
    if is_calm and has_all_data and is_holder_well:
        cluster.etcd.wipe()
        cluster.watch.forget_holder()
    return nothing


def leader_key_vanishes(cluster: Cluster, node: Node) -> Undo:
    """Somebody deletes it by hand, while its holder hears of that: nothing else could make it safe."""
    held = cluster.etcd.keys.get("leader")
    holder = cluster.nodes.get(held.value or "") if held else None
    is_calm = not cluster.network.cut and not cluster.network.slow_us and cluster.etcd.has_quorum
    if holder is not None and is_calm and holder.agent.process.is_running and holder.fence.process.is_running:
        delete_leader_key(cluster)
    return nothing


def delete_leader_key(cluster: Cluster) -> None:
    """Somebody does, by hand."""
    cluster.watch.is_by_hand = True
    cluster.etcd.delete("leader")
    cluster.watch.is_by_hand = False


# ---- clocks and people -----------------------------------------------------------------------------------------------


def step_wall_clock(cluster: Cluster, node: Node) -> Undo:
    """Five minutes forth or back."""
    node.clock.wall_offset_ms += cluster.kernel.rng.choice((-300_000, 300_000))
    return nothing


def ask_switchover(cluster: Cluster, node: Node) -> Undo:
    """An operator wants this node to lead."""
    held = cluster.etcd.keys.get("leader")
    if held is not None and held.value != node.name and cluster.etcd.has_quorum:
        cluster.etcd.put("failover", json.dumps({"leader": held.value, "member": node.name}))
    return nothing


def ask_reinit(cluster: Cluster, node: Node) -> Undo:
    """An operator wants this node's data replaced."""
    if node.agent.process.is_alive:
        node.agent.report(ev.ReinitAsked(at_ms=node.agent.now_ms()))
    return nothing


def change_config(cluster: Cluster, node: Node) -> Undo:
    """Another ttl, another number of synchronous standbys."""
    rng, found = cluster.kernel.rng, cluster.etcd.keys.get("config")
    if found is not None and found.value and cluster.etcd.has_quorum:
        changes = rng.choice(({"ttl": rng.choice((3, 5, 10, 20))}, {"synchronous_node_count": rng.choice((1, 2))}))
        cluster.etcd.put("config", json.dumps({**json.loads(found.value), **changes}))
    return nothing


def stop_agent(cluster: Cluster, node: Node) -> Undo:
    """SIGTERM: it takes its server with it. Started again later."""
    if node.agent.process.is_running:
        node.agent.report(ev.StopAsked(at_ms=node.agent.now_ms()))
    return lambda: _bring_back(node)


def wipe_data(cluster: Cluster, node: Node) -> Undo:
    """Somebody removes the data of a replica whose server is down."""
    held = cluster.etcd.keys.get("leader")
    if (
        "initialize" in cluster.etcd.keys
        and node.host.server is None
        and (held is None or held.value != node.name)
        and node.host.data.system_id
    ):
        others = [other.host.data for other in cluster.nodes.values() if other is not node]
        if any(data.condition == "cluster" and data.lsn >= node.host.data.lsn for data in others):
            node.host.data.clear()
    return nothing


def break_rewind(cluster: Cluster, node: Node) -> Undo:
    """pg_rewind fails on this node."""
    node.agent.rewind_fails = True

    def mend() -> None:
        node.agent.rewind_fails = False

    return mend


def fill_disk(cluster: Cluster, node: Node) -> Undo:
    """There is no room for another WAL segment."""
    node.agent.disk.free_bytes = 1 << 20

    def make_room() -> None:
        node.agent.disk.free_bytes = None

    return make_room


def hang_disk(cluster: Cluster, node: Node) -> Undo:
    """Writes do not come back. What the server writes in the models still does: only the looks hang."""
    node.agent.disk.is_hanging = True

    def go_on() -> None:
        node.agent.disk.is_hanging = False

    return go_on


KINDS: dict[str, Callable[[Cluster, Node], Undo]] = {
    "agent killed": kill_agent,
    "agent paused": pause_agent,
    "fence killed": kill_fence,
    "fence paused": pause_fence,
    "fence and agent killed": kill_keepers,
    "server crashed": crash_server,
    "server paused": pause_server,
    "node paused": pause_node,
    "node crashed": crash_node,
    "cut off": _cut(_everybody, "both"),
    "cut off, hears": _cut(_everybody, "out"),
    "cut off, speaks": _cut(_everybody, "in"),
    "cut from etcd": _cut(lambda _, __: MEMBERS, "both"),
    "cut from etcd, hears": _cut(lambda _, __: MEMBERS, "out"),
    "cut from etcd, speaks": _cut(lambda _, __: MEMBERS, "in"),
    "cut from peers": _cut(_peers, "both"),
    "cut from peers, hears": _cut(_peers, "out"),
    "network slow": slow_network,
    "etcd member down": etcd_down(1),
    "etcd member frozen": etcd_frozen(1),
    "etcd quorum lost": etcd_down(2),
    "etcd silent": etcd_frozen(3),
    "etcd leader changed": etcd_changes_leader,
    "etcd slow": etcd_slow,
    "etcd wiped": etcd_wiped,
    "leader key deleted": leader_key_vanishes,
    "wall clock stepped": step_wall_clock,
    "switchover": ask_switchover,
    "reinit": ask_reinit,
    "agent stopped": stop_agent,
    "data wiped": wipe_data,
    "rewind broken": break_rewind,
    "disk full": fill_disk,
    "disk hangs": hang_disk,
    "config changed": change_config,
}


def draw(cluster: Cluster, span_us: int, all_kinds: Collection[str] = KINDS) -> list[Fault]:
    """The faults of a run: of a few kinds, in bursts."""
    rng = cluster.kernel.rng
    kinds = rng.sample(sorted(all_kinds), min(len(all_kinds), rng.randrange(1, 8)))
    faults = []
    at_us = 0
    while at_us < span_us:
        for _ in range(rng.choice((1, 1, 2, 3))):
            lasts_us = rng.choice((50 * MS, 1 * S, 4 * S, 15 * S, 60 * S))
            whom = rng.choice(sorted(cluster.nodes))
            faults.append(Fault(at_us + rng.randrange(2 * S), rng.choice(kinds), whom, rng.randrange(1, lasts_us)))
        at_us += rng.choice((2 * S, 10 * S, 40 * S))
    return sorted(faults)
