"""What this node tells others about itself: the answers to health checks, and Patroni's status and cluster JSON. Pure.

A snapshot says nothing about the instant at which it is read, so everything that runs out takes `now_ms`: a node that
was frozen must not go on claiming to be primary because nobody told it otherwise.
"""

import re
from typing import Any, Literal
from urllib.parse import urlsplit

from msgspec import Struct
from msgspec.structs import replace

from fsm.dynamic import as_bool
from fsm.events import FailsafeAsked
from fsm.facts import Probe
from fsm.fencing import fence_fields
from fsm.guards import handover_targets, is_leader_key_named_for_us, is_primary_running
from fsm.loss import promotion_fields
from fsm.promises import asked_until_ms, why_not_to_promise
from fsm.publish import (
    is_rebuilding,
    pending_restart_reason,
    postgres_role,
    postgres_state,
    scheduled_restart_fields,
    shown_tags,
)
from fsm.rebuilding import rebuilding_fields
from fsm.stalls import has_no_room, is_mute
from fsm.states import State
from fsm.view import View
from fsm.vote import vote_revision
from fsm.watchdog import is_unusable, watchdog_fields
from fsm.wire import PATRONI_VERSION, FailoverRequest, Member, is_barred_by_tags, json_object

ANSWER_FRESH_MS = 5_000
"""A standby that has not answered a probe for this long is not known to answer anybody.
Precedent: Patroni's REST connection gives PostgreSQL 3 s to connect and 2 s to answer."""

STOPS = frozenset({"FenceServer", "StopServer", "StopToRestart"})
"""Effects during which a server takes no new connections, although it may still answer on old ones."""

