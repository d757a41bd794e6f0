"""Looks at the machine before anything is started: programs, directories, ports. Looks only; changes nothing."""

import errno
import os
import re
import shutil
import socket
import stat
import subprocess
from pathlib import Path

from effects.errors import ConfigError
from effects.programs import HIDDEN_PREFIXES, RunAs
from effects.settings_types import Findings, PostgresSettings, Settings
from effects.settings_values import WILDCARD_HOSTS

NEEDED_PROGRAMS = ("postgres", "initdb", "pg_controldata", "pg_basebackup", "pg_rewind")
MAJOR_MIN = 14
PROBE_TIMEOUT_S = 10
# PostgreSQL's own rule for its data directory. Source: PostgreSQL, initdb --allow-group-access.
DATA_DIR_MODES = (0o700, 0o750)
_DEBIAN_BIN_DIRS = ("/usr/lib/postgresql", "*/bin/postgres")


def preflight(settings: Settings, run_as: RunAs | None, *, has_api_socket: bool = False) -> None:
    """Returns if this machine can run the server that the settings describe.

    Args:
        settings: what was read.
        run_as: the user that PostgreSQL's programs run as; None for this process's own user.
        has_api_socket: the agent already listens where restapi.listen says.

    Raises: ConfigError with every fault, each in one line with its remedy. Nothing is deleted, created or changed.
    Source: PostgreSQL, Creating a Database Cluster; Patroni --validate-config.
    """
    findings = Findings()
    major = _check_programs(settings.postgresql, run_as, findings)
    _check_data_dir(settings.postgresql.data_dir, run_as, major, findings)
    _check_state_dir(settings, findings)
    _check_ports(settings, findings, has_api_socket=has_api_socket)
    findings.raise_faults()


def _check_programs(postgresql: PostgresSettings, run_as: RunAs | None, findings: Findings) -> int | None:
    """Returns the major version of the programs, or None if that could not be learnt."""
    if run_as is None and os.geteuid() == 0:
        remedy = "name a user in matriarch.run_as or MATRIARCH_RUN_AS"
        findings.fault("matriarch.run_as", f"found root, and PostgreSQL refuses to run as root; {remedy}")
        return None
    found = {program: _find(postgresql, program) for program in NEEDED_PROGRAMS}
    missing = [postgresql.bin_names.get(program, program) for program, path in found.items() if path is None]
    where = str(postgresql.bin_dir or "PATH")
    if missing:
        findings.fault("postgresql.bin_dir", f"{where} has no {', '.join(missing)}; {_install_remedy()}")
    postgres = found["postgres"]
    return _major_version(postgres, run_as, findings) if postgres else None


def _find(postgresql: PostgresSettings, program: str) -> Path | None:
    name = postgresql.bin_names.get(program, program)
    found = shutil.which(name, path=str(postgresql.bin_dir) if postgresql.bin_dir else None)
    return Path(found) if found else None


def _install_remedy() -> str:
    base, pattern = _DEBIAN_BIN_DIRS
    installed = sorted(str(path.parent) for path in Path(base).glob(pattern))
    found = f" (found here: {', '.join(installed)})" if installed else ""
    return f"install PostgreSQL's server package, or set postgresql.bin_dir to its programs{found}"


def _major_version(postgres: Path, run_as: RunAs | None, findings: Findings) -> int | None:
    status, answer = _probe([str(postgres), "--version"], run_as)
    version = re.search(r"\) (\d+)", answer)
    if status != 0 or version is None:
        user = run_as.name if run_as else "this user"
        remedy = f"make it and the directories above it readable and executable for {user}"
        findings.fault("postgresql.bin_dir", f"{postgres} cannot be run as {user}: {answer or 'no answer'}; {remedy}")
        return None
    major = int(version[1])
    if major < MAJOR_MIN:
        message = f"found PostgreSQL {major} in {postgres.parent}, allowed: {MAJOR_MIN} or newer; install a newer one"
        findings.fault("postgresql.bin_dir", message)
    return major


