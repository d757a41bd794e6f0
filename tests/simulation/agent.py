"""One agent: the real `step`, and executors that keep the contract of effects/lanes.py around the models."""

from collections import deque
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from effects.peers import parse_report
from fsm import effects as do
from fsm import events as ev
from fsm import status
from fsm.facts import KeptPromise, KeyChange, PeerReport
from fsm.machine import Decision, Issued, step
from fsm.silence import WAL_SEGMENT_BYTES
from fsm.timing import watch_progress_every_ms
from fsm.view import View
from fsm.vote import vote_revision
from tests.simulation.etcd import Client, Etcd, LeaseGone, Unavailable, Uncertain
from tests.simulation.fence import Fence, end_server
from tests.simulation.kernel import MS, Clock, Kernel, Outcome, Process, S, Signal, Task, Work
from tests.simulation.network import Network
from tests.simulation.postgres import Branch, Host, ProgramFailed, Server, SqlFailed

PROBE_TIMEOUT_US = 2_500 * MS
ROOM_BYTES = 1 << 34
VOTE_WAIT_US = 300 * MS
FAILSAFE_WAIT_US = 400 * MS


class FenceFailed(Outcome):
    """There is no connection to the fence."""


class Expired(Outcome):
    """It may not be done any more."""


_KINDS: dict[type[Outcome], ev.FailureKind] = {
    Unavailable: "unavailable",
    LeaseGone: "lease_gone",
    FenceFailed: "fence",
    ProgramFailed: "program",
    SqlFailed: "sql",
    Expired: "expired",
}


class NodeDisk:
    """What is wrong with a node's disk: how little room there is, or that writes do not come back."""

    def __init__(self) -> None:
        self.free_bytes: int | None = None
        self.is_hanging = False


class Lane:
    """One effect at a time, each with its deadline, and always an answer."""

    def __init__(self, agent: "Agent") -> None:
        self._agent = agent
        self._waiting: deque[Issued] = deque()
        self._current: tuple[Issued, Task] | None = None

    def hand(self, issued: Issued) -> None:
        """Queue an effect."""
        self._waiting.append(issued)
        self._next()

    def cancel(self, effect_id: int) -> None:
        """Give an effect up."""
        if self._current is not None and self._current[0].effect_id == effect_id:
            issued, task = self._current
            task.cancel()
            self._current = None
            self._agent.report_failed(issued, "cancelled")
            self._next()
        for issued in [found for found in self._waiting if found.effect_id == effect_id]:
            self._waiting.remove(issued)
            self._agent.report_failed(issued, "cancelled")

    def _next(self) -> None:
        if self._current is not None or not self._waiting:
            return
        issued, agent = self._waiting.popleft(), self._agent
        work = self._guarded(issued)
        task = agent.kernel.start(agent.process, work, lambda result, error: self._ended(issued, result, error))
        self._current = (issued, task)
        agent.kernel.after(agent.process, issued.effect.timeout_ms * MS, self._time_out, issued)

    def _guarded(self, issued: Issued) -> Work:
        agent, effect = self._agent, issued.effect
        yield 50 + (agent.log_delay_us if effect.is_irreversible else 0)
        valid_until_ms = getattr(effect, "valid_until_ms", None)
        if valid_until_ms is not None and agent.now_ms() >= valid_until_ms:
            raise Expired
        return (yield from agent.performers[type(effect)](effect))

    def _ended(self, issued: Issued, result: ev.AnyResult | None, error: Exception | None) -> None:
        self._current = None
        agent = self._agent
        if result is not None:
            agent.report(
                ev.Succeeded(at_ms=agent.now_ms(), effect_id=issued.effect_id, duty=issued.duty, result=result)
            )
        elif isinstance(error, Uncertain):
            agent.report_unknown(issued)
        else:
            agent.report_failed(issued, _KINDS[type(error)])  # type: ignore[index]  # all of them are there
        self._next()

    def _time_out(self, issued: Issued) -> None:
        if self._current is not None and self._current[0] is issued:
            self._current[1].cancel()
            self._current = None
            self._agent.report_unknown(issued)
            self._next()


