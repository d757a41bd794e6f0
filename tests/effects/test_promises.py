"""The promise on disk: there for the next agent, refused by a full or hanging disk, gone when it has ended."""

import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from effects.agent import Agent
from effects.errors import ConfigError, PromiseUnkept
from effects.lanes import Lane, Lanes
from effects.log import TransitionLog
from effects.promises import FILE_NAME, UNREADABLE_HOLDS_MS, Promises, read_promise
from fsm import effects as do
from fsm.events import AnyEvent, AnyResult, Done, Failed, PromiseKept, Succeeded, Unknown
from fsm.facts import KeptPromise
from fsm.machine import Issued
from tests.views import identity

pytestmark = pytest.mark.anyio
PATIENCE_S = 30
KEEP = do.KeepPromise(timeout_ms=PATIENCE_S * 1000, leader="n1", asked_at_ms=1_000, until_ms=31_000)
FORGET = do.ForgetPromise(timeout_ms=PATIENCE_S * 1000)


class HeldDisk:
    """os.fsync that hangs while it is held."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.hangs, self.released = threading.Event(), threading.Event()
        real = os.fsync

        def held(fd: int) -> None:
            self.hangs.set()
            self.released.wait(PATIENCE_S)
            real(fd)

        monkeypatch.setattr(os, "fsync", held)


@pytest.fixture
def held_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[HeldDisk]:
    """A disk that hangs until it is let go, at the end of the test at the latest."""
    disk = HeldDisk(monkeypatch)
    yield disk
    disk.released.set()


async def test_promise_is_found_by_the_next_agent_when_it_was_kept(tmp_path: Path) -> None:
    """Every field comes back, and only the agent's own user may read it."""
    promises = Promises(tmp_path, "boot-a")
    assert read_promise(tmp_path) is None
    assert await promises.keep(KEEP) == PromiseKept(leader="n1", asked_at_ms=1_000, until_ms=31_000)
    assert read_promise(tmp_path) == KeptPromise(leader="n1", boot="boot-a", asked_at_ms=1_000, until_ms=31_000)
    assert (tmp_path / FILE_NAME).stat().st_mode & 0o777 == 0o600


async def test_promise_is_gone_when_it_was_forgotten(tmp_path: Path) -> None:
    """And forgetting what is not there is no fault."""
    promises = Promises(tmp_path, "boot-a")
    await promises.keep(KEEP)
    assert await promises.forget(FORGET) == Done()
    assert read_promise(tmp_path) is None
    assert await promises.forget(FORGET) == Done()


async def test_rehearsal_leaves_nothing_when_it_went_well(tmp_path: Path) -> None:
    """And an earlier promise stays as it was."""
    promises = Promises(tmp_path, "boot-a")
    await promises.keep(KEEP)
    assert await promises.rehearse(do.TryPromise(timeout_ms=1_000)) == Done()
    left = await anyio.to_thread.run_sync(lambda: [path.name for path in tmp_path.iterdir()])
    assert left == [FILE_NAME]


@pytest.mark.parametrize("text", ["", "{", '{"leader":"n1"}', '{"leader":1,"boot":"b","asked_at_ms":1,"until_ms":2}'])
async def test_node_holds_back_when_the_promise_on_disk_is_damaged(tmp_path: Path, text: str) -> None:
    """What it said cannot be known, so it counts as one that was just given, to nobody."""
    (tmp_path / FILE_NAME).write_text(text)
    found = read_promise(tmp_path)
    assert found is not None
    assert (found.leader, found.until_ms - found.asked_at_ms) == ("", UNREADABLE_HOLDS_MS)


async def test_agent_does_not_start_when_the_promise_cannot_be_read(tmp_path: Path) -> None:
    """A fault of the operator's: it is told with the file's name and a remedy."""
    (tmp_path / FILE_NAME).mkdir()
    with pytest.raises(ConfigError, match=rf"{FILE_NAME}: Is a directory; .*make it readable"):
        read_promise(tmp_path)


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A directory on a file system without a free block."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root: run the tests as root to see a full disk")
    mounted = tmp_path / "small"
    mounted.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(mounted)], check=True)
    try:
        _fill(mounted / "filling")
        yield mounted
    finally:
        subprocess.run(["umount", str(mounted)], check=True)


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return


