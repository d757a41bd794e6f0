"""Servers from wheels: they start, answer, freeze, come back, and leave nothing behind."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from effects.embedded import (
    EmbeddedEtcd,
    EmbeddedEtcdCluster,
    etcd_binary,
    free_ports,
    postgres_bin_dir,
    readable_copy,
    unprivileged_user,
)
from effects.errors import ConfigError, ProgramFailed
from effects.programs import RunAs, run_program

PATIENCE_S = 30

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


def eventually(is_so: Callable[[], bool]) -> bool:
    """True as soon as the condition holds; False when it has not within the deadline."""
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def accepts_connections(port: int) -> bool:
    """True when something listens on the port."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


@pytest.fixture
def private_copy(tmp_path: Path) -> Iterator[Path]:
    """PostgreSQL's programs, laid out as in the wheel, in a directory that only its owner may enter."""
    site, wheel = tmp_path / "private", postgres_bin_dir("16").parent
    site.mkdir(mode=0o700)
    for part in (f"{wheel.parent.name}/{wheel.name}", f"{wheel.parent.name}.libs"):
        target = site / part
        target.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-r", wheel.parents[1] / part, target], check=True)
    yield site / wheel.parent.name / wheel.name / "bin"
    subprocess.run(["rm", "-rf", site], check=True)


@pytest.mark.parametrize(("choice", "major"), [(None, "18"), ("16", "16"), ("18", "18")])
def test_postgres_bin_dir_finds_the_wheel_when_a_version_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, choice: str | None, major: str
) -> None:
    """The wheel's version 18 is the default, 16 the other choice."""
    monkeypatch.delenv("POSTGRES_BIN", raising=False)
    version = subprocess.run([postgres_bin_dir(choice) / "postgres", "-V"], capture_output=True, text=True, check=True)
    assert f"(PostgreSQL) {major}." in version.stdout


def test_postgres_bin_dir_is_the_one_named_when_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A path goes first, then POSTGRES_BIN; a directory without PostgreSQL is the operator's fault."""
    real = postgres_bin_dir("16")
    monkeypatch.setenv("POSTGRES_BIN", str(real))
    assert postgres_bin_dir(None) == real
    assert postgres_bin_dir("18") != real
    assert postgres_bin_dir(str(real)) == real
    with pytest.raises(ConfigError, match="POSTGRES_BIN"):
        postgres_bin_dir("/nowhere")


def test_etcd_binary_is_refused_when_the_one_named_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """ETCD_BIN is meant: nothing else is taken in its place."""
    monkeypatch.setenv("ETCD_BIN", "/nowhere/etcd")
    with pytest.raises(ConfigError, match="ETCD_BIN"):
        etcd_binary()


def test_free_ports_are_different_and_free_when_many_are_asked_for() -> None:
    """No port comes twice, and each can be bound."""
    ports = free_ports(20)
    assert len(set(ports)) == 20
    for port in ports:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", port))


@needs_root
def test_unprivileged_user_is_not_root_when_we_are_root() -> None:
    """Root gets a user that PostgreSQL agrees to run as."""
    user = unprivileged_user()
    assert user is not None
    assert user.uid != 0


def test_readable_copy_is_the_original_when_the_user_can_read_it(tmp_path: Path) -> None:
    """Nothing is copied when there is no other user to copy for."""
    assert readable_copy(postgres_bin_dir("16"), tmp_path / "copy", None) == postgres_bin_dir("16")
    assert not (tmp_path / "copy").exists()


@needs_root
@pytest.mark.anyio
@pytest.mark.servers
async def test_readable_copy_runs_as_the_user_when_the_original_is_private(
    private_copy: Path, open_directory: Path, run_as: RunAs, node_directory: Callable[..., Path]
) -> None:
    """A copy of a private installation works for another user, libraries included, and is made once."""
    into = open_directory / "copies"
    copy = readable_copy(private_copy, into, run_as)
    made_at = copy.stat().st_ctime_ns
    assert into in copy.parents
    assert readable_copy(private_copy, into, run_as) == copy
    assert copy.stat().st_ctime_ns == made_at
    cluster = node_directory() / "pgdata"
    (await run_program([copy / "initdb", "-N", "-D", cluster], run_as=run_as, timeout_ms=120_000)).check()
    control = await run_program([copy / "pg_controldata", cluster], run_as=run_as, timeout_ms=60_000)
    assert "Latest checkpoint's TimeLineID:       1" in control.check().stdout
    again = await run_program([copy / "initdb", "-N", "-D", cluster], run_as=run_as, timeout_ms=60_000)
    with pytest.raises(ProgramFailed, match="initdb ended with status 1"):
        again.check()


