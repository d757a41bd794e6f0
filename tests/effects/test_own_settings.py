"""What a node's own settings say about its server reaches PostgreSQL's programs, connections and files."""

from pathlib import Path

import msgspec
import pytest
from psycopg.conninfo import conninfo_to_dict

from api.node import first_config_of, identity_of, server_settings_of
from effects import clone, rewind
from effects.pgconfig import GENERATED, primary_conninfo, recovery_parameters, server_conf
from effects.programs import RunAs
from effects.server_settings import Login
from effects.settings import load
from fsm.facts import Upstream
from tests.effects.servers import PATIENCE_MS, ignore_progress, running_nodes, settings_for
from tests.effects.test_settings import ENVIRONMENT, complete

UPSTREAM = Upstream(name="n2", host="10.0.0.2", port=5432)
OPTIONS = {
    "PATRONI_POSTGRESQL_BIN_DIR": "/opt/pg/bin",
    "PATRONI_POSTGRESQL_BIN_PG_REWIND": "pg_rewind-17",
    "PATRONI_POSTGRESQL_PGPASS": "/run/pg/pass",
    "PATRONI_POSTGRESQL_PROXY_ADDRESS": "proxy:6432",
    "PATRONI_REPLICATION_SSLMODE": "verify-full",
    "PATRONI_REPLICATION_SSLROOTCERT": "/etc/ca.pem",
    "PATRONI_REPLICATION_SSLPASSWORD": "hunter3",
    "PATRONI_REWIND_USERNAME": "rewinder",
    "PATRONI_REWIND_CHANNEL_BINDING": "require",
}


def test_connection_options_are_used_over_tcp_when_they_are_set() -> None:
    """The receiver, pg_basebackup and pg_rewind connect with them; a key's passphrase is in no argument."""
    settings = server_settings_of(load(None, ENVIRONMENT | OPTIONS), None)
    receiver = conninfo_to_dict(primary_conninfo(settings, UPSTREAM))
    assert (receiver["sslmode"], receiver["sslrootcert"]) == ("verify-full", "/etc/ca.pem")
    assert (receiver["sslpassword"], receiver["passfile"]) == ("hunter3", "/run/pg/pass")
    backup = " ".join(clone._command(settings, UPSTREAM))
    assert "sslmode=verify-full" in backup
    assert "hunter" not in backup
    rewinding = rewind._command(settings, UPSTREAM)
    assert rewinding[0] == "/opt/pg/bin/pg_rewind-17"
    assert "channel_binding=require" in " ".join(rewinding)
    assert "sslmode" not in " ".join(rewinding)
    assert "hunter" not in repr(settings)


def test_program_options_are_passed_on_when_they_are_set(tmp_path: Path) -> None:
    """Those of pg_basebackup and pg_rewind; a manifest is written when one is asked for."""
    section = (
        "  basebackup: [max-rate: 100M, {checkpoint: spread}, manifest-checksums: NONE]\n  rewind: [sync-method: fsync]"
    )
    path = complete(tmp_path, **{"  bin_dir:": f"{section}\n  bin_dir:"})
    settings = server_settings_of(load(path, {}), None)
    backup = clone._command(settings, UPSTREAM)
    assert backup[-3:] == ["--max-rate=100M", "--checkpoint=spread", "--manifest-checksums=NONE"]
    assert "--no-manifest" not in backup
    assert rewind._command(settings, UPSTREAM)[-1] == "--sync-method=fsync"


def test_identity_says_what_others_and_decisions_need_when_it_is_set(tmp_path: Path) -> None:
    """The proxy for others; whether this node may rewind, and may make a cluster."""
    settings = load(None, ENVIRONMENT | OPTIONS)
    assert identity_of(settings).proxy_url == "postgres://proxy:6432/postgres"
    assert (identity_of(settings).use_pg_rewind, identity_of(settings).may_initialize) == (None, True)
    assert first_config_of(settings).startswith('{"ttl":30')
    text = {"  bin_dir:": "  use_pg_rewind: off\n  bin_dir:", "  initdb:": "  method: pitr\n  initdb:"}
    own = identity_of(load(complete(tmp_path, **text), {}))
    assert (own.use_pg_rewind, own.may_initialize) == (False, False)


def test_recovery_parameters_are_those_of_a_standby_when_they_are_read() -> None:
    """What the agent itself decides about is left out."""
    found = {"restore_command": "cp", "recovery_target_time": "x", "primary_conninfo": "x", "standby_mode": "on"}
    assert recovery_parameters(found | {"recovery_min_apply_delay": 5, "Trigger_File": "x"}) == {
        "restore_command": "cp",
        "recovery_min_apply_delay": "5",
    }


def test_custom_file_is_included_when_it_is_set(tmp_path: Path) -> None:
    """Instead of the original configuration."""
    made = settings_for(tmp_path, "n1", Path("/nowhere"), None, 5432)
    custom = msgspec.structs.replace(made, custom_conf="/etc/pg/it's.conf")
    assert "include '/etc/pg/it''s.conf'\n" in server_conf(custom, {}, None)


@pytest.mark.servers
async def test_standby_is_made_when_its_settings_say_how(
    open_directory: Path, postgres_bin: Path, run_as: RunAs | None
) -> None:
    """Options of the backup, another name of a program, another password file, a file of its own, restore_command."""
    async with running_nodes(open_directory, postgres_bin, run_as, "n1", "n2") as (one, two):
        await one.become_first_primary()
        base = two.settings.data_dir.parent
        custom = base / "custom.conf"
        custom.write_text("log_line_prefix = 'mine '\n")
        program = base / "base-backup"
        program.write_text(f'#!/bin/sh\nexec {postgres_bin}/pg_basebackup "$@"\n')
        program.chmod(0o755)
        settings = msgspec.structs.replace(
            two.settings,
            bin_names={"pg_basebackup": str(program)},
            basebackup_options=("--max-rate=1000M", "--checkpoint=spread", "--checkpoint=fast"),
            custom_conf=str(custom),
            pgpass=base / "secrets" / "pass",
            parameters={**two.settings.parameters, "restore_command": "false"},
            replication=Login(
                username=two.settings.replication.username,
                password=two.settings.replication.password,
                options={"sslmode": "prefer", "gssencmode": "disable"},
            ),
        )
        await clone.clone(settings, one.upstream, ignore_progress, timeout_ms=PATIENCE_MS)
        two.server.settings = settings
        await two.server.start("standby", one.upstream, {}, armed_until_ms=None)
        await two.until_streaming()
        assert await two.execute("SHOW log_line_prefix") == [("mine ",)]
        assert await two.execute("SHOW restore_command") == [("false",)]
        assert (base / "secrets" / "pass").stat().st_mode & 0o777 == 0o600
        assert "gssencmode=disable" in (settings.data_dir / GENERATED).read_text()
