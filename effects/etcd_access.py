"""From the settings to a client of etcd: endpoints, TLS and who we are there."""

from effects.etcd import EtcdClient
from effects.etcd_types import EtcdTls
from effects.keys import as_change, prefix_of
from effects.settings_types import ClientSettings, EtcdSettings, Settings
from fsm.facts import KeyChange

READ_TIMEOUT_MS = 5_000


def etcd_tls(settings: EtcdSettings) -> EtcdTls | None:
    """The files for an encrypted connection; None for a plain one."""
    if settings.protocol != "https" and settings.cacert is None:
        return None
    return EtcdTls(ca_file=settings.cacert, cert_file=settings.cert, key_file=settings.key)


def etcd_client(settings: EtcdSettings) -> EtcdClient:
    """A client that is not connected yet."""
    return EtcdClient(
        settings.hosts,
        tls=etcd_tls(settings),
        username=settings.username,
        password=settings.password.reveal() if settings.password else None,
    )


async def read_keys(settings: Settings | ClientSettings) -> tuple[int, tuple[KeyChange, ...]]:
    """All keys of the settings' cluster and the revision at which they were so; secrets are not taken out.

    Raises: EtcdUnavailable, EtcdRefused.
    """
    prefix = prefix_of(settings.namespace, settings.scope)
    async with etcd_client(settings.etcd) as client:
        read = await client.read_prefix(prefix, timeout_ms=READ_TIMEOUT_MS)
    return read.revision, tuple(as_change(prefix, key) for key in read.keys)
