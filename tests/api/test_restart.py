"""Restart, reload, failover and schedules over REST: what is refused with which code, and when an answer comes."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from api import operations
from effects.errors import ConfigError
from fsm.asked import Answer, Ending, Restart, RestartWish, ScheduledRestart
from fsm.dynamic import Dynamic
from fsm.events import (
    AnyEvent,
    ReloadAsked,
    RestartAsked,
    RestartCancelAsked,
    SwitchoverAsked,
    SwitchoverCancelAsked,
)
from fsm.facts import Key
from fsm.states import State
from fsm.view import Etcd, View
from fsm.wire import FailoverRequest
from tests.api.asking import Surroundings, ask, ask_json, surroundings
from tests.views import NOW_MS, leader_view, primary_probe, standby_view, with_key, with_server

pytestmark = pytest.mark.anyio

TOMORROW = "2099-01-31T12:00:00+01:00"
SCHEDULED = FailoverRequest(leader="n1", candidate="n2", scheduled_at=TOMORROW, mod_revision=33)
TO_N2 = {"leader": "n1", "candidate": "n2"}
RESTARTING = Restart(
    request_id="r0", pid=42, state=State.LEADER, asked_at_ms=NOW_MS, start_timeout_ms=1, until_ms=NOW_MS + 1
)


@pytest.fixture
async def around(tmp_path: Path) -> AsyncIterator[Surroundings]:
    """A board that shows a leader, a log, and an inbox."""
    async with surroundings(tmp_path) as found:
        yield found


def ending(around: Surroundings, how: Ending, detail: str = "", view: View | None = None) -> None:
    """Lets every request end so."""

    def react(event: AnyEvent) -> None:
        assert isinstance(event, RestartAsked | RestartCancelAsked | SwitchoverCancelAsked | ReloadAsked)
        answer = Answer(request_id=event.request_id, ending=how, detail=detail)
        around.show(replace(view or leader_view(), answers=(answer,)))

    around.react = react


# ---- hostile requests ------------------------------------------------------------------------------------------------

NO_OBJECTS = [b"[]", b"null", b"5", b'"x"', b"{", b"\xff", b'{"a": NaN}', b'{"a":' * 9_000, b" " * 70_000]


@pytest.mark.parametrize("path", ["/restart", "/switchover", "/failover", "/reinitialize", "/failsafe"])
@pytest.mark.parametrize("body", NO_OBJECTS, ids=range(len(NO_OBJECTS)))
async def test_body_is_refused_when_it_is_no_object(around: Surroundings, path: str, body: bytes) -> None:
    """400 or, for one that is too long, 413; one line; nothing is submitted."""
    answer = await ask(around.app(), path, "POST", body)
    assert (answer.status, around.submitted) == (413 if len(body) > 64 << 10 else 400, [])
    assert answer.text
    assert answer.text.count("\n") == 0


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"role": "king"}, "role"),
        ({"role": 5}, "role"),
        ({"role": ""}, "role"),
        ({"postgres_version": "16"}, "postgres_version"),
        ({"postgres_version": 16.4}, "postgres_version"),
        ({"postgres_version": "9.6"}, "postgres_version"),
        ({"postgres_version": "16.4; DROP"}, "postgres_version"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": -1}, "timeout"),
        ({"timeout": True}, "timeout"),
        ({"timeout": None}, "timeout"),
        ({"role": None}, "role"),
        ({"postgres_version": None}, "postgres_version"),
        ({"timeout": "soon"}, "timeout"),
        ({"timeout": "5 parsecs"}, "timeout"),
        ({"timeout": {"s": 1}}, "timeout"),
        ({"timeout": 10**12}, "timeout"),
        ({"timeout": "0.0001ms"}, "timeout"),
        ({"schedule": 5}, "schedule"),
        ({"schedule": "2099-01-31T12:00:00"}, "time zone"),
        ({"sudo": 1}, "sudo"),
        ({"x" * 10_000: 1}, "xxx"),
    ],
)
async def test_restart_is_refused_when_its_conditions_make_no_sense(around: Surroundings, body: Any, said: str) -> None:
    """400 with the condition's name, in a short line."""
    answer = await ask_json(around.app(), "/restart", body)
    assert (answer.status, said in answer.text, around.submitted) == (400, True, [])
    assert len(answer.text) < 300


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/failover", {"x": 1}, 400),
        ("/failover", {"candidate": ["n2"]}, 400),
        ("/failover", {"candidate": ""}, 400),
        ("/failover", {"candidate": "n" * 5_000}, 400),
        ("/failover", {"candidate": "n2", "scheduled_at": TOMORROW}, 400),
        ("/failover", {"candidate": "n1"}, 412),
        ("/failover", {"candidate": "n9"}, 412),
        ("/failover", {"leader": "n1", "candidate": "n1"}, 400),
        ("/failover", {"leader": "n2", "candidate": "n1"}, 412),
        ("/switchover", {**TO_N2, "scheduled_at": "tomorrow"}, 422),
        ("/switchover", {**TO_N2, "scheduled_at": "2001-01-01T00:00:00Z"}, 422),
        ("/switchover", {**TO_N2, "scheduled_at": "2099-01-01T00:00:00"}, 400),
        ("/switchover", {**TO_N2, "scheduled_at": "0001-01-01T00:00:00+23:59"}, 422),
        ("/switchover", {**TO_N2, "scheduled_at": {}}, 400),
    ],
)
async def test_change_of_leader_is_refused_when_it_makes_no_sense(
    around: Surroundings, path: str, body: Any, status: int
) -> None:
    """Patroni's codes in Patroni's order; nothing is submitted."""
    answer = await ask_json(around.app(), path, body)
    assert (answer.status, bool(answer.text), around.submitted) == (status, True, [])


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/switchover", {**TO_N2, "scheduled_at": TOMORROW}),
        ("/switchover", {"leader": "n1"}),
    ],
)
async def test_change_of_leader_is_refused_when_the_cluster_is_paused(
    around: Surroundings, path: str, body: Any
) -> None:
    """Nothing is done by itself in pause, and nobody is chosen."""
    around.show(leader_view(dynamic=Dynamic(pause=True)))
    assert (await ask_json(around.app(), path, body)).status == 400


