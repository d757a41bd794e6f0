"""Changing the dynamic configuration: how a patch is merged, which values would be of no use, what has changed. Pure.

Source: Patroni, PATCH and PUT /config. Patroni takes any value and each node then ignores what it cannot use; here a
value that no node could use is refused where somebody still looks.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

from fsm.dynamic import (
    CONTROLLED_LEAST,
    FALSE_WORDS,
    MOST,
    TRUE_WORDS,
    TTL_MAX_S,
    TTL_MIN_REASON,
    TTL_MIN_S,
    parse_dynamic,
)
from fsm.timing import (
    FAILSAFE_TIMEOUT_MAX_MS,
    FAILSAFE_TIMEOUT_MIN_MS,
    STALL_TIMEOUT_LEAST_S,
    failsafe_timeout_most_ms,
    failsafe_timeout_ms,
)
from fsm.units import amount_in
from fsm.wire import compact

DEPTH_MAX = 16
"""Settings nest three deep; what is deeper is a mistake, or an attack on whoever reads it."""
SHOWN_MAX = 60

_WHOLE = re.compile(r"-?\d{1,16}", re.ASCII)
_PARAMETER = re.compile(r"[A-Za-z_][A-Za-z0-9_$]*(\.[A-Za-z_][A-Za-z0-9_$]*)?", re.ASCII)
_DURATION = re.compile(r"\d{1,12}(\.\d{1,6})?\s*(us|ms|s|min|h|d)?", re.ASCII)

Check = Callable[[Any], str | None]
"""What is allowed, if the value is not."""


def merged(config: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    """The configuration with a patch laid over it: null takes a key away, objects are merged, other values replace.

    A value that reads the same as the present one, such as "10" over 10, leaves that as it is.
    """
    found = dict(config)
    for name, value in patch.items():
        known = found.get(name)
        if value is None:
            found.pop(name, None)
        elif isinstance(value, dict):
            found[name] = merged(known if isinstance(known, dict) else {}, value)
        elif name not in found or isinstance(known, dict) or str(known) != str(value):
            found[name] = value
    return found


def changed_places(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Every place at which two configurations differ, with both values; None where there is none."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        if old != new or type(old) is not type(new):
            yield path, old, new
        return
    for name in [*old, *(name for name in new if name not in old)]:
        yield from changed_places(old.get(name), new.get(name), f"{path}.{name}" if path else str(name))


def is_too_deep(found: Any, depth: int = DEPTH_MAX) -> bool:
    """True when objects and lists nest deeper than any setting does."""
    if not isinstance(found, dict | list):
        return False
    if depth == 0:
        return True
    return any(is_too_deep(part, depth - 1) for part in (found.values() if isinstance(found, dict) else found))


def fault_of(config: dict[str, Any], touched: set[str]) -> str | None:
    """The first value among the touched top-level keys that no node could use, in one line; None if there is none."""
    for name in touched & config.keys():
        for path, value, allowed in _faults_at(name, config[name]):
            return f'"{path}" is {_shown(value)}: allowed is {allowed}; nothing was changed'
    return _failsafe_fault(config) if touched & {"ttl", "failsafe_timeout"} else None


def _failsafe_fault(config: dict[str, Any]) -> str | None:
    """A member's answer may not be waited for so long that a leader without etcd could ask but once."""
    if config.get("failsafe_timeout") is None:
        return None
    dynamic = parse_dynamic(compact({name: config.get(name) for name in ("ttl", "failsafe_timeout")}))
    most_ms = failsafe_timeout_most_ms(dynamic.ttl_s)
    if dynamic.failsafe_timeout_ms <= most_ms:
        return None
    return (
        f'"failsafe_timeout" is {dynamic.failsafe_timeout_ms} ms: allowed with a ttl of {dynamic.ttl_s} s are '
        f"{most_ms} ms at the most, so that two questions fit before the lease ends; nothing was changed"
    )


def bent_values(config: dict[str, Any]) -> list[str]:
    """What of a configuration that was written by hand counts as something else than it says, each with the reason."""
    dynamic = parse_dynamic(compact(config))
    ttl_s, timeout_ms = dynamic.ttl_s, failsafe_timeout_ms(dynamic.failsafe_timeout_ms, dynamic.ttl_s)
    most_ms = failsafe_timeout_most_ms(ttl_s)
    limits = f"{FAILSAFE_TIMEOUT_MIN_MS} ms at the least, and {most_ms} ms at the most with this ttl"
    counting = {
        "ttl": (ttl_s, "s", f"{TTL_MIN_S} s at the least, for {TTL_MIN_REASON}"),
        "failsafe_timeout": (timeout_ms, "ms", limits),
    }
    return [
        f'"{name}" is {_shown(config[name])}, and {counts} {unit} count: {reason}'
        for name, (counts, unit, reason) in counting.items()
        if config.get(name) is not None and amount_in(config[name], unit) != counts
    ]


def _faults_at(name: str, value: Any) -> Iterator[tuple[str, Any, str]]:
    check = CHECKS.get(name)
    allowed = check(value) if check else None
    if allowed is not None:
        yield name, value, allowed
    elif name == "postgresql":
        for key, part in value.items():
            allowed = POSTGRESQL_CHECKS[key](part) if key in POSTGRESQL_CHECKS else None
            if allowed is not None:
                yield f"postgresql.{key}", part, allowed
            elif key == "parameters":
                yield from _parameter_faults(part)


