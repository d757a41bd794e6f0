"""TABLE and DUTIES: every decision of Matriarch. What is not a row here is not decided.

TABLE   The first row whose source holds the present state and whose guards are all true moves the machine, one move
        a step. Rows look at what is true now, never at which event arrived, so no lost or reordered event can strand
        the machine. Ids are stable and never reused; they stand in every log entry.
DUTIES  What should be under way in a state. A duty whose guards hold is issued unless it is in flight, backing off
        after a failure, or its lane is taken by an earlier one. The order is the order of urgency.

Guards are in fsm/guards/, the effects that duties ask for are built in fsm/orders.py.
"""

from collections.abc import Callable

from msgspec import Struct

from fsm import guards as g
from fsm import orders
from fsm import publish as p
from fsm.effects import Effect
from fsm.states import State
from fsm.view import View

Guard = Callable[[View], bool]

BOOTSTRAPPING, REPLICA, CANDIDATE = State.BOOTSTRAPPING, State.REPLICA, State.CANDIDATE
LEADER, REWINDING, REINIT = State.LEADER, State.REWINDING, State.REINIT
EVERY_STATE = tuple(State)
NOT_LEADING = (REPLICA, REWINDING, REINIT)


class Rule(Struct, frozen=True):
    """One row of the table. `fence`: the order with which a move out of `leader` begins."""

    id: str
    source: State
    target: State
    guards: tuple[Guard, ...]
    because: str
    fence: Callable[[View], Effect] | None = None


class Duty(Struct, frozen=True):
    """One thing that should be under way.

    `first_ms`, `most_ms`: the pause after the first failure in a row, and the longest. `settle_ms`: the pause after a
    success, where what it brought may not be enough and only asking again can tell.
    """

    id: str
    states: tuple[State, ...]
    order: Callable[[View], Effect]
    guards: tuple[Guard, ...]
    because: str
    first_ms: int = 250
    most_ms: int = 5_000
    settle_ms: int = 0


