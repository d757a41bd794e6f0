"""What this node knows: one frozen value, changed only by `observe`."""

from typing import Literal

from msgspec import field

from fsm.asked import AgentRestart, Answer, Asked, Restart, ScheduledRestart
from fsm.dynamic import Dynamic
from fsm.events import Identity
from fsm.facts import DataDirectory, Fact, FailsafeAnswer, Key, PeerReport, Probe, TimelineHistory
from fsm.losses import FormerLeader, LossEstimate, Promotion
from fsm.silence import Disk, Silence
from fsm.states import State
from fsm.syncnames import SyncNames
from fsm.timing import writable_until_ms
from fsm.wire import FailoverRequest, Member, RememberedSync, SyncKey


class Etcd(Fact, frozen=True, kw_only=True):
    """How well etcd is known. `is_watched`: all keys were read and every change since is heard of."""

    is_watched: bool = False
    revision: int = 0
    lost_since_ms: int | None = None
    detail: str = ""


class Lease(Fact, frozen=True, kw_only=True):
    """This node's lease, counted from when the last confirmed renewal was sent."""

    lease_id: int
    ttl_s: int
    sent_at_ms: int
    asked_ttl_s: int
    """What was asked for; etcd grants no less than its own minimum."""

    @property
    def writable_until_ms(self) -> int:
        """The instant from which a primary under this lease must be silent."""
        return writable_until_ms(self.sent_at_ms, self.ttl_s)


class ServerKill(Fact, frozen=True, kw_only=True):
    """The last time that a server of this node was killed for its lease's sake."""

    reason: str
    """"deadline" when the fence did it by itself, else the rule or duty by which the agent ordered it."""
    at_ms: int
    """When it began, or when the postmaster was gone where the agent ordered it."""
    gone_at_ms: int
    margin_ms: int | None = None
    """How long before the lease's end the last process was gone; negative: so much too late. None without a lease."""
    processes: int = 0
    killed: int = 0


class Watchdog(Fact, frozen=True, kw_only=True):
    """The kernel's watchdog, as the fence last said. `timeout_s`: None while it feeds none."""

    timeout_s: int | None = None
    asked_s: int = 0
    is_left_running: bool = False
    """A fence that fed it is gone, and nobody has switched it off since."""


class Fence(Fact, frozen=True, kw_only=True):
    """The fence process as last heard of, and what became known of its work since the agent started."""

    is_connected: bool = False
    armed_until_ms: int | None = None
    lacks: tuple[str, ...] = ()
    """What the kernel did not grant it."""
    confirmations: int = 0
    """How many deadlines it has confirmed."""
    kills: int = 0
    last_kill: ServerKill | None = None
    leftovers: int = 0
    """How many processes outlived their postmaster and the fence before this one; what they do is not known."""


class Server(Fact, frozen=True, kw_only=True):
    """The PostgreSQL server of this node."""

    process: Literal["unknown", "absent", "running"] = "unknown"
    pid: int | None = None
    spawned_at_ms: int = 0
    may_be_primary: bool = False
    """True from the moment that it may accept writes (started for it, or told to promote) until it is known not to."""
    is_promotion_asked: bool = False
    """True once this postmaster was told to promote: from then on an answer "in recovery" is no proof of anything."""
    probe: Probe | None = None
    """The last answer of this very postmaster; kept when later probes fail."""
    probed_at_ms: int = 0
    silent_since_ms: int | None = None
    mute: Silence | None = None
    """The silence of this postmaster while it says nothing at all; None while it says anything, if only an error."""
    is_doomed: bool = False
    """True once all that is left of it hangs in the kernel and will not run another instruction."""
    is_starting: bool = False
    served_since_ms: int | None = None
    exited_pid: int | None = None
    exited_at_ms: int | None = None
    failed_starts: int = 0
    config_revision: int | None = None
    """The revision of the `config` key that this very postmaster was last told; None before it was told any."""
    too_low: tuple[str, ...] = ()
    """Parameters of this postmaster that were seen to be lower than its WAL needs, so that it replays no further."""
    refused_parameters: dict[str, str] = field(default_factory=dict)
    """What PostgreSQL would not have of the configuration, each with the reason; it runs without them."""


class Underway(Fact, frozen=True, kw_only=True):
    """An effect that was issued and has not been answered."""

    effect_id: int
    kind: str
    resource: str
    since_ms: int
    deadline_ms: int


