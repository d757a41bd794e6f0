"""Scenarios 6: etcd loses members, its quorum, its data or its history, or answers late."""

import shutil
from functools import partial

import anyio.to_thread

from effects.clock import unix_ms
from effects.embedded import EmbeddedEtcd
from tests.chaos.faults import members_frozen, members_killed, put_and_compact
from tests.chaos.scenario import Course, scenario
from tests.chaos.scene import Scene, server_pids

DELAYS_MS = (500, 1_000, 2_000, 5_000)
BESIDE = 200
"""How many writes beside the cluster's keys lie in the gap of a watch."""


async def etcd_leader(scene: Scene) -> EmbeddedEtcd:
    """The member that leads etcd."""
    return await anyio.to_thread.run_sync(lambda: scene.real.cluster.etcd_cluster.leader)


async def two_members(scene: Scene) -> list[EmbeddedEtcd]:
    """Two members, etcd's leader among them: without them there is no quorum."""
    leading = await etcd_leader(scene)
    return [leading, next(member for member in scene.etcd if member is not leading)]


@scenario("etcd-leader-killed", 6, short_mode="strict", is_primary_lost=False)
async def etcd_leader_killed(scene: Scene, course: Course) -> None:
    """The member that leads etcd is killed (-9) and comes back after two ttl: nobody else leads the cluster."""
    leader, member = await scene.leader(), await etcd_leader(scene)
    course.begins()
    async with members_killed([member]):
        await scene.hold(2 * scene.ttl_s)
    course.ends()
    course.demand(await scene.leader() is leader, "another node leads")


@scenario("etcd-member-frozen", 6, short_mode="off")
async def etcd_member_frozen(scene: Scene, course: Course) -> None:
    """The member that leads etcd stands still for three ttl, then goes on.

    It may take itself for etcd's leader for a moment then, and revoke every lease that it did not see renewed: the
    leader key is gone, and whoever led must stop. While the member stands still, nobody else may lead.
    """
    leader, member = await scene.leader(), await etcd_leader(scene)
    course.begins()
    with members_frozen([member]):
        await scene.hold(3 * scene.ttl_s)
        led = {one.server for one in scene.monitor.taken(since_ms=course.began_ms)}
        course.demand(led == {leader.name}, "another node led while the member stood still")
    course.ends()
    await scene.hold(1)
    course.note("the same leader afterwards", "yes" if await scene.leader() is leader else "no")


@scenario("etcd-member-cut", 6, is_primary_lost=False)
async def etcd_member_cut(scene: Scene, course: Course) -> None:
    """The member that leads etcd is cut off from the other members for three ttl; the nodes still reach it."""
    leader, member = await scene.leader(), await etcd_leader(scene)
    course.begins()
    with scene.net.cut_off(member.name, [other.name for other in scene.etcd if other is not member]):
        await scene.hold(3 * scene.ttl_s)
    course.ends()
    course.demand(await scene.leader() is leader, "another node leads")


@scenario("etcd-quorum-lost", 6, short_mode="on", is_primary_lost=False)
async def quorum_lost(scene: Scene, course: Course) -> None:
    """Two of three members are gone for three ttl: with failsafe the leader leads on, without losing a session."""
    leader = await scene.leader()
    postmaster = server_pids(leader)[0]
    members = await two_members(scene)
    course.begins()
    async with members_killed(members):
        await scene.hold(3 * scene.ttl_s)
    course.ends()
    await scene.hold(1)
    course.demand(await scene.leader() is leader, "another node leads")
    course.demand(server_pids(leader)[:1] == [postmaster], "the server was restarted")


@scenario("etcd-quorum-lost-without-failsafe", 6, short_mode="quorum")
async def quorum_lost_without_failsafe(scene: Scene, course: Course) -> None:
    """Two of three members are gone for three ttl: without failsafe nobody leads until they are back."""
    await scene.configure({"failsafe_mode": False})
    leader = await scene.leader()
    members = await two_members(scene)
    course.begins()
    async with members_killed(members):
        await scene.until(lambda: not server_pids(leader) or _is_standby(scene, leader.name), "the leader steps down")
        await scene.hold(3 * scene.ttl_s)
        late = scene.monitor.taken(since_ms=course.began_ms + 2 * scene.ttl_s * 1000)
        course.demand(not late, f"{len(late)} writes were taken without a quorum")
    course.ends()
    await scene.until_settled()
    course.settled()
    await scene.configure({"failsafe_mode": True})


def _is_standby(scene: Scene, name: str) -> bool:
    return scene.real.watcher.picture.member(name).role == "replica"


@scenario("etcd-restarted", 6, short_mode="quorum", is_primary_lost=False)
async def all_restarted(scene: Scene, course: Course) -> None:
    """All members are stopped and started again."""
    course.begins()
    for member in scene.etcd:
        await anyio.to_thread.run_sync(member.stop)
    for member in scene.etcd:
        member.launch()
    for member in scene.etcd:
        await anyio.to_thread.run_sync(member.wait_until_healthy)
    course.ends()


@scenario("etcd-compacted", 6, short_mode="on", is_primary_lost=False)
async def compacted_in_a_gap(scene: Scene, course: Course) -> None:
    """While the leader and a replica are cut off from etcd, the history that they would ask for is compacted away."""
    leader = await scene.leader()
    replica = next(node for node in scene.nodes if node is not leader)
    course.begins()
    with (
        scene.net.cut_off(leader.name, scene.etcd_names),
        scene.net.cut_off(replica.name, scene.etcd_names),
    ):
        await scene.hold(scene.ttl_s)
        revision = await anyio.to_thread.run_sync(partial(put_and_compact, scene.etcd[0], BESIDE))
        await scene.hold(scene.ttl_s)
    course.ends()
    course.note("compacted up to revision", revision)


@scenario("etcd-late", 6, wiring="proxied", short_mode="quorum")
async def answers_late(scene: Scene, course: Course) -> None:
    """Every answer of etcd comes late, by 0.5, 1, 2 and 5 s, a ttl and a half each."""
    course.begins()
    for delay_ms in DELAYS_MS:
        since_ms = unix_ms()
        for proxy in scene.proxies:
            proxy.delay_ms = delay_ms
        await scene.hold(1.5 * scene.ttl_s)
        taken = len(scene.writers.acknowledged(since_ms=since_ms))
        course.note(f"acknowledged at {delay_ms} ms", taken)
    for proxy in scene.proxies:
        proxy.delay_ms = 0
    course.ends()


@scenario("etcd-wiped", 6, short_mode="strict", is_cluster_used_up=True)
async def wiped(scene: Scene, course: Course) -> None:
    """All members lose their data: etcd comes back empty."""
    course.begins()
    for member in scene.etcd:
        await anyio.to_thread.run_sync(member.kill)
    for member in scene.etcd:
        shutil.rmtree(member.data_directory)
    for member in scene.etcd:
        member.launch()
    for member in scene.etcd:
        await anyio.to_thread.run_sync(member.wait_until_healthy)
    course.ends()
