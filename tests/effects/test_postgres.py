"""A real server through its whole life: made, started, cloned, promoted, pointed elsewhere, cleared."""

import contextlib
from pathlib import Path

import anyio
import psycopg
import pytest

from effects.clock import now_ms
from effects.controldata import mark, parse_control_file, unmark
from effects.embedded import postgres_bin_dir, readable_copy
from effects.errors import MatriarchError, PostgresError
from effects.histories import keep_timelines_free, newest_timeline
from effects.pgconfig import REFUSAL
from effects.processes import running_postmaster
from effects.programs import RunAs
from effects.timelines import parse_history, read_leader_history
from fsm.facts import TimelineSwitch
from tests.effects.servers import PATIENCE_MS, measured, running_nodes, until

pytestmark = pytest.mark.anyio
DEBIAN = Path("/usr/lib/postgresql")


@pytest.fixture(params=["18", "16"])
def any_bin(request: pytest.FixtureRequest, open_directory: Path, run_as: RunAs | None) -> Path:
    """PostgreSQL's programs, once of each version that the wheel carries."""
    return readable_copy(postgres_bin_dir(str(request.param)), open_directory / "postgres", run_as)


@pytest.mark.servers
async def test_server_lives_its_whole_life_when_nothing_goes_wrong(
    open_directory: Path, any_bin: Path, run_as: RunAs | None
) -> None:
    """Init, start, clone, stream, promote, follow: each step leads to the fact that it promises."""
    async with running_nodes(open_directory, any_bin, run_as, "n1", "n2", "n3") as (one, two, three):
        with measured("initdb, start and prepare"):
            first = await one.become_first_primary()
        assert (first.timeline, first.in_recovery) == (1, False)
        await two.become_standby_of(one)
        await three.become_standby_of(one)
        await one.execute("CREATE TABLE t AS SELECT generate_series(1, 1000) AS id")
        written = await one.prober.probe(2000)
        assert {standby.application_name for standby in written.standbys} == {"n2", "n3"}
        standby = await two.until_replayed(written.flushed_lsn)
        assert (standby.system_id, standby.upstream_port) == (first.system_id, one.settings.port)
        await three.until_replayed(written.flushed_lsn)
        await one.stop()
        promoted = await two.promote()
        assert promoted.timeline == 2
        with measured("follow until it streams"):
            await three.server.follow(two.upstream, {})
            await three.until_streaming(timeline=2)
        assert await two.execute("SELECT count(*) FROM t") == [(1000,)]


@pytest.mark.servers
async def test_old_primary_follows_without_a_rewind_when_it_was_stopped_cleanly(
    open_directory: Path, postgres_bin: Path, run_as: RunAs | None
) -> None:
    """A former primary whose last WAL the new one has received just starts as its standby."""
    async with running_nodes(open_directory, postgres_bin, run_as, "n1", "n2") as (one, two):
        await one.become_first_primary()
        await two.become_standby_of(one)
        await one.stop("fast")
        await two.promote()
        await one.server.start("standby", two.upstream, {}, armed_until_ms=None)
        await one.until_streaming(timeline=2)


@pytest.mark.servers
async def test_history_names_both_switches_when_two_promotions_happened(
    open_directory: Path, postgres_bin: Path, run_as: RunAs | None
) -> None:
    """Every timeline that ended is in the history with the position where it did."""
    async with running_nodes(open_directory, postgres_bin, run_as, "n1", "n2") as (one, two):
        first = await one.become_first_primary()
        assert (await read_leader_history(two.settings, one.upstream, PATIENCE_MS)).switches == ()
        await two.become_standby_of(one)
        await one.stop()
        await two.promote()
        await one.server.start("standby", two.upstream, {}, armed_until_ms=None)
        await one.until_streaming(timeline=2)
        await one.until_replayed((await two.prober.probe(2000)).flushed_lsn)
        standby = await read_leader_history(two.settings, one.upstream, PATIENCE_MS)
        await two.stop()
        promoted = await one.promote()
        history = await read_leader_history(two.settings, one.upstream, PATIENCE_MS)
        assert (standby.timeline, standby.in_recovery) == (2, True)
        assert (history.timeline, history.in_recovery, history.system_id) == (3, False, first.system_id)
        assert [switch.timeline for switch in history.switches] == [1, 2]
        assert 0 < history.switches[0].lsn < history.switches[1].lsn <= promoted.flushed_lsn


