"""The dynamic configuration: what the `config` key of etcd means. Source: Patroni, "Dynamic Configuration Settings"."""

from typing import Any, Literal

import msgspec

from fsm.facts import Fact
from fsm.timing import (
    FAILSAFE_TIMEOUT_MAX_MS,
    FAILSAFE_TIMEOUT_MIN_MS,
    FAILSAFE_TIMEOUT_MS,
    STALL_TIMEOUT_LEAST_S,
)
from fsm.units import amount_in

TRUE_WORDS = ("on", "true", "yes", "1")
FALSE_WORDS = ("off", "false", "no", "0")

MOST = 2**53
"""No setting means more than this; JSON readers agree on whole numbers up to here."""

CONTROLLED_LEAST = {
    "max_connections": 25,
    "max_wal_senders": 3,
    "max_replication_slots": 4,
    "max_worker_processes": 2,
    "max_locks_per_transaction": 32,
    "max_prepared_transactions": 0,
}
"""Parameters that must agree in the whole cluster, and the least that each may be. Source: Patroni, controlled ones."""

TTL_MAX_S = 24 * 3600

TTL_MIN_S = 3
"""etcd's default election timeout lets it grant 2 s at the least; one more leaves room for the fence's margin."""

TTL_MIN_REASON = "etcd keeps a lease for 2 s at the least, and the server must be gone 500 ms before it ends"


class Dynamic(Fact, frozen=True, kw_only=True):
    """The settings in force for the whole cluster, with the defaults where etcd says nothing or something unusable."""

    ttl_s: int = 30
    loop_wait_s: int = 10
    retry_timeout_s: int = 10
    maximum_lag_on_failover_bytes: int = 1_048_576
    maximum_lag_on_syncnode_bytes: int = -1
    """How far a standby may be behind and still be synchronous; 0 and less: however far."""
    max_timelines_history: int = 0
    """How many rows the `history` key keeps; 0: all."""
    primary_start_timeout_s: int = 300
    primary_stop_timeout_s: int = 0
    primary_stall_timeout_s: int = 10
    """How long the leader's server may answer nothing, or its disk take no writes, before another is to lead; 0: for
    ever."""
    synchronous_mode: Literal["off", "on", "quorum"] = "off"
    synchronous_mode_strict: bool = False
    """True: no commit returns before a standby has it, even while there is none."""
    synchronous_node_count: int = 1
    """How many standbys a commit waits for."""
    failsafe_mode: bool = True
    """On unless set off: without etcd the present leader goes on as long as every member confirms it (Patroni: off)."""
    failsafe_timeout_ms: int = FAILSAFE_TIMEOUT_MS
    """How long a leader without etcd waits for its members' answers; less where the ttl has no room for it."""
    check_timeline: bool = True
    pause: bool = False
    use_pg_rewind: bool = True
    parameters: dict[str, str] = msgspec.field(default_factory=dict)
    recovery_conf: dict[str, str] = msgspec.field(default_factory=dict)
    """Further parameters of a standby, such as restore_command."""
    pg_hba: tuple[str, ...] = ()
    """The lines of pg_hba.conf; empty: nothing is said about them."""
    pg_ident: tuple[str, ...] = ()


def _mapping(text: str | None) -> dict[str, Any]:
    """The JSON object in a key; anything else counts as empty, as Patroni's readers do."""
    try:
        found = msgspec.json.decode(text or "{}")
    except msgspec.DecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def is_configuration(text: str) -> bool:
    """True when the text of the `config` key is one; what is in force stays in force while it is none.

    Source: Patroni, which keeps its configuration when the key cannot be read.
    """
    try:
        return isinstance(msgspec.json.decode(text), dict)
    except msgspec.DecodeError:
        return False


def as_bool(value: object, default: bool) -> bool:
    """A boolean in any of Patroni's spellings, or the default."""
    word = str(value).strip().lower()
    if word in TRUE_WORDS:
        return True
    return False if word in FALSE_WORDS else default


def as_int(value: object, default: int, least: int) -> int:
    """A whole number of at least `least`, or the default if it is none."""
    try:
        return min(MOST, max(least, int(str(value))))
    except ValueError:
        return default


