"""Requests that change something: who may make them, what is refused, and when they are answered."""

import json
from base64 import b64encode
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal

import anyio
import anyio.lowlevel
import pytest
from msgspec.structs import replace

from api import operations
from fsm import effects as do
from fsm.dynamic import Dynamic
from fsm.events import (
    AnyEvent,
    AnyResult,
    Done,
    Failed,
    FailsafeAsked,
    FailsafeChecked,
    PromiseKept,
    ReinitAsked,
    Succeeded,
    SwitchoverAsked,
    VoteAsked,
)
from fsm.facts import FailsafeAnswer, Key
from fsm.machine import Issued, step
from fsm.view import Etcd, View
from fsm.wire import FailoverRequest
from tests.api.asking import Surroundings, ask, ask_json, surroundings
from tests.views import NOW_MS, POSITION_LSN, TTL_S, leader_view, standby_view, with_key

pytestmark = pytest.mark.anyio
TO_N2 = {"leader": "n1", "candidate": "n2"}
FAILSAFE = {"name": "n1", "conn_url": "postgres://n1.test/postgres", "api_url": "http://n1.test:8008/patroni"}


@pytest.fixture
async def around(tmp_path: Path) -> AsyncIterator[Surroundings]:
    """A board that shows a leader, a log, and an inbox."""
    async with surroundings(tmp_path) as found:
        yield found


# ---- who may, and what a body must be -------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/switchover", "/reinitialize", "/failsafe"])
@pytest.mark.parametrize("given", [None, "Basic nonsense", "Bearer x", "Basic " + b64encode(b"admin:wrong").decode()])
async def test_request_is_refused_when_credentials_are_wrong(
    around: Surroundings, path: str, given: str | None
) -> None:
    """401 with the challenge that HTTP asks for; nothing is submitted."""
    headers = {} if given is None else {"authorization": given}
    answer = await ask_json(around.app(("admin", "secret")), path, TO_N2, **headers)
    assert (answer.status, answer.headers["www-authenticate"]) == (401, 'Basic realm="Patroni"')
    assert "secret" not in answer.text
    assert around.submitted == []


async def test_request_is_taken_when_credentials_are_right_and_reading_needs_none(around: Surroundings) -> None:
    """GET is open."""
    around.show(standby_view())
    deciding(around)
    app = around.app(("admin", "s:ecrét"))
    given = "Basic " + b64encode("admin:s:ecrét".encode()).decode()
    assert (await ask_json(app, "/reinitialize", {}, authorization=given)).status == 200
    assert (await ask(app, "/cluster")).status == 200


@pytest.mark.parametrize("path", ["/switchover", "/failsafe"])
@pytest.mark.parametrize(
    ("body", "status"),
    [(None, 411), (b"", 400), (b"{}", 400), (b"[1]", 400), (b"{", 400), (b"\xff", 400), (b" " * 70_000, 413)],
)
async def test_body_is_refused_when_it_is_no_object(
    around: Surroundings, path: str, body: bytes | None, status: int
) -> None:
    """Patroni's codes, and one line."""
    answer = await ask(around.app(), path, "POST", body)
    assert (answer.status, answer.text.count("\n")) == (status, 0)
    assert answer.text


# ---- switchover -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"candidate": "n2"}, "specific leader"),
        ({"leader": 5}, '"leader" is not text'),
        ({"leader": "n1", "candidate": "n1"}, "the same"),
        ({"leader": "n1", "member": "n1"}, "the same"),
        ({"leader": "n1", "scheduled_at": "2099-01-01T00:00:00"}, "time zone"),
        ({"leader": "n1", "scheduled_at": 5}, "is not text"),
    ],
)
async def test_switchover_is_refused_when_it_makes_no_sense(around: Surroundings, body: Any, said: str) -> None:
    """400, before anything is looked at."""
    answer = await ask_json(around.app(), "/switchover", body)
    assert (answer.status, said in answer.text) == (400, True)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"leader": "n1"}, "specific candidate"),
        ({"leader": "n1", "candidate": "n2", "scheduled_at": "2099-01-01T00:00:00+00:00"}, "cannot be scheduled"),
    ],
)
async def test_failover_is_refused_when_a_leader_is_named_besides(around: Surroundings, body: Any, said: str) -> None:
    """A leader makes a switchover of it, but not one to anybody, or later."""
    answer = await ask_json(around.app(), "/failover", body)
    assert (answer.status, said in answer.text, around.submitted) == (400, True, [])


