"""Who would be promoted if the leader vanished: as an election would have it, with the reason for everybody else."""

from collections.abc import Mapping
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from fsm.dynamic import Dynamic
from fsm.facts import Key, PeerReport
from fsm.prognosis import Contender, Prognosis, prognosis
from fsm.view import View
from fsm.wire import Member, SyncKey
from fsm.worst_case import worst_cases
from tests.fsm.world import MIB, replica_of

LSN = 100 * MIB
SYNC_ON = Dynamic(synchronous_mode="on")


def member(name: str, lsn: int = LSN, **changes: Any) -> Member:
    """A running standby on timeline 3."""
    found = {"name": name, "state": "running", "role": "replica", "timeline": 3, "position_lsn": lsn, **changes}
    return Member(**found)


def cluster(*members: Member, **changes: Any) -> View:
    """n1 leads, these follow; as etcd's keys alone tell it."""
    leader = member("n1", role="primary")
    return View(
        **{
            "keys": {"leader": Key(value="n1", mod_revision=5)},
            "members": {found.name: found for found in (leader, *members)},
            "optime_lsn": LSN,
            "last_timeline": 3,
            **changes,
        }
    )


def report(name: str, lsn: int = LSN, **changes: Any) -> PeerReport:
    """What a standby answers."""
    return PeerReport(
        **{"name": name, "role": "replica", "state": "running", "position_lsn": lsn, "timeline": 3, **changes}
    )


def of(found: Prognosis, name: str) -> Contender:
    """One member of a prognosis."""
    return next(contender for contender in found.contenders if contender.name == name)


def test_member_with_the_most_wal_wins_when_all_qualify() -> None:
    """The others are told by how much they have less."""
    found = prognosis(cluster(member("n2", LSN - 500), member("n3", LSN - 100)))
    assert (found.leader, found.winners) == ("n1", ("n3",))
    assert (of(found, "n1").chance, of(found, "n3").chance) == ("leads", "wins")
    assert (of(found, "n2").chance, of(found, "n2").because) == ("loses", ("n3 has 400 bytes more WAL",))
    assert found.at_risk_bytes is None
    assert "100 by the last position that it published" in found.at_risk_because


def test_member_with_the_higher_priority_wins_when_wal_is_equal() -> None:
    """failover_priority decides between equals."""
    found = prognosis(cluster(member("n2"), member("n3", tags={"failover_priority": 2})))
    assert found.winners == ("n3",)
    assert "higher failover_priority (2, here 1)" in of(found, "n2").because[0]


def test_members_may_both_win_when_they_are_equal() -> None:
    """Nothing but the order of two requests at etcd decides then, and that is said."""
    found = prognosis(cluster(member("n2"), member("n3")))
    assert found.winners == ("n2", "n3")
    assert {of(found, name).chance for name in found.winners} == {"may win"}


@pytest.mark.parametrize(
    ("changes", "others", "said"),
    [
        ({"tags": {"nofailover": True}}, {}, "tags forbid"),
        ({"tags": {"failover_priority": 0}}, {}, "tags forbid"),
        ({"timeline": 2}, {}, "timeline 2, the newest is 3"),
        ({"state": "creating replica"}, {}, '"creating replica"'),
        ({"position_lsn": LSN - 2 * MIB}, {}, "2,097,152 bytes behind, maximum_lag_on_failover is 1,048,576"),
        ({"position_lsn": 0}, {}, "not known"),
        ({}, {"failsafe": {"n1": "u", "n3": "u"}}, "failsafe key"),
        ({}, {"dynamic": Dynamic(pause=True)}, "paused"),
        ({}, {"dynamic": SYNC_ON, "sync": SyncKey(leader="n1", members=("n3",))}, "names n3"),
        (
            {},
            {
                "dynamic": Dynamic(synchronous_mode="quorum"),
                "sync": SyncKey(leader="n1", members=("n2", "n3", "n4"), quorum=1),
            },
            "of the 1 votes",
        ),
    ],
)
def test_member_cannot_win_when_something_is_in_its_way(
    changes: dict[str, Any], others: dict[str, Any], said: str
) -> None:
    """Each reason an election has, in words and numbers; nobody is promoted where nobody qualifies."""
    found = prognosis(cluster(member("n2", **changes), **others))
    assert (found.winners, of(found, "n2").chance) == ((), "cannot")
    assert said in "; ".join(of(found, "n2").because)
    assert found.writable_at_most_ms is None
    assert found.at_risk_bytes is None


