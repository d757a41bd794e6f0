"""Endpoints of etcd that are dead, frozen, refusing or broken, in front of real agents: any good one is enough."""

import contextlib
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import grpc
import pytest

from effects.clock import now_ms
from effects.embedded import free_ports
from tests.cluster.harness import running_cluster
from tests.cluster.witnesses import postmaster_of, until, watched_cluster

pytestmark = [pytest.mark.anyio, pytest.mark.servers]

TTL_S = 3


class AbortEverything(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no types
    """Answers every call with one error."""

    def __init__(self, code: Any) -> None:
        self._code = code

    def service(self, handler_call_details: Any) -> Any:
        """The handler of a call, whatever it calls."""
        return grpc.stream_stream_rpc_method_handler(self._abort)

    def _abort(self, requests: Any, context: Any) -> None:
        context.abort(self._code, "this endpoint is broken")


@contextlib.contextmanager
def erring_endpoint(code: Any) -> Iterator[str]:
    """An endpoint that speaks gRPC and answers everything with an error."""
    server = grpc.server(ThreadPoolExecutor(4), handlers=[AbortEverything(code)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


class Unavailable(BaseHTTPRequestHandler):
    """Answers as a proxy without a backend does."""

    protocol_version = "HTTP/1.1"

    def handle(self) -> None:
        """One answer, whatever was asked: the HTTP/2 preface is no request that it understands."""
        with contextlib.suppress(OSError):
            self.connection.sendall(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")


@contextlib.contextmanager
def proxy_without_backend() -> Iterator[str]:
    """An endpoint that answers 503 in another protocol."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Unavailable)
    thread = Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.contextmanager
def silent_endpoint() -> Iterator[str]:
    """An endpoint whose machine takes connections and whose process never reads from them."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def dead_endpoints(count: int) -> list[str]:
    """Endpoints where nothing listens."""
    return [f"127.0.0.1:{port}" for port in free_ports(count)]


async def test_cluster_forms_when_two_of_three_endpoints_are_dead() -> None:
    """Only the last one in the list answers; the others refuse connections."""
    async with watched_cluster(size=2, dynamic={"ttl": TTL_S}, hosts=lambda real: [*dead_endpoints(2), *real]) as (
        real,
        monitor,
    ):
        leader, server = real.primary, postmaster_of(real.leader)
        await until(partial(monitor.has_seen_writes, leader, since_ms=now_ms() + 2 * TTL_S * 1000))
        await real.settled()
        assert (real.primary, postmaster_of(real.leader)) == (leader, server)


async def test_cluster_forms_when_endpoints_are_frozen_silent_refusing_and_erring() -> None:
    """One frozen etcd member, one that never answers, one dead, three that answer errors: the other two serve."""
    with (
        erring_endpoint(grpc.StatusCode.INTERNAL) as internal,
        erring_endpoint(grpc.StatusCode.PERMISSION_DENIED) as denied,
        proxy_without_backend() as proxy,
        silent_endpoint() as silent,
    ):
        bad = [silent, internal, denied, proxy, *dead_endpoints(1)]
        async with running_cluster(
            etcd_members=3,
            size=2,
            dynamic={"ttl": TTL_S},
            idle=("n1", "n2"),
            hosts=lambda real: [real[0], *bad, *real[1:]],
        ) as (real, _):
            real.cluster.etcd.freeze()
            for node in real.cluster.nodes:
                node.start()
            await real.settled()
            leader, server = real.primary, postmaster_of(real.leader)
            since_ms = now_ms()
            await until(lambda: now_ms() > since_ms + 2 * TTL_S * 1000)
            await real.settled()
            assert (real.primary, postmaster_of(real.leader)) == (leader, server)
            real.cluster.etcd.thaw()


async def test_leader_goes_on_when_each_etcd_member_dies_in_turn() -> None:
    """The endpoint that an agent talks to may go at any time; the others are asked, and nobody notices."""
    async with watched_cluster(etcd_members=3, size=2, dynamic={"ttl": TTL_S}) as (real, monitor):
        leader, server = real.primary, postmaster_of(real.leader)
        for member in real.cluster.etcd_cluster.members:
            member.kill()
            await until(partial(monitor.has_seen_writes, leader, since_ms=now_ms() + TTL_S * 1000))
            member.launch()
            member.wait_until_healthy()
        await real.settled()
        assert (real.primary, postmaster_of(real.leader)) == (leader, server)
        assert all(entry.rule != "L1" and entry.rule != "L4" for entry in real.entries())
