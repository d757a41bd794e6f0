"""An etcd of the tests' own: keeps keys and leases, speaks etcd's gRPC, and fails in each way that an etcd can fail.

What a real etcd answers when it is well is tested against a real one; this one exists for the answers that a real one
gives once in a thousand hours. Source of codes and words: etcd, api/v3rpc/rpctypes/error.go.
"""

import asyncio
from collections import defaultdict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import grpc
import grpc.aio
from msgspec import Struct

from effects.clock import now_ms
from effects.etcd_wire import etcdrpc

Code = grpc.StatusCode
KEY_VALUE: Any = type(etcdrpc.RangeResponse().kvs.add())
EVENT: Any = type(etcdrpc.WatchResponse().events.add())
"""Messages whose module the package does not export."""


class Fault(Struct, frozen=True):
    """What happens to one request. Nothing of it set: it is answered.

    `is_applied`: what it asks for is done before it fails. `code` and `details`: the refusal. `is_silent`: no answer
    ever comes. `is_cut`: the connection is cut. `delay_ms`: how long the answer takes.
    """

    is_applied: bool = False
    code: Any = None
    details: str = ""
    is_silent: bool = False
    is_cut: bool = False
    delay_ms: int = 0


NO_LEADER = Fault(code=Code.UNAVAILABLE, details="etcdserver: no leader")
TIMED_OUT = Fault(code=Code.UNAVAILABLE, details="etcdserver: request timed out")
LEADER_FAILED = Fault(
    code=Code.UNAVAILABLE, details="etcdserver: request timed out, possibly due to previous leader failure"
)
LEADER_CHANGED = Fault(code=Code.UNAVAILABLE, details="etcdserver: leader changed")
NOT_LEADER = Fault(code=Code.FAILED_PRECONDITION, details="etcdserver: not leader")
NO_LESSOR = Fault(code=Code.UNKNOWN, details="lessor: not a primary lessor")
DENIED = Fault(code=Code.PERMISSION_DENIED, details="etcdserver: permission denied")
BAD_TOKEN = Fault(code=Code.UNAUTHENTICATED, details="etcdserver: invalid auth token")
OLD_REVISION = Fault(code=Code.INVALID_ARGUMENT, details="etcdserver: revision of auth store is old")
BAD_PASSWORD = Fault(
    code=Code.INVALID_ARGUMENT, details="etcdserver: authentication failed, invalid user ID or password"
)
LEASE_NOT_FOUND = Fault(code=Code.NOT_FOUND, details="etcdserver: requested lease not found")
TOO_MANY = Fault(code=Code.RESOURCE_EXHAUSTED, details="etcdserver: too many requests")
NO_SPACE = Fault(code=Code.RESOURCE_EXHAUSTED, details="etcdserver: mvcc: database space exceeded")
CORRUPT = Fault(code=Code.DATA_LOSS, details="etcdserver: corrupt cluster")
SILENT = Fault(is_silent=True)
SILENT_BUT_APPLIED = Fault(is_silent=True, is_applied=True)
CUT = Fault(is_cut=True)
CUT_BUT_APPLIED = Fault(is_cut=True, is_applied=True)


