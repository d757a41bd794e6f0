"""A load of GET requests over kept-alive connections, in a process of its own: python -m tests.bench.load PORT S."""

import asyncio
import json
import sys
import time
from functools import partial
from typing import cast

import uvloop

CONNECTIONS = 16


class _Client(asyncio.Protocol):
    """Sends a request, and the next when the answer is whole."""

    def __init__(self, request: bytes, spans_ms: list[float], deadline: float, over: asyncio.Future[None]) -> None:
        self._request, self._spans_ms, self._deadline, self._over = request, spans_ms, deadline, over
        self._received = b""
        self._sent_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by its class
        self._send()

    def _send(self) -> None:
        self._sent_at = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        if not found or len(body) < _content_length(head):
            return
        if not head.startswith(b"HTTP/1.1 200 "):
            raise SystemExit(f"not 200: {head[:60]!r}")
        self._received = b""
        now = time.perf_counter()
        self._spans_ms.append((now - self._sent_at) * 1000)
        if now >= self._deadline:
            self._transport.close()
        else:
            self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._over.done():
            self._over.set_result(None)


def _content_length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.split(b":")[1])
    return 0


def _same(client: _Client) -> _Client:
    return client


async def load(port: int, seconds: float, path: str = "/primary") -> list[float]:
    """The milliseconds that each answer took."""
    request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
    loop = asyncio.get_running_loop()
    deadline = time.perf_counter() + seconds
    spans_ms: list[float] = []
    ends = []
    for _ in range(CONNECTIONS):
        over = loop.create_future()
        client = _Client(request, spans_ms, deadline, over)
        await loop.create_connection(partial(_same, client), "127.0.0.1", port)
        ends.append(over)
    await asyncio.gather(*ends)
    return spans_ms


def main() -> None:
    """Print requests a second and percentiles as JSON."""
    port, seconds = int(sys.argv[1]), float(sys.argv[2])
    spans_ms = sorted(uvloop.run(load(port, seconds)))
    count = len(spans_ms)
    print(
        json.dumps(
            {
                "per_s": count / seconds,
                "p50_ms": spans_ms[count // 2],
                "p99_ms": spans_ms[int(count * 0.99)],
            }
        )
    )


if __name__ == "__main__":
    main()
