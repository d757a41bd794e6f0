"""Runs `matriarch` as its users do, with or without a terminal."""

import contextlib
import os
import pty
import subprocess
import sys
from pathlib import Path

from tests.peers.patronictl import HIDDEN_PREFIXES, Ended

COMMAND = (sys.executable, "-P", "-c", "from api.cli.main import main; main()")
TIMEOUT_S = 120


class Matriarch:
    """The command line with one node's settings."""

    def __init__(self, config: Path) -> None:
        self.config = config

    @property
    def environment(self) -> dict[str, str]:
        """A clean environment that names the settings."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(HIDDEN_PREFIXES)}
        return kept | {"MATRIARCH_CONFIG_FILE": str(self.config), "TERM": "xterm-256color", "COLUMNS": "140"}

    def run(self, *words: str, said: str = "") -> Ended:
        """What a command did. said: what its user types."""
        ended = subprocess.run(
            [*COMMAND, *words],
            input=said,
            capture_output=True,
            text=True,
            env=self.environment,
            timeout=TIMEOUT_S,
            check=False,
        )
        return Ended(ended.returncode, ended.stdout, ended.stderr)

    def run_in_terminal(self, *words: str) -> Ended:
        """What a command showed on a terminal, control sequences and all."""
        mine, theirs = pty.openpty()
        process = subprocess.Popen([*COMMAND, *words], stdin=theirs, stdout=theirs, stderr=theirs, env=self.environment)
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # a terminal that nobody has open at its other end
            while chunk := os.read(mine, 65536):
                shown += chunk
        os.close(mine)
        return Ended(process.wait(TIMEOUT_S), shown.decode(errors="replace"), "")