def _parameter_faults(parameters: dict[str, Any]) -> Iterator[tuple[str, Any, str]]:
    for name, value in parameters.items():
        if not _PARAMETER.fullmatch(name):
            yield "postgresql.parameters", name, "names as PostgreSQL has them"
        elif isinstance(value, dict | list) or (isinstance(value, str) and "\0" in value):
            # The value itself is not shown: it may be a secret.
            yield f"postgresql.parameters.{name}", type(value).__name__, "text, a number, or true or false"
        elif name.lower() in CONTROLLED_LEAST and value is not None:
            allowed = whole("them", CONTROLLED_LEAST[name.lower()])(value)
            if allowed is not None:
                yield f"postgresql.parameters.{name}", value, allowed


def _shown(value: Any) -> str:
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    text = value if isinstance(value, str) else str(value)
    cut = text[:SHOWN_MAX] + ("…" if len(text) > SHOWN_MAX else "")
    return f'"{cut}"'.replace("\n", " ").replace("\r", " ")


# ---- what each setting allows ----------------------------------------------------------------------------------------


def whole(unit: str, least: int, most: int = MOST, reason: str = "") -> Check:
    """Checks for a whole number, also one written as text. `reason`: why not less."""
    allowed = f"a whole number of {unit}, {least} or more" + (f", {most} at the most" if most != MOST else "")
    allowed += f" ({reason})" if reason else ""

    def check(value: Any) -> str | None:
        is_number = not isinstance(value, bool) and _WHOLE.fullmatch(str(value).strip())
        return None if is_number and least <= int(value) <= most else allowed

    return check


def _stall_timeout(value: Any) -> str | None:
    is_fit = whole("seconds", 0, TTL_MAX_S)(value) is None and int(value) not in range(1, STALL_TIMEOUT_LEAST_S)
    return None if is_fit else f"a whole number of seconds: 0 for never, else {STALL_TIMEOUT_LEAST_S} to {TTL_MAX_S}"


def _switch(value: Any) -> str | None:
    words = (*TRUE_WORDS, *FALSE_WORDS)
    is_plain = isinstance(value, bool | int | str)
    return None if is_plain and str(value).strip().lower() in words else "on or off (true, false, yes, no, 1, 0)"


def _synchronous(value: Any) -> str | None:
    if isinstance(value, str) and value.strip().lower() == "quorum":
        return None
    return None if _switch(value) is None else "off, on or quorum"


def _duration(value: Any) -> str | None:
    is_fit = not isinstance(value, bool) and _DURATION.fullmatch(str(value).strip())
    return None if is_fit else "a span of time, such as 1800 or 30min"


def _object(value: Any) -> str | None:
    return None if isinstance(value, dict) else "an object"


def _not_there_yet(value: Any) -> str | None:
    return None if not value else "none: standby clusters are not there yet"


def _list(value: Any) -> str | None:
    return None if isinstance(value, list) else "a list"


def _lines(value: Any) -> str | None:
    is_fit = isinstance(value, list) and all(isinstance(line, str) and "\0" not in line for line in value)
    return None if is_fit else "a list of lines"


CHECKS: dict[str, Check] = {
    "ttl": whole("seconds", TTL_MIN_S, TTL_MAX_S, TTL_MIN_REASON),
    "loop_wait": whole("seconds", 1, TTL_MAX_S),
    "retry_timeout": whole("seconds", 1, TTL_MAX_S),
    "maximum_lag_on_failover": whole("bytes", 0),
    "maximum_lag_on_syncnode": whole("bytes", -1),
    "max_timelines_history": whole("rows", 0),
    "check_timeline": _switch,
    "primary_start_timeout": whole("seconds", 0, TTL_MAX_S),
    "master_start_timeout": whole("seconds", 0, TTL_MAX_S),
    "primary_stop_timeout": whole("seconds", 0, TTL_MAX_S),
    "master_stop_timeout": whole("seconds", 0, TTL_MAX_S),
    "primary_stall_timeout": _stall_timeout,
    "primary_race_backoff": whole("seconds", 0, TTL_MAX_S),
    "synchronous_mode": _synchronous,
    "synchronous_mode_strict": _switch,
    "synchronous_node_count": whole("nodes", 1),
    "failsafe_mode": _switch,
    "failsafe_timeout": whole("milliseconds", FAILSAFE_TIMEOUT_MIN_MS, FAILSAFE_TIMEOUT_MAX_MS),
    "pause": _switch,
    "member_slots_ttl": _duration,
    "slots": _object,
    "permanent_slots": _object,
    "permanent_replication_slots": _object,
    "ignore_slots": _list,
    "standby_cluster": _not_there_yet,
    "postgresql": _object,
}
"""The settings that mean something, and what each allows. Others are kept as they are, as Patroni does."""

POSTGRESQL_CHECKS: dict[str, Check] = {
    "parameters": _object,
    "use_slots": _switch,
    "use_pg_rewind": _switch,
    "pg_hba": _lines,
    "pg_ident": _lines,
    "recovery_conf": _object,
    "remove_data_directory_on_rewind_failure": _switch,
    "remove_data_directory_on_diverged_timelines": _switch,
}
