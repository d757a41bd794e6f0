"""Faults beyond those of faults.py, for seeds whose profile asks for them: operators, data, disks, ambushes."""

import json
from collections.abc import Callable, Mapping

from fsm import events as ev
from fsm.asked import RestartWish
from fsm.machine import Decision
from fsm.states import State
from tests.simulation.agent import Agent
from tests.simulation.bias import NO_BIAS, Bias, Happen
from tests.simulation.cluster import Cluster, Node
from tests.simulation.faults import KINDS, Undo, crash_node, delete_leader_key, kill_agent, nothing, stop_agent
from tests.simulation.kernel import MS, S

CLASSIC_BELOW = 1_000
"""Seeds below this one mean what they always meant: the kinds of faults.py alone."""


def leader_of(cluster: Cluster) -> Node | None:
    """The node that the leader key names, while its server takes writes."""
    held = cluster.etcd.keys.get("leader")
    node = cluster.nodes.get(held.value or "") if held is not None else None
    return node if node is not None and node.host.server is not None and node.host.server.is_writable else None


def _is_spare(cluster: Cluster, node: Node) -> bool:
    """True when a primary elsewhere has all that was acknowledged, and its cluster can do without this copy."""
    leader = leader_of(cluster)
    held = leader is not None and leader is not node
    return held and all(leader.host.data.holds(b, lsn) for b, lsn, _ in cluster.acknowledged[-50:])  # type: ignore[union-attr]


def on_leader(happen: Happen) -> Happen:
    """The same fault, at whoever leads."""

    def strike(cluster: Cluster, node: Node) -> Undo:
        leader = leader_of(cluster)
        return happen(cluster, leader) if leader is not None else nothing

    return strike


def ails(what: str, value: object) -> Happen:
    """Something is wrong with a node for a while."""

    def strike(cluster: Cluster, node: Node) -> Undo:
        setattr(node.host.ailments, what, value)
        return lambda: setattr(node.host.ailments, what, type(value)())

    return strike


# ---- operators -------------------------------------------------------------------------------------------------------


def configure(cluster: Cluster, changes: Mapping[str, object]) -> None:
    """Patch the dynamic configuration."""
    found = cluster.etcd.keys.get("config")
    if found is not None and found.value and cluster.etcd.has_quorum:
        cluster.etcd.put("config", json.dumps({**json.loads(found.value), **changes}))


def pause_cluster(cluster: Cluster, node: Node) -> Undo:
    """Pause, and resume later."""
    configure(cluster, {"pause": True})
    return lambda: configure(cluster, {"pause": False})


def switch_rewind_off(cluster: Cluster, node: Node) -> Undo:
    """use_pg_rewind is off for a while."""
    configure(cluster, {"postgresql": {"use_pg_rewind": False}})
    return lambda: configure(cluster, {"postgresql": {}})


def change_mode(cluster: Cluster, node: Node) -> Undo:
    """Another synchronous mode."""
    cluster.is_mode_fixed = False
    configure(cluster, {"synchronous_mode": cluster.kernel.rng.choice(("off", "on", "quorum"))})
    return nothing


def ask_any_switchover(cluster: Cluster, node: Node) -> Undo:
    """Away from the leader, to anybody, now or in a while."""
    leader = leader_of(cluster)
    if leader is not None and cluster.etcd.has_quorum:
        cluster.etcd.put("failover", json.dumps({"leader": leader.name}))
    return nothing


def ask_failover(cluster: Cluster, node: Node) -> Undo:
    """A failover to a named node, whoever leads or does not."""
    if cluster.etcd.has_quorum:
        cluster.etcd.put("failover", json.dumps({"member": node.name}))
    return nothing


def ask_restart(cluster: Cluster, node: Node) -> Undo:
    """Restart the server in place."""
    if node.agent.process.is_running:
        wish = RestartWish()
        node.agent.report(ev.RestartAsked(at_ms=node.agent.now_ms(), request_id=str(cluster.kernel.now_us), wish=wish))
    return nothing


def ask_agent_restart(cluster: Cluster, node: Node) -> Undo:
    """The agent becomes its successor in place."""
    if node.agent.process.is_running:
        node.agent.report(ev.AgentRestartAsked(at_ms=node.agent.now_ms(), request_id=str(cluster.kernel.now_us)))
    return nothing


def reinit_at_start(cluster: Cluster, node: Node) -> Undo:
    """A node is started, and asked for a new base backup before its server answers."""
    if leader_of(cluster) is node:
        return nothing
    bring_back = crash_node(cluster, node)

    def start() -> None:
        bring_back()
        _reinit(node, forced=False)

    return start


def _reinit(node: Node, *, forced: bool) -> None:
    if node.agent.process.is_running:
        node.agent.report(ev.ReinitAsked(at_ms=node.agent.now_ms(), is_forced=forced))


