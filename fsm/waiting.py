"""What a leader learns of whom its server's commits wait for: the fold of looks, orders and marks. Pure.

The policy that rests on it is fsm/sync.py.
"""

from msgspec.structs import replace

from fsm.facts import Probe, Standby
from fsm.syncnames import NOBODY, SyncNames, parse_names
from fsm.timing import SYNC_DISTRUST_MS, SYNC_STUCK_MS
from fsm.view import StandbyTrack, View, Waiting


def ordered(waiting: Waiting, names: SyncNames) -> Waiting:
    """What is known once names are ordered: from now on they may be in force, and nothing may rest on them yet."""
    had_none = waiting.names is None or not waiting.names.names
    return Waiting(
        is_key_certain=waiting.is_key_certain,
        names=names,
        # The first ones that nobody has seen begin to count hand that on to those that take their place.
        is_first=had_none or (waiting.is_first and not waiting.is_settled),
        is_settled=not names.names,
        standbys=waiting.standbys,
    )


def released(waiting: Waiting) -> Waiting:
    """What is known once the names are left to the operator: nothing rests on any."""
    return replace(ordered(waiting, NOBODY), is_settled=False)


def looked(view: View, probe: Probe, at_ms: int) -> Waiting:
    """What is known after a look at the primary."""
    waiting = view.waiting
    if waiting.names is None:
        waiting = replace(waiting, names=parse_names(probe.synchronous_standby_names) or NOBODY)
    assert waiting.names is not None
    standbys = _tracks(view, probe, at_ms)
    if probe.synchronous_standby_names != waiting.names.text:
        # With no names in force commits have ceased to wait: they must be seen to begin anew.
        is_first = waiting.is_first or not probe.synchronous_standby_names
        return replace(waiting, is_first=is_first, shown_since_ms=None, mark_lsn=0, is_settled=False, standbys=standbys)
    since_ms = waiting.shown_since_ms if waiting.shown_since_ms is not None else at_ms
    is_settled = waiting.is_settled or _has_caught_up(waiting, waiting.names, view, probe)
    return replace(waiting, shown_since_ms=since_ms, is_settled=is_settled, standbys=standbys)


def marked(waiting: Waiting, names: str, flushed_lsn: int) -> Waiting:
    """What is known once the server was asked how far commits may have been acknowledged under earlier names."""
    is_current = waiting.names is not None and waiting.names.text == names and waiting.shown_since_ms is not None
    return replace(waiting, mark_lsn=flushed_lsn) if is_current else waiting


def _has_caught_up(waiting: Waiting, names: SyncNames, view: View, probe: Probe) -> bool:
    """True when as many of the named as a commit waits for have all WAL up to the mark on disk."""
    if not names.names:
        return True
    reached = {name: lsn for name, lsn in _positions(view, probe, "on").items() if lsn >= waiting.mark_lsn}
    return waiting.mark_lsn > 0 and len({*reached} & {*names.names}) >= names.count


def _positions(view: View, probe: Probe, synchronous_commit: str) -> dict[str, int]:
    """How far each streaming standby is; of one with two connections the one that is less far."""
    members = {name.lower(): name for name in view.members}
    found: dict[str, int] = {}
    for standby in probe.standbys:
        if standby.state == "streaming":
            name = members.get(standby.application_name.lower(), standby.application_name)
            lsn = waited_lsn(standby, synchronous_commit)
            found[name] = min(lsn, found.get(name, lsn))
    return found


def waited_lsn(standby: Standby, synchronous_commit: str) -> int:
    """The position of a standby that commits wait for. Source: PostgreSQL, synchronous_commit."""
    by_level = {"remote_apply": standby.replay_lsn, "remote_write": standby.write_lsn}
    return by_level.get(synchronous_commit, standby.flush_lsn)


def _tracks(view: View, probe: Probe, at_ms: int) -> dict[str, StandbyTrack]:
    positions = _positions(view, probe, probe.synchronous_commit)
    return {name: _track(view, name, lsn, probe.flushed_lsn, at_ms) for name, lsn in positions.items()}


def _track(view: View, name: str, lsn: int, wanted_lsn: int, at_ms: int) -> StandbyTrack:
    before = view.waiting.standbys.get(name)
    if before is None:
        return StandbyTrack(lsn=lsn, moved_at_ms=at_ms)
    if lsn != before.lsn or lsn >= wanted_lsn:
        return StandbyTrack(lsn=lsn, moved_at_ms=at_ms, distrusted_until_ms=before.distrusted_until_ms)
    is_stuck = at_ms - before.moved_at_ms >= SYNC_STUCK_MS
    distrusted_until_ms = at_ms + SYNC_DISTRUST_MS if is_stuck else before.distrusted_until_ms
    return StandbyTrack(
        lsn=lsn, moved_at_ms=before.moved_at_ms, is_stuck=is_stuck, distrusted_until_ms=distrusted_until_ms
    )


def doubled_standbys(view: View) -> tuple[str, ...]:
    """Members that seem to stream over two connections: one of them is a dead standby's that nobody has closed yet."""
    probe = view.server.probe
    streaming = [s.application_name for s in probe.standbys if s.state == "streaming"] if probe else []
    return tuple(sorted({name for name in streaming if streaming.count(name) > 1 and name in view.members}))