def test_history_is_parsed_when_it_has_comments_and_reasons() -> None:
    """Comments and empty lines are skipped, reasons kept whole."""
    text = "# made by hand\n\n1\t0/3000000\tno recovery target specified\n2\t1/A\n"
    assert parse_history(text) == (
        TimelineSwitch(timeline=1, lsn=0x3000000, reason="no recovery target specified"),
        TimelineSwitch(timeline=2, lsn=(1 << 32) + 10),
    )
    with pytest.raises(PostgresError, match="not a line"):
        parse_history("nonsense 0/0\n")


@pytest.mark.servers
async def test_passwords_stay_secret_when_the_cluster_is_prepared_and_cloned(
    open_directory: Path, postgres_bin: Path, run_as: RunAs | None
) -> None:
    """No password reaches the server's output, its configuration or a representation, whatever it logs."""
    async with running_nodes(open_directory, postgres_bin, run_as, "n1", "n2") as (one, two):
        await one.server.init_db(timeout_ms=PATIENCE_MS)
        loud = {"log_statement": "all", "log_min_duration_statement": "0"}
        await one.server.start("primary", None, loud, armed_until_ms=None)
        await one.until(lambda probe: not probe.in_recovery)
        await one.server.prepare_cluster()
        await one.server.prepare_cluster()
        await two.become_standby_of(one)
        texts = [one.output(), repr(one.settings), str(one.settings.superuser)]
        texts += [path.read_text() for path in two.settings.data_dir.glob("*.conf")]
        for login in (one.settings.superuser, one.settings.replication, one.settings.rewind):
            assert not any(login.password in text for text in texts)
        assert not (one.settings.private_dir / "initdb-password").exists()
        assert "SCRAM-SHA-256$" not in one.output()


@pytest.mark.servers
async def test_data_directory_says_its_condition_when_it_is_made_used_and_cleared(
    open_directory: Path, postgres_bin: Path, run_as: RunAs | None
) -> None:
    """Absent, a cluster in each state, unfinished, unreadable, empty: each is told apart."""
    async with running_nodes(open_directory, postgres_bin, run_as, "n1") as (node,):
        read = node.server.read_data_directory
        assert (await read()).condition == "absent"
        await node.server.init_db(timeout_ms=PATIENCE_MS)
        made = await read()
        assert (made.condition, made.control_state, made.timeline) == ("cluster", "shut down", 1)
        assert made.data_checksums
        assert made.checkpoint_lsn > 0
        mark(node.settings, "rewinding")
        assert (await read()).condition == "unfinished_rewind"
        assert (await read()).system_id == made.system_id
        unmark(node.settings, "rewinding")
        node.settings.data_dir.chmod(0o755)
        assert "0755" in (await read()).detail
        node.settings.data_dir.chmod(0o700)
        (node.settings.data_dir / "global" / "pg_control").write_bytes(b"\0" * 8192)
        torn = await read()
        assert torn.condition == "unreadable"
        assert "CRC" in torn.detail
        mark(node.settings, "cloning")
        cleared = await node.server.clear_data_directory(keep_aside=False)
        assert cleared.kept_at is None
        assert (await read()).condition == "empty"
        (node.settings.data_dir / "letter").write_text("mine")
        assert "letter" in (await read()).detail


@pytest.mark.servers
async def test_clearing_keeps_only_the_newest_aside_when_asked_twice(
    open_directory: Path, postgres_bin: Path, run_as: RunAs | None
) -> None:
    """The content is kept under a new name, and the one kept before makes room for it."""
    async with running_nodes(open_directory, postgres_bin, run_as, "n1") as (node,):
        await node.server.init_db(timeout_ms=PATIENCE_MS)
        first = await node.server.clear_data_directory(keep_aside=True)
        assert first.kept_at
        assert (first.kept_at / "PG_VERSION").exists()
        await node.server.init_db(timeout_ms=PATIENCE_MS)
        second = await node.server.clear_data_directory(keep_aside=True)
        assert second.kept_at
        assert second.kept_at != first.kept_at
        assert (second.kept_at / "PG_VERSION").exists()
        assert not first.kept_at.exists()
        found = node.settings.data_dir.stat()
        assert (found.st_uid, found.st_mode & 0o777) == (node.settings.owner_uid, 0o700)


