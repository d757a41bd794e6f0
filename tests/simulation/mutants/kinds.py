"""Faults that only some mutants need, and groups of those that every seed may have."""

import weakref
from collections.abc import Callable

from tests.simulation.bias import Happen
from tests.simulation.cluster import Cluster, Node
from tests.simulation.faults import (
    KINDS,
    Undo,
    crash_node,
    kill_agent,
    nothing,
    pause_agent,
    pause_fence,
    pause_server,
    stop_agent,
)
from tests.simulation.kernel import MS, S
from tests.simulation.postgres import Branch


def some(*names: str, **more: Happen) -> dict[str, Happen]:
    """Kinds by name. Raises: KeyError where there is none of that name any more."""
    return {**{name: KINDS[name] for name in names}, **{name.replace("_", " "): kind for name, kind in more.items()}}


def wipe_etcd(cluster: Cluster, node: Node) -> Undo:
    """etcd comes back empty."""
    cluster.etcd.wipe()
    return nothing


def bring_foreign_data(cluster: Cluster, node: Node) -> Undo:
    """Somebody puts another cluster's data under a node that does not lead; in the end they are taken away."""
    held = cluster.etcd.keys.get("leader")
    if held is None or held.value == node.name or node.host.data.condition != "cluster":
        return nothing
    back = _switch_off(cluster, node)
    data = node.host.data
    data.system_id, data.branch, data.lsn = "7299999999999999999", Branch(1), 10 * S
    data.control_state, data.checkpoint_tli, data.checkpoint_lsn = "shut down", 1, data.lsn - 1
    data.min_recovery_tli = data.min_recovery_lsn = 0
    back()

    def take_away() -> None:
        if data.system_id == "7299999999999999999":
            start = _switch_off(cluster, node)
            data.clear()
            start()

    return take_away


def _switch_off(cluster: Cluster, node: Node) -> Undo:
    start = kill_agent(cluster, node)
    if node.host.server is not None:
        node.host.server.end()
    return start


def delete_leader_key(cluster: Cluster, node: Node) -> Undo:
    """Somebody deletes it by hand, whether its holder hears of that or not."""
    cluster.etcd.delete("leader")
    return nothing


def slow_log(cluster: Cluster, node: Node) -> Undo:
    """The log of each node takes almost a second to reach the disk."""
    for other in cluster.nodes.values():
        other.agent.log_delay_us = 900 * MS

    def heal() -> None:
        for other in cluster.nodes.values():
            other.agent.log_delay_us = 300

    return heal


def freeze_fence_then_agent(cluster: Cluster, node: Node) -> Undo:
    """SIGSTOP for the fence, and after eight seconds for the agent too, if that has not helped itself by then."""
    undo = [pause_fence(cluster, node)]

    def go_on() -> None:
        if undo and node.fence.process.is_paused and node.agent.process.is_running:
            undo.append(pause_agent(cluster, node))

    def resume() -> None:
        for one in undo:
            one()
        undo.clear()

    cluster.kernel.after(cluster.kernel.world, 8 * S, go_on)
    return resume


def stop_frozen_leader(way: str) -> Happen:
    """Whoever leads: its server stands still, its agent is asked to stop, and a way is cut."""

    def happen(cluster: Cluster, node: Node) -> Undo:
        leader = _leader(cluster)
        if leader is None or not leader.agent.process.is_running:
            return nothing
        undo = [pause_server(cluster, leader), stop_agent(cluster, leader)]

        def cut() -> None:
            undo.insert(0, KINDS[way](cluster, leader))

        def heal() -> None:
            for one in undo:
                one()

        cluster.kernel.after(cluster.kernel.world, 200 * MS, cut)
        return heal

    return happen


def _leader(cluster: Cluster) -> Node | None:
    held = cluster.etcd.keys.get("leader")
    node = cluster.nodes.get(held.value or "") if held is not None else None
    return node if node is not None and node.host.server is not None and node.host.server.is_writable else None


def freeze_the_elected(cluster: Cluster, node: Node) -> Undo:
    """The leader is gone; the keepers of whoever is elected stand still between its promotion's order and its start."""

    def is_ordered(other: Node) -> bool:
        server = other.host.server
        is_to_be = server is not None and server.in_recovery and not server.promoting
        return is_to_be and "promote" in other.agent.view.underway

    return _one_at_a_time(
        cluster, lambda: _after_the_leader(cluster, is_ordered, _freeze_keepers, slow_log(cluster, node))
    )


def freeze_the_promoted(cluster: Cluster, node: Node) -> Undo:
    """The leader is gone, and no other node's fence moves; whoever is promoted all the same loses its agent too."""
    return _one_at_a_time(cluster, lambda: _freeze_the_promoted(cluster))


def _freeze_the_promoted(cluster: Cluster) -> Undo:
    leader = _leader(cluster)
    undo = [pause_fence(cluster, other) for other in cluster.nodes.values() if other is not leader]

    def has_promoted(other: Node) -> bool:
        server = other.host.server
        return server is not None and server.is_writable

    def resume() -> None:
        for one in undo:
            one()

    return _after_the_leader(cluster, has_promoted, pause_agent, resume)


_BUSY: weakref.WeakSet[Cluster] = weakref.WeakSet()
"""Clusters in which such a fault has not ended: two of them would be more than anybody promises to bear."""


def _one_at_a_time(cluster: Cluster, happen: Callable[[], Undo]) -> Undo:
    if cluster in _BUSY:
        return nothing
    _BUSY.add(cluster)
    undo = happen()

    def end() -> None:
        undo()
        cluster.kernel.after(cluster.kernel.world, 5 * S, _BUSY.discard, cluster)

    return end


def _freeze_keepers(cluster: Cluster, node: Node) -> Undo:
    undo_agent, undo_fence = pause_agent(cluster, node), pause_fence(cluster, node)

    def resume() -> None:
        undo_agent()
        cluster.kernel.after(cluster.kernel.world, 500 * MS, undo_fence)

    return resume


def _after_the_leader(cluster: Cluster, is_it: Callable[[Node], bool], freeze: Happen, also: Undo) -> Undo:
    """Crash whoever leads, and freeze the first other node that something comes to be true of."""
    leader = _leader(cluster)
    if leader is None:
        return also
    undo = [crash_node(cluster, leader), also]
    until_us = cluster.kernel.now_us + 60 * S

    def look() -> None:
        for other in cluster.nodes.values():
            if undo and other is not leader and other.agent.process.is_running and is_it(other):
                undo.append(freeze(cluster, other))
                return
        if undo and cluster.kernel.now_us < until_us:
            cluster.kernel.after(cluster.kernel.world, 2 * MS, look)

    def heal() -> None:
        for one in undo:
            one()
        undo.clear()

    look()
    return heal
