"""The values that go into and come out of the etcd client, free of grpc: cheap to import, made by hand in tests."""

from pathlib import Path
from typing import Literal

import msgspec


class EtcdTls(msgspec.Struct, frozen=True, kw_only=True):
    """Files in PEM. The authority that signed the servers' certificates, and this client's own pair where etcd asks."""

    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None


class KeyValue(msgspec.Struct, frozen=True, kw_only=True):
    """A key as etcd holds it. `lease_id` 0: bound to no lease. Source: etcd mvccpb.KeyValue."""

    key: str
    value: str
    lease_id: int
    create_revision: int
    mod_revision: int


class KeysRead(msgspec.Struct, frozen=True, kw_only=True):
    """All keys below a prefix at one revision; watch from `revision + 1` to miss nothing."""

    revision: int
    keys: tuple[KeyValue, ...]


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """A lease that etcd granted or renewed; it lives at least until `sent_at_ms` + `ttl_s` (CLOCK_BOOTTIME)."""

    lease_id: int
    ttl_s: int
    sent_at_ms: int


class KeyChange(msgspec.Struct, frozen=True, kw_only=True):
    """A change to one key. `value` None: deleted, also by the end of its lease; then only `mod_revision` counts."""

    key: str
    value: str | None
    lease_id: int
    create_revision: int
    mod_revision: int


class WatchBatch(msgspec.Struct, frozen=True, kw_only=True):
    """Changes in order, or none: a sign of life. All up to `revision` are delivered; resume from `revision + 1`."""

    revision: int
    changes: tuple[KeyChange, ...]


class Compare(msgspec.Struct, frozen=True, kw_only=True):
    """A condition of a transaction: that one property of a key equals `expected`. Source: etcd Compare."""

    key: str
    target: Literal["create_revision", "mod_revision", "value", "lease"]
    expected: str | int


def absent(key: str) -> Compare:
    """True while the key does not exist."""
    return Compare(key=key, target="create_revision", expected=0)


def value_is(key: str, text: str) -> Compare:
    """True while the key exists and holds this text."""
    return Compare(key=key, target="value", expected=text)


def mod_revision_is(key: str, revision: int) -> Compare:
    """True while the key was last changed at this revision; 0: while it does not exist."""
    return Compare(key=key, target="mod_revision", expected=revision)


def lease_is(key: str, lease_id: int) -> Compare:
    """True while the key exists and is bound to this lease."""
    return Compare(key=key, target="lease", expected=lease_id)


class Put(msgspec.Struct, frozen=True, kw_only=True):
    """Write a key, bound to the lease (0: to none). Source: etcd PutRequest."""

    key: str
    value: str
    lease_id: int = 0


class Delete(msgspec.Struct, frozen=True, kw_only=True):
    """Delete one key. Source: etcd DeleteRangeRequest."""

    key: str


Operation = Put | Delete


def put(key: str, text: str, lease_id: int = 0) -> Put:
    """Writes the key, bound to the lease (0: to none)."""
    return Put(key=key, value=text, lease_id=lease_id)


def delete(key: str) -> Delete:
    """Deletes the key; no fault if it does not exist."""
    return Delete(key=key)


class Transacted(msgspec.Struct, frozen=True, kw_only=True):
    """How a transaction ended. `found`: what `else_read` named, when not applied and when it exists."""

    applied: bool
    revision: int
    found: KeyValue | None = None
