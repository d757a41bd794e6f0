"""etcd as the contract tests see it: the simulator's model and real servers behind the same few calls."""

import contextlib
import shutil
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import anyio

from effects.clock import now_ms
from effects.embedded import EmbeddedEtcdCluster
from effects.errors import EtcdOutcomeUnknown, EtcdUnavailable, LeaseGone
from effects.etcd import EtcdClient
from effects.etcd_types import Compare, Delete, Put
from tests.simulation import etcd as model
from tests.simulation.kernel import MS, Kernel, Process, Signal, Work
from tests.simulation.network import Network

TIMEOUT_MS = 10_000
SHORT_MS = 1_000
PATIENCE_MS = 30_000


class Kept(NamedTuple):
    """A key as it is stored."""

    value: str
    create_revision: int
    mod_revision: int
    lease_id: int


class Change(NamedTuple):
    """A change as a watch tells it; value None: deleted."""

    key: str
    value: str | None
    mod_revision: int


class Subject(Protocol):
    """An etcd. Calls raise LeaseGone, EtcdUnavailable or EtcdOutcomeUnknown, whichever of the two it is."""

    def now_ms(self) -> int:
        """The clock that the subject's time goes by."""

    async def sleep(self, ms: int) -> None:
        """Let time go by."""

    async def transact(
        self, compares: tuple[Compare, ...], operation: Put | Delete, timeout_ms: int = TIMEOUT_MS
    ) -> tuple[bool, int]:
        """Whether it was applied, and the revision."""

    async def read(self) -> tuple[int, dict[str, Kept]]:
        """The revision and all keys."""

    async def grant(self, ttl_s: int) -> tuple[int, int]:
        """A new lease and its seconds."""

    async def renew(self, lease_id: int) -> int:
        """The lease's seconds."""

    async def revoke(self, lease_id: int) -> None:
        """The lease's end."""

    async def watch(self, between: Callable[[], Any]) -> None:
        """Read everything, do something, and only then watch from where the reading was."""

    async def told(self, count: int) -> list[tuple[Change, ...]]:
        """What the watch told, as it came, until it was so many changes."""

    async def change_leader(self) -> None:
        """Another member leads."""

    async def lose_quorum(self, how: str) -> None:
        """Most members are down, or frozen."""

    async def regain_quorum(self) -> None:
        """All members work."""

    async def wipe(self) -> None:
        """All members begin with empty directories."""


