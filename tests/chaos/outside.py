"""Starts a group in namespaces of its own, and hears its results."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from effects.programs import dying_with_the_parent
from tests.chaos.cells import Cell, Result

ROOT = Path(__file__).resolve().parents[2]
KEPT_IN = ROOT / "build" / "chaos"
PRODUCT = ("fsm", "effects", "api", "requirements.txt")
"""What a result is about: with another commit that leaves these alone it still holds."""
STOP_TIMEOUT_S = 60
NAMESPACES = ("--mount", "--net", "--pid", "--ipc", "--propagation", "private")
UNSHARED = (*NAMESPACES, "--fork", "--kill-child=KILL", "--mount-proc")
"""Namespaces of its own for mounts, network, processes and shared memory: all that is in them goes with the first
process. Source: unshare(1)."""


def unshared(*words: str) -> list[str]:
    """A command as the program in namespaces of its own, under a first process that reaps and ends everything."""
    inside = [sys.executable, "-m", "tests.chaos.init", *words]
    return [*dying_with_the_parent("KILL"), "unshare", *UNSHARED, "--", *inside]


def results_of(cells: Sequence[Cell], keep: Path = KEPT_IN) -> Iterator[Result]:
    """The results of one group's cells as they come; those that a broken run did not reach have that as their problem.

    Closing the iterator ends the run and everything in it.
    """
    waiting = list(cells)
    with running(cells, keep) as process:
        assert process.stdout is not None
        for line in process.stdout:
            result = msgspec.json.decode(line, type=Result)
            waiting.remove(result.cell)
            yield msgspec.structs.replace(result, commit=commit())
        status = process.wait()
    for cell in waiting:
        yield Result(cell=cell, problems=[f"the run ended before with status {status}"], commit=commit())


@contextlib.contextmanager
def running(cells: Sequence[Cell], keep: Path) -> Iterator[subprocess.Popen[str]]:
    """The program that runs a group's cells, its results on its stdout; ended, with all that it started, afterwards."""
    words = unshared(sys.executable, "-m", "tests.chaos.group", msgspec.json.encode(list(cells)).decode(), str(keep))
    with _temporary_directory() as directory:
        environment = os.environ | {"TMPDIR": directory}
        process = subprocess.Popen(
            words, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
        )
        with _ended(process):
            yield process


@contextlib.contextmanager
def _temporary_directory() -> Iterator[str]:
    """For the clusters of one run, and for them alone: whether another's is in use cannot be seen from the inside."""
    with tempfile.TemporaryDirectory(prefix="mc-", ignore_cleanup_errors=True) as directory:
        Path(directory).chmod(0o755)  # who runs PostgreSQL must pass through
        yield directory


@contextlib.contextmanager
def _ended(process: subprocess.Popen[str]) -> Iterator[None]:
    """A process that is asked to end after the block, and killed when it does not."""
    try:
        yield
    finally:
        if process.poll() is None:
            _ask_to_stop(process.pid)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_TIMEOUT_S)
            process.kill()
            process.wait()
        assert process.stdout is not None
        process.stdout.close()


def _ask_to_stop(unsharing: int) -> None:
    """Tells the first process of the namespaces; `unshare` itself hands no signal on."""
    for child in Path(f"/proc/{unsharing}/task/{unsharing}/children").read_text().split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(child), signal.SIGTERM)


def commit() -> str:
    """The last commit that changed the product, marked when its files differ from it."""
    last = _git("log", "-1", "--format=%h", "--abbrev=7", "--", *PRODUCT)
    return last + ("+" if _git("status", "--porcelain", "--", *PRODUCT) else "")


def _git(*words: str) -> str:
    found = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
    return found.stdout.strip()
