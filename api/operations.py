"""What operators and other members ask this node to do. Each request becomes an event; the board shows what came of it.

Source: Patroni, REST API, the endpoints that write.
"""

from base64 import b64encode
from collections.abc import Awaitable, Callable
from hmac import compare_digest
from typing import Any, TypeVar

import anyio
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api.answers import Rejected, read_object, text_answer, text_of
from effects.board import Board
from fsm import status
from fsm.dynamic import TTL_MAX_S, as_bool
from fsm.events import AnyEvent, FailsafeAsked, ReinitAsked, SwitchoverAsked
from fsm.status import AskedSwitchover
from fsm.view import View

Submit = Callable[[AnyEvent], None]
Endpoint = Callable[[Request], Awaitable[Response]]
Found = TypeVar("Found")

OBSTACLE_LASTS_S = 1.5
FAILSAFE_WAIT_S = 0.4
"""How long a leader is kept waiting for this node's promise; it gives its members 500 ms."""
SWITCHOVER_WAIT_LEAST_S = 10
TAKEN_WAIT_S = 2
"""How long a request may be on its way to the machine, which takes milliseconds."""


class Operations:
    """Answers requests that change something, to those who may make them."""

    def __init__(
        self, board: Board, submit: Submit, now_ms: Callable[[], int], credentials: tuple[str, str] | None
    ) -> None:
        self._board, self._submit, self._now_ms = board, submit, now_ms
        self._authorisation = basic_authorisation(*credentials) if credentials else None

    @property
    def routes(self) -> list[Route]:
        """Where each request goes."""
        endpoints = {
            "/switchover": self.switch_over,
            "/reinitialize": self.reinitialize,
            "/failsafe": self.confirm_failsafe,
        }
        return [Route(path, self._guarded(endpoint), methods=["POST"]) for path, endpoint in endpoints.items()]

    def _guarded(self, endpoint: Endpoint) -> Endpoint:
        async def guarded(request: Request) -> Response:
            given = request.headers.get("authorization", "").encode("latin-1")
            if self._authorisation is not None and not compare_digest(given, self._authorisation):
                headers = {"WWW-Authenticate": 'Basic realm="Patroni"'}
                return text_answer("not authenticated" if not given else "wrong credentials", 401, headers)
            return await endpoint(request)

        return guarded

    # ---- switchover

    async def switch_over(self, request: Request) -> Response:
        """Hands the leadership on, and answers when that is done or will not be. Source: Patroni, POST /switchover."""
        leader, candidate = self._parse_switchover(await read_object(request))
        view = self._board.current.view
        if not view.etcd.is_watched:
            raise Rejected(503, "etcd is not heard of at present: nothing was asked for")
        await self._check_switchover(leader, candidate)
        view = self._board.current.view
        asked = AskedSwitchover(leader=leader, candidate=candidate, revision=status.failover_revision(view))
        self._submit(SwitchoverAsked(at_ms=self._now_ms(), leader=leader, candidate=candidate, by=_who(request)))
        return await self._switchover_answer(asked)

    async def _check_switchover(self, leader: str, candidate: str | None) -> None:
        """Refuse what cannot be done; a look at the server may be a second old, so an obstacle must last longer."""

        def is_clear(view: View) -> bool | None:
            return status.switchover_obstacle(view, leader, candidate) is None or None

        if not await self._found_on_board(is_clear, OBSTACLE_LASTS_S):
            raise Rejected(412, status.switchover_obstacle(self._board.current.view, leader, candidate) or "not now")

    def _parse_switchover(self, body: dict[str, Any]) -> tuple[str, str | None]:
        """Leader and candidate. Source: Patroni, the order of its checks that answer 400."""
        leader, candidate = text_of(body, "leader"), text_of(body, "candidate", "member")
        if leader is None:
            raise Rejected(400, "Switchover could be performed only from a specific leader")
        if text_of(body, "scheduled_at") is not None:
            raise Rejected(400, "a switchover cannot be scheduled yet: leave out scheduled_at")
        if candidate is None and self._board.current.view.dynamic.pause:
            raise Rejected(400, "Switchover is possible only to a specific candidate in a paused state")
        if leader == candidate:
            raise Rejected(400, "Switchover target and source are the same")
        return leader, candidate

    async def _switchover_answer(self, asked: AskedSwitchover) -> Response:
        wait_s = 2 * max(SWITCHOVER_WAIT_LEAST_S, self._board.current.view.dynamic.loop_wait_s)
        match await self._found_on_board(lambda view: status.switchover_outcome(view, asked), wait_s):
            case "moved":
                return text_answer(self._moved_line(asked))
            case "dropped":
                raise Rejected(503, f'Switchover failed: the request was dropped, "{asked.leader}" still leads')
            case _:
                raise Rejected(503, f"Switchover status unknown after {wait_s} s")

    def _moved_line(self, asked: AskedSwitchover) -> str:
        """The words that tools look for."""
        leader = self._board.current.view.leader
        if asked.candidate in (None, leader):
            return f'Successfully switched over to "{leader}"'
        return f'Switched over to "{leader}" instead of "{asked.candidate}"'

    async def _found_on_board(self, look: Callable[[View], Found | None], wait_s: float) -> Found | None:
        """What `look` finds in the first snapshot in which it finds something; None if the time passes."""
        with anyio.move_on_after(wait_s):
            while True:
                found = look(self._board.current.view)
                if found is not None:
                    return found
                await self._board.changed()
        return None

    # ---- reinitialize

    async def reinitialize(self, request: Request) -> Response:
        """Begins to replace this node's data by a new base backup. Source: Patroni, POST /reinitialize.

        Answered once the status tells of it: who asks at once after that is not told of the old server.
        """
        body = await read_object(request, is_optional=True)
        is_forced, is_from_leader = (as_bool(body.get(name), False) for name in ("force", "from_leader"))
        self._check_reinit(is_forced)
        asked = ReinitAsked(at_ms=self._now_ms(), by=_who(request), is_from_leader=is_from_leader, is_forced=is_forced)
        self._submit(asked)
        if not await self._found_on_board(
            lambda view: status.has_taken_reinit(view, asked.at_ms) or None, TAKEN_WAIT_S
        ):
            self._check_reinit(is_forced)
            raise Rejected(503, f"the agent did not take the request within {TAKEN_WAIT_S} s")
        return text_answer("reinitialize started")

    def _check_reinit(self, is_forced: bool) -> None:
        obstacle = status.reinit_obstacle(self._board.current.view, is_forced=is_forced)
        if obstacle is not None:
            raise Rejected(503, obstacle)

    # ---- failsafe

    async def confirm_failsafe(self, request: Request) -> Response:
        """Promises a leader without etcd to let it go on. Source: Patroni, POST /failsafe."""
        body = await read_object(request)
        leader = text_of(body, "name")
        if leader is None:
            raise Rejected(400, '"name" is missing: the leader that asks')
        self._check_failsafe(leader)
        asked = FailsafeAsked(
            at_ms=self._now_ms(),
            leader=leader,
            ttl_s=_ttl_of(body),
            conn_url=text_of(body, "conn_url") or "",
            api_url=text_of(body, "api_url") or "",
        )
        self._submit(asked)
        view = await self._found_on_board(
            lambda view: view if status.has_promised(view, asked) else None, FAILSAFE_WAIT_S
        )
        if view is None:
            raise Rejected(503, f'this node does not promise "{leader}" to let it go on')
        return text_answer("Accepted", headers={"lsn": str(view.position_lsn)})

    def _check_failsafe(self, leader: str) -> None:
        view = self._board.current.view
        if not view.dynamic.failsafe_mode:
            raise Rejected(502, "failsafe mode is off")
        if status.is_leading_in_any_way(view) or leader == view.name:
            raise Rejected(500, "Running as a leader")


def _ttl_of(body: dict[str, Any]) -> int:
    """How long the leader counts on the answer; 0 if it does not say, as Patroni does not."""
    ttl_s = body.get("ttl", 0)
    if not isinstance(ttl_s, int) or not 0 <= ttl_s <= TTL_MAX_S:
        raise Rejected(400, f'"ttl" is not a number of seconds from 0 to {TTL_MAX_S}')
    return ttl_s


def basic_authorisation(username: str, password: str) -> bytes:
    """What the Authorization header must say. Source: RFC 7617."""
    return b"Basic " + b64encode(f"{username}:{password}".encode())


def _who(request: Request) -> str:
    return request.client.host if request.client else ""
