"""A load of GET requests over kept connections, in a process of its own: python -m tests.bench.load PORT S [RATE].

Without a rate each connection asks again as soon as it is answered. With one, requests are due at fixed instants, and
an answer's span is counted from when its request was due: an answer that is late makes the next ones late too, as it
does for clients.
"""

import asyncio
import json
import sys
import time
from collections import Counter
from functools import partial
from typing import cast

import uvloop

CONNECTIONS = 16


class _Client(asyncio.Protocol):
    """Sends a request, and the next when the answer is whole and it is due."""

    def __init__(self, plan: "_Plan", number: int, over: asyncio.Future[None]) -> None:
        self._plan, self._over = plan, over
        self._received = b""
        self._due_at = plan.began_at + plan.pause_s * number / CONNECTIONS

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by its class
        self._send_when_due()

    def _send_when_due(self) -> None:
        if not self._plan.pause_s:
            self._due_at = time.perf_counter()
            self._send()
            return
        wait_s = self._due_at - time.perf_counter()
        if wait_s <= 0:
            self._send()
        else:
            self._plan.loop.call_later(wait_s, self._send)

    def _send(self) -> None:
        self._transport.write(self._plan.request)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        if not found or len(body) < _content_length(head):
            return
        self._plan.statuses[head[9:12].decode()] += 1
        self._received = b""
        now = time.perf_counter()
        self._plan.spans_ms.append((now - self._due_at) * 1000)
        if now >= self._plan.deadline:
            self._transport.close()
        else:
            self._due_at += self._plan.pause_s
            self._send_when_due()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._over.done():
            self._over.set_result(None)


class _Plan:
    """What all connections share."""

    def __init__(self, path: str, seconds: float, rate_per_s: float) -> None:
        self.loop = asyncio.get_running_loop()
        self.request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
        self.began_at = time.perf_counter()
        self.deadline = self.began_at + seconds
        self.pause_s = CONNECTIONS / rate_per_s if rate_per_s else 0.0
        self.spans_ms: list[float] = []
        self.statuses: Counter[str] = Counter()


def _content_length(head: bytes) -> int:
    _, found, rest = head.lower().partition(b"content-length:")
    return int(rest.partition(b"\r\n")[0]) if found else 0


def _same(client: _Client) -> _Client:
    return client


async def load(port: int, seconds: float, rate_per_s: float = 0, path: str = "/primary") -> _Plan:
    """The milliseconds that each answer took, and how often each status came."""
    plan = _Plan(path, seconds, rate_per_s)
    ends = []
    for number in range(CONNECTIONS):
        over = plan.loop.create_future()
        client = _Client(plan, number, over)
        await plan.loop.create_connection(partial(_same, client), "127.0.0.1", port)
        ends.append(over)
    await asyncio.gather(*ends)
    return plan


def main() -> None:
    """Print requests a second, percentiles and statuses as JSON."""
    port, seconds = int(sys.argv[1]), float(sys.argv[2])
    rate_per_s = float(sys.argv[3]) if len(sys.argv) > 3 else 0
    found = uvloop.run(load(port, seconds, rate_per_s))
    spans_ms = sorted(found.spans_ms)
    count = len(spans_ms)
    print(
        json.dumps(
            {
                "per_s": count / seconds,
                "p50_ms": spans_ms[count // 2],
                "p99_ms": spans_ms[int(count * 0.99)],
                "max_ms": spans_ms[-1],
                "statuses": found.statuses,
            }
        )
    )


if __name__ == "__main__":
    main()
