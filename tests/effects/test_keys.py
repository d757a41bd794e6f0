"""The cluster's keys in a real etcd: what a transaction writes, and what it leaves alone."""

import pytest

from effects.embedded import EmbeddedEtcd
from effects.etcd import EtcdClient
from effects.etcd_types import put
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
