"""What the tests of the etcd client share."""

import anyio

from effects.errors import EtcdError
from effects.etcd import EtcdClient
from effects.etcd_types import KeyChange, WatchBatch

# Long enough for a machine that does a thousand other things; conditions end the waits, not these.
PATIENCE_S = 30
TIMEOUT_MS = 10_000


class Watching:
    """What a watch has delivered so far, and what ended it."""

    def __init__(self, client: EtcdClient, prefix: str, from_revision: int) -> None:
        self._watch = client.watch(prefix, from_revision)
        self.batches: list[WatchBatch] = []

    async def changes(self, count: int) -> list[KeyChange]:
        """The first changes, as many as asked for."""
        while len(found := [change for batch in self.batches for change in batch.changes]) < count:
            with anyio.fail_after(PATIENCE_S):
                self.batches.append(await anext(self._watch))
        return found

    async def open(self) -> None:
        """Returns when the watch stands."""
        with anyio.fail_after(PATIENCE_S):
            self.batches.append(await anext(self._watch))

    async def end(self) -> EtcdError:
        """The error that ends the watch."""
        try:
            while True:
                with anyio.fail_after(PATIENCE_S):
                    self.batches.append(await anext(self._watch))
        except EtcdError as error:
            return error

    async def aclose(self) -> None:
        """Ends the watch."""
        await self._watch.aclose()


async def values_below(client: EtcdClient, prefix: str) -> dict[str, str]:
    """The keys below the prefix, without it, and their values."""
    read = await client.read_prefix(prefix, timeout_ms=TIMEOUT_MS)
    return {kv.key.removeprefix(prefix): kv.value for kv in read.keys}
