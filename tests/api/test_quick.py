"""The shortest way for health checks says what the ordinary way says, for whatever bytes come in whatever pieces."""

import random
import re
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest
from starlette.applications import Starlette

from api.access import Access
from api.quick import REQUEST_BYTES_MAX, Question, Quick, read_question
from api.server import serve
from tests.api.asking import Surroundings, surroundings
from tests.views import leader_view, standby_view

pytestmark = pytest.mark.anyio
DEADLINE_S = 20

SIMPLE = (
    b"GET / HTTP/1.1\r\nHost: n1\r\n\r\n",
    b"GET /primary HTTP/1.1\r\nHost: n1\r\n\r\n",
    b"GET /leader?x=%20y HTTP/1.1\r\nhost: n1\r\nUser-Agent: check/1\r\n\r\n",
    b"GET //primary HTTP/1.1\r\nHost: n1\r\n\r\n",
    b"GET /replica?lag=16MB&tag_zone=a HTTP/1.1\r\nHost: n1\r\n\r\n",
    b"GET /patroni HTTP/1.1\r\nHost: n1\r\n\r\n",
    b"GET /readiness HTTP/1.1\r\nHost: n1\r\n\r\n",
    b"GET /nonsense HTTP/1.1\r\nHost: n1\r\n\r\n",
    b"HEAD /primary HTTP/1.1\r\nHost: n1\r\n\r\n",
    b"HEAD /cluster HTTP/1.1\r\nHost: n1\r\n\r\n",
    b"OPTIONS /replica HTTP/1.1\r\nHost: n1\r\n\r\n",
    b"GET http://n1/primary HTTP/1.1\r\nHost: n1\r\n\r\n",
)
OTHERS = (
    b"GET /cluster HTTP/1.1\r\nHost: n1\r\n\r\n",
    b"GET /history HTTP/1.1\r\nHost: n1\r\n\r\n",
    b"GET /primary HTTP/1.1\r\nHost: n1\r\nContent-Length: 2\r\n\r\n{}",
    b"GET /primary HTTP/1.1\r\nHost: n1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    b"GET /primary HTTP/1.1\r\nHost: n1\r\nAuthorization: Basic aHVudGVyMjpodW50ZXIy\r\n\r\n",
    b"POST /switchover HTTP/1.1\r\nHost: n1\r\nContent-Length: 2\r\n\r\n{}",
    b"GET /primary HTTP/1.1\r\nHost: n1\r\nX-Long: " + b"x" * REQUEST_BYTES_MAX + b"\r\n\r\n",
    b"GET /%70rimary HTTP/1.1\r\nHost: n1\r\n\r\n",
    b"GET /%2Fconfig HTTP/1.1\r\nHost: n1\r\n\r\n",
    b"GET /%2Fprimary HTTP/1.1\r\nHost: n1\r\n\r\n",
    b"GET /primary%3Flag=1 HTTP/1.1\r\nHost: n1\r\n\r\n",
)
LAST = (
    b"GET %2Fprimary HTTP/1.1\r\nHost: n1\r\n\r\n",
    b"GET /primary HTTP/1.0\r\n\r\n",
    b"OPTIONS / HTTP/1.0\r\nHost: n1\r\n\r\n",
    b"GET /primary HTTP/1.1\r\nHost: n1\r\nConnection: close\r\n\r\n",
    b"GET /primary HTTP/1.1\r\nHost : n1\r\n\r\n",
    b"GET /primary HTTP/9.1\r\nHost: n1\r\n\r\n",
    b"GET\r\n\r\n",
)
"""After these the connection ends."""


@pytest.fixture
async def around(tmp_path: Path) -> AsyncIterator[Surroundings]:
    """A board that shows a leader, a log, and an inbox."""
    async with surroundings(tmp_path) as found:
        yield found


async def said(port: int, pieces: list[bytes], *, pause_s: float = 0) -> bytes:
    """Everything that the server answers to these bytes, and then to a last request that closes the connection."""
    received = b""
    async with await anyio.connect_tcp("127.0.0.1", port) as stream:
        for piece in pieces:
            await stream.send(piece)
            await anyio.sleep(pause_s)
        with anyio.fail_after(DEADLINE_S):
            try:
                await stream.send(b"GET /replica HTTP/1.1\r\nHost: n1\r\nConnection: close\r\n\r\n")
                while True:
                    received += await stream.receive()
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                # What differs between two moments of the wall clock.
                return re.sub(rb'"dcs_last_seen": \d+', b"", received)


