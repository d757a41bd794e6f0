"""The dynamic configuration: what the `config` key of etcd means. Source: Patroni, "Dynamic Configuration Settings"."""

from typing import Any, Literal

import msgspec

from fsm.facts import Fact

TRUE_WORDS = ("on", "true", "yes", "1")
FALSE_WORDS = ("off", "false", "no", "0")

MOST = 2**53
"""No setting means more than this; JSON readers agree on whole numbers up to here."""

TTL_MAX_S = 24 * 3600

TTL_MIN_S = 3
"""etcd's default election timeout lets it grant 2 s at the least; one more leaves room for the fence's margin."""


class Dynamic(Fact, frozen=True, kw_only=True):
    """The settings in force for the whole cluster, with the defaults where etcd says nothing or something unusable."""

    ttl_s: int = 30
    loop_wait_s: int = 10
    retry_timeout_s: int = 10
    maximum_lag_on_failover_bytes: int = 1_048_576
    primary_start_timeout_s: int = 300
    primary_stop_timeout_s: int = 0
    synchronous_mode: Literal["off", "on", "quorum"] = "off"
    failsafe_mode: bool = True
    """On unless set off: without etcd the present leader goes on as long as every member confirms it (Patroni: off)."""
    check_timeline: bool = True
    pause: bool = False
    use_pg_rewind: bool = True
    parameters: dict[str, str] = msgspec.field(default_factory=dict)


def _mapping(text: str | None) -> dict[str, Any]:
    """The JSON object in a key; anything else counts as empty, as Patroni's readers do."""
    try:
        found = msgspec.json.decode(text or "{}")
    except msgspec.DecodeError:
        return {}
    return found if isinstance(found, dict) else {}


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
    postgresql = found.get("postgresql")
    postgresql = postgresql if isinstance(postgresql, dict) else {}
    parameters = postgresql.get("parameters")
    start_timeout = found.get("primary_start_timeout", found.get("master_start_timeout"))
    stop_timeout = found.get("primary_stop_timeout", found.get("master_stop_timeout"))
    default = Dynamic()
    return Dynamic(
        ttl_s=min(TTL_MAX_S, as_int(found.get("ttl"), default.ttl_s, TTL_MIN_S)),
        loop_wait_s=as_int(found.get("loop_wait"), default.loop_wait_s, 1),
        retry_timeout_s=as_int(found.get("retry_timeout"), default.retry_timeout_s, 1),
        maximum_lag_on_failover_bytes=as_int(
            found.get("maximum_lag_on_failover"), default.maximum_lag_on_failover_bytes, 0
        ),
        primary_start_timeout_s=as_int(start_timeout, default.primary_start_timeout_s, 0),
        primary_stop_timeout_s=as_int(stop_timeout, default.primary_stop_timeout_s, 0),
        synchronous_mode=_synchronous_mode(found.get("synchronous_mode")),
        failsafe_mode=as_bool(found.get("failsafe_mode"), default.failsafe_mode),
        check_timeline=as_bool(found.get("check_timeline"), default.check_timeline),
        pause=as_bool(found.get("pause"), default.pause),
        use_pg_rewind=as_bool(postgresql.get("use_pg_rewind"), default.use_pg_rewind),
        parameters={str(k): _setting(v) for k, v in parameters.items()} if isinstance(parameters, dict) else {},
    )


def _setting(value: object) -> str:
    """A PostgreSQL parameter's value as postgresql.conf writes it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value)
