"""One node put together: settings, log, etcd, fence, server, peers, API and the agent's loop, in one task group."""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import signal
import socket
import ssl
import tempfile
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO

import anyio
from anyio.abc import TaskStatus
from msgspec import Struct
from starlette.types import ASGIApp

from api.access import Access
from api.app import build_app
from api.reloading import SettingsReader, configure_access, credentials_of
from api.server import LEAVE_WITHIN_S, bind, close_sockets, serve
from api.tls import ApiTls, TlsSettings
from effects.agent import Agent
from effects.bootstrap_values import IgnoredValues
from effects.clock import now_ms
from effects.clone import basebackup_arguments
from effects.config_desk import ConfigDesk
from effects.disk import DiskLooker, DiskSource
from effects.errors import ConfigError, MatriarchError
from effects.etcd import EtcdClient
from effects.etcd_access import etcd_client
from effects.failsafe_check import FailsafeCheck
from effects.fence_link import FenceLink
from effects.files import make_directory
from effects.keys import ClusterKeys, prefix_of
from effects.log import TransitionLog
from effects.peers import Peers
from effects.pgconfig import recovery_parameters
from effects.probe import Prober
from effects.processes import leftovers, running_postmaster
from effects.programs import RunAs
from effects.promises import Promises, read_promise
from effects.pulse import Pulse
from effects.redaction import redacted_config
from effects.server import Server
from effects.server_settings import Login, ServerSettings
from effects.settings_preflight import find_bin_dir
from effects.settings_types import Credentials, Secret, Settings
from effects.signals import Signals
from effects.sources import EtcdSource, FenceSource, ProbeSource
from effects.successor import HandedOver, Inherited, Successor
from fsm.dynamic import Dynamic, parse_dynamic
from fsm.events import Identity
from fsm.status import standing_word
from fsm.timing import AGENT_LEAVES_WITHIN_MS, watch_progress_every_ms

LIBPQ_OPTIONS = tuple(name for name in Credentials.__struct_fields__ if name not in ("username", "password"))
"""The parameters of libpq that a user's settings may hold."""

SOCKET_PATH_BYTES_MAX = 90
"""A Unix socket's path may have 107 bytes; PostgreSQL adds its own file name. Source: unix(7)."""

FIRST_CONFIG = {"ttl": 30, "loop_wait": 10, "retry_timeout": 10, "maximum_lag_on_failover": 1048576}
"""What `config` begins with when the settings say nothing. Source: Patroni's defaults."""

SETTLED_WITHIN_S = 5.0
"""How long the first clients wait after a restart in place; then they are told how things are."""

logger = logging.getLogger(__name__)


def identity_of(settings: Settings) -> Identity:
    """Who this node is, without anything secret."""
    postgresql, restapi = settings.postgresql, settings.restapi
    scheme = "https" if restapi.certfile else "http"
    return Identity(
        name=settings.name,
        scope=settings.scope,
        api_url=f"{scheme}://{restapi.connect_address}/patroni",
        conn_url=f"postgres://{postgresql.connect_address}/{postgresql.database}",
        tags=dict(settings.tags),
        first_config=redacted_config(first_config_of(settings)),
        # What another method would make is not an empty cluster.
        may_initialize=settings.bootstrap.method == "initdb",
        use_pg_rewind=postgresql.use_pg_rewind,
        proxy_url=f"postgres://{postgresql.proxy_address}/{postgresql.database}" if postgresql.proxy_address else "",
        clone_on_rewind_failure=postgresql.remove_data_directory_on_rewind_failure is not False,
        clone_on_divergence=postgresql.remove_data_directory_on_diverged_timelines is not False,
        watchdog_mode=settings.watchdog.mode,
        watchdog_safety_margin_s=settings.watchdog.safety_margin_s,
        has_watchdog=os.access(settings.watchdog.device, os.W_OK),
        instance=uuid.uuid4().hex,
    )


def first_config_of(settings: Settings) -> str:
    """What `config` begins with if this node makes the cluster, secrets and all."""
    return json.dumps(settings.bootstrap.dcs or FIRST_CONFIG, separators=(",", ":"))


