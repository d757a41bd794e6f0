"""How requests through the API enter and leave what a node knows: folds for `observe`, which decide nothing."""

from msgspec.structs import replace

from fsm.asked import ANSWERS_KEPT, Answer, Asked, Ending, Restart, RestartWish, ScheduledRestart
from fsm.events import (
    ConfigAsked,
    Failed,
    FailsafeCheckAsked,
    KeyWritten,
    PromiseTryAsked,
    ReloadAsked,
    RestartAsked,
    RestartCancelAsked,
    Succeeded,
    SwitchoverAsked,
    SwitchoverCancelAsked,
    Unknown,
)
from fsm.handover import due_at_ms
from fsm.restart import restart_obstacle, restart_start_timeout_ms, restart_until_ms
from fsm.states import State
from fsm.timing import REQUEST_TIMEOUT_MS, SCHEDULE_LATE_MS, SWITCHOVER_WRITTEN_WITHIN_MS
from fsm.view import View
from fsm.wire import FailoverRequest


def answered(view: View, request_id: str, ending: Ending, detail: str = "") -> View:
    """The view with one more answer, the oldest forgotten."""
    answer = Answer(request_id=request_id, ending=ending, detail=detail)
    return replace(view, answers=(*view.answers, answer)[-ANSWERS_KEPT:])


def answer_of(view: View, request_id: str) -> Answer | None:
    """How a request ended; None while it has not."""
    return next((answer for answer in view.answers if answer.request_id == request_id), None)


def _with_asked(view: View, duty: str, request_id: str, revision: int = 0) -> View:
    if duty in view.asked:
        return answered(view, request_id, "conflict", "another request of this kind is under way")
    asked = Asked(request_id=request_id, until_ms=view.now_ms + REQUEST_TIMEOUT_MS, revision=revision)
    return replace(view, asked={**view.asked, duty: asked})


def config_asked(view: View, event: ConfigAsked) -> View:
    """A change of the dynamic configuration is to be written."""
    return _with_asked(view, "change-config", event.request_id, event.revision)


def failsafe_check_asked(view: View, event: FailsafeCheckAsked) -> View:
    """The members are to be asked whether they would let this leader go on."""
    return _with_asked(view, "check-failsafe", event.request_id)


def promise_try_asked(view: View, event: PromiseTryAsked) -> View:
    """It is to be found out whether the disk would take a promise."""
    return _with_asked(view, "try-promise", event.request_id)


def cancel_asked(view: View, event: SwitchoverCancelAsked) -> View:
    """The switchover that is scheduled now is to be dropped."""
    return _with_asked(view, "cancel-switchover", event.request_id, event.revision)


def reload_asked(view: View, event: ReloadAsked) -> View:
    """The node's own settings were read again; the server is to be told as well, if one runs."""
    if view.identity is not None:
        identity = replace(
            view.identity,
            tags=event.tags,
            clone_on_rewind_failure=event.clone_on_rewind_failure,
            clone_on_divergence=event.clone_on_divergence,
        )
        view = replace(view, identity=identity)
    if view.server.process == "absent":
        return answered(view, event.request_id, "done")  # the next start will go by them
    # One that is under way may have read the settings before they changed: the newest request is performed as well.
    view = replace(view, asked={duty: asked for duty, asked in view.asked.items() if duty != "reload-server"})
    return _with_asked(view, "reload-server", event.request_id)


def switchover_asked(view: View, event: SwitchoverAsked) -> View:
    """A request for another leader is to be written into etcd."""
    request = FailoverRequest(leader=event.leader, candidate=event.candidate, scheduled_at=event.scheduled_at or None)
    return replace(view, switchover=request, switchover_asked_at_ms=event.at_ms)


def restart_asked(view: View, event: RestartAsked) -> View:
    """The server is to be restarted, now or at an instant."""
    if event.wish.schedule:
        return _with_schedule(view, event)
    return _with_restart(view, event.request_id, event.wish)


def _with_schedule(view: View, event: RestartAsked) -> View:
    if view.scheduled_restart is not None:
        return answered(view, event.request_id, "conflict", "another restart is already scheduled")
    due_ms = due_at_ms(event.wish.schedule, at_ms=event.at_ms, unix_ms=event.unix_ms)
    if due_ms is None or view.server.pid is None or view.server.probe is None:
        return answered(view, event.request_id, "refused", "the server does not run")
    scheduled = ScheduledRestart(
        request_id=event.request_id,
        wish=event.wish,
        pid=view.server.pid,
        postmaster_started_at=view.server.probe.postmaster_started_at,
        due_at_ms=due_ms,
    )
    return answered(replace(view, scheduled_restart=scheduled), event.request_id, "done")


