"""Every name that Patroni's users know is known here: it has an effect, or what it does not do is told."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from effects.errors import ConfigError
from effects.settings import load
from effects.settings_schema import ROWS, VARIABLES
from effects.settings_unbuilt import UNBUILT, unbuilt_in, why_unbuilt
from tests.effects.test_settings import COMPLETE, ENVIRONMENT, complete

NAMES = {
    "": "CONFIGURATION NAME NAMESPACE SCOPE THREAD_POOL_SIZE THREAD_STACK_SIZE LOGLEVEL LOGFORMAT LOG_DATEFMT",
    "LOG_": "TYPE LEVEL TRACEBACK_LEVEL FORMAT DATEFORMAT STATIC_FIELDS MAX_QUEUE_SIZE DIR MODE FILE_NUM FILE_SIZE"
    " LOGGERS DEDUPLICATE_HEARTBEAT_LOGS",
    "RESTAPI_": "LISTEN CONNECT_ADDRESS USERNAME PASSWORD CERTFILE KEYFILE KEYFILE_PASSWORD CAFILE CIPHERS"
    " VERIFY_CLIENT ALLOWLIST ALLOWLIST_INCLUDE_MEMBERS HTTP_EXTRA_HEADERS HTTPS_EXTRA_HEADERS REQUEST_QUEUE_SIZE"
    " SERVER_TOKENS THREAD_POOL_SIZE",
    "CTL_": "INSECURE CACERT CERTFILE KEYFILE KEYFILE_PASSWORD USERNAME PASSWORD",
    "POSTGRESQL_": "LISTEN CONNECT_ADDRESS PROXY_ADDRESS DATA_DIR CONFIG_DIR PGPASS BIN_DIR BIN_PG_CTL BIN_INITDB"
    " BIN_PG_CONTROLDATA BIN_PG_BASEBACKUP BIN_POSTGRES BIN_PG_ISREADY BIN_PG_REWIND",
    **dict.fromkeys(
        ("SUPERUSER_", "REPLICATION_", "REWIND_"),
        "USERNAME PASSWORD SSLMODE SSLCERT SSLKEY SSLPASSWORD SSLROOTCERT SSLCRL SSLCRLDIR GSSENCMODE CHANNEL_BINDING"
        " SSLNEGOTIATION",
    ),
    "ETCD3_": "HOST HOSTS PORT URL PROXY USE_PROXIES PROTOCOL SRV SRV_SUFFIX USERNAME PASSWORD CACERT CERT KEY",
}
OTHER_STORES = {
    "ETCD_": "HOST HOSTS PORT URL PROXY USE_PROXIES PROTOCOL SRV SRV_SUFFIX USERNAME PASSWORD CACERT CERT KEY",
    "CITUS_": "GROUP DATABASE",
    "CONSUL_": "HOST PORT URL TOKEN VERIFY CACERT CERT KEY DC CHECKS CONSISTENCY REGISTER_SERVICE SERVICE_TAGS"
    " SERVICE_CHECK_INTERVAL SERVICE_CHECK_TLS_SERVER_NAME",
    "ZOOKEEPER_": "HOSTS USE_SSL CACERT CERT KEY KEY_PASSWORD VERIFY SET_ACLS AUTH_DATA",
    "EXHIBITOR_": "HOSTS PORT",
    "KUBERNETES_": "NAMESPACE CONTEXT LABELS SCOPE_LABEL ROLE_LABEL LEADER_LABEL_VALUE FOLLOWER_LABEL_VALUE"
    " STANDBY_LEADER_LABEL_VALUE TMP_ROLE_LABEL USE_ENDPOINTS POD_IP PORTS CACERT RETRIABLE_HTTP_CODES"
    " BYPASS_API_SERVICE BOOTSTRAP_LABELS",
    "RAFT_": "DATA_DIR SELF_ADDR PARTNER_ADDRS PASSWORD BIND_ADDR MIN_TIMEOUT MAX_TIMEOUT CONNECTION_TIMEOUT"
    " APPEND_ENTRIES_PERIOD CONNECTION_RETRY_TIME LEADER_FALLBACK_TIMEOUT",
}
PATHS = [
    "name", "scope", "namespace", "thread_pool_size", "thread_stack_size", "log.type", "log.level",
    "log.traceback_level", "log.format", "log.dateformat", "log.static_fields", "log.max_queue_size", "log.dir",
    "log.mode", "log.file_num", "log.file_size", "log.loggers", "log.deduplicate_heartbeat_logs", "restapi.listen",
    "restapi.connect_address", "restapi.authentication.username", "restapi.authentication.password", "restapi.certfile",
    "restapi.keyfile", "restapi.keyfile_password", "restapi.cafile", "restapi.ciphers", "restapi.verify_client",
    "restapi.allowlist", "restapi.allowlist_include_members", "restapi.http_extra_headers",
    "restapi.https_extra_headers", "restapi.request_queue_size", "restapi.thread_pool_size", "restapi.server_tokens",
    "ctl.insecure", "ctl.cacert", "ctl.certfile", "ctl.keyfile", "ctl.keyfile_password", "ctl.authentication.username",
    "ctl.authentication.password", "etcd3.host", "etcd3.hosts", "etcd3.url", "etcd3.proxy", "etcd3.srv",
    "etcd3.srv_suffix", "etcd3.port", "etcd3.protocol", "etcd3.use_proxies", "etcd3.username", "etcd3.password",
    "etcd3.cacert", "etcd3.cert", "etcd3.key", "postgresql.listen", "postgresql.connect_address",
    "postgresql.proxy_address", "postgresql.data_dir", "postgresql.config_dir", "postgresql.bin_dir",
    "postgresql.pgpass", "postgresql.bin_name.pg_ctl", "postgresql.bin_name.initdb",
    "postgresql.bin_name.pg_controldata", "postgresql.bin_name.pg_basebackup", "postgresql.bin_name.postgres",
    "postgresql.bin_name.pg_isready", "postgresql.bin_name.pg_rewind", "postgresql.database", "postgresql.krbsrvname",
    "postgresql.use_unix_socket", "postgresql.use_unix_socket_repl", "postgresql.config_base_name",
    "postgresql.custom_conf", "postgresql.parameters", "postgresql.pg_hba", "postgresql.pg_ident",
    "postgresql.recovery_conf", "postgresql.callbacks.on_start", "postgresql.callbacks.on_stop",
    "postgresql.callbacks.on_restart", "postgresql.callbacks.on_reload", "postgresql.callbacks.on_role_change",
    "postgresql.pre_promote", "postgresql.before_stop", "postgresql.create_replica_methods", "postgresql.basebackup",
    "postgresql.use_pg_rewind", "postgresql.remove_data_directory_on_rewind_failure",
    "postgresql.remove_data_directory_on_diverged_timelines", "postgresql.rewind", "postgresql.pg_ctl_timeout",
    "bootstrap.method", "bootstrap.initdb", "bootstrap.pg_hba", "bootstrap.post_bootstrap", "watchdog.mode",
    "watchdog.device", "watchdog.safety_margin", "watchdog.driver", "tags", "bootstrap.dcs.ttl",
    "bootstrap.dcs.loop_wait", "bootstrap.dcs.retry_timeout", "bootstrap.dcs.maximum_lag_on_failover",
    "bootstrap.dcs.maximum_lag_on_syncnode", "bootstrap.dcs.max_timelines_history", "bootstrap.dcs.check_timeline",
    "bootstrap.dcs.primary_start_timeout", "bootstrap.dcs.master_start_timeout", "bootstrap.dcs.primary_stop_timeout",
    "bootstrap.dcs.master_stop_timeout", "bootstrap.dcs.primary_race_backoff", "bootstrap.dcs.synchronous_mode",
    "bootstrap.dcs.synchronous_mode_strict", "bootstrap.dcs.synchronous_node_count", "bootstrap.dcs.failsafe_mode",
    "bootstrap.dcs.pause", "bootstrap.dcs.member_slots_ttl", "bootstrap.dcs.slots", "bootstrap.dcs.ignore_slots",
    "bootstrap.dcs.standby_cluster.host", "bootstrap.dcs.postgresql.use_slots",
    "bootstrap.dcs.postgresql.use_pg_rewind", "bootstrap.dcs.postgresql.parameters", "bootstrap.dcs.postgresql.pg_hba",
    "bootstrap.dcs.postgresql.pg_ident", "bootstrap.dcs.postgresql.recovery_conf",
]  # fmt: skip


def variables(groups: dict[str, str]) -> list[str]:
    """The whole names of all variables in these groups."""
    return [f"PATRONI_{prefix}{name}" for prefix, names in groups.items() for name in names.split()]


def told(environ: dict[str, str]) -> list[str]:
    """What is said, be it settings or faults."""
    try:
        return list(load(None, ENVIRONMENT | environ).warnings)
    except ConfigError as error:
        return error.faults


@pytest.mark.parametrize("variable", variables(NAMES))
def test_variable_is_known_when_it_is_one_of_patronis(variable: str) -> None:
    """It is read, or told to have no effect; none is taken for a misspelling."""
    assert variable == "PATRONI_CONFIGURATION" or variable in VARIABLES
    assert not any("not a known variable" in line for line in told({variable: "1"}))


@pytest.mark.parametrize("variable", variables(OTHER_STORES))
def test_variable_is_told_to_be_another_stores_when_it_is(variable: str) -> None:
    """Nobody wonders why it does nothing."""
    assert any(line.startswith(variable) and "not spoken here" in line for line in told({variable: "1"}))


@pytest.mark.parametrize("path", PATHS)
def test_path_is_known_when_it_is_one_of_patronis(path: str) -> None:
    """Each path of patroni.yml has its row."""
    assert path in ROWS


def test_every_unbuilt_setting_is_one_that_can_be_written() -> None:
    """A reason for a path that does not exist would never be told."""
    for path in UNBUILT:
        assert path in ROWS or any(row.startswith(path.removesuffix("*")) for row in ROWS), path


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ("watchdog: {mode: required}", ""),
        ("ctl: {insecure: on}", ""),
        ("watchdog: {mode: off}", ""),
        ("ctl: {insecure: off}", ""),
        ("log: {max_queue_size: 5, level: DEBUG, file_num: 2}", ""),
    ],
)
def test_setting_is_told_to_do_nothing_only_when_it_asks_for_something(tmp_path: Path, extra: str, says: str) -> None:
    """What is not built yet is not swallowed; what asks for nothing is not worth a line."""
    found = load(complete(tmp_path, extra + "\n"), {}).warnings
    assert len(found) == bool(says)
    assert all(says in warning for warning in found)


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ("callbacks: {on_start: /bin/true}", "callbacks.on_start: has no effect here yet: no program is called"),
        ("config_dir: /etc/pg", "config_dir: has no effect here yet"),
        ("config_dir: /var/lib/postgresql/data", ""),
        ("create_replica_methods: [basebackup]", ""),
        ("create_replica_methods: [wal_g]", "create_replica_methods: has no effect here yet"),
        ("use_unix_socket: on", ""),
        ("basebackup: [max-rate: 100M, {checkpoint: spread}]", ""),
        ("recovery_conf: {restore_command: cp x y}", ""),
    ],
)
def test_postgresql_setting_is_told_to_do_nothing_only_when_it_does(tmp_path: Path, section: str, says: str) -> None:
    """As above, for this node's server."""
    path = complete(tmp_path, **{"  bin_dir:": f"  {section}\n  bin_dir:"})
    found = load(path, {}).warnings
    assert len(found) == bool(says), found
    assert all(says in warning for warning in found)


