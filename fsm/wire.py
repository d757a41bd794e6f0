"""Patroni's formats in etcd: reading what members wrote, tolerant; writing what they expect, exact.

Source: Patroni 4.1 `docs/` and observed keys; JSON is compact and the order of keys is part of the format.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

import msgspec

from fsm.dynamic import as_bool
from fsm.facts import Fact, Upstream

PATRONI_VERSION = "4.1.5"
"""What the member key says in `version`: peers below 4.0.0 would be spoken to in older ways."""


TEXTS_KEPT = 256
"""Of how many texts it is remembered what they say: the same few are read in step after step."""

TIMELINE_DIGITS_MAX = 10
"""A timeline is a number of 32 bits."""


class Member(Fact, frozen=True, kw_only=True):
    """A member as its key describes it."""

    name: str
    conn_url: str = ""
    api_url: str = ""
    state: str = ""
    role: str = ""
    timeline: int = 0
    position_lsn: int = 0
    replay_lsn: int = 0
    replication_state: str = ""
    has_checkpointed: bool = True
    """False while a new primary has not finished its first checkpoint: too early to rewind from it."""
    tags: dict[str, str | int | float | bool | None] = msgspec.field(default_factory=dict)

    @property
    def is_primary(self) -> bool:
        """True when it says that its server accepts writes."""
        return self.role in ("primary", "master") and self.state == "running"

    @property
    def upstream(self) -> Upstream | None:
        """Where its server is reached; None if its conn_url cannot be read."""
        return _upstream(self.name, self.conn_url)


@lru_cache(TEXTS_KEPT)
def _upstream(name: str, conn_url: str) -> Upstream | None:
    try:
        parts = urlsplit(conn_url)
        return Upstream(name=name, host=parts.hostname, port=parts.port or 5432) if parts.hostname else None
    except ValueError:
        return None


class FailoverRequest(Fact, frozen=True, kw_only=True):
    """What the `failover` key asks for. With `leader` it is a switchover, without one a failover."""

    leader: str | None = None
    candidate: str | None = None
    scheduled_at: str | None = None
    mod_revision: int = 0


class SyncKey(Fact, frozen=True, kw_only=True):
    """The `sync` key: whose commits waited, and for whom."""

    leader: str | None = None
    members: tuple[str, ...] = ()
    quorum: int = 0


class RememberedSync(Fact, frozen=True, kw_only=True):
    """A `sync` key as this node saw it last; see fsm/remembered.py."""

    key: SyncKey
    revision: int
    text: str


def json_object(text: str | None) -> dict[str, Any]:
    """The JSON object in `text`; empty for anything else."""
    try:
        found = msgspec.json.decode(text or "{}")
    except msgspec.DecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def compact(value: object) -> str:
    """JSON as Patroni writes it: no spaces, keys in the order given."""
    return msgspec.json.encode(value).decode()


def _whole(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


@lru_cache(TEXTS_KEPT)
def parse_member(name: str, text: str) -> Member:
    """The member behind a `members/<name>` key; fields that cannot be read are left at their defaults."""
    found = json_object(text)
    tags = found.get("tags")
    received = max(_whole(found.get("xlog_location")), _whole(found.get("receive_lsn")))
    return Member(
        name=name,
        conn_url=_text(found.get("conn_url")),
        api_url=_text(found.get("api_url")),
        state=_text(found.get("state")),
        role=_text(found.get("role")),
        timeline=_whole(found.get("timeline")),
        position_lsn=max(received, _whole(found.get("replay_lsn"))),
        replay_lsn=_whole(found.get("replay_lsn")),
        replication_state=_text(found.get("replication_state")),
        has_checkpointed=found.get("checkpoint_after_promote") is not False,
        tags=_scalars(tags) if isinstance(tags, dict) else {},
    )


def _scalars(found: dict[Any, Any]) -> dict[str, str | int | float | bool | None]:
    return {str(k): v if isinstance(v, str | int | float | bool | None) else str(v) for k, v in found.items()}


def parse_failover(text: str | None, mod_revision: int) -> FailoverRequest | None:
    """The request in the `failover` key; None while it is absent or emptied."""
    found = json_object(text)
    leader, candidate = _text(found.get("leader")), _text(found.get("member")) or _text(found.get("candidate"))
    if not leader and not candidate:
        return None
    return FailoverRequest(
        leader=leader or None,
        candidate=candidate or None,
        scheduled_at=_text(found.get("scheduled_at")) or None,
        mod_revision=mod_revision,
    )


@lru_cache(TEXTS_KEPT)
def parse_sync(text: str | None) -> SyncKey:
    """The content of the `sync` key; empty when it is absent."""
    found = json_object(text)
    names = _text(found.get("sync_standby")).split(",")
    return SyncKey(
        leader=_text(found.get("leader")) or None,
        members=tuple(sorted(name.strip() for name in names if name.strip())),
        quorum=_whole(found.get("quorum")),
    )


def sync_text(key: SyncKey) -> str:
    """The value of the `sync` key, in Patroni's order of fields."""
    members = ",".join(sorted(key.members)) or None
    return compact({"leader": key.leader, "quorum": key.quorum, "sync_standby": members})


def parse_failsafe(text: str | None) -> dict[str, str]:
    """Who may be elected while the leader may be going on without etcd: API addresses by name; empty if unknown."""
    return {str(name): _text(url) for name, url in json_object(text).items()}


def parse_optime(text: str | None) -> int:
    """The leader's last published position from the `status` key, 0 if unknown."""
    return _whole(json_object(text).get("optime"))


def parse_timeline(text: str | None) -> int:
    """The newest timeline that some leader began, by the `timeline` key of our own; 0 if unknown."""
    return int(text) if text and text.isascii() and text.isdecimal() and len(text) <= TIMELINE_DIGITS_MAX else 0


def parse_last_timeline(text: str | None) -> int:
    """The timeline that the newest row of the `history` key began, 0 if there is none."""
    try:
        rows = msgspec.json.decode(text or "[]", type=list[list[Any]])
    except (msgspec.DecodeError, msgspec.ValidationError):
        return 0
    return max((_whole(row[0]) + 1 for row in rows if row), default=0)


def is_barred_by_tags(tags: Mapping[str, Any]) -> bool:
    """True when tags forbid a failover to this member: `nofailover`, or a `failover_priority` of 0 or less."""
    if "nofailover" in tags:
        return as_bool(tags["nofailover"], False)
    return failover_priority(tags) <= 0


def failover_priority(tags: Mapping[str, Any]) -> int:
    """The `failover_priority` tag, 1 by default."""
    return _priority(tags, "failover_priority")


def sync_priority(tags: Mapping[str, Any]) -> int:
    """The `sync_priority` tag, 1 by default: who has a higher one is preferred as a synchronous standby.

    `nosync` counts before it: it says never, or, when it is false, always.
    """
    if "nosync" in tags:
        return 0 if as_bool(tags["nosync"], False) else 1
    return _priority(tags, "sync_priority")


def _priority(tags: Mapping[str, Any], name: str) -> int:
    found = tags.get(name, 1)
    if type(found) is int:
        return found
    try:
        return int(str(found))
    except ValueError:
        return 1
