"""Settings: what a file and the environment say, and how their faults are told."""

import os
from pathlib import Path

import msgspec
import pytest
import yaml
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from effects.errors import ConfigError
from effects.settings import Secret, load, load_client
from effects.settings_schema import ROWS, TABLE, VARIABLES

GOLDEN = Path(__file__).parent.parent / "golden"
COMPLETE = GOLDEN / "settings-complete.yml"
FAULTY_ENVIRONMENT = {
    "PATRONI_BOOTSTRAP_DCS_LOOP_WAIT": "-3",
    "PATRONI_CONSUL_TOKEN": "hunter2",
    "PATRONI_ETCD3_PROTOCOL": "ftp",
    "PATRONI_LOG_FILE_SIZE": "big",
    "PATRONI_RESTAPI_LISTN": "0.0.0.0:8008",
    "PATRONI_TTL": "30",
}
ENVIRONMENT = {
    "PATRONI_SCOPE": "main",
    "PATRONI_NAME": "node1",
    "PATRONI_ETCD3_HOSTS": "etcd1:2379,etcd2:2379,etcd3:2379",
    "PATRONI_RESTAPI_LISTEN": "127.0.0.1:8008",
    "PATRONI_POSTGRESQL_LISTEN": "127.0.0.1:5432",
    "PATRONI_POSTGRESQL_DATA_DIR": "/srv/pg/node1",
    "PATRONI_SUPERUSER_USERNAME": "postgres",
    "PATRONI_SUPERUSER_PASSWORD": "hunter1",
    "PATRONI_REPLICATION_USERNAME": "replicator",
    "PATRONI_REPLICATION_PASSWORD": "hunter2",
}


def complete(tmp_path: Path, extra: str = "", **replaced: str) -> Path:
    """Writes the complete file with sections added, or texts in it replaced; returns its path."""
    text = COMPLETE.read_text()
    for old, new in replaced.items():
        text = text.replace(old, new)
    path = tmp_path / "patroni.yml"
    path.write_text(text + extra)
    return path


def faults(path: Path | None, environ: dict[str, str]) -> list[str]:
    """The faults that loading ends with."""
    with pytest.raises(ConfigError) as caught:
        load(path, environ)
    return caught.value.faults


def test_settings_are_read_when_a_file_is_complete() -> None:
    """A complete Patroni file gives every value in its own type and no warning."""
    found = load(COMPLETE, {})
    assert found.scope == "main"
    assert found.namespace == "service"
    assert found.etcd.hosts == ("10.0.0.1:2379", "10.0.0.2:2379", "10.0.0.3:2379")
    assert (found.restapi.listen_host, found.restapi.listen_port) == ("0.0.0.0", 8008)
    assert found.restapi.connect_address == "10.0.0.1:8008"
    assert found.postgresql.data_dir == Path("/var/lib/postgresql/data")
    assert found.postgresql.parameters == {"synchronous_commit": "off", "archive_command": ""}
    assert found.postgresql.authentication.rewind == found.postgresql.authentication.superuser
    assert found.bootstrap.initdb == ("--encoding=UTF8", "--data-checksums")
    assert found.bootstrap.dcs["retry_timeout"] == 30
    assert found.tags == {"nofailover": False, "noloadbalance": True, "zone": "north"}
    assert found.state_dir == Path("/var/lib/postgresql/matriarch/node1")
    assert found.warnings == ()


def test_settings_are_read_when_there_is_only_the_environment() -> None:
    """Variables alone are enough; what can be connected to comes from what is listened on."""
    found = load(None, ENVIRONMENT)
    assert found.etcd.hosts == ("etcd1:2379", "etcd2:2379", "etcd3:2379")
    assert found.restapi.connect_address == "127.0.0.1:8008"
    assert found.postgresql.connect_address == "127.0.0.1:5432"
    assert found.postgresql.authentication.replication.password == Secret("hunter2")
    assert found.warnings == ()


