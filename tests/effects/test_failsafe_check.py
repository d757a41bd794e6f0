"""The question of the pre-flight, put to real HTTP servers that answer as members of every kind do."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
import pytest
from anyio.abc import SocketAttribute, SocketStream

from effects.embedded import free_ports
from effects.failsafe_check import FailsafeCheck
from effects.peers import Peers
from fsm import effects as do
from fsm.events import FailsafeChecked
from fsm.facts import FailsafeAnswer

pytestmark = pytest.mark.anyio
TIMEOUT_MS = 30_000

Said = tuple[int, str]
"""Status and body."""


@asynccontextmanager
async def member(say: Callable[[str], Said | None]) -> AsyncIterator[tuple[str, list[str]]]:
    """A member's API, and the requests that it was sent. `say`: what it answers to a request line; None: nothing."""
    heard: list[str] = []

    async def serve(stream: SocketStream) -> None:
        async with stream:
            while True:
                try:
                    line = (await stream.receive()).split(b"\r\n", 1)[0].decode()
                except (anyio.EndOfStream, anyio.BrokenResourceError):
                    return
                heard.append(line)
                said = say(line)
                if said is None:
                    await anyio.sleep_forever()
                    return
                status, body = said
                head = f"HTTP/1.1 {status} x\r\ncontent-length: {len(body)}\r\n\r\n"
                await stream.send((head + body).encode())

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(SocketAttribute.local_port)
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        yield f"http://127.0.0.1:{port}/patroni", heard
        tasks.cancel_scope.cancel()


async def answer_of(url: str, timeout_ms: int = TIMEOUT_MS) -> FailsafeAnswer:
    """What is made of a member's answer."""
    peers = Peers("n1")
    try:
        effect = do.CheckFailsafe(timeout_ms=timeout_ms, api_urls={"n2": url}, leader="n1")
        checked = await FailsafeCheck(peers).check(effect)
    finally:
        await peers.aclose()
    assert isinstance(checked, FailsafeChecked)
    return checked.answers[0]


def telling(first: Said, status: dict[str, object] | None = None) -> Callable[[str], Said]:
    """Answers the question so, and GET /patroni with a status."""
    return lambda line: (200, json.dumps(status)) if line.startswith("GET /patroni") else first


@pytest.mark.parametrize(
    ("say", "wanted"),
    [
        (
            telling((200, '{"name": "n2", "would_promise": true, "reason": ""}')),
            FailsafeAnswer(name="n2", kind="promise", is_willing=True),
        ),
        (
            telling((200, '{"name": "n2", "would_promise": false, "reason": "full"}')),
            FailsafeAnswer(name="n2", kind="promise", detail="full"),
        ),
        (
            telling((200, '{"n1": "http://n1:8008/patroni"}'), {"role": "replica", "patroni": {"version": "4.0.4"}}),
            FailsafeAnswer(name="n2", kind="list", role="replica", version="Patroni 4.0.4"),
        ),
        (
            telling((503, '{"state": "running", "role": "replica", "patroni": {"version": "2.1.7"}}')),
            FailsafeAnswer(name="n2", kind="status", detail="Patroni 2.1.7"),
        ),
        (
            telling((502, "failsafe mode is off")),
            FailsafeAnswer(name="n2", kind="refused", detail="502: failsafe mode is off"),
        ),
        (
            telling((401, "not authenticated")),
            FailsafeAnswer(name="n2", kind="refused", detail="401: not authenticated"),
        ),
    ],
    ids=["willing", "unwilling", "Patroni", "Patroni before 3", "mode off", "no credentials"],
)
async def test_answer_is_understood_when_a_member_of_any_kind_gives_it(
    say: Callable[[str], Said], wanted: FailsafeAnswer
) -> None:
    """And nothing but GET is ever sent: no version takes that for the real question."""
    async with member(say) as (url, heard):
        found = await answer_of(url)
    assert (found.kind, found.is_willing, found.detail, found.role, found.version) == (
        wanted.kind, wanted.is_willing, wanted.detail, wanted.role, wanted.version
    )  # fmt: skip
    assert heard[0] == "GET /failsafe/promise?leader=n1 HTTP/1.1"
    assert all(line.startswith("GET ") for line in heard)


async def test_answer_is_none_when_nobody_listens() -> None:
    """With the reason."""
    found = await answer_of(f"http://127.0.0.1:{free_ports(1)[0]}/patroni")
    assert found.kind == "none"
    assert found.detail


async def test_answer_is_none_when_a_member_takes_the_question_and_is_silent() -> None:
    """It is given up before the effect itself is, so that the other answers count."""
    async with member(lambda line: None) as (url, heard):
        found = await answer_of(url, timeout_ms=100)
    assert (found.kind, len(heard)) == ("none", 1)
    assert "nothing within" in found.detail
