"""The REST API beside that of the real Patroni 4.1.5: the same questions to the same node of two clusters alike."""

from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from api.cli.demo.plan import NodePlan
from effects.failsafe_check import FailsafeCheck
from effects.peers import Peers
from effects.programs import RunAs
from fsm import effects as do
from fsm.events import FailsafeChecked
from tests.peers.beside import ANSWER_TIMEOUT_S, FIRST, LEADER, NODES, SECOND, Answer, Both, Phase, running_both

pytestmark = [pytest.mark.anyio, pytest.mark.servers]

WEST = {"zone": "west", "weight": 1.4}
EAST = {"clonefrom": True, "nofailover": False, "zone": "east", "noloadbalance": False}
ASIDE = {"noloadbalance": True, "nofailover": True}
SPARE = {"nosync": True, "rack": 7}
PHASES = (
    Phase(
        name="asynchronous",
        patch={"synchronous_mode": False, "failsafe_mode": False},
        tags={LEADER: WEST, FIRST: EAST, SECOND: ASIDE},
        roles=("leader", "replica", "replica"),
    ),
    Phase(
        name="synchronous",
        patch={"synchronous_mode": True, "failsafe_mode": True},
        tags={LEADER: WEST, FIRST: EAST, SECOND: SPARE},
        roles=("leader", "sync_standby", "replica"),
    ),
    Phase(
        name="quorum",
        patch={"synchronous_mode": "quorum", "failsafe_mode": True},
        tags={LEADER: ASIDE, FIRST: {}, SECOND: SPARE},
        roles=("leader", "quorum_standby", "replica"),
    ),
    Phase(
        name="paused",
        patch={"synchronous_mode": None, "pause": True},
        tags={LEADER: {}, FIRST: {}, SECOND: SPARE},
        roles=("leader", "replica", "replica"),
    ),
)

HEALTH_PATHS = [
    "/",
    "/primary",
    "/master",
    "/read-write",
    "/leader",
    "/standby-leader",
    "/standby_leader",
    "/replica",
    "/read-only",
    "/health",
    "/sync",
    "/synchronous",
    "/quorum",
    "/async",
    "/asynchronous",
    "/read-only-sync",
    "/read-only-synchronous",
    "/read-only-quorum",
    "/liveness",
    "/readiness",
    "/patroni",
    "/unknown",
    "/xleader",
    "/primaryx",
    "/foo/replica",
    "/sync/",
    "/synchronous/x",
    "/foo/sync",
    "/REPLICA",
    "/read-only-async",
    "/read-only/sync",
    "/healthy",
    "/patroni/x",
    "/liveness/x",
    "/readiness/x",
    "/switchover",
    "/restart",
    "/reload",
    "/reinitialize",
    "/failover",
    "/sigterm",
    "/citus",
    "/mpp",
    "//replica",
    "//patroni",
    "/replica%2Fx",
]
QUERIED_PATHS = [
    "/",
    "/primary",
    "/leader",
    "/replica",
    "/read-only",
    "/health",
    "/sync",
    "/async",
    "/quorum",
    "/read-only-sync",
    "/read-only-quorum",
    "/patroni",
    "/readiness",
    "/liveness",
]
QUERIES = [
    "lag=0",
    "lag=10MB",
    "lag=nonsense",
    "lag=-1",
    "lag=0x10",
    "lag=1.5MB",
    "lag=10%20MB",
    "lag=1kb",
    "lag=1KB",
    "lag=1e3",
    "lag=",
    "lag=.5GB",
    "lag=+5",
    "lag=nonsense&lag=-1",
    "lag=-1&lag=10MB",
    "LAG=-1",
    "lag=10%00",
    "lag=1_000",
    "tag_zone=west",
    "tag_zone=east",
    "tag_zone=WEST",
    "tag_zone=",
    "tag_weight=1.4",
    "tag_weight=1.40",
    "tag_rack=7",
    "tag_x=1",
    "tag_clonefrom=true",
    "tag_clonefrom=True",
    "tag_clonefrom=false",
    "tag_nofailover=true",
    "tag_nofailover=false",
    "tag_nosync=true",
    "tag_noloadbalance=true",
    "tag_=x",
    "tag_zone=east&tag_clonefrom=true",
    "tag_zone=west&tag_zone=east",
    "mode=write",
    "mode=apply",
    "mode=nonsense",
    "lag=0&mode=write",
    "lag=-1&mode=write",
    "lag=-1&mode=apply",
    "x=y",
]