def server_settings_of(settings: Settings, run_as: RunAs | None) -> ServerSettings:
    """This node's server as the executors need it."""
    postgresql = settings.postgresql
    authentication = postgresql.authentication
    return ServerSettings(
        scope=settings.scope,
        name=settings.name,
        data_dir=postgresql.data_dir,
        bin_dir=find_bin_dir(postgresql),
        state_dir=settings.state_dir,
        listen_host=",".join(postgresql.listen_hosts),
        port=postgresql.listen_port,
        socket_dir=socket_directory(settings),
        superuser=_login(authentication.superuser, postgresql.krbsrvname),
        replication=_login(authentication.replication, postgresql.krbsrvname),
        rewind=_login(authentication.rewind, postgresql.krbsrvname),
        parameters={**postgresql.parameters, **recovery_parameters(postgresql.recovery_conf)},
        pg_hba=postgresql.pg_hba,
        first_pg_hba=settings.bootstrap.pg_hba,
        pg_ident=postgresql.pg_ident,
        initdb_options=settings.bootstrap.initdb,
        basebackup_options=basebackup_arguments(postgresql.method_options.get("basebackup")),
        rewind_options=postgresql.rewind,
        bin_names=postgresql.bin_names,
        custom_conf=postgresql.custom_conf,
        pgpass=postgresql.pgpass,
        watchdog_device=settings.watchdog.device,
        watchdog_driver=settings.watchdog.driver or "default",
        run_as=run_as,
    )


def _login(credentials: Credentials, krbsrvname: str | None) -> Login:
    found = {name: getattr(credentials, name) for name in LIBPQ_OPTIONS} | {"krbsrvname": krbsrvname}
    return Login(
        username=credentials.username,
        password=credentials.password.reveal() if credentials.password else "",
        options={
            name: value.reveal() if isinstance(value, Secret) else value for name, value in found.items() if value
        },
    )


def socket_directory(settings: Settings) -> Path:
    """Where the server's Unix socket lies: as configured, else beside the agent's directory, else where it is short."""
    configured = settings.postgresql.parameters.get("unix_socket_directories", "").split(",")[0].strip()
    if configured:
        return Path(configured)
    beside = settings.state_dir.with_name(f"{settings.state_dir.name}.postgres")
    if len(os.fsencode(beside)) <= SOCKET_PATH_BYTES_MAX:
        return beside
    digest = hashlib.sha256(os.fsencode(beside)).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"matriarch-{digest}"


def lock_agent(state_dir: Path, inherited_fd: int | None = None) -> IO[str]:
    """The lock that keeps a second agent away from this node, held while the file is open; it holds this process's pid.

    inherited_fd: the lock as the agent before, in the same process, held it. Raises: ConfigError when another agent
    holds it.
    """
    path = state_dir / "agent.lock"
    if inherited_fd is not None and _is_file_at(inherited_fd, path):
        return os.fdopen(inherited_fd, "r+")
    file = path.open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ConfigError([f"{state_dir}: another agent runs on it; stop that one first"]) from None
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


def _is_file_at(fd: int, path: Path) -> bool:
    """True when an open file is the one that lies there."""
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except OSError:
        return False


def boot_id() -> str:
    """The machine's boot, which CLOCK_BOOTTIME counts from. Source: proc(5)."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


class Ended(Struct, frozen=True, kw_only=True):
    """How a node's run ended: with an exit status, or with what passes to its successor in the same process."""

    status: int = 0
    successor: Inherited | None = None


def check_node(settings: Settings, run_as: RunAs | None) -> None:
    """Returns when a node could be made of these settings: its files can be read and all its parts imported.

    Raises: ConfigError.
    """
    identity_of(settings)
    server_settings_of(settings, run_as)
    _api_tls(settings)
    _client_certificate(settings)
    configure_access(Access(), settings.restapi)


def fixed_settings(settings: Settings, run_as: RunAs | None) -> dict[str, str]:
    """What makes a node this node: its server, its fence and its keys are found by these."""
    found = {name: str(getattr(settings, name)) for name in ("scope", "namespace", "name", "state_dir")}
    return found | {"postgresql.data_dir": str(settings.postgresql.data_dir), "user": run_as.name if run_as else ""}


def listen_address(settings: Settings) -> str:
    """Where the API listens, as one text."""
    return f"{settings.restapi.listen_host}:{settings.restapi.listen_port}"


