"""The look at the machine before anything is started: what is in the way, told in one line each."""

import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from effects.embedded import free_ports
from effects.errors import ConfigError
from effects.programs import ProgramEnded, RunAs, run_program
from effects.settings import Settings, load, preflight

MakeDirectory = Callable[..., Path]


@pytest.fixture
def told_settings(node_directory: MakeDirectory, postgres_bin: Path) -> Settings:
    """Settings that this machine can run: free ports, a data directory of the right owner, real programs."""
    rest_port, postgres_port = free_ports(2)
    return load(
        None,
        {
            "PATRONI_SCOPE": "main",
            "PATRONI_NAME": "node1",
            "PATRONI_ETCD3_HOSTS": "127.0.0.1:2379",
            "PATRONI_RESTAPI_LISTEN": f"127.0.0.1:{rest_port}",
            "PATRONI_POSTGRESQL_LISTEN": f"127.0.0.1:{postgres_port}",
            "PATRONI_POSTGRESQL_DATA_DIR": str(node_directory("pgdata")),
            "PATRONI_POSTGRESQL_BIN_DIR": str(postgres_bin),
            "PATRONI_SUPERUSER_USERNAME": "postgres",
            "PATRONI_REPLICATION_USERNAME": "replicator",
        },
    )


def with_postgresql(settings: Settings, **changed: object) -> Settings:
    """The settings with some of `postgresql` changed."""
    return msgspec.structs.replace(settings, postgresql=msgspec.structs.replace(settings.postgresql, **changed))


def faults(settings: Settings, run_as: RunAs | None) -> list[str]:
    """The faults that the look at the machine ends with."""
    with pytest.raises(ConfigError) as caught:
        preflight(settings, run_as)
    return caught.value.faults


def installed_major(postgres_bin: Path) -> str:
    """The major version of the programs that the tests use."""
    answer = subprocess.run([postgres_bin / "postgres", "--version"], capture_output=True, text=True, check=True)
    return answer.stdout.split()[2].split(".")[0]


@pytest.fixture
def listening() -> Iterator[int]:
    """A port of the loopback address that another process holds."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_preflight_passes_when_the_machine_is_ready(told_settings: Settings, run_as: RunAs | None) -> None:
    """An empty data directory, one that is not there yet and one of the right version are all fit; nothing changes."""
    data_dir = told_settings.postgresql.data_dir
    preflight(told_settings, run_as)
    preflight(with_postgresql(told_settings, data_dir=data_dir / "below"), run_as)
    (data_dir / "PG_VERSION").write_text(installed_major(told_settings.postgresql.bin_dir or Path()) + "\n")
    preflight(told_settings, run_as)
    assert [path.name for path in data_dir.iterdir()] == ["PG_VERSION"]
    assert not told_settings.state_dir.exists()


def test_preflight_names_the_programs_when_some_are_missing(
    told_settings: Settings, run_as: RunAs | None, tmp_path: Path
) -> None:
    """All missing programs are in one line with the remedy."""
    (told,) = faults(with_postgresql(told_settings, bin_dir=tmp_path), run_as)
    assert f"{tmp_path} has no postgres, initdb, pg_controldata, pg_basebackup, pg_rewind; install" in told
    (told,) = faults(with_postgresql(told_settings, bin_names={"pg_rewind": "pg_rewind_99"}), run_as)
    assert "has no pg_rewind_99; install" in told


def test_preflight_refuses_a_data_directory_when_its_version_is_another(
    told_settings: Settings, run_as: RunAs | None
) -> None:
    """A data directory of another major version is named with both versions, and kept."""
    written = told_settings.postgresql.data_dir / "PG_VERSION"
    written.write_text("9.6\n")
    (told,) = faults(told_settings, run_as)
    major = installed_major(told_settings.postgresql.bin_dir or Path())
    assert f"was made by PostgreSQL '9.6', allowed: {major}, as bin_dir has it; set postgresql.bin_dir" in told
    assert written.read_text() == "9.6\n"


def test_preflight_refuses_a_port_when_another_process_holds_it(
    told_settings: Settings, run_as: RunAs | None, listening: int
) -> None:
    """Both ports are tried; postmaster.pid of a process that is not our server does not excuse it."""
    restapi = msgspec.structs.replace(told_settings.restapi, listen_port=listening)
    (told,) = faults(msgspec.structs.replace(told_settings, restapi=restapi), run_as)
    assert told.startswith(f"restapi.listen: port {listening} on 127.0.0.1 is in use")
    data_dir = told_settings.postgresql.data_dir
    (data_dir / "postmaster.pid").write_text(f"{os.getpid()}\n{data_dir}\n0\n{listening}\n")
    (told,) = faults(with_postgresql(told_settings, listen_port=listening), run_as)
    assert told.startswith(f"postgresql.listen: port {listening} on 127.0.0.1 is in use")


def test_preflight_refuses_an_address_when_it_is_not_of_this_machine(
    told_settings: Settings, run_as: RunAs | None
) -> None:
    """An address of the documentation's network cannot be listened on here. Source: RFC 5737."""
    (told,) = faults(with_postgresql(told_settings, listen_hosts=("192.0.2.1",)), run_as)
    assert "192.0.2.1 is no address of this machine" in told


