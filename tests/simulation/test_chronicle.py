"""Chronicles of simulated clusters, whose truth is known: every clock, and who took writes when."""

from datetime import UTC, datetime
from itertools import pairwise

from fsm.entries import make_entry
from fsm.story.chronicle import Chronicle, LogReader, chronicle_of
from fsm.story.telling import doubts_of, tale_of
from fsm.view import View
from tests.simulation.cluster import Cluster, Node
from tests.simulation.faults import ask_switchover, crash_node, crash_server
from tests.simulation.kernel import S

CONFIG = '{"ttl":5,"loop_wait":1,"maximum_lag_on_failover":1048576}'
EPOCH_MS = 1_790_000_000_000
AS_PROMPT_AS_A_WATCH_MS = 40
"""Within how much two watches hear of one revision in the model's network."""


class Truth:
    """A cluster with its journal, and when each node's server took writes as nobody in it could know."""

    def __init__(self, seed: int = 5) -> None:
        self.cluster = Cluster(seed, config=CONFIG)
        self.cluster.journal = []
        self.cluster.until_settled(60 * S)

    @property
    def leader(self) -> Node:
        """Whose server takes writes."""
        nodes = self.cluster.nodes.values()
        return next(node for node in nodes if node.host.server is not None and node.host.server.is_writable)

    def booted_ms(self, name: str) -> int:
        """What a node's own clock showed when the simulation began."""
        return self.cluster.nodes[name].clock._offset_us // 1_000

    def gap_ms(self) -> int:
        """From now, let it run until somebody takes writes; for how long nobody did."""
        began_us = self.cluster.kernel.now_us
        while not any(n.host.server is not None and n.host.server.is_writable for n in self.cluster.nodes.values()):
            self.cluster.kernel.run(self.cluster.kernel.now_us + 1_000)
        return (self.cluster.kernel.now_us - began_us) // 1_000

    def chronicle(self, *, without: str = "", wall_ahead_ms: int = 0) -> Chronicle:
        """What the logs of all nodes (but one) tell; the first node's wall clock may be wrong."""
        assert self.cluster.journal is not None
        readers: dict[str, LogReader] = {}
        views: dict[str, View] = {}
        for _, name, event, decision in self.cluster.journal:
            true_ms = event.at_ms - self.booted_ms(name)
            wall = datetime.fromtimestamp((EPOCH_MS + true_ms + (wall_ahead_ms if name == "n1" else 0)) / 1000, UTC)
            entry = make_entry(decision, event, boot=f"boot-{name}", wall=wall.isoformat())
            readers.setdefault(name, LogReader()).take(entry, views.get(name, View()), decision.view)
            views[name] = decision.view
        return chronicle_of(reader for name, reader in readers.items() if name != without)


def test_clocks_are_laid_upon_each_other_when_each_node_has_its_own() -> None:
    """By the revisions that all heard, whatever their boots and rates; a wrong wall clock is told."""
    truth = Truth()
    crash_server(truth.cluster, truth.leader)
    truth.gap_ms()
    chronicle = truth.chronicle(wall_ahead_ms=300_000)
    by_node = {clock.node: clock for clock in chronicle.clocks}
    reference = next(clock for clock in chronicle.clocks if clock.source == "reference")
    for name, clock in by_node.items():
        true_distance_ms = truth.booted_ms(reference.node) - truth.booted_ms(name)
        assert abs(clock.offset_ms - reference.offset_ms - true_distance_ms) <= AS_PROMPT_AS_A_WATCH_MS
    ahead = {name: clock.wall_ahead_ms - reference.wall_ahead_ms for name, clock in by_node.items()}
    assert abs(ahead["n1"] - ahead["n2"] - 300_000) <= AS_PROMPT_AS_A_WATCH_MS
    assert any("wall clock" in doubt.text for doubt in doubts_of(chronicle))


def test_outage_is_told_when_a_node_dies_and_another_takes_over() -> None:
    """From the last sign of it, which is before its end, to the first look that showed the next one."""
    truth = Truth()
    dead = truth.leader
    crash_node(truth.cluster, dead)
    gap_ms = truth.gap_ms()
    truth.cluster.kernel.run(truth.cluster.kernel.now_us + 3 * S)
    (outage,) = truth.chronicle().outages
    assert (outage.from_node, outage.to_node) == (dead.name, truth.leader.name)
    assert not outage.is_planned
    assert not outage.is_begin_known
    assert outage.lasted_ms is not None
    assert gap_ms <= outage.lasted_ms <= gap_ms + 1_500
    parts = (outage.detect_ms, outage.decide_ms, outage.promote_ms)
    assert None not in parts
    assert sum(part or 0 for part in parts) == outage.lasted_ms
    tale = tale_of(outage, 1)
    assert "fell silent" in tale.sentences[0].text
    assert tale.why_not
    assert all(sentence.rests_on for sentence in tale.sentences[1:-1])


def test_outage_is_told_when_a_server_dies_and_is_started_again() -> None:
    """The same node leads on; the outage begins when the fence saw the server end."""
    truth = Truth()
    leader = truth.leader
    crash_server(truth.cluster, leader)
    gap_ms = truth.gap_ms()
    truth.cluster.kernel.run(truth.cluster.kernel.now_us + 3 * S)
    (outage,) = truth.chronicle().outages
    assert (outage.from_node, outage.to_node) == (leader.name, leader.name)
    assert outage.is_begin_known
    assert outage.lasted_ms is not None
    assert abs(outage.lasted_ms - gap_ms) <= 100


def test_switchover_is_told_as_planned_when_it_was_asked_for() -> None:
    """With who asked for whom, and the time that the fence needed apart."""
    truth = Truth()
    old = truth.leader
    heir = next(node for node in truth.cluster.nodes.values() if node is not old)
    ask_switchover(truth.cluster, heir)
    while truth.leader is old:
        truth.cluster.kernel.run(truth.cluster.kernel.now_us + 1_000)
        truth.gap_ms()
    truth.cluster.kernel.run(truth.cluster.kernel.now_us + 3 * S)
    (outage,) = truth.chronicle().outages
    assert (outage.from_node, outage.to_node, outage.rule) == (old.name, heir.name, "L2")
    assert outage.is_planned
    assert outage.fence_ms is not None


def test_missing_log_is_said_when_a_node_of_the_others_is_not_given() -> None:
    """What happened there is known from the others only, and that is no reason not to tell the rest."""
    truth = Truth()
    dead = truth.leader
    crash_node(truth.cluster, dead)
    truth.gap_ms()
    truth.cluster.kernel.run(truth.cluster.kernel.now_us + 3 * S)
    chronicle = truth.chronicle(without=dead.name)
    assert chronicle.unheard == (dead.name,)
    assert any(dead.name in doubt.text for doubt in doubts_of(chronicle))
    assert [reign.node for reign in chronicle.reigns] == [truth.leader.name]


def test_states_are_unknown_when_an_agent_was_not_there() -> None:
    """A lane ends with an agent's last entry, and goes on with the next one's first."""
    truth = Truth()
    dead = truth.leader
    undo = crash_node(truth.cluster, dead)
    truth.gap_ms()
    undo()
    truth.cluster.kernel.run(truth.cluster.kernel.now_us + 5 * S)
    lanes = [lane for lane in truth.chronicle().lanes if lane.node == dead.name]
    gaps = [after.since_ms - (before.until_ms or 0) for before, after in pairwise(lanes)]
    assert max(gaps) > 1_000
    assert all(gap >= 0 for gap in gaps)
