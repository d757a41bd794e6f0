"""Scenarios 10: data that do not belong here, data of yesterday, and a server promoted behind the agent's back."""

import contextlib
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio.to_thread

from api.cli.demo import processes
from api.cli.demo.cluster import DemoNode
from api.cli.demo.plan import NodePlan, settings_text
from effects.clock import unix_ms
from effects.programs import dying_with_the_parent
from tests.chaos.faults import kill
from tests.chaos.net import entering, run
from tests.chaos.scenario import Course, scenario
from tests.chaos.scene import Scene, server_pids

STRANGER, STRANGER_NUMBER = "x1", 14


@asynccontextmanager
async def stranger(scene: Scene) -> AsyncIterator[DemoNode]:
    """A node of the same scope, whose data are those of another cluster; its agent runs inside."""
    workspace, like = scene.workspace, scene.nodes[0]
    address = scene.net.addresses.get(STRANGER) or scene.net.add(STRANGER, STRANGER_NUMBER)
    ports = {"api_port": like.plan.api_port, "postgres_port": like.plan.postgres_port}
    node = DemoNode(NodePlan(name=STRANGER, host=address, **ports), workspace.root)
    node.launcher = entering(STRANGER)
    shutil.rmtree(node.directory, ignore_errors=True)
    node.directory.mkdir(mode=0o755)
    await anyio.to_thread.run_sync(_make_data, scene, node)
    text = settings_text(workspace.plan, node.plan, node.directory, workspace.bin_dir, like.overlay)
    node.settings_path.write_text(text)
    node.start()
    try:
        yield node
    finally:
        node.ask_to_stop()
        with contextlib.suppress(TimeoutError):
            await scene.until(lambda: not node.leftovers(), "the stranger ends", 20)
        kill(*node.leftovers())


def _make_data(scene: Scene, node: DemoNode) -> None:
    user = scene.workspace.run_as
    assert user is not None
    run("install", "-d", "-m", "700", "-o", str(user.uid), "-g", str(user.gid), str(node.data_dir))
    initdb = [*dying_with_the_parent("KILL"), str(scene.workspace.bin_dir / "initdb"), "-U", "postgres", "-N"]
    words = [*initdb, "-D", str(node.data_dir)]
    subprocess.run(
        words, user=user.uid, group=user.gid, extra_groups=[], cwd="/", check=True, stdout=subprocess.DEVNULL
    )


@scenario("two-clusters-one-scope", 10, short_mode="on")
async def two_clusters_one_scope(scene: Scene, course: Course) -> None:
    """A node with the data of another cluster is given the same scope, and then the leader's node dies."""
    leader = await scene.leader()
    async with stranger(scene) as found:
        await scene.until(lambda: found.is_locked or found.exit_status is not None, "the stranger's agent runs")
        course.begins()
        await scene.hold(scene.ttl_s)
        leader.crash()
        await scene.until_another_leads(leader)
        course.demand(not server_pids(found), "the server of the other cluster runs")
        said = found.output_path.read_text(errors="replace").strip().splitlines()
        course.note("the other node said", said[-1][-160:] if said else "nothing")
    leader.bring_back()
    course.ends()


@scenario("old-copy-restored", 10, short_mode="quorum")
async def old_copy_restored(scene: Scene, course: Course) -> None:
    """A replica comes back with a copy of its data from before a failover, and just then the leader's node dies."""
    leader = await scene.leader()
    replica = next(node for node in scene.nodes if node is not leader)
    copy = replica.directory / "old-copy"
    await stopped(scene, replica)
    await anyio.to_thread.run_sync(run, "cp", "-a", str(replica.data_dir), str(copy))
    replica.start()
    await scene.until_settled()
    leader.crash()
    await scene.until_another_leads(leader)
    leader.bring_back()
    await scene.until_settled()
    present = await scene.leader()
    if present is replica:  # the copy is to be restored on a node that follows
        await handed_over(scene, replica)
        present = await scene.leader()
    await stopped(scene, replica)
    await anyio.to_thread.run_sync(shutil.rmtree, replica.data_dir)
    copy.rename(replica.data_dir)
    since_ms = unix_ms()
    await scene.until(lambda: len(scene.writers.acknowledged(since_ms=since_ms)) > 20, "writes go on without it")
    # Who came back a moment ago is not waited for at once; while nobody is, it is right that nobody is promoted.
    await scene.until_successor(other_than=replica)
    course.begins()
    replica.start()
    await scene.until(lambda: replica.is_locked, "the agent runs")
    present.crash()
    await scene.until_another_leads(present)
    course.demand(not scene.monitor.taken(replica.name, since_ms=course.began_ms), "the old copy took writes")
    present.bring_back()
    course.ends()


async def stopped(scene: Scene, node: DemoNode) -> None:
    """The agent has ended in good order, with its server."""
    node.ask_to_stop()
    await scene.until(lambda: not node.leftovers(), f"{node.name} ends")


async def handed_over(scene: Scene, leader: DemoNode) -> None:
    """Somebody else leads."""
    await scene.real.watcher.switch_over(None)
    await scene.until_another_leads(leader)
    await scene.until_settled()


@scenario("promoted-by-hand", 10, short_mode="strict", is_primary_lost=False)
async def promoted_by_hand(scene: Scene, course: Course) -> None:
    """Somebody promotes a replica's server behind its agent's back (pg_promote): it ends before it takes a write."""
    leader = await scene.leader()
    replica = next(node for node in scene.nodes if node is not leader)
    old = server_pids(replica)[0]
    with scene.connection_to(replica) as session:
        course.begins()
        session.execute("SELECT pg_promote(wait => false)")
    await scene.until(lambda: not processes.is_alive(old), "the promoted server is ended")
    course.note("promoted server gone after ms", unix_ms() - course.began_ms)
    course.ends()
    course.demand(await scene.leader() is leader, "another node leads")
