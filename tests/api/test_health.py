"""Health checks: Patroni's paths, methods and codes, answered by the clock at the moment of the request."""

import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from effects.board import Board, Published
from fsm.dynamic import Dynamic
from fsm.facts import Key
from fsm.states import State
from fsm.view import Etcd, View
from fsm.wire import SyncKey
from tests.api.asking import Surroundings, ask, surroundings
from tests.views import NOW_MS, POSITION_LSN, identity, leader_view, standby_probe, standby_view, with_key, with_server

pytestmark = pytest.mark.anyio

WRITER_PATHS = ("/", "/primary", "/master", "/read-write", "/xprimary/y")
LEADER_PATHS = ("/leader", "/xleader")
ANY_PATHS = ("/read-only", "/health")
STANDBY_PATHS = ("/replica", "/foo/replica", "/async", "/asynchronous")
NOBODYS_PATHS = (
    "/standby-leader", "/standby_leader", "/sync", "/synchronous", "/quorum", "/nonsense", "/async/x",
)  # fmt: skip


@pytest.fixture
async def around(tmp_path: Path) -> AsyncIterator[Surroundings]:
    """A board that shows a leader, a log, and an inbox."""
    async with surroundings(tmp_path) as found:
        yield found


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
@pytest.mark.parametrize(
    ("path", "leads", "follows"),
    [
        *((path, 200, 503) for path in (*WRITER_PATHS, *LEADER_PATHS, "/read-only-sync", "/read-only-quorum")),
        *((path, 200, 200) for path in ANY_PATHS),
        *((path, 503, 200) for path in STANDBY_PATHS),
        *((path, 503, 503) for path in NOBODYS_PATHS),
    ],
)
async def test_health_path_tells_role_when_asked_by_any_method(
    around: Surroundings, method: str, path: str, leads: int, follows: int
) -> None:
    """Every path on a leader and on a standby; HEAD and OPTIONS have neither body nor type."""
    app = around.app()
    for view, status in ((leader_view(), leads), (standby_view(), follows)):
        around.show(view)
        answer = await ask(app, path, method)
        assert answer.status == status
        if method == "GET":
            assert answer.json["role"] == ("primary" if view.state is State.LEADER else "replica")
            assert answer.headers["content-type"] == "application/json"
        else:
            assert (answer.headers, answer.body) == ({"content-length": "0"}, b"")


@pytest.mark.parametrize(
    "path", ["/liveness", "/readiness", "/patroni", "/cluster", "/config", "/metrics", "/log", "/fsm"]
)
@pytest.mark.parametrize("method", ["HEAD", "OPTIONS"])
async def test_head_asks_about_health_when_get_has_something_else_there(
    around: Surroundings, path: str, method: str
) -> None:
    """Patroni's trap: these paths contain no health word."""
    assert (await ask(around.app(), path, method)).status == 503


@pytest.mark.parametrize("path", ["/liveness", "/readiness"])
async def test_probe_of_kubernetes_is_bare_when_asked_by_get(around: Surroundings, path: str) -> None:
    """A status and nothing else."""
    app = around.app()
    answer = await ask(app, path)
    assert (answer.status, answer.headers, answer.body) == (200, {"content-length": "0"}, b"")
    around.now_ms = NOW_MS + 100_000
    assert (await ask(app, path)).status == 503


async def test_primary_is_answered_no_when_the_deadline_passed_without_a_new_snapshot(around: Surroundings) -> None:
    """The clock decides, not the snapshot; /patroni says so as well, and stays 200."""
    app = around.app()
    around.now_ms = leader_view().writable_until_ms - 1
    assert (await ask(app, "/primary")).status == 200
    around.now_ms += 1
    for path in WRITER_PATHS + LEADER_PATHS:
        assert (await ask(app, path)).status == 503
    status = await ask(app, "/patroni")
    assert (status.status, status.json["role"]) == (200, "demoted")