PAST, FUTURE = "2020-01-01T00:00:00+00:00", "2099-01-01T00:00:00+00:00"
WRITES: tuple[tuple[str, str, bytes | None], ...] = (
    *(
        (method, path, body)
        for method, path in (
            ("PATCH", "/config"),
            ("PUT", "/config"),
            ("POST", "/switchover"),
            ("POST", "/failover"),
        )
        for body in (None, b"", b"nonsense", b"[]", b"{}", b"null", b'"x"', b"1", b"\xff", b"[1]")
    ),
    *(("POST", path, body) for path in ("/restart",) for body in (b"nonsense", b"[1]", b'"x"', b"1", b"\xff")),
    ("POST", "/switchover", b'{"candidate": "n2"}'),
    ("POST", "/switchover", b'{"leader": ""}'),
    ("POST", "/switchover", b'{"leader": "nosuch"}'),
    ("POST", "/switchover", b'{"leader": "n2"}'),
    ("POST", "/switchover", b'{"leader": "n1", "candidate": "n1"}'),
    ("POST", "/switchover", b'{"leader": "n1", "candidate": "nosuch"}'),
    ("POST", "/switchover", b'{"leader": "nosuch", "member": "n2"}'),
    ("POST", "/switchover", b'{"leader": "nosuch", "candidate": "nosuch"}'),
    ("POST", "/switchover", b'{"leader": "n1", "scheduled_at": "nonsense"}'),
    ("POST", "/switchover", b'{"leader": "n1", "scheduled_at": "2099-01-01T00:00:00"}'),
    ("POST", "/switchover", f'{{"leader": "n1", "scheduled_at": "{PAST}"}}'.encode()),
    ("POST", "/failover", b'{"leader": "n1"}'),
    ("POST", "/failover", b'{"leader": "nosuch"}'),
    ("POST", "/failover", b'{"leader": "nosuch", "candidate": "n2"}'),
    ("POST", "/failover", b'{"leader": "n1", "candidate": "n1"}'),
    ("POST", "/failover", b'{"candidate": "nosuch"}'),
    ("POST", "/failover", b'{"member": "nosuch"}'),
    ("POST", "/failover", f'{{"candidate": "n2", "scheduled_at": "{FUTURE}"}}'.encode()),
    ("POST", "/failover", f'{{"leader": "n1", "candidate": "n2", "scheduled_at": "{FUTURE}"}}'.encode()),
    ("DELETE", "/switchover", None),
    ("DELETE", "/restart", None),
    ("POST", "/restart", b'{"role": "nonsense"}'),
    ("POST", "/restart", b'{"role": "standby_leader"}'),
    ("POST", "/restart", b'{"role": null}'),
    ("POST", "/restart", b'{"postgres_version": "nonsense"}'),
    ("POST", "/restart", b'{"postgres_version": "18"}'),
    ("POST", "/restart", b'{"postgres_version": "9.6"}'),
    ("POST", "/restart", b'{"postgres_version": "9.6.1"}'),
    ("POST", "/restart", b'{"postgres_version": "15.0"}'),
    ("POST", "/restart", b'{"timeout": "nonsense"}'),
    ("POST", "/restart", b'{"timeout": 0}'),
    ("POST", "/restart", b'{"timeout": -1}'),
    ("POST", "/restart", b'{"timeout": null}'),
    ("POST", "/restart", b'{"timeout": "5min", "role": "standby_leader"}'),
    ("POST", "/restart", b'{"unknown": 1}'),
    ("POST", "/restart", b'{"schedule": "nonsense"}'),
    ("POST", "/restart", b'{"schedule": "2099-01-01T00:00:00"}'),
    ("POST", "/restart", f'{{"schedule": "{PAST}"}}'.encode()),
    ("POST", "/restart", b'{"restart_pending": true}'),
    ("POST", "/restart", b'{"restart_pending": false}'),
    ("POST", "/", None),
    ("POST", "/primary", b"{}"),
    ("POST", "/patroni", None),
    ("PUT", "/patroni", b"{}"),
    ("DELETE", "/config", None),
    ("PATCH", "/switchover", b"{}"),
    ("DELETE", "/reinitialize", None),
    ("POST", "/cluster", b"{}"),
    ("POST", "/config", b"{}"),
    ("NONSENSE", "/", None),
)
"""Requests that are refused on every node, whatever the phase."""
LEADER_WRITES: tuple[tuple[str, str, bytes | None], ...] = (
    ("POST", "/reinitialize", None),
    ("POST", "/reinitialize", b"{}"),
    ("POST", "/reinitialize", b'{"force": true}'),
    ("POST", "/reinitialize", b"nonsense"),
    ("POST", "/restart", b'{"role": "replica"}'),
    ("POST", "/failsafe", b'{"name": "n2", "conn_url": "postgres://x/", "api_url": "http://x/"}'),
)
"""Requests that the leader refuses."""