# fmt: off
TABLE: tuple[Rule, ...] = (
    # ---- bootstrapping: find out what there is --------------------------------------------------------------------
    Rule("B3", BOOTSTRAPPING, REWINDING,
         (g.is_server_absent, g.is_in_need_of_rewind, g.is_rewind_possible),
         "data that went another way than the leader's must be rewound before they are started"),
    Rule("B5", BOOTSTRAPPING, REINIT,
         (g.is_server_absent, g.is_in_need_of_rewind, g.is_rewind_impossible, g.may_clone_on_divergence,
          g.has_clone_source),
         "data that went another way and cannot be rewound are replaced"),
    Rule("B4", BOOTSTRAPPING, REINIT,
         (g.is_clone_unfinished,),
         "half a base backup is of no use; it is taken anew"),
    Rule("B8", BOOTSTRAPPING, REINIT,
         (g.is_no_primary_possible, g.is_reinit_asked, g.has_clone_source),
         "an operator asked for a new base backup"),
    Rule("B2", BOOTSTRAPPING, CANDIDATE,
         (g.has_made_the_cluster, g.is_leader_key_free),
         "who made the cluster leads it first"),
    Rule("B6", BOOTSTRAPPING, CANDIDATE,
         (g.is_primary_running, g.has_data_of_this_cluster, g.is_leader_key_named_for_us),
         "a restarted agent takes up the primary that it left running"),
    Rule("B7", BOOTSTRAPPING, CANDIDATE,
         (g.is_primary_running, g.has_data_of_this_cluster, g.is_leader_key_free, g.is_synchronous_enough),
         "a running primary whose key is free has nobody to contend with"),
    Rule("B1", BOOTSTRAPPING, REPLICA,
         (g.is_standby_running, g.is_cluster_possibly_ours),
         "a running standby is a replica"),
    # ---- replica: follow, or stand --------------------------------------------------------------------------------
    Rule("R3", REPLICA, REINIT,
         (g.is_no_primary_possible, g.is_reinit_asked, g.has_clone_source),
         "an operator asked for a new base backup"),
    Rule("R2", REPLICA, REWINDING,
         (g.is_no_primary_possible, g.is_in_need_of_rewind, g.is_rewind_possible),
         "this node's WAL went another way than the leader's"),
    Rule("R5", REPLICA, REINIT,
         (g.is_no_primary_possible, g.is_in_need_of_rewind, g.is_rewind_impossible, g.may_clone_on_divergence,
          g.has_clone_source),
         "this node's WAL went another way and cannot be rewound"),
    Rule("R4", REPLICA, BOOTSTRAPPING,
         (g.has_no_cluster_here,),
         "there is no complete cluster in the data directory any more"),
    Rule("R1", REPLICA, CANDIDATE,
         (g.is_leader_key_free, g.is_unpaused, g.is_staying, g.has_lease, g.has_promised_nothing,
          g.is_able_to_stand, g.is_first_choice_open, g.is_unrivalled),
         "nobody leads and this node may"),
    Rule("R6", REPLICA, CANDIDATE,
         (g.is_leader_key_ours, g.has_time_left, g.is_staying, g.is_server_absent, g.is_fit_to_restart_as_primary,
          g.is_successor_overdue),
         "the handover failed: the successor does not hold the last WAL, and this node still has the key"),
    # ---- candidate: find out whether to lead ----------------------------------------------------------------------
    Rule("C1", CANDIDATE, LEADER,
         (g.is_leader_key_ours, g.has_time_left),
         "etcd gave this node the leader key"),
    Rule("C2", CANDIDATE, REPLICA,
         (g.is_leader_key_held_by_another,),
         "another node took the leader key"),
    Rule("C4", CANDIDATE, REPLICA,
         (g.is_etcd_unreachable, g.is_no_primary_possible),
         "without etcd nobody can be elected"),
    Rule("C6", CANDIDATE, REPLICA,
         (g.is_stopping, g.is_no_primary_possible),
         "the agent was asked to stop"),
    Rule("C3", CANDIDATE, REPLICA,
         (g.is_rivalled, g.is_no_primary_possible),
         "another member should be promoted rather than this one"),
    Rule("C5", CANDIDATE, REPLICA,
         (g.is_standing_in_vain,),
         "this node does not qualify any more"),
    # ---- leader: until the deadline, and not a moment longer ------------------------------------------------------
    Rule("L1", LEADER, REPLICA,
         (g.has_lost_the_leader_key,),
         "a primary without the leader key must not accept writes",
         fence=orders.fence_immediately),
    Rule("L4", LEADER, REPLICA,
         (g.is_past_its_deadline,),
         "etcd did not renew the lease and the members did not confirm in its place",
         fence=orders.fence_immediately),
    Rule("L6", LEADER, REPLICA,
         (g.is_fence_silent,),
         "a fence that confirms no deadline would not keep one",
         fence=orders.fence_immediately),
    Rule("L5", LEADER, REPLICA,
         (g.is_stopping,),
         "the agent was asked to stop",
         fence=orders.fence_in_order),
    Rule("L2", LEADER, REPLICA,
         (g.is_primary_running, g.is_handover_wanted, g.is_handover_prepared),
         "an operator asked for another leader, and one is ready",
         fence=orders.fence_in_order),
    Rule("L3", LEADER, REPLICA,
         (g.is_beyond_restart,),
         "the server could not be brought back in time",
         fence=orders.fence_immediately),
    # ---- rewinding ------------------------------------------------------------------------------------------------
    Rule("W1", REWINDING, REPLICA,
         (g.has_rewound, g.is_directory_a_cluster),
         "the data directory is on the leader's timeline again"),
    Rule("W2", REWINDING, REINIT,
         (g.has_rewind_failed_for_good, g.may_clone_after_failed_rewind, g.has_clone_source),
         "pg_rewind failed as often as it is tried"),
    Rule("W4", REWINDING, REINIT,
         (g.is_reinit_asked, g.has_clone_source),
         "an operator asked for a new base backup"),
    Rule("W3", REWINDING, REPLICA,
         (g.is_rewind_not_begun, g.is_rewind_source_lost),
         "the leader that it diverged from is gone, and the directory was not touched"),
    Rule("W5", REWINDING, BOOTSTRAPPING,
         (g.has_no_cluster_here,),
         "there is nothing left to rewind"),
    # ---- reinit ---------------------------------------------------------------------------------------------------
    Rule("I3", REINIT, REPLICA,
         (g.is_reinit_to_begin_anew, g.has_clone_source),
         "an operator asked again, and not for the base backup that is being taken"),
    Rule("I1", REINIT, REPLICA,
         (g.has_cloned, g.is_standby_running),
         "the new base backup is running"),
    Rule("I2", REINIT, REPLICA,
         (g.is_data_untouched, g.is_clone_source_missing),
         "there is nobody to clone from, and the old data are still there"),
)
# fmt: on

