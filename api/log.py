"""The transition log over HTTP: pages of entries as they were written, and a stream of those to come."""

from collections.abc import AsyncIterator
from datetime import datetime

import anyio
import anyio.lowlevel
import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from api.answers import Rejected
from effects.errors import LogCorrupt, LogUnavailable
from effects.log import TransitionLog
from effects.log_archive import archived
from fsm.events import AnyEvent
from fsm.states import State

PAGE_DEFAULT, PAGE_MAX = 100, 1_000
SCAN_PAGE = 200
"""Entries that are looked through between two turns of the event loop: about a millisecond's work."""
SCAN_MAX = 5_000
"""Entries that one request looks through; the cursor it returns leads on from there."""
QUIET_S = 15.0
"""A stream without entries sends a comment this often: proxies keep it open, and a client that left is noticed."""

STATES = frozenset(str(state) for state in State)
EVENTS = frozenset(event.__name__ for event in AnyEvent.__args__)

CURSOR, LAST = "Matriarch-Log-Cursor", "Matriarch-Log-Last"


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """Which entries a client wants; None means all."""

    rule: str | None = None
    state: str | None = None
    event: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    @property
    def takes_all(self) -> bool:
        """True when no entry is left out."""
        return self == _EVERYTHING

    def takes(self, body: bytes) -> bool:
        """True when the client wants this entry."""
        if self.takes_all:
            return True
        labels = _decode_labels(body)
        if self.rule not in (None, labels.rule) or self.state not in (None, labels.after):
            return False
        return self.event in (None, labels.event.event) and self._is_in_time(labels.wall)

    def _is_in_time(self, wall: datetime | None) -> bool:
        if wall is None:
            return self.since is None and self.until is None
        return (self.since is None or wall >= self.since) and (self.until is None or wall < self.until)


_EVERYTHING = Filter()


class _EventLabel(msgspec.Struct, frozen=True):
    event: str | None = None


class _Labels(msgspec.Struct):
    """What of an entry is looked at here."""

    seq: int = 0
    rule: str | None = None
    after: str | None = None
    wall: datetime | None = None
    event: _EventLabel = _EventLabel()


_decode_labels = msgspec.json.Decoder(_Labels).decode