class Asked(msgspec.Struct, frozen=True):
    """One question."""

    node: str
    method: str
    path: str
    body: bytes | None = None

    @property
    def route(self) -> str:
        """Its path without the query."""
        return self.path.partition("?")[0]

    def __str__(self) -> str:
        said = f" {self.body.decode(errors='replace')}" if self.body is not None else ""
        return f"{self.node} {self.method} {self.path}{said}"


class Deliberate(msgspec.Struct, frozen=True):
    """A difference that is meant: of which questions, and what Patroni and we answer."""

    reason: str
    concerns: Callable[[Asked], bool]
    theirs: int
    ours: int


DELIBERATE: tuple[Deliberate, ...] = (
    Deliberate(
        reason="our HTTP parser knows HTTP's methods and refuses others before anybody is asked",
        concerns=lambda asked: asked.method == "NONSENSE",
        theirs=501,
        ours=400,
    ),
)
OURS_ALONE = ("matriarch",)
"""Fields that Patroni does not have: this node's machine, for our own tools."""
NEXT_RELEASES = ("patroni_failsafe_mode_enabled", "patroni_failsafe_member", "patroni_failover_priority")
"""Families that Patroni's next release has; what is scraped from 4.1.5 is not touched by more of them."""

VARIES = frozenset(
    [
        "postmaster_start_time",
        "location",
        "received_location",
        "replayed_location",
        "replayed_timestamp",
        "dcs_last_seen",
        "database_system_identifier",
        "sync_state",
        "api_url",
        "port",
        "receive_lag",
        "receive_lsn",
        "replay_lag",
        "replay_lsn",
        "lag",
        "lsn",
    ]
)
"""Fields of which only the type can be the same in two clusters."""
TRIES_MAX = 16
PAUSE_S = 0.25


@pytest.fixture(scope="module")
async def both(open_directory: Path, run_as: RunAs | None) -> AsyncIterator[Both]:
    """Patroni's cluster and ours."""
    root = open_directory / "patroni"
    root.mkdir(mode=0o755)
    async with running_both(root, run_as, PHASES[0].tags) as found:
        yield found


@pytest.fixture(scope="module", params=PHASES, ids=lambda phase: phase.name)
async def phase(both: Both, request: pytest.FixtureRequest) -> Phase:
    """What both are in at present."""
    found: Phase = request.param
    await both.enter(found)
    return found


def masked(value: Any, name: str = "") -> Any:
    """A JSON value in which what cannot be equal is replaced by its type; objects become pairs, for their order."""
    if name in VARIES:
        return type(value).__name__
    if isinstance(value, dict):
        return [(key, masked(found, key)) for key, found in value.items() if key not in OURS_ALONE]
    if isinstance(value, list):
        found = [masked(item) for item in value]
        return sorted(found, key=str) if name == "replication" else found
    return value


def shape(asked: Asked, answer: Answer) -> Any:
    """What of an answer must be the same."""
    deliberate = next((d for d in DELIBERATE if d.concerns(asked)), None)
    if deliberate is not None:
        return answer.status
    if asked.method != "GET" or answer.media_type != "application/json":
        return answer.status, (answer.body if asked.method in ("HEAD", "OPTIONS") else None)
    if asked.route == "/failsafe":  # the order is Patroni's chance
        return answer.status, answer.media_type, sorted(answer.json())
    return answer.status, answer.media_type, masked(answer.json())


def difference(asked: Asked, theirs: Answer, ours: Answer) -> str | None:
    """What is not as it should be between two answers."""
    deliberate = next((d for d in DELIBERATE if d.concerns(asked)), None)
    if deliberate is not None:
        wanted = (deliberate.theirs, deliberate.ours)
        found = (theirs.status, ours.status)
        return None if found == wanted else f"{asked}: {found} is not the deliberate {wanted}"
    one, other = shape(asked, theirs), shape(asked, ours)
    return None if one == other else f"{asked}: Patroni {one}, we {other} {ours.body[:200]!r}"


