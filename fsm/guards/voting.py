"""Guards about the vote that a candidate asks of this node in quorum mode. See fsm/vote.py."""

from fsm import vote
from fsm.view import View


def is_vote_wanted(view: View) -> bool:
    """A candidate asked for this node's vote, for the `sync` key as it stands, and nobody was seen to lead since."""
    return vote.is_voting(view)


def may_still_receive(view: View) -> bool:
    """The standby was not told to stop receiving since, or looks as if it did not listen."""
    probe, told_at_ms = view.server.probe, view.achieved.get("cut-receiver", 0)
    if not vote.has_cut_receiver(view):
        return True
    return probe is not None and probe.upstream_host is not None and view.server.probed_at_ms > told_at_ms
