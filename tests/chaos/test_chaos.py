"""Every kind of fault once on real processes, each cell a test; tests/chaos/__main__.py runs the whole matrix.

Cells of one group are run by one program in namespaces of its own (`tests/chaos/group.py`), which tells each result.
"""

from collections.abc import Iterator

import pytest

from tests.chaos.__main__ import RESULTS, line_of
from tests.chaos.cells import Cell, Result, append_result
from tests.chaos.net import why_not
from tests.chaos.outside import results_of
from tests.chaos.registry import short_set

pytestmark = pytest.mark.servers

CELLS = short_set()


class Groups:
    """Runs the chosen cells group by group, as far as their results are asked for."""

    def __init__(self, chosen: list[Cell]) -> None:
        self._chosen = chosen
        self._running: Iterator[Result] = iter(())
        self._known: dict[Cell, Result] = {}

    def result(self, cell: Cell) -> Result:
        """The result of a cell; its group is begun unless it runs already."""
        while cell not in self._known:
            found = next(self._running, None)
            if found is None:
                self._begin(cell)
            else:
                append_result(RESULTS, found)
                self._known[found.cell] = found
        return self._known[cell]

    def _begin(self, cell: Cell) -> None:
        self._running = results_of([one for one in self._chosen if one.group == cell.group and one not in self._known])

    def close(self) -> None:
        """End what runs."""
        close = getattr(self._running, "close", None)
        if close is not None:
            close()


@pytest.fixture(scope="module")
def groups(request: pytest.FixtureRequest) -> Iterator[Groups]:
    """The groups of the cells that were selected."""
    if reason := why_not():
        pytest.skip(f"no faults were injected: {reason}")
    found = [getattr(item, "callspec", None) for item in request.session.items if item.path == request.path]
    running = Groups([spec.params["cell"] for spec in found if spec is not None and "cell" in spec.params])
    yield running
    running.close()


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_cluster_keeps_its_promises_when(cell: Cell, groups: Groups) -> None:
    """One primary at most, nothing acknowledged lost, everybody back, and logs that replay."""
    result = groups.result(cell)
    print(line_of(result))
    assert result.problems == []
