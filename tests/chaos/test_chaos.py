"""Every kind of fault once on real processes, each cell a test; tests/chaos/__main__.py runs the whole matrix.

Cells of one group are run by one program in namespaces of its own (`tests/chaos/group.py`), which tells each result.
"""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from api.cli.demo import processes
from effects.clock import now_ms
from tests.chaos.__main__ import RESULTS, line_of
from tests.chaos.cells import Cell, Result, append_result
from tests.chaos.net import run, why_no_disks, why_not
from tests.chaos.outside import results_of, running
from tests.chaos.registry import short_set

pytestmark = pytest.mark.servers

CELLS = short_set()
PATIENCE_MS = 60_000
PAUSE = threading.Event()


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


def test_run_leaves_nothing_when_it_is_broken_off(tmp_path: Path) -> None:
    """Neither a process nor a directory of its cluster, and the machine's own network is as it was."""
    if reason := why_not():
        pytest.skip(f"no faults were injected: {reason}")
    links = run("ip", "-o", "link")
    with running(CELLS[:1], tmp_path) as process:
        found: list[int] = []
        deadline_ms = now_ms() + PATIENCE_MS
        while sum("api.cli.main" in " ".join(processes.command_line(pid)) for pid in found) < 3:
            assert now_ms() < deadline_ms, found
            PAUSE.wait(0.05)
            found = processes.descendants(process.pid)
        words = [word for pid in found for word in processes.command_line(pid)]
        settings = Path(next(word for word in words if word.endswith("/patroni.yml")))
        assert settings.exists()
    assert not [pid for pid in found if processes.is_alive(pid)]
    assert not settings.parents[1].exists()
    assert run("ip", "-o", "link") == links


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_cluster_keeps_its_promises_when(cell: Cell, groups: Groups) -> None:
    """One primary at most, nothing acknowledged lost, everybody back, and logs that replay."""
    if cell.wiring == "disks" and (reason := why_no_disks()):
        pytest.skip(f"no disk was filled: {reason}")
    result = groups.result(cell)
    print(line_of(result))
    assert result.problems == []
