"""Scenarios 1 to 4: agent, fence, server and whole node killed or frozen."""

from api.cli.demo.cluster import DemoNode
from effects.clock import unix_ms
from tests.chaos.faults import agent_of, fence_of, kill, still_serves, whole_node
from tests.chaos.scenario import Course, scenario
from tests.chaos.scene import Scene, server_pids
from tests.cluster.witnesses import frozen_processes


@scenario("agent-killed-and-back", 1, short_mode="quorum", is_primary_lost=False)
async def agent_killed_and_back(scene: Scene, course: Course) -> None:
    """The leader's agent is killed (-9) and is back within the lease: its server and its clients notice nothing."""
    leader = await scene.leader()
    postmaster = server_pids(leader)[0]
    with scene.connection_to(leader) as session:
        course.begins()
        kill(agent_of(leader))
        await scene.until(lambda: leader.agent_pid is None, "the agent is gone")
        leader.start()
        await scene.hold(2 * scene.ttl_s)
        course.ends()
        course.demand(server_pids(leader)[:1] == [postmaster], "the server was restarted")
        course.demand(still_serves(session), "a session was lost")
    course.demand(await scene.leader() is leader, "another node leads")


@scenario("agent-killed", 1, short_mode="off")
async def agent_killed(scene: Scene, course: Course) -> None:
    """The leader's agent is killed (-9) and does not come back; its server is left alone."""
    leader = await scene.leader()
    course.begins()
    kill(agent_of(leader))
    await scene.until_another_leads(leader)
    await scene.hold(scene.ttl_s / 2)
    leader.start()
    course.ends()


@scenario("agent-frozen", 2, short_mode="on")
async def agent_frozen(scene: Scene, course: Course) -> None:
    """The leader's agent stands still (SIGSTOP) for three ttl, then goes on."""
    leader = await scene.leader()
    course.begins()
    with frozen_processes([agent_of(leader)]):
        await scene.hold(3 * scene.ttl_s)
        course.demand(_another_leads(scene, leader), "nobody took over")
    course.ends()


@scenario("node-paused", 2, short_mode="off", two_ms_at_most=500)
async def node_paused(scene: Scene, course: Course) -> None:
    """Agent, fence and server of the leader stand still together for three ttl, then go on together.

    Nothing on the node can act before it goes on, so what its server takes then is bounded, not zero.
    """
    leader = await scene.leader()
    pids = whole_node(leader)
    course.begins()
    with frozen_processes(pids):
        await scene.hold(3 * scene.ttl_s)
        course.demand(_another_leads(scene, leader), "nobody took over")
        thawed_ms = unix_ms()
    course.ends()
    await scene.until(lambda: not set(pids[:1]) & set(server_pids(leader)), "the resumed server is stopped")
    gone_ms = unix_ms()
    taken = [one.at_ms for one in scene.monitor.taken(leader.name, since_ms=thawed_ms) if one.at_ms < gone_ms]
    resumed_ms = max(taken) - thawed_ms if taken else 0
    course.note("resumed server took local writes for ms", f"{resumed_ms:.1f}")
    course.note("resumed server gone after ms", gone_ms - thawed_ms)


def _another_leads(scene: Scene, leader: DemoNode) -> bool:
    taken = scene.monitor.taken(since_ms=unix_ms() - 1000)
    return bool({one.server for one in taken} - {leader.name})


@scenario("fence-killed", 3, short_mode="strict")
async def fence_killed(scene: Scene, course: Course) -> None:
    """The leader's fence is killed (-9): the kernel tells the server, which ends."""
    leader = await scene.leader()
    old = server_pids(leader)[0]
    course.begins()
    kill(fence_of(leader))
    await scene.until(lambda: old not in server_pids(leader), "the server that lost its fence ends")
    course.note("server gone after ms", unix_ms() - course.began_ms)
    course.ends()


@scenario("fence-and-agent-killed", 3, short_mode="quorum")
async def fence_and_agent_killed(scene: Scene, course: Course) -> None:
    """The leader's fence and agent are killed (-9) together."""
    leader = await scene.leader()
    course.begins()
    kill(fence_of(leader), agent_of(leader))
    await scene.until_another_leads(leader)
    await scene.hold(scene.ttl_s / 2)
    leader.start()
    course.ends()


@scenario("server-frozen", 4, short_mode="quorum")
async def server_frozen(scene: Scene, course: Course) -> None:
    """Postmaster and all backends of the leader stand still for three ttl, then go on."""
    leader = await scene.leader()
    course.begins()
    with frozen_processes(server_pids(leader)):
        await scene.hold(3 * scene.ttl_s)
        led = {one.server for one in scene.monitor.taken(since_ms=course.began_ms + 1000)} - {leader.name}
    course.note("failed over while frozen", "yes" if led else "no")
    course.ends()


@scenario("node-killed", 1, short_mode="strict")
async def node_killed(scene: Scene, course: Course) -> None:
    """Agent, fence and server of the leader are killed (-9) at once, as when a machine loses power."""
    leader = await scene.leader()
    course.begins()
    leader.crash()
    await scene.until_another_leads(leader)
    leader.bring_back()
    course.ends()