# ---- data ------------------------------------------------------------------------------------------------------------


def diverge(*, is_whole: bool) -> Happen:
    """The leader writes what nobody else gets, and is gone: its server alone, or the whole node for a while."""

    def strike(cluster: Cluster, node: Node) -> Undo:
        leader = leader_of(cluster)
        if leader is None:
            return nothing
        undo = [KINDS["cut from peers"](cluster, leader)]

        def fall() -> None:
            if not undo:
                return
            if is_whole:
                undo.append(crash_node(cluster, leader))
            elif leader.host.server is not None:
                leader.host.ailments.start_fails = True
                leader.host.server.end()

        def heal() -> None:
            leader.host.ailments.start_fails = False
            while undo:
                undo.pop()()

        cluster.kernel.after(cluster.kernel.world, 1_500 * MS, fall)
        return heal

    return strike


def remove_data(condition: str, *, is_agent_down: bool) -> Happen:
    """A replica's server ends and its data are gone, or only half of a base backup is there."""

    def strike(cluster: Cluster, node: Node) -> Undo:
        if not _is_spare(cluster, node):
            return nothing
        undo = kill_agent(cluster, node) if is_agent_down else nothing
        if node.host.server is not None:
            node.host.server.end()
        node.host.data.clear()
        node.host.data.condition = condition
        return undo

    return strike


def break_every_rewind(cluster: Cluster, node: Node) -> Undo:
    """pg_rewind fails everywhere."""

    def set_all(*, fails: bool) -> None:
        for other in cluster.nodes.values():
            other.agent.rewind_fails = fails

    set_all(fails=True)
    return lambda: set_all(fails=False)


# ---- disks -----------------------------------------------------------------------------------------------------------


def hang_disk_and_server(cluster: Cluster, node: Node) -> Undo:
    """Neither looks nor the server's own writes come back."""
    undo = [KINDS["disk hangs"](cluster, node), ails("is_write_hanging", True)(cluster, node)]
    return lambda: [one() for one in undo]


def fill_disk_and_panic(cluster: Cluster, node: Node) -> Undo:
    """There is no room, and the server ends at its next write."""
    undo = [KINDS["disk full"](cluster, node), ails("is_wal_full", True)(cluster, node)]
    return lambda: [one() for one in undo]


# ---- ambushes --------------------------------------------------------------------------------------------------------


def ambush(
    is_it: Callable[[Decision], bool], strike: Callable[[Cluster, Node], object], *, after_us: int = 0
) -> Happen:
    """Wait for a node to make a move, and strike at once, or a while later."""

    def lay(cluster: Cluster, _: Node) -> Undo:
        is_over = False

        def look(agent: Agent, decision: Decision) -> bool:
            if not is_over and is_it(decision):
                cluster.kernel.after(cluster.kernel.world, after_us, strike, cluster, cluster.nodes[agent.name])
                return True
            return is_over

        def end() -> None:
            nonlocal is_over
            is_over = True

        cluster.watch.ambushes.append(look)
        return end

    return lay


def _is_in(state: State) -> Callable[[Decision], bool]:
    return lambda decision: decision.after is state


def _cut_for_a_while(cluster: Cluster, node: Node) -> None:
    cluster.kernel.after(cluster.kernel.world, 25 * S, KINDS["cut from peers"](cluster, node))


def _cut_from_etcd_for_a_while(cluster: Cluster, node: Node) -> None:
    cluster.kernel.after(cluster.kernel.world, 8 * S, KINDS["cut from etcd"](cluster, node))


def _stop_for_a_while(cluster: Cluster, node: Node) -> None:
    cluster.kernel.after(cluster.kernel.world, 8 * S, stop_agent(cluster, node))


def _remove_if_stopped(cluster: Cluster, node: Node) -> None:
    if node.host.server is None and _is_spare(cluster, node):
        node.host.data.clear()


def _slow_reinit_without_leader(cluster: Cluster, node: Node) -> Undo:
    """A reinit whose server stops slowly, and the leader key is gone meanwhile."""
    if leader_of(cluster) in (None, node):
        return nothing
    undo = ails("stop_takes_us", 3 * S)(cluster, node)
    _reinit(node, forced=False)
    cluster.kernel.after(cluster.kernel.world, 100 * MS, KINDS["leader key deleted"], cluster, node)
    return undo


def delete_key_of_one(cluster: Cluster, node: Node) -> Undo:
    """The agent of a cluster's only node is killed, the key deleted, and the agent is back at once."""
    if len(cluster.nodes) == 1 and cluster.etcd.has_quorum:
        kill_agent(cluster, node)
        delete_leader_key(cluster)
        cluster.kernel.after(cluster.kernel.world, 50 * MS, node.agent.start)
    return nothing


