"""Restarting the server in place because somebody asked for it: what stands against it, and how long it may take."""

from fsm.asked import RestartWish
from fsm.guards.leading import is_handover_wanted
from fsm.guards.server import is_primary_running, is_standby_running
from fsm.publish import postgres_role
from fsm.states import State
from fsm.timing import RESTART_STOP_MS, START_TIMEOUT_LEAST_MS
from fsm.view import View


def restart_obstacle(view: View, wish: RestartWish) -> str | None:
    """Why the server cannot, or by the conditions shall not, be restarted now, in one line; None if it can.

    Source: Patroni, POST /restart.
    """
    return _situation_obstacle(view) or _condition_obstacle(view, wish)


def _situation_obstacle(view: View) -> str | None:
    if view.restart is not None:
        return "a restart is already in progress"
    if not view.etcd.is_watched:
        return "etcd is not heard of at present: a stopped server might not be allowed to start again"
    if view.is_stopping:
        return "the agent is about to end"
    if view.state not in (State.LEADER, State.REPLICA) or view.is_reinit_asked:
        return f"the node is busy ({view.state.value}): ask again when it is a leader or a replica"
    if is_handover_wanted(view):
        return "another node is about to lead: ask again after that"
    is_up = is_primary_running(view) if view.state is State.LEADER else is_standby_running(view)
    return None if is_up else "the server does not run, or is still starting"


def _condition_obstacle(view: View, wish: RestartWish) -> str | None:
    probe, role = view.server.probe, wish.role
    assert probe is not None
    if role is not None and role != postgres_role(view):
        return f"the server is not restarted: it is a {postgres_role(view)}, not a {role}"
    if wish.postgres_version and probe.server_version >= wish.postgres_version:
        return f"the server is not restarted: its version is {probe.server_version}, not below {wish.postgres_version}"
    if wish.restart_pending and not probe.pending_restart:
        return "the server is not restarted: no parameter waits for it"
    return None


def restart_start_timeout_ms(view: View, asked_ms: int) -> int:
    """The same for a restart: what was asked for, else the cluster's; 0 there, which is about crashes, is no haste."""
    return asked_ms or view.dynamic.primary_start_timeout_s * 1000 or START_TIMEOUT_LEAST_MS


def restart_until_ms(view: View, timeout_ms: int) -> int:
    """When a restart that begins now is given up: after its checkpoint, its stop and its start had their time."""
    return view.now_ms + RESTART_STOP_MS + timeout_ms
