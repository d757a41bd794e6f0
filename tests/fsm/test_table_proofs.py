"""Proofs over the table itself: what no row, whatever it says, may break."""

import ast
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from msgspec.structs import replace

import fsm
from fsm import effects as do
from fsm import events as ev
from fsm.asked import Asked
from fsm.effects import Effect
from fsm.facts import Upstream
from fsm.machine import advance
from fsm.states import State
from fsm.table import DUTIES, TABLE, Duty, Rule
from fsm.timers import DUTY_BY_ID
from fsm.view import LeaderHistory, Promise, View
from fsm.wire import FailoverRequest
from tests.fsm.world import forked, leader_with_standbys
from tests.golden_update import GOLDEN_FILES

POSITIVE_NAME = re.compile(r"^(is|has|may)_[a-z_]+$")
DUTY_LIKE = re.compile(r"^[a-z]+(-[a-z]+)+$")
ALL_EFFECTS: tuple[type[Effect], ...] = get_args(do.AnyEffect)

IRREVERSIBLE_IN: dict[type[Effect], set[State]] = {
    do.TakeLeaderKey: {State.CANDIDATE, State.LEADER},
    do.ClaimInitialize: {State.BOOTSTRAPPING, State.REPLICA},
    do.InitDb: {State.BOOTSTRAPPING},
    do.StartPrimary: {State.LEADER},
    do.Promote: {State.LEADER},
    do.ClearDataDirectory: {State.BOOTSTRAPPING, State.REINIT},
    do.Rewind: {State.REWINDING},
    do.BecomeNewAgent: set(State),
}
"""Where what cannot be undone may be ordered. A new irreversible effect needs a line here, that is: a thought."""


def ordered_by(order: Callable[..., Any]) -> type[Effect]:
    """The effect type that an order builds, as its signature says."""
    found: type[Effect] = get_type_hints(order)["return"]
    return found


def full_view() -> View:
    """A view in which every order can be built."""
    view = leader_with_standbys("n2", "n3").view
    request = FailoverRequest(leader="n1", candidate="n2", mod_revision=7)
    key = replace(view.keys["leader"], value="n2")
    members = {**view.members, "n2": replace(view.members["n2"], role="primary", timeline=2)}
    history = LeaderHistory(leader="n2", history=forked(2, 100))
    return replace(
        view,
        failover=request,
        switchover=request,
        asked={"change-config": Asked(request_id="r1", until_ms=view.now_ms + 5_000)},
        keys={**view.keys, "leader": key},
        members=members,
        leader_history=history,
        promising=Promise(leader="n2", until_ms=view.now_ms + 5_000),
    )


def test_ids_are_unique_when_rules_and_duties_are_counted() -> None:
    """An id in a log entry means one rule, and an effect's duty is one duty."""
    assert len({rule.id for rule in TABLE}) == len(TABLE)
    assert len(DUTY_BY_ID) == len(DUTIES)
    assert all(re.fullmatch(r"[BRCLWI]\d+", rule.id) for rule in TABLE)
    assert all(DUTY_LIKE.fullmatch(duty.id) or duty.id.isalpha() for duty in DUTIES)


def test_rule_ids_tell_their_source_when_read() -> None:
    """The letter of an id is the state that the rule leaves."""
    letters = {"B": "bootstrapping", "R": "replica", "C": "candidate", "L": "leader", "W": "rewinding", "I": "reinit"}
    assert all(letters[rule.id[0]] == rule.source for rule in TABLE)


def test_every_state_is_reachable_when_starting_from_bootstrapping() -> None:
    """No state is only a name."""
    reached = {State.BOOTSTRAPPING}
    while more := {rule.target for rule in TABLE if rule.source in reached} - reached:
        reached |= more
    assert reached == set(State)


def test_no_state_is_a_trap_when_its_ways_out_are_followed() -> None:
    """Each state has a way out, and from each the way leads back to a replica."""
    for state in State:
        reached = {rule.target for rule in TABLE if rule.source is state}
        while more := {rule.target for rule in TABLE if rule.source in reached} - reached:
            reached |= more
        assert State.REPLICA in reached, f"{state} is a trap"


def test_no_rule_stays_where_it_is_when_it_moves() -> None:
    """A move is a move: a rule whose target is its source would fire for ever."""
    assert all(rule.source is not rule.target for rule in TABLE)


def test_leader_is_only_entered_from_candidate_when_the_key_is_ours() -> None:
    """The one door to leadership has one guard that is never left out."""
    doors = [rule for rule in TABLE if rule.target is State.LEADER]
    assert doors
    for rule in doors:
        assert rule.source is State.CANDIDATE
        assert {"is_leader_key_ours", "has_time_left"} <= {guard.__name__ for guard in rule.guards}


def test_every_way_out_of_leader_begins_with_the_fence_when_taken() -> None:
    """A row out of leader orders a FenceServer; no other row does."""
    view = full_view()
    for rule in TABLE:
        assert (rule.fence is not None) == (rule.source is State.LEADER), rule.id
        if rule.fence is not None:
            assert isinstance(rule.fence(view), do.FenceServer)