@pytest.mark.parametrize(
    ("method", "path"), [("PUT", "/restart"), ("PATCH", "/switchover"), ("DELETE", "/config"), ("BREW", "/x")]
)
async def test_method_is_unsupported_when_no_handler_takes_it(around: Surroundings, method: str, path: str) -> None:
    """501, with a body."""
    answer = await ask(around.app(), path, method, b"{}")
    assert (answer.status, bool(answer.text)) == (501, True)


# ---- restart ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [None, b"", b"{}"])
async def test_restart_is_answered_when_the_server_is_back(around: Surroundings, body: bytes | None) -> None:
    """With or without a body."""
    ending(around, "done")
    answer = await ask(around.app(), "/restart", "POST", body)
    assert (answer.status, answer.text) == (200, "restarted successfully")


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ({"role": "master"}, {"role": "primary"}),
        ({"postgres_version": "16.15"}, {"postgres_version": 160015}),
        ({"timeout": "1.5min"}, {"timeout_ms": 90_000}),
        ({"timeout": 20}, {"timeout_ms": 20_000}),
    ],
)
async def test_conditions_reach_the_machine_when_they_hold(around: Surroundings, body: Any, wanted: Any) -> None:
    """It looks at them again when it decides."""
    ending(around, "done")
    assert (await ask_json(around.app(), "/restart", body)).status == 200
    asked = around.submitted[0]
    assert isinstance(asked, RestartAsked)
    given = {name: value for name, value in body.items() if value is not None}
    wish = RestartWish(**wanted, conditions=given)
    assert asked == RestartAsked(at_ms=NOW_MS, request_id=asked.request_id, wish=wish, by="192.0.2.1")


@pytest.mark.parametrize("given", [True, False, None, "x"])
async def test_pending_restart_is_a_condition_when_its_key_is_there(around: Surroundings, given: Any) -> None:
    """Whatever its value, as under Patroni."""
    ending(around, "done")
    assert (await ask_json(around.app(), "/restart", {"restart_pending": given})).status == 503
    around.show(with_server(leader_view(), probe=primary_probe("n2", pending_restart=("max_connections",))))
    assert (await ask_json(around.app(), "/restart", {"restart_pending": given})).status == 200


