"""The web page: files of the agent's own, under a policy that lets the page reach nothing but the cluster's agents.

The page of one agent reads the logs of all: each agent lets the pages of its cluster's members read what anybody may
read without a page, and no other page. Source: Fetch standard, "CORS protocol"; Content Security Policy Level 3.
"""

from collections.abc import Callable
from functools import cache, partial
from importlib.resources import files
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from effects.board import Board
from fsm import diagram
from fsm.view import View

MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css",
    ".svg": "image/svg+xml",
}
MADE: dict[str, Callable[[], str]] = {"fsm.css": diagram.as_css, "fsm.svg": partial(diagram.as_svg, has_looks=False)}
"""Parts that are made of the table."""
INDEX = "index.html"
PARTS = frozenset(path.name for path in files("api.ui").iterdir() if path.name.endswith((".js", ".css")))
PATHS = frozenset(f"/ui/{name}" for name in PARTS | MADE.keys())
"""Where the parts of the page are found, besides /ui itself."""

READABLE = frozenset({"/log", "/log/stream", "/fsm", "/cluster", "/explain"})
"""What pages of the cluster's other agents may read."""


class UiAnswers:
    """Answers with the page and its parts."""

    def __init__(self, board: Board) -> None:
        self._board = board

    @property
    def routes(self) -> list[Route]:
        """Where each is found."""
        return [Route("/ui", self.page), *(Route(path, self.part) for path in sorted(PATHS))]

    async def page(self, _: Request) -> Response:
        """The page."""
        return self._answer(_content(INDEX), MEDIA_TYPES[".html"])

    async def part(self, request: Request) -> Response:
        """A script or a style of it."""
        name = request.url.path.removeprefix("/ui/")
        content = MADE[name]().encode() if name in MADE else _content(name)
        return self._answer(content, MEDIA_TYPES[name[name.rindex(".") :]])

    def _answer(self, content: bytes, media_type: str) -> Response:
        headers = {
            "Content-Security-Policy": policy(self._board.current.view),
            "Cache-Control": "no-cache",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
        }
        return Response(content, headers=headers, media_type=media_type)


@cache
def _content(name: str) -> bytes:
    return files("api.ui").joinpath(name).read_bytes()


def policy(view: View) -> str:
    """What the page may do: run its own scripts, look as its own styles say, and ask the members' agents."""
    allowed = " ".join(["'self'", *sorted(origins(view))])
    return (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; base-uri 'none'; "
        f"form-action 'none'; frame-ancestors 'none'; connect-src {allowed}"
    )


def origins(view: View) -> frozenset[str]:
    """Where the members' agents are reached, as a browser writes it: scheme, host and port."""
    found = (urlsplit(member.api_url or "") for member in view.members.values())
    return frozenset(
        f"{url.scheme}://{url.netloc}" for url in found if url.scheme in ("http", "https") and _is_plain(url.netloc)
    )


def _is_plain(netloc: str) -> bool:
    """Nothing that could say more in a header than a host and a port."""
    return bool(netloc) and all((one.isalnum() and one.isascii()) or one in ".-:[]" for one in netloc)


def reading_headers(view: View, path: str, origin: str) -> dict[str, str]:
    """The headers that let a page of another member read an answer; none for any other page."""
    if path not in READABLE or origin not in origins(view):
        return {}
    return {"access-control-allow-origin": origin, "vary": "Origin"}
