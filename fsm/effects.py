"""What is to be done: imperative, frozen, each with its own deadline. An executor performs one and decides nothing.

`resource` names the executor's lane: effects of one lane run one after another, lanes never wait for each other.
"""

from typing import ClassVar, Literal

from msgspec import Struct

from fsm.facts import Upstream
from fsm.losses import LossEstimate
from fsm.syncnames import SyncNames

Resource = Literal[
    "lease", "leader", "sync", "keys", "fence", "server", "names", "sql", "peers", "promises", "checks", "successor",
    "agent",
]  # fmt: skip


class Effect(
    Struct, frozen=True, kw_only=True, tag=True, tag_field="effect", omit_defaults=True, forbid_unknown_fields=True
):
    """Base of every effect. `timeout_ms`: after that long the executor answers Unknown."""

    resource: ClassVar[Resource]
    is_irreversible: ClassVar[bool] = False
    """True: its entry must be on disk before it starts (write-ahead)."""
    timeout_ms: int


# ---- lease ----------------------------------------------------------------------------------------------------------


class GrantLease(Effect, frozen=True, kw_only=True):
    """Ask etcd for a lease. Source: etcd LeaseGrant."""

    resource: ClassVar[Resource] = "lease"
    ttl_s: int


class RenewLease(Effect, frozen=True, kw_only=True):
    """Renew the lease once. Source: etcd LeaseKeepAlive."""

    resource: ClassVar[Resource] = "lease"
    lease_id: int


class RevokeLease(Effect, frozen=True, kw_only=True):
    """Give the lease back, and with it every key that hangs on it. Source: etcd LeaseRevoke."""

    resource: ClassVar[Resource] = "lease"
    lease_id: int


# ---- keys of etcd ---------------------------------------------------------------------------------------------------


class TakeLeaderKey(Effect, frozen=True, kw_only=True):
    """Create the leader key under our lease if it is absent, or bind it to our lease if it already names this node.

    It is created only while the `sync` key, by which this node stood, is still the one of that revision (0: absent).
    That key is written anew in the same transaction: a vote is for one revision of it, and whoever was voted for before
    takes the leader key no more.
    """

    resource: ClassVar[Resource] = "leader"
    is_irreversible: ClassVar[bool] = True
    lease_id: int
    valid_until_ms: int
    sync_revision: int = 0
    sync_text: str | None = None
    """What the `sync` key says at that revision, or said before etcd lost it; None where it is absent."""
    loss: LossEstimate | None = None
    """What the promotion that is to follow may leave behind; None where none is to follow."""


class ReleaseLeaderKey(Effect, frozen=True, kw_only=True):
    """Delete the leader key if it names this node."""

    resource: ClassVar[Resource] = "leader"


class ClaimInitialize(Effect, frozen=True, kw_only=True):
    """Create `initialize` if it is absent; under our lease while it is only a claim: a dead claimant frees it."""

    resource: ClassVar[Resource] = "keys"
    is_irreversible: ClassVar[bool] = True
    lease_id: int


class WriteInitialize(Effect, frozen=True, kw_only=True):
    """Write the system identifier for good, as leader, in place of the claim or of what is no identifier."""

    resource: ClassVar[Resource] = "keys"
    system_id: str
    seen_revision: int | None = None
    """The revision at which the key was last written, 0 where there is none; None for a claim, whichever."""
    valid_until_ms: int


class WriteConfig(Effect, frozen=True, kw_only=True):
    """Write a dynamic configuration if there is none: the one that etcd held last, if it held one since the agent
    started, or else this node's own first one. It may hold secrets, so it is not in here."""

    resource: ClassVar[Resource] = "keys"
    valid_until_ms: int
    is_last_known: bool = False


class ChangeConfig(Effect, frozen=True, kw_only=True):
    """Write the dynamic configuration that was asked for under `request_id`, if `config` is still at `revision` (0: in
    any case). It may hold secrets, so it is not in here."""

    resource: ClassVar[Resource] = "keys"
    request_id: str
    revision: int
    valid_until_ms: int


class PublishMember(Effect, frozen=True, kw_only=True):
    """Write this node's member key under its lease."""

    resource: ClassVar[Resource] = "keys"
    text: str
    lease_id: int