@pytest.mark.parametrize(
    "text",
    [
        "h1:2379,h2:2379",
        "'h1:2379','h2:2379'",
        '"h1:2379", "h2:2379"',
        "[h1:2379, 'h2:2379']",
        "- h1:2379\n- h2:2379",
        "h1,h2",
    ],
)
def test_etcd_hosts_are_the_same_when_spelled_in_another_way(text: str) -> None:
    """A list of endpoints may be plain, quoted or YAML, as in Patroni's environment."""
    assert load(None, ENVIRONMENT | {"PATRONI_ETCD3_HOSTS": text}).etcd.hosts == ("h1:2379", "h2:2379")


def test_etcd_hosts_keep_their_brackets_when_they_are_ipv6() -> None:
    """An IPv6 endpoint stays in brackets, with the common port where it has none."""
    environ = ENVIRONMENT | {"PATRONI_ETCD3_HOSTS": "[::1]:2379,[fe80::1]", "PATRONI_ETCD3_PORT": "4001"}
    assert load(None, environ).etcd.hosts == ("[::1]:2379", "[fe80::1]:4001")


def test_etcd_url_gives_protocol_and_login_when_it_has_them() -> None:
    """A URL stands for host, protocol, user and password."""
    environ = {key: value for key, value in ENVIRONMENT.items() if key != "PATRONI_ETCD3_HOSTS"}
    found = load(None, environ | {"PATRONI_ETCD3_URL": "https://root:p%40ss@etcd9:4001"}).etcd
    assert (found.hosts, found.protocol, found.username) == (("etcd9:4001",), "https", "root")
    assert found.password == Secret("p@ss")


def test_environment_wins_when_the_file_says_otherwise() -> None:
    """A variable beats the file, for local and for dynamic settings, and even for another way to name etcd."""
    environ = {
        "PATRONI_SCOPE": "other",
        "PATRONI_ETCD3_HOST": "alone:2379",
        "PATRONI_BOOTSTRAP_DCS_TTL": "5",
        "PATRONI_BOOTSTRAP_DCS_SYNCHRONOUS_MODE": "true",
        "PATRONI_BOOTSTRAP_DCS_POSTGRESQL_USE_PG_REWIND": "false",
        "PATRONI_BOOTSTRAP_DCS_POSTGRESQL_PARAMETERS_MAX_CONNECTIONS": "200",
        "PATRONI_BOOTSTRAP_DCS_POSTGRESQL_PARAMETERS_WORK_MEM": "'4MB'",
    }
    found = load(COMPLETE, environ)
    assert found.scope == "other"
    assert found.etcd.hosts == ("alone:2379",)
    assert found.bootstrap.dcs == {
        "ttl": 5,
        "loop_wait": 10,
        "retry_timeout": 30,
        "maximum_lag_on_failover": 1048576,
        "synchronous_mode": True,
        "postgresql": {"use_pg_rewind": False, "parameters": {"max_connections": 200, "work_mem": "4MB"}},
    }


def test_environment_is_ignored_when_a_variable_is_empty() -> None:
    """An empty variable is as good as none."""
    assert load(COMPLETE, {"PATRONI_SCOPE": "", "PATRONI_TTL": ""}).scope == "main"


def test_old_variable_gives_way_when_the_new_one_is_set() -> None:
    """Of two spellings of one variable the newer counts; the older alone still works."""
    assert load(None, ENVIRONMENT | {"PATRONI_LOGLEVEL": "debug"}).log.level == "DEBUG"
    both = ENVIRONMENT | {"PATRONI_LOGLEVEL": "debug", "PATRONI_LOG_LEVEL": "ERROR"}
    assert load(None, both).log.level == "ERROR"


def test_directory_is_merged_when_files_overlap(tmp_path: Path) -> None:
    """The files of a directory are merged by name: maps key by key, anything else replaced."""
    complete(tmp_path)
    (tmp_path / "zz.yaml").write_text("scope: later\netcd3: {hosts: [last:2379]}\npostgresql: {use_pg_rewind: on}\n")
    (tmp_path / "ignored.txt").write_text("scope: never\n")
    found = load(tmp_path, {})
    assert (found.scope, found.name, found.etcd.hosts) == ("later", "node1", ("last:2379",))
    assert found.postgresql.use_pg_rewind is True


