"""pg_rewind between real servers: a diverged primary comes back, and a source that cannot be believed is not."""

from pathlib import Path

import anyio
import pytest

from effects.controldata import mark
from effects.embedded import postgres_bin_dir, readable_copy
from effects.errors import PostgresError, ProgramFailed
from effects.programs import RunAs
from effects.rewind import RewindProgress, parse_line, rewind, wait_for_checkpoint
from tests.effects.servers import PATIENCE_MS, Node, ignore_progress, measured, running_nodes

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["18", "16"])
def any_bin(request: pytest.FixtureRequest, open_directory: Path, run_as: RunAs | None) -> Path:
    """PostgreSQL's programs, once of each version that the wheel carries."""
    return readable_copy(postgres_bin_dir(str(request.param)), open_directory / "postgres", run_as)


def test_progress_is_read_when_pg_rewind_prints_it() -> None:
    """Only what says that the target is being changed counts as copying."""
    before = parse_line("pg_rewind: servers diverged at WAL location 0/3000060 on timeline 1", RewindProgress())
    assert not before.is_copying
    begun = parse_line("pg_rewind: need to copy 52 MB (total source directory size is 70 MB)", before)
    assert begun.is_copying
    assert parse_line(" 53535/53535 kB (100%) copied", begun).bytes_done == 53535 * 1024


async def _diverge(old: Node, new: Node) -> None:
    """`old` writes what `new` has never received, crashes, and `new` is the primary of timeline 2."""
    await new.server.follow(None, {})
    await new.until(lambda probe: probe.receiver_status is None)
    await old.execute("CREATE TABLE lost AS SELECT generate_series(1, 1000) AS id")
    await old.stop("kill")
    await new.promote()
    await new.execute("CREATE TABLE kept AS SELECT 1 AS id")


@pytest.mark.servers
async def test_old_primary_streams_again_when_it_was_rewound(
    open_directory: Path, any_bin: Path, run_as: RunAs | None
) -> None:
    """What only the crashed primary had is gone, what the new one wrote is there, and its own settings are back."""
    async with running_nodes(open_directory, any_bin, run_as, "n1", "n2") as (one, two):
        await one.become_first_primary()
        await two.become_standby_of(one)
        await _diverge(one, two)
        await two.server.checkpoint()
        seen: list[RewindProgress] = []
        with measured("rewind of a crashed primary"):
            rewound = await rewind(one.settings, two.upstream, 2, seen.append, parameters={}, timeout_ms=PATIENCE_MS)
        assert rewound.needed
        assert rewound.bytes_copied == seen[-1].bytes_total > 0
        assert (await one.server.read_data_directory()).condition == "cluster"
        assert f"port = '{one.settings.port}'" in (one.settings.data_dir / "postgresql.conf").read_text()
        await one.server.start("standby", two.upstream, {}, armed_until_ms=None)
        await one.until_streaming(timeline=2)
        await one.until_replayed((await two.prober.probe(2000)).flushed_lsn)
        assert await one.execute("SELECT to_regclass('lost'), (SELECT count(*) FROM kept)") == [(None, 1)]


@pytest.mark.servers
async def test_standby_streams_again_when_it_was_ahead_of_the_new_primary(
    open_directory: Path, postgres_bin: Path, run_as: RunAs | None
) -> None:
    """A standby that crashed with WAL that the promoted one never had is recovered, rewound and follows."""
    async with running_nodes(open_directory, postgres_bin, run_as, "n1", "n2", "n3") as (one, two, three):
        await one.become_first_primary()
        await two.become_standby_of(one)
        await three.become_standby_of(one)
        await two.server.follow(None, {})
        await two.until(lambda probe: probe.receiver_status is None)
        await one.execute("CREATE TABLE lost AS SELECT generate_series(1, 1000) AS id")
        await three.until_replayed((await one.prober.probe(2000)).flushed_lsn)
        await three.stop("kill")
        await one.stop("kill")
        await two.promote()
        await two.server.checkpoint()
        rewound = await rewind(three.settings, two.upstream, 2, ignore_progress, parameters={}, timeout_ms=PATIENCE_MS)
        assert rewound.needed
        await three.server.start("standby", two.upstream, {}, armed_until_ms=None)
        await three.until_streaming(timeline=2)