class Attempts(Fact, frozen=True, kw_only=True):
    """How often a duty failed in a row, and how it failed last."""

    failures: int
    failed_at_ms: int
    kind: str
    detail: str


class HeardPeer(Fact, frozen=True, kw_only=True):
    """A peer's report and when it came."""

    report: PeerReport
    at_ms: int


class LeaderHistory(Fact, frozen=True, kw_only=True):
    """How a leader came to its timeline."""

    leader: str
    history: TimelineHistory
    wall: str = ""
    """The wall clock when it was read, for the `history` key."""


class Promise(Fact, frozen=True, kw_only=True):
    """What this node promised to a leader without etcd: not to stand before `until_ms`."""

    leader: str
    until_ms: int
    asked_at_ms: int = 0


class Refusal(Fact, frozen=True, kw_only=True):
    """Which leader this node did not confirm last, and why."""

    leader: str
    asked_at_ms: int
    reason: str


class Vote(Fact, frozen=True, kw_only=True):
    """That a candidate asked this node for its vote; see fsm/vote.py."""

    candidate: str
    sync_revision: int
    asked_at_ms: int


class StandbyTrack(Fact, frozen=True, kw_only=True):
    """How a standby of this leader's server gets on, by its own acknowledgements."""

    lsn: int
    """How far it has what commits wait for."""
    moved_at_ms: int
    """When it was last seen to move, or to lack nothing."""
    is_stuck: bool = False
    """True when it lacked something at the last look and had not moved for longer than commits may wait."""
    distrusted_until_ms: int = 0
    """Until when it is not chosen again, after it was stuck."""


class Waiting(Fact, frozen=True, kw_only=True):
    """Whom commits at this leader's server wait for. Known by a leader only, and anew in each term."""

    is_key_certain: bool = False
    """True once a write of the `sync` key was applied in this term and none has been on its way since. Until then names
    are left alone: a write of unknown outcome may have put somebody into the key whom others would not wait for."""
    names: SyncNames | None = None
    """What was last ordered, or found at the first look; None before it."""
    is_first: bool = True
    """True while commits did not wait for anybody before: the server must be seen to begin."""
    shown_since_ms: int | None = None
    """Since when the server says, at each look, that these names are in force."""
    mark_lsn: int = 0
    """Up to here WAL may have been acknowledged under earlier names; 0 while that is not known."""
    is_settled: bool = False
    """True once enough of the named have all WAL up to the mark: the past is as safe under them as what is to come."""
    standbys: dict[str, StandbyTrack] = field(default_factory=dict)


