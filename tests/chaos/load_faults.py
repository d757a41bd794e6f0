"""Scenarios 9: a long write transaction, 200 open sessions, a stop that does not end, while something else breaks."""

import signal

from api.cli.demo import processes
from tests.chaos.faults import agent_of, kill, many_sessions
from tests.chaos.scenario import Course, scenario
from tests.chaos.scene import Scene
from tests.cluster.witnesses import frozen_processes

SESSIONS = 200


@scenario("sessions-and-agent-killed", 9, short_mode="strict")
async def sessions_and_agent_killed(scene: Scene, course: Course) -> None:
    """200 sessions and a long write transaction are open when the leader's agent is killed and does not come back."""
    leader = await scene.leader()
    with many_sessions(scene, leader, SESSIONS):
        course.begins()
        kill(agent_of(leader))
        await scene.until_another_leads(leader)
    leader.start()
    course.ends()


@scenario("sessions-and-agent-frozen", 9)
async def sessions_and_agent_frozen(scene: Scene, course: Course) -> None:
    """200 sessions and a long write transaction are open when the leader's agent stands still for three ttl."""
    leader = await scene.leader()
    with many_sessions(scene, leader, SESSIONS):
        course.begins()
        with frozen_processes([agent_of(leader)]):
            await scene.hold(3 * scene.ttl_s)
    course.ends()


@scenario("sessions-and-cut-from-all", 9)
async def sessions_and_cut(scene: Scene, course: Course) -> None:
    """200 sessions and a long write transaction are open when the leader is cut off from etcd and its peers."""
    leader = await scene.leader()
    with many_sessions(scene, leader, SESSIONS):
        course.begins()
        with scene.net.cut_off(leader.name, [*scene.etcd_names, *scene.others(leader)]):
            await scene.until_another_leads(leader)
            await scene.hold(scene.ttl_s / 2)
    course.ends()


@scenario("stop-hangs", 9)
async def stop_hangs(scene: Scene, course: Course) -> None:
    """The leader's agent is asked to stop, and the server's fast stop does not end: one backend stands still."""
    leader = await scene.leader()
    with scene.connection_to(leader) as session, frozen_processes([session.info.backend_pid]):
        course.begins()
        processes.send(agent_of(leader), signal.SIGTERM)
        await scene.until_another_leads(leader)
        await scene.until(lambda: leader.agent_pid is None, "the agent ends")
    leader.start()
    course.ends()


@scenario("stop-hangs-and-agent-killed", 9, short_mode="on")
async def stop_hangs_and_agent_killed(scene: Scene, course: Course) -> None:
    """The same, and the agent is killed (-9) while it waits for the stop."""
    leader = await scene.leader()
    with scene.connection_to(leader) as session, frozen_processes([session.info.backend_pid]):
        course.begins()
        processes.send(agent_of(leader), signal.SIGTERM)
        await scene.hold(0.3)
        if leader.agent_pid is not None:
            kill(leader.agent_pid)
        await scene.until_another_leads(leader)
    leader.start()
    course.ends()


@scenario("stop-hangs-and-cut-from-all", 9)
async def stop_hangs_and_cut(scene: Scene, course: Course) -> None:
    """The leader's agent is asked to stop, the fast stop does not end, and the node is cut off from everybody."""
    leader = await scene.leader()
    with scene.connection_to(leader) as session, frozen_processes([session.info.backend_pid]):
        course.begins()
        with scene.net.cut_off(leader.name, [*scene.etcd_names, *scene.others(leader)]):
            processes.send(agent_of(leader), signal.SIGTERM)
            await scene.until_another_leads(leader)
            await scene.until(lambda: leader.agent_pid is None, "the agent ends")
    leader.start()
    course.ends()
