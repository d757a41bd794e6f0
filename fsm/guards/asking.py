"""Guards about what people asked of this node through its API, and restarts of the server in place."""

from fsm.view import View


def _is_asked(view: View, duty: str) -> bool:
    asked = view.asked.get(duty)
    return asked is not None and view.now_ms < asked.until_ms


def is_failsafe_check_asked(view: View) -> bool:
    """An operator asked whether the members would let this leader go on without etcd."""
    return _is_asked(view, "check-failsafe")


def is_promise_try_asked(view: View) -> bool:
    """A leader asked whether this node would confirm it."""
    return _is_asked(view, "try-promise")


def is_config_change_asked(view: View) -> bool:
    """A change of the dynamic configuration was asked for a moment ago."""
    return _is_asked(view, "change-config")


def is_cancelling_asked(view: View) -> bool:
    """Somebody asked a moment ago to drop the scheduled switchover, and there is a request in etcd."""
    return _is_asked(view, "cancel-switchover") and view.failover is not None


def is_reload_asked(view: View) -> bool:
    """The node's settings were read again a moment ago, and the server has not been told."""
    return _is_asked(view, "reload-server")


def is_restart_asked(view: View) -> bool:
    """A restart was asked for, and the postmaster that is to be restarted still runs."""
    server, restart = view.server, view.restart
    return restart is not None and server.process == "running" and server.pid == restart.pid


def is_restart_prepared(view: View) -> bool:
    """The checkpoint before the restart is done, or was tried: a fast stop now has little left to write."""
    if view.restart is None:
        return False
    tried, since_ms = view.attempts.get("checkpoint-for-restart"), view.restart.asked_at_ms
    return view.has_achieved("checkpoint-for-restart", since_ms) or (
        tried is not None and tried.failed_at_ms >= since_ms
    )


def is_restart_unprepared(view: View) -> bool:
    """The checkpoint before the restart has not been tried yet."""
    return not is_restart_prepared(view)