async def differences(both: Both, questions: Iterator[Asked]) -> str:
    """The questions that are still answered differently after a while: the two do not move at the same instant."""
    left = list(questions)
    assert left
    found: list[str] = []

    def compare(asked: Asked) -> str | None:
        return difference(asked, *both.ask(asked.node, asked.method, asked.path, asked.body))

    def compare_all() -> list[tuple[Asked, str]]:
        with ThreadPoolExecutor(4) as pool:
            results = list(pool.map(compare, left))
        return [(asked, line) for asked, line in zip(left, results, strict=True) if line is not None]

    for _ in range(TRIES_MAX):
        differing = await anyio.to_thread.run_sync(compare_all)
        if not differing:
            return ""
        left, found = [asked for asked, _ in differing], [line for _, line in differing]
        await anyio.sleep(PAUSE_S)
    return "\n".join(found)


async def test_health_path_answers_the_same_when_asked_with_each_method(both: Both, phase: Phase) -> None:
    """Status, fields, their order, types and values."""
    asked = (
        Asked(node, method, path) for node, path, method in product(NODES, HEALTH_PATHS, ("GET", "HEAD", "OPTIONS"))
    )
    assert await differences(both, asked) == ""


async def test_health_path_answers_the_same_when_asked_with_a_query(both: Both, phase: Phase) -> None:
    """Every parameter on every path that has one, and on some that have none."""
    asked = (Asked(node, "GET", f"{path}?{query}") for node, path, query in product(NODES, QUERIED_PATHS, QUERIES))
    assert await differences(both, asked) == ""


async def test_cluster_is_shown_the_same_when_asked(both: Both, phase: Phase) -> None:
    """Members, history, configuration and who stands in for etcd, on every node."""
    paths = ("/cluster", "/cluster/x", "/history", "/config", "/config?x=y", "/failsafe")
    asked = (Asked(node, "GET", path) for node, path in product(NODES, paths))
    assert await differences(both, asked) == ""


async def test_request_is_refused_the_same_when_it_makes_no_sense(both: Both, phase: Phase) -> None:
    """Codes of the endpoints that write. Nothing is changed by any of them."""
    asked = (Asked(node, *write) for node, write in product((LEADER, FIRST), WRITES))
    leaders = (Asked(LEADER, *write) for write in LEADER_WRITES)
    assert await differences(both, iter([*asked, *leaders])) == ""


def families(text: str) -> list[tuple[str, ...]]:
    """Name, type and labels of every metric, in order."""
    lines = text.splitlines()
    types = {name: kind for _, _, name, kind in (line.split() for line in lines if line.startswith("# TYPE"))}
    samples = (line.partition("{") for line in lines if line and not line.startswith("#"))
    return [(name, types[name], labels.partition("}")[0]) for name, _, labels in samples]


async def test_metrics_are_the_same_when_scraped(both: Both, phase: Phase) -> None:
    """Families, types, labels and their order; Matriarch's own stand behind them."""
    for node in NODES:
        theirs, ours = both.ask(node, "GET", "/metrics")
        found = [family for family in families(ours.body.decode()) if family[0] not in NEXT_RELEASES]
        own = [family for family in found if family[0].startswith("matriarch_")]
        assert found == families(theirs.body.decode()) + own
        assert (ours.status, ours.headers["content-type"]) == (theirs.status, theirs.headers["content-type"])


async def test_patroni_member_is_not_bound_when_it_is_asked_whether_it_would_confirm(both: Both, phase: Phase) -> None:
    """It tells its list, from which the check sees what it is; a question that it took for real would show."""
    peers = Peers("n9")
    try:
        for name, role in zip(NODES, ("primary", "replica", "replica"), strict=True):
            theirs, ours = both.plans(name)
            effect = do.CheckFailsafe(timeout_ms=ANSWER_TIMEOUT_S * 1000, leader="n9", api_urls=urls_of(theirs, ours))
            checked = await FailsafeCheck(peers).check(effect)
            assert isinstance(checked, FailsafeChecked)
            mine, patronis = checked.answers
            assert (mine.kind, mine.is_willing) == ("promise", False)
            if phase.patch.get("failsafe_mode") is False:
                assert (patronis.kind, "502" in patronis.detail) == ("refused", True)
            else:
                assert (patronis.kind, patronis.role) == ("list", role)
                assert patronis.version.startswith("Patroni 4")
            assert all("failsafe_mode_is_active" not in a.json() for a in both.ask(name, "GET", "/patroni"))
    finally:
        await peers.aclose()


def urls_of(theirs: NodePlan, ours: NodePlan) -> dict[str, str]:
    """Where one node of each cluster is asked; ours first."""
    return {"a": f"{ours.api_url}/patroni", "b": f"{theirs.api_url}/patroni"}
