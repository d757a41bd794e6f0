"""Views written by hand: a leader and a standby of one small cluster, all well unless a test says otherwise."""

from typing import Any

from msgspec.structs import replace

from fsm.dynamic import Dynamic
from fsm.events import Identity
from fsm.facts import Key, Probe, Standby
from fsm.states import State
from fsm.view import Etcd, Lease, Server, View
from fsm.wire import compact, parse_member

NOW_MS = 1_000_000
TTL_S = 30
LEASE_ID = 7
POSITION_LSN = 0x5000148


def identity(name: str, **tags: Any) -> Identity:
    """A node of the cluster `demo`."""
    return Identity(
        name=name,
        scope="demo",
        api_url=f"http://{name}.test:8008/patroni",
        conn_url=f"postgres://{name}.test:5432/postgres",
        tags=tags,
    )


def primary_probe(*standbys: str, **changes: Any) -> Probe:
    """A primary from which these members stream."""
    found = Probe(
        in_recovery=False,
        timeline=3,
        system_id="7000000000000000001",
        server_version=160014,
        postmaster_started_at="2026-01-31 12:00:00.123456+00:00",
        flushed_lsn=POSITION_LSN,
        standbys=tuple(
            Standby(application_name=name, state="streaming", usename="replicator", client_addr="10.0.0.2")
            for name in standbys
        ),
    )
    return replace(found, **changes)


def standby_probe(**changes: Any) -> Probe:
    """A standby that streams and has replayed everything."""
    found = Probe(
        in_recovery=True,
        timeline=3,
        system_id="7000000000000000001",
        server_version=160014,
        postmaster_started_at="2026-01-31 12:00:00.123456+00:00",
        received_lsn=POSITION_LSN,
        replayed_lsn=POSITION_LSN,
        replayed_at="2026-01-31 12:30:00.000001+00:00",
        receiver_status="streaming",
    )
    return replace(found, **changes)


def member_key(name: str, **fields: Any) -> Key:
    """The key of a member, which hangs on a lease of its own."""
    who = identity(name)
    fields = {"conn_url": who.conn_url, "api_url": who.api_url, "state": "running", **fields}
    return Key(value=compact(fields), mod_revision=10, create_revision=10, lease_id=LEASE_ID)


def cluster_keys(leader: str | None = "n1") -> dict[str, Key]:
    """The keys of a cluster in which n1 is primary and n2 its standby."""
    found = {
        "members/n1": member_key("n1", role="primary", xlog_location=POSITION_LSN, timeline=3),
        "members/n2": member_key(
            "n2",
            role="replica",
            xlog_location=POSITION_LSN - 40,
            replay_lsn=POSITION_LSN - 48,
            receive_lsn=POSITION_LSN - 40,
            replication_state="streaming",
            timeline=3,
        ),
        "config": Key(value='{"ttl":30,"loop_wait":10}', mod_revision=3),
    }
    if leader is not None:
        found["leader"] = Key(value=leader, mod_revision=12, create_revision=12, lease_id=LEASE_ID)
    return found


def view_of(name: str, state: State, probe: Probe | None) -> View:
    """What a node knows that is told everything."""
    keys = cluster_keys()
    members = {
        key.removeprefix("members/"): parse_member(key.removeprefix("members/"), found.value or "")
        for key, found in keys.items()
        if key.startswith("members/")
    }
    server = Server(process="running", pid=42, probe=probe, probed_at_ms=NOW_MS - 20, may_be_primary=False)
    return View(
        state=state,
        seq=50,
        now_ms=NOW_MS - 10,
        identity=identity(name),
        etcd=Etcd(is_watched=True, revision=20),
        keys=keys,
        members=members,
        dynamic=Dynamic(ttl_s=TTL_S),
        optime_lsn=POSITION_LSN,
        lease=Lease(lease_id=LEASE_ID, ttl_s=TTL_S, asked_ttl_s=TTL_S, sent_at_ms=NOW_MS - 1_000),
        server=server,
    )


def leader_view(**changes: Any) -> View:
    """What n1 knows while it leads."""
    return replace(view_of("n1", State.LEADER, primary_probe("n2")), **changes)


def standby_view(**changes: Any) -> View:
    """What n2 knows while n1 leads."""
    return replace(view_of("n2", State.REPLICA, standby_probe()), **changes)


def with_key(view: View, name: str, key: Key) -> View:
    """The view with another key."""
    return replace(view, keys={**view.keys, name: key})


def with_server(view: View, **changes: Any) -> View:
    """The view with another server."""
    return replace(view, server=replace(view.server, **changes))
