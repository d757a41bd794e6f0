"""Guards about synchronous modes: the `sync` key, and whom the leader's server lets commits wait for."""

from fsm import sync
from fsm.syncnames import STRICTLY_NOBODY
from fsm.timing import SYNC_SETTLE_MS
from fsm.view import View
from fsm.waiting import doubled_standbys


def is_synchronous(view: View) -> bool:
    """A synchronous mode is on."""
    return view.dynamic.synchronous_mode != "off"


def is_asynchronous(view: View) -> bool:
    """No synchronous mode is on."""
    return view.dynamic.synchronous_mode == "off"


def is_sync_key_outdated(view: View) -> bool:
    """The `sync` key should say something else than it does."""
    return sync.next_key(view) is not None


def is_sync_key_left_over(view: View) -> bool:
    """The `sync` key is there although no synchronous mode is on."""
    key = view.keys.get("sync")
    return key is not None and key.value is not None


def has_names_to_order(view: View) -> bool:
    """Commits should wait for others than they do."""
    return sync.names_to_order(view) is not None


def may_names_be_left_over(view: View) -> bool:
    """In this term the names may be those of a synchronous mode still."""
    ordered_at_ms = max(view.state_since_ms, view.achieved.get("set-sync-names", 0))
    return not view.has_achieved("release-sync-names", ordered_at_ms)


def is_sync_mark_wanted(view: View) -> bool:
    """Other names have been in force for a while, and it is not known what was acknowledged before them."""
    waiting = view.waiting
    if waiting.is_settled or waiting.mark_lsn or waiting.shown_since_ms is None or waiting.names == STRICTLY_NOBODY:
        return False
    return view.now_ms >= waiting.shown_since_ms + SYNC_SETTLE_MS


def has_doubled_standby(view: View) -> bool:
    """A member seems to stream over two connections, as seen since the last time that one of them was ended."""
    return bool(doubled_standbys(view)) and view.server.probed_at_ms > view.achieved.get("end-stale-senders", -1)


def is_sync_key_claimed(view: View) -> bool:
    """No synchronous mode is on, or the `sync` key says that nobody but this leader may be promoted after it yet."""
    return is_asynchronous(view) or sync.is_key_ours(view)


def is_waiting_prepared(view: View) -> bool:
    """No synchronous mode is on, or the server would begin to accept writes with the names that the key rests on."""
    probe = view.server.probe
    return is_asynchronous(view) or (
        probe is not None and probe.synchronous_standby_names == sync.first_names(view).text
    )
