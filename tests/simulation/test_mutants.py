"""Each safeguard removed alone is noticed: by the seed that `make sim-mutants` found, in docs/mutants.md."""

import pytest

from fsm.guards.keys import has_time_left
from fsm.table import DUTIES
from fsm.view import View
from tests.simulation.mutants.page import Known, known
from tests.simulation.mutants.patch import Difference, NoSuchFunction, function_of, mutated
from tests.simulation.mutants.search import trial
from tests.simulation.mutants.table import MUTANTS

BUDGET_S = 2_000.0
"""How much virtual time the mutants take that are run here together: about 20 s of a machine's, where it is busy."""


def cheapest(found: dict[str, Known], budget_s: float) -> list[str]:
    """As many of the mutants with a seed as fit, those that end soonest first."""
    kept = []
    for name, one in sorted(found.items(), key=lambda item: item[1].at_s):
        budget_s -= one.at_s
        if budget_s >= 0:
            kept.append(name)
    return kept


KNOWN = known()
RUN_HERE = cheapest(KNOWN, BUDGET_S)


@pytest.mark.parametrize("name", RUN_HERE)
def test_mutant_is_killed_when_its_seed_is_run(name: str) -> None:
    """Those that are quickly killed; the whole list is `make sim-mutants`."""
    mutant = next(mutant for mutant in MUTANTS if mutant.name == name)
    found = trial(mutant, KNOWN[name].seed)
    assert found.broken is not None, f"{name} survives seed {KNOWN[name].seed}: make sim-mutants finds others"
    assert found.differs_at_us is not None


def test_list_of_mutants_is_long_and_told_when_some_are_run_here() -> None:
    """At least 25 of different names, each with a row in docs/mutants.md; a good part of them is run here."""
    names = [mutant.name for mutant in MUTANTS]
    print(f"{len(RUN_HERE)} of {len(names)} mutants are run here; not {', '.join(sorted({*names} - {*RUN_HERE}))}")
    assert len(names) == len({*names}) >= 25
    assert {*KNOWN} <= {*names}
    assert len(KNOWN) >= 25
    assert len(RUN_HERE) >= 10


@pytest.mark.parametrize("target", sorted({target for mutant in MUTANTS for target, _ in mutant.patches}))
def test_target_of_a_mutant_is_there_when_it_is_asked_for(target: str) -> None:
    """A function that was renamed would otherwise leave a mutant that does nothing."""
    assert callable(function_of(target))


def test_mutant_fails_loudly_when_its_target_was_renamed() -> None:
    """By the target's name."""
    with pytest.raises(NoSuchFunction, match="has_no_such_guard"):
        function_of("fsm.guards.keys:has_no_such_guard")
    with pytest.raises(NoSuchFunction, match="no function"):
        function_of("fsm.timing:FENCE_MARGIN_MIN_MS")


def test_function_answers_otherwise_where_it_is_held_already_when_it_is_mutated() -> None:
    """In rows of the table too; and as ever when the block is left."""
    duty = next(duty for duty in DUTIES if has_time_left in duty.guards)
    guard = duty.guards[duty.guards.index(has_time_left)]
    difference = Difference()
    with mutated("fsm.guards.keys:has_time_left", lambda original, view: not original(view), difference):
        assert guard(View())
        assert difference.at_us == 0
    assert not guard(View())