class Model:
    """The simulator's etcd, and one client of it."""

    def __init__(self, seed: int) -> None:
        self._kernel = Kernel(seed)
        network = Network(self._kernel)
        self.etcd = model.Etcd(self._kernel, network)
        self._client = model.Client(self.etcd, network, self._kernel, "n1")
        self._process = Process("n1")
        self._watch: model.Watch | None = None

    def now_ms(self) -> int:
        """Virtual time."""
        return self._kernel.now_us // MS

    async def sleep(self, ms: int) -> None:
        """Let virtual time go by."""
        self._kernel.run(self._kernel.now_us + ms * MS)

    def _run(self, carry_out: Callable[[], Any], timeout_ms: int = TIMEOUT_MS) -> Any:
        ended: list[tuple[Any, Exception | None]] = []
        work: Work = self._client.call(carry_out, timeout_ms)
        self._kernel.start(self._process, work, lambda result, error: ended.append((result, error)))
        while not ended:
            self._kernel.run(self._kernel.now_us + MS)
        result, error = ended[0]
        if isinstance(error, model.LeaseGone):
            raise LeaseGone("the model knows no such lease")
        if isinstance(error, model.Uncertain):
            raise EtcdOutcomeUnknown(str(error))
        if error is not None:
            raise EtcdUnavailable(str(error))
        return result

    async def transact(
        self, compares: tuple[Compare, ...], operation: Put | Delete, timeout_ms: int = TIMEOUT_MS
    ) -> tuple[bool, int]:
        """As the simulated agent does it: compares and one operation at one instant."""

        def carry_out() -> tuple[bool, int]:
            if not all(self._holds(compare) for compare in compares):
                return False, self.etcd.revision
            if isinstance(operation, Put):
                self.etcd.put(operation.key, operation.value, operation.lease_id)
            else:
                self.etcd.delete(operation.key)
            return True, self.etcd.revision

        applied, revision = self._run(carry_out, timeout_ms)
        return applied, revision

    def _holds(self, compare: Compare) -> bool:
        known = self.etcd.keys.get(compare.key)
        if known is None:
            return compare.expected == 0 and compare.target != "lease"
        found = {
            "create_revision": known.create_revision,
            "mod_revision": known.mod_revision,
            "value": known.value,
            "lease": known.lease_id,
        }
        return found[compare.target] == compare.expected

    async def read(self) -> tuple[int, dict[str, Kept]]:
        """As the simulated agent does it."""
        revision, keys = self._run(lambda: (self.etcd.revision, tuple(self.etcd.keys.values())))
        return revision, {
            found.key: Kept(found.value or "", found.create_revision, found.mod_revision, found.lease_id)
            for found in keys
        }

    async def grant(self, ttl_s: int) -> tuple[int, int]:
        """A new lease and its seconds."""
        lease_id = self._run(lambda: self.etcd.grant(ttl_s))
        return lease_id, self.etcd.leases[lease_id].ttl_us // (1000 * MS)

    async def renew(self, lease_id: int) -> int:
        """The lease's seconds."""
        ttl_s: int = self._run(lambda: self.etcd.renew(lease_id))
        return ttl_s

    async def revoke(self, lease_id: int) -> None:
        """The lease's end."""
        self._run(lambda: self.etcd.revoke(lease_id))

    async def watch(self, between: Callable[[], Any]) -> None:
        """The model's watch begins with the reading."""
        self._watch = self._run(lambda: self._client.watch(self._process, Signal()))
        await between()

    async def told(self, count: int) -> list[tuple[Change, ...]]:
        """What has arrived at the client."""
        watch = self._watch
        assert watch is not None
        deadline_ms = self.now_ms() + PATIENCE_MS
        while sum(len(changes) for _, changes in watch.arrived) < count and self.now_ms() < deadline_ms:
            await self.sleep(10)
            watch.pump()
        return [tuple(Change(it.key, it.value, it.mod_revision) for it in changes) for _, changes in watch.arrived]

    async def change_leader(self) -> None:
        """Another member leads."""
        self.etcd.change_leader()

    async def lose_quorum(self, how: str) -> None:
        """Two of three do not work."""
        lost: set[str] = {"e1", "e2"}
        self.etcd.set_members(**{"down" if how == "kill" else "frozen": lost})

    async def regain_quorum(self) -> None:
        """All members work."""
        self.etcd.set_members(down=set(), frozen=set())
        await self.sleep(5_000)

    async def wipe(self) -> None:
        """All members begin anew."""
        self.etcd.wipe()


