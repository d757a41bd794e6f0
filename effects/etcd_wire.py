"""etcd's gRPC: requests, answers and errors, each put into our own words. The only module that imports etcd3 and grpc.

Of the package `etcd3` only the generated stubs are used, on asyncio channels. What is asked of whom, and how often, is
decided in `effects.etcd`.
"""

import asyncio
import contextlib
import os
import warnings
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import anyio
import anyio.lowlevel

from effects.clock import now_ms
from effects.errors import (
    ConfigError,
    EtcdError,
    EtcdOutcomeUnknown,
    EtcdRefused,
    EtcdUnavailable,
    LeaseGone,
    WatchCompacted,
)
from effects.etcd_types import (
    Compare,
    EtcdTls,
    KeyChange,
    KeysRead,
    KeyValue,
    Lease,
    Operation,
    Put,
    Transacted,
    WatchBatch,
)

# The stubs of etcd3 0.12 were generated in 2019; only protobuf's Python implementation still reads them.
os.environ.setdefault("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION", "python")
# gRPC's fork handlers would run, and complain, at each start of a program as another user.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    import grpc
    import grpc.aio
    from etcd3 import etcdrpc as etcdrpc  # tests set up users with it

T = TypeVar("T")
Metadata = tuple[tuple[str, str], ...]
# One request, ready to be sent to an endpoint with a timeout in seconds.
Send = Callable[["Endpoint", Metadata, float], Awaitable[T]]

MESSAGE_BYTES_MAX = 64 * 1024 * 1024
CHANNEL_OPTIONS = (
    # etcd closes connections that ping more often than every 5 s, or without a call (--grpc-keepalive-min-time).
    ("grpc.keepalive_time_ms", 6_000),
    ("grpc.keepalive_timeout_ms", 2_000),
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.http2.max_pings_without_data", 0),
    # The defaults, 1 s to 2 min between attempts to connect, are for fleets of clients, not for three agents.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.min_reconnect_backoff_ms", 2_000),
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    # gRPC would repeat calls on its own account; a repeated transaction could answer "not applied" to its own success.
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.service_config_disable_resolution", 1),
)
# A member without a leader refuses at once, with ErrNoLeader, what it would otherwise hold until its own timeout.
REQUIRE_LEADER = ("hasleader", "true")

# etcd's own messages are in its api/v3rpc/rpctypes/error.go. The code alone does not tell "never proposed" from
# "proposed and not heard of again": Unavailable is both. Up to 3.6 "not a primary lessor" comes as Unknown
# (etcd-io/etcd#21671).
NEVER_APPLIED = (
    "failed to connect",
    "connection refused",
    "resolution failed",
    "no leader",
    "not leader",
    "primary lessor",
    "too many requests",
    "proposal dropped",
    "corrupt cluster",
)
TOKEN_FAULTS = ("invalid auth token", "user name is empty", "auth store is old", "auth revision in header is old")
REFUSALS = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.UNIMPLEMENTED,
}
# WatchProgressRequest (etcd 3.4) is younger than the stubs: field 3 of WatchRequest, an empty message. Parsing keeps
# fields it does not know, and serializing writes them again.
PROGRESS_REQUEST = etcdrpc.WatchRequest.FromString(b"\x1a\x00")


class TokenFault(EtcdRefused):
    """etcd does not take the token: it expired, or users or roles were changed since."""


class Endpoint:
    """One etcd member: its channel and stubs, and when it last answered. It connects at the first call."""

    def __init__(self, address: str, credentials: Any) -> None:
        self.address = address
        self.answered_at_ms: int | None = None
        self._channel = (
            grpc.aio.secure_channel(address, credentials, options=CHANNEL_OPTIONS)
            if credentials
            else grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
        )
        self.kv = etcdrpc.KVStub(self._channel)
        self.lease = etcdrpc.LeaseStub(self._channel)
        self.auth = etcdrpc.AuthStub(self._channel)
        self.watch = etcdrpc.WatchStub(self._channel)

    def answered_within(self, duration_ms: int) -> bool:
        """True when it answered anything so recently."""
        return self.answered_at_ms is not None and now_ms() - self.answered_at_ms < duration_ms

    async def ask(self, send: Send[T], token: str | None, timeout_ms: int, *, is_write: bool) -> T:
        """The answer to one request. Raises: EtcdError; `is_write` tells whether a lost answer leaves doubt."""
        if timeout_ms <= 0:
            raise EtcdUnavailable(f"{self.address}: no time left to ask")
        try:
            answer = await send(self, metadata_with(token), timeout_ms / 1000)
        except grpc.aio.AioRpcError as error:
            renamed = renamed_error(error, self.address, is_write=is_write)
            # Not a refusal either: a proxy or a broken member can say no to everything.
            self.answered_at_ms = now_ms() if isinstance(renamed, LeaseGone) else None
            raise renamed from None
        except asyncio.CancelledError:
            await _raise_if_cancelled()
            text = f"{self.address}: the client was closed during the call"
            raise (EtcdOutcomeUnknown(text) if is_write else EtcdUnavailable(text)) from None
        self.answered_at_ms = now_ms()
        return answer

    async def aclose(self) -> None:
        """Closes the channel; its calls are cancelled."""
        # gRPC reports the ends of cancelled calls later, and in order. Once this call, which only fails, has ended, so
        # have those before it, and none is left to be reported to an event loop that may be closed by then.
        with contextlib.suppress(grpc.aio.AioRpcError):
            await self.kv.Range(etcdrpc.RangeRequest(), timeout=0)
        await self._channel.close()


