"""The lease of a leader, with the real loop and the real lanes, against an etcd that fails in each way.

Nothing but etcd's own word that the lease is gone ends the leadership before its deadline; nothing delays a renewal.
The faults of one test are tried side by side, each with an etcd and an agent of its own: a lease takes seconds to end.
"""

import os
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from effects.agent import Agent
from effects.clock import now_ms
from effects.etcd import EtcdClient
from effects.keys import ClusterKeys
from effects.lanes import Lane, Perform
from effects.log import TransitionLog
from effects.sources import EtcdSource
from fsm import effects as do
from fsm.events import AnyResult, Done, FenceArmed, FenceConnected, ServerProbed
from fsm.states import State
from fsm.view import View
from tests.effects import etcd_stub as stubs
from tests.effects.etcd_stub import Fault, StubEtcd
from tests.effects.etcd_watching import PATIENCE_S
from tests.views import identity, primary_probe

pytestmark = pytest.mark.anyio

TTL_S = 3
PREFIX = "/service/demo/"
LEADER = f"{PREFIX}leader"
PID = 4_000_000
RENEWALS = 5
"""More than fit into one life of the lease."""
ETCD_LANES = ("lease", "leader", "sync", "keys")


async def never(effect: do.Effect) -> AnyResult:
    """Hangs, as SQL, disks and peers do."""
    await anyio.sleep_forever()
    return Done()


async def arm(effect: do.ArmFence) -> AnyResult:
    """The fence answers at once."""
    return FenceArmed(until_ms=effect.until_ms)


async def done(effect: do.Effect) -> AnyResult:
    """It is done."""
    return Done()


def hanging_lanes(agent: Agent, of_etcd: list[Lane]) -> list[Lane]:
    """The lanes of etcd and a fence that answers; every other one hangs for ever with the first thing it is told."""
    performed = {kind for lane in of_etcd for kind in lane.kinds}
    performers: dict[str, dict[type[do.Effect], Perform]] = {}
    for kind in do.AnyEffect.__args__:
        if kind not in performed and kind is not do.Exit:
            answer: Perform = arm if kind is do.ArmFence else done if kind.resource == "fence" else never
            performers.setdefault(kind.resource, {})[kind] = answer
    return [*of_etcd, *(Lane(name, found, agent.report) for name, found in performers.items())]  # type: ignore[arg-type]


@asynccontextmanager
async def leading(etcd: StubEtcd, directory: Path) -> AsyncIterator[Agent]:
    """An agent that leads: it found a primary running, for which the key names this node."""
    etcd.leases[7] = (60, now_ms() + 60_000)
    etcd.put(f"{PREFIX}initialize", primary_probe().system_id)
    etcd.put(f"{PREFIX}config", f'{{"ttl":{TTL_S}}}')
    etcd.put(LEADER, "n1", 7)
    log, recovered = TransitionLog.open(directory / "log")
    agent = Agent(identity("n1"), "boot", log, recovered.last_seq)
    async with EtcdClient([etcd.address]) as client, anyio.create_task_group() as tasks:
        keys = ClusterKeys(client, PREFIX, "n1", "{}")
        source = EtcdSource(client, PREFIX, agent.report, lambda: 1_000)
        await tasks.start(log.run)
        await tasks.start(agent.run, hanging_lanes(agent, keys.lanes(agent.report)))
        tasks.start_soon(source.run)
        agent.report(FenceConnected(at_ms=now_ms(), pid=PID, armed_until_ms=now_ms() + 60_000))
        agent.report(ServerProbed(at_ms=now_ms(), pid=PID, probe=primary_probe()))
        await until(agent, lambda view: view.state is State.LEADER)
        await until(agent, lambda view: view.leadership_until_ms > 0)
        yield agent
        tasks.cancel_scope.cancel()


async def until(agent: Agent, holds: Callable[[View], bool]) -> View:
    """The first view of which it is so."""
    with anyio.fail_after(PATIENCE_S):
        while not holds(agent.board.current.view):
            await agent.board.changed()
    return agent.board.current.view


async def until_renewed(agent: Agent, etcd: StubEtcd, times: int) -> View:
    """What the agent knows after so many more renewals, or once it does not lead any more."""
    wanted = len(etcd.renewed_at_ms) + times
    with anyio.fail_after(PATIENCE_S):
        while len(etcd.renewed_at_ms) < wanted and agent.board.current.view.state is State.LEADER:
            await agent.board.changed()  # as every renewal that is answered does, and every one that is not
    return agent.board.current.view


@pytest.fixture
async def etcd() -> AsyncIterator[StubEtcd]:
    """An etcd that is well until a test says otherwise, and that ends leases that are not renewed."""
    async with StubEtcd().running() as stub:
        yield stub


