"""What a node tells Prometheus: Patroni's families under Patroni's names, from what the node knows. Pure.

Source: Patroni, GET /metrics; Prometheus, "Exposition formats" (text).
"""

from datetime import datetime
from typing import Literal, NamedTuple

from fsm.facts import Probe
from fsm.fencing import fence_metrics
from fsm.status import (
    Standing,
    is_quorum_standby,
    is_synchronous_standby,
    replication_state,
    shown_state,
)
from fsm.view import View
from fsm.wire import PATRONI_VERSION, failover_priority, is_barred_by_tags

STATES = (
    "initializing new cluster",
    "initdb failed",
    "running custom bootstrap script",
    "custom bootstrap failed",
    "creating replica",
    "running",
    "starting",
    "starting after custom bootstrap",
    "start failed",
    "restarting",
    "restart failed",
    "stopping",
    "stopped",
    "stop failed",
    "crashed",
)
"""A server's states by their numbers, which never change; -1 is any other. Source: Patroni, patroni_postgres_state."""


class Family(NamedTuple):
    """One metric: its name without the prefix, what it tells, and its value."""

    name: str
    kind: Literal["gauge", "counter"]
    tells: str
    value: float | str
    remark: str = ""


def metrics_text(view: View, standing: Standing, dcs_last_seen_s: int, now_ms: int) -> str:
    """All metrics of a node, in Patroni's order; behind them Matriarch's own.

    Args:
        view: what the node knows.
        standing: what of it holds at the instant of the question.
        dcs_last_seen_s: when etcd was last heard, as a Unix time.
        now_ms: the instant of the question.
    """
    scope = view.identity.scope if view.identity else ""
    labels = f'{{scope="{_escaped(scope)}",name="{_escaped(view.name)}"}}'
    lines = []
    for family in (*_of_server(view, standing), *_of_cluster(view, standing, dcs_last_seen_s)):
        name = f"patroni_{family.name}"
        lines += [f"# HELP {name} {family.tells}", f"# TYPE {name} {family.kind}"]
        lines += [family.remark] if family.remark else []
        lines.append(f"{name}{labels} {family.value}")
    for own, kind, tells, value in fence_metrics(view, now_ms):
        name = f"matriarch_fence_{own}"
        lines += [f"# HELP {name} {tells}.", f"# TYPE {name} {kind}", f"{name}{labels} {value}"]
    return "\n".join([*lines, ""])


def _flag(name: str, tells: str, fact: object) -> Family:
    return Family(name, "gauge", f"1 if {tells}, 0 if not.", 1 if fact else 0)


def _number(name: str, tells: str, value: float | str) -> Family:
    return Family(name, "gauge", f"{tells}.", value)


def _lsn(name: str, tells: str, lsn: int) -> Family:
    return Family(name, "counter", f"{tells}, in bytes of WAL; 0 if that does not apply.", lsn)


def _of_server(view: View, standing: Standing) -> list[Family]:
    probe = view.server.probe
    standby = probe if probe is not None and probe.in_recovery else None
    primary = probe if probe is not None and not probe.in_recovery else None
    started_at = _unix_time(probe.postmaster_started_at if probe else None)
    return [
        _number("version", "Version of Patroni whose API this is, two digits a part", _version()),
        _flag("postgres_running", "PostgreSQL runs", shown_state(view, standing) == "running"),
        _number("postmaster_start_time", "Unix time at which PostgreSQL was started", started_at),
        _flag("primary", "PostgreSQL is a primary", primary),
        _lsn("xlog_location", "How far a primary has written", primary.flushed_lsn if primary else 0),
        _flag("standby_leader", "this node leads a standby cluster", None),
        _flag("replica", "PostgreSQL is a standby", standby),
        _flag("sync_standby", "commits wait for this standby", standby and is_synchronous_standby(view)),
        _flag("quorum_standby", "this standby is in the quorum", standby and is_quorum_standby(view)),
        *_of_standby(standby),
        _number("postgres_server_version", "server_version_num", probe.server_version if probe else 0),
    ]


def _of_standby(probe: Probe | None) -> list[Family]:
    is_streaming = probe is not None and replication_state(probe) == "streaming"
    return [
        _lsn("xlog_received_location", "How far a standby has received", probe.position_lsn if probe else 0),
        _lsn("xlog_replayed_location", "How far a standby has replayed", probe.replayed_lsn if probe else 0),
        _number(
            "xlog_replayed_timestamp",
            "Unix time of the last transaction that a standby replayed, 0 if there is none",
            _unix_time(probe.replayed_at if probe else None),
        ),
        _flag("xlog_paused", "replay is paused", probe and probe.replay_paused),
        _flag("postgres_streaming", "PostgreSQL is a standby that streams", is_streaming),
        _flag("postgres_in_archive_recovery", "PostgreSQL replays from the archive", None),
    ]


def _of_cluster(view: View, standing: Standing, dcs_last_seen_s: int) -> list[Family]:
    probe = view.server.probe
    state = shown_state(view, standing)
    number = STATES.index(state) if state in STATES else -1
    remark = "# Values: " + ", ".join(f"{number}={name}" for number, name in enumerate(STATES)) + ", -1=unknown"
    is_unlocked = view.leader is None or not standing.has_cluster_view
    is_listed = view.dynamic.failsafe_mode and view.name in view.failsafe
    return [
        _flag("cluster_unlocked", "nobody leads the cluster or etcd is not heard", is_unlocked),
        _flag("failsafe_mode_is_active", "members stand in for etcd", standing.is_failsafe_active),
        _flag("failsafe_mode_enabled", "failsafe_mode is on", view.dynamic.failsafe_mode),
        _flag("failsafe_member", "this node is asked in etcd's place", is_listed),
        _number("postgres_timeline", "Timeline of PostgreSQL, 0 if unknown", probe.timeline if probe else 0),
        _number("dcs_last_seen", "Unix time at which etcd was last heard", dcs_last_seen_s),
        _flag("pending_restart", "a parameter waits for a restart", probe and probe.pending_restart),
        _flag("is_paused", "the cluster is paused", view.dynamic.pause),
        Family("postgres_state", "gauge", "State of PostgreSQL, as a number.", number, remark),
        _number("failover_priority", "Tag failover_priority, 0 if a failover here is forbidden", _priority(view)),
    ]


def _priority(view: View) -> int:
    tags = dict(view.identity.tags) if view.identity else {}
    return 0 if is_barred_by_tags(tags) else max(0, failover_priority(tags))


def _version() -> str:
    return "".join(f"{int(part):02}" for part in PATRONI_VERSION.split("."))


def _unix_time(text: str | None) -> float:
    """A timestamp as PostgreSQL's JSON writes it, in seconds; 0 for none."""
    try:
        return datetime.fromisoformat(text).timestamp() if text else 0
    except ValueError:
        return 0


def _escaped(text: str) -> str:
    """A label's value. Source: Prometheus, "Exposition formats"."""
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
