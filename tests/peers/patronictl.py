"""Runs the real patronictl, as its users do: a process of its own, with a configuration file and a home of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import yaml

PROGRAM = Path(sys.executable).with_name("patronictl")
TIMEOUT_S = 120
HIDDEN_PREFIXES = ("PATRONI_", "PATRONICTL_", "MATRIARCH_", "PG", "DCS_URL", "LOGLEVEL")


class Ended(msgspec.Struct, frozen=True):
    """What a command said, and its exit status."""

    status: int
    stdout: str
    stderr: str

    @property
    def rows(self) -> list[dict[str, Any]]:
        """What `-f json` printed."""
        found: list[dict[str, Any]] = json.loads(self.stdout)
        return found


class Patronictl:
    """patronictl with one configuration file."""

    def __init__(self, directory: Path, scope: str, etcd_port: int, **settings: Any) -> None:
        self.directory = directory
        self.config = directory / "patronictl.yml"
        text = yaml.safe_dump({"scope": scope, "etcd3": {"hosts": f"127.0.0.1:{etcd_port}"}, **settings})
        self.config.write_text(text)

    def allow(self, lines: Iterable[str]) -> None:
        """Keeps passwords for PostgreSQL where libpq looks for them, so that none is in a command line."""
        passfile = self.directory / ".pgpass"
        passfile.touch(mode=0o600)
        passfile.write_text("".join(f"{line}\n" for line in lines))

    def command(self, *words: str) -> list[str]:
        """The whole command line."""
        return [str(PROGRAM), "-c", str(self.config), *words]

    @property
    def environment(self) -> dict[str, str]:
        """A clean environment; its home is the test's own directory."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(HIDDEN_PREFIXES)}
        return kept | {"HOME": str(self.directory), "LC_ALL": "C.UTF-8"}

    def run(self, *words: str, said: str = "") -> Ended:
        """What a command did. said: what its user types."""
        ended = subprocess.run(
            self.command(*words),
            input=said,
            capture_output=True,
            text=True,
            env=self.environment,
            cwd=self.directory,
            timeout=TIMEOUT_S,
            check=False,
        )
        return Ended(ended.returncode, ended.stdout, ended.stderr)
