"""Fixtures that every test may use: the anyio backend, a real etcd, PostgreSQL's programs, directories for nodes."""

import os
import shutil
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from effects.embedded import EmbeddedEtcd, postgres_bin_dir, readable_copy, unprivileged_user
from effects.programs import RunAs


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The event loop that async tests run on."""
    return "asyncio"


@pytest.fixture(scope="session", autouse=True)
async def one_event_loop(anyio_backend: str) -> AsyncIterator[None]:
    """Keeps one event loop for all async tests: gRPC reports late to the loop it began with, which must not be closed.

    A test of another loop (uvloop) is a plain function that calls `anyio.run`.
    """
    yield  # noqa: PT022 - the event loop lives as long as a fixture that has not ended


@pytest.fixture(scope="session")
def run_as() -> RunAs | None:
    """The user that runs PostgreSQL; None when the tests themselves are not root."""
    return unprivileged_user()


@pytest.fixture(scope="session")
def open_directory() -> Iterator[Path]:
    """A directory that every user may pass through (root's own temporary directories are closed), gone afterwards."""
    path = Path(tempfile.mkdtemp(prefix="matriarch-tests-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_bin(open_directory: Path, run_as: RunAs | None) -> Path:
    """The directory of PostgreSQL's programs, readable by the user that runs them."""
    return readable_copy(postgres_bin_dir(None), open_directory / "postgres", run_as)


@pytest.fixture
def node_directory(open_directory: Path, run_as: RunAs | None) -> Iterator[Callable[..., Path]]:
    """Makes directories that belong to the user who runs PostgreSQL: `node_directory("n1")`; removed after the test."""
    base = open_directory / uuid.uuid4().hex[:8]
    base.mkdir(mode=0o755)

    def make(name: str = "node") -> Path:
        path = base / name
        path.mkdir(mode=0o700)
        if run_as:
            os.chown(path, run_as.uid, run_as.gid)
        return path

    yield make
    shutil.rmtree(base, ignore_errors=True)


@pytest.fixture(scope="session")
def etcd_server(open_directory: Path) -> Iterator[EmbeddedEtcd]:
    """One etcd for all tests; each keeps to its own `prefix`. Tests that kill or freeze an etcd start their own."""
    with EmbeddedEtcd(open_directory / "etcd", is_fsync_off=True) as server:
        yield server


@pytest.fixture
def prefix() -> str:
    """A prefix of etcd keys that belongs to this test alone."""
    return f"/test/{uuid.uuid4().hex}/"