class View(Fact, frozen=True, kw_only=True):
    """Everything that a decision of this node may rest on."""

    state: State = State.BOOTSTRAPPING
    seq: int = 0
    now_ms: int = 0
    state_since_ms: int = 0
    last_rule: str | None = None
    """The rule that brought this node to its state; None for the first one."""
    identity: Identity | None = None
    is_stopping: bool = False

    etcd: Etcd = Etcd()
    keys: dict[str, Key] = field(default_factory=dict)
    leader_free_since_ms: int | None = None
    members: dict[str, Member] = field(default_factory=dict)
    dynamic: Dynamic = Dynamic()
    failover: FailoverRequest | None = None
    failover_seen_at_ms: int = 0
    failover_due_at_ms: int | None = None
    """When the request in the `failover` key is due, if it is scheduled and the wall clock was told since."""
    sync: SyncKey = SyncKey()
    remembered_sync: RememberedSync | None = None
    """The last `sync` key that a leader wrote, whether or not it is in etcd still."""
    has_seen_identity: bool = False
    """True once a cluster's system identifier was read: since then there are data of it somewhere."""
    has_seen_config: bool = False
    """True once the cluster's configuration was read; from then on it is in force until another one is."""
    waiting: Waiting = Waiting()
    failsafe: dict[str, str] = field(default_factory=dict)
    """The `failsafe` key: the members that a leader without etcd must ask, and the only ones that may be elected."""
    failsafe_in_doubt: tuple[dict[str, str], ...] = ()
    """Lists that this node ordered to be written there as leader, and that may yet come to be the key."""
    optime_lsn: int = 0
    last_timeline: int = 0
    reserved_timeline: int = 0
    """The newest number of a timeline that some leader began or is about to begin; see fsm/timelines.py."""
    former: FormerLeader = FormerLeader()
    received_at_ms: int = 0
    """When this node's standby was last seen to hold more WAL than before."""
    loss: LossEstimate | None = None
    """What this node's promotion may leave behind, by the estimate with which it last stood for the leader key."""
    promotion: Promotion | None = None

    lease: Lease | None = None
    former_lease: Lease | None = None
    """The lease before this one: the leader key hangs on it until it is bound to the new one."""
    failsafe_until_ms: int = 0
    promise: Promise | None = None
    """The promise that is on disk."""
    promising: Promise | None = None
    """The promise that is being written to disk: it binds already, and is confirmed to nobody yet."""
    refusal: Refusal | None = None
    failsafe_answers: tuple[FailsafeAnswer, ...] = ()
    """What the members said when they were last asked in a way that binds nobody."""
    vote: Vote | None = None
    fence: Fence = Fence()
    watchdog: Watchdog = Watchdog()
    server: Server = Server()
    directory: DataDirectory | None = None
    disk: Disk = Disk()
    leader_history: LeaderHistory | None = None
    peers: dict[str, HeardPeer] = field(default_factory=dict)
    peers_heard_at_ms: int = 0
    published_at_ms: int = 0

    is_reinit_asked: bool = False
    """An operator asked to replace this node's data, and it is not done yet."""
    reinit_asked_at_ms: int = 0
    is_reinit_from_leader: bool = False
    switchover: FailoverRequest | None = None
    """A switchover asked of this node that is not yet in etcd."""
    switchover_asked_at_ms: int = 0
    asked: dict[str, Asked] = field(default_factory=dict)
    """What else was asked of this node and is not done yet, by the duty that does it."""
    restart: Restart | None = None
    scheduled_restart: ScheduledRestart | None = None
    agent_restart: AgentRestart | None = None
    """A restart of the agent itself that was asked for, or the last one that was refused."""
    answers: tuple[Answer, ...] = ()
    """How the newest requests ended."""

    underway: dict[str, Underway] = field(default_factory=dict)
    attempts: dict[str, Attempts] = field(default_factory=dict)
    achieved: dict[str, int] = field(default_factory=dict)
    """When each duty last succeeded."""

    # ---- what follows from the above --------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """This node's name; empty before the agent started."""
        return self.identity.name if self.identity else ""

    @property
    def leader(self) -> str | None:
        """Who holds the leader key as far as etcd was heard; None when it is free or nothing was heard."""
        key = self.keys.get("leader")
        return key.value if key else None

    @property
    def initialize(self) -> str | None:
        """The `initialize` key: the system identifier, "" while somebody makes the cluster, None when absent."""
        key = self.keys.get("initialize")
        return key.value if key else None

    @property
    def leader_member(self) -> Member | None:
        """The member that holds the leader key, if it published itself."""
        return self.members.get(self.leader) if self.leader else None

    @property
    def writable_until_ms(self) -> int:
        """Until when this node's server may accept writes: by the lease of the leader key, or by failsafe."""
        return max(self.leadership_until_ms, self.failsafe_until_ms)

    @property
    def leadership_until_ms(self) -> int:
        """Until when the leader key is surely this node's; 0 when it hangs on none of its leases."""
        key = self.keys.get("leader")
        if key is None or key.value != self.name:
            return 0
        held = (lease for lease in (self.lease, self.former_lease) if lease and lease.lease_id == key.lease_id)
        return max((lease.writable_until_ms for lease in held), default=0)

    @property
    def timeline(self) -> int:
        """The timeline that this node is on, running or stopped; 0 if unknown."""
        if self.server.probe:
            return self.server.probe.timeline
        return max(self.directory.timeline, self.directory.min_recovery_timeline) if self.directory else 0

    @property
    def position_lsn(self) -> int:
        """How far this node's WAL is known to reach; 0 if unknown."""
        if self.server.probe:
            return self.server.probe.position_lsn
        return max(self.directory.checkpoint_lsn, self.directory.min_recovery_lsn) if self.directory else 0

    @property
    def system_id(self) -> str:
        """The system identifier of this node's data; empty if there is none or it is unknown."""
        if self.server.probe:
            return self.server.probe.system_id
        return self.directory.system_id if self.directory else ""

    def has_achieved(self, duty: str, since_ms: int) -> bool:
        """True when the duty succeeded at or after an instant."""
        return self.achieved.get(duty, -1) >= since_ms