@pytest.mark.servers
async def test_rewind_does_nothing_when_nothing_diverged(
    open_directory: Path, postgres_bin: Path, run_as: RunAs | None
) -> None:
    """A former primary that stopped cleanly needs no rewind, and is a standby's directory all the same."""
    async with running_nodes(open_directory, postgres_bin, run_as, "n1", "n2") as (one, two):
        await one.become_first_primary()
        await two.become_standby_of(one)
        await one.stop("fast")
        await two.promote()
        await two.server.checkpoint()
        rewound = await rewind(one.settings, two.upstream, 2, ignore_progress, parameters={}, timeout_ms=PATIENCE_MS)
        assert (rewound.needed, rewound.bytes_copied) == (False, 0)
        await one.server.start("standby", two.upstream, {}, armed_until_ms=None)
        await one.until_streaming(timeline=2)


@pytest.mark.servers
async def test_source_is_not_believed_when_it_has_not_checkpointed(
    open_directory: Path, postgres_bin: Path, run_as: RunAs | None
) -> None:
    """A timeline that the source's control file does not tell of is waited for, then refused; nothing is touched."""
    async with running_nodes(open_directory, postgres_bin, run_as, "n1", "n2") as (one, two):
        await one.become_first_primary()
        with pytest.raises(PostgresError, match=r"has not checkpointed timeline 2 .* says 1"):
            await rewind(two.settings, one.upstream, 2, ignore_progress, parameters={}, timeout_ms=300)
        assert not (two.settings.state_dir / "rewinding").exists()
        await wait_for_checkpoint(two.settings, one.upstream, 1, PATIENCE_MS)


@pytest.mark.servers
async def test_rewind_leaves_no_mark_when_it_failed_before_it_changed_anything(
    open_directory: Path, postgres_bin: Path, run_as: RunAs | None
) -> None:
    """A directory of another cluster is refused by pg_rewind itself, and stays what it was."""
    async with running_nodes(open_directory, postgres_bin, run_as, "n1", "n2") as (one, two):
        await one.become_first_primary()
        await two.server.init_db(timeout_ms=PATIENCE_MS)
        before = await two.server.read_data_directory()
        with pytest.raises(ProgramFailed, match=r"pg_rewind ended with status 1: .*different systems"):
            await rewind(two.settings, one.upstream, 1, ignore_progress, parameters={}, timeout_ms=PATIENCE_MS)
        assert await two.server.read_data_directory() == before


@pytest.mark.servers
async def test_rewind_leaves_its_mark_when_it_is_cut_short(
    open_directory: Path, postgres_bin: Path, run_as: RunAs | None
) -> None:
    """Once pg_rewind may have changed a file, the directory is unfinished until a rewind or a clone is complete."""
    async with running_nodes(open_directory, postgres_bin, run_as, "n1", "n2") as (one, two):
        await one.become_first_primary()
        await two.become_standby_of(one)
        await _diverge(one, two)
        await two.server.checkpoint()
        with anyio.CancelScope() as scope:

            def cut_short(progress: RewindProgress) -> None:
                if progress.is_copying:
                    scope.cancel()

            await rewind(one.settings, two.upstream, 2, cut_short, parameters={}, timeout_ms=PATIENCE_MS)
        assert scope.cancelled_caught
        assert (await one.server.read_data_directory()).condition == "unfinished_rewind"


@pytest.mark.servers
async def test_rewind_refuses_when_the_server_runs(
    open_directory: Path, postgres_bin: Path, run_as: RunAs | None
) -> None:
    """Nothing is rewound under a running server, and a mark left by an earlier attempt stays."""
    async with running_nodes(open_directory, postgres_bin, run_as, "n1") as (one,):
        await one.become_first_primary()
        mark(one.settings, "rewinding")
        with pytest.raises(PostgresError, match="must be stopped"):
            await rewind(one.settings, one.upstream, 1, ignore_progress, parameters={}, timeout_ms=PATIENCE_MS)
        assert (await one.server.read_data_directory()).condition == "unfinished_rewind"
