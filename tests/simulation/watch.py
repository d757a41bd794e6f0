"""What is promised besides one primary and no lost commit: looked at with each decision and each change of the keys."""

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from fsm import effects as do
from fsm import events as ev
from fsm import status
from fsm.dynamic import parse_dynamic
from fsm.entries import SnapshotEntry, encode, make_entry
from fsm.handover import request_in_force
from fsm.loss import unheard_ms
from fsm.losses import LossEstimate
from fsm.machine import Decision
from fsm.replay import Replay
from fsm.table import TABLE
from fsm.view import View
from fsm.wire import is_barred_by_tags, parse_last_timeline, parse_sync
from tests.simulation.agent import Agent
from tests.simulation.kernel import S

if TYPE_CHECKING:
    from tests.simulation.cluster import Cluster
    from tests.simulation.postgres import Branch, Server

WRITES_BYTES_PER_S = 1_400
"""More than the clients of one server write: two of them, a record of 100 bytes every 150 ms at the most."""
PAUSE_HEARD_US = 30 * S
"""After this long everybody who may be elected has heard that the cluster is paused."""

_MOVES = {rule.id: (rule.source, rule.target) for rule in TABLE}

Ambush = Callable[[Agent, Decision], bool]
"""Called with every move; True when it has struck and is not to be called again."""


class Broken(AssertionError):
    """A promise was broken."""


class Announced:
    """What a promotion said that it would leave behind, and the most that it may with the clients there are."""

    __slots__ = ("at_most_bytes", "is_forced", "loss")

    def __init__(self, loss: LossEstimate | None, at_most_bytes: int | None, *, is_forced: bool) -> None:
        self.loss, self.at_most_bytes, self.is_forced = loss, at_most_bytes, is_forced


