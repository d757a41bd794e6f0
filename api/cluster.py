"""What the cluster looks like from here: members, history, configuration, and this node's machine.

All of it comes from the newest snapshot, which etcd's watch keeps; nothing here asks etcd.
"""

from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api.answers import Rejected, json_answer, spaced
from effects.board import Board
from fsm import diagram
from fsm.explain import UnknownSubject, explain_at
from fsm.publish import history_rows
from fsm.states import State
from fsm.status import cluster_fields, failsafe_members
from fsm.wire import json_object

DRAWINGS: dict[str, tuple[Callable[[State], str], str]] = {
    "json": (diagram.as_json, "application/json"),
    "mermaid": (diagram.as_mermaid, "text/plain"),
    "dot": (diagram.as_dot, "text/vnd.graphviz"),
    "svg": (diagram.as_svg, "image/svg+xml"),
}
"""The formats of GET /fsm, and what each is called in HTTP."""


class ClusterAnswers:
    """Answers what is asked about the cluster."""

    def __init__(self, board: Board, now_ms: Callable[[], int]) -> None:
        self._board = board
        self._now_ms = now_ms

    @property
    def routes(self) -> list[Route]:
        """Where each answer is found."""
        return [
            Route("/cluster", self.cluster),
            Route("/history", self.history),
            Route("/config", self.config),
            Route("/failsafe", self.failsafe),
            Route("/fsm", self.machine),
            Route("/explain", self.explanation),
        ]

    async def cluster(self, request: Request) -> Response:
        """The members, their parts and their lag. Source: Patroni, GET /cluster."""
        return json_answer(cluster_fields(self._board.current.view, self._now_ms()))

    async def history(self, request: Request) -> Response:
        """The timelines and who began them. Source: Patroni, GET /history."""
        return json_answer(history_rows(self._board.current.view))

    async def config(self, request: Request) -> Response:
        """The dynamic configuration as it stands in etcd. Source: Patroni, GET /config."""
        key = self._board.current.view.keys.get("config")
        text = key.value if key else None
        if not text or not json_object(text):
            if not self._board.current.view.etcd.is_watched:
                raise Rejected(502, "etcd is not heard of at present")
            raise Rejected(502, "etcd holds no configuration of this cluster")
        return Response(spaced(text), media_type="application/json")

    async def failsafe(self, request: Request) -> Response:
        """Who stands in for etcd. Source: Patroni, GET /failsafe."""
        members = failsafe_members(self._board.current.view)
        if members is None:
            raise Rejected(502, "failsafe mode is off")
        return json_answer(members)

    async def machine(self, request: Request) -> Response:
        """The state machine with this node's state lit; `format` is json, mermaid, dot or svg."""
        wanted = request.query_params.get("format") or "json"
        if wanted not in DRAWINGS:
            raise Rejected(400, f'format "{wanted}" is none of {", ".join(DRAWINGS)}')
        draw, media_type = DRAWINGS[wanted]
        return Response(draw(self._board.current.view.state), media_type=media_type)

    async def explanation(self, request: Request) -> Response:
        """Why this node moves or stays, and who would win a failover; `about` asks for one rule or duty."""
        try:
            found = explain_at(self._board.current.view, self._now_ms(), request.query_params.get("about") or "")
        except UnknownSubject as error:
            raise Rejected(404, str(error)) from None
        return json_answer(found)
