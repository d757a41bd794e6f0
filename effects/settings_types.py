"""What the settings look like once they are read: frozen values that every other part of the agent takes."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec import Struct

from effects.errors import ConfigError


class _Sealed:
    """Holds the text in a slot, where no encoder, `vars` or repr looks."""

    __slots__ = ("_text",)
    _text: str


@dataclass(frozen=True, init=False, repr=False, eq=False)
class Secret(_Sealed):
    """A password or key passphrase: prints and encodes as ***; only `reveal` gives it out."""

    shown: str

    def __init__(self, text: str) -> None:
        object.__setattr__(self, "shown", "***")
        object.__setattr__(self, "_text", text)

    def reveal(self) -> str:
        """Returns the text itself. Call it where it is handed to the server, and keep the result out of any message."""
        return self._text

    def __repr__(self) -> str:
        return self.shown

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)


class Credentials(Struct, frozen=True, kw_only=True):
    """How one of the agent's three users logs in. Source: Patroni `postgresql.authentication.*`, libpq parameters."""

    username: str
    password: Secret | None = None
    sslmode: str | None = None
    sslcert: str | None = None
    sslkey: str | None = None
    sslpassword: Secret | None = None
    sslrootcert: str | None = None
    sslcrl: str | None = None
    sslcrldir: str | None = None
    gssencmode: str | None = None
    channel_binding: str | None = None
    sslnegotiation: str | None = None


class EtcdSettings(Struct, frozen=True, kw_only=True):
    """Where etcd is and who we are there. Source: Patroni `etcd3.*`."""

    hosts: tuple[str, ...]
    protocol: str = "http"
    username: str | None = None
    password: Secret | None = None
    cacert: Path | None = None
    cert: Path | None = None
    key: Path | None = None


class RestApiSettings(Struct, frozen=True, kw_only=True):
    """Where this node's HTTP interface listens and how it is reached. Source: Patroni `restapi.*`.

    `listen_host` is as it was written: `*` and `0` mean every address.
    """

    listen_host: str
    listen_port: int
    connect_address: str
    username: str | None = None
    password: Secret | None = None
    certfile: Path | None = None
    keyfile: Path | None = None
    keyfile_password: Secret | None = None
    cafile: Path | None = None
    ciphers: str | None = None
    verify_client: str = "none"
    allowlist: tuple[str, ...] = ()
    allowlist_include_members: bool = False
    http_extra_headers: dict[str, str] = {}
    https_extra_headers: dict[str, str] = {}


class CtlSettings(Struct, frozen=True, kw_only=True):
    """How the command line reaches the HTTP interfaces. Source: Patroni `ctl.*`."""

    insecure: bool = False
    cacert: Path | None = None
    certfile: Path | None = None
    keyfile: Path | None = None
    keyfile_password: Secret | None = None
    username: str | None = None
    password: Secret | None = None


class Authentication(Struct, frozen=True, kw_only=True):
    """The agent's three users; `rewind` is the superuser where none is named. Source: Patroni `authentication`."""

    superuser: Credentials
    replication: Credentials
    rewind: Credentials


class PostgresSettings(Struct, frozen=True, kw_only=True):
    """This node's server. Source: Patroni `postgresql.*`.

    A `None` among the switches means that this node says nothing and the dynamic setting counts. `overrides` holds, as
    they were written, all settings of this node that win over the dynamic `postgresql.*` ones.
    """

    listen_hosts: tuple[str, ...]
    listen_port: int
    connect_address: str
    data_dir: Path
    authentication: Authentication
    proxy_address: str | None = None
    bin_dir: Path | None = None
    bin_names: dict[str, str] = {}
    config_dir: Path
    pgpass: Path | None = None
    database: str = "postgres"
    parameters: dict[str, str] = {}
    pg_hba: tuple[str, ...] = ()
    pg_ident: tuple[str, ...] = ()
    use_unix_socket: bool = False
    use_unix_socket_repl: bool = False
    use_pg_rewind: bool | None = None
    remove_data_directory_on_rewind_failure: bool | None = None
    remove_data_directory_on_diverged_timelines: bool | None = None
    create_replica_methods: tuple[str, ...] = ("basebackup",)
    method_options: dict[str, Any] = {}
    callbacks: dict[str, str] = {}
    pre_promote: str | None = None
    before_stop: str | None = None
    recovery_conf: dict[str, Any] = {}
    basebackup: tuple[str, ...] = ()
    rewind: tuple[str, ...] = ()
    krbsrvname: str | None = None
    config_base_name: str = "postgresql"
    custom_conf: str | None = None
    pg_ctl_timeout_s: int = 60
    overrides: dict[str, Any] = {}