class Watch:
    """Looks over every agent's shoulder."""

    def __init__(self, cluster: "Cluster", *, is_replaying: bool) -> None:
        self._cluster = cluster
        self._replays: dict[str, Replay] | None = {} if is_replaying else None
        self._open: dict[str, dict[int, tuple[int, str, int]]] = {}
        """Effects without an outcome, by node: when each was issued, by which duty, with how long for it."""
        self._holder: str | None = None
        self.is_by_hand = False
        """True while somebody deletes the leader key by hand."""
        self.paused_since_us: int | None = None
        self.failsafe_until_ms: dict[str, int] = {}
        self.ambushes: list[Ambush] = []
        self.announced: dict[tuple[str, int], Announced] = {}
        self.losses: Counter[str] = Counter()
        """How promotions were judged by what they had announced."""

    # ---- decisions ---------------------------------------------------------------------------------------------------

    def note(self, agent: Agent, event: ev.AnyEvent, decision: Decision) -> None:
        """A decision was taken."""
        if isinstance(event, ev.AgentStarted):
            self._open[agent.name] = {}
        self._check_move(agent, decision)
        self._check_outcome(agent, event, decision)
        if self._replays is not None:
            self._replay(agent, event, decision)
        if decision.view.failsafe_until_ms:
            self.failsafe_until_ms[agent.name] = decision.view.failsafe_until_ms
        for issued in decision.effects:
            if isinstance(issued.effect, do.Promote):
                self._check_promotion(agent, decision.view, issued.effect)
        if decision.rule is not None and self.ambushes:
            self.ambushes = [ambush for ambush in self.ambushes if not ambush(agent, decision)]

    def _check_move(self, agent: Agent, decision: Decision) -> None:
        move = (decision.before, decision.after)
        is_still = decision.before is decision.after
        is_row = is_still if decision.rule is None else _MOVES.get(decision.rule) == move
        if not is_row:
            raise Broken(f"a move that is no row of the table: {agent.name} by {decision.rule}, {move}")

    def _check_outcome(self, agent: Agent, event: ev.AnyEvent, decision: Decision) -> None:
        waiting = self._open[agent.name]
        if isinstance(event, ev.Succeeded | ev.Failed | ev.Unknown) and waiting.pop(event.effect_id, None) is None:
            raise Broken(f"an outcome without an effect: {agent.name} of {event.duty}")
        for issued in decision.effects:
            waiting[issued.effect_id] = (self._cluster.kernel.now_us, issued.duty, issued.effect.timeout_ms)

    def check_outcomes(self, well_since_us: int) -> None:
        """Every effect of a living agent was answered in its time. Called when all has been well since an instant."""
        now_us = self._cluster.kernel.now_us
        for name, waiting in self._open.items():
            if not self._cluster.nodes[name].agent.process.is_running:
                continue
            for since_us, duty, timeout_ms in waiting.values():
                if now_us - max(since_us, well_since_us) > timeout_ms * 1_000 + 5 * S:
                    raise Broken(f"an effect without an outcome: {name} of {duty}")

    def _replay(self, agent: Agent, event: ev.AnyEvent, decision: Decision) -> None:
        """Write the entry as the log does, read it, and decide again."""
        assert self._replays is not None
        if isinstance(event, ev.AgentStarted):
            self._replays[agent.name] = Replay()
            first = View(seq=decision.view.seq - 1)
            self._replays[agent.name].take(
                "snapshot", encode(SnapshotEntry(seq=first.seq, node="", wall="sim", view=first))
            )
        found = self._replays[agent.name].take(
            "entry", encode(make_entry(decision, event, boot=agent.name, wall="sim"))
        )
        if found is not None:
            raise Broken(f"an entry does not replay: {agent.name} {found}")

    # ---- promotions --------------------------------------------------------------------------------------------------

    def _check_promotion(self, agent: Agent, view: View, effect: do.Promote) -> None:
        """A node that is to be promoted may be, as etcd has it."""
        keys, request = self._cluster.etcd.keys, request_in_force(view)
        is_named = request is not None and request.candidate == agent.name
        is_forced = is_named and request is not None and request.leader is None
        self._announce(agent, view, effect, is_forced=is_forced)
        if keys.get("leader") is None or keys["leader"].value != agent.name:
            return  # it has lost the key meanwhile, and the executor or the fence will see to that
        why = None if is_forced else self._obstacle(agent)
        if why is not None:
            raise Broken(f"a promotion that was not allowed, {why}: {agent.name}")

    def _obstacle(self, agent: Agent) -> str | None:
        keys, now_us = self._cluster.etcd.keys, self._cluster.kernel.now_us
        text = {name: key.value for name, key in keys.items()}
        dynamic, sync = parse_dynamic(text.get("config")), parse_sync(text.get("sync"))
        is_decisive = self._cluster.is_mode_fixed and dynamic.synchronous_mode != "off" and sync.leader is not None
        if is_decisive and agent.name not in (sync.leader, *sync.members):
            return "the sync key does not name it"
        if is_barred_by_tags(agent.tags) and agent.name not in self._cluster.retagged:
            return "its tags forbid it"
        history, timeline = text.get("history"), agent.host.data.branch.tli
        if dynamic.check_timeline and history and timeline < parse_last_timeline(history):
            return "it is on an old timeline"
        if self.paused_since_us is not None and now_us - self.paused_since_us > PAUSE_HEARD_US:
            return "the cluster is paused" if "failover" not in keys else None
        return None

    def _announce(self, agent: Agent, view: View, effect: do.Promote, *, is_forced: bool) -> None:
        loss, server = effect.loss, agent.host.server
        at_most_bytes = None
        span_ms = unheard_ms(view)
        if loss is not None and loss.basis == "measured" and loss.at_most_bytes is not None and span_ms is not None:
            lacking = loss.position_lsn - view.position_lsn
            at_most_bytes = max(loss.at_most_bytes, lacking + WRITES_BYTES_PER_S * span_ms // 1000)
        if server is not None:
            self.announced[agent.name, server.pid] = Announced(loss, at_most_bytes, is_forced=is_forced)

    def judge_loss(self, server: "Server", lost: "list[tuple[Branch, int, bool]]") -> str | None:
        """Why a server that accepts writes should hold what it lacks; None if that was announced.

        Args:
            server: it accepts writes for the first time.
            lost: the acknowledged commits that it lacks; whether each waited for a standby.
        """
        announced = self.announced.get((server.host.name, server.pid))
        if announced is None:
            self.losses["in place"] += 1
            return "nothing was announced" if lost else None
        basis = announced.loss.basis if announced.loss is not None else "unknown"
        if announced.is_forced:
            self.losses["forced"] += 1
            return None
        self.losses[basis] += 1
        if basis == "synchronous":
            return "none that waited was to be lost" if any(waited for _, _, waited in lost) else None
        if basis == "own":
            return "nothing was to be lost" if lost else None
        if basis != "measured" or announced.loss is None or announced.at_most_bytes is None or not lost:
            return None
        found = max(lsn for _, lsn, _ in lost) - server.data.branch.fork_lsn
        self.losses["measured, above the estimate"] += found > (announced.loss.at_most_bytes or 0)
        if found > announced.at_most_bytes:
            return f"{found} bytes are lost, and no more than {announced.at_most_bytes} were to be"
        return None

    # ---- keys --------------------------------------------------------------------------------------------------------

    def forget_holder(self) -> None:
        """The leader key is gone with everything else in etcd, before its lease was over: its holder could not know."""
        self._holder = None

    def keys_changed(self) -> None:
        """Whoever lost the leader key takes no writes, and says so."""
        held = self._cluster.etcd.keys.get("leader")
        before, self._holder = self._holder, held.value if held is not None else None
        if before is None or before == self._holder or self.is_by_hand:
            return
        node = self._cluster.nodes[before]
        now_ms = node.clock.now_ms()
        if now_ms < self.failsafe_until_ms.get(before, 0) or self._cluster.kernel.now_us <= node.paused_whole_until_us:
            return
        if node.host.server is not None and node.host.server.is_writable:
            raise Broken(f"a server takes writes after the lease: {before}")
        if node.agent.process.is_running and status.is_writable(node.agent.view, now_ms):
            raise Broken(f"GET /primary says 200 after the lease: {before}")