def test_configuration_variable_is_the_file_when_there_is_no_file(tmp_path: Path) -> None:
    """PATRONI_CONFIGURATION holds the YAML text where the file is missing, and is not looked at otherwise."""
    text = COMPLETE.read_text()
    found = load(tmp_path / "none.yml", {"PATRONI_CONFIGURATION": text, "PATRONI_NAME": "node2"})
    assert (found.scope, found.name) == ("main", "node2")
    assert "no such file" in found.warnings[0]
    assert load(COMPLETE, {"PATRONI_CONFIGURATION": "scope: ["}).scope == "main"
    assert faults(None, {"PATRONI_CONFIGURATION": "scope: a\nname: b/c"})[0].startswith("PATRONI_CONFIGURATION:2: name")


def test_faults_are_all_told_at_once_when_there_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """One message has every fault with its line or variable, in order, and no secret. GOLDEN=write rewrites it."""
    monkeypatch.chdir(GOLDEN)
    told = "\n".join(faults(Path("settings-many-faults.yml"), FAULTY_ENVIRONMENT)) + "\n"
    expected = GOLDEN / "settings-many-faults.txt"
    if os.environ.get("GOLDEN") == "write":
        expected.write_text(told)
    assert "hunter2" not in told
    assert told == expected.read_text()


def test_faults_name_what_is_missing_when_nothing_is_set(tmp_path: Path) -> None:
    """Each required setting is named with its variable."""
    told = faults(tmp_path / "none.yml", {})
    assert told[0].startswith("environment: scope: missing; set PATRONI_SCOPE")
    for variable in (
        "PATRONI_NAME",
        "PATRONI_ETCD3_HOSTS",
        "PATRONI_RESTAPI_LISTEN",
        "PATRONI_POSTGRESQL_LISTEN",
        "PATRONI_POSTGRESQL_DATA_DIR",
        "PATRONI_SUPERUSER_USERNAME",
        "PATRONI_REPLICATION_USERNAME",
    ):
        assert any(variable in line for line in told), variable


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("scope: main\nname: [a\nnamespace: x\n", ":3:10: not YAML"),
        ("scope: main\n\tname: a\n", ":2:1: not YAML"),
        ("scope: a\nname: *hunter2\n", ":2:7: not YAML"),
        ("scope: !hunter2 a\n", ":1: found a value that does not fit its YAML tag"),
        ("scope: &hunter2 [*hunter2]\n", ":1: an alias names the value that it is part of"),
        ("a: 1\nscope: b\na: 2\n", ":3: a is set twice, first at "),
        ("- scope\n", ":1: found a list"),
        ("scope: \x01\n", ":1: not YAML"),
        ("[" * 5000, ": maps and lists are nested too deeply"),
    ],
)
def test_yaml_fault_names_its_line_when_the_text_is_broken(tmp_path: Path, text: str, place: str) -> None:
    """What is not YAML is one line with its place, and gives away no word of the file."""
    path = tmp_path / "patroni.yml"
    path.write_text(text)
    told = faults(path, {})
    assert told[0].startswith(f"{path}{place}")
    assert "hunter2" not in "\n".join(told)


def test_yaml_syntax_fault_is_alone_when_the_rest_cannot_be_known(tmp_path: Path) -> None:
    """Nothing is called missing while the file it may be in cannot be read."""
    path = tmp_path / "patroni.yml"
    path.write_bytes(b"scope: main\nname: '\n")
    assert len(faults(path, {})) == 1
    path.write_bytes(b"scope: main\nname: \xff\n")
    assert faults(path, {}) == [f"{path}:2: not UTF-8; save the file as UTF-8"]


def test_aliases_are_refused_when_they_explode(tmp_path: Path) -> None:
    """A document that grows beyond measure through its aliases is a fault and costs neither time nor memory."""
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    rows += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 30)]
    told = faults(complete(tmp_path, "\n".join(rows)), {})
    assert "aliases make it longer" in told[0]


def test_merge_key_is_followed_when_a_map_has_one(tmp_path: Path) -> None:
    """`<<` brings in another map, whose keys give way to the map's own."""
    extra = "ctl: &ctl\n  insecure: on\nlog: {<<: &log {level: ERROR, file_num: 7}, level: DEBUG}\n"
    found = load(complete(tmp_path, extra), {})
    assert (found.log.level, found.log.file_num, found.ctl.insecure) == ("DEBUG", 7, True)