class LogAnswers:
    """Answers what is asked about the log."""

    def __init__(self, log: TransitionLog) -> None:
        self._log = log

    @property
    def routes(self) -> list[Route]:
        """Where each answer is found."""
        return [Route("/log", self.page), Route("/log/stream", self.stream), Route("/log/archive", self.archive)]

    async def page(self, request: Request) -> Response:
        """Entries as a JSON array, oldest first; the newest ones when nothing particular is asked for.

        `after`: only entries with a higher seq; `before`: only entries with a lower one, and of these the newest;
        `limit`: how many; `rule`: only moves by this rule; `state`: only entries that left the node in this state;
        `event`: only entries of this event; `since`, `until`: only entries made at or after the one, before the other.

        The header Matriarch-Log-Cursor is the `after` of the next page (the `before`, where that was asked for), and
        Matriarch-Log-Last the seq of the newest entry: a page may be empty before that when a filter is set. Entries
        never change, so a cursor stays good for as long as its entries are kept.
        """
        limit = min(max(_whole(request, "limit", PAGE_DEFAULT), 1), PAGE_MAX)
        wanted = _filter(request)
        last_seq = self._log.status.last_seq
        before = _whole(request, "before", 0)
        after = _whole(request, "after", max(0, last_seq - limit) if wanted.takes_all and not before else 0)
        try:
            if before:
                bodies, cursor = await self._newest_before(before, after, limit, wanted)
            else:
                bodies, cursor = await self._matching(after, limit, wanted)
        except (LogCorrupt, LogUnavailable) as error:
            raise Rejected(500, str(error)) from error
        headers = {CURSOR: str(cursor), LAST: str(last_seq)}
        return Response(b"[%s]" % b",\n".join(bodies), headers=headers, media_type="application/json")

    async def _matching(self, after: int, limit: int, wanted: Filter) -> tuple[list[bytes], int]:
        """Wanted entries after a seq, and the seq up to which the log was looked through."""
        found: list[bytes] = []
        for _ in range(SCAN_MAX // SCAN_PAGE):
            bodies = await self._log.read(after, SCAN_PAGE)
            for body in bodies:
                after = _decode_labels(body).seq
                if wanted.takes(body):
                    found.append(body)
                    if len(found) == limit:
                        return found, after
            if len(bodies) < SCAN_PAGE:
                break
            await anyio.lowlevel.checkpoint()
        return found, after

    async def _newest_before(self, before: int, after: int, limit: int, wanted: Filter) -> tuple[list[bytes], int]:
        """The newest wanted entries between two seqs, oldest first, and down to which seq was looked."""
        found: list[bytes] = []
        for _ in range(SCAN_MAX // SCAN_PAGE):
            first = max(after, before - 1 - SCAN_PAGE)
            bodies = [
                body for body in await self._log.read(first, before - 1 - first) if _decode_labels(body).seq < before
            ]
            for body in reversed(bodies):
                before = _decode_labels(body).seq
                if wanted.takes(body):
                    found.insert(0, body)
                    if len(found) == limit:
                        return found, before
            before = first + 1
            if first <= after:
                break
            await anyio.lowlevel.checkpoint()
        return found, before

    async def stream(self, request: Request) -> Response:
        """Entries as server-sent events, each with its seq for an id.

        Resumes behind the header Last-Event-ID, or behind `after`; begins with the next entry otherwise. The filters
        choose as they do for a page. Source: HTML standard, "Server-sent events".
        """
        resumed = request.headers.get("last-event-id", "")
        after = int(resumed) if resumed.isdecimal() else _whole(request, "after", self._log.status.last_seq)
        frames = self._frames(after, _filter(request))
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(frames, headers=headers, media_type="text/event-stream")

    async def archive(self, _: Request) -> Response:
        """All segments that are kept, as a tar: what `matriarch replay` and `matriarch postmortem` take."""
        headers = {"Content-Disposition": 'attachment; filename="matriarch-log.tar"', "Cache-Control": "no-store"}
        pieces = archived(self._log.directory)
        return StreamingResponse(pieces, headers=headers, media_type="application/x-tar")

    async def _frames(self, after: int, wanted: Filter) -> AsyncIterator[bytes]:
        yield b": entries after %d\n\n" % after
        entries = self._log.follow(after)
        while True:
            body: bytes | None = None
            try:
                with anyio.move_on_after(QUIET_S):
                    body = await anext(entries)
            except (LogCorrupt, LogUnavailable) as error:
                yield f"event: error\ndata: {error}\n\n".encode()
                return
            if body is None:
                entries = self._log.follow(after)  # the wait that was given up has ended the one before
                yield b": nothing new\n\n"
                continue
            after = _decode_labels(body).seq
            if wanted.takes(body):
                yield b"id: %d\ndata: %s\n\n" % (after, body)


def _whole(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name)
    if not text:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) <= 18):
        raise Rejected(400, f'{name} is a whole number, not "{text}"')
    return int(text)


def _filter(request: Request) -> Filter:
    asked = request.query_params
    return Filter(
        rule=asked.get("rule") or None,
        state=_one_of(request, "state", STATES),
        event=_one_of(request, "event", EVENTS),
        since=_instant(request, "since"),
        until=_instant(request, "until"),
    )


def _one_of(request: Request, name: str, known: frozenset[str]) -> str | None:
    text = request.query_params.get(name) or None
    if text is not None and text not in known:
        raise Rejected(400, f'{name} is one of {", ".join(sorted(known))}, not "{text[:40]}"')
    return text


def _instant(request: Request, name: str) -> datetime | None:
    """A time with its zone. A "+" that was not escaped arrives as a space."""
    text = request.query_params.get(name)
    if not text:
        return None
    try:
        found = datetime.fromisoformat(text.replace(" ", "+") if "T" in text else text)
    except ValueError as error:
        raise Rejected(400, f'{name} is a time such as 2026-01-31T12:00:00Z, not "{text}"') from error
    if found.tzinfo is None:
        raise Rejected(400, f'{name} has no time zone: "{text}"; add Z for UTC')
    return found
