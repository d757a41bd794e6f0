"""The REST API put together: which part answers which request.

Health checks take the shortest way, before Starlette's router; everything else is a route.
"""

import logging
from collections.abc import Awaitable, Callable
from functools import partial

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import web
from api.access import Access
from api.answers import Rejected, text_answer
from api.cluster import ClusterAnswers
from api.config import ConfigOperations
from api.health import HealthChecks
from api.log import LogAnswers
from api.operations import Operations, Reload
from api.quick import Quick
from api.waiting import Desk, Submit
from effects.board import Board
from effects.clock import now_ms
from effects.config_desk import ConfigDesk
from effects.log import TransitionLog

HEALTH_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
DEEP_PATHS = frozenset({"/log/stream", "/log/archive", "/failsafe/check", "/failsafe/promise", *web.PATHS})
"""Paths that mean something as a whole; of any other only the first segment counts. Source: Patroni's routing."""

logger = logging.getLogger(__name__)


def build_app(
    board: Board,
    log: TransitionLog,
    submit: Submit,
    clock: Callable[[], int] = now_ms,
    access: Access | None = None,
    configs: ConfigDesk | None = None,
    reload: Reload | None = None,
) -> Starlette:
    """The API as an ASGI application.

    Args:
        board: where the newest snapshot is.
        log: the transition log.
        submit: takes an event into the agent's inbox, without waiting.
        clock: milliseconds of the clock that the snapshot's instants are read from.
        access: what requests that change something must bring; None to ask for nothing.
        configs: where changes of the dynamic configuration are prepared; without it there is none to change.
        reload: reads the node's own settings again.
    """
    access = access or Access()
    desk, health = Desk(board, submit, clock), HealthChecks(board, clock)
    routes = [
        Route("/metrics", _metrics_endpoint(health)),
        *ClusterAnswers(board, clock).routes,
        *LogAnswers(log).routes,
        *web.UiAnswers(board).routes,
        *Operations(desk, access, reload).routes,
        *ConfigOperations(desk, access, configs or ConfigDesk(lambda: (None, 0))).routes,
    ]
    app = Starlette(
        routes=routes,
        middleware=[Middleware(Front, health=health, routes=routes, access=access, board=board)],
        exception_handlers={Rejected: _tell_rejection},
    )
    app.state.quick = Quick(health.answer, partial(is_health_check, routed_by(routes)), lambda: access.headers)
    return app


def routed_by(routes: list[Route]) -> frozenset[tuple[str, str]]:
    """The methods and paths that have an answer of their own."""
    return frozenset((method, route.path) for route in routes for method in route.methods or ())


def is_health_check(routed: frozenset[tuple[str, str]], method: str, path: str) -> bool:
    """True for everything that nothing else answers. HEAD and OPTIONS always ask about health."""
    if method in ("HEAD", "OPTIONS"):
        return True
    return method in HEALTH_METHODS and (method, routed_path(path)) not in routed


def _metrics_endpoint(health: HealthChecks) -> Callable[[Request], Awaitable[Response]]:
    async def metrics(request: Request) -> Response:
        return Response(health.metrics(), headers={"content-type": "text/plain"})

    return metrics


async def _tell_rejection(request: Request, error: Exception) -> Response:
    assert isinstance(error, Rejected)
    return text_answer(str(error), error.status)


class Front:
    """Sends each request to the part that answers it. No exception gets past it: a client is told one line."""

    def __init__(self, app: ASGIApp, health: HealthChecks, routes: list[Route], access: Access, board: Board) -> None:
        self._app = app
        self._board = board
        self._access = access
        self._health = health
        self._routed = routed_by(routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. Source: ASGI, "HTTP & WebSocket"."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["path"].startswith("//"):  # Source: Python's http.server, under Patroni's API, which makes one of them
            scope = {**scope, "path": "/" + scope["path"].lstrip("/")}
        send = self._with_headers(scope, send)
        method, path = scope["method"], routed_path(scope["path"])
        if is_health_check(self._routed, method, path):
            await self._answer_health(scope, send)
        elif (method, path) in self._routed:
            await self._answer_from_app({**scope, "path": path}, receive, send)
        else:
            await _send(send, 501, b"unsupported: %s %s" % (method.encode(), path.encode()), b"text/plain")

    def _with_headers(self, scope: Scope, send: Send) -> Send:
        """Answers that say what they hold carry the configured headers too; bare ones stay bare, as Patroni's do."""
        extra = [*self._access.headers, *self._reading_headers(scope)]
        if not extra:
            return send

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = list(message["headers"])
                names = {name for name, _ in headers}
                if b"content-type" in names:
                    message = {**message, "headers": [*headers, *(h for h in extra if h[0] not in names)]}
            await send(message)

        return sending

    def _reading_headers(self, scope: Scope) -> list[tuple[bytes, bytes]]:
        origin = next((value for name, value in scope["headers"] if name == b"origin"), None)
        if origin is None:
            return []
        found = web.reading_headers(self._board.current.view, scope["path"], origin.decode("latin-1"))
        return [(name.encode(), value.encode()) for name, value in found.items()]

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
