"""What was observed: past tense, frozen, each with its instant. Events are the only way into `step`."""

from typing import Literal

from msgspec import Struct, field

from fsm.asked import ConfigChange, RestartWish
from fsm.facts import (
    DataDirectory,
    Fact,
    FailsafeAnswer,
    FenceKill,
    KeptPromise,
    KeyChange,
    PeerReport,
    Probe,
    TimelineHistory,
)


class Event(
    Struct, frozen=True, kw_only=True, tag=True, tag_field="event", omit_defaults=True, forbid_unknown_fields=True
):
    """Base of every event. `at_ms`: when this node learned of it, CLOCK_BOOTTIME in milliseconds."""

    at_ms: int


# ---- this agent -----------------------------------------------------------------------------------------------------


class Identity(Fact, frozen=True, kw_only=True):
    """Who this node is and what its own configuration says; no secrets."""

    name: str
    scope: str
    api_url: str
    conn_url: str
    tags: dict[str, str | int | float | bool | None] = field(default_factory=dict)
    first_config: str = "{}"
    """What `config` begins with when this node initializes the cluster; secrets hidden."""
    may_initialize: bool = True
    use_pg_rewind: bool | None = None
    """What this node's own settings say; None: the cluster's count."""
    proxy_url: str = ""
    """Where clients reach this node's server through a proxy; for others to read."""
    clone_on_rewind_failure: bool = True
    clone_on_divergence: bool = True
    watchdog_mode: str = "off"
    """off, automatic or required. Source: Patroni, watchdog.mode."""
    watchdog_safety_margin_s: int = 5
    has_watchdog: bool = False
    """A device was there to be opened when the agent started."""
    instance: str = ""
    """What tells this very agent process from every other, whatever name and address they have."""


class AgentStarted(Event, frozen=True, kw_only=True):
    """The agent process began; everything known before is forgotten."""

    identity: Identity
    boot: str
    wall: str
    """The wall clock at the start, for people; never compared."""
    promise: KeptPromise | None = None
    """What an earlier agent of this node promised a leader without etcd, as it lies on disk."""
    in_place: bool = False
    """True for the successor of an agent that became it: same process, new code."""


class Ticked(Event, frozen=True, kw_only=True):
    """The instant came that the last decision asked to be woken at."""


class StopAsked(Event, frozen=True, kw_only=True):
    """Somebody asked the agent to end (SIGTERM, SIGINT)."""


# ---- etcd -----------------------------------------------------------------------------------------------------------


class ClusterRead(Event, frozen=True, kw_only=True):
    """All keys of the cluster were read; the watch goes on from `revision`."""

    revision: int
    keys: tuple[KeyChange, ...]
    unix_ms: int = 0
    """The wall clock at `at_ms`, for instants that people scheduled; 0 if it is not told."""


class KeysChanged(Event, frozen=True, kw_only=True):
    """Keys of the cluster changed, in one or more transactions up to `revision`."""

    revision: int
    changes: tuple[KeyChange, ...]
    unix_ms: int = 0
    """As in ClusterRead."""


class EtcdLost(Event, frozen=True, kw_only=True):
    """The watch broke; until the next ClusterRead nothing that etcd said is known to be still so."""

    detail: str


# ---- fence and server -----------------------------------------------------------------------------------------------


class FenceConnected(Event, frozen=True, kw_only=True):
    """The fence answers; it may hold a server from an earlier agent."""

    pid: int | None = None
    armed_until_ms: int | None = None
    is_adopted: bool = False
    """True for a server that the fence did not start but found running on the data directory."""
    watchdog_s: int | None = None
    """The timeout of the watchdog that it feeds; None while it feeds none."""
    lacks: tuple[str, ...] = ()
    """What the kernel did not grant it: memory lock, priority, protection from the out-of-memory killer."""
    kill: FenceKill | None = None
    """The last time that this fence ended a server at its deadline; perhaps while no agent ran."""
    leftovers: int = 0
    """How many processes of a server were found that have outlived their postmaster and the fence before."""


class FenceLost(Event, frozen=True, kw_only=True):
    """The fence does not answer any more; its server dies with it."""

    detail: str


class ServerSpawned(Event, frozen=True, kw_only=True):
    """The fence started a postmaster."""

    pid: int


class ServerExited(Event, frozen=True, kw_only=True):
    """The postmaster and every process of the server are gone."""

    pid: int
    status: int | None = None
    signal: int | None = None
    fired: bool = False
    """True when the fence killed it because its deadline had passed."""
    exited_at_ms: int = 0
    """When the fence saw the postmaster end, on the same clock."""
    gone_at_ms: int = 0
    """When no process of the server was left; 0 if that was not told."""
    killed: int = 0
    """How many of its processes had to be killed after the postmaster had ended."""
    kill: FenceKill | None = None
    """What the fence did, where it fired."""


class ServerProbed(Event, frozen=True, kw_only=True):
    """The server answered a probe. `took_ms`: how long it took to answer."""

    pid: int
    probe: Probe
    took_ms: int = 0


