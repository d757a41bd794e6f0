"""New base backups on request, by the real patronictl and by ours, of nodes in every condition."""

import json
import os
import re
from functools import partial

import psycopg
import pytest
from anyio import to_thread

from api.cli.demo import processes
from api.cli.demo.cluster import DemoNode
from api.cli.demo.writer import connection_options
from effects.clock import now_ms
from fsm.effects import Clone
from tests.cluster.harness import RealCluster
from tests.peers import nodes
from tests.peers.matriarch import Matriarch
from tests.peers.nodes import SCOPE, asides, change_settings, held_copy, is_copying, observed, ours, replicas, until
from tests.peers.patronictl import Ended, Patronictl

pytestmark = [pytest.mark.anyio, pytest.mark.servers]

PARKED = "the data directory cannot be used"
WAITED = """\
Success: reinitialize for member {name}
Waiting for reinitialize to complete on: {name}
Reinitialize is completed on: {name}
"""


async def reinit(patronictl: Patronictl, *words: str, typed: str = "") -> Ended:
    """`patronictl reinit`, in a thread."""
    return await to_thread.run_sync(partial(patronictl.run, "reinit", SCOPE, *words, said=typed))


async def row_of(patronictl: Patronictl, node: DemoNode) -> dict[str, object]:
    """The node's row in `patronictl list`."""
    ended = await to_thread.run_sync(patronictl.run, "list", "-f", "json")
    return next(row for row in ended.rows if row["Member"] == node.name)


def started_at(node: DemoNode) -> str:
    """When its server was started; empty while it does not tell."""
    return str(nodes.status_of(node).get("postmaster_start_time", ""))


def rows_counted(real: RealCluster, node: DemoNode) -> int:
    """How many rows of the large table the node's own server has."""
    options = connection_options(real.cluster.plan, session="any")
    with psycopg.connect(**options | {"host": "127.0.0.1", "port": str(node.plan.postgres_port)}) as connection:
        row = connection.execute("SELECT count(*) FROM many").fetchone()
        assert row is not None
        return int(row[0])


# ---- by patronictl ---------------------------------------------------------------------------------------------------


async def test_patronictl_waits_for_the_new_server_when_the_old_one_was_running(
    real: RealCluster, patronictl: Patronictl
) -> None:
    """--wait ends after the copy, and no poll in between is told of the old server."""
    await real.settled()
    node = replicas(real)[0]
    old, kept = started_at(node), asides(node)
    with observed(node) as seen:
        ended = await reinit(patronictl, node.name, "--force", "--wait")
        await until(lambda: started_at(node) > old)
        await until(lambda: seen.states[-1:] == ["running"])
    assert (ended.status, ended.stderr) == (0, "")
    assert ended.stdout.endswith(WAITED.format(name=node.name))
    while seen.states[0] == "running":
        seen.states.pop(0)  # before it was asked
    # The start takes a few milliseconds: whoever looks now and then need not see it.
    assert [state for state in seen.states if state != "starting"] == ["creating replica", "running"]
    assert asides(node) != kept
    await real.settled()
    assert rows_counted(real, node) == rows_counted(real, real.leader)


async def test_patronictl_shows_creating_replica_when_the_copy_runs(real: RealCluster, patronictl: Patronictl) -> None:
    """In the state's column, with no position of the old server; and a second request meets a refusal."""
    await real.settled()
    node = replicas(real)[0]
    assert (await reinit(patronictl, node.name, typed="y\n")).status == 0
    async with held_copy(node):
        row = await row_of(patronictl, node)
        ended = await reinit(patronictl, node.name, typed="y\nn\n")
    assert (row["Role"], row["State"]) == ("Replica", "creating replica")
    assert row.get("Receive LSN") == row.get("Replay LSN") == "unknown"
    assert "Failed: reinitialize for member" in ended.stdout
    assert "status code=503, (reinitialize already in progress)" in ended.stdout
    assert "Do you want to cancel it and reinitialize anyway?" in ended.stdout
    await real.settled()


async def test_patronictl_begins_anew_when_one_runs_and_a_person_says_so(
    real: RealCluster, patronictl: Patronictl
) -> None:
    """The base backup under way is given up for another; the old data stay the ones that are kept."""
    await real.settled()
    node, began_ms = replicas(real)[0], now_ms()
    await reinit(patronictl, node.name, "--force")
    async with held_copy(node):
        kept = asides(node)
        ended = await reinit(patronictl, node.name, "--wait", typed="y\ny\n")
    assert ended.stdout.endswith(WAITED.format(name=node.name))
    assert len(real.orders(Clone, node.name, since_ms=began_ms)) == 2
    assert [entry for entry in real.entries(node.name, since_ms=began_ms) if entry.cancelled]
    await real.settled()
    assert asides(node) == kept


