"""Guards about the kernel's watchdog. See fsm/watchdog.py."""

from fsm import watchdog
from fsm.guards.server import is_no_primary_possible
from fsm.states import State
from fsm.timing import WATCHDOG_TRIED_ANEW_MS
from fsm.view import View


def is_watchdog_wanted(view: View) -> bool:
    """A watchdog is required, or there is one, and the cluster is not paused."""
    return watchdog.is_wanted(view)


def is_watchdog_outdated(view: View) -> bool:
    """The fence feeds no watchdog, or one with another timeout than the ttl asks for."""
    known = view.watchdog
    return known.timeout_s is None or known.asked_s != watchdog.timeout_s(view)


def is_watchdog_ready(view: View) -> bool:
    """The fence feeds a watchdog, none is wanted, or none that could be used was found and none is required."""
    if view.watchdog.timeout_s is not None:
        return True
    if watchdog.is_required(view):
        return False
    return not watchdog.is_wanted(view) or view.attempts.get("feed-watchdog") is not None


def is_watchdog_lacking(view: View) -> bool:
    """A watchdog is required, and the fence was found unable to feed one since this node leads."""
    tried = view.attempts.get("feed-watchdog")
    if watchdog.obstacle(view) is None:
        return False
    return watchdog.timeout_s(view) == 0 or (tried is not None and tried.failed_at_ms >= view.state_since_ms)


def has_hope_of_a_watchdog(view: View) -> bool:
    """No watchdog is required, or none was found unusable within the last minute."""
    tried = view.attempts.get("feed-watchdog")
    if watchdog.obstacle(view) is None:
        return True
    is_long_ago = tried is not None and view.now_ms - tried.failed_at_ms >= WATCHDOG_TRIED_ANEW_MS
    return watchdog.timeout_s(view) > 0 and is_long_ago


def is_watchdog_unneeded(view: View) -> bool:
    """The fence feeds a watchdog, or left one running, and no primary can be running here, or none is wanted."""
    is_on = view.watchdog.timeout_s is not None or view.watchdog.is_left_running
    is_idle = is_no_primary_possible(view) if view.state is not State.LEADER else not watchdog.is_wanted(view)
    return is_on and view.fence.is_connected and is_idle
