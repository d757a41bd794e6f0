"""Asks the API as a client would, without a network: a tiny ASGI caller, and an API around a board and a real log."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
from msgspec import Struct
from starlette.applications import Starlette
from starlette.types import ASGIApp, Message

from api.access import Access
from api.app import build_app
from api.operations import Reload
from effects.board import Board, Published
from effects.config_desk import ConfigDesk
from effects.log import TransitionLog
from fsm.events import AnyEvent
from fsm.view import View
from tests.views import NOW_MS, leader_view

DEADLINE_S = 10


class Answer(Struct):
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode()


async def ask(
    app: ASGIApp, path: str, method: str = "GET", body: bytes | None = None, headers: dict[str, str] | None = None
) -> Answer:
    """The whole answer to one request. `body` None: without Content-Length. Source: ASGI, "HTTP & WebSocket"."""
    bare_path, _, query = path.partition("?")
    sent = {**({} if body is None else {"content-length": str(len(body))}), **(headers or {})}
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "scheme": "http",
        "method": method,
        "path": bare_path,
        "raw_path": bare_path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(name.lower().encode(), value.encode()) for name, value in sent.items()],
        "client": ("192.0.2.1", 50000),
        "server": ("n1.test", 8008),
    }
    messages: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": body or b"", "more_body": False}

    async def send(message: Message) -> None:
        messages.append(message)

    with anyio.fail_after(DEADLINE_S):
        await app(scope, receive, send)
    found = {name.decode(): value.decode() for name, value in messages[0]["headers"]}
    return Answer(messages[0]["status"], found, b"".join(m.get("body", b"") for m in messages[1:]))


async def ask_json(app: ASGIApp, path: str, body: Any, method: str = "POST", **headers: str) -> Answer:
    """The answer to a request with a JSON body."""
    return await ask(app, path, method, json.dumps(body).encode(), headers)


class Surroundings:
    """What the API stands on: a board that a test writes to, a clock that it sets, and what was submitted."""

    def __init__(self, log: TransitionLog) -> None:
        self.board, self.log = Board(), log
        self.now_ms = NOW_MS
        self.submitted: list[AnyEvent] = []
        self.react: Callable[[AnyEvent], None] = lambda event: None
        self.show(leader_view())

    def show(self, view: View, **changes: Any) -> None:
        """Publishes a snapshot."""
        self.board.publish(Published(view=view, **changes))

    def submit(self, event: AnyEvent) -> None:
        """Takes an event as the agent's inbox does."""
        self.submitted.append(event)
        self.react(event)

    def app(
        self,
        credentials: tuple[str, str] | None = None,
        *,
        access: Access | None = None,
        configs: ConfigDesk | None = None,
        reload: Reload | None = None,
    ) -> Starlette:
        """The API on these."""
        access = access or Access(credentials)
        return build_app(self.board, self.log, self.submit, lambda: self.now_ms, access, configs, reload)


@asynccontextmanager
async def surroundings(directory: Path) -> AsyncIterator[Surroundings]:
    """A board and an empty log that is being written."""
    log, _ = TransitionLog.open(directory / "log")
    log.start_segment(b'{"v":1,"seq":0,"view":{}}')
    async with anyio.create_task_group() as tasks:
        await tasks.start(log.run)
        yield Surroundings(log)
        await log.aclose()
        tasks.cancel_scope.cancel()