@pytest.mark.parametrize(
    ("view", "body", "status"),
    [
        (leader_view(dynamic=Dynamic(pause=True)), {"leader": "n1"}, 400),
        (leader_view(), {"leader": "n2"}, 412),
        (leader_view(), {"leader": "n1", "candidate": "n9"}, 412),
        (leader_view(etcd=Etcd(lost_since_ms=NOW_MS)), TO_N2, 503),
    ],
    ids=["paused without a candidate", "another leads", "unknown candidate", "no etcd"],
)
async def test_switchover_is_refused_when_it_cannot_be_done(
    around: Surroundings, view: View, body: Any, status: int
) -> None:
    """With a reason, and nothing was submitted."""
    around.show(view)
    answer = await ask_json(around.app(), "/switchover", body)
    assert (answer.status, bool(answer.text), around.submitted) == (status, True, [])


def snapshots_of(view: View, new_leader: str | None) -> list[View]:
    """A switchover as the board shows it: written, key free, key taken by another or by the same, request cleared."""
    written = with_key(
        replace(view, failover=FailoverRequest(leader="n1", candidate="n2")),
        "failover",
        Key(value="x", mod_revision=21),
    )
    free = with_key(written, "leader", Key(value=None, mod_revision=22))
    taken = with_key(free, "leader", Key(value=new_leader, mod_revision=23))
    cleared = with_key(replace(taken, failover=None), "failover", Key(value="{}", mod_revision=24))
    return [replace(view, switchover=FailoverRequest(leader="n1")), written, free, taken, cleared]


@pytest.mark.parametrize(
    ("new_leader", "status", "said"),
    [
        ("n2", 200, 'Successfully switched over to "n2"'),
        ("n3", 200, 'Switched over to "n3" instead of "n2"'),
        ("n1", 503, 'Switchover failed: the request was dropped, "n1" still leads'),
    ],
)
async def test_switchover_is_answered_when_its_outcome_shows_on_the_board(
    around: Surroundings, new_leader: str, status: int, said: str
) -> None:
    """Tools look for these very words."""

    async def go_on() -> None:
        for view in snapshots_of(leader_view(), new_leader):
            await anyio.lowlevel.checkpoint()
            around.show(view)

    async with anyio.create_task_group() as tasks:

        def react(event: AnyEvent) -> None:
            tasks.start_soon(go_on)

        around.react = react
        answer = await ask_json(around.app(), "/switchover", TO_N2)
    assert (answer.status, answer.text) == (status, said)
    assert around.submitted == [SwitchoverAsked(at_ms=NOW_MS, leader="n1", candidate="n2", by="192.0.2.1")]


async def test_switchover_is_answered_when_only_the_last_snapshot_is_seen(around: Surroundings) -> None:
    """A reader may miss those between."""
    around.react = lambda event: around.show(snapshots_of(leader_view(), "n2")[-1])
    answer = await ask_json(around.app(), "/switchover", {"leader": "n1"})
    assert (answer.status, answer.text) == (200, 'Successfully switched over to "n2"')


