"""Asks members whether they would confirm this leader if etcd went away, in a way that binds nobody.

Only GET, which no version takes for the real question: an older member, or Patroni's, answers it with its list.
"""

import anyio
import httpx

from effects.clock import now_ms
from effects.lanes import Lane, Report
from effects.peers import Peers
from fsm import effects as do
from fsm.events import AnyResult, FailsafeChecked
from fsm.facts import FailsafeAnswer

PATH = "/failsafe/promise"


class FailsafeCheck:
    """Performs the question of the pre-flight."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers

    def lanes(self, report: Report) -> list[Lane]:
        """A lane of its own: a rehearsal never stands before the question that counts."""
        return [Lane("checks", {do.CheckFailsafe: self.check}, report)]

    async def check(self, effect: do.CheckFailsafe) -> AnyResult:
        """What each member said."""
        answers: list[FailsafeAnswer] = []

        async def one(name: str, url: str) -> None:
            answers.append(await self._answer(name, url, effect))

        async with anyio.create_task_group() as questions:
            for name, url in effect.api_urls.items():
                questions.start_soon(one, name, url)
        return FailsafeChecked(answers=tuple(sorted(answers, key=lambda answer: answer.name)))

    async def _answer(self, name: str, url: str, effect: do.CheckFailsafe) -> FailsafeAnswer:
        """One member's answer, never later than the effect's own."""
        began_ms = now_ms()
        with anyio.move_on_after(effect.timeout_ms * 0.9 / 1000):
            try:
                return await self._ask(name, url, effect.leader, began_ms)
            except httpx.HTTPError as error:
                detail = str(error) or type(error).__name__
                return FailsafeAnswer(name=name, kind="none", detail=detail, took_ms=now_ms() - began_ms)
        took_ms = now_ms() - began_ms
        return FailsafeAnswer(name=name, kind="none", detail=f"nothing within {took_ms} ms", took_ms=took_ms)

    async def _ask(self, name: str, url: str, leader: str, began_ms: int) -> FailsafeAnswer:
        answer = await self._peers.client.get(url.rsplit("/", 1)[0] + PATH, params={"leader": leader})
        took_ms = now_ms() - began_ms
        found = _object_in(answer)
        if "would_promise" in found:
            reason = str(found.get("reason") or "")
            is_willing = found["would_promise"] is True
            return FailsafeAnswer(name=name, kind="promise", is_willing=is_willing, detail=reason, took_ms=took_ms)
        if "state" in found and "role" in found:  # a health check: it knows no such path
            return FailsafeAnswer(name=name, kind="status", detail=_version_in(found), took_ms=took_ms)
        if answer.status_code != httpx.codes.OK:
            said = " ".join(answer.text.split())[:200]
            return FailsafeAnswer(name=name, kind="refused", detail=f"{answer.status_code}: {said}", took_ms=took_ms)
        status = _object_in(await self._peers.client.get(url))
        return FailsafeAnswer(
            name=name, kind="list", role=str(status.get("role") or ""), version=_version_in(status), took_ms=took_ms
        )


def _object_in(answer: httpx.Response) -> dict[str, object]:
    try:
        found = answer.json()
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _version_in(status: dict[str, object]) -> str:
    """What the member is. Source: Patroni, GET /patroni, `patroni.version`."""
    ours, theirs = status.get("matriarch"), status.get("patroni")
    if isinstance(ours, dict):
        return f"Matriarch {ours.get('version') or 'of an earlier version'}"
    return f"Patroni {theirs.get('version')}" if isinstance(theirs, dict) else ""
