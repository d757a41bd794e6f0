"""Orders: from what is known to the effect that a duty asks for. Pure; each is named by a row of DUTIES."""

from typing import Literal

from msgspec.structs import replace

from fsm import effects as do
from fsm import watchdog
from fsm.asked import Asked
from fsm.election import everybody_else, other_members, voters
from fsm.facts import Upstream
from fsm.guards import (
    clone_source,
    is_initialize_claim_ours,
    is_primary_running,
    is_standby_running,
    leader_to_follow,
    wanted_upstream,
)
from fsm.handover import request_in_force
from fsm.loss import loss_estimate
from fsm.publish import failsafe_addresses, failsafe_text, history_text, member_text, own_address, status_text
from fsm.remembered import remembered_sync
from fsm.states import State
from fsm.sync import first_names, names_to_order, next_key
from fsm.syncnames import NOBODY
from fsm.timelines import known_history, timeline_to_reserve
from fsm.timing import (
    FAILSAFE_CHECK_MS,
    FULL_DISK_STOP_MS,
    NAMESAKE_TIMEOUT_MS,
    NEW_AGENT_CHECK_TIMEOUT_MS,
    PEER_ANSWER_TIMEOUT_MS,
    failsafe_timeout_ms,
    promise_timeout_ms,
    renew_timeout_ms,
    writable_until_ms,
)
from fsm.view import View
from fsm.vote import election_revision, has_cut_receiver, sync_revision
from fsm.waiting import doubled_standbys
from fsm.wire import FailoverRequest, compact, sync_text

LONG_MS = 24 * 3600 * 1000
"""For work whose length is the data's (base backup, pg_rewind, recovery): it is watched by progress, not by a clock."""

KEYS_TIMEOUT_MS = 2_000
SERVER_TIMEOUT_MS = 10_000


def grant_lease(view: View) -> do.GrantLease:
    """A lease of the cluster's ttl."""
    return do.GrantLease(timeout_ms=KEYS_TIMEOUT_MS, ttl_s=view.dynamic.ttl_s)


def renew_lease(view: View) -> do.RenewLease:
    """One renewal, short enough that another fits before the deadline."""
    assert view.lease is not None
    return do.RenewLease(timeout_ms=renew_timeout_ms(view.lease.ttl_s), lease_id=view.lease.lease_id)


def revoke_lease(view: View) -> do.RevokeLease:
    """Give the lease back on the way out, so that nobody waits for it to run out."""
    assert view.lease is not None
    return do.RevokeLease(timeout_ms=KEYS_TIMEOUT_MS, lease_id=view.lease.lease_id)


def take_leader_key(view: View) -> do.TakeLeaderKey:
    """The leader key under the present lease."""
    assert view.lease is not None
    sync, remembered = view.keys.get("sync"), remembered_sync(view)
    return do.TakeLeaderKey(
        timeout_ms=KEYS_TIMEOUT_MS,
        lease_id=view.lease.lease_id,
        valid_until_ms=view.lease.writable_until_ms,
        sync_revision=sync_revision(view),
        sync_text=remembered.text if remembered is not None else sync.value if sync is not None else None,
        loss=loss_estimate(view) if view.state is State.CANDIDATE and is_standby_running(view) else None,
    )


def _seen_revision(view: View, name: str) -> int:
    seen = view.keys.get(name)
    return seen.mod_revision if seen is not None and seen.value is not None else 0


def release_leader_key(view: View) -> do.ReleaseLeaderKey:
    """Let the next leader take the key."""
    return do.ReleaseLeaderKey(timeout_ms=KEYS_TIMEOUT_MS)


def claim_initialize(view: View) -> do.ClaimInitialize:
    """The right to make the cluster, for as long as this node's lease lives."""
    assert view.lease is not None
    return do.ClaimInitialize(timeout_ms=KEYS_TIMEOUT_MS, lease_id=view.lease.lease_id)


def write_initialize(view: View) -> do.WriteInitialize:
    """The cluster's identity, for good."""
    key = view.keys.get("initialize")
    seen_revision = key.mod_revision if key is not None and key.value is not None else 0
    return do.WriteInitialize(
        timeout_ms=KEYS_TIMEOUT_MS,
        system_id=view.system_id,
        seen_revision=None if is_initialize_claim_ours(view) else seen_revision,
        valid_until_ms=view.writable_until_ms,
    )


