"""The log over HTTP: pages that can be followed to the end, and a stream that resumes where it broke off."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from starlette.types import Message

from api import log as api_log
from tests.api.asking import Surroundings, ask, surroundings

pytestmark = pytest.mark.anyio
DEADLINE_S = 10


@pytest.fixture
async def around(tmp_path: Path) -> AsyncIterator[Surroundings]:
    """A board that shows a leader, a log, and an inbox."""
    async with surroundings(tmp_path) as found:
        yield found


def body(seq: int) -> bytes:
    """An entry: every tenth is a move by rule L1, and each was made a second after the one before."""
    entry: dict[str, Any] = {
        "v": 1,
        "seq": seq,
        "node": "n1",
        "wall": f"2026-01-31T12:{seq // 60:02}:{seq % 60:02}+00:00",
    }
    entry |= {"after": "leader" if seq % 7 == 0 else "replica", "event": {"event": "Ticked" if seq % 2 else "EtcdLost"}}
    return msgspec.json.encode(entry | ({"rule": "L1"} if seq % 10 == 0 else {}))


def append(around: Surroundings, first: int, last: int) -> None:
    """Appends entries to the log."""
    for seq in range(first, last + 1):
        around.log.append(seq, body(seq))


@pytest.mark.parametrize(
    ("query", "seqs"),
    [
        ("", range(21, 121)),
        ("?limit=5", range(116, 121)),
        ("?after=3&limit=2", (4, 5)),
        ("?after=118", (119, 120)),
        ("?after=120", ()),
        ("?rule=L1&limit=3", (10, 20, 30)),
        ("?rule=L1&after=95", (100, 110, 120)),
        ("?since=2026-01-31T12:01:58Z", (118, 119, 120)),
        ("?since=2026-01-31T13:01:58+01:00&rule=L1", (120,)),
        ("?since=2026-01-31T12:00:03Z&until=2026-01-31T12:00:05Z", (3, 4)),
        ("?state=leader&limit=3", (7, 14, 21)),
        ("?event=EtcdLost&after=100&limit=2", (102, 104)),
        ("?event=EtcdLost&state=leader&rule=L1", (70,)),
        ("?before=50&limit=3", (47, 48, 49)),
        ("?before=3", (1, 2)),
        ("?before=50&rule=L1&limit=2", (30, 40)),
        ("?before=50&after=45", (46, 47, 48, 49)),
        ("?before=1", ()),
    ],
)
async def test_page_has_entries_as_they_were_written_when_asked_in_any_way(
    around: Surroundings, query: str, seqs: Any
) -> None:
    """Raw bodies in order, and the cursor behind them."""
    append(around, 1, 120)
    answer = await ask(around.app(), "/log" + query)
    assert answer.status == 200
    assert [entry["seq"] for entry in answer.json] == list(seqs)
    assert all(body(seq) in answer.body for seq in seqs)
    assert answer.headers["matriarch-log-last"] == "120"


async def test_pages_lead_to_the_end_when_the_cursor_is_followed(
    around: Surroundings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a filter leaves pages empty because a request looks through a bounded part only."""
    monkeypatch.setattr(api_log, "SCAN_PAGE", 2)
    monkeypatch.setattr(api_log, "SCAN_MAX", 4)
    append(around, 1, 45)
    app, found, after, pages = around.app(), [], 0, 0
    while after < 45:
        answer = await ask(app, f"/log?rule=L1&after={after}")
        found += [entry["seq"] for entry in answer.json]
        after, pages = int(answer.headers["matriarch-log-cursor"]), pages + 1
    assert (found, pages) == ([10, 20, 30, 40], 12)


async def test_pages_lead_to_the_begin_when_the_cursor_is_followed_backwards(
    around: Surroundings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest first, page by page, each page in order; nothing twice and nothing left out."""
    monkeypatch.setattr(api_log, "SCAN_PAGE", 2)
    monkeypatch.setattr(api_log, "SCAN_MAX", 4)
    append(around, 1, 45)
    app, found, before = around.app(), list[int](), 46
    while before > 1:
        answer = await ask(app, f"/log?rule=L1&before={before}")
        found = [entry["seq"] for entry in answer.json] + found
        before = int(answer.headers["matriarch-log-cursor"])
    assert found == [10, 20, 30, 40]


@pytest.mark.parametrize(
    "query",
    [
        "?after=x",
        "?limit=-1",
        "?since=yesterday",
        "?since=2026-01-31T12:00:00",
        "?after=²",
        "?until=x",
        "?state=king",
        "?event=Rain",
        "?before=x",
    ],
)
async def test_page_is_refused_when_a_parameter_cannot_be_read(around: Surroundings, query: str) -> None:
    """400 with one line that says what it should be."""
    answer = await ask(around.app(), "/log" + query)
    assert (answer.status, answer.text.count("\n")) == (400, 0)


class Stream:
    """A client of the stream that reads as it comes."""

    def __init__(self, around: Surroundings, path: str = "/log/stream", **headers: str) -> None:
        self._app = around.app()
        path, _, query = path.partition("?")
        self._scope = {
            "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1",
            "method": "GET", "path": path, "raw_path": path.encode(), "query_string": query.encode(), "root_path": "",
            "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()],
        }  # fmt: skip
        self.text = ""
        self.headers: dict[bytes, bytes] = {}
        self._came, self._left = anyio.Event(), anyio.Event()

    async def read(self) -> None:
        """Reads until `leave`."""
        await self._app(self._scope, self._receive, self._send)

    def leave(self) -> None:
        """Closes the connection."""
        self._left.set()

    async def _receive(self) -> Message:
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        self.headers |= dict(message.get("headers", ()))
        self.text += message.get("body", b"").decode()
        self._came.set()
        self._came = anyio.Event()

    async def until(self, part: str) -> None:
        """Waits until a text has come."""
        with anyio.fail_after(DEADLINE_S):
            while part not in self.text:
                await self._came.wait()


async def test_stream_tells_entries_when_they_are_appended(around: Surroundings) -> None:
    """From now on by default, each with its seq for an id; it ends when the client leaves."""
    append(around, 1, 5)
    stream = Stream(around)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stream.read)
        await stream.until("entries after 5")
        append(around, 6, 7)
        await stream.until(f"id: 7\ndata: {body(7).decode()}\n\n")
        stream.leave()
    assert stream.headers[b"content-type"].startswith(b"text/event-stream")
    assert "id: 6\n" in stream.text
    assert "id: 5\n" not in stream.text


@pytest.mark.parametrize(
    ("path", "headers"), [("/log/stream", {"last_event_id": "3"}), ("/log/stream?after=3", {})], ids=["header", "query"]
)
async def test_stream_resumes_when_it_is_told_where_it_was(
    around: Surroundings, path: str, headers: dict[str, str]
) -> None:
    """A browser that lost its connection misses nothing."""
    append(around, 1, 5)
    stream = Stream(around, path, **headers)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stream.read)
        await stream.until("id: 5\n")
        stream.leave()
    assert "id: 4\n" in stream.text
    assert "id: 3\n" not in stream.text


async def test_stream_goes_on_when_nothing_happened_for_a_while(
    around: Surroundings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A comment keeps the connection open, and the entry after it is not lost."""
    monkeypatch.setattr(api_log, "QUIET_S", 0.01)
    stream = Stream(around)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stream.read)
        await stream.until(": nothing new\n\n: nothing new")
        append(around, 1, 1)
        await stream.until("id: 1\n")
        stream.leave()
