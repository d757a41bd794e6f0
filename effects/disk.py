"""Looks at the disk under the server through a program of its own; tells what it saw, and when no answer comes."""

import contextlib
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Literal

import anyio
from msgspec import Struct

from effects.board import Board
from effects.clock import now_ms
from effects.lanes import Report
from effects.programs import RunAs, dying_with_the_parent, program_environment
from effects.pulse import Pulse
from fsm.events import DiskLooked, DiskSilent
from fsm.stalls import disk_look_every_ms, is_write_test_wanted
from fsm.timing import DISK_WRITE_EVERY_MS

PROGRAM = Path(__file__).with_name("disk_look.py")
ANSWER_WAIT_MS = 2_000
"""How long an answer is waited for before its absence is told, again and again."""
TOLD_EVERY_MS = 10_000
"""How often what has hardly changed is told all the same."""
TURN_MS = 1_000
READ_BYTES = 4096

Failure = Literal["", "full", "broken"]
FAILURES: dict[str, Failure] = {"full": "full", "broken": "broken"}

logger = logging.getLogger(__name__)


class Answer(Struct, frozen=True):
    """One line of the program."""

    data_free_bytes: int
    wal_free_bytes: int
    segment_bytes: int
    failure: Failure
    detail: str

    @property
    def grain(self) -> tuple[object, ...]:
        """What is told at once when it changes: the failure, and the room to a factor of two."""
        return self.data_free_bytes.bit_length(), self.wal_free_bytes.bit_length(), self.segment_bytes, self.failure


def parse_answer(line: str) -> Answer | None:
    """The program's line; None where it could not tell how much room there is and nothing is broken."""
    data, wal, segment, word, detail = line.split(" ", 4)
    failure, detail = FAILURES.get(word, ""), "" if detail == "-" else detail
    if data == "?":
        return Answer(0, 0, 0, failure, detail) if failure else None
    return Answer(int(data), int(wal), int(segment), failure, detail)


class DiskLooker:
    """The program, started when it is needed and again when it ended. One question at a time."""

    def __init__(self, data_dir: Path, run_as: RunAs | None) -> None:
        self._data_dir, self._run_as = data_dir, run_as
        self._process: subprocess.Popen[bytes] | None = None
        self._read = bytearray()

    @property
    def pid(self) -> int | None:
        """The program's process; None while there is none."""
        return self._process.pid if self._process is not None else None

    def ask(self, command: str) -> None:
        """Put a question, or an order that has no answer. Raises: OSError when there is no program to put it to."""
        if self._process is None:
            self._process = self._start()
        assert self._process.stdin is not None
        os.write(self._process.stdin.fileno(), f"{command}\n".encode())

    def _start(self) -> subprocess.Popen[bytes]:
        uid, gid = (self._run_as.uid, self._run_as.gid) if self._run_as else (os.getuid(), os.getgid())
        process = subprocess.Popen(
            [
                *dying_with_the_parent("KILL"),
                *(sys.executable, "-I", "-S", str(PROGRAM), str(self._data_dir), str(uid), str(gid)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=program_environment(None, None),
            cwd="/",
            start_new_session=True,
            umask=0o077,
            bufsize=0,
        )
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        self._read.clear()
        return process

    async def answer(self) -> str:
        """The line that answers the question. Raises: OSError when the program ended instead."""
        assert self._process is not None
        assert self._process.stdout is not None
        fd = self._process.stdout.fileno()
        while b"\n" not in self._read:
            await anyio.wait_readable(fd)
            chunk = os.read(fd, READ_BYTES)
            if not chunk:
                raise OSError("it ended")
            self._read += chunk
        line, _, rest = self._read.partition(b"\n")
        self._read = bytearray(rest)
        return line.decode(errors="replace")

    def close(self) -> None:
        """Ends the program; does not wait for one that hangs in the kernel."""
        if self._process is None:
            return
        process, self._process = self._process, None
        process.kill()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.2)


class DiskSource:
    """Looks at the disk as often as the machine asks for, and tells what changed."""

    def __init__(self, board: Board, looker: DiskLooker, report: Report, pulse: Pulse) -> None:
        self._board, self._looker, self._report, self._pulse = board, looker, report, pulse
        self._is_asked = False
        self._told: tuple[Answer, int] | None = None
        self._flushed_lsn = self._wrote_at_ms = 0
        self._is_failing = False
        self._fault_told = ""

    async def run(self) -> None:
        """Look until cancelled."""
        looked_at_ms = 0
        try:
            await anyio.sleep(TURN_MS / 1000)  # an agent that has just begun has more urgent things to start
            while True:
                turn_at_ms = now_ms()
                if turn_at_ms - looked_at_ms >= disk_look_every_ms(self._board.current.view) or self._is_asked:
                    looked_at_ms = turn_at_ms
                    await self._look(turn_at_ms)
                await anyio.sleep(max(0, turn_at_ms + TURN_MS - now_ms()) / 1000)
        finally:
            self._looker.close()

    async def _look(self, began_ms: int) -> None:
        try:
            if not self._is_asked:
                self._looker.ask(self._question(began_ms))
                self._is_asked = True
            with anyio.move_on_after(ANSWER_WAIT_MS / 1000):
                line = await self._looker.answer()
                self._is_asked = False
                self._take(line, began_ms)
                return
        except OSError as error:
            self._give_up(f"{error.strerror or error}")
            return
        waited = f"the disk of the data directory has not answered for {ANSWER_WAIT_MS} ms"
        self._tell_silence(waited, began_ms)

    def _question(self, began_ms: int) -> str:
        view, probe = self._board.current.view, self._board.current.view.server.probe
        if view.server.process != "running":
            self._looker.ask("rest")
        is_due = self._is_failing or began_ms - self._wrote_at_ms >= DISK_WRITE_EVERY_MS
        is_write_wanted = is_due and is_write_test_wanted(view, self._flushed_lsn)
        if is_due:
            self._wrote_at_ms = began_ms
            self._flushed_lsn = probe.flushed_lsn if probe is not None else 0
        return "write" if is_write_wanted else "look"

    def _take(self, line: str, began_ms: int) -> None:
        answer = parse_answer(line)
        if answer is None:
            return
        self._is_failing = bool(answer.failure)
        if not answer.segment_bytes:
            self._tell_silence(f"the disk of the data directory fails: {answer.detail}", began_ms)
            return
        is_old = self._told is None or began_ms - self._told[1] >= TOLD_EVERY_MS
        if self._told is None or is_old or answer.failure or answer.grain != self._told[0].grain:
            self._told = answer, began_ms
            self._report(
                DiskLooked(
                    at_ms=now_ms(),
                    data_free_bytes=answer.data_free_bytes,
                    wal_free_bytes=answer.wal_free_bytes,
                    segment_bytes=answer.segment_bytes,
                    failure=answer.failure,
                    detail=answer.detail,
                    began_ms=began_ms,
                    lag_ms=self._pulse.worst_ms(began_ms),
                )
            )

    def _tell_silence(self, detail: str, began_ms: int) -> None:
        self._told = None  # what comes next is news
        self._report(
            DiskSilent(at_ms=now_ms(), detail=detail, began_ms=began_ms, lag_ms=self._pulse.worst_ms(began_ms))
        )

    def _give_up(self, text: str) -> None:
        """The program cannot be run: nothing is known of the disk, and nothing follows from that."""
        self._looker.close()
        self._is_asked = False
        if text != self._fault_told:
            self._fault_told = text
            logger.warning("the disk cannot be looked at: %s", text)
