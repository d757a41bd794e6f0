"""What the demo knows of its cluster at one instant, from what the nodes' APIs and logs say. Pure."""

from typing import Any, Literal

import msgspec

from fsm.entries import Entry
from fsm.events import AgentStarted, EtcdLost, Failed, KeysChanged, ServerExited, StopAsked, Succeeded, SwitchoverAsked

ProcessState = Literal["up", "frozen", "down"]

NEWS_DUTIES = frozenset(
    {"init-db", "clone", "rewind", "promote", "start-primary", "start-standby", "follow", "take-leader-key"}
)
"""Duties whose success is worth a line in the view; the others are the daily round."""
QUIET_FAILURES = frozenset({"cancelled", "expired"})


class MemberPicture(msgspec.Struct, frozen=True, kw_only=True):
    """One node. What the API said last is kept while it is silent; `is_answering` tells."""

    name: str
    api_url: str
    process: ProcessState = "down"
    is_answering: bool = False
    role: str = ""
    """PostgreSQL's: primary, replica, demoted, uninitialized."""
    server: str = ""
    """Patroni's word for what the server does: running, starting, creating replica, ..."""
    state: str = ""
    """The machine's."""
    timeline: int = 0
    lsn: int = 0
    is_streaming: bool = False
    lease_left_ms: int | None = None
    copied_bytes: int | None = None
    """How much of the data directory is there, while it is being copied."""

    @property
    def is_primary(self) -> bool:
        """True while it accepts writes, as it said itself a moment ago."""
        return self.is_answering and self.state == "leader" and self.role == "primary" and self.server == "running"

    @property
    def is_settled(self) -> bool:
        """True when it is what it should be: the primary, or a standby that streams."""
        return self.is_primary or (self.is_answering and self.state == "replica" and self.is_streaming)


class ClusterPicture(msgspec.Struct, frozen=True, kw_only=True):
    """All nodes, and the newest entries of their logs, oldest first."""

    members: tuple[MemberPicture, ...]
    news: tuple[Entry, ...] = ()
    ttl_s: int = 0

    @property
    def primary(self) -> MemberPicture | None:
        """The member that accepts writes; the newest timeline's where two say so."""
        found = [member for member in self.members if member.is_primary]
        return max(found, key=lambda member: member.timeline) if found else None

    @property
    def is_settled(self) -> bool:
        """True when there is one primary and every other node streams on its timeline."""
        primary = self.primary
        if primary is None or sum(member.is_primary for member in self.members) != 1:
            return False
        return all(member.is_settled and member.timeline == primary.timeline for member in self.members)

    def member(self, name: str) -> MemberPicture:
        """The node of that name."""
        return next(member for member in self.members if member.name == name)


def from_status(member: MemberPicture, status: dict[str, Any]) -> MemberPicture:
    """A member with what GET /patroni answered.

    Args:
        member: what was known of it.
        status: the decoded answer.
    """
    xlog, ours = status.get("xlog", {}), status.get("matriarch", {})
    return msgspec.structs.replace(
        member,
        is_answering=True,
        role=str(status.get("role", "")),
        server=str(status.get("state", "")),
        state=str(ours.get("state", "")),
        timeline=int(status.get("timeline", 0)),
        lsn=int(xlog.get("location") or xlog.get("received_location") or 0),
        is_streaming=status.get("replication_state") == "streaming",
        lease_left_ms=ours.get("lease_left_ms"),
    )


def lag_bytes(picture: ClusterPicture, member: MemberPicture) -> int | None:
    """How far a standby is behind the primary; None where there is nothing to compare."""
    primary = picture.primary
    if primary is None or primary.name == member.name or not member.lsn or not member.is_answering:
        return None
    return max(0, primary.lsn - member.lsn)


def is_news(entry: Entry) -> bool:
    """True for an entry that tells part of the story: a move, something found out, something done to the server."""
    event = entry.event
    if entry.rule is not None or isinstance(
        event, AgentStarted | ServerExited | StopAsked | SwitchoverAsked | EtcdLost
    ):
        return True
    if isinstance(event, Succeeded):
        return event.duty in NEWS_DUTIES
    if isinstance(event, Failed):
        return event.duty in NEWS_DUTIES and event.kind not in QUIET_FAILURES
    return isinstance(event, KeysChanged) and any(change.key in ("leader", "failover") for change in event.changes)
