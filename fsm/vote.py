"""The promise before the vote: a standby that votes acknowledges no further commit of whoever led before. Pure.

In quorum mode a candidate needs to hear that enough members of the `sync` key hold no more WAL than itself. What they
hold must not grow after they were heard: a former primary that still runs, whatever its lease and its fence say, would
have a commit acknowledged behind the election's back. So who is asked for a vote stops receiving first, and only then
says how far its WAL reaches. What the candidate itself receives meanwhile is not lost: it is on its own disk.

A vote is for one revision of the `sync` key. The leader key is taken only while `sync` is as the candidate knew it, and
whoever takes it writes `sync` anew in the same transaction (TakeLeaderKey): between the vote and the taking nobody else
can have led. Who voted receives again when it sees somebody take the leader key: `sync` has a new revision then. See
docs/adr/0017 and fsm/sync.py; where etcd lost the key, fsm/remembered.py. Precedent: pgconsul, whose voters stop their
WAL receivers.
"""

from fsm.remembered import remembered_sync
from fsm.view import View


def sync_revision(view: View) -> int:
    """The revision of the `sync` key as this node knows it; 0 where there is none."""
    seen = view.keys.get("sync")
    return seen.mod_revision if seen is not None and seen.value is not None else 0


def election_revision(view: View) -> int:
    """The revision of the `sync` key by which this node would be elected, negative for one only remembered; 0: none."""
    found = remembered_sync(view)
    return sync_revision(view) if found is None else -found.revision


def is_outdated(view: View, revision: int) -> bool:
    """True when a candidate stands by a remembered `sync` key, and there is a later one, or this node remembers one."""
    known = view.remembered_sync
    return revision < 0 and (sync_revision(view) > 0 or (known is not None and known.revision > -revision))


def is_voting(view: View) -> bool:
    """True while this node's vote is asked for, or given, for the `sync` key as it stands, or the last one known.

    The question is forgotten as soon as somebody is seen to lead.
    """
    if view.vote is None:
        return False
    asked = view.vote.sync_revision
    return asked == sync_revision(view) or (asked < 0 and not is_outdated(view, asked))


def vote_revision(view: View) -> int:
    """The `sync` key for which this node votes, now that its standby receives nothing, as in `election_revision`."""
    if view.vote is None or not is_voting(view) or not view.etcd.is_watched:
        return 0
    if view.vote.sync_revision < 0 and _has_no_data(view):
        return view.vote.sync_revision  # it holds nothing, and remembers no later key
    return view.vote.sync_revision if has_cut_receiver(view) and _receives_nothing(view) else 0


def _has_no_data(view: View) -> bool:
    """True when this node's data directory is empty: it waits for a leader to copy."""
    return view.server.process == "absent" and view.directory is not None and view.directory.condition == "empty"


def has_cut_receiver(view: View) -> bool:
    """True when the standby was told to stop receiving since the vote was asked for: behind whatever order was under
    way then, and before every later one, none of which names an upstream while this node votes."""
    return view.vote is not None and view.has_achieved("cut-receiver", view.vote.asked_at_ms)


def _receives_nothing(view: View) -> bool:
    """True when a look at the server since then shows neither a receiver nor where one should connect to."""
    probe = view.server.probe
    if probe is None or not probe.in_recovery or view.server.probed_at_ms <= view.achieved.get("cut-receiver", 0):
        return False
    return probe.upstream_host is None and probe.receiver_status is None