@pytest.mark.parametrize(
    ("variable", "text", "allowed"),
    [
        ("PATRONI_NAME", "a/b", 'text without "/"'),
        ("PATRONI_NAME", "__patroni_strict_sync_replica_placeholder__", "reserved"),
        ("PATRONI_RESTAPI_LISTEN", "127.0.0.1:0", "a port from 1 to 65535"),
        ("PATRONI_RESTAPI_LISTEN", "127.0.0.1", "a port from 1 to 65535"),
        ("PATRONI_RESTAPI_LISTEN", "127.0.0.1:5432", "a port of its own"),
        ("PATRONI_RESTAPI_CONNECT_ADDRESS", "*:8008", "not a wildcard"),
        ("PATRONI_POSTGRESQL_LISTEN", "a b:5432", "host[,host...]:port"),
        ("PATRONI_POSTGRESQL_LISTEN", "0.0.0.0:5432", "PATRONI_POSTGRESQL_CONNECT_ADDRESS"),
        ("PATRONI_POSTGRESQL_DATA_DIR", "pgdata", "an absolute path"),
        ("PATRONI_POSTGRESQL_DATA_DIR", "/", 'below "/"'),
        ("PATRONI_ETCD3_HOSTS", "http://root:hunter2@etcd1:2379", "leave the scheme out"),
        ("PATRONI_ETCD3_URL", "https://root:hunter2@:70000", "a URL such as"),
        ("PATRONI_ETCD3_USERNAME", "root", "PATRONI_ETCD3_PASSWORD"),
        ("PATRONI_SUPERUSER_SSLMODE", "always", "disable, allow, prefer, require, verify-ca or verify-full"),
        ("PATRONI_RESTAPI_HTTP_EXTRA_HEADERS", "[a", "a map"),
        ("PATRONI_CTL_INSECURE", "perhaps", "on, true, yes, 1, off, false, no or 0"),
        ("PATRONI_LOG_MODE", "0888", "octal"),
        ("PATRONI_BOOTSTRAP_DCS_TTL", "soon", "a duration"),
        ("PATRONI_BOOTSTRAP_DCS_SYNCHRONOUS_MODE", "any", "off, on or quorum"),
        ("MATRIARCH_STATE_DIR", "state", "an absolute path"),
    ],
)
def test_fault_names_the_variable_when_its_value_is_wrong(variable: str, text: str, allowed: str) -> None:
    """A wrong variable is named with what is allowed, and the password of a URL is not repeated."""
    told = faults(None, ENVIRONMENT | {variable: text})
    assert len([line for line in told if not line.endswith("(a warning)")]) == 1
    assert told[0].startswith((f"{variable}:", "environment:"))
    assert allowed in told[0]
    assert "hunter2" not in told[0]


def test_etcd_v2_is_refused_when_it_is_the_only_store(tmp_path: Path) -> None:
    """A section `etcd`, or its variable, alone is a fault with the remedy; beside etcd3 it is a warning."""
    path = complete(tmp_path, etcd3="etcd")
    assert "rename etcd to etcd3" in faults(path, {})[0]
    assert faults(path, {})[0].startswith(f"{path}:11: etcd: ")
    environ = {key: value for key, value in ENVIRONMENT.items() if key != "PATRONI_ETCD3_HOSTS"}
    assert faults(None, environ | {"PATRONI_ETCD_HOSTS": "h:2379"})[0].startswith("PATRONI_ETCD_HOSTS: etcd: ")
    assert "not spoken" in load(COMPLETE, {"PATRONI_ETCD_HOST": "h:2379"}).warnings[0]


def test_ttl_is_accepted_as_it_stands_when_retry_timeout_is_as_long() -> None:
    """What the timers mean together is not decided here."""
    environ = {"PATRONI_BOOTSTRAP_DCS_TTL": "30", "PATRONI_BOOTSTRAP_DCS_RETRY_TIMEOUT": "30"}
    found = load(None, ENVIRONMENT | environ)
    assert found.bootstrap.dcs == {"ttl": 30, "retry_timeout": 30}
    assert found.warnings == ()


