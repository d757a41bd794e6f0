"""What the command line reads of a cluster in etcd, without any agent."""

from effects.clock import now_ms
from effects.settings_types import ClientSettings
from fsm.events import ClusterRead
from fsm.observe import observe
from fsm.view import View

READ_TIMEOUT_MS = 5_000


async def read_cluster(settings: ClientSettings, scope: str | None = None) -> View:
    """What etcd knows of a cluster, the settings' own by default; nothing of it where there is no such cluster.

    Raises: EtcdUnavailable, EtcdRefused.
    """
    from effects.etcd_access import etcd_client
    from effects.keys import as_change, prefix_of

    prefix = prefix_of(settings.namespace, scope or settings.scope)
    async with etcd_client(settings.etcd) as client:
        read = await client.read_prefix(prefix, timeout_ms=READ_TIMEOUT_MS)
    keys = tuple(as_change(prefix, key) for key in read.keys)
    return observe(View(), ClusterRead(at_ms=now_ms(), revision=read.revision, keys=keys))
