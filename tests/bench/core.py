"""How fast the core decides and replays: no servers, one process."""

import time
from statistics import median

from fsm.entries import SnapshotEntry, encode, make_entry
from fsm.events import (
    AgentStarted,
    AnyEvent,
    ClusterRead,
    FenceArmed,
    FenceConnected,
    Identity,
    LeaseHeld,
    ServerProbed,
    Succeeded,
    Ticked,
)
from fsm.facts import KeyChange, Probe, Standby
from fsm.machine import Decision, step
from fsm.replay import Replay
from fsm.view import View
from fsm.wire import compact
from tests.simulation.kernel import S
from tests.simulation.run import run

STEPS = 3_000
SEEDS = (100, 103, 106, 107, 109)
"""Seeds of the simulator with three nodes, in other modes and with other faults."""
LEASE_ID = 7

IDENTITY = Identity(
    name="n1",
    scope="bench",
    api_url="http://127.0.0.1:8008/patroni",
    conn_url="postgres://127.0.0.1:5432/postgres",
)


def _member(name: str, port: int) -> KeyChange:
    fields = {
        "conn_url": f"postgres://127.0.0.1:{port}/postgres",
        "api_url": f"http://127.0.0.1:{port + 1000}/patroni",
        "state": "running",
        "role": "replica",
        "version": "4.1.5",
        "xlog_location": 67_108_960,
        "replay_lsn": 67_108_960,
        "receive_lsn": 67_108_960,
        "replication_state": "streaming",
        "timeline": 1,
    }
    return KeyChange(key=f"members/{name}", value=compact(fields), mod_revision=20)


def _probe(lsn: int) -> Probe:
    standbys = tuple(Standby(application_name=name, state="streaming", flush_lsn=lsn) for name in ("n2", "n3"))
    return Probe(
        in_recovery=False,
        timeline=1,
        system_id="7000000000000000001",
        server_version=180004,
        postmaster_started_at="2026-01-01 00:00:00+00:00",
        flushed_lsn=lsn,
        standbys=standbys,
    )


def idle_leader() -> View:
    """A leader of three nodes as it is most of the time, reached through the machine itself."""
    keys = (
        KeyChange(key="initialize", value="7000000000000000001", mod_revision=5),
        KeyChange(key="config", value='{"ttl":30,"loop_wait":10}', mod_revision=6),
        KeyChange(key="leader", value="n1", mod_revision=7, lease_id=LEASE_ID),
        _member("n2", 5433),
        _member("n3", 5434),
    )
    view = View()
    events: list[AnyEvent] = [
        AgentStarted(at_ms=1_000, identity=IDENTITY, boot="", wall=""),
        FenceConnected(at_ms=1_000, pid=99, armed_until_ms=30_000),
        ClusterRead(at_ms=1_000, revision=20, keys=keys),
        ServerProbed(at_ms=1_001, pid=99, probe=_probe(67_108_960)),
    ]
    for event in events:
        view = step(view, event).view
    lease = LeaseHeld(lease_id=LEASE_ID, ttl_s=30, sent_at_ms=1_001, asked_ttl_s=30)
    view = _answer(view, "grant-lease", lease)
    for at_ms in range(1_002, 1_010):
        view = step(view, Ticked(at_ms=at_ms)).view
    view = _answer(view, "arm-fence", FenceArmed(until_ms=view.writable_until_ms))
    assert view.state == "leader", view.state
    return view


def _answer(view: View, duty: str, result: LeaseHeld | FenceArmed) -> View:
    underway = view.underway[duty]
    event = Succeeded(at_ms=view.now_ms, effect_id=underway.effect_id, duty=duty, result=result)
    return step(view, event).view


def step_us() -> list[float]:
    """Microseconds of each of many steps of an idle leader: probes, whose WAL position moves."""
    view = idle_leader()
    events = [ServerProbed(at_ms=1_100 + i, pid=99, probe=_probe(67_108_960 + i * 100)) for i in range(STEPS)]
    spans = []
    for event in events:
        began_ns = time.perf_counter_ns()
        view = step(view, event).view
        spans.append((time.perf_counter_ns() - began_ns) / 1_000)
    return spans


def replay_per_s() -> list[float]:
    """Entries decided again a second, decoding included, in several rounds."""
    view = idle_leader()
    snapshot = encode(SnapshotEntry(seq=view.seq, node="n1", wall="", view=view))
    bodies = []
    for i in range(STEPS):
        event = ServerProbed(at_ms=1_100 + i, pid=99, probe=_probe(67_108_960 + i * 100))
        decision: Decision = step(view, event)
        bodies.append(encode(make_entry(decision, event, boot="", wall="2026-01-01T00:00:00.000000+00:00")))
        view = decision.view
    return [_replay_rate(snapshot, bodies) for _ in range(5)]


def _replay_rate(snapshot: bytes, bodies: list[bytes]) -> float:
    run = Replay()
    run.take("snapshot", snapshot)
    began_ns = time.perf_counter_ns()
    for body in bodies:
        assert run.take("entry", body) is None
    return len(bodies) / ((time.perf_counter_ns() - began_ns) / 1e9)


def simulated_s_per_s() -> list[float]:
    """Virtual seconds of a simulated cluster of three nodes under faults, a second of one core; one figure a seed."""
    rates = []
    for seed in SEEDS:
        began_ns = time.process_time_ns()
        ending = run(seed)
        assert ending.broken is None, ending.broken
        assert len(ending.cluster.nodes) == 3
        rates.append(ending.at_us / S / ((time.process_time_ns() - began_ns) / 1e9))
    return rates


if __name__ == "__main__":
    print(f"step: {median(step_us()):.1f} us; replay: {median(replay_per_s()):,.0f} entries/s")
    print(f"simulator: {median(simulated_s_per_s()):,.0f} x real time")