class PublishAsLeader(Effect, frozen=True, kw_only=True):
    """Write a key that only the leader may write (`status`, `history`), guarded by the leader key being ours.

    `seen_revision`: only over the value that was written at that revision, 0: where there is none; None over any.
    """

    resource: ClassVar[Resource] = "keys"
    key: str
    text: str
    seen_revision: int | None = None
    valid_until_ms: int


class WriteSync(Effect, frozen=True, kw_only=True):
    """Write the `sync` key, as leader, if it is still the one that was seen. `mod_revision` 0: if it is absent."""

    resource: ClassVar[Resource] = "sync"
    text: str
    mod_revision: int
    valid_until_ms: int


class DeleteSync(Effect, frozen=True, kw_only=True):
    """Delete the `sync` key, as leader, if it is still the one that was seen: no commit waits for anybody any more."""

    resource: ClassVar[Resource] = "sync"
    mod_revision: int
    valid_until_ms: int


class RequestFailover(Effect, frozen=True, kw_only=True):
    """Write the `failover` key for an operator who asked for a switchover or failover."""

    resource: ClassVar[Resource] = "keys"
    text: str


class ClearFailover(Effect, frozen=True, kw_only=True):
    """Empty the `failover` key (Patroni's `{}`, never a delete) if it is still the request that was seen."""

    resource: ClassVar[Resource] = "keys"
    mod_revision: int


# ---- fence ----------------------------------------------------------------------------------------------------------


class ArmFence(Effect, frozen=True, kw_only=True):
    """Let the server run until `until_ms`, and not a moment longer."""

    resource: ClassVar[Resource] = "fence"
    until_ms: int


class DisarmFence(Effect, frozen=True, kw_only=True):
    """Take the deadline away: the server is a standby."""

    resource: ClassVar[Resource] = "fence"


class FeedWatchdog(Effect, frozen=True, kw_only=True):
    """Let the fence open the kernel's watchdog and feed it, with a timeout of `timeout_s`.

    With a deadline armed it feeds only as far as a reset comes at most `slack_ms` after it. A device that counts longer
    than `timeout_max_s` is let go of: it would reset too late. Source: Patroni, watchdog.*.
    """

    resource: ClassVar[Resource] = "fence"
    timeout_s: int
    timeout_max_s: int
    slack_ms: int


class ReleaseWatchdog(Effect, frozen=True, kw_only=True):
    """Let the fence switch the watchdog off."""

    resource: ClassVar[Resource] = "fence"


class FenceServer(Effect, frozen=True, kw_only=True):
    """Stop a server that may accept writes, and answer when its last process is gone."""

    resource: ClassVar[Resource] = "fence"
    mode: Literal["fast", "immediate"]
    kill_after_ms: int


class EndLeftovers(Effect, frozen=True, kw_only=True):
    """Kill what outlived its postmaster and its fence, and answer when the last of it is gone, or as good as gone."""

    resource: ClassVar[Resource] = "fence"


class StopServer(Effect, frozen=True, kw_only=True):
    """Stop a standby, and answer when its last process is gone."""

    resource: ClassVar[Resource] = "fence"
    mode: Literal["fast", "immediate"]
    kill_after_ms: int


class StopToRestart(Effect, frozen=True, kw_only=True):
    """Stop a server that is to be started again in the same role, and answer when its last process is gone.

    Not in the fence's lane: while a primary stops, its deadline goes on being renewed and kept.
    """

    resource: ClassVar[Resource] = "server"
    mode: Literal["fast", "immediate"]
    kill_after_ms: int


# ---- server ---------------------------------------------------------------------------------------------------------


class ReadDataDirectory(Effect, frozen=True, kw_only=True):
    """Look at the data directory with pg_controldata."""

    resource: ClassVar[Resource] = "server"


class InitDb(Effect, frozen=True, kw_only=True):
    """Make a new cluster with initdb."""

    resource: ClassVar[Resource] = "server"
    is_irreversible: ClassVar[bool] = True