def write_config(view: View) -> do.WriteConfig:
    """The configuration that was in etcd last, or else the first one, from this node's own settings."""
    return do.WriteConfig(
        timeout_ms=KEYS_TIMEOUT_MS, is_last_known=view.has_seen_config, valid_until_ms=view.writable_until_ms
    )


def publish_member(view: View) -> do.PublishMember:
    """This node's member key as it should be."""
    assert view.lease is not None
    return do.PublishMember(timeout_ms=KEYS_TIMEOUT_MS, text=member_text(view), lease_id=view.lease.lease_id)


def publish_status(view: View) -> do.PublishAsLeader:
    """How far the leader's WAL reaches."""
    return _as_leader(view, "status", status_text(view))


def publish_history(view: View) -> do.PublishAsLeader:
    """The cluster's timelines, with the one that this promotion began."""
    return _as_leader(view, "history", history_text(view))


def publish_failsafe(view: View) -> do.PublishAsLeader:
    """Whom a leader without etcd must ask; over the list that was seen, so that no earlier one comes after it."""
    return replace(_as_leader(view, "failsafe", failsafe_text(view)), seen_revision=_seen_revision(view, "failsafe"))


def write_sync(view: View) -> do.WriteSync:
    """The `sync` key as it should be."""
    key = next_key(view)
    return do.WriteSync(
        timeout_ms=KEYS_TIMEOUT_MS,
        text=sync_text(key or view.sync),
        mod_revision=sync_revision(view),
        valid_until_ms=view.writable_until_ms,
    )


def reserve_timeline(view: View) -> do.PublishAsLeader:
    """The number of the timeline that this leader is to begin, or is on, over the one that was seen."""
    seen = view.keys.get("timeline")
    return do.PublishAsLeader(
        timeout_ms=KEYS_TIMEOUT_MS,
        key="timeline",
        text=str(timeline_to_reserve(view)),
        seen_revision=seen.mod_revision if seen is not None and seen.value is not None else 0,
        valid_until_ms=view.writable_until_ms,
    )


def delete_sync(view: View) -> do.DeleteSync:
    """No `sync` key."""
    return do.DeleteSync(
        timeout_ms=KEYS_TIMEOUT_MS, mod_revision=sync_revision(view), valid_until_ms=view.writable_until_ms
    )


def set_sync_names(view: View) -> do.SetSyncNames:
    """The names that commits should wait for."""
    return do.SetSyncNames(
        timeout_ms=SERVER_TIMEOUT_MS, names=names_to_order(view) or NOBODY, valid_until_ms=view.writable_until_ms
    )


def release_sync_names(view: View) -> do.ReleaseSyncNames:
    """The operator's own names, if there are any."""
    return do.ReleaseSyncNames(timeout_ms=SERVER_TIMEOUT_MS)


def read_sync_mark(view: View) -> do.ReadSyncMark:
    """How far commits may have been acknowledged under earlier names."""
    return do.ReadSyncMark(timeout_ms=2_000, is_first=view.waiting.is_first)


def end_stale_senders(view: View) -> do.EndStaleSenders:
    """Of two connections of one member the older."""
    return do.EndStaleSenders(timeout_ms=2_000, standbys=doubled_standbys(view))


def _as_leader(view: View, key: str, text: str) -> do.PublishAsLeader:
    return do.PublishAsLeader(timeout_ms=KEYS_TIMEOUT_MS, key=key, text=text, valid_until_ms=view.writable_until_ms)


def request_failover(view: View) -> do.RequestFailover:
    """The operator's request, where every member sees it."""
    request = view.switchover or FailoverRequest()
    found = {"leader": request.leader, "member": request.candidate, "scheduled_at": request.scheduled_at}
    text = compact({key: value for key, value in found.items() if value})
    return do.RequestFailover(timeout_ms=KEYS_TIMEOUT_MS, text=text)


def clear_failover(view: View) -> do.ClearFailover:
    """Nobody shall act on this request again."""
    assert view.failover is not None
    return do.ClearFailover(timeout_ms=KEYS_TIMEOUT_MS, mod_revision=view.failover.mod_revision)


