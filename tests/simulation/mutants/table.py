"""The safeguards, what is left of each in its mutant, and under which faults that is looked for."""

from typing import Any, NamedTuple

from msgspec.structs import replace

from fsm import events as ev
from fsm.facts import KeyChange
from fsm.states import State
from fsm.syncnames import NOBODY
from fsm.wire import SyncKey
from tests.simulation.bias import NO_BIAS, Bias
from tests.simulation.kernel import MS, Signal
from tests.simulation.mutants import checks, kinds
from tests.simulation.mutants.patch import Replacement


class Mutant(NamedTuple):
    """One safeguard, removed."""

    name: str
    safeguard: str
    removed: str
    patches: tuple[tuple[str, Replacement], ...]
    bias: Bias = NO_BIAS


def _yes(original: Any, *args: Any, **kwargs: Any) -> bool:
    return True


def _no(original: Any, *args: Any, **kwargs: Any) -> bool:
    return False


def _zero(original: Any, *args: Any, **kwargs: Any) -> int:
    return 0


def _nothing(original: Any, *args: Any, **kwargs: Any) -> None:
    return None


def _no_effects(original: Any, view: Any) -> tuple[int, ...]:
    return ()


def _no_names(original: Any, view: Any) -> list[str]:
    return []


SYNC = {"synchronous_mode": "on", "synchronous_mode_strict": None}
QUORUM = {"synchronous_mode": "quorum", "synchronous_mode_strict": None}
ASYNC = {"synchronous_mode": None, "synchronous_mode_strict": None}
FAILSAFE = {"failsafe_mode": None, "ttl": 5}
CRASHES = ("agent killed", "fence and agent killed", "node crashed", "server crashed")
CUTS = ("cut off", "cut from etcd", "cut from peers")


# ---- what is left of each --------------------------------------------------------------------------------------------


def _since_received(original: Any, view: Any, event: ev.Succeeded, result: ev.LeaseHeld) -> Any:
    return original(view, event, replace(result, sent_at_ms=event.at_ms))


def _take_without_compare(original: Any, agent: Any, effect: Any) -> Any:
    return (yield from agent._transact(effect, "leader", lambda: True, agent.name, effect.lease_id))


def _aim_at_once(original: Any, key: SyncKey, aim: Any, *, is_strict: bool) -> Any:
    return original(SyncKey(leader=key.leader), aim, is_strict=is_strict)


def _whoever_is_aimed_at(original: Any, view: Any) -> SyncKey:
    from fsm.sync import aim_of

    aim = aim_of(view)
    quorum = len(aim.members) - aim.count if aim.is_any else 0
    return SyncKey(leader=view.name, members=aim.members, quorum=max(0, quorum))


def _vote_at_once(original: Any, view: Any) -> Any:
    return view.vote.sync_revision if view.vote is not None and view.etcd.is_watched else 0


def _one_vote_less(original: Any, view: Any) -> bool:
    from fsm import election

    return bool(original(view)) or len(election.votes(view)) >= view.sync.quorum - 1


def _renewing_for_ever(original: Any, agent: Any) -> None:
    """A loop beside the brain renews whatever lease there is, also while the agent stands still."""

    def renew() -> None:
        lease, etcd = agent.view.lease, agent.etcd
        if lease is not None and lease.lease_id in etcd.leases and etcd.has_quorum:
            etcd.renew(lease.lease_id)
        agent.kernel.after(agent.kernel.world, 500 * MS, renew)

    if not agent.starts:
        renew()
    original(agent)


def _all_but_one(original: Any, view: Any, event: Any, result: Any) -> Any:
    from fsm.publish import failsafe_addresses

    missing = set(failsafe_addresses(view)) - set(result.accepted)
    accepted = (*result.accepted, *sorted(missing)[:1])
    return original(view, event, replace(result, accepted=accepted))


def _promise_in_memory(original: Any, agent: Any, effect: Any) -> Any:
    kept = agent.kept_promise
    answer = yield from original(agent, effect)
    agent.kept_promise = kept
    return answer


