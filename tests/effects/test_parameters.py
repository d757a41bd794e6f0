"""What PostgreSQL would refuse is left out of the files, told, and asked about only once."""

import uuid
from pathlib import Path

import msgspec
import pytest

from effects.hba import hba_fault
from effects.parameters import HBA, ParameterCheck
from effects.pgconfig import parameters_in_effect
from effects.programs import RunAs
from effects.server_settings import ServerSettings
from fsm.dynamic import Dynamic
from tests.effects.servers import PATIENCE_MS, running_nodes, settings_for

pytestmark = pytest.mark.anyio


@pytest.fixture
def settings(open_directory: Path, postgres_bin: Path, run_as: RunAs | None) -> ServerSettings:
    """A node whose server's program can be asked."""
    base = open_directory / uuid.uuid4().hex[:8]
    base.mkdir(mode=0o755)
    return settings_for(base, "n1", postgres_bin, run_as, 5432)


@pytest.mark.servers
async def test_refused_parameters_are_left_out_when_the_rest_is_sound(settings: ServerSettings) -> None:
    """An unknown name, a bad value, and one of this node's own: each is told with PostgreSQL's reason."""
    local = msgspec.structs.replace(settings, parameters={"log_min_duration_statement": "soon", "jit": "off"})
    dynamic = Dynamic(parameters={"work_mem": "many", "wrok_mem": "4MB", "statement_timeout": "1min"})
    usable = await ParameterCheck().usable(local, dynamic)
    assert sorted(usable.refused) == ["log_min_duration_statement", "work_mem", "wrok_mem"]
    assert "unrecognized configuration parameter" in usable.refused["wrok_mem"]
    found = parameters_in_effect(usable.settings, usable.parameters)
    assert (found["statement_timeout"], found["jit"]) == ("1min", "off")
    assert not {"work_mem", "wrok_mem", "log_min_duration_statement"} & set(found)


@pytest.mark.servers
async def test_refused_value_is_not_told_when_its_name_says_that_it_is_a_secret(settings: ServerSettings) -> None:
    """PostgreSQL's reason repeats the value, and the reason goes into the log."""
    usable = await ParameterCheck().usable(settings, Dynamic(parameters={"password_encryption": "hunter2"}))
    assert usable.refused == {"password_encryption": "the value is not valid"}


@pytest.mark.servers
async def test_reserved_connections_are_left_out_when_they_leave_none_for_others(settings: ServerSettings) -> None:
    """PostgreSQL itself finds that out only when it starts, and then does not."""
    dynamic = Dynamic(parameters={"superuser_reserved_connections": "100", "max_connections": "100"})
    usable = await ParameterCheck().usable(settings, dynamic)
    assert usable.refused == {
        "superuser_reserved_connections": "superuser_reserved_connections + reserved_connections = 100, "
        "allowed: less than max_connections, which is 100"
    }


@pytest.mark.servers
async def test_libraries_are_left_out_when_they_are_not_installed(settings: ServerSettings) -> None:
    """The server, or every session, would end at once; what is there may be loaded, in any spelling."""
    there = Dynamic(parameters={"shared_preload_libraries": 'plpgsql, "$libdir/dict_snowball"'})
    assert (await ParameterCheck().usable(settings, there)).refused == {}
    for parameter in ("shared_preload_libraries", "session_preload_libraries"):
        usable = await ParameterCheck().usable(settings, Dynamic(parameters={parameter: "plpgsql,pg_nowhere"}))
        assert usable.refused[parameter].startswith("pg_nowhere is not in ")
        assert parameter not in usable.parameters


async def test_parameters_are_used_as_they_are_when_nobody_can_be_asked(tmp_path: Path) -> None:
    """A program that cannot be run is no reason to change the configuration."""
    nowhere = settings_for(tmp_path, "n1", Path("/nowhere"), None, 5432)
    usable = await ParameterCheck().usable(nowhere, Dynamic(parameters={"wrok_mem": "4MB"}))
    assert (usable.parameters, usable.refused) == ({"wrok_mem": "4MB"}, {})


async def test_rules_of_the_node_win_when_the_cluster_has_some_too(tmp_path: Path) -> None:
    """Own, the cluster's, those of the beginning: the first that are there; bad ones are not written at all."""
    nowhere = settings_for(tmp_path, "n1", Path("/nowhere"), None, 5432)
    first = msgspec.structs.replace(nowhere, first_pg_hba=("local all all md5",))
    dynamic = Dynamic(pg_hba=("local all all trust",), pg_ident=("m root postgres",))
    check = ParameterCheck()
    assert (await check.usable(first, Dynamic())).settings.pg_hba == ("local all all md5",)
    assert (await check.usable(first, dynamic)).settings.pg_hba == ("local all all trust",)
    assert (await check.usable(first, dynamic)).settings.pg_ident == ("m root postgres",)
    own = msgspec.structs.replace(first, pg_hba=("local all all peer",))
    assert (await check.usable(own, dynamic)).settings.pg_hba == ("local all all peer",)
    bad = await check.usable(first, Dynamic(pg_hba=("local all all trust", "nobody")))
    assert bad.settings.pg_hba == ()
    assert bad.refused[HBA].startswith("line 2: ")


@pytest.mark.servers
async def test_rules_are_taken_back_when_the_running_server_refuses_them(
    open_directory: Path, postgres_bin: Path, run_as: RunAs | None
) -> None:
    """A fault that only the server sees does not stay in the file, nor is it tried again."""
    async with running_nodes(open_directory, postgres_bin, run_as, "n1") as (node,):
        await node.become_first_primary()
        path = node.settings.data_dir / "pg_hba.conf"
        check, before = ParameterCheck(), path.read_text()
        dynamic = Dynamic(pg_hba=("local all all trust", "host all all all ldap"))
        assert hba_fault(dynamic.pg_hba) is None
        usable = await check.usable(node.settings, dynamic)
        node.server.settings = usable.settings
        await node.server.follow(None, usable.parameters)
        assert "ldap" in path.read_text()
        found = await check.keep_good_rules(usable.settings, before)
        assert found is not None
        assert found.startswith("line ")
        assert path.read_text() == before
        assert (await check.usable(node.settings, dynamic)).refused == {HBA: found}


@pytest.mark.servers
async def test_server_starts_when_parameters_are_refused(
    open_directory: Path, postgres_bin: Path, run_as: RunAs | None
) -> None:
    """With the bad ones PostgreSQL would not come up; without them it does."""
    async with running_nodes(open_directory, postgres_bin, run_as, "n1") as (node,):
        await node.server.init_db(timeout_ms=PATIENCE_MS)
        dynamic = Dynamic(parameters={"wrok_mem": "4MB", "superuser_reserved_connections": "99999"})
        dynamic.parameters["shared_preload_libraries"] = "pg_nowhere"
        usable = await ParameterCheck().usable(node.settings, dynamic)
        assert len(usable.refused) == 3
        await node.server.start("primary", None, usable.parameters, armed_until_ms=None)
        await node.until(lambda probe: not probe.in_recovery)
