"""From the settings to a client of etcd: endpoints, TLS and who we are there."""

from effects.etcd import EtcdClient
from effects.etcd_types import EtcdTls
from effects.settings_types import EtcdSettings


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
