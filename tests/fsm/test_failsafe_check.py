"""The pre-flight's verdict: would the leader go on without etcd, and if not, because of whom."""

import pytest
from msgspec.structs import replace

from fsm import effects as do
from fsm import events as ev
from fsm.dynamic import Dynamic
from fsm.facts import FailsafeAnswer
from fsm.failsafe_check import judged, why_not_to_check
from fsm.promises import why_not_to_promise
from fsm.requests import answer_of
from fsm.view import View
from tests.fsm.world import World, leader_with_standbys, replica_of

YES = FailsafeAnswer(name="n2", kind="promise", is_willing=True, took_ms=4)


def settled_leader() -> World:
    """A leader with two members, all listed."""
    world = leader_with_standbys("n2", "n3")
    world.until(lambda w: len(w.view.failsafe) == 3 and not w.view.failsafe_in_doubt)
    return world


def both(answer: FailsafeAnswer, name: str = "n3") -> tuple[FailsafeAnswer, ...]:
    """n2 confirms, and another answers so."""
    return (YES, replace(answer, name=name))


@pytest.mark.parametrize(
    ("answer", "verdict", "reason"),
    [
        (YES, "confirms", ""),
        (FailsafeAnswer(name="", kind="promise", detail="its disk is full"), "refuses", "its disk is full"),
        (FailsafeAnswer(name="", kind="none", detail="connection refused"), "silent", "10.0.0.3:8008/patroni: connect"),
        (FailsafeAnswer(name="", kind="refused", detail="502: failsafe mode is off"), "refuses", "mode is off"),
        (FailsafeAnswer(name="", kind="status", detail="Patroni 2.1.7"), "unfit", "no failsafe (Patroni 2.1.7)"),
        (replace(YES, took_ms=501), "slow", "took 501 ms, and 500 ms are waited"),
        (FailsafeAnswer(name="", kind="list", role="replica", version="Patroni 4.0.4"), "confirms", "as far as"),
        (FailsafeAnswer(name="", kind="list", role="primary", version="Patroni 4.0.4"), "refuses", "runs as primary"),
        (FailsafeAnswer(name="", kind="list", role="replica"), "unclear", "does not tell what it is"),
    ],
    ids=["willing", "unwilling", "silent", "off", "old Patroni", "slow", "Patroni", "Patroni leads", "unknown"],
)
def test_verdict_names_the_member_when_it_would_not_confirm(answer: FailsafeAnswer, verdict: str, reason: str) -> None:
    """Each kind of answer has its word, and only a yes is a yes."""
    found = judged(settled_leader().view, both(answer))
    assert [member.verdict for member in found.members] == ["confirms", verdict]
    assert reason in found.members[1].reason
    assert found.holds == (verdict == "confirms")
    assert ("because of n3" in found.reason) == (verdict != "confirms")


def test_check_does_not_hold_when_a_member_was_not_heard() -> None:
    """Silence is no consent."""
    found = judged(settled_leader().view, (YES,))
    assert (found.holds, found.members[1].verdict) == (False, "silent")


def test_member_is_asked_when_it_is_not_listed_yet() -> None:
    """It is to be listed next, so the leader would ask it; the table tells that it is not."""
    world = settled_leader()
    world.held.add("publish-failsafe")
    world.join("n4")
    found = judged(world.view, both(YES))
    assert [(member.name, member.is_listed) for member in found.members] == [("n2", True), ("n3", True), ("n4", False)]
    assert not found.holds


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"dynamic": Dynamic(failsafe_mode=False)}, "failsafe_mode is off"),
        ({"failsafe": {}}, "no list of members"),
        ({"failsafe_in_doubt": ({},)}, "not certain"),
    ],
    ids=["off", "no list", "emptied"],
)
def test_check_does_not_hold_when_the_leader_would_not_even_ask(changes: dict[str, object], reason: str) -> None:
    """Whatever the members say."""
    view: View = replace(settled_leader().view, **changes)
    found = judged(view, both(YES))
    assert not found.holds
    assert reason in found.reason


def test_check_holds_when_the_leader_is_alone() -> None:
    """There is nobody who could be elected instead."""
    world = leader_with_standbys()
    world.until(lambda w: bool(w.view.failsafe) and not w.view.failsafe_in_doubt)
    found = judged(world.view, ())
    assert (found.holds, found.members) == (True, ())


def test_node_that_does_not_lead_is_not_the_one_to_check() -> None:
    """Only the leader sees its members as they would be asked."""
    assert why_not_to_check(settled_leader().view) is None
    assert '"n2" leads' in (why_not_to_check(replica_of().view) or "")


def test_check_asks_everybody_once_and_is_answered_when_it_was_asked_for() -> None:
    """The question is an effect of its own, and leaves no promise anywhere."""
    world = settled_leader()
    world.failsafe_answers = both(YES)
    world.feed(ev.FailsafeCheckAsked(at_ms=world.now_ms, request_id="r1"))
    world.until(lambda w: answer_of(w.view, "r1") is not None, within_ms=1_000)
    assert world.view.failsafe_answers == world.failsafe_answers
    order = world.orders(do.CheckFailsafe)
    assert [set(o.api_urls) for o in order if isinstance(o, do.CheckFailsafe)] == [{"n2", "n3"}]
    assert world.orders(do.AskFailsafe) == []


def test_rehearsal_binds_nobody_when_a_leader_asks_whether_it_would_be_confirmed() -> None:
    """The disk is tried out, and no promise is made."""
    world = replica_of()
    assert why_not_to_promise(world.view, "n2") is None
    world.feed(ev.PromiseTryAsked(at_ms=world.now_ms, request_id="r1"))
    world.until(lambda w: answer_of(w.view, "r1") is not None, within_ms=1_000)
    assert (world.view.promise, world.view.promising, world.kept) == (None, None, None)
