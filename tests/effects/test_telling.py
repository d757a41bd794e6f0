"""What people read on the agent's console of what was asked for."""

import pytest
from msgspec.structs import replace

from effects.telling import lines
from fsm.asked import ConfigChange, RestartWish
from fsm.events import (
    AgentRestartAsked,
    AnyEvent,
    ConfigAsked,
    FailsafeAsked,
    KeysChanged,
    ReinitAsked,
    ReloadAsked,
    RestartAsked,
    RestartCancelAsked,
    ServerExited,
    ServerSilent,
    SwitchoverAsked,
    SwitchoverCancelAsked,
    Ticked,
)
from fsm.facts import FenceKill, KeyChange
from fsm.machine import step
from fsm.view import Promise, View
from tests.views import NOW_MS, leader_view, standby_view

AT = "2099-01-01T00:00:00Z"


@pytest.mark.parametrize(
    ("event", "said"),
    [
        (RestartAsked(at_ms=NOW_MS, request_id="r", by="ops@h"), "ops@h asks for a restart of the server"),
        (
            RestartAsked(at_ms=NOW_MS, request_id="r", by="h", wish=RestartWish(schedule=AT), unix_ms=1),
            f"h asks for a restart of the server at {AT}",
        ),
        (RestartCancelAsked(at_ms=NOW_MS, request_id="r"), "somebody asks for the scheduled restart to be dropped"),
        (
            ConfigAsked(at_ms=NOW_MS, request_id="r", by="h", changes=(ConfigChange(path="ttl", old="1", new="2"),)),
            "h asks for another dynamic configuration (ttl)",
        ),
        (SwitchoverAsked(at_ms=NOW_MS, leader="n1", by="h"), "h asks for a switchover from n1 to any member"),
        (
            SwitchoverAsked(at_ms=NOW_MS, leader="n1", candidate="n2", scheduled_at=AT, by="h"),
            f"h asks for a switchover from n1 to n2 at {AT}",
        ),
        (SwitchoverAsked(at_ms=NOW_MS, candidate="n2", by="h"), "h asks for a failover to n2"),
        (
            SwitchoverCancelAsked(at_ms=NOW_MS, request_id="r", revision=1, by="h"),
            "h asks for the scheduled switchover to be dropped",
        ),
        (ReloadAsked(at_ms=NOW_MS, request_id="r", by="h"), "h asks for the settings to be read again"),
        (
            AgentRestartAsked(at_ms=NOW_MS, request_id="r", by="SIGUSR2"),
            "SIGUSR2 asks for a restart of the agent in place",
        ),
        (ReinitAsked(at_ms=NOW_MS, by="h"), "h asks for new data from a base backup"),
    ],
)
def test_console_tells_who_asks_for_what_when_something_is_asked_for(event: AnyEvent, said: str) -> None:
    """One line each."""
    before = leader_view()
    told = [line for _, line in lines(before, step(before, event), event)]
    assert told[0] == said


def test_console_tells_how_a_request_ended_when_it_did() -> None:
    """With the reason of a refusal."""
    before = leader_view()
    event = RestartCancelAsked(at_ms=NOW_MS, request_id="r")
    told = [line for _, line in lines(before, step(before, event), event)]
    assert told[-1] == "what was asked for: refused, no restart is scheduled"


def said(view: View, *events: AnyEvent) -> list[str]:
    """What the console says of these events, one after another."""
    found: list[str] = []
    for event in events:
        decision = step(view, event)
        found += [line for _, line in lines(view, decision, event)]
        view = decision.view
    return found


def test_console_tells_why_a_server_does_not_answer_when_it_has_been_silent_for_a_while() -> None:
    """Once, and not of the moment before its socket is there."""
    silences = [ServerSilent(at_ms=NOW_MS + 500 * n, pid=42, detail="password wrong") for n in range(12)]
    found = said(leader_view(), *silences)
    assert found.count("the server does not answer: password wrong") == 1


def test_console_tells_of_the_leader_and_whom_commits_wait_for_when_that_changes() -> None:
    """An operator reads who leads, and who may be promoted after it, in every agent's messages."""
    changes = (
        KeyChange(key="leader", value="n2", mod_revision=90),
        KeyChange(key="sync", value='{"leader":"n2","quorum":1,"sync_standby":"n1,n3"}', mod_revision=91),
    )
    found = said(standby_view(), *(KeysChanged(at_ms=NOW_MS, revision=91, changes=(change,)) for change in changes))
    assert "the leader is n2" in found
    assert "after n2 may be promoted: n1, n3, each with votes of 1 more" in found


def test_promise_and_refusal_are_told_once_when_a_leader_asks_again_and_again() -> None:
    """Whoever wonders why this node does not stand, or why the leader stopped, finds it on the console."""
    asked = FailsafeAsked(at_ms=NOW_MS, leader="n1")
    kept = Promise(leader="n1", until_ms=NOW_MS + 30_000)
    before = standby_view()
    decision = step(before, asked)
    after = replace(decision, view=replace(decision.view, promise=kept, promising=None))
    assert any("promised n1" in line for _, line in lines(before, after, asked))
    assert not any("promised n1" in line for _, line in lines(after.view, after, asked))
    stranger = FailsafeAsked(at_ms=NOW_MS, leader="n9")
    refused = step(before, stranger)
    assert any("does not let n9 go on" in line for _, line in lines(before, refused, stranger))
    assert not any("n9" in line for _, line in lines(refused.view, step(refused.view, stranger), stranger))


def test_console_tells_what_the_fence_did_when_it_fired() -> None:
    """How many processes, how many of them by force, and how long it took."""
    before = leader_view()
    kill = FenceKill(armed_until_ms=NOW_MS, at_ms=NOW_MS + 1, gone_at_ms=NOW_MS + 81, processes=9, killed=2)
    event = ServerExited(at_ms=NOW_MS + 90, pid=before.server.pid or 0, fired=True, kill=kill)
    told = [line for _, line in lines(before, step(before, event), event)]
    assert told[0].endswith("at its deadline: 9 processes, 2 of them by SIGKILL, the last gone 80 ms later")


def test_console_tells_why_when_a_leader_lacks_its_watchdog() -> None:
    """Where the ttl leaves no room for one nothing was tried that could tell."""
    before = leader_view()
    assert before.identity is not None
    before = replace(before, identity=replace(before.identity, watchdog_mode="required", watchdog_safety_margin_s=29))
    event = Ticked(at_ms=NOW_MS)
    told = [line for _, line in lines(before, step(before, event), event)]
    assert told[-1].startswith("no watchdog: with a ttl of ")