def test_tags_are_told_to_do_nothing_when_they_are_not_built(tmp_path: Path) -> None:
    """One line each; a tag of the operator's own says nothing to anybody."""
    path = complete(tmp_path, **{"noloadbalance: on": "clonefrom: on\n  nostream: off\n  rack: 7"})
    (line,) = load(path, {}).warnings
    assert "clonefrom has no effect here yet" in line


def test_settings_in_etcd_are_told_to_do_nothing_when_they_are_not_built() -> None:
    """Also those that somebody wrote there for Patroni."""
    config = {
        "ttl": 30,
        "primary_stop_timeout": 0,
        "slots": {"a": {"type": "physical"}},
        "standby_cluster": {"host": "10.0.0.9"},
        "postgresql": {"use_slots": False, "parameters": {"a.b": 1}, "callbacks": {"on_start": "x"}, "pg_hba": ["#"]},
    }
    found = unbuilt_in(config)
    assert [line.split(" ")[0] for line in found] == ["slots", "standby_cluster.host", "postgresql.callbacks"]
    assert why_unbuilt("bootstrap.dcs.ttl") == ""


DYNAMIC_VARIABLES = {
    "PATRONI_BOOTSTRAP_DCS_TTL": "30",
    "PATRONI_BOOTSTRAP_DCS_LOOP_WAIT": "10",
    "PATRONI_BOOTSTRAP_DCS_RETRY_TIMEOUT": "30",
    "PATRONI_BOOTSTRAP_DCS_SYNCHRONOUS_MODE": "true",
    "PATRONI_BOOTSTRAP_DCS_SYNCHRONOUS_MODE_STRICT": "false",
    "PATRONI_BOOTSTRAP_DCS_SYNCHRONOUS_NODE_COUNT": "2",
    "PATRONI_BOOTSTRAP_DCS_MAXIMUM_LAG_ON_FAILOVER": "1MB",
    "PATRONI_BOOTSTRAP_DCS_FAILSAFE_MODE": "off",
    "PATRONI_BOOTSTRAP_DCS_POSTGRESQL_USE_PG_REWIND": "true",
    "PATRONI_BOOTSTRAP_DCS_POSTGRESQL_PARAMETERS_MAX_CONNECTIONS": "200",
    "PATRONI_BOOTSTRAP_DCS_POSTGRESQL_PARAMETERS_WAL_LEVEL": "logical",
    "PATRONI_BOOTSTRAP_DCS_POSTGRESQL_PG_HBA": "['local all all peer', 'host all all all md5']",
}


