"""What this node writes into etcd for others to read, in Patroni's formats and order of keys."""

from functools import lru_cache
from typing import Any

import msgspec

from fsm.facts import Upstream
from fsm.states import State
from fsm.view import LeaderHistory, View
from fsm.wire import PATRONI_VERSION, TEXTS_KEPT, Member, compact

TAGS_HIDDEN_WHEN_FALSE = {
    "nofailover": "failover_priority",
    "nosync": "sync_priority",
    "noloadbalance": None,
    "clonefrom": None,
    "nostream": None,
}
"""Tags that nobody is shown while they are false, unless another that would say the contrary is there, by its name.
Source: Patroni, tags."""

POSITIONS = ("xlog_location", "receive_lsn", "replay_lsn")
"""Fields of the member key that change all the time and are therefore published only every `loop_wait`."""


def postgres_state(view: View) -> str:
    """Patroni's word for what the server is doing. Source: Patroni, the 15 states of a member."""
    busy = {u.kind for u in view.underway.values()}
    if "InitDb" in busy:
        return "initializing new cluster"
    if is_rebuilding(view):
        return "creating replica"
    if view.restart is not None and ("StopToRestart" in busy or view.server.pid != view.restart.pid):
        return "restarting"
    if "FenceServer" in busy or "StopServer" in busy:
        return "stopping"
    if view.server.is_doomed:
        return "stopping"
    if view.server.process != "running" and view.state is State.REINIT:
        return "starting"  # the new data are there
    if view.server.process != "running":
        return "crashed" if view.state is State.LEADER and view.server.exited_at_ms else "stopped"
    return "running" if view.server.probe is not None else "starting"


def is_rebuilding(view: View) -> bool:
    """True while this node's data are replaced by a base backup: from when that is decided or asked for until the copy
    is complete, so that nobody who waits for the end takes the old server for the new one."""
    if view.is_reinit_asked or "clone" in view.underway:
        return True
    return view.state is State.REINIT and not view.has_achieved("clone", view.state_since_ms)


def postgres_role(view: View) -> str:
    """Patroni's word for what the server is: `primary` only for a leader's server that left recovery."""
    probe = view.server.probe
    if probe is None:
        return "uninitialized" if not view.system_id else "replica"
    if probe.in_recovery:
        return "replica"
    return "primary" if view.state is State.LEADER else "demoted"


def member_fields(view: View) -> dict[str, Any]:
    """The fields of this node's member key, in Patroni's order; absent ones are left out."""
    assert view.identity is not None
    fields: dict[str, Any] = {
        "conn_url": view.identity.conn_url,
        "api_url": view.identity.api_url,
        "state": postgres_state(view),
        "role": postgres_role(view),
        "version": PATRONI_VERSION,
    }
    if view.identity.proxy_url:
        fields["proxy_url"] = view.identity.proxy_url
    if _has_yet_to_checkpoint(view):
        fields["checkpoint_after_promote"] = False
    if tags := shown_tags(view):
        fields["tags"] = tags
    if view.server.probe and view.server.probe.pending_restart:
        fields |= {"pending_restart": True, "pending_restart_reason": pending_restart_reason(view)}
    if view.scheduled_restart is not None:
        started_at = view.scheduled_restart.postmaster_started_at
        fields["scheduled_restart"] = scheduled_restart_fields(view) | {"postmaster_start_time": started_at}
    is_paused = {"pause": True} if view.dynamic.pause else {}
    return {**fields, **_positions(view), **is_paused}


def shown_tags(view: View) -> dict[str, Any]:
    """This node's tags as others see them, without those that are at rest."""
    found = view.identity.tags if view.identity else {}
    return {
        name: value
        for name, value in found.items()
        if value or name not in TAGS_HIDDEN_WHEN_FALSE or TAGS_HIDDEN_WHEN_FALSE[name] in found
    }


def scheduled_restart_fields(view: View) -> dict[str, Any]:
    """The scheduled restart as it was asked for; empty if there is none."""
    return dict(view.scheduled_restart.wish.conditions) if view.scheduled_restart is not None else {}


def pending_restart_reason(view: View) -> dict[str, dict[str, str]]:
    """What each parameter that waits for a restart is and will be. Source: Patroni, `pending_restart_reason`."""
    reasons = view.server.probe.pending_restart_reason if view.server.probe else {}
    return {name: {"old_value": r.old_value, "new_value": r.new_value} for name, r in reasons.items()}


def _has_yet_to_checkpoint(view: View) -> bool:
    promoted = view.has_achieved("promote", view.state_since_ms)
    return (
        view.state is State.LEADER
        and promoted
        and not view.has_achieved("checkpoint-after-promote", view.state_since_ms)
    )


def _positions(view: View) -> dict[str, Any]:
    probe = view.server.probe
    if probe is None or is_rebuilding(view):
        return {}  # Source: Patroni, which leaves them out during long work
    fields: dict[str, Any] = {"xlog_location": probe.position_lsn}
    if probe.in_recovery:
        fields |= {"replay_lsn": probe.replayed_lsn, "receive_lsn": probe.received_lsn}
        fields = {key: value for key, value in fields.items() if value}
        if probe.receiver_status == "streaming":
            fields["replication_state"] = "streaming"
    return {**fields, "timeline": probe.timeline}


