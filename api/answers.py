"""How every answer of the API is written: JSON as Python's own `json` spaces it, or one line of text."""

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

BODY_BYTES_MAX = 64 << 10
"""Requests are small objects; more than this is a mistake."""


TEXT_MAX = 1_000
"""No name, address or instant is longer."""


class Rejected(Exception):
    """The request cannot be served: its status, and one line that a person can act on."""

    def __init__(self, status: int, reason: str) -> None:
        self.status = status
        super().__init__(reason)


def encode_json(value: object) -> bytes:
    """JSON with a space behind `,` and `:`, as Patroni's: some health checks match `"role": "replica"` in its text."""
    return msgspec.json.format(msgspec.json.encode(value), indent=0)


def spaced(text: str) -> str:
    """JSON from etcd, which has no spaces, as the API writes it; order and numbers stay as they are."""
    return msgspec.json.format(text, indent=0)


def json_answer(value: object, status: int = 200) -> Response:
    """An answer in JSON."""
    return Response(encode_json(value), status, media_type="application/json")


def text_answer(line: str, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """An answer of one line."""
    return Response(line, status, headers, media_type="text/plain")


async def read_object(request: Request, *, is_optional: bool = False) -> dict[str, Any]:
    """The JSON object in a request's body.

    is_optional: an empty body then counts as an empty object.
    Raises: Rejected with 411, 413 or 400. Source: Patroni, the REST API's body handling.
    """
    if "content-length" not in request.headers and not is_optional:
        raise Rejected(411, "the request has no Content-Length")
    body = await _read_body(request)
    if not body and is_optional:
        return {}
    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise Rejected(400, f"the body is not JSON: {error}") from error
    if not isinstance(found, dict) or not (found or is_optional):
        raise Rejected(400, "the body is not a JSON object with something in it")
    return found


async def _read_body(request: Request) -> bytes:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > BODY_BYTES_MAX:
            raise Rejected(413, f"the body is longer than {BODY_BYTES_MAX} bytes")
    return bytes(body)


def text_of(found: dict[str, Any], *names: str) -> str | None:
    """The text under the first of these names that is there and not empty. Raises: Rejected for what is no text."""
    for name in names:
        value = found.get(name)
        if value is not None and not isinstance(value, str):
            raise Rejected(400, f'"{name}" is not text')
        if value is not None and len(value) > TEXT_MAX:
            raise Rejected(400, f'"{name}" is longer than {TEXT_MAX} characters')
        if value:
            return value
    return None