def test_silent_member_cannot_win_when_all_were_asked() -> None:
    """Where nobody was asked nothing is said about answering."""
    view = cluster(member("n2"), member("n3"))
    asked = prognosis(view, {"n1": report("n1", LSN, role="primary"), "n3": report("n3")})
    assert (asked.winners, asked.at_risk_bytes) == (("n3",), 0)
    silent = prognosis(view, {"n3": report("n3")})
    assert (silent.winners, silent.at_risk_bytes) == (("n3",), None)
    assert "does not answer" in of(asked, "n2").because[0]
    assert [c.answers for c in prognosis(view).contenders] == [None, None, None]


def test_answers_count_before_keys_when_members_were_asked() -> None:
    """Keys are as old as loop_wait allows."""
    view = cluster(member("n2", LSN - 900), member("n3", LSN - 100))
    reports: Mapping[str, PeerReport] = {
        "n1": report("n1", LSN + 50, role="primary"),
        "n2": report("n2", LSN + 40),
        "n3": report("n3", LSN + 40, no_failover=True),
    }
    found = prognosis(view, reports)
    assert (found.winners, found.at_risk_bytes) == (("n2",), 10)
    assert of(found, "n3").chance == "cannot"


def test_nothing_is_at_risk_when_the_sync_key_names_the_winner() -> None:
    """However far behind it is by the positions: what lies between was acknowledged to nobody who waited."""
    view = cluster(
        member("n2", LSN - 5 * MIB), member("n3"), dynamic=SYNC_ON, sync=SyncKey(leader="n1", members=("n2",))
    )
    found = prognosis(view)
    assert (found.winners, found.at_risk_bytes) == (("n2",), 0)


def test_quorum_member_wins_when_enough_others_hold_no_more() -> None:
    """The former leader's own vote is not counted on: it vanished."""
    quorum = Dynamic(synchronous_mode="quorum")
    key = SyncKey(leader="n1", members=("n2", "n3"), quorum=1)
    found = prognosis(cluster(member("n2"), member("n3", LSN - 8), dynamic=quorum, sync=key))
    assert found.winners == ("n2",)
    assert of(found, "n3").because == ("of the 1 votes that the sync key asks for it would have 0",)


def test_span_is_that_of_a_silent_death_when_somebody_would_win() -> None:
    """The arithmetic is fsm/worst_case.py's."""
    view = cluster(member("n2"), dynamic=Dynamic(ttl_s=5))
    assert prognosis(view).writable_at_most_ms == worst_cases(view.dynamic)[0].at_most_ms


def test_node_knows_its_own_position_best_when_it_judges_itself() -> None:
    """Its key is older than its last look at its server."""
    world = replica_of("n2", "n3")
    assert world.server is not None
    found = prognosis(world.view)
    assert of(found, "n1").position_lsn == world.server.lsn


def test_prognosis_agrees_with_the_election_when_the_leader_goes() -> None:
    """Who is said to win leads in the end, by the real machine."""
    world = replica_of("n2")
    assert prognosis(world.view).winners == ("n1",)
    world.delete("members/n2")
    world.delete("leader")
    world.until_state("leader")


def test_prognosis_agrees_with_the_election_when_the_tags_bar_the_only_replica() -> None:
    """Nobody is said to win, and nobody does."""
    world = replica_of("n2", tags={"nofailover": True})
    assert prognosis(world.view).winners == ()
    world.delete("members/n2")
    world.delete("leader")
    world.wait(60_000)
    assert world.view.state == "replica"


def test_prognosis_survives_json_when_sent() -> None:
    """The command line decodes what the API says."""
    for view in (View(), cluster(member("n2")), replace(cluster(member("n2")), optime_lsn=0)):
        found = prognosis(view)
        assert msgspec.json.decode(msgspec.json.encode(found), type=Prognosis) == found