def _probe(argv: list[str], run_as: RunAs | None) -> tuple[int, str]:
    """Returns the status and the first line that a harmless program answers, run as the server's user."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(HIDDEN_PREFIXES)}
    try:
        ended = subprocess.run(
            argv,
            user=run_as.uid if run_as else None,
            group=run_as.gid if run_as else None,
            extra_groups=[] if run_as else None,
            env=environment | {"LC_ALL": "C"},
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PROBE_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return 1, f"no answer within {PROBE_TIMEOUT_S} s"
    except OSError as error:
        return 1, error.strerror or "cannot be started"
    lines = (ended.stdout or ended.stderr).decode(errors="replace").splitlines()
    return ended.returncode, lines[0] if lines else ""


def _check_data_dir(data_dir: Path, run_as: RunAs | None, major: int | None, findings: Findings) -> None:
    user = run_as.name if run_as else "this user"
    barrier = _barrier(data_dir, run_as)
    if barrier is not None:
        remedy = f"chmod o+x {barrier}, or choose another postgresql.data_dir"
        findings.fault("postgresql.data_dir", f"{data_dir} cannot be reached by {user} through {barrier}; {remedy}")
    try:
        found = data_dir.stat()
    except OSError as error:
        _check_can_create(data_dir, error, findings)
        return
    if not stat.S_ISDIR(found.st_mode):
        findings.fault("postgresql.data_dir", f"{data_dir} is not a directory; move it away or choose another path")
        return
    _check_owner_and_rights(data_dir, found, run_as, findings)
    _check_data_version(data_dir, major, findings)


def _barrier(path: Path, run_as: RunAs | None) -> Path | None:
    """Returns the first directory above the path that the server's user may not pass, as the kernel judges it."""
    existing = [parent for parent in reversed(path.parents) if parent.is_dir()]
    if run_as is None or os.geteuid() != 0:
        return next((parent for parent in existing if not os.access(parent, os.X_OK)), None)
    # ACLs and mounts make the bits of the mode tell only half of it, so the user itself tries.
    return next((parent for parent in existing if _probe(["test", "-x", str(parent)], run_as)[0] != 0), None)


def _check_can_create(data_dir: Path, error: OSError, findings: Findings) -> None:
    if error.errno != errno.ENOENT:
        findings.fault("postgresql.data_dir", f"{data_dir} cannot be looked at: {error.strerror}; correct its rights")
        return
    parent = _nearest_existing(data_dir)
    if not parent.is_dir():
        findings.fault(
            "postgresql.data_dir", f"{data_dir} cannot be created, as {parent} is a file; choose another path"
        )
    elif not os.access(parent, os.W_OK | os.X_OK):
        remedy = "create the directory for the server's user, or correct the rights"
        findings.fault("postgresql.data_dir", f"{data_dir} cannot be created in {parent}, not writable; {remedy}")


def _nearest_existing(path: Path) -> Path:
    return next((parent for parent in (path, *path.parents) if os.path.lexists(parent)), Path("/"))


def _check_owner_and_rights(data_dir: Path, found: os.stat_result, run_as: RunAs | None, findings: Findings) -> None:
    uid = run_as.uid if run_as else os.geteuid()
    if found.st_uid != uid:
        name = run_as.name if run_as else str(uid)
        message = f"{data_dir} belongs to user {_owner(data_dir)}, allowed: {name}; chown -R {name} {data_dir}"
        findings.fault("postgresql.data_dir", message)
    mode = stat.S_IMODE(found.st_mode)
    if mode not in DATA_DIR_MODES and not _is_empty(data_dir):
        message = f"{data_dir} has rights {mode:04o}, allowed: 0700 or 0750; chmod 0700 {data_dir}"
        findings.fault("postgresql.data_dir", message)


def _owner(path: Path) -> str:
    try:
        return path.owner()
    except (KeyError, OSError):
        return str(path.stat().st_uid)


def _is_empty(directory: Path) -> bool:
    try:
        return not any(directory.iterdir())
    except OSError:
        return False


