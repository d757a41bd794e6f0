"""etcd as its clients see it: one history of revisions, leases that only its own clock ends, members that come and go.

What is left out on purpose is Raft itself: members agree at once, or not at all while there is no quorum. What a client
cannot tell apart stays indistinguishable: a request that was lost and one whose answer was.
"""

import contextlib
from collections.abc import Callable, Iterable
from typing import Literal

from fsm.facts import KeyChange
from tests.simulation.kernel import MS, Kernel, Outcome, Process, S, Signal, Work
from tests.simulation.network import Network

EXPIRY_SCAN_US = 500 * MS
ELECTION_TIMEOUT_US = 1 * S
"""etcd's default. A new Raft leader gives leases this much beyond their whole time. Source: etcd, lessor.Promote."""
TTL_MIN_S = 2
"""What a lease lives at least: one and a half election timeouts, in whole seconds. Source: etcd, lease.MinLeaseTTL."""
"""How long a request may lie in the buffers of a connection that its client has given up."""
REFUSED_US = 300

Member = Literal["e1", "e2", "e3"]
MEMBERS: tuple[Member, ...] = ("e1", "e2", "e3")


class Unavailable(Outcome):
    """No endpoint took the request."""


class Uncertain(Outcome):
    """The request was sent, and no answer came."""


class LeaseGone(Outcome):
    """etcd does not know the lease."""


class Compacted(Outcome):
    """The watch cannot go on from there."""


class Lease:
    """One lease."""

    __slots__ = ("ends_us", "keys", "ttl_us")

    def __init__(self, ttl_us: int, ends_us: int) -> None:
        self.ttl_us, self.ends_us = ttl_us, ends_us
        self.keys: set[str] = set()


class Etcd:
    """The cluster of members."""

    def __init__(self, kernel: Kernel, network: Network) -> None:
        self._kernel, self._network = kernel, network
        self.process = Process("etcd")
        self.revision = 1
        self.keys: dict[str, KeyChange] = {}
        self.leases: dict[int, Lease] = {}
        self._next_lease = 1
        self.down: set[str] = set()
        """Members that refuse connections."""
        self.frozen: set[str] = set()
        """Members that take connections and never answer."""
        self.delay_us = 0
        """What an answer takes longer at the most."""
        self._pending: list[Callable[[], object]] = []
        """Requests that were taken without a quorum: they may be carried out when there is one."""
        self.watches: list[Watch] = []
        self.look: Callable[[], None] = lambda: None
        kernel.after(kernel.world, EXPIRY_SCAN_US, self._scan)

    # ---- what it does ------------------------------------------------------------------------------------------------

    @property
    def has_quorum(self) -> bool:
        """True when a majority of members works."""
        return len(MEMBERS) - len(self.down | self.frozen) >= 2

    def put(self, key: str, value: str, lease_id: int = 0) -> KeyChange:
        """Write a key."""
        return self.put_all([(key, value, lease_id)])[0]

    def put_all(self, puts: list[tuple[str, str, int]]) -> tuple[KeyChange, ...]:
        """Write keys in one transaction."""
        if any(lease_id and lease_id not in self.leases for _, _, lease_id in puts):
            raise LeaseGone
        self.revision += 1
        changes = tuple(self._put(*one) for one in puts)
        self._tell(changes)
        return changes

    def _put(self, key: str, value: str, lease_id: int) -> KeyChange:
        known = self.keys.get(key)
        self._unbind(known)
        created = known.create_revision if known is not None else self.revision
        change = KeyChange(key=key, value=value, mod_revision=self.revision, create_revision=created, lease_id=lease_id)
        self.keys[key] = change
        if lease_id:
            self.leases[lease_id].keys.add(key)
        return change

    def delete(self, key: str) -> KeyChange | None:
        """Delete a key, if there is one."""
        gone = self._delete_all((key,))
        return gone[0] if gone else None

    def _delete_all(self, keys: Iterable[str]) -> tuple[KeyChange, ...]:
        """Delete what there is of some keys in one transaction: at one revision, told in one batch."""
        there = [self.keys.pop(key) for key in keys if key in self.keys]
        if not there:
            return ()
        self.revision += 1
        for known in there:
            self._unbind(known)
        changes = tuple(KeyChange(key=known.key, value=None, mod_revision=self.revision) for known in there)
        self._tell(changes)
        return changes

    def _unbind(self, known: KeyChange | None) -> None:
        if known is not None and known.lease_id in self.leases:
            self.leases[known.lease_id].keys.discard(known.key)

    def grant(self, ttl_s: int) -> int:
        """A new lease; it may live longer than was asked for."""
        self._next_lease += 1
        ttl_us = max(ttl_s, TTL_MIN_S) * S
        self.leases[self._next_lease] = Lease(ttl_us, self._kernel.now_us + ttl_us)
        return self._next_lease

    def renew(self, lease_id: int) -> int:
        """The lease's life begins again; its seconds. One whose time is over is gone, whether it was seen to be or not.

        Source: etcd, lessor.Renew: it waits until an expired lease is revoked, and says that there is none.
        """
        lease = self.leases.get(lease_id)
        if lease is None:
            raise LeaseGone
        if lease.ends_us <= self._kernel.now_us:
            self.revoke(lease_id)
            raise LeaseGone
        lease.ends_us = self._kernel.now_us + lease.ttl_us
        return lease.ttl_us // S

    def revoke(self, lease_id: int) -> None:
        """The lease ends, and every key that hangs on it, in one transaction. Raises: LeaseGone."""
        lease = self.leases.pop(lease_id, None)
        if lease is None:
            raise LeaseGone
        self._delete_all(sorted(lease.keys))

    def _scan(self) -> None:
        if self.has_quorum:
            for lease_id in [found for found, lease in self.leases.items() if lease.ends_us <= self._kernel.now_us]:
                self.revoke(lease_id)
        self._kernel.after(self._kernel.world, EXPIRY_SCAN_US, self._scan)

    # ---- what happens to it ------------------------------------------------------------------------------------------

    def set_members(self, *, down: set[str] | None = None, frozen: set[str] | None = None) -> None:
        """Which members do not work. A new Raft leader gives every lease its whole life again."""
        had = self.has_quorum
        self.down = self.down if down is None else down
        self.frozen = self.frozen if frozen is None else frozen
        if self.has_quorum and not had:
            self.change_leader()
            pending, self._pending = self._pending, []
            for carry_out in pending:
                if self._kernel.rng.random() < 0.5:
                    with contextlib.suppress(Outcome):  # nobody waits for the answer any more
                        carry_out()

    def change_leader(self) -> None:
        """Another member leads: leases live on from now. Source: etcd, lessor.Promote."""
        for lease in self.leases.values():
            lease.ends_us = self._kernel.now_us + lease.ttl_us + ELECTION_TIMEOUT_US

    def wipe(self) -> None:
        """Everything is gone, as after a new installation."""
        self.revision = 1
        self.keys.clear()
        self.leases.clear()
        self._pending.clear()
        self.break_watches()

    def break_watches(self) -> None:
        """Every watch ends, and cannot go on from where it was."""
        for watch in self.watches:
            watch.is_broken = True

    def _tell(self, changes: tuple[KeyChange, ...]) -> None:
        self.look()
        for watch in self.watches:
            watch.take(self.revision, changes)

    # ---- how clients reach it ----------------------------------------------------------------------------------------

    def serves(self, member: str, host: str) -> bool:
        """True when a member answers a host."""
        works = member not in self.down and member not in self.frozen
        return works and self._network.is_open(host, member) and self._network.is_open(member, host)

    def hold(self, carry_out: Callable[[], object]) -> None:
        """A request that waits for a quorum."""
        self._pending.append(carry_out)