def change_config(view: View) -> do.ChangeConfig:
    """The dynamic configuration that was asked for, over the one that it was made from."""
    asked = view.asked.get("change-config") or Asked(request_id="", until_ms=view.now_ms)
    return do.ChangeConfig(
        timeout_ms=KEYS_TIMEOUT_MS,
        request_id=asked.request_id,
        revision=asked.revision,
        valid_until_ms=asked.until_ms,
    )


def arm_fence(view: View) -> do.ArmFence:
    """The deadline that the lease, or the members' confirmation, gives."""
    return do.ArmFence(timeout_ms=1_000, until_ms=view.writable_until_ms)


def arm_found_primary(view: View) -> do.ArmFence:
    """As long as a new lease would allow: time enough to take the key, and no more."""
    return do.ArmFence(timeout_ms=1_000, until_ms=writable_until_ms(view.now_ms, view.dynamic.ttl_s))


def feed_watchdog(view: View) -> do.FeedWatchdog:
    """The watchdog that the settings and the ttl ask for."""
    return do.FeedWatchdog(
        timeout_ms=1_000,
        timeout_s=watchdog.timeout_s(view),
        timeout_max_s=watchdog.timeout_max_s(view),
        slack_ms=watchdog.slack_ms(view),
    )


def release_watchdog(view: View) -> do.ReleaseWatchdog:
    """No watchdog."""
    return do.ReleaseWatchdog(timeout_ms=1_000)


def disarm_fence(view: View) -> do.DisarmFence:
    """A standby needs no deadline."""
    return do.DisarmFence(timeout_ms=1_000)


def end_leftovers(view: View) -> do.EndLeftovers:
    """Nothing left of a server that has neither postmaster nor fence."""
    return do.EndLeftovers(timeout_ms=5_000)


def fence_immediately(view: View) -> do.FenceServer:
    """Every process of the server gone as fast as the kernel allows; recovery will sort out the rest."""
    return do.FenceServer(timeout_ms=SERVER_TIMEOUT_MS, mode="immediate", kill_after_ms=150)


def fence_in_order(view: View) -> do.FenceServer:
    """A fast shutdown, which hands the standbys every last record; killed before the deadline if it does not end."""
    room_ms = max(0, view.writable_until_ms - view.now_ms)
    return do.FenceServer(timeout_ms=room_ms + SERVER_TIMEOUT_MS, mode="fast", kill_after_ms=room_ms)


def fence_on_a_full_disk(view: View) -> do.FenceServer:
    """A fast shutdown, which hands the standbys every last record; killed soon if the disk does not let it end."""
    room_ms = min(FULL_DISK_STOP_MS, max(0, view.writable_until_ms - view.now_ms))
    return do.FenceServer(timeout_ms=room_ms + SERVER_TIMEOUT_MS, mode="fast", kill_after_ms=room_ms)


def fence_stray(view: View) -> do.FenceServer:
    """A primary that has no business to run: in order while the key is still ours, at once otherwise."""
    orderly = view.leader == view.name and view.now_ms < view.writable_until_ms and "fence-stray" not in view.attempts
    return fence_in_order(view) if orderly else fence_immediately(view)


def stop_standby(view: View) -> do.StopServer:
    """A standby loses nothing by a fast shutdown."""
    mode: Literal["fast", "immediate"] = "immediate" if "stop-standby" in view.attempts else "fast"
    return do.StopServer(timeout_ms=60_000, mode=mode, kill_after_ms=30_000)


def stop_to_restart(view: View) -> do.StopToRestart:
    """A fast shutdown; what does not end is killed, and recovery sorts it out. A primary's fence stays armed."""
    return do.StopToRestart(timeout_ms=60_000, mode="fast", kill_after_ms=45_000)


def reload_server(view: View) -> do.ReloadServer:
    """The running server's files anew; a standby goes on following whom it should, else whom it follows."""
    if is_primary_running(view):
        return do.ReloadServer(timeout_ms=SERVER_TIMEOUT_MS)
    return do.ReloadServer(timeout_ms=SERVER_TIMEOUT_MS, upstream=wanted_upstream(view) or _present_upstream(view))


def _present_upstream(view: View) -> Upstream | None:
    """Where the standby streams from as last seen; had it been cut off to vote since, it is cut off again."""
    probe = view.server.probe
    if probe is None or not probe.in_recovery or not probe.upstream_host or has_cut_receiver(view):
        return None
    return Upstream(name=probe.upstream_host, host=probe.upstream_host, port=probe.upstream_port or 5432)


