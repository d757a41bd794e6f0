"""Guards about the cluster as a whole, and what people asked of this node."""

from fsm import election
from fsm.guards.directory import is_directory_a_cluster, is_directory_vacant
from fsm.states import State
from fsm.view import View

SYSTEM_ID_DIGITS_MIN = 10
"""What is shorter is no system identifier: its upper half is the time of initdb. Source: PostgreSQL, pg_control.h."""


def is_cluster_unclaimed(view: View) -> bool:
    """Nobody has initialized the cluster and nobody is about to."""
    return view.etcd.is_watched and view.initialize is None and view.leader is None


def is_initialize_claim_ours(view: View) -> bool:
    """This node is the one that initializes the cluster."""
    key = view.keys.get("initialize")
    return key is not None and key.value == "" and view.lease is not None and key.lease_id == view.lease.lease_id


def is_initialize_unwritten(view: View) -> bool:
    """The cluster's identity is not in etcd: it is claimed by this node, missing, or no system identifier."""
    text = view.initialize
    is_an_identifier = text is not None and text.isdecimal() and len(text) >= SYSTEM_ID_DIGITS_MIN
    return view.etcd.is_watched and not is_an_identifier


def may_initialize(view: View) -> bool:
    """This node's settings and tags allow it to make a new cluster."""
    return view.identity is not None and view.identity.may_initialize and not election.is_barred(view)


def has_namesake_to_ask(view: View) -> bool:
    """A member of this node's name is published at another address, and was not asked whether it lives."""
    found = view.members.get(view.name)
    if view.state is not State.BOOTSTRAPPING or found is None or view.identity is None or not view.etcd.is_watched:
        return False
    return found.api_url not in ("", view.identity.api_url) and "ask-namesake" not in view.achieved


def has_living_namesake(view: View) -> bool:
    """Another agent answered under this node's name."""
    heard = view.peers.get(view.name)
    is_other = heard is not None and view.identity is not None and heard.report.instance != view.identity.instance
    return is_other and view.state is State.BOOTSTRAPPING


def is_name_free(view: View) -> bool:
    """No other living agent is known to go by this node's name."""
    return not has_namesake_to_ask(view) and not has_living_namesake(view)


def has_data_of_this_cluster(view: View) -> bool:
    """This node's data belong to the cluster that etcd knows, or to one whose identity is yet to be written."""
    return bool(view.system_id) and view.initialize in (view.system_id, "")


def has_data_of_another_cluster(view: View) -> bool:
    """This node's data carry another system identifier than the cluster in etcd."""
    return view.etcd.is_watched and bool(view.system_id) and bool(view.initialize) and view.initialize != view.system_id


def is_cluster_possibly_ours(view: View) -> bool:
    """Nothing shows that this node's data belong to another cluster than the one in etcd."""
    return not has_data_of_another_cluster(view)


def has_no_config(view: View) -> bool:
    """The dynamic configuration is not in etcd."""
    key = view.keys.get("config")
    return view.etcd.is_watched and (key is None or not key.value)


def is_unpaused(view: View) -> bool:
    """The cluster is not paused."""
    return not view.dynamic.pause


def is_staying(view: View) -> bool:
    """The agent was not asked to stop."""
    return not view.is_stopping


def is_stopping(view: View) -> bool:
    """The agent was asked to stop."""
    return view.is_stopping


def is_switchover_unwritten(view: View) -> bool:
    """An operator asked this node for a switchover that is not yet in etcd."""
    return view.switchover is not None


def is_reinit_asked(view: View) -> bool:
    """An operator asked to replace this node's data."""
    return view.is_reinit_asked


def is_every_former_lease_over(view: View) -> bool:
    """This node has no data, so nobody led; or etcd has shown no leader for as long as a lease lasts.

    Where etcd comes back empty, whoever led may serve until its deadline without having heard of that.
    """
    since_ms = view.leader_free_since_ms
    is_over = since_ms is not None and view.now_ms - since_ms >= view.dynamic.ttl_s * 1000
    return is_over or not view.system_id


def has_something_to_initialize_with(view: View) -> bool:
    """The data directory is empty and no cluster was heard of yet, nor a member with data; or it holds a cluster.

    Where etcd loses everything, a node without data leaves the cluster to those that have any.
    """
    others = [member for member in view.members.values() if member.name != view.name]
    has_others_data = any(member.timeline or member.position_lsn for member in others)
    is_first = is_directory_vacant(view) and not view.has_seen_identity and not has_others_data
    return is_first or is_directory_a_cluster(view) or view.server.probe is not None


def is_cluster_prepared(view: View) -> bool:
    """The roles of the new cluster were created."""
    return view.has_achieved("prepare-cluster", view.state_since_ms)


def is_cluster_unprepared(view: View) -> bool:
    """The roles of the new cluster were not created yet."""
    return not is_cluster_prepared(view)


def has_made_the_cluster(view: View) -> bool:
    """This node ran initdb for the cluster that it is initializing."""
    return is_initialize_claim_ours(view) and is_directory_a_cluster(view) and "init-db" in view.achieved