@pytest.fixture
def held_disk(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """The log's disk hangs until this is set."""
    released = threading.Event()
    real = os.fdatasync

    def held(fd: int) -> None:
        released.wait(PATIENCE_S)
        real(fd)

    monkeypatch.setattr(os, "fdatasync", held)
    return released


async def test_renewals_keep_their_pace_when_sql_server_peers_and_the_log_hang(
    etcd: StubEtcd, tmp_path: Path, held_disk: threading.Event
) -> None:
    """The key outlives several lives of its lease, though all else stands still, the disk of the log included."""
    try:
        async with leading(etcd, tmp_path) as agent:
            term_ms = agent.board.current.view.state_since_ms
            await until(agent, lambda view: {"sql", "server"} <= {u.resource for u in view.underway.values()})
            view = await until_renewed(agent, etcd, RENEWALS)
            assert (view.state, view.state_since_ms) == (State.LEADER, term_ms)
            assert etcd.value(LEADER) == "n1"
            assert view.now_ms < view.writable_until_ms
    finally:
        held_disk.set()


PASSING = {
    "no leader": stubs.NO_LEADER,
    "no lessor": stubs.NO_LESSOR,
    "timed out": stubs.TIMED_OUT,
    "leader changed": stubs.LEADER_CHANGED,
    "too many requests": stubs.TOO_MANY,
    "not authorised": stubs.DENIED,
    "bad token": stubs.BAD_TOKEN,
    "no answer": stubs.SILENT,
    "no answer but applied": stubs.SILENT_BUT_APPLIED,
    "cut": stubs.CUT,
    "cut but applied": stubs.CUT_BUT_APPLIED,
    "slow": Fault(delay_ms=600),
}


async def test_leader_goes_on_when_renewals_fail_for_a_while_in_whatever_way(tmp_path: Path) -> None:
    """The lease is etcd's to end, and the deadline's, and nobody else's."""
    ended: dict[str, tuple[State, bool]] = {}

    async def outlast(name: str, fault: Fault) -> None:
        async with StubEtcd().running() as etcd, leading(etcd, tmp_path / name) as agent:
            term_ms = agent.board.current.view.state_since_ms
            etcd.faults["LeaseKeepAlive"].extend([fault, fault])
            view = await until_renewed(agent, etcd, 2)
            assert not etcd.faults["LeaseKeepAlive"], name
            ended[name] = (view.state, view.state_since_ms == term_ms)

    await side_by_side(outlast, PASSING)
    assert ended == dict.fromkeys(PASSING, (State.LEADER, True))


LASTING = {
    "no leader": stubs.NO_LEADER,
    "not authorised": stubs.DENIED,
    "no answer": stubs.SILENT,
    "no answer but applied": stubs.SILENT_BUT_APPLIED,
    "cut": stubs.CUT,
    "slow": Fault(delay_ms=5_000),
}


async def test_leader_steps_down_at_its_deadline_and_not_before_when_no_renewal_is_confirmed(tmp_path: Path) -> None:
    """Unknown is never "now": the leader serves until the last instant that a confirmed renewal allows."""
    ended: dict[str, tuple[str | None, bool]] = {}

    async def outlast(name: str, fault: Fault) -> None:
        async with StubEtcd().running() as etcd, leading(etcd, tmp_path / name) as agent:
            etcd.always["LeaseKeepAlive"] = fault
            view, deadline_ms = await until_over(agent)
            ended[name] = (view.last_rule, view.state_since_ms >= deadline_ms)

    await side_by_side(outlast, LASTING)
    assert all(ended[name] in (("L4", True), ("L1", True)) for name in LASTING), ended


async def side_by_side(play: Callable[[str, Fault], Coroutine[Any, Any, None]], faults: dict[str, Fault]) -> None:
    """Plays the story with each fault, all at once."""
    async with anyio.create_task_group() as tasks:
        for name, fault in faults.items():
            tasks.start_soon(play, name, fault)


async def until_over(agent: Agent) -> tuple[View, int]:
    """The first view in which the agent does not lead, and the last instant until which it was allowed to."""
    deadline_ms = 0
    with anyio.fail_after(PATIENCE_S):
        while agent.board.current.view.state is State.LEADER:
            deadline_ms = max(deadline_ms, agent.board.current.view.writable_until_ms)
            await agent.board.changed()
    return agent.board.current.view, deadline_ms


async def test_leader_steps_down_at_once_when_etcd_says_that_its_lease_is_gone(etcd: StubEtcd, tmp_path: Path) -> None:
    """The key is gone with it, and another may have it already."""
    async with leading(etcd, tmp_path) as agent:
        etcd.always["LeaseKeepAlive"] = stubs.LEASE_NOT_FOUND
        view, deadline_ms = await until_over(agent)
        assert view.state_since_ms < deadline_ms


async def test_leader_steps_down_at_once_when_the_key_is_anothers(etcd: StubEtcd, tmp_path: Path) -> None:
    """Told by the watch."""
    async with leading(etcd, tmp_path) as agent:
        etcd.put(LEADER, "n2", 9)
        view = await until(agent, lambda view: view.state is not State.LEADER)
        assert view.last_rule == "L1"