class ServerSilent(Event, frozen=True, kw_only=True):
    """The server did not answer a probe; `starting` when it said that it takes no connections yet (SQLSTATE 57P03)."""

    pid: int
    detail: str
    starting: bool = False
    mute: bool = False
    """It said nothing at all, on no connection: no refusal, no error, no late answer to an earlier question."""
    began_ms: int = 0
    lag_ms: int = 0
    """The longest that this agent's own loop stood still since `began_ms`."""


class ServerDoomed(Event, frozen=True, kw_only=True):
    """Every process of the server that is left hangs in the kernel with SIGKILL pending: none will run another
    instruction, though none is gone before its disk answers. Source: signal(7), proc(5)."""

    pid: int


class DiskLooked(Event, frozen=True, kw_only=True):
    """How much the server's user may still write, and how a small write ended where one was tried."""

    data_free_bytes: int
    wal_free_bytes: int
    segment_bytes: int
    """The size of one WAL segment."""
    failure: Literal["", "full", "broken"] = ""
    """Why a write was refused: for want of room, or because the disk fails or takes no writes (EIO, EROFS)."""
    detail: str = ""
    began_ms: int = 0
    lag_ms: int = 0


class DiskSilent(Event, frozen=True, kw_only=True):
    """A look at the disk has not come back; told again and again while it lasts. The rest as in ServerSilent."""

    detail: str
    began_ms: int
    lag_ms: int = 0


# ---- people and peers -----------------------------------------------------------------------------------------------


class SwitchoverAsked(Event, frozen=True, kw_only=True):
    """An operator asked for a planned change of leader through this node."""

    leader: str | None = None
    candidate: str | None = None
    scheduled_at: str = ""
    by: str = ""


class SwitchoverCancelAsked(Event, frozen=True, kw_only=True):
    """An operator asked this node to drop the switchover that is scheduled. `revision`: that of the request."""

    request_id: str
    revision: int
    by: str = ""


class ConfigAsked(Event, frozen=True, kw_only=True):
    """An operator asked this node to change the dynamic configuration. `changes` shows no secrets.

    The text itself is held beside, by `request_id`. `revision`: what it was made from; 0 to write it whatever is there.
    """

    request_id: str
    revision: int = 0
    changes: tuple[ConfigChange, ...] = ()
    by: str = ""


class RestartAsked(Event, frozen=True, kw_only=True):
    """An operator asked this node to restart its server in place, under conditions. Source: Patroni, POST /restart."""

    request_id: str
    wish: RestartWish = RestartWish()
    unix_ms: int = 0
    """The wall clock at `at_ms`, for one that is scheduled."""
    by: str = ""


class RestartCancelAsked(Event, frozen=True, kw_only=True):
    """An operator asked this node to drop the restart that is scheduled."""

    request_id: str
    by: str = ""


class ReloadAsked(Event, frozen=True, kw_only=True):
    """This node's settings were read again because somebody asked for it; what of them the machine looks at."""

    request_id: str
    tags: dict[str, str | int | float | bool | None] = field(default_factory=dict)
    clone_on_rewind_failure: bool = True
    clone_on_divergence: bool = True
    by: str = ""


class AgentRestartAsked(Event, frozen=True, kw_only=True):
    """Somebody asked the agent (SIGUSR2) to become its successor: the code and settings that are on the disk now."""

    request_id: str
    by: str = ""


class ReinitAsked(Event, frozen=True, kw_only=True):
    """An operator asked to replace this node's data directory by a new base backup."""

    by: str = ""
    is_from_leader: bool = False
    """True to copy the leader even where another member offers itself."""
    is_forced: bool = False
    """True to give up a base backup or pg_rewind that is under way."""


class FailsafeAsked(Event, frozen=True, kw_only=True):
    """A leader that cannot reach etcd asked this node to confirm that it may go on."""

    leader: str
    ttl_s: int = 0
    """How long the leader counts on the answer; 0 if it does not say (Patroni)."""
    conn_url: str = ""
    api_url: str = ""


class VoteAsked(Event, frozen=True, kw_only=True):
    """A candidate asked this node to stop receiving, and then to say how far its WAL reaches."""

    candidate: str
    sync_revision: int
    """The revision of the `sync` key by which the candidate stands."""


class FailsafeCheckAsked(Event, frozen=True, kw_only=True):
    """An operator asked this node whether its members would let it go on if etcd went away now."""

    request_id: str
    by: str = ""


class PromiseTryAsked(Event, frozen=True, kw_only=True):
    """A leader asked whether this node would confirm it; whether its disk would take the promise is to be found out."""

    request_id: str


# ---- outcomes of effects --------------------------------------------------------------------------------------------


class Result(
    Struct, frozen=True, kw_only=True, tag=True, tag_field="result", omit_defaults=True, forbid_unknown_fields=True
):
    """Base of what an effect brought back."""