@pytest.mark.parametrize(
    ("view", "body", "said"),
    [
        (leader_view(restart=RESTARTING), {}, "in progress"),
        (leader_view(etcd=Etcd(lost_since_ms=NOW_MS)), {}, "etcd"),
        (leader_view(is_stopping=True), {}, "end"),
        (leader_view(state=State.CANDIDATE), {}, "candidate"),
        (leader_view(failover=FailoverRequest(leader="n1", candidate="n2")), {}, "about to lead"),
        (with_server(standby_view(), process="absent", probe=None), {}, "does not run"),
        (standby_view(), {"role": "primary"}, "not a primary"),
        (leader_view(), {"postgres_version": "16.14"}, "not below"),
        (View(), {}, "etcd"),
    ],
)
async def test_restart_is_refused_when_it_cannot_or_shall_not_be_done(
    around: Surroundings, view: View, body: Any, said: str
) -> None:
    """503 with the reason, at once."""
    around.show(view)
    answer = await ask_json(around.app(), "/restart", body)
    assert (answer.status, said in answer.text, around.submitted) == (503, True, [])


async def test_restart_is_told_as_failed_when_the_server_does_not_come_back(around: Surroundings) -> None:
    """503 with what happened."""
    ending(around, "failed", "the server did not come back in time")
    answer = await ask(around.app(), "/restart", "POST")
    assert (answer.status, answer.text) == (503, "restart failed: the server did not come back in time")


@pytest.mark.parametrize(
    ("schedule", "status"),
    [("tomorrow", 422), ("2001-01-01T00:00:00Z", 422), ("2099-01-01", 400)],
)
async def test_restart_is_not_scheduled_when_its_instant_makes_no_sense(
    around: Surroundings, schedule: str, status: int
) -> None:
    """As for a switchover."""
    answer = await ask_json(around.app(), "/restart", {"schedule": schedule})
    assert (answer.status, around.submitted) == (status, [])


@pytest.mark.parametrize(("how", "status"), [("done", 202), ("conflict", 409), ("refused", 503), ("unknown", 503)])
async def test_restart_is_scheduled_when_an_instant_is_given(around: Surroundings, how: Ending, status: int) -> None:
    """Answered at once; its conditions are looked at when it is due."""
    ending(around, how, "because")
    answer = await ask_json(around.app(), "/restart", {"schedule": TOMORROW, "role": "replica"})
    assert (answer.status, bool(answer.text)) == (status, True)
    asked = around.submitted[0]
    assert isinstance(asked, RestartAsked)
    assert (asked.wish.schedule, asked.unix_ms > 0) == (TOMORROW, True)


async def test_scheduled_restart_is_refused_when_the_cluster_is_paused(around: Surroundings) -> None:
    """500, as under Patroni."""
    around.show(leader_view(dynamic=Dynamic(pause=True)))
    assert (await ask_json(around.app(), "/restart", {"schedule": TOMORROW})).status == 500


async def test_scheduled_restart_is_shown_when_there_is_one(around: Surroundings) -> None:
    """As it was asked for."""
    body: dict[str, str | int | float | bool | None] = {"schedule": TOMORROW, "restart_pending": True}
    wish = RestartWish(schedule=TOMORROW, restart_pending=True, conditions=body)
    scheduled = ScheduledRestart(request_id="r", wish=wish, pid=42, postmaster_started_at="now", due_at_ms=2 * NOW_MS)
    around.show(leader_view(scheduled_restart=scheduled))
    assert (await ask(around.app(), "/patroni")).json["scheduled_restart"] == body


@pytest.mark.parametrize(("how", "status"), [("done", 200), ("refused", 404), ("unknown", 503)])
async def test_scheduled_restart_is_dropped_when_an_operator_says_so(
    around: Surroundings, how: Ending, status: int
) -> None:
    """404 when there is none."""
    ending(around, how, "because")
    answer = await ask(around.app(), "/restart", "DELETE")
    assert (answer.status, bool(answer.text)) == (status, True)


# ---- reload ----------------------------------------------------------------------------------------------------------


async def test_reload_is_accepted_when_the_settings_can_be_read(around: Surroundings) -> None:
    """202, and the machine is told."""

    async def read(request_id: str, by: str) -> ReloadAsked:
        return ReloadAsked(at_ms=NOW_MS, request_id=request_id, by=by, tags={"a": 1})

    answer = await ask(around.app(reload=read), "/reload", "POST")
    assert (answer.status, answer.text) == (202, "reload scheduled")
    assert isinstance(around.submitted[0], ReloadAsked)
    assert around.submitted[0].by == "192.0.2.1"


async def test_reload_is_refused_when_the_settings_are_broken(around: Surroundings) -> None:
    """Every fault in one line; nothing is told to the machine."""

    async def read(request_id: str, by: str) -> ReloadAsked:
        raise ConfigError(["patroni.yml:1: no", "patroni.yml:2: neither"])

    answer = await ask(around.app(reload=read), "/reload", "POST")
    assert (answer.status, around.submitted) == (503, [])
    assert answer.text == "the settings were not read again: patroni.yml:1: no; patroni.yml:2: neither"


