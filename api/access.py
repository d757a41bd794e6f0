"""Who may make requests that change something: by address, by certificate, by password, asked in this order.

Source: Patroni, REST API, restapi.allowlist, verify_client, authentication. Reading is open to everybody.
"""

import logging
import re
from base64 import b64encode
from collections.abc import Awaitable, Callable
from hmac import compare_digest

from starlette.requests import Request
from starlette.responses import Response

from api.answers import Rejected, text_answer
from effects.allowlist import Allowlist
from effects.board import Board

logger = logging.getLogger(__name__)

Endpoint = Callable[[Request], Awaitable[Response]]

CERTIFIED = "matriarch.is_certified"
"""In a request's state: whether the client showed a certificate that `restapi.cafile` vouches for."""


class Access:
    """What requests that change something must bring. It may change while the API runs: settings are read again."""

    def __init__(
        self,
        credentials: tuple[str, str] | None = None,
        allowlist: Allowlist | None = None,
        *,
        needs_certificate: bool = False,
        headers: dict[str, str] | None = None,
    ) -> None:
        """`credentials`: HTTP Basic. `headers`: what every answer that has headers carries as well."""
        self.take(credentials, allowlist, needs_certificate=needs_certificate, headers=headers)

    def take(
        self,
        credentials: tuple[str, str] | None,
        allowlist: Allowlist | None,
        *,
        needs_certificate: bool = False,
        headers: dict[str, str] | None = None,
    ) -> None:
        """Go by these from now on."""
        self._username = credentials[0] if credentials else ""
        self._authorisation = basic_authorisation(*credentials) if credentials else None
        self._allowlist = allowlist or Allowlist()
        self._needs_certificate = needs_certificate
        self.headers = tuple(
            (name.lower().encode("latin-1"), value.encode("latin-1"))
            for name, value in (headers or {}).items()
            if _is_fit_for_a_header(name, value)
        )

    def guarded(self, endpoint: Endpoint, board: Board) -> Endpoint:
        """The endpoint, behind these conditions."""

        async def guarded(request: Request) -> Response:
            return await self._refusal(request, board) or await endpoint(request)

        return guarded

    async def _refusal(self, request: Request, board: Board) -> Response | None:
        address = request.client.host if request.client else ""
        view = board.current.view
        members = [member.api_url for member in view.members.values()] + list(view.failsafe.values())
        if not await self._allowlist.admits(address, members):
            raise Rejected(403, "requests that change something are not taken from this address (restapi.allowlist)")
        if self._needs_certificate and not request.scope.get("state", {}).get(CERTIFIED):
            raise Rejected(403, "requests that change something need a client certificate (restapi.verify_client)")
        given = request.headers.get("authorization", "").encode("latin-1")
        if self._authorisation is not None and not compare_digest(given, self._authorisation):
            headers = {"WWW-Authenticate": 'Basic realm="Patroni"'}
            return text_answer("not authenticated" if not given else "wrong credentials", 401, headers)
        return None

    def who(self, request: Request) -> str:
        """Who asks, for the log: the user, if users are told apart, and the address."""
        address = request.client.host if request.client else ""
        return f"{self._username}@{address}" if self._username else address


def _is_fit_for_a_header(name: str, value: str) -> bool:
    """True for what cannot break out of its line. Source: RFC 9110, 5.5."""
    if re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", name) and re.fullmatch(r"[\t\x20-\x7e\xa0-\xff]*", value):
        return True
    logger.warning("restapi.http_extra_headers: %r is left out: it is no name, or its value no line, of HTTP", name)
    return False


def basic_authorisation(username: str, password: str) -> bytes:
    """What the Authorization header must say. Source: RFC 7617."""
    return b"Basic " + b64encode(f"{username}:{password}".encode())