async def run_node(
    settings: Settings,
    run_as: RunAs | None,
    reread: Callable[[], Settings] | None = None,
    inherited: Inherited | None = None,
    signals: Signals | None = None,
) -> Ended:
    """Run this node until it is told to stop, or to make way for its successor.

    Args:
        settings: what this node was told, checked.
        run_as: the user that PostgreSQL's programs run as; None for this process's own.
        reread: reads the settings again, for SIGHUP and POST /reload; None: they stay as they are.
        inherited: listening sockets and the lock, from systemd or from the agent before in this process.
        signals: what this process was sent; None: it is told by the API alone.

    Raises: ConfigError.
    """
    inherited = inherited or Inherited()
    lock, log, last_seq = _open_state(settings, inherited)
    promise = read_promise(settings.state_dir)
    agent = Agent(identity_of(settings), boot_id(), log, last_seq, promise, in_place=inherited.is_successor)
    sockets = inherited.sockets_for(listen_address(settings))
    try:
        sockets = sockets or await bind(settings.restapi.listen_host, settings.restapi.listen_port)
        tell = partial(_told, agent, settings, run_as, is_activated=inherited.is_activated)
        await _run_with_api(agent, settings, run_as, reread, log, sockets, inherited, signals, tell)
        if agent.is_succeeded:
            return Ended(successor=Inherited(sockets, os.dup(lock.fileno()), tell()))
        return Ended(status=agent.exit_status)
    finally:
        lock.close()
        if not agent.is_succeeded:
            close_sockets(sockets)


def _open_state(settings: Settings, inherited: Inherited) -> tuple[IO[str], TransitionLog, int]:
    """The agent's lock, its log, and the number of the last entry in it. Raises: ConfigError."""
    try:
        make_directory(settings.state_dir, None)
        lock = lock_agent(settings.state_dir, inherited.lock_fd)
        log, recovered = TransitionLog.open(settings.state_dir / "log")
    except OSError as error:
        remedy = "make its parent writable for the agent, or set matriarch.state_dir"
        raise ConfigError([f"{settings.state_dir}: {error.strerror}; {remedy}"]) from None
    if recovered.torn_bytes:
        logger.warning(
            "the log's last %d bytes were damaged and are kept in %s", recovered.torn_bytes, recovered.kept_aside
        )
    return lock, log, recovered.last_seq


def _told(agent: Agent, settings: Settings, run_as: RunAs | None, *, is_activated: bool) -> HandedOver:
    """What a successor is told, as of now."""
    return HandedOver(
        listen=listen_address(settings),
        is_activated=is_activated,
        standing=standing_word(agent.board.current.view, now_ms()),
        fixed=fixed_settings(settings, run_as),
    )


async def _run_with_api(
    agent: Agent,
    settings: Settings,
    run_as: RunAs | None,
    reread: Callable[[], Settings] | None,
    log: TransitionLog,
    sockets: list[socket.socket],
    inherited: Inherited,
    signals: Signals | None,
    tell: Callable[[], HandedOver],
) -> None:
    """The agent and its API, until the agent ends."""
    api_tls, certificate = _api_tls(settings), _client_certificate(settings)
    etcd = etcd_client(settings.etcd)
    access = Access()
    configure_access(access, settings.restapi)
    peers = Peers(settings.name, credentials_of(settings.restapi), certificate)
    reader = SettingsReader(
        settings, reread or (lambda: settings), identity_of, lambda found: server_settings_of(found, run_as)
    )
    reader.serve(access=access, tls=api_tls, peers=peers)
    prefix = prefix_of(settings.namespace, settings.scope)
    ignored = IgnoredValues(settings.bootstrap.dcs)
    source = EtcdSource(etcd, prefix, agent.report, partial(_watch_progress, agent), ignored.tell)
    configs = ConfigDesk(lambda: (source.config, source.config_revision))
    try:
        async with anyio.create_task_group() as tasks:
            app = build_app(agent.board, log, agent.report, access=access, configs=configs, reload=reader.read)
            await tasks.start(_serve, app, sockets, api_tls, agent, inherited.told)
            await tasks.start(log.run)
            if signals is not None:
                tasks.start_soon(_obey, signals, agent, reader)
            await _run_agent(agent, settings, run_as, etcd, peers, source, configs, reader, Successor(tell))
            await log.aclose()
            tasks.cancel_scope.cancel()
    finally:
        with anyio.CancelScope(shield=True):
            await peers.aclose()
            await etcd.aclose()


