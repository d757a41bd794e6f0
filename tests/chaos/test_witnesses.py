"""The witnesses see what they are there to see: two servers that take writes, and a row that was lost."""

from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from api.cli.demo.plan import NodePlan, Plan
from effects.programs import RunAs
from tests.chaos.cells import Cell, Result, append_result, in_groups, picked, read_results
from tests.chaos.page import page_of
from tests.chaos.registry import SCENARIOS, short_set, whole_matrix
from tests.chaos.witnesses import MAKE_TABLES, Monitor, Writers, longest_pause_ms
from tests.cluster.reigns import Taken, overlaps_of
from tests.effects.servers import SUPERUSER, Node, running_nodes

PATIENCE_S = 60


async def until(holds: Callable[[], bool]) -> None:
    """Return when it holds."""
    with anyio.fail_after(PATIENCE_S):
        while not holds():  # noqa: ASYNC110 - other threads
            await anyio.sleep(0.02)


def plan_of(*nodes: Node) -> Plan:
    """A plan that names servers which run already."""
    found = tuple(NodePlan(name=n.settings.name, api_port=0, postgres_port=n.settings.port) for n in nodes)
    return Plan(
        nodes=found,
        etcd_port=0,
        superuser_password=SUPERUSER.password,
        replication_password="",
        rewind_password="",
    )


@pytest.mark.servers
@pytest.mark.anyio
async def test_monitor_tells_of_two_primaries_when_two_servers_take_writes(
    open_directory: Path, postgres_bin: Path, run_as: RunAs | None
) -> None:
    """Two servers that know nothing of each other: the interval grows for as long as both take writes."""
    async with running_nodes(open_directory, postgres_bin, run_as, "n1", "n2") as (one, two):
        for node in (one, two):
            await node.become_first_primary()
            await node.execute(MAKE_TABLES)
        with Monitor(plan_of(one, two), {"n1": None, "n2": None}) as monitor:
            await until(lambda: any(overlap.lasted_ms > 200 for overlap in monitor.overlaps()))
            await two.stop("fast")
            ended = monitor.overlaps()
            since_ms = monitor.taken("n1")[-1].at_ms
            await until(lambda: monitor.taken("n1")[-1].at_ms > since_ms + 200)
            assert monitor.overlaps()[0].until_ms <= ended[0].until_ms + 200
            assert monitor.overlaps(since_ms=since_ms) == []


@pytest.mark.servers
@pytest.mark.anyio
async def test_writers_tell_of_a_lost_row_when_it_is_gone_from_the_primary(
    open_directory: Path, postgres_bin: Path, run_as: RunAs | None
) -> None:
    """What was acknowledged and is deleted behind the writers' back is told once."""
    async with running_nodes(open_directory, postgres_bin, run_as, "n1") as (node,):
        await node.become_first_primary()
        with Writers(plan_of(node), {"n1": None}) as writers:
            await until(lambda: len(writers.acknowledged()) > 10)
            gone = writers.acknowledged()[0][0]
            await node.execute(f"DELETE FROM chaos_ids WHERE id = {gone}")
            assert writers.newly_lost() == {gone}
            assert writers.newly_lost() == set()


def taken(server: str, timeline: int, *instants_ms: float) -> list[Taken]:
    """Writes of one reign."""
    return [Taken(server, f"{timeline:08X}", at_ms) for at_ms in instants_ms]


def test_overlap_is_found_when_two_reigns_are_interleaved() -> None:
    """One write between two of another server's is enough, however far apart those are."""
    (found,) = overlaps_of(taken("n1", 1, 0, 100) + taken("n2", 2, 40, 60))
    assert (found.from_ms, found.until_ms, found.lasted_ms) == (40, 60, 20.0)


def test_overlap_does_not_count_the_time_in_which_a_server_stood_still_when_it_goes_on() -> None:
    """A frozen server takes nothing: its one write after it goes on is a moment, not everything since it was frozen."""
    (found,) = overlaps_of(taken("n1", 1, 0, 10, 9_000) + taken("n2", 2, *range(5_000, 10_000, 20)))
    assert found.lasted_ms == 1.0


def test_overlap_is_not_found_when_the_primary_moves_to_and_fro() -> None:
    """Each promotion makes a new timeline, so a server that leads again has begun a new reign."""
    assert overlaps_of(taken("n1", 1, 0, 10) + taken("n2", 2, 20, 30) + taken("n1", 3, 40, 50)) == []


def test_overlap_is_found_when_an_old_primary_comes_back_on_its_timeline() -> None:
    """A server that takes writes on the timeline that another has left never ended its reign."""
    assert len(overlaps_of(taken("n1", 1, 0, 10, 50) + taken("n2", 2, 20, 60))) == 1


def test_pause_counts_to_both_ends_when_nothing_happened_there() -> None:
    """A fault at the beginning or the end is not left out."""
    assert longest_pause_ms([50, 60], 0, 100) == 50
    assert longest_pause_ms([], 10, 100) == 90


def test_cells_are_picked_when_their_names_satisfy_an_expression() -> None:
    """Words, and, or, not, parentheses, as pytest's -k."""
    found = picked(whole_matrix(), "cut-from and quorum and not (ttl20 or peers)")
    assert {(cell.ttl_s, cell.mode) for cell in found} == {(5, "quorum")}
    assert {cell.fault for cell in found} == {name for name in SCENARIOS if "cut-from" in name and "peers" not in name}


def test_expression_is_refused_when_it_is_none() -> None:
    """A person is told what may be in it."""
    with pytest.raises(ValueError, match="words joined by and, or, not"):
        picked(whole_matrix(), "cut and and")


def test_short_set_has_every_number_and_mode_when_counted() -> None:
    """Every kind of fault is in what CI runs."""
    cells = short_set()
    assert {SCENARIOS[cell.fault].number for cell in cells} == {one.number for one in SCENARIOS.values()}
    assert {cell.mode for cell in cells} == {"off", "on", "strict", "quorum"}
    assert sum(len(group) for group in in_groups(cells)) == len(cells) == len(set(cells))


def test_results_are_read_back_when_the_last_line_was_cut_off(tmp_path: Path) -> None:
    """A run that was broken off goes on; the newest result of a cell counts, and the page shows it."""
    path, cell = tmp_path / "results.jsonl", whole_matrix()[0]
    append_result(path, Result(cell=cell, problems=["it broke"], commit="abc"))
    append_result(path, Result(cell=cell, problems=[], notes={"seen": "7 | 8"}, commit="abc", finished_at="2026-01-02"))
    path.write_bytes(path.read_bytes() + b'{"cell":{"ttl')
    found = read_results(path)
    assert found[cell].is_good
    page = page_of(found, [cell, Cell(ttl_s=5, mode="off", wiring="plain", fault="none")])
    assert "1 of 2 cells have been run (2026-01-02 to 2026-01-02, at commit abc): 1 held, 0 did not." in page
    assert "seen: 7 \\| 8" in page