def as_amount(value: object, unit: str, default: int, least: int) -> int:
    """A size or a time, of at least `least`, or the default if it is none. Source: PostgreSQL's units."""
    found = amount_in(value, unit)
    return default if found is None else min(MOST, max(least, found))


def _synchronous_mode(value: object) -> Literal["off", "on", "quorum"]:
    if str(value).strip().lower() == "quorum":
        return "quorum"
    return "on" if as_bool(value, False) else "off"


def parse_dynamic(text: str | None) -> Dynamic:
    """The settings in force from the text of the `config` key.

    Args:
        text: the JSON of `config`, or None while the key is absent.
    """
    found = _mapping(text)
    postgresql = _section(found, "postgresql")
    start_timeout = found.get("primary_start_timeout", found.get("master_start_timeout"))
    stop_timeout = found.get("primary_stop_timeout", found.get("master_stop_timeout"))
    default = Dynamic()
    return Dynamic(
        ttl_s=min(TTL_MAX_S, as_amount(found.get("ttl"), "s", default.ttl_s, TTL_MIN_S)),
        loop_wait_s=as_amount(found.get("loop_wait"), "s", default.loop_wait_s, 1),
        retry_timeout_s=as_amount(found.get("retry_timeout"), "s", default.retry_timeout_s, 1),
        maximum_lag_on_failover_bytes=as_amount(
            found.get("maximum_lag_on_failover"), "B", default.maximum_lag_on_failover_bytes, 0
        ),
        primary_start_timeout_s=as_amount(start_timeout, "s", default.primary_start_timeout_s, 0),
        primary_stop_timeout_s=as_amount(stop_timeout, "s", default.primary_stop_timeout_s, 0),
        primary_stall_timeout_s=_stall_timeout_s(found.get("primary_stall_timeout"), default.primary_stall_timeout_s),
        maximum_lag_on_syncnode_bytes=as_amount(
            found.get("maximum_lag_on_syncnode"), "B", default.maximum_lag_on_syncnode_bytes, -1
        ),
        max_timelines_history=as_int(found.get("max_timelines_history"), default.max_timelines_history, 0),
        synchronous_mode=_synchronous_mode(found.get("synchronous_mode")),
        synchronous_mode_strict=as_bool(found.get("synchronous_mode_strict"), default.synchronous_mode_strict),
        synchronous_node_count=as_int(found.get("synchronous_node_count"), default.synchronous_node_count, 1),
        failsafe_mode=as_bool(found.get("failsafe_mode"), default.failsafe_mode),
        failsafe_timeout_ms=min(
            FAILSAFE_TIMEOUT_MAX_MS,
            as_amount(found.get("failsafe_timeout"), "ms", default.failsafe_timeout_ms, FAILSAFE_TIMEOUT_MIN_MS),
        ),
        check_timeline=as_bool(found.get("check_timeline"), default.check_timeline),
        pause=as_bool(found.get("pause"), default.pause),
        use_pg_rewind=as_bool(postgresql.get("use_pg_rewind"), default.use_pg_rewind),
        parameters=_settings(_section(postgresql, "parameters")),
        recovery_conf=_settings(_section(postgresql, "recovery_conf")),
        pg_hba=_lines(postgresql.get("pg_hba")),
        pg_ident=_lines(postgresql.get("pg_ident")),
    )


def _stall_timeout_s(value: object, default: int) -> int:
    """0, which is never, or long enough for two looks."""
    found = as_amount(value, "s", default, 0)
    return max(STALL_TIMEOUT_LEAST_S, found) if found else 0


def _section(found: dict[str, Any], name: str) -> dict[str, Any]:
    section = found.get(name)
    return section if isinstance(section, dict) else {}


def _settings(found: dict[str, Any]) -> dict[str, str]:
    return {name: _setting(value) for name, value in found.items() if value is not None}


def _lines(value: object) -> tuple[str, ...]:
    """The lines of a file, given as a list; anything else says nothing."""
    return tuple(str(line) for line in value) if isinstance(value, list) else ()


def _setting(value: object) -> str:
    """A PostgreSQL parameter's value as postgresql.conf writes it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value)
