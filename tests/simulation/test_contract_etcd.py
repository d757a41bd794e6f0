"""What the simulator believes of etcd, held against its model and against three real members alike."""

import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path

import pytest

from effects.embedded import EmbeddedEtcdCluster
from effects.errors import EtcdOutcomeUnknown, EtcdUnavailable, LeaseGone
from effects.etcd import EtcdClient
from effects.etcd_types import absent, delete, lease_is, mod_revision_is, put, value_is
from tests.simulation.contract_etcd import PATIENCE_MS, SHORT_MS, Change, Model, Real, Subject, until_written

pytestmark = pytest.mark.anyio
ELECTION_TIMEOUT_MS = 1_000


@pytest.fixture(scope="module")
def members(open_directory: Path) -> Iterator[EmbeddedEtcdCluster]:
    """Three etcd members; a test that takes some away brings them back."""
    with EmbeddedEtcdCluster(open_directory / "etcd-contract", is_fsync_off=True) as cluster:
        yield cluster


@pytest.fixture(params=["model", pytest.param("real", marks=pytest.mark.servers)])
async def etcd(request: pytest.FixtureRequest) -> AsyncIterator[Subject]:
    """The model, or real servers."""
    if request.param == "model":
        yield Model(seed=1)
        return
    cluster = request.getfixturevalue("members")
    async with (
        EtcdClient(cluster.endpoints) as client,
        aclosing(Real(cluster, client, f"/{uuid.uuid4().hex}/")) as real,
    ):
        yield real


async def when_gone(etcd: Subject, key: str) -> int:
    """About when a key went away: not before this instant was the last reading that found it begun."""
    deadline_ms = etcd.now_ms() + PATIENCE_MS
    while etcd.now_ms() < deadline_ms:
        if key not in (await etcd.read())[1]:
            return etcd.now_ms()
        await etcd.sleep(50)
    raise AssertionError(f"{key} does not go away")


async def test_revision_grows_by_one_when_a_transaction_changes_something(etcd: Subject) -> None:
    """And not at all when a compare fails, or when what is deleted is not there."""
    start, _ = await etcd.read()
    assert await etcd.transact((absent("a"),), put("a", "1")) == (True, start + 1)
    assert await etcd.transact((absent("a"),), put("a", "2")) == (False, start + 1)
    assert await etcd.transact((), delete("b")) == (True, start + 1)
    assert await etcd.transact((value_is("a", "1"),), put("a", "2")) == (True, start + 2)
    revision, keys = await etcd.read()
    assert (revision, keys["a"][:3]) == (start + 2, ("2", start + 1, start + 2))


async def test_key_is_created_anew_when_it_was_deleted(etcd: Subject) -> None:
    """A deletion takes a revision too; what a compare asks of a key that is gone is 0."""
    start, _ = await etcd.read()
    await etcd.transact((), put("a", "1"))
    assert await etcd.transact((mod_revision_is("a", start + 1),), delete("a")) == (True, start + 2)
    assert await etcd.transact((mod_revision_is("a", start + 1),), put("a", "2")) == (False, start + 2)
    assert await etcd.transact((mod_revision_is("a", 0),), put("a", "3")) == (True, start + 3)
    assert (await etcd.read())[1]["a"][:3] == ("3", start + 3, start + 3)


async def test_key_lives_no_shorter_than_its_lease_when_nobody_renews_it(etcd: Subject) -> None:
    """It goes after the whole ttl, and then renewal, use and return of the lease are refused alike."""
    lease_id, ttl_s = await etcd.grant(1)
    assert ttl_s == 2, "etcd grants 2 s at the least"
    await etcd.transact((), put("leader", "n1", lease_id))
    assert (await etcd.transact((lease_is("leader", lease_id),), put("leader", "n2", lease_id)))[0]
    renewed_ms = etcd.now_ms()
    assert await etcd.renew(lease_id) == ttl_s
    assert await when_gone(etcd, "leader") - renewed_ms >= ttl_s * 1000
    with pytest.raises(LeaseGone):
        await etcd.renew(lease_id)
    with pytest.raises(LeaseGone):
        await etcd.revoke(lease_id)
    revision, _ = await etcd.read()
    with pytest.raises(LeaseGone):
        await etcd.transact((), put("leader", "n1", lease_id))
    assert await etcd.read() == (revision, {})