@pytest.mark.servers
async def test_clearing_empties_a_mount_point_when_it_cannot_be_renamed(
    open_directory: Path, postgres_bin: Path, run_as: RunAs | None
) -> None:
    """As a container's volume is one: there is no room beside it, and the base backup must go into it."""
    async with running_nodes(open_directory, postgres_bin, run_as, "n1") as (node,):
        directory = node.settings.data_dir
        directory.mkdir()
        if (await anyio.run_process(["mount", "-t", "tmpfs", "none", str(directory)], check=False)).returncode:
            pytest.skip("this user may not mount anything")
        try:
            await node.server.init_db(timeout_ms=PATIENCE_MS)
            assert (await node.server.clear_data_directory(keep_aside=True)).kept_at is None
            assert (await node.server.read_data_directory()).condition == "empty"
            assert not list(directory.parent.glob("*.aside.*"))
        finally:
            await anyio.run_process(["umount", str(directory)])


@pytest.mark.servers
async def test_clearing_refuses_when_a_server_runs_or_there_are_tablespaces(
    open_directory: Path, postgres_bin: Path, run_as: RunAs | None
) -> None:
    """Nothing is removed from under a running server, and no tablespace is forgotten."""
    async with running_nodes(open_directory, postgres_bin, run_as, "n1") as (node,):
        await node.become_first_primary()
        with pytest.raises(PostgresError, match="a server runs"):
            await node.server.clear_data_directory(keep_aside=False)
        await node.stop()
        (node.settings.data_dir / "pg_tblspc" / "16384").symlink_to("/nowhere")
        with pytest.raises(PostgresError, match="tablespaces"):
            await node.server.clear_data_directory(keep_aside=True)
        assert (await node.server.read_data_directory()).condition == "cluster"


@pytest.mark.servers
async def test_primary_is_killed_when_its_deadline_passes(
    open_directory: Path, postgres_bin: Path, run_as: RunAs | None
) -> None:
    """The deadline given at the start reaches the fence, and the crashed directory says what it was."""
    async with running_nodes(open_directory, postgres_bin, run_as, "n1") as (node,):
        await node.server.init_db(timeout_ms=PATIENCE_MS)
        until_ms = now_ms() + PATIENCE_MS
        pid = await node.server.start("primary", None, {}, armed_until_ms=until_ms)
        assert (await node.fence.status()).armed_until_ms == until_ms
        await node.until(lambda probe: not probe.in_recovery)
        assert running_postmaster(node.settings.data_dir) == pid
        await node.stop("kill")
        assert running_postmaster(node.settings.data_dir) is None
        assert (await node.server.read_data_directory()).control_state == "in production"
        with pytest.raises(PostgresError, match="no server runs"):
            await node.server.follow(None, {})


@pytest.mark.servers
async def test_promotion_does_nothing_when_the_server_is_a_primary_already(
    open_directory: Path, postgres_bin: Path, run_as: RunAs | None
) -> None:
    """Asked twice, it promotes once; and a checkpoint brings the control file up to date."""
    async with running_nodes(open_directory, postgres_bin, run_as, "n1", "n2") as (one, two):
        await one.become_first_primary()
        await two.become_standby_of(one)
        await two.promote()
        await two.server.promote()
        assert not (two.settings.data_dir / "promote").exists()
        await two.server.checkpoint()
        assert (await two.server.read_data_directory()).timeline == 2
        assert (await two.prober.probe(2000)).timeline == 2


@pytest.mark.servers
async def test_standby_ends_when_it_is_promoted_past_the_agent(
    open_directory: Path, any_bin: Path, run_as: RunAs | None
) -> None:
    """Whoever promotes it by hand gets no second primary; the agent's own promotion goes through, once asked for."""
    async with running_nodes(open_directory, any_bin, run_as, "n1", "n2") as (one, two):
        await one.become_first_primary()
        await two.become_standby_of(one)
        await two.execute("SELECT pg_promote(wait => false)")
        await until(two.has_ended)
        assert "matriarch: this promotion was not ordered" in two.output()
        assert "database system is ready to accept connections" not in two.output()
        await two.server.start("standby", None, {}, armed_until_ms=None)
        assert (await two.until(lambda probe: probe.in_recovery)).in_recovery
        assert not (await two.promote()).in_recovery


