"""The cluster's keys in etcd: performs the effects that read and write them, in Patroni's layout.

Source: Patroni, etcd v3 keys `/<namespace>/<scope>/…`; etcd, KV.Txn, Lease.
"""

import re
from collections.abc import Callable

from msgspec.structs import replace

from effects.config_desk import ConfigDesk
from effects.errors import EtcdRefused
from effects.etcd import EtcdClient
from effects.etcd_types import Compare, KeyValue, Transacted, absent, delete, mod_revision_is, put, value_is
from effects.lanes import Lane, Report
from effects.redaction import without_secrets
from fsm import effects as do
from fsm.events import AnyResult, Done, KeyWritten, LeaseHeld
from fsm.facts import KeyChange


def prefix_of(namespace: str, scope: str) -> str:
    """The path below which all keys of a cluster lie, with a slash at its end. Source: Patroni, `namespace`."""
    return re.sub(r"/+", "/", f"/{namespace}/{scope}/")


class ClusterKeys:
    """Performs the effects on one cluster's keys, as one member."""

    def __init__(
        self,
        client: EtcdClient,
        prefix: str,
        name: str,
        first_config: str,
        configs: ConfigDesk | None = None,
        last_config: Callable[[], str | None] = lambda: None,
    ) -> None:
        """`configs`: where the dynamic configurations lie that were asked for; None where nobody can. `last_config`
        tells the one that etcd held last, whether or not it holds it still."""
        self._last_config = last_config
        self._configs = configs or ConfigDesk(lambda: (None, 0))
        self._client, self._prefix, self._name = client, prefix, name
        self._first_config = first_config

    def lanes(self, report: Report) -> list[Lane]:
        """Four lanes, so that no slow write stands before a renewal, the leader key or whom commits wait for."""
        return [
            Lane(
                "lease",
                {do.GrantLease: self.grant, do.RenewLease: self.renew, do.RevokeLease: self.revoke},
                report,
            ),
            Lane(
                "leader",
                {
                    do.TakeLeaderKey: self.take_leader,
                    do.ReleaseLeaderKey: self.release_leader,
                },
                report,
            ),
            Lane("sync", {do.WriteSync: self.write_sync, do.DeleteSync: self.delete_sync}, report),
            Lane(
                "keys",
                {
                    do.ClaimInitialize: self.claim_initialize,
                    do.WriteInitialize: self.write_initialize,
                    do.WriteConfig: self.write_config,
                    do.ChangeConfig: self.change_config,
                    do.PublishMember: self.publish_member,
                    do.PublishAsLeader: self.publish_as_leader,
                    do.RequestFailover: self.request_failover,
                    do.ClearFailover: self.clear_failover,
                },
                report,
            ),
        ]

    # ---- lease ------------------------------------------------------------------------------------------------------

    async def grant(self, effect: do.GrantLease) -> AnyResult:
        """A new lease. Source: etcd LeaseGrant."""
        lease = await self._client.grant_lease(effect.ttl_s, timeout_ms=effect.timeout_ms)
        return LeaseHeld(
            lease_id=lease.lease_id, ttl_s=lease.ttl_s, sent_at_ms=lease.sent_at_ms, asked_ttl_s=effect.ttl_s
        )

    async def renew(self, effect: do.RenewLease) -> AnyResult:
        """The lease, renewed. Source: etcd LeaseKeepAlive."""
        lease = await self._client.renew_lease(effect.lease_id, timeout_ms=effect.timeout_ms)
        return LeaseHeld(lease_id=lease.lease_id, ttl_s=lease.ttl_s, sent_at_ms=lease.sent_at_ms)

    async def revoke(self, effect: do.RevokeLease) -> AnyResult:
        """The lease given back. Source: etcd LeaseRevoke."""
        await self._client.revoke_lease(effect.lease_id, timeout_ms=effect.timeout_ms)
        return Done()

    # ---- the leader key ---------------------------------------------------------------------------------------------

    async def take_leader(self, effect: do.TakeLeaderKey) -> AnyResult:
        """The leader key under the lease: created if absent, bound anew if it names this member already.

        With it, where it is created, goes the `sync` key as it was: no vote for its former revision counts any more.
        """
        leader, sync = self._key("leader"), self._key("sync")
        renewed = [] if effect.sync_text is None else [put(sync, effect.sync_text)]
        taken = await self._client.transact(
            [absent(leader), self._is_as_seen(sync, effect.sync_revision)],
            [put(leader, self._name, effect.lease_id), *renewed],
            timeout_ms=effect.timeout_ms,
            else_read=leader,
        )
        found = taken.found
        if taken.applied and effect.sync_text is not None:
            also = KeyChange(key="sync", value=effect.sync_text, mod_revision=taken.revision)
            return replace(self._written("leader", taken, self._name, effect.lease_id), also=also)
        if taken.applied or found is None or found.value != self._name or found.lease_id == effect.lease_id:
            return self._written("leader", taken, self._name, effect.lease_id)
        bound = await self._client.transact(
            [mod_revision_is(leader, found.mod_revision)],
            [put(leader, self._name, effect.lease_id)],
            timeout_ms=effect.timeout_ms,
            else_read=leader,
        )
        return self._written("leader", bound, self._name, effect.lease_id)

    async def release_leader(self, effect: do.ReleaseLeaderKey) -> AnyResult:
        """The leader key deleted, if it names this member."""
        leader = self._key("leader")
        released = await self._client.transact(
            [value_is(leader, self._name)], [delete(leader)], timeout_ms=effect.timeout_ms, else_read=leader
        )
        return self._written("leader", released, None, 0)

    # ---- other keys -------------------------------------------------------------------------------------------------

    async def claim_initialize(self, effect: do.ClaimInitialize) -> AnyResult:
        """The right to make the cluster."""
        key = self._key("initialize")
        claimed = await self._client.transact(
            [absent(key), absent(self._key("leader"))],
            [put(key, "", effect.lease_id)],
            timeout_ms=effect.timeout_ms,
            else_read=key,
        )
        return self._written("initialize", claimed, "", effect.lease_id)

    async def write_initialize(self, effect: do.WriteInitialize) -> AnyResult:
        """The system identifier, without a lease. Source: etcd, a key that is absent has mod_revision 0."""
        key = self._key("initialize")
        seen = effect.seen_revision
        written = await self._client.transact(
            [
                value_is(self._key("leader"), self._name),
                value_is(key, "") if seen is None else mod_revision_is(key, seen),
            ],
            [put(key, effect.system_id)],
            timeout_ms=effect.timeout_ms,
            else_read=key,
        )
        return self._written("initialize", written, effect.system_id, 0)

    async def write_config(self, effect: do.WriteConfig) -> AnyResult:
        """The dynamic configuration where there is none: the one that was there last, or the first one."""
        key, text = self._key("config"), self._last_config() if effect.is_last_known else self._first_config
        if text is None:
            raise EtcdRefused("the configuration that was in etcd last is not known any more")
        written = await self._client.transact(
            [value_is(self._key("leader"), self._name), absent(key)],
            [put(key, text)],
            timeout_ms=effect.timeout_ms,
            else_read=key,
        )
        return self._written("config", written, text, 0)

    async def change_config(self, effect: do.ChangeConfig) -> AnyResult:
        """Another dynamic configuration, if it is still the one that the change was made from."""
        key, text = self._key("config"), self._configs.text_of(effect.request_id)
        written = await self._client.transact(
            [mod_revision_is(key, effect.revision)] if effect.revision else [],
            [put(key, text)],
            timeout_ms=effect.timeout_ms,
            else_read=key,
        )
        if written.applied:
            self._configs.note_written(effect.request_id, written.revision)
        return self._written("config", written, text, 0)

    async def publish_member(self, effect: do.PublishMember) -> AnyResult:
        """The member key."""
        name = f"members/{self._name}"
        written = await self._client.transact(
            [], [put(self._key(name), effect.text, effect.lease_id)], timeout_ms=effect.timeout_ms
        )
        return self._written(name, written, effect.text, effect.lease_id)

    async def publish_as_leader(self, effect: do.PublishAsLeader) -> AnyResult:
        """A key of the leader's, as long as this member is it, and the key the one that was seen, if that matters."""
        key, seen = self._key(effect.key), effect.seen_revision
        written = await self._client.transact(
            [value_is(self._key("leader"), self._name), *([] if seen is None else [self._is_as_seen(key, seen)])],
            [put(key, effect.text)],
            timeout_ms=effect.timeout_ms,
            else_read=None if seen is None else key,
        )
        return self._written(effect.key, written, effect.text, 0)

    async def write_sync(self, effect: do.WriteSync) -> AnyResult:
        """The `sync` key, as long as this member leads and the key is the one that was seen."""
        key = self._key("sync")
        written = await self._client.transact(
            [value_is(self._key("leader"), self._name), self._is_as_seen(key, effect.mod_revision)],
            [put(key, effect.text)],
            timeout_ms=effect.timeout_ms,
            else_read=key,
        )
        return self._written("sync", written, effect.text, 0)

    async def delete_sync(self, effect: do.DeleteSync) -> AnyResult:
        """No `sync` key, as long as this member leads and the key is the one that was seen."""
        key = self._key("sync")
        deleted = await self._client.transact(
            [value_is(self._key("leader"), self._name), mod_revision_is(key, effect.mod_revision)],
            [delete(key)],
            timeout_ms=effect.timeout_ms,
            else_read=key,
        )
        return self._written("sync", deleted, None, 0)

    async def request_failover(self, effect: do.RequestFailover) -> AnyResult:
        """The request for another leader."""
        written = await self._client.transact(
            [], [put(self._key("failover"), effect.text)], timeout_ms=effect.timeout_ms
        )
        return self._written("failover", written, effect.text, 0)

    async def clear_failover(self, effect: do.ClearFailover) -> AnyResult:
        """The request emptied, if it is still the one that was seen."""
        key = self._key("failover")
        written = await self._client.transact(
            [mod_revision_is(key, effect.mod_revision)],
            [put(key, "{}")],
            timeout_ms=effect.timeout_ms,
            else_read=key,
        )
        return self._written("failover", written, "{}", 0)

    def _is_as_seen(self, key: str, mod_revision: int) -> Compare:
        """That the key was not written since that revision; 0: that it is absent."""
        return mod_revision_is(key, mod_revision) if mod_revision else absent(key)

    # ---- shapes -----------------------------------------------------------------------------------------------------

    def _key(self, name: str) -> str:
        return self._prefix + name

    def _written(self, name: str, transacted: Transacted, value: str | None, lease_id: int) -> KeyWritten:
        """What the key is now: what was written, or what was found in its place."""
        written = KeyChange(key=name, value=value, mod_revision=transacted.revision, lease_id=lease_id)
        now = without_secrets(written) if transacted.applied else self._found(name, transacted.found)
        return KeyWritten(applied=transacted.applied, revision=transacted.revision, now=now)

    def _found(self, name: str, found: KeyValue | None) -> KeyChange | None:
        if found is None or found.key != self._key(name):
            return None
        return without_secrets(as_change(self._prefix, found))


def as_change(prefix: str, found: KeyValue) -> KeyChange:
    """A key as etcd holds it, as the fact that the machine knows it by."""
    return KeyChange(
        key=found.key.removeprefix(prefix),
        value=found.value,
        mod_revision=found.mod_revision,
        create_revision=found.create_revision,
        lease_id=found.lease_id,
    )
