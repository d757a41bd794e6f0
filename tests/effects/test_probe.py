"""The look at the running server: what it tells, and how it fails."""

import os
import signal
from pathlib import Path

import pytest

from effects.clock import now_ms
from effects.embedded import postgres_bin_dir, readable_copy
from effects.errors import PostgresError, ServerMute, ServerStarting
from effects.probe import Prober, QueryFailed, parse_upstream
from effects.programs import RunAs
from effects.sql import _sqlstate, local_connection
from tests.effects.servers import PATIENCE_MS, measured, running_nodes

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["18", "16"])
def any_bin(request: pytest.FixtureRequest, open_directory: Path, run_as: RunAs | None) -> Path:
    """PostgreSQL's programs, once of each version that the wheel carries."""
    return readable_copy(postgres_bin_dir(str(request.param)), open_directory / "postgres", run_as)


@pytest.mark.servers
async def test_probe_tells_both_roles_when_a_standby_streams(
    open_directory: Path, any_bin: Path, run_as: RunAs | None
) -> None:
    """Every field of the fact is filled on the side where it has a meaning, and is empty on the other."""
    async with running_nodes(open_directory, any_bin, run_as, "n1", "n2") as (one, two):
        await one.become_first_primary()
        await two.become_standby_of(one)
        await one.execute("CREATE TABLE t AS SELECT 1 AS id")
        reached_lsn = (await one.prober.probe(2000)).flushed_lsn
        standby = await two.until_replayed(reached_lsn)
        primary = await one.until(lambda probe: probe.standbys[0].replay_lsn >= reached_lsn)
        row = primary.standbys[0]
        assert (row.application_name, row.state, row.sync_state) == ("n2", "streaming", "async")
        assert (row.usename, row.client_addr) == (one.settings.replication.username, "127.0.0.1")
        assert (primary.received_lsn, primary.replayed_lsn, primary.receiver_status) == (0, 0, None)
        assert (primary.upstream_host, standby.upstream_host) == (None, "127.0.0.1")
        assert standby.in_recovery
        assert (standby.flushed_lsn, standby.receiver_status, standby.timeline) == (0, "streaming", 1)
        assert standby.position_lsn >= reached_lsn <= primary.position_lsn
        assert standby.replayed_at
        assert primary.postmaster_started_at.endswith("+00:00")
        assert primary.server_version // 10000 == int((one.settings.data_dir / "PG_VERSION").read_text())


@pytest.mark.servers
async def test_probe_is_cheap_when_the_server_is_idle(
    open_directory: Path, postgres_bin: Path, run_as: RunAs | None
) -> None:
    """One connection serves all probes."""
    async with running_nodes(open_directory, postgres_bin, run_as, "n1") as (node,):
        await node.become_first_primary()
        began = await node.execute("SELECT pid FROM pg_stat_activity WHERE application_name = 'matriarch' ORDER BY 1")
        with measured("100 probes"):
            for _ in range(100):
                await node.prober.probe(2000)
        ended = await node.execute("SELECT pid FROM pg_stat_activity WHERE application_name = 'matriarch' ORDER BY 1")
        assert ended[0] == began[0]


@pytest.mark.servers
async def test_standby_keeps_its_timeline_when_its_receiver_goes(
    open_directory: Path, postgres_bin: Path, run_as: RunAs | None
) -> None:
    """The timeline that was received still holds although the control file does not tell of it yet."""
    async with running_nodes(open_directory, postgres_bin, run_as, "n1", "n2", "n3") as (one, two, three):
        await one.become_first_primary()
        await two.become_standby_of(one)
        await three.become_standby_of(one)
        await one.stop()
        await two.promote()
        await three.server.follow(two.upstream, {})
        await three.until_streaming(timeline=2)
        await three.server.follow(None, {})
        probe = await three.until(lambda probe: probe.receiver_status is None)
        assert (probe.timeline, probe.upstream_host, probe.upstream_port) == (2, None, None)
        assert probe.received_lsn > 0