def test_no_rule_is_shadowed_when_an_earlier_one_asks_for_less() -> None:
    """A row that can never be the first to hold would be a lie."""
    for place, later in enumerate(TABLE):
        for earlier in TABLE[:place]:
            if earlier.source is later.source:
                assert not set(earlier.guards) <= set(later.guards), f"{later.id} is shadowed by {earlier.id}"


def test_every_effect_is_ordered_by_a_duty_when_the_table_is_read() -> None:
    """An effect that nobody orders is dead code; one that is unknown has no executor."""
    ordered = {ordered_by(duty.order) for duty in DUTIES}
    assert ordered == set(ALL_EFFECTS)


@pytest.mark.parametrize("duty", DUTIES, ids=lambda duty: duty.id)
def test_order_has_a_positive_timeout_when_built(duty: Duty) -> None:
    """Every effect carries a deadline of its own, and is what the order's signature says."""
    effect = duty.order(full_view())
    assert type(effect) is ordered_by(duty.order)
    assert effect.timeout_ms > 0
    assert 0 < duty.first_ms <= duty.most_ms


@pytest.mark.parametrize("row", [*TABLE, *DUTIES], ids=lambda row: row.id)
def test_row_is_made_of_named_facts_when_read(row: Rule | Duty) -> None:
    """Guards are public functions with a positive name and a docstring; the row says why in one line."""
    assert row.guards
    assert len(set(row.guards)) == len(row.guards)
    for guard in row.guards:
        assert inspect.isfunction(guard)
        assert POSITIVE_NAME.fullmatch(guard.__name__), guard.__name__
        assert inspect.getdoc(guard)
    assert row.because
    assert "\n" not in row.because


@pytest.mark.parametrize("row", [*TABLE, *DUTIES], ids=lambda row: row.id)
def test_guards_answer_yes_or_no_when_asked_about_nothing(row: Rule | Duty) -> None:
    """A guard that asserts or fails on an empty view would take the agent down with it."""
    for view in (View(), full_view()):
        assert all(isinstance(guard(view), bool) for guard in row.guards)


def test_data_are_changed_only_where_expected_when_duties_are_listed() -> None:
    """What cannot be undone is ordered in the states named here and in no other."""
    assert {effect for effect in ALL_EFFECTS if effect.is_irreversible} == set(IRREVERSIBLE_IN)
    for duty in DUTIES:
        expected = IRREVERSIBLE_IN.get(ordered_by(duty.order))
        assert expected is None or set(duty.states) <= expected, duty.id


def test_stray_primaries_are_fenced_when_a_state_does_not_lead() -> None:
    """In every state but leader some duty orders the fence; safety comes first in the list."""
    fencing = [duty for duty in DUTIES if ordered_by(duty.order) is do.FenceServer]
    assert set().union(*(duty.states for duty in fencing)) == set(State) - {State.LEADER}
    assert list(DUTIES[: len(fencing)]) == fencing


def test_duties_are_called_by_their_names_when_code_asks_for_one() -> None:
    """A duty that was renamed leaves no old name behind in a fold, a guard or a timer."""
    for path in sorted(Path(inspect.getfile(fsm)).parent.glob("*.py")):
        for call in ast.walk(ast.parse(path.read_text())):
            for name in _duty_names(call):
                assert name in DUTY_BY_ID, f"{path.name}: no duty is called {name!r}"


def _duty_names(node: ast.AST) -> list[str]:
    """The duty names in `has_achieved("x", …)`, `….get("x")`, `"x" in ….attempts` and `case "x"`."""
    found: list[ast.expr] = []
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
        is_about_duties = node.func.attr == "has_achieved" or (
            node.func.attr == "get" and _is_keyed_by_duty(node.func.value)
        )
        found = node.args[:1] if is_about_duties else []
    elif isinstance(node, ast.Compare) and _is_keyed_by_duty(node.comparators[0]):
        found = [node.left]
    return [n.value for n in found if isinstance(n, ast.Constant) and isinstance(n.value, str)]


def _is_keyed_by_duty(node: ast.expr) -> bool:
    return isinstance(node, ast.Attribute) and node.attr in ("attempts", "achieved", "underway")


def test_machine_takes_the_first_row_that_holds_when_compiled() -> None:
    """On a view on which nothing holds nothing moves; the property tests compare the rest."""
    assert advance(View()) is None


@pytest.mark.parametrize("path", sorted(GOLDEN_FILES), ids=lambda path: path.name)
def test_generated_file_is_fresh_when_compared(path: Path) -> None:
    """A changed rule is a reviewed diff. Rewrite with: python -m tests.golden_update."""
    assert path.read_text() == GOLDEN_FILES[path](), "run: python -m tests.golden_update"


def test_upstreams_are_told_apart_when_the_full_view_is_built() -> None:
    """The view of these proofs names another leader than the node itself."""
    source = do.Clone(timeout_ms=1, upstream=Upstream(name="n2", host="10.0.0.2", port=5432)).upstream
    clone = DUTY_BY_ID["clone"].order(full_view())
    assert isinstance(clone, do.Clone)
    assert clone.upstream == source


def test_events_are_all_folded_when_counted() -> None:
    """Every event type has a fold: an unknown one would end the agent."""
    from fsm.observe import _FOLDS, _RESULTS

    assert set(_FOLDS) == set(get_args(ev.AnyEvent))
    assert set(_RESULTS) == set(get_args(ev.AnyResult))
