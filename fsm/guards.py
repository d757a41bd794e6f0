"""Guards: one fact each, positive, pure. The table combines them; `explain` shows which hold.

Each docstring is what a person reads when the guard is the reason why something did or did not happen.
"""

from fsm import election
from fsm.facts import DataDirectory, Upstream
from fsm.publish import own_history
from fsm.states import State
from fsm.timelines import has_running_standby_diverged, has_stopped_server_diverged, known_history, was_primary
from fsm.timing import (
    FAILED_STARTS_MAX,
    HANDOVER_CATCH_UP_MS,
    NAMED_SUCCESSOR_WAIT_MS,
    PEER_REASK_MS,
    PROMOTE_AGAIN_MS,
    REWIND_ATTEMPTS_MAX,
    renew_every_ms,
)
from fsm.view import View
from fsm.wire import Member, is_barred_by_tags

# ---- etcd and the leader key ----------------------------------------------------------------------------------------


def is_etcd_watched(view: View) -> bool:
    """etcd was read and every change since is heard of."""
    return view.etcd.is_watched


def is_etcd_unreachable(view: View) -> bool:
    """etcd is not heard of at present."""
    return not view.etcd.is_watched


def is_leader_key_free(view: View) -> bool:
    """etcd says that nobody holds the leader key."""
    return view.etcd.is_watched and view.leader is None


def is_leader_key_held_by_another(view: View) -> bool:
    """The leader key names another member."""
    return view.leader is not None and view.leader != view.name


def is_leader_key_named_for_us(view: View) -> bool:
    """The leader key names this node, under whatever lease."""
    return view.leader == view.name


def is_leader_key_ours(view: View) -> bool:
    """The leader key names this node and hangs on its present lease."""
    key = view.keys.get("leader")
    return key is not None and view.lease is not None and key.value == view.name and key.lease_id == view.lease.lease_id


def has_lost_the_leader_key(view: View) -> bool:
    """The leader key went to another, or is gone while no failsafe confirmation stands in for it."""
    if is_leader_key_held_by_another(view):
        return True
    return is_leader_key_free(view) and view.now_ms >= view.failsafe_until_ms


def has_lease(view: View) -> bool:
    """This node has a lease at etcd."""
    return view.lease is not None


def is_lease_wanted(view: View) -> bool:
    """This node has no lease, or one of another length than the cluster's ttl, and is not on its way out."""
    return not view.is_stopping and (view.lease is None or view.lease.asked_ttl_s != view.dynamic.ttl_s)


def is_renewal_due(view: View) -> bool:
    """A third of the lease is used."""
    return view.lease is not None and view.now_ms >= view.lease.sent_at_ms + renew_every_ms(view.lease.ttl_s)


def has_time_left(view: View) -> bool:
    """The deadline until which this node may let its server accept writes lies ahead."""
    return view.now_ms < view.writable_until_ms


def is_past_its_deadline(view: View) -> bool:
    """The lease may have run out at etcd, and no failsafe confirmation stands in for it."""
    return view.now_ms >= view.writable_until_ms


# ---- the cluster ----------------------------------------------------------------------------------------------------


def is_cluster_unclaimed(view: View) -> bool:
    """Nobody has initialized the cluster and nobody is about to."""
    return view.etcd.is_watched and view.initialize is None and view.leader is None


def is_initialize_claim_ours(view: View) -> bool:
    """This node is the one that initializes the cluster."""
    key = view.keys.get("initialize")
    return key is not None and key.value == "" and view.lease is not None and key.lease_id == view.lease.lease_id


def may_initialize(view: View) -> bool:
    """This node's settings and tags allow it to make a new cluster."""
    return view.identity is not None and view.identity.may_initialize and not election.is_barred(view)


def has_data_of_this_cluster(view: View) -> bool:
    """This node's data belong to the cluster that etcd knows, or to the one it is initializing."""
    return bool(view.system_id) and (view.initialize == view.system_id or is_initialize_claim_ours(view))


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


# ---- the server -----------------------------------------------------------------------------------------------------


def is_server_absent(view: View) -> bool:
    """No process of a server runs."""
    return view.server.process == "absent"


def is_server_running(view: View) -> bool:
    """A postmaster runs."""
    return view.server.process == "running"


def is_standby_running(view: View) -> bool:
    """The server runs, answered, and is in recovery."""
    server = view.server
    return server.process == "running" and not server.may_be_primary and server.probe is not None