def _is_over(original: Any, view: Any) -> bool:
    return view.promise is not None and view.now_ms >= view.promise.until_ms


def _for_ever(original: Any, view: Any) -> Any:
    return replace(original(view), valid_until_ms=1 << 60)


def _by_the_wall_ms(original: Any, clock: Any) -> int:
    return int(original(clock) + clock.wall_offset_ms - 1_790_000_000_000)


def _wait_by_the_wall_us(original: Any, clock: Any, until_ms: int) -> int:
    return int(original(clock, until_ms - clock.wall_offset_ms + 1_790_000_000_000))


def _never_again(original: Any, agent: Any, watch: Any, news: Any) -> Any:
    yield from original(agent, watch, news)
    yield Signal()


def _without_what_is_gone(original: Any, view: Any, event: ev.ClusterRead) -> Any:
    seen = {change.key for change in event.keys}
    old = [
        KeyChange(
            key=name,
            value=key.value,
            mod_revision=key.mod_revision,
            create_revision=key.create_revision,
            lease_id=key.lease_id,
        )
        for name, key in view.keys.items()
        if key.value is not None and name not in seen
    ]
    return original(view, replace(event, keys=(*event.keys, *old)))


def _as_if_one_history(original: Any, view: Any, event: ev.ClusterRead) -> Any:
    return original(replace(view, etcd=replace(view.etcd, revision=0)), event)


def _key_given_up_early(original: Any, view: Any) -> bool:
    return bool(original(view)) or (view.state is State.REPLICA and view.leader == view.name)


def _stop_without_end(original: Any, view: Any) -> Any:
    return replace(original(view), kill_after_ms=60_000, timeout_ms=70_000)


def _disarm_and_stop(original: Any, agent: Any, effect: Any) -> Any:
    agent.fence.arm(None)
    return (yield from original(agent, effect))


def _without_entry(original: Any, lane: Any, issued: Any) -> Any:
    agent = lane._agent
    delay_us, agent.log_delay_us = agent.log_delay_us, 0
    work = original(lane, issued)
    first = next(work)
    agent.log_delay_us = delay_us
    yield first
    return (yield from work)


def _under_any_lease_ms(original: Any, view: Any) -> int:
    if view.leader != view.name or view.lease is None:
        return int(original(view))
    return int(view.lease.writable_until_ms)


def _names_us(original: Any, view: Any) -> bool:
    return view.lease is not None and view.leader == view.name


def _nobody(original: Any, view: Any) -> Any:
    return NOBODY


def _whatever_comes(original: Any, view: Any, changes: Any, before: Any = None) -> Any:
    changes = list(changes)
    keys = {name: replace(key, mod_revision=0) for name, key in view.keys.items()}
    return original(replace(view, keys=keys), changes, before or view)


def _fence_alone(original: Any, fence: Any) -> None:
    """The fence ends; its server goes on."""
    fence._kernel.kill(fence.process)
    fence.died.fire()


def _told_number(original: Any, view: Any) -> Any:
    return replace(original(view), timeline=0)


# ---- the table -------------------------------------------------------------------------------------------------------

