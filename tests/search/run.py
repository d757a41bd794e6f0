"""Breadth first through every order, each state once: the first counterexample is a shortest one."""

from typing import NamedTuple

from tests.search.world import Rules, World, first_world, steps, wrong


class Found(NamedTuple):
    """What a search came to. `story`: the steps to what must not be; None where there is no such thing."""

    states: int
    moves: int
    depth: int
    is_whole: bool
    """True when every state that can be reached was, at whatever depth."""
    broken: str | None = None
    story: tuple[str, ...] | None = None


def search(size: int, rules: Rules, *, depth: int, states_most: int = 10_000_000) -> Found:
    """Look at every state that can be reached in so many steps.

    Args:
        size: how many nodes there are.
        rules: the safeguards in place.
        depth: how many steps are taken at the most.
        states_most: after so many states the search ends early.
    """
    first = first_world(size, rules)
    came_by: dict[object, tuple[object, str] | None] = {first.mark: None}
    edge: list[World] = [first]
    moves = 0
    for level in range(1, depth + 1):
        further: list[World] = []
        for world in edge:
            for told, after in steps(world, rules):
                moves += 1
                mark = after.mark
                if mark in came_by:
                    continue
                came_by[mark] = (world.mark, told)
                if (broken := wrong(after)) is not None:
                    return Found(len(came_by), moves, level, False, broken, _story(came_by, mark))
                further.append(after)
            if len(came_by) > states_most:
                return Found(len(came_by), moves, level - 1, False)
        edge = further
        if not edge:
            return Found(len(came_by), moves, level, True)
    return Found(len(came_by), moves, depth, False)


def _story(came_by: dict[object, tuple[object, str] | None], mark: object) -> tuple[str, ...]:
    told: list[str] = []
    while (step := came_by[mark]) is not None:
        mark = step[0]
        told.append(step[1])
    return tuple(reversed(told))
