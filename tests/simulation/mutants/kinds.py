"""Faults that only some mutants need, and groups of those that every seed may have."""

import weakref
from collections.abc import Callable

from fsm.states import State
from fsm.wire import parse_sync
from tests.simulation.bias import Happen
from tests.simulation.cluster import Cluster, Node
from tests.simulation.faults import (
    KINDS,
    Undo,
    crash_node,
    delete_leader_key,
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


def take_the_key_away(cluster: Cluster, node: Node) -> Undo:
    """Somebody deletes it by hand, whether its holder hears of that or not."""
    delete_leader_key(cluster)
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


def return_unlisted(cluster: Cluster, node: Node) -> Undo:
    """A replica is away until nobody lists it, and comes back when the leader is cut from etcd. For a ttl of 3 s."""
    leader = _leader(cluster)
    if leader is None or leader is node:
        return nothing
    return _one_at_a_time(cluster, lambda: _return_unlisted(cluster, node, leader))


def _return_unlisted(cluster: Cluster, node: Node, leader: Node) -> Undo:
    undo = [crash_node(cluster, node)]

    def cut() -> None:
        if undo:
            undo.append(KINDS["cut from etcd"](cluster, leader))

            undo.append(KINDS["cut from peers"](cluster, node))

    cluster.kernel.after(cluster.kernel.world, 8 * S, cut)
    cluster.kernel.after(cluster.kernel.world, 9 * S, undo[0])
    return _all_of(undo)


def cut_then_crash(cluster: Cluster, node: Node) -> Undo:
    """A replica is cut from the other nodes, and before anybody has given it up the leader is gone."""
    leader = _leader(cluster)
    if leader is None or leader is node:
        return nothing
    undo = [KINDS["cut from peers"](cluster, node)]

    def crash() -> None:
        if undo:
            undo.append(crash_node(cluster, leader))

    cluster.kernel.after(cluster.kernel.world, 700 * MS, crash)
    return _all_of(undo)


def hide_free_key(cluster: Cluster, node: Node) -> Undo:
    """Somebody deletes the leader key while the leader's agent stands still: its server goes on until its deadline.

    One replica does not hear of that server any more, and etcd is slow.
    """
    leader = _leader(cluster)
    if leader is None or leader is node:
        return nothing
    return _one_at_a_time(cluster, lambda: _hide_free_key(cluster, leader, node))


def _hide_free_key(cluster: Cluster, leader: Node, node: Node) -> Undo:
    delete_leader_key(cluster)
    cluster.etcd.delay_us = 2 * S
    cluster.network.cut_between(leader.name, (node.name,))
    return _all_of([pause_agent(cluster, leader), _fast_again(cluster), cluster.network.heal])


def hold_a_candidate(*, is_successor_gone: bool) -> Happen:
    """The leader is gone; who would take the key stands still meanwhile, and goes on when another leads.

    is_successor_gone: whether that one, too, is gone by then, and the key with it.
    """

    def happen(cluster: Cluster, node: Node) -> Undo:
        return _one_at_a_time(cluster, lambda: _hold_a_candidate(cluster, is_successor_gone=is_successor_gone))

    return happen


def _hold_a_candidate(cluster: Cluster, *, is_successor_gone: bool) -> Undo:
    etcd = cluster.etcd
    etcd.delay_us = 500 * MS

    def is_taking(other: Node) -> bool:
        return "take-leader-key" in other.agent.view.underway

    def hold(cluster: Cluster, other: Node) -> Undo:
        etcd.delay_us = 0
        held = [pause_agent(cluster, other)]

        def go_on() -> None:
            leader = _leader(cluster)
            if held and leader is not None and leader is not other:
                if is_successor_gone:
                    held.append(crash_node(cluster, leader))
                    delete_leader_key(cluster)
                held.pop(0)()

        cluster.kernel.after(cluster.kernel.world, 8 * S, go_on)
        return _all_of(held)

    return _after_the_leader(cluster, is_taking, hold, _fast_again(cluster))


def _fast_again(cluster: Cluster) -> Undo:
    def heal() -> None:
        cluster.etcd.delay_us = 0

    return heal


def forget_by_restart(cluster: Cluster, node: Node) -> Undo:
    """A leader is cut from etcd, its members confirm; one of them is cut from all others, and its agent restarts."""
    leader = _leader(cluster)
    if leader is None or leader is node:
        return nothing
    return _one_at_a_time(cluster, lambda: _forget_by_restart(cluster, leader, node))


def _forget_by_restart(cluster: Cluster, leader: Node, node: Node) -> Undo:
    undo = [KINDS["cut from etcd"](cluster, leader)]

    def restart() -> None:
        if undo:
            undo.append(KINDS["cut from peers"](cluster, node))
            cluster.kernel.after(cluster.kernel.world, 100 * MS, kill_agent(cluster, node))

    cluster.kernel.after(cluster.kernel.world, 14 * S, restart)
    return _all_of(undo)


def leave_the_outdated(cluster: Cluster, node: Node) -> Undo:
    """A replica is cut off, another leads for a while, and then the one that was cut off is the only one left."""
    leader = _leader(cluster)
    if leader is None or leader is node:
        return nothing
    return _one_at_a_time(cluster, lambda: _leave_the_outdated(cluster, leader, node))


def _leave_the_outdated(cluster: Cluster, leader: Node, node: Node) -> Undo:
    heal = KINDS["cut off"](cluster, node)
    undo = [heal, crash_node(cluster, leader)]

    def leave() -> None:
        for other in cluster.nodes.values():
            if undo and other is not node and other is not leader:
                undo.append(crash_node(cluster, other))
        heal()

    cluster.kernel.after(cluster.kernel.world, 9 * S, leave)
    return _all_of(undo)


def crash_before_sync(cluster: Cluster, node: Node) -> Undo:
    """The leader is gone, etcd is slow as soon as another is elected, and that one is gone before long too."""
    return _one_at_a_time(cluster, lambda: _crash_before_sync(cluster))


def _crash_before_sync(cluster: Cluster) -> Undo:
    def is_elected(other: Node) -> bool:
        return other.agent.view.state is State.LEADER

    def slow_down(cluster: Cluster, other: Node) -> Undo:
        cluster.etcd.delay_us = 6 * S
        undo = [_fast_again(cluster)]

        def crash() -> None:
            if undo:
                undo.append(crash_node(cluster, other))
                delete_leader_key(cluster)
                cluster.etcd.delay_us = 0

        cluster.kernel.after(cluster.kernel.world, 1_200 * MS, crash)
        return _all_of(undo)

    return _after_the_leader(cluster, is_elected, slow_down, nothing)


def _all_of(undo: list[Undo]) -> Undo:
    def all_of_them() -> None:
        for one in undo:
            one()
        undo.clear()

    return all_of_them


def gone_unseen(cluster: Cluster, node: Node) -> Undo:
    """The leader is gone; the others do not reach etcd while its key runs out. For a ttl of 3 s."""
    return _one_at_a_time(cluster, lambda: _gone_unseen(cluster))


def _gone_unseen(cluster: Cluster) -> Undo:
    leader = _leader(cluster)
    if leader is None:
        return nothing
    undo = [crash_node(cluster, leader)]
    heal = [KINDS["cut from etcd"](cluster, other) for other in cluster.nodes.values() if other is not leader]

    def go_on() -> None:
        for one in heal:
            one()

    cluster.kernel.after(cluster.kernel.world, 9 * S, go_on)
    return _all_of(undo)


def crash_at_growth(cluster: Cluster, node: Node) -> Undo:
    """The network is slow, and the leader is gone as soon as somebody is put into the `sync` key."""
    return _one_at_a_time(cluster, lambda: _crash_at_growth(cluster))


def _crash_at_growth(cluster: Cluster) -> Undo:
    undo = [KINDS["network slow"](cluster, next(iter(cluster.nodes.values())))]
    before = 99

    def look() -> None:
        nonlocal before
        found, leader = cluster.etcd.keys.get("sync"), _leader(cluster)
        count = len(parse_sync(found.value if found is not None else None).members)
        if undo and leader is not None and count > before:
            undo.append(crash_node(cluster, leader))
            return
        before = count
        if undo:
            cluster.kernel.after(cluster.kernel.world, 5 * MS, look)

    look()
    return _all_of(undo)


def crash_restarted(cluster: Cluster, node: Node) -> Undo:
    """The leader's server crashes while etcd is slow and no standby reaches it; once it is back its node goes."""
    leader = _leader(cluster)
    if leader is None:
        return nothing
    return _one_at_a_time(cluster, lambda: _crash_restarted(cluster, leader))


def _crash_restarted(cluster: Cluster, leader: Node) -> Undo:
    cluster.etcd.delay_us = 6 * S
    undo = [
        KINDS["server crashed"](cluster, leader),
        KINDS["cut from peers"](cluster, leader),
        _fast_again(cluster),
    ]

    def look() -> None:
        server = leader.host.server
        if undo and server is not None and server.is_writable:
            cluster.kernel.after(cluster.kernel.world, 700 * MS, _vanish, cluster, leader, undo)
        elif undo:
            cluster.kernel.after(cluster.kernel.world, 5 * MS, look)

    look()
    return _all_of(undo)


def _vanish(cluster: Cluster, leader: Node, undo: list[Undo]) -> None:
    """Without a trace, not even in etcd: nobody has to wait for its lease."""
    if undo:
        undo.append(crash_node(cluster, leader))
        delete_leader_key(cluster)
        cluster.etcd.delay_us = 0


def crash_with_stuck(cluster: Cluster, node: Node) -> Undo:
    """A replica is cut from the others, etcd becomes slow, and then the leader is gone and the replica is back."""
    leader = _leader(cluster)
    if leader is None or leader is node:
        return nothing
    return _one_at_a_time(cluster, lambda: _crash_with_stuck(cluster, leader, node))


def _crash_with_stuck(cluster: Cluster, leader: Node, node: Node) -> Undo:
    cluster.etcd.delay_us = 6 * S
    undo = [KINDS["cut from peers"](cluster, node), _fast_again(cluster)]
    cluster.kernel.after(cluster.kernel.world, 3 * S, _vanish, cluster, leader, undo)
    cluster.kernel.after(cluster.kernel.world, 3 * S, undo[0])
    return _all_of(undo)


def starve_fence(cluster: Cluster, node: Node) -> Undo:
    """The leader's agent stands still, and its fence is 350 ms late."""
    leader = _leader(cluster)
    if leader is None:
        return nothing
    return _one_at_a_time(cluster, lambda: _starve_fence(cluster, leader))


def _starve_fence(cluster: Cluster, leader: Node) -> Undo:
    undo = [pause_agent(cluster, leader)]

    def look() -> None:
        until_ms = leader.fence.armed_until_ms
        if undo and until_ms is not None and until_ms - leader.clock.now_ms() < 20:
            cluster.kernel.after(cluster.kernel.world, 370 * MS, pause_fence(cluster, leader))
        elif undo:
            cluster.kernel.after(cluster.kernel.world, 5 * MS, look)

    look()
    return _all_of(undo)


def cut_after_slow_renewal(cluster: Cluster, node: Node) -> Undo:
    """etcd is slow; after a renewal whose answer took long the leader's agent stands still. For a ttl of 12 s."""
    leader = _leader(cluster)
    if leader is None:
        return nothing
    return _one_at_a_time(cluster, lambda: _cut_after_slow_renewal(cluster, leader))


def _cut_after_slow_renewal(cluster: Cluster, leader: Node) -> Undo:
    cluster.etcd.delay_us = 5 * S
    undo, since_ms = [_fast_again(cluster)], 0

    def look() -> None:
        nonlocal since_ms
        underway = leader.agent.view.underway.get("renew-lease")
        took_ms = leader.agent.view.achieved.get("renew-lease", 0) - since_ms
        if undo and underway is None and since_ms and 1_600 <= took_ms <= 2_000:
            cluster.etcd.delay_us = 0
            undo.append(pause_agent(cluster, leader))
            return
        since_ms = underway.since_ms if underway is not None else since_ms
        if undo:
            cluster.kernel.after(cluster.kernel.world, 5 * MS, look)

    look()
    return _all_of(undo)


def leader_vanishes(cluster: Cluster, node: Node) -> Undo:
    """Whoever leads is gone, and the key with it, while the network is a little slow."""
    leader = _leader(cluster)
    if leader is None:
        return nothing
    cluster.network.slow_us = 200 * MS
    undo = [crash_node(cluster, leader), cluster.network.heal]
    delete_leader_key(cluster)
    return _all_of(undo)