class Real:
    """Real members, and the agent's own client; each test keeps to its own prefix."""

    def __init__(self, cluster: EmbeddedEtcdCluster, client: EtcdClient, prefix: str) -> None:
        self._cluster, self._client, self._prefix = cluster, client, prefix
        self._watch: Any = None
        self._told: list[tuple[Change, ...]] = []
        self._lost: list[Any] = []
        self._how = ""

    def now_ms(self) -> int:
        """CLOCK_BOOTTIME."""
        return now_ms()

    async def sleep(self, ms: int) -> None:
        """Let time go by: what is tested is how long a lease lives."""
        await anyio.sleep(ms / 1000)

    async def transact(
        self, compares: tuple[Compare, ...], operation: Put | Delete, timeout_ms: int = TIMEOUT_MS
    ) -> tuple[bool, int]:
        """One transaction below the prefix."""
        there = [Compare(key=self._prefix + it.key, target=it.target, expected=it.expected) for it in compares]
        done = await self._client.transact(there, [self._below(operation)], timeout_ms=timeout_ms)
        return done.applied, done.revision

    def _below(self, operation: Put | Delete) -> Put | Delete:
        key = self._prefix + operation.key
        if isinstance(operation, Put):
            return Put(key=key, value=operation.value, lease_id=operation.lease_id)
        return Delete(key=key)

    async def read(self) -> tuple[int, dict[str, Kept]]:
        """A linearizable read."""
        found = await self._client.read_prefix(self._prefix, timeout_ms=TIMEOUT_MS)
        return found.revision, {
            kv.key.removeprefix(self._prefix): Kept(kv.value, kv.create_revision, kv.mod_revision, kv.lease_id)
            for kv in found.keys
        }

    async def grant(self, ttl_s: int) -> tuple[int, int]:
        """A new lease and its seconds."""
        lease = await self._client.grant_lease(ttl_s, timeout_ms=TIMEOUT_MS)
        return lease.lease_id, lease.ttl_s

    async def renew(self, lease_id: int) -> int:
        """The lease's seconds."""
        return (await self._client.renew_lease(lease_id, timeout_ms=TIMEOUT_MS)).ttl_s

    async def revoke(self, lease_id: int) -> None:
        """The lease's end."""
        await self._client.revoke_lease(lease_id, timeout_ms=TIMEOUT_MS)

    async def watch(self, between: Callable[[], Any]) -> None:
        """As effects/sources.py does it: read, and watch from the next revision."""
        revision = (await self.read())[0]
        await between()
        self._watch = self._client.watch(self._prefix, revision + 1)

    async def told(self, count: int) -> list[tuple[Change, ...]]:
        """What the watch delivers."""
        with anyio.fail_after(PATIENCE_MS / 1000):
            while sum(map(len, self._told)) < count:
                batch = await anext(self._watch)
                if batch.changes:
                    self._told.append(
                        tuple(
                            Change(it.key.removeprefix(self._prefix), it.value, it.mod_revision) for it in batch.changes
                        )
                    )
        return self._told

    async def aclose(self) -> None:
        """End the watch."""
        if self._watch is not None:
            await self._watch.aclose()

    async def change_leader(self) -> None:
        """The leader is killed and comes back as a follower."""
        leader = await anyio.to_thread.run_sync(lambda: self._cluster.leader)
        leader.kill()
        with anyio.fail_after(PATIENCE_MS / 1000):
            while not any(member is not leader and member.is_leader for member in self._cluster.members):  # noqa: ASYNC110
                await anyio.sleep(0.05)
        leader.launch()
        leader.wait_until_healthy()

    async def lose_quorum(self, how: str) -> None:
        """Two of three do not work."""
        self._how, self._lost = how, list(self._cluster.members[:2])
        for member in self._lost:
            if how == "kill":
                member.kill()
            else:
                member.freeze()

    async def regain_quorum(self) -> None:
        """All members work."""
        for member in self._lost:
            if self._how == "kill":
                member.launch()
            else:
                member.thaw()
        self._lost = []
        for member in self._cluster.members:
            member.wait_until_healthy()

    async def wipe(self) -> None:
        """All members begin with empty directories."""
        self._cluster.stop()
        for member in self._cluster.members:
            shutil.rmtree(member.data_directory)
        self._cluster.start()


async def until_written(subject: Subject, operation: Put) -> None:
    """Writes, again and again while the members elect a leader."""
    deadline_ms = subject.now_ms() + PATIENCE_MS
    while subject.now_ms() < deadline_ms:
        with contextlib.suppress(EtcdUnavailable, EtcdOutcomeUnknown):
            await subject.transact((), operation, 2_000)
            return
        await subject.sleep(50)
    raise AssertionError("no write was taken")
