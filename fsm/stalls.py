"""What looks at a stalling server and at its disk add to what this node knows: parts of the fold. Pure."""

from msgspec.structs import replace

from fsm.events import DiskLooked, DiskSilent, PeersHeard, ServerDoomed, ServerProbed, ServerSilent
from fsm.silence import Disk, Silence, prolonged
from fsm.states import State
from fsm.timing import (
    DISK_FULL_FOR_MS,
    DISK_LOOK_LEADING_MS,
    DISK_LOOK_MS,
    DISK_ROOMY_FOR_MS,
    DISK_ROOMY_SEGMENTS,
    SILENT_LOOKS_MIN,
)
from fsm.view import Server, View


def is_full_at(disk: Disk, now_ms: int) -> bool:
    """True when the disk counts as full at an instant: it has been for a while, or was and has not been roomy since."""
    lasts = disk.full_since_ms is not None and now_ms - disk.full_since_ms >= DISK_FULL_FOR_MS
    return disk.is_full or lasts


def has_no_room(disk: Disk) -> bool:
    """True from the first look that finds no room until the disk no longer counts as full: not to be chosen now."""
    return disk.is_full or disk.full_since_ms is not None


def is_mute(view: View) -> bool:
    """True when the server said nothing, neither on the connection that it had answered on nor on a fresh one."""
    mute = view.server.mute
    return view.server.process == "running" and mute is not None and mute.looks >= SILENT_LOOKS_MIN


# ---- the server -----------------------------------------------------------------------------------------------------


def mute_after(server: Server, event: ServerSilent) -> Silence | None:
    """The server's silence after a look without an answer; whatever it did say, if only a refusal, ends it."""
    if not event.mute:
        return None
    return prolonged(server.mute, began_ms=event.began_ms, at_ms=event.at_ms, lag_ms=event.lag_ms)


def with_wal_moved(view: View, event: ServerProbed) -> View:
    """WAL that reached the disk since the last look shows that the disk takes writes."""
    known = view.server.probe
    has_moved = known is not None and 0 < known.flushed_lsn < event.probe.flushed_lsn
    return replace(view, disk=replace(view.disk, trouble=None)) if has_moved and view.disk.trouble else view


def with_wal_heard(view: View, result: PeersHeard) -> View:
    """A standby that has more WAL than a moment ago shows that a server which answers nobody still works."""
    mute = view.server.mute
    if mute is None:
        return view
    before = {name: heard for name, heard in view.peers.items() if heard.at_ms >= mute.since_ms}
    has_moved = any(
        report.name in before and 0 < before[report.name].report.position_lsn < report.position_lsn
        for report in result.reports
    )
    anew = Silence(since_ms=view.now_ms, told_at_ms=view.now_ms, looks=0)
    return replace(view, server=replace(view.server, mute=anew)) if has_moved else view


def server_doomed(view: View, event: ServerDoomed) -> View:
    """No process of it will execute another instruction: it can neither write nor answer, though it is still there."""
    if event.pid != view.server.pid:
        return view
    server = replace(
        view.server,
        is_doomed=True,
        may_be_primary=False,
        is_promotion_asked=False,
        probe=None,
        mute=None,
    )
    return replace(view, server=server)


# ---- the disk -------------------------------------------------------------------------------------------------------


def disk_looked(view: View, event: DiskLooked) -> View:
    """How much room there is, and whether a write got through."""
    free_bytes = 0 if event.failure == "full" else min(event.data_free_bytes, event.wal_free_bytes)
    disk = replace(
        _with_room(replace(view.disk, segment_bytes=event.segment_bytes), free_bytes, event.at_ms),
        free_bytes=free_bytes,
        detail=event.detail,
        trouble=_trouble_after(view.disk, event),
    )
    return replace(view, disk=disk)


def _trouble_after(disk: Disk, event: DiskLooked) -> Silence | None:
    if event.failure != "broken":
        return None
    return prolonged(disk.trouble, began_ms=event.began_ms, at_ms=event.at_ms, lag_ms=event.lag_ms)


def _with_room(disk: Disk, free_bytes: int, at_ms: int) -> Disk:
    """The disk with so much room: full at once after a while without any, and roomy only after a while with plenty."""
    is_full = is_full_at(disk, at_ms)
    if free_bytes < disk.segment_bytes:
        since_ms = disk.full_since_ms if disk.full_since_ms is not None else at_ms
        return replace(disk, is_full=is_full, full_since_ms=since_ms, roomy_since_ms=None)
    disk = replace(disk, is_full=is_full, full_since_ms=None)
    if not is_full or free_bytes < DISK_ROOMY_SEGMENTS * disk.segment_bytes:
        return replace(disk, roomy_since_ms=None)
    since_ms = disk.roomy_since_ms if disk.roomy_since_ms is not None else at_ms
    is_over = at_ms - since_ms >= DISK_ROOMY_FOR_MS
    return replace(disk, is_full=not is_over, roomy_since_ms=None if is_over else since_ms)


def disk_silent(view: View, event: DiskSilent) -> View:
    """A look at the disk that does not come back."""
    trouble = prolonged(view.disk.trouble, began_ms=event.began_ms, at_ms=event.at_ms, lag_ms=event.lag_ms)
    return replace(view, disk=replace(view.disk, trouble=trouble, detail=event.detail))


def disk_look_every_ms(view: View) -> int:
    """How often the disk should be looked at: often by who leads, or may be about to, or whose server just ended."""
    is_in_question = view.state is State.LEADER or view.leader is None or view.server.failed_starts > 0
    return DISK_LOOK_LEADING_MS if is_in_question else DISK_LOOK_MS


def is_write_test_wanted(view: View, flushed_lsn: int) -> bool:
    """True when only a write of the agent's own can tell whether this leader's disk takes writes: no WAL reached it.

    Args:
        view: what the node knows.
        flushed_lsn: how far WAL had reached the disk at the last look.
    """
    probe = view.server.probe
    is_leading = view.state is State.LEADER and view.server.process == "running" and probe is not None
    return is_leading and probe is not None and not probe.in_recovery and probe.flushed_lsn <= flushed_lsn
