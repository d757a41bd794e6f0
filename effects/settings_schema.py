"""The table of all settings: where each is written, which variable sets it, how it is read and what it is by default.

Source of names and defaults: Patroni's YAML configuration and environment configuration settings.
"""

from difflib import get_close_matches
from typing import Any

from msgspec import Struct

from effects.settings_options import (
    BASEBACKUP_FORBIDDEN,
    INITDB_FORBIDDEN,
    REWIND_FORBIDDEN,
    arguments_without,
    tags,
)
from effects.settings_values import (
    Reader,
    address,
    boolean,
    choice,
    data_dir,
    duration_s,
    file,
    lines,
    list_of,
    map_of,
    name,
    namespace,
    octal_mode,
    path,
    raw,
    raw_map,
    secret,
    single,
    size_bytes,
    switch_or,
    text,
    text_or_fields,
    url,
    whole,
)
from fsm.dynamic import TTL_MIN_REASON, TTL_MIN_S
from fsm.timing import FAILSAFE_TIMEOUT_MAX_MS, FAILSAFE_TIMEOUT_MIN_MS


class Row(Struct, frozen=True):
    """One setting. `env` is its variable, `no_effect` says why it does nothing here although Patroni knows it."""

    path: str
    read: Reader
    env: str = ""
    default: Any = None
    is_required: bool = False
    example: str = ""
    no_effect: str = ""

    @property
    def is_secret(self) -> bool:
        """True if the value must not be shown."""
        return self.read is secret


LEVELS = ("CRITICAL", "FATAL", "ERROR", "WARNING", "WARN", "INFO", "DEBUG", "NOTSET")
CALLBACKS = ("on_start", "on_stop", "on_restart", "on_reload", "on_role_change")
PROGRAMS = ("pg_ctl", "initdb", "pg_controldata", "pg_basebackup", "postgres", "pg_isready", "pg_rewind")
LOG_NO_EFFECT = "the log has no routine lines and no tracebacks here"
THREADS = "there are no threads to size here"