def test_preflight_refuses_a_data_directory_when_its_rights_are_too_wide(
    told_settings: Settings, run_as: RunAs | None
) -> None:
    """PostgreSQL starts on 0700 or 0750 only; an empty directory may still be set right and passes."""
    data_dir = told_settings.postgresql.data_dir
    data_dir.chmod(0o755)
    preflight(told_settings, run_as)
    (data_dir / "base").mkdir()
    (told,) = faults(told_settings, run_as)
    assert told == f"postgresql.data_dir: {data_dir} has rights 0755, allowed: 0700 or 0750; chmod 0700 {data_dir}"
    data_dir.chmod(0o750)
    preflight(told_settings, run_as)
    assert data_dir.stat().st_mode & 0o777 == 0o750


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a directory of another user")
def test_preflight_refuses_a_data_directory_when_its_owner_is_another(
    told_settings: Settings, run_as: RunAs | None
) -> None:
    """The server's user must own its directory; the command that makes it so is named."""
    assert run_as is not None
    data_dir = told_settings.postgresql.data_dir
    os.chown(data_dir, 0, 0)
    (told,) = faults(told_settings, run_as)
    assert told.endswith(f"{data_dir} belongs to user root, allowed: {run_as.name}; chown -R {run_as.name} {data_dir}")
    assert data_dir.stat().st_uid == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has a directory that the server's user cannot pass")
def test_preflight_refuses_a_data_directory_when_the_way_to_it_is_closed(
    told_settings: Settings, run_as: RunAs | None, tmp_path: Path
) -> None:
    """The first directory that the server's user cannot pass is named."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    told = faults(with_postgresql(told_settings, data_dir=closed / "pgdata"), run_as)
    assert len(told) == 1
    assert "cannot be reached by" in told[0]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to be root")
def test_preflight_refuses_root_when_no_other_user_is_named(told_settings: Settings) -> None:
    """PostgreSQL does not run as root, so a user must be named."""
    os.chown(told_settings.postgresql.data_dir, 0, 0)
    (told,) = faults(told_settings, None)
    assert "MATRIARCH_RUN_AS" in told


def test_preflight_refuses_directories_when_they_lie_in_each_other(
    told_settings: Settings, run_as: RunAs | None
) -> None:
    """The agent's directory and the server's are apart, also through a symbolic link."""
    data_dir = told_settings.postgresql.data_dir
    link = data_dir.parent / "link"
    link.symlink_to(data_dir)
    for state_dir in (data_dir, data_dir / "matriarch", data_dir.parent, link / "matriarch"):
        (told,) = faults(msgspec.structs.replace(told_settings, state_dir=state_dir), run_as)
        assert "lie in each other" in told


def test_preflight_refuses_directories_when_a_file_is_in_their_place(
    told_settings: Settings, run_as: RunAs | None
) -> None:
    """A file where a directory should be is named, and both faults are told at once."""
    plain = told_settings.postgresql.data_dir.parent / "plain"
    plain.write_text("")
    settings = with_postgresql(told_settings, data_dir=plain)
    told = faults(msgspec.structs.replace(settings, state_dir=plain.parent / "plain" / "x"), run_as)
    assert any("is not a directory" in line and line.startswith("postgresql.data_dir") for line in told)
    assert any(line.startswith("matriarch.state_dir") for line in told)


@pytest.mark.servers
@pytest.mark.anyio
async def test_preflight_passes_when_our_own_server_holds_the_port(
    told_settings: Settings, run_as: RunAs | None, postgres_bin: Path
) -> None:
    """A running server of this data directory is no fault; the same port taken by a foreign data directory is."""
    data_dir, port = told_settings.postgresql.data_dir, told_settings.postgresql.listen_port
    options = f"-p {port} -h 127.0.0.1 -k ''"
    await run(["initdb", "-D", str(data_dir), "-N", "-U", "postgres", "-A", "trust"], postgres_bin, run_as)
    await run(
        ["pg_ctl", "-D", str(data_dir), "-w", "-l", f"{data_dir}/log", "-o", options, "start"], postgres_bin, run_as
    )
    try:
        preflight(told_settings, run_as)
        other = data_dir.parent / "other"
        shutil.copytree(data_dir, other, ignore=shutil.ignore_patterns("postmaster.pid", "log"))
        shutil.copystat(data_dir, other)
        if run_as:
            os.chown(other, run_as.uid, run_as.gid)
        (told,) = faults(with_postgresql(told_settings, data_dir=other), run_as)
        assert "is in use" in told
    finally:
        await run(["pg_ctl", "-D", str(data_dir), "-m", "immediate", "stop"], postgres_bin, run_as)


async def run(argv: list[str], postgres_bin: Path, run_as: RunAs | None) -> ProgramEnded:
    """Runs one of PostgreSQL's programs to its end."""
    ended = await run_program([str(postgres_bin / argv[0]), *argv[1:]], run_as=run_as, timeout_ms=60_000)
    return ended.check()