_LAG = re.compile(r"\s*([+-]?)(0[xX][0-9a-fA-F]{1,16}|\d{1,18}(?:\.\d{0,9})?|\.\d{1,9})\s*(B|kB|MB|GB|TB)?\s*")
_UNIT_BYTES = {"B": 1, "kB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30, "TB": 1 << 40}


# ---- what a health check asks ---------------------------------------------------------------------------------------


class Wish(Struct, frozen=True, kw_only=True):
    """What a health check asks of a server beyond its role; None means that it does not mind."""

    lag_bytes: int | None = None
    replication_state: str | None = None
    tags: tuple[tuple[str, str], ...] = ()
    lag_mode: Literal["apply", "write"] = "apply"


ANY = Wish()


def parse_lag_bytes(text: str | None) -> int | None:
    """The bytes that `lag=` allows; None, which is no limit, for what cannot be read. Source: Patroni, GET /replica."""
    found = _LAG.fullmatch(text or "")
    if found is None:
        return None
    sign, amount, unit = found.groups()
    number = int(amount, 16) if amount[:2].lower() == "0x" else float(amount)
    return round(number * _UNIT_BYTES[unit or "B"]) * (-1 if sign == "-" else 1)


def is_leading(view: View, now_ms: int) -> bool:
    """True while this node holds the leader key within its own deadline. Source: Patroni, GET /leader.

    The deadline is that of the lease on which the key hangs, present or former, or what the members confirmed.
    """
    is_ours = is_leader_key_named_for_us(view) or (view.leader is None and now_ms < view.failsafe_until_ms)
    return view.state is State.LEADER and is_ours and now_ms < view.writable_until_ms


def is_leading_to_somewhere(view: View, now_ms: int) -> bool:
    """True while this node leads and its server does not hang: what clients may be told who ask for the leader.

    Members ask in another way (`role` and `state`), and are not told that a primary which is silent is gone.
    """
    return is_leading(view, now_ms) and not is_mute(view)


def is_writable(view: View, now_ms: int) -> bool:
    """True while this node leads and its server accepts writes. Source: Patroni, GET /primary.

    Patroni answers for the leader key alone; here a server that is still being promoted, or recovers from a crash,
    does not count, so that clients are sent to it when it can serve them.
    """
    if not is_leading_to_somewhere(view, now_ms) or not is_primary_running(view) or view.server.is_starting:
        return False
    return not any(underway.kind in STOPS for underway in view.underway.values())


def standing_word(view: View, now_ms: int) -> str:
    """How clients are served here: "writable", "readable", or "" for neither. A successor of this agent in place lets
    its first clients wait until it can say the same."""
    if is_writable(view, now_ms):
        return "writable"
    return "readable" if is_readable_standby(view, now_ms, ANY) else ""


def has_answered_lately(view: View, now_ms: int) -> bool:
    """True when the server answered a probe within the last seconds."""
    return view.server.probe is not None and now_ms - view.server.probed_at_ms <= ANSWER_FRESH_MS


def is_healthy(view: View, now_ms: int) -> bool:
    """True while the server runs and answers. Source: Patroni, GET /health."""
    return postgres_state(view) == "running" and has_answered_lately(view, now_ms) and not view.server.is_starting


def is_readable_standby(view: View, now_ms: int, wish: Wish) -> bool:
    """True while this node's server is a standby that clients may read from. Source: Patroni, GET /replica."""
    probe = view.server.probe
    if probe is None or not probe.in_recovery or not is_healthy(view, now_ms) or _has_true_tag(view, "noloadbalance"):
        return False
    if wish.replication_state is not None and wish.replication_state != replication_state(probe):
        return False
    return wish.lag_bytes is None or _lag_bytes(view, probe.replayed_lsn) <= wish.lag_bytes


def is_ready(view: View, now_ms: int, wish: Wish) -> bool:
    """True on the leader, and on a standby that streams and is not too far behind. Source: Patroni, GET /readiness."""
    if is_leading_to_somewhere(view, now_ms):
        return True
    probe = view.server.probe
    if probe is None or not is_healthy(view, now_ms) or replication_state(probe) != "streaming":
        return False
    if not has_cluster_view(view, now_ms) and not is_failsafe_active(view, now_ms):
        return False
    limit = view.dynamic.maximum_lag_on_failover_bytes if wish.lag_bytes is None else wish.lag_bytes
    return _lag_bytes(view, probe.position_lsn if wish.lag_mode == "write" else probe.replayed_lsn) <= limit


def is_alive(view: View, now_ms: int) -> bool:
    """True while the loop that decides takes events, or the cluster is paused. Source: Patroni, GET /liveness."""
    if view.identity is None:
        return False
    lives = 1 if is_primary_running(view) else 2
    return view.dynamic.pause or now_ms - view.now_ms < lives * view.dynamic.ttl_s * 1000


def is_synchronous_standby(view: View) -> bool:
    """True when the `sync` key names this node as one whose acknowledgement commits wait for."""
    return view.dynamic.synchronous_mode == "on" and _is_in_sync_key(view, view.name)


def is_quorum_standby(view: View) -> bool:
    """True when the `sync` key names this node as one of those of whom commits wait for some."""
    return view.dynamic.synchronous_mode == "quorum" and _is_in_sync_key(view, view.name)


def _is_in_sync_key(view: View, name: str) -> bool:
    return name != view.leader and name.lower() in {member.lower() for member in view.sync.members}


def has_tags(view: View, wanted: tuple[tuple[str, str], ...]) -> bool:
    """True when this node has every tag with its value; values that are not text compare as `true`, `1.4`."""
    return all(_tag_text(view, name) == value for name, value in wanted)


def _tag_text(view: View, name: str) -> str | None:
    value = shown_tags(view).get(name)
    return value if value is None or isinstance(value, str) else str(value).lower()


def _has_true_tag(view: View, name: str) -> bool:
    return as_bool(shown_tags(view).get(name), False)


def _lag_bytes(view: View, reached_lsn: int) -> int:
    """How far a position is behind the newest that was heard of, through etcd or from the upstream."""
    received_lsn = view.server.probe.received_lsn if view.server.probe else 0
    return max(0, view.optime_lsn, received_lsn) - reached_lsn


def replication_state(probe: Probe) -> str | None:
    """Patroni's word for where a standby's WAL comes from; None for a primary, and where nothing comes in."""
    return "streaming" if probe.in_recovery and probe.receiver_status == "streaming" else None


# ---- what runs out by itself ----------------------------------------------------------------------------------------


def has_cluster_view(view: View, now_ms: int) -> bool:
    """True while etcd is heard, or was within the last ttl. Source: Patroni, which forgets the cluster after ttl."""
    lost_ms = view.etcd.lost_since_ms
    return view.etcd.is_watched or (lost_ms is not None and now_ms - lost_ms < view.dynamic.ttl_s * 1000)


def is_failsafe_active(view: View, now_ms: int) -> bool:
    """True while members stand in for etcd: this node promised a leader, or goes on by the others' promises."""
    if view.promise is not None and now_ms < view.promise.until_ms:
        return True
    return max(now_ms, view.leadership_until_ms) < view.failsafe_until_ms


class Standing(Struct, frozen=True, kw_only=True):
    """All that changes in a snapshot's status as time goes by: equal standings of one snapshot have equal status."""

    is_leading: bool
    has_answered: bool
    has_cluster_view: bool
    is_failsafe_active: bool


def standing_at(view: View, now_ms: int) -> Standing:
    """The standing of a snapshot at an instant."""
    return Standing(
        is_leading=is_leading(view, now_ms),
        has_answered=has_answered_lately(view, now_ms),
        has_cluster_view=has_cluster_view(view, now_ms),
        is_failsafe_active=is_failsafe_active(view, now_ms),
    )


def ages(view: View, now_ms: int) -> dict[str, int]:
    """How old the newest probe, this agent's base backup and the fence's last kill are, and how long the lease and the
    fence's deadline still last, in milliseconds."""
    found: dict[str, int] = {}
    if view.server.probe is not None:
        found["probed_ago_ms"] = max(0, now_ms - view.server.probed_at_ms)
    if view.lease is not None:
        found["lease_left_ms"] = max(0, view.lease.writable_until_ms - now_ms)
    if view.fence.armed_until_ms is not None:
        found["fence_armed_ms"] = max(0, view.fence.armed_until_ms - now_ms)
    if view.fence.last_kill is not None:
        found["fence_killed_ago_ms"] = max(0, now_ms - view.fence.last_kill.gone_at_ms)
    if "clone" in view.achieved:
        found["cloned_ago_ms"] = max(0, now_ms - view.achieved["clone"])
    return found


def etcd_seen_at_ms(view: View) -> int | None:
    """When etcd was last known to be heard; None if it never was."""
    return view.now_ms if view.etcd.is_watched else view.etcd.lost_since_ms


# ---- GET /patroni ---------------------------------------------------------------------------------------------------


def status_fields(
    view: View,
    standing: Standing,
    *,
    dcs_last_seen_s: int = 0,
    is_log_degraded: bool = False,
    progress: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """This node's status in Patroni's order of keys, with a `matriarch` object at its end.

    Args:
        view: what the node knows.
        standing: what of it holds at the instant of the question.
        dcs_last_seen_s: when etcd was last heard, as a Unix time.
        is_log_degraded: whether entries of the log do not reach the disk at present.
        progress: how far a base backup or pg_rewind under way is.

    Source: Patroni, GET /patroni.
    """
    probe = view.server.probe
    fields: dict[str, Any] = {
        "state": shown_state(view, standing),
        "postmaster_start_time": probe.postmaster_started_at if probe else None,
        "role": _shown_role(view, standing),
        **(_server_fields(view, probe) if probe else {}),
        "pause": view.dynamic.pause or None,
        "cluster_unlocked": view.leader is None or not standing.has_cluster_view or None,
        "failsafe_mode_is_active": standing.is_failsafe_active or None,
        "dcs_last_seen": dcs_last_seen_s,
        "tags": shown_tags(view) or None,
        "database_system_identifier": view.system_id or None,
        "pending_restart": bool(probe and probe.pending_restart) or None,
        "pending_restart_reason": pending_restart_reason(view) or None,
        "scheduled_restart": scheduled_restart_fields(view) or None,
        "watchdog_failed": is_unusable(view) or None,
        "patroni": _software(view),
        "matriarch": _ours(view, is_log_degraded, progress),
    }
    return {key: value for key, value in fields.items() if value is not None}


def shown_state(view: View, standing: Standing) -> str:
    """The server's state; `unknown` for a standby that fell silent. A silent primary may still write: it is `running`,
    because members that are about to stand must not take silence for absence."""
    state = postgres_state(view)
    is_silent = state == "running" and not standing.has_answered
    return "unknown" if is_silent and not is_primary_running(view) else state


def _shown_role(view: View, standing: Standing) -> str:
    role = postgres_role(view)
    return "demoted" if role == "primary" and not standing.is_leading else role


def _server_fields(view: View, probe: Probe) -> dict[str, Any]:
    return {
        "server_version": probe.server_version,
        "xlog": _xlog(probe),
        "sync_standby": (probe.in_recovery and is_synchronous_standby(view)) or None,
        "quorum_standby": (probe.in_recovery and is_quorum_standby(view)) or None,
        "timeline": probe.timeline,
        "replication_state": replication_state(probe),
        "replication": _replication(probe) or None,
    }


def _xlog(probe: Probe) -> dict[str, Any]:
    if not probe.in_recovery:
        return {"location": probe.flushed_lsn}
    return {
        "received_location": probe.position_lsn,
        "replayed_location": probe.replayed_lsn,
        "replayed_timestamp": probe.replayed_at,
        "paused": probe.replay_paused,
    }


def _replication(probe: Probe) -> list[dict[str, Any]]:
    names = ("usename", "application_name", "client_addr", "state", "sync_state", "sync_priority")
    return [{name: getattr(standby, name) for name in names} for standby in probe.standbys]


def _software(view: View) -> dict[str, str]:
    return {"version": PATRONI_VERSION, "scope": view.identity.scope if view.identity else "", "name": view.name}


def _ours(view: View, is_log_degraded: bool, progress: dict[str, Any] | None) -> dict[str, Any]:
    fields = {
        "state": view.state.value,
        "rule": view.last_rule,
        "seq": view.seq,
        "instance": (view.identity.instance if view.identity else "") or None,
        "log_degraded": is_log_degraded or None,
        "agent_restart": _agent_restart_fields(view),
        "rebuilding": rebuilding_fields(view),
        "vote_revision": vote_revision(view) or None,
        "replaying": (view.server.probe is not None and view.server.probe.is_replaying) or None,
        "progress": progress,
        "server_silent": is_mute(view) or None,
        "disk": _disk_fields(view),
        "refused_parameters": dict(view.server.refused_parameters) or None,
        "last_promotion": promotion_fields(view.promotion) if view.promotion else None,
        "watchdog": watchdog_fields(view),
        "fence": fence_fields(view),
    }
    return {key: value for key, value in fields.items() if value is not None}


def _disk_fields(view: View) -> dict[str, Any] | None:
    """How much room the server has; who votes for a member reads whether it is full."""
    if view.disk.free_bytes is None:
        return None
    fields: dict[str, Any] = {"free_bytes": view.disk.free_bytes}
    if has_no_room(view.disk):
        fields["full"] = True
    if view.disk.trouble is not None:
        fields["trouble"] = view.disk.detail
    return fields


def _agent_restart_fields(view: View) -> dict[str, Any] | None:
    """A restart of the agent that is under way, or why the last one was not done."""
    restart = view.agent_restart
    if restart is None:
        return None
    return _present({"asked_at_ms": restart.asked_at_ms, "refused": restart.refused or None})


# ---- GET /cluster, GET /failsafe ------------------------------------------------------------------------------------


def cluster_fields(view: View, now_ms: int) -> dict[str, Any]:
    """The cluster as etcd last showed it, in Patroni's order of keys. Source: Patroni, GET /cluster.

    While etcd is not heard, `matriarch` at the end says for how long.
    """
    request = view.failover
    planned = {"at": request.scheduled_at, "from": request.leader, "to": request.candidate} if request else {}
    lost_ms = view.etcd.lost_since_ms
    fields: dict[str, Any] = {
        "members": cluster_members(view),
        "pause": view.dynamic.pause or None,
        "scheduled_switchover": _present(planned) if planned.get("at") else None,
        "scope": view.identity.scope if view.identity else "",
        "matriarch": {"etcd_lost_ms": max(0, now_ms - lost_ms)} if lost_ms is not None else None,
    }
    return _present(fields)


def cluster_members(view: View) -> list[dict[str, Any]]:
    """Every member in the order of the names: its part, its server's state, and how far it is behind."""
    return [_member_fields(view, view.members[name]) for name in sorted(view.members)]


def _present(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if value is not None}


def _member_fields(view: View, member: Member) -> dict[str, Any]:
    key = view.keys.get(f"members/{member.name}")
    published = json_object(key.value if key else None)
    role = member_role(view, member.name)
    fields: dict[str, Any] = {
        "name": member.name,
        "role": role,
        "state": member.state if role == "leader" else member.replication_state or member.state,
        "api_url": member.api_url,
        **_address(member),
        "timeline": member.timeline or None,
        "pending_restart": published.get("pending_restart") or None,
        "pending_restart_reason": published.get("pending_restart_reason") or None,
        "scheduled_restart": published.get("scheduled_restart") or None,
        "tags": published.get("tags") or None,
        **({} if role == "leader" else _lags(view, member, published)),
    }
    return _present(fields)


def member_role(view: View, name: str) -> str:
    """Patroni's word for a member's part in the cluster."""
    if name == view.leader:
        return "leader"
    if view.dynamic.synchronous_mode == "off" or not _is_in_sync_key(view, name):
        return "replica"
    return "quorum_standby" if view.dynamic.synchronous_mode == "quorum" else "sync_standby"


def _address(member: Member) -> dict[str, Any]:
    try:
        parts = urlsplit(member.conn_url)
        return {"host": parts.hostname, "port": parts.port}
    except ValueError:
        return {}


def _lags(view: View, member: Member, published: dict[str, Any]) -> dict[str, Any]:
    received = published.get("receive_lsn")
    receive_lsn = received if isinstance(received, int) else 0
    places = {"receive_": receive_lsn, "replay_": member.replay_lsn, "": member.position_lsn}
    fields: dict[str, Any] = {}
    for place, lsn in places.items():
        fields[f"{place}lag"] = max(0, view.optime_lsn - lsn) if lsn else "unknown"
        fields[f"{place}lsn"] = lsn_text(lsn) if lsn else "unknown"
    return fields


def lsn_text(lsn: int) -> str:
    """An LSN as PostgreSQL writes it."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


def failsafe_members(view: View) -> dict[str, Any] | None:
    """Who is asked in etcd's place, by name; None while failsafe mode is off. Source: Patroni, GET /failsafe."""
    if not view.dynamic.failsafe_mode:
        return None
    key = view.keys.get("failsafe")
    written = json_object(key.value if key else None)
    return written or {name: member.api_url for name, member in sorted(view.members.items())}


# ---- what an operator or a peer asks for ----------------------------------------------------------------------------


def switchover_obstacle(view: View, leader: str | None, candidate: str | None) -> str | None:
    """Why a switchover, or without `leader` a failover, cannot be done now, in one line; None if nothing speaks
    against it.

    Source: Patroni, POST /switchover, the checks that answer 412. Lag and timeline are the leader's to judge.
    """
    if leader is not None and view.leader != leader:
        return f'leader name does not match: "{leader}" was named, ' + (
            f'"{view.leader}" leads' if view.leader else "nobody leads"
        )
    if candidate is not None and candidate == view.leader:
        return f'"{candidate}" leads already'
    others = {name: member for name, member in view.members.items() if name != view.leader}
    if candidate is not None and candidate not in others:
        return f'candidate "{candidate}" is not a member of the cluster'
    if not others:
        return "there is no member besides the leader"
    named = {name: m for name, m in others.items() if candidate in (None, name)}
    return _candidates_obstacle(view, FailoverRequest(leader=leader, candidate=candidate), named)


def _candidates_obstacle(view: View, request: FailoverRequest, named: dict[str, Member]) -> str | None:
    # A failover may go to a member that is not synchronous: whoever asks for one accepts that. Source: Patroni.
    if view.dynamic.synchronous_mode == "on" and request.leader is not None:
        named = {name: member for name, member in named.items() if _is_in_sync_key(view, name)}
        if not named:
            return f'candidate "{request.candidate}" is not synchronous' if request.candidate else "no sync standby"
    if all(is_barred_by_tags(dict(member.tags)) for member in named.values()):
        return "no good candidates: the tags of " + ", ".join(sorted(named)) + " forbid it"
    # Only the leader sees who streams from it.
    if view.name == view.leader and not handover_targets(replace(view, failover=request)):
        return "no good candidates: " + ", ".join(sorted(named)) + " does not stream from the leader"
    return None


class AskedSwitchover(Struct, frozen=True, kw_only=True):
    """A switchover or failover that was asked for. `leader`: who led then; `revision`: the `failover` key's before."""

    leader: str | None
    candidate: str | None
    revision: int
    is_failover: bool = False

    @property
    def kind(self) -> str:
        """What it is called."""
        return "Failover" if self.is_failover else "Switchover"


def failover_revision(view: View) -> int:
    """The revision at which the `failover` key was last written, 0 if it never was."""
    key = view.keys.get("failover")
    return key.mod_revision if key else 0


def switchover_outcome(view: View, asked: AskedSwitchover) -> Literal["moved", "dropped"] | None:
    """How a switchover ended: another member leads, or the request was cleared without that; None while it may."""
    if view.leader not in (None, asked.leader):
        return "moved"
    is_waiting = view.switchover is not None or view.failover is not None
    return "dropped" if not is_waiting and failover_revision(view) > asked.revision else None


def is_request_written(view: View, asked: AskedSwitchover) -> bool:
    """True when the request is in etcd, where it waits for its instant."""
    return view.switchover is None and failover_revision(view) > asked.revision


def is_switchover_scheduled(view: View) -> bool:
    """True when the `failover` key holds a request for an instant."""
    return view.failover is not None and bool(view.failover.scheduled_at)


def reinit_obstacle(view: View, *, is_forced: bool = False) -> str | None:
    """Why this node's data cannot be replaced now, in one line; None if nothing speaks against it.

    `is_forced`: what is under way may be given up for it. Source: Patroni, POST /reinitialize, whose command line
    offers that when the line ends with " already in progress".
    """
    if view.leader is None:
        return "Cluster has no leader, can not reinitialize"
    if view.leader == view.name:
        return "I am the leader, can not reinitialize"
    if is_forced:
        return None
    if is_rebuilding(view):
        return "reinitialize already in progress"
    return "pg_rewind already in progress" if "rewind" in view.underway else None


def has_taken_reinit(view: View, asked_at_ms: int) -> bool:
    """True once the request made at an instant, or a later one, was taken: from then on the status tells of it."""
    return view.reinit_asked_at_ms >= asked_at_ms


def is_leading_in_any_way(view: View) -> bool:
    """True when this node's server may be a primary, or the leader key names it: it confirms no other leader."""
    return is_leader_key_named_for_us(view) or view.state is State.LEADER or is_primary_running(view)


def has_promised(view: View, asked: FailsafeAsked) -> bool:
    """True when this node promised a leader, durably, to let it go on for a whole ttl from when it asked.

    An older promise, though it still holds, is not enough: the leader counts on a ttl from its present question.
    """
    promise = view.promise
    return promise is not None and promise.leader == asked.leader and promise.until_ms >= asked_until_ms(view, asked)


def failsafe_obstacle(view: View, leader: str) -> str:
    """Why this node would not confirm a leader now, as far as that does not depend on its disk; empty if it would."""
    return why_not_to_promise(view, leader) or ""


def failsafe_refusal(view: View, asked: FailsafeAsked) -> str | None:
    """Why a leader that asked is not confirmed; None while that is not decided."""
    refusal = view.refusal
    is_about_it = refusal is not None and refusal.leader == asked.leader and refusal.asked_at_ms >= asked.at_ms
    return refusal.reason if refusal is not None and is_about_it else None
