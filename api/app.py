"""The REST API put together: which part answers which request.

Health checks take the shortest way, before Starlette's router; everything else is a route.
"""

import logging
from collections.abc import Callable

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.answers import Rejected, text_answer
from api.cluster import ClusterAnswers
from api.health import HealthChecks
from api.log import LogAnswers
from api.operations import Operations, Submit
from effects.board import Board
from effects.clock import now_ms
from effects.log import TransitionLog

HEALTH_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
DEEP_PATHS = frozenset({"/log/stream"})
"""Paths that mean something as a whole; of any other only the first segment counts. Source: Patroni's routing."""

logger = logging.getLogger(__name__)


def build_app(
    board: Board,
    log: TransitionLog,
    submit: Submit,
    clock: Callable[[], int] = now_ms,
    credentials: tuple[str, str] | None = None,
) -> Starlette:
    """The API as an ASGI application.

    Args:
        board: where the newest snapshot is.
        log: the transition log.
        submit: takes an event into the agent's inbox, without waiting.
        clock: milliseconds of the clock that the snapshot's instants are read from.
        credentials: what requests that change something must bring (HTTP Basic); None to ask for nothing.
    """
    routes = [
        *ClusterAnswers(board, clock).routes,
        *LogAnswers(log).routes,
        *Operations(board, submit, clock, credentials).routes,
    ]
    health = HealthChecks(board, clock)
    return Starlette(
        routes=routes,
        middleware=[Middleware(Front, health=health, routes=routes)],
        exception_handlers={Rejected: _tell_rejection},
    )


async def _tell_rejection(request: Request, error: Exception) -> Response:
    assert isinstance(error, Rejected)
    return text_answer(str(error), error.status)


class Front:
    """Sends each request to the part that answers it. No exception gets past it: a client is told one line."""

    def __init__(self, app: ASGIApp, health: HealthChecks, routes: list[Route]) -> None:
        self._app = app
        self._health = health
        self._routed = frozenset((method, route.path) for route in routes for method in route.methods or ())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. Source: ASGI, "HTTP & WebSocket"."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        method, path = scope["method"], routed_path(scope["path"])
        if (method, path) in self._routed and method not in ("HEAD", "OPTIONS"):
            await self._answer_from_app({**scope, "path": path}, receive, send)
        elif method in HEALTH_METHODS:
            await self._answer_health(scope, send)
        else:
            await _send(send, 501, b"unsupported: %s %s" % (method.encode(), path.encode()), b"text/plain")

    async def _answer_health(self, scope: Scope, send: Send) -> None:
        try:
            status, body = self._health.answer(scope["method"], scope["path"], scope["query_string"])
        except Exception:
            logger.exception("a health check failed: %s %r", scope["method"], scope["path"])
            status, body = 500, b"{}"
        await _send(send, status, body, b"application/json")

    async def _answer_from_app(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_begun = False

        async def noting_send(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._app(scope, receive, noting_send)
        except ClientDisconnect:
            return
        except Exception:
            logger.exception("a request failed: %s %r", scope["method"], scope["path"])
            if not has_begun:
                await _send(send, 500, b"internal error: see the agent's messages", b"text/plain")


def routed_path(path: str) -> str:
    """The part of a path that chooses who answers."""
    return path if path in DEEP_PATHS else "/" + path.split("/", 2)[1] if path.startswith("/") else path


async def _send(send: Send, status: int, body: bytes, media_type: bytes) -> None:
    """A whole answer; without a body it is the bare status, as HEAD and OPTIONS get from Patroni."""
    headers = [(b"content-length", b"%d" % len(body))]
    if body:
        headers.insert(0, (b"content-type", media_type))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
