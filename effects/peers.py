"""Asks other members over HTTP: where they stand, and whether a leader without etcd may go on.

Speaks Patroni's REST API, so a Patroni member answers as well. A silent member is left out of the answer.
"""

import ssl
from typing import Any

import anyio
import httpx

from effects.clock import now_ms
from effects.lanes import Lane, Report
from fsm import effects as do
from fsm.events import AnyResult, FailsafeHeard, PeersHeard
from fsm.facts import PeerReport
from fsm.wire import failover_priority, is_barred_by_tags


class Peers:
    """Performs the questions to other members. `credentials`: Patroni, restapi.authentication."""

    def __init__(
        self, name: str, credentials: tuple[str, str] | None = None, certificate: ssl.SSLContext | None = None
    ) -> None:
        """`certificate`: what shows this node's certificate to members that ask for one; None shows none."""
        self._name = name
        # Patroni's agents do not verify each other's server certificates either; see its REST API documentation.
        self.client = httpx.AsyncClient(verify=certificate or False, trust_env=False)
        self.take_credentials(credentials)

    def take_credentials(self, credentials: tuple[str, str] | None) -> None:
        """Bring these from now on."""
        self.client.auth = httpx.BasicAuth(*credentials) if credentials else httpx.Auth()

    async def aclose(self) -> None:
        """Close all connections."""
        await self.client.aclose()

    def lanes(self, report: Report) -> list[Lane]:
        """One lane; the questions of one effect go out all at once."""
        return [Lane("peers", {do.AskPeers: self.ask, do.AskFailsafe: self.ask_failsafe}, report)]

    async def ask(self, effect: do.AskPeers) -> AnyResult:
        """What each member that answered in time said. Source: Patroni, GET /patroni."""
        reports: list[PeerReport] = []

        async def one(name: str, url: str) -> None:
            answer = await self._vote_of(url, effect.sync_revision) if name in effect.voters else None
            answer = answer or await self._get(url)
            if answer is not None:
                reports.append(parse_report(name, answer))

        await self._all(effect.api_urls, one, effect.timeout_ms)
        return PeersHeard(reports=tuple(sorted(reports, key=lambda report: report.name)))

    async def ask_failsafe(self, effect: do.AskFailsafe) -> AnyResult:
        """Which members confirmed. Source: Patroni, POST /failsafe."""
        sent_at_ms = now_ms()
        accepted: list[str] = []
        body = {"name": self._name, "conn_url": effect.conn_url, "api_url": effect.api_url, "ttl": effect.ttl_s}

        async def one(name: str, url: str) -> None:
            try:
                answer = await self.client.post(url.rsplit("/", 1)[0] + "/failsafe", json=body)
            except httpx.HTTPError:
                return
            if answer.status_code == 200 and answer.text == "Accepted":
                accepted.append(name)

        await self._all(effect.api_urls, one, effect.timeout_ms)
        return FailsafeHeard(sent_at_ms=sent_at_ms, ttl_s=effect.ttl_s, accepted=tuple(sorted(accepted)))

    async def _all(self, urls: dict[str, str], ask: Any, timeout_ms: int) -> None:
        # A little less than the effect's own deadline, so that silent members do not cost the others' answers.
        with anyio.move_on_after(timeout_ms * 0.9 / 1000):
            async with anyio.create_task_group() as questions:
                for name, url in urls.items():
                    questions.start_soon(ask, name, url)

    async def _vote_of(self, url: str, sync_revision: int) -> dict[str, Any] | None:
        """As `_get`, of a member that votes; None from one that knows no votes (Patroni answers 501)."""
        body = {"candidate": self._name, "sync_revision": sync_revision}
        try:
            answer = await self.client.post(url.rsplit("/", 1)[0] + "/vote", json=body)
            found = answer.json() if answer.status_code == 200 else None
        except (httpx.HTTPError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    async def _get(self, url: str) -> dict[str, Any] | None:
        try:
            answer = await self.client.get(url)
            found = answer.json()
        except (httpx.HTTPError, ValueError):
            return None
        return found if isinstance(found, dict) else None


def parse_report(name: str, answer: dict[str, Any]) -> PeerReport:
    """A member's answer as the fact that an election compares. Source: Patroni, GET /patroni."""
    xlog = answer.get("xlog")
    positions = [value for key, value in xlog.items() if "location" in key] if isinstance(xlog, dict) else []
    ours = answer.get("matriarch")
    tags = answer.get("tags")
    tags = tags if isinstance(tags, dict) else {}
    return PeerReport(
        name=name,
        role=str(answer.get("role", "")),
        state=str(answer.get("state", "")),
        position_lsn=max((p for p in positions if isinstance(p, int)), default=0),
        timeline=answer["timeline"] if isinstance(answer.get("timeline"), int) else 0,
        no_failover=is_barred_by_tags(tags) or answer.get("watchdog_failed") is True,
        failover_priority=failover_priority(tags),
        is_replaying=isinstance(ours, dict) and bool(ours.get("replaying")),
        instance=str(ours.get("instance") or "") if isinstance(ours, dict) else "",
        vote_revision=int(ours.get("vote_revision") or 0) if isinstance(ours, dict) else 0,
        disk_full=_is_disk_full(ours),
        probed_ago_ms=int(ours.get("probed_ago_ms") or 0) if isinstance(ours, dict) else 0,
    )


def _is_disk_full(ours: object) -> bool:
    disk = ours.get("disk") if isinstance(ours, dict) else None
    return isinstance(disk, dict) and disk.get("full") is True
