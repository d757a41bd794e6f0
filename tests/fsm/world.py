"""One node's `step` in virtual time, and just enough of a world to answer what it asks for. No I/O, no real clock.

A story tells the world what happens (`put`, `crash`, `lose_etcd`, …); the world answers each effect with its natural
outcome, unless the story holds or fails the duty. Every decision is checked by `invariants.check` and kept, so a story
is also a log.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from msgspec.structs import replace

from fsm import effects as do
from fsm import events as ev
from fsm.facts import (
    DataDirectory,
    FailsafeAnswer,
    KeptPromise,
    KeyChange,
    PeerReport,
    Probe,
    Standby,
    TimelineHistory,
    TimelineSwitch,
    Upstream,
)
from fsm.machine import Decision, Issued, step
from fsm.view import View
from fsm.wire import compact
from tests.fsm import invariants

SYSTEM_ID = "7300000000000000001"
START_MS = 1_000_000
STEPS_MAX = 3_000
MIB = 1 << 20

EMPTY = DataDirectory(condition="empty")
CLUSTER = DataDirectory(
    condition="cluster", system_id=SYSTEM_ID, timeline=1, control_state="shut down", checkpoint_lsn=10 * MIB,
    data_checksums=True,
)  # fmt: skip
STANDBY = replace(CLUSTER, control_state="shut down in recovery", min_recovery_lsn=10 * MIB, min_recovery_timeline=1)
HALF_REWOUND = replace(CLUSTER, condition="unfinished_rewind")

Ending = ev.FailureKind | None


def member_value(name: str, role: str = "replica", **more: object) -> str:
    """A member key's text as that member would write it."""
    fields = {
        "conn_url": f"postgres://10.0.0.{name[1:]}:5432/postgres",
        "api_url": f"http://10.0.0.{name[1:]}:8008/patroni",
        "state": "running",
        "role": role,
        "timeline": 1,
        **more,
    }
    return compact(fields)


def forked(timeline: int, at_lsn: int) -> TimelineHistory:
    """The history of a leader that left the timeline before `timeline` at `at_lsn`."""
    return TimelineHistory(
        timeline=timeline, system_id=SYSTEM_ID, switches=(TimelineSwitch(timeline=timeline - 1, lsn=at_lsn),)
    )


@dataclass
class Postgres:
    """The server of the node as it really is."""

    pid: int
    in_recovery: bool
    timeline: int
    lsn: int
    upstream: Upstream | None = None
    receiver_status: str | None = "streaming"
    replay_paused: bool = False
    standbys: tuple[Standby, ...] = ()
    sync_names: str = ""

    def probe(self) -> Probe:
        """What a look at it shows."""
        return Probe(
            in_recovery=self.in_recovery,
            timeline=self.timeline,
            system_id=SYSTEM_ID,
            server_version=160004,
            postmaster_started_at=f"start-{self.pid}",
            flushed_lsn=0 if self.in_recovery else self.lsn,
            received_lsn=self.lsn if self.in_recovery and self.upstream else 0,
            replayed_lsn=self.lsn if self.in_recovery else 0,
            receiver_status=self.receiver_status if self.in_recovery and self.upstream else None,
            upstream_host=self.upstream.host if self.upstream else None,
            upstream_port=self.upstream.port if self.upstream else None,
            standbys=self.standbys,
            replay_paused=self.replay_paused,
            synchronous_standby_names=self.sync_names,
        )


