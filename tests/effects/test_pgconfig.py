"""The configuration files: their layers, their quoting, and what is never overwritten."""

import re
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict

from effects.errors import PostgresError
from effects.pgcheck import rejected_parameters, without_parameters
from effects.pgconfig import (
    BASE,
    GENERATED,
    GUARD_BYTES_MAX,
    HBA_HEADER,
    HEADER,
    command_line_parameters,
    end_of_recovery,
    host_based_authentication,
    parameters_in_effect,
    passwords,
    primary_conninfo,
    quote,
    server_conf,
    write_server_files,
    write_signal_file,
)
from effects.programs import RunAs
from effects.server_settings import Login, ServerSettings
from fsm.facts import Upstream
from tests.effects.servers import PATIENCE_MS, running_nodes, settings_for

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))


@pytest.fixture
def settings(tmp_path: Path) -> ServerSettings:
    """Settings of a node whose files this test's own user may write."""
    made = settings_for(tmp_path, "n1", Path("/nowhere"), None, 5432)
    made.data_dir.mkdir()
    return made


def unquote(text: str) -> str:
    """The value of a quoted parameter, read as guc-file.l and DeescapeQuotedString do."""
    found = re.fullmatch(r"'((?:[^'\\\n]|\\.|'')*)'", text)
    assert found, text
    letters = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
    return re.sub(
        r"\\(.)|''", lambda match: letters.get(match[1], match[1]) if match[1] else "'", found[1], flags=re.DOTALL
    )


@given(TEXT)
def test_quoted_value_reads_back_as_it_was_when_it_holds_anything(value: str) -> None:
    """Whatever a parameter says, the server reads the same."""
    assert unquote(quote(value)) == value


def test_quoting_refuses_when_a_value_holds_a_nul() -> None:
    """PostgreSQL has no way to write it."""
    with pytest.raises(PostgresError, match="NUL"):
        quote("a\0b")


def split_password_line(line: str) -> list[str]:
    """The fields of one line of a password file, as libpq reads it."""
    return [re.sub(r"\\(.)", r"\1", field) for field in re.findall(r"((?:\\.|[^:\\])*)(?::|$)", line)][:5]


@given(TEXT.filter(lambda text: "\n" not in text), TEXT.filter(lambda text: "\n" not in text))
def test_password_line_reads_back_as_it_was_when_it_holds_anything(username: str, password: str) -> None:
    """Colons and backslashes do not end a field."""
    (line,) = passwords(Login(username=username, password=password)).removesuffix("\n").split("\n")
    assert split_password_line(line) == ["*", "*", "*", username, password]


def test_layers_override_each_other_when_they_name_the_same_parameter(settings: ServerSettings) -> None:
    """Defaults, the cluster's, the node's own: the last wins; None is not written, booleans are on and off."""
    dynamic = {
        "work_mem": "1MB",
        "shared_buffers": "1GB",
        "jit": False,
        "log_statement": None,
        "Wal_Retrieve_Retry_Interval": 7,
    }
    found = parameters_in_effect(settings, dynamic)
    assert (found["work_mem"], found["shared_buffers"], found["jit"]) == ("1MB", "16MB", "off")
    assert found["wal_retrieve_retry_interval"] == "7"
    assert "log_statement" not in found


def test_controlled_parameters_come_from_the_cluster_only_when_a_node_says_otherwise(settings: ServerSettings) -> None:
    """The node's own value is ignored; the cluster's counts where it is valid, else the default."""
    local = msgspec.structs.replace(settings, parameters={"max_connections": "7", "PORT": "1", "wal_level": "minimal"})
    assert parameters_in_effect(local, {"max_connections": 200})["max_connections"] == "200"
    found = parameters_in_effect(local, {"max_connections": "many", "wal_level": "hot_standby", "port": 2})
    assert (found["max_connections"], found["wal_level"], found["port"]) == ("100", "replica", "5432")
    assert parameters_in_effect(local, {"max_connections": 24})["max_connections"] == "100"
    assert parameters_in_effect(local, {"wal_log_hints": "no"})["wal_log_hints"] == "off"


