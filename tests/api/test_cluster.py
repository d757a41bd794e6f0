"""What the API tells about the cluster, from the newest snapshot alone."""

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from fsm.dynamic import Dynamic
from fsm.explain import Explanation
from fsm.facts import Key
from tests.api.asking import Surroundings, ask, surroundings
from tests.views import leader_view, with_key

pytestmark = pytest.mark.anyio


@pytest.fixture
async def around(tmp_path: Path) -> AsyncIterator[Surroundings]:
    """A board that shows a leader, a log, and an inbox."""
    async with surroundings(tmp_path) as found:
        yield found


async def test_cluster_lists_members_when_etcd_has_shown_them(around: Surroundings) -> None:
    """Under any deeper path as well."""
    app = around.app()
    for path in ("/cluster", "/cluster/", "/cluster/x"):
        answer = await ask(app, path)
        assert (answer.status, answer.json["scope"]) == (200, "demo")
        assert [member["role"] for member in answer.json["members"]] == ["leader", "replica"]


async def test_history_is_told_when_there_is_one_and_when_there_is_none(around: Surroundings) -> None:
    """Rows as the key has them; an empty array otherwise."""
    app = around.app()
    assert (await ask(app, "/history")).json == []
    around.show(with_key(leader_view(), "history", Key(value='[[1,50,"why"]]', mod_revision=9)))
    assert (await ask(app, "/history")).json == [[1, 50, "why"]]


async def test_config_is_told_as_it_stands_when_etcd_has_one(around: Surroundings) -> None:
    """The same order, spaced as every answer is; 502 for anything that is no configuration."""
    app = around.app()
    assert (await ask(app, "/config")).body == b'{"ttl": 30, "loop_wait": 10}'
    for value in (None, "", "[]", "no JSON"):
        around.show(with_key(leader_view(), "config", Key(value=value, mod_revision=9)))
        assert (await ask(app, "/config")).status == 502


async def test_failsafe_members_are_told_when_the_mode_is_on(around: Surroundings) -> None:
    """502 while it is off, as Patroni says it."""
    app = around.app()
    assert list((await ask(app, "/failsafe")).json) == ["n1", "n2"]
    around.show(leader_view(dynamic=Dynamic(failsafe_mode=False)))
    assert (await ask(app, "/failsafe")).status == 502


async def test_machine_is_refused_when_the_format_is_unknown(around: Surroundings) -> None:
    """One line says what there is."""
    answer = await ask(around.app(), "/fsm?format=png")
    assert (answer.status, "svg" in answer.text) == (400, True)


@pytest.mark.parametrize(
    ("format_", "media_type"),
    [("", "application/json"), ("json", "application/json"), ("mermaid", "text/plain"), ("svg", "image/svg+xml")],
)
async def test_machine_is_drawn_when_the_format_is_known(around: Surroundings, format_: str, media_type: str) -> None:
    """From the table itself, in the format that was asked for."""
    answer = await ask(around.app(), f"/fsm?format={format_}")
    assert (answer.status, answer.headers["content-type"].partition(";")[0]) == (200, media_type)
    assert "leader" in answer.text


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "BREW"])
@pytest.mark.parametrize("path", ["/", "/primary", "/nonsense", "/cluster"])
async def test_method_is_unsupported_when_nothing_takes_it_there(around: Surroundings, method: str, path: str) -> None:
    """501, whatever the path. Source: Patroni."""
    assert (await ask(around.app(), path, method, b"{}")).status == 501


async def test_explanation_is_told_when_it_is_asked_for(around: Surroundings) -> None:
    """Rules, duties and who would win, by the clock at the moment of the request."""
    app = around.app()
    answer = await ask(app, "/explain")
    assert answer.status == 200
    found = msgspec.json.decode(answer.body, type=Explanation)
    assert (found.name, found.state, [rule.id for rule in found.rules if rule.moves]) == ("n1", "leader", [])
    assert found.failover is not None
    assert found.failover.leader == "n1"
    around.now_ms = leader_view().writable_until_ms
    late = msgspec.json.decode((await ask(app, "/explain")).body, type=Explanation)
    assert [rule.id for rule in late.rules if rule.moves] == ["L4"]


async def test_one_rule_is_explained_when_it_is_named(around: Surroundings) -> None:
    """404 with what there is for one that there is not; nothing of a script in it is believed."""
    app = around.app()
    found = msgspec.json.decode((await ask(app, "/explain?about=R1")).body, type=Explanation)
    assert ([rule.id for rule in found.rules], found.duties) == (["R1"], ())
    answer = await ask(app, "/explain?about=%3Cscript%3E")
    assert (answer.status, answer.headers["content-type"].startswith("text/plain")) == (404, True)
