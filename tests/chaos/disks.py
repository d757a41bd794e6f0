"""A small disk of its own for each node's data and another for its agent's files, which can be full or stand still."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from api.cli.demo.cluster import DemoNode
from api.cli.demo.plan import overlaid
from effects.embedded import unprivileged_user
from tests.chaos.net import run

DATA_MB, STATE_MB = 640, 64
CHUNK_BYTES = 1 << 20
SMALL_CHUNK_BYTES = 1 << 12


class Disks:
    """ext4 in files, mounted through loop devices, in the run's own mount namespace; a context manager."""

    def __init__(self, nodes: Sequence[DemoNode]) -> None:
        """Prepares them, and moves the nodes' data and state directories onto them."""
        self._nodes, self._mounted = nodes, list[Path]()
        for node in nodes:
            node.data_dir = node.directory / "disk" / "data"
            node.state_dir = node.directory / "matriarch" / "state" / node.name
            places = {"postgresql": {"data_dir": str(node.data_dir)}, "matriarch": {"state_dir": str(node.state_dir)}}
            node.overlay = overlaid(node.overlay, places)

    def __enter__(self) -> Self:
        for node in self._nodes:
            self._mount(data_disk(node), DATA_MB)
            self._mount(state_disk(node), STATE_MB)
        return self

    def _mount(self, at: Path, size_mb: int) -> None:
        at.mkdir(parents=True, exist_ok=True)
        for parent in at.relative_to(at.parents[2]).parents:
            (at.parents[2] / parent).chmod(0o755)
        image = at.with_name(f"{at.name}.image")
        run("truncate", "-s", f"{size_mb}M", str(image))
        run("mkfs.ext4", "-q", "-m", "0", str(image))
        run("mount", "-o", "loop", str(image), str(at))
        self._mounted.append(at)
        (at / "lost+found").rmdir()
        user = unprivileged_user()
        if user is not None:
            os.chown(at, user.uid, user.gid)

    def __exit__(self, *_: object) -> None:
        for at in reversed(self._mounted):
            with contextlib.suppress(RuntimeError):
                run("umount", "--lazy", str(at))


def data_disk(node: DemoNode) -> Path:
    """Where a node's data disk is mounted."""
    return node.directory / "disk"


def state_disk(node: DemoNode) -> Path:
    """Where the disk of a node's agent is mounted: its log lies there."""
    return node.directory / "matriarch" / "state"


@contextmanager
def full(disk: Path) -> Iterator[None]:
    """Inside, a disk has no byte left."""
    filling = disk / "filling"
    try:
        with filling.open("wb", buffering=0) as file:
            for size_bytes in (CHUNK_BYTES, SMALL_CHUNK_BYTES):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(b"\0" * size_bytes)
        yield
    finally:
        filling.unlink(missing_ok=True)


@contextmanager
def standing_still(disk: Path) -> Iterator[None]:
    """Inside, no write to a disk ends, nor its fsync. Source: fsfreeze(8)."""
    run("fsfreeze", "--freeze", str(disk))
    try:
        yield
    finally:
        run("fsfreeze", "--unfreeze", str(disk))
