"""The etcd client against real etcd servers: answers, refusals, lost answers, frozen and dead endpoints."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Iterator
from pathlib import Path

import anyio
import pytest

from effects.clock import now_ms
from effects.embedded import EmbeddedEtcd, EmbeddedEtcdCluster, free_ports
from effects.errors import (
    EtcdError,
    EtcdOutcomeUnknown,
    EtcdUnavailable,
    LeaseGone,
    WatchCompacted,
)
from effects.etcd import EtcdClient
from effects.etcd_types import WatchBatch, absent, delete, lease_is, mod_revision_is, put, value_is
from effects.etcd_wire import etcdrpc
from tests.effects.etcd_watching import PATIENCE_S, TIMEOUT_MS, Watching, values_below

pytestmark = [pytest.mark.anyio, pytest.mark.servers]


@pytest.fixture
async def client(etcd_server: EmbeddedEtcd) -> AsyncIterator[EtcdClient]:
    """A client of the etcd that all tests share."""
    async with EtcdClient([etcd_server.endpoint]) as client:
        yield client


@pytest.fixture
def own_etcd(tmp_path: Path) -> Iterator[EmbeddedEtcd]:
    """An etcd for one test, to be killed, frozen or set up in its own way."""
    with EmbeddedEtcd(tmp_path, is_fsync_off=True) as server:
        yield server


@pytest.fixture(scope="module")
def cluster(open_directory: Path) -> Iterator[EmbeddedEtcdCluster]:
    """Three etcd members; a test that stops one must start it again."""
    with EmbeddedEtcdCluster(open_directory / "etcd-cluster", is_fsync_off=True) as cluster:
        yield cluster


@contextlib.contextmanager
def frozen(*servers: EmbeddedEtcd) -> Iterator[None]:
    """The servers stand still inside."""
    for server in servers:
        server.freeze()
    try:
        yield
    finally:
        for server in servers:
            server.thaw()
        for server in servers:
            server.wait_until_healthy()


# Keys and transactions -----------------------------------------------------------------------------------------------


async def test_read_prefix_returns_only_keys_below_it_when_others_are_near(client: EtcdClient, prefix: str) -> None:
    """Neither the key before nor the key after a prefix belongs to it."""
    stem = prefix.rstrip("/")
    written = await client.transact(
        [], [put(stem, "before"), put(prefix + "a", "ä"), put(stem + "0", "after")], timeout_ms=TIMEOUT_MS
    )
    read = await client.read_prefix(prefix, timeout_ms=TIMEOUT_MS)
    assert [(kv.key, kv.value, kv.lease_id, kv.mod_revision) for kv in read.keys] == [
        (prefix + "a", "ä", 0, written.revision)
    ]
    assert read.revision >= written.revision


async def test_transact_applies_once_when_many_race_for_a_key(etcd_server: EmbeddedEtcd, prefix: str) -> None:
    """Of many clients that create the same key exactly one is told that it did."""
    applied: list[str] = []

    async def stand(name: str) -> None:
        async with EtcdClient([etcd_server.endpoint]) as racer:
            done = await racer.transact(
                [absent(prefix + "leader")], [put(prefix + "leader", name)], timeout_ms=TIMEOUT_MS
            )
            if done.applied:
                applied.append(name)

    async with anyio.create_task_group() as racers:
        for number in range(8):
            racers.start_soon(stand, f"n{number}")
    async with EtcdClient([etcd_server.endpoint]) as client:
        assert await values_below(client, prefix) == {"leader": applied[0]}
    assert len(applied) == 1


async def test_transact_reads_the_winner_when_a_compare_is_false(client: EtcdClient, prefix: str) -> None:
    """The loser of a race learns who holds the key from the same transaction."""
    key = prefix + "leader"
    won = await client.transact([absent(key)], [put(key, "n1")], timeout_ms=TIMEOUT_MS, else_read=key)
    lost = await client.transact([absent(key)], [put(key, "n2")], timeout_ms=TIMEOUT_MS, else_read=key)
    assert (won.applied, won.found, lost.applied) == (True, None, False)
    assert lost.found is not None
    assert (lost.found.value, lost.found.mod_revision) == ("n1", won.revision)


async def test_transact_judges_each_compare_when_true_and_false(client: EtcdClient, prefix: str) -> None:
    """Every kind of compare holds on the right value and fails on a wrong one or a missing key."""
    key, missing = prefix + "key", prefix + "missing"
    lease = await client.grant_lease(60, timeout_ms=TIMEOUT_MS)
    written = await client.transact([], [put(key, "x", lease.lease_id)], timeout_ms=TIMEOUT_MS)
    true = [value_is(key, "x"), mod_revision_is(key, written.revision), lease_is(key, lease.lease_id), absent(missing)]
    false = [
        value_is(key, "y"),
        value_is(missing, "x"),
        mod_revision_is(key, 1),
        lease_is(key, 1),
        lease_is(missing, lease.lease_id),
        absent(key),
    ]
    assert (await client.transact(true, [], timeout_ms=TIMEOUT_MS)).applied
    for compare in false:
        assert not (await client.transact([compare], [], timeout_ms=TIMEOUT_MS)).applied, compare
    assert (await client.transact(true, [delete(key)], timeout_ms=TIMEOUT_MS)).applied
    assert await values_below(client, prefix) == {}


# Leases --------------------------------------------------------------------------------------------------------------


async def test_lease_takes_its_keys_along_when_it_expires(client: EtcdClient, prefix: str) -> None:
    """A key bound to a lease that nobody renews disappears, and the watch tells."""
    lease = await client.grant_lease(1, timeout_ms=TIMEOUT_MS)
    written = await client.transact([], [put(prefix + "leader", "n1", lease.lease_id)], timeout_ms=TIMEOUT_MS)
    watch = Watching(client, prefix, written.revision + 1)
    gone = (await watch.changes(1))[0]
    await watch.aclose()
    assert lease.ttl_s >= 2, "etcd grants 2 s at least, and says so"
    assert (gone.key, gone.value) == (prefix + "leader", None)
    with pytest.raises(LeaseGone):
        await client.renew_lease(lease.lease_id, timeout_ms=TIMEOUT_MS)
    with pytest.raises(LeaseGone):
        await client.transact([], [put(prefix + "leader", "n1", lease.lease_id)], timeout_ms=TIMEOUT_MS)


async def test_renew_lease_tells_when_it_was_sent_when_renewed(client: EtcdClient) -> None:
    """The instant of a lease lies between the call and its answer, and is that of this renewal, not of the grant."""
    granted = await client.grant_lease(30, timeout_ms=TIMEOUT_MS)
    called_at_ms = now_ms()
    renewed = await client.renew_lease(granted.lease_id, timeout_ms=TIMEOUT_MS)
    assert called_at_ms <= renewed.sent_at_ms <= now_ms()
    assert (renewed.lease_id, renewed.ttl_s) == (granted.lease_id, 30)


async def test_revoke_lease_deletes_its_keys_when_it_lives(client: EtcdClient, prefix: str) -> None:
    """Revoking deletes the keys at once; a second time there is nothing left to revoke."""
    lease = await client.grant_lease(60, timeout_ms=TIMEOUT_MS)
    await client.transact([], [put(prefix + "leader", "n1", lease.lease_id)], timeout_ms=TIMEOUT_MS)
    await client.revoke_lease(lease.lease_id, timeout_ms=TIMEOUT_MS)
    assert await values_below(client, prefix) == {}
    with pytest.raises(LeaseGone):
        await client.revoke_lease(lease.lease_id, timeout_ms=TIMEOUT_MS)


# Watching ------------------------------------------------------------------------------------------------------------


async def test_watch_delivers_changes_in_order_when_keys_change(client: EtcdClient, prefix: str) -> None:
    """Each change comes once, in the order of revisions, and nothing from outside the prefix."""
    start = await client.read_prefix(prefix, timeout_ms=TIMEOUT_MS)
    watch = Watching(client, prefix, start.revision + 1)
    await watch.open()
    for text in ("1", "2", "3"):
        await client.transact([], [put(prefix + "a", text), put("/elsewhere", text)], timeout_ms=TIMEOUT_MS)
    await client.transact([], [delete(prefix + "a")], timeout_ms=TIMEOUT_MS)
    changes = await watch.changes(4)
    await watch.aclose()
    assert watch.batches[0] == WatchBatch(revision=start.revision, changes=())
    assert [change.value for change in changes] == ["1", "2", "3", None]
    revisions = [change.mod_revision for change in changes]
    assert revisions == sorted(set(revisions))
    assert watch.batches[-1].revision == revisions[-1]


async def test_watch_misses_nothing_when_resumed_from_a_revision(client: EtcdClient, prefix: str) -> None:
    """What happened between two watches is delivered by the second."""
    first = await client.transact([], [put(prefix + "a", "1")], timeout_ms=TIMEOUT_MS)
    for text in ("2", "3"):
        await client.transact([], [put(prefix + "a", text)], timeout_ms=TIMEOUT_MS)
    watch = Watching(client, prefix, first.revision + 1)
    assert [change.value for change in await watch.changes(2)] == ["2", "3"]
    await watch.aclose()


async def test_watch_says_compacted_when_the_revision_is_gone(own_etcd: EmbeddedEtcd, prefix: str) -> None:
    """A watch from a revision that was compacted away ends with WatchCompacted."""
    async with EtcdClient([own_etcd.endpoint]) as client:
        for text in ("1", "2", "3"):
            last = await client.transact([], [put(prefix + "a", text)], timeout_ms=TIMEOUT_MS)
        await client._endpoints[0].kv.Compact(etcdrpc.CompactionRequest(revision=last.revision))
        assert isinstance(await Watching(client, prefix, 2).end(), WatchCompacted)


async def test_watch_keeps_its_revision_when_only_other_keys_change(own_etcd: EmbeddedEtcd, prefix: str) -> None:
    """An idle watch gives signs of life that never claim more than what it delivered."""
    async with EtcdClient([own_etcd.endpoint], progress_every_ms=50) as client:
        start = await client.read_prefix(prefix, timeout_ms=TIMEOUT_MS)
        watch = Watching(client, prefix, start.revision + 1)
        await watch.open()
        await client.transact([], [put("/elsewhere", "x")], timeout_ms=TIMEOUT_MS)
        await watch.open()
        await watch.open()
        assert watch.batches == [WatchBatch(revision=start.revision, changes=())] * 3
        await watch.aclose()


async def test_watch_ends_when_its_endpoint_is_frozen(own_etcd: EmbeddedEtcd, prefix: str) -> None:
    """A member that stands still with its connections open is noticed by its silence, as one that takes no watch is."""
    async with EtcdClient([own_etcd.endpoint], progress_every_ms=200, silence_max_ms=500) as client:
        watch = Watching(client, prefix, 0)
        await watch.open()
        with frozen(own_etcd):
            assert isinstance(await watch.end(), EtcdUnavailable)
            assert isinstance(await Watching(client, prefix, 0).end(), EtcdUnavailable)
        with anyio.fail_after(PATIENCE_S):
            while True:
                with contextlib.suppress(EtcdUnavailable):
                    again = Watching(client, prefix, 0)
                    await again.open()
                    break
        await again.aclose()


async def test_watch_moves_on_when_its_endpoint_dies(cluster: EmbeddedEtcdCluster, prefix: str) -> None:
    """After its endpoint was killed, the next watch asks another one and resumes without a gap."""
    async with EtcdClient(cluster.endpoints) as client:
        start = await client.read_prefix(prefix, timeout_ms=TIMEOUT_MS)
        watch = Watching(client, prefix, start.revision + 1)
        await watch.open()
        victim = next(member for member in cluster.members if member.endpoint == client.preferred_endpoint)
        victim.kill()
        try:
            assert isinstance(await watch.end(), EtcdUnavailable)
            assert client.preferred_endpoint != victim.endpoint
            await until_applied(client, prefix)
            again = Watching(client, prefix, watch.batches[-1].revision + 1)
            assert (await again.changes(1))[0].key == prefix + "written"
            await again.aclose()
        finally:
            victim.start()


async def until_applied(client: EtcdClient, prefix: str) -> None:
    """Writes a key, again and again while the members elect a leader."""
    with anyio.fail_after(PATIENCE_S):
        while True:
            with contextlib.suppress(EtcdUnavailable, EtcdOutcomeUnknown):
                await client.transact([], [put(prefix + "written", "x")], timeout_ms=2000)
                return
            await anyio.sleep(0.02)


# Endpoints that fail -------------------------------------------------------------------------------------------------


async def test_calls_are_answered_when_the_first_endpoint_refuses_connections(
    etcd_server: EmbeddedEtcd, prefix: str
) -> None:
    """Nothing listens on the first endpoint: the second one answers, and is asked first from then on."""
    async with EtcdClient([f"127.0.0.1:{free_ports(1)[0]}", etcd_server.endpoint]) as client:
        done = await client.transact([absent(prefix + "a")], [put(prefix + "a", "1")], timeout_ms=TIMEOUT_MS)
        assert done.applied
        assert client.preferred_endpoint == etcd_server.endpoint
        assert await values_below(client, prefix) == {"a": "1"}


async def test_calls_are_answered_when_one_of_three_members_is_frozen(
    cluster: EmbeddedEtcdCluster, prefix: str
) -> None:
    """A follower that stands still, asked first, costs a moment but neither an answer nor an unknown outcome."""
    follower = next(member for member in cluster.members if not member.is_leader)
    endpoints = sorted(cluster.endpoints, key=lambda endpoint: endpoint != follower.endpoint)
    async with EtcdClient(endpoints, trusted_for_ms=0) as client:
        lease = await client.grant_lease(60, timeout_ms=TIMEOUT_MS)
        assert client.preferred_endpoint == follower.endpoint
        with frozen(follower):
            assert (await client.renew_lease(lease.lease_id, timeout_ms=TIMEOUT_MS)).ttl_s == 60
            assert client.preferred_endpoint != follower.endpoint
        async with EtcdClient(endpoints, trusted_for_ms=0) as fresh:
            await fresh.read_prefix(prefix, timeout_ms=TIMEOUT_MS)
            with frozen(follower):
                assert (await fresh.transact([], [put(prefix + "a", "1")], timeout_ms=TIMEOUT_MS)).applied
                assert await values_below(fresh, prefix) == {"a": "1"}


async def test_renew_lease_finds_the_new_leader_when_the_leader_of_three_is_frozen(
    cluster: EmbeddedEtcdCluster,
) -> None:
    """One call outlasts an election, although followers go on to wait for the leader that they asked first."""
    async with EtcdClient(cluster.endpoints) as client:
        lease = await client.grant_lease(60, timeout_ms=TIMEOUT_MS)
        with frozen(cluster.leader):
            assert (await client.renew_lease(lease.lease_id, timeout_ms=PATIENCE_S * 1000)).ttl_s == 60


async def test_calls_are_unavailable_when_most_members_are_gone(cluster: EmbeddedEtcdCluster, prefix: str) -> None:
    """Without a quorum every call ends within its timeout, soon with the certainty that nothing was applied."""
    gone = cluster.members[1:]
    async with EtcdClient(cluster.endpoints) as client:
        lease = await client.grant_lease(60, timeout_ms=TIMEOUT_MS)
        for member in gone:
            member.kill()
        try:
            with anyio.fail_after(PATIENCE_S):
                while not isinstance(await failure_of_write(client, prefix), EtcdUnavailable):
                    pass
                with pytest.raises(EtcdUnavailable):
                    await client.read_prefix(prefix, timeout_ms=1000)
                with pytest.raises((EtcdUnavailable, EtcdOutcomeUnknown)):
                    await client.renew_lease(lease.lease_id, timeout_ms=1000)
                assert isinstance(await Watching(client, prefix, 0).end(), EtcdUnavailable)
        finally:
            for member in gone:
                member.launch()
            for member in cluster.members:
                member.wait_until_healthy()
        await until_applied(client, prefix)


async def failure_of_write(client: EtcdClient, prefix: str) -> EtcdError:
    """The error of a write that cannot succeed."""
    with pytest.raises((EtcdUnavailable, EtcdOutcomeUnknown)) as caught:
        await client.transact([], [put(prefix + "a", "1")], timeout_ms=1000)
    error: EtcdError = caught.value
    return error


async def test_transact_is_unavailable_when_the_only_endpoint_was_frozen_before(
    own_etcd: EmbeddedEtcd, prefix: str
) -> None:
    """An endpoint that gives no sign of life is not sent the transaction, so it is certain that nothing happened."""
    async with EtcdClient([own_etcd.endpoint], trusted_for_ms=0) as client:
        await client.read_prefix(prefix, timeout_ms=TIMEOUT_MS)
        with frozen(own_etcd), pytest.raises(EtcdUnavailable):
            await client.transact([], [put(prefix + "a", "1")], timeout_ms=500)
        assert await values_below(client, prefix) == {}


async def test_transact_has_an_unknown_outcome_when_the_endpoint_froze_a_moment_ago(
    own_etcd: EmbeddedEtcd, prefix: str
) -> None:
    """A transaction that was sent and not answered may have been applied; here it is, once the server goes on."""
    async with EtcdClient([own_etcd.endpoint], trusted_for_ms=10**9) as client:
        await client.read_prefix(prefix, timeout_ms=TIMEOUT_MS)
        with frozen(own_etcd), pytest.raises(EtcdOutcomeUnknown):
            await client.transact([], [put(prefix + "a", "1")], timeout_ms=500)


async def test_transact_is_not_sent_when_its_time_is_over(client: EtcdClient, prefix: str) -> None:
    """A transaction that comes too late, say after a pause of the process, is certainly not applied."""
    await client.read_prefix(prefix, timeout_ms=TIMEOUT_MS)
    with pytest.raises(EtcdUnavailable):
        await client.transact([], [put(prefix + "a", "1")], timeout_ms=0)
    assert await values_below(client, prefix) == {}


async def test_renew_lease_has_an_unknown_outcome_when_the_endpoint_is_frozen(own_etcd: EmbeddedEtcd) -> None:
    """A renewal without an answer ends at its deadline and may have counted."""
    async with EtcdClient([own_etcd.endpoint]) as client:
        lease = await client.grant_lease(60, timeout_ms=TIMEOUT_MS)
        with frozen(own_etcd), pytest.raises(EtcdOutcomeUnknown):
            await client.renew_lease(lease.lease_id, timeout_ms=500)
        assert (await client.renew_lease(lease.lease_id, timeout_ms=TIMEOUT_MS)).ttl_s == 60


async def test_client_connects_again_when_the_endpoint_was_restarted(own_etcd: EmbeddedEtcd, prefix: str) -> None:
    """A restarted etcd is used again by itself, with what was written before."""
    async with EtcdClient([own_etcd.endpoint]) as client:
        await client.transact([], [put(prefix + "a", "1")], timeout_ms=TIMEOUT_MS)
        own_etcd.kill()
        with pytest.raises(EtcdUnavailable):
            await client.read_prefix(prefix, timeout_ms=TIMEOUT_MS)
        own_etcd.start()
        await until_applied(client, prefix)
        assert await values_below(client, prefix) == {"a": "1", "written": "x"}


async def test_calls_leave_nothing_behind_when_cancelled(own_etcd: EmbeddedEtcd, prefix: str) -> None:
    """A caller that gives up is free at once, also from a frozen endpoint, and the client goes on to work."""
    async with EtcdClient([own_etcd.endpoint], trusted_for_ms=10**9) as client:
        lease = await client.grant_lease(60, timeout_ms=TIMEOUT_MS)
        watch = Watching(client, prefix, 0)
        await watch.open()
        with frozen(own_etcd), anyio.fail_after(PATIENCE_S):
            for call in (
                lambda: client.read_prefix(prefix, timeout_ms=10**6),
                lambda: client.renew_lease(lease.lease_id, timeout_ms=10**6),
                lambda: client.transact([], [put(prefix + "a", "1")], timeout_ms=10**6),
                watch.open,
            ):
                with anyio.move_on_after(0.1) as scope:
                    await call()
                assert scope.cancelled_caught
        assert (await client.renew_lease(lease.lease_id, timeout_ms=TIMEOUT_MS)).ttl_s == 60


async def test_calls_end_with_an_error_when_the_client_is_closed_meanwhile(own_etcd: EmbeddedEtcd, prefix: str) -> None:
    """Closing the client ends calls of other tasks with our errors, not with a cancellation that nobody asked for."""
    client, ended = EtcdClient([own_etcd.endpoint], trusted_for_ms=10**9), list[type[EtcdError]]()
    lease = await client.grant_lease(60, timeout_ms=TIMEOUT_MS)
    watch = Watching(client, prefix, 0)
    await watch.open()

    async def note(call: Awaitable[object]) -> None:
        with pytest.raises(EtcdError) as caught:
            await call
        ended.append(caught.type)

    async def note_end_of_watch() -> None:
        ended.append(type(await watch.end()))

    with frozen(own_etcd), anyio.fail_after(PATIENCE_S):
        async with anyio.create_task_group() as calls:
            calls.start_soon(note, client.renew_lease(lease.lease_id, timeout_ms=10**6))
            calls.start_soon(note, client.transact([], [put(prefix + "a", "1")], timeout_ms=10**6))
            calls.start_soon(note_end_of_watch)
            await anyio.wait_all_tasks_blocked()
            await client.aclose()
    assert sorted(kind.__name__ for kind in ended) == ["EtcdOutcomeUnknown", "EtcdOutcomeUnknown", "EtcdUnavailable"]


# The other event loop ------------------------------------------------------------------------------------------------


def test_client_works_when_the_loop_is_uvloop(etcd_server: EmbeddedEtcd, prefix: str) -> None:
    """Reads, writes, leases and watches work on uvloop's event loop as well."""

    async def use() -> None:
        async with EtcdClient([etcd_server.endpoint], progress_every_ms=100) as client:
            lease = await client.grant_lease(60, timeout_ms=TIMEOUT_MS)
            done = await client.transact([], [put(prefix + "a", "1", lease.lease_id)], timeout_ms=TIMEOUT_MS)
            watch = Watching(client, prefix, done.revision)
            assert [change.value for change in await watch.changes(1)] == ["1"]
            await watch.open()
            await watch.aclose()
            assert (await client.renew_lease(lease.lease_id, timeout_ms=TIMEOUT_MS)).ttl_s == 60
        assert "uvloop" in type(asyncio.get_running_loop()).__module__

    anyio.run(use, backend_options={"use_uvloop": True})