@pytest.mark.servers
async def test_standby_knows_its_timeline_when_it_crashed_before_the_control_file_told(
    open_directory: Path, any_bin: Path, run_as: RunAs | None
) -> None:
    """It has replayed WAL of the new timeline, streams from nobody, and its last restartpoint was on the old one."""
    async with running_nodes(open_directory, any_bin, run_as, "n1", "n2", "n3") as (one, two, three):
        await one.become_first_primary()
        await two.become_standby_of(one)
        await three.become_standby_of(one)
        await one.stop()
        await two.promote()
        await three.server.follow(two.upstream, {})
        await three.until_streaming(timeline=2)
        written_lsn = (await two.prober.probe(2000)).flushed_lsn
        await three.until_replayed(written_lsn)
        await three.stop("kill")
        await three.server.start("standby", None, {}, armed_until_ms=None)
        probe = await three.until(lambda probe: probe.replayed_lsn >= written_lsn)
        rows = await three.execute(
            "SELECT greatest(c.timeline_id, r.min_recovery_end_timeline)"
            " FROM pg_control_checkpoint() c, pg_control_recovery() r"
        )
        assert (rows, probe.timeline) == ([(1,)], 2)


@pytest.mark.servers
async def test_probe_connects_again_when_the_server_was_restarted(
    open_directory: Path, postgres_bin: Path, run_as: RunAs | None
) -> None:
    """A restart between two probes costs no probe; a server that is down is an error until it is up."""
    async with running_nodes(open_directory, postgres_bin, run_as, "n1") as (node,):
        first = await node.become_first_primary()
        await node.stop()
        with pytest.raises(PostgresError, match="cannot connect"):
            await node.prober.probe(2000)
        await node.server.start("primary", None, {}, armed_until_ms=None)
        patient = Prober(node.settings)
        await node.until(lambda probe: probe.postmaster_started_at != first.postmaster_started_at)
        await patient.probe(2000)
        await node.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE query LIKE '%walfile%' AND pid <> pg_backend_pid()"
        )
        assert not (await patient.probe(2000)).in_recovery
        patient.close()


@pytest.mark.servers
async def test_probe_ends_at_its_deadline_when_the_server_is_frozen(
    open_directory: Path, postgres_bin: Path, run_as: RunAs | None
) -> None:
    """A stopped backend, and a stopped postmaster, cost a probe its deadline and no more; after it all is as before."""
    async with running_nodes(open_directory, postgres_bin, run_as, "n1") as (node,):
        await node.become_first_primary()
        rows = await node.execute("SELECT pid FROM pg_stat_activity WHERE query LIKE '%walfile%' AND state = 'idle'")
        backend_pid = int(str(rows[0][0]))
        postmaster_pid = (await node.fence.status()).pid
        assert postmaster_pid
        os.kill(backend_pid, signal.SIGSTOP)
        os.kill(postmaster_pid, signal.SIGSTOP)
        try:
            for _ in range(2):
                began_ms = now_ms()
                with pytest.raises(ServerMute, match="did not answer within 200 ms"):
                    await node.prober.probe(200)
                print(f"a probe of a frozen server: {now_ms() - began_ms} ms")
        finally:
            os.kill(backend_pid, signal.SIGCONT)
            os.kill(postmaster_pid, signal.SIGCONT)
        await node.prober.probe(PATIENCE_MS)


@pytest.mark.servers
async def test_probe_tells_a_slow_server_from_a_silent_one_when_an_answer_comes_late(
    open_directory: Path, postgres_bin: Path, run_as: RunAs | None
) -> None:
    """The backend that was asked first answers after its time, and the postmaster no fresh connection: it is alive."""
    async with running_nodes(open_directory, postgres_bin, run_as, "n1") as (node,):
        await node.become_first_primary()
        rows = await node.execute("SELECT pid FROM pg_stat_activity WHERE query LIKE '%walfile%' AND state = 'idle'")
        backend_pid, postmaster_pid = int(str(rows[0][0])), (await node.fence.status()).pid
        assert postmaster_pid
        os.kill(backend_pid, signal.SIGSTOP)
        os.kill(postmaster_pid, signal.SIGSTOP)
        try:
            with pytest.raises(ServerMute):
                await node.prober.probe(200)
            os.kill(backend_pid, signal.SIGCONT)
            await _until_heard(node.prober)
            with pytest.raises(ServerMute):
                await node.prober.probe(200)
        finally:
            os.kill(postmaster_pid, signal.SIGCONT)
        await node.prober.probe(PATIENCE_MS)


async def _until_heard(prober: Prober) -> None:
    """Probe until it is told of a late answer rather than of silence."""
    deadline_ms = now_ms() + PATIENCE_MS
    while now_ms() < deadline_ms:
        try:
            await prober.probe(200)
        except ServerMute:
            continue
        except PostgresError as error:
            if "late" in str(error):
                return
            raise
    raise AssertionError("nothing was ever heard")