def test_dynamic_settings_fill_the_first_configuration_when_they_are_variables() -> None:
    """Every setting of the specification, by its variable, without a word of warning."""
    found = load(None, ENVIRONMENT | DYNAMIC_VARIABLES)
    assert found.warnings == ()
    assert found.bootstrap.dcs == {
        "ttl": 30,
        "loop_wait": 10,
        "retry_timeout": 30,
        "synchronous_mode": True,
        "synchronous_mode_strict": False,
        "synchronous_node_count": 2,
        "maximum_lag_on_failover": "1MB",
        "failsafe_mode": False,
        "postgresql": {
            "use_pg_rewind": True,
            "parameters": {"max_connections": 200, "wal_level": "logical"},
            "pg_hba": ["local all all peer", "host all all all md5"],
        },
    }


def check(path: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """`matriarch run --check`, as a user types it."""
    command = [sys.executable, "-c", "from api.cli.main import main; main()", "run", "--check", str(path)]
    outside = {key: value for key, value in os.environ.items() if key in ("PATH", "HOME")}
    return subprocess.run(command, env=outside | environ, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.servers
def test_run_check_tells_the_nearest_name_when_a_variable_is_unknown(
    tmp_path: Path, postgres_bin: Path, open_directory: Path
) -> None:
    """A warning on stderr, and the check goes on to its answer."""
    tree = yaml.safe_load(COMPLETE.read_text())
    tree["restapi"] |= {"listen": "127.0.0.1:18008", "connect_address": "127.0.0.1:18008"}
    tree["postgresql"] |= {
        "listen": "127.0.0.1:15432",
        "data_dir": str(open_directory / "checked" / "data"),
        "bin_dir": str(postgres_bin),
    }
    path = tmp_path / "patroni.yml"
    path.write_text(yaml.safe_dump(tree))
    ended = check(path, PATRONI_RESTAPI_LISTN="x", PATRONI_BOOTSTRAP_DCS_TTLL="3", PATRONI_ETCD3_HOSTS="'a:1','b:2'")
    assert ended.returncode == 0, ended.stderr
    assert "the settings are complete and this machine can run them" in ended.stdout
    assert "PATRONI_RESTAPI_LISTN: not a known variable, ignored; did you mean PATRONI_RESTAPI_LISTEN?" in ended.stderr
    assert "PATRONI_BOOTSTRAP_DCS_TTLL: not a known variable, ignored; did you mean PATRONI_BOOTSTRAP_DCS_TTL?" in (
        ended.stderr
    )
    assert ended.stderr.count("WARNING") == 2


@pytest.mark.servers
def test_run_check_tells_every_fault_when_there_are_some(tmp_path: Path) -> None:
    """Status 2, a line for each, and no traceback."""
    path = complete(tmp_path, **{"retry_timeout: 30": "retry_timeout: soon"})
    ended = check(path, PATRONI_ETCD3_HOSTS="a:1,b:99999")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert len(ended.stderr.splitlines()) == 2
    assert all(line.startswith("matriarch: ") for line in ended.stderr.splitlines())
