"""What a node whose data are being replaced tells of it: the step that it is at, and what went wrong last. Pure."""

from typing import Any

from fsm.guards import has_clone_source, has_cloned
from fsm.publish import is_rebuilding
from fsm.states import State
from fsm.view import View

STEP_OF_EFFECT = {
    "Clone": "base backup",
    "StopServer": "stopping the server",
    "FenceServer": "stopping the server",
    "ClearDataDirectory": "clearing the data directory",
    "StartStandby": "starting the server",
}
DUTIES = ("stop-standby", "clear-directory", "clone", "start-standby")
"""In the order of the work."""


def rebuilding_fields(view: View) -> dict[str, Any] | None:
    """The step of the work, and the last failure of what is tried again; None while no data are being replaced."""
    if view.state is not State.REINIT and not is_rebuilding(view):
        return None
    fields: dict[str, Any] = {"step": _step(view)}
    failed = [view.attempts[duty] for duty in DUTIES if duty in view.attempts]
    failed = [attempts for attempts in failed if attempts.kind != "cancelled"]
    if failed:
        last = max(failed, key=lambda attempts: attempts.failed_at_ms)
        fields |= {"failures": last.failures, "last_failure": last.detail}
    return fields


def _step(view: View) -> str:
    busy = {underway.kind for underway in view.underway.values()}
    step = next((step for kind, step in STEP_OF_EFFECT.items() if kind in busy), None)
    if step is not None:
        return step
    if has_cloned(view) and view.state is State.REINIT:
        return "starting the server"
    return "preparing" if has_clone_source(view) else "waiting for a leader to copy"
