"""Changing the dynamic configuration. Source: Patroni, PATCH and PUT /config."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api.access import Access
from api.answers import Rejected, read_object
from api.waiting import Desk
from effects.config_desk import ConfigDesk, Prepared
from effects.errors import ConfigUnusable
from fsm.asked import Answer
from fsm.events import ConfigAsked
from fsm.timing import REQUEST_TIMEOUT_MS

WAIT_S = REQUEST_TIMEOUT_MS / 1000 + 1
UNHEARD = "etcd is not heard of at present: nothing was changed"


class ConfigOperations:
    """Answers requests for another configuration when it is in etcd."""

    def __init__(self, desk: Desk, access: Access, configs: ConfigDesk) -> None:
        self._desk, self._access, self._configs = desk, access, configs

    @property
    def routes(self) -> list[Route]:
        """Where each request goes."""
        return [
            Route("/config", self._access.guarded(self.patch, self._desk.board), methods=["PATCH"]),
            Route("/config", self._access.guarded(self.put, self._desk.board), methods=["PUT"]),
        ]

    async def patch(self, request: Request) -> Response:
        """Lays a patch over the configuration, and answers with the whole of it."""
        body = await read_object(request)
        if not self._desk.view.etcd.is_watched:
            raise Rejected(503, UNHEARD)
        try:
            prepared = self._configs.patch(body)
        except ConfigUnusable as error:
            raise Rejected(400, str(error)) from error
        if prepared is None:
            raise Rejected(503, "etcd holds no configuration of this cluster")
        if not prepared.changes:
            return _shown(prepared)
        return self._told(prepared, await self._asked(request, prepared), failed_status=503)

    async def put(self, request: Request) -> Response:
        """Replaces the configuration, whatever it is."""
        body = await read_object(request)
        if not self._desk.view.etcd.is_watched:
            raise Rejected(502, UNHEARD)
        try:
            prepared = self._configs.replace(body)
        except ConfigUnusable as error:
            raise Rejected(400, str(error)) from error
        return self._told(prepared, await self._asked(request, prepared), failed_status=502)

    async def _asked(self, request: Request, prepared: Prepared) -> Answer:
        event = ConfigAsked(
            at_ms=self._desk.now_ms(),
            request_id=prepared.request_id,
            revision=prepared.revision,
            changes=prepared.changes,
            by=self._access.who(request),
        )
        self._desk.submit(event)
        return await self._desk.answer(prepared.request_id, WAIT_S)

    def _told(self, prepared: Prepared, answer: Answer, failed_status: int) -> Response:
        match answer.ending:
            case "done":
                return _shown(prepared)
            case "conflict":
                raise Rejected(409, f"the configuration was not changed: {answer.detail}; ask again")
            case "unknown":
                raise Rejected(failed_status, f"nobody knows whether it was changed: {answer.detail}; look at it")
            case _:
                raise Rejected(failed_status, f"the configuration was not changed: {answer.detail}")


def _shown(prepared: Prepared) -> Response:
    return Response(prepared.shown, media_type="application/json")