class StartPrimary(Effect, frozen=True, kw_only=True):
    """Start the server for writing, its fence armed from the first moment."""

    resource: ClassVar[Resource] = "server"
    is_irreversible: ClassVar[bool] = True
    armed_until_ms: int
    valid_until_ms: int
    names: SyncNames | None = None
    """Whom commits wait for from the first moment; None where that is the operator's own affair."""


class StartStandby(Effect, frozen=True, kw_only=True):
    """Start the server as a standby; without an upstream it only replays what it has."""

    resource: ClassVar[Resource] = "server"
    upstream: Upstream | None = None


class Follow(Effect, frozen=True, kw_only=True):
    """Point the running standby at another upstream."""

    resource: ClassVar[Resource] = "server"
    upstream: Upstream | None


class ReloadServer(Effect, frozen=True, kw_only=True):
    """Write the server's configuration files anew and make it read them; it goes on receiving from `upstream`."""

    resource: ClassVar[Resource] = "server"
    upstream: Upstream | None = None


class ApplyParameters(Effect, frozen=True, kw_only=True):
    """Write the configuration files anew, with the dynamic configuration as it now is, for the running server to read.

    `upstream`: where the standby streams from at present, which does not change. `config_revision`: what it is applied
    for; the executor takes the newest that it knows, which holds the secrets that no effect holds.
    """

    resource: ClassVar[Resource] = "server"
    pid: int
    config_revision: int
    upstream: Upstream | None = None


class Promote(Effect, frozen=True, kw_only=True):
    """Promote the running standby. `timeline`: the number that its timeline is to have at the least."""

    resource: ClassVar[Resource] = "server"
    is_irreversible: ClassVar[bool] = True
    valid_until_ms: int
    timeline: int = 0
    loss: LossEstimate | None = None
    """What this leaves behind, as it was estimated when this node stood; None in logs of older versions."""


class ClearDataDirectory(Effect, frozen=True, kw_only=True):
    """Empty the data directory; what was in it is kept aside unless it was only this agent's own unfinished work."""

    resource: ClassVar[Resource] = "server"
    is_irreversible: ClassVar[bool] = True
    keep_aside: bool


class Clone(Effect, frozen=True, kw_only=True):
    """Take a base backup of the upstream into the empty data directory."""

    resource: ClassVar[Resource] = "server"
    upstream: Upstream


class Rewind(Effect, frozen=True, kw_only=True):
    """Run pg_rewind against the upstream, after making sure that its control file already says `timeline`."""

    resource: ClassVar[Resource] = "server"
    is_irreversible: ClassVar[bool] = True
    upstream: Upstream
    timeline: int


# ---- whom commits wait for -----------------------------------------------------------------------------------------


class SetSyncNames(Effect, frozen=True, kw_only=True):
    """Put `synchronous_standby_names` in force at the running server, and answer when it says so itself."""

    resource: ClassVar[Resource] = "names"
    names: SyncNames
    valid_until_ms: int


class ReleaseSyncNames(Effect, frozen=True, kw_only=True):
    """Leave `synchronous_standby_names` to the operator's own configuration."""

    resource: ClassVar[Resource] = "names"


class EndStaleSenders(Effect, frozen=True, kw_only=True):
    """End WAL senders whose standby has a newer connection: what they last heard would count as if it were news."""

    resource: ClassVar[Resource] = "names"
    standbys: tuple[str, ...]


# ---- SQL ------------------------------------------------------------------------------------------------------------


class Checkpoint(Effect, frozen=True, kw_only=True):
    """Run CHECKPOINT on the own server."""

    resource: ClassVar[Resource] = "sql"


class ReadReplayNeeds(Effect, frozen=True, kw_only=True):
    """Compare the running standby's parameters with what the control file says that its WAL needs."""

    resource: ClassVar[Resource] = "sql"
    pid: int


class PrepareCluster(Effect, frozen=True, kw_only=True):
    """Create the roles that replication and rewind need, on a cluster that this node has just made."""

    resource: ClassVar[Resource] = "sql"


class ReadSyncMark(Effect, frozen=True, kw_only=True):
    """Find out up to where commits may have been acknowledged under earlier `synchronous_standby_names`.

    `is_first`: commits waited for nobody before; then the process that makes them wait must be seen to have read the
    names. Source: PostgreSQL, SyncRepUpdateSyncStandbysDefined, which the checkpointer calls.
    """

    resource: ClassVar[Resource] = "sql"
    is_first: bool


