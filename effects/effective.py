"""Every setting in force on this node, and where its value comes from."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct

from effects.pgconfig import (
    CONTROLLED,
    DEFAULTS,
    IGNORED,
    NAME,
    controlled_parameters,
    recovery_parameters,
    written,
)
from effects.redaction import HIDDEN, is_secret_name
from effects.settings import read_settings
from effects.settings_schema import ROWS
from effects.settings_sources import Reading
from effects.settings_types import Secret
from effects.settings_values import Address
from fsm.dynamic import Dynamic, as_bool, parse_dynamic
from fsm.wire import compact, json_object

ETCD, DEFAULT = "etcd", "default"
BOOTSTRAP = "bootstrap.dcs, until the cluster is made"

# Every setting of the dynamic configuration that has an effect here, the field that holds it, and its older names.
DYNAMIC_FIELDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "ttl": ("ttl_s", ()),
    "loop_wait": ("loop_wait_s", ()),
    "retry_timeout": ("retry_timeout_s", ()),
    "maximum_lag_on_failover": ("maximum_lag_on_failover_bytes", ()),
    "maximum_lag_on_syncnode": ("maximum_lag_on_syncnode_bytes", ()),
    "max_timelines_history": ("max_timelines_history", ()),
    "primary_start_timeout": ("primary_start_timeout_s", ("master_start_timeout",)),
    "primary_stop_timeout": ("primary_stop_timeout_s", ("master_stop_timeout",)),
    "primary_stall_timeout": ("primary_stall_timeout_s", ()),
    "synchronous_mode": ("synchronous_mode", ()),
    "synchronous_mode_strict": ("synchronous_mode_strict", ()),
    "synchronous_node_count": ("synchronous_node_count", ()),
    "failsafe_mode": ("failsafe_mode", ()),
    "failsafe_timeout": ("failsafe_timeout_ms", ()),
    "check_timeline": ("check_timeline", ()),
    "pause": ("pause", ()),
    "postgresql.use_pg_rewind": ("use_pg_rewind", ()),
}


Asked = Mapping[str, Any]


class InForce(Struct, frozen=True, kw_only=True):
    """One setting: its value as it counts, where that comes from, and a remark where they do not agree."""

    name: str
    value: str
    source: str
    remark: str = ""


def settings_in_force(path: Path | None, environ: Mapping[str, str], config: str | None) -> list[InForce]:
    """Everything that counts on this node: the cluster's settings, PostgreSQL's parameters, this node's own settings.

    Args:
        path: as for `settings.load`.
        environ: as for `settings.load`.
        config: the text of the `config` key; None while the cluster is not made, when `bootstrap.dcs` counts.

    Raises: ConfigError.
    """
    reading, settings = read_settings(path, environ)
    asked = settings.bootstrap.dcs if config is None else json_object(config)
    origin = BOOTSTRAP if config is None else ETCD
    dynamic = parse_dynamic(compact(asked))
    return [
        *_dynamic_rows(asked, dynamic, origin, reading),
        *_parameter_rows(dynamic, origin, reading),
        *_local_rows(reading),
    ]


def _dynamic_rows(asked: Asked, dynamic: Dynamic, origin: str, reading: Reading) -> Iterator[InForce]:
    for name, (field, older) in DYNAMIC_FIELDS.items():
        if reading.values.get(name) is not None:
            yield InForce(name=name, value=written(reading.values[name]), source=reading.place(name))
            continue
        found = next((value for key in (name, *older) if (value := _at(asked, key)) is not None), None)
        value = written(getattr(dynamic, field))
        source = DEFAULT if found is None else origin
        is_same = found is None or value in (str(found), _word(found))
        yield InForce(name=name, value=value, source=source, remark="" if is_same else f"written as {found!r}")
    for name, lines in (("postgresql.pg_hba", dynamic.pg_hba), ("postgresql.pg_ident", dynamic.pg_ident)):
        if lines and not reading.values.get(name):
            yield InForce(name=name, value=f"{len(lines)} line{'' if len(lines) == 1 else 's'}", source=origin)


def _at(found: Any, path: str) -> Any:
    for key in path.split("."):
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def _word(value: object) -> str:
    """A truth value in any of its spellings as it is shown."""
    return "on" if as_bool(value, False) else "off"


def _parameter_rows(dynamic: Dynamic, origin: str, reading: Reading) -> Iterator[InForce]:
    """PostgreSQL's parameters, by the layers of `pgconfig.parameters_in_effect`."""
    set_there = dynamic.parameters | recovery_parameters(dynamic.recovery_conf)
    asked = {name.lower(): value for name, value in set_there.items() if NAME.fullmatch(name)}
    free = {name: (value, origin) for name, value in asked.items() if _is_free(name)}
    controlled = {
        name: (value, origin if name in asked else DEFAULT)
        for name, value in controlled_parameters(dynamic.parameters).items()
    }
    defaults = {name: (value, DEFAULT) for name, value in DEFAULTS.items()}
    for name, (value, source) in sorted((defaults | free | dict(_own_parameters(reading)) | controlled).items()):
        is_same = name not in CONTROLLED or asked.get(name, value) == value
        yield InForce(
            name=f"postgresql.parameters.{name}",
            value=HIDDEN if is_secret_name(name) else value,
            source=source,
            remark="" if is_same else f"written as {asked[name]!r}",
        )


def _is_free(name: str) -> bool:
    return name not in CONTROLLED and name not in IGNORED


def _own_parameters(reading: Reading) -> Iterator[tuple[str, tuple[str, str]]]:
    section = reading.node("postgresql.parameters")
    nodes = section.value if section is not None and isinstance(section.value, dict) else {}
    for name, value in reading.values["postgresql.parameters"].items():
        place = nodes[name].place if name in nodes else reading.place("postgresql.parameters")
        if _is_free(name.lower()):
            yield name.lower(), (value, place)


def _local_rows(reading: Reading) -> Iterator[InForce]:
    """What this node was told itself, and its defaults; not what only begins a cluster, nor what has no effect."""
    for path, row in ROWS.items():
        value = reading.values[path]
        is_elsewhere = path in DYNAMIC_FIELDS or path == "postgresql.parameters" or path.startswith("bootstrap.dcs.")
        if is_elsewhere or row.no_effect or value in (None, (), {}):
            continue
        is_written = path in reading.leaves and not reading.leaves[path].is_unset
        yield InForce(name=path, value=_shown(value), source=reading.place(path) if is_written else DEFAULT)


def _shown(value: Any) -> str:
    if isinstance(value, Secret):
        return HIDDEN
    if isinstance(value, tuple) and value and isinstance(value[0], Address | str):
        return ", ".join(str(part) for part in value)
    return written(value)
