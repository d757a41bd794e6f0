"""The directory that a demo lives in: a temporary one that goes with it, or one to keep."""

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import IO

import msgspec

from api.cli.demo.plan import NODE_NAMES, Plan, make_plan, plan_text, read_plan, with_ports
from api.cli.demo.processes import servers_below
from effects.embedded import free_ports, postgres_bin_dir, readable_copy, unprivileged_user
from effects.errors import ConfigError
from effects.files import write_atomically
from effects.programs import RunAs

PREFIX, PREFIX_NEW = "matriarch-demo-", "matriarch-new-"
PLAN_FILE, LOCK_FILE = "demo.json", "demo.lock"
PASSWORD_BYTES = 18
# Three copies of an empty cluster (40 MB each), their WAL (up to max_wal_size each) and a copy of the programs.
FREE_BYTES_MIN = 1_000_000_000
PORTS = 1 + 2 * len(NODE_NAMES)
VERSION_TIMEOUT_S = 20


class Workspace:
    """A locked directory, the plan of its cluster, and PostgreSQL's programs as its user can run them."""

    def __init__(self, root: Path, *, is_kept: bool, plan: Plan, run_as: RunAs | None, lock: IO[str]) -> None:
        self.root, self.is_kept, self.plan, self.run_as = root, is_kept, plan, run_as
        self.bin_dir = root
        self._lock = lock

    def find_postgres(self, choice: str | None) -> None:
        """Sets `bin_dir`, copying the programs if need be.

        choice: "16", "18" or a directory; None is POSTGRES_BIN or the default.
        Raises: ConfigError when there are none, or the data that are kept here belong to another major version.
        """
        found = postgres_bin_dir(choice)
        try:
            self.bin_dir = readable_copy(found, self.root / "bin", self.run_as)
        except OSError as error:
            raise ConfigError([f"cannot copy PostgreSQL to {self.root}: {error.strerror}; {_other_place()}"]) from error
        kept = _kept_version(self.root)
        offered = _major_version(self.bin_dir)
        if kept is not None and kept != offered:
            raise ConfigError(
                [f"{self.root} holds a cluster of PostgreSQL {kept}, not {offered}: use that one, or another directory"]
            )

    def close(self) -> None:
        """Lets go of the directory, and removes it unless it is to be kept."""
        if not self.is_kept:
            shutil.rmtree(self.root, ignore_errors=True)
        self._lock.close()


def open_workspace(keep: Path | None) -> Workspace:
    """A workspace of one's own: `keep`, made if it is not there, or a temporary directory.

    Raises: ConfigError, each with its remedy: the directory is in use, foreign, unreachable or too full.
    """
    run_as = unprivileged_user()
    remove_stale()
    root = _make_kept(keep) if keep else _make_temporary()
    lock = None
    try:
        lock = _take_lock(root)
        if keep is None:
            # Its name tells other demos that it may be stale only now that its lock tells them that it is not.
            root = root.rename(root.with_name(root.name.replace(PREFIX_NEW, PREFIX, 1)))
        if run_as is not None:
            root.chmod(root.stat().st_mode | 0o111)  # who runs PostgreSQL must pass through
        _check(root, run_as)
        return Workspace(root, is_kept=keep is not None, plan=_plan_of(root), run_as=run_as, lock=lock)
    except BaseException:
        if keep is None:
            shutil.rmtree(root, ignore_errors=True)
        if lock is not None:
            lock.close()
        raise


def remove_stale() -> None:
    """Removes the temporary directories of demos that were killed before they could do it."""
    for path in Path(tempfile.gettempdir()).glob(PREFIX + "*"):
        with contextlib.suppress(OSError, ConfigError):
            if path.lstat().st_uid != os.geteuid() or path.is_symlink() or not (path / LOCK_FILE).exists():
                continue
            with _take_lock(path):
                if not servers_below(path):
                    shutil.rmtree(path)


def _make_temporary() -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix=PREFIX_NEW))
    except OSError as error:
        raise ConfigError([f"cannot make a temporary directory: {error.strerror}; {_other_place()}"]) from error


def _make_kept(keep: Path) -> Path:
    try:
        keep = keep.expanduser().absolute()
        is_new = not keep.exists() or not any(keep.iterdir())
        keep.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError([f"cannot use {keep}: {error.strerror}; choose another directory"]) from error
    if not is_new and not (keep / PLAN_FILE).exists():
        raise ConfigError([f"{keep} is not empty and holds no demo: choose an empty or a new directory"])
    if keep.stat().st_uid != os.geteuid():
        raise ConfigError([f"{keep} belongs to another user: choose a directory of your own"])
    return keep.resolve()


def _take_lock(root: Path) -> IO[str]:
    try:
        file = (root / LOCK_FILE).open("w")
    except OSError as error:
        raise ConfigError([f"cannot write to {root}: {error.strerror}; choose another directory"]) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ConfigError([f"another demo runs in {root}: stop it, or choose another directory"]) from None
    return file


def _check(root: Path, run_as: RunAs | None) -> None:
    free_bytes = shutil.disk_usage(root).free
    if free_bytes < FREE_BYTES_MIN:
        raise ConfigError(
            [f"{root} has {free_bytes >> 20} MB free and the demo may need {FREE_BYTES_MIN >> 20}: {_other_place()}"]
        )
    if run_as is not None and not _can_enter(root, run_as):
        raise ConfigError(
            [f"the user {run_as.name}, who runs PostgreSQL for root, cannot reach {root}: {_other_place()}"]
        )


def _other_place() -> str:
    return "free some space, or name a better place with --keep DIR or TMPDIR=DIR (a directory that others may enter)"


def _can_enter(directory: Path, user: RunAs) -> bool:
    ended = subprocess.run(
        ["/bin/sh", "-c", 'cd "$1"', "sh", str(directory)],
        user=user.uid,
        group=user.gid,
        extra_groups=[],
        cwd="/",
        stderr=subprocess.DEVNULL,
        check=False,
    )
    return ended.returncode == 0


def _plan_of(root: Path) -> Plan:
    """The plan that is kept here, on other ports if its own are taken, else a new one; written either way."""
    path = root / PLAN_FILE
    try:
        plan = read_plan(path.read_text()) if path.exists() else _new_plan()
        if not all(map(_is_free, plan.ports)):
            plan = with_ports(plan, free_ports(PORTS))
        write_atomically(path, plan_text(plan))
    except OSError as error:
        raise ConfigError([f"cannot write to {root}: {error.strerror}; choose another directory"]) from error
    except msgspec.DecodeError as error:
        raise ConfigError([f"{path} cannot be read ({error}): remove {root} to start anew"]) from error
    return plan


def _new_plan() -> Plan:
    return make_plan(free_ports(PORTS), [secrets.token_urlsafe(PASSWORD_BYTES) for _ in range(3)])


def _is_free(port: int) -> bool:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _kept_version(root: Path) -> str | None:
    for name in NODE_NAMES:
        with contextlib.suppress(OSError):
            return (root / name / "data" / "PG_VERSION").read_text().strip()
    return None


def _major_version(bin_dir: Path) -> str:
    try:
        ended = subprocess.run(
            [bin_dir / "postgres", "--version"], capture_output=True, text=True, timeout=VERSION_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError([f"{bin_dir}/postgres does not run: {error}; set POSTGRES_BIN"]) from error
    found = re.search(r"\) (\d+)", ended.stdout)
    if found is None:
        line = (ended.stderr.strip().splitlines() or ["no answer"])[-1]
        raise ConfigError([f"{bin_dir}/postgres does not run: {line}; set POSTGRES_BIN"])
    return found[1]