class Watch:
    """A watch on all keys through one member; what it tells comes in order, and late rather than never."""

    def __init__(self, etcd: Etcd, host: str, member: str, process: Process, told: Signal) -> None:
        self._etcd, self._host, self._process, self._told = etcd, host, process, told
        self.member = member
        self.is_broken = False
        self.arrived: list[tuple[int, tuple[KeyChange, ...]]] = []
        self._under_way: list[tuple[int, tuple[KeyChange, ...]]] = []
        self._last_us = 0

    def take(self, revision: int, changes: tuple[KeyChange, ...]) -> None:
        """A change happened."""
        self._under_way.append((revision, changes))
        self.pump()

    def pump(self) -> None:
        """Send what was not sent yet, if the way is open."""
        if self.is_broken or not self._under_way or not self._etcd.serves(self.member, self._host):
            return
        kernel = self._etcd._kernel
        batches, self._under_way = self._under_way, []
        at_us = max(self._last_us, kernel.now_us + self._etcd._network.delay_us())
        self._last_us = at_us
        kernel.after(self._process, at_us - kernel.now_us, self._arrive, batches)

    def _arrive(self, batches: list[tuple[int, tuple[KeyChange, ...]]]) -> None:
        self.arrived.extend(batches)
        self._told.fire()


class Client:
    """One node's way to etcd: every endpoint in turn, as effects/etcd.py does it."""

    def __init__(self, etcd: Etcd, network: Network, kernel: Kernel, host: str) -> None:
        self._etcd, self._network, self._kernel, self._host = etcd, network, kernel, host
        self._at = kernel.rng.randrange(3)

    def call(self, carry_out: Callable[[], object], timeout_ms: int) -> Work:
        """The request's result. Raises: Unavailable, Uncertain, LeaseGone."""
        deadline_us = self._kernel.now_us + timeout_ms * MS
        for _ in MEMBERS:
            member = MEMBERS[self._at]
            if member not in self._etcd.down:
                return (yield from self._call(member, carry_out, deadline_us))
            self._at = (self._at + 1) % 3
            yield REFUSED_US
        raise Unavailable("every endpoint refused")

    def _call(self, member: str, carry_out: Callable[[], object], deadline_us: int) -> Work:
        etcd, rng = self._etcd, self._kernel.rng
        yield self._network.delay_us() + (rng.randrange(etcd.delay_us) // 2 if etcd.delay_us else 0)
        gets_there = self._network.is_open(self._host, member) and member not in etcd.down | etcd.frozen
        if gets_there and not etcd.has_quorum:
            etcd.hold(carry_out)
            gets_there = False
        if not gets_there:
            yield from self._silence(deadline_us)
        result = carry_out()
        yield self._network.delay_us() + (rng.randrange(etcd.delay_us) // 2 if etcd.delay_us else 0)
        if not etcd.serves(member, self._host) or self._kernel.now_us > deadline_us:
            yield from self._silence(deadline_us)
        return result

    def _silence(self, deadline_us: int) -> Work:
        self._at = (self._at + 1) % 3
        yield max(0, deadline_us - self._kernel.now_us)
        raise Uncertain("no answer in time")

    def watch(self, process: Process, told: Signal) -> Watch:
        """A watch through the endpoint that served last."""
        watch = Watch(self._etcd, self._host, MEMBERS[self._at], process, told)
        self._etcd.watches.append(watch)
        return watch

    def end_watch(self, watch: Watch) -> None:
        """Nobody listens any more; the next one goes through another endpoint."""
        watch.is_broken = True
        self._etcd.watches.remove(watch)
        self._at = (self._at + 1) % 3