@needs_root
def test_readable_copy_leaves_the_directory_around_it_alone(
    private_copy: Path, node_directory: Callable[..., Path], run_as: RunAs
) -> None:
    """Only what was copied is opened to all users, and a closed directory around it is the operator's to open."""
    around = node_directory().parent / "closed"
    around.mkdir(mode=0o700)
    with pytest.raises(ConfigError, match="cannot run"):
        readable_copy(private_copy, around / "copies", run_as)
    assert around.stat().st_mode & 0o777 == 0o700


@needs_root
def test_readable_copy_is_refused_when_its_place_belongs_to_another(
    private_copy: Path, node_directory: Callable[..., Path], run_as: RunAs
) -> None:
    """Programs are not run from a directory that somebody else could fill."""
    with pytest.raises(ConfigError, match="belongs to another user"):
        readable_copy(private_copy, node_directory(), run_as)


@pytest.mark.servers
def test_embedded_etcd_comes_back_when_killed_or_frozen(tmp_path: Path) -> None:
    """The same ports and data after a kill; no answer while frozen; gone, with its process, at the end."""
    with EmbeddedEtcd(tmp_path, is_fsync_off=True) as server:
        endpoint, pid = server.endpoint, server.pid
        server.kill()
        assert not server.is_healthy
        server.start()
        assert (server.endpoint, server.pid) != (endpoint, pid)
        assert server.endpoint == endpoint
        server.freeze()
        assert Path(f"/proc/{server.pid}/stat").read_text().split()[2] == "T"
        server.thaw()
        server.wait_until_healthy()
        server.freeze()
        pid = server.pid
    assert not Path(f"/proc/{pid}").exists()
    assert not accepts_connections(server.client_port)


@pytest.mark.servers
def test_embedded_etcd_cluster_takes_other_ports_when_one_was_taken_meanwhile(tmp_path: Path) -> None:
    """A port that somebody takes between its choice and the start costs a second try, not the cluster."""
    cluster = EmbeddedEtcdCluster(tmp_path, is_fsync_off=True)
    taken = cluster.members[2].client_port
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", taken))
        listener.listen()
        with cluster:
            assert cluster.members[2].client_port != taken
            assert all(member.is_healthy for member in cluster.members)


@pytest.mark.servers
def test_embedded_etcd_tells_why_when_it_does_not_start(tmp_path: Path) -> None:
    """An etcd that ends at once is reported with its own last words, not by a timeout."""
    server = EmbeddedEtcd(tmp_path, arguments=["--no-such-option"])
    with pytest.raises(ProgramFailed, match="etcd ended with status"):
        server.start()


@pytest.mark.servers
def test_embedded_etcd_cluster_elects_another_leader_when_its_leader_dies(tmp_path: Path) -> None:
    """Three members have one leader, and another one after the first is killed."""
    with EmbeddedEtcdCluster(tmp_path, is_fsync_off=True) as cluster:
        first = cluster.leader
        first.kill()
        assert eventually(lambda: any(member.is_leader for member in cluster.members))
        assert cluster.leader is not first
        first.start()
        assert first.is_healthy


@pytest.mark.servers
def test_embedded_etcd_dies_when_its_parent_is_killed(tmp_path: Path) -> None:
    """A parent that is killed -9 leaves no etcd behind."""
    script = (
        "import sys; from pathlib import Path; from effects.embedded import EmbeddedEtcd\n"
        "server = EmbeddedEtcd(Path(sys.argv[1]), is_fsync_off=True); server.start()\n"
        "print(server.client_port, flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        port = int(parent.stdout.readline())
        assert accepts_connections(port)
        parent.send_signal(signal.SIGKILL)
    assert eventually(lambda: not accepts_connections(port))
