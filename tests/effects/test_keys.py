"""The cluster's keys in a real etcd: what a transaction writes, and what it leaves alone."""

import pytest

from effects.embedded import EmbeddedEtcd
from effects.etcd import EtcdClient
from effects.etcd_types import KeyValue, put
from effects.keys import ClusterKeys
from fsm import effects as do
from fsm.events import KeyWritten

pytestmark = [pytest.mark.anyio, pytest.mark.servers]

OURS, THEIRS = "7300000000000000001", "7300000000000000042"


async def write(etcd: EmbeddedEtcd, prefix: str, keys: dict[str, str], *, seen_revision: int | None) -> KeyWritten:
    """Writes OURS as n1 over some keys, and returns how that ended."""
    async with EtcdClient([etcd.endpoint]) as client:
        for name, value in keys.items():
            await client.transact([], [put(prefix + name, value)], timeout_ms=2_000)
        effect = do.WriteInitialize(
            timeout_ms=2_000, system_id=OURS, seen_revision=seen_revision, valid_until_ms=1 << 60
        )
        written = await ClusterKeys(client, prefix, "n1", "{}").write_initialize(effect)
    assert isinstance(written, KeyWritten)
    return written


async def test_identity_is_written_when_the_claim_is_there(etcd_server: EmbeddedEtcd, prefix: str) -> None:
    """The claim's empty text becomes the system identifier."""
    written = await write(etcd_server, prefix, {"leader": "n1", "initialize": ""}, seen_revision=None)
    assert written.applied
    assert written.now is not None
    assert written.now.value == OURS


async def test_identity_is_written_when_the_key_is_missing(etcd_server: EmbeddedEtcd, prefix: str) -> None:
    """The leader of a cluster whose identity was deleted writes it again."""
    assert (await write(etcd_server, prefix, {"leader": "n1"}, seen_revision=0)).applied


async def test_identity_is_not_written_when_another_leads(etcd_server: EmbeddedEtcd, prefix: str) -> None:
    """Only the leader says which cluster this is."""
    assert not (await write(etcd_server, prefix, {"leader": "n2"}, seen_revision=0)).applied


async def test_identity_is_not_written_when_somebody_wrote_one_meanwhile(
    etcd_server: EmbeddedEtcd, prefix: str
) -> None:
    """What was seen to be missing and is there now is left alone, and the answer tells what it is."""
    written = await write(etcd_server, prefix, {"leader": "n1", "initialize": THEIRS}, seen_revision=0)
    assert not written.applied
    assert written.now is not None
    assert written.now.value == THEIRS


async def take(
    etcd: EmbeddedEtcd, prefix: str, keys: dict[str, str], *, sync_text: str | None, is_late: bool = False
) -> tuple[KeyWritten, dict[str, KeyValue]]:
    """Takes the leader key as n1 over some keys; returns how that ended, and the keys. `is_late`: another had been
    voted for by the same `sync` key, took the leader key first, and lost it again."""
    async with EtcdClient([etcd.endpoint]) as client:
        for name, value in keys.items():
            await client.transact([], [put(prefix + name, value)], timeout_ms=2_000)
        lease = await client.grant_lease(30, timeout_ms=2_000)
        found = {kv.key: kv for kv in (await client.read_prefix(prefix, timeout_ms=2_000)).keys}
        seen = found[prefix + "sync"].mod_revision if prefix + "sync" in found else 0
        effect = do.TakeLeaderKey(
            timeout_ms=2_000,
            lease_id=lease.lease_id,
            valid_until_ms=1 << 60,
            sync_revision=seen,
            sync_text=sync_text,
        )
        if is_late:
            other = ClusterKeys(client, prefix, "n2", "{}")
            assert (await other.take_leader(effect)).applied  # type: ignore[union-attr]
            assert (await other.release_leader(do.ReleaseLeaderKey(timeout_ms=2_000))).applied  # type: ignore[union-attr]
        written = await ClusterKeys(client, prefix, "n1", "{}").take_leader(effect)
        after = {kv.key.removeprefix(prefix): kv for kv in (await client.read_prefix(prefix, timeout_ms=2_000)).keys}
    assert isinstance(written, KeyWritten)
    return written, after


async def test_sync_key_is_written_anew_when_the_leader_key_is_taken(etcd_server: EmbeddedEtcd, prefix: str) -> None:
    """Same text, new revision, in one transaction; the answer tells of both."""
    written, after = await take(etcd_server, prefix, {"sync": "{}"}, sync_text="{}")
    assert written.applied
    assert written.also is not None
    assert after["sync"].value == "{}"
    assert after["sync"].mod_revision == after["leader"].mod_revision == written.also.mod_revision


async def test_leader_key_is_not_taken_when_another_took_it_by_the_same_sync_key(
    etcd_server: EmbeddedEtcd, prefix: str
) -> None:
    """A vote is for one revision of `sync`, whatever became of the other since."""
    written, after = await take(etcd_server, prefix, {"sync": "{}"}, sync_text="{}", is_late=True)
    assert not written.applied
    assert "leader" not in after


async def test_no_sync_key_is_made_when_the_leader_key_is_taken_without_one(
    etcd_server: EmbeddedEtcd, prefix: str
) -> None:
    """Where no commit waits for anybody there is nothing to say."""
    written, after = await take(etcd_server, prefix, {}, sync_text=None)
    assert (written.applied, written.also, set(after)) == (True, None, {"leader"})
