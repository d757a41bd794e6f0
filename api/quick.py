"""The shortest way for health checks: a whole request in, a whole answer out, in the moment that its bytes come.

Load balancers ask the same few questions many times a second, over kept connections, in the same bytes each time. What
those bytes ask is understood once, by the HTTP parser that all other requests go through, and remembered; the answer is
made anew each time, by the clock at that moment. Whatever is not exactly one simple question (a body, a partial or
pipelined request, a connection that is to be closed, an answer that waits to be read, a path that is escaped) takes the
ordinary way, with the same words in the end.
"""

import asyncio
from collections.abc import Callable
from functools import lru_cache
from http import HTTPStatus
from typing import Any, NamedTuple

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

REQUEST_BYTES_MAX = 2_048
REQUESTS_REMEMBERED_MAX = 512
METHODS = (b"GET ", b"HEAD ", b"OPTIONS ")
NOT_SIMPLE = frozenset(
    {b"connection", b"upgrade", b"expect", b"content-length", b"transfer-encoding", b"authorization"}
)
"""Headers of requests that take the ordinary way; the last so that no password is remembered."""

Answer = Callable[[str, str, bytes], tuple[int, bytes]]
"""Method, path and query of a health check to status and body."""


class Question(NamedTuple):
    """What a request asks."""

    method: str
    path: str
    query: bytes


class Quick:
    """Answers requests that are health checks and nothing else."""

    def __init__(
        self,
        answer: Answer,
        is_health_check: Callable[[str, str], bool],
        headers: Callable[[], tuple[tuple[bytes, bytes], ...]],
    ) -> None:
        """Args:
        answer: status and body of a health check.
        is_health_check: whether a method and a path are one.
        headers: what every answer carries that says what it holds.
        """
        self._answer, self._is_health_check, self._headers = answer, is_health_check, headers

    def answer(self, data: bytes) -> bytes | None:
        """The bytes of the answer; None for a request that takes the ordinary way."""
        question = _remembered(data) if len(data) <= REQUEST_BYTES_MAX and data.startswith(METHODS) else None
        if question is None or not self._is_health_check(question.method, question.path):
            return None
        try:
            status, body = self._answer(*question)
        except Exception:  # noqa: BLE001 - it is told, and answered as a fault, where it happens again
            return None
        if not body:
            return b"%scontent-length: 0\r\n\r\n" % _status_line(status)
        return b"%scontent-type: application/json\r\ncontent-length: %d\r\n%s\r\n%s" % (
            _status_line(status),
            len(body),
            _header_lines(self._headers()),
            body,
        )


def _remembered(data: bytes) -> Question | None:
    return None if b"uthorization:" in data else read_question(data)


@lru_cache(REQUESTS_REMEMBERED_MAX)
def read_question(data: bytes) -> Question | None:
    """What a whole, simple request asks; None for any other. Source: RFC 9112."""
    reading = _Reading()
    parser = httptools.HttpRequestParser(reading)
    try:
        parser.feed_data(data)
        url = httptools.parse_url(reading.url)
        path = url.path.decode("ascii")
    except (httptools.HttpParserError, httptools.HttpParserUpgrade, UnicodeDecodeError, AttributeError):
        return None
    is_simple = reading.ended == 1 and not reading.has_more and not reading.names & NOT_SIMPLE
    if not is_simple or parser.get_http_version() != "1.1" or not data.endswith(b"\r\n\r\n"):
        return None
    if "%" in path:  # an escaped slash is one of the name to some and one of the path to others
        return None
    path = "/" + path.lstrip("/") if path.startswith("//") else path
    return Question(parser.get_method().decode("ascii"), path, url.query or b"")


class _Reading:
    """What the parser finds."""

    def __init__(self) -> None:
        self.url = b""
        self.names: set[bytes] = set()
        self.ended = 0
        self.has_more = False

    def on_message_begin(self) -> None:
        self.has_more = self.ended > 0

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.names.add(name.lower())

    def on_message_complete(self) -> None:
        self.ended += 1


@lru_cache(16)
def _status_line(status: int) -> bytes:
    return b"HTTP/1.1 %d %s\r\n" % (status, HTTPStatus(status).phrase.encode())


@lru_cache(16)
def _header_lines(headers: tuple[tuple[bytes, bytes], ...]) -> bytes:
    named = (header for header in headers if header[0] not in (b"content-type", b"content-length"))
    return b"".join(b"%s: %s\r\n" % header for header in named)


class _Answered:
    """Stands for a request that was answered on the spot, where uvicorn keeps the newest request of a connection."""

    response_complete = True
    disconnected = False
    keep_alive = True

    def __init__(self) -> None:
        self.message_event = asyncio.Event()


class QuickProtocol(HttpToolsProtocol):
    """uvicorn's HTTP, with the shortest way in front."""

    def __init__(self, config: Any, *args: Any, **named: Any) -> None:
        super().__init__(config, *args, **named)
        self._quick: Quick | None = getattr(getattr(config.app, "state", None), "quick", None)
        self._is_between = True
        """No part of another request was read yet."""
        self._answered = _Answered()

    def data_received(self, data: bytes) -> None:
        """Answer on the spot what can be, and hand on the rest. Source: asyncio, Protocol."""
        answer = self._quick.answer(data) if self._quick is not None and self._is_idle() else None
        if answer is None:
            super().data_received(data)
            return
        self.cycle = self._answered  # type: ignore[assignment]  # all that uvicorn asks of a request that is over
        self.transport.write(answer)
        self.on_response_complete()

    def _is_idle(self) -> bool:
        is_answered = self.cycle is None or self.cycle.response_complete
        return self._is_between and is_answered and not self.flow.write_paused and not self.transport.is_closing()

    def on_message_begin(self) -> None:
        """A request begins."""
        self._is_between = False
        super().on_message_begin()

    def on_message_complete(self) -> None:
        """A request is whole."""
        self._is_between = True
        super().on_message_complete()