def is_promotable(view: View) -> bool:
    """The server runs and was in recovery when it last answered."""
    server = view.server
    return server.process == "running" and server.probe is not None and server.probe.in_recovery


def is_primary_running(view: View) -> bool:
    """The server runs and answered that it accepts writes."""
    server = view.server
    return server.process == "running" and server.probe is not None and not server.probe.in_recovery


def may_a_primary_be_running(view: View) -> bool:
    """A server runs that accepts writes, or may be about to."""
    return view.server.process == "running" and view.server.may_be_primary


def is_primary_without_deadline(view: View) -> bool:
    """A server runs that accepts writes, and the fence has no deadline for it."""
    return is_primary_running(view) and view.fence.armed_until_ms is None


def is_no_primary_possible(view: View) -> bool:
    """No server of this node can accept writes: none runs, or a standby that nobody told to promote."""
    return view.server.process == "absent" or (view.server.process == "running" and not view.server.may_be_primary)


def is_promotion_due(view: View) -> bool:
    """This postmaster was not told to promote yet, or was told long ago to no effect."""
    told_at_ms = view.achieved.get("promote", -1)
    return told_at_ms < view.server.spawned_at_ms or view.now_ms - told_at_ms >= PROMOTE_AGAIN_MS


def is_fence_armed(view: View) -> bool:
    """The fence confirmed a deadline for the server that lies ahead."""
    return view.fence.armed_until_ms is not None and view.fence.armed_until_ms > view.now_ms


def is_fence_deadline_outdated(view: View) -> bool:
    """The fence has another deadline than the one that this node's lease or failsafe gives."""
    return view.server.process == "running" and view.fence.armed_until_ms != view.writable_until_ms


def has_needless_fence_deadline(view: View) -> bool:
    """The fence still has a deadline for a server that is a standby."""
    return is_standby_running(view) and view.fence.armed_until_ms is not None


# ---- the data directory ---------------------------------------------------------------------------------------------


def is_directory_unread(view: View) -> bool:
    """Nobody has looked at the data directory since the server ended or the directory was changed."""
    return view.server.process == "absent" and view.directory is None


def is_directory_vacant(view: View) -> bool:
    """The data directory is empty or absent."""
    return view.directory is not None and view.directory.condition in ("absent", "empty")


def is_directory_a_cluster(view: View) -> bool:
    """The data directory holds a complete cluster."""
    return view.directory is not None and view.directory.condition == "cluster"


def is_directory_in_the_way(view: View) -> bool:
    """The data directory holds something that this stay in reinit has not put there."""
    occupied = view.directory is not None and view.directory.condition not in ("absent", "empty")
    return occupied and not has_cloned(view)


def is_init_unfinished(view: View) -> bool:
    """This agent's own marker says that its initdb was not finished."""
    return view.directory is not None and view.directory.condition == "unfinished_init"


def is_clone_unfinished(view: View) -> bool:
    """This agent's own marker says that its base backup was not finished."""
    return view.directory is not None and view.directory.condition == "unfinished_clone"


def is_rewind_unfinished(view: View) -> bool:
    """This agent's own marker says that its pg_rewind was not finished: the directory must not be started."""
    return view.directory is not None and view.directory.condition == "unfinished_rewind"


def is_directory_rewindable(view: View) -> bool:
    """The data directory holds a complete cluster, or one that an earlier pg_rewind left unfinished."""
    return is_directory_a_cluster(view) or is_rewind_unfinished(view)


def has_no_cluster_here(view: View) -> bool:
    """No server runs and the data directory does not hold a complete cluster."""
    conditions = ("absent", "empty", "unfinished_init", "unfinished_clone")
    return view.server.process == "absent" and view.directory is not None and view.directory.condition in conditions


def has_made_the_cluster(view: View) -> bool:
    """This node ran initdb for the cluster that it is initializing."""
    return is_initialize_claim_ours(view) and is_directory_a_cluster(view) and "init-db" in view.achieved


def has_cloned(view: View) -> bool:
    """The base backup was taken in this stay in the state."""
    return view.has_achieved("clone", view.state_since_ms)


def has_rewound(view: View) -> bool:
    """pg_rewind ended well in this stay in the state."""
    return view.has_achieved("rewind", view.state_since_ms)