MUTANTS: tuple[Mutant, ...] = (
    # ---- fence and deadline
    Mutant(
        "no-fence",
        "the fence ends its server at the deadline",
        "the fence's alarm does nothing",
        (("tests.simulation.fence:Fence._fire", _nothing),),
        Bias(kinds.some("agent paused", "etcd silent")),
    ),
    Mutant(
        "server-outlives-fence",
        "the kernel ends the server when its fence dies",
        "no PR_SET_PDEATHSIG",
        (("tests.simulation.fence:Fence.die", _fence_alone),),
        Bias(kinds.some("fence and agent killed", "fence killed")),
    ),
    Mutant(
        "deadline-since-received",
        "the deadline counts from when the renewal was sent",
        "it counts from when the answer came; an election does not wait for silent members (each alone suffices)",
        (("fsm.observe:_lease_held", _since_received), ("fsm.election:stale_or_silent_peers", _no_names)),
        Bias(kinds.some(renewal_slow=kinds.cut_after_slow_renewal), {**ASYNC, "failsafe_mode": False, "ttl": 12}),
    ),
    Mutant(
        "no-margin",
        "the server is gone a margin before the lease ends",
        "the margin is 0, and an election does not wait for silent members (each of the two alone suffices)",
        (("fsm.timing:fence_margin_ms", _zero), ("fsm.election:stale_or_silent_peers", _no_names)),
        Bias(kinds.some(fence_starved=kinds.starve_fence), {**ASYNC, "failsafe_mode": False, "ttl": 3}),
    ),
    Mutant(
        "wall-clock",
        "deadlines are counted on CLOCK_BOOTTIME",
        "they are counted on the wall clock",
        (
            ("tests.simulation.kernel:Clock.now_ms", _by_the_wall_ms),
            ("tests.simulation.kernel:Clock.wait_us", _wait_by_the_wall_us),
        ),
        Bias(kinds.some("wall clock stepped", "agent paused", "cut off")),
    ),
    Mutant(
        "fence-not-asked-for",
        "a leader whose fence confirms no deadline steps down (L6)",
        "it leads on",
        (("fsm.guards.server:is_fence_silent", _no),),
        Bias(kinds.some(fence_frozen_then_agent=kinds.freeze_fence_then_agent), {"ttl": 3}),
    ),
    Mutant(
        "stop-outlives-deadline",
        "an orderly stop is cut short at the deadline",
        "fence disarmed before the stop, which may take a minute",
        (
            ("fsm.orders:fence_in_order", _stop_without_end),
            ("tests.simulation.agent:Agent._stop", _disarm_and_stop),
        ),
        Bias(
            kinds.some(frozen_leader_stopped=kinds.stop_frozen_leader("cut from etcd")),
            {"ttl": 3, "failsafe_mode": False},
        ),
    ),
    Mutant(
        "promotion-outlives-deadline",
        "a promotion that was ordered is void after the deadline, and when its state is left",
        "neither its valid_until nor the cancellation is left (each of them alone suffices)",
        (("fsm.orders:promote", _for_ever), ("fsm.machine:no_longer_wanted", _no_effects)),
        Bias(kinds.some(elected_frozen=kinds.freeze_the_elected), {"ttl": 3, "failsafe_mode": False}),
    ),
    Mutant(
        "promotion-without-fence",
        "nobody is promoted before the fence has confirmed the deadline",
        "it is not awaited, nor is the leader's silent fence noticed (each of the two alone suffices)",
        (("fsm.guards.server:is_fence_armed", _yes), ("fsm.guards.server:is_fence_silent", _no)),
        Bias(kinds.some(promoted_frozen=kinds.freeze_the_promoted), {"ttl": 3, "failsafe_mode": False}),
    ),
    # ---- etcd
    Mutant(
        "take-without-compare",
        "the leader key is taken only while it is free",
        "no condition in the transaction",
        (("tests.simulation.agent:Agent._take_leader", _take_without_compare),),
        Bias(kinds.some(leader_vanishes=kinds.leader_vanishes), {**ASYNC, "ttl": 3}, sizes=(5,)),
    ),
    Mutant(
        "lost-key-ignored",
        "a leader whose key is gone or another's steps down (L1)",
        "it leads on, also past its deadline (L4 asks for the key as well); the fence has its old deadline",
        (("fsm.guards.keys:has_lost_the_leader_key", _no), ("fsm.guards.keys:is_past_its_deadline", _no)),
        Bias(
            kinds.some("cut from peers", "etcd slow", leader_key_gone=kinds.take_the_key_away),
            {**ASYNC, "ttl": 20, "failsafe_mode": False},
        ),
    ),
    Mutant(
        "key-under-former-lease",
        "the leader key counts only with the lease that it hangs on",
        "it counts with whatever lease the node has",
        (
            ("fsm.view:View.leadership_until_ms", _under_any_lease_ms),
            ("fsm.guards.keys:is_leader_key_ours", _names_us),
        ),
        Bias(kinds.some("agent killed", "config changed")),
    ),
    Mutant(
        "key-given-up-early",
        "the leader key is released when no primary runs here any more",
        "it is released at once when the leader steps down",
        (("fsm.guards.server:is_no_primary_possible", _key_given_up_early),),
        Bias(kinds.some(frozen_leader_stopped=kinds.stop_frozen_leader("cut from peers")), {"ttl": 20}),
    ),
    Mutant(
        "former-leader-not-waited-for",
        "a candidate waits while the former leader's server has not ended",
        "it does not ask",
        (("fsm.election:is_primary_alive", _no),),
        Bias(kinds.some("leader key deleted", "switchover")),
    ),
    Mutant(
        "watch-not-resumed",
        "a watch that broke is begun anew",
        "it stays broken, and nobody hears of it",
        (("tests.simulation.agent:Agent._follow", _never_again),),
        Bias(kinds.some("etcd leader changed", "node crashed"), {**ASYNC, "ttl": 3}, prepare=(checks.leaders,)),
    ),
    Mutant(
        "deleted-keys-missed",
        "what is gone when etcd is read anew counts as deleted",
        "only what is there is taken over",
        (("fsm.observe:_cluster_read", _without_what_is_gone),),
        Bias(kinds.some(leader_gone_unseen=kinds.gone_unseen), {**ASYNC, "ttl": 3}, prepare=(checks.leaders,)),
    ),
    Mutant(
        "late-word-of-etcd",
        "an older answer does not take the place of a newer one",
        "the revision of a change is not compared",
        (("fsm.observe:_with_changes", _whatever_comes),),
        Bias(kinds.some("network slow", "etcd slow", "switchover", "leader key deleted")),
    ),
    Mutant(
        "lost-lease-kept",
        "a lease that etcd does not know is given up",
        "it is renewed for ever",
        (("fsm.observe:_after_failure", lambda original, view, event: view),),
        Bias(kinds.some("cut from etcd", "agent paused")),
    ),
    Mutant(
        "wiped-etcd-not-noticed",
        "a revision that went back tells of another history",
        "what etcd said before the wipe is kept",
        (("fsm.observe:_cluster_read", _as_if_one_history),),
        Bias(kinds.some(etcd_wiped=kinds.wipe_etcd), ASYNC),
    ),
    Mutant(
        "former-leases-not-waited-for",
        "who claims an empty etcd with old data waits for every former lease",
        "it claims at once",
        (("fsm.guards.cluster:is_every_former_lease_over", _yes),),
        Bias(kinds.some("cut from etcd", "agent paused", etcd_wiped=kinds.wipe_etcd), ASYNC),
    ),
    Mutant(
        "renewed-without-brain",
        "the lease is renewed by the step that decides",
        "a loop beside it renews also while the agent stands still",
        (("tests.simulation.agent:Agent.start", _renewing_for_ever),),
        Bias(kinds.some("agent paused"), {"ttl": 3}, prepare=(checks.holders,)),
    ),
    # ---- failsafe
    Mutant(
        "failsafe-with-a-silent-member",
        "without etcd everybody who could be elected must confirm",
        "one may be silent",
        (("fsm.promises:failsafe_heard", _all_but_one),),
        Bias(kinds.some("cut from etcd", "cut from peers", "cut off"), FAILSAFE),
    ),
    Mutant(
        "promise-not-on-disk",
        "a failsafe promise outlives its agent",
        "it is kept in memory",
        (("tests.simulation.agent:Agent._keep_promise", _promise_in_memory),),
        Bias(kinds.some(promise_forgotten=kinds.forget_by_restart), {**FAILSAFE, **ASYNC, "ttl": 10}),
    ),
    Mutant(
        "promise-not-kept",
        "who promised a leader without etcd does not stand",
        "it stands all the same",
        (
            ("fsm.guards.keys:has_promised_nothing", _yes),
            ("fsm.guards.promises:is_promise_over", _is_over),  # this one rests on it, and is not meant
        ),
        Bias(kinds.some(promise_forgotten=kinds.forget_by_restart), {**FAILSAFE, **ASYNC, "ttl": 10}),
    ),
    Mutant(
        "unlisted-candidate",
        "only members that the `failsafe` key lists may stand",
        "everybody may",
        (("fsm.guards.elections:is_listed_for_failsafe", _yes),),
        Bias(kinds.some(unlisted_member_back=kinds.return_unlisted), {**FAILSAFE, **ASYNC, "ttl": 3}, sizes=(3,)),
    ),
    # ---- elections
    Mutant(
        "nofailover-ignored",
        "a member tagged nofailover is not promoted",
        "the tag is not looked at",
        (("fsm.election:is_barred", _no),),
        Bias(
            kinds.some(*CRASHES),
            sizes=(3,),
            tags={"n3": {"nofailover": True}},
            prepare=(checks.writers(checks.barred),),
        ),
    ),
    Mutant(
        "lag-allowed",
        "who lacks more than maximum_lag_on_failover is not promoted",
        "the lag is not looked at",
        (("fsm.election:is_near_enough", _yes),),
        Bias(
            kinds.some("cut from peers", *CRASHES),
            {**ASYNC, "maximum_lag_on_failover": 300},
            prepare=(checks.writers(checks.lagging),),
        ),
    ),
    Mutant(
        "old-timeline-allowed",
        "who is on an older timeline than the cluster's history is not promoted",
        "the timeline is not looked at",
        (("fsm.guards.elections:is_on_the_newest_timeline", _yes),),
        Bias(
            kinds.some(outdated_left=kinds.leave_the_outdated),
            {**ASYNC, "maximum_lag_on_failover": 1 << 30, "ttl": 3},
            sizes=(3,),
            prepare=(checks.writers(checks.outdated),),
        ),
    ),
    Mutant(
        "candidate-not-in-sync",
        "in a synchronous mode only a member of the `sync` key is promoted",
        "everybody may be",
        (("fsm.election:is_synchronous_enough", _yes),),
        Bias(kinds.some("cut from peers", *CRASHES), SYNC),
    ),
    Mutant(
        "one-vote-less",
        "a candidate needs the votes of the key's quorum",
        "one vote less is enough",
        (("fsm.election:has_enough_votes", _one_vote_less),),
        Bias(kinds.some(cut_then_leader_gone=kinds.cut_then_crash), QUORUM),
    ),
    Mutant(
        "vote-without-promise",
        "who votes leaves the former primary first",
        "it votes at once, and goes on receiving",
        (
            ("fsm.guards.voting:is_vote_wanted", _no),
            ("fsm.vote:vote_revision", _vote_at_once),
        ),
        Bias(
            kinds.some(key_gone_unseen=kinds.hide_free_key),
            {**QUORUM, "ttl": 20},
            sizes=(3,),
            prepare=(checks.commits,),
        ),
    ),
    # ---- synchronous modes
    Mutant(
        "names-before-key",
        "a member leaves the `sync` key before commits cease to wait for it",
        "commits cease to wait first",
        (("fsm.sync:names_towards", _aim_at_once),),
        Bias(kinds.some(leader_of_stuck_gone=kinds.crash_with_stuck), {**SYNC, "ttl": 20}, sizes=(2,)),
    ),
    Mutant(
        "key-before-names",
        "a member enters the `sync` key when commits wait for it",
        "it enters at once",
        (("fsm.sync:_wanted_key", _whoever_is_aimed_at),),
        Bias(kinds.some("cut from peers", leader_gone_at_growth=kinds.crash_at_growth), SYNC, sizes=(2,)),
    ),
    Mutant(
        "names-not-settled",
        "nothing rests on new names until enough of them hold what was acknowledged before",
        "they count as settled when they are seen in force",
        (("fsm.waiting:_has_caught_up", _yes),),
        Bias(kinds.some("cut from peers", leader_gone_at_growth=kinds.crash_at_growth), SYNC),
    ),
    Mutant(
        "started-without-names",
        "a server begins to accept writes with the names that the `sync` key rests on",
        "it begins with none",
        (("fsm.sync:first_names", _nobody),),
        Bias(kinds.some(restarted_gone=kinds.crash_restarted), {**SYNC, "ttl": 20}, sizes=(2,)),
    ),
    # ---- data
    Mutant(
        "rewind-skipped",
        "data that went another way are rewound before they are started",
        "divergence is not looked at",
        (("fsm.guards.following:has_diverged", _no),),
        Bias(kinds.some("cut off", *CRASHES), ASYNC),
    ),
    Mutant(
        "half-rewound-data-started",
        "a directory that pg_rewind left unfinished is not taken for a cluster's",
        "the marker is not looked at",
        (("fsm.guards.directory:is_rewind_unfinished", _no),),
        Bias(
            kinds.some("cut off", "rewind broken", "node crashed", "fence and agent killed"),
            {**ASYNC, "ttl": 3, "failsafe_mode": False},
        ),
    ),
    Mutant(
        "half-a-backup-kept",
        "half a base backup is taken anew",
        "the marker is not looked at",
        (
            ("fsm.guards.directory:is_clone_unfinished", _no),
            ("fsm.guards.directory:has_no_cluster_here", _no),
        ),
        Bias(kinds.some("reinit", "agent killed", "node crashed")),
    ),
    Mutant(
        "foreign-data-taken",
        "data of another cluster are none of this agent's business",
        "the system identifier is not compared",
        (
            ("fsm.guards.cluster:has_data_of_this_cluster", _yes),
            ("fsm.guards.cluster:has_data_of_another_cluster", _no),
        ),
        Bias(
            kinds.some("node crashed", foreign_data=kinds.bring_foreign_data),
            {**ASYNC, "maximum_lag_on_failover": 1 << 30, "check_timeline": False, "ttl": 3},
            prepare=(checks.writers(checks.foreign),),
        ),
    ),
    Mutant(
        "data-written-over",
        "a base backup is put into an empty directory only",
        "any directory will do",
        (("fsm.guards.directory:is_directory_vacant", _yes),),
        Bias(kinds.some(*CRASHES), prepare=(checks.directories,)),
    ),
    Mutant(
        "timeline-not-reserved",
        "no two promotions begin a timeline of one number",
        "the number is neither reserved nor told to the server",
        (
            ("fsm.guards.leading:is_timeline_reserved", _yes),
            ("fsm.orders:promote", _told_number),
        ),
        Bias(
            kinds.some(outdated_left=kinds.leave_the_outdated),
            {**ASYNC, "maximum_lag_on_failover": 1 << 30, "check_timeline": False, "ttl": 3},
            sizes=(5,),
        ),
    ),
    # ---- the agent
    Mutant(
        "entry-not-awaited",
        "what cannot be undone waits for its entry to be on disk",
        "it is done at once",
        (("tests.simulation.agent:Lane._guarded", _without_entry),),
        Bias(prepare=(checks.entries,)),
    ),
)

NOT_SHOWN: tuple[tuple[str, str], ...] = (
    (
        "TakeLeaderKey without the revision of `sync`",
        "12 seeds with a fault made for it: a late candidate hears first that another led (C2), and "
        "the model of etcd gives a request up at its client's deadline, so none arrives long after it was sent",
    ),
    (
        "a new leader's `sync` key after its promotion",
        "8 seeds: the write of the key is ordered in the same step as the promotion and is done sooner; a fault would "
        "have to hit etcd and then the node between the two",
    ),
    (
        "orders not cancelled when their state is left",
        "5 seeds: nothing broke by that alone; `promotion-outlives-deadline` takes the expiry away too",
    ),
    (
        "late answers of an earlier server",
        "5 seeds, in none of which the guard was needed: the models' agent hears of looks at a server and its end in "
        "their order",
    ),
    (
        "no promise to another while the leader key is taken here",
        "8 seeds, in none of which the guard was needed: the models' agent refuses before its step is asked",
    ),
)
"""Safeguards whose removal no seed has shown, and what was tried."""