def restart_cancel_asked(view: View, event: RestartCancelAsked) -> View:
    """The restart that is scheduled is dropped."""
    if view.scheduled_restart is None:
        return answered(view, event.request_id, "refused", "no restart is scheduled")
    return answered(replace(view, scheduled_restart=None), event.request_id, "done")


def with_wall_clock(view: View, *, at_ms: int, unix_ms: int) -> View:
    """The scheduled restart is due when the wall clock says so, also after it was set."""
    scheduled = view.scheduled_restart
    due_ms = due_at_ms(scheduled.wish.schedule, at_ms=at_ms, unix_ms=unix_ms) if scheduled else None
    if scheduled is None or due_ms is None:
        return view
    return replace(view, scheduled_restart=replace(scheduled, due_at_ms=due_ms))


def _with_restart(view: View, request_id: str, wish: RestartWish) -> View:
    """The server is to be restarted, unless something stands against it by now."""
    obstacle = restart_obstacle(view, wish)
    if obstacle is not None or view.server.pid is None:
        return answered(view, request_id, "refused", obstacle or "the server does not run")
    timeout_ms = restart_start_timeout_ms(view, wish.timeout_ms)
    restart = Restart(
        request_id=request_id,
        pid=view.server.pid,
        state=view.state,
        asked_at_ms=view.now_ms,
        start_timeout_ms=timeout_ms,
        until_ms=restart_until_ms(view, timeout_ms),
    )
    return replace(view, restart=restart)


def is_outcome_of_request(view: View, event: Succeeded | Failed | Unknown) -> bool:
    """True when this is the answer to the effect under way, and that began no earlier than it was asked for."""
    underway, asked = view.underway.get(event.duty), view.asked.get(event.duty)
    if underway is None or underway.effect_id != event.effect_id or asked is None:
        return False
    return underway.since_ms >= asked.until_ms - REQUEST_TIMEOUT_MS


def with_outcome(view: View, event: Succeeded | Failed | Unknown) -> View:
    """The request that the effect was for, answered. It is performed once: whoever asked may ask again."""
    asked = view.asked.get(event.duty)
    if asked is None:
        return view
    view = replace(view, asked={duty: other for duty, other in view.asked.items() if duty != event.duty})
    match event:
        case Succeeded(result=KeyWritten(applied=False)):
            return answered(view, asked.request_id, "conflict", "it was changed by somebody else meanwhile")
        case Succeeded():
            return answered(view, asked.request_id, "done")
        case Failed():
            return answered(view, asked.request_id, "failed", event.detail)
        case Unknown():
            return answered(view, asked.request_id, "unknown", event.detail)


def settled(view: View) -> View:
    """What nobody waits for any more is dropped, and a restart that has come to its end is answered."""
    late = {duty: asked for duty, asked in view.asked.items() if view.now_ms >= asked.until_ms}
    for duty, asked in late.items():
        if duty not in view.underway:
            view = replace(view, asked={d: a for d, a in view.asked.items() if d != duty})
            view = answered(view, asked.request_id, "failed", "it could not be begun in time")
    is_stale = view.now_ms - view.switchover_asked_at_ms >= SWITCHOVER_WRITTEN_WITHIN_MS
    if view.switchover is not None and is_stale and "request-failover" not in view.underway:
        view = replace(view, switchover=None)
    view = _with_due_restart(view)
    return _with_settled_restart(view) if view.restart is not None else view


def _with_due_restart(view: View) -> View:
    """A scheduled restart, asked for at its instant; dropped when it is long past, or the server is another by now.

    In pause it waits. Source: Patroni, scheduled restarts.
    """
    scheduled, server = view.scheduled_restart, view.server
    if scheduled is None:
        return view
    if server.pid is not None and server.pid != scheduled.pid:
        return replace(view, scheduled_restart=None)
    if view.now_ms < scheduled.due_at_ms or view.dynamic.pause:
        return view
    view = replace(view, scheduled_restart=None)
    if view.now_ms > scheduled.due_at_ms + SCHEDULE_LATE_MS:
        return answered(view, scheduled.request_id, "refused", "the scheduled restart was missed")
    return _with_restart(view, scheduled.request_id, scheduled.wish)


def _with_settled_restart(view: View) -> View:
    restart = view.restart
    assert restart is not None
    ending: Ending
    if view.state is not restart.state:
        ending, detail = "failed", f"the node became {view.state.value} before the server was back"
    elif _is_back(view, restart):
        ending, detail = "done", ""
    elif view.now_ms >= restart.until_ms:
        ending, detail = "failed", "the server did not come back in time"
    else:
        return view
    return answered(replace(view, restart=None), restart.request_id, ending, detail)


def _is_back(view: View, restart: Restart) -> bool:
    """True when another postmaster than the one that was to be restarted answers, in the same role."""
    server = view.server
    if server.process != "running" or server.pid == restart.pid or server.probe is None:
        return False
    return server.probe.in_recovery == (restart.state is State.REPLICA)
