"""The look at a server's disk: room, refused writes, and a program that does not answer."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest

from effects.board import Board, Published
from effects.disk import PROGRAM, Answer, DiskLooker, DiskSource, parse_answer
from effects.pulse import Pulse
from fsm.events import AnyEvent, DiskLooked, DiskSilent
from fsm.facts import Probe
from fsm.states import State
from fsm.view import Server, View
from tests.effects.servers import PATIENCE_MS

pytestmark = pytest.mark.anyio
SEGMENT = "000000010000000000000001"
LEADING = View(
    state=State.LEADER,
    server=Server(
        process="running",
        pid=1,
        probe=Probe(
            in_recovery=False, timeline=1, system_id="1", server_version=160004, postmaster_started_at="", flushed_lsn=7
        ),
    ),
)


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """Something like a data directory, with one WAL segment of a megabyte."""
    return make_data_dir(tmp_path / "data")


def make_data_dir(path: Path) -> Path:
    """As the fixture, anywhere."""
    (path / "pg_wal").mkdir(parents=True)
    with (path / "pg_wal" / SEGMENT).open("wb") as segment:
        segment.truncate(1 << 20)
    return path


@contextmanager
def small_tmpfs(path: Path) -> Iterator[Path]:
    """A disk of two megabytes."""
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("may not mount a file system")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def answers(data_dir: Path, *commands: str) -> list[Answer | None]:
    """What the program says to each command in turn."""
    words = [sys.executable, "-I", "-S", str(PROGRAM), str(data_dir), str(os.getuid()), str(os.getgid())]
    done = subprocess.run(words, input="".join(f"{c}\n" for c in commands), capture_output=True, text=True, check=True)
    return [parse_answer(line) for line in done.stdout.splitlines()]


def test_look_tells_the_room_and_leaves_nothing_behind_when_it_writes(data_dir: Path) -> None:
    """The block that is written lies in no file that anybody could see."""
    found = answers(data_dir, "look", "write", "rest", "write")
    assert [answer.failure for answer in found if answer] == ["", "", ""]
    assert all(answer and answer.segment_bytes == 1 << 20 and answer.data_free_bytes > 0 for answer in found)
    assert [entry.name for entry in data_dir.iterdir()] == ["pg_wal"]


def test_look_knows_nothing_when_there_is_no_data_directory(tmp_path: Path) -> None:
    """Which is neither full nor broken."""
    assert answers(tmp_path / "nowhere", "look", "write") == [None, None]


def test_look_says_full_when_no_block_can_be_written(tmp_path: Path) -> None:
    """For want of room, and no more once there is some."""
    with small_tmpfs(tmp_path / "disk") as disk:
        make_data_dir(disk / "data")
        with pytest.raises(OSError, match="No space left"):
            (disk / "filler").write_bytes(bytes(4 << 20))
        (full,) = answers(disk / "data", "write")
        (disk / "filler").unlink()
        (roomy,) = answers(disk / "data", "write")
    assert full is not None
    assert (full.data_free_bytes, full.failure, full.detail) == (0, "full", "No space left on device")
    assert roomy is not None
    assert roomy.failure == ""


def test_look_says_broken_when_the_disk_has_turned_read_only(tmp_path: Path) -> None:
    """As ext4 does after an I/O error."""
    with small_tmpfs(tmp_path / "disk") as disk:
        make_data_dir(disk / "data")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        (found,) = answers(disk / "data", "write")
    assert found is not None
    assert found.failure == "broken"


async def until(told: list[AnyEvent], kind: type[AnyEvent], count: int) -> None:
    """Wait until so many events of a kind were told."""
    with anyio.fail_after(PATIENCE_MS / 1000):
        while sum(isinstance(event, kind) for event in told) < count:  # noqa: ASYNC110 - another process
            await anyio.sleep(0.01)


async def test_source_tells_that_no_answer_comes_when_the_program_hangs(data_dir: Path) -> None:
    """Again and again, and what the program says once it goes on."""
    told: list[AnyEvent] = []
    board = Board()
    board.publish(Published(view=LEADING))
    looker = DiskLooker(data_dir, None)
    async with anyio.create_task_group() as tasks:
        pulse = Pulse()
        tasks.start_soon(pulse.run)
        tasks.start_soon(DiskSource(board, looker, told.append, pulse).run)
        await until(told, DiskLooked, 1)
        assert looker.pid is not None
        os.kill(looker.pid, signal.SIGSTOP)
        await until(told, DiskSilent, 2)
        os.kill(looker.pid, signal.SIGCONT)
        await until(told, DiskLooked, 2)
        tasks.cancel_scope.cancel()
    silent = [event for event in told if isinstance(event, DiskSilent)]
    assert silent[1].began_ms >= silent[0].at_ms
    assert looker.pid is None


async def test_source_starts_the_program_again_when_it_was_killed(data_dir: Path) -> None:
    """A program that is gone says nothing about the disk."""
    told: list[AnyEvent] = []
    board = Board()
    board.publish(Published(view=LEADING))
    looker = DiskLooker(data_dir, None)
    async with anyio.create_task_group() as tasks:
        pulse = Pulse()
        tasks.start_soon(pulse.run)
        tasks.start_soon(DiskSource(board, looker, told.append, pulse).run)
        await until(told, DiskLooked, 1)
        first = looker.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        with anyio.fail_after(PATIENCE_MS / 1000):
            while looker.pid in (None, first):  # noqa: ASYNC110 - another process
                await anyio.sleep(0.01)
        tasks.cancel_scope.cancel()
    assert not any(isinstance(event, DiskSilent) for event in told)


def test_pulse_tells_nothing_when_no_beat_was_late() -> None:
    """A loop that has just begun is not behind."""
    assert Pulse().worst_ms(0) < 1_000