OPERATORS: dict[str, Happen] = {
    "pause": pause_cluster,
    "mode changed": change_mode,
    "switchover to anybody": ask_any_switchover,
    "failover": ask_failover,
    "server restart": ask_restart,
    "agent restart": ask_agent_restart,
    "reinit at start": reinit_at_start,
    "forced reinit while cloning": ambush(
        _is_in(State.REINIT), lambda _, n: _reinit(n, forced=True), after_us=700 * MS
    ),
    "reinit without leader": _slow_reinit_without_leader,
}
RUIN: dict[str, Happen] = {
    "diverged, server": diverge(is_whole=False),
    "diverged, node": diverge(is_whole=True),
    "data removed": remove_data("empty", is_agent_down=False),
    "clone unfinished": remove_data("unfinished_clone", is_agent_down=True),
    "every rewind broken": break_every_rewind,
    "rewind switched off": switch_rewind_off,
    "reinit while rewinding": ambush(_is_in(State.REWINDING), lambda _, n: _reinit(n, forced=True), after_us=20 * MS),
    "data removed while rewinding": ambush(_is_in(State.REWINDING), _remove_if_stopped, after_us=400 * MS),
    "clone fails": ails("clone_fails", True),
    "start fails": ails("start_fails", True),
    "start slow": ails("start_takes_us", 10 * S),
    "stop slow": ails("stop_takes_us", 5 * S),
}
DISKS: dict[str, Happen] = {
    "leader's disk hangs": on_leader(hang_disk_and_server),
    "leader's disk full": on_leader(KINDS["disk full"]),
    "leader's disk full, panic": on_leader(fill_disk_and_panic),
    "leader's server paused": on_leader(KINDS["server paused"]),
    "leader's fence paused": on_leader(KINDS["fence paused"]),
    "disk hangs, server too": hang_disk_and_server,
    "disk full, panic": fill_disk_and_panic,
}
ELECTIONS: dict[str, Happen] = {
    "candidate stopped": ambush(_is_in(State.CANDIDATE), _stop_for_a_while),
    "candidate cut from etcd": ambush(_is_in(State.CANDIDATE), _cut_from_etcd_for_a_while),
    "candidate's server crashed": ambush(_is_in(State.CANDIDATE), KINDS["server crashed"]),
    "handover cut": ambush(lambda decision: decision.rule == "L2", _cut_for_a_while),
    "leader crashed": on_leader(KINDS["node crashed"]),
    "leader's server crashed": on_leader(KINDS["server crashed"]),
    "switchover to anybody": ask_any_switchover,
    "switchover": KINDS["switchover"],
    "key of one deleted": delete_key_of_one,
}
WATCHDOG: dict[str, Happen] = {
    "watchdog fails": ails("watchdog_fails", True),
    "leader's watchdog fails": on_leader(ails("watchdog_fails", True)),
    "leader's fence killed": on_leader(KINDS["fence killed"]),
    "leader crashed": on_leader(KINDS["node crashed"]),
    "switchover to anybody": ask_any_switchover,
}


def _require_watchdog(cluster: Cluster) -> None:
    for node in cluster.nodes.values():
        node.agent.watchdog_mode = "required"


def _route(cluster: Cluster) -> None:
    cluster.write_by_routing()


_TAGS: tuple[dict[str, dict[str, object]], ...] = (
    {},
    {},
    {"n2": {"nofailover": True}},
    {"n2": {"nosync": True}},
    {"n1": {"failover_priority": 3}},
)
_EVERYTHING = {**KINDS, **OPERATORS, **RUIN, **DISKS, **ELECTIONS}
_PROFILES: tuple[Bias, ...] = (
    Bias(kinds=_EVERYTHING, prepare=(_route,)),
    Bias(kinds=OPERATORS, prepare=(_route,)),
    Bias(kinds=DISKS, config={"primary_stall_timeout": 5}, sizes=(3, 3, 5)),
    Bias(kinds=RUIN, sizes=(3,)),
    Bias(kinds=WATCHDOG, config={"ttl": 20}, sizes=(3,), prepare=(_require_watchdog,)),
    Bias(kinds=ELECTIONS, sizes=(1, 3, 3, 5)),
    Bias(kinds={**RUIN, **ELECTIONS}, config={"synchronous_mode": None}, sizes=(3,)),
    Bias(kinds=_EVERYTHING, sizes=(1, 2, 4, 7)),
)


def profile_of(seed: int) -> Bias:
    """What a seed's run is about."""
    if seed < CLASSIC_BELOW:
        return NO_BIAS
    return _PROFILES[seed % len(_PROFILES)]._replace(tags=_TAGS[seed // len(_PROFILES) % len(_TAGS)])
