"""The kernel's watchdog: whether a leader needs one, and with which timeout. Pure.

The fence ends the server at its deadline; the watchdog resets the machine where the kernel does not let the fence run.
It counts from each feeding, and the fence feeds it only as far as a reset comes before the lease can end, however long
the timeout is. Source: Patroni, "Watchdog support" (watchdog.mode, watchdog.safety_margin).
"""

from typing import Any

from msgspec.structs import replace

from fsm.events import FenceArmed, FenceConnected, Succeeded, WatchdogFed
from fsm.states import State
from fsm.timing import WATCHDOG_ROOM_MS, WATCHDOG_TIMEOUT_MIN_S, fence_margin_ms
from fsm.view import View, Watchdog

DUTY = "feed-watchdog"


def is_required(view: View) -> bool:
    """True where this node may not lead without a watchdog."""
    return view.identity is not None and view.identity.watchdog_mode == "required" and not view.dynamic.pause


def is_wanted(view: View) -> bool:
    """True where a leader feeds a watchdog: one is required, or there is one. Not in pause. Source: Patroni."""
    identity = view.identity
    if identity is None or identity.watchdog_mode == "off" or view.dynamic.pause:
        return False
    return (is_required(view) or identity.has_watchdog) and timeout_s(view) > 0


def slack_ms(view: View) -> int:
    """How long after the fence's deadline a reset may come: half of what the lease lasts longer. The other half is for
    the machine; until then the fence has the time to end the server without it."""
    return fence_margin_ms(view.dynamic.ttl_s) // 2


def timeout_max_s(view: View) -> int:
    """The longest timeout with which a device can still be fed after each renewal of the lease."""
    ttl_ms = view.dynamic.ttl_s * 1000
    return (ttl_ms - fence_margin_ms(view.dynamic.ttl_s) + slack_ms(view) - WATCHDOG_ROOM_MS) // 1000


def timeout_s(view: View) -> int:
    """The timeout to ask for, by Patroni's settings: ttl less safety_margin, half of ttl where that is -1. 0 where the
    ttl leaves no room for any."""
    margin_s = view.identity.watchdog_safety_margin_s if view.identity is not None else 0
    ttl_s = view.dynamic.ttl_s
    found_s = min(ttl_s // 2 if margin_s < 0 else ttl_s - margin_s, timeout_max_s(view))
    return found_s if found_s >= WATCHDOG_TIMEOUT_MIN_S else 0


def obstacle(view: View) -> str | None:
    """Why this node may not lead for want of a watchdog, in one line; None where it may, or has not found out."""
    if not is_required(view) or view.watchdog.timeout_s is not None:
        return None
    if timeout_s(view) == 0:
        return f"with a ttl of {view.dynamic.ttl_s} s and this safety_margin no watchdog could be fed"
    tried = view.attempts.get("feed-watchdog")
    return tried.detail if tried is not None else None


# ---- folds ----------------------------------------------------------------------------------------------------------


def connected(view: View, event: FenceConnected) -> Watchdog:
    """What the fence feeds when it presents itself."""
    found_s = event.watchdog_s
    known = view.watchdog
    return replace(
        known, timeout_s=found_s, asked_s=found_s or 0, is_left_running=known.is_left_running and not found_s
    )


def lost(view: View) -> Watchdog:
    """The fence is gone; a device that it fed may still count."""
    is_left_running = view.watchdog.timeout_s is not None or view.watchdog.is_left_running
    return Watchdog(is_left_running=is_left_running)


def armed(view: View, result: FenceArmed) -> Watchdog:
    """Whether it is fed is in each confirmation of a deadline."""
    return replace(view.watchdog, timeout_s=result.watchdog_s)


def fed(view: View, event: Succeeded, result: WatchdogFed) -> View:
    """The fence has begun to feed it."""
    return replace(view, watchdog=Watchdog(timeout_s=result.timeout_s, asked_s=result.asked_s))


def released() -> Watchdog:
    """It is off: it was asked for, or the server is gone or needs no deadline."""
    return Watchdog()


# ---- what others are told -------------------------------------------------------------------------------------------


def watchdog_fields(view: View) -> dict[str, Any] | None:
    """The watchdog in this node's status; None where there is none to speak of."""
    if view.identity is None or not (is_wanted(view) or view.watchdog.timeout_s is not None):
        return None
    failed = view.attempts.get("feed-watchdog")
    fields = {
        "mode": view.identity.watchdog_mode,
        "timeout_s": view.watchdog.timeout_s,
        "failure": failed.detail if failed is not None and view.watchdog.timeout_s is None else None,
    }
    return {name: value for name, value in fields.items() if value is not None}


def is_unusable(view: View) -> bool:
    """True where a watchdog is required and cannot be used: others need not wait for this node to lead.

    Source: Patroni, `watchdog_failed` in GET /patroni.
    """
    return obstacle(view) is not None and view.state is not State.LEADER