async def test_primary_is_answered_no_when_the_server_is_still_being_promoted(around: Surroundings) -> None:
    """The one difference from Patroni on purpose: /leader says yes, /primary waits for writes to be accepted."""
    around.show(with_server(leader_view(), probe=standby_probe()))
    app = around.app()
    assert (await ask(app, "/leader")).status == 200
    for path in WRITER_PATHS:
        assert (await ask(app, path)).status == 503


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=200)
@given(
    state=st.sampled_from(list(State)),
    path=st.sampled_from(WRITER_PATHS + LEADER_PATHS),
    method=st.sampled_from(["GET", "HEAD", "OPTIONS"]),
    failsafe_until_ms=st.integers(0, 2 * NOW_MS),
    late_ms=st.integers(-20_000, NOW_MS),
    is_paused=st.booleans(),
    is_watched=st.booleans(),
)
async def test_primary_is_never_answered_yes_when_the_deadline_has_passed(
    around: Surroundings,
    state: State,
    path: str,
    method: str,
    failsafe_until_ms: int,
    late_ms: int,
    is_paused: bool,
    is_watched: bool,
) -> None:
    """For any view and clock."""
    view = leader_view(
        state=state,
        failsafe_until_ms=failsafe_until_ms,
        dynamic=Dynamic(pause=is_paused),
        etcd=Etcd(is_watched=is_watched),
    )
    around.show(view)
    around.now_ms = view.writable_until_ms + late_ms
    answer = await ask(around.app(), path, method)
    assert answer.status == (200 if state is State.LEADER and late_ms < 0 else 503)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", 200),
        ("?lag=99", 503),
        ("?lag=100", 200),
        ("?lag=1kB", 200),
        ("?lag=nonsense", 200),
        ("?lag=", 200),
        ("?lag=1&lag=200", 503),
        ("?tag_dc=east", 200),
        ("?tag_dc=west", 503),
        ("?tag_rack=1", 503),
        ("?replication_state=streaming", 200),
        ("?replication_state=in+archive+recovery", 503),
        ("?lag=1kB&tag_dc=east&replication_state=streaming", 200),
    ],
)
async def test_replica_is_answered_by_query_when_it_has_one(around: Surroundings, query: str, expected: int) -> None:
    """A standby 100 bytes behind, in the east."""
    view = with_server(standby_view(), probe=standby_probe(replayed_lsn=POSITION_LSN - 100))
    around.show(replace(view, identity=identity("n2", dc="east")))
    assert (await ask(around.app(), "/replica" + query)).status == expected


async def test_tags_are_ignored_when_a_leader_is_asked_for(around: Surroundings) -> None:
    """A filter for replicas does not take the primary away."""
    app = around.app()
    assert (await ask(app, "/primary?tag_dc=west")).status == 200
    assert (await ask(app, "/health?tag_dc=west")).status == 503


@pytest.mark.parametrize(
    ("mode", "yes"), [("on", ("/sync", "/synchronous", "/read-only-sync")), ("quorum", ("/quorum",))]
)
async def test_synchronous_standby_is_found_when_the_sync_key_names_it(
    around: Surroundings, mode: Any, yes: tuple[str, ...]
) -> None:
    """And it is not asynchronous; without a view of etcd nobody can tell."""
    synchronous = Dynamic(synchronous_mode=mode)
    around.show(standby_view(dynamic=synchronous, sync=SyncKey(leader="n1", members=("n2",))))
    app = around.app()
    for path in yes:
        assert (await ask(app, path)).status == 200
    assert (await ask(app, "/async")).status == 503
    around.show(standby_view(dynamic=synchronous, sync=SyncKey(leader="n1", members=("n2",)), etcd=Etcd()))
    assert (await ask(app, yes[0])).status == 503


async def test_patroni_shows_ages_as_of_now_when_the_snapshot_stays(around: Surroundings) -> None:
    """What is encoded once is not what grows old; the JSON has Python's spacing."""
    app = around.app()
    first = await ask(app, "/patroni/whatever")
    around.now_ms += 50
    second = await ask(app, "/patroni")
    assert b'"role": "primary"' in first.body
    assert second.json["matriarch"]["probed_ago_ms"] == first.json["matriarch"]["probed_ago_ms"] + 50
    assert second.json["matriarch"]["lease_left_ms"] == first.json["matriarch"]["lease_left_ms"] - 50
    assert first.json["dcs_last_seen"] > 1_700_000_000


async def test_patroni_shows_the_next_snapshot_when_one_is_published(around: Surroundings) -> None:
    """Nothing of the one before is kept."""
    app = around.app()
    assert (await ask(app, "/patroni")).json["patroni"]["name"] == "n1"
    around.show(standby_view(), is_log_degraded=True)
    found = (await ask(app, "/patroni")).json
    assert (found["patroni"]["name"], found["matriarch"]["log_degraded"]) == ("n2", True)


async def test_patroni_answers_when_the_node_knows_nothing_yet(around: Surroundings) -> None:
    """The API is up before the agent has decided anything."""
    around.show(View())
    app = around.app()
    told = (await ask(app, "/patroni")).json["matriarch"]
    assert (told["state"], told["seq"], told["fence"]["connected"]) == ("bootstrapping", 0, False)
    assert (await ask(app, "/liveness")).status == 503


async def test_client_learns_one_line_when_a_health_check_breaks(
    around: Surroundings, caplog: pytest.LogCaptureFixture
) -> None:
    """No traceback reaches a client; the agent's messages have it."""

    class Broken(Board):
        @property
        def current(self) -> Published:
            raise RuntimeError("secret")

        @current.setter
        def current(self, published: Published) -> None:
            pass

    around.board = Broken()
    with caplog.at_level(logging.ERROR):
        answers = [await ask(around.app(), path) for path in ("/primary", "/cluster")]
    assert {answer.status for answer in answers} == {500}
    assert not any(b"secret" in answer.body or b"Traceback" in answer.body for answer in answers)
    assert len(caplog.records) == 2


async def test_key_of_another_lease_is_not_ours_when_names_are_equal(around: Surroundings) -> None:
    """A namesake, or an earlier life of this node, holds it."""
    around.show(with_key(leader_view(), "leader", Key(value="n1", mod_revision=13, lease_id=99)))
    assert (await ask(around.app(), "/primary")).status == 503
