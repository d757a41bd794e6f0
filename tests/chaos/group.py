"""Runs the cells of one group on one cluster, in namespaces of the run's own; each result is a line on stdout.

Started by tests/chaos/outside.py. A cluster that did not settle after a cell is replaced for the next one.
"""

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import IO

import anyio
import anyio.to_thread
import msgspec

from api.cli.demo.cluster import DemoNode
from effects.clock import unix_ms, wall_time
from effects.errors import MatriarchError
from tests.chaos.cells import Cell, Result
from tests.chaos.net import Net
from tests.chaos.registry import SCENARIOS
from tests.chaos.scenario import Course
from tests.chaos.scene import Scene, keep_logs, running_scene
from tests.chaos.witnesses import longest_pause_ms
from tests.cluster.harness import show_what_was_said
from tests.cluster.witnesses import check_replay, found_in_logs

CELL_PATIENCE_S = 300


async def run_group(cells: list[Cell], keep: Path, tell: Callable[[Result], None]) -> None:
    """Run cells of one group and tell each result."""
    net, waiting = Net(), list(cells)
    while waiting:
        group = f"ttl{waiting[0].ttl_s}-{waiting[0].mode}-{waiting[0].wiring}"
        try:
            async with running_scene(net, *waiting[0].group, keep / group) as scene:
                while waiting and await _one(scene, waiting.pop(0), keep, tell):
                    pass
        except (MatriarchError, TimeoutError, OSError, RuntimeError) as error:
            if not waiting:
                raise
            traceback.print_exc(file=sys.stderr)
            cell = waiting.pop(0)
            tell(Result(cell=cell, problems=[f"no cluster to begin with: {_said(error)}"], kept_in=str(keep / group)))


async def _one(scene: Scene, cell: Cell, keep: Path, tell: Callable[[Result], None]) -> bool:
    """Run one cell; True when the next may use the same cluster."""
    began_ms = unix_ms()
    course = Course(scene)
    recovery_ms = None
    try:
        with anyio.fail_after(CELL_PATIENCE_S + 10 * scene.ttl_s):
            await SCENARIOS[cell.fault].act(scene, course)
    except Exception as error:  # noqa: BLE001 - whatever it was, the cell did not hold
        traceback.print_exc(file=sys.stderr)
        course.problems.append(f"the scenario broke off: {_said(error)}")
    ended_ms = course.ended_ms or unix_ms()
    try:
        await scene.until_settled()
        recovery_ms = (course.settled_ms or unix_ms()) - ended_ms
    except (TimeoutError, MatriarchError) as error:
        course.problems.append(f"not one primary with all streaming: {_said(error)}")
    result = await _judged(scene, cell, course, recovery_ms)
    if result.problems:
        print(show_what_was_said(scene.real.cluster), file=sys.stderr)
        keep_logs(scene.workspace, keep / str(cell))
        result = msgspec.structs.replace(result, kept_in=str(keep / str(cell)))
    tell(msgspec.structs.replace(result, took_s=round((unix_ms() - began_ms) / 1000, 1), finished_at=wall_time()[:19]))
    return recovery_ms is not None and not SCENARIOS[cell.fault].is_cluster_used_up


async def _judged(scene: Scene, cell: Cell, course: Course, recovery_ms: int | None) -> Result:
    """What every cell is judged by."""
    wanted = SCENARIOS[cell.fault]
    overlaps = scene.monitor.overlaps(since_ms=course.began_ms)
    two_ms = sum(overlap.lasted_ms for overlap in overlaps)
    if overlaps and two_ms > wanted.two_ms_at_most:
        course.problems.append("two servers took writes: " + "; ".join(map(str, overlaps)))
    lost: set[int] = set()
    if recovery_ms is not None:
        lost = await anyio.to_thread.run_sync(scene.writers.newly_lost)
        if lost and (scene.is_synchronous or not wanted.is_primary_lost):
            course.problems.append(f"{len(lost)} acknowledged ids are lost, such as {sorted(lost)[:5]}")
        for node in scene.nodes:
            await anyio.to_thread.run_sync(_replayed, node, course)
        await anyio.to_thread.run_sync(_verified, scene, course)
    acks = scene.writers.acknowledged(since_ms=course.began_ms)
    course.demand(bool(acks), "nothing was acknowledged at all")
    course.demand(bool(scene.monitor.taken(since_ms=course.began_ms)), "the monitor saw no write at all")
    course.demand(scene.monitor.is_watching and scene.writers.are_writing, "a witness has ended before")
    return Result(
        cell=cell,
        problems=course.problems,
        two_ms=round(two_ms, 1),
        gap_ms=longest_pause_ms([at for _, at in acks], course.began_ms, acks[-1][1] if acks else unix_ms()),
        acknowledged=len(acks),
        lost=len(lost),
        recovery_ms=recovery_ms,
        notes=course.notes,
    )


def _replayed(node: DemoNode, course: Course) -> None:
    try:
        check_replay(node)
    except (AssertionError, MatriarchError) as error:
        course.problems.append(f"the log of {node.name} does not replay: {_said(error)}")


def _verified(scene: Scene, course: Course) -> None:
    try:
        course.problems += [f"the logs do not verify: {finding}"[:300] for finding in found_in_logs(scene.nodes)]
    except (AssertionError, MatriarchError) as error:
        course.problems.append(f"the logs cannot be verified: {_said(error)}")


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".strip().splitlines()[0][:300]


def main() -> None:
    """Cells as JSON in the first word, the directory for logs in the second."""
    # Asked to stop, it ends what runs, as at Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
    cells = msgspec.json.decode(sys.argv[1], type=list[Cell])
    results: IO[str] = sys.stdout

    def tell(result: Result) -> None:
        print(msgspec.json.encode(result).decode(), file=results, flush=True)

    with contextlib.redirect_stdout(sys.stderr), contextlib.suppress(KeyboardInterrupt):
        anyio.run(run_group, cells, Path(sys.argv[2]), tell)


if __name__ == "__main__":
    main()