@dataclass
class World:
    """A node and what surrounds it."""

    name: str = "n1"
    tags: dict[str, str | int | float | bool | None] = field(default_factory=dict)
    may_initialize: bool = True
    clone_on_rewind_failure: bool = True
    clone_on_divergence: bool = True
    first_config: str = '{"ttl":30}'
    directory: DataDirectory = EMPTY
    server: Postgres | None = None
    armed_until_ms: int | None = None
    keys: dict[str, KeyChange] = field(default_factory=dict)
    revision: int = 100
    leases: dict[int, int] = field(default_factory=dict)
    """When each lease runs out at etcd."""
    is_etcd_up: bool = True
    has_fence: bool = True
    now_ms: int = START_MS
    history: TimelineHistory = field(default_factory=lambda: TimelineHistory(timeline=1, system_id=SYSTEM_ID))
    reports: dict[str, PeerReport] = field(default_factory=dict)
    """Peers that answer; all others are silent."""
    confirming: set[str] = field(default_factory=set)
    held: set[str] = field(default_factory=set)
    """Duties whose effects are not answered for now."""
    last_config: str = "{}"
    """The configuration that was in etcd last."""
    config_texts: dict[str, str] = field(default_factory=dict)
    """What is to be written under each request for another configuration."""
    failing: dict[str, ev.FailureKind] = field(default_factory=dict)
    """Duties whose effects fail, and how."""
    is_server_silent: bool = False
    watchdog_mode: str = "off"
    has_watchdog: bool = False
    watchdog_s: int | None = None
    """The timeout of the watchdog that the fence feeds."""
    trial_ms: int = 800
    """How long the agent on the disk takes to show that it would start."""
    recovered_lsn: int = 0
    """How far the WAL on disk reaches beyond what the control file says."""
    too_low: tuple[str, ...] = ()
    """Parameters of the running server that are lower than its WAL needs."""
    is_notice_lost: bool = False
    """The fence's own notice of a new postmaster does not come, only the answer to the start."""

    view: View = field(default_factory=View)
    pending: list[Issued] = field(default_factory=list)
    decisions: list[tuple[ev.AnyEvent, Decision]] = field(default_factory=list)
    exit: do.Exit | None = None
    next_id: int = 1
    look: Callable[[], None] = lambda: None
    """Called right after a key was written, before anybody hears of it."""
    probed_at_ms: int = 0
    """When the server was last looked at."""
    failsafe_answers: tuple[FailsafeAnswer, ...] = ()
    """What the members say to a question that binds nobody."""
    kept: KeptPromise | None = None
    """The promise on the node's disk."""
    boot_id: str = "boot-1"

    # ---- what a story asks ---------------------------------------------------------------------------------------

    @property
    def rules(self) -> list[str]:
        """The rules that moved the node, in order."""
        return [decision.rule for _, decision in self.decisions if decision.rule]

    @property
    def issued(self) -> list[Issued]:
        """Everything that was asked for, in order."""
        return [issued for _, decision in self.decisions for issued in decision.effects]

    def orders(self, kind: type[do.Effect]) -> list[do.AnyEffect]:
        """Every effect of one kind that was asked for, in order."""
        return [issued.effect for issued in self.issued if isinstance(issued.effect, kind)]

    # ---- what a story does ---------------------------------------------------------------------------------------

    def feed(self, event: ev.AnyEvent) -> Decision:
        """One step, checked and kept."""
        before = self.view
        decision = step(before, event)
        invariants.check(before, event, decision)
        self.view = decision.view
        self.decisions.append((event, decision))
        cancelled = [p for p in self.pending if p.effect_id in decision.cancelled]
        self.pending = [p for p in self.pending if p.effect_id not in decision.cancelled] + list(decision.effects)
        for issued in cancelled:
            self.feed(self._failed(issued.effect_id, issued.duty, "cancelled"))
        return decision

    def boot(self) -> "World":
        """The agent begins (again), meets its fence and reads etcd."""
        self.pending.clear()
        self.exit = None
        self.start_agent()
        if self.has_fence:
            self.connect_fence()
        if self.is_etcd_up:
            self.heal_etcd()
        return self

    def reboot(self, *, at_ms: int) -> "World":
        """The whole machine begins anew, and with it the clock that instants are read from."""
        if self.server is not None:
            state = "in archive recovery" if self.server.in_recovery else "in production"
            self.directory = replace(self.directory, control_state=state, timeline=self.server.timeline)
        for lease_id in list(self.leases):
            self._drop_lease(lease_id)
        self.server, self.armed_until_ms = None, None
        self.boot_id, self.now_ms, self.probed_at_ms = f"{self.boot_id}'", at_ms, 0
        return self.boot()

    def start_agent(self) -> None:
        """The agent begins and knows nothing yet."""
        identity = ev.Identity(
            name=self.name,
            scope="demo",
            api_url=f"http://10.0.0.{self.name[1:]}:8008/patroni",
            conn_url=f"postgres://10.0.0.{self.name[1:]}:5432/postgres",
            tags=self.tags,
            first_config=self.first_config,
            may_initialize=self.may_initialize,
            clone_on_rewind_failure=self.clone_on_rewind_failure,
            clone_on_divergence=self.clone_on_divergence,
            watchdog_mode=self.watchdog_mode,
            has_watchdog=self.has_watchdog,
        )
        started = ev.AgentStarted(
            at_ms=self.now_ms, identity=identity, boot=self.boot_id, wall="2026-01-01T00:00:00Z", promise=self.kept
        )
        self.feed(started)

    def connect_fence(self) -> None:
        """The fence tells what it holds."""
        pid = self.server.pid if self.server else None
        told = ev.FenceConnected(
            at_ms=self.now_ms, pid=pid, armed_until_ms=self.armed_until_ms, watchdog_s=self.watchdog_s
        )
        self.feed(told)

    def put(self, key: str, value: str, lease_id: int = 0) -> KeyChange:
        """Somebody writes a key."""
        self.revision += 1
        created = self.keys[key].create_revision if key in self.keys else self.revision
        change = KeyChange(key=key, value=value, mod_revision=self.revision, create_revision=created, lease_id=lease_id)
        self.keys[key] = change
        self.last_config = value if key == "config" else self.last_config
        self.look()
        self._watch(change)
        return change

    def delete(self, key: str) -> KeyChange:
        """Somebody deletes a key, or its lease runs out."""
        self.revision += 1
        del self.keys[key]
        change = KeyChange(key=key, value=None, mod_revision=self.revision)
        self._watch(change)
        return change

    def _watch(self, change: KeyChange) -> None:
        if self.is_etcd_up and self.view.etcd.is_watched:
            self.feed(ev.KeysChanged(at_ms=self.now_ms, revision=self.revision, changes=(change,)))

    def join(self, name: str, role: str = "replica", **more: object) -> None:
        """Another member publishes itself."""
        self.put(f"members/{name}", member_value(name, role, **more))

    def lead(self, name: str, **more: object) -> None:
        """Another member holds the leader key and says that its server accepts writes."""
        self.join(name, "primary", **more)
        self.put("leader", name, lease_id=900)

    def initialized(self) -> "World":
        """The cluster exists, with settings."""
        self.put("initialize", SYSTEM_ID)
        self.put("config", self.first_config)
        return self

    def lose_etcd(self) -> None:
        """etcd falls silent."""
        self.is_etcd_up = False
        self.feed(ev.EtcdLost(at_ms=self.now_ms, detail="no answer"))

    def wipe_etcd(self) -> None:
        """etcd is down for a moment and comes back empty."""
        self.lose_etcd()
        self.keys.clear()
        self.leases.clear()
        self.revision = 1
        self.heal_etcd()

    def heal_etcd(self) -> None:
        """etcd answers again, and is read."""
        self.is_etcd_up = True
        self._expire_leases()
        read = ev.ClusterRead(at_ms=self.now_ms, revision=self.revision, keys=tuple(self.keys.values()))
        self.feed(read)

    def crash(self) -> None:
        """The server dies by itself."""
        self._end_server("in production", signal=9)

    def stop_asked(self) -> None:
        """SIGTERM."""
        self.feed(ev.StopAsked(at_ms=self.now_ms))

    def probe(self) -> None:
        """The server is looked at."""
        self.probed_at_ms = self.now_ms
        if self.server is None:
            return
        if self.is_server_silent:
            self.feed(ev.ServerSilent(at_ms=self.now_ms, pid=self.server.pid, detail="timeout"))
        else:
            self.feed(ev.ServerProbed(at_ms=self.now_ms, pid=self.server.pid, probe=self.server.probe()))

    def until(self, is_reached: Callable[["World"], bool], *, within_ms: int = 600_000) -> None:
        """Let the world run until something is so."""
        end_ms = self.now_ms + within_ms
        for _ in range(STEPS_MAX):
            if is_reached(self):
                return
            assert self.now_ms <= end_ms, f"not within {within_ms} ms; {self._story()}"
            self._go_on(end_ms + 1)
        raise AssertionError(f"not within {STEPS_MAX} steps; {self._story()}")

    def until_state(self, state: str, *, within_ms: int = 600_000) -> None:
        """Let the world run until the node is in a state."""
        self.until(lambda world: world.view.state == state, within_ms=within_ms)

    def wait(self, span_ms: int) -> None:
        """Let the world run for a while."""
        end_ms = self.now_ms + span_ms
        for _ in range(STEPS_MAX):
            if self.now_ms >= end_ms:
                return
            self._go_on(end_ms)
        raise AssertionError(f"{STEPS_MAX} steps within {span_ms} ms; {self._story()}")

    def _story(self) -> str:
        underway = {duty: u.kind for duty, u in self.view.underway.items()}
        return (
            f"state {self.view.state}, last rules {self.rules[-12:]}, under way {underway}, "
            f"directory {self.directory}, server {self.server}, attempts {self.view.attempts}"
        )

    # ---- how the world goes on -----------------------------------------------------------------------------------

    def _go_on(self, end_ms: int) -> None:
        """The next thing that happens: a move goes on, an effect is answered, or time passes."""
        if self.exit is not None:
            self.now_ms = end_ms  # the agent has ended
            return
        last = self.decisions[-1][1]
        issued = next((p for p in self.pending if p.duty not in self.held), None)
        if last.rule is not None:
            self.feed(ev.Ticked(at_ms=self.now_ms))
        elif issued is not None:
            self.pending.remove(issued)
            self.now_ms += 1
            self._expire_leases()
            self._answer(issued)
        else:
            self._pass_time(last, end_ms)

    def _pass_time(self, last: Decision, end_ms: int) -> None:
        probe_ms = max(self.now_ms, self.probed_at_ms + last.probe_every_ms) if last.probe_every_ms else end_ms
        wake_ms = last.wake_at_ms if last.wake_at_ms is not None else end_ms
        fire_ms = self.armed_until_ms if self.armed_until_ms is not None and self.server else end_ms
        self.now_ms = max(self.now_ms, min(probe_ms, wake_ms, fire_ms, end_ms))
        self._expire_leases()
        if self.server and self.armed_until_ms is not None and self.now_ms >= self.armed_until_ms:
            self._end_server("in production", signal=9, fired=True)
        elif self.server and self.now_ms == probe_ms:
            self.probe()
        else:
            self.feed(ev.Ticked(at_ms=self.now_ms))

    def _expire_leases(self) -> None:
        if not self.is_etcd_up:
            return
        for lease_id in [lease_id for lease_id, end_ms in self.leases.items() if self.now_ms >= end_ms]:
            self._drop_lease(lease_id)

    def _drop_lease(self, lease_id: int) -> None:
        self.leases.pop(lease_id, None)
        for key in [key for key, change in self.keys.items() if change.lease_id == lease_id]:
            self.delete(key)

    def _answer(self, issued: Issued) -> None:
        kind = self.failing.get(issued.duty) or self._reason_to_fail(issued.effect)
        if kind is not None:
            self.feed(self._failed(issued.effect_id, issued.duty, kind))
            return
        result = self._perform(issued.effect)
        self.feed(ev.Succeeded(at_ms=self.now_ms, effect_id=issued.effect_id, duty=issued.duty, result=result))
        if self.server and isinstance(issued.effect, do.Promote | do.Follow):
            self.probe()

    def _failed(self, effect_id: int, duty: str, kind: ev.FailureKind) -> ev.Failed:
        return ev.Failed(at_ms=self.now_ms, effect_id=effect_id, duty=duty, kind=kind, detail=f"the story: {kind}")

    def _reason_to_fail(self, effect: do.AnyEffect) -> Ending:
        if effect.resource in ("lease", "leader", "sync", "keys") and not self.is_etcd_up:
            return "unavailable"
        if isinstance(effect, do.RenewLease) and effect.lease_id not in self.leases:
            return "lease_gone"
        if isinstance(effect, do.TakeLeaderKey | do.StartPrimary | do.Promote) and self.now_ms >= effect.valid_until_ms:
            return "expired"
        if isinstance(effect, do.StartPrimary | do.StartStandby) and self.directory.condition != "cluster":
            return "program"
        return None

    def _perform(self, effect: do.AnyEffect) -> ev.AnyResult:
        match effect:
            case do.GrantLease() | do.RenewLease() | do.RevokeLease():
                return self._perform_lease(effect)
            case do.FeedWatchdog():
                self.watchdog_s = effect.timeout_s
                return ev.WatchdogFed(asked_s=effect.timeout_s, timeout_s=effect.timeout_s)
            case do.ReleaseWatchdog():
                self.watchdog_s = None
                return ev.Done()
            case do.ArmFence() | do.DisarmFence() | do.EndLeftovers() | do.FenceServer():
                return self._perform_fence(effect)
            case do.StopServer() | do.StopToRestart():
                return self._perform_fence(effect)
            case do.WriteSync() | do.DeleteSync():
                return self._perform_sync_key(effect)
            case do.Exit():
                self.exit = effect
                return ev.Done()
            case _ if effect.resource in ("leader", "keys"):
                return self._perform_key(effect)
            case _:
                return self._perform_at_home(effect)

    def _perform_at_home(self, effect: do.AnyEffect) -> ev.AnyResult:
        match effect:
            case do.AskPeers() | do.AskFailsafe() | do.ReadLeaderHistory():
                return self._perform_question(effect)
            case do.ReadDataDirectory() | do.InitDb() | do.ClearDataDirectory() | do.Clone() | do.Rewind():
                return self._perform_directory(effect)
            case do.StartPrimary() | do.StartStandby():
                return self._perform_start(effect)
            case do.Follow() | do.ReloadServer() | do.Promote() | do.ApplyParameters() | do.ReadReplayNeeds():
                return self._perform_server(effect)
            case do.SetSyncNames() | do.ReleaseSyncNames() | do.ReadSyncMark():
                return self._perform_waiting(effect)
            case do.KeepPromise() | do.ForgetPromise():
                return self._perform_promise(effect)
            case do.CheckFailsafe():
                return ev.FailsafeChecked(answers=self.failsafe_answers)
            case do.Checkpoint() | do.PrepareCluster() | do.EndStaleSenders() | do.TryPromise() | do.BecomeNewAgent():
                return ev.Done()
            case do.CheckNewAgent():
                return ev.NewAgentChecked(took_ms=self.trial_ms)
        raise AssertionError(f"the world does not know {effect}")

    def _perform_lease(self, effect: do.GrantLease | do.RenewLease | do.RevokeLease) -> ev.AnyResult:
        if isinstance(effect, do.RevokeLease):
            self._drop_lease(effect.lease_id)
            return ev.Done()
        if isinstance(effect, do.RenewLease):
            lease_id, ttl_s = effect.lease_id, self.view.lease.ttl_s if self.view.lease else 30
        else:
            self.next_id += 1
            lease_id, ttl_s = self.next_id, effect.ttl_s
        self.leases[lease_id] = self.now_ms + ttl_s * 1000
        return ev.LeaseHeld(lease_id=lease_id, ttl_s=ttl_s, sent_at_ms=self.now_ms - 1)

    def _perform_key(self, effect: do.AnyEffect) -> ev.KeyWritten:
        leader = self.keys.get("leader")
        held = leader.value if leader else None
        match effect:
            case do.TakeLeaderKey():
                is_seen = held is not None or effect.sync_revision == self._revision_of("sync")
                taken = self._written(held in (None, self.name) and is_seen, "leader", self.name, effect.lease_id)
                if held is None and taken.applied and effect.sync_text is not None:
                    return replace(taken, also=self.put("sync", effect.sync_text))
                return taken
            case do.ReleaseLeaderKey():
                return self._written(held == self.name, "leader", None)
            case do.ClaimInitialize():
                return self._written("initialize" not in self.keys, "initialize", "", effect.lease_id)
            case do.WriteInitialize():
                found = self.keys.get("initialize")
                is_seen = (
                    (found.value == "") if effect.seen_revision is None and found else self._is_seen(effect, found)
                )
                return self._written(held == self.name and is_seen, "initialize", effect.system_id)
            case do.WriteConfig():
                text = self.last_config if effect.is_last_known else self.first_config
                return self._written("config" not in self.keys, "config", text)
            case do.PublishMember():
                return self._written(True, f"members/{self.name}", effect.text, effect.lease_id)
            case do.PublishAsLeader():
                is_as_seen = effect.seen_revision in (None, self._revision_of(effect.key))
                return self._written(held == self.name and is_as_seen, effect.key, effect.text)
            case _:
                return self._perform_request(effect)

    def _perform_request(self, effect: do.AnyEffect) -> ev.KeyWritten:
        """What somebody asked for through the API, written."""
        match effect:
            case do.ChangeConfig():
                known = self.keys.get("config")
                is_as_seen = effect.revision in (0, known.mod_revision if known else 0)
                return self._written(is_as_seen, "config", self.config_texts.get(effect.request_id, "{}"))
            case do.RequestFailover():
                return self._written(True, "failover", effect.text)
            case do.ClearFailover():
                seen = self.keys.get("failover")
                return self._written(seen is not None and seen.mod_revision == effect.mod_revision, "failover", "{}")
        raise AssertionError(f"the world does not know {effect}")

    def _revision_of(self, key: str) -> int:
        """When a key was last written; 0 where there is none."""
        return self.keys[key].mod_revision if key in self.keys else 0

    def _is_seen(self, effect: do.WriteInitialize, found: KeyChange | None) -> bool:
        return effect.seen_revision == (found.mod_revision if found else 0)

    def _perform_sync_key(self, effect: do.WriteSync | do.DeleteSync) -> ev.KeyWritten:
        leader, seen = self.keys.get("leader"), self.keys.get("sync")
        is_leader = leader is not None and leader.value == self.name
        is_seen = (seen.mod_revision if seen else 0) == effect.mod_revision
        return self._written(is_leader and is_seen, "sync", effect.text if isinstance(effect, do.WriteSync) else None)

    def _written(self, is_applied: bool, key: str, value: str | None, lease_id: int = 0) -> ev.KeyWritten:
        if not is_applied:
            now = self.keys.get(key)
        else:
            now = self.delete(key) if value is None else self.put(key, value, lease_id)
        return ev.KeyWritten(applied=is_applied, revision=self.revision, now=now)

    def _perform_fence(
        self,
        effect: do.ArmFence | do.DisarmFence | do.EndLeftovers | do.FenceServer | do.StopServer | do.StopToRestart,
    ) -> ev.Done | ev.FenceArmed:
        if isinstance(effect, do.ArmFence):
            self.armed_until_ms = effect.until_ms
            return ev.FenceArmed(until_ms=effect.until_ms, watchdog_s=self.watchdog_s)
        if isinstance(effect, do.DisarmFence):
            self.armed_until_ms = self.watchdog_s = None
        elif self.server and not isinstance(effect, do.EndLeftovers):
            clean = effect.mode == "fast"
            if self.server.in_recovery:
                self._end_server("shut down in recovery" if clean else "in archive recovery")
            else:
                self._end_server("shut down" if clean else "in production")
        return ev.Done()

    def _end_server(self, control_state: str, signal: int | None = None, *, fired: bool = False) -> None:
        assert self.server is not None
        server, self.server, self.armed_until_ms, self.watchdog_s = self.server, None, None, None
        if server.in_recovery and control_state == "in production":
            control_state = "in archive recovery"
        self.directory = replace(
            self.directory, control_state=control_state, timeline=server.timeline, checkpoint_lsn=server.lsn
        )
        self.feed(ev.ServerExited(at_ms=self.now_ms, pid=server.pid, signal=signal, fired=fired))

    def _perform_question(self, effect: do.AskPeers | do.AskFailsafe | do.ReadLeaderHistory) -> ev.AnyResult:
        if isinstance(effect, do.AskPeers):
            return ev.PeersHeard(reports=tuple(r for n, r in self.reports.items() if n in effect.api_urls))
        if isinstance(effect, do.AskFailsafe):
            return ev.FailsafeHeard(
                sent_at_ms=self.now_ms - 1, ttl_s=effect.ttl_s, accepted=tuple(sorted(self.confirming))
            )
        return ev.HistoryRead(leader=effect.upstream.name, history=self.history, wall="2026-01-01T00:00:00Z")

    def _perform_promise(self, effect: do.KeepPromise | do.ForgetPromise) -> ev.AnyResult:
        if isinstance(effect, do.ForgetPromise):
            self.kept = None
            return ev.Done()
        leader, asked_at_ms, until_ms = effect.leader, effect.asked_at_ms, effect.until_ms
        self.kept = KeptPromise(leader=leader, boot=self.boot_id, asked_at_ms=asked_at_ms, until_ms=until_ms)
        return ev.PromiseKept(leader=leader, asked_at_ms=asked_at_ms, until_ms=until_ms)

    def _perform_directory(
        self, effect: do.ReadDataDirectory | do.InitDb | do.ClearDataDirectory | do.Clone | do.Rewind
    ) -> ev.AnyResult:
        match effect:
            case do.ReadDataDirectory():
                return ev.DirectoryRead(directory=self.directory)
            case do.ClearDataDirectory():
                self.directory = EMPTY
            case do.InitDb():
                self.directory = CLUSTER
            case do.Clone():
                # A base backup of a primary holds the primary's control file as it ran. Source: pg_controldata on one.
                self.directory = replace(
                    CLUSTER, control_state="in production", timeline=self.history.timeline, is_base_backup=True
                )
            case do.Rewind():
                self.directory = replace(
                    CLUSTER, control_state="in archive recovery", timeline=effect.timeline, min_recovery_lsn=20 * MIB
                )
        return ev.Done()

    def _perform_start(self, effect: do.StartPrimary | do.StartStandby) -> ev.ServerStarted:
        if isinstance(effect, do.StartPrimary):
            server = self._spawn(in_recovery=False)
            server.sync_names = effect.names.text if effect.names is not None else ""
            self.armed_until_ms = effect.armed_until_ms
        else:
            server = self._spawn(in_recovery=True, upstream=effect.upstream)
        return ev.ServerStarted(pid=server.pid)

    def _perform_waiting(
        self, effect: do.SetSyncNames | do.ReleaseSyncNames | do.ReadSyncMark
    ) -> ev.Done | ev.SyncMarked:
        assert self.server is not None
        if isinstance(effect, do.ReadSyncMark):
            return ev.SyncMarked(names=self.server.sync_names, flushed_lsn=self.server.lsn)
        if isinstance(effect, do.SetSyncNames):
            self.server.sync_names = effect.names.text
        elif isinstance(effect, do.ReleaseSyncNames):
            self.server.sync_names = ""
        return ev.Done()

    def _perform_server(
        self, effect: do.Follow | do.ReloadServer | do.Promote | do.ApplyParameters | do.ReadReplayNeeds
    ) -> ev.AnyResult:
        if isinstance(effect, do.Follow | do.ReloadServer | do.ApplyParameters) and self.server:
            self.server.upstream = effect.upstream  # each of them writes the whole configuration
        if isinstance(effect, do.ApplyParameters):
            return ev.ParametersApplied(pid=effect.pid, config_revision=effect.config_revision)
        if isinstance(effect, do.ReadReplayNeeds):
            return ev.ReplayNeedsRead(pid=effect.pid, too_low=self.too_low)
        if isinstance(effect, do.Promote) and self.server and self.server.in_recovery:
            switch = TimelineSwitch(timeline=self.server.timeline, lsn=self.server.lsn)
            self.server.in_recovery = False
            self.server.timeline = max(self.server.timeline + 1, effect.timeline)
            self.history = TimelineHistory(
                timeline=self.server.timeline, system_id=SYSTEM_ID, switches=(*self.history.switches, switch)
            )
        return ev.Done()

    def _spawn(self, *, in_recovery: bool, upstream: Upstream | None = None) -> Postgres:
        self.next_id += 1
        lsn = max(self.directory.checkpoint_lsn, self.directory.min_recovery_lsn, self.recovered_lsn)
        self.server = Postgres(
            pid=self.next_id, in_recovery=in_recovery, timeline=self.directory.timeline, lsn=lsn, upstream=upstream
        )
        if not self.is_notice_lost:
            self.feed(ev.ServerSpawned(at_ms=self.now_ms, pid=self.server.pid))
        return self.server