def credentials_of(tls: EtcdTls) -> Any:
    """gRPC's credentials from files. Raises: ConfigError naming the files that cannot be read."""
    faults: list[str] = []

    def content_of(path: Path | None) -> bytes | None:
        try:
            return path.read_bytes() if path else None
        except OSError as error:
            faults.append(f"etcd TLS: cannot read {path}: {error.strerror}")
            return None

    authority, certificate, key = (content_of(path) for path in (tls.ca_file, tls.cert_file, tls.key_file))
    if faults:
        raise ConfigError(faults)
    return grpc.ssl_channel_credentials(authority, key, certificate)


def metadata_with(token: str | None) -> Metadata:
    """The metadata of every call: a leader is required, and who is asking."""
    return (REQUIRE_LEADER, ("token", token)) if token else (REQUIRE_LEADER,)


def renamed_error(error: Any, address: str, *, is_write: bool) -> EtcdError:
    """Our error for gRPC's. A failure that is not certainly "not applied" is an unknown outcome for a write."""
    code, details = error.code(), error.details() or ""
    text = f"{address}: {details or code.name}"
    if "lease not found" in details:
        return LeaseGone(text)
    if code is grpc.StatusCode.UNAUTHENTICATED or any(sign in details for sign in TOKEN_FAULTS):
        return TokenFault(text)
    if any(sign in details.lower() for sign in NEVER_APPLIED):
        return EtcdUnavailable(text)
    if code in REFUSALS:
        return EtcdRefused(text)
    return EtcdOutcomeUnknown(text) if is_write else EtcdUnavailable(text)


async def _raise_if_cancelled() -> None:
    """Raises the cancellation of this task, if it was cancelled.

    gRPC raises CancelledErrors of its own making, which a cancel scope does not know as its own, and raises them also
    in tasks that nobody cancelled when their channel is closed.
    """
    await anyio.lowlevel.checkpoint_if_cancelled()
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


# Requests, each ready to be sent to any endpoint ---------------------------------------------------------------------


def reading(prefix: str) -> Send[KeysRead]:
    """Reads all keys below the prefix, linearizable."""
    request = etcdrpc.RangeRequest(key=prefix.encode(), range_end=_end_of(prefix))

    async def send(endpoint: Endpoint, metadata: Metadata, timeout_s: float) -> KeysRead:
        response = await endpoint.kv.Range(request, metadata=metadata, timeout=timeout_s)
        return KeysRead(revision=response.header.revision, keys=tuple(_key_value(kv) for kv in response.kvs))

    return send


def probing(key: str) -> Send[None]:
    """Asks for a sign of life: a count that the member answers alone, and only while it has a leader."""
    request = etcdrpc.RangeRequest(key=key.encode(), serializable=True, count_only=True)

    async def send(endpoint: Endpoint, metadata: Metadata, timeout_s: float) -> None:
        await endpoint.kv.Range(request, metadata=metadata, timeout=timeout_s)

    return send


