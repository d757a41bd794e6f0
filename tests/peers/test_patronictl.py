"""The real patronictl against a cluster of ours: what it shows, and what it is told."""

import re
from collections.abc import Callable
from functools import partial

import pytest
import yaml
from anyio import to_thread

from tests.cluster.harness import RealCluster
from tests.peers.matriarch import Matriarch
from tests.peers.nodes import SCOPE, replicas
from tests.peers.patronictl import Ended, Patronictl

pytestmark = [pytest.mark.anyio, pytest.mark.servers]

LSN = r"[0-9A-F]+/[0-9A-F]+"
TRIES_MAX = 20
COLUMNS = [
    "Cluster", "Member", "Host", "Role", "State", "TL", "Receive LSN", "Receive Lag", "Replay LSN", "Replay Lag",
]  # fmt: skip
MORE_COLUMNS = ["Pending restart", "Pending restart reason", "Scheduled restart", "Tags"]


async def said(command: Callable[..., Ended], *words: str, typed: str = "") -> Ended:
    """What a command did, in a thread so that the rest goes on; it must have nothing to complain of."""
    return await to_thread.run_sync(partial(command, *words, said=typed))


async def test_list_shows_every_member_when_all_is_well(real: RealCluster, patronictl: Patronictl) -> None:
    """Title, columns, words and lags of a healthy cluster."""
    await real.settled()
    ended = await said(patronictl.run, "list")
    assert (ended.status, ended.stderr) == (0, "")
    first, names, _, *rows, _ = ended.stdout.splitlines()
    assert re.fullmatch(rf"\+ Cluster: {SCOPE} \(\d{{19}}\) [-+]+", first)
    assert [name.strip() for name in names.strip("|").split("|")] == [
        "Member", "Host", "Role", "State", "TL", "Receive LSN", "Lag", "Replay LSN", "Lag",
    ]  # fmt: skip
    for node, row in zip(real.cluster.plan.nodes, rows, strict=True):
        is_leader = node.name == real.primary
        words = r"Leader +\| running +\| +\d+ \| +\| +\| +\| +" if is_leader else (
            rf"Replica \| streaming \| +\d+ \| +{LSN} \| +\d+ \| +{LSN} \| +\d+ "
        )  # fmt: skip
        assert re.fullmatch(rf"\| {node.name} +\| 127\.0\.0\.1:{node.postgres_port} \| {words}\|", row), row


async def test_list_shows_the_same_in_every_format_when_asked(real: RealCluster, patronictl: Patronictl) -> None:
    """JSON, YAML and tab-separated values have the same cells."""
    await real.settled()
    rows = (await said(patronictl.run, "list", "-f", "json")).rows
    leader = next(row for row in rows if row["Role"] == "Leader")
    assert list(leader) == COLUMNS[:6]
    assert (leader["Cluster"], leader["Member"], leader["State"]) == (SCOPE, real.primary, "running")
    for row in (row for row in rows if row is not leader):
        assert list(row) == COLUMNS
        assert (row["Role"], row["State"], row["TL"]) == ("Replica", "streaming", leader["TL"])
        assert all(isinstance(row[lag], int) for lag in ("Receive Lag", "Replay Lag"))
    from_yaml = yaml.safe_load((await said(patronictl.run, "list", "-f", "yaml")).stdout)
    assert [row["Member"] for row in from_yaml] == [row["Member"] for row in rows]
    header, *lines = (await said(patronictl.run, "list", "-f", "tsv")).stdout.splitlines()
    assert header.split("\t") == COLUMNS
    assert [line.split("\t")[3] for line in lines] == [row["Role"] for row in rows]
    wide = (await said(patronictl.run, "list", "-e", "-f", "tsv")).stdout.splitlines()[0]
    assert wide.split("\t") == COLUMNS + MORE_COLUMNS


@pytest.mark.parametrize(
    "words",
    [
        ["list"],
        ["list", "-f", "json"],
        ["list", "-f", "tsv"],
        ["list", "-f", "yaml"],
        ["list", "-e"],
        ["list", "-e", "-f", "json"],
        ["topology"],
        ["list", SCOPE, "nosuch"],
    ],
    ids=" ".join,
)
async def test_matriarch_prints_what_patronictl_prints_when_asked_for_the_same(
    real: RealCluster, patronictl: Patronictl, words: list[str]
) -> None:
    """Byte for byte, once the positions stand still between two answers of patronictl."""
    matriarch = Matriarch(real.leader.settings_path)
    for _ in range(TRIES_MAX):
        before = await said(patronictl.run, *words)
        ours = await said(matriarch.run, *words)
        if before == await said(patronictl.run, *words):
            assert ours == before
            return
    raise AssertionError("the cluster does not come to rest")


async def test_topology_hangs_replicas_below_the_leader_when_shown(real: RealCluster, patronictl: Patronictl) -> None:
    """The leader first, the others indented."""
    ended = await said(patronictl.run, "topology")
    names = [line.split("|")[1] for line in ended.stdout.splitlines() if line.startswith("|")][1:]
    assert [name.rstrip() for name in names] == [f" {real.primary}", *(f" + {n.name}" for n in replicas(real))]


async def test_configuration_and_addresses_are_shown_when_asked_for(real: RealCluster, patronictl: Patronictl) -> None:
    """show-config, dsn and version read what the nodes published."""
    config = yaml.safe_load((await said(patronictl.run, "show-config")).stdout)
    assert {key: config[key] for key in ("ttl", "loop_wait")} == {"ttl": 5, "loop_wait": 2}
    port = real.leader.plan.postgres_port
    assert (await said(patronictl.run, "dsn")).stdout == f"host=127.0.0.1 port={port}\n"
    version = (await said(patronictl.run, "version", SCOPE)).stdout
    assert re.findall(r"^(n\d): Patroni 4\.1\.5 PostgreSQL [\d.]+$", version, re.MULTILINE) == ["n1", "n2", "n3"]


async def test_query_is_answered_when_sent_to_a_role(real: RealCluster, patronictl: Patronictl) -> None:
    """libpq to the address in the member key."""
    for role, answer in (("leader", "False"), ("replica", "True")):
        words = ("query", "-r", role, "-U", "postgres", "-d", "postgres", "-c", "SELECT pg_is_in_recovery()")
        ended = await said(patronictl.run, *words)
        assert ended.stdout.split() == ["pg_is_in_recovery", answer], ended


async def test_switchover_moves_the_leader_when_forced(real: RealCluster, patronictl: Patronictl) -> None:
    """The words that other tools look for, and the row that it adds to the history."""
    await real.settled()
    old, new = real.primary, replicas(real)[0].name
    ended = await said(patronictl.run, "switchover", SCOPE, "--leader", old, "--candidate", new, "--force")
    assert ended.status == 0
    assert f'Successfully switched over to "{new}"' in ended.stdout
    await real.settled()
    assert real.primary == new
    rows = (await said(patronictl.run, "history", "-f", "json")).rows
    assert list(rows[-1]) == ["TL", "LSN", "Reason", "Timestamp", "New Leader"]
    assert (rows[-1]["Reason"], rows[-1]["New Leader"]) == ("no recovery target specified", new)