# ---- beginnings ------------------------------------------------------------------------------------------------------


def new_leader(**more: object) -> World:
    """A node that made its cluster and leads it; nobody else is there yet."""
    world = World(**more).boot()  # type: ignore[arg-type]  # the fields of World
    world.until(is_settled_leader)
    return world


def leader_with_standbys(*names: str, **more: object) -> World:
    """A leader from whom members stream."""
    world = new_leader(**more)
    assert world.server is not None
    for name in names:
        world.join(name)
    world.server.standbys = tuple(Standby(application_name=name, state="streaming") for name in names)
    world.wait(2_000)
    return world


def replica_of(leader: str = "n2", *others: str, **more: object) -> World:
    """A node that follows another member."""
    world = World(directory=STANDBY, **more).initialized()  # type: ignore[arg-type]  # the fields of World
    world.lead(leader)
    for name in others:
        world.join(name)
    world.boot()
    world.until(is_following)
    world.wait(2_000)
    return world


def is_settled_leader(world: World) -> bool:
    """True when the node leads, accepts writes and made the cluster known."""
    server = world.server
    is_serving = server is not None and not server.in_recovery and world.view.server.probe is not None
    return world.view.state == "leader" and is_serving and world.view.initialize == SYSTEM_ID


def is_following(world: World) -> bool:
    """True when the node is a replica whose standby streams."""
    probe = world.view.server.probe
    return world.view.state == "replica" and probe is not None and probe.receiver_status == "streaming"
