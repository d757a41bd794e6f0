"""Scenarios 8: a disk of the leader's node is full, or stands still."""

from contextlib import AbstractContextManager

from api.cli.demo.cluster import DemoNode
from effects.clock import unix_ms
from tests.chaos.disks import data_disk, full, standing_still, state_disk
from tests.chaos.scenario import Course, scenario
from tests.chaos.scene import Scene

TAKEN_OVER_WITHIN_S = 10
"""From the last write that the server with the full disk takes until a healthy standby takes one. What PostgreSQL has
allocated before lets it go on for a while after the disk is full."""


@scenario("data-disk-full", 8, wiring="disks", short_mode="on")
async def data_disk_full(scene: Scene, course: Course) -> None:
    """The leader's data disk has no byte left for three ttl, or 30 s: a standby takes over within ten seconds."""
    leader = await scene.leader()
    course.begins()
    with full(data_disk(leader)):
        await scene.hold(max(30, 3 * scene.ttl_s))
        _judge_takeover(scene, course, leader)
    course.ends()


def _judge_takeover(scene: Scene, course: Course, leader: DemoNode) -> None:
    taken = [one for one in scene.monitor.taken(since_ms=course.began_ms) if one.server != leader.name]
    if not taken:
        course.demand(False, "no standby took over")
        return
    first_ms = min(one.at_ms for one in taken)
    before = [one.at_ms for one in scene.monitor.taken(leader.name, since_ms=course.began_ms) if one.at_ms < first_ms]
    pause_ms = first_ms - max(before, default=course.began_ms)
    course.note("another took over ms after the disk was full", f"{first_ms - course.began_ms:.0f}")
    course.note("after the last write", f"{pause_ms:.0f}")
    course.demand(pause_ms <= TAKEN_OVER_WITHIN_S * 1000, f"no standby took over within {TAKEN_OVER_WITHIN_S} s")


@scenario("data-disk-hangs", 8, wiring="disks", short_mode="on")
async def data_disk_hangs(scene: Scene, course: Course) -> None:
    """No write to the leader's data disk ends for three ttl."""
    leader = await scene.leader()
    course.begins()
    with standing_still(data_disk(leader)):
        await scene.hold(3 * scene.ttl_s)
        led = {one.server for one in scene.monitor.taken(since_ms=course.began_ms + 1000)} - {leader.name}
        course.note("failed over while it hung", "yes" if led else "no")
    course.ends()


@scenario("log-disk-full", 8, wiring="disks", short_mode="on", is_primary_lost=False)
async def log_disk_full(scene: Scene, course: Course) -> None:
    """The disk of the leader's agent, where its log lies, has no byte left for three ttl: it leads on."""
    leader = await scene.leader()
    await while_leading_on(scene, course, leader, full(state_disk(leader)))


@scenario("log-disk-hangs", 8, wiring="disks", short_mode="on", is_primary_lost=False)
async def log_disk_hangs(scene: Scene, course: Course) -> None:
    """No fsync of the leader's log ends for three ttl: it leads on."""
    leader = await scene.leader()
    await while_leading_on(scene, course, leader, standing_still(state_disk(leader)))


async def while_leading_on(
    scene: Scene, course: Course, leader: DemoNode, fault: AbstractContextManager[object]
) -> None:
    """The fault lasts three ttl; nobody else leads meanwhile nor afterwards."""
    course.begins()
    with fault:
        await scene.hold(3 * scene.ttl_s)
        since_ms = unix_ms() - 1000
        course.demand(bool(scene.monitor.taken(leader.name, since_ms=since_ms)), "the leader took no more writes")
    course.ends()
    await scene.hold(1)
    course.demand(await scene.leader() is leader, "another node leads")
