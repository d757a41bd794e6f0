"""Guards about the server's process, and the fence that holds it."""

from fsm.timing import FENCE_SILENT_MS, PROMOTE_AGAIN_MS, standby_pause_ms
from fsm.view import View


def is_server_absent(view: View) -> bool:
    """No process of a server runs."""
    return view.server.process == "absent"


def is_server_running(view: View) -> bool:
    """A postmaster runs."""
    return view.server.process == "running"


def is_standby_running(view: View) -> bool:
    """The server runs, answered, and is in recovery."""
    server = view.server
    return server.process == "running" and not server.may_be_primary and server.probe is not None


def is_standby_unheard(view: View) -> bool:
    """A standby that this agent started runs, and has never answered."""
    server = view.server
    is_ours = view.has_achieved("start-standby", server.spawned_at_ms)
    return server.process == "running" and not server.may_be_primary and server.probe is None and is_ours


def is_promotable(view: View) -> bool:
    """The server runs and was in recovery when it last answered."""
    server = view.server
    return server.process == "running" and server.probe is not None and server.probe.in_recovery


def is_primary_running(view: View) -> bool:
    """The server runs and answered that it accepts writes."""
    server = view.server
    return server.process == "running" and server.probe is not None and not server.probe.in_recovery


def may_a_primary_be_running(view: View) -> bool:
    """A server runs that accepts writes, or may be about to."""
    return view.server.process == "running" and view.server.may_be_primary


def is_primary_without_deadline(view: View) -> bool:
    """A server runs that accepts writes, and the fence has no deadline for it."""
    return is_primary_running(view) and view.fence.armed_until_ms is None


def is_no_primary_possible(view: View) -> bool:
    """No server of this node can accept writes: none runs, or a standby that nobody told to promote."""
    return view.server.process == "absent" or (view.server.process == "running" and not view.server.may_be_primary)


def is_no_promotion_under_way(view: View) -> bool:
    """The server was not told to promote, or has done so: what is written now would take its permit away."""
    return not (view.server.is_promotion_asked and is_promotable(view))


def is_promotion_due(view: View) -> bool:
    """This postmaster was not told to promote yet, or was told long ago to no effect."""
    told_at_ms = view.achieved.get("promote", -1)
    return told_at_ms < view.server.spawned_at_ms or view.now_ms - told_at_ms >= PROMOTE_AGAIN_MS


def is_restart_pause_over(view: View) -> bool:
    """The server did not end just now, or has not been ending again and again."""
    server = view.server
    return server.exited_at_ms is None or view.now_ms >= server.exited_at_ms + standby_pause_ms(server.failed_starts)


def is_fence_armed(view: View) -> bool:
    """The fence confirmed a deadline for the server that lies ahead."""
    return view.fence.armed_until_ms is not None and view.fence.armed_until_ms > view.now_ms


def is_fence_deadline_outdated(view: View) -> bool:
    """The fence has another deadline than the one that this node's lease or failsafe gives."""
    return view.server.process == "running" and view.fence.armed_until_ms != view.writable_until_ms


def is_fence_silent(view: View) -> bool:
    """The deadline that the fence last confirmed has passed, or none was, and the server still runs for writing."""
    if not may_a_primary_be_running(view):
        return False
    confirmed_ms = view.fence.armed_until_ms
    return view.now_ms >= (view.server.spawned_at_ms + FENCE_SILENT_MS if confirmed_ms is None else confirmed_ms)


def has_leftovers(view: View) -> bool:
    """Processes of a server were found whose postmaster and fence are gone."""
    return view.fence.is_connected and view.fence.leftovers > 0


def has_needless_fence_deadline(view: View) -> bool:
    """The fence still has a deadline for a server that is a standby."""
    return is_standby_running(view) and view.fence.armed_until_ms is not None