@pytest.mark.parametrize(
    ("extra", "line", "nearest"),
    [
        ("ttl: 30\n", 54, "bootstrap.dcs.ttl"),
        ("log:\n  levle: INFO\n", 55, "log.level"),
        ("watchdog:\n  mod: off\n", 55, "watchdog.mode"),
        ("log.level: DEBUG\n", 54, "log.level"),
        ("restapy: {}\n", 54, "restapi"),
        ("watchdog: {mode: off, devise: /dev/x}\n", 54, "watchdog.device"),
    ],
)
def test_unknown_key_is_warned_of_when_a_known_one_is_near(tmp_path: Path, extra: str, line: int, nearest: str) -> None:
    """A misspelt key is a warning with its line and the nearest known setting."""
    path = complete(tmp_path, extra)
    offset = len(COMPLETE.read_text().splitlines()) - 53
    (told,) = load(path, {}).warnings
    assert told.startswith(f"{path}:{line + offset}: ")
    assert told.endswith(f"did you mean {nearest}?")


def test_unknown_key_is_cut_when_it_may_hold_a_secret(tmp_path: Path) -> None:
    """`{password:secret}` is one key to YAML; only its first part is shown."""
    (told,) = load(complete(tmp_path, "ctl: {authentication: {password:hunter2}}\n"), {}).warnings
    assert "ctl.authentication.password: not a known setting" in told
    assert "hunter2" not in told


def test_unknown_variable_is_warned_of_when_a_known_one_is_near() -> None:
    """A variable that does nothing is told of; Patroni ignores it without a word."""
    found = load(None, ENVIRONMENT | {"PATRONI_LOOP_WAIT": "1", "PATRONI_CONSUL_HOST": "x", "OTHER": "y"})
    assert found.warnings == (
        "PATRONI_LOOP_WAIT: not a known variable, ignored; did you mean PATRONI_BOOTSTRAP_DCS_LOOP_WAIT?",
        "PATRONI_CONSUL_HOST: consul: not spoken here, ignored; Matriarch keeps its keys in etcd v3",
    )


def test_methods_may_have_sections_when_they_are_named(tmp_path: Path) -> None:
    """The section of a named method of cloning or bootstrapping is kept, that of an unnamed one is unknown."""
    text = complete(tmp_path, "").read_text()
    text = text.replace("  bin_dir:", "  create_replica_method: [wal_g, basebackup]\n  wal_g: {command: x}\n  bin_dir:")
    text = text.replace("  initdb:", "  method: pitr\n  pitr: {command: y}\n  initdb:")
    path = tmp_path / "patroni.yml"
    path.write_text(text)
    found = load(path, {})
    assert found.postgresql.create_replica_methods == ("wal_g", "basebackup")
    assert found.postgresql.method_options == {"wal_g": {"command": "x"}}
    assert (found.bootstrap.method, found.bootstrap.method_options) == ("pitr", {"pitr": {"command": "y"}})
    assert found.postgresql.overrides["create_replica_methods"] == ["wal_g", "basebackup"]
    assert all("has no effect here yet" in warning for warning in found.warnings)


@pytest.mark.parametrize(
    ("tags", "told"),
    [
        ("{nofailover: on, failover_priority: 1}", "nofailover: true contradicts failover_priority: 1"),
        ("{nofailover: off, failover_priority: 0}", "nofailover: false contradicts failover_priority: 0"),
        ("{nosync: yes, sync_priority: 2}", "nosync: true contradicts sync_priority: 2"),
    ],
)
def test_tags_are_warned_of_when_they_contradict(tmp_path: Path, tags: str, told: str) -> None:
    """Tags that say the opposite of each other are a warning, as in Patroni."""
    text = complete(tmp_path).read_text().partition("tags:")[0]
    path = tmp_path / "patroni.yml"
    path.write_text(text + f"tags: {tags}\n")
    assert told in load(path, {}).warnings[0]


def test_local_parameters_are_warned_of_when_only_the_cluster_may_set_them(tmp_path: Path) -> None:
    """A controlled parameter of one node is dropped and told of with its line."""
    path = complete(tmp_path, **{"synchronous_commit: off": "max_connections: 5"})
    found = load(path, {})
    assert "max_connections" not in found.postgresql.parameters
    assert "max_connections" not in found.postgresql.overrides["parameters"]
    assert "max_connections: must be the same on every node" in found.warnings[0]