@pytest.mark.servers
async def test_promotion_leaves_out_timelines_that_others_may_have_begun(
    open_directory: Path, any_bin: Path, run_as: RunAs | None
) -> None:
    """Standbys follow over the gap, start again with its files, and a promotion that never came leaves none."""
    async with running_nodes(open_directory, any_bin, run_as, "n1", "n2", "n3") as (one, two, three):
        await one.become_first_primary()
        await two.become_standby_of(one)
        await three.become_standby_of(one)
        await one.stop()
        keep_timelines_free(three.settings, 4)
        await three.stop("kill")
        await three.server.start("standby", None, {}, armed_until_ms=None)
        assert (await three.until(lambda probe: probe.in_recovery)).timeline == 1
        assert newest_timeline(three.settings) == 1
        await two.server.promote(4)
        assert (await two.until(lambda probe: not probe.in_recovery)).timeline == 4
        await three.server.follow(two.upstream, {})
        await three.until_streaming(timeline=4)
        await three.stop("kill")
        await three.server.start("standby", two.upstream, {}, armed_until_ms=None)
        await three.until_streaming(timeline=4)
        await one.server.start("standby", two.upstream, {}, armed_until_ms=None)
        await one.until_streaming(timeline=4)
        history = await read_leader_history(three.settings, two.upstream, PATIENCE_MS)
        assert [switch.timeline for switch in history.switches] == [1]


@pytest.mark.servers
async def test_permit_ends_when_the_standby_is_pointed_elsewhere(
    open_directory: Path, postgres_bin: Path, run_as: RunAs | None
) -> None:
    """What was once allowed is not allowed for ever; and a command that was configured runs after the permit's."""
    async with running_nodes(open_directory, postgres_bin, run_as, "n1", "n2") as (one, two):
        await one.become_first_primary()
        await two.become_standby_of(one)
        two.settings.promotion_permit.touch()
        trace = two.settings.private_dir / "trace"
        await two.server.follow(one.upstream, {"recovery_end_command": f"echo '100%%' > {trace}"})
        assert not two.settings.promotion_permit.exists()
        await two.promote()
        assert trace.read_text() == "100%\n"


@pytest.mark.servers
async def test_standby_ends_when_it_is_promoted_by_hand_and_its_own_command_is_cut(
    open_directory: Path, run_as: RunAs | None
) -> None:
    """PostgreSQL 14 and 15 cut a command at 1,024 bytes: what is left of the operator's is no command any more."""
    older = next((path for version in (14, 15) if (path := DEBIAN / str(version) / "bin").exists()), None)
    if older is None:
        pytest.skip("needs PostgreSQL 14 or 15 (apt-get install postgresql-15)")
    async with running_nodes(open_directory, older, run_as, "n1", "n2") as (one, two):
        await one.become_first_primary()
        await two.become_standby_of(one)
        await two.server.follow(one.upstream, {"recovery_end_command": f"echo '{'x' * 2_000}'"})
        await two.until_streaming()
        with contextlib.suppress(psycopg.OperationalError, MatriarchError):
            await two.execute("SELECT pg_promote(wait => false)")
        await until(two.has_ended)
        assert REFUSAL in two.output()


@pytest.mark.servers
async def test_standby_starts_when_the_cluster_lowers_what_its_wal_needs(
    open_directory: Path, postgres_bin: Path, run_as: RunAs | None
) -> None:
    """max_connections below the primary's would stop replay; the standby keeps the higher one and says so."""
    async with running_nodes(open_directory, postgres_bin, run_as, "n1", "n2") as (one, two):
        await one.server.init_db(timeout_ms=PATIENCE_MS)
        await one.server.start("primary", None, {"max_connections": 120}, armed_until_ms=None)
        await one.until(lambda probe: not probe.in_recovery)
        await one.server.prepare_cluster()
        await two.become_standby_of(one)
        await two.server.follow(one.upstream, {"max_connections": 50})
        assert await two.execute("SHOW max_connections") == [("120",)]
        probe = await two.until(lambda probe: "max_connections" in probe.pending_restart)
        assert probe.pending_restart == ("max_connections",)


async def test_initdb_refuses_when_the_directory_is_not_empty(
    open_directory: Path, postgres_bin: Path, run_as: RunAs | None
) -> None:
    """What lies there is not touched, and no mark is left."""
    async with running_nodes(open_directory, postgres_bin, run_as, "n1") as (node,):
        node.settings.data_dir.mkdir()
        (node.settings.data_dir / "letter").write_text("mine")
        with pytest.raises(PostgresError, match="not empty"):
            await node.server.init_db(timeout_ms=PATIENCE_MS)
        assert (node.settings.data_dir / "letter").read_text() == "mine"
        assert not (node.settings.state_dir / "initializing").exists()


def test_control_file_is_read_when_values_hold_colons() -> None:
    """Only the first colon ends a label; lines without one are nothing."""
    assert parse_control_file("nothing\npg_control last modified:  Mon 1 10:00:00\n") == {
        "pg_control last modified": "Mon 1 10:00:00"
    }