class ReadLeaderHistory(Effect, frozen=True, kw_only=True):
    """Ask the leader's server how it came to its timeline (IDENTIFY_SYSTEM, TIMELINE_HISTORY)."""

    resource: ClassVar[Resource] = "sql"
    upstream: Upstream


# ---- peers and agent ------------------------------------------------------------------------------------------------


class AskPeers(Effect, frozen=True, kw_only=True):
    """Ask members where they stand, all at once; those that are silent for `timeout_ms` are left out of the answer."""

    resource: ClassVar[Resource] = "peers"
    api_urls: dict[str, str]
    voters: tuple[str, ...] = ()
    """Those of them that are asked for their vote. See fsm/vote.py."""
    sync_revision: int = 0
    """What the vote is for."""


class AskFailsafe(Effect, frozen=True, kw_only=True):
    """Ask members to confirm that this leader may go on although etcd does not answer."""

    resource: ClassVar[Resource] = "peers"
    api_urls: dict[str, str]
    ttl_s: int
    conn_url: str
    api_url: str


class KeepPromise(Effect, frozen=True, kw_only=True):
    """Write the promise to a leader without etcd to disk, where an agent that starts finds it."""

    resource: ClassVar[Resource] = "promises"
    leader: str
    asked_at_ms: int
    until_ms: int


class ForgetPromise(Effect, frozen=True, kw_only=True):
    """Remove the promise from disk, for it has ended: after a reboot nobody could tell."""

    resource: ClassVar[Resource] = "promises"


class TryPromise(Effect, frozen=True, kw_only=True):
    """Find out whether a promise would reach the disk now, without making one."""

    resource: ClassVar[Resource] = "promises"


class CheckFailsafe(Effect, frozen=True, kw_only=True):
    """Ask members whether they would confirm this leader, in a way that binds nobody."""

    resource: ClassVar[Resource] = "checks"
    api_urls: dict[str, str]
    leader: str


class CheckNewAgent(Effect, frozen=True, kw_only=True):
    """Try, in a process of its own, whether the agent on the disk would start with the settings that are there now."""

    resource: ClassVar[Resource] = "successor"


class BecomeNewAgent(Effect, frozen=True, kw_only=True):
    """Execute the agent on the disk in place of this one: same process, same listening sockets, same lock.

    Nothing is given back and nothing is stopped. It is never answered: the successor's first event follows.
    """

    resource: ClassVar[Resource] = "agent"
    is_irreversible: ClassVar[bool] = True


class Exit(Effect, frozen=True, kw_only=True):
    """End the agent process with a status and one line of reason; the server, if one runs, is left to its fence."""

    resource: ClassVar[Resource] = "agent"
    status: int
    reason: str


AnyEffect = (
    GrantLease
    | RenewLease
    | RevokeLease
    | TakeLeaderKey
    | ReleaseLeaderKey
    | ClaimInitialize
    | WriteInitialize
    | WriteConfig
    | ChangeConfig
    | PublishMember
    | PublishAsLeader
    | WriteSync
    | DeleteSync
    | RequestFailover
    | ClearFailover
    | ArmFence
    | DisarmFence
    | FeedWatchdog
    | ReleaseWatchdog
    | FenceServer
    | EndLeftovers
    | StopServer
    | StopToRestart
    | ReadDataDirectory
    | InitDb
    | StartPrimary
    | StartStandby
    | Follow
    | ReloadServer
    | ApplyParameters
    | Promote
    | ClearDataDirectory
    | Clone
    | Rewind
    | SetSyncNames
    | ReleaseSyncNames
    | EndStaleSenders
    | ReadSyncMark
    | Checkpoint
    | ReadReplayNeeds
    | PrepareCluster
    | ReadLeaderHistory
    | AskPeers
    | AskFailsafe
    | KeepPromise
    | ForgetPromise
    | TryPromise
    | CheckFailsafe
    | CheckNewAgent
    | BecomeNewAgent
    | Exit
)
