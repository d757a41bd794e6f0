"""What is known of the fence's work: folds for `observe`, which decide nothing, and what others are told of it."""

from typing import Any

from msgspec.structs import replace

from fsm.events import FenceConnected, ServerExited
from fsm.facts import FenceKill
from fsm.timing import fence_margin_ms
from fsm.view import Fence, Server, ServerKill, View


def connected(view: View, event: FenceConnected) -> Fence:
    """The fence as it presents itself; what it did while no agent looked is news."""
    fence = replace(view.fence, is_connected=True, armed_until_ms=event.armed_until_ms, lacks=event.lacks)
    fence = replace(fence, leftovers=event.leftovers)
    known = fence.last_kill
    if event.kill is None or (known is not None and known.at_ms >= event.kill.at_ms):
        return fence
    return _with_kill(fence, _by_deadline(view, event.kill))


def lost(view: View) -> Fence:
    """No fence is there, or none that answers."""
    return replace(view.fence, is_connected=False, armed_until_ms=None, leftovers=0)


def disarmed(view: View) -> Fence:
    """The server may run for as long as it likes."""
    return replace(view.fence, armed_until_ms=None)


def without_leftovers(view: View) -> View:
    """Nothing is left of the server whose postmaster and fence ended together."""
    if view.server.process != "unknown" or not view.fence.is_connected:
        return view  # the fence was lost meanwhile, and the next one will look again
    return replace(view, fence=replace(view.fence, leftovers=0), server=Server(process="absent"))


def confirmed(view: View, until_ms: int) -> Fence:
    """The fence confirmed a deadline."""
    return replace(view.fence, armed_until_ms=until_ms, confirmations=view.fence.confirmations + 1)


def exited(view: View, event: ServerExited) -> Fence:
    """A server is gone; whether it was killed for its lease's sake, and how that went."""
    fence = replace(view.fence, armed_until_ms=None)
    if event.fired:
        told = event.kill or FenceKill(at_ms=event.exited_at_ms or event.at_ms, gone_at_ms=event.at_ms)
        return _with_kill(fence, _by_deadline(view, told))
    is_ordered = any(underway.kind == "FenceServer" for underway in view.underway.values())
    if not is_ordered or event.status == 0:  # a fast shutdown that came to its end kills nobody
        return fence
    began_ms = event.exited_at_ms or event.at_ms
    gone_ms = event.gone_at_ms or event.at_ms
    kill = ServerKill(
        reason=view.last_rule or "fence-stray",
        at_ms=began_ms,
        gone_at_ms=gone_ms,
        margin_ms=_margin_ms(view, view.fence.armed_until_ms, gone_ms),
        killed=event.killed,
    )
    return _with_kill(fence, kill)


def _with_kill(fence: Fence, kill: ServerKill) -> Fence:
    return replace(fence, kills=fence.kills + 1, last_kill=kill)


def _by_deadline(view: View, kill: FenceKill) -> ServerKill:
    return ServerKill(
        reason="deadline",
        at_ms=kill.at_ms,
        gone_at_ms=kill.gone_at_ms,
        margin_ms=_margin_ms(view, kill.armed_until_ms, kill.gone_at_ms),
        processes=kill.processes,
        killed=kill.killed,
    )


def _margin_ms(view: View, armed_until_ms: int | None, gone_at_ms: int) -> int | None:
    """What was left of the lease when the server was gone; etcd counts from later still, so it is no less."""
    if armed_until_ms is None:
        return None
    ttl_s = view.lease.ttl_s if view.lease is not None else view.dynamic.ttl_s
    return armed_until_ms + fence_margin_ms(ttl_s) - gone_at_ms


def fence_fields(view: View) -> dict[str, Any]:
    """The fence in this node's status; instants are CLOCK_BOOTTIME of this machine."""
    fence, kill = view.fence, view.fence.last_kill
    fields: dict[str, Any] = {
        "connected": fence.is_connected,
        "armed_until_ms": fence.armed_until_ms,
        "confirmations": fence.confirmations,
        "kills": fence.kills,
        "lacks": list(fence.lacks),
    }
    if kill is not None:
        fields["last_kill"] = {
            "reason": kill.reason,
            "at_ms": kill.at_ms,
            "took_ms": kill.gone_at_ms - kill.at_ms,
            "margin_ms": kill.margin_ms,
            "processes": kill.processes or None,
            "killed": kill.killed,
        }
    return fields


def fence_metrics(view: View, now_ms: int) -> list[tuple[str, str, str, float]]:
    """Name, kind, meaning and value of each metric of the fence; spans are seconds, 0 where there is none."""
    fence, kill = view.fence, view.fence.last_kill
    left_ms = max(0, fence.armed_until_ms - now_ms) if fence.armed_until_ms is not None else 0
    took_ms, margin_ms, ago_ms = 0, 0, 0
    if kill is not None:
        took_ms, margin_ms = kill.gone_at_ms - kill.at_ms, kill.margin_ms or 0
        ago_ms = max(0, now_ms - kill.gone_at_ms)
    return [
        ("connected", "gauge", "1 if the fence answers, 0 if not", int(fence.is_connected)),
        (
            "armed_seconds",
            "gauge",
            "How long the server may still run before it is killed, 0 if unarmed",
            left_ms / 1000,
        ),
        ("confirmations_total", "counter", "Deadlines confirmed since the agent started", fence.confirmations),
        ("kills_total", "counter", "Servers killed for their lease's sake since the agent started", fence.kills),
        ("last_kill_duration_seconds", "gauge", "How long the last kill took until nothing was left", took_ms / 1000),
        ("last_kill_margin_seconds", "gauge", "What was left of the lease after the last kill", margin_ms / 1000),
        ("last_kill_age_seconds", "gauge", "How long ago the last kill was, 0 if there was none", ago_ms / 1000),
    ]