@pytest.mark.parametrize(
    ("dynamic", "size"),
    [
        ({}, "128MB"),
        ({"wal_keep_size": "1GB"}, "1024MB"),
        ({"wal_keep_size": 64}, "64MB"),
        ({"wal_keep_size": "1MB"}, "128MB"),
        ({"wal_keep_segments": 4}, "64MB"),
        ({"wal_keep_segments": 4, "wal_keep_size": "2GB"}, "2048MB"),
    ],
)
def test_wal_keep_size_is_converted_when_it_is_given_in_any_unit(
    settings: ServerSettings, dynamic: dict[str, object], size: str
) -> None:
    """Megabytes without a unit, segments of 16 MB under the old name, the default below one segment."""
    found = parameters_in_effect(settings, dynamic)
    assert found["wal_keep_size"] == size
    assert "wal_keep_segments" not in found


def test_names_that_are_no_names_are_left_out_when_somebody_writes_them(settings: ServerSettings) -> None:
    """A line break in a name must not become a line of the file."""
    found = server_conf(settings, {"work_mem = '1' \nport": "1", "a b": "x", "auto_explain.log_analyze": True}, None)
    assert found.count("\n") == len(found.splitlines())
    assert "a b" not in found
    assert "auto_explain.log_analyze = 'on'" in found
    assert [line for line in found.splitlines() if line.startswith("port")] == ["port = '5432'"]


def test_command_line_is_raised_when_the_wal_needs_more(settings: ServerSettings) -> None:
    """A floor above the wanted value counts, one below does not; what may change at run time is not on it."""
    words = command_line_parameters(settings, {"max_connections": 50}, {"max_connections": 120, "max_wal_senders": 5})
    assert "--max_connections=120" in words
    assert "--max_wal_senders=10" in words
    assert not any("wal_keep" in word for word in words)


def test_connection_string_names_the_node_when_a_standby_follows(settings: ServerSettings) -> None:
    """The upstream, our name and the password file; never the password."""
    text = primary_conninfo(settings, Upstream(name="n2", host="10.0.0.2", port=5433))
    words = conninfo_to_dict(text)
    assert (words["host"], words["port"], words["application_name"]) == ("10.0.0.2", "5433", "n1")
    assert words["passfile"] == str(settings.passfile)
    assert "password" not in words


def test_original_configuration_is_kept_once_when_files_are_written_again(settings: ServerSettings) -> None:
    """The first postgresql.conf becomes the base; a generated one never does."""
    generated, base = settings.data_dir / GENERATED, settings.data_dir / BASE
    generated.write_text("work_mem = 2MB\n")
    write_server_files(settings, {}, None)
    write_server_files(settings, {"work_mem": "3MB"}, None)
    assert base.read_text() == "work_mem = 2MB\n"
    assert generated.read_text().startswith(HEADER)
    base.unlink()
    write_server_files(settings, {}, None)
    assert "include" not in base.read_text()


def test_rules_of_others_stay_when_none_are_configured(settings: ServerSettings) -> None:
    """Without postgresql.pg_hba an existing file is kept, our own default is refreshed, a missing one written."""
    path = settings.data_dir / "pg_hba.conf"
    path.write_text("local all all peer\n")
    write_server_files(settings, {}, None)
    assert path.read_text() == "local all all peer\n"
    path.write_text(f"{HBA_HEADER}\nlocal all all trust\n")
    write_server_files(settings, {}, None)
    assert "trust" not in path.read_text()
    assert 'host replication "Replicator" all scram-sha-256' in host_based_authentication(settings)


