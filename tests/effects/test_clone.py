"""Base backups of a real server: their progress, and what is left of them when they are cut short."""

from functools import partial
from pathlib import Path

import anyio
import pytest

from effects.clone import CloneProgress, basebackup_arguments, clone, parse_line
from effects.errors import ConfigError, PostgresError, ProgramFailed
from effects.programs import RunAs
from tests.effects.servers import PATIENCE_MS, Node, ignore_progress, running_nodes, until

pytestmark = pytest.mark.anyio


def test_progress_is_read_when_pg_basebackup_prints_it() -> None:
    """Bytes from the counting lines, the phase from the wordy ones, and nothing from any other."""
    begun = parse_line("pg_basebackup: initiating base backup, waiting for checkpoint to complete", CloneProgress())
    assert begun.phase == "checkpoint"
    counted = parse_line(" 1024/23456 kB (4%), 0/1 tablespace (...me/base/1/2657)", begun)
    assert counted == CloneProgress(bytes_done=1024 * 1024, bytes_total=23456 * 1024, phase="copying")
    synced = parse_line("pg_basebackup: syncing data to disk ...", counted)
    assert (synced.phase, synced.bytes_done) == ("syncing", 1024 * 1024)
    assert parse_line("anything else", synced) is synced


@pytest.mark.servers
async def test_clone_tells_its_progress_when_it_runs_to_its_end(
    open_directory: Path, postgres_bin: Path, run_as: RunAs | None
) -> None:
    """Progress only grows and ends complete; the directory is one of a standby, and no mark is left."""
    async with running_nodes(open_directory, postgres_bin, run_as, "n1", "n2") as (one, two):
        await one.become_first_primary()
        seen: list[CloneProgress] = []
        await clone(two.settings, one.upstream, seen.append, timeout_ms=PATIENCE_MS)
        assert [progress.bytes_done for progress in seen] == sorted(progress.bytes_done for progress in seen)
        assert seen[-1].bytes_done >= seen[-1].bytes_total > 0
        assert seen[-1].phase == "syncing"
        assert (two.settings.data_dir / "standby.signal").exists()
        assert (await two.server.read_data_directory()).condition == "cluster"
        with pytest.raises(PostgresError, match="not empty"):
            await clone(two.settings, one.upstream, ignore_progress, timeout_ms=PATIENCE_MS)


@pytest.mark.servers
async def test_clone_leaves_its_mark_when_it_is_cancelled(
    open_directory: Path, postgres_bin: Path, run_as: RunAs | None
) -> None:
    """A cancelled clone is known as unfinished, can be cleared, and can be begun again."""
    async with running_nodes(open_directory, postgres_bin, run_as, "n1", "n2") as (one, two):
        await one.become_first_primary()
        await _clone_until_copying(two, one)
        left = await two.server.read_data_directory()
        assert left.condition == "unfinished_clone"
        await two.server.clear_data_directory(keep_aside=False)
        assert (await two.server.read_data_directory()).condition == "empty"
        await two.become_standby_of(one)


async def _clone_until_copying(node: Node, source: Node) -> None:
    """Begins a clone that is slow enough to be caught, and cancels it when its first files are there."""
    await source.execute("CREATE TABLE wide AS SELECT repeat('x', 1000) AS filler FROM generate_series(1, 30000)")

    async def has_files() -> bool:
        return (node.settings.data_dir / "base").exists()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(partial(clone, node.settings, source.upstream, ignore_progress, timeout_ms=PATIENCE_MS))
        await until(has_files)
        tasks.cancel_scope.cancel()
    assert not (node.settings.data_dir / "standby.signal").exists()


@pytest.mark.servers
async def test_clone_names_the_reason_when_the_source_is_not_there(
    open_directory: Path, postgres_bin: Path, run_as: RunAs | None
) -> None:
    """The error carries the program, its status and its last line, and no password."""
    async with running_nodes(open_directory, postgres_bin, run_as, "n1", "n2") as (one, two):
        with pytest.raises(ProgramFailed, match=r"pg_basebackup ended with status 1: .*refused") as caught:
            await clone(two.settings, one.upstream, ignore_progress, timeout_ms=PATIENCE_MS)
        assert two.settings.replication.password not in str(caught.value) + caught.value.stderr
        assert (await two.server.read_data_directory()).condition in ("empty", "absent")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (None, ()),
        ({"max-rate": "1M", "no-estimate-size": None}, ("--max-rate=1M", "--no-estimate-size")),
        ([{"max-rate": "100M"}, "no-slot", {"no-verify-checksums": False}], ("--max-rate=100M", "--no-slot")),
    ],
)
def test_options_of_pg_basebackup_are_taken_over_when_they_are_harmless(
    options: object, words: tuple[str, ...]
) -> None:
    """As a map, or as a list of words and maps."""
    assert basebackup_arguments(options) == words


@pytest.mark.parametrize("options", [{"pgdata": "/"}, ["--wal-method=none"], [{"format": "tar"}, "verbose"]])
def test_options_of_pg_basebackup_are_refused_when_the_agent_decides_them(options: object) -> None:
    """One line an option."""
    with pytest.raises(ConfigError, match=r"postgresql\.basebackup\."):
        basebackup_arguments(options)