class BootstrapSettings(Struct, frozen=True, kw_only=True):
    """How a new cluster begins. `dcs` is the first `/config`, `initdb` ready-made arguments. Source: `bootstrap.*`."""

    dcs: dict[str, Any] = {}
    method: str = "initdb"
    initdb: tuple[str, ...] = ()
    pg_hba: tuple[str, ...] = ()
    post_bootstrap: str | None = None
    method_options: dict[str, Any] = {}


class LogSettings(Struct, frozen=True, kw_only=True):
    """Where and how the readable log is written (not the transition log). Source: Patroni `log.*`."""

    type: str = "plain"
    level: str = "INFO"
    format: str | tuple[tuple[str, str], ...] | None = None
    """One text, or for JSON the fields of a record, each with the name that it is given."""
    dateformat: str | None = None
    static_fields: dict[str, Any] = {}
    max_queue_size: int = 1000
    dir: Path | None = None
    mode: int | None = None
    file_num: int = 4
    file_size_bytes: int = 25_000_000
    loggers: dict[str, str] = {}


class WatchdogSettings(Struct, frozen=True, kw_only=True):
    """The kernel's watchdog. Source: Patroni `watchdog.*`."""

    mode: str = "automatic"
    device: str = "/dev/watchdog"
    safety_margin_s: int = 5
    driver: str | None = None


class Settings(Struct, frozen=True, kw_only=True):
    """Everything this node was told by its file and its environment, checked."""

    scope: str
    namespace: str = "service"
    name: str
    etcd: EtcdSettings
    restapi: RestApiSettings
    ctl: CtlSettings = CtlSettings()
    postgresql: PostgresSettings
    bootstrap: BootstrapSettings = BootstrapSettings()
    tags: dict[str, Any] = {}
    log: LogSettings = LogSettings()
    watchdog: WatchdogSettings = WatchdogSettings()
    state_dir: Path
    run_as: str | None = None
    warnings: tuple[str, ...] = ()


class ClientSettings(Struct, frozen=True, kw_only=True):
    """What a command needs that only asks: where etcd is, which cluster, and how its members let it in."""

    scope: str
    name: str = ""
    """The node that the file is of; empty in one that is for patronictl only."""
    namespace: str = "service"
    etcd: EtcdSettings
    restapi: RestApiSettings
    ctl: CtlSettings = CtlSettings()


class Findings:
    """Collects what is wrong, so that the operator hears all of it at once."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        self.warnings: list[str] = []

    def fault(self, place: str, message: str) -> None:
        """Notes something that must be put right before the agent can start."""
        self.faults.append(f"{place}: {message}")

    def warn(self, place: str, message: str) -> None:
        """Notes something that the agent can start with but that surely is not what the operator wants."""
        self.warnings.append(f"{place}: {message}")

    def raise_faults(self) -> None:
        """Returns if nothing is wrong. Raises ConfigError with every fault, each once, in the order of files and lines.

        The warnings follow: a key that is misspelt is often the reason why another one is missing.
        """
        if self.faults:
            warnings = [f"{warning} (a warning)" for warning in self.warnings]
            raise ConfigError(list(dict.fromkeys(sorted(self.faults, key=_by_line) + sorted(warnings, key=_by_line))))


def _by_line(fault: str) -> tuple[bool, str, int]:
    found = re.match(r"(.+?):(\d+)(?::\d+)?: ", fault)
    return (False, found[1], int(found[2])) if found else (True, "", 0)