async def test_patronictl_refuses_the_leader_when_it_is_named(real: RealCluster, patronictl: Patronictl) -> None:
    """Its own check; the node would refuse as well."""
    await real.settled()
    ended = await reinit(patronictl, real.primary, "--force")
    assert (ended.status, "No replica among provided members" in ended.stderr) == (1, True)


async def test_node_is_brought_back_when_it_is_paused_and_its_server_was_killed(
    real: RealCluster, patronictl: Patronictl
) -> None:
    """In pause nobody starts it; a base backup does."""
    await real.settled()
    node = replicas(real)[0]
    await to_thread.run_sync(patronictl.run, "edit-config", SCOPE, "-s", "pause=true", "--force", "-q")
    try:
        await until(lambda: nodes.status_of(node).get("pause") is True)
        node.crash_server()
        await until(lambda: nodes.status_of(node).get("state") == "stopped")
        assert (await row_of(patronictl, node))["State"] == "stopped"
        ended = await reinit(patronictl, node.name, "--force", "--wait")
        assert ended.stdout.endswith(WAITED.format(name=node.name))
        await until(lambda: nodes.status_of(node).get("replication_state") == "streaming")
    finally:
        await to_thread.run_sync(patronictl.run, "edit-config", SCOPE, "-s", "pause=null", "--force", "-q")
    await real.settled()


@pytest.mark.parametrize("damage", ["no control file", "garbage"])
async def test_node_is_brought_back_when_its_data_directory_is_broken(
    real: RealCluster, patronictl: Patronictl, damage: str
) -> None:
    """It is parked over what nobody can read, and kept aside for who wants to look at it."""
    await real.settled()
    node = replicas(real)[0]
    await nodes.stop_agent(node)
    if damage == "no control file":
        (node.data_dir / "global" / "pg_control").unlink()
    else:
        owner = node.data_dir.stat()
        node.data_dir.rename(node.directory / "gone")
        node.data_dir.mkdir(mode=0o700)
        (node.data_dir / "lost+found.txt").write_text("not a cluster")
        os.chown(node.data_dir, owner.st_uid, owner.st_gid)
    told = node.output_path.read_text(errors="replace").count(PARKED)
    node.start()
    await until(lambda: node.output_path.read_text(errors="replace").count(PARKED) > told)
    await until(lambda: node.name in nodes.listed(real))
    kept = asides(node)
    ended = await reinit(patronictl, node.name, "--force", "--wait")
    assert ended.stdout.endswith(WAITED.format(name=node.name))
    await real.settled()
    assert asides(node) != kept


async def test_base_backup_goes_on_when_the_agent_is_killed_in_the_middle(
    real: RealCluster, patronictl: Patronictl
) -> None:
    """The next agent throws the half away and takes a whole one."""
    await real.settled()
    node = replicas(real)[0]
    await reinit(patronictl, node.name, "--force")
    async with held_copy(node):
        await nodes.kill_agent(node)
    node.start()
    await until(lambda: is_copying(node))
    await real.settled()
    assert rows_counted(real, node) == rows_counted(real, real.leader)


async def test_base_backup_goes_on_when_the_leader_is_killed_in_the_middle(
    real: RealCluster, patronictl: Patronictl
) -> None:
    """From the next leader."""
    await real.settled()
    node, old = replicas(real)[0], real.leader
    await reinit(patronictl, node.name, "--force")
    async with held_copy(node):
        old.crash()
    await until(lambda: (ours(node).get("progress") or {}).get("source") not in (None, "", old.name))
    await until(lambda: old.agent_pid is None)
    old.start()
    await real.settled()
    assert rows_counted(real, node) == rows_counted(real, real.leader)


async def test_tagged_member_is_copied_when_it_streams(real: RealCluster, patronictl: Patronictl) -> None:
    """Unless --from-leader says otherwise."""
    await real.settled()
    node, other = replicas(real)
    await change_settings(real, other, lambda settings: settings.update(tags={"clonefrom": True}))
    for words, source in ((("--force",), other.name), (("--force", "--from-leader"), real.primary)):
        await reinit(patronictl, node.name, *words)
        await until(lambda: is_copying(node))
        assert ours(node)["progress"]["source"] == source
        await real.settled()
    assert "clonefrom" in str((await row_of(patronictl, other))["Tags"])
    await change_settings(real, other, lambda settings: settings.pop("tags"))


