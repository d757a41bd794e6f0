"""Disks of a node that can be filled or made to hang: a tmpfs, and an ext4 in a file under fsfreeze. Root only."""

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest

from api.cli.demo.cluster import DemoCluster, DemoNode
from api.cli.demo.workspace import Workspace

Place = Callable[[DemoNode], Path]
Kind = Callable[[Path, tuple[int, int], DemoNode], AbstractContextManager[None]]
FILLER = "pgsql_tmp_filler"
"""No base backup copies what begins so."""


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")


@contextmanager
def tmpfs(path: Path, owner: tuple[int, int], size: str) -> Iterator[None]:
    """A disk in memory. Skips where this user may not mount anything."""
    options = f"size={size},mode=0700,uid={owner[0]},gid={owner[1]}"
    path.mkdir(parents=True, exist_ok=True)
    try:
        _run("mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path))
    except OSError as error:
        pytest.skip(f"needs the right to mount a tmpfs (root): {error}")
    try:
        yield
    finally:
        _run("umount", "-l", str(path))


@contextmanager
def freezable(path: Path, owner: tuple[int, int], image: Path, size: str, mode: int = 0o700) -> Iterator[None]:
    """An ext4 in a file, which fsfreeze(8) can make hang. Skips where this user has no loop devices."""
    path.mkdir(parents=True, exist_ok=True)
    try:
        _run("truncate", "-s", size, str(image))
        _run("mkfs.ext4", "-q", "-F", "-E", f"root_owner={owner[0]}:{owner[1]}", str(image))
        _run("mount", "-o", "loop", str(image), str(path))
    except OSError as error:
        pytest.skip(f"needs loop devices and the right to mount them (root): {error}")
    try:
        (path / "lost+found").rmdir()
        path.chmod(mode)
        yield
    finally:
        thaw_disk(path)
        _run("umount", "-l", str(path))


def freeze_disk(path: Path) -> None:
    """Every write to the disk hangs from now on, and what is read is answered. Source: fsfreeze(8)."""
    _run("fsfreeze", "--freeze", str(path))


def thaw_disk(path: Path) -> None:
    """The disk goes on; nothing where it does not hang."""
    subprocess.run(["fsfreeze", "--unfreeze", str(path)], capture_output=True, check=False)


def fill(path: Path) -> None:
    """No block is left on the disk, nor any that the file system gives back once it has placed what was written."""
    with (path / FILLER).open("wb", buffering=0) as filler:
        for block_bytes in (1 << 20, 1 << 12, 1 << 12):
            with contextlib.suppress(OSError):
                while filler.write(bytes(block_bytes)):
                    pass
            with contextlib.suppress(OSError):
                os.fsync(filler.fileno())


def make_room(path: Path) -> None:
    """What `fill` wrote is gone."""
    (path / FILLER).unlink(missing_ok=True)


@contextmanager
def mounted(kind: Kind, place: Place, cluster: DemoCluster, workspace: Workspace) -> Iterator[None]:
    """Each node's place on a disk of its own."""
    owner = (workspace.run_as.uid, workspace.run_as.gid) if workspace.run_as else (0, 0)
    with ExitStack() as disks:
        for node in cluster.nodes:
            node.directory.mkdir(mode=0o755, exist_ok=True)
            disks.enter_context(kind(place(node), owner, node))
        yield


def small_data_disks(size: str) -> Callable[[DemoCluster, Workspace], AbstractContextManager[None]]:
    """Data directories on small disks of their own."""
    return partial(mounted, lambda path, owner, node: tmpfs(path, owner, size), lambda node: node.data_dir)


def freezable_data_disks() -> Callable[[DemoCluster, Workspace], AbstractContextManager[None]]:
    """Data directories on disks that can be made to hang."""
    return partial(
        mounted,
        lambda path, owner, node: freezable(path, owner, node.directory / "data.img", "400M"),
        lambda node: node.data_dir,
    )


def freezable_log_disks() -> Callable[[DemoCluster, Workspace], AbstractContextManager[None]]:
    """The agents' own directories, with their logs, on disks that can be filled or made to hang."""
    return partial(
        mounted,
        lambda path, owner, node: freezable(path, (0, 0), node.directory / "log.img", "40M", 0o755),
        log_disk,
    )


def log_disk(node: DemoNode) -> Path:
    """Where such a disk is mounted."""
    return node.state_dir.parent
