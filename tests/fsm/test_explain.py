"""The explanation and the pictures say what the table says."""

import json
import xml.etree.ElementTree as ET

import msgspec
import pytest

from fsm.diagram import CAPTIONS, LOOKS, as_dot, as_json, as_mermaid, as_svg, kind_of, page_text
from fsm.explain import Explanation, UnknownSubject, explain, explain_at
from fsm.machine import advance, is_due
from fsm.picture import HEIGHT, PLACES, WIDTH
from fsm.states import State
from fsm.table import DUTIES, TABLE
from fsm.timers import DUTY_BY_ID
from fsm.view import View
from tests.fsm.world import World, leader_with_standbys, replica_of


def verdicts_of(world: World) -> Explanation:
    """What is explained of a world's node."""
    return explain(world.view)


def test_explanation_names_what_is_missing_when_a_replica_has_a_leader() -> None:
    """Why does this replica not stand? Because the leader key is held."""
    explanation = verdicts_of(replica_of())
    standing = next(rule for rule in explanation.rules if rule.id == "R1")
    assert not standing.moves
    assert [guard.name for guard in standing.missing] == ["is_leader_key_free"]
    assert standing.missing[0].says == "etcd says that nobody holds the leader key."


def test_explanation_lists_the_rules_of_the_state_when_asked() -> None:
    """Every rule out of the state and every duty of it is there, in the table's order; of others none."""
    explanation = verdicts_of(leader_with_standbys("n2"))
    assert [rule.id for rule in explanation.rules] == [rule.id for rule in TABLE if rule.source is State.LEADER]
    assert [duty.id for duty in explanation.duties] == [duty.id for duty in DUTIES if State.LEADER in duty.states]


@pytest.mark.parametrize("state", list(State))
def test_explanation_agrees_with_the_machine_when_both_judge(state: State) -> None:
    """The rule that `explain` says moves is the one that moves; what it calls due is due."""
    for world in (replica_of(), leader_with_standbys("n2")):
        view = msgspec.structs.replace(world.view, state=state, underway={}, attempts={})
        moving = [rule.id for rule in explain(view).rules if rule.moves]
        moved = advance(view)
        assert moving == ([moved.id] if moved else [])
        due = [duty.id for duty in explain(view).duties if duty.standing == "due"]
        assert due == [duty.id for duty in DUTIES if is_due(view, DUTY_BY_ID[duty.id])]


def test_explanation_tells_how_a_duty_failed_when_it_backs_off() -> None:
    """The last failure and the pause before the next try are part of the answer."""
    world = replica_of()
    world.failing["publish-member"] = "refused"
    world.put("members/n1", "{}", lease_id=world.view.lease.lease_id if world.view.lease else 0)
    world.wait(20)
    duty = next(duty for duty in verdicts_of(world).duties if duty.id == "publish-member")
    assert duty.standing == "backing off"
    assert duty.failures >= 1
    assert duty.failure.startswith("refused: ")
    assert duty.retry_in_ms > 0


def test_explanation_survives_json_when_sent() -> None:
    """The API answers with it."""
    explanation = explain(View())
    assert msgspec.json.decode(msgspec.json.encode(explanation), type=Explanation) == explanation


def test_every_state_has_a_place_and_a_caption_when_drawn() -> None:
    """A picture without a state would be a lie."""
    assert set(PLACES) == set(CAPTIONS) == set(State)


def test_every_rule_has_a_kind_with_a_look_when_drawn() -> None:
    """Every kind of rule is used, and every rule has one."""
    assert {kind_of(rule) for rule in TABLE} == set(LOOKS)


@pytest.mark.parametrize("draw", [as_mermaid, as_dot, as_svg, as_json, lambda state: page_text()])
def test_every_rule_is_in_the_picture_when_drawn(draw: object) -> None:
    """Each form of the picture names every rule."""
    text = draw(None)  # type: ignore[operator]
    assert all(rule.id in text for rule in TABLE)


@pytest.mark.parametrize("draw", [as_mermaid, as_dot, as_svg, as_json])
def test_present_state_is_lit_when_it_is_given(draw: object) -> None:
    """The picture with a state differs from the one without."""
    pictures = {draw(state) for state in (None, *State)}  # type: ignore[operator]
    assert len(pictures) == len(State) + 1


def test_svg_is_well_formed_and_inside_its_frame_when_parsed() -> None:
    """No box and no chip lies outside the picture."""
    root = ET.fromstring(as_svg(State.LEADER))
    for box in root.iter("{http://www.w3.org/2000/svg}rect"):
        x, y = float(box.get("x", 0)), float(box.get("y", 0))
        assert x >= 0
        assert y >= 0
        assert x + float(box.get("width", 0)) <= WIDTH
        assert y + float(box.get("height", 0)) <= HEIGHT


def test_json_names_every_guard_with_its_meaning_when_parsed() -> None:
    """Readers of the JSON need no source code."""
    found = json.loads(as_json())
    assert [rule["id"] for rule in found["rules"]] == [rule.id for rule in TABLE]
    assert all(guard["says"] for rule in found["rules"] for guard in rule["guards"])


@pytest.mark.parametrize("name", [*(rule.id for rule in TABLE), *(duty.id for duty in DUTIES)])
def test_rule_or_duty_is_explained_alone_when_it_is_asked_for(name: str) -> None:
    """Whatever state it is of; what holds is what the guards say now."""
    for world in (replica_of(), leader_with_standbys("n2"), World()):
        found = explain_at(world.view, world.now_ms, name)
        assert [*(rule.id for rule in found.rules), *(duty.id for duty in found.duties)] == [name]
        assert all(rule.source is found.state for rule in found.rules if rule.moves)


def test_explanation_is_refused_when_there_is_no_such_rule() -> None:
    """The refusal lists what there is."""
    with pytest.raises(UnknownSubject, match=r'"R99" is no rule and no duty; there are B3, .*renew-lease'):
        explain_at(View(), 0, "R99")


def test_explanation_judges_the_instant_of_the_question_when_the_snapshot_is_older() -> None:
    """A leader whose deadline passed without a step: L4 holds already."""
    world = leader_with_standbys("n2")
    deadline_ms = world.view.writable_until_ms
    for late_ms, moving in ((-1, []), (0, ["L4"])):
        found = explain_at(world.view, deadline_ms + late_ms)
        assert [rule.id for rule in found.rules if rule.moves] == moving


def test_explanation_tells_what_a_promotion_would_leave_behind_when_the_node_follows() -> None:
    """A leader is not promoted; it is told who would be."""
    follower, leader = replica_of(), leader_with_standbys("n2")
    assert explain_at(follower.view, follower.now_ms).loss is not None
    found = explain_at(leader.view, leader.now_ms)
    assert (found.loss, found.failover is not None) == (None, True)