# ---- by matriarch ----------------------------------------------------------------------------------------------------


async def ask(real: RealCluster, *words: str, typed: str = "") -> Ended:
    """`matriarch reinit`, without a terminal."""
    run = partial(Matriarch(real.leader.settings_path).run, "reinit", *words, said=typed)
    return await to_thread.run_sync(run)


async def test_bar_moves_when_a_node_is_replaced_before_somebodys_eyes(real: RealCluster) -> None:
    """Bytes, rate and what is left change while it is copied; the last line and the exit status tell the end."""
    await real.settled()
    node = replicas(real)[0]
    matriarch = Matriarch(real.leader.settings_path)
    ended = await to_thread.run_sync(matriarch.run_in_terminal, "reinit", node.name, "--force")
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", ended.stdout)
    shown = re.findall(r"([\d.]+)/([\d.]+) MiB ([\d.]+) MiB/s (\d+:\d\d) left +base backup: copying", text)
    amounts = [float(done) for done, *_ in shown]
    assert amounts == sorted(amounts)
    assert len(set(amounts)) >= 2, text
    assert all(10 < float(rate) < 100 for _, _, rate, _ in shown)
    assert {"stopping the server", "starting the server"} & set(re.findall(r"\w+ing the server", text))
    assert re.search(rf"{node.name}: done, streams \([\d.]+ s\)", text)
    assert ended.status == 0
    await real.settled()


async def test_lines_are_printed_when_there_is_no_terminal(real: RealCluster) -> None:
    """One a step, and one every few seconds."""
    await real.settled()
    node = replicas(real)[0]
    ended = await ask(real, SCOPE, node.name, "--force", "--wait")
    assert (ended.status, ended.stderr) == (0, "")
    first, *middle, last = ended.stdout.splitlines()
    assert first == f"{node.name}: reinitialize started"
    assert any(f"{node.name}: base backup: copying, from {real.primary}" in line for line in middle)
    assert re.fullmatch(rf"{node.name}: done, streams \([\d.]+ s\)", last)
    await real.settled()


async def test_outcome_is_json_when_asked_for(real: RealCluster) -> None:
    """One object a node; begun where nobody waits, refused where it runs already."""
    await real.settled()
    node = replicas(real)[0]
    begun = await ask(real, node.name, "--force", "--json")
    assert (begun.status, json.loads(begun.stdout)) == (
        0,
        [{"member": node.name, "outcome": "begun", "detail": "asked"}],
    )
    async with held_copy(node):
        refused = await ask(real, node.name, "--json", typed="y\n")
    refusal = "refused (503): reinitialize already in progress"
    assert (refused.status, json.loads(refused.stdout)) == (
        1,
        [{"member": node.name, "outcome": "failed", "detail": refusal}],
    )
    late = await ask(real, node.name, "--force", "--json", "--wait", "--timeout", "0.3")
    assert (late.status, json.loads(late.stdout)[0]["outcome"]) == (1, "unknown")
    await real.settled()


async def test_request_is_refused_in_a_line_when_it_makes_no_sense(real: RealCluster) -> None:
    """1 for what the cluster does not allow or a person does not want, 2 for what was typed wrongly."""
    await real.settled()
    node = replicas(real)[0]
    for words, typed, status, told in (
        ((real.primary, "--force"), "", 1, "leads"),
        ((node.name,), "n\n", 1, "nothing was done"),
        ((node.name,), "", 1, "--force"),
        (("nosuch", "--force"), "", 2, "no such member"),
        ((SCOPE, "--force"), "", 2, "name the nodes"),
        ((), "", 2, "Missing argument"),
    ):
        ended = await ask(real, *words, typed=typed)
        assert (ended.status, told in ended.stderr, "Traceback" in ended.stderr) == (status, True, False), ended
    assert nodes.status_of(node)["state"] == "running"


async def test_node_is_told_of_in_a_line_when_it_does_not_answer(real: RealCluster) -> None:
    """An agent that was killed leaves its member key for a while."""
    await real.settled()
    node = replicas(real)[0]
    await nodes.kill_agent(node)
    ended = await ask(real, node.name, "--force")
    assert (ended.status, ended.stdout.count("\n")) == (1, 1)
    assert f"{node.name} does not answer at http://127.0.0.1:{node.plan.api_port}" in ended.stdout
    node.start()
    await real.settled()
    assert processes.server_of(node.data_dir)