def test_text_is_kept_as_written_when_yaml_would_read_a_number(tmp_path: Path) -> None:
    """A password like 12:30 or a name like `on` is text here, whatever YAML 1.1 makes of it."""
    path = complete(tmp_path, **{"s3cret-of-superuser": "12:30", "name: node1": "name: on"})
    found = load(path, {})
    password = found.postgresql.authentication.superuser.password
    assert password is not None
    assert (password.reveal(), found.name) == ("12:30", "on")


def test_secret_is_hidden_when_settings_are_shown_or_encoded() -> None:
    """No password shows in a repr, a text or an encoding of the settings."""
    found = load(COMPLETE, {})
    shown = repr(found) + str(found) + msgspec.json.encode(found, enc_hook=str).decode()
    assert "s3cret" not in shown
    assert "***" in shown
    assert f"{Secret('x')}" == "***"


def test_table_has_each_path_once_when_counted() -> None:
    """No two rows speak of the same setting, and every variable leads to a row."""
    assert len(ROWS) == len(TABLE)
    assert set(VARIABLES.values()) <= set(ROWS)


_KEYS = st.sampled_from(sorted({part for path in ROWS for part in path.split(".")})) | st.text(max_size=6)
_VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.dates()
_TREES = st.recursive(_VALUES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=4))
_ENVIRONMENTS = st.dictionaries(st.sampled_from(sorted(VARIABLES)), st.text(max_size=20), max_size=5)


def load_or_complain(environ: dict[str, str]) -> None:
    """Loads; what it says, in the settings or in the error, is never empty of text and one line each."""
    try:
        told = list(load(None, environ).warnings)
    except ConfigError as error:
        told = error.faults or [""]
    assert all(told)
    assert not any("\n" in line for line in told)


@hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(tree=_TREES, environ=_ENVIRONMENTS)
def test_load_gives_settings_or_config_error_when_the_yaml_is_anything(tree: object, environ: dict[str, str]) -> None:
    """No YAML and no environment ends in anything but settings or a ConfigError."""
    text = yaml.safe_dump(tree, allow_unicode=True)
    load_or_complain(environ | {"PATRONI_CONFIGURATION": text})


@hypothesis_settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=60) | st.text(alphabet="a:-[]{}&*!|>'\"%@`#?, \n\t", max_size=40))
def test_load_gives_settings_or_config_error_when_the_text_is_anything(text: str) -> None:
    """No text ends in anything but settings or a ConfigError."""
    load_or_complain({"PATRONI_CONFIGURATION": text})


@hypothesis_settings(max_examples=60, deadline=None)
@given(path=st.sampled_from(sorted(ROWS)), value=_TREES)
def test_load_gives_settings_or_config_error_when_one_setting_is_anything(path: str, value: object) -> None:
    """Any value at any setting of a complete file ends in settings or a ConfigError."""
    tree = yaml.safe_load(COMPLETE.read_text())
    *sections, last = path.split(".")
    section = tree
    for key in sections:
        section = section.setdefault(key, {})
    section[last] = value
    load_or_complain({"PATRONI_CONFIGURATION": yaml.safe_dump(tree, allow_unicode=True)})


# ---- what a command needs that only asks -----------------------------------------------------------------------------


def test_client_needs_no_more_than_patronictl_when_it_only_asks(tmp_path: Path) -> None:
    """The cluster's name and etcd are enough; a password and a CA of `ctl` are read where they are."""
    path = tmp_path / "ctl.yml"
    path.write_text("scope: main\netcd3: {hosts: 'a:2379,b:2379'}\nctl: {authentication: {username: u, password: p}}\n")
    found = load_client(path, {})
    assert (found.scope, found.namespace, found.etcd.hosts) == ("main", "service", ("a:2379", "b:2379"))
    assert (found.ctl.username, found.ctl.password) == ("u", Secret("p"))


def test_client_is_told_what_to_name_when_nothing_is_set() -> None:
    """Only what it needs is missing, and the remedy is said."""
    with pytest.raises(ConfigError) as caught:
        load_client(None, {})
    text = "\n".join(caught.value.faults)
    assert "scope: missing" in text
    assert "etcd3.hosts: missing" in text
    assert "name a node's patroni.yml" in text
    assert "postgresql" not in text.replace("postgresql.yml", "")