def test_recovery_parameters_are_stripped_when_alter_system_wrote_them(settings: ServerSettings) -> None:
    """They would win over the generated file; everything else stays."""
    path = settings.data_dir / "postgresql.auto.conf"
    path.write_text("# comment\nprimary_conninfo = 'host=elsewhere'\nwork_mem = '5MB'\nrecovery_target_time = 'x'\n")
    write_server_files(settings, {}, None)
    assert path.read_text() == "# comment\nwork_mem = '5MB'\n"


def test_permit_is_refused_when_an_old_server_would_cut_the_look_at_it(settings: ServerSettings) -> None:
    """A server that could be promoted by hand is not even started."""
    deep = msgspec.structs.replace(settings, state_dir=Path("/" + "d" * 200).joinpath(*["e" * 200] * 4))
    assert len(end_of_recovery(settings, "").encode()) <= GUARD_BYTES_MAX
    with pytest.raises(PostgresError, match="choose a shorter state_dir"):
        end_of_recovery(deep, "")


def test_signal_file_follows_the_role_when_it_changes(settings: ServerSettings) -> None:
    """A standby has it, a primary has neither it nor recovery.signal."""
    (settings.data_dir / "recovery.signal").touch()
    write_signal_file(settings, "standby")
    assert [path.name for path in settings.data_dir.glob("*.signal")] == ["standby.signal"]
    write_signal_file(settings, "primary")
    assert not list(settings.data_dir.glob("*.signal"))


def test_links_are_not_followed_when_somebody_planted_them(settings: ServerSettings, tmp_path: Path) -> None:
    """The agent may be root in a directory of another user: a link there must not lead its writing elsewhere."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (settings.data_dir / "pg_ident.conf.new").symlink_to(victim)
    (settings.data_dir / "standby.signal").symlink_to(victim)
    write_signal_file(settings, "standby")
    assert victim.read_text() == "precious"
    assert not (settings.data_dir / "standby.signal").is_symlink()


@pytest.mark.servers
@pytest.mark.anyio
async def test_server_reads_what_was_meant_when_values_are_nasty(
    open_directory: Path, postgres_bin: Path, run_as: RunAs | None
) -> None:
    """The server itself, not only our reading of its grammar, gives the value back."""
    nasty = "it's \\ a\ttab, a\nline, 'two' # no comment ä\\n"
    async with running_nodes(open_directory, postgres_bin, run_as, "n1") as (node,):
        await node.server.init_db(timeout_ms=PATIENCE_MS)
        await node.server.start("primary", None, {"matriarch.nasty": nasty}, armed_until_ms=None)
        await node.until(lambda probe: not probe.in_recovery)
        assert await node.execute("SHOW matriarch.nasty") == [(nasty,)]
        assert await node.execute("SHOW cluster_name") == [("demo's",)]


@pytest.mark.servers
@pytest.mark.anyio
async def test_bad_parameters_are_named_when_the_server_would_not_start_with_them(
    open_directory: Path, postgres_bin: Path, run_as: RunAs | None
) -> None:
    """Unknown names and wrong values are told with the server's reason; without them it starts."""
    bad = {"nonsense": 1, "work_mem": "5 lightyears", "Jit": "perhaps", "port": "x", "maintenance_work_mem": "1kB"}
    async with running_nodes(open_directory, postgres_bin, run_as, "n1") as (node,):
        node.settings.parameters["seq_page_cost"] = "cheap"
        rejected = await rejected_parameters(node.settings, bad | {"my.own": "thing"})
        assert sorted(rejected) == ["jit", "maintenance_work_mem", "nonsense", "seq_page_cost", "work_mem"]
        assert rejected["work_mem"] == 'invalid value for parameter "work_mem": "5 lightyears"'
        settings, dynamic = without_parameters(node.settings, bad | {"my.own": "thing"}, rejected)
        assert dynamic == {"port": "x", "my.own": "thing"}
        assert settings.parameters == {"shared_buffers": "16MB"}
        assert await rejected_parameters(settings, dynamic) == {}