def has_begun_rewind(view: View) -> bool:
    """pg_rewind is running, or left the directory unfinished."""
    return "rewind" in view.underway or is_rewind_unfinished(view)


# ---- divergence -----------------------------------------------------------------------------------------------------


def has_diverged(view: View) -> bool:
    """This node's WAL went another way than the leader's."""
    history = known_history(view)
    if history is None or not is_leader_key_held_by_another(view):
        return False
    if view.server.probe is not None and view.server.probe.in_recovery:
        return has_running_standby_diverged(view.server.probe.timeline, view.server.probe.position_lsn, history)
    return is_directory_a_cluster(view) and has_stopped_server_diverged(_directory(view), history)


def _directory(view: View) -> DataDirectory:
    assert view.directory is not None
    return view.directory


def is_in_need_of_rewind(view: View) -> bool:
    """The data diverged from the leader's, or an earlier pg_rewind was not finished."""
    return has_diverged(view) or is_rewind_unfinished(view)


def is_rewind_possible(view: View) -> bool:
    """pg_rewind is allowed, and data checksums or wal_log_hints make it possible."""
    if not view.dynamic.use_pg_rewind:
        return False
    # A running server shows neither here; the agent itself keeps wal_log_hints on.
    return view.directory is None or view.directory.data_checksums or view.directory.wal_log_hints


def is_rewind_impossible(view: View) -> bool:
    """pg_rewind is switched off, or neither data checksums nor wal_log_hints are on."""
    return not is_rewind_possible(view)


def has_rewind_failed_for_good(view: View) -> bool:
    """pg_rewind failed as often as it is tried."""
    attempts = view.attempts.get("rewind")
    return attempts is not None and attempts.failures >= REWIND_ATTEMPTS_MAX


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


# ---- following ------------------------------------------------------------------------------------------------------


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
    if not view.etcd.is_watched or not has_data_of_this_cluster(view) or has_diverged(view):
        return False
    has_other_leader = is_leader_key_held_by_another(view)
    return not (has_other_leader and was_primary(view.directory) and known_history(view) is None)


def is_following_another(view: View) -> bool:
    """The running standby was looked at since it was last pointed anywhere, and does not follow the leader."""
    wanted, probe = wanted_upstream(view), view.server.probe
    if wanted is None or probe is None or view.server.probed_at_ms <= view.achieved.get("follow", -1):
        return False
    return (probe.upstream_host, probe.upstream_port) != (wanted.host, wanted.port)


def wanted_upstream(view: View) -> Upstream | None:
    """Where this node's standby should stream from; None while nobody else leads."""
    member = leader_to_follow(view)
    return member.upstream if member else None


# ---- elections ------------------------------------------------------------------------------------------------------


def is_able_to_stand(view: View) -> bool:
    """Tags, timeline, synchronous mode and lag allow this node to be promoted, and its standby runs."""
    return (
        is_standby_running(view)
        and not election.is_barred(view)
        and has_data_of_this_cluster(view)
        and is_on_the_newest_timeline(view)
        and election.is_synchronous_enough(view)
        and election.lag_bytes(view) <= view.dynamic.maximum_lag_on_failover_bytes
    )


def is_on_the_newest_timeline(view: View) -> bool:
    """This node is on the newest timeline that the cluster's history knows, or that check is off."""
    return not view.dynamic.check_timeline or view.timeline >= view.last_timeline


def is_unrivalled(view: View) -> bool:
    """No member that was heard lately has more WAL, a higher priority, or a server that still accepts writes."""
    return election.best_rival(view) is None


def is_rivalled(view: View) -> bool:
    """A member that was heard lately has more WAL, a higher priority, or a server that still accepts writes."""
    return not is_unrivalled(view)


def is_named_successor(view: View) -> bool:
    """A switchover or failover names this node."""
    return view.failover is not None and view.failover.candidate == view.name


def is_first_choice_open(view: View) -> bool:
    """No other living member was named as successor, or it has let its time pass."""
    request = view.failover
    if request is None or request.candidate in (None, view.name) or request.candidate not in view.members:
        return True
    since = view.leader_free_since_ms
    return since is not None and view.now_ms - since >= NAMED_SUCCESSOR_WAIT_MS


def has_promised_nothing(view: View) -> bool:
    """This node has not promised a leader without etcd to let it go on."""
    return view.promise is None or view.now_ms >= view.promise.until_ms


