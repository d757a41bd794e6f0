"""Scenarios 5: the leader is cut off from etcd, from its peers, or both, in one direction or in both.

Clients keep reaching it, from outside and from inside: it must not take a write that counts.
"""

import anyio

from tests.chaos.net import Direction
from tests.chaos.scenario import Course, scenario
from tests.chaos.scene import Scene


async def cut_from_all(scene: Scene, course: Course, direction: Direction) -> None:
    """The leader loses etcd and its peers until another has led for a while."""
    leader = await scene.leader()
    course.begins()
    with scene.net.cut_off(leader.name, [*scene.etcd_names, *scene.others(leader)], direction):
        await scene.until_another_leads(leader)
        await scene.hold(scene.ttl_s)
    course.ends()


@scenario("cut-from-all", 5, short_mode="quorum")
async def cut_from_etcd_and_peers(scene: Scene, course: Course) -> None:
    """The leader is cut off from etcd and its peers; clients still reach it."""
    await cut_from_all(scene, course, "both")


@scenario("cut-from-all-in", 5, short_mode="on")
async def cut_inwards(scene: Scene, course: Course) -> None:
    """Nothing from etcd and peers reaches the leader; what it sends arrives."""
    await cut_from_all(scene, course, "in")


@scenario("cut-from-all-out", 5, short_mode="off")
async def cut_outwards(scene: Scene, course: Course) -> None:
    """Nothing that the leader sends reaches etcd and peers; it still hears them."""
    await cut_from_all(scene, course, "out")


@scenario("cut-from-etcd", 5, short_mode="strict", is_primary_lost=False)
async def cut_from_etcd(scene: Scene, course: Course) -> None:
    """The leader is cut off from etcd only, for three ttl: by its members' word it leads on (failsafe)."""
    leader = await scene.leader()
    course.begins()
    with scene.net.cut_off(leader.name, scene.etcd_names):
        await scene.hold(3 * scene.ttl_s)
    course.ends()
    await scene.hold(1)
    course.demand(await scene.leader() is leader, "another node leads")


@scenario("cut-from-peers", 5, short_mode="on", is_primary_lost=False)
async def cut_from_peers(scene: Scene, course: Course) -> None:
    """The leader is cut off from its peers only, for three ttl: etcd knows that it leads, so it does."""
    leader = await scene.leader()
    course.begins()
    with scene.net.cut_off(leader.name, scene.others(leader)):
        await scene.hold(3 * scene.ttl_s)
    course.ends()
    course.demand(await scene.leader() is leader, "another node leads")


@scenario("link-flaps", 5, short_mode="quorum")
async def link_flaps(scene: Scene, course: Course) -> None:
    """The leader's link to etcd and its peers goes and comes, a second each, for three ttl."""
    leader = await scene.leader()
    course.begins()
    with anyio.move_on_after(3 * scene.ttl_s):
        while True:
            with scene.net.cut_off(leader.name, [*scene.etcd_names, *scene.others(leader)]):
                await scene.hold(1)
            await scene.hold(1)
    course.ends()


@scenario("etcd-back-for-a-moment", 5, is_primary_lost=False)
async def etcd_back_for_a_moment(scene: Scene, course: Course) -> None:
    """The leader is cut off from etcd for two ttl, reaches it for half a second, and is cut off for two ttl again."""
    leader = await scene.leader()
    course.begins()
    with scene.net.cut_off(leader.name, scene.etcd_names):
        await scene.hold(2 * scene.ttl_s)
    await scene.hold(0.5)
    with scene.net.cut_off(leader.name, scene.etcd_names):
        await scene.hold(2 * scene.ttl_s)
    course.ends()
    await scene.until_settled()
    course.demand(await scene.leader() is leader, "another node leads")
