"""Settings that Patroni has and that do nothing here yet: told, instead of being swallowed.

Whoever builds one of them takes its line out. What never will have an effect says so in `settings_schema.TABLE`.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from effects.settings_schema import ROWS
from effects.settings_sources import Reading

ROLES = "so far every server has the same, whatever its role"
HOOKS = "no program is called so far"
SLOTS = "replication slots are not managed so far; wal_keep_size keeps WAL for standbys that are away"
STANDBY_CLUSTER = "standby clusters are not built so far: this cluster has a primary of its own"
LEADER_ONLY = "so far every node clones, and streams, from the leader"

# Settings by their path, or a whole section by its path and ".*": why they do nothing.
UNBUILT: dict[str, str] = {
    "postgresql.config_dir": "the configuration files lie in the data directory so far",
    "postgresql.use_unix_socket": "the agent reaches its own server by the Unix socket, always",
    "postgresql.use_unix_socket_repl": "the agent's own replication connections take the network so far",
    "postgresql.config_base_name": "the configuration file is called postgresql.conf so far",
    "postgresql.parameters_primary": ROLES,
    "postgresql.parameters_replica": ROLES,
    "postgresql.parameters_standby_leader": ROLES,
    "postgresql.pg_hba_primary": ROLES,
    "postgresql.pg_hba_replica": ROLES,
    "postgresql.pg_hba_standby_leader": ROLES,
    "postgresql.pg_ident_primary": ROLES,
    "postgresql.pg_ident_replica": ROLES,
    "postgresql.pg_ident_standby_leader": ROLES,
    "postgresql.callbacks.*": HOOKS,
    "postgresql.pre_promote": HOOKS,
    "postgresql.before_stop": HOOKS,
    "postgresql.create_replica_methods": "a replica is made by basebackup so far",
    "postgresql.pg_ctl_timeout": "the agent does not wait for a server, and stops it within the lease",
    "bootstrap.method": "a cluster is made by initdb so far; this node makes none, and waits for one",
    "bootstrap.post_bootstrap": HOOKS,
    "bootstrap.dcs.primary_race_backoff": "an election takes its time from the answers of the members",
    "bootstrap.dcs.primary_stop_timeout": "a primary that is stopped has as long as its lease",
    "bootstrap.dcs.master_stop_timeout": "a primary that is stopped has as long as its lease",
    "bootstrap.dcs.member_slots_ttl": SLOTS,
    "bootstrap.dcs.slots": SLOTS,
    "bootstrap.dcs.permanent_slots": SLOTS,
    "bootstrap.dcs.permanent_replication_slots": SLOTS,
    "bootstrap.dcs.ignore_slots": SLOTS,
    "bootstrap.dcs.postgresql.use_slots": SLOTS,
    "bootstrap.dcs.standby_cluster.*": STANDBY_CLUSTER,
}
# Usable in the dynamic configuration too; all others of `postgresql` are read from this node's own settings only.
DYNAMIC_POSTGRESQL = ("use_pg_rewind", "parameters", "pg_hba", "pg_ident", "recovery_conf", "use_slots")
LOCAL_SO_FAR = "it is read from each node's own settings so far; set it under postgresql there"
# What asks for nothing that is not so anyway.
HARMLESS: dict[str, tuple[object, ...]] = {
    "postgresql.use_unix_socket": (True,),
    "postgresql.use_unix_socket_repl": (False,),
    "postgresql.config_base_name": ("postgresql",),
    "postgresql.create_replica_methods": (("basebackup",),),
    "bootstrap.method": ("initdb",),
    "bootstrap.dcs.primary_race_backoff": (0,),
    "bootstrap.dcs.primary_stop_timeout": (0,),
    "bootstrap.dcs.master_stop_timeout": (0,),
    "bootstrap.dcs.postgresql.use_slots": (False,),
}
TAGS = {"clonefrom": LEADER_ONLY, "replicatefrom": LEADER_ONLY, "nostream": LEADER_ONLY}


def why_unbuilt(path: str) -> str:
    """Why a setting does nothing yet, or ""; dynamic settings by their path below bootstrap.dcs."""
    found = UNBUILT.get(path) or next((UNBUILT[section] for section in _sections(path) if section in UNBUILT), "")
    shared = path.removeprefix("bootstrap.dcs.postgresql.")
    if not found and shared != path and shared.split(".")[0] not in DYNAMIC_POSTGRESQL:
        return LOCAL_SO_FAR
    return found


def _sections(path: str) -> Iterator[str]:
    return (path[:at] + ".*" for at, letter in enumerate(path) if letter == ".")


def warn_unbuilt(reading: Reading) -> None:
    """Notes each setting that was written, asks for something, and does nothing yet."""
    for path, node in reading.leaves.items():
        reason = why_unbuilt(path)
        value = reading.values.get(path)
        # One that is at its default, or unfit and a fault by itself, asks for nothing.
        asks = not node.is_unset and value != ROWS[path].default and value not in HARMLESS.get(path, ())
        if not reason or not asks or ROWS[path].no_effect:
            continue
        if path == "postgresql.config_dir" and value == reading.values["postgresql.data_dir"]:
            continue
        reading.warn(path, f"has no effect here yet: {reason}")
    for tag, value in (reading.values["tags"] or {}).items():
        if value and tag in TAGS:
            reading.warn("tags", f"{tag} has no effect here yet: {TAGS[tag]}")


def unbuilt_in(config: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The settings of a dynamic configuration that do nothing here, each with the reason."""
    found: list[str] = []
    for key, value in config.items():
        path = prefix + key
        reason = why_unbuilt(f"bootstrap.dcs.{path}")
        if reason and value is not None and value not in HARMLESS.get(f"bootstrap.dcs.{path}", ()):
            found.append(f"{path} ({reason})")
        elif isinstance(value, Mapping) and not _is_leaf(path):
            found += unbuilt_in(value, f"{path}.")
    return found


def _is_leaf(path: str) -> bool:
    return f"bootstrap.dcs.{path}" in ROWS
