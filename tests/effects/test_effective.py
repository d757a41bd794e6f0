"""Every setting in force, with its origin: etcd, this node's file, a variable, or a default."""

import json
from pathlib import Path

from effects.effective import DYNAMIC_FIELDS, InForce, settings_in_force
from effects.settings_schema import ROWS
from fsm.dynamic import Dynamic
from tests.effects.test_settings import ENVIRONMENT

CONFIG = {
    "ttl": "20s",
    "loop_wait": 5,
    "retry_timeout": 0,
    "synchronous_mode": "yes",
    "master_start_timeout": 60,
    "postgresql": {
        "use_pg_rewind": True,
        "pg_hba": ["local all all trust"],
        "parameters": {
            "max_connections": 24,
            "max_wal_senders": 12,
            "work_mem": "4MB",
            "jit": True,
            "archive_command": "cp --key abc",
        },
    },
}


def in_force(text: str | None, path: Path | None = None, **more: str) -> dict[str, InForce]:
    """What counts, by name."""
    return {row.name: row for row in settings_in_force(path, ENVIRONMENT | more, text)}


def told(found: dict[str, InForce], name: str) -> tuple[str, str, str]:
    """Value, source and remark of one setting."""
    row = found[name]
    return row.value, row.source, row.remark


def test_dynamic_settings_come_from_etcd_when_they_are_there() -> None:
    """What is not there has its default; what was written in another way is remarked on."""
    found = in_force(json.dumps(CONFIG))
    assert told(found, "ttl") == ("20", "etcd", "written as '20s'")
    assert told(found, "loop_wait") == ("5", "etcd", "")
    assert told(found, "retry_timeout") == ("1", "etcd", "written as 0")
    assert told(found, "synchronous_mode") == ("on", "etcd", "")
    assert told(found, "primary_start_timeout") == ("60", "etcd", "")
    assert told(found, "failsafe_mode") == ("on", "default", "")
    assert told(found, "postgresql.pg_hba") == ("1 line", "etcd", "")


def test_parameters_come_from_their_layers_when_several_name_them(tmp_path: Path) -> None:
    """Controlled ones from etcd only, free ones from this node's file first; secrets are not shown."""
    path = tmp_path / "patroni.yml"
    path.write_text("postgresql:\n  parameters:\n    work_mem: 8MB\n    max_connections: 999\n")
    found = in_force(json.dumps(CONFIG), path)
    prefix = "postgresql.parameters."
    assert told(found, f"{prefix}work_mem") == ("8MB", f"{path}:3", "")
    assert told(found, f"{prefix}max_connections") == ("100", "etcd", "written as '24'")
    assert told(found, f"{prefix}max_wal_senders") == ("12", "etcd", "")
    assert told(found, f"{prefix}max_worker_processes") == ("8", "default", "")
    assert told(found, f"{prefix}jit") == ("on", "etcd", "")
    assert told(found, f"{prefix}archive_command") == ("***", "etcd", "")
    assert told(found, f"{prefix}wal_retrieve_retry_interval") == ("500ms", "default", "")


def test_own_settings_name_their_place_when_they_were_written(tmp_path: Path) -> None:
    """A file and its line, or a variable; a password never."""
    path = tmp_path / "patroni.yml"
    path.write_text("namespace: /db/\npostgresql:\n  use_pg_rewind: false\n")
    found = in_force(json.dumps(CONFIG), path)
    assert told(found, "namespace") == ("db", f"{path}:1", "")
    assert told(found, "scope") == ("main", "PATRONI_SCOPE", "")
    assert told(found, "log.level") == ("INFO", "default", "")
    assert told(found, "postgresql.use_pg_rewind") == ("off", f"{path}:3", "")
    assert told(found, "postgresql.authentication.superuser.password") == ("***", "PATRONI_SUPERUSER_PASSWORD", "")
    assert not any("hunter" in row.value for row in found.values())


def test_bootstrap_values_count_when_the_cluster_is_not_made() -> None:
    """Before there is a configuration in etcd, this node's own first one is what would count."""
    found = in_force(None, PATRONI_BOOTSTRAP_DCS_TTL="40")
    assert told(found, "ttl") == ("40", "bootstrap.dcs, until the cluster is made", "")


def test_every_field_is_shown_when_the_dynamic_configuration_has_one() -> None:
    """A new dynamic setting cannot be forgotten here."""
    shown_elsewhere = {"parameters", "recovery_conf", "pg_hba", "pg_ident"}
    assert {field for field, _ in DYNAMIC_FIELDS.values()} == set(Dynamic.__struct_fields__) - shown_elsewhere
    assert all(f"bootstrap.dcs.{name}" in ROWS for name in DYNAMIC_FIELDS)
