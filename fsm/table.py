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
EVERY_STATE = frozenset(State)
NOT_LEADING = frozenset({REPLICA, REWINDING, REINIT})


class Rule(Struct, frozen=True, kw_only=True):
    """One row of the table. `fence`: the order with which a move out of `leader` begins."""

    id: str
    source: State
    target: State
    guards: tuple[Guard, ...]
    because: str
    fence: Callable[[View], Effect] | None = None


class Duty(Struct, frozen=True, kw_only=True):
    """One thing that should be under way.

    `first_ms`, `most_ms`: the pause after the first failure in a row, and the longest. `settle_ms`: the pause after a
    success, where what it brought may not be enough and only asking again can tell.
    """

    id: str
    states: frozenset[State]
    guards: tuple[Guard, ...]
    order: Callable[[View], Effect]
    because: str
    first_ms: int = 250
    most_ms: int = 5_000
    settle_ms: int = 0


TABLE: tuple[Rule, ...] = (
    # ---- bootstrapping: find out what there is --------------------------------------------------------------------
    Rule(
        id="B3",
        source=BOOTSTRAPPING,
        target=REWINDING,
        guards=(g.is_server_absent, g.is_in_need_of_rewind, g.is_rewind_possible),
        because="data that went another way than the leader's must be rewound before they are started",
    ),
    Rule(
        id="B5",
        source=BOOTSTRAPPING,
        target=REINIT,
        guards=(
            g.is_server_absent,
            g.is_in_need_of_rewind,
            g.is_rewind_impossible,
            g.may_clone_on_divergence,
            g.has_clone_source,
        ),
        because="data that went another way and cannot be rewound are replaced",
    ),
    Rule(
        id="B4",
        source=BOOTSTRAPPING,
        target=REINIT,
        guards=(g.is_clone_unfinished,),
        because="half a base backup is of no use; it is taken anew",
    ),
    Rule(
        id="B8",
        source=BOOTSTRAPPING,
        target=REINIT,
        guards=(g.is_server_absent, g.is_reinit_asked, g.has_clone_source),
        because="an operator asked for a new base backup",
    ),
    Rule(
        id="B2",
        source=BOOTSTRAPPING,
        target=CANDIDATE,
        guards=(g.has_made_the_cluster, g.is_leader_key_free),
        because="who made the cluster leads it first",
    ),
    Rule(
        id="B6",
        source=BOOTSTRAPPING,
        target=CANDIDATE,
        guards=(g.is_primary_running, g.has_data_of_this_cluster, g.is_leader_key_named_for_us),
        because="a restarted agent takes up the primary that it left running",
    ),
    Rule(
        id="B7",
        source=BOOTSTRAPPING,
        target=CANDIDATE,
        guards=(g.is_primary_running, g.has_data_of_this_cluster, g.is_leader_key_free),
        because="a running primary whose key is free has nobody to contend with",
    ),
    Rule(
        id="B1",
        source=BOOTSTRAPPING,
        target=REPLICA,
        guards=(g.is_standby_running, g.is_cluster_possibly_ours),
        because="a running standby is a replica",
    ),
    # ---- replica: follow, or stand --------------------------------------------------------------------------------
    Rule(
        id="R3",
        source=REPLICA,
        target=REINIT,
        guards=(g.is_no_primary_possible, g.is_reinit_asked, g.has_clone_source),
        because="an operator asked for a new base backup",
    ),
    Rule(
        id="R2",
        source=REPLICA,
        target=REWINDING,
        guards=(g.is_no_primary_possible, g.is_in_need_of_rewind, g.is_rewind_possible),
        because="this node's WAL went another way than the leader's",
    ),
    Rule(
        id="R5",
        source=REPLICA,
        target=REINIT,
        guards=(
            g.is_no_primary_possible,
            g.is_in_need_of_rewind,
            g.is_rewind_impossible,
            g.may_clone_on_divergence,
            g.has_clone_source,
        ),
        because="this node's WAL went another way and cannot be rewound",
    ),
    Rule(
        id="R4",
        source=REPLICA,
        target=BOOTSTRAPPING,
        guards=(g.has_no_cluster_here,),
        because="there is no complete cluster in the data directory any more",
    ),
    Rule(
        id="R1",
        source=REPLICA,
        target=CANDIDATE,
        guards=(
            g.is_leader_key_free,
            g.is_unpaused,
            g.is_staying,
            g.has_lease,
            g.has_promised_nothing,
            g.is_able_to_stand,
            g.is_first_choice_open,
            g.is_unrivalled,
        ),
        because="nobody leads and this node may",
    ),
    # ---- candidate: find out whether to lead ----------------------------------------------------------------------
    Rule(
        id="C1",
        source=CANDIDATE,
        target=LEADER,
        guards=(g.is_leader_key_ours, g.has_time_left),
        because="etcd gave this node the leader key",
    ),
    Rule(
        id="C2",
        source=CANDIDATE,
        target=REPLICA,
        guards=(g.is_leader_key_held_by_another,),
        because="another node took the leader key",
    ),
    Rule(
        id="C4",
        source=CANDIDATE,
        target=REPLICA,
        guards=(g.is_etcd_unreachable, g.is_no_primary_possible),
        because="without etcd nobody can be elected",
    ),
    Rule(
        id="C6",
        source=CANDIDATE,
        target=REPLICA,
        guards=(g.is_stopping, g.is_no_primary_possible),
        because="the agent was asked to stop",
    ),
    Rule(
        id="C3",
        source=CANDIDATE,
        target=REPLICA,
        guards=(g.is_rivalled, g.is_no_primary_possible),
        because="another member should be promoted rather than this one",
    ),
    Rule(
        id="C5",
        source=CANDIDATE,
        target=REPLICA,
        guards=(g.is_standing_in_vain,),
        because="this node does not qualify any more",
    ),
    # ---- leader: until the deadline, and not a moment longer ------------------------------------------------------
    Rule(
        id="L1",
        source=LEADER,
        target=REPLICA,
        guards=(g.has_lost_the_leader_key,),
        because="a primary without the leader key must not accept writes",
        fence=orders.fence_immediately,
    ),
    Rule(
        id="L4",
        source=LEADER,
        target=REPLICA,
        guards=(g.is_past_its_deadline,),
        because="etcd did not renew the lease and the members did not confirm in its place",
        fence=orders.fence_immediately,
    ),
    Rule(
        id="L5",
        source=LEADER,
        target=REPLICA,
        guards=(g.is_stopping,),
        because="the agent was asked to stop",
        fence=orders.fence_in_order,
    ),
    Rule(
        id="L2",
        source=LEADER,
        target=REPLICA,
        guards=(g.is_primary_running, g.is_handover_wanted, g.is_handover_prepared),
        because="an operator asked for another leader, and one is ready",
        fence=orders.fence_in_order,
    ),
    Rule(
        id="L3",
        source=LEADER,
        target=REPLICA,
        guards=(g.is_beyond_restart,),
        because="the server could not be brought back in time",
        fence=orders.fence_immediately,
    ),
    # ---- rewinding ------------------------------------------------------------------------------------------------
    Rule(
        id="W1",
        source=REWINDING,
        target=REPLICA,
        guards=(g.has_rewound, g.is_directory_a_cluster),
        because="the data directory is on the leader's timeline again",
    ),
    Rule(
        id="W2",
        source=REWINDING,
        target=REINIT,
        guards=(g.has_rewind_failed_for_good, g.may_clone_after_failed_rewind, g.has_clone_source),
        because="pg_rewind failed as often as it is tried",
    ),
    Rule(
        id="W4",
        source=REWINDING,
        target=REINIT,
        guards=(g.is_reinit_asked, g.has_clone_source),
        because="an operator asked for a new base backup",
    ),
    Rule(
        id="W3",
        source=REWINDING,
        target=REPLICA,
        guards=(g.is_rewind_not_begun, g.is_rewind_source_lost),
        because="the leader that it diverged from is gone, and the directory was not touched",
    ),
    # ---- reinit ---------------------------------------------------------------------------------------------------
    Rule(
        id="I1",
        source=REINIT,
        target=REPLICA,
        guards=(g.has_cloned, g.is_standby_running),
        because="the new base backup is running",
    ),
    Rule(
        id="I2",
        source=REINIT,
        target=REPLICA,
        guards=(g.is_data_untouched, g.is_clone_source_missing),
        because="there is nobody to clone from, and the old data are still there",
    ),
)