async def _serve(
    app: ASGIApp,
    sockets: list[socket.socket],
    tls: ApiTls | None,
    agent: Agent,
    told: HandedOver | None,
    *,
    task_status: TaskStatus[object] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """The API, until cancelled. After a restart in place the first clients wait until they can be answered as before:
    their connections are in the kernel's queue already."""
    serving = partial(
        serve, app, "", 0, tls, sockets=sockets, finish_within_s=lambda: _finish_within_s(agent.is_succeeded)
    )
    if told is None:
        await serving(task_status=task_status)
        return
    task_status.started(None)
    with anyio.move_on_after(SETTLED_WITHIN_S):
        while standing_word(agent.board.current.view, now_ms()) != told.standing:
            await agent.board.changed()
    await serving()


def _finish_within_s(is_succeeded: bool) -> float:
    return AGENT_LEAVES_WITHIN_MS / 1000 if is_succeeded else LEAVE_WITHIN_S


async def _run_agent(
    agent: Agent,
    settings: Settings,
    run_as: RunAs | None,
    etcd: EtcdClient,
    peers: Peers,
    source: EtcdSource,
    configs: ConfigDesk,
    reader: SettingsReader,
    successor: Successor,
) -> None:
    """The agent with its sources and executors, until it ends."""
    prefix = prefix_of(settings.namespace, settings.scope)
    server_settings = server_settings_of(settings, run_as)
    fence = FenceSource(
        partial(FenceLink.connect_or_start, settings.state_dir),
        partial(running_postmaster, server_settings.data_dir),
        partial(leftovers, server_settings.data_dir, server_settings.program("postgres")),
        agent.report,
    )
    first_config = first_config_of(settings)

    def dynamic() -> Dynamic:
        return parse_dynamic(source.last_config or first_config)

    server = Server(server_settings, fence, dynamic, agent.note_progress)
    reader.serve(server=(server, server_settings))
    prober, pulse = Prober(server_settings), Pulse()
    looker = DiskLooker(server_settings.data_dir, run_as)
    lanes = [
        *ClusterKeys(etcd, prefix, settings.name, first_config, configs, lambda: source.last_config).lanes(
            agent.report
        ),
        *server.lanes(agent.report),
        *peers.lanes(agent.report),
        *FailsafeCheck(peers).lanes(agent.report),
        *Promises(settings.state_dir, boot_id()).lanes(agent.report),
        successor.lane(agent.report),
    ]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(source.run)
        tasks.start_soon(fence.run)
        tasks.start_soon(pulse.run)
        tasks.start_soon(ProbeSource(agent.board, prober, agent.report, pulse).run)
        tasks.start_soon(DiskSource(agent.board, looker, agent.report, pulse).run)
        await agent.run(lanes)
        if not agent.is_succeeded:
            with contextlib.suppress(MatriarchError):
                await fence.link.quit()  # refused while a server runs: then the fence goes on holding it
        tasks.cancel_scope.cancel()
    prober.close()


def _watch_progress(agent: Agent) -> int:
    return watch_progress_every_ms(agent.board.current.view.dynamic.ttl_s)


async def _obey(signals: Signals, agent: Agent, reader: SettingsReader) -> None:
    """Do what signals ask for. Source: Patroni, "signals"; SIGUSR2 is Matriarch's own."""
    async with contextlib.aclosing(signals.each()) as each:
        async for number in each:
            match number:
                case signal.SIGHUP:
                    await _reload(agent, reader)
                case signal.SIGUSR2:
                    agent.restart(number.name)
                case _:
                    logger.info("%s: stopping", number.name)
                    agent.stop()


async def _reload(agent: Agent, reader: SettingsReader) -> None:
    try:
        agent.report(await reader.read("SIGHUP", "SIGHUP"))
    except ConfigError as error:
        logger.error("SIGHUP: the settings were not read again: %s", "; ".join(error.faults))  # noqa: TRY400


def _api_tls(settings: Settings) -> ApiTls | None:
    restapi = settings.restapi
    if restapi.certfile is None:
        return None
    found = TlsSettings(
        certfile=restapi.certfile,
        keyfile=restapi.keyfile,
        keyfile_password=restapi.keyfile_password,
        cafile=restapi.cafile,
        ciphers=restapi.ciphers,
        verify_client=restapi.verify_client,
    )
    return ApiTls(found)


def _client_certificate(settings: Settings) -> ssl.SSLContext | None:
    """What shows other members this node's certificate. Source: Patroni, ctl.certfile; required by verify_client."""
    ctl = settings.ctl
    if ctl.certfile is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    password = ctl.keyfile_password.reveal() if ctl.keyfile_password else ""
    try:
        context.load_cert_chain(ctl.certfile, ctl.keyfile, password)
    except (ssl.SSLError, OSError) as error:
        raise ConfigError([f"ctl.certfile {ctl.certfile}: {error.strerror or error}"]) from error
    return context