class StubEtcd:
    """One member. `faults`: by method ("Txn", "Range", "LeaseKeepAlive", …), what happens to its next requests."""

    def __init__(self) -> None:
        self.faults: dict[str, deque[Fault]] = defaultdict(deque)
        self.always: dict[str, Fault] = {}
        """What happens to every request of a method for which nothing else is planned."""
        self.asked: dict[str, int] = defaultdict(int)
        """How many requests of each method have come in."""
        self.tokens: list[str] = []
        """The tokens that requests brought, "" for none."""
        self.renewed_at_ms: list[int] = []
        """When each renewal was applied."""
        self.revision = 1
        self.compacted_to = 0
        self.keys: dict[str, Any] = {}
        self.leases: dict[int, tuple[int, int]] = {}
        """Each lease's time to live and the instant at which it ends."""
        self.address = ""
        self._watchers: list[asyncio.Queue[Any]] = []
        self._server: Any = None
        self._port = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator["StubEtcd"]:
        """Serves until the block ends."""
        await self._start()
        expiring = asyncio.ensure_future(self._expire())
        try:
            yield self
        finally:
            expiring.cancel()
            with anyio.CancelScope(shield=True):
                await self._server.stop(None)

    async def _start(self) -> None:
        self._server = grpc.aio.server()
        services = _Services(self)
        etcdrpc.add_KVServicer_to_server(services, self._server)
        etcdrpc.add_LeaseServicer_to_server(services, self._server)
        etcdrpc.add_AuthServicer_to_server(services, self._server)
        etcdrpc.add_WatchServicer_to_server(services, self._server)
        self._port = self._server.add_insecure_port(f"127.0.0.1:{self._port}")
        self.address = f"127.0.0.1:{self._port}"
        await self._server.start()

    async def cut(self) -> None:
        """Cuts every connection, and takes new ones."""
        before = self._server
        await self._start()  # SO_REUSEPORT: never is there a moment without a listener
        await before.stop(None)

    async def _expire(self) -> None:
        while True:
            await asyncio.sleep(0.02)
            for lease_id in [lease_id for lease_id, (_, end_ms) in self.leases.items() if now_ms() >= end_ms]:
                self.drop_lease(lease_id)

    # ---- what it keeps ------------------------------------------------------------------------------------------

    def put(self, key: str, value: str, lease_id: int = 0) -> None:
        """Writes a key."""
        self.revision += 1
        created = self.keys[key].create_revision if key in self.keys else self.revision
        self.keys[key] = KEY_VALUE(
            key=key.encode(), value=value.encode(), lease=lease_id, create_revision=created,
            mod_revision=self.revision,
        )  # fmt: skip
        self._tell(EVENT(type=EVENT.PUT, kv=self.keys[key]))

    def delete(self, key: str) -> None:
        """Deletes a key."""
        if self.keys.pop(key, None) is not None:
            self.revision += 1
            gone = KEY_VALUE(key=key.encode(), mod_revision=self.revision)
            self._tell(EVENT(type=EVENT.DELETE, kv=gone))

    def drop_lease(self, lease_id: int) -> None:
        """Ends a lease, and deletes its keys."""
        self.leases.pop(lease_id, None)
        for key in [key for key, kv in self.keys.items() if kv.lease == lease_id]:
            self.delete(key)

    def value(self, key: str) -> str | None:
        """What a key says; None where there is none."""
        return self.keys[key].value.decode() if key in self.keys else None

    def header(self) -> Any:
        """The header of every answer."""
        return etcdrpc.ResponseHeader(revision=self.revision)

    def _tell(self, event: Any) -> None:
        for watcher in self._watchers:
            watcher.put_nowait(etcdrpc.WatchResponse(header=self.header(), events=[event]))

    def watcher(self) -> asyncio.Queue[Any]:
        """Where every change from now on is told."""
        queue: asyncio.Queue[Any] = asyncio.Queue()
        self._watchers.append(queue)
        return queue

    # ---- how it fails -------------------------------------------------------------------------------------------

    async def fail(self, method: str, context: Any, apply: Any) -> Any:
        """What happens to a request: the answer that `apply` gives, or the planned failure."""
        self.asked[method] += 1
        self.tokens.append(dict(context.invocation_metadata()).get("token", ""))
        fault = self.faults[method].popleft() if self.faults[method] else self.always.get(method, Fault())
        if fault.delay_ms:
            await asyncio.sleep(fault.delay_ms / 1000)
        is_failing = fault.code is not None or fault.is_silent or fault.is_cut
        answer = None if is_failing and not fault.is_applied else apply()
        if fault.code is not None:
            await context.abort(fault.code, fault.details)
        if fault.is_cut:
            cutting = asyncio.ensure_future(self.cut())
            await asyncio.shield(cutting)
        if fault.is_silent or fault.is_cut:
            await asyncio.Event().wait()
        return answer