def is_standing_in_vain(view: View) -> bool:
    """This node may not be promoted any more: its standby is gone or it no longer qualifies."""
    return not is_able_to_stand(view) and not has_special_claim(view)


def has_special_claim(view: View) -> bool:
    """This node made the cluster, or runs a primary already: there is nobody to elect."""
    return has_made_the_cluster(view) or may_a_primary_be_running(view)


def is_peer_question_due(view: View) -> bool:
    """A peer has not told a fresh position in this candidacy, and was not asked just now."""
    if has_special_claim(view) or is_named_successor(view) or not election.stale_or_silent_peers(view):
        return False
    asked_at_ms = max(view.achieved.get("ask-peers", 0), 0)
    return asked_at_ms < view.state_since_ms or view.now_ms - asked_at_ms >= PEER_REASK_MS


def is_election_decided(view: View) -> bool:
    """Everybody who answers in time was heard and nobody is better, or there is nobody to ask."""
    if has_special_claim(view) or is_named_successor(view):
        return True
    if not is_unrivalled(view) or view.server.probed_at_ms < view.state_since_ms:
        return False
    return not election.stale_or_silent_peers(view) or election.has_waited_long_enough(view)


# ---- leading --------------------------------------------------------------------------------------------------------


def is_beyond_restart(view: View) -> bool:
    """The server was not brought to accept writes within primary_start_timeout, or keeps ending."""
    server = view.server
    if is_primary_running(view) or server.process == "unknown":
        return False
    if server.failed_starts >= FAILED_STARTS_MAX and not is_promotable(view):
        return True
    down_since_ms = max(server.exited_at_ms or server.spawned_at_ms, view.state_since_ms)
    return view.now_ms - down_since_ms >= max(view.dynamic.primary_start_timeout_s * 1000, 1)


def is_fit_to_restart_as_primary(view: View) -> bool:
    """The data directory was last run as a primary (or is new), so recovery keeps its timeline."""
    return is_directory_a_cluster(view) and was_primary(view.directory)


def is_directory_of_a_standby(view: View) -> bool:
    """The data directory was last run as a standby: it is started as one and promoted."""
    return is_directory_a_cluster(view) and not was_primary(view.directory)


def is_handover_wanted(view: View) -> bool:
    """A switchover or failover away from this leader is asked for, and a member that can take over streams from it."""
    request = view.failover
    if request is None or request.scheduled_at or request.candidate == view.name:
        return False
    return request.leader in (None, view.name) and bool(handover_targets(view))


def is_handover_prepared(view: View) -> bool:
    """The checkpoint before the handover is done, or was tried: a fast stop now has little left to write."""
    tried = view.attempts.get("checkpoint-for-handover")
    return view.has_achieved("checkpoint-for-handover", view.failover_seen_at_ms) or tried is not None


def is_failover_request_moot(view: View) -> bool:
    """The failover key asks for something that is done, or that a look at the server since shows to be impossible."""
    request = view.failover
    if request is None or request.scheduled_at or view.server.probed_at_ms <= view.failover_seen_at_ms:
        return False
    return not is_handover_wanted(view)


def handover_targets(view: View) -> list[str]:
    """Members that stream from this leader and may be promoted, the named one only if one is named."""
    probe, request = view.server.probe, view.failover
    if probe is None or request is None:
        return []
    streaming = {s.application_name for s in probe.standbys if s.state == "streaming"}
    able = [m for m in view.members.values() if m.name in streaming and not is_barred_by_tags(dict(m.tags))]
    return [m.name for m in able if request.candidate in (None, m.name)]


def is_successor_ready(view: View) -> bool:
    """Nobody is to be waited for before the key is released, or the successor holds all WAL, or has had its time."""
    request, exited_at_ms = view.failover, view.server.exited_at_ms
    if request is None or request.candidate in (None, view.name) or exited_at_ms is None:
        return True
    if view.now_ms - exited_at_ms >= HANDOVER_CATCH_UP_MS:
        return True
    if view.directory is None or not was_primary(view.directory):
        return view.directory is not None
    heard = view.peers.get(request.candidate)
    is_heard_since = heard is not None and heard.at_ms >= exited_at_ms
    return heard is not None and is_heard_since and heard.report.position_lsn > view.directory.checkpoint_lsn


def is_successor_question_due(view: View) -> bool:
    """The named successor was not asked within the last few milliseconds how far it has come."""
    return not is_successor_ready(view) and view.now_ms - view.peers_heard_at_ms >= PEER_REASK_MS