def _check_data_version(data_dir: Path, major: int | None, findings: Findings) -> None:
    try:
        written = (data_dir / "PG_VERSION").read_text(errors="replace").strip()
    except OSError:
        return
    if major is not None and written != str(major):
        remedy = f"set postgresql.bin_dir to the programs of PostgreSQL {written[:20]}, or run pg_upgrade"
        message = f"{data_dir} was made by PostgreSQL {written[:20]!r}, allowed: {major}, as bin_dir has it; {remedy}"
        findings.fault("postgresql.data_dir", message)


def _check_state_dir(settings: Settings, findings: Findings) -> None:
    state_dir, data_dir = settings.state_dir, settings.postgresql.data_dir
    near = _nearest_existing(state_dir)
    if not near.is_dir():
        findings.fault("matriarch.state_dir", f"{near} is not a directory; move it away or choose another path")
    elif not os.access(near, os.W_OK | os.X_OK):
        message = (
            f"{state_dir} is not writable by user {os.geteuid()} in {near}; correct its rights or choose another path"
        )
        findings.fault("matriarch.state_dir", message)
    own, server = state_dir.resolve(), data_dir.resolve()
    if own.is_relative_to(server) or server.is_relative_to(own):
        message = f"{state_dir} and postgresql.data_dir {data_dir} lie in each other; choose directories side by side"
        findings.fault("matriarch.state_dir", message)


def _check_ports(settings: Settings, findings: Findings, *, has_api_socket: bool) -> None:
    restapi, postgresql = settings.restapi, settings.postgresql
    if not has_api_socket:
        _check_port("restapi.listen", restapi.listen_host.split(","), restapi.listen_port, findings)
    if _running_port(postgresql.data_dir) != postgresql.listen_port:
        _check_port("postgresql.listen", list(postgresql.listen_hosts), postgresql.listen_port, findings)


def _running_port(data_dir: Path) -> int | None:
    """Returns the port of the server that runs in this directory, if one does. Source: PostgreSQL, postmaster.pid."""
    try:
        lines = (data_dir / "postmaster.pid").read_text().splitlines()
        pid, port = int(lines[0]), int(lines[3])
        # The postmaster works in its data directory; a process that took over its number after a crash does not.
        return port if Path(f"/proc/{pid}/cwd").samefile(data_dir) else None
    except (OSError, ValueError, IndexError):
        return None


def _check_port(path: str, hosts: list[str], port: int, findings: Findings) -> None:
    for host in hosts:
        message = _bind_fault(host, port)
        if message:
            findings.fault(path, message)


def _bind_fault(host: str, port: int) -> str:
    """Returns why an address cannot be listened on, or ""; the address is let go of at once."""
    bound = "0.0.0.0" if host in WILDCARD_HOSTS - {"::"} else host  # noqa: S104 - the operator's own wildcard
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(bound, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            # As the server itself does: connections that linger after its predecessor do not count.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(target)
    except UnicodeError:
        return f"found host {host}, which is no name of a host; name one of this machine's addresses"
    except socket.gaierror as error:
        return f"found host {host}, which cannot be resolved: {error.strerror}; name one of this machine's addresses"
    except OSError as error:
        return _bind_remedy(error, host, port)
    return ""


def _bind_remedy(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        remedy = "stop that one (ss -ltnp shows it) or choose a free port"
        return f"port {port} on {host} is in use by another process; {remedy}"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{host} is no address of this machine; name one that `ip addr` shows, or 0.0.0.0"
    if error.errno == errno.EACCES:
        return f"port {port} needs root's rights; choose one from 1024 on"
    return f"{host}:{port} cannot be listened on: {error.strerror}; choose another address"


def find_bin_dir(postgresql: PostgresSettings) -> Path:
    """The directory of PostgreSQL's programs: as configured, else where PATH finds `postgres`.

    Raises: ConfigError when there is none.
    """
    if postgresql.bin_dir is not None:
        return postgresql.bin_dir
    found = _find(postgresql, "postgres")
    if found is None:
        raise ConfigError([f"postgresql.bin_dir: PATH has no postgres; {_install_remedy()}"])
    return found.resolve().parent