def read_directory(view: View) -> do.ReadDataDirectory:
    """What lies in the data directory."""
    return do.ReadDataDirectory(timeout_ms=SERVER_TIMEOUT_MS)


def init_db(view: View) -> do.InitDb:
    """A new cluster."""
    return do.InitDb(timeout_ms=10 * 60_000)


def start_primary(view: View) -> do.StartPrimary:
    """The server, for writing, under the deadline that is in force."""
    until_ms = view.writable_until_ms
    names = first_names(view) if view.dynamic.synchronous_mode != "off" else None
    return do.StartPrimary(timeout_ms=SERVER_TIMEOUT_MS, armed_until_ms=until_ms, valid_until_ms=until_ms, names=names)


def start_standby(view: View) -> do.StartStandby:
    """The server, following the leader if there is one."""
    return do.StartStandby(timeout_ms=SERVER_TIMEOUT_MS, upstream=wanted_upstream(view))


def follow(view: View) -> do.Follow:
    """The running standby, towards the leader."""
    return do.Follow(timeout_ms=SERVER_TIMEOUT_MS, upstream=wanted_upstream(view))


def cut_receiver(view: View) -> do.Follow:
    """The running standby, away from whoever led."""
    return do.Follow(timeout_ms=SERVER_TIMEOUT_MS, upstream=None)


def apply_parameters(view: View) -> do.ApplyParameters:
    """The configuration that is now in etcd, to the running server, which goes on streaming from where it does."""
    key = view.keys.get("config")
    return do.ApplyParameters(
        timeout_ms=SERVER_TIMEOUT_MS,
        pid=view.server.pid or 0,
        config_revision=key.mod_revision if key else 0,
        upstream=_present_upstream(view),
    )


def read_replay_needs(view: View) -> do.ReadReplayNeeds:
    """Whether the standby stopped replaying because its own parameters are too low."""
    return do.ReadReplayNeeds(timeout_ms=SERVER_TIMEOUT_MS, pid=view.server.pid or 0)


def promote(view: View) -> do.Promote:
    """The running standby, to primary."""
    return do.Promote(
        timeout_ms=SERVER_TIMEOUT_MS,
        valid_until_ms=view.writable_until_ms,
        timeline=view.reserved_timeline,
        loss=view.loss or loss_estimate(view),
    )


def clear_directory(view: View) -> do.ClearDataDirectory:
    """Room for a base backup; what may be somebody's data is kept aside, half a backup is not."""
    keep = view.directory is not None and view.directory.condition in ("cluster", "unreadable")
    return do.ClearDataDirectory(timeout_ms=LONG_MS, keep_aside=keep)


def clone(view: View) -> do.Clone:
    """A base backup of the leader, or of a member that offers itself for it."""
    member = clone_source(view)
    assert member is not None
    assert member.upstream is not None
    return do.Clone(timeout_ms=LONG_MS, upstream=member.upstream)


def rewind(view: View) -> do.Rewind:
    """pg_rewind against the leader."""
    history = known_history(view)
    assert history is not None
    return do.Rewind(timeout_ms=LONG_MS, upstream=_source(view), timeline=history.timeline)


def read_leader_history(view: View) -> do.ReadLeaderHistory:
    """How the leader came to its timeline."""
    return do.ReadLeaderHistory(timeout_ms=3_000, upstream=_source(view))


def read_own_history(view: View) -> do.ReadLeaderHistory:
    """How this node's own server came to its timeline, as it will tell the others."""
    upstream = own_address(view)
    assert upstream is not None
    return do.ReadLeaderHistory(timeout_ms=3_000, upstream=upstream)


def _source(view: View) -> Upstream:
    member = leader_to_follow(view)
    assert member is not None
    assert member.upstream is not None
    return member.upstream


def checkpoint(view: View) -> do.Checkpoint:
    """A checkpoint of the own server."""
    return do.Checkpoint(timeout_ms=60_000)


def prepare_cluster(view: View) -> do.PrepareCluster:
    """The roles that the others need."""
    return do.PrepareCluster(timeout_ms=30_000)