def member_text(view: View) -> str:
    """The value of this node's member key as it should be."""
    return compact(member_fields(view))


def is_member_outdated(view: View) -> bool:
    """True when the member key is missing, hangs on another lease, or says something else than it should.

    A position alone is worth a write only every `loop_wait`: etcd is not a metrics store.
    """
    key = view.keys.get(f"members/{view.name}")
    if key is None or key.value is None or view.lease is None or key.lease_id != view.lease.lease_id:
        return True
    wanted = member_fields(view)
    published = _object(key.value)
    if wanted != published and _without_positions(wanted) != _without_positions(published):
        return True
    is_due = view.now_ms - view.published_at_ms >= view.dynamic.loop_wait_s * 1000
    return is_due and wanted != published


@lru_cache(TEXTS_KEPT)
def _object(text: str) -> dict[str, Any]:
    found = msgspec.json.decode(text)
    return found if isinstance(found, dict) else {}


def _without_positions(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if key not in POSITIONS}


def status_text(view: View) -> str:
    """The `status` key: the leader's position. Slots are not managed yet, so the field is left out."""
    return compact({"optime": view.position_lsn})


def is_status_outdated(view: View) -> bool:
    """True when the published position is older than `loop_wait` and no longer the present one."""
    is_due = view.now_ms - view.achieved.get("publish-status", -1) >= view.dynamic.loop_wait_s * 1000
    known = view.keys.get("status")
    return "publish-status" not in view.achieved or (is_due and (known is None or known.value != status_text(view)))


def own_address(view: View) -> Upstream | None:
    """Where this node's own server is reached by others."""
    return Member(name=view.name, conn_url=view.identity.conn_url).upstream if view.identity else None


def own_history(view: View) -> LeaderHistory | None:
    """How this node's own server came to its present timeline, once it was read."""
    read, probe = view.leader_history, view.server.probe
    if read is None or probe is None or read.leader != view.name or read.history.timeline != probe.timeline:
        return None
    return read


def history_rows(view: View) -> list[list[Any]]:
    """The rows of the `history` key as they should be: those that are there, and the switches that they do not know."""
    key = view.keys.get("history")
    try:
        rows: list[list[Any]] = msgspec.json.decode(key.value or "[]", type=list[list[Any]]) if key else []
    except (msgspec.DecodeError, msgspec.ValidationError):
        rows = []
    read = own_history(view)
    if read is None:
        return rows
    known = {row[0] for row in rows if row}
    most = view.dynamic.max_timelines_history
    # Rows that were dropped for their age are older than those that are left, and do not come back.
    oldest = min((timeline for timeline in known if isinstance(timeline, int)), default=0) if most else 0
    new = [s for s in read.history.switches if s.timeline not in known and s.timeline > oldest]
    all_rows = [*rows, *([s.timeline, s.lsn, s.reason, read.wall, view.name] for s in new)]
    return all_rows[-most:]  # the last 0 are all of them


def is_history_outdated(view: View) -> bool:
    """True when the server's own history has switches that the `history` key does not know."""
    key = view.keys.get("history")
    return own_history(view) is not None and history_text(view) != ((key and key.value) or "[]")


def history_text(view: View) -> str:
    """The value of the `history` key as it should be."""
    return compact(history_rows(view))


def failsafe_members(view: View) -> dict[str, str]:
    """Every member's API address, this node's included, in the order of names."""
    own = {view.name: view.identity.api_url} if view.identity else {}
    return dict(sorted((own | {m.name: m.api_url for m in view.members.values()}).items()))


def failsafe_list(view: View) -> dict[str, str]:
    """Who should be listed in the `failsafe` key: nobody while the mode is off, so that everybody may stand."""
    return failsafe_members(view) if view.dynamic.failsafe_mode else {}


def failsafe_text(view: View) -> str:
    """The value of the `failsafe` key as it should be."""
    return compact(failsafe_list(view))


def is_failsafe_outdated(view: View) -> bool:
    """True when the `failsafe` key does not list exactly the members there are, or it is not certain what it lists."""
    return view.failsafe != failsafe_list(view) or bool(view.failsafe_in_doubt)


def is_failsafe_possible(view: View) -> bool:
    """True when the mode is on and it is known who could be elected: while no list is in etcd that is everybody."""
    return view.dynamic.failsafe_mode and bool(view.failsafe) and all(view.failsafe_in_doubt)


def failsafe_addresses(view: View) -> dict[str, str]:
    """Every other member that could be elected: those listed in etcd, or possibly so by now, and those to be next."""
    found = failsafe_members(view)
    for listed in (*view.failsafe_in_doubt, view.failsafe):
        found = found | listed
    return {name: url for name, url in found.items() if name != view.name}
