"""The API over a real socket: it takes connections, keeps them, names an address in use, and ends when it is told."""

import socket
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import anyio
import pytest
from anyio.abc import SocketStream

from api.server import bind, close_sockets, serve
from effects.errors import ConfigError
from tests.api.asking import Surroundings, surroundings

pytestmark = pytest.mark.anyio
DEADLINE_S = 10


@pytest.fixture
async def around(tmp_path: Path) -> AsyncIterator[Surroundings]:
    """A board that shows a leader, a log, and an inbox."""
    async with surroundings(tmp_path) as found:
        yield found


async def read_answer(stream: SocketStream) -> tuple[bytes, bytes]:
    """Head and body of one answer."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += await stream.receive()
    head, _, body = received.partition(b"\r\n\r\n")
    length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.startswith(b"content-length"))
    while len(body) < length:
        body += await stream.receive()
    return head, body


async def test_server_answers_many_requests_when_a_connection_is_kept(around: Surroundings) -> None:
    """Status line, no more headers than needed, and the connection stays."""
    async with anyio.create_task_group() as tasks:
        port = await tasks.start(serve, around.app(), "127.0.0.1", 0)
        with anyio.fail_after(DEADLINE_S):
            async with await anyio.connect_tcp("127.0.0.1", port) as stream:
                await stream.send(b"OPTIONS / HTTP/1.1\r\nHost: n1\r\n\r\n")
                assert await read_answer(stream) == (b"HTTP/1.1 200 OK\r\ncontent-length: 0", b"")
                await stream.send(b"GET /primary HTTP/1.1\r\nHost: n1\r\n\r\n")
                head, body = await read_answer(stream)
                assert head.startswith(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n")
                assert b'"role": "primary"' in body
                await stream.send(b"HEAD /replica HTTP/1.1\r\nHost: n1\r\n\r\n")
                assert (await read_answer(stream))[0].startswith(b"HTTP/1.1 503 ")
                await stream.send(b"POST /switchover HTTP/1.1\r\nHost: n1\r\nContent-Length: 2\r\n\r\n{}")
                assert (await read_answer(stream))[0].startswith(b"HTTP/1.1 400 ")
        tasks.cancel_scope.cancel()


async def test_server_closes_when_the_client_speaks_http_1_0(around: Surroundings) -> None:
    """HAProxy's plain check does; it waits for the end."""
    async with anyio.create_task_group() as tasks:
        port = await tasks.start(serve, around.app(), "127.0.0.1", 0)
        with anyio.fail_after(DEADLINE_S):
            async with await anyio.connect_tcp("127.0.0.1", port) as stream:
                await stream.send(b"OPTIONS / HTTP/1.0\r\n\r\n")
                assert (await read_answer(stream))[0].startswith(b"HTTP/1.1 200 OK")
                with pytest.raises(anyio.EndOfStream):
                    await stream.receive()
        tasks.cancel_scope.cancel()


async def test_server_ends_when_it_is_cancelled_under_a_stream(around: Surroundings) -> None:
    """Streams do not hold the agent back, and the address is free again."""
    async with anyio.create_task_group() as tasks:
        port = await tasks.start(serve, around.app(), "127.0.0.1", 0)
        with anyio.fail_after(DEADLINE_S):
            async with await anyio.connect_tcp("127.0.0.1", port) as stream:
                await stream.send(b"GET /log/stream HTTP/1.1\r\nHost: n1\r\n\r\n")
                assert (await stream.receive()).startswith(b"HTTP/1.1 200 OK")
                tasks.cancel_scope.cancel()
    async with anyio.create_task_group() as tasks:
        assert await tasks.start(serve, around.app(), "127.0.0.1", port) == port
        tasks.cancel_scope.cancel()


async def test_server_ends_quietly_when_a_request_is_still_waiting(
    around: Surroundings, caplog: pytest.LogCaptureFixture
) -> None:
    """A switchover that nobody performs does not hold the agent back, and is not told as an error."""
    asked = anyio.Event()
    around.react = lambda event: asked.set()
    async with anyio.create_task_group() as tasks:
        port = await tasks.start(serve, around.app(), "127.0.0.1", 0)
        with anyio.fail_after(DEADLINE_S):
            async with await anyio.connect_tcp("127.0.0.1", port) as stream:
                await stream.send(b'POST /switchover HTTP/1.1\r\nHost: n1\r\nContent-Length: 15\r\n\r\n{"leader":"n1"}')
                await asked.wait()
                tasks.cancel_scope.cancel()
    assert caplog.records == []


async def test_connections_are_answered_when_one_server_follows_another(around: Surroundings) -> None:
    """Those that were just taken, and those that wait in the kernel's queue: the listening socket never closes."""
    sockets = await bind("127.0.0.1", 0)
    port = sockets[0].getsockname()[1]
    serving = partial(serve, around.app(), "", 0, sockets=sockets, finish_within_s=lambda: DEADLINE_S)
    is_ending = anyio.Event()
    async with anyio.create_task_group() as clients:
        async with anyio.create_task_group() as tasks:
            await tasks.start(serving)
            clients.start_soon(visit, port, "connected before the end", is_ending)
            clients.start_soon(visit, port, "before the end")
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
            is_ending.set()
        clients.start_soon(visit, port, "between")
        await anyio.wait_all_tasks_blocked()
        async with anyio.create_task_group() as tasks:
            await tasks.start(serving)
            await visit(port, "after")
            tasks.cancel_scope.cancel()
    close_sockets(sockets)


async def visit(port: int, when: str, may_ask: anyio.Event | None = None) -> None:
    """One request that is answered; it is sent when it may be."""
    with anyio.fail_after(DEADLINE_S):
        async with await anyio.connect_tcp("127.0.0.1", port) as stream:
            if may_ask is not None:
                await may_ask.wait()
            await stream.send(b"GET /health HTTP/1.1\r\nHost: n1\r\nConnection: close\r\n\r\n")
            assert (await read_answer(stream))[0].startswith(b"HTTP/1.1 200 "), when


@pytest.mark.parametrize(("host", "said"), [("127.0.0.1", "address already in use"), ("192.0.2.7", "assign")])
async def test_server_names_the_address_when_it_cannot_listen(around: Surroundings, host: str, said: str) -> None:
    """The operator's fault, in the operator's words."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"{host}:{port}.*{said}"):
            await serve(around.app(), host, port)


async def test_server_listens_everywhere_when_the_host_is_a_star(around: Surroundings, tmp_path: Path) -> None:
    """As Patroni's `*:8008`."""
    async with anyio.create_task_group() as tasks:
        port = await tasks.start(serve, around.app(), "*", 0)
        with anyio.fail_after(DEADLINE_S):
            async with await anyio.connect_tcp("127.0.0.1", port) as stream:
                await stream.send(b"GET /health HTTP/1.1\r\nHost: n1\r\n\r\n")
                assert (await read_answer(stream))[0].startswith(b"HTTP/1.1 200 ")
        tasks.cancel_scope.cancel()
