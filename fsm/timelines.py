"""Has this node's WAL gone another way than the leader's? Source: PostgreSQL, "Timelines"; Patroni, pg_rewind rules."""

from fsm.facts import DataDirectory, TimelineHistory
from fsm.view import View

PRIMARY_STATES = frozenset({"in production", "in crash recovery", "shutting down", "shut down"})
"""pg_controldata states of a data directory that was last run as a primary."""


def switchpoint_lsn(history: TimelineHistory, timeline: int) -> int | None:
    """Where the leader's line left `timeline`; None if its line never ran through that timeline."""
    return next((switch.lsn for switch in history.switches if switch.timeline == timeline), None)


def has_running_standby_diverged(timeline: int, position_lsn: int, history: TimelineHistory) -> bool:
    """True when a standby holds WAL of a timeline that the leader left before that WAL, or never had."""
    if timeline == history.timeline:
        return False
    switch_lsn = switchpoint_lsn(history, timeline)
    return switch_lsn is None or position_lsn > switch_lsn


def has_stopped_server_diverged(directory: DataDirectory, history: TimelineHistory, *, is_doubt_a_yes: bool) -> bool:
    """True when a stopped server's data surely went another way than the leader's.

    A standby is judged when it runs: starting it changes nothing that cannot be undone. Of a former primary:

    - cleanly shut down, its last record is the shutdown checkpoint, so it has diverged exactly when that record starts
      at or after the switchpoint;
    - crashed, nobody can say how far its WAL went beyond its last checkpoint: it is started as a standby, which takes
      no connections before it has recovered all of it, and then tells how far that was. Most have nothing of their
      own. Where doubt is a yes, because it does not start, it counts as diverged.
    """
    if not was_primary(directory):
        return False
    if directory.timeline == history.timeline:
        return True  # both wrote a timeline of this number: one of them began it behind the other's back
    switch_lsn = switchpoint_lsn(history, directory.timeline)
    if switch_lsn is None or directory.checkpoint_lsn >= switch_lsn:
        return True
    return directory.control_state != "shut down" and is_doubt_a_yes


def timeline_to_reserve(view: View) -> int:
    """The number that the `timeline` key should hold: of the timeline that this leader is to begin, or is on.

    PostgreSQL takes the number after the newest that the server has heard of. Two servers that never heard of each
    other's promotion both begin, say, timeline 14, perhaps at the same position: then neither PostgreSQL nor pg_rewind
    can tell that they went different ways. Who is not told of the first by WAL is told by etcd.
    Source: PostgreSQL, findNewestTimeLine; pg_rewind, "source and target cluster are on the same timeline".
    """
    probe = view.server.probe
    if probe is None or not probe.in_recovery:
        return max(view.reserved_timeline, view.timeline)
    if has_reserved_in_this_term(view) and view.reserved_timeline > view.timeline:
        return view.reserved_timeline
    return max(view.reserved_timeline, view.timeline, view.last_timeline) + 1


def has_reserved_in_this_term(view: View) -> bool:
    """True when the `timeline` key was written since the leader key was taken; only its holder writes it."""
    leader, reserved = view.keys.get("leader"), view.keys.get("timeline")
    if leader is None or reserved is None:
        return False
    return reserved.mod_revision > (leader.create_revision or leader.mod_revision)


def was_primary(directory: DataDirectory | None) -> bool:
    """True when the data directory was last run as a primary; a base backup was not run at all."""
    return directory is not None and directory.control_state in PRIMARY_STATES and not directory.is_base_backup


def known_history(view: View) -> TimelineHistory | None:
    """The present leader's history if it was read since that leader came to its present timeline."""
    member, read = view.leader_member, view.leader_history
    if member is None or read is None or read.leader != member.name:
        return None
    return read.history if read.history.timeline >= member.timeline and not read.history.in_recovery else None
