"""Guards about the dynamic configuration, and whether the running server was told it."""

from fsm.guards.server import is_primary_running, is_standby_running
from fsm.view import View


def is_configuration_unapplied(view: View) -> bool:
    """The server was not told the configuration that is in etcd."""
    key = view.keys.get("config")
    return key is not None and key.value is not None and view.server.config_revision != key.mod_revision


def is_server_settled(view: View) -> bool:
    """The server runs as what it is, not on its way to another role or upstream."""
    if is_primary_running(view):
        return True
    # Where it streams from is taken from its last answer, which must not be older than the last change of that.
    return is_standby_running(view) and view.server.probed_at_ms > view.achieved.get("follow", -1)


def is_replay_paused(view: View) -> bool:
    """The standby has stopped replaying, be it that somebody asked for it or that it cannot go on."""
    probe = view.server.probe
    return probe is not None and probe.in_recovery and probe.replay_paused


def is_too_small_for_its_wal(view: View) -> bool:
    """A parameter of the running standby is lower than its primary's, so it cannot go on replaying."""
    return bool(view.server.too_low)