# fmt: off
DUTIES: tuple[Duty, ...] = (
    # ---- safety first ---------------------------------------------------------------------------------------------
    Duty("fence-stray", NOT_LEADING, orders.fence_stray,
         (g.may_a_primary_be_running,),
         "only a leader's server may accept writes", first_ms=50, most_ms=500),
    Duty("fence-usurper", (BOOTSTRAPPING, CANDIDATE), orders.fence_immediately,
         (g.may_a_primary_be_running, g.is_leader_key_held_by_another),
         "a primary was found running while another node leads", first_ms=50, most_ms=500),
    Duty("arm-fence", (LEADER,), orders.arm_fence,
         (g.is_leader_key_ours, g.has_time_left, g.is_fence_deadline_outdated),
         "the fence holds the server to the newest confirmed deadline", first_ms=50, most_ms=250),
    Duty("arm-found-primary", (BOOTSTRAPPING, CANDIDATE), orders.arm_found_primary,
         (g.is_primary_without_deadline,),
         "a primary that was found running must not outlive the time to take the key for it",
         first_ms=50, most_ms=250),
    Duty("disarm-fence", NOT_LEADING, orders.disarm_fence,
         (g.has_needless_fence_deadline,),
         "a standby is not to be killed for a lease that it does not need"),
    # ---- the lease and the keys that hang on it -------------------------------------------------------------------
    Duty("grant-lease", EVERY_STATE, orders.grant_lease,
         (g.is_etcd_watched, g.is_lease_wanted, g.is_name_free),
         "the member key, and the leader key if it comes to that, hang on a lease"),
    Duty("renew-lease", EVERY_STATE, orders.renew_lease,
         (g.is_renewal_due,),
         "a third of the lease is used", first_ms=100, most_ms=500),
    Duty("take-leader-key", (CANDIDATE,), orders.take_leader_key,
         (g.is_leader_key_obtainable, g.has_lease_time_left, g.is_election_decided),
         "this node should lead", first_ms=50, most_ms=1_000),
    Duty("retake-leader-key", (LEADER,), orders.take_leader_key,
         (g.is_leader_key_obtainable, g.has_lease_time_left),
         "the key is this leader's, and must hang on its present lease", first_ms=50, most_ms=1_000),
    Duty("write-sync", (LEADER,), orders.write_sync,
         (g.is_synchronous, g.is_leader_key_ours, g.has_time_left, g.is_sync_key_outdated),
         "who may be promoted after this leader must hold what it acknowledged", first_ms=50, most_ms=1_000),
    Duty("reserve-timeline", (LEADER,), orders.reserve_timeline,
         (g.is_leader_key_ours, g.has_time_left, g.is_timeline_unreserved),
         "no two promotions may begin a timeline of the same number", first_ms=50, most_ms=1_000),
    Duty("delete-sync", (LEADER,), orders.delete_sync,
         (g.is_asynchronous, g.is_leader_key_ours, g.has_time_left, g.is_sync_key_left_over),
         "no commit waits for anybody, so everybody may be promoted"),
    Duty("set-sync-names", (LEADER,), orders.set_sync_names,
         (g.is_synchronous, g.is_leader_key_ours, g.has_time_left, g.has_names_to_order),
         "commits wait for those who are to be promoted, and for nobody who is gone", first_ms=50, most_ms=1_000),
    Duty("release-sync-names", (LEADER,), orders.release_sync_names,
         (g.is_asynchronous, g.is_primary_running, g.may_names_be_left_over),
         "without a synchronous mode whom commits wait for is the operator's own affair"),
    Duty("end-stale-senders", (LEADER,), orders.end_stale_senders,
         (g.is_synchronous, g.is_primary_running, g.has_doubled_standby),
         "a standby that came back is not to be judged by the connection that it left behind"),
    Duty("release-leader-key", (*NOT_LEADING, BOOTSTRAPPING), orders.release_leader_key,
         (g.is_etcd_watched, g.is_leader_key_named_for_us, g.is_no_primary_possible, g.is_successor_ready,
          g.is_name_free),
         "this node does not lead any more and nobody should wait for its lease", first_ms=50, most_ms=500),
    Duty("ask-namesake", (BOOTSTRAPPING,), orders.ask_namesake,
         (g.has_namesake_to_ask,),
         "two nodes of one name would take each other's keys"),
    Duty("ask-peers", (CANDIDATE,), orders.ask_peers,
         (g.is_peer_question_due,),
         "the member with the most WAL should lead", first_ms=50, most_ms=250),
    Duty("ask-successor", (REPLICA,), orders.ask_successor,
         (g.is_leader_key_named_for_us, g.is_server_absent, g.is_directory_a_cluster, g.is_successor_question_due),
         "the key is released when the successor holds the last record", first_ms=20, most_ms=250),
    Duty("ask-failsafe", (LEADER,), orders.ask_failsafe,
         (g.is_failsafe_wanted,),
         "without etcd the leader goes on only while every member confirms it", first_ms=100, most_ms=500),
    # ---- the server -----------------------------------------------------------------------------------------------
    Duty("promote", (LEADER,), orders.promote,
         (g.is_promotable, g.is_promotion_due, g.is_leader_key_ours, g.is_fence_armed, g.has_time_left,
          g.is_sync_key_claimed, g.is_waiting_prepared, g.is_timeline_reserved),
         "the holder of the leader key is the primary", first_ms=100, most_ms=1_000),
    Duty("read-directory", EVERY_STATE, orders.read_directory,
         (g.is_directory_unread,),
         "what to do with a stopped server depends on what it left"),
    Duty("start-primary", (LEADER,), orders.start_primary,
         (g.is_server_absent, g.is_fit_to_restart_as_primary, g.is_leader_key_ours, g.has_time_left, g.is_staying,
          g.is_sync_key_claimed),
         "the leader's server is down; recovery in place keeps its timeline", first_ms=100, most_ms=2_000),
    Duty("checkpoint-for-restart", (LEADER, REPLICA), orders.checkpoint,
         (g.is_restart_asked, g.is_restart_unprepared),
         "what is written now need not be written while nobody can use the server"),
    Duty("stop-primary-to-restart", (LEADER,), orders.stop_to_restart,
         (g.is_restart_asked, g.is_restart_prepared, g.is_primary_running, g.is_leader_key_ours, g.has_time_left,
          g.is_staying),
         "an operator asked for a restart; the key stays, and recovery in place keeps the timeline",
         first_ms=100, most_ms=2_000),
    Duty("stop-standby-to-restart", (REPLICA,), orders.stop_to_restart,
         (g.is_restart_asked, g.is_restart_prepared, g.is_standby_running, g.is_staying),
         "an operator asked for a restart", first_ms=100, most_ms=2_000),
    Duty("stop-standby", (REWINDING, REINIT), orders.stop_standby,
         (g.is_server_running, g.is_no_primary_possible, g.is_work_on_directory_ahead),
         "the data directory cannot be changed under a running server"),
    Duty("stop-on-request", (BOOTSTRAPPING, REPLICA, REWINDING, REINIT), orders.stop_standby,
         (g.is_stopping, g.is_server_running, g.is_no_primary_possible),
         "the agent was asked to stop, and takes its server with it"),
    Duty("claim-initialize", (BOOTSTRAPPING, REPLICA), orders.claim_initialize,
         (g.is_cluster_unclaimed, g.may_initialize, g.has_lease, g.is_staying, g.has_promised_nothing,
          g.has_something_to_initialize_with),
         "exactly one node makes the cluster"),
    Duty("clear-unfinished-init", (BOOTSTRAPPING,), orders.clear_directory,
         (g.is_init_unfinished,),
         "this agent's own initdb was cut short; what it left is worth nothing"),
    Duty("init-db", (BOOTSTRAPPING,), orders.init_db,
         (g.is_initialize_claim_ours, g.is_server_absent, g.is_directory_vacant, g.is_staying),
         "this node makes the cluster"),
    Duty("clear-directory", (REINIT,), orders.clear_directory,
         (g.is_server_absent, g.is_directory_in_the_way, g.has_clone_source),
         "a base backup needs an empty directory"),
    Duty("clone", (BOOTSTRAPPING, REINIT), orders.clone,
         (g.is_server_absent, g.is_directory_vacant, g.has_clone_source, g.is_staying),
         "this node has no data and the leader has", first_ms=500, most_ms=30_000),
    Duty("rewind", (REWINDING,), orders.rewind,
         (g.is_server_absent, g.is_directory_rewindable, g.is_leader_rewindable, g.is_rewind_worth_a_try),
         "pg_rewind brings the data directory back onto the leader's timeline", first_ms=500, most_ms=30_000),
    Duty("start-standby", (BOOTSTRAPPING, REPLICA, REINIT), orders.start_standby,
         (g.is_server_absent, g.is_directory_ready_to_run, g.is_free_to_start_as_standby, g.is_leader_key_not_ours,
          g.is_start_allowed, g.is_staying, g.is_restart_pause_over),
         "a node that does not lead follows", first_ms=250, most_ms=10_000),
    Duty("restart-to-promote", (LEADER,), orders.start_standby,
         (g.is_server_absent, g.is_directory_of_a_standby, g.is_leader_key_ours, g.has_time_left, g.is_staying),
         "the elected standby went down before it was promoted", first_ms=100, most_ms=2_000),
    Duty("cut-receiver", (REPLICA, CANDIDATE), orders.cut_receiver,
         (g.is_vote_wanted, g.is_leader_key_free, g.is_standby_running, g.may_still_receive),
         "what a vote is about must not grow behind the election's back", first_ms=50, most_ms=500),
    Duty("follow", (REPLICA,), orders.follow,
         (g.is_standby_running, g.has_data_of_this_cluster, g.is_following_another, g.is_staying),
         "a replica streams from the leader"),
    Duty("reload-server", EVERY_STATE, orders.reload_server,
         (g.is_reload_asked, g.is_server_running),
         "an operator asked the node to read its settings again", first_ms=50, most_ms=50),
    Duty("apply-parameters", (REPLICA, LEADER), orders.apply_parameters,
         (g.is_configuration_unapplied, g.is_server_settled, g.is_staying),
         "a change of the cluster's configuration applies at once, on every node", first_ms=500, most_ms=30_000),
    Duty("read-replay-needs", (REPLICA,), orders.read_replay_needs,
         (g.is_standby_running, g.is_replay_paused, g.is_staying),
         "a standby whose parameters are lower than its primary's replays no further, and says nothing else about it",
         first_ms=1_000, most_ms=30_000, settle_ms=5_000),
    Duty("stop-small-standby", (REPLICA,), orders.stop_standby,
         (g.is_standby_running, g.is_replay_paused, g.is_too_small_for_its_wal, g.is_unpaused, g.is_staying),
         "started anew, with what its WAL needs, the standby goes on replaying", first_ms=1_000, most_ms=30_000),
    Duty("read-leader-history", (BOOTSTRAPPING, REPLICA, REWINDING), orders.read_leader_history,
         (g.is_leader_history_wanted,),
         "whether this node may follow depends on where the leader's timeline forked",
         first_ms=100, most_ms=5_000, settle_ms=200),
    # ---- what others should know ----------------------------------------------------------------------------------
    Duty("publish-member", EVERY_STATE, orders.publish_member,
         (g.is_etcd_watched, g.has_lease, p.is_member_outdated, g.is_staying),
         "the others find this node by its member key"),
    Duty("prepare-cluster", (LEADER,), orders.prepare_cluster,
         (g.is_primary_running, g.is_initialize_unwritten, g.is_cluster_unprepared),
         "a new cluster needs the roles for replication and rewind"),
    Duty("write-config", (LEADER,), orders.write_config,
         (g.is_leader_key_ours, g.has_no_config),
         "the cluster's dynamic configuration starts with this node's"),
    Duty("write-initialize", (LEADER,), orders.write_initialize,
         (g.is_primary_running, g.is_leader_key_ours, g.is_initialize_unwritten, g.is_cluster_prepared),
         "the cluster is made, or its identity was lost; from now on it is fixed"),
    Duty("publish-status", (LEADER,), orders.publish_status,
         (g.is_primary_running, g.is_leader_key_ours, p.is_status_outdated),
         "an election must know how far the leader had come"),
    Duty("publish-failsafe", (LEADER,), orders.publish_failsafe,
         (g.is_primary_running, g.is_leader_key_ours, p.is_failsafe_outdated),
         "only who is listed may be elected, so a leader without etcd knows whom to ask"),
    Duty("read-own-history", (LEADER,), orders.read_own_history,
         (g.is_own_history_unread,),
         "the cluster's history is written from what the server itself says", settle_ms=200),
    Duty("publish-history", (LEADER,), orders.publish_history,
         (g.is_primary_running, g.is_leader_key_ours, p.is_history_outdated),
         "a node on an older timeline must be told from one on the newest"),
    Duty("read-sync-mark", (LEADER,), orders.read_sync_mark,
         (g.is_synchronous, g.is_primary_running, g.is_sync_mark_wanted),
         "before anything rests on other names, it must be known what was acknowledged under the former ones",
         first_ms=200, most_ms=2_000),
    Duty("checkpoint-after-promote", (LEADER,), orders.checkpoint,
         (g.is_primary_running, g.has_not_checkpointed_since_promotion),
         "pg_rewind reads the new timeline from the control file, which a checkpoint writes"),
    Duty("checkpoint-for-handover", (LEADER,), orders.checkpoint,
         (g.is_primary_running, g.is_handover_wanted, g.is_handover_unprepared),
         "what is written now need not be written while nobody can write"),
    Duty("clear-failover", (LEADER,), orders.clear_failover,
         (g.is_leader_key_ours, g.is_primary_running, g.is_failover_request_moot),
         "a request is acted on once"),
    Duty("request-failover", EVERY_STATE, orders.request_failover,
         (g.is_etcd_watched, g.is_switchover_unwritten),
         "an operator asked this node to pass the request on"),
    Duty("cancel-switchover", EVERY_STATE, orders.clear_failover,
         (g.is_etcd_watched, g.is_cancelling_asked),
         "an operator changed their mind", first_ms=50, most_ms=50),
    Duty("change-config", EVERY_STATE, orders.change_config,
         (g.is_etcd_watched, g.is_config_change_asked),
         "an operator changed the cluster's settings", first_ms=50, most_ms=50),
    # ---- the way out ----------------------------------------------------------------------------------------------
    Duty("revoke-lease", (*NOT_LEADING, BOOTSTRAPPING), orders.revoke_lease,
         (g.is_stopping, g.is_server_absent, g.has_lease, g.is_leader_key_not_ours),
         "the node is leaving, and its member key with it"),
    Duty("exit", (*NOT_LEADING, BOOTSTRAPPING), orders.exit_quietly,
         (g.is_stopping, g.is_server_absent, g.has_settled_its_lease),
         "there is nothing left to do"),
    Duty("refuse-double-name", (BOOTSTRAPPING,), orders.exit_over_double_name,
         (g.has_living_namesake, g.is_no_primary_possible),
         "a name belongs to one node"),
    Duty("refuse-foreign-data", (BOOTSTRAPPING, REPLICA), orders.exit_over_foreign_data,
         (g.has_data_of_another_cluster, g.is_no_primary_possible),
         "data of another cluster are none of this agent's business"),
)
# fmt: on
