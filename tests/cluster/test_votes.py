"""The promise before the vote, on real servers: a former primary that nothing has ended acknowledges nothing more."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest

from api.cli.demo import processes
from api.cli.demo.cluster import DemoNode
from effects.clock import now_ms
from effects.etcd import EtcdClient
from effects.etcd_types import delete
from tests.cluster.harness import PREFIX, RealCluster, running_cluster
from tests.cluster.witnesses import (
    ask_primary,
    ask_server,
    frozen_processes,
    processes_like,
    read_key,
    server_connection,
    tell_primary,
    until,
    until_led_by_another,
    until_synchronous,
)

STARTUP = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'startup'"

pytestmark = [pytest.mark.anyio, pytest.mark.servers]


class Stubborn:
    """A client that goes on committing at one server whatever becomes of the cluster, and knows what it was told."""

    def __init__(self, real: RealCluster, name: str) -> None:
        self._real, self._name = real, name
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._commit)
        self.acknowledged: list[tuple[int, int]] = []
        """Ids, and when each was acknowledged."""

    def __enter__(self) -> "Stubborn":
        tell_primary(self._real, "CREATE TABLE stubborn (id bigint PRIMARY KEY)")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _commit(self) -> None:
        number = 0
        try:
            with server_connection(self._real, self._name) as connection:
                while not self._is_over.is_set():
                    connection.execute("INSERT INTO stubborn VALUES (%s)", (number,))
                    self.acknowledged.append((number, now_ms()))
                    number += 1
        except psycopg.Error:
            pass  # its server ended


@contextmanager
def without_its_keepers(node: DemoNode) -> Iterator[None]:
    """Agent and fence stand still, so nobody ends the server when its lease does. No product can promise more."""
    fence = processes.fence_of(node.state_dir)
    assert fence is not None
    node.freeze()
    processes.send(fence, signal.SIGSTOP)
    try:
        yield
    finally:
        processes.send(fence, signal.SIGCONT)
        node.bring_back()


async def take_the_key_away(real: RealCluster) -> None:
    """The leader key is gone at once, without its leader's doing."""
    async with EtcdClient(list(real.cluster.etcd_cluster.endpoints)) as client:
        await client.transact([], [delete(f"{PREFIX}leader")], timeout_ms=5_000)


async def test_former_primary_acknowledges_nothing_more_when_nothing_has_ended_it() -> None:
    """Its deadline lies ahead, its standbys are connected, its clients commit: an election happens all the same.

    In quorum mode one of two acknowledges; so both must have left the former primary before one of them leads. As long
    as they cannot, because the process that would end the receiver stands still, nobody leads.
    """
    dynamic = {"synchronous_mode": "quorum", "ttl": 60, "failsafe_mode": False}
    async with running_cluster(dynamic=dynamic) as (real, _):
        await until_synchronous(real, lambda key: len(key.members) == 2 and key.quorum == 1)
        old = real.leader
        with Stubborn(real, old.name) as client:
            await until(lambda: len(client.acknowledged) > 100)
            startups = [pid for node in real.replicas for pid in processes_like(real, node.name, STARTUP)]
            with without_its_keepers(old):
                with frozen_processes(startups):
                    await take_the_key_away(real)
                    since_ms, told_before = now_ms(), len(client.acknowledged)
                    await until(lambda: now_ms() > since_ms + 3_000)
                    assert await read_key(real, "leader") is None
                    assert len(client.acknowledged) > told_before + 50
                await until_led_by_another(real, old.name)
                told_before, since_ms = len(client.acknowledged), now_ms()
                await until(lambda: now_ms() > since_ms + 1_500)
                assert len(client.acknowledged) == told_before
                assert ask_server(real, old.name, "SELECT NOT pg_is_in_recovery()"), "the former primary runs"
            await real.settled()
        kept = ask_primary(real, "SELECT array_agg(id) FROM stubborn")
        assert {number for number, _ in client.acknowledged} - set(kept) == set()
