"""What is remembered, estimated and told about WAL that a promotion may leave behind: values without an opinion."""

from typing import Literal

from fsm.facts import Fact

Basis = Literal["synchronous", "own", "measured", "other timeline", "unknown"]
"""What an estimate rests on.

synchronous     the `sync` key says that this node holds each commit that waited, or met enough others that do
own             this node led last itself: what it acknowledged is in its own WAL
measured        the last position that the leader published, less this node's own
other timeline  the leader was on another timeline, whose positions do not compare with this node's
unknown         no position of the leader, or none of this node, is known
"""


class FormerLeader(Fact, frozen=True, kw_only=True):
    """Who else led last, or leads, and how far its WAL was heard to reach."""

    name: str = ""
    """Empty where the key was free when etcd was first read: nobody knows who held it."""
    lsn: int = 0
    """The newest `optime` of the `status` key under this leader; 0 if there was none."""
    heard_at_ms: int | None = None
    """When that was heard; None where it was found in etcd and may be of any age."""
    rate_bytes_per_s: int | None = None
    """How fast WAL grew between the last two positions; None before there were two."""


class LossEstimate(Fact, frozen=True, kw_only=True):
    """How much WAL the former leader may have acknowledged that this node does not have. None is unknown, never 0."""

    former: str
    basis: Basis
    seen_bytes: int | None = None
    """Lacking by the last known position."""
    at_most_bytes: int | None = None
    """Lacking at the worst, if the leader went on no faster than it was last seen to."""
    position_lsn: int = 0
    position_age_ms: int | None = None
    rate_bytes_per_s: int | None = None
    """The growth that the bound counts on."""


class Promotion(Fact, frozen=True, kw_only=True):
    """This node's last promotion, and what was known when it was ordered."""

    at_ms: int
    loss: LossEstimate