DUTIES: tuple[Duty, ...] = (
    # ---- safety first ---------------------------------------------------------------------------------------------
    Duty(
        id="fence-stray",
        states=NOT_LEADING,
        guards=(g.may_a_primary_be_running,),
        order=orders.fence_stray,
        because="only a leader's server may accept writes",
        first_ms=50,
        most_ms=500,
    ),
    Duty(
        id="fence-usurper",
        states=frozenset({BOOTSTRAPPING, CANDIDATE}),
        guards=(g.may_a_primary_be_running, g.is_leader_key_held_by_another),
        order=orders.fence_immediately,
        because="a primary was found running while another node leads",
        first_ms=50,
        most_ms=500,
    ),
    Duty(
        id="arm-fence",
        states=frozenset({LEADER}),
        guards=(g.is_leader_key_ours, g.has_time_left, g.is_fence_deadline_outdated),
        order=orders.arm_fence,
        because="the fence holds the server to the newest confirmed deadline",
        first_ms=50,
        most_ms=250,
    ),
    Duty(
        id="arm-found-primary",
        states=frozenset({BOOTSTRAPPING, CANDIDATE}),
        guards=(g.is_primary_without_deadline,),
        order=orders.arm_found_primary,
        because="a primary that was found running must not outlive the time to take the key for it",
        first_ms=50,
        most_ms=250,
    ),
    Duty(
        id="disarm-fence",
        states=NOT_LEADING,
        guards=(g.has_needless_fence_deadline,),
        order=orders.disarm_fence,
        because="a standby is not to be killed for a lease that it does not need",
    ),
    # ---- the lease and the keys that hang on it -------------------------------------------------------------------
    Duty(
        id="grant-lease",
        states=EVERY_STATE,
        guards=(g.is_etcd_watched, g.is_lease_wanted),
        order=orders.grant_lease,
        because="the member key, and the leader key if it comes to that, hang on a lease",
    ),
    Duty(
        id="renew-lease",
        states=EVERY_STATE,
        guards=(g.is_renewal_due,),
        order=orders.renew_lease,
        because="a third of the lease is used",
        first_ms=100,
        most_ms=500,
    ),
    Duty(
        id="take-leader-key",
        states=frozenset({CANDIDATE}),
        guards=(g.is_leader_key_obtainable, g.has_lease_time_left, g.is_election_decided),
        order=orders.take_leader_key,
        because="this node should lead",
        first_ms=50,
        most_ms=1_000,
    ),
    Duty(
        id="retake-leader-key",
        states=frozenset({LEADER}),
        guards=(g.is_leader_key_obtainable, g.has_lease_time_left),
        order=orders.take_leader_key,
        because="the key is this leader's, and must hang on its present lease",
        first_ms=50,
        most_ms=1_000,
    ),
    Duty(
        id="release-leader-key",
        states=NOT_LEADING | {BOOTSTRAPPING},
        guards=(g.is_etcd_watched, g.is_leader_key_named_for_us, g.is_no_primary_possible, g.is_successor_ready),
        order=orders.release_leader_key,
        because="this node does not lead any more and nobody should wait for its lease",
        first_ms=50,
        most_ms=500,
    ),
    Duty(
        id="ask-peers",
        states=frozenset({CANDIDATE}),
        guards=(g.is_peer_question_due,),
        order=orders.ask_peers,
        because="the member with the most WAL should lead",
        first_ms=50,
        most_ms=250,
    ),
    Duty(
        id="ask-successor",
        states=frozenset({REPLICA}),
        guards=(
            g.is_leader_key_named_for_us,
            g.is_server_absent,
            g.is_directory_a_cluster,
            g.is_successor_question_due,
        ),
        order=orders.ask_successor,
        because="the key is released when the successor holds the last record",
        first_ms=20,
        most_ms=250,
    ),
    Duty(
        id="ask-failsafe",
        states=frozenset({LEADER}),
        guards=(g.is_failsafe_wanted,),
        order=orders.ask_failsafe,
        because="without etcd the leader goes on only while every member confirms it",
        first_ms=100,
        most_ms=500,
    ),
    # ---- the server -----------------------------------------------------------------------------------------------
    Duty(
        id="promote",
        states=frozenset({LEADER}),
        guards=(g.is_promotable, g.is_promotion_due, g.is_leader_key_ours, g.is_fence_armed, g.has_time_left),
        order=orders.promote,
        because="the holder of the leader key is the primary",
        first_ms=100,
        most_ms=1_000,
    ),
    Duty(
        id="read-directory",
        states=EVERY_STATE,
        guards=(g.is_directory_unread,),
        order=orders.read_directory,
        because="what to do with a stopped server depends on what it left",
    ),
    Duty(
        id="start-primary",
        states=frozenset({LEADER}),
        guards=(
            g.is_server_absent,
            g.is_fit_to_restart_as_primary,
            g.is_leader_key_ours,
            g.has_time_left,
            g.is_staying,
        ),
        order=orders.start_primary,
        because="the leader's server is down; recovery in place keeps its timeline",
        first_ms=100,
        most_ms=2_000,
    ),
    Duty(
        id="stop-standby",
        states=frozenset({REWINDING, REINIT}),
        guards=(g.is_standby_running, g.is_work_on_directory_ahead),
        order=orders.stop_standby,
        because="the data directory cannot be changed under a running server",
    ),
    Duty(
        id="stop-on-request",
        states=frozenset({BOOTSTRAPPING, REPLICA, REWINDING, REINIT}),
        guards=(g.is_stopping, g.is_server_running, g.is_no_primary_possible),
        order=orders.stop_standby,
        because="the agent was asked to stop, and takes its server with it",
    ),
    Duty(
        id="claim-initialize",
        states=frozenset({BOOTSTRAPPING}),
        guards=(
            g.is_cluster_unclaimed,
            g.may_initialize,
            g.has_lease,
            g.is_staying,
            g.has_something_to_initialize_with,
        ),
        order=orders.claim_initialize,
        because="exactly one node makes the cluster",
    ),
    Duty(
        id="clear-unfinished-init",
        states=frozenset({BOOTSTRAPPING}),
        guards=(g.is_init_unfinished,),
        order=orders.clear_directory,
        because="this agent's own initdb was cut short; what it left is worth nothing",
    ),
    Duty(
        id="init-db",
        states=frozenset({BOOTSTRAPPING}),
        guards=(g.is_initialize_claim_ours, g.is_server_absent, g.is_directory_vacant, g.is_staying),
        order=orders.init_db,
        because="this node makes the cluster",
    ),
    Duty(
        id="clear-directory",
        states=frozenset({REINIT}),
        guards=(g.is_server_absent, g.is_directory_in_the_way, g.has_clone_source),
        order=orders.clear_directory,
        because="a base backup needs an empty directory",
    ),
    Duty(
        id="clone",
        states=frozenset({BOOTSTRAPPING, REINIT}),
        guards=(g.is_server_absent, g.is_directory_vacant, g.has_clone_source, g.is_staying),
        order=orders.clone,
        because="this node has no data and the leader has",
        first_ms=500,
        most_ms=30_000,
    ),
    Duty(
        id="rewind",
        states=frozenset({REWINDING}),
        guards=(g.is_server_absent, g.is_directory_rewindable, g.is_leader_rewindable, g.is_rewind_worth_a_try),
        order=orders.rewind,
        because="pg_rewind brings the data directory back onto the leader's timeline",
        first_ms=500,
        most_ms=30_000,
    ),
    Duty(
        id="start-standby",
        states=frozenset({BOOTSTRAPPING, REPLICA, REINIT}),
        guards=(
            g.is_server_absent,
            g.is_directory_ready_to_run,
            g.is_free_to_start_as_standby,
            g.is_leader_key_not_ours,
            g.is_unpaused,
            g.is_staying,
        ),
        order=orders.start_standby,
        because="a node that does not lead follows",
        first_ms=250,
        most_ms=10_000,
    ),
    Duty(
        id="restart-to-promote",
        states=frozenset({LEADER}),
        guards=(g.is_server_absent, g.is_directory_of_a_standby, g.is_leader_key_ours, g.has_time_left, g.is_staying),
        order=orders.start_standby,
        because="the elected standby went down before it was promoted",
        first_ms=100,
        most_ms=2_000,
    ),
    Duty(
        id="follow",
        states=frozenset({REPLICA}),
        guards=(g.is_standby_running, g.has_data_of_this_cluster, g.is_following_another, g.is_staying),
        order=orders.follow,
        because="a replica streams from the leader",
    ),
    Duty(
        id="read-leader-history",
        states=frozenset({BOOTSTRAPPING, REPLICA, REWINDING}),
        guards=(g.is_leader_history_wanted,),
        order=orders.read_leader_history,
        because="whether this node may follow depends on where the leader's timeline forked",
        first_ms=100,
        most_ms=5_000,
        settle_ms=200,
    ),
    # ---- what others should know ----------------------------------------------------------------------------------
    Duty(
        id="publish-member",
        states=EVERY_STATE,
        guards=(g.is_etcd_watched, g.has_lease, p.is_member_outdated, g.is_staying),
        order=orders.publish_member,
        because="the others find this node by its member key",
    ),
    Duty(
        id="prepare-cluster",
        states=frozenset({LEADER}),
        guards=(g.is_primary_running, g.is_initialize_claim_ours, g.is_cluster_unprepared),
        order=orders.prepare_cluster,
        because="a new cluster needs the roles for replication and rewind",
    ),
    Duty(
        id="write-config",
        states=frozenset({LEADER}),
        guards=(g.is_leader_key_ours, g.has_no_config),
        order=orders.write_config,
        because="the cluster's dynamic configuration starts with this node's",
    ),
    Duty(
        id="write-initialize",
        states=frozenset({LEADER}),
        guards=(g.is_primary_running, g.is_leader_key_ours, g.is_initialize_claim_ours, g.is_cluster_prepared),
        order=orders.write_initialize,
        because="the cluster is made; from now on its identity is fixed",
    ),
    Duty(
        id="publish-status",
        states=frozenset({LEADER}),
        guards=(g.is_primary_running, g.is_leader_key_ours, p.is_status_outdated),
        order=orders.publish_status,
        because="an election must know how far the leader had come",
    ),
    Duty(
        id="read-own-history",
        states=frozenset({LEADER}),
        guards=(g.is_own_history_unread,),
        order=orders.read_own_history,
        because="the cluster's history is written from what the server itself says",
        settle_ms=200,
    ),
    Duty(
        id="publish-history",
        states=frozenset({LEADER}),
        guards=(g.is_primary_running, g.is_leader_key_ours, p.is_history_outdated),
        order=orders.publish_history,
        because="a node on an older timeline must be told from one on the newest",
    ),
    Duty(
        id="checkpoint-after-promote",
        states=frozenset({LEADER}),
        guards=(g.is_primary_running, g.has_not_checkpointed_since_promotion),
        order=orders.checkpoint,
        because="pg_rewind reads the new timeline from the control file, which a checkpoint writes",
    ),
    Duty(
        id="checkpoint-for-handover",
        states=frozenset({LEADER}),
        guards=(g.is_primary_running, g.is_handover_wanted, g.is_handover_unprepared),
        order=orders.checkpoint,
        because="what is written now need not be written while nobody can write",
    ),
    Duty(
        id="clear-failover",
        states=frozenset({LEADER}),
        guards=(g.is_leader_key_ours, g.is_primary_running, g.is_failover_request_moot),
        order=orders.clear_failover,
        because="a request is acted on once",
    ),
    Duty(
        id="request-failover",
        states=EVERY_STATE,
        guards=(g.is_etcd_watched, g.is_switchover_unwritten),
        order=orders.request_failover,
        because="an operator asked this node to pass the request on",
    ),
    # ---- the way out ----------------------------------------------------------------------------------------------
    Duty(
        id="revoke-lease",
        states=NOT_LEADING | {BOOTSTRAPPING},
        guards=(g.is_stopping, g.is_server_absent, g.has_lease, g.is_leader_key_not_ours),
        order=orders.revoke_lease,
        because="the node is leaving, and its member key with it",
    ),
    Duty(
        id="exit",
        states=NOT_LEADING | {BOOTSTRAPPING},
        guards=(g.is_stopping, g.is_server_absent, g.has_settled_its_lease),
        order=orders.exit_quietly,
        because="there is nothing left to do",
    ),
    Duty(
        id="refuse-foreign-data",
        states=frozenset({BOOTSTRAPPING, REPLICA}),
        guards=(g.has_data_of_another_cluster, g.is_no_primary_possible),
        order=orders.exit_over_foreign_data,
        because="data of another cluster are none of this agent's business",
    ),
)