_CREDENTIALS: dict[str, Reader] = {
    "username": text,
    "password": secret,
    "sslmode": choice("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
    "sslcert": text,
    "sslkey": text,
    "sslpassword": secret,
    "sslrootcert": text,
    "sslcrl": text,
    "sslcrldir": text,
    "gssencmode": choice("disable", "prefer", "require"),
    "channel_binding": choice("disable", "prefer", "require"),
    "sslnegotiation": choice("postgres", "direct"),
}
USERS = ("superuser", "replication", "rewind")

# What the dynamic configuration knows, and its type. Its meaning and its limits are decided elsewhere.
_DYNAMIC: dict[str, Reader] = {
    "ttl": duration_s(TTL_MIN_S, TTL_MIN_REASON),
    "loop_wait": duration_s(1),
    "retry_timeout": duration_s(1),
    "maximum_lag_on_failover": size_bytes(),
    "maximum_lag_on_syncnode": size_bytes(-1),
    "max_timelines_history": whole(0),
    "check_timeline": boolean,
    "primary_start_timeout": duration_s(),
    "master_start_timeout": duration_s(),
    "primary_stop_timeout": duration_s(),
    "master_stop_timeout": duration_s(),
    "primary_stall_timeout": duration_s(),
    "primary_race_backoff": duration_s(),
    "synchronous_mode": switch_or("off", "on", "quorum"),
    "synchronous_mode_strict": boolean,
    "synchronous_node_count": whole(0),
    "failsafe_mode": boolean,
    "failsafe_timeout": whole(FAILSAFE_TIMEOUT_MIN_MS, FAILSAFE_TIMEOUT_MAX_MS),
    "pause": boolean,
    "member_slots_ttl": duration_s(),
    "slots": raw_map,
    "permanent_slots": raw_map,
    "permanent_replication_slots": raw_map,
    "ignore_slots": raw,
    "postgresql.use_slots": boolean,
    "standby_cluster.host": text,
    "standby_cluster.port": text,
    "standby_cluster.primary_slot_name": text,
    "standby_cluster.create_replica_methods": list_of(text),
    "standby_cluster.restore_command": text,
    "standby_cluster.archive_cleanup_command": text,
    "standby_cluster.recovery_min_apply_delay": text,
}

_POSTGRES_LOCAL = (
    Row(
        "postgresql.listen",
        address(default_port=5432, is_listen=True, allows_many=True),
        "POSTGRESQL_LISTEN",
        is_required=True,
        example="0.0.0.0:5432",
    ),
    Row(
        "postgresql.connect_address", address(default_port=5432), "POSTGRESQL_CONNECT_ADDRESS", example="10.0.0.1:5432"
    ),
    Row("postgresql.proxy_address", address(default_port=5432), "POSTGRESQL_PROXY_ADDRESS"),
    Row("postgresql.data_dir", data_dir, "POSTGRESQL_DATA_DIR", is_required=True, example="/var/lib/postgresql/data"),
    Row("postgresql.config_dir", path, "POSTGRESQL_CONFIG_DIR"),
    Row("postgresql.pgpass", path, "POSTGRESQL_PGPASS"),
)

# Usable in the dynamic configuration as well; what a node sets for itself wins there.
_POSTGRES_SHARED = (
    Row("postgresql.bin_dir", path, "POSTGRESQL_BIN_DIR"),
    *(Row(f"postgresql.bin_name.{program}", text, f"POSTGRESQL_BIN_{program.upper()}") for program in PROGRAMS),
    Row("postgresql.database", text, default="postgres"),
    Row("postgresql.krbsrvname", text),
    Row("postgresql.use_unix_socket", boolean, default=False),
    Row("postgresql.use_unix_socket_repl", boolean, default=False),
    Row("postgresql.config_base_name", text, default="postgresql"),
    Row("postgresql.custom_conf", text),
    Row("postgresql.parameters", map_of(text), default={}),
    Row("postgresql.pg_hba", lines, default=()),
    Row("postgresql.pg_ident", lines, default=()),
    *(Row(f"postgresql.parameters_{role}", map_of(single)) for role in ("primary", "replica", "standby_leader")),
    *(Row(f"postgresql.pg_hba_{role}", lines) for role in ("primary", "replica", "standby_leader")),
    *(Row(f"postgresql.pg_ident_{role}", lines) for role in ("primary", "replica", "standby_leader")),
    Row("postgresql.recovery_conf", map_of(single), default={}),
    *(Row(f"postgresql.callbacks.{action}", text) for action in CALLBACKS),
    Row("postgresql.pre_promote", text),
    Row("postgresql.before_stop", text),
    Row("postgresql.create_replica_methods", list_of(text), default=("basebackup",)),
    Row("postgresql.basebackup", arguments_without(BASEBACKUP_FORBIDDEN), default=()),
    Row("postgresql.use_pg_rewind", boolean),
    Row("postgresql.remove_data_directory_on_rewind_failure", boolean),
    Row("postgresql.remove_data_directory_on_diverged_timelines", boolean),
    Row("postgresql.rewind", arguments_without(REWIND_FORBIDDEN), default=()),
    Row("postgresql.pg_ctl_timeout", duration_s(1), default=60),
)

_CONNECTIONS = (
    Row("restapi.listen", address(is_listen=True), "RESTAPI_LISTEN", is_required=True, example="0.0.0.0:8008"),
    Row("restapi.connect_address", address(), "RESTAPI_CONNECT_ADDRESS", example="10.0.0.1:8008"),
    Row("restapi.authentication.username", text, "RESTAPI_USERNAME"),
    Row("restapi.authentication.password", secret, "RESTAPI_PASSWORD"),
    Row("restapi.certfile", file, "RESTAPI_CERTFILE"),
    Row("restapi.keyfile", file, "RESTAPI_KEYFILE"),
    Row("restapi.keyfile_password", secret, "RESTAPI_KEYFILE_PASSWORD"),
    Row("restapi.cafile", file, "RESTAPI_CAFILE"),
    Row("restapi.ciphers", text, "RESTAPI_CIPHERS"),
    Row("restapi.verify_client", choice("none", "optional", "required"), "RESTAPI_VERIFY_CLIENT", "none"),
    Row("restapi.allowlist", list_of(text), "RESTAPI_ALLOWLIST", ()),
    Row("restapi.allowlist_include_members", boolean, "RESTAPI_ALLOWLIST_INCLUDE_MEMBERS", False),
    Row("restapi.http_extra_headers", map_of(text), "RESTAPI_HTTP_EXTRA_HEADERS", {}),
    Row("restapi.https_extra_headers", map_of(text), "RESTAPI_HTTPS_EXTRA_HEADERS", {}),
    Row("restapi.request_queue_size", whole(0, 4096), "RESTAPI_REQUEST_QUEUE_SIZE", no_effect=THREADS),
    Row("restapi.thread_pool_size", whole(5), "RESTAPI_THREAD_POOL_SIZE", no_effect=THREADS),
    Row(
        "restapi.server_tokens",
        choice("minimal", "productonly", "original"),
        "RESTAPI_SERVER_TOKENS",
        no_effect="the answers carry no Server header here",
    ),
    Row("ctl.insecure", boolean, "CTL_INSECURE", False),
    Row("ctl.cacert", file, "CTL_CACERT"),
    Row("ctl.certfile", file, "CTL_CERTFILE"),
    Row("ctl.keyfile", file, "CTL_KEYFILE"),
    Row("ctl.keyfile_password", secret, "CTL_KEYFILE_PASSWORD"),
    Row("ctl.authentication.username", text, "CTL_USERNAME"),
    Row("ctl.authentication.password", secret, "CTL_PASSWORD"),
    Row("etcd3.url", url, "ETCD3_URL"),
    Row("etcd3.hosts", list_of(address(default_port=0)), "ETCD3_HOSTS", example="etcd1:2379,etcd2:2379,etcd3:2379"),
    Row("etcd3.host", address(default_port=0), "ETCD3_HOST"),
    Row("etcd3.port", whole(1, 65_535), "ETCD3_PORT", 2379),
    Row("etcd3.protocol", choice("http", "https"), "ETCD3_PROTOCOL"),
    Row("etcd3.username", text, "ETCD3_USERNAME"),
    Row("etcd3.password", secret, "ETCD3_PASSWORD"),
    Row("etcd3.cacert", file, "ETCD3_CACERT"),
    Row("etcd3.cert", file, "ETCD3_CERT"),
    Row("etcd3.key", file, "ETCD3_KEY"),
    Row("etcd3.proxy", url, "ETCD3_PROXY", no_effect="name the endpoints in etcd3.hosts"),
    Row("etcd3.use_proxies", boolean, "ETCD3_USE_PROXIES", no_effect="every endpoint of etcd3.hosts is tried anyway"),
    Row("etcd3.srv", text, "ETCD3_SRV", no_effect="name the endpoints in etcd3.hosts"),
    Row("etcd3.srv_suffix", text, "ETCD3_SRV_SUFFIX", no_effect="name the endpoints in etcd3.hosts"),
)

_LOG = (
    Row("log.type", choice("plain", "json"), "LOG_TYPE", "plain"),
    Row("log.level", choice(*LEVELS), "LOG_LEVEL", "INFO"),
    Row("log.traceback_level", choice(*LEVELS), "LOG_TRACEBACK_LEVEL", no_effect=LOG_NO_EFFECT),
    Row("log.format", text_or_fields, "LOG_FORMAT"),
    Row("log.dateformat", text, "LOG_DATEFORMAT"),
    Row("log.static_fields", map_of(single), "LOG_STATIC_FIELDS", {}),
    Row("log.max_queue_size", whole(0), "LOG_MAX_QUEUE_SIZE", 1000),
    Row("log.dir", path, "LOG_DIR"),
    Row("log.mode", octal_mode, "LOG_MODE"),
    Row("log.file_num", whole(0), "LOG_FILE_NUM", 4),
    Row("log.file_size", size_bytes(1), "LOG_FILE_SIZE", 25_000_000),
    Row("log.loggers", map_of(choice(*LEVELS)), "LOG_LOGGERS", {}),
    Row("log.deduplicate_heartbeat_logs", boolean, "LOG_DEDUPLICATE_HEARTBEAT_LOGS", no_effect=LOG_NO_EFFECT),
)

TABLE: tuple[Row, ...] = (
    Row("scope", name, "SCOPE", is_required=True, example="main"),
    Row("namespace", namespace, "NAMESPACE", "service"),
    Row("name", name, "NAME", is_required=True, example="node1"),
    Row("thread_pool_size", whole(5), "THREAD_POOL_SIZE", no_effect=THREADS),
    Row("thread_stack_size", size_bytes(65_536), "THREAD_STACK_SIZE", no_effect=THREADS),
    *_CONNECTIONS,
    *_POSTGRES_LOCAL,
    *_POSTGRES_SHARED,
    *(
        Row(
            f"postgresql.authentication.{user}.{key}",
            read,
            f"{user.upper()}_{key.upper()}",
            is_required=key == "username" and user != "rewind",
            example={"superuser": "postgres", "replication": "replicator"}.get(user, ""),
        )
        for user in USERS
        for key, read in _CREDENTIALS.items()
    ),
    *(Row(f"bootstrap.dcs.{key}", read) for key, read in _DYNAMIC.items()),
    *(Row(f"bootstrap.dcs.{row.path}", row.read) for row in _POSTGRES_SHARED),
    Row("bootstrap.method", text, default="initdb"),
    Row("bootstrap.initdb", arguments_without(INITDB_FORBIDDEN), default=()),
    Row("bootstrap.pg_hba", lines, default=()),
    Row("bootstrap.post_bootstrap", text),
    Row("tags", tags, default={}),
    *_LOG,
    Row("watchdog.mode", switch_or("off", "automatic", "required"), default="automatic"),
    Row("watchdog.device", path, default="/dev/watchdog"),
    Row("watchdog.safety_margin", whole(-1), default=5),
    Row("watchdog.driver", text),
    Row("matriarch.state_dir", path, "MATRIARCH_STATE_DIR"),
    Row("matriarch.run_as", text, "MATRIARCH_RUN_AS"),
)

ROWS = {row.path: row for row in TABLE}
SECTIONS = {row.path[:at] for row in TABLE for at, letter in enumerate(row.path) if letter == "."}
LOCAL_ONLY = {row.path.split(".")[1] for row in _POSTGRES_LOCAL} | {
    "authentication",
    "superuser",
    "replication",
    "name",
}

# Another spelling, and the setting that it means. Source: Patroni's older configuration files.
ALIASES = {
    "postgresql.name": "name",
    "postgresql.superuser": "postgresql.authentication.superuser",
    "postgresql.replication": "postgresql.authentication.replication",
    "postgresql.create_replica_method": "postgresql.create_replica_methods",
    "bootstrap.dcs.postgresql.create_replica_method": "bootstrap.dcs.postgresql.create_replica_methods",
    "bootstrap.post_init": "bootstrap.post_bootstrap",
}

DYNAMIC_PREFIX = "PATRONI_BOOTSTRAP_DCS_"
PARAMETERS_PREFIX = f"{DYNAMIC_PREFIX}POSTGRESQL_PARAMETERS_"
CONFIGURATION = "PATRONI_CONFIGURATION"


def _variable(row: Row) -> str:
    if row.path.startswith("bootstrap.dcs."):
        return "PATRONI_" + row.path.upper().replace(".", "_")
    return row.env if row.env.startswith("MATRIARCH_") or not row.env else f"PATRONI_{row.env}"


VARIABLES = {_variable(row): row.path for row in TABLE if _variable(row)} | {
    "PATRONI_LOGLEVEL": "log.level",
    "PATRONI_LOGFORMAT": "log.format",
    "PATRONI_LOG_DATEFMT": "log.dateformat",
}
VARIABLE_OF = {path: variable for variable, path in reversed(VARIABLES.items())}

# Patroni's other stores and Citus: sections and variables that are known but not spoken here.
FOREIGN_SECTIONS = ("etcd", "consul", "zookeeper", "exhibitor", "kubernetes", "raft", "citus")

# Only the dynamic configuration may set these, so that no node differs. Source: Patroni, "controlled" parameters.
CONTROLLED_PARAMETERS = (
    "max_connections",
    "max_locks_per_transaction",
    "max_worker_processes",
    "max_prepared_transactions",
    "max_wal_senders",
    "max_replication_slots",
    "wal_level",
    "track_commit_timestamp",
    "wal_log_hints",
    "wal_keep_segments",
    "wal_keep_size",
    "hot_standby",
)
# Made from postgresql.listen and scope.
DERIVED_PARAMETERS = ("listen_addresses", "port", "cluster_name")


def nearest_path(unknown: str) -> str:
    """Returns the known setting that an unknown one may mean, or "": a neighbour, or the same word elsewhere."""
    known = [*ROWS, *sorted(SECTIONS)]
    parent, _, word = unknown.rpartition(".")
    siblings = {path.rpartition(".")[2]: path for path in known if path.rpartition(".")[0] == parent}
    same_word = [path for path in known if path.rpartition(".")[2] == word]
    near = [siblings[match] for match in get_close_matches(word, siblings, 1, 0.78)]
    as_parameter = [f"{parent}.parameters.{word}"] if word in CONTROLLED_PARAMETERS and parent in SECTIONS else []
    return "".join(near or as_parameter or get_close_matches(unknown, same_word, 1, 0.0))


def nearest_variable(unknown: str) -> str:
    """Returns the known variable that an unknown one may mean, or ""."""
    same_end = [known for known in VARIABLES if known.endswith("_" + unknown.removeprefix("PATRONI_"))]
    return "".join(get_close_matches(unknown, VARIABLES, 1, 0.85) or same_end[:1])
