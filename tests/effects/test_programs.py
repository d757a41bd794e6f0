"""Programs run as another user, in a clean environment, and never outlive their call."""

import os
import time
from pathlib import Path

import anyio
import pytest

from effects.errors import ProgramFailed
from effects.programs import RunAs, run_program

pytestmark = pytest.mark.anyio

PATIENCE_MS = 30_000


def is_gone(pid: int) -> bool:
    """True as soon as the process has ended; False when it has not within the deadline."""
    deadline = time.monotonic() + PATIENCE_MS / 1000
    while Path(f"/proc/{pid}").exists() and ") Z " not in Path(f"/proc/{pid}/stat").read_text():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


async def test_run_program_returns_all_it_said_when_it_fails() -> None:
    """Status, stdout, stderr and stdin are the program's own; a status other than 0 is raised only by check()."""
    lines: list[str] = []
    ended = await run_program(
        ["sh", "-c", "cat; echo one >&2; printf 'two\\rthree' >&2; exit 3"],
        timeout_ms=PATIENCE_MS,
        stdin=b"from stdin",
        on_stderr_line=lines.append,
    )
    assert (ended.program, ended.status, ended.stdout, ended.timed_out) == ("sh", 3, "from stdin", False)
    assert lines == ["one", "two", "three"]
    with pytest.raises(ProgramFailed, match="sh ended with status 3"):
        ended.check()


async def test_run_program_answers_127_when_it_cannot_be_executed() -> None:
    """A missing program is an outcome like others, with the reason in stderr."""
    ended = await run_program(["/nowhere/initdb"], timeout_ms=PATIENCE_MS)
    assert ended.status == 127
    assert "No such file" in ended.stderr


async def test_run_program_hides_foreign_variables_when_they_could_redirect_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No PG*, PATRONI_* or MATRIARCH_* variable reaches the program unless it is passed on purpose."""
    for name in ("PGHOST", "PATRONI_SUPERUSER_PASSWORD", "MATRIARCH_X", "LC_TIME"):
        monkeypatch.setenv(name, "leaked")
    ended = await run_program(["env"], env={"PGPASSFILE": "/x"}, timeout_ms=PATIENCE_MS)
    assert "leaked" not in ended.stdout
    assert "PGPASSFILE=/x" in ended.stdout.splitlines()
    assert "LC_ALL=C" in ended.stdout.splitlines()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
async def test_run_program_becomes_the_user_when_one_is_given(run_as: RunAs) -> None:
    """User, group and home are the other user's, and root's groups are not kept."""
    ended = await run_program(["sh", "-c", "id -u; id -G; echo $HOME; pwd"], run_as=run_as, timeout_ms=PATIENCE_MS)
    assert ended.check().stdout.split() == [str(run_as.uid), str(run_as.gid), run_as.home, "/"]


@pytest.mark.parametrize("is_cancelled", [False, True], ids=["deadline", "cancelled"])
async def test_run_program_kills_all_of_it_when_it_is_given_up(is_cancelled: bool) -> None:
    """At its deadline, and when its caller is cancelled, the program and its children are killed."""
    pids, is_started = list[int](), anyio.Event()

    def note(line: str) -> None:
        pids.append(int(line))
        if len(pids) == 2:
            is_started.set()

    argv = ["sh", "-c", "sleep 1000 & echo $! >&2; echo $$ >&2; wait"]
    if is_cancelled:
        async with anyio.create_task_group() as callers:
            callers.start_soon(lambda: run_program(argv, timeout_ms=10**9, on_stderr_line=note))
            with anyio.fail_after(PATIENCE_MS / 1000):
                await is_started.wait()
            callers.cancel_scope.cancel()
    else:
        ended = await run_program(argv, timeout_ms=1000, on_stderr_line=note)
        assert (ended.status, ended.timed_out) == (-9, True)
    assert len(pids) == 2
    assert all(is_gone(pid) for pid in pids)


async def test_run_program_ends_when_only_a_grandchild_holds_its_pipes() -> None:
    """A background process that the program leaves behind neither blocks the call nor survives it."""
    ended = await run_program(["sh", "-c", "sleep 1000 & echo $!"], timeout_ms=PATIENCE_MS)
    assert ended.status == 0
    assert is_gone(int(ended.stdout))


async def test_run_program_keeps_the_end_when_stderr_is_endless() -> None:
    """Of a long stderr the last 64 KiB are kept."""
    script = "i=0; while [ $i -lt 3000 ]; do echo 'a line of some forty characters, at least' >&2; i=$((i+1)); done"
    ended = await run_program(["sh", "-c", f"{script}; echo last >&2"], timeout_ms=PATIENCE_MS)
    assert len(ended.stderr) == 64 * 1024
    assert ended.stderr.endswith("last\n")


def test_run_program_works_when_the_loop_is_uvloop() -> None:
    """uvloop's own subprocesses know no user; ours do not use them."""

    async def use() -> int:
        return (await run_program(["true"], timeout_ms=PATIENCE_MS)).status

    assert anyio.run(use, backend_options={"use_uvloop": True}) == 0