async def test_switchover_is_left_open_when_its_time_passes(
    around: Surroundings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """503, and no claim that it failed."""
    monkeypatch.setattr(operations, "SWITCHOVER_WAIT_LEAST_S", 0)
    around.show(leader_view(dynamic=Dynamic(loop_wait_s=0)))
    answer = await ask_json(around.app(), "/switchover", TO_N2)
    assert (answer.status, answer.text) == (503, "Switchover status unknown after 0 s")


# ---- reinitialize ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "wish"),
    [
        (None, {}),
        (b"", {}),
        (b"{}", {}),
        (b'{"force": true}', {"is_forced": True}),
        (b'{"force": "on", "from_leader": 1}', {"is_forced": True, "is_from_leader": True}),
        (b'{"force": null, "from_leader": false}', {}),
    ],
)
async def test_reinitialize_is_started_when_another_leads(
    around: Surroundings, body: bytes | None, wish: dict[str, bool]
) -> None:
    """With or without a body; it is answered when the status tells of it."""
    around.show(standby_view())
    deciding(around)
    answer = await ask(around.app(), "/reinitialize", "POST", body)
    assert (answer.status, answer.text) == (200, "reinitialize started")
    assert around.submitted == [ReinitAsked(at_ms=NOW_MS, by="192.0.2.1", **wish)]
    assert '"state": "creating replica"' in (await ask(around.app(), "/patroni")).text


@pytest.mark.parametrize("body", [b"", b'{"force": true}'])
async def test_reinitialize_is_forced_when_one_runs_and_the_body_says_so(around: Surroundings, body: bytes) -> None:
    """Otherwise the refusal has the ending for which patronictl offers to force it."""
    around.show(standby_view(is_reinit_asked=True))
    deciding(around)
    answer = await ask(around.app(), "/reinitialize", "POST", body)
    if body:
        assert (answer.status, answer.text) == (200, "reinitialize started")
    else:
        assert answer.status == 503
        assert answer.body.endswith(b" already in progress")


