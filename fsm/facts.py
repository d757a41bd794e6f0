"""Facts about the world, as the executors bring them: frozen values without an opinion.

LSNs are integers (bytes from the start of WAL), instants are milliseconds of CLOCK_BOOTTIME of this node.
"""

from typing import Literal

from msgspec import Struct, field


class Fact(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Base of every fact: frozen, compact in the log, strict when read back."""


class FenceKill(Fact, frozen=True, kw_only=True):
    """The fence ended a server at its deadline, by its own account."""

    armed_until_ms: int | None = None
    at_ms: int
    """When it saw that the deadline had passed and began."""
    gone_at_ms: int
    """When not one process of the server was left."""
    processes: int = 0
    """How many there were when it began; 0 where an older fence did not count."""
    killed: int = 0
    """How many did not go by SIGQUIT and were killed."""


class Upstream(Fact, frozen=True, kw_only=True):
    """Where a server can be reached: the member's name and its address."""

    name: str
    host: str
    port: int


class Standby(Fact, frozen=True, kw_only=True):
    """One row of pg_stat_replication. Source: PostgreSQL, "The Statistics Views"."""

    application_name: str
    state: str
    sync_state: str = "async"
    usename: str = ""
    client_addr: str | None = None
    sync_priority: int = 0
    write_lsn: int = 0
    flush_lsn: int = 0
    replay_lsn: int = 0


class ParameterChange(Fact, frozen=True, kw_only=True):
    """What a parameter is and what it will be after a restart, as PostgreSQL shows them."""

    old_value: str
    new_value: str


class Probe(Fact, frozen=True, kw_only=True):
    """One look at the running server through SQL."""

    in_recovery: bool
    timeline: int
    """Primary: the timeline it writes. Standby: the one it receives, else the one it last replayed."""
    system_id: str
    server_version: int
    """server_version_num, such as 180004."""
    postmaster_started_at: str
    flushed_lsn: int = 0
    """Primary only: pg_current_wal_flush_lsn()."""
    received_lsn: int = 0
    """Standby only: what is safe on its disk, pg_last_wal_receive_lsn(); 0 if it never streamed since its start."""
    replayed_lsn: int = 0
    replayed_at: str | None = None
    replay_paused: bool = False
    is_replaying: bool = False
    """Standby only: it still reads the WAL that was on its disk when it started, and may hold more than it says."""
    receiver_status: str | None = None
    """pg_stat_wal_receiver.status, such as "streaming"; None when there is no WAL receiver."""
    upstream_host: str | None = None
    upstream_port: int | None = None
    """What primary_conninfo says at present, whether or not the receiver is connected."""
    standbys: tuple[Standby, ...] = ()
    pending_restart: tuple[str, ...] = ()
    synchronous_standby_names: str = ""
    """Whom commits wait for, in the words of the server's parameter."""
    synchronous_commit: str = "on"
    pending_restart_reason: dict[str, ParameterChange] = field(default_factory=dict)

    @property
    def position_lsn(self) -> int:
        """How far this server's WAL reaches, whatever its role: what an election compares."""
        return max(self.flushed_lsn, self.received_lsn, self.replayed_lsn)


class DataDirectory(Fact, frozen=True, kw_only=True):
    """What lies in the data directory while no server runs on it. Source: pg_controldata, the agent's markers."""

    condition: Literal[
        "absent", "empty", "cluster", "unfinished_init", "unfinished_clone", "unfinished_rewind", "unreadable"
    ]
    system_id: str = ""
    timeline: int = 0
    control_state: str = ""
    """pg_controldata's "Database cluster state", such as "in production" or "shut down"."""
    checkpoint_lsn: int = 0
    min_recovery_lsn: int = 0
    min_recovery_timeline: int = 0
    is_base_backup: bool = False
    """It holds a backup_label: a base backup that was never started, whatever state its source was in."""
    data_checksums: bool = False
    wal_log_hints: bool = False
    detail: str = ""
    """Why it is unreadable, in one line."""


class TimelineSwitch(Fact, frozen=True, kw_only=True):
    """One line of a timeline history file: `timeline` ended at `lsn`. Source: PostgreSQL, TIMELINE_HISTORY."""

    timeline: int
    lsn: int
    reason: str = ""


class TimelineHistory(Fact, frozen=True, kw_only=True):
    """The way a server came to its timeline, as it says itself over the replication protocol."""

    timeline: int
    system_id: str
    in_recovery: bool = False
    switches: tuple[TimelineSwitch, ...] = ()


class Key(Fact, frozen=True, kw_only=True):
    """A key of etcd as last seen; `value` is None once it was deleted at `mod_revision`."""

    value: str | None
    mod_revision: int
    create_revision: int = 0
    lease_id: int = 0


class KeyChange(Fact, frozen=True, kw_only=True):
    """A key below the cluster's prefix as it now is. `key` is relative to the prefix, such as "members/n1"."""

    key: str
    value: str | None
    mod_revision: int
    create_revision: int = 0
    lease_id: int = 0


class PeerReport(Fact, frozen=True, kw_only=True):
    """What one member answered when it was asked where it stands; silent members make no report."""

    name: str
    role: str
    state: str
    position_lsn: int = 0
    timeline: int = 0
    no_failover: bool = False
    failover_priority: int = 1
    is_replaying: bool = False
    """Its server was started and has not read all WAL on its own disk yet: it may hold more than the position says."""
    instance: str = ""
    """Which agent process answered; empty where it does not say (Patroni)."""
    vote_revision: int = 0
    """The revision of the `sync` key for which it votes; 0 for none. See fsm/vote.py."""
    disk_full: bool = False
    """Its disk has no room for more WAL."""
    probed_ago_ms: int = 0
    """How old the peer's own look at its server was; 0 where it looked for this answer (Patroni does)."""


class FailsafeAnswer(Fact, frozen=True, kw_only=True):
    """What a member said when it was asked whether it would confirm, in a way that binds nobody.

    `kind`: "promise" it said so itself (`is_willing`), "list" it only told its list (another version, see `role` and
    `version`), "status" it knows no failsafe, "refused" it said no to the question, "none" it said nothing.
    """

    name: str
    kind: Literal["promise", "list", "status", "refused", "none"]
    is_willing: bool = False
    detail: str = ""
    role: str = ""
    version: str = ""
    took_ms: int = 0


class KeptPromise(Fact, frozen=True, kw_only=True):
    """A promise to a leader without etcd as it lies on disk. Its instants are those of one boot of the machine."""

    leader: str
    """Empty where the file could not be read: then nobody is confirmed by it, and the node only holds back."""
    boot: str
    asked_at_ms: int
    until_ms: int