def ask_peers(view: View) -> do.AskPeers:
    """Where every other member stands, also one whose key has run out: it may lead on without etcd."""
    return do.AskPeers(
        timeout_ms=PEER_ANSWER_TIMEOUT_MS,
        api_urls=everybody_else(view),
        voters=voters(view),
        sync_revision=election_revision(view) if voters(view) else 0,
    )


def ask_heirs(view: View) -> do.AskPeers:
    """Who could take over from this leader; nobody's vote, for this leader's standbys are to go on receiving."""
    return do.AskPeers(timeout_ms=PEER_ANSWER_TIMEOUT_MS, api_urls=other_members(view))


def ask_successor(view: View) -> do.AskPeers:
    """How far the named successor has come."""
    request = request_in_force(view)
    candidate = request.candidate if request else None
    urls = {name: url for name, url in other_members(view).items() if name == candidate}
    return do.AskPeers(timeout_ms=PEER_ANSWER_TIMEOUT_MS, api_urls=urls)


def ask_failsafe(view: View) -> do.AskFailsafe:
    """Whether every other member lets this leader go on."""
    assert view.identity is not None
    return do.AskFailsafe(
        timeout_ms=failsafe_timeout_ms(view.dynamic.failsafe_timeout_ms, view.dynamic.ttl_s),
        api_urls=failsafe_addresses(view),
        ttl_s=view.dynamic.ttl_s,
        conn_url=view.identity.conn_url,
        api_url=view.identity.api_url,
    )


def keep_promise(view: View) -> do.KeepPromise:
    """The promise that is to be durable before it is confirmed."""
    promising = view.promising
    assert promising is not None
    return do.KeepPromise(
        timeout_ms=promise_timeout_ms(view.dynamic.failsafe_timeout_ms, view.dynamic.ttl_s),
        leader=promising.leader,
        asked_at_ms=promising.asked_at_ms,
        until_ms=promising.until_ms,
    )


def forget_promise(view: View) -> do.ForgetPromise:
    """No promise on disk."""
    return do.ForgetPromise(timeout_ms=SERVER_TIMEOUT_MS)


def try_promise(view: View) -> do.TryPromise:
    """A rehearsal, with as much time as the real one has."""
    return do.TryPromise(timeout_ms=promise_timeout_ms(view.dynamic.failsafe_timeout_ms, view.dynamic.ttl_s))


def check_failsafe(view: View) -> do.CheckFailsafe:
    """Everybody who would be asked; slow ones are given time to show how slow."""
    timeout_ms = failsafe_timeout_ms(view.dynamic.failsafe_timeout_ms, view.dynamic.ttl_s)
    return do.CheckFailsafe(
        timeout_ms=max(FAILSAFE_CHECK_MS, 2 * timeout_ms), api_urls=failsafe_addresses(view), leader=view.name
    )


def check_new_agent(view: View) -> do.CheckNewAgent:
    """Whether the agent on the disk would start."""
    return do.CheckNewAgent(timeout_ms=NEW_AGENT_CHECK_TIMEOUT_MS)


def become_new_agent(view: View) -> do.BecomeNewAgent:
    """This process, with the agent on the disk."""
    return do.BecomeNewAgent(timeout_ms=SERVER_TIMEOUT_MS)


def exit_quietly(view: View) -> do.Exit:
    """The end that was asked for."""
    return do.Exit(timeout_ms=60_000, status=0, reason="asked to stop")


def ask_namesake(view: View) -> do.AskPeers:
    """Whether the member that is published under this node's name lives."""
    found = view.members.get(view.name)
    return do.AskPeers(timeout_ms=NAMESAKE_TIMEOUT_MS, api_urls={view.name: found.api_url} if found else {})


def exit_over_double_name(view: View) -> do.Exit:
    """Another node has this name: nothing is touched, a person must give one of them another."""
    found = view.members.get(view.name)
    reason = (
        f'a node named "{view.name}" answers at {found.api_url if found else "its address"} already: nothing was '
        "changed; give this one a name of its own"
    )
    return do.Exit(timeout_ms=60_000, status=1, reason=reason)


def exit_over_foreign_data(view: View) -> do.Exit:
    """The data belong to another cluster: nothing is touched, a person must look."""
    reason = (
        f"the data directory has system identifier {view.system_id}, but the cluster in etcd has {view.initialize}: "
        "nothing was changed; give this node an empty data directory or the right scope"
    )
    return do.Exit(timeout_ms=60_000, status=1, reason=reason)