async def test_reinitialize_is_not_claimed_when_the_loop_hangs(
    around: Surroundings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for the end of something that was never begun."""
    monkeypatch.setattr(operations, "TAKEN_WAIT_S", 0.02)
    around.show(standby_view())
    answer = await ask(around.app(), "/reinitialize", "POST", b"")
    assert (answer.status, "did not take" in answer.text) == (503, True)


@pytest.mark.parametrize("view", [leader_view(), View(), standby_view(is_reinit_asked=True)])
async def test_reinitialize_is_refused_when_there_is_nothing_to_copy_or_it_runs(
    around: Surroundings, view: View
) -> None:
    """503 with the reason."""
    around.show(view)
    answer = await ask_json(around.app(), "/reinitialize", {})
    assert (answer.status, bool(answer.text), around.submitted) == (503, True, [])


# ---- votes -------------------------------------------------------------------------------------------------------


def voting_view() -> View:
    """A standby whose leader is gone, and which has left it."""
    view = standby_view()
    probe = view.server.probe
    assert probe is not None
    cut = replace(probe, upstream_host=None, upstream_port=None, receiver_status=None)
    return replace(
        view,
        keys={"sync": Key(value="{}", mod_revision=70)},
        etcd=replace(view.etcd, is_watched=True),
        server=replace(view.server, probe=cut, probed_at_ms=NOW_MS + 1),
        achieved={"cut-receiver": NOW_MS},
    )


async def test_vote_is_told_when_the_standby_receives_nothing(around: Surroundings) -> None:
    """The status, with the revision that the vote is for."""
    around.show(voting_view())
    deciding(around)
    answer = await ask_json(around.app(), "/vote", {"candidate": "n1", "sync_revision": 70})
    told = json.loads(answer.body)
    assert (answer.status, told["matriarch"]["vote_revision"]) == (200, 70)
    assert told["xlog"]["received_location"] == POSITION_LSN
    assert around.submitted == [VoteAsked(at_ms=NOW_MS, candidate="n1", sync_revision=70)]


async def test_vote_is_not_told_when_another_key_was_meant(around: Surroundings) -> None:
    """Where the node stands is answered all the same."""
    around.show(voting_view())
    deciding(around)
    answer = await ask_json(around.app(), "/vote", {"candidate": "n1", "sync_revision": 71})
    told = json.loads(answer.body)
    assert (answer.status, told["matriarch"].get("vote_revision")) == (200, None)
    assert told["xlog"]["received_location"] == POSITION_LSN


@pytest.mark.parametrize(
    "body", [{"candidate": "n1"}, {"sync_revision": 70}, {"candidate": "n1", "sync_revision": "x"}]
)
async def test_vote_is_refused_when_the_question_makes_no_sense(around: Surroundings, body: dict[str, object]) -> None:
    """Nothing is submitted."""
    around.show(voting_view())
    answer = await ask_json(around.app(), "/vote", body)
    assert (answer.status, around.submitted) == (400, [])


# ---- failsafe -------------------------------------------------------------------------------------------------------


def deciding(around: Surroundings, outcome: Literal["kept", "failed", "none"] = "kept") -> None:
    """Lets every event go through `step`, as the agent does, and answers for the disk."""

    def take(event: AnyEvent) -> None:
        decision = step(around.board.current.view, event)
        around.show(decision.view)
        for issued in decision.effects:
            if isinstance(issued.effect, do.KeepPromise) and outcome != "none":
                take(disk_answer(issued, issued.effect, is_full=outcome == "failed"))

    around.react = take


def disk_answer(issued: Issued, effect: do.KeepPromise, *, is_full: bool) -> AnyEvent:
    """How the write of a promise ended."""
    number, duty = issued.effect_id, issued.duty
    if is_full:
        return Failed(at_ms=NOW_MS, effect_id=number, duty=duty, kind="refused", detail="No space left on device")
    kept = PromiseKept(leader=effect.leader, asked_at_ms=effect.asked_at_ms, until_ms=effect.until_ms)
    return Succeeded(at_ms=NOW_MS, effect_id=number, duty=duty, result=kept)


async def test_failsafe_is_confirmed_when_the_promise_is_on_the_board(around: Surroundings) -> None:
    """Body and header exactly as Patroni's leader expects them."""
    around.show(standby_view())
    deciding(around)
    answer = await ask_json(around.app(), "/failsafe", FAILSAFE)
    assert (answer.status, answer.body, answer.headers["lsn"]) == (200, b"Accepted", str(POSITION_LSN))
    assert isinstance(around.submitted[0], FailsafeAsked)
    promise = around.board.current.view.promise
    assert promise is not None
    assert (promise.leader, promise.until_ms) == ("n1", NOW_MS + TTL_S * 1000)


@pytest.mark.parametrize(
    ("view", "body", "status"),
    [
        (standby_view(), {"conn_url": "x"}, 400),
        (standby_view(), {"name": 5}, 400),
        (standby_view(dynamic=Dynamic(failsafe_mode=False)), FAILSAFE, 502),
        (leader_view(), FAILSAFE | {"name": "n2"}, 500),
        (standby_view(), FAILSAFE | {"name": "n2"}, 500),
    ],
    ids=["no name", "bad name", "mode off", "a primary itself", "its own name"],
)
async def test_failsafe_is_refused_at_once_when_it_cannot_be_confirmed(
    around: Surroundings, view: View, body: Any, status: int
) -> None:
    """Nothing is submitted."""
    around.show(view)
    answer = await ask_json(around.app(), "/failsafe", body)
    assert (answer.status, around.submitted) == (status, [])


@pytest.mark.parametrize(
    ("leader", "outcome", "reason"),
    [
        ("n3", "kept", 'etcd names "n3" as the leader'),
        ("n1", "failed", "No space left on device"),
        ("n1", "none", "not on disk within 80 ms"),
        ("n1", None, "not on disk within 80 ms"),
    ],
    ids=["etcd names another", "the disk is full", "the disk hangs", "the loop hangs"],
)
async def test_failsafe_is_not_confirmed_when_no_durable_promise_was_made(
    around: Surroundings, leader: str, outcome: Literal["kept", "failed", "none"] | None, reason: str
) -> None:
    """The leader must not go on by an answer that nothing stands behind, and is told why not."""
    view = standby_view(dynamic=Dynamic(failsafe_timeout_ms=100))
    around.show(with_key(view, "leader", Key(value=leader, mod_revision=30)))
    if outcome is not None:
        deciding(around, outcome)
    answer = await ask_json(around.app(), "/failsafe", FAILSAFE)
    assert (answer.status, len(around.submitted)) == (503, 1)
    assert reason in answer.text


# ---- failsafe, rehearsed --------------------------------------------------------------------------------------------


def rehearsing(around: Surroundings, outcome: AnyResult | None) -> None:
    """Lets every event go through `step`, and answers the rehearsal's effect so; None: it failed."""

    def take(event: AnyEvent) -> None:
        decision = step(around.board.current.view, event)
        around.show(decision.view)
        for issued in decision.effects:
            if isinstance(issued.effect, do.TryPromise | do.CheckFailsafe):
                take(ended(issued, outcome))

    around.react = take


def ended(issued: Issued, outcome: AnyResult | None) -> AnyEvent:
    """How an effect ended."""
    number, duty = issued.effect_id, issued.duty
    if outcome is None:
        return Failed(at_ms=NOW_MS, effect_id=number, duty=duty, kind="refused", detail="No space left on device")
    return Succeeded(at_ms=NOW_MS, effect_id=number, duty=duty, result=outcome)


@pytest.mark.parametrize(
    ("view", "outcome", "reason"),
    [
        (standby_view(), Done(), ""),
        (standby_view(), None, "the promise would not reach the disk: No space left on device"),
        (leader_view(), Done(), "is this node itself"),
        (with_key(standby_view(), "leader", Key(value="n3", mod_revision=30)), Done(), 'etcd names "n3"'),
    ],
    ids=["it would", "disk full", "itself", "another leads"],
)
async def test_member_tells_whether_it_would_promise_when_asked_in_a_way_that_binds_nobody(
    around: Surroundings, view: View, outcome: AnyResult | None, reason: str
) -> None:
    """A yes or a no with its reason; no promise is made."""
    around.show(view)
    rehearsing(around, outcome)
    answer = await ask(around.app(), "/failsafe/promise?leader=n1")
    assert answer.status == 200
    assert (answer.json["would_promise"], reason in answer.json["reason"]) == (not reason, True)
    assert not any(isinstance(event, FailsafeAsked) for event in around.submitted)
    assert around.board.current.view.promise is None


@pytest.mark.parametrize("path", ["/failsafe/promise?leader=n1", "/failsafe/check"])
async def test_rehearsal_needs_credentials_when_the_real_question_does(around: Surroundings, path: str) -> None:
    """Else it would say yes where a leader without etcd would be sent away."""
    assert (await ask(around.app(("u", "p")), path)).status == 401


async def test_rehearsal_names_what_is_missing_when_no_leader_is_named(around: Surroundings) -> None:
    """One line."""
    answer = await ask(around.app(), "/failsafe/promise")
    assert (answer.status, '"leader" is missing' in answer.text) == (400, True)


async def test_check_tells_the_verdict_when_the_leader_is_asked(around: Surroundings) -> None:
    """The members' answers, judged."""
    listed = {"n1": "http://n1.test:8008/patroni", "n2": "http://n2.test:8008/patroni"}
    around.show(leader_view(failsafe=listed))
    said = FailsafeAnswer(name="n2", kind="promise", is_willing=True, took_ms=3)
    rehearsing(around, FailsafeChecked(answers=(said,)))
    answer = await ask(around.app(), "/failsafe/check")
    assert answer.status == 200
    assert (answer.json["holds"], answer.json["leader"]) == (True, "n1")
    assert [(member["name"], member["verdict"]) for member in answer.json["members"]] == [("n2", "confirms")]


async def test_check_is_refused_when_the_node_does_not_lead(around: Surroundings) -> None:
    """And says who does."""
    around.show(standby_view())
    answer = await ask(around.app(), "/failsafe/check")
    assert (answer.status, '"n1" leads' in answer.text, around.submitted) == (503, True, [])
