"""The exhaustive search finds nothing in the agent's decisions, and what it should without a safeguard."""

import pytest

from tests.search.run import search
from tests.search.world import Rules, World, first_world, steps, wrong

DEPTH = 9


@pytest.mark.parametrize("mode", ["on", "quorum"])
@pytest.mark.parametrize("begins_settled", [False, True])
def test_elected_node_has_every_acknowledged_commit_whatever_comes_first(mode: str, begins_settled: bool) -> None:
    """Every order of messages, cuts, elections and late writes to a small depth; the number of states is no accident
    of the depth alone, so a search that goes blind is noticed."""
    found = search(3, Rules(mode=mode, begins_settled=begins_settled), depth=DEPTH)
    assert found.story is None, found
    assert found.depth == DEPTH
    assert found.states > 3_000


@pytest.mark.parametrize("mode", ["on", "quorum"])
def test_elected_node_of_two_has_every_acknowledged_commit_whatever_comes_first(mode: str) -> None:
    """The same of two nodes, one step further than three take."""
    found = search(2, Rules(mode=mode, begins_settled=True), depth=DEPTH + 3)
    assert found.story is None, found
    assert found.states > 500


@pytest.mark.parametrize(
    ("rules", "last"),
    [
        (Rules(mode="on", waits_for_settled=False), "n2 takes the key"),
        (Rules(mode="quorum", waits_for_settled=False), "n3 takes the key"),
        (Rules(mode="on", begins_settled=True, names_rest_on_key=False), "n2 takes the key"),
        (Rules(mode="quorum", begins_settled=True, names_rest_on_key=False), "n2 takes the key"),
        (Rules(mode="quorum", begins_settled=True, voters_leave=False), "n2 takes the key"),
    ],
)
def test_search_tells_a_lost_commit_when_a_safeguard_is_taken_away(rules: Rules, last: str) -> None:
    """A key that does not wait for the names, names that forget the key, and voters that go on receiving each lose
    an acknowledged commit; the story that is told leads there, step by step."""
    found = search(3, rules, depth=DEPTH)
    assert found.story is not None
    assert found.story[-1] == last
    assert wrong(_followed(found.story, rules)) == found.broken


def _followed(story: tuple[str, ...], rules: Rules) -> World:
    """The world at the end of a story."""
    worlds = [first_world(3, rules)]
    for told in story:
        worlds = [after for world in worlds for step, after in steps(world, rules) if step == told]
    return next(world for world in worlds if wrong(world))
