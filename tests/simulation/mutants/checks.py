"""What is looked at besides, where a promise of the whole simulation does not show it at once."""

import json
from collections.abc import Callable
from typing import Any

from fsm import effects as do
from fsm import events as ev
from fsm.machine import Decision
from fsm.wire import parse_last_timeline, parse_optime
from tests.simulation.agent import Agent
from tests.simulation.cluster import Broken, Cluster, Node
from tests.simulation.kernel import MS, S, Work
from tests.simulation.postgres import Server

DECISIONS_MOST = 80_000
"""Five times as many as an ordinary run has."""

Judge = Callable[[Cluster, Node, Server], str | None]
"""Why a server should not be one that accepts writes; None if it may be."""


def writers(judge: Judge) -> Callable[[Cluster], None]:
    """Judge each server when it begins to accept writes."""

    def prepare(cluster: Cluster) -> None:
        for node in cluster.nodes.values():
            _look_first(cluster, node, judge)

    return prepare


def _look_first(cluster: Cluster, node: Node, judge: Judge) -> None:
    before, seen = node.host.look, set[int]()

    def look(server: Server) -> None:
        if server.is_writable and server.pid not in seen:
            seen.add(server.pid)
            reason = judge(cluster, node, server)
            if reason is not None:
                raise Broken(f"{reason}: {node.name}")
        before(server)

    node.host.look = look


def barred(cluster: Cluster, node: Node, server: Server) -> str | None:
    """A member with nofailover is not promoted."""
    return "a member tagged nofailover was promoted" if server.promoting and node.agent.tags.get("nofailover") else None


def lagging(cluster: Cluster, node: Node, server: Server) -> str | None:
    """Without a synchronous mode nobody is promoted who lacks more than the settings allow."""
    status, config = cluster.etcd.keys.get("status"), json.loads(cluster.first_config)
    if not server.promoting or status is None or "synchronous_mode" in config:
        return None
    lag_bytes = parse_optime(status.value) - server.data.branch.fork_lsn
    return "more was left behind than the settings allow" if lag_bytes > config["maximum_lag_on_failover"] else None


def outdated(cluster: Cluster, node: Node, server: Server) -> str | None:
    """Nobody is promoted from an older timeline than the newest that the cluster's history tells of."""
    history, parent = cluster.etcd.keys.get("history"), server.data.branch.parent
    if not server.promoting or history is None or parent is None:
        return None
    newest = parse_last_timeline(history.value)
    return "a member on an old timeline was promoted" if parent.tli < newest else None


def foreign(cluster: Cluster, node: Node, server: Server) -> str | None:
    """Nobody leads with the data of another cluster."""
    known = cluster.etcd.keys.get("initialize")
    if known is None or not known.value or known.value == server.data.system_id:
        return None
    return "data of another cluster accept writes"


def directories(cluster: Cluster) -> None:
    """A base backup, or a new cluster, is put into an empty directory only."""
    for node in cluster.nodes.values():
        for kind in (do.Clone, do.InitDb):
            _before(node.agent, kind, _refuse_data_there)


def _refuse_data_there(agent: Agent, effect: do.Effect) -> None:
    if agent.host.data.condition == "cluster":
        raise Broken(f"a cluster's data were written over: {agent.name}")


def entries(cluster: Cluster) -> None:
    """Nothing that cannot be undone is done before its entry is on disk."""
    ordered_us: dict[int, tuple[do.Effect, int]] = {}

    def note(agent: Agent, event: ev.AnyEvent, decision: Decision) -> None:
        for issued in decision.effects:
            ordered_us[id(issued.effect)] = issued.effect, cluster.kernel.now_us + agent.log_delay_us

    def look(agent: Agent, effect: do.Effect) -> None:
        if cluster.kernel.now_us < ordered_us[id(effect)][1]:
            raise Broken(f"{type(effect).__name__} was carried out before its entry was on disk: {agent.name}")

    for node in cluster.nodes.values():
        _after(node.agent, note)
        for kind in node.agent.performers:
            if kind.is_irreversible:
                _before(node.agent, kind, look)


def an_end(cluster: Cluster) -> None:
    """No agent decides all the time."""

    def note(agent: Agent, event: ev.AnyEvent, decision: Decision) -> None:
        if cluster.steps > DECISIONS_MOST:
            raise Broken(f"an agent decides without end: {agent.name}")

    for node in cluster.nodes.values():
        _after(node.agent, note)


Took = Callable[[Agent, ev.AnyEvent, Decision], None]


def _after(agent: Agent, note: Took) -> None:
    took = agent.took

    def both(agent: Agent, event: ev.AnyEvent, decision: Decision) -> None:
        note(agent, event, decision)
        took(agent, event, decision)

    agent.took = both


def _before(agent: Agent, kind: type[do.Effect], look: Callable[[Agent, do.Effect], None]) -> None:
    perform = agent.performers[kind]

    def looked_at(effect: Any) -> Work:
        look(agent, effect)
        return (yield from perform(effect))

    agent.performers[kind] = looked_at


def holders(cluster: Cluster) -> None:
    """The leader key does not stay for long with a node whose server accepts no writes."""

    def is_idle() -> bool:
        held = cluster.etcd.keys.get("leader")
        server = cluster.server_of(held.value or "") if held is not None else None
        return held is not None and (server is None or not server.is_writable)

    _not_for_long(cluster, is_idle, "the leader key is held for nothing")


def leaders(cluster: Cluster) -> None:
    """Two nodes whose agents run have a primary before long."""

    def is_leaderless() -> bool:
        running = [node for node in cluster.nodes.values() if node.agent.process.is_running]
        return len(running) > 1 and not any(node.host.server and node.host.server.is_writable for node in running)

    _not_for_long(cluster, is_leaderless, "nobody leads")


def _not_for_long(cluster: Cluster, is_so: Callable[[], bool], what: str) -> None:
    patience_us = (2 * int(json.loads(cluster.first_config)["ttl"]) + 15) * S
    since_us = cluster.kernel.now_us

    def look() -> None:
        nonlocal since_us
        if not is_so():
            since_us = cluster.kernel.now_us
        elif cluster.kernel.now_us - since_us > patience_us:
            raise Broken(f"{what}, for {patience_us // S} s")
        cluster.kernel.after(cluster.kernel.world, 500 * MS, look)

    look()


def commits(cluster: Cluster) -> None:
    """Two primaries at once are no finding here; what was acknowledged must not be lost all the same."""

    def look(server: Server) -> None:
        held = cluster.etcd.keys.get("leader")
        if server.is_writable and cluster.is_synchronous and held is not None and held.value == server.host.name:
            cluster._check_acknowledged(server)

    setattr(cluster, "look_at", look)  # noqa: B010  # on this cluster only
    for node in cluster.nodes.values():
        node.host.look = look