async def test_promise_is_unkept_and_the_earlier_one_stays_when_the_disk_is_full(full_disk: Path) -> None:
    """The reason is the disk's own; once there is room, the promise is taken."""
    promises = Promises(full_disk, "boot-a")
    with pytest.raises(PromiseUnkept, match=f"{FILE_NAME}: No space left on device"):
        await promises.keep(KEEP)
    assert read_promise(full_disk) is None
    with pytest.raises(PromiseUnkept, match="No space left on device"):
        await promises.rehearse(do.TryPromise(timeout_ms=1_000))
    (full_disk / "filling").unlink()
    await promises.keep(KEEP)
    _fill(full_disk / "filling")
    later = do.KeepPromise(timeout_ms=1_000, leader="n1", asked_at_ms=9_000, until_ms=39_000)
    with pytest.raises(PromiseUnkept):
        await promises.keep(later)
    kept = read_promise(full_disk)
    assert kept is not None
    assert kept.until_ms == 31_000


async def test_lane_answers_in_time_when_the_disk_hangs(tmp_path: Path, held_disk: HeldDisk) -> None:
    """The first promise is given up at its deadline, later ones fail at once, and all is well when the disk is back."""
    answers: list[AnyEvent] = []
    promises = Promises(tmp_path, "boot-a")
    lanes = Lanes(promises.lanes(answers.append), frozenset({do.KeepPromise, do.ForgetPromise, do.TryPromise}))

    async def answer_to(number: int, timeout_ms: int) -> AnyEvent:
        effect = do.KeepPromise(timeout_ms=timeout_ms, leader="n1", asked_at_ms=number, until_ms=31_000 + number)
        lanes.hand(Issued(effect_id=number, duty="keep-promise", effect=effect))
        with anyio.fail_after(PATIENCE_S):
            while not answers:  # noqa: ASYNC110 - answers come from lanes, which know no test
                await anyio.sleep(0.005)
        return answers.pop()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lanes.run, _at_once)
        assert isinstance(await answer_to(1, 50), Unknown)
        assert held_disk.hangs.is_set()
        refused = await answer_to(2, PATIENCE_S * 1000)
        assert isinstance(refused, Failed)
        assert "has not answered an earlier write" in refused.detail
        held_disk.released.set()
        with anyio.fail_after(PATIENCE_S):
            while not isinstance(await answer_to(3, PATIENCE_S * 1000), Succeeded):  # noqa: ASYNC110 - see above
                await anyio.sleep(0.005)
        tasks.cancel_scope.cancel()
    kept = read_promise(tmp_path)
    assert kept is not None
    assert kept.until_ms == 31_003


async def _at_once(number: int, wait_ms: int) -> bool:
    return True


async def test_agent_is_bound_when_the_one_before_it_promised(tmp_path: Path) -> None:
    """The file's promise is in the first event, so that the log tells of it and replays."""
    kept = KeptPromise(leader="n2", boot="boot-a", asked_at_ms=1, until_ms=2**50)
    log, recovered = TransitionLog.open(tmp_path / "log")
    agent = Agent(identity("n1"), "boot-a", log, recovered.last_seq, kept)
    performers = {kind: _never for kind in do.AnyEffect.__args__ if kind is not do.Exit}
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(agent.run, [Lane("sql", performers, agent.report)])
        with anyio.fail_after(PATIENCE_S):
            while agent.board.current.view.identity is None:
                await agent.board.changed()
        tasks.cancel_scope.cancel()
    promise = agent.board.current.view.promise
    assert promise is not None
    assert (promise.leader, promise.until_ms) == ("n2", 2**50)


async def _never(effect: do.Effect) -> AnyResult:
    await anyio.sleep_forever()
    return Done()