class Agent:
    """The agent process of one node."""

    def __init__(
        self,
        kernel: Kernel,
        network: Network,
        etcd: Etcd,
        clock: Clock,
        host: Host,
        fence: Fence,
        find: Callable[[str], "Agent | None"],
        first_config: str,
        tags: dict[str, Any],
    ) -> None:
        self.kernel, self.network, self.etcd, self.clock = kernel, network, etcd, clock
        self.host, self.fence, self._find = host, fence, find
        self.name = host.name
        self.first_config, self.tags = first_config, tags
        self._last_config = "{}"
        self.process = Process(f"{self.name}/agent")
        self.process.is_alive = False
        self.view = View()
        self.log_delay_us = 300
        self.disk = NodeDisk()
        self.rewind_fails = False
        self.watchdog_mode = "off"
        self.kept_promise: KeptPromise | None = None
        """What lies on the node's disk."""
        self.starts = 0
        self.took: Callable[[Agent, ev.AnyEvent, Decision], None] = lambda _, __, ___: None
        """Called with every decision."""
        self.exit: do.Exit | None = None
        fence.notify = self._fence_notices
        self.performers: dict[type[do.Effect], Callable[[Any], Work]] = self._performers()

    # ---- the process -------------------------------------------------------------------------------------------------

    def start(self, *, in_place: bool = False) -> None:
        """A new agent process begins, or the successor of one in its place."""
        self.kernel.revive(self.process)
        self.starts += 1
        self.view = View(seq=self.view.seq)
        self.exit = None
        self._inbox: deque[ev.AnyEvent] = deque()
        self._is_taking = False
        self._lanes: dict[str, Lane] = {}
        self._alarm = 0
        self._alarm_ms: int | None = None
        self._probe_every_ms: int | None = None
        self._board = Signal()
        self._pace = Signal()
        self._is_fence_connected = False
        self.client = Client(self.etcd, self.network, self.kernel, self.name)
        identity = ev.Identity(
            name=self.name,
            scope="sim",
            api_url=f"http://{self.name}:8008/patroni",
            conn_url=f"postgres://{self.name}:5432/postgres",
            tags=self.tags,
            first_config=self.first_config,
            instance=f"{self.name}-{self.starts}",
            watchdog_mode=self.watchdog_mode,
            has_watchdog=self.watchdog_mode != "off",
        )
        self.report(
            ev.AgentStarted(
                at_ms=self.now_ms(),
                identity=identity,
                boot=self.name,
                wall="sim",
                promise=self.kept_promise,
                in_place=in_place,
            )
        )
        self.kernel.start(self.process, self._watch_etcd())
        self.kernel.start(self.process, self._probe())
        self.kernel.start(self.process, self._look_at_the_disk())
        self.kernel.start(self.process, self._keep_fence())

    def now_ms(self) -> int:
        """The node's clock."""
        return self.clock.now_ms()

    def report(self, event: ev.AnyEvent) -> None:
        """Take an event."""
        self._inbox.append(event)
        if not self._is_taking:
            self._is_taking = True
            self.kernel.after(self.process, 80, self._take)

    def report_failed(self, issued: Issued, kind: ev.FailureKind) -> None:
        """An effect failed."""
        self.report(
            ev.Failed(at_ms=self.now_ms(), effect_id=issued.effect_id, duty=issued.duty, kind=kind, detail=kind)
        )

    def report_unknown(self, issued: Issued) -> None:
        """Nobody knows whether an effect was performed."""
        self.report(ev.Unknown(at_ms=self.now_ms(), effect_id=issued.effect_id, duty=issued.duty, detail="silence"))

    def _take(self) -> None:
        event = self._inbox.popleft()
        before = self.view
        decision = step(before, event)
        self.view = decision.view
        self._is_taking = bool(self._inbox)
        if self._inbox:
            self.kernel.after(self.process, 80, self._take)
        self.took(self, event, decision)
        for effect_id in decision.cancelled:
            for lane in self._lanes.values():
                lane.cancel(effect_id)
        for issued in decision.effects:
            if issued.effect.resource not in self._lanes:
                self._lanes[issued.effect.resource] = Lane(self)
            self._lanes[issued.effect.resource].hand(issued)
        self._set_alarm(decision.wake_at_ms)
        pace = (decision.probe_every_ms, decision.view.server.pid)
        if pace != (self._probe_every_ms, before.server.pid):
            self._probe_every_ms = decision.probe_every_ms
            self._pace.fire()
        self._board.fire()

    def _set_alarm(self, at_ms: int | None) -> None:
        """Tick at an instant of the node's clock. One that is set for it already stays."""
        if at_ms == self._alarm_ms:
            return
        self._alarm, self._alarm_ms = self._alarm + 1, at_ms
        if at_ms is not None:
            self.kernel.after(self.process, self.clock.wait_us(at_ms) + 20, self._tick, self._alarm)

    def _tick(self, alarm: int) -> None:
        if alarm != self._alarm:
            return
        self._alarm_ms = None
        if not self._is_taking:
            self.report(ev.Ticked(at_ms=self.now_ms()))

    # ---- where events come from --------------------------------------------------------------------------------------

    def _watch_etcd(self) -> Work:
        pause_us, told = 100 * MS, False
        while True:
            try:
                read = yield from self.client.call(self._read_all, 3_000)
            except Outcome:
                if not told:
                    told = True
                    self.report(ev.EtcdLost(at_ms=self.now_ms(), detail="no answer"))
                yield pause_us
                pause_us = min(2 * S, 2 * pause_us)
                continue
            pause_us, told = 100 * MS, True
            revision, keys, watch, news = read
            self._hear_config(keys)
            self.report(ev.ClusterRead(at_ms=self.now_ms(), revision=revision, keys=keys, unix_ms=self.clock.unix_ms()))
            yield from self._follow(watch, news)
            self.client.end_watch(watch)
            self.report(ev.EtcdLost(at_ms=self.now_ms(), detail="the watch broke"))
            yield pause_us

    def _hear_config(self, changes: tuple[KeyChange, ...]) -> None:
        for change in changes:
            self._last_config = change.value or self._last_config if change.key == "config" else self._last_config

    def _read_all(self) -> Any:
        news = Signal()
        watch = self.client.watch(self.process, news)
        return self.etcd.revision, tuple(self.etcd.keys[key] for key in sorted(self.etcd.keys)), watch, news

    def _follow(self, watch: Any, news: Signal) -> Work:
        silent_since_us: int | None = None
        while True:
            every_us = watch_progress_every_ms(self.view.dynamic.ttl_s) * MS
            yield (news, every_us)
            watch.pump()
            if watch.is_broken:
                return
            if watch.arrived:
                batches, watch.arrived = watch.arrived, []
                changes: tuple[KeyChange, ...] = tuple(change for _, batch in batches for change in batch)
                self._hear_config(changes)
                self.report(
                    ev.KeysChanged(
                        at_ms=self.now_ms(), revision=batches[-1][0], changes=changes, unix_ms=self.clock.unix_ms()
                    )
                )
            if self.etcd.serves(watch.member, self.name) and self.etcd.has_quorum:
                silent_since_us = None
            elif watch.member in self.etcd.down:
                return
            elif silent_since_us is None:
                silent_since_us = self.kernel.now_us
            elif self.kernel.now_us - silent_since_us >= 2 * every_us:
                return

    def _probe(self) -> Work:
        while True:
            server, every_ms = self.host.server, self._probe_every_ms
            pid = self.view.server.pid
            if every_ms is None or pid is None:
                yield self._pace
                continue
            began_us = self.kernel.now_us
            yield from self._look(server, pid)
            while self._probe_every_ms is not None and self.view.server.pid == pid:
                left_us = began_us + self._probe_every_ms * MS - self.kernel.now_us
                if left_us <= 0:
                    break
                yield (self._pace, left_us)

    def _look(self, server: Server | None, pid: int) -> Work:
        """Ask the server, and tell what it said."""
        yield 1_500 + self.kernel.rng.randrange(4_000)
        if server is None or server.has_ended or server.pid != pid:
            self.report(ev.ServerSilent(at_ms=self.now_ms(), pid=pid, detail="cannot connect"))
            return
        if server.process.is_paused:
            began_ms = self.now_ms()
            yield PROBE_TIMEOUT_US
            self.report(ev.ServerSilent(at_ms=self.now_ms(), pid=pid, detail="no answer", mute=True, began_ms=began_ms))
            return
        if not server.is_ready:
            self.report(ev.ServerSilent(at_ms=self.now_ms(), pid=pid, detail="starting", starting=True))
            return
        probe = server.probe()
        yield 300
        self.report(ev.ServerProbed(at_ms=self.now_ms(), pid=pid, probe=probe, took_ms=2))

    def _look_at_the_disk(self) -> Work:
        """Tell how much room there is, and when a write does not come back."""
        while True:
            yield 1_000 * MS if self.disk.free_bytes is not None or self.disk.is_hanging else 5_000 * MS
            if self.view.server.pid is None:
                continue
            began_ms = self.now_ms()
            if self.disk.is_hanging:
                yield 2_000 * MS
                self.report(ev.DiskSilent(at_ms=self.now_ms(), detail="no answer", began_ms=began_ms))
            elif self.disk.free_bytes is not None or self.view.disk.free_bytes is None or self.view.disk.is_full:
                free_bytes = ROOM_BYTES if self.disk.free_bytes is None else self.disk.free_bytes
                self.report(
                    ev.DiskLooked(
                        at_ms=self.now_ms(),
                        data_free_bytes=free_bytes,
                        wal_free_bytes=free_bytes,
                        segment_bytes=WAL_SEGMENT_BYTES,
                        began_ms=began_ms,
                    )
                )
            elif self.view.disk.trouble is not None:
                self.report(
                    ev.DiskLooked(
                        at_ms=self.now_ms(),
                        data_free_bytes=ROOM_BYTES,
                        wal_free_bytes=ROOM_BYTES,
                        segment_bytes=WAL_SEGMENT_BYTES,
                        began_ms=began_ms,
                    )
                )

    def _keep_fence(self) -> Work:
        while True:
            if not self.fence.process.is_alive:
                yield 60 * MS
                self.kernel.revive(self.fence.process)
                self.fence.armed_until_ms = None
            if self.fence.process.is_paused:  # it takes the connection, and does not greet
                yield 400 * MS
                if self.fence.process.is_paused:
                    self.fence.die()  # as effects/fence_link.py does
                continue
            yield 2 * MS
            server = self.host.server
            self._is_fence_connected = True
            self.report(
                ev.FenceConnected(
                    at_ms=self.now_ms(),
                    pid=server.pid if server else None,
                    armed_until_ms=self.fence.armed_until_ms if server else None,
                    is_adopted=server is not None and server is not self.fence.child,
                    watchdog_s=self.fence.watchdog_s,
                )
            )
            life = self.fence.process.life
            while self.fence.process.life == life:
                yield self.fence.died
            self._is_fence_connected = False
            self.report(ev.FenceLost(at_ms=self.now_ms(), detail="gone"))
            yield 50 * MS

    def _fence_notices(self, what: str, server: Server) -> None:
        if not self.process.is_alive or not self._is_fence_connected:
            return
        self.kernel.after(self.process, 300, self._hear_fence, what, server, self.fence.has_fired)

    def _hear_fence(self, what: str, server: Server, fired: bool) -> None:
        at_ms = self.now_ms()
        if what == "spawned":
            self.report(ev.ServerSpawned(at_ms=at_ms, pid=server.pid))
        else:
            self.report(ev.ServerExited(at_ms=at_ms, pid=server.pid, signal=9, fired=fired, exited_at_ms=at_ms))

    # ---- what others ask of it ---------------------------------------------------------------------------------------

    def tell_status(self) -> PeerReport:
        """GET /patroni, as a peer reads it."""
        now_ms = self.now_ms()
        fields = status.status_fields(self.view, status.standing_at(self.view, now_ms))
        return parse_report(self.name, {**fields, "matriarch": fields["matriarch"] | status.ages(self.view, now_ms)})

    def _vote(self, candidate: str, revision: int) -> Work:
        self.report(ev.VoteAsked(at_ms=self.now_ms(), candidate=candidate, sync_revision=revision))
        until_us = self.kernel.now_us + VOTE_WAIT_US
        while vote_revision(self.view) != revision and self.kernel.now_us < until_us:
            yield (self._board, until_us - self.kernel.now_us)
        return self.tell_status()

    def _confirm(self, asked: do.AskFailsafe, leader: str) -> Work:
        if not self.view.dynamic.failsafe_mode or status.is_leading_in_any_way(self.view):
            return False
        event = ev.FailsafeAsked(at_ms=self.now_ms(), leader=leader, ttl_s=asked.ttl_s)
        self.report(event)
        until_us = self.kernel.now_us + FAILSAFE_WAIT_US
        while (
            not status.has_promised(self.view, event)
            and status.failsafe_refusal(self.view, event) is None
            and self.kernel.now_us < until_us
        ):
            yield (self._board, until_us - self.kernel.now_us)
        return status.has_promised(self.view, event)

    def _ask(self, url: str, work: "Callable[[Agent], Work]", answers: dict[str, Any], name: str) -> None:
        """Send a question; its answer, if there is one, is put among the answers."""
        address = urlsplit(url).hostname or ""
        other = self._find(address)
        if other is None or not other.process.is_alive:
            return

        def begin() -> None:
            self.kernel.start(other.process, work(other), back)

        def back(found: Any, error: Exception | None) -> None:
            if error is not None:
                return
            self.network.send(other.name, self.name, self.process, answers.__setitem__, name, found)

        self.network.send(self.name, other.name, other.process, begin)

    # ---- executors ---------------------------------------------------------------------------------------------------

    def _performers(self) -> dict[type[do.Effect], Callable[[Any], Work]]:
        return {
            do.GrantLease: self._grant,
            do.RenewLease: self._renew,
            do.RevokeLease: self._revoke,
            do.TakeLeaderKey: self._take_leader,
            do.ReleaseLeaderKey: self._release_leader,
            do.ClaimInitialize: self._claim_initialize,
            do.WriteInitialize: self._write_initialize,
            do.WriteConfig: self._write_config,
            do.ChangeConfig: self._nothing,
            do.PublishMember: self._publish_member,
            do.PublishAsLeader: self._publish_as_leader,
            do.WriteSync: self._write_sync,
            do.DeleteSync: self._delete_sync,
            do.RequestFailover: self._request_failover,
            do.ClearFailover: self._clear_failover,
            do.ArmFence: self._arm,
            do.DisarmFence: self._disarm,
            do.FenceServer: self._stop,
            do.EndLeftovers: self._nothing,
            do.StopServer: self._stop,
            do.StopToRestart: self._stop,
            do.ReadDataDirectory: self._read_directory,
            do.InitDb: self._init_db,
            do.StartPrimary: self._start_primary,
            do.StartStandby: self._start_standby,
            do.Follow: self._follow_upstream,
            do.ReloadServer: self._follow_upstream,
            do.ApplyParameters: self._apply_parameters,
            do.Promote: self._promote,
            do.ClearDataDirectory: self._clear_directory,
            do.Clone: self._clone,
            do.Rewind: self._rewind,
            do.SetSyncNames: self._set_names,
            do.ReleaseSyncNames: self._release_names,
            do.EndStaleSenders: self._nothing,
            do.ReadSyncMark: self._read_mark,
            do.Checkpoint: self._checkpoint,
            do.ReadReplayNeeds: self._read_needs,
            do.PrepareCluster: self._nothing,
            do.ReadLeaderHistory: self._read_history,
            do.AskPeers: self._ask_peers,
            do.AskFailsafe: self._ask_failsafe,
            do.KeepPromise: self._keep_promise,
            do.ForgetPromise: self._forget_promise,
            do.TryPromise: self._nothing,
            do.CheckFailsafe: self._nothing,
            do.FeedWatchdog: self._feed_watchdog,
            do.ReleaseWatchdog: self._release_watchdog,
            do.CheckNewAgent: self._check_new_agent,
            do.BecomeNewAgent: self._become_new_agent,
            do.Exit: self._exit,
        }

    def _nothing(self, effect: do.Effect) -> Work:
        yield 1_000
        return ev.Done()

    def _grant(self, effect: do.GrantLease) -> Work:
        sent_at_ms = self.now_ms()
        lease_id = yield from self.client.call(lambda: self.etcd.grant(effect.ttl_s), effect.timeout_ms)
        return ev.LeaseHeld(lease_id=lease_id, ttl_s=effect.ttl_s, sent_at_ms=sent_at_ms, asked_ttl_s=effect.ttl_s)

    def _renew(self, effect: do.RenewLease) -> Work:
        sent_at_ms = self.now_ms()
        ttl_s = yield from self.client.call(lambda: self.etcd.renew(effect.lease_id), effect.timeout_ms)
        return ev.LeaseHeld(lease_id=effect.lease_id, ttl_s=ttl_s, sent_at_ms=sent_at_ms)

    def _revoke(self, effect: do.RevokeLease) -> Work:
        yield from self.client.call(lambda: self.etcd.revoke(effect.lease_id), effect.timeout_ms)
        return ev.Done()

    # ---- keys

    def _transact(
        self, effect: do.Effect, key: str, may: Callable[[], bool], value: str | None, lease_id: int = 0
    ) -> Work:
        def carry_out() -> ev.KeyWritten:
            etcd = self.etcd
            if not may():
                return ev.KeyWritten(applied=False, revision=etcd.revision, now=etcd.keys.get(key))
            now = etcd.delete(key) if value is None else etcd.put(key, value, lease_id)
            return ev.KeyWritten(applied=True, revision=etcd.revision, now=now)

        return (yield from self.client.call(carry_out, effect.timeout_ms))

    def _value(self, key: str) -> str | None:
        found = self.etcd.keys.get(key)
        return found.value if found is not None else None

    def _revision(self, key: str) -> int:
        found = self.etcd.keys.get(key)
        return found.mod_revision if found is not None else 0

    def _leads(self) -> bool:
        return self._value("leader") == self.name

    def _take_leader(self, effect: do.TakeLeaderKey) -> Work:
        def carry_out() -> ev.KeyWritten:
            etcd, held = self.etcd, self._value("leader")
            is_free = held is None and self._revision("sync") == effect.sync_revision
            if not is_free and held != self.name:
                return ev.KeyWritten(applied=False, revision=etcd.revision, now=etcd.keys.get("leader"))
            puts = [("leader", self.name, effect.lease_id)]
            if is_free and effect.sync_text is not None:
                puts.append(("sync", effect.sync_text, 0))
            now, *also = etcd.put_all(puts)
            return ev.KeyWritten(applied=True, revision=etcd.revision, now=now, also=also[0] if also else None)

        return (yield from self.client.call(carry_out, effect.timeout_ms))

    def _release_leader(self, effect: do.ReleaseLeaderKey) -> Work:
        return (yield from self._transact(effect, "leader", self._leads, None))

    def _claim_initialize(self, effect: do.ClaimInitialize) -> Work:
        def may() -> bool:
            return self._value("initialize") is None and self._value("leader") is None

        return (yield from self._transact(effect, "initialize", may, "", effect.lease_id))

    def _write_initialize(self, effect: do.WriteInitialize) -> Work:
        def may() -> bool:
            seen = effect.seen_revision
            is_seen = self._value("initialize") == "" if seen is None else self._revision("initialize") == seen
            return self._leads() and is_seen

        return (yield from self._transact(effect, "initialize", may, effect.system_id))

    def _write_config(self, effect: do.WriteConfig) -> Work:
        def may() -> bool:
            return self._leads() and self._value("config") is None

        text = self._last_config if effect.is_last_known else self.first_config
        return (yield from self._transact(effect, "config", may, text))

    def _publish_member(self, effect: do.PublishMember) -> Work:
        return (yield from self._transact(effect, f"members/{self.name}", lambda: True, effect.text, effect.lease_id))

    def _publish_as_leader(self, effect: do.PublishAsLeader) -> Work:
        def may() -> bool:
            seen = effect.seen_revision
            return self._leads() and (seen is None or self._revision(effect.key) == seen)

        return (yield from self._transact(effect, effect.key, may, effect.text))

    def _write_sync(self, effect: do.WriteSync) -> Work:
        def may() -> bool:
            return self._leads() and self._revision("sync") == effect.mod_revision

        return (yield from self._transact(effect, "sync", may, effect.text))

    def _delete_sync(self, effect: do.DeleteSync) -> Work:
        def may() -> bool:
            return self._leads() and self._revision("sync") == effect.mod_revision

        return (yield from self._transact(effect, "sync", may, None))

    def _request_failover(self, effect: do.RequestFailover) -> Work:
        return (yield from self._transact(effect, "failover", lambda: True, effect.text))

    def _clear_failover(self, effect: do.ClearFailover) -> Work:
        def may() -> bool:
            return self._revision("failover") == effect.mod_revision

        return (yield from self._transact(effect, "failover", may, "{}"))

    # ---- fence

    def _reach_fence(self) -> Work:
        yield 200 + self.kernel.rng.randrange(500)
        if not self._is_fence_connected or not self.fence.process.is_alive:
            raise FenceFailed
        if self.fence.process.is_paused:
            yield 1_500 * MS
            raise FenceFailed

    def _arm(self, effect: do.ArmFence) -> Work:
        yield from self._reach_fence()
        self.fence.arm(effect.until_ms)
        yield 200
        return ev.FenceArmed(until_ms=effect.until_ms, watchdog_s=self.fence.watchdog_s)

    def _feed_watchdog(self, effect: do.FeedWatchdog) -> Work:
        yield from self._reach_fence()
        if self.host.ailments.watchdog_fails:
            self.fence.watchdog_s = None
            raise ProgramFailed
        self.fence.watchdog_s = effect.timeout_s
        return ev.WatchdogFed(asked_s=effect.timeout_s, timeout_s=effect.timeout_s)

    def _release_watchdog(self, effect: do.ReleaseWatchdog) -> Work:
        yield from self._reach_fence()
        self.fence.watchdog_s = None
        return ev.Done()

    def _check_new_agent(self, effect: do.CheckNewAgent) -> Work:
        yield 300 * MS + self.kernel.rng.randrange(900) * MS
        return ev.NewAgentChecked(took_ms=900)

    def _become_new_agent(self, effect: do.BecomeNewAgent) -> Work:
        yield 1 * MS
        self.kernel.after(self.kernel.world, 0, self._give_way, self.process.life)
        yield Signal()  # never answered

    def _give_way(self, life: int) -> None:
        if self.process.life == life:
            self.kernel.kill(self.process)
            self.kernel.after(self.kernel.world, 150 * MS + self.kernel.rng.randrange(600) * MS, self._begin_in_place)

    def _begin_in_place(self) -> None:
        if not self.process.is_alive:
            self.start(in_place=True)

    def _disarm(self, effect: do.DisarmFence) -> Work:
        yield from self._reach_fence()
        self.fence.arm(None)
        yield 200
        return ev.Done()

    def _stop(self, effect: do.FenceServer | do.StopServer | do.StopToRestart) -> Work:
        server = self.host.server
        try:
            yield from self._reach_fence()
        except FenceFailed:
            if server is not None:
                self.kernel.after(self.kernel.world, 2 * MS, server.end)  # the agent itself, with SIGKILL
        else:
            if server is not None and effect.mode == "fast":
                self.kernel.start(server.process, server.shut_down())
                self.kernel.after(self.kernel.world, effect.kill_after_ms * MS, server.end)
            elif server is not None:
                end_server(self.kernel, server)
        while server is not None and not server.has_ended:
            yield self.host.changed
        yield 500
        return ev.Done()

    # ---- server

    def _read_directory(self, effect: do.ReadDataDirectory) -> Work:
        yield 8 * MS
        return ev.DirectoryRead(directory=self.host.data.describe())

    def _init_db(self, effect: do.InitDb) -> Work:
        data = self.host.data
        data.clear()
        data.condition = "unfinished_init"
        yield 600 * MS
        data.condition, data.control_state = "cluster", "shut down"
        data.system_id = str(7_300_000_000_000_000_000 + self.kernel.rng.randrange(1 << 40))
        data.branch, data.lsn = Branch(1), 10_000
        data.checkpoint_tli, data.checkpoint_lsn = 1, data.lsn - 1
        return ev.Done()

    def _start(self, *, in_recovery: bool, armed_until_ms: int | None) -> Work:
        yield from self._reach_fence()
        yield 5 * MS
        if self.host.server is not None:
            raise SqlFailed
        if self.host.data.condition != "cluster":
            raise ProgramFailed
        server = self.fence.start(in_recovery=in_recovery, armed_until_ms=armed_until_ms)
        return ev.ServerStarted(pid=server.pid)

    def _start_primary(self, effect: do.StartPrimary) -> Work:
        self.host.data.names = effect.names.text if effect.names is not None else ""
        return (yield from self._start(in_recovery=False, armed_until_ms=effect.armed_until_ms))

    def _start_standby(self, effect: do.StartStandby) -> Work:
        self.host.data.upstream = effect.upstream
        return (yield from self._start(in_recovery=True, armed_until_ms=None))

    def _server(self) -> Server:
        if self.host.server is None:
            raise SqlFailed
        return self.host.server

    def _follow_upstream(self, effect: do.Follow | do.ReloadServer) -> Work:
        yield 4 * MS
        server = self._server()
        self.kernel.after(server.process, self.kernel.rng.randrange(8 * MS), server.follow, effect.upstream)
        return ev.Done()

    def _apply_parameters(self, effect: do.ApplyParameters) -> Work:
        yield 10 * MS
        server = self._server()
        self.kernel.after(server.process, self.kernel.rng.randrange(8 * MS), server.follow, effect.upstream)
        return ev.ParametersApplied(pid=effect.pid, config_revision=effect.config_revision)

    def _promote(self, effect: do.Promote) -> Work:
        yield 1 * MS
        server = self._server()
        self.kernel.start(server.process, server.promote(effect.timeline))
        return ev.Done()

    def _clear_directory(self, effect: do.ClearDataDirectory) -> Work:
        yield 30 * MS
        self.host.data.clear()
        return ev.Done()

    def _source(self, host: str) -> Server:
        found = self.host.find(host)
        is_open = self.network.is_open(self.name, host) and self.network.is_open(host, self.name)
        if found is None or not found.is_ready or found.has_ended or not is_open or found.process.is_paused:
            raise SqlFailed
        return found

    def _clone(self, effect: do.Clone) -> Work:
        data = self.host.data
        source = self._source(effect.upstream.host)
        data.clear()
        data.condition = "unfinished_clone"
        until_us = self.kernel.now_us + 500 * MS + self.kernel.rng.randrange(3_000) * MS
        while self.kernel.now_us < until_us:
            yield 100 * MS
            if self._source(effect.upstream.host) is not source or data.condition != "unfinished_clone":
                raise ProgramFailed
        if self.host.ailments.clone_fails:
            raise ProgramFailed
        theirs = source.data
        data.condition, data.system_id, data.is_base_backup = "cluster", theirs.system_id, True
        data.branch, data.lsn, data.newest_tli = theirs.branch, theirs.lsn, theirs.newest_tli
        data.control_state = "in production"
        data.checkpoint_tli, data.checkpoint_lsn = theirs.checkpoint_tli, theirs.checkpoint_lsn
        data.min_recovery_tli, data.min_recovery_lsn = theirs.branch.tli, theirs.lsn
        return ev.Done()

    def _rewind(self, effect: do.Rewind) -> Work:
        data = self.host.data
        source = self._source(effect.upstream.host)
        if source.in_recovery or source.data.checkpoint_tli < effect.timeline:
            raise SqlFailed
        data.condition = "unfinished_rewind"
        yield 300 * MS + self.kernel.rng.randrange(1_000) * MS
        is_gone = data.condition != "unfinished_rewind"  # somebody removed it meanwhile
        if self._source(effect.upstream.host) is not source or self.rewind_fails or is_gone:
            raise ProgramFailed
        theirs, found = source.data, data.branch
        fork_lsn = data.lsn
        while (reached := theirs.branch.reach_lsn(theirs.lsn, found)) is None:
            if found.parent is None:
                raise ProgramFailed
            fork_lsn, found = min(fork_lsn, found.fork_lsn), found.parent
        data.branch, data.lsn = found, min(fork_lsn, reached)
        data.condition, data.control_state = "cluster", "in archive recovery"
        data.newest_tli = theirs.newest_tli
        data.checkpoint_tli, data.checkpoint_lsn = theirs.checkpoint_tli, theirs.checkpoint_lsn
        data.min_recovery_tli, data.min_recovery_lsn = theirs.branch.tli, theirs.lsn
        return ev.Done()

    # ---- SQL

    def _ready(self) -> Work:
        yield 1 * MS
        server = self._server()
        if server.process.is_paused:
            yield Signal()  # until the deadline
        if not server.is_ready:
            raise SqlFailed
        return server

    def _set_names(self, effect: do.SetSyncNames) -> Work:
        server = yield from self._ready()
        server.data.names = effect.names.text
        yield 3 * MS + self.kernel.rng.randrange(10) * MS
        if server.has_ended:
            raise SqlFailed
        server.names = server.data.names
        server.release()
        return ev.Done()

    def _release_names(self, effect: do.ReleaseSyncNames) -> Work:
        server = yield from self._ready()
        server.data.names = server.names = ""
        server.release()
        return ev.Done()

    def _read_mark(self, effect: do.ReadSyncMark) -> Work:
        server = yield from self._ready()
        yield 2 * MS
        return ev.SyncMarked(names=server.names, flushed_lsn=server.data.lsn)

    def _checkpoint(self, effect: do.Checkpoint) -> Work:
        server = yield from self._ready()
        yield 20 * MS + self.kernel.rng.randrange(200) * MS
        if server.has_ended:
            raise SqlFailed
        server.checkpoint()
        return ev.Done()

    def _read_needs(self, effect: do.ReadReplayNeeds) -> Work:
        yield from self._ready()
        return ev.ReplayNeedsRead(pid=effect.pid, too_low=())

    def _read_history(self, effect: do.ReadLeaderHistory) -> Work:
        yield 4 * MS
        host = effect.upstream.host
        server = self._server() if host == self.name else self._source(host)
        if not server.is_ready:
            raise SqlFailed
        return ev.HistoryRead(leader=effect.upstream.name, history=server.history(), wall="sim")

    # ---- peers

    def _ask_peers(self, effect: do.AskPeers) -> Work:
        answers: dict[str, PeerReport] = {}

        def one(name: str) -> Callable[[Agent], Work]:
            if name in effect.voters:
                return lambda other: other._vote(self.name, effect.sync_revision)
            return lambda other: other._tell()

        for name, url in effect.api_urls.items():
            self._ask(url, one(name), answers, name)
        until_us = self.kernel.now_us + effect.timeout_ms * 900
        while len(answers) < len(effect.api_urls) and self.kernel.now_us < until_us:
            yield 3 * MS
        return ev.PeersHeard(reports=tuple(answers[name] for name in sorted(answers)))

    def _tell(self) -> Work:
        yield 400
        return self.tell_status()

    def _ask_failsafe(self, effect: do.AskFailsafe) -> Work:
        sent_at_ms = self.now_ms()
        answers: dict[str, bool] = {}
        for name, url in effect.api_urls.items():
            self._ask(url, lambda other: other._confirm(effect, self.name), answers, name)
        until_us = self.kernel.now_us + effect.timeout_ms * 900
        while len(answers) < len(effect.api_urls) and self.kernel.now_us < until_us:
            yield 3 * MS
        accepted = tuple(sorted(name for name, is_accepted in answers.items() if is_accepted))
        return ev.FailsafeHeard(sent_at_ms=sent_at_ms, ttl_s=effect.ttl_s, accepted=accepted)

    def _keep_promise(self, effect: do.KeepPromise) -> Work:
        yield 1_000 + self.log_delay_us
        self.kept_promise = KeptPromise(
            leader=effect.leader, boot=self.name, asked_at_ms=effect.asked_at_ms, until_ms=effect.until_ms
        )
        return ev.PromiseKept(leader=effect.leader, asked_at_ms=effect.asked_at_ms, until_ms=effect.until_ms)

    def _forget_promise(self, effect: do.ForgetPromise) -> Work:
        yield 1_000
        self.kept_promise = None
        return ev.Done()

    def _exit(self, effect: do.Exit) -> Work:
        yield 0
        self.exit = effect
        self.kernel.kill(self.process)
        return ev.Done()