async def test_renewal_is_refused_when_the_lease_has_just_run_out(etcd: Subject) -> None:
    """Even if its keys were still to be seen a moment before: when the answer is there they are gone."""
    lease_id, ttl_s = await etcd.grant(2)
    await etcd.transact((), put("leader", "n1", lease_id))
    await etcd.renew(lease_id)
    await etcd.sleep(ttl_s * 1000 + 20)
    with pytest.raises(LeaseGone):
        await etcd.renew(lease_id)
    assert (await etcd.read())[1] == {}


async def test_keys_go_at_one_revision_when_their_lease_is_revoked(etcd: Subject) -> None:
    """Who watches hears of all of them together."""
    lease_id, _ = await etcd.grant(60)
    for key in ("b", "a", "c"):
        await etcd.transact((), put(key, "1", lease_id))

    async def nothing() -> None:
        pass

    await etcd.watch(nothing)
    start, _ = await etcd.read()
    await etcd.revoke(lease_id)
    assert await etcd.told(3) == [tuple(Change(key, None, start + 1) for key in "abc")]
    assert await etcd.read() == (start + 1, {})


async def test_key_stays_when_it_was_bound_anew_before_its_first_lease_ends(etcd: Subject) -> None:
    """To another lease, or to none."""
    first, second = (await etcd.grant(60))[0], (await etcd.grant(60))[0]
    for key in ("other", "none", "same"):
        await etcd.transact((), put(key, "1", first))
    await etcd.transact((), put("other", "2", second))
    await etcd.transact((), put("none", "2"))
    await etcd.revoke(first)
    _, keys = await etcd.read()
    assert {key: kept.lease_id for key, kept in keys.items()} == {"other": second, "none": 0}
    await etcd.revoke(second)


async def test_watch_tells_everything_in_order_when_it_begins_after_the_reading(etcd: Subject) -> None:
    """What happens between the two is told as well, each transaction for itself."""
    start, _ = await etcd.read()

    async def write() -> None:
        await etcd.transact((), put("a", "1"))
        await etcd.transact((), put("a", "2"))

    await etcd.watch(write)
    await etcd.transact((), delete("a"))
    await etcd.transact((), put("a", "3"))
    told = await etcd.told(4)
    expected = [(value, start + number) for number, value in enumerate(("1", "2", None, "3"), 1)]
    assert [(change.value, change.mod_revision) for batch in told for change in batch] == expected


async def test_lease_has_its_whole_time_again_when_another_member_leads(etcd: Subject) -> None:
    """And an election timeout more: a key outlives its owner by that much."""
    lease_id, ttl_s = await etcd.grant(4)
    await etcd.transact((), put("leader", "n1", lease_id))
    await etcd.sleep(1_500)
    changed_ms = etcd.now_ms()
    await etcd.change_leader()
    await until_written(etcd, put("a", "1"))
    assert await when_gone(etcd, "leader") - changed_ms >= ttl_s * 1000 + ELECTION_TIMEOUT_MS


@pytest.mark.parametrize("how", ["kill", "freeze"])
async def test_write_is_done_whole_or_not_at_all_when_there_was_no_quorum(etcd: Subject, how: str) -> None:
    """Its outcome is unknown or it was not done; after the quorum is back it may be found done."""
    await etcd.transact((), put("a", "before"))
    start, _ = await etcd.read()
    await etcd.lose_quorum(how)
    try:
        with pytest.raises((EtcdUnavailable, EtcdOutcomeUnknown)):
            await etcd.transact((mod_revision_is("a", start),), put("a", "after"), SHORT_MS)
        with pytest.raises((EtcdUnavailable, EtcdOutcomeUnknown)):
            await etcd.transact((mod_revision_is("a", start),), put("a", "after"), SHORT_MS)
    finally:
        await etcd.regain_quorum()
    await until_written(etcd, put("b", "1"))
    revision, keys = await etcd.read()
    was_done = keys["a"].value == "after"
    assert keys["a"].mod_revision == start + was_done
    assert keys["b"].mod_revision == revision


async def test_revisions_begin_anew_when_the_data_are_gone(etcd: Subject) -> None:
    """Keys and leases are gone; a revision that was seen before comes again."""
    lease_id, _ = await etcd.grant(60)
    await etcd.transact((), put("a", "1", lease_id))
    before, _ = await etcd.read()
    await etcd.wipe()
    revision, keys = await etcd.read()
    assert (revision, keys) == (1, {})
    assert before > revision
    with pytest.raises(LeaseGone):
        await etcd.renew(lease_id)
    await until_written(etcd, put("a", "1"))
    assert (await etcd.read())[1]["a"].create_revision == 2
