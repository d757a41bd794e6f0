"""Runs `matriarch demo` as a person would, and looks for what it left behind."""

import contextlib
import os
import pty
import select
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

from effects.clock import now_ms

COMMAND = [sys.executable, "-c", "from api.cli.main import main; main()", "demo"]
PATIENCE_MS = 90_000
POLL = threading.Event()
SETTLED = "the others stream from it"


HEEDING = (
    "import os, signal, sys; [signal.signal(one, signal.SIG_DFL) for one in (signal.SIGINT, signal.SIGHUP)]; "
    "os.execv(sys.argv[1], sys.argv[1:])"
)
"""Runs a command that heeds signals: tests that were started in the background let their children ignore some."""


class Demo:
    """One demo in a process of its own; its temporary files go below `directory`."""

    def __init__(self, directory: Path, *options: str, has_terminal: bool = False, **environment: str) -> None:
        self.directory = directory
        self.output = ""
        self._is_closing = threading.Event()
        theirs = {"TMPDIR": str(directory), "TERM": "xterm-256color", "COLUMNS": "140", "LINES": "40", **environment}
        env = {**os.environ, **theirs}
        if has_terminal:
            self._reading = self._start_in_terminal(options, env)
        else:
            self._process = subprocess.Popen(
                [sys.executable, "-c", HEEDING, *COMMAND, *options],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=env,
                start_new_session=True,
            )
            assert self._process.stdout is not None
            self._reading = os.dup(self._process.stdout.fileno())
            self._process.stdout.close()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _start_in_terminal(self, options: tuple[str, ...], env: dict[str, str]) -> int:
        ours, theirs = pty.openpty()
        # A session of its own with the terminal as its controlling one, so that closing it sends SIGHUP.
        program = f"import fcntl, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0); {HEEDING}"
        program = f"import os; {program}"
        self._process = subprocess.Popen(
            [sys.executable, "-c", program, *COMMAND, *options], stdin=theirs, stdout=theirs, stderr=theirs, env=env
        )
        os.close(theirs)
        return ours

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # a terminal that nobody has open at its other end
            while not self._is_closing.is_set():
                if not select.select([self._reading], [], [], 0.05)[0]:
                    continue
                chunk = os.read(self._reading, 65536)
                if not chunk:
                    break
                self.output += chunk.decode(errors="replace")
        os.close(self._reading)  # of a terminal the only descriptor here: this closes it

    def press(self, key: str) -> None:
        """Presses a key."""
        os.write(self._reading, key.encode())

    def close_terminal(self) -> None:
        """Closes the terminal, as a person who closes its window does."""
        self._is_closing.set()
        self._reader.join()

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to the demo alone."""
        self._process.send_signal(number)

    def until_told(self, text: str, after: int = 0) -> int:
        """Returns once the demo has printed a text: how much it had printed then. Fails when it ended before.

        after: where in the output to begin to look.
        """
        wait_until(lambda: text in self.output[after:] or self._process.poll() is not None, self)
        assert text in self.output[after:], self.output
        return len(self.output)

    def status(self) -> int:
        """The exit status, once it has ended."""
        wait_until(lambda: self._process.poll() is not None, self)
        self._reader.join(1)
        return self._process.returncode

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(60)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self.close_terminal()


def wait_until(is_so: Callable[[], bool], demo: Demo) -> None:
    """Returns once it is so; fails when patience ends."""
    deadline_ms = now_ms() + PATIENCE_MS
    while not is_so():
        assert now_ms() < deadline_ms, demo.output
        POLL.wait(0.05)


def processes_of(directory: Path) -> list[str]:
    """The command lines of the processes that name a directory or work in it."""
    return [words for pid, words in _command_lines() if str(directory) in words or _works_in(pid, directory)]


def _command_lines() -> Iterator[tuple[str, str]]:
    for path in Path("/proc").iterdir():
        if path.name.isdecimal():
            with contextlib.suppress(OSError):
                yield path.name, (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")


def _works_in(pid: str, directory: Path) -> bool:
    try:
        return str(Path(f"/proc/{pid}/cwd").readlink()).startswith(str(directory))
    except OSError:
        return False


@contextlib.contextmanager
def demo_directory() -> Iterator[Path]:
    """A temporary directory for one test's demos, short enough for a socket in it, and checked to be left empty."""
    with tempfile.TemporaryDirectory(prefix="md-", ignore_cleanup_errors=True) as name:
        path = Path(name)
        path.chmod(0o755)
        yield path