def has_not_checkpointed_since_promotion(view: View) -> bool:
    """This primary was promoted in this stay and has not finished a checkpoint since."""
    return has_promoted(view) and not view.has_achieved("checkpoint-after-promote", view.state_since_ms)


def has_promoted(view: View) -> bool:
    """This node's server was promoted in this stay in the state."""
    return view.has_achieved("promote", view.state_since_ms)


def is_failsafe_wanted(view: View) -> bool:
    """The lease was not renewed when it should have been, and members may confirm in etcd's place."""
    lease = view.lease
    if not view.dynamic.failsafe_mode or lease is None:
        return False
    confirmed_ms = max(lease.sent_at_ms, view.achieved.get("ask-failsafe", 0))
    return view.now_ms >= confirmed_ms + renew_every_ms(lease.ttl_s) + 200 and bool("renew-lease" in view.attempts)


def is_own_history_unread(view: View) -> bool:
    """This primary came to its timeline by a promotion, and has not yet read its own history."""
    probe = view.server.probe
    return probe is not None and not probe.in_recovery and probe.timeline > 1 and own_history(view) is None


def is_switchover_unwritten(view: View) -> bool:
    """An operator asked this node for a switchover that is not yet in etcd."""
    return view.switchover is not None


def is_reinit_asked(view: View) -> bool:
    """An operator asked to replace this node's data."""
    return view.is_reinit_asked


def is_rewind_not_begun(view: View) -> bool:
    """pg_rewind neither runs nor left the directory unfinished."""
    return not has_begun_rewind(view)


def is_rewind_source_lost(view: View) -> bool:
    """Nobody else leads any more: there is nobody to rewind from, and nobody to have diverged from."""
    return is_etcd_watched(view) and not is_leader_key_held_by_another(view)


def is_clone_source_missing(view: View) -> bool:
    """There is nobody to take a base backup from at present."""
    return not has_clone_source(view)


def is_data_untouched(view: View) -> bool:
    """The data directory still holds what it held before: a complete cluster, running or stopped."""
    if has_cloned(view) or "clear-directory" in view.underway:
        return False
    return is_standby_running(view) or is_directory_a_cluster(view)


def is_work_on_directory_ahead(view: View) -> bool:
    """The data directory is to be rewound or replaced, and what that needs is there."""
    if view.state is State.REWINDING:
        return is_leader_rewindable(view)
    return has_clone_source(view) and not has_cloned(view)


def is_rewind_worth_a_try(view: View) -> bool:
    """pg_rewind has not yet failed as often as it is tried."""
    return not has_rewind_failed_for_good(view)


def is_directory_ready_to_run(view: View) -> bool:
    """The data directory holds a complete cluster, in reinit the new one."""
    return is_directory_a_cluster(view) and (view.state is not State.REINIT or has_cloned(view))


def is_leader_key_obtainable(view: View) -> bool:
    """The leader key is free, or names this node under another lease than its present one."""
    if is_leader_key_ours(view):
        return False
    return is_leader_key_free(view) or (view.etcd.is_watched and is_leader_key_named_for_us(view))


def has_lease_time_left(view: View) -> bool:
    """The lease itself, failsafe or not, is good for a while."""
    return view.lease is not None and view.now_ms < view.lease.writable_until_ms


def has_something_to_initialize_with(view: View) -> bool:
    """The data directory is empty, or already holds a cluster that etcd does not know."""
    return is_directory_vacant(view) or is_directory_a_cluster(view) or view.server.probe is not None


def is_cluster_prepared(view: View) -> bool:
    """The roles of the new cluster were created."""
    return view.has_achieved("prepare-cluster", view.state_since_ms)


def is_cluster_unprepared(view: View) -> bool:
    """The roles of the new cluster were not created yet."""
    return not is_cluster_prepared(view)


def is_handover_unprepared(view: View) -> bool:
    """The checkpoint before the handover has not been tried yet."""
    return not is_handover_prepared(view)


def is_leader_key_not_ours(view: View) -> bool:
    """The leader key does not name this node, as far as is known."""
    return view.leader != view.name


def has_settled_its_lease(view: View) -> bool:
    """The lease was given back, or etcd did not take it: then it runs out by itself."""
    return view.lease is None or "revoke-lease" in view.attempts or not view.etcd.is_watched