class Done(Result, frozen=True, kw_only=True):
    """It is done; there is nothing to tell."""


class LeaseHeld(Result, frozen=True, kw_only=True):
    """A lease was granted or renewed. `sent_at_ms`: when the request was sent, from which its life is counted."""

    lease_id: int
    ttl_s: int
    sent_at_ms: int
    asked_ttl_s: int | None = None
    """What a new lease was asked for; etcd may grant more."""


class KeyWritten(Result, frozen=True, kw_only=True):
    """A transaction ended: `applied`, or its condition did not hold; `now` is the key afterwards if known."""

    applied: bool
    revision: int
    now: KeyChange | None = None
    also: KeyChange | None = None
    """Another key that was written in the same transaction."""


class FenceArmed(Result, frozen=True, kw_only=True):
    """The fence confirmed that it lets the server run until then."""

    until_ms: int
    watchdog_s: int | None = None
    """The timeout of the watchdog that it feeds; None while it feeds none."""


class WatchdogFed(Result, frozen=True, kw_only=True):
    """The fence feeds a watchdog. `timeout_s`: what the device counts to, whatever it was asked for."""

    asked_s: int
    timeout_s: int


class ServerStarted(Result, frozen=True, kw_only=True):
    """The fence started the postmaster; it does not take connections yet."""

    pid: int


class ParametersApplied(Result, frozen=True, kw_only=True):
    """The running server was told the configuration. `refused`: what was left out of it, each with the reason."""

    pid: int
    config_revision: int
    refused: dict[str, str] = field(default_factory=dict)


class ReplayNeedsRead(Result, frozen=True, kw_only=True):
    """The running standby's parameters that are lower than its WAL needs: with them it does not replay any further."""

    pid: int
    too_low: tuple[str, ...] = ()


class DirectoryRead(Result, frozen=True, kw_only=True):
    """What the data directory holds."""

    directory: DataDirectory


class NewAgentChecked(Result, frozen=True, kw_only=True):
    """The code and the settings that are on the disk now would start; trying it took `took_ms`."""

    took_ms: int


class SyncMarked(Result, frozen=True, kw_only=True):
    """The names in force at the server, and how far its WAL was on disk at an instant after they came into force."""

    names: str
    flushed_lsn: int


class HistoryRead(Result, frozen=True, kw_only=True):
    """How the leader's server came to its timeline."""

    leader: str
    history: TimelineHistory
    wall: str = ""


class PeersHeard(Result, frozen=True, kw_only=True):
    """What the peers that answered said."""

    reports: tuple[PeerReport, ...]


class FailsafeHeard(Result, frozen=True, kw_only=True):
    """Which members confirmed, and when the question had been sent."""

    sent_at_ms: int
    ttl_s: int
    """How long the members were asked to wait."""
    accepted: tuple[str, ...]


class PromiseKept(Result, frozen=True, kw_only=True):
    """The promise to a leader without etcd is on disk."""

    leader: str
    asked_at_ms: int
    until_ms: int


class FailsafeChecked(Result, frozen=True, kw_only=True):
    """What the members said to a question that binds nobody."""

    answers: tuple[FailsafeAnswer, ...]


AnyResult = (
    Done
    | LeaseHeld
    | KeyWritten
    | FenceArmed
    | WatchdogFed
    | ServerStarted
    | ParametersApplied
    | ReplayNeedsRead
    | DirectoryRead
    | NewAgentChecked
    | SyncMarked
    | HistoryRead
    | PeersHeard
    | FailsafeHeard
    | PromiseKept
    | FailsafeChecked
)

FailureKind = Literal["unavailable", "refused", "lease_gone", "expired", "program", "sql", "cancelled", "fence", "bug"]


class Succeeded(Event, frozen=True, kw_only=True):
    """The effect was performed."""

    effect_id: int
    duty: str
    result: AnyResult


class Failed(Event, frozen=True, kw_only=True):
    """The effect was certainly not performed, or did not end well."""

    effect_id: int
    duty: str
    kind: FailureKind
    detail: str


class Unknown(Event, frozen=True, kw_only=True):
    """Nobody can say whether the effect was performed; the next observation will tell."""

    effect_id: int
    duty: str
    detail: str


AnyEvent = (
    AgentStarted
    | Ticked
    | StopAsked
    | ClusterRead
    | KeysChanged
    | EtcdLost
    | FenceConnected
    | FenceLost
    | ServerSpawned
    | ServerExited
    | ServerProbed
    | ServerSilent
    | ServerDoomed
    | DiskLooked
    | DiskSilent
    | SwitchoverAsked
    | SwitchoverCancelAsked
    | ConfigAsked
    | RestartAsked
    | RestartCancelAsked
    | ReloadAsked
    | AgentRestartAsked
    | ReinitAsked
    | FailsafeAsked
    | VoteAsked
    | FailsafeCheckAsked
    | PromiseTryAsked
    | Succeeded
    | Failed
    | Unknown
)