class _Services(etcdrpc.KVServicer, etcdrpc.LeaseServicer, etcdrpc.AuthServicer, etcdrpc.WatchServicer):  # type: ignore[misc]
    """The part of etcd's API that the client uses."""

    def __init__(self, stub: StubEtcd) -> None:
        self._stub = stub

    async def Range(self, request: Any, context: Any) -> Any:  # noqa: N802 - the name is etcd\'s
        """Reads keys."""
        stub = self._stub

        def apply() -> Any:
            low, high = request.key, request.range_end
            found = [kv for _, kv in sorted(stub.keys.items()) if kv.key == low or low <= kv.key < high]
            return etcdrpc.RangeResponse(header=stub.header(), kvs=[] if request.count_only else found)

        return await stub.fail("Probe" if request.count_only else "Range", context, apply)

    async def Txn(self, request: Any, context: Any) -> Any:  # noqa: N802 - the name is etcd\'s
        """Compares and writes."""
        return await self._stub.fail("Txn", context, lambda: self._transact(request))

    def _transact(self, request: Any) -> Any:
        stub = self._stub
        is_true = all(self._holds(compare) for compare in request.compare)
        for operation in request.success if is_true else ():
            if operation.HasField("request_put"):
                put = operation.request_put
                stub.put(put.key.decode(), put.value.decode(), put.lease)
            else:
                stub.delete(operation.request_delete_range.key.decode())
        read = [] if is_true else [operation.request_range.key.decode() for operation in request.failure]
        answers = [
            etcdrpc.ResponseOp(response_range=etcdrpc.RangeResponse(kvs=[stub.keys[key]] if key in stub.keys else []))
            for key in read
        ]
        return etcdrpc.TxnResponse(header=stub.header(), succeeded=is_true, responses=answers)

    def _holds(self, compare: Any) -> bool:
        kv = self._stub.keys.get(compare.key.decode())
        match compare.WhichOneof("target_union"):
            case "value":
                return bool(kv is not None and kv.value == compare.value)
            case "create_revision":
                return bool((kv.create_revision if kv is not None else 0) == compare.create_revision)
            case "mod_revision":
                return bool((kv.mod_revision if kv is not None else 0) == compare.mod_revision)
            case other:
                raise AssertionError(f"the stub compares no {other}")

    async def LeaseGrant(self, request: Any, context: Any) -> Any:  # noqa: N802 - the name is etcd\'s
        """Makes a lease."""
        stub = self._stub

        def apply() -> Any:
            lease_id = 1000 + len(stub.leases) + stub.asked["LeaseGrant"]
            stub.leases[lease_id] = (request.TTL, now_ms() + request.TTL * 1000)
            return etcdrpc.LeaseGrantResponse(header=stub.header(), ID=lease_id, TTL=request.TTL)

        return await stub.fail("LeaseGrant", context, apply)

    async def LeaseKeepAlive(self, requests: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802 - the name is etcd\'s
        """Renews leases; one that is not there is answered with a time to live of 0."""
        stub = self._stub
        async for request in requests:
            lease_id = request.ID

            def apply(lease_id: int = lease_id) -> Any:
                ttl_s, _ = stub.leases.get(lease_id, (0, 0))
                if ttl_s:
                    stub.leases[lease_id] = (ttl_s, now_ms() + ttl_s * 1000)
                    stub.renewed_at_ms.append(now_ms())
                return etcdrpc.LeaseKeepAliveResponse(header=stub.header(), ID=lease_id, TTL=ttl_s)

            yield await stub.fail("LeaseKeepAlive", context, apply)

    async def LeaseRevoke(self, request: Any, context: Any) -> Any:  # noqa: N802 - the name is etcd\'s
        """Ends a lease."""
        stub = self._stub

        def apply() -> Any:
            stub.drop_lease(request.ID)
            return etcdrpc.LeaseRevokeResponse(header=stub.header())

        if request.ID not in stub.leases and not stub.faults["LeaseRevoke"]:
            stub.faults["LeaseRevoke"].append(LEASE_NOT_FOUND)
        return await stub.fail("LeaseRevoke", context, apply)

    async def Authenticate(self, request: Any, context: Any) -> Any:  # noqa: N802 - the name is etcd\'s
        """Gives a token."""
        stub = self._stub

        def apply() -> Any:
            return etcdrpc.AuthenticateResponse(header=stub.header(), token=f"token-{stub.asked['Authenticate']}")

        return await stub.fail("Authenticate", context, apply)

    async def Watch(self, requests: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802 - the name is etcd\'s
        """Tells every change from now on; a revision that was compacted away cancels it."""
        stub = self._stub
        creation = (await anext(aiter(requests))).create_request
        await stub.fail("Watch", context, lambda: None)
        if 0 < creation.start_revision <= stub.compacted_to:
            yield etcdrpc.WatchResponse(
                header=stub.header(), created=True, canceled=True, compact_revision=stub.compacted_to
            )
            return
        queue = stub.watcher()
        yield etcdrpc.WatchResponse(header=stub.header(), created=True)
        progress = asyncio.ensure_future(_answer_progress(requests, queue, stub))
        try:
            while True:
                yield await queue.get()
        finally:
            progress.cancel()


async def _answer_progress(requests: Any, queue: asyncio.Queue[Any], stub: StubEtcd) -> None:
    async for _ in requests:
        queue.put_nowait(etcdrpc.WatchResponse(header=stub.header()))