def authenticating(username: str, password: str) -> Send[str]:
    """Exchanges the password for a token; "" where authentication is not enabled."""
    request = etcdrpc.AuthenticateRequest(name=username, password=password)

    async def send(endpoint: Endpoint, metadata: Metadata, timeout_s: float) -> str:
        try:
            response = await endpoint.auth.Authenticate(request, metadata=metadata, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            if "authentication is not enabled" in (error.details() or ""):
                return ""
            raise
        return str(response.token)

    return send


def granting(ttl_s: int) -> Send[Lease]:
    """Makes a lease."""
    request = etcdrpc.LeaseGrantRequest(TTL=ttl_s)

    async def send(endpoint: Endpoint, metadata: Metadata, timeout_s: float) -> Lease:
        sent_at_ms = now_ms()
        response = await endpoint.lease.LeaseGrant(request, metadata=metadata, timeout=timeout_s)
        return Lease(lease_id=response.ID, ttl_s=response.TTL, sent_at_ms=sent_at_ms)

    return send


def renewing(lease_id: int) -> Send[Lease]:
    """Renews a lease: one request and one answer on a stream that is closed again."""
    request = etcdrpc.LeaseKeepAliveRequest(ID=lease_id)

    async def send(endpoint: Endpoint, metadata: Metadata, timeout_s: float) -> Lease:
        call = endpoint.lease.LeaseKeepAlive(metadata=metadata, timeout=timeout_s)
        try:
            sent_at_ms = now_ms()
            with contextlib.suppress(asyncio.InvalidStateError):  # the call has ended; reading from it tells why
                await call.write(request)
            response = await call.read()
        finally:
            call.cancel()
        if response is grpc.aio.EOF:
            raise EtcdOutcomeUnknown(f"{endpoint.address}: the stream of the renewal was closed")
        if response.TTL <= 0:
            raise LeaseGone(f"{endpoint.address}: lease {lease_id:x} is gone")
        return Lease(lease_id=response.ID, ttl_s=response.TTL, sent_at_ms=sent_at_ms)

    return send


def revoking(lease_id: int) -> Send[None]:
    """Ends a lease and deletes its keys."""
    request = etcdrpc.LeaseRevokeRequest(ID=lease_id)

    async def send(endpoint: Endpoint, metadata: Metadata, timeout_s: float) -> None:
        await endpoint.lease.LeaseRevoke(request, metadata=metadata, timeout=timeout_s)

    return send


def transacting(
    compares: Sequence[Compare], operations: Sequence[Operation], else_read: str | None
) -> Send[Transacted]:
    """Does all operations if all compares are true; otherwise reads the key `else_read`."""
    otherwise = (
        [] if else_read is None else [etcdrpc.RequestOp(request_range=etcdrpc.RangeRequest(key=else_read.encode()))]
    )
    request = etcdrpc.TxnRequest(
        compare=[_compare(compare) for compare in compares],
        success=[_request_op(operation) for operation in operations],
        failure=otherwise,
    )

    async def send(endpoint: Endpoint, metadata: Metadata, timeout_s: float) -> Transacted:
        response = await endpoint.kv.Txn(request, metadata=metadata, timeout=timeout_s)
        read = [] if response.succeeded else [kv for answer in response.responses for kv in answer.response_range.kvs]
        return Transacted(
            applied=response.succeeded, revision=response.header.revision, found=_key_value(read[0]) if read else None
        )

    return send


def _compare(compare: Compare) -> Any:
    target = {"create_revision": "CREATE", "mod_revision": "MOD", "value": "VALUE", "lease": "LEASE"}[compare.target]
    expected = compare.expected.encode() if isinstance(compare.expected, str) else compare.expected
    return etcdrpc.Compare(
        key=compare.key.encode(),
        result=etcdrpc.Compare.EQUAL,
        target=etcdrpc.Compare.CompareTarget.Value(target),
        **{compare.target: expected},
    )


def _request_op(operation: Operation) -> Any:
    key = operation.key.encode()
    if isinstance(operation, Put):
        value = operation.value.encode()
        return etcdrpc.RequestOp(request_put=etcdrpc.PutRequest(key=key, value=value, lease=operation.lease_id))
    return etcdrpc.RequestOp(request_delete_range=etcdrpc.DeleteRangeRequest(key=key))


def _end_of(prefix: str) -> bytes:
    # The first key after all keys with the prefix. UTF-8 has no byte 0xff, so the last byte can always be raised; an
    # empty prefix means all keys, which etcd spells as a zero byte.
    raw = prefix.encode()
    return raw[:-1] + bytes([raw[-1] + 1]) if raw else b"\0"


def _key_value(kv: Any) -> KeyValue:
    return KeyValue(
        key=kv.key.decode(errors="replace"),
        value=kv.value.decode(errors="replace"),
        lease_id=kv.lease,
        create_revision=kv.create_revision,
        mod_revision=kv.mod_revision,
    )


# Watching ------------------------------------------------------------------------------------------------------------


class WatchStream:
    """One watch on one endpoint, that keeps the endpoint talking and notices when it has fallen silent."""

    def __init__(self, endpoint: Endpoint, token: str | None, *, progress_every_ms: int, silence_max_ms: int) -> None:
        self._endpoint = endpoint
        self._progress_every_ms, self._silence_max_ms = progress_every_ms, silence_max_ms
        self._call = endpoint.watch.Watch(metadata=metadata_with(token))
        self._reading: asyncio.Task[Any] | None = None
        self._delivered = 0

    def expect_progress(self, every_ms: int, silence_max_ms: int) -> None:
        """From now on ask for a sign of life this often, and take the endpoint for frozen after that long a silence."""
        self._progress_every_ms, self._silence_max_ms = every_ms, silence_max_ms

    async def open(self, prefix: str, from_revision: int) -> None:
        """Asks for the changes from a revision on. Raises: EtcdUnavailable, EtcdRefused."""
        self._delivered = max(from_revision - 1, 0)
        creation = etcdrpc.WatchCreateRequest(
            key=prefix.encode() or b"\0", range_end=_end_of(prefix), start_revision=from_revision
        )
        await self._request(etcdrpc.WatchRequest(create_request=creation))

    async def next_batch(self) -> WatchBatch:
        """The next changes, or an empty batch as a sign of life.

        Raises: WatchCompacted, EtcdRefused, TokenFault, and EtcdUnavailable when the stream breaks or stays silent.
        """
        response = await self._next_response()
        self._endpoint.answered_at_ms = now_ms()
        if response.canceled:
            raise self._cancellation(response)
        changes = tuple(_key_change(event) for event in response.events)
        # Not the header's revision: that is the store's, and may be ahead of events still to come, also in an answer
        # about progress (etcd-io/etcd#15220: up to 3.4.24 and 3.5.7).
        self._delivered = changes[-1].mod_revision if changes else self._delivered
        return WatchBatch(revision=self._delivered, changes=changes)

    async def aclose(self) -> None:
        """Cancels the call and waits until nothing of it is left."""
        self._call.cancel()
        with anyio.CancelScope(shield=True):
            if self._reading is not None:
                await asyncio.wait({self._reading})
            await self._call.code()

    async def _request(self, message: Any) -> None:
        try:
            with (
                anyio.fail_after(self._progress_every_ms / 1000),
                contextlib.suppress(asyncio.InvalidStateError),  # the call has ended; reading from it tells why
            ):
                await self._call.write(message)
        except TimeoutError:
            raise self._unavailable("takes no requests for a watch") from None
        except grpc.aio.AioRpcError as error:
            raise renamed_error(error, self._endpoint.address, is_write=False) from None
        except asyncio.CancelledError:
            await _raise_if_cancelled()
            raise self._unavailable("the client was closed during the watch") from None

    async def _next_response(self) -> Any:
        silent_since_ms = now_ms()
        while not await self._has_response():
            if now_ms() - silent_since_ms >= self._silence_max_ms:
                raise self._unavailable(f"silent for {self._silence_max_ms} ms on a watch")
            await self._request(PROGRESS_REQUEST)
        assert self._reading is not None
        reading, self._reading = self._reading, None
        try:
            response = reading.result()
        except grpc.aio.AioRpcError as error:
            raise renamed_error(error, self._endpoint.address, is_write=False) from None
        except asyncio.CancelledError:
            raise self._unavailable("the client was closed during the watch") from None
        if response is grpc.aio.EOF:
            raise self._unavailable("closed the watch")
        return response

    async def _has_response(self) -> bool:
        # A cancelled read() would cancel the whole call, so the read goes on in a task of its own over many waits.
        if self._reading is None:
            self._reading = asyncio.ensure_future(self._call.read())
            self._reading.add_done_callback(lambda task: task.cancelled() or task.exception())
        await asyncio.wait({self._reading}, timeout=self._progress_every_ms / 1000)
        return self._reading.done()

    def _unavailable(self, what: str) -> EtcdUnavailable:
        return EtcdUnavailable(f"{self._endpoint.address}: {what}")

    def _cancellation(self, response: Any) -> EtcdError:
        text = f"{self._endpoint.address}: watch cancelled: {response.cancel_reason}"
        if response.compact_revision:
            return WatchCompacted(f"{text}: compacted up to revision {response.compact_revision}")
        # etcd 3.4 and 3.5 say "permission denied" for an expired token as well.
        if "permission denied" in response.cancel_reason or "auth" in response.cancel_reason:
            return TokenFault(text)
        return EtcdUnavailable(text)


def _key_change(event: Any) -> KeyChange:
    kv, is_deleted = event.kv, event.type == event.DELETE
    return KeyChange(
        key=kv.key.decode(errors="replace"),
        value=None if is_deleted else kv.value.decode(errors="replace"),
        lease_id=kv.lease,
        create_revision=kv.create_revision,
        mod_revision=kv.mod_revision,
    )
