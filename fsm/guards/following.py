"""Guards about the leader that is followed, and whether this node's data went another way."""

from fsm.facts import Upstream
from fsm.guards.cluster import has_data_of_this_cluster
from fsm.guards.directory import has_cloned, is_rewind_unfinished
from fsm.guards.keys import is_etcd_watched, is_leader_key_held_by_another
from fsm.states import State
from fsm.timelines import has_running_standby_diverged, has_stopped_server_diverged, known_history, was_primary
from fsm.timing import DOUBTFUL_STARTS_MAX, REWIND_ATTEMPTS_MAX
from fsm.view import View
from fsm.wire import Member


def has_diverged(view: View) -> bool:
    """This node's WAL went another way than the leader's."""
    history = known_history(view)
    if history is None or not is_leader_key_held_by_another(view) or not has_data_of_this_cluster(view):
        return False
    if view.server.probe is not None and view.server.probe.in_recovery:
        return has_running_standby_diverged(view.server.probe.timeline, view.server.probe.position_lsn, history)
    directory = view.directory
    if directory is None or directory.condition != "cluster":
        return False
    is_doubt_a_yes = view.server.failed_starts >= DOUBTFUL_STARTS_MAX
    return has_stopped_server_diverged(directory, history, is_doubt_a_yes=is_doubt_a_yes)


def is_in_need_of_rewind(view: View) -> bool:
    """The data diverged from the leader's, or an earlier pg_rewind was not finished."""
    return has_diverged(view) or is_rewind_unfinished(view)


def is_on_the_leaders_timeline(view: View) -> bool:
    """The stopped former primary here and the present leader wrote the same timeline: pg_rewind sees no difference."""
    history = known_history(view)
    return history is not None and was_primary(view.directory) and view.timeline == history.timeline


def is_rewind_possible(view: View) -> bool:
    """pg_rewind is allowed, and data checksums or wal_log_hints make it possible."""
    own = view.identity.use_pg_rewind if view.identity else None
    is_allowed = view.dynamic.use_pg_rewind if own is None else own
    if not is_allowed or is_on_the_leaders_timeline(view):
        return False
    # A running server shows neither here; the agent itself keeps wal_log_hints on.
    return view.directory is None or view.directory.data_checksums or view.directory.wal_log_hints


def is_rewind_impossible(view: View) -> bool:
    """pg_rewind is switched off, or neither data checksums nor wal_log_hints are on."""
    return not is_rewind_possible(view)


def has_rewind_failed_for_good(view: View) -> bool:
    """pg_rewind failed as often as it is tried."""
    attempts = view.attempts.get("rewind")
    # A source that does not answer (kind "sql") says nothing about the data here: it is tried for as long as it takes.
    return attempts is not None and attempts.failures >= REWIND_ATTEMPTS_MAX and attempts.kind == "program"


def may_clone_after_failed_rewind(view: View) -> bool:
    """The settings allow a new base backup where pg_rewind failed."""
    return view.identity is not None and view.identity.clone_on_rewind_failure


def may_clone_on_divergence(view: View) -> bool:
    """The settings allow a new base backup where pg_rewind is impossible."""
    return view.identity is not None and view.identity.clone_on_divergence


def is_leader_history_wanted(view: View) -> bool:
    """The leader is on another timeline, or this node was a primary, and it is not known where their WAL parts."""
    member = leader_to_follow(view)
    if member is None or not member.is_primary or known_history(view) is not None:
        return False
    return (
        view.state is State.REWINDING
        or was_primary(view.directory)
        or (bool(view.timeline) and view.timeline != member.timeline)
    )


def is_leader_rewindable(view: View) -> bool:
    """The leader's server accepts writes and has finished its first checkpoint since it was promoted."""
    member = leader_to_follow(view)
    return member is not None and member.is_primary and member.has_checkpointed and known_history(view) is not None


def leader_to_follow(view: View) -> Member | None:
    """The leader's member if it is another and can be reached."""
    member = view.leader_member
    return member if member and member.name != view.name and member.upstream else None


def has_clone_source(view: View) -> bool:
    """Another member leads, its server accepts writes, and the cluster is initialized."""
    member = leader_to_follow(view)
    return member is not None and member.is_primary and bool(view.initialize)


def is_free_to_start_as_standby(view: View) -> bool:
    """Starting the server as a standby can do no harm: the data are this cluster's, and have not gone another way."""
    if not view.etcd.is_watched or has_diverged(view):
        return False
    if not has_data_of_this_cluster(view) and not is_standby_of_a_nameless_cluster(view):
        return False
    has_other_leader = is_leader_key_held_by_another(view)
    return not (has_other_leader and was_primary(view.directory) and known_history(view) is None)


def is_standby_of_a_nameless_cluster(view: View) -> bool:
    """Another leads while `initialize` is missing, and the data here were last run as a standby.

    PostgreSQL itself refuses to stream to data of another system identifier. Source: PostgreSQL, walreceiver.c.
    """
    is_a_standbys = view.directory is not None and not was_primary(view.directory)
    return view.initialize is None and leader_to_follow(view) is not None and bool(view.system_id) and is_a_standbys


def is_following_another(view: View) -> bool:
    """The running standby was looked at since it was last pointed anywhere, and does not follow the leader."""
    wanted, probe = wanted_upstream(view), view.server.probe
    if wanted is None or probe is None or view.server.probed_at_ms <= view.achieved.get("follow", -1):
        return False
    return (probe.upstream_host, probe.upstream_port) != (wanted.host, wanted.port)


def is_leader_to_be_followed(view: View) -> bool:
    """Another member leads and can be reached."""
    return wanted_upstream(view) is not None


def wanted_upstream(view: View) -> Upstream | None:
    """Where this node's standby should stream from; None while nobody else leads."""
    member = leader_to_follow(view)
    return member.upstream if member else None


def is_rewind_source_lost(view: View) -> bool:
    """Nobody else leads any more: there is nobody to rewind from, and nobody to have diverged from."""
    return is_etcd_watched(view) and not is_leader_key_held_by_another(view)


def is_clone_source_missing(view: View) -> bool:
    """There is nobody to take a base backup from at present."""
    return not has_clone_source(view)


def is_work_on_directory_ahead(view: View) -> bool:
    """The data directory is to be rewound or replaced, and what that needs is there."""
    if view.state is State.REWINDING:
        return is_leader_rewindable(view)
    return has_clone_source(view) and not has_cloned(view)


def is_rewind_worth_a_try(view: View) -> bool:
    """pg_rewind has not yet failed as often as it is tried."""
    return not has_rewind_failed_for_good(view)
