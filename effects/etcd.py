"""The etcd client: which endpoint is asked, for how long, and what a failure means for the caller.

A call tries every endpoint: the one that answered last goes first, and an endpoint that is merely slow keeps its chance
while the next one is asked too. It ends as soon as all have failed: waiting for better times is the caller's decision.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Generic, Self, TypeVar

import anyio

from effects.clock import now_ms
from effects.errors import EtcdError, EtcdOutcomeUnknown, EtcdRefused, EtcdUnavailable, LeaseGone
from effects.etcd_types import Compare, EtcdTls, KeysRead, Lease, Operation, Transacted, WatchBatch
from effects.etcd_wire import (
    Endpoint,
    Send,
    TokenFault,
    WatchStream,
    authenticating,
    credentials_of,
    granting,
    probing,
    reading,
    renewing,
    revoking,
    transacting,
)

T = TypeVar("T")

# After this long without an answer the next endpoint is asked as well. A healthy etcd answers within its heartbeat
# interval, 100 ms by default.
HEDGE_AFTER_MS = 250
# A transaction cannot be asked twice, so it goes to an endpoint that showed life this recently, or is asked first.
TRUSTED_FOR_MS = 500
PROGRESS_EVERY_MS = 2_000
SILENCE_MAX_MS = 5_000
# A token younger than this did not expire; a refusal then is about permissions. etcd's simple tokens live 300 s.
TOKEN_FRESH_FOR_MS = 10_000


class _Race(Generic[T]):
    """The attempts at one call, side by side: the first answer counts.

    A refusal is one endpoint's until all have refused: a broken member, or a proxy without a backend, refuses all.
    """

    def __init__(self) -> None:
        self._answer: tuple[Endpoint, T] | None = None
        self._verdict: LeaseGone | None = None
        self._failures: list[EtcdError] = []
        self._news = anyio.Event()

    async def run(self, endpoint: Endpoint, attempt: Callable[[Endpoint], Awaitable[T]]) -> None:
        """One attempt; how it ended is kept."""
        try:
            answer = await attempt(endpoint)
            self._answer = self._answer or (endpoint, answer)
        except LeaseGone as error:
            self._verdict = error
        except EtcdError as error:
            self._failures.append(error)
        self._news.set()

    @property
    def is_over(self) -> bool:
        """True when etcd has answered, also that a lease is gone."""
        return self._answer is not None or self._verdict is not None

    @property
    def failure_count(self) -> int:
        """How many attempts ended without an answer."""
        return len(self._failures)

    def is_lost_after(self, started: int, endpoint_count: int) -> bool:
        """True when every endpoint was asked and every attempt has failed."""
        return started >= endpoint_count and self.failure_count == started

    async def wait_for_news(self, timeout_ms: float | None = None) -> None:
        """Returns when an attempt has ended, or after the time given."""
        with anyio.move_on_after(None if timeout_ms is None else timeout_ms / 1000):
            await self._news.wait()
        self._news = anyio.Event()

    def result(self) -> tuple[Endpoint, T]:
        """The answer and who gave it. Raises: LeaseGone, or what the failures amount to."""
        if self._answer:
            return self._answer
        raise self._verdict or _combined(self._failures)


class EtcdClient:
    """A client of one etcd cluster, for one event loop. Use it as an async context manager, or call `aclose`."""

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        tls: EtcdTls | None = None,
        username: str | None = None,
        password: str | None = None,
        trusted_for_ms: int = TRUSTED_FOR_MS,
        progress_every_ms: int = PROGRESS_EVERY_MS,
        silence_max_ms: int = SILENCE_MAX_MS,
    ) -> None:
        """Prepares a client; nothing connects yet. Must be made inside a running event loop.

        endpoints: "host:port" each, at least one. username, password: for an etcd with authentication.
        trusted_for_ms: how recent an answer makes an endpoint good for a transaction without asking it first.
        progress_every_ms, silence_max_ms: how a watch notices that its endpoint is frozen.
        Raises: ConfigError when a file of `tls` cannot be read. Source: Patroni's settings etcd3.*.
        """
        credentials = credentials_of(tls) if tls else None
        self._endpoints = [Endpoint(address, credentials) for address in endpoints]
        self._username, self._password = username, password
        self._token: str | None = None
        self._token_since_ms = 0
        self._trusted_for_ms = trusted_for_ms
        self._progress_every_ms, self._silence_max_ms = progress_every_ms, silence_max_ms

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Closes all connections; calls under way are cancelled."""
        with anyio.CancelScope(shield=True):
            for endpoint in self._endpoints:
                await endpoint.aclose()

    @property
    def preferred_endpoint(self) -> str:
        """The "host:port" that the next call asks first."""
        return self._endpoints[0].address

    async def read_prefix(self, prefix: str, *, timeout_ms: int) -> KeysRead:
        """All keys below the prefix, as of now (linearizable): never older than what was written before the call.

        Raises: EtcdUnavailable when no endpoint answers, EtcdRefused. Source: etcd KV.Range.
        """
        return await self._first_answer(reading(prefix), timeout_ms, is_write=False)

    async def grant_lease(self, ttl_s: int, *, timeout_ms: int) -> Lease:
        """A new lease, with the time to live that etcd granted, which may be longer than asked for.

        After a failure etcd may hold a lease that nobody knows of; it expires by itself.
        Raises: EtcdUnavailable, EtcdOutcomeUnknown, EtcdRefused. Source: etcd Lease.LeaseGrant.
        """
        return await self._first_answer(granting(ttl_s), timeout_ms, is_write=True)

    async def renew_lease(self, lease_id: int, *, timeout_ms: int) -> Lease:
        """The lease, renewed to its full time to live by etcd at some instant after `sent_at_ms`.

        Raises: LeaseGone, EtcdUnavailable, EtcdOutcomeUnknown, EtcdRefused. Source: etcd Lease.LeaseKeepAlive.
        """
        return await self._first_answer(renewing(lease_id), timeout_ms, is_write=True)

    async def revoke_lease(self, lease_id: int, *, timeout_ms: int) -> None:
        """Ends the lease and deletes its keys at once.

        Raises: LeaseGone when it was gone already, EtcdUnavailable, EtcdOutcomeUnknown, EtcdRefused.
        Source: etcd Lease.LeaseRevoke.
        """
        await self._first_answer(revoking(lease_id), timeout_ms, is_write=True)

    async def transact(
        self,
        compares: Sequence[Compare],
        operations: Sequence[Operation],
        *,
        timeout_ms: int,
        else_read: str | None = None,
    ) -> Transacted:
        """Does all operations if all compares are true, none otherwise.

        It goes to a second endpoint only when it was certainly not applied by the first.
        else_read: a key to read in the same transaction when a compare is false; see `Transacted.found`.
        Raises: EtcdUnavailable, EtcdOutcomeUnknown, EtcdRefused, LeaseGone (of a `put`). Source: etcd KV.Txn.
        """
        send = transacting(compares, operations, else_read)
        probe = probing(next((part.key for part in (*compares, *operations)), "\0"))
        deadline_ms, failures = now_ms() + timeout_ms, list[EtcdError]()
        for _ in self._endpoints:
            endpoint = await self._living_endpoint(probe, deadline_ms)
            try:
                return await self._ask(endpoint, send, deadline_ms, is_write=True)
            except (EtcdUnavailable, EtcdRefused) as error:
                failures.append(error)
        raise _combined(failures)

    def expect_progress(self, every_ms: int) -> None:
        """Ask watches for a sign of life this often from their next batch on, and take 2.5 times that for frozen."""
        self._progress_every_ms, self._silence_max_ms = every_ms, every_ms * 5 // 2

    async def watch(self, prefix: str, from_revision: int) -> AsyncGenerator[WatchBatch, None]:
        """The changes below the prefix from a revision on, in order, and an empty batch as a sign of life.

        The first batch is empty and tells that the watch stands. One endpoint is asked; after a failure call it again
        with the last batch's `revision + 1`: it will ask another one. Close it with `contextlib.aclosing`.
        from_revision: 0 is from now on.
        Raises: WatchCompacted (read again), EtcdUnavailable (stream cut, no leader, endpoint silent), EtcdRefused.
        Source: etcd Watch.Watch.
        """
        endpoint = self._endpoints[0]
        try:
            token = await self._token_except(None, endpoint, now_ms() + self._progress_every_ms)
            stream = WatchStream(
                endpoint, token, progress_every_ms=self._progress_every_ms, silence_max_ms=self._silence_max_ms
            )
            try:
                await stream.open(prefix, from_revision)
                while True:
                    yield await stream.next_batch()
                    stream.expect_progress(self._progress_every_ms, self._silence_max_ms)
            finally:
                await stream.aclose()
        except TokenFault as error:
            self._put_last(endpoint)
            self._raise_if_fresh(error)
            self._token = None
            raise EtcdUnavailable(str(error)) from None
        except (EtcdUnavailable, EtcdRefused):
            self._put_last(endpoint)
            raise

    async def _first_answer(self, send: Send[T], timeout_ms: int, *, is_write: bool) -> T:
        return (await self._race(send, now_ms() + timeout_ms, is_write=is_write))[1]

    async def _race(self, send: Send[T], deadline_ms: int, *, is_write: bool) -> tuple[Endpoint, T]:
        """Asks the endpoints, each a moment after the one before, until one has answered.

        While attempts hang the round begins again, ever more slowly: a follower forwards a renewal to the leader that
        it knows, and goes on to wait for a dead one after another was elected; only a new request finds the new one.
        """
        race, endpoints = _Race[T](), tuple(self._endpoints)

        async def attempt(endpoint: Endpoint) -> T:
            return await self._ask(endpoint, send, deadline_ms, is_write=is_write)

        async with anyio.create_task_group() as attempts:
            started, pause_ms = 0, HEDGE_AFTER_MS
            while now_ms() < deadline_ms and not race.is_lost_after(started, len(endpoints)):
                attempts.start_soon(race.run, endpoints[started % len(endpoints)], attempt)
                started += 1
                await race.wait_for_news(min(pause_ms, deadline_ms - now_ms()))
                if race.is_over:
                    break
                if started % len(endpoints) == 0:
                    pause_ms *= 2
            while not race.is_over and race.failure_count < started:
                await race.wait_for_news()
            attempts.cancel_scope.cancel()
        endpoint, answer = race.result()
        self._put_first(endpoint)
        return endpoint, answer

    async def _living_endpoint(self, probe: Send[None], deadline_ms: int) -> Endpoint:
        """An endpoint that answered a moment ago, or does so now. Raises: EtcdUnavailable, and nothing was sent."""
        if self._endpoints[0].answered_within(self._trusted_for_ms):
            return self._endpoints[0]
        try:
            return (await self._race(probe, deadline_ms, is_write=False))[0]
        except EtcdRefused:
            # An answer as well: the transaction will hear it too, and say it in its own words.
            return self._endpoints[0]

    async def _ask(self, endpoint: Endpoint, send: Send[T], deadline_ms: int, *, is_write: bool) -> T:
        """One endpoint's answer; a token that it does not take any more is renewed once."""
        try:
            token = await self._token_except(None, endpoint, deadline_ms)
            try:
                return await endpoint.ask(send, token, deadline_ms - now_ms(), is_write=is_write)
            except TokenFault:
                token = await self._token_except(token, endpoint, deadline_ms)
                return await endpoint.ask(send, token, deadline_ms - now_ms(), is_write=is_write)
        except (EtcdUnavailable, EtcdOutcomeUnknown, EtcdRefused):
            self._put_last(endpoint)
            raise

    async def _token_except(self, stale: str | None, endpoint: Endpoint, deadline_ms: int) -> str | None:
        """The token for the next request, from etcd if there is none but the stale one; None without a user name."""
        if self._username is not None and self._token in (None, stale):
            login = authenticating(self._username, self._password or "")
            self._token = await endpoint.ask(login, None, deadline_ms - now_ms(), is_write=False)
            self._token_since_ms = now_ms()
        return self._token

    def _raise_if_fresh(self, error: TokenFault) -> None:
        if self._username is None or now_ms() - self._token_since_ms < TOKEN_FRESH_FOR_MS:
            raise error

    def _put_first(self, endpoint: Endpoint) -> None:
        self._endpoints.remove(endpoint)
        self._endpoints.insert(0, endpoint)

    def _put_last(self, endpoint: Endpoint) -> None:
        self._endpoints.remove(endpoint)
        self._endpoints.append(endpoint)


def _combined(failures: Sequence[EtcdError]) -> EtcdError:
    """What failures at all endpoints amount to: an unknown outcome before a refusal, a refusal before silence."""
    text = "; ".join(dict.fromkeys(str(error) for error in failures)) or "no time left to ask etcd"
    if any(isinstance(error, EtcdOutcomeUnknown) for error in failures):
        return EtcdOutcomeUnknown(text)
    return EtcdRefused(text) if any(isinstance(error, EtcdRefused) for error in failures) else EtcdUnavailable(text)