# ---- failover --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("new_leader", "status", "said"),
    [
        ("n2", 200, 'Successfully failed over to "n2"'),
        ("n3", 200, 'Failed over to "n3" instead of "n2"'),
        ("n1", 503, 'Failover failed: the request was dropped, "n1" still leads'),
    ],
)
async def test_failover_is_answered_when_its_outcome_shows(
    around: Surroundings, new_leader: str, status: int, said: str
) -> None:
    """Tools look for these very words."""
    after = with_key(leader_view(), "failover", Key(value="{}", mod_revision=40))
    around.react = lambda event: around.show(with_key(after, "leader", Key(value=new_leader, mod_revision=39)))
    answer = await ask_json(around.app(), "/failover", {"candidate": "n2"})
    assert (answer.status, answer.text) == (status, said)
    assert around.submitted == [SwitchoverAsked(at_ms=NOW_MS, candidate="n2", by="192.0.2.1")]


async def test_failover_is_a_switchover_when_a_leader_is_named(around: Surroundings) -> None:
    """With its checks and words."""
    around.react = lambda event: around.show(with_key(leader_view(), "leader", Key(value="n2", mod_revision=39)))
    answer = await ask_json(around.app(), "/failover", TO_N2)
    assert answer.text == 'Successfully switched over to "n2"'


async def test_failover_is_possible_when_nobody_leads(around: Surroundings) -> None:
    """The member named is told to stand."""
    around.show(with_key(standby_view(), "leader", Key(value=None, mod_revision=30)))
    around.react = lambda event: around.show(with_key(standby_view(), "leader", Key(value="n2", mod_revision=39)))
    answer = await ask_json(around.app(), "/failover", {"member": "n2"})
    assert (answer.status, answer.text) == (200, 'Successfully failed over to "n2"')


# ---- schedules -------------------------------------------------------------------------------------------------------


async def test_switchover_is_scheduled_when_the_request_is_in_etcd(around: Surroundings) -> None:
    """202 once it is written; feasibility is judged when it is due."""
    written = with_key(leader_view(failover=SCHEDULED), "failover", Key(value="x", mod_revision=33))
    around.react = lambda event: around.show(written)
    answer = await ask_json(around.app(), "/switchover", {**TO_N2, "scheduled_at": TOMORROW})
    assert (answer.status, answer.text) == (202, "Switchover scheduled")
    assert around.submitted == [SwitchoverAsked(at_ms=NOW_MS, **TO_N2, scheduled_at=TOMORROW, by="192.0.2.1")]
    shown = (await ask(around.app(), "/cluster")).json["scheduled_switchover"]
    assert shown == {"at": TOMORROW, "from": "n1", "to": "n2"}


async def test_switchover_is_not_claimed_to_be_scheduled_when_etcd_does_not_take_it(
    around: Surroundings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """503."""
    monkeypatch.setattr(operations, "WAIT_S", 0)
    answer = await ask_json(around.app(), "/switchover", {**TO_N2, "scheduled_at": TOMORROW})
    assert answer.status == 503


@pytest.mark.parametrize(("how", "status"), [("done", 200), ("conflict", 409), ("failed", 503), ("unknown", 503)])
async def test_schedule_is_dropped_when_an_operator_says_so(around: Surroundings, how: Ending, status: int) -> None:
    """For the request that was seen only."""
    around.show(leader_view(failover=SCHEDULED))
    ending(around, how)
    answer = await ask(around.app(), "/switchover", "DELETE")
    assert (answer.status, bool(answer.text)) == (status, True)
    asked = around.submitted[0]
    assert isinstance(asked, SwitchoverCancelAsked)
    assert (asked.revision, asked.by) == (33, "192.0.2.1")


@pytest.mark.parametrize(
    ("view", "status"),
    [
        (leader_view(), 404),
        (leader_view(failover=FailoverRequest(leader="n1", candidate="n2")), 404),
        (leader_view(failover=SCHEDULED, etcd=Etcd(lost_since_ms=NOW_MS)), 503),
    ],
)
async def test_nothing_is_dropped_when_nothing_is_scheduled(around: Surroundings, view: View, status: int) -> None:
    """A switchover under way is no schedule."""
    around.show(view)
    assert ((await ask(around.app(), "/switchover", "DELETE")).status, around.submitted) == (status, [])
