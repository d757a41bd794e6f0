"""Which processes run on a data directory, and what dead ones have left there."""

import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from effects.processes import remove_stale_lock_files, running_postmaster
from effects.programs import RunAs
from tests.effects.servers import running_nodes

pytestmark = pytest.mark.anyio
NUMBER_OF_NOBODY = 4_194_304 + 1
"""Above the kernel's own limit. Source: proc(5), pid_max."""


@contextmanager
def other_thread() -> Iterator[int]:
    """The number of a thread of this process other than its first."""
    is_over, numbers = threading.Event(), []

    def live() -> None:
        numbers.append(threading.get_native_id())
        is_known.set()
        is_over.wait()

    is_known = threading.Event()
    thread = threading.Thread(target=live)
    thread.start()
    is_known.wait()
    try:
        yield numbers[0]
    finally:
        is_over.set()
        thread.join()


@contextmanager
def other_process(uid: int) -> Iterator[int]:
    """The number of a process of this user that has nothing to do with a server."""
    process = subprocess.Popen(["sleep", "600"], user=uid)
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()


def write_lock_files(data_dir: Path, number: int, *, directory: Path | None = None) -> Path:
    """Both lock files as a server leaves them; the one of its socket."""
    socket_lock = data_dir.with_name(".s.PGSQL.5432.lock")
    text = f"{number}\n{directory or data_dir}\n1795560695\n5432\n"
    (data_dir / "postmaster.pid").write_text(text)
    socket_lock.write_text(text)
    return socket_lock


def test_lock_files_are_removed_when_their_number_is_a_thread_of_somebody_else(
    node_directory: Callable[..., Path],
) -> None:
    """PostgreSQL would take the thread for the dead server and never start again."""
    data_dir = node_directory()
    with other_thread() as number:
        socket_lock = write_lock_files(data_dir, number)
        assert remove_stale_lock_files(data_dir, socket_lock) == [data_dir / "postmaster.pid", socket_lock]
    assert not (data_dir / "postmaster.pid").exists()
    assert not socket_lock.exists()


def test_lock_files_are_left_to_postgresql_when_nobody_bears_their_number(node_directory: Callable[..., Path]) -> None:
    """It replaces them itself, after it has looked at the shared memory that they name."""
    data_dir = node_directory()
    socket_lock = write_lock_files(data_dir, NUMBER_OF_NOBODY)
    assert remove_stale_lock_files(data_dir, socket_lock) == []
    assert socket_lock.exists()


def test_lock_file_of_a_socket_stays_when_it_is_of_another_directory(node_directory: Callable[..., Path]) -> None:
    """Another server may listen in the same directory of sockets."""
    data_dir = node_directory()
    socket_lock = write_lock_files(data_dir, os.getpid(), directory=node_directory("other"))
    assert remove_stale_lock_files(data_dir, socket_lock) == [data_dir / "postmaster.pid"]
    assert socket_lock.exists()


@pytest.mark.servers
async def test_server_starts_when_its_predecessors_number_is_another_process_of_its_user(
    open_directory: Path, postgres_bin: Path, run_as: RunAs | None
) -> None:
    """As after a container was killed and started again; while a server runs its lock files stay."""
    async with running_nodes(open_directory, postgres_bin, run_as, "n1") as (node,):
        await node.become_first_primary()
        data_dir, socket_lock = node.settings.data_dir, node.settings.socket_lock
        assert remove_stale_lock_files(data_dir, socket_lock) == []
        assert socket_lock.exists()
        left = (data_dir / "postmaster.pid").read_text().splitlines()
        await node.stop("kill")
        # PostgreSQL minds only processes that it may send signals to.
        with other_process(node.settings.owner_uid) as number:
            for path in (data_dir / "postmaster.pid", socket_lock):
                path.write_text("\n".join([str(number), *left[1:], ""]))
                path.chmod(0o600)
                os.chown(path, node.settings.owner_uid, -1)
            pid = await node.server.start("primary", None, {}, armed_until_ms=None)
            await node.until(lambda probe: not probe.in_recovery)
            assert running_postmaster(data_dir) == pid
