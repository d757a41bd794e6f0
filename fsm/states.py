"""The six states of a node. A state is a promise about this node, not a picture of what PostgreSQL does."""

from enum import StrEnum


class State(StrEnum):
    """What this node is in the cluster; each member says what it guarantees."""

    BOOTSTRAPPING = "bootstrapping"
    """Nothing is promised yet: the agent finds out what it has, makes a cluster, clones one, or takes up a server."""

    REPLICA = "replica"
    """No server of this node accepts writes, or it is being stopped; where there is a leader, it is followed."""

    CANDIDATE = "candidate"
    """As a replica, and this node may take the leader key and is finding out whether it should."""

    LEADER = "leader"
    """This node held the leader key when it came here; its server may accept writes until the fence's deadline."""

    REWINDING = "rewinding"
    """The data directory went another way than the leader's; it is not started before pg_rewind has mended it."""

    REINIT = "reinit"
    """The data directory is being replaced by a new base backup of the leader."""