def in_the_ordinary_way(app: Starlette) -> Starlette:
    """The same API without the shortest way."""
    app.state.quick = None
    return app


@pytest.mark.parametrize("request_bytes", [*SIMPLE, *OTHERS, *LAST])
async def test_answer_is_the_ordinary_one_when_it_is_quick(around: Surroundings, request_bytes: bytes) -> None:
    """On a leader, on a standby, and with headers of the operator's own: the same bytes, whichever way."""
    for view, headers in ((leader_view(), None), (standby_view(), {"X-Frame-Options": "DENY", "Content-Type": "x"})):
        around.show(view)
        async with anyio.create_task_group() as tasks:
            quick = await tasks.start(serve, around.app(access=Access(headers=headers)), "127.0.0.1", 0)
            app = in_the_ordinary_way(around.app(access=Access(headers=headers)))
            ordinary = await tasks.start(serve, app, "127.0.0.1", 0)
            answers = [await said(port, [request_bytes]) for port in (quick, ordinary)]
            tasks.cancel_scope.cancel()
        assert answers[0] == answers[1]
        assert answers[0].startswith(b"HTTP/1.1 ")


@pytest.mark.parametrize("seed", range(12))
async def test_answers_come_in_order_when_requests_come_in_any_pieces(around: Surroundings, seed: int) -> None:
    """Whole, in halves, byte by byte, several in one: as many answers, in the same order, as the ordinary way gives."""
    chance = random.Random(seed)
    stream = b"".join(chance.choice(SIMPLE + OTHERS) for _ in range(12))
    cuts = sorted(chance.sample(range(1, len(stream)), chance.randint(0, 25)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    async with anyio.create_task_group() as tasks:
        quick = await tasks.start(serve, around.app(), "127.0.0.1", 0)
        ordinary = await tasks.start(serve, in_the_ordinary_way(around.app()), "127.0.0.1", 0)
        answers = [await said(port, pieces, pause_s=0.001) for port in (quick, ordinary)]
        tasks.cancel_scope.cancel()
    assert answers[0] == answers[1]
    assert answers[0].count(b"HTTP/1.1 ") == 13


@pytest.mark.parametrize("request_bytes", SIMPLE)
def test_question_is_understood_when_it_is_simple(request_bytes: bytes) -> None:
    """These take the shortest way."""
    assert read_question(request_bytes) is not None


@pytest.mark.parametrize("request_bytes", [*OTHERS[2:5], *LAST, SIMPLE[0][:-2], SIMPLE[0] * 2, SIMPLE[0] + b"G"])
def test_question_is_left_to_the_ordinary_way_when_it_is_not_simple(request_bytes: bytes) -> None:
    """A body, an end of the connection, a part, more than one, or nothing that is HTTP."""
    assert read_question(request_bytes) is None


def test_question_keeps_its_query_when_it_is_escaped() -> None:
    """Only the path says what is asked; a path that is escaped takes the ordinary way."""
    found = read_question(b"GET //a/c?lag=1%4dB HTTP/1.1\r\nHost: n1\r\n\r\n")
    assert found == Question("GET", "/a/c", b"lag=1%4dB")
    assert read_question(b"GET //a%20b/c?lag=1%4dB HTTP/1.1\r\nHost: n1\r\n\r\n") is None


async def test_clock_decides_when_the_same_bytes_are_asked_again(around: Surroundings) -> None:
    """What is remembered is the question, never the answer: just past the deadline, with no new snapshot, it is no."""
    quick = around.app().state.quick
    around.now_ms = leader_view().writable_until_ms - 1
    for path in (b"primary", b"leader"):
        around.now_ms = leader_view().writable_until_ms - 1
        request = b"GET /%s HTTP/1.1\r\nHost: n1\r\n\r\n" % path
        assert quick.answer(request).startswith(b"HTTP/1.1 200 OK\r\n")
        around.now_ms += 1
        assert quick.answer(request).startswith(b"HTTP/1.1 503 Service Unavailable\r\n")


def test_fault_is_answered_in_the_ordinary_way_when_a_check_fails() -> None:
    """The shortest way keeps silent of it, so that it is told once, and answered as a fault."""

    def fail(method: str, path: str, query: bytes) -> tuple[int, bytes]:
        raise RuntimeError(method + path)

    assert Quick(fail, lambda method, path: True, lambda: ()).answer(SIMPLE[1]) is None
