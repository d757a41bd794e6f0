"""What etcd said last of things that nobody but etcd tells, kept by each node where etcd forgets them. Pure.

etcd may come back empty, or a key be deleted by hand. Without its `sync` key any replica might be promoted, and lack
what was acknowledged; without its `config` the cluster would fall back to what some node once began with. So a node
goes on by the last `config` that it saw, whose leader writes it back, and by the last `sync` key that it saw, which
whoever takes the leader key by it writes back in the same transaction.

A remembered `sync` key may be outdated: who was cut off from etcd before it forgot everything may have missed that it
was taken out, or that another led since. So it asks for more than one that etcd holds. A candidate needs the vote of
every other node that the key names, its leader included, and a vote is given by who remembers no later key. Whoever led
next is one of those who are named; each of them tells its WAL, and receives nothing more. An operator who knows better
asks for a failover to a named member, which needs no votes.
"""

from msgspec.structs import replace

from fsm.dynamic import is_configuration, parse_dynamic
from fsm.view import View
from fsm.wire import RememberedSync, SyncKey


def without_keys(view: View) -> View:
    """Forget all that etcd said, but not what this node knows by itself, nor the settings that are in force."""
    return replace(
        view,
        keys={},
        members={},
        failover=None,
        failover_due_at_ms=None,
        sync=SyncKey(),
        failsafe={},
        optime_lsn=0,
        last_timeline=0,
        reserved_timeline=0,
        leader_free_since_ms=None,
    )


def with_config(view: View, text: str | None) -> View:
    """The configuration in force once the `config` key says this; None: there is none any more, or not yet."""
    if text is not None and not is_configuration(text):
        return view
    if text is None and view.has_seen_config:
        return view  # the leader writes it back
    # Before the cluster has a configuration, this node's own first one is the best guess.
    first = view.identity.first_config if view.identity else None
    return replace(view, dynamic=parse_dynamic(text or first), has_seen_config=view.has_seen_config or bool(text))


def with_memory(view: View) -> View:
    """What is remembered once keys have changed. The leader deletes the `sync` key when no mode is on any more."""
    key, config = view.keys.get("sync"), view.keys.get("config")
    if view.initialize and not view.has_seen_identity:
        view = replace(view, has_seen_identity=True)
    if key is not None and key.value is not None:
        found = RememberedSync(key=view.sync, revision=key.mod_revision, text=key.value)
        return replace(view, remembered_sync=found if view.sync.leader is not None else None)
    is_configured = config is not None and config.value is not None
    if is_configured and view.dynamic.synchronous_mode == "off":
        return replace(view, remembered_sync=None)
    return view


def remembered_sync(view: View) -> RememberedSync | None:
    """The last `sync` key that this node saw, where etcd has none although a synchronous mode is on."""
    is_there = view.sync.leader is not None or view.dynamic.synchronous_mode == "off"
    return None if is_there else view.remembered_sync


def deciding_sync(view: View) -> SyncKey:
    """By which `sync` key it is judged who may be promoted: the one in etcd, or else the last one that was there."""
    found = remembered_sync(view)
    return found.key if found is not None else view.sync
