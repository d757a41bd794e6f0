"""Scenario 7: the wall clock of one node is wrong, and steps."""

import sys
from pathlib import Path

from api.cli.demo.cluster import DemoNode
from tests.chaos.faults import agent_of, kill
from tests.chaos.scenario import Course, scenario
from tests.chaos.scene import Scene, server_pids

PROGRAM = Path(__file__).with_name("stepped_clock.py")
STEP_MS = 300_000


async def step_the_clock(scene: Scene, node: DemoNode) -> None:
    """The agent's wall clock jumps five minutes ahead, ten back, and to the truth."""
    offset, usual = node.directory / "clock_offset_ms", node.command
    offset.write_text("0")
    node.command = (sys.executable, "-P", str(PROGRAM), str(offset), "run")
    kill(agent_of(node))
    await scene.until(lambda: node.agent_pid is None, "the agent is gone")
    node.start()
    node.command = usual
    await scene.until_settled()
    for step_ms in (STEP_MS, -STEP_MS, 0):
        offset.write_text(str(step_ms))
        await scene.hold(scene.ttl_s)


@scenario("clock-of-the-leader-steps", 7, short_mode="off", is_primary_lost=False)
async def leaders_clock(scene: Scene, course: Course) -> None:
    """The wall clock of the leader's agent jumps by five minutes, forth and back: nobody notices."""
    leader = await scene.leader()
    postmaster = server_pids(leader)[0]
    course.begins()
    await step_the_clock(scene, leader)
    course.ends()
    course.demand(await scene.leader() is leader, "another node leads")
    course.demand(server_pids(leader)[:1] == [postmaster], "the server was restarted")


@scenario("clock-of-a-replica-steps", 7, is_primary_lost=False)
async def replicas_clock(scene: Scene, course: Course) -> None:
    """The wall clock of a replica's agent jumps by five minutes, forth and back: nobody notices."""
    leader = await scene.leader()
    course.begins()
    await step_the_clock(scene, next(node for node in scene.nodes if node is not leader))
    course.ends()
    course.demand(await scene.leader() is leader, "another node leads")