@pytest.mark.servers
async def test_probe_is_answered_when_a_catalog_is_locked(
    open_directory: Path, postgres_bin: Path, run_as: RunAs | None
) -> None:
    """No session can begin; the one that has begun answers, if only with an error, and is kept."""
    async with running_nodes(open_directory, postgres_bin, run_as, "n1") as (node,):
        await node.become_first_primary()
        began = await node.execute("SELECT pid FROM pg_stat_activity WHERE query LIKE '%walfile%'")
        async with local_connection(node.settings) as holder, holder.transaction():
            await holder.execute("LOCK TABLE pg_catalog.pg_authid, pg_catalog.pg_stat_activity")
            for _ in range(2):
                with pytest.raises(QueryFailed, match="57014"):
                    await node.prober.probe(PATIENCE_MS)
        await node.prober.probe(PATIENCE_MS)
        ended = await node.execute("SELECT pid FROM pg_stat_activity WHERE query LIKE '%walfile%'")
        assert set(ended) & set(began)


@pytest.mark.servers
async def test_probe_says_starting_when_the_server_replays_before_it_is_consistent(
    open_directory: Path, postgres_bin: Path, run_as: RunAs | None
) -> None:
    """A server that is up and takes no connections is told from one that is down, whatever language it speaks."""
    async with running_nodes(open_directory, postgres_bin, run_as, "n1", "n2") as (one, two):
        await one.become_first_primary()
        await two.become_standby_of(one)
        await two.stop()
        (two.settings.data_dir / "backup_label").write_text(_label_beyond_its_wal(two.settings.data_dir))
        await two.server.start("standby", None, {}, armed_until_ms=None)
        error = await _first_starting(two.prober)
        assert "cannot connect to the own server" in str(error)


def _label_beyond_its_wal(data_dir: Path) -> str:
    """A backup label that names WAL which is not there, so that the server waits for it for ever."""
    return (
        "START WAL LOCATION: 0/90000028 (file 000000010000000000000090)\nCHECKPOINT LOCATION: 0/90000060\n"
        "BACKUP METHOD: streamed\nBACKUP FROM: primary\nSTART TIME: 2026-01-01 00:00:00 UTC\n"
        f"LABEL: {data_dir.name}\nSTART TIMELINE: 1\n"
    )


async def _first_starting(prober: Prober) -> ServerStarting:
    deadline_ms = now_ms() + PATIENCE_MS
    while now_ms() < deadline_ms:
        try:
            await prober.probe(2000)
        except ServerStarting as error:
            return error
        except PostgresError:
            continue
    raise AssertionError("the server never said that it starts")


def test_upstream_is_read_when_the_connection_string_is_whole_odd_or_broken() -> None:
    """Host and port where they are; None for what is missing or cannot be read."""
    assert parse_upstream("host=10.0.0.1 port=5433 user='a b'") == ("10.0.0.1", 5433)
    assert parse_upstream("postgresql://u@h:1/x") == ("h", 1)
    assert parse_upstream("user=x") == (None, None)
    assert parse_upstream("host='unfinished") == (None, None)
    assert parse_upstream("") == (None, None)


def test_sqlstate_is_read_when_the_server_refuses_in_another_language() -> None:
    """Only the code of an ErrorResponse counts."""
    assert _sqlstate(b"E\0\0\0\x30SFATAL\0VFATAL\0C57P03\0MDatenbanksystem startet\0\0") == "57P03"
    assert _sqlstate(b"R\0\0\0\x08\0\0\0\0") is None
    assert _sqlstate(b"") is None


@pytest.mark.servers
async def test_standby_says_that_it_is_replaying_when_its_own_disk_holds_more(
    open_directory: Path, any_bin: Path, run_as: RunAs | None
) -> None:
    """After a crash it answers long before it has read all WAL that it had acknowledged."""
    async with running_nodes(open_directory, any_bin, run_as, "n1", "n2") as (one, two):
        await one.become_first_primary()
        streaming = await two.become_standby_of(one)
        await one.execute("CREATE TABLE t AS SELECT 1 AS id")
        flushed_lsn = (await one.prober.probe(2000)).flushed_lsn
        await two.until_replayed(flushed_lsn)
        await two.stop("kill")
        await two.server.start("standby", None, {"recovery_min_apply_delay": "1h"}, armed_until_ms=None)
        held = await two.until(lambda probe: probe.in_recovery)
        await two.stop("kill")
        await two.server.start("standby", None, {}, armed_until_ms=None)
        ended = await two.until(lambda probe: not probe.is_replaying)
        assert not streaming.is_replaying
        assert (held.is_replaying, held.position_lsn < flushed_lsn) == (True, True)
        assert ended.position_lsn >= flushed_lsn
