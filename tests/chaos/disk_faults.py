"""Scenarios 8: a disk of the leader's node is full, or stands still."""

from contextlib import AbstractContextManager

from api.cli.demo.cluster import DemoNode
from effects.clock import unix_ms
from tests.chaos.disks import data_disk, full, standing_still, state_disk
from tests.chaos.scenario import Course, scenario
from tests.chaos.scene import Scene

TAKEN_OVER_WITHIN_S = 10
"""From when a data disk is full until a healthy standby takes writes."""


@scenario("data-disk-full", 8, wiring="disks")
async def data_disk_full(scene: Scene, course: Course) -> None:
    """The leader's data disk has no byte left for three ttl or 20 s: a standby takes over within ten seconds."""
    leader = await scene.leader()
    course.begins()
    with full(data_disk(leader)):
        await scene.hold(max(20, 3 * scene.ttl_s))
        taken = [one for one in scene.monitor.taken(since_ms=course.began_ms) if one.server != leader.name]
        took_ms = min(one.at_ms for one in taken) - course.began_ms if taken else None
        course.note("another took over after ms", "never" if took_ms is None else f"{took_ms:.0f}")
        in_time = took_ms is not None and took_ms <= TAKEN_OVER_WITHIN_S * 1000
        course.demand(in_time, f"no standby took over within {TAKEN_OVER_WITHIN_S} s")
    course.ends()


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
